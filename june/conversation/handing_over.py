"""Recordings for the owner's programs: for the queue, and as answers to questions.

What is written goes there when it arrives; a recording goes when it was heard, with what was heard in it.
"""

from june.conversation.hearing import Hearing
from june.conversation.work import Work
from june.errors import TranscriptionError


class HandingOver:
    """Gives recordings to programs.

    Args:
        hearing: has the recordings.
    """

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing

    async def hand_over(self, work: Work, words: str) -> None:
        """Let a program claim the message, with its recording and what was heard in it.

        Raises:
            StageError: the recording cannot be had any more.
        """
        await work.hand_over(await self._hearing.voice(work.received), words)

    async def answer_question(self, work: Work, words: str) -> None:
        """Answer a program's question with the message.

        Raises:
            StageError: the recording is silent, or cannot be had any more.
        """
        if not (work.received.message.text or words):
            raise TranscriptionError("nothing_heard", "The recording that answers a question is silent.")
        await work.answer_question(await self._hearing.voice(work.received), words)
