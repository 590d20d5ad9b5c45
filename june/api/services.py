"""The parts of june that the endpoints use."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from june.api.requests import timestamp
from june.chat import Adapter
from june.chat.addresses import AddressBook
from june.conversation.failing import FailingStage
from june.llm.switching import SwitchableModel
from june.messages import ModelDescription, Platform
from june.sections import QueueSettings
from june.store import Explain, Message, Store
from june.telemetry import trace_id


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of june that the endpoints use.

    Attributes:
        explanation: gives what tells the owner that a message failed for good.
        wake_delivery: called when there is a message to send.
        models: the models that are warm; empty until all of them are.
        is_ready: whether all models are warm and none has been unloaded since.
        llm: the language model; None until it is warm.
        present_llms: the value of `llm.model` for each language model that is present, by its name.
        failing_stages: the stages that keep june from answering now.
        closing: set when june ends; requests that wait are answered then.
    """

    store: Store
    queue: QueueSettings
    addresses: AddressBook
    adapters: Mapping[Platform, Adapter]
    explanation: Callable[[], Awaitable[Explain]]
    wake_delivery: Callable[[], None]
    models: Callable[[], Sequence[ModelDescription]]
    is_ready: Callable[[], bool] = lambda: False
    llm: Callable[[], SwitchableModel | None] = lambda: None
    present_llms: Callable[[], Mapping[str, str]] = dict
    failing_stages: Callable[[], Sequence[FailingStage]] = tuple
    closing: asyncio.Event = field(default_factory=asyncio.Event)


def message_json(message: Message) -> dict[str, Any]:
    """Return a message in the form that every endpoint shows."""
    return {
        "id": message.id,
        "platform": message.platform,
        "chat": message.chat,
        "user": message.user,
        "user_name": message.user_name,
        "role": message.role,
        "direction": message.direction,
        "kind": message.kind,
        "text": message.text,
        "has_audio": message.has_audio,
        "status": message.status,
        "reply_to": message.reply_to,
        "created_at": timestamp(message.created_at_s),
        "updated_at": timestamp(message.updated_at_s),
        "lease_until": timestamp(message.lease_until_s),
        "expires_at": timestamp(message.expires_at_s),
        "attempts": message.attempts,
        "error": message.error or None,
        "trace_id": trace_id(message.trace_context) or None,
        "timings_s": message.timings_s or None,
    }


def answer(message: Message, status: int = 200) -> web.Response:
    """Return a response with a message."""
    return web.json_response(message_json(message), status=status)
