"""Speaks what programs send with `voice`: it waits in the outbox until the models are ready."""

import asyncio
from collections.abc import Callable

from june.conversation.voicing import Voicer
from june.errors import Stage, StageError, StoreError
from june.store import Store, Unspoken
from june.telemetry import count_error, log, where

BUSY_PAUSE_S = 1.0


class Speaker:
    """Speaks one message after the other.

    Args:
        store: the outbox.
        voicer: speaks.
        wake_delivery: called when there is something to send.
    """

    def __init__(self, store: Store, voicer: Voicer, wake_delivery: Callable[[], None]) -> None:
        self._store = store
        self._voicer = voicer
        self._wake_delivery = wake_delivery

    async def run(self) -> None:
        """Speak what waits and what comes, until cancelled.

        Raises:
            StoreError: the store failed.
        """
        while True:
            changed = self._store.next_change()
            unspoken = await self._store.outbox.next_unspoken()
            if unspoken is None:
                await changed.wait()
            else:
                await self._speak(unspoken)

    async def _speak(self, unspoken: Unspoken) -> None:
        preferences = await self._store.conversations.preferences(unspoken.chat)
        try:
            voices = await self._voicer.speak_text(unspoken.text, preferences.language)
        except StageError as error:
            if error.code == "busy":
                await asyncio.sleep(BUSY_PAUSE_S)
                return
            await self._give_up(unspoken, error.stage, error.code)
        except StoreError:
            raise
        except Exception as error:  # the boundary: one message never ends june
            log.error("speech.failed", type=type(error).__name__, where=where(error))
            await self._give_up(unspoken, "tts", type(error).__name__)
        else:
            await self._store.outbox.note_spoken(unspoken.id, voices)
            self._wake_delivery()

    async def _give_up(self, unspoken: Unspoken, stage: Stage, code: str) -> None:
        count_error(stage, code)
        log.warning("speech.given_up", stage=stage, code=code)
        await self._store.outbox.give_up_speaking(unspoken.id, error=code)
