"""Whisper tiny.en transcribes the recorded questions, and hears nothing if nothing is said."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, Literal, NoReturn

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from june import hardware
from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.errors import ModelLoadError
from june.messages import Pcm, Transcript
from june.models import LocalModel
from june.sections import AudioSettings
from june.settings import Settings
from june.stt.faster_whisper import (
    SAMPLE_RATE_HZ,
    FasterWhisper,
    Window,
    choose_device,
    fit_window,
    is_repetition,
)
from june.workers import StopFlag
from tests.conftest import CATALOGUE, STT

Features = npt.NDArray[np.float32]
RANDOM = np.random.default_rng(0)
TIME_S = np.arange(5 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


def recorded(question: Question) -> Pcm:
    return decode(question.audio, AudioSettings())


def at_dbfs(level: float, wave: npt.NDArray[np.float64]) -> Pcm:
    scaled = wave * 10 ** (level / 20) / np.sqrt(np.mean(wave**2))
    samples: Pcm = np.clip(scaled, -1, 1).astype(np.float32)
    return samples


async def test_the_recorded_questions_are_heard(stt: FasterWhisper, questions: tuple[Question, ...]) -> None:
    for question in questions:
        pcm = recorded(question)
        transcript = await stt.transcribe(pcm)
        assert wrong_words(question.text, transcript.text) <= len(question.text.split()) / 4
        assert transcript.language == "en"
        assert transcript.duration_s == len(pcm) / SAMPLE_RATE_HZ


@pytest.mark.parametrize(
    "pcm",
    [
        np.zeros(3 * SAMPLE_RATE_HZ, np.float32),
        np.zeros(SAMPLE_RATE_HZ // 10, np.float32),
        at_dbfs(-60, RANDOM.standard_normal(TIME_S.size)),
        at_dbfs(-20, RANDOM.standard_normal(TIME_S.size)),
        at_dbfs(-20, RANDOM.standard_normal(TIME_S.size // 10)),
        at_dbfs(-20, np.sin(2 * np.pi * 440 * TIME_S)),
        at_dbfs(-20, np.sin(2 * np.pi * 50 * TIME_S) + np.sin(2 * np.pi * 150 * TIME_S) / 3),
    ],
    ids=["silence", "a short silence", "faint noise", "loud noise", "a burst of noise", "a tone", "hum"],
)
async def test_where_nothing_is_said_nothing_is_heard(stt: FasterWhisper, pcm: Pcm) -> None:
    transcript = await stt.transcribe(pcm)
    assert transcript.text == ""
    assert transcript.duration_s == len(pcm) / SAMPLE_RATE_HZ


async def test_speech_that_the_vad_takes_for_noise_is_heard_all_the_same(
    stt: FasterWhisper, questions: tuple[Question, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pcm = recorded(questions[0])
    heard = await stt.transcribe(pcm)
    monkeypatch.setattr("faster_whisper.transcribe.get_speech_timestamps", lambda *_, **__: [])
    assert (await stt.transcribe(pcm)).text == heard.text
    assert (await stt.transcribe(pcm * np.float32(0.01))).text == ""


async def test_a_runaway_is_heard_again_with_the_whole_window(
    stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    """A window that ends with the note makes Whisper repeat itself."""
    for question in questions:
        pcm = recorded(question)
        tight = stt.transcribe_now(StopFlag(), pcm, window=5.0)
        if tight.full_window_retries:
            whole = stt.transcribe_now(StopFlag(), pcm, window=30.0)
            assert whole.full_window_retries == 0
            assert tight.text == whole.text
            return
    pytest.fail("no question ran away")


async def test_a_recording_longer_than_the_window_is_heard_to_its_end(
    stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    transcript = await stt.transcribe(np.concatenate([recorded(question) for question in questions]))
    spoken = " ".join(question.text for question in questions)
    assert transcript.duration_s > 30
    assert wrong_words(spoken, transcript.text) <= len(spoken.split()) / 10


@pytest.mark.usefixtures("punctual")
async def test_cancelling_frees_the_model_for_the_next_recording(
    stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    pcm = recorded(questions[0])
    begin = time.perf_counter()
    heard = await stt.transcribe(pcm)
    whole_s = time.perf_counter() - begin
    for tenth in range(1, 8, 2):
        begin = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(whole_s * tenth / 10):
                await stt.transcribe(pcm)
        assert time.perf_counter() - begin < whole_s * tenth / 10 + 1
    assert (await stt.transcribe(pcm)).text == heard.text


async def test_two_are_heard_at_once_and_one_is_stopped_alone(
    stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    one, other = recorded(questions[0]), recorded(questions[1])
    alone = [(await stt.transcribe(pcm)).text for pcm in (one, other)]
    together = await asyncio.gather(stt.transcribe(one), stt.transcribe(other))
    assert [transcript.text for transcript in together] == alone
    both_began = threading.Barrier(2)
    stopped, kept = MeetingFlag(both_began), MeetingFlag(both_began)
    stopped.set()
    outcomes = await asyncio.gather(
        asyncio.to_thread(stt.transcribe_now, stopped, one),
        asyncio.to_thread(stt.transcribe_now, kept, other),
        return_exceptions=True,
    )
    assert not both_began.broken
    assert isinstance(outcomes[0], Exception)
    assert isinstance(outcomes[1], Transcript)
    assert outcomes[1].text == alone[1]


class MeetingFlag(StopFlag):
    """A flag whose first check waits until another flag is checked too."""

    def __init__(self, both: threading.Barrier) -> None:
        super().__init__()
        self._both: threading.Barrier | None = both

    def is_set(self) -> bool:
        """See `StopFlag`."""
        if both := self._both:
            self._both = None
            both.wait(timeout=20)
        return super().is_set()


class BrokenGpu:
    """A model on a GPU that fails two notes at the same time."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    def listening(self, _stop: StopFlag, _window: Window) -> NoReturn:
        """Fail; `transcribe_now` calls this first."""
        self._both.wait(timeout=20)
        raise RuntimeError("CUDA out of memory")


class OnBrokenGpu(FasterWhisper):
    """Notes which devices a model was opened on."""

    opened: tuple[str, ...] = ()

    def _open(self, device: Literal["cpu", "cuda"]) -> Any:
        self.opened += (device,)
        return BrokenGpu() if device == "cuda" else super()._open(device)


async def test_two_notes_that_fail_on_the_gpu_move_the_model_to_the_cpu_once(
    settings: Settings,
    model_paths: dict[str, Path],
    questions: tuple[Question, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("june.stt.faster_whisper.choose_device", lambda _: "cuda")
    stt = OnBrokenGpu(settings.stt, LocalModel(CATALOGUE[STT], model_paths[STT]))
    await stt.load()
    pcm = recorded(questions[0])
    heard = await asyncio.gather(
        asyncio.to_thread(stt.transcribe_now, StopFlag(), pcm),
        asyncio.to_thread(stt.transcribe_now, StopFlag(), pcm),
    )
    assert heard[0].text == heard[1].text != ""
    assert stt.opened == ("cuda", "cpu")
    await stt.close()


@pytest.mark.usefixtures("punctual")
async def test_cancelling_while_the_encoder_works_spares_the_decoder(
    stt: FasterWhisper, questions: tuple[Question, ...]
) -> None:
    """The best of three counts, since another program on the same cores may delay any of them."""
    pcm = recorded(questions[0])
    whole_s, cancelled_s = [], []
    for _ in range(3):
        begin = time.perf_counter()
        await stt.transcribe(pcm)
        whole_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(min(whole_s) / 4):
                await stt.transcribe(pcm)
        cancelled_s.append(time.perf_counter() - begin)
    assert min(cancelled_s) < min(whole_s) * 0.8


@pytest.mark.usefixtures("punctual")
async def test_cancelling_ends_the_search_for_a_better_text(
    settings: Settings, model_paths: dict[str, Path], questions: tuple[Question, ...]
) -> None:
    """Whisper's schedule has six temperatures; a text that is never sure enough goes through all of them."""
    doubtful = settings.stt.model_copy(update={"window": 30.0, "log_prob_threshold": 0.0})
    stt = FasterWhisper(doubtful, LocalModel(CATALOGUE[STT], model_paths[STT]))
    await stt.load()
    pcm = recorded(questions[2])[: 2 * SAMPLE_RATE_HZ]
    begin = time.perf_counter()
    await stt.transcribe(pcm)
    whole_s = time.perf_counter() - begin
    begin = time.perf_counter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(whole_s / 4):
            await stt.transcribe(pcm)
    assert time.perf_counter() - begin < whole_s * 3 / 4
    await stt.close()


async def test_a_folder_without_a_model_is_refused(tmp_path: Path, settings: Settings) -> None:
    stt = FasterWhisper(settings.stt, LocalModel(CATALOGUE[STT], tmp_path))
    with pytest.raises(ModelLoadError, match=STT):
        await stt.load()
    await stt.close()


def test_a_gpu_that_cannot_be_used_is_refused_with_what_is_missing() -> None:
    missing = hardware.missing_cuda_libraries()
    if not missing and ctranslate2.get_cuda_device_count():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
        return
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(ModelLoadError) as caught:
        choose_device("cuda")
    for name in missing or ["no CUDA device"]:
        assert name in str(caught.value)


@st.composite
def features_of_a_note(draw: st.DrawFn) -> tuple[Features, int]:
    """Return features as faster-whisper makes them, zero-padded to 30 s, and the frames of the note."""
    content = draw(st.integers(0, 3_000))
    loudest = draw(st.floats(-1.5, 2, width=32))
    note = np.random.default_rng(content).uniform(-1.5, loudest, (4, content)).astype(np.float32)
    note[:, -1:] = loudest or 1
    return np.pad(note, ((0, 0), (0, 3_000 - content))), content


@given(features_of_a_note(), st.just("auto") | st.floats(5, 30))
@example((np.ones((4, 3_000), np.float32), 3_000), 5.0)
@example((np.pad(np.ones((4, 601), np.float32), ((0, 0), (0, 2_399))), 601), 5.0)
def test_the_window_holds_the_whole_note_and_silence(
    features_and_content: tuple[Features, int], window: Window
) -> None:
    features, content = features_and_content
    fitted = fit_window(features, window)
    n_frames = fitted.shape[1]
    assert n_frames % 2 == 0
    assert content <= n_frames <= 3_000
    assert np.array_equal(fitted[:, :content], features[:, :content])
    if n_frames < 3_000:
        assert fitted.dtype == np.float32
        assert (fitted[:, content:] == min(features.min(), 0)).all()
        wanted_s = max(10, content / 100 + 4) if window == "auto" else max(window, content / 100)
        assert n_frames / 100 == pytest.approx(wanted_s, abs=0.0201)
    if window == "auto":
        assert n_frames >= 1_000
    if window == 30:
        assert fitted is features


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("Yes.", False),
        ("No no no.", False),
        ("no no no no", True),
        ("It is very, very good.", False),
        ("the day the day the day", False),
        ("the day the day the day the day", True),
        ("why do we sleep Why do we sleep", True),
        ("why do we sleep and why do we eat", False),
        ("and so my fellow Americans ask not what your country can do for you", False),
        ("And so my fellow Americans: ask not what your country can do for you, ask what you can do.", False),
        ("a b c d e f g h i j k l m n o p a b c d e f g h", True),
        ("a b c d e f g h i j k l m n o p a b c d e f g", False),
    ],
)
def test_a_text_that_repeats_itself_is_told_from_one_that_does_not(text: str, expected: bool) -> None:
    assert is_repetition(text) is expected


async def test_a_language_that_whisper_does_not_know_is_heard_as_if_none_was_named(
    stt: FasterWhisper, questions: tuple[Question, ...], settings: Settings
) -> None:
    pcm = decode(questions[0].audio, settings.audio)
    assert await stt.transcribe(pcm, language="xx") == await stt.transcribe(pcm)


async def test_two_recordings_heard_at_once_are_not_mixed_up(
    stt: FasterWhisper, questions: tuple[Question, ...], settings: Settings
) -> None:
    recordings = [decode(question.audio, settings.audio) for question in questions[:4]]
    alone = [await stt.transcribe(pcm) for pcm in recordings]
    assert await asyncio.gather(*map(stt.transcribe, recordings)) == alone
