"""Tools: how a model is told of them, and its calls, read while they are being written.

Two ways. A model whose chat template knows tools writes `<tool_call>{"name": …, "arguments": …}</tool_call>`
(Qwen3's way, which it has from Hermes) wherever it wants to. Any other is told of the tools in the system
prompt, and held by a grammar to one JSON object, which is an answer or a call.

What a model wrote is never trusted: a call that is none comes as a `ToolCall` with an error, in words that
the model can be shown. Neither way has an id in it, so june makes one for each call.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from june.llm.stopping import held_back
from june.messages import ChatMessage, Tool, ToolCall

CALL = "<tool_call>"
CALL_END = "</tool_call>"
RESPONSE = "<tool_response>"
RESPONSE_END = "</tool_response>"

INSTRUCTIONS = """\
You can use these tools:

{tools}

Write one JSON object and nothing else. To use a tool, write {{"tool": its name, "arguments": an object}}; \
you are then told its result. To answer, write {{"answer": what you say}}."""
"""For models whose template knows no tools; a grammar holds them to it."""


ID_SIGNS = string.ascii_letters + string.digits
ID_LENGTH = 9
"""Mistral's chat templates insist on nine letters and digits."""

NewId = Callable[[], str]


def new_call_id() -> str:
    """Return an id that no other call has; the odds are those of 54 random bits."""
    return "".join(secrets.choice(ID_SIGNS) for _ in range(ID_LENGTH))


_ANSWER = re.compile(r'\{"answer": ?"')


class CallReader(Protocol):
    """Tells calls from text while both are being written."""

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Yield what is certain by now, in the order it was written."""

    def finish(self) -> Iterator[str | ToolCall]:
        """Yield what was held back."""


class TaggedCalls:
    """Takes the calls between `<tool_call>` and `</tool_call>` out of streamed text.

    Args:
        names: of the tools that there are.
        new_id: makes the id of each call.
    """

    def __init__(self, names: Collection[str], new_id: NewId = new_call_id) -> None:
        self._names = names
        self._new_id = new_id
        self._pending = ""
        self._is_call = False
        self._had_call = False

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Yield what is certain by now, in the order it was written."""
        self._pending += text
        while True:
            before, found, after = self._pending.partition(CALL_END if self._is_call else CALL)
            if not found:
                break
            yield from self._call(before) if self._is_call else self._text(before)
            self._pending = after
            self._is_call = not self._is_call
        if not self._is_call:
            certain = len(self._pending) - held_back(self._pending, [CALL])
            before, self._pending = self._pending[:certain], self._pending[certain:]
            yield from self._text(before)

    def finish(self) -> Iterator[str | ToolCall]:
        """Yield what was held back; a call may lack its end."""
        yield from self._call(self._pending) if self._is_call else self._text(self._pending)
        self._pending = ""

    def _text(self, text: str) -> Iterator[str]:
        # Blank lines after a call belong to no answer.
        text = text.lstrip() if self._had_call else text
        if text:
            self._had_call = False
            yield text

    def _call(self, text: str) -> Iterator[ToolCall]:
        self._had_call = True
        yield read_call(text, "name", self._names, self._new_id())


class JsonReply:
    """Reads `{"answer": "…"}`, whose text comes out as it is written, or `{"tool": "…", "arguments": {…}}`.

    Args:
        names: of the tools that there are.
        new_id: makes the id of each call.
    """

    def __init__(self, names: Collection[str], new_id: NewId = new_call_id) -> None:
        self._names = names
        self._new_id = new_id
        self._written = ""
        self._string = ""
        self._is_answer = False

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Yield the answer as far as it is certain by now; a call comes at its end."""
        if not self._is_answer:
            self._written += text
            begun = _ANSWER.match(self._written)
            if begun is None:
                return
            self._is_answer = True
            text = self._written[begun.end() :]
        self._string += text
        size = _string_size(self._string)
        certain, self._string = self._string[:size], self._string[size:]
        if certain:
            yield json.loads(f'"{certain}"', strict=False)

    def finish(self) -> Iterator[str | ToolCall]:
        """Yield the call, unless it was an answer; one that was cut off has an error."""
        if not self._is_answer:
            yield read_call(self._written, "tool", self._names, self._new_id())


def _string_size(text: str) -> int:
    """Return how much of what follows a quote is certainly in that JSON string: no half of an escape."""
    position = 0
    while position < len(text) and text[position] != '"':
        size = 1
        if text[position] == "\\":
            size = 6 if text[position + 1 : position + 2] == "u" else 2
        if position + size > len(text):
            break
        position += size
    return position


def read_call(text: str, key: str, names: Collection[str], call_id: str) -> ToolCall:
    """Return the call that a model wrote as a JSON object: its tool's name under `key`, and `arguments`."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        return ToolCall(call_id, "", {}, f"The tool call is not JSON, or was cut off: {why}.")
    if not isinstance(call, dict) or not isinstance(call.get(key), str):
        return ToolCall(call_id, "", {}, f'The tool call is not a JSON object with a "{key}".')
    name, arguments = call[key], call.get("arguments", {})
    if name not in names:
        return ToolCall(call_id, name, {}, f"There is no tool of that name; there are: {', '.join(names)}.")
    if not isinstance(arguments, dict):
        return ToolCall(call_id, name, {}, 'The "arguments" of the tool call are not a JSON object.')
    return ToolCall(call_id, name, arguments)


def for_template(tool: Tool) -> dict[str, Any]:
    """Return a tool as chat templates know it: as in the OpenAI protocol."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def calls_for_template(messages: Iterable[ChatMessage]) -> Iterator[dict[str, Any]]:
    """Yield messages as chat templates know them, calls and what they answered among them.

    Some templates want to see which call a tool answered, and its name.
    """
    names: dict[str, str] = {}
    for message in messages:
        rendered: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            rendered["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
            names |= {call.id: call.name for call in message.tool_calls}
        elif message.tool_call_id in names:
            rendered |= {"tool_call_id": message.tool_call_id, "name": names[message.tool_call_id]}
        yield rendered


def told_in_words(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> Iterator[ChatMessage]:
    """Yield the same conversation with tools in the system prompt, for a template that knows none."""
    if tools:
        functions = (for_template(tool)["function"] for tool in tools)
        lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
        messages = instructed(messages, INSTRUCTIONS.format(tools=lines))
    for message in messages:
        if message.tool_calls:
            calls = ({"tool": call.name, "arguments": call.arguments} for call in message.tool_calls)
            lines = "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
            yield ChatMessage(message.role, f"{message.content}\n{lines}".lstrip())
        elif tools and message.role == "assistant":
            yield replace(message, content=json.dumps({"answer": message.content}, ensure_ascii=False))
        elif message.role == "tool":
            yield ChatMessage("user", f"The tool's result:\n{message.content}")
        else:
            yield message


def instructed(messages: Sequence[ChatMessage], instruction: str) -> list[ChatMessage]:
    """Return the same conversation with an instruction at the end of its system prompt."""
    if messages and messages[0].role == "system":
        first, *rest = messages
        return [replace(first, content=f"{first.content}\n\n{instruction}"), *rest]
    return [ChatMessage("system", instruction), *messages]
