"""june's kernel computes what ONNX Runtime does, however the work is cut, and leaves other voices alone."""

import ctypes
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from piper import PiperVoice
from piper.config import PiperConfig

from june import hardware, kernels
from june.kernels.vits import FlowAndVocoder, StoppedError
from june.models import LocalModel
from june.settings import Settings
from june.tts.halves import split
from june.tts.piper import Piper
from tests.conftest import CATALOGUE, TTS

SENTENCE = "The sky is blue because the air scatters blue light more than red light."
NO_RANDOMNESS = np.array([0, 1, 0], np.float32)

needs_bfloat16 = pytest.mark.skipif(not kernels.VOICE.runs_here, reason="this CPU has no AVX512-BF16")


@pytest.fixture(scope="module")
def voice(model_paths: dict[str, Path]) -> Path:
    return model_paths[TTS]


def run(session: onnxruntime.InferenceSession, path: Path, text: str) -> NDArray[np.float32]:
    """Return the session's output for a sentence, the same each time."""
    piper = PiperVoice(session, PiperConfig.from_dict(json.loads(Path(f"{path}.json").read_text("utf-8"))))
    (phonemes,) = piper.phonemize(text)
    ids = np.array([piper.phonemes_to_ids(phonemes)])
    inputs = {"input": ids, "input_lengths": np.array([ids.size]), "scales": NO_RANDOMNESS}
    output: NDArray[np.float32] = session.run(None, inputs)[0]
    return output.squeeze()


def halves(path: Path, threads: int = 2) -> tuple[onnxruntime.InferenceSession, FlowAndVocoder]:
    parts = split(path, threads)
    assert parts
    return onnxruntime.InferenceSession(parts[0]), parts[1]


@needs_bfloat16
@pytest.mark.parametrize("text", ["Yes.", SENTENCE])
def test_the_kernel_computes_what_onnx_runtime_does(voice: Path, text: str) -> None:
    assert kernels.VOICE.is_usable()
    first, kernel = halves(voice)
    expected = run(onnxruntime.InferenceSession(str(voice)), voice, text)
    samples = kernel.run(run(first, voice, text), ctypes.c_int32())
    assert samples.shape == expected.shape
    # bfloat16 rounds to 8 bits, over and over; two draws of the voice's own randomness differ by 2 dB.
    assert np.square(expected).sum() / np.square(samples - expected).sum() > 100


@needs_bfloat16
def test_a_sentence_sounds_the_same_however_many_threads_share_it(voice: Path) -> None:
    first, kernel = halves(voice, threads=1)
    latents = run(first, voice, SENTENCE)
    alone = kernel.run(latents, ctypes.c_int32())
    together = halves(voice, threads=3)[1].run(latents, ctypes.c_int32())
    np.testing.assert_array_equal(alone, together)


@needs_bfloat16
@pytest.mark.parametrize("n_latents", [1, 2, 13, 100])
def test_a_sample_depends_on_its_neighbourhood_alone(voice: Path, n_latents: int) -> None:
    first, kernel = halves(voice)
    latents = run(first, voice, SENTENCE)
    whole = kernel.run(latents, ctypes.c_int32())
    part = kernel.run(latents[:, : n_latents + 100], ctypes.c_int32())
    np.testing.assert_array_equal(whole[: n_latents * 256], part[: n_latents * 256])


@needs_bfloat16
def test_it_stops_in_the_middle_and_computes_again(voice: Path) -> None:
    first, kernel = halves(voice)
    latents = np.tile(run(first, voice, SENTENCE), 20)
    stop = ctypes.c_int32()
    results: list[BaseException | None] = []

    def compute() -> None:
        try:
            kernel.run(latents, stop)
            results.append(None)
        except StoppedError as error:
            results.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    stop.value = 1
    thread.join()
    assert isinstance(results[0], StoppedError)
    assert kernel.run(latents[:, :10], ctypes.c_int32()).size == 2_560


def renamed(model: onnx.ModelProto) -> None:
    """Another generation of HiFi-GAN: its residual blocks have layers of another name."""
    for array in model.graph.initializer:
        array.name = array.name.replace(".convs.", ".convs1.")
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.replace(".convs.", ".convs1.")


def of_speakers(model: onnx.ModelProto) -> None:
    """Make a voice of several speakers, which has one more layer."""
    pre = next(node for node in model.graph.node if node.name == "/dec/conv_pre/Conv")
    kernel, bias = np.zeros((256, 192, 1), np.float32), np.zeros(256, np.float32)
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(kernel, "dec.cond.weight"),
            onnx.numpy_helper.from_array(bias, "dec.cond.bias"),
        ]
    )
    at = list(model.graph.node).index(pre)
    added = onnx.helper.make_node("Conv", [pre.input[0], "dec.cond.weight", "dec.cond.bias"], ["unused"])
    model.graph.node.insert(at, added)


def changed(voice: Path, change: Callable[[onnx.ModelProto], None], folder: Path) -> Path:
    model = onnx.load(voice)
    change(model)
    onnx.save(model, other := folder / voice.name)
    Path(f"{other}.json").symlink_to(f"{voice}.json")
    return other


@pytest.mark.parametrize("change", [renamed, of_speakers])
async def test_a_voice_with_other_layers_is_left_to_onnx_runtime(
    change: Callable[[onnx.ModelProto], None], voice: Path, settings: Settings, tmp_path: Path
) -> None:
    other = changed(voice, change, tmp_path)
    assert split(other, 2) is None
    assert await spoken_kernels(settings, other) == 0


@pytest.mark.parametrize("why", ["setting", "cpu", "not compiled", "compiled for another machine"])
async def test_onnx_runtime_speaks_alone_where_the_kernel_cannot(
    why: str, voice: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "setting":
        tts = settings.tts.model_copy(update={"kernel": "onnxruntime"})
        settings = settings.model_copy(update={"tts": tts})
    elif why == "cpu":
        monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    else:
        library = tmp_path / "vits.kernel"
        monkeypatch.setattr(kernels, "VOICE", kernels.Kernel(library, frozenset()))
        if why == "compiled for another machine":
            library.write_bytes(b"\x7fELF of another kind")
    assert await spoken_kernels(settings, voice) == 0


@needs_bfloat16
async def test_the_kernel_speaks_where_it_can(voice: Path, settings: Settings) -> None:
    assert await spoken_kernels(settings, voice) == 1


async def spoken_kernels(settings: Settings, path: Path) -> object:
    """In how many voices june's kernel computes, after one has spoken."""
    tts = Piper(settings.tts, LocalModel(CATALOGUE[TTS], path))
    await tts.load()
    pieces = [speech async for speech in tts.synthesize(SENTENCE)]
    kernels = tts.describe().details["kernels"]
    await tts.close()
    assert pieces[0].samples.size > 2 * pieces[0].sample_rate_hz
    return kernels
