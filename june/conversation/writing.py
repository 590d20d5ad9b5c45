"""A request becomes text, by a language model or by whatever streams like one."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from june.conversation.draft import Draft
from june.conversation.limits import limited, named
from june.errors import GenerationError
from june.messages import ChatMessage, ChatRequest, Delta, Device, JsonObject, ModelDescription, Sampling
from june.sections import LlmSettings
from june.telemetry import Facts


class TextStream(Protocol):
    """What writes answers: a `june.llm.ChatModel`, or something that uses one and streams as it does."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer piece by piece; closing the stream cancels it.

        Raises:
            GenerationError: the answer cannot be written.
        """

    def describe(self) -> ModelDescription:
        """Return what writes, for people and machines to read."""


class Writer:
    """Writes answers.

    Args:
        model: what writes; it is not owned.
        settings: the section `[llm]`.
    """

    def __init__(self, model: TextStream, settings: LlmSettings) -> None:
        self._model = model
        self._settings = settings

    @property
    def device(self) -> Device:
        """Where the model computes now; it may be exchanged for another one."""
        return self._model.describe().device

    def request(
        self,
        messages: tuple[ChatMessage, ...],
        conversation: str = "",
        json_schema: JsonObject | None = None,
    ) -> ChatRequest:
        """Return what the model is asked: the system prompt, then the messages."""
        settings = self._settings
        return ChatRequest(
            (ChatMessage("system", settings.system_prompt), *messages),
            sampling_of(settings),
            settings.max_tokens,
            settings.thinking,
            conversation,
            stop=tuple(settings.stop),
            thinking_budget_tokens=settings.thinking_budget_tokens,
            json_schema=json_schema,
        )

    async def write(self, draft: Draft, request: ChatRequest, timings_s: dict[str, float]) -> None:
        """Write the whole answer into the draft.

        Raises:
            GenerationError: the answer cannot be written, or is empty.
            StageError: it took longer than `llm.timeout_s`.
        """
        begin = time.perf_counter()
        async with (
            limited("llm", self._settings.timeout_s, timings_s, **named(self._model)) as facts,
            aclosing(self._model.stream(request)) as deltas,
        ):
            async for delta in deltas:
                if delta.text:
                    timings_s.setdefault("llm_first_token", time.perf_counter() - begin)
                    draft.add(delta.text)
                draft.usage = delta.usage or draft.usage
                facts.update(_counted(delta))
            facts["time_to_first_token_s"] = timings_s.get("llm_first_token", 0.0)
        draft.finish()
        if not draft.text:
            raise GenerationError("llm_empty", "The language model wrote nothing.")


def sampling_of(settings: LlmSettings) -> Sampling:
    """Return how the settings ask for tokens to be drawn."""
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        presence_penalty=settings.presence_penalty,
        repeat_penalty=settings.repeat_penalty,
        seed=None if settings.seed < 0 else settings.seed,
    )


def _counted(last: Delta) -> Facts:
    """Return what the last piece of an answer tells of all of it; nothing of any other piece."""
    facts: Facts = {} if last.finish_reason is None else {"finish_reason": last.finish_reason}
    if last.usage is not None:
        facts |= {
            "prompt_tokens": last.usage.prompt_tokens,
            "cached_tokens": last.usage.cached_tokens,
            "completion_tokens": last.usage.completion_tokens,
        }
    return facts
