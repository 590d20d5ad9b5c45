"""A real OTLP receiver on loopback, and the spans that it received."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings


class Collector:
    """The spans received so far."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []
        self._changed = asyncio.Event()

    async def read(self, receiver: OtelTapHttpProtobufReceiver) -> None:
        """Keep the spans that the receiver gets until it stops."""
        async for span in receiver.stream_traces():
            self.spans.append(span)
            self._changed.set()

    async def until(self, is_so: Callable[[list[Span]], bool], *, timeout_s: float = 60) -> None:
        """Wait until a condition on the spans holds.

        Raises:
            TimeoutError: it was not.
        """
        async with asyncio.timeout(timeout_s):
            while not is_so(self.spans):
                self._changed.clear()
                await self._changed.wait()

    async def named(self, name: str) -> Span:
        """Return the first span whose name begins with a text, as soon as it arrives."""
        await self.until(lambda spans: any(span.name.startswith(name) for span in spans))
        return next(span for span in self.spans if span.name.startswith(name))


def attributes(span: Span) -> dict[str, object]:
    """Return a span's attributes, with lists as tuples."""
    found: dict[str, object] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value") or ""
        value = getattr(attribute.value, kind)
        found[attribute.key] = (
            tuple(each.string_value for each in value.values) if kind == "array_value" else value
        )
    return found


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a receiver while the block runs."""
    with socket.socket() as free:  # the receiver does not tell which port it was given
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
        collector = Collector(f"http://127.0.0.1:{port}")
        reading = asyncio.create_task(collector.read(receiver))
        await asyncio.sleep(0)  # it listens from now on
        yield collector
    await reading
