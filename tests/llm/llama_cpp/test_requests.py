"""What one request can ask of SmolLM2: where to stop, how long to think, in what form, with what tools."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from june.errors import GenerationError
from june.llm.llama_cpp.engine import Engine
from june.llm.llama_cpp.grammar import prompt_grammar
from june.llm.llama_cpp.model import LlamaCpp
from june.llm.llama_cpp.template import ChatTemplate
from june.llm.prompt import Prompt, Prompts
from june.llm.reasoning import CLOSE, CLOSING
from june.messages import ChatMessage, ChatRequest, Delta, Sampling, Tool, ToolCall
from june.sections import LlmSettings
from june.settings import Settings
from june.workers import StopFlag
from tests.conftest import LLM
from tests.llm.llama_cpp.test_model import another, with_engine

GREEDY = Sampling(temperature=0)
STORY = "Tell me a story about a fox."
WET = "Is water wet?"

Hold = Callable[[str, str], None]


def asks(text: str, *, sampling: Sampling = GREEDY, max_tokens: int = 30, **form: Any) -> ChatRequest:
    messages = (ChatMessage("system", "You are june."), ChatMessage("user", text))
    return ChatRequest(messages, sampling, max_tokens, **form)


def wild(seed: int) -> Sampling:
    """So that the model strays from what it was told."""
    return Sampling(temperature=1.2, top_p=1, top_k=0, seed=seed)


@dataclass
class Answered:
    """A reader that puts an answer together."""

    stop: StopFlag = field(default_factory=StopFlag)
    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    pieces: list[str] = field(default_factory=list)
    last: Delta = field(default_factory=Delta)
    error: GenerationError | None = None

    def post(self, item: Delta) -> None:
        """Add a piece."""
        self.text += item.text
        self.reasoning += item.reasoning
        self.calls += item.tool_calls
        self.pieces.append(item.text)
        self.last = item

    def end(self, error: GenerationError | None = None) -> None:
        """Keep the error."""
        self.error = error

    @property
    def tokens(self) -> int:
        """How many were written."""
        assert self.last.usage is not None
        return self.last.usage.completion_tokens


async def answer(llm: LlamaCpp, request: ChatRequest) -> Answered:
    answered = Answered()
    async for delta in llm.stream(request):
        answered.post(delta)
    return answered


@pytest.fixture(scope="module")
async def single(settings: Settings, model_paths: dict[str, Path]) -> AsyncIterator[LlamaCpp]:
    """Return the model with one slot, where a conversation is always in the same place."""
    async with another(settings.llm.model_copy(update={"slots": 1}), model_paths[LLM]) as llm:
        yield llm


async def test_an_answer_ends_before_a_stop_string_of_several_tokens(single: LlamaCpp) -> None:
    whole = await answer(single, asks(STORY))
    stop = whole.text[len(whole.text) // 2 :][:30]  # longer than any token
    before, _, _ = whole.text.partition(stop)
    stopped = await answer(single, asks(STORY, stop=("|||", stop)))
    assert stopped.text == before
    assert (stopped.last.finish_reason, stopped.tokens < whole.tokens) == ("stop", True)


async def test_a_stop_string_that_never_comes_takes_nothing_away(single: LlamaCpp) -> None:
    whole = await answer(single, asks(STORY))
    stopped = await answer(single, asks(STORY, stop=(whole.text[-3:] + "|||",)))
    assert (stopped.text, stopped.last.finish_reason) == (whole.text, "length")


# --- thoughts ---


class Thinker(Engine):
    """SmolLM2 with a template that opens a thought, as that of Qwen3-…-Thinking-2507 does."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        turns = "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
        template = ChatTemplate(f"{turns}<|im_start|>assistant\n<think>\n", bos="", eos="")
        self._prompts = Prompts(template, self._vocabulary.control_tokens)


async def think(llm_settings: LlmSettings, path: Path, *requests: ChatRequest) -> list[Answered]:
    def work(engine: Engine) -> list[Answered]:
        answers = [Answered() for _ in requests]
        for request, reader in zip(requests, answers, strict=True):
            engine.begin(request, reader)
        while engine.is_busy:
            engine.step()
        return answers

    return await with_engine(Thinker, llm_settings, path, work)


async def test_a_thought_beyond_its_budget_is_closed_and_the_answer_goes_on(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    budget = asks(STORY, max_tokens=48, thinking_budget_tokens=8, ignore_eos=True)
    free, bound, short, tight = await think(
        settings.llm,
        model_paths[LLM],
        replace(budget, thinking_budget_tokens=0),
        budget,
        replace(budget, max_tokens=12),
        replace(budget, thinking_budget_tokens=48),
    )
    words = CLOSING.partition(CLOSE)[0]
    assert (free.text, free.tokens) == ("", 48)
    assert words not in free.reasoning
    assert bound.reasoning.endswith(words)
    assert len(bound.reasoning) > len(words) + 8
    assert len(bound.text) > 20
    assert (bound.tokens, bound.last.finish_reason) == (48, "length")
    assert (short.text, short.tokens, short.last.finish_reason) == ("", 12, "length")
    assert (tight.text, tight.tokens) == ("", 48)


async def test_a_grammar_does_not_hold_within_a_thought(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    form = {"type": "object", "properties": {"fox": {"type": "boolean"}}, "required": ["fox"]}
    (thought,) = await think(
        settings.llm,
        model_paths[LLM],
        asks(STORY, max_tokens=80, thinking_budget_tokens=8, json_schema=form),
    )
    assert len(thought.reasoning) > 20
    assert not thought.reasoning.lstrip().startswith("{")
    assert json.loads(thought.text).keys() == {"fox"}
    assert thought.last.finish_reason == "stop"


# --- grammars ---

SHORT = {"type": "string", "maxLength": 4}
NAMES = ('"', "\\", "\n", "ü🎉", "string", "root", "a b")
VALUES: dict[str, dict[str, Any]] = {
    "some": {"properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "c": SHORT}, "required": ["b"]},
    "constants": {"enum": ['x"y', "\\", 7, None, {"a": [1]}, "🎉"]},
    "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 4},
    "none": {"type": "array", "maxItems": 0},
    "nullable": {"type": ["string", "null"], "minLength": 1, "maxLength": 5},
    "either": {"anyOf": [{"type": "number"}, {"type": "array", "items": SHORT, "maxItems": 2}]},
}
REFERRED: dict[str, dict[str, Any]] = {
    "string": {"type": "boolean"},
    "short": {"$ref": "#/$defs/a~1b"},
    **{kind: {"type": "string", "format": kind} for kind in ("date", "time", "uuid")},
}


def with_all_of(properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    defs = {"string": SHORT, "a/b": {"$ref": "#/$defs/string"}}
    return {"$defs": defs, "type": "object", "properties": properties, "required": list(properties)}


SCHEMAS: dict[str, dict[str, Any]] = {
    "values": with_all_of(VALUES),
    "names": with_all_of({name: {"type": "boolean"} for name in NAMES}),
    "referred": with_all_of(REFERRED),
}
UNBOUNDED: dict[str, dict[str, Any]] = {
    "map": {"additionalProperties": {"type": "boolean"}},
    "tree": {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
    },
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
async def test_an_answer_follows_its_schema_however_wild(llm: LlamaCpp, schema: dict[str, Any]) -> None:
    requests = [
        asks("Describe Bob.", sampling=wild(seed), max_tokens=140, json_schema=schema) for seed in range(2)
    ]
    for each in await asyncio.gather(*(answer(llm, request) for request in requests)):
        assert each.last.finish_reason == "stop"
        jsonschema_rs.validate(schema, json.loads(each.text))


@pytest.mark.parametrize("schema", UNBOUNDED.values(), ids=UNBOUNDED)
async def test_an_answer_that_may_grow_for_ever_is_cut_off_or_follows_its_schema(
    llm: LlamaCpp, schema: dict[str, Any]
) -> None:
    requests = [asks("A tree.", sampling=wild(seed), json_schema=schema) for seed in range(3)]
    answers = await asyncio.gather(*(answer(llm, request) for request in requests))
    assert any(len(each.text) > 15 for each in answers)
    for each in answers:
        assert each.text.startswith("{")
        if each.last.finish_reason == "stop":
            jsonschema_rs.validate(schema, json.loads(each.text))


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Return what holds the answers to one question to any grammar, also to one that no schema makes."""

    def hold_to(gbnf: str, question: str) -> None:
        def grammar(prompt: Prompt) -> str:
            return gbnf if question in prompt.text else prompt_grammar(prompt)

        monkeypatch.setattr("june.llm.llama_cpp.engine.prompt_grammar", grammar)

    return hold_to


async def test_a_grammar_leaves_what_it_allows_as_it_was(single: LlamaCpp, hold: Hold) -> None:
    plain = await answer(single, asks(STORY))
    hold(r"root ::= [^\x00]+", STORY)
    held = await answer(single, asks(STORY))
    assert held.text == plain.text
    hold('root ::= "certainly" | "hardly"', WET)
    yes = await answer(single, asks(WET))
    assert yes.text in {"certainly", "hardly"}
    assert yes.last.finish_reason == "stop"


@pytest.mark.parametrize(
    "form",
    [
        "root ::= (",
        'answer ::= "yes"',
        'root ::= root "a" | "b"',
        r"root ::= [^\x00-\U0010FFFF]",
        "root ::= " + "(" * 50_000,
        "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(100_000)) + 'r100000 ::= "a"',
        {"type": "string", "pattern": "a"},
        {"$ref": "#"},
    ],
    ids=["no GBNF", "no root", "left recursion", "no token", "deep", "many rules", "pattern", "its own"],
)
async def test_a_form_that_cannot_be_kept_fails_that_request_alone(
    llm: LlamaCpp, form: str | dict[str, Any], hold: Hold
) -> None:
    if isinstance(form, str):
        hold(form, WET)
    other = asyncio.create_task(answer(llm, asks(STORY)))
    with pytest.raises(GenerationError) as caught:
        await answer(llm, asks(WET, json_schema=form if isinstance(form, dict) else None))
    assert caught.value.code == "bad_grammar"
    assert (await other).tokens == 30


# --- tools ---

WEATHER = Tool(
    "weather",
    "Tells the weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
)
TIME = Tool("time", "Tells what time it is.", {"type": "object", "properties": {}})
PARAMETERS = {tool.name: tool.parameters for tool in (WEATHER, TIME)}


async def test_a_model_whose_template_knows_no_tools_calls_one_all_the_same(llm: LlamaCpp) -> None:
    request = asks("What is the weather in Paris?", max_tokens=60, tools=(WEATHER, TIME))
    called = await answer(llm, request)
    (call,) = called.calls
    assert (called.text, call.name, call.arguments, call.error) == ("", "weather", {"city": "Paris"}, "")
    assert called.last.finish_reason == "tool_calls"


async def test_what_is_no_call_is_an_answer_in_plain_text_that_streams(llm: LlamaCpp) -> None:
    async def ask(seed: int) -> Answered:
        return await answer(llm, asks("Hello!", sampling=wild(seed), max_tokens=40, tools=(WEATHER, TIME)))

    answers = await asyncio.gather(*map(ask, range(8)))
    texts = [each for each in answers if each.text]
    assert texts
    assert any(each.calls for each in answers)
    for each in answers:
        assert bool(each.text) != bool(each.calls)
        assert not each.text.startswith("{")
        for call in each.calls:
            assert bool(call.error) == (each.last.finish_reason == "length")
            assert call.error or jsonschema_rs.is_valid(dict(PARAMETERS[call.name]), call.arguments)
    assert any(len([piece for piece in each.pieces if piece]) > 1 for each in texts)
