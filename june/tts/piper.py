"""Piper: VITS voices on ONNX Runtime. GPL-3.0-or-later, so an optional part of june."""

import ctypes
import json
import re
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig

from june import hardware, kernels
from june.errors import ModelLoadError, SynthesisError
from june.kernels.vits import FlowAndVocoder, StoppedError
from june.messages import ModelDescription, Speech
from june.models import LocalModel
from june.sections import TtsSettings
from june.tts import halves
from june.workers import ModelThread, StopFlag

MOST_THREADS = 4
"""A sentence is too small for more: its convolutions gain nothing from a fifth thread."""
SENTENCES_AT_ONCE = 2
"""Of different people: two threads on two sentences do more than two on one."""
INT16_MAX = 32_767
ONNX_ERRORS = (
    onnx_errors.EPFail,
    onnx_errors.Fail,
    onnx_errors.InvalidArgument,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf,
    onnx_errors.NoSuchFile,
    onnx_errors.RuntimeException,
)
"""ONNX Runtime's exceptions share no ancestor but `Exception`."""


_FALSE_STOP = re.compile(r"\b(Dr|Mr|Mrs|Ms|Prof|Sr|Jr|St|[A-Z])\.(?= [A-Z])")
"""espeak-ng ends a sentence at these full stops, and says the same words without them."""


class Piper:
    """`TextToSpeech` by Piper, on the CPU: for these small networks a GPU is often slower.

    Its first voice speaks what asks for none. All voices share up to `SENTENCES_AT_ONCE` threads, and each
    thread speaks one sentence at a time.
    """

    def __init__(
        self, settings: TtsSettings, source: LocalModel, voices: Mapping[str, LocalModel] | None = None
    ) -> None:
        self._settings = settings
        self._name = source.name
        self._paths = {name: voice.path for name, voice in (voices or {}).items()} | {
            source.name: source.path
        }
        self._thread = ModelThread("tts", threads=min(hardware.cpu_cores(), SENTENCES_AT_ONCE))
        self._voices: dict[str, tuple[PiperVoice, _Session]] = {}

    async def load(self) -> None:
        """Read the weights.

        Raises:
            ModelLoadError: the file is not a Piper voice.
        """
        await self._thread.run(self._load)

    def _load(self, _stop: StopFlag) -> None:
        for name, path in self._paths.items():
            self._voices[name] = self._load_voice(name, path)

    def _load_voice(self, name: str, path: Path) -> "tuple[PiperVoice, _Session]":
        threads = self._settings.threads or min(hardware.cpu_cores(), MOST_THREADS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A pattern is kept for every length of sentence; without it a long one takes 160 MB less.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            config = PiperConfig.from_dict(json.loads(Path(f"{path}.json").read_text("utf-8")))
            parts = halves.split(path, threads) if self._has_own_kernel() else None
            session = onnxruntime.InferenceSession(
                parts[0] if parts else str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except (OSError, ValueError, KeyError, *ONNX_ERRORS) as error:
            raise ModelLoadError(f"Voice {name} cannot be loaded: {type(error).__name__}.") from error
        interruptible = _Session(session, parts[1] if parts else None)
        return PiperVoice(session=interruptible, config=config), interruptible

    def _has_own_kernel(self) -> bool:
        return self._settings.kernel == "auto" and kernels.VOICE.is_usable()

    async def warm_up(self) -> None:
        """Speak a short sentence to nobody, in each voice."""
        for name in self._paths:
            async for _ in self.synthesize("Hello, I am ready.", voice=name):
                pass

    def synthesize(self, text: str, *, voice: str = "") -> AsyncGenerator[Speech, None]:
        """Yield the text, spoken, one piece a sentence; see the Protocol."""
        return self._thread.stream(self.synthesize_now, text, voice)

    def synthesize_now(self, stop: StopFlag, text: str, voice: str = "") -> Generator[Speech, None, None]:
        """Do what `synthesize` runs on its thread; blocks."""
        if (voice or self._name) not in self._voices:
            raise SynthesisError("voice_unknown", f"The voice {voice!r} is not loaded.")
        speaker, session = self._voices[voice or self._name]
        config = SynthesisConfig(length_scale=1 / self._settings.speed, normalize_audio=False)
        try:
            with session.interruptible(stop):
                for chunk in speaker.synthesize(_FALSE_STOP.sub(r"\1", text), config):
                    samples = np.clip(chunk.audio_float_array * INT16_MAX, -INT16_MAX, INT16_MAX)
                    yield Speech(samples.astype(np.int16), chunk.sample_rate)
        except (*ONNX_ERRORS, StoppedError) as error:
            if not stop.is_set():
                raise SynthesisError("tts_failed", f"Piper failed: {type(error).__name__}.") from None

    def describe(self) -> ModelDescription:
        """Return the first voice, how many there are, in how many june's kernel computes, and the speed."""
        details: dict[str, str | int | float | bool] = {
            "speed": self._settings.speed,
            "voices": len(self._paths),
            "kernels": sum(session.has_kernel for _, session in self._voices.values()),
        }
        return ModelDescription(self._name, "piper", "cpu", details)

    async def close(self) -> None:
        """Free the model and end its thread."""
        await self._thread.close()
        self._voices.clear()


class _Session:
    """ONNX Runtime's session as Piper calls it, but interruptible in the middle of a sentence.

    Args:
        session: the voice, or its first half.
        kernel: what computes the second half, if june does.
    """

    def __init__(self, session: onnxruntime.InferenceSession, kernel: FlowAndVocoder | None) -> None:
        self._session = session
        self._kernel = kernel
        self.has_kernel = kernel is not None
        self._run = threading.local()

    @contextmanager
    def interruptible(self, stop: StopFlag) -> Iterator[None]:
        """Let `stop` end the runs in this block."""
        options = self._run.options = onnxruntime.RunOptions()
        stopped = self._run.stopped = ctypes.c_int32()

        def interrupt() -> None:
            options.terminate = True
            stopped.value = 1

        with stop.interrupts(interrupt):
            yield

    def run(self, outputs: list[str] | None, inputs: dict[str, Any]) -> list[Any]:
        """Return what `onnxruntime.InferenceSession.run` gives."""
        results = list(self._session.run(outputs, inputs, self._run.options))
        return [self._kernel.run(results[0][0], self._run.stopped)] if self._kernel else results
