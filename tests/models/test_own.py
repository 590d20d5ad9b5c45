"""Promises of models of the owner's own: what june reads of their files, and what it says of wrong ones."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from june.errors import ModelFileError
from june.models.catalogue import Role
from june.models.own import describe
from june.workers import StopFlag
from tests.conftest import CATALOGUE, LLM, STT, TTS
from tests.models.gguf_writer import LLM as VALUES
from tests.models.gguf_writer import gguf, write

ROLES: tuple[Role, ...] = ("stt", "llm", "tts")


def refusal(role: Role, path: Path) -> str:
    """Return what is said of a model that june does not take."""
    with pytest.raises(ModelFileError) as raised:
        describe(role, path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_starter_models_are_what_the_catalogue_says(model_paths: dict[str, Path]) -> None:
    for role, name in (("stt", STT), ("llm", LLM), ("tts", TTS)):
        found, entry = describe(role, model_paths[name]), CATALOGUE[name]  # type: ignore[arg-type]
        assert found.path == model_paths[name]
        assert found.folder == model_paths[LLM].parent.parent / name
        own = found.entry
        assert own.languages == entry.languages
        assert own.size_bytes == entry.size_bytes
        assert own.parameters_b == pytest.approx(entry.parameters_b, rel=0.05)
        assert (own.kv_bytes_per_token, own.context_tokens_max) == (
            entry.kv_bytes_per_token,
            entry.context_tokens_max,
        )
        assert not any(file.sha256 for file in own.files)


# --- language models ---


def test_a_language_model_says_what_it_is(tmp_path: Path) -> None:
    found = describe("llm", write(tmp_path / "my model.gguf", gguf()))
    assert found.name == "my model.gguf"
    assert (found.entry.licence, found.entry.languages) == ("mit", ("en", "de"))
    assert found.entry.parameters_b == pytest.approx(64_064 / 1e9)
    assert found.entry.kv_bytes_per_token == 4 * 2 * (8 + 8) * 2
    assert found.entry.context_tokens_max == 2048


@pytest.mark.parametrize(
    ("changed", "kv_bytes"),
    [
        ({"llama.attention.head_count_kv": [2, 0, 0, 2]}, 4 * 16 * 2),
        ({"llama.attention.head_count": [8, 4, 4, 8]}, 8 * 16 * 2),
        ({"llama.attention.key_length": 16, "llama.attention.value_length": 4}, 8 * 20 * 2),
    ],
    ids=["some layers without attention", "fewer heads in some", "lengths of their own"],
)
def test_the_cache_follows_the_heads_of_each_layer(
    changed: dict[str, object], kv_bytes: int, tmp_path: Path
) -> None:
    found = describe("llm", write(tmp_path / "x.gguf", gguf({**VALUES, **changed})))
    assert found.entry.kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize(
    "key", ["general.architecture", "llama.block_count", "llama.context_length", "llama.attention.head_count"]
)
@pytest.mark.parametrize("wrong", [None, "four", -1, True, 1.5])
def test_what_a_file_does_not_say_is_asked_for(key: str, wrong: object, tmp_path: Path) -> None:
    values = {name: value for name, value in VALUES.items() if name != key}
    if wrong is not None:
        values[key] = wrong
    if key == "general.architecture" and isinstance(wrong, str):
        key = "four.block_count"
    assert f"does not say {key}, which june needs" in refusal("llm", write(tmp_path / "x.gguf", gguf(values)))


@pytest.mark.parametrize("kind", ["adapter", "mmproj"])
def test_what_is_no_whole_model_is_refused(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", gguf({**VALUES, "general.type": kind}))
    assert f"is of the type '{kind}', and june needs a whole model" in refusal("llm", path)


def test_the_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    first = write(tmp_path / "big-00001-of-00003.gguf", gguf())
    for part in (2, 3):
        write(tmp_path / f"big-0000{part}-of-00003.gguf", gguf({"split.no": part}, [(1000,)]))
    found = describe("llm", first)
    assert found.entry.parameters_b == pytest.approx(66_064 / 1e9)
    assert len(found.entry.files) == 3
    assert describe("llm", tmp_path) == found
    assert "name the first part, big-00001-of-00003.gguf" in refusal(
        "llm", tmp_path / "big-00002-of-00003.gguf"
    )
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    assert "big-00003-of-00003.gguf is missing, and the split model" in refusal("llm", first)


def test_a_folder_holds_one_model(tmp_path: Path) -> None:
    assert "holds 0 files .gguf" in refusal("llm", tmp_path)
    write(tmp_path / "a.gguf", gguf())
    assert describe("llm", tmp_path).path == tmp_path / "a.gguf"
    write(tmp_path / "b.gguf", gguf())
    assert "holds 2 files .gguf: name the one that june shall use" in refusal("llm", tmp_path)


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    assert "x.gguf is missing" in refusal("llm", tmp_path / "x.gguf")
    assert "x.bin is not a file .gguf" in refusal("llm", write(tmp_path / "x.bin", gguf()))
    assert "x.gguf is empty" in refusal("llm", write(tmp_path / "x.gguf", b""))


@pytest.mark.parametrize("name", [f"{'x' * 300}.gguf", f"{'x' * 300}/x.onnx", "a\0b.gguf"])
@pytest.mark.parametrize("role", ["stt", "llm", "tts"])
def test_what_cannot_be_a_path_gets_one_sentence(role: Role, name: str, tmp_path: Path) -> None:
    assert "cannot be read: " in refusal(role, tmp_path / name)


def test_a_folder_that_june_may_not_enter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = write(tmp_path / "closed" / "x.gguf", gguf()).parent

    def refuse(path: Path, **_: object) -> None:  # whoever runs this may be root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    for role in ROLES:
        assert "cannot be read: Permission denied." in refusal(role, closed)
        assert "cannot be read: Permission denied." in refusal(role, closed / "x.gguf")


def test_a_strangers_text_is_fit_to_be_shown(tmp_path: Path) -> None:
    values = {**VALUES, "general.license": "\x1b[31mmit\n" + "x" * 500}
    entry = describe("llm", write(tmp_path / "x.gguf", gguf(values))).entry
    assert entry.licence == "[31mmit" + "x" * 93
    told = refusal("llm", write(tmp_path / "y.gguf", gguf({**VALUES, "general.architecture": "\x1b[2Jx"})))
    assert "does not say [2Jx." in told
    assert told.isprintable()


def test_a_start_that_is_stopped_reads_no_further_part(tmp_path: Path) -> None:
    stop = StopFlag()
    stop.set()
    with pytest.raises(ModelFileError, match=r"x\.gguf was not read to its end: june was asked to stop"):
        describe("llm", write(tmp_path / "x.gguf", gguf()), stop)


# --- Whisper ---


@pytest.fixture
def whisper(model_paths: dict[str, Path], tmp_path: Path) -> Path:
    """Copy Whisper tiny.en."""
    return shutil.copytree(model_paths[STT], tmp_path / "my whisper")


def test_whether_a_whisper_model_is_english_is_told_by_its_vocabulary(whisper: Path) -> None:
    assert describe("stt", whisper).entry.languages == ("en",)
    (whisper / "vocabulary.txt").unlink()
    (whisper / "vocabulary.json").write_text(json.dumps(["x"] * 51_865))
    assert describe("stt", whisper).entry.languages == ("mul",)
    assert describe("stt", whisper / "model.bin").path == whisper


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json"])
def test_each_file_of_a_whisper_model_is_needed(missing: str, whisper: Path) -> None:
    (whisper / missing).unlink()
    assert f"{missing} is missing, and a Whisper model for CTranslate2 needs it" in refusal("stt", whisper)


def test_a_whisper_model_without_any_vocabulary_is_refused(whisper: Path) -> None:
    (whisper / "vocabulary.txt").unlink()
    assert "vocabulary.json is missing" in refusal("stt", whisper)
    (whisper / "vocabulary.json").write_text("{")
    assert "vocabulary.json is not JSON" in refusal("stt", whisper)
    (whisper / "vocabulary.json").write_text("{}")
    assert "is not a vocabulary" in refusal("stt", whisper)


def test_other_mel_bands_need_the_file_that_says_so(whisper: Path) -> None:
    weights = (whisper / "model.bin").read_bytes()
    at = weights.index(b"encoder/conv1/weight\0") + 21 + 1 + 4
    assert weights[at] == 80
    (whisper / "model.bin").write_bytes(weights[:at] + bytes([128]) + weights[at + 1 :])
    assert "preprocessor_config.json is missing" in refusal("stt", whisper)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_a_broken_model_bin_gets_one_sentence(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "broken"
    path = write(folder / "model.bin", data or b"x")
    assert f"{path} is not a model that CTranslate2 wrote" in refusal("stt", folder)


def test_a_model_of_another_kind_is_named(whisper: Path) -> None:
    weights = (whisper / "model.bin").read_bytes()
    (whisper / "model.bin").write_bytes(weights.replace(b"WhisperSpec", b"AnotherSpec", 1))
    assert "is a AnotherSpec for CTranslate2, and june hears with Whisper" in refusal("stt", whisper)


# --- voices ---


@pytest.fixture
def voice(model_paths: dict[str, Path], tmp_path: Path) -> Path:
    """Copy the voice Joe."""
    for path in (model_paths[TTS], model_paths[TTS].with_name(f"{model_paths[TTS].name}.json")):
        shutil.copy(path, tmp_path / f"my voice.onnx{path.suffix.removeprefix('.onnx')}")
    return tmp_path / "my voice.onnx"


def test_a_voice_is_its_file_or_its_folder(voice: Path) -> None:
    assert describe("tts", voice) == describe("tts", voice.parent)
    assert describe("tts", voice).name == "my voice.onnx"


def test_a_voice_needs_its_settings(voice: Path) -> None:
    settings_file = voice.with_name("my voice.onnx.json")
    said = json.loads(settings_file.read_text())
    settings_file.unlink()
    assert "my voice.onnx.json is missing, and the Piper voice my voice.onnx needs it" in refusal(
        "tts", voice
    )
    settings_file.write_text("[" * 100_000)
    assert "is not JSON" in refusal("tts", voice)
    settings_file.write_bytes(b"\xff")
    assert "is not text in UTF-8" in refusal("tts", voice)
    settings_file.write_text(json.dumps({**said, "audio": {}}))
    assert "does not say audio.sample_rate, which june needs" in refusal("tts", voice)
    settings_file.write_text(json.dumps({**said, "language": {"code": "Klingon"}}))
    assert describe("tts", voice).entry.languages == ()
