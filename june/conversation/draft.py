"""An answer that one task writes while another speaks it."""

import asyncio
from collections.abc import AsyncIterator, Callable

from june.conversation.speakable import SentenceStream
from june.messages import Usage


class Draft:
    """The text of an answer, as far as it is written, and its sentences.

    Attributes:
        text: what is written so far.
        usage: the model's tokens, once they are known.
        may_be_spoken: set when speaking may begin.

    Args:
        on_growth: called with the whole text after each `add`.
    """

    def __init__(self, on_growth: Callable[[str], None] = lambda _: None) -> None:
        self.text = ""
        self.usage: Usage | None = None
        self.may_be_spoken = asyncio.Event()
        self._on_growth = on_growth
        self._stream = SentenceStream()
        self._sentences: list[str] = []
        self._is_finished = False
        self._changed = asyncio.Event()

    def add(self, text: str) -> None:
        """Add text as the model wrote it."""
        self._append(text)
        self._on_growth(self.text)

    def finish(self) -> None:
        """End the text: no more comes."""
        self.text = self.text.strip()
        self._sentences += self._stream.finish()
        self._is_finished = True
        self._changed.set()

    def write_whole(self, text: str) -> None:
        """Take a text that needs no model any more; it may be spoken at once."""
        self._append(text)
        self.finish()
        self.may_be_spoken.set()

    async def sentences(self) -> AsyncIterator[str]:
        """Yield each sentence that a voice can say as soon as it is finished."""
        spoken = 0
        while spoken < len(self._sentences) or not self._is_finished:
            self._changed.clear()
            while spoken < len(self._sentences):
                yield self._sentences[spoken]
                spoken += 1
            if not self._is_finished:
                await self._changed.wait()

    def _append(self, text: str) -> None:
        self.text += text
        self._sentences += self._stream.feed(text)
        self._changed.set()
