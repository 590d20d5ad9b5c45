"""Whisper on CTranslate2.

Whisper's encoder was trained on windows of 30 s, and its library pads every note to that length, which is
most of the work for a short note. Here the window follows the note (`stt.window = "auto"`). A short window
can make Whisper repeat itself; a result that looks like a repetition is transcribed again with 30 s.
"""

import threading
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel, transcribe
from faster_whisper.transcribe import Segment
from faster_whisper.vad import get_speech_timestamps

from june import hardware
from june.errors import ModelLoadError, TranscriptionError
from june.messages import ModelDescription, Pcm, Transcript
from june.models import LocalModel
from june.sections import SttSettings
from june.telemetry import log
from june.workers import ModelThread, StopFlag

Window = float | Literal["auto"]
"""Length of the encoder's window in seconds, 5 to 30, or "auto"."""

SAMPLE_RATE_HZ = 16_000
FRAMES_PER_S = 100
FULL_WINDOW_S = 30.0
SHORTEST_WINDOW_S = 10.0
WINDOW_MARGIN_S = 4.0
"""The window is max(10 s, note + 4 s). With Whisper tiny.en on 270 clips of 2 to 7 s by four synthetic
voices, clean and with noise, the word error rate was 0.066, and 0.071 with the whole window; 4 clips became
repetitions. With max(8 s, note + 2 s) it was 0.063, but 7 clips and 3 of june's own 12 questions became
repetitions."""
ENGLISH_TOKENS_PER_S = 6
"""More tokens than people speak per second of the window, which is longer than the speech in it."""

LONGEST_CHANCE_REPEAT = 8
"""The most words in the same order that a text repeats by chance."""

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own schedule: the temperature rises until the text is neither repetitive nor unsure."""

NOTES_AT_ONCE = 2
"""Notes transcribed at once on a CPU; they share the weights, but each needs its own working memory."""

ENERGETIC_RMS = 0.01
"""-40 dBFS: a recording this loud in which the VAD finds no speech is transcribed without the VAD."""

# The library's progress bars are not shown here, and would start a thread that outlives june's.
transcribe.tqdm.monitor_interval = 0


class FasterWhisper:
    """`SpeechToText` with faster-whisper, on the CPU or a CUDA GPU."""

    def __init__(self, settings: SttSettings, source: LocalModel) -> None:
        self._settings = settings
        self._model = source.entry
        self._name = source.name
        self._path = source.path
        self._thread = ModelThread("stt", threads=self._workers())
        self._whisper: _WindowedWhisper | None = None
        self._device: Literal["cpu", "cuda"] = "cpu"
        self._moving = threading.Lock()

    async def load(self) -> None:
        """Read the weights.

        Raises:
            ModelLoadError: the folder holds no such model, or a GPU is demanded and cannot be used.
        """
        await self._thread.run(self._load)

    def _load(self, _stop: StopFlag) -> None:
        self._device = choose_device(self._settings.device)
        self._whisper = self._open(self._device)

    def _open(self, device: Literal["cpu", "cuda"]) -> "_WindowedWhisper":
        compute_type = self._settings.compute_type
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "int8"
        try:
            return _WindowedWhisper(
                str(self._path),
                device=device,
                compute_type=compute_type,
                cpu_threads=self._threads(),
                num_workers=self._workers() if device == "cpu" else 1,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelLoadError(f"Whisper model {self._name} cannot be loaded: {error}.") from error

    def _threads(self) -> int:
        """Return how many threads to use: one for each 40 million parameters, at most one for each core.

        The decoder's steps are too small to share: tiny.en (39 million) transcribed a 6 s note in 0.147 s
        with one thread and in 0.183 s with two.
        """
        useful = min(hardware.cpu_cores(), round(self._model.parameters_b / 0.04))
        return self._settings.threads or max(1, useful)

    def _workers(self) -> int:
        """Return how many notes to transcribe at a time with the same weights, as far as cores are left."""
        return max(1, min(hardware.cpu_cores() // self._threads(), NOTES_AT_ONCE))

    async def warm_up(self) -> None:
        """Send a second of silence through the VAD, the encoder and one step of the decoder."""
        await self._thread.run(self._warm_up)

    def _warm_up(self, stop: StopFlag) -> None:
        assert self._whisper is not None  # noqa: S101 - `load` comes first
        silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
        get_speech_timestamps(silence)
        whisper = self._whisper.listening(stop, self._settings.window)
        segments, _ = whisper.transcribe(silence, language="en", beam_size=1, max_new_tokens=1)
        list(segments)

    async def transcribe(self, pcm: Pcm, *, language: str = "") -> Transcript:
        """Return what is said in `pcm` (float32, (n_samples,), mono, 16 000 Hz); see the Protocol."""
        return await self._thread.run(self.transcribe_now, pcm, language or self._settings.language)

    def transcribe_now(
        self, stop: StopFlag, pcm: Pcm, language: str = "", *, window: Window | None = None
    ) -> Transcript:
        """Do what `transcribe` runs on its thread; blocks. `window` may differ from the settings'."""
        window = window or self._settings.window
        used = self._whisper
        assert used is not None  # noqa: S101 - `load` comes first
        try:
            return self._listen(used, stop, pcm, language, window)
        except (RuntimeError, ValueError) as error:
            with self._moving:
                if self._whisper is used:  # another note may have moved it already
                    self._move_to_cpu(error)
        return self.transcribe_now(stop, pcm, language, window=window)

    def _move_to_cpu(self, error: Exception) -> None:
        if self._device == "cpu":
            raise TranscriptionError("stt_failed", f"Whisper failed: {type(error).__name__}.") from error
        log.warning("model.moved", stage="stt", model=self._name, to="cpu", error=type(error).__name__)
        self._whisper = self._open("cpu")
        self._device = "cpu"

    def _listen(
        self, model: "_WindowedWhisper", stop: StopFlag, pcm: Pcm, language: str, window: Window
    ) -> Transcript:
        """Return what is said; a loud recording in which the VAD finds nothing is transcribed without it."""
        whisper = model.listening(stop, window)
        segments, heard_language = self._hear(whisper, pcm, language, vad=self._settings.vad)
        if not segments and self._settings.vad and _loudest_rms(pcm) >= ENERGETIC_RMS:
            segments, heard_language = self._hear(whisper, pcm, language, vad=False)
            segments = [each for each in segments if self._is_surely_speech(each)]
        text = " ".join(segment.text.strip() for segment in segments).strip()
        return Transcript(text, heard_language, len(pcm) / SAMPLE_RATE_HZ, whisper.retries)

    def _hear(
        self, whisper: "_WindowedWhisper", pcm: Pcm, language: str, *, vad: bool
    ) -> tuple[list[Segment], str]:
        segments, info = whisper.transcribe(
            pcm,
            language=language if language in whisper.supported_languages else None,
            beam_size=self._settings.beam_size,
            best_of=1,  # at a higher temperature; Whisper's default of 5 takes five times as long
            temperature=TEMPERATURES,
            compression_ratio_threshold=self._settings.compression_ratio_threshold,
            log_prob_threshold=self._settings.log_prob_threshold,
            no_speech_threshold=self._settings.no_speech_threshold,
            condition_on_previous_text=False,
            vad_filter=vad,
            vad_parameters={"min_silence_duration_ms": self._settings.vad_min_silence_ms},
        )
        return list(segments), info.language

    def _is_surely_speech(self, segment: Segment) -> bool:
        return bool(
            segment.no_speech_prob < self._settings.no_speech_threshold
            and segment.avg_logprob >= self._settings.log_prob_threshold
            and segment.compression_ratio <= self._settings.compression_ratio_threshold
        )

    def describe(self) -> ModelDescription:
        """Return model, device, arithmetic and window."""
        details: dict[str, str | int | float | bool] = {"window": self._settings.window}
        if self._whisper is not None:
            details["compute_type"] = self._whisper.model.compute_type
        return ModelDescription(self._name, "faster_whisper", self._device, details)

    async def close(self) -> None:
        """Free the model and end its thread."""
        await self._thread.close()
        self._whisper = None


class _Stopped(Exception):  # noqa: N818 - not an error: it leaves faster-whisper's loops
    pass


class _WindowedWhisper(WhisperModel):  # type: ignore[misc]  # the library has no types
    """faster-whisper with a variable window of its encoder, and with stops between its steps.

    Attributes:
        retries: how many stretches were transcribed again with the whole window.
    """

    def listening(self, stop: StopFlag, window: Window) -> "_WindowedWhisper":
        """Return the same model, for one transcription."""
        one = copy(self)
        one.begin(stop, window)
        return one

    def begin(self, stop: StopFlag, window: Window) -> None:
        """Set the flag and the window of this transcription."""
        self._stop = stop
        self._window = window
        self._features = self._fitted = np.empty((0, 0), np.float32)
        self.retries = 0

    def encode(self, features: npt.NDArray[np.float32]) -> ctranslate2.StorageView:
        self._raise_if_stopped()
        self._features = features
        self._fitted = fit_window(features, self._window)
        return super().encode(self._fitted)

    def generate_with_fallback(
        self, encoder_output: ctranslate2.StorageView, prompt: Any, tokenizer: Any, options: Any
    ) -> Any:
        options = replace(options, temperatures=self._until_stopped(options.temperatures))
        if self._fitted.shape == self._features.shape:
            return super().generate_with_fallback(encoder_output, prompt, tokenizer, options)
        most_tokens = self._most_tokens(self._fitted.shape[1] / FRAMES_PER_S)
        quick = replace(
            options,
            temperatures=self._until_stopped(TEMPERATURES[:1]),
            max_new_tokens=2 * most_tokens - len(prompt),  # CTranslate2 halves the sum of this and the prompt
        )
        outcome = super().generate_with_fallback(encoder_output, prompt, tokenizer, quick)
        result, log_prob, _, compression_ratio = outcome
        tokens = result.sequences_ids[0]
        if result.no_speech_prob <= options.no_speech_threshold and (
            compression_ratio > options.compression_ratio_threshold
            or log_prob < options.log_prob_threshold
            or len(tokens) >= most_tokens
            or is_repetition(tokenizer.decode(tokens))
        ):
            self.retries += 1
            self._raise_if_stopped()
            encoder_output = super().encode(self._features)
            outcome = super().generate_with_fallback(encoder_output, prompt, tokenizer, options)
        return outcome

    def _most_tokens(self, window_s: float) -> int:
        """Return the number of tokens at which a text is cut off as a runaway.

        Other languages may take several tokens per letter: for them it is Whisper's own limit.
        """
        if self.model.is_multilingual:
            return int(self.max_length) // 2
        return round(ENGLISH_TOKENS_PER_S * window_s)

    def _until_stopped(self, temperatures: Iterable[float]) -> Iterator[float]:
        """Yield the temperatures until stopped; each may take seconds if the text runs away."""
        for temperature in temperatures:
            self._raise_if_stopped()
            yield temperature

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def fit_window(features: npt.NDArray[np.float32], window_s: Window) -> npt.NDArray[np.float32]:
    """Return the features for the encoder: (n_mels, n_frames), 100 frames a second.

    faster-whisper pads the features of a note with zeros to 30 s. Here they are cut to the window, and the
    rest of the window is padded with their minimum, which is how Whisper's features show silence.
    """
    content = int(np.flatnonzero(features.any(axis=0))[-1]) + 1 if features.any() else 0
    following_s = max(SHORTEST_WINDOW_S, content / FRAMES_PER_S + WINDOW_MARGIN_S)
    seconds = following_s if window_s == "auto" else window_s
    frames = max(round(seconds * FRAMES_PER_S / 2) * 2, content + content % 2)  # the encoder's stride is 2
    if frames >= features.shape[1]:
        return features
    fitted = np.full((features.shape[0], frames), features[:, :content].min(initial=0), features.dtype)
    fitted[:, :content] = features[:, :content]
    return fitted


def is_repetition(text: str) -> bool:
    """Return whether the text repeats a word or a phrase as a runaway does.

    A phrase of up to three words must occur four times in a row, a longer one twice; of a very long one, the
    same eight words are enough. If a person really speaks like this, the note is transcribed twice, which
    does no harm.
    """
    words = text.lower().split()
    for distance in range(1, len(words)):
        enough = min(distance * (3 if distance <= 3 else 1), LONGEST_CHANCE_REPEAT)  # noqa: PLR2004
        run = 0
        for word, later in zip(words, words[distance:], strict=False):
            run = run + 1 if word == later else 0
            if run >= enough:
                return True
    return False


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Return where Whisper computes: on the GPU if `wanted` allows it and CTranslate2 can, else on the CPU.

    Raises:
        ModelLoadError: "cuda" is set and cannot be used; the text says what is missing.
    """
    if wanted == "cpu":
        return "cpu"
    missing = hardware.missing_cuda_libraries()
    if ctranslate2.get_cuda_device_count() > 0 and not missing:
        return "cuda"
    if wanted == "cuda":
        reason = f"{', '.join(missing)} not found" if missing else "CTranslate2 finds no CUDA device"
        raise ModelLoadError(
            f'stt.device is "cuda", but {reason}; set it to "auto" or install what is missing.'
        )
    return "cpu"


def _loudest_rms(pcm: Pcm, block_s: float = 0.4) -> float:
    """Return the RMS of the loudest block, 0 to 1."""
    size = int(block_s * SAMPLE_RATE_HZ)
    blocks: Iterable[Pcm] = np.array_split(pcm, max(1, len(pcm) // size))
    return max(float(np.sqrt(np.mean(np.square(block)))) for block in blocks)
