"""What june passes on between people: to the owner, and back from the owner."""

from dataclasses import replace

from june.conversation.apps import Addresses, ChatApps
from june.conversation.hearing import Hearing
from june.conversation.work import Work
from june.errors import DeliveryError, QueueError
from june.messages import Outbound, Voice
from june.store import Store
from june.telemetry import log

NO_ACCESS = "Whoever wrote that has no access any more."
NO_OWNER = "I cannot reach my owner at the moment."


class Forwarding:
    """Passes messages on, each with the recording that it was said in.

    Args:
        store: has the messages that the owner replies to.
        apps: show a text as it is.
        addresses: where people are reached.
        hearing: has the recordings.
    """

    def __init__(self, store: Store, apps: ChatApps, addresses: Addresses, hearing: Hearing) -> None:
        self._store = store
        self._apps = apps
        self._addresses = addresses
        self._hearing = hearing

    async def forward(self, work: Work, words: str) -> None:
        """Pass a message on to the owner, with who sent it.

        Raises:
            StageError: its recording cannot be had any more.
        """
        voice = await self._voice(work)
        try:
            owner = await self._addresses.owner()
        except (QueueError, DeliveryError) as error:
            log.warning("forward.refused", detail=str(error))
            await work.finish([work.reply(NO_OWNER)], "failed", error="no_owner", status="ERROR")
            return
        message = work.received.message
        name = "".join(filter(str.isprintable, " ".join(message.user_name.split())))
        literal = self._apps.literal
        passed_on = Outbound(
            owner.chat,
            "text",
            f"✉️ **{literal(name)}** (`{message.user}`)\n\n{literal(words)}",
            user=owner.user,
            other_users=owner.other_users,
            forwards=work.received.id,
        )
        await work.finish(_with_voice(passed_on, words, voice), "forwarded", status="FORWARDED")

    async def give_back(self, work: Work, original_id: int | None, words: str) -> None:
        """Pass the owner's reply on to whoever wrote the message that it replies to.

        Raises:
            StageError: its recording cannot be had any more.
        """
        voice = await self._voice(work)
        original = await self._store.history.entry(original_id) if original_id is not None else None
        if original is None or await self._addresses.role_of(original.user) is None:
            await work.finish([work.reply(NO_ACCESS)], "failed", error="no_access", status="ERROR")
            return
        returned = Outbound(
            original.chat,
            "text",
            self._apps.literal(words),
            user=original.user,
            reply_to=original.platform_message_id,
        )
        await work.finish(_with_voice(returned, words, voice), "returned")

    async def _voice(self, work: Work) -> Voice | None:
        has_recording = work.received.message.attachment is not None
        return await self._hearing.voice(work.received) if has_recording else None


def _with_voice(written: Outbound, words: str, voice: Voice | None) -> list[Outbound]:
    """Return a message, and the recording that it was said in."""
    if voice is None:
        return [written]
    return [written, replace(written, kind="voice", text=words, voice=voice, text_is_sent=True)]
