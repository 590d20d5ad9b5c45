"""Whole turns: with the real models, and with fakes that fail, hang and wait for one another."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.conversation.gathering import Gathering
from june.conversation.speakable import speakable
from june.conversation.turn import (
    AlreadyWritten,
    Recording,
    ToWrite,
    TurnRequest,
    VoicePipeline,
    Written,
    choose_overlap,
)
from june.errors import AudioError, GenerationError, StageError, SynthesisError, TranscriptionError
from june.lineup import create_pipeline
from june.llm import ChatModel
from june.llm.llama_cpp.model import LlamaCpp
from june.messages import ChatMessage, Device, Pcm, Transcript
from june.settings import Settings
from june.stt import SpeechToText
from june.stt.faster_whisper import FasterWhisper
from june.tts import TextToSpeech
from june.tts.piper import Piper
from tests.fakes import FakeLlm, FakeModel, FakeStt, FakeTts
from tests.lateness import watched

WRITTEN = TurnRequest(Written("What is blue?"))
BROKEN_VOICE = SynthesisError("tts_failed", "The voice is broken.")


@asynccontextmanager
async def pipeline(
    settings: Settings, stt: SpeechToText, llm: ChatModel, tts: TextToSpeech, /, **sections: dict[str, Any]
) -> AsyncIterator[VoicePipeline]:
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    made = create_pipeline(settings.model_copy(update=changed), stt, llm, tts, cores=2)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(scope="session")
def spoken(questions: tuple[Question, ...]) -> TurnRequest:
    """Return a question as a person speaks it."""
    return TurnRequest(Recording(questions[0].audio))


# --- with the real models ---

Real = tuple[FasterWhisper, LlamaCpp, Piper]


@pytest.fixture(scope="session")
def real(stt: FasterWhisper, llm: LlamaCpp, tts: Piper) -> Real:
    return stt, llm, tts


async def test_a_spoken_question_gets_a_spoken_answer(
    settings: Settings, real: Real, questions: tuple[Question, ...]
) -> None:
    async with pipeline(settings, *real) as june:
        result = await june.answer(TurnRequest(Recording(questions[0].audio)))
    assert result.outcome == "answered"
    assert result.transcript is not None
    assert wrong_words(questions[0].text, result.transcript.text) <= 3
    assert result.usage is not None
    assert result.usage.completion_tokens == 40
    assert len(result.voices) == 1
    heard = await real[0].transcribe(decode(result.voices[0].ogg_opus, settings.audio))
    said = speakable(result.text)
    assert len(said.split()) > 15
    assert wrong_words(said, heard.text) <= 0.2 * len(said.split())
    assert heard.duration_s == pytest.approx(result.voices[0].duration_s, abs=0.05)
    stages = {"decode", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "encode", "total"}
    assert result.timings_s.keys() == stages
    assert max(result.timings_s.values()) == result.timings_s["total"]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("is_spoken", [False, True])
@pytest.mark.usefixtures("punctual")
async def test_the_event_loop_is_never_50_ms_late_while_the_models_work(
    settings: Settings, real: Real, spoken: TurnRequest, overlap: bool, is_spoken: bool
) -> None:
    """The best of three turns: another program on the same cores makes any of them late."""
    worst_s = []
    async with pipeline(settings, *real, reply={"overlap": overlap}) as june:
        for _ in range(3):
            async with watched() as lateness:
                await june.answer(spoken if is_spoken else WRITTEN)
            assert len(lateness.loop) > 10
            worst_s.append(lateness.worst_s())
            if worst_s[-1] < 0.05:
                return
    pytest.fail(f"late by {worst_s} s")


@pytest.mark.usefixtures("punctual")
async def test_a_turn_cancelled_at_any_moment_sets_the_models_free(
    settings: Settings, real: Real, spoken: TurnRequest
) -> None:
    """The bound is generous, since the cores are not ours alone."""
    draw = random.Random(0)  # noqa: S311 - moments, no secret
    silence = np.zeros(1_600, np.float32)
    stt, llm, tts = real
    cancelled_s, free_s = [], []
    async with pipeline(settings, *real, llm={"max_tokens": 20}) as june:
        whole = min([await june.answer(spoken) for _ in range(2)], key=lambda turn: turn.timings_s["total"])
        word = replace(june.writer.request((ChatMessage("user", "Hi"),)), max_tokens=1)
        tasks = asyncio.all_tasks()
        for part in range(20):
            turn = asyncio.create_task(june.answer(spoken))
            await asyncio.wait([turn], timeout=(part + draw.random()) / 20 * whole.timings_s["total"])
            begin = time.perf_counter()
            if turn.cancel():
                await asyncio.wait([turn])
                cancelled_s.append(time.perf_counter() - begin)
            assert asyncio.all_tasks() == tasks
            await stt.transcribe(silence)
            assert [delta async for delta in llm.stream(word)]
            assert [speech async for speech in tts.synthesize("Yes.")]
            free_s.append(time.perf_counter() - begin)
        again = await june.answer(spoken)
    print(f"\ncancelled within {max(cancelled_s):.3f} s, all ready within {max(free_s):.3f} s")  # noqa: T201
    assert len(cancelled_s) > 10
    assert max(free_s) < 1
    assert again.text == whole.text


# --- speaking while the model writes, or afterwards ---


async def test_with_overlap_the_first_sentence_is_spoken_before_the_last_is_written(
    settings: Settings,
) -> None:
    llm, tts = FakeLlm(), FakeTts()
    llm.before_last = tts.finished
    async with pipeline(settings, FakeStt(), llm, tts, reply={"overlap": True}) as june, asyncio.timeout(5):
        result = await june.answer(WRITTEN)
    assert tts.sentences == ["The sky is blue.", "The sea is too."]
    assert result.text == "The sky is blue. The sea is too."
    assert len(result.voices) == 1
    assert result.voices[0].duration_s == pytest.approx(1.3, abs=0.1)


async def test_without_overlap_nothing_is_spoken_before_the_last_word_is_written(settings: Settings) -> None:
    llm, tts = FakeLlm(before_last=asyncio.Event()), FakeTts()
    async with pipeline(settings, FakeStt(), llm, tts, reply={"overlap": False}) as june:
        turn = asyncio.create_task(june.answer(WRITTEN))
        await llm.called.wait()
        for _ in range(20):  # turns of the loop, in any of which it could begin
            await asyncio.sleep(0)
        assert not tts.sentences
        assert llm.before_last is not None
        llm.before_last.set()
        result = await turn
    assert tts.sentences == ["The sky is blue.", "The sea is too."]
    assert len(result.voices) == 1


@dataclass
class StaggeredStt(FakeStt):
    """Hears each recording when its own event is set; `all_called` when there is one for each."""

    heard: tuple[asyncio.Event, ...] = ()
    all_called: asyncio.Event = field(default_factory=asyncio.Event)

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """See the Protocol."""
        heard = self.heard[len(self.languages)]
        if heard is self.heard[-1]:
            self.all_called.set()
        transcript = await super().transcribe(pcm, language=language)
        await heard.wait()
        return transcript


@pytest.mark.parametrize(("overlap", "begun"), [(False, 0), (True, 1)])
async def test_answers_to_what_is_asked_at_once_begin_together_where_cores_are_shared(
    settings: Settings, spoken: TurnRequest, overlap: bool, begun: int
) -> None:
    stt, llm = StaggeredStt(heard=(asyncio.Event(), asyncio.Event())), FakeLlm()
    async with pipeline(settings, stt, llm, FakeTts(), reply={"overlap": overlap}) as june:
        turns = [asyncio.create_task(june.answer(spoken)) for _ in stt.heard]
        await stt.all_called.wait()
        stt.heard[0].set()
        for _ in range(20):  # turns of the loop, in any of which the first could begin
            await asyncio.sleep(0)
        assert len(llm.requests) == begun
        stt.heard[1].set()
        assert all(result.voices for result in await asyncio.gather(*turns))
    assert len(llm.requests) == 2


async def test_nobody_waits_long_or_for_more_than_are_answered_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathering = Gathering(most=3)
    monkeypatch.setattr("june.conversation.gathering.LONGEST_WAIT_S", 0.01)
    await gathering.wait()
    with gathering.hearing():
        async with asyncio.timeout(5):
            await gathering.wait()  # it is never heard
    monkeypatch.setattr("june.conversation.gathering.LONGEST_WAIT_S", 60)
    first, second, third = (ExitStack() for _ in range(3))
    for each in (first, second, third):
        each.enter_context(gathering.hearing())
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(gathering.wait())
        await asyncio.sleep(0)
        first.close()
        await asyncio.sleep(0)
        assert not waiting.done()
        second.close()
        await waiting  # the third would be a fourth answer
    third.close()


@pytest.mark.parametrize(
    ("setting", "device", "cores", "expected"),
    [
        ("auto", "cpu", 2, False),
        ("auto", "cpu", 8, True),
        ("auto", "cuda", 2, True),
        ("auto", "remote", 1, True),
        (True, "cpu", 1, True),
        (False, "cuda", 64, False),
    ],
)
def test_overlap_is_chosen_by_setting_device_and_cores(
    setting: Any, device: Device, cores: int, expected: bool
) -> None:
    assert choose_overlap(setting, device, cores) is expected


# --- what fails ---


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("tts", "stage", "code"),
    [
        (lambda: FakeTts(error=BROKEN_VOICE), "tts", "tts_failed"),
        (lambda: FakeTts(hangs=True), "tts", "timeout"),
        (lambda: FakeTts(rates_hz=(22_050, 16_000)), "encode", "encode_failed"),
    ],
)
async def test_without_a_voice_there_is_still_the_text(
    settings: Settings, tts: Callable[[], FakeTts], stage: str, code: str, overlap: bool
) -> None:
    sections: dict[str, dict[str, Any]] = {"reply": {"overlap": overlap}, "tts": {"timeout_s": 0.05}}
    async with pipeline(settings, FakeStt(), FakeLlm(), tts(), **sections) as june:
        result = await june.answer(WRITTEN)
    assert (result.outcome, result.text) == ("answered", "The sky is blue. The sea is too.")
    assert result.voices == ()
    assert result.speech_error is not None
    assert (result.speech_error.stage, result.speech_error.code) == (stage, code)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (FakeStt(error=TranscriptionError("stt_failed", "Deaf.")), "stt_failed"),
        (FakeLlm(error=GenerationError("llm_failed", "Stuck.")), "llm_failed"),
        (FakeLlm(pieces=(" \n", "  ")), "llm_empty"),
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
async def test_what_fails_before_speech_ends_the_turn(
    settings: Settings, spoken: TurnRequest, model: FakeStt | FakeLlm, code: str, overlap: bool
) -> None:
    stt = model if isinstance(model, FakeStt) else FakeStt()
    llm = model if isinstance(model, FakeLlm) else FakeLlm()
    tts = FakeTts()
    tasks = asyncio.all_tasks()
    async with pipeline(settings, stt, llm, tts, reply={"overlap": overlap}) as june:
        with pytest.raises(StageError) as caught, capture_logs() as logs:
            await june.answer(spoken)
    assert caught.value.code == code
    assert [entry["outcome"] for entry in logs if entry["event"] == "turn.finished"] == [code]
    assert (asyncio.all_tasks(), tts.calls_running) == (tasks, 0)


async def test_a_recording_that_cannot_be_read_ends_the_turn(settings: Settings) -> None:
    stt = FakeStt()
    async with pipeline(settings, stt, FakeLlm(), FakeTts()) as june:
        with pytest.raises(AudioError) as caught:
            await june.answer(TurnRequest(Recording(b"This is a text.")))
    assert caught.value.code == "audio_unreadable"
    assert not stt.called.is_set()


@pytest.mark.parametrize("slow", ["decode", "stt", "llm", "tts", "encode"])
async def test_each_stage_has_a_time_limit(
    settings: Settings, spoken: TurnRequest, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[str, Any] = {"stt": FakeStt(), "llm": FakeLlm(), "tts": FakeTts()}
    sections: dict[str, dict[str, Any]] = {}
    if slow in models:
        models[slow].hangs = True
        sections[slow] = {"timeout_s": 0.05}
    else:
        monkeypatch.setattr("june.conversation.limits.CODEC_TIMEOUT_S", 0)
    request = WRITTEN if slow == "encode" else spoken
    async with pipeline(settings, *models.values(), **sections) as june:
        if slow in {"tts", "encode"}:
            error = (await june.answer(request)).speech_error
        else:
            with pytest.raises(StageError) as caught:
                await june.answer(request)
            error = caught.value
    assert error is not None
    assert (error.stage, error.code) == (slow, "timeout")
    assert [model.calls_running for model in models.values()] == [0, 0, 0]


# --- what there is nothing of, or too much ---


async def test_nothing_heard_is_an_outcome_and_no_question(settings: Settings, spoken: TurnRequest) -> None:
    llm = FakeLlm()
    async with pipeline(settings, FakeStt(text=""), llm, FakeTts()) as june:
        result = await june.answer(spoken)
    assert (result.outcome, result.text) == ("nothing_heard", "I heard nothing in that recording.")
    assert (result.voices, result.speech_error, result.usage) == ((), None, None)
    assert not llm.requests


async def test_an_answer_that_cannot_be_spoken_is_still_written(settings: Settings) -> None:
    code = "```\nprint(1)\n```"
    async with pipeline(settings, FakeStt(), FakeLlm(pieces=("```\nprint(1)", "\n```\n")), FakeTts()) as june:
        result = await june.answer(WRITTEN)
    assert (result.outcome, result.text, result.voices) == ("answered", code, ())
    assert result.speech_error is not None
    assert result.speech_error.code == "nothing_to_say"


async def test_a_long_answer_is_several_voice_messages_and_no_word_is_lost(settings: Settings) -> None:
    tts = FakeTts(seconds=20)
    llm = FakeLlm(pieces=("The sky is blue. ", "The sea is too. ", "So is the whale."))
    async with pipeline(settings, FakeStt(), llm, tts, reply={"max_voice_s": 45}) as june:
        result = await june.answer(WRITTEN)
    assert [(round(voice.duration_s), voice.text) for voice in result.voices] == [
        (40, "The sky is blue. The sea is too."),
        (20, "So is the whale."),
    ]


async def test_an_answer_that_is_not_to_be_spoken_is_not(settings: Settings) -> None:
    tts = FakeTts()
    async with pipeline(settings, FakeStt(), FakeLlm(), tts, reply={"overlap": True}) as june:
        result = await june.answer(replace(WRITTEN, speak=False))
    assert (result.text, result.voices, result.speech_error) == (
        "The sky is blue. The sea is too.",
        (),
        None,
    )
    assert tts.sentences == []


async def test_the_spoken_language_chooses_the_voice(settings: Settings, spoken: TurnRequest) -> None:
    tts = FakeTts()
    voices = {"voices": {"de": "thorsten"}}
    async with pipeline(settings, FakeStt(), FakeLlm(), tts, tts=voices) as june:
        await june.answer(replace(spoken, language="de"))
        await june.answer(spoken)
    assert tts.voices == ["thorsten", "thorsten", "", ""]


async def test_an_answer_that_was_written_already_is_only_spoken(settings: Settings) -> None:
    llm, tts = FakeLlm(), FakeTts()
    async with pipeline(settings, FakeStt(), llm, tts) as june:
        result = await june.answer(replace(WRITTEN, answer=AlreadyWritten("So it is. **Really.**")))
    assert (result.text, len(result.voices)) == ("So it is. **Really.**", 1)
    assert (llm.requests, tts.sentences) == ([], ["So it is.", "Really."])


class Observer:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def text_grew(self, text: str) -> None:
        """See the Protocol."""
        self.told.append(text)

    async def text_finished(self, text: str) -> None:
        """See the Protocol."""
        self.told.append(f"{text} END")


async def test_a_observer_is_told_of_the_text_before_it_is_spoken(settings: Settings) -> None:
    observer, tts = Observer(), FakeTts(error=BROKEN_VOICE)
    async with pipeline(settings, FakeStt(), FakeLlm(), tts) as june:
        await june.answer(WRITTEN, observer)
    text = "The sky is blue. The sea is too."
    assert observer.told == ["The sky is blue. The", "The sky is blue. The sea is", text, f"{text} END"]


# --- what goes in, and what is told ---


async def test_the_model_is_asked_with_prompt_history_and_settings(
    settings: Settings, spoken: TurnRequest
) -> None:
    history = (ChatMessage("user", "Hello"), ChatMessage("assistant", "Hello you."))
    stt, llm = FakeStt(text="Why?"), FakeLlm()
    sections = {"llm": {"system_prompt": "Be brief.", "seed": 7, "max_tokens": 9, "thinking": True}}
    async with pipeline(settings, stt, llm, FakeTts(), **sections) as june:
        await june.answer(
            TurnRequest(spoken.question, ToWrite(history, conversation="chat 1"), language="de")
        )
    assert stt.languages == ["de"]
    (asked,) = llm.requests
    assert asked.messages == (ChatMessage("system", "Be brief."), *history, ChatMessage("user", "Why?"))
    assert (asked.sampling.seed, asked.max_tokens, asked.thinking) == (7, 9, True)
    assert asked.conversation == "chat 1"


@pytest.mark.parametrize("log_content", [False, True])
async def test_one_event_tells_a_turn_and_no_words_unless_asked(
    settings: Settings, spoken: TurnRequest, log_content: bool
) -> None:
    async with pipeline(
        settings, FakeStt(), FakeLlm(), FakeTts(), telemetry={"log_content": log_content}
    ) as june:
        with capture_logs() as logs:
            await june.answer(spoken)
    (told,) = [entry for entry in logs if entry["event"] == "turn.finished"]
    assert told["outcome"] == "answered"
    assert told["answer_characters"] == 32
    stages = ("decode", "stt", "llm_first_token", "llm", "tts_first_audio", "tts", "encode", "total")
    assert all(told[f"{stage}_s"] >= 0 for stage in stages)
    assert ("sky" in str(logs)) is log_content


# --- cancelling ---


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("where", ["decode", "stt", "llm", "tts", "encode"])
async def test_a_turn_cancelled_in_any_stage_leaves_nothing_behind(
    settings: Settings, spoken: TurnRequest, where: str, overlap: bool
) -> None:
    models: dict[str, Any] = {"stt": FakeStt(), "llm": FakeLlm(), "tts": FakeTts(seconds=20)}
    if where in models:
        models[where].hangs = True
    async with pipeline(settings, *models.values(), reply={"overlap": overlap}) as june:
        tasks = asyncio.all_tasks()
        with capture_logs() as logs:
            turn = asyncio.create_task(june.answer(spoken))
            await reach(where, models)
            turn.cancel()
            await asyncio.wait([turn])
        assert turn.cancelled()
        assert asyncio.all_tasks() == tasks
        assert [model.calls_running for model in models.values()] == [0, 0, 0]
        cancelled = {entry.get("stage") for entry in logs if entry.get("outcome") == "cancelled"}
        assert where in cancelled
        assert [entry["outcome"] for entry in logs if entry["event"] == "turn.finished"] == ["cancelled"]
        for model in models.values():
            model.hangs = False
        assert (await june.answer(WRITTEN)).voices


async def reach(stage: str, models: dict[str, FakeModel]) -> None:
    """Return when a turn is in the stage; a codec's work takes longer than a few turns of the loop."""
    if stage in models:
        await models[stage].called.wait()
    elif stage == "encode":
        await models["tts"].finished.wait()
    for _ in range(5):
        await asyncio.sleep(0)
