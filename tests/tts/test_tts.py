"""Joe, a Piper voice, speaks, stops in the middle of a sentence, and refuses what is no voice."""

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from june.errors import ModelLoadError, SynthesisError
from june.messages import Speech
from june.models import LocalModel
from june.settings import Settings
from june.tts.piper import Piper
from tests.conftest import CATALOGUE, TTS

SENTENCE = "The sky is blue because the air scatters blue light more than red light."
LONG_SENTENCE = "and then they walked on, past the river and the mill, to the old town " * 4


async def speak(tts: Piper, text: str) -> list[Speech]:
    return [speech async for speech in tts.synthesize(text)]


def duration_s(speech: Speech) -> float:
    return speech.samples.size / speech.sample_rate_hz


async def test_a_sentence_is_spoken_at_a_natural_pace(tts: Piper) -> None:
    (speech,) = await speak(tts, SENTENCE)
    assert speech.samples.dtype == np.int16
    assert speech.samples.ndim == 1
    assert speech.sample_rate_hz == 22_050
    assert 3 < duration_s(speech) < 6
    assert 3_000 < np.abs(speech.samples.astype(int)).max() <= 32_767


async def test_each_sentence_is_a_piece(tts: Piper) -> None:
    pieces = await speak(tts, f"Yes. {SENTENCE}")
    assert len(pieces) == 2
    assert duration_s(pieces[0]) < 1 < duration_s(pieces[1])


async def test_a_faster_voice_takes_less_time(
    tts: Piper, settings: Settings, model_paths: dict[str, Path]
) -> None:
    fast = Piper(settings.tts.model_copy(update={"speed": 2.0}), LocalModel(CATALOGUE[TTS], model_paths[TTS]))
    await fast.load()
    (hurried,), (calm,) = await speak(fast, SENTENCE), await speak(tts, SENTENCE)
    await fast.close()
    assert duration_s(hurried) < 0.7 * duration_s(calm)  # Piper rounds each sound up to 12 ms


@pytest.mark.usefixtures("punctual")
async def test_cancelling_stops_in_the_middle_of_a_sentence(tts: Piper) -> None:
    whole_s = 60.0
    for _ in range(2):  # the first long sentence has its memory to find
        begin = time.perf_counter()
        (whole,) = await speak(tts, LONG_SENTENCE)
        whole_s = min(whole_s, time.perf_counter() - begin)
        assert duration_s(whole) > 10
    for share in (0.1, 0.3, 0.5):
        begin = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(whole_s * share):
                await speak(tts, LONG_SENTENCE)
        assert time.perf_counter() - begin < whole_s * share + 0.2
        (after,) = await speak(tts, "Hello there.")
        assert 0.3 < duration_s(after) < 2


async def test_a_voice_that_is_not_loaded_is_refused(tts: Piper) -> None:
    with pytest.raises(SynthesisError) as caught:
        [speech async for speech in tts.synthesize("Hello.", voice="en_US-nobody-medium")]
    assert caught.value.code == "voice_unknown"
    assert [speech async for speech in tts.synthesize("Hello.", voice=TTS)]


@pytest.mark.parametrize("broken", [TTS + ".onnx", TTS + ".onnx.json"])
@pytest.mark.parametrize("content", [b"", b"This is a text.", b"{}", b"\xff\xfe"])
async def test_a_file_that_is_no_voice_is_refused(
    broken: str, content: bytes, settings: Settings, model_paths: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / f"{TTS}.onnx"
    model.symlink_to(model_paths[TTS])
    shutil.copy(f"{model_paths[TTS]}.json", tmp_path)
    (tmp_path / broken).unlink()
    (tmp_path / broken).write_bytes(content)
    tts = Piper(settings.tts, LocalModel(CATALOGUE[TTS], model))
    with pytest.raises(ModelLoadError, match=TTS):
        await tts.load()
    (tmp_path / broken).unlink()
    with pytest.raises(ModelLoadError, match=TTS):
        await tts.load()
    await tts.close()


async def test_each_language_may_have_a_voice_of_its_own(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    joe = LocalModel(CATALOGUE[TTS], model_paths[TTS])
    tts = Piper(settings.tts, joe, {"de_DE-other": joe})
    await tts.load()
    await tts.warm_up()
    assert [speech async for speech in tts.synthesize("Hello.", voice="de_DE-other")]
    assert tts.describe().details["voices"] == 2
    await tts.close()


async def test_two_sentences_spoken_at_once_end_and_one_can_be_stopped_alone(tts: Piper) -> None:
    stopped = asyncio.create_task(speak(tts, LONG_SENTENCE))
    spoken = asyncio.create_task(speak(tts, SENTENCE))
    await asyncio.sleep(0)
    stopped.cancel()
    (speech,) = await spoken
    assert 3 < duration_s(speech) < 6
    assert stopped.cancelled() or await asyncio.wait([stopped])
