"""The way of a voice message is as docs/architecture.md describes it."""

import asyncio
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dis import get_instructions
from functools import partial, reduce
from importlib import import_module
from inspect import unwrap
from itertools import takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from june.app import serve
from june.bench.recordings import Question
from june.settings import load_settings
from tests.documents import section
from tests.program import write_settings
from tests.telegram_server import ALICE, Call, TelegramServer

WAY = "docs/architecture.md", "The life of a message"


def described() -> list[list[str]]:
    """Return the functions in order: to the sent text, and to the sent voice. Both ways begin alike."""
    ways: list[list[str]] = [[]]
    for number, name in re.findall(r"^(\d+)\. `([\w.]+:[\w.]+)`", section(*WAY), re.MULTILINE):
        if int(number) <= len(ways[-1]):  # a list that goes on from an earlier number is another way
            ways.append(ways[0][: int(number) - 1])
        ways[-1].append(name)
        assert len(ways[-1]) == int(number), f"number {number} does not follow the one before"
    return ways


def code_of(name: str) -> CodeType:
    """Return the code of a function such as "june.audio:OpusEncoder.write"."""
    module, _, path = name.partition(":")
    function = reduce(getattr, path.split("."), cast("Any", import_module(module)))
    return cast("CodeType", unwrap(function).__code__)


class Trace:
    """Writes down which functions begin, on this thread and on those that begin meanwhile.

    Args:
        names: of the functions, by their code.
    """

    def __init__(self, names: dict[CodeType, str]) -> None:
        self.called: list[str] = []
        self._names = names
        self._begin = {
            code: next(each.offset for each in get_instructions(code) if each.opname == "RESUME")
            for code in names
        }
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code in self._names and frame.f_lasti <= self._begin[code]:  # and not resumed
            self.called.append(self._names[code])
            self._loop.call_soon_threadsafe(self._changed.set)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace for the block."""
        before = sys.getprofile()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(cast("Callable[..., Any]", None))

    async def until(self, *way: str) -> None:
        """Wait until these functions were called one after the other."""
        async with asyncio.timeout(120):
            while followed(list(way), self.called) != list(way):
                self._changed.clear()
                await self._changed.wait()


def followed(way: list[str], called: list[str]) -> list[str]:
    """How far the way was gone: those of its functions that were called one after the other."""
    rest = iter(called)
    return list(takewhile(lambda name: name in rest, way))


def is_spoken_answer(call: Call, *, to: int) -> bool:
    return call.ok and call.method == "sendVoice" and call.reply_to == to


async def test_a_voice_message_goes_the_way_that_is_described(
    tmp_path: Path, questions: tuple[Question, ...]
) -> None:
    ways = described()
    trace = Trace({code_of(name): name for way in ways for name in way})
    stop = asyncio.Event()
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            llm={"max_tokens": 12},
            reply={"overlap": False},
        )
        with trace.tracing():
            serving = asyncio.create_task(serve(load_settings(file), stop))
            server.push("hello")  # once it is answered, june waits, and nothing is loaded any more
            await trace.until("june.store.inbox:Inbox.finish", "june.store.inbox:Inbox.claim")
            trace.called.clear()
            asked = server.push_file("voice", questions[0].audio)
            await server.wait_for(partial(is_spoken_answer, to=asked), timeout_s=120)
            stop.set()
            await serving
    assert [way[-1].rpartition(".")[2] for way in ways] == ["send_text", "send_voice"]
    for way in ways:
        assert followed(way, trace.called) == way
