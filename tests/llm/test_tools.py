"""Tool calls, read while they are being written."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from june.llm.output import Output
from june.llm.tools import CALL, CALL_END, CallReader, JsonReply, TaggedCalls
from june.messages import ToolCall

NAMES = ("weather", "time")
WEATHER = '{"name": "weather", "arguments": {"city": "Köln", "days": 2}}'
CALLED = ToolCall("id", "weather", {"city": "Köln", "days": 2})


def tagged() -> TaggedCalls:
    """Return a reader whose calls all have the same id."""
    return TaggedCalls(NAMES, lambda: "id")


def read(reader: CallReader, *pieces: str) -> tuple[str, list[ToolCall]]:
    """Return the whole text, and all calls."""
    parts = [part for piece in pieces for part in reader.feed(piece)] + [*reader.finish()]
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part for part in parts if isinstance(part, ToolCall)]


def cut(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ("Nice weather.", "Nice weather.", []),
        (f"{CALL}\n{WEATHER}\n{CALL_END}", "", [CALLED]),
        (
            f"Let me see.\n{CALL}{WEATHER}{CALL_END}\n{CALL}{WEATHER}{CALL_END}\n",
            "Let me see.\n",
            [CALLED] * 2,
        ),
        (f'{CALL}{{"name": "time"}}{CALL_END}\n\nSo.', "So.", [ToolCall("id", "time", {})]),
        (f"{CALL}{WEATHER}", "", [CALLED]),
        ("1 < 2 <tool_car", "1 < 2 <tool_car", []),
    ],
)
def test_a_tagged_call_is_no_text(text: str, answer: str, calls: list[ToolCall]) -> None:
    assert read(tagged(), text) == (answer, calls)
    assert read(tagged(), *text) == (answer, calls)


@pytest.mark.parametrize(
    ("written", "name", "told"),
    [
        ('{"name": "weather", "arguments": {"ci', "", "not JSON, or was cut off"),
        ("weather(Köln)", "", "not JSON"),
        ("[" * 100_000, "", "RecursionError"),
        ('["weather"]', "", 'not a JSON object with a "name"'),
        ('{"arguments": {}}', "", 'not a JSON object with a "name"'),
        ('{"name": "rockets", "arguments": {}}', "rockets", "there are: weather, time"),
        ('{"name": "weather", "arguments": "Köln"}', "weather", "not a JSON object"),
    ],
)
def test_a_call_that_is_none_comes_with_a_sentence_for_the_model(written: str, name: str, told: str) -> None:
    text, (call,) = read(tagged(), f"{CALL}{written}{CALL_END}")
    assert (text, call.name, call.arguments) == ("", name, {})
    assert told in call.error


fragments = st.sampled_from([CALL, CALL_END, WEATHER, "<tool", "_call>", "</", "{", "a", " ", "\n", "b c"])


@given(text=st.lists(fragments, max_size=12).map("".join), data=st.data())
def test_where_tagged_calls_are_cut_changes_nothing(text: str, data: st.DataObject) -> None:
    assert read(tagged(), *cut(text, data)) == read(tagged(), text)


@given(answer=st.text(), data=st.data())
def test_an_answer_in_json_comes_out_as_its_text(answer: str, data: st.DataObject) -> None:
    written = json.dumps({"answer": answer}, ensure_ascii=False)
    assert read(JsonReply(NAMES), *cut(written, data)) == (answer, [])


@given(answer=st.text(st.characters(max_codepoint=0xD7FF)), data=st.data())
def test_escapes_are_cut_nowhere(answer: str, data: st.DataObject) -> None:
    written = json.dumps({"answer": answer}, ensure_ascii=True)
    assert read(JsonReply(NAMES), *cut(written, data)) == (answer, [])


def test_an_answer_in_json_streams() -> None:
    reply = JsonReply(NAMES)
    assert list(reply.feed('{"answ')) == []
    assert list(reply.feed('er": "One')) == ["One"]
    assert list(reply.feed(" two \\")) == [" two "]
    assert list(reply.feed('"three\\u00')) == ['"three']
    assert list(reply.feed('fc"')) == ["ü"]
    assert list(reply.feed("}")) == []
    assert list(reply.finish()) == []


@given(data=st.data())
def test_a_call_in_json_is_a_call(data: st.DataObject) -> None:
    written = '{"tool": "weather", "arguments": {"city": "Köln", "days": 2, "\\"answer\\":": "x"}}'
    pieces = cut(written, data)
    expected = {"city": "Köln", "days": 2, '"answer":': "x"}
    assert read(JsonReply(NAMES, lambda: "id"), *pieces) == ("", [ToolCall("id", "weather", expected)])


@pytest.mark.parametrize("written", ["", '{"answer"', '{"tool": "weather", "arguments": {"city'])
def test_a_call_in_json_that_was_cut_off_comes_with_a_sentence(written: str) -> None:
    text, (call,) = read(JsonReply(NAMES), written)
    assert text == ""
    assert "cut off" in call.error


def test_each_call_has_an_id_of_its_own_that_every_template_takes() -> None:
    _, tagged_calls = read(TaggedCalls(NAMES), f"{CALL}{WEATHER}{CALL_END}" * 20, f"{CALL}cut off")
    _, replied = read(JsonReply(NAMES), '{"tool": "weather", "arguments": {}}')
    ids = [call.id for call in (*tagged_calls, *replied)]
    assert len(set(ids)) == 22
    assert all(re.fullmatch("[A-Za-z0-9]{9}", each) for each in ids)


# --- all of it together ---


def put_out(make: Callable[[], Output], pieces: list[bytes]) -> tuple[str, str, tuple[ToolCall, ...], bool]:
    output = make()
    deltas = []
    for piece in pieces:
        deltas.append(output.feed(piece))
        if output.has_stopped:
            break
    else:
        deltas.append(output.finish())
    text, reasoning = ("".join(getattr(delta, part) for delta in deltas) for part in ("text", "reasoning"))
    calls = tuple(call for delta in deltas for call in delta.tool_calls)
    assert output.has_calls == bool(calls)
    return text, reasoning, calls, output.has_stopped


WHOLE = f"{CALL}{WEATHER}{CALL_END}"
mixed = st.sampled_from(
    [WHOLE, CALL, CALL_END, WEATHER, "<think>", "</think>", "<", "STOP", "ST", "é🎉", "a", " ", "\n"]
)


@given(text=st.lists(mixed, max_size=10).map("".join), thinking=st.booleans(), data=st.data())
@example(text=f"{WHOLE}STOP{WHOLE}", thinking=False, data=None)
@example(text=f"ST{WHOLE}OP", thinking=False, data=None)
def test_where_an_answer_is_cut_changes_neither_text_nor_calls(
    text: str, data: Any, *, thinking: bool
) -> None:
    def make() -> Output:
        return Output(thinking=thinking, calls=tagged(), stop=("STOP",))

    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded))))) if data else []
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    bytewise = [bytes([byte]) for byte in encoded]
    answer, reasoning, *rest = put_out(make, pieces)
    answer_bytewise, reasoning_bytewise, *rest_bytewise = put_out(make, bytewise)
    assert (answer, rest) == (answer_bytewise, rest_bytewise)
    assert reasoning.startswith(reasoning_bytewise)  # what was read beyond a stop string


def test_a_stop_string_does_not_reach_across_a_call() -> None:
    output = Output(calls=tagged(), stop=("STOP",))
    deltas = [output.feed(f"ST{WHOLE}".encode()), output.feed(b"OP")]
    assert [(delta.text, delta.tool_calls) for delta in deltas] == [("ST", (CALLED,)), ("OP", ())]
    assert not output.has_stopped


def test_a_stop_string_and_a_call_within_a_thought_are_thought() -> None:
    output = Output(thinking=True, calls=tagged(), stop=("STOP",))
    thought = f"STOP {CALL}{WEATHER}{CALL_END}"
    delta = output.feed(f"{thought}</think>\nYes.".encode())
    assert (delta.text, delta.reasoning, delta.tool_calls) == ("Yes.", thought, ())
    assert not output.thinking
