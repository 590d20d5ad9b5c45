"""Turns a request into the text of a prompt, by the model's own chat template.

What people, tools and the model itself wrote cannot be taken for the template's own marks: control tokens are
taken out, and tags such as `<tool_call>` are broken by a space.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from june.errors import GenerationError
from june.llm.reasoning import CLOSE, OPEN
from june.llm.tools import (
    CALL,
    CALL_END,
    RESPONSE,
    RESPONSE_END,
    CallReader,
    JsonReply,
    TaggedCalls,
    calls_for_template,
    for_template,
    instructed,
    new_call_id,
    told_in_words,
)
from june.messages import ChatMessage, ChatRequest, JsonObject, Tool, ToolCall

SCHEMA_INSTRUCTIONS = "Answer with one JSON value that follows this JSON schema, and nothing else:\n{schema}"
_TAGS = (OPEN, CLOSE, CALL, CALL_END, RESPONSE, RESPONSE_END)
_TAG_BEGINS = re.compile(f"<(?={'|'.join(re.escape(tag[1:]) for tag in _TAGS)})")


class Template(Protocol):
    """A chat template."""

    def __call__(self, messages: list[dict[str, Any]], **keywords: Any) -> str:
        """Return the prompt, which ends where the model's answer begins.

        Raises:
            GenerationError: the template refuses the messages.
        """


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given to go on with, and how that is to be read.

    The answer, once a thought has ended, may be held to a form: to a JSON schema, or to one JSON object that
    is an answer or a call of a tool, as `JsonReply` reads it.

    Attributes:
        text: the prompt.
        thinking: whether it ends within a thought.
        calls: takes tool calls out of the answer; None if there are no tools.
        json_schema: what the answer follows; None: no schema.
        reply_tools: the tools of a `JsonReply`; empty: it is none.
    """

    text: str
    thinking: bool
    calls: CallReader | None = None
    json_schema: JsonObject | None = None
    reply_tools: tuple[Tool, ...] = ()


class Prompts:
    """Makes the prompts of one model.

    Args:
        template: the model's chat template.
        control_tokens: the texts of all its control tokens.
    """

    def __init__(self, template: Template, control_tokens: Iterable[str]) -> None:
        self._template = template
        longest_first = sorted(set(control_tokens) - {""}, key=len, reverse=True)
        self._control_tokens = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def make(self, request: ChatRequest) -> Prompt:
        """Return the prompt of a request.

        Raises:
            GenerationError: the template refuses the messages, or tools and a schema are asked for at once.
        """
        if request.tools and request.json_schema is not None:
            raise GenerationError("bad_grammar", "Tools and a JSON schema cannot both be asked for.")
        calls: CallReader | None = None
        reply_tools: tuple[Tool, ...] = ()
        names = [tool.name for tool in request.tools]
        messages: Sequence[ChatMessage] = request.messages
        keywords: dict[str, Any] = {"enable_thinking": request.thinking}
        if self.knows_tools:
            if request.tools:
                calls = TaggedCalls(names)
                keywords["tools"] = [self._harmless(for_template(tool)) for tool in request.tools]
        else:
            messages = list(told_in_words(messages, request.tools))
            if request.tools:
                calls, reply_tools = JsonReply(names), request.tools
        if request.json_schema is not None:
            schema = json.dumps(request.json_schema, ensure_ascii=False)
            messages = instructed(messages, SCHEMA_INSTRUCTIONS.format(schema=schema))
        text = self._template([self._harmless(each) for each in calls_for_template(messages)], **keywords)
        has_form = request.json_schema is not None or bool(reply_tools)
        if has_form and request.thinking and self.may_think and not _ends_in_thought(text):
            text += f"{OPEN}\n"  # or the form would hold from the first token on
        return Prompt(text, _ends_in_thought(text), calls, request.json_schema, reply_tools)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template shows a tool and what it answered, and a call in the way that we read."""
        tool = Tool("count_stripes", "Counts the stripes of a zebra.", {"type": "object", "properties": {}})
        call = ToolCall(new_call_id(), tool.name, {"zebra": "Marty"})
        messages = (
            ChatMessage("user", "How many stripes?"),
            ChatMessage("assistant", "", (call,)),
            ChatMessage("tool", "twenty-six", tool_call_id=call.id),
        )
        try:
            text = self._template(list(calls_for_template(messages)), tools=[for_template(tool)])
        except (GenerationError, TypeError):  # a template that expects its arguments in another shape
            return False
        reader = TaggedCalls([tool.name], lambda: call.id)
        return tool.description in text and "twenty-six" in text and call in reader.feed(text)

    @cached_property
    def may_think(self) -> bool:
        """Whether the template lets the request decide if the model thinks."""
        messages = [{"role": "user", "content": "Hello"}]
        return self._template(messages, enable_thinking=True) != self._template(
            messages, enable_thinking=False
        )

    def _harmless(self, value: Any) -> Any:
        """Return the same value; all texts within it are without control tokens and tags."""
        if isinstance(value, str):
            return _TAG_BEGINS.sub("< ", self._without_control_tokens(value))
        if isinstance(value, Mapping):
            return {self._harmless(key): self._harmless(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._harmless(each) for each in value]
        return value

    def _without_control_tokens(self, text: str) -> str:
        """Return the text without control tokens, also without those that appear once others are gone."""
        while (shorter := self._control_tokens.sub("", text)) != text:
            text = shorter
        return text


def _ends_in_thought(text: str) -> bool:
    return text.rstrip().endswith(OPEN)
