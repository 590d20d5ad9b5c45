"""Who is served: what of that which arrives is kept.

An owner is served always, an allowed person within limits, a stranger not at all: no answer, no sign, and
nothing is stored of what they send. An owner may shut out with /deny even whom the settings allow. What this
does not cover: a stranger's message has been read from the platform by then, and costs a look into the store
and a log line.
"""

import asyncio
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

from june.messages import Attachment, Inbound, Outbound
from june.sections import AccessSettings
from june.store import Placed, Received, Role, Store, Ties
from june.telemetry import dropped_total, log, messages_total

MINUTE_S = 60.0
HOUR_S = 3600.0
DAY_S = 86_400.0

BYTES_PER_S = 2000
"""What a recording of unknown length is taken for: 16 kbit/s, the least that speech is sent with."""

CODE_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without 0, O, 1 and I, which are mistaken for one another: 32 characters, so that a code has 40 bits."""
CODE_LENGTH = 8
CODE = re.compile(rf"(?:/START\s+)?([{CODE_ALPHABET}]{{{CODE_LENGTH}}})")

TRIES_PER_HOUR = 5
"""Wrong codes of one stranger."""
MAX_REMEMBERED_STRANGERS = 1000
"""Whose tries are counted; beyond it those who tried the longest ago are forgotten."""

QUEUED = "It waits in the queue."
WELCOME = "Welcome! Send me a voice message or write to me, and I answer. /help lists what else I can do."


def new_pairing_code() -> str:
    """Return a random code of the form that `Gate` looks for in what strangers send."""
    return "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_LENGTH))


class Gate:
    """The `Intake` that keeps only what june should answer.

    Args:
        store: the inbox, and who was let in or shut out.
        access: owners, allowed people and their limits.
        place: decides how a message is stored; see `june.store.Inbox.receive`.
        on_received: called with the messages that are new, once they are committed.
        wake_delivery: called once a notice is committed that is to be sent.
        move: keeps a chat under its new name; by default the store does.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        access: AccessSettings,
        place: Callable[[Inbound, Role, Ties], Placed],
        *,
        on_received: Callable[[Sequence[Received]], None],
        wake_delivery: Callable[[], None],
        move: Callable[[str, str], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._access = access
        self._place = place
        self._on_received = on_received
        self._wake_delivery = wake_delivery
        self._move = move or store.conversations.move
        self._clock = clock
        self._lock = asyncio.Lock()  # Discord hands in one task a message: their order must stay
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        # Only of people with access, so as many as there are of those.
        self._recent: dict[str, deque[tuple[tuple[str, str], float]]] = {}
        self._explained: set[tuple[str, str]] = set()

    async def role_of(self, user: str) -> Role | None:
        """Return whether someone is an owner or allowed; None: a stranger."""
        return await role_of(self._store, self._access, user)

    async def cursor(self, name: str) -> str:
        """See `Intake`."""
        return await self._store.inbox.cursor(name)

    async def moved(self, old: str, new: str) -> None:
        """See `Intake`.

        Raises:
            StoreError: nothing was committed.
        """
        await self._move(old, new)

    async def receive(self, batch: Sequence[Inbound], *, cursor: tuple[str, str] | None = None) -> None:
        """See `Intake`.

        Raises:
            StoreError: nothing was committed.
            StageError: as above; the store is too busy.
        """
        async with self._lock:
            accepted: list[tuple[Inbound, Role]] = []
            replies: list[Outbound] = []
            for message in batch:
                if not message.may_be_for_june:
                    dropped_total.labels("not_addressed").inc()
                    continue
                role = await self.role_of(message.user)
                if role is None:
                    replies += await self._turn_away(message)
                    continue
                refusal = await self._refusal(message, accepted) if role == "allowed" else None
                if refusal is None:
                    accepted.append((message, role))
                else:
                    replies += self._refuse(message, refusal)
            commands = {(one.chat, one.message_id) for one, _ in accepted if one.kind == "command"}

            def confirm(received: Received) -> Outbound | None:
                """Confirm what a command put into the queue: nothing else would show it."""
                message = received.message
                is_command = (message.chat, message.message_id) in commands
                if not is_command or message.route != "queue":
                    return None
                return _notice(message, QUEUED)

            new = await self._store.inbox.receive(
                accepted, place=self._place, cursor=cursor, replies=replies, confirm=confirm
            )
            for received in new:
                messages_total.labels(received.message.platform, received.message.kind, received.role).inc()
            if new:
                self._on_received(new)
            if replies or any(map(confirm, new)):
                self._wake_delivery()

    async def _turn_away(self, message: Inbound) -> list[Outbound]:
        """Return the welcome for a stranger who knows a code, and nothing for any other."""
        if self._access.pairing and not message.is_group and message.kind in ("text", "command"):
            code = CODE.fullmatch(message.text.strip().upper())
            if (
                code
                and self._may_try(message.user)
                and await self._store.people.redeem(code[1], message.user, message.user_name)
            ):
                log.info("stranger.paired", platform=message.platform, user=message.user)
                return [_notice(message, WELCOME)]
        dropped_total.labels("stranger").inc()
        log.info("stranger.ignored", platform=message.platform, user=message.user)
        return []

    def _may_try(self, user: str) -> bool:
        """Return whether a stranger has a try left in this hour, and spend it."""
        now_s = self._clock()
        tries = self._tries.setdefault(user, deque(maxlen=TRIES_PER_HOUR))
        if len(tries) == TRIES_PER_HOUR and now_s - tries[0] < HOUR_S:
            return False
        tries.append(now_s)
        self._tries.move_to_end(user)
        if len(self._tries) > MAX_REMEMBERED_STRANGERS:
            self._tries.popitem(last=False)
        return True

    async def _refusal(
        self, message: Inbound, accepted: Sequence[tuple[Inbound, Role]]
    ) -> tuple[str, str] | None:
        """Return which limit the message exceeds, and what its sender is told; None: it exceeds none."""
        if self._is_too_fast(message):
            limit = self._access.messages_per_minute
            return (
                "messages_per_minute",
                f"That is more than {limit} messages in a minute: please wait for me.",
            )
        if message.attachment is not None:
            spent = await self._store.history.spent(message.user, since_s=self._clock() - DAY_S)
            recordings = [
                one.attachment for one, _ in accepted if one.user == message.user and one.attachment
            ]
            recorded_s = spent.audio_s + sum(map(_length_s, [*recordings, message.attachment]))
            if recorded_s > self._access.audio_s_per_day:
                minutes = f"{self._access.audio_s_per_day / 60:.3g}"
                return "audio_s_per_day", (
                    f"That is more than {minutes} minutes of recordings in a day: please write to me instead."
                )
            self._explained.discard((message.user, "audio_s_per_day"))
        return None

    def _is_too_fast(self, message: Inbound) -> bool:
        """Return whether its sender sent too many messages within a minute of it, by the platform's clock.

        By that clock, what was sent over hours while june was away is not too much when all of it arrives
        at once; and what a platform repeats counts once.
        """
        limit = self._access.messages_per_minute
        key, sent_at_s = (message.chat, message.message_id), message.sent_at_s or self._clock()
        recent = self._recent.setdefault(message.user, deque(maxlen=limit))
        near = [other for other, other_sent_at_s in recent if abs(sent_at_s - other_sent_at_s) < MINUTE_S]
        if key in near:
            return False
        if len(near) == limit:
            return True
        recent.append((key, sent_at_s))
        self._explained.discard((message.user, "messages_per_minute"))
        return False

    def _refuse(self, message: Inbound, refusal: tuple[str, str]) -> list[Outbound]:
        """Return the explanation, once until the sender is under the limit again, if june was spoken to."""
        limit, explanation = refusal
        dropped_total.labels(limit).inc()
        if not message.is_addressed or (message.user, limit) in self._explained:
            return []
        self._explained.add((message.user, limit))
        return [_notice(message, explanation)]


async def role_of(store: Store, access: AccessSettings, user: str) -> Role | None:
    """Return whether someone is an owner or allowed; None: a stranger."""
    if user in access.owners:
        return "owner"
    stored = await store.people.access(user)
    if stored == "allowed" or (stored is None and user in access.allowed):
        return "allowed"
    return None


def _length_s(recording: Attachment) -> float:
    return recording.duration_s or recording.size_bytes / BYTES_PER_S


def _notice(message: Inbound, text: str) -> Outbound:
    return Outbound(message.chat, "text", text, reply_to=message.message_id, may_group=True)
