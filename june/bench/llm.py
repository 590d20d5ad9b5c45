"""`bench llm`: many conversations in june's engine, and in what people would otherwise pick.

Each engine is a process of its own (`june/bench/peers.py` says how they are made equal). All get the same
work, one engine after the other and another first each time: a machine's speed changes by the minute, and
so falls on all of them. Figures are medians over the rounds. No question and no long text comes twice, so
that what an engine finds in its cache is the system prompt, and what its conversation said before.
"""

import asyncio
import math
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from june import hardware
from june.bench.peers import CONTEST, GREEDY, JOB, READY, RESULT, Chat, Contest, Job, Name, Result
from june.bench.report import machine
from june.bench.roofline import memory_bandwidth_bytes_per_s
from june.bench.talk import Talk, go_on
from june.conversation.writing import sampling_of
from june.errors import JuneError
from june.llm.llama_cpp.needs import cpu_format, kv_bytes
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.messages import Sampling
from june.models import Model
from june.sections import PROJECT_ROOT, LlmSettings

MAX_LINE_BYTES = 2**24
READ_TOKENS = 128
"""Of the prompts by which the rate of reading is taken."""
OTHER_CHATS = 3
INTERRUPTED_TOKENS = 64
TURN_TOKENS = 16
"""Of the answers in conversations whose first tokens are timed."""
LONG_WRITERS: tuple[Name, ...] = ("june", "llama")
STEPS_TOKENS = 32
"""Answers that are written while steps are timed, at least."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    conversations: tuple[int, ...]
    """How many at once, ascending."""
    tokens: int
    """Of each answer."""
    long_tokens: int
    """Of the long answer."""
    prompt_tokens: int
    """Of the long prompt, about; a conversation with a long history begins with half as much."""
    rounds: int
    same_weights: bool = False
    """Whether the others compute with the copy that june made of the file, and not with the file itself."""


class PeerProcess:
    """An engine in its process, from where the bench is."""

    def __init__(self, name: Name, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    async def begin(self, contest: Contest) -> None:
        """Have it load the model.

        Raises:
            JuneError: it cannot.
        """
        if (line := await self._ask(CONTEST.dump_json(contest))) != READY:
            raise JuneError(f"{self._name} cannot be measured: {line or 'its process ended'}")

    async def run(self, *chats: Chat, **options: Any) -> Result:
        """What came of a job; for the options see `Job`.

        Raises:
            JuneError: the engine failed.
        """
        line = await self._ask(JOB.dump_json(Job(chats, **options)))
        if not line.startswith("{"):
            raise JuneError(f"{self._name} cannot be measured: {line or 'its process ended'}")
        return RESULT.validate_json(line)

    async def end(self) -> None:
        """Let it free the model and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def _ask(self, line: bytes) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - as it was started
        assert stdout is not None  # noqa: S101
        stdin.write(line + b"\n")
        return (await stdout.readline()).decode().strip()


@asynccontextmanager
async def open_peer(contest: Contest) -> AsyncIterator[PeerProcess]:
    """An engine that has loaded its model."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june.bench.peers"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=PROJECT_ROOT,
        limit=MAX_LINE_BYTES,
    )
    peer = PeerProcess(contest.engine, process)
    try:
        await peer.begin(contest)
        yield peer
    finally:
        await peer.end()


def contest_settings(settings: LlmSettings, plan: Plan) -> tuple[LlmSettings, LlamaCppSettings]:
    """Return the settings with room for all that is measured, and nothing left for an engine to choose."""
    own = settings.own(LlamaCppSettings)
    context_tokens = max(settings.context_tokens, plan.long_tokens + 512, 2 * plan.prompt_tokens)
    slots = max(settings.slots, plan.conversations[-1], OTHER_CHATS + 1)
    chat_tokens = max(plan.tokens, STEPS_TOKENS) + 2 * READ_TOKENS
    histories_tokens = plan.prompt_tokens * (OTHER_CHATS + 1)
    cache = {
        "kv_tokens": max(own.kv_tokens, context_tokens, histories_tokens, slots * chat_tokens),
        "threads": own.threads or hardware.cpu_cores(),
    }
    fixed = settings.model_copy(update={"context_tokens": context_tokens, "slots": slots})
    return fixed, own.model_copy(update=cache)


@dataclass(slots=True)
class Rates:
    """One engine with so many conversations at once; one figure for each round."""

    tokens_per_second: list[float] = field(default_factory=list)
    """Of all answers together, from the questions to the end of the last answer."""
    one_per_second: list[float] = field(default_factory=list)
    """Of one answer after its first token, the median one."""
    read_per_second: list[float] = field(default_factory=list)
    """Prompt tokens, of all together."""
    cpu_s_per_token: list[float] = field(default_factory=list)
    """What all cores computed for the answers; shows who does more even where others use the cores too."""
    ttft_p50_s: list[float] = field(default_factory=list)
    ttft_max_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class SecondTurns:
    """Times to the first token in conversations with a long history, each of which june did not know before.

    Attributes:
        cold_ttft_s: of the first turn.
        warm_ttft_s: of the turn that follows at once.
        alternating_ttft_s: of a turn after `OTHER_CHATS` such conversations had theirs.
    """

    cold_ttft_s: list[float] = field(default_factory=list)
    warm_ttft_s: list[float] = field(default_factory=list)
    alternating_ttft_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Interruptions:
    """Longest pauses of an answer beside which a long prompt is read, and what a chunk of one takes alone."""

    longest_pause_s: list[float] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Steps:
    """Steps in which the most conversations write.

    Attributes:
        step_s: from the begin of one to the begin of the next.
        overhead_shares: what is not llama.cpp's computing: sampling by the settings, text, scheduling, and
            all other Python.
        greedy_overhead_shares: the same without the settings' sampling.
        context_tokens: of all conversations together, in the middle of their answers.
    """

    step_s: list[float] = field(default_factory=list)
    overhead_shares: list[float] = field(default_factory=list)
    greedy_overhead_shares: list[float] = field(default_factory=list)
    context_tokens: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figures:
    """The report, and what only people are shown."""

    report: dict[str, Any]
    rates: Mapping[tuple[Name, int], Rates]
    steps: Steps


def weights_file(model: Model, path: Path, own: LlamaCppSettings) -> Path:
    """Return what june computes with once it has loaded `path`: the copy that it made, if it made one."""
    number_format = cpu_format(model, own, offloaded=False)
    copy = path.with_suffix(f".as-{number_format}.gguf")
    return copy if copy.is_file() else path


class LlmBench:
    """Measures engines that are loaded."""

    def __init__(
        self,
        peers: Mapping[Name, PeerProcess],
        model: Model,
        weights: Path,
        settings: tuple[LlmSettings, LlamaCppSettings],
        plan: Plan,
    ) -> None:
        self._peers = peers
        self._model = model
        self._weights_bytes = weights.stat().st_size
        self._settings, self._own = settings
        self._plan = plan
        self._talk = Talk(self._settings.system_prompt)

    async def run(self, progress: Callable[[str], None]) -> Figures:
        """The figures; `progress` is told what is being done."""
        plan = self._plan
        progress("memory bandwidth")
        bandwidth_bytes_per_s = await memory_bandwidth_bytes_per_s(self._own.threads)
        for peer in self._peers.values():
            await peer.run(self._talk.ask(self._talk.question(), tokens=2))
        rates = {(name, together): Rates() for name in self._peers for together in plan.conversations}
        second_turns, interruptions, steps = SecondTurns(), Interruptions(), Steps()
        for number in range(plan.rounds):
            for turn, together in enumerate(plan.conversations):
                progress(f"round {number + 1} of {plan.rounds}: {together} at once")
                await self._compare(together, rates, first=number + turn)
        for number in range(plan.rounds):  # only now: what june's cache holds after these is more work for it
            progress(f"round {number + 1} of {plan.rounds}: second turns, a long prompt, steps")
            await self._take_second_turns(second_turns, number)
            await self._interrupt(interruptions)
            await self._time_steps(steps)
        progress("a long answer")
        question = self._talk.ask(self._talk.question(), plan.long_tokens)
        long_s = {
            f"{name}_s": round((await peer.run(question)).answers[0].pieces_s[-1], 4)
            for name, peer in self._peers.items()
            if name in LONG_WRITERS
        }
        report = {
            "suite": "llm",
            "machine": machine(),
            "model": self._model.name,
            "same_weights": plan.same_weights,
            "runs": [_run(name, together, each) for (name, together), each in rates.items()],
            "prefix": _medians(asdict(second_turns)),
            "interleave": _medians(asdict(interruptions)),
            "step_overhead_share": _median(steps.overhead_shares),
            "roofline": {
                "bandwidth_gb_s": round(bandwidth_bytes_per_s / 1e9, 2),
                "share": round(self._bytes_read(steps) / bandwidth_bytes_per_s / _median(steps.step_s), 4),
            },
            "long_answer": long_s,
        }
        return Figures(report, rates, steps)

    async def _compare(self, together: int, rates: Mapping[tuple[Name, int], Rates], *, first: int) -> None:
        """The same answers, and the same prompts to read, by each engine; another is the first each time."""
        questions = [self._talk.ask(self._talk.question(), self._plan.tokens) for _ in range(together)]
        prompts = [self._talk.ask(self._talk.prose(READ_TOKENS), tokens=1) for _ in range(together)]
        names = list(self._peers)
        first %= len(names)
        for name in names[first:] + names[:first]:
            rate = rates[name, together]
            result = await self._peers[name].run(*questions)
            answers = result.answers
            rate.cpu_s_per_token.append(result.cpu_s / together / self._plan.tokens)
            rate.tokens_per_second.append(
                together * self._plan.tokens / max(answer.pieces_s[-1] for answer in answers)
            )
            rate.one_per_second.append(
                statistics.median(
                    (self._plan.tokens - 1) / (answer.pieces_s[-1] - answer.pieces_s[0]) for answer in answers
                )
            )
            waits_s = [answer.first_token_s for answer in answers]
            rate.ttft_p50_s.append(statistics.median(waits_s))
            rate.ttft_max_s.append(max(waits_s))
            read = (await self._peers[name].run(*prompts)).answers
            rate.read_per_second.append(
                sum(answer.prompt_tokens for answer in read) / max(answer.first_token_s for answer in read)
            )

    async def _take_second_turns(self, second_turns: SecondTurns, number: int) -> None:
        """Long conversations that nobody had before go on: one at once, then all of them by turns."""
        june = self._peers["june"]
        chats = [
            self._talk.ask(
                self._talk.prose(self._plan.prompt_tokens // 2), TURN_TOKENS, f"round {number}, chat {chat}"
            )
            for chat in range(1 + OTHER_CHATS)
        ]
        for index, chat in enumerate(chats):
            (answer,) = (await june.run(chat)).answers
            second_turns.cold_ttft_s.append(answer.first_token_s)
            chats[index] = go_on(chat, answer, self._talk.question())
            if index == 0:
                (answer,) = (await june.run(chats[0])).answers
                second_turns.warm_ttft_s.append(answer.first_token_s)
                chats[0] = go_on(chats[0], answer, self._talk.question())
        for chat in chats:
            (answer,) = (await june.run(chat)).answers
            second_turns.alternating_ttft_s.append(answer.first_token_s)

    async def _interrupt(self, interruptions: Interruptions) -> None:
        """A long prompt comes while an answer is being written; and one comes alone."""
        june = self._peers["june"]
        alone, long = (self._talk.ask(self._talk.prose(self._plan.prompt_tokens), tokens=1) for _ in range(2))
        (read,) = (await june.run(alone)).answers
        chunks = math.ceil(read.prompt_tokens / self._own.prefill_chunk_tokens)
        interruptions.chunk_s.append(read.first_token_s / chunks)
        running = self._talk.ask(self._talk.question(), INTERRUPTED_TOKENS)
        result = await june.run(running, long, after_pieces=INTERRUPTED_TOKENS // 8)
        pauses_s = (after - before for before, after in pairwise(result.answers[0].pieces_s))
        interruptions.longest_pause_s.append(max(pauses_s))

    async def _time_steps(self, steps: Steps) -> None:
        """What a step takes while all write, and what of it is not llama.cpp's computing."""
        steps.overhead_shares.append(await self._watch_steps(steps, sampling_of(self._settings)))
        steps.greedy_overhead_shares.append(await self._watch_steps(steps, GREEDY))

    async def _watch_steps(self, steps: Steps, sampling: Sampling) -> float:
        tokens = max(self._plan.tokens, STEPS_TOKENS)
        together = self._plan.conversations[-1]
        chats = [self._talk.ask(self._talk.question(), tokens) for _ in range(together)]
        result = await self._peers["june"].run(*chats, watch_decode=True, sampling=sampling)
        begin_s = max(answer.pieces_s[0] for answer in result.answers)
        end_s = min(answer.pieces_s[-1] for answer in result.answers)
        steady = [decode for decode in result.decodes_s if begin_s < decode[0] and decode[1] < end_s]
        whole_s = statistics.median(after - before for (before, _), (after, _) in pairwise(steady))
        besides_s = statistics.median(after - end for (_, end), (after, _) in pairwise(steady))
        steps.step_s.append(whole_s)
        steps.context_tokens.append(sum(answer.prompt_tokens + tokens / 2 for answer in result.answers))
        return besides_s / whole_s

    def _bytes_read(self, steps: Steps) -> float:
        """What llama.cpp reads for one step: all weights, and the cache of the conversations that write."""
        context_tokens = round(statistics.median(steps.context_tokens))
        return self._weights_bytes + kv_bytes(self._model, context_tokens, self._own)


def _run(name: Name, together: int, rates: Rates) -> dict[str, str | int | float]:
    return {
        "engine": name,
        "conversations": together,
        "tokens_per_second": _median(rates.tokens_per_second),
        "ttft_p50_s": _median(rates.ttft_p50_s),
        "ttft_max_s": _median(rates.ttft_max_s),
    }


def _medians(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: _median(values) for name, values in figures.items()}


def _median(figures: Sequence[float]) -> float:
    return round(statistics.median(figures), 4)
