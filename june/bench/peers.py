"""june and the alternatives to it, each in its own process.

`python -m june.bench.peers` reads a `Contest` and then one `Job` per line, and prints the result of each:

- june: its engine in normal service, through the event loop;
- llama: the high-level `Llama` of llama-cpp-python. It handles one conversation at a time, so concurrent
  requests wait in line as if behind a lock; threads and an event loop add no cost;
- xllamacpp: llama-server in the process, from its own package on PyPI, with one thread per request.

All engines get the same file. Where june's own kernels do not run, june makes a copy of it in a faster
format, which the benchmark can give to the others too. All use the file's chat template, take the most likely
token, never one that ends an answer, and have the same threads, context, sequences, cache and reuse of
prompts. They also use june's OpenMP settings: with the defaults of their packages they nearly stop on a
machine that runs any other program.

This module imports `llama_cpp` and `xllamacpp` for the comparison only; june's engine is `june/llm`.
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from june import hardware
from june.errors import JuneError
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.messages import ChatMessage, ChatRequest, Sampling, Usage
from june.models import LocalModel, Model
from june.sections import LlmSettings
from june.workers import ModelThread, StopFlag

Name = Literal["june", "llama", "xllamacpp"]
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, slots=True)
class Contest:
    """The engine of a process, its files, and the settings with the threads and cache to use."""

    engine: Name
    model: Model
    path: str
    settings: LlmSettings
    own: LlamaCppSettings


@dataclass(frozen=True, slots=True)
class Chat:
    """One answer to be written, exactly `tokens` long."""

    messages: tuple[ChatMessage, ...]
    tokens: int
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """Answers to be written at the same time.

    Attributes:
        after_pieces: the other chats begin after this many pieces of the first one; june only.
        watch_decode: whether to note when llama.cpp computes; june only.
        sampling: how tokens are drawn; june only, since the others are always greedy.
    """

    chats: tuple[Chat, ...]
    after_pieces: int = 0
    watch_decode: bool = False
    sampling: Sampling = GREEDY


@dataclass(slots=True)
class Written:
    """One answer, with the times of its request and its pieces in seconds since the job began."""

    text: str = ""
    prompt_tokens: int = 0
    asked_s: float = 0.0
    pieces_s: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        """Time to the first token."""
        return self.pieces_s[0] - self.asked_s


@dataclass(slots=True)
class Result:
    """The result of a job.

    Attributes:
        answers: one for each chat.
        decodes_s: the beginning and end of each computation of llama.cpp, if watched.
        cpu_s: CPU time of the process on all cores, the figure that other processes affect least.
    """

    answers: list[Written]
    decodes_s: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: float = 0.0


class Peer(Protocol):
    """An engine."""

    async def load(self) -> None:
        """Read the weights."""

    async def run(self, job: Job) -> Result:
        """Return the answers, written in the engine's best way."""

    async def close(self) -> None:
        """Free everything."""


class _June:
    """june's engine, through the event loop."""

    def __init__(self, contest: Contest) -> None:
        from june.llm.llama_cpp.model import LlamaCpp  # noqa: PLC0415

        self._llm = LlamaCpp(contest.settings, LocalModel(contest.model, Path(contest.path)), contest.own)

    async def load(self) -> None:
        await self._llm.load()
        await self._llm.warm_up()

    async def run(self, job: Job) -> Result:
        answers = [Written() for _ in job.chats]
        may_come = asyncio.Event()
        with ExitStack() as stack:
            decodes_s = stack.enter_context(_watched_decode()) if job.watch_decode else []
            begin = time.perf_counter()

            async def write(index: int) -> None:
                if index and job.after_pieces:
                    await may_come.wait()
                chat, answer = job.chats[index], answers[index]
                answer.asked_s = time.perf_counter() - begin
                async for delta in self._llm.stream(_request(chat, job.sampling)):
                    if delta.text:
                        answer.pieces_s.append(time.perf_counter() - begin)
                        answer.text += delta.text
                    if len(answer.pieces_s) == job.after_pieces:
                        may_come.set()
                    _count(answer, chat, delta.usage)
                may_come.set()

            await asyncio.gather(*map(write, range(len(answers))))
        return Result(answers, [(start - begin, end - begin) for start, end in decodes_s])

    async def close(self) -> None:
        await self._llm.close()


def _plain(chat: Chat) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def _request(chat: Chat, sampling: Sampling) -> ChatRequest:
    return ChatRequest(chat.messages, sampling, chat.tokens, conversation=chat.conversation, ignore_eos=True)


def _count(answer: Written, chat: Chat, usage: Usage | None) -> None:
    if usage is not None:
        answer.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens != chat.tokens:
            raise JuneError(f"an answer has {usage.completion_tokens} tokens instead of {chat.tokens}")


@contextmanager
def _watched_decode() -> Iterator[list[tuple[float, float]]]:
    """Note when each `llama_decode` in the block begins and when its work ends, also on a GPU."""
    import llama_cpp  # noqa: PLC0415

    decode = llama_cpp.llama_decode
    seconds: list[tuple[float, float]] = []

    def watched(context: Any, batch: Any) -> Any:
        begin = time.perf_counter()
        status = decode(context, batch)
        llama_cpp.llama_synchronize(context)
        seconds.append((begin, time.perf_counter()))
        return status

    llama_cpp.llama_decode = watched
    try:
        yield seconds
    finally:
        llama_cpp.llama_decode = decode


class _Llama:
    """llama-cpp-python's `Llama`: one conversation after another.

    `Llama` forbids the tokens that end an answer by a callback into Python for each token. It gets june's
    chain of samplers in C instead, so that the callback is not measured.
    """

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        with hardware.openmp_bound_to_cores():
            self._library: Any = import_module("llama_cpp")
        self._llama: Any = None

    async def load(self) -> None:
        own, library = self._contest.own, self._library
        hardware.keep_on_first_core(own.threads)
        kv_type = getattr(library, f"GGML_TYPE_{own.kv_type.upper()}")
        self._llama = llama = library.Llama(
            self._contest.path,
            n_gpu_layers=own.gpu_layers,
            n_ctx=own.kv_tokens,
            n_threads=own.threads,
            n_threads_batch=own.threads,
            flash_attn=own.flash_attention is not False,
            type_k=kv_type,
            type_v=kv_type,
            verbose=False,
        )
        vocabulary = library.llama_model_get_vocab(llama.model)
        never = {
            token: -math.inf
            for token in range(llama.n_vocab())
            if library.llama_vocab_is_eog(vocabulary, token)
        }

        def greedy_without_end(**_: object) -> Any:
            sampler = library.internals.LlamaSampler()
            sampler.add_logit_bias(llama.n_vocab(), never)
            sampler.add_greedy()
            return sampler

        llama._init_sampler = greedy_without_end  # noqa: SLF001 - it offers no public way to set a sampler

    async def run(self, job: Job) -> Result:
        answers = []
        begin = time.perf_counter()
        for chat in job.chats:
            answer = Written()
            for chunk in self._llama.create_chat_completion(
                _plain(chat),
                max_tokens=chat.tokens,
                temperature=0,
                stream=True,
            ):
                if text := chunk["choices"][0]["delta"].get("content"):
                    answer.pieces_s.append(time.perf_counter() - begin)
                    answer.text += text
            answer.prompt_tokens = self._llama.n_tokens - chat.tokens + 1  # the last one is not evaluated
            answers.append(answer)
        return Result(answers)

    async def close(self) -> None:
        self._llama.close()


class _XLlamaCpp:
    """llama-server, called through the package's functions instead of HTTP."""

    def __init__(self, contest: Contest) -> None:
        with hardware.openmp_bound_to_cores():
            import xllamacpp  # noqa: PLC0415

        settings, own = contest.settings, contest.own
        params = xllamacpp.CommonParams()
        params.model.path = contest.path
        params.n_gpu_layers = own.gpu_layers
        params.n_ctx = own.kv_tokens
        params.n_parallel = settings.slots
        params.kv_unified = True  # as with june, a conversation takes as much of the context as it needs
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = own.threads
        params.cache_type_k = params.cache_type_v = getattr(
            xllamacpp.ggml_type, f"GGML_TYPE_{own.kv_type.upper()}"
        )
        params.fit_params = False  # keep all layers and the whole context
        params.verbosity = -1
        self._load: Callable[[], Any] = lambda: xllamacpp.Server(params)
        self._threads = ModelThread("llm", threads=settings.slots)

    async def load(self) -> None:
        self._server = self._load()

    async def run(self, job: Job) -> Result:
        begin = time.perf_counter()
        runs = (self._threads.run(self._write, chat, begin) for chat in job.chats)
        return Result(await asyncio.gather(*runs))

    def _write(self, stop: StopFlag, chat: Chat, begin: float) -> Written:
        del stop
        answer = Written()

        def take(chunk: dict[str, Any]) -> None:
            if "error" in chunk or "code" in chunk:
                raise JuneError(f"xllamacpp refuses a request: {chunk.get('message', chunk)}")
            if chunk["choices"] and (text := chunk["choices"][0]["delta"].get("content")):
                answer.pieces_s.append(time.perf_counter() - begin)
                answer.text += text
            if usage := chunk.get("usage"):
                _count(answer, chat, Usage(usage["prompt_tokens"], usage["completion_tokens"]))

        request = {
            "messages": _plain(chat),
            "max_tokens": chat.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._server.handle_chat_completions(request, take)
        return answer

    async def close(self) -> None:
        await self._threads.close()
        del self._server


PEERS: dict[Name, Callable[[Contest], Peer]] = {"june": _June, "llama": _Llama, "xllamacpp": _XLlamaCpp}


CONTEST, JOB, RESULT = TypeAdapter(Contest), TypeAdapter(Job), TypeAdapter(Result)
READY = "ready"


async def serve(contest: Contest, jobs: Iterator[str], answer: Callable[[str], None]) -> None:
    """Run one job after another. Reading the next one blocks the loop, on which nothing else runs then."""
    peer = PEERS[contest.engine](contest)
    await peer.load()
    try:
        answer(READY)
        for line in jobs:
            begin_s = time.process_time()
            result = await peer.run(JOB.validate_json(line))
            result.cpu_s = time.process_time() - begin_s
            answer(RESULT.dump_json(result).decode())
    finally:
        await peer.close()


def main() -> None:
    """Serve as one engine; print a failure as one sentence in the last line."""

    def answer(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    contest = CONTEST.validate_json(sys.stdin.readline())
    try:
        asyncio.run(serve(contest, sys.stdin, answer))
    except (JuneError, RuntimeError, ValueError, OSError) as error:
        answer(str(error) or type(error).__name__)
        sys.exit(2)


if __name__ == "__main__":
    main()
