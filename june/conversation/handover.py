"""What june passes on and does not answer: to the owner's programs, to the owner, and back from the owner.

A recording is heard first and kept with the message: an app's link to it expires.
"""

from dataclasses import replace

from june.conversation.addressing import names_june
from june.conversation.reply import Desk, Reply
from june.errors import DeliveryError, QueueError, TranscriptionError
from june.messages import Outbound, Voice
from june.store import Received
from june.telemetry import log

NO_ACCESS = "Whoever wrote that has no access any more."
NO_OWNER = "I cannot reach my owner at the moment."


def reply_to(desk: Desk, received: Received) -> Reply:
    """What becomes of a message, by its route."""
    is_passed_on = received.message.route != "assistant" and received.message.kind != "command"
    return Handover(desk, received) if is_passed_on else Reply(desk, received)


class Handover(Reply):
    """One received message, passed on; a failure is told to its sender, as that of an answer."""

    async def _answer(self) -> None:
        message = self.received.message
        text, voice = message.text, None
        if message.attachment is not None:
            transcript, voice = await self._desk.hear_and_record(self.received)
            self.received = replace(self.received, transcript=transcript)
            if not message.is_addressed and not names_june(transcript.text, self._settings.chat.names):
                await self._finish([], "not_addressed", forget_text=True)
                return
            text = "\n".join(filter(None, (message.text, transcript.text)))
        if message.route == "forward":
            await self._forward(text, voice)
        elif message.route == "return":
            await self._return(text, voice)
        elif voice is not None and self.received.transcript is not None:
            if message.route == "answer" and not text:
                raise TranscriptionError("nothing_heard", "The recording that answers a question is silent.")
            note = self._for_the_queue(self.received.transcript) if message.route == "queue" else None
            heard = self.received.transcript.text if note is None else note
            if await self._desk.store.inbox.hand_over(self.received.id, voice, text=heard):
                self._end_trace("handed_over")

    async def _forward(self, text: str, voice: Voice | None) -> None:
        """To the owner, with who sent it."""
        message = self.received.message
        try:
            owner = await self._desk.addresses.owner()
        except (QueueError, DeliveryError) as error:
            log.warning("forward.refused", detail=str(error))
            await self._finish([self._outbound(NO_OWNER)], "failed", error="no_owner", status="ERROR")
            return
        literal = self._desk.apps.literal
        name = "".join(filter(str.isprintable, " ".join(message.user_name.split())))
        written = f"✉️ **{literal(name)}** (`{message.user}`)\n\n{literal(text)}"
        passed_on = Outbound(
            owner.chat,
            "text",
            written,
            user=owner.user,
            other_users=owner.other_users,
            forwards=self.received.id,
        )
        await self._finish(_with_voice(passed_on, text, voice), "forwarded", status="FORWARDED")

    async def _return(self, text: str, voice: Voice | None) -> None:
        """From the owner, to whoever wrote what it replies to."""
        original = await self._desk.store.history.entry(self.received.answers)
        if original is None or await self._desk.addresses.role_of(original.user) is None:
            await self._finish([self._outbound(NO_ACCESS)], "failed", error="no_access", status="ERROR")
            return
        returned = Outbound(
            original.chat,
            "text",
            self._desk.apps.literal(text),
            user=original.user,
            reply_to=original.platform_message_id,
        )
        await self._finish(_with_voice(returned, text, voice), "returned")


def _with_voice(written: Outbound, words: str, voice: Voice | None) -> list[Outbound]:
    """A message, and the recording that it was said in."""
    if voice is None:
        return [written]
    return [written, replace(written, kind="voice", text=words, voice=voice, text_is_sent=True)]
