"""`bench llm`: many conversations in june's engine and in the alternatives to it.

Each engine runs in its own process (`june/bench/peers.py` says how they are made equal). All engines do the
same work, one after another, and a different one begins in each round: a machine's speed changes by the
minute, and in this way the change affects all of them. Figures are medians of the rounds. No question or long
text is repeated, so an engine's cache can hold only the system prompt and the conversation's earlier turns.
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
from june.workers import run_aside

MAX_LINE_BYTES = 2**24
READ_TOKENS = 128
"""Length of the prompts with which the prompt rate is measured."""
OTHER_CHATS = 3
INTERRUPTED_TOKENS = 64
TURN_TOKENS = 16
"""Length of the answers whose time to the first token is measured."""
LONG_WRITERS: tuple[Name, ...] = ("june", "llama")
STEPS_TOKENS = 32
"""Least length of the answers during which steps are timed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the benchmark measures."""

    conversations: tuple[int, ...]
    """Numbers of conversations at once, ascending."""
    tokens: int
    """Length of each answer."""
    long_tokens: int
    """Length of the long answer."""
    prompt_tokens: int
    """Approximate length of the long prompt; a long history is half as long."""
    rounds: int
    same_weights: bool = False
    """Whether the other engines load june's copy of the weights instead of the model's file."""


class PeerProcess:
    """The benchmark's side of an engine that runs in its own process."""

    def __init__(self, name: Name, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    async def begin(self, contest: Contest) -> None:
        """Have the engine load the model.

        Raises:
            JuneError: the engine cannot load it.
        """
        if (line := await self._ask(CONTEST.dump_json(contest))) != READY:
            raise JuneError(f"{self._name} cannot be measured: {line or 'its process ended'}")

    async def run(self, *chats: Chat, **options: Any) -> Result:
        """Run a job and return its result; for the options see `Job`.

        Raises:
            JuneError: the engine failed.
        """
        line = await self._ask(JOB.dump_json(Job(chats, **options)))
        if not line.startswith("{"):
            raise JuneError(f"{self._name} cannot be measured: {line or 'its process ended'}")
        return RESULT.validate_json(line)

    async def end(self) -> None:
        """Have the process free the model and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def _ask(self, line: bytes) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - the process was started with pipes
        assert stdout is not None  # noqa: S101
        stdin.write(line + b"\n")
        return (await stdout.readline()).decode().strip()


@asynccontextmanager
async def open_peer(contest: Contest) -> AsyncIterator[PeerProcess]:
    """Start an engine, yield it once it has loaded its model, and end it."""
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
    """Return settings with room for all measurements that leave no choice to an engine."""
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
    """Rates of one engine with one number of conversations at once; one figure per round."""

    tokens_per_second: list[float] = field(default_factory=list)
    """All answers together, from the questions to the end of the last answer."""
    one_per_second: list[float] = field(default_factory=list)
    """The median answer, after its first token."""
    read_per_second: list[float] = field(default_factory=list)
    """Prompt tokens of all conversations together."""
    cpu_s_per_token: list[float] = field(default_factory=list)
    """CPU time of all cores; comparable even if other programs use the cores too."""
    ttft_p50_s: list[float] = field(default_factory=list)
    ttft_max_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class SecondTurns:
    """Times to the first token in conversations with a long history that is new to june.

    Attributes:
        cold_ttft_s: the first turn.
        warm_ttft_s: the turn that follows at once.
        alternating_ttft_s: a turn after one turn of each of `OTHER_CHATS` other such conversations.
    """

    cold_ttft_s: list[float] = field(default_factory=list)
    warm_ttft_s: list[float] = field(default_factory=list)
    alternating_ttft_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Interruptions:
    """Longest pauses of an answer while a long prompt is evaluated, and the time of one chunk alone."""

    longest_pause_s: list[float] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Steps:
    """Steps with the largest number of conversations.

    Attributes:
        step_s: from the beginning of one step to the beginning of the next.
        overhead_shares: the share of a step outside llama.cpp: sampling with the settings, text, scheduling,
            and all other Python.
        greedy_overhead_shares: the same with greedy sampling.
        context_tokens: all conversations together, in the middle of their answers.
    """

    step_s: list[float] = field(default_factory=list)
    overhead_shares: list[float] = field(default_factory=list)
    greedy_overhead_shares: list[float] = field(default_factory=list)
    context_tokens: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figures:
    """The report, and the figures that only people are shown."""

    report: dict[str, Any]
    rates: Mapping[tuple[Name, int], Rates]
    steps: Steps


def weights_file(model: Model, path: Path, own: LlamaCppSettings) -> Path:
    """Return the file that june computes with once it has loaded `path`: its faster copy if there is one."""
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
        """Measure and return the figures; `progress` gets a line on each step."""
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
        for number in range(plan.rounds):  # last, since june has more work when its cache is full
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
            "machine": await run_aside(lambda _: machine()),  # it asks the GPU's driver
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
        """Have each engine write the same answers and read the same prompts; the order rotates."""
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
        """Continue new long conversations: one at once, then all of them in turn."""
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
        """Evaluate a long prompt while an answer is being written, and one alone."""
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
        """Measure the time of a step with all conversations, and its share outside llama.cpp."""
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
        """Return the bytes that llama.cpp reads in one step: all weights, and the conversations' cache."""
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
