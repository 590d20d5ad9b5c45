"""Models of the owner's own: what june has to know of one is read from its files.

Nothing is hashed, since nobody published what is right. Each file may be a stranger's, so that every size and
count in it is bounded, and a fault is one sentence that names the file and what june expects of it.
"""

from pathlib import Path
from typing import Any

from june.errors import ModelFileError
from june.models.catalogue import MAIN_FILE, Model, Role
from june.models.model_bin import read_weights
from june.models.own_files import code_of, only_file, own_files, present_file, printable, read_json, read_text
from june.models.own_llm import describe_llm
from june.models.sources import LocalModel
from june.workers import StopFlag

F32_BYTES = 4
ENGLISH_VOCABULARY = 51_864
"""Tokens of Whisper's English models; the multilingual ones have at least one more."""
WHISPER = "WhisperSpec"
PLAIN_MELS = 80
"""What faster-whisper computes unless preprocessor_config.json says otherwise."""


def describe(role: Role, path: Path, stop: StopFlag | None = None) -> LocalModel:
    """Return the owner's own model.

    Args:
        role: what it is to do.
        path: a file or folder: a Whisper model for CTranslate2, a GGUF file, or a voice for Piper.
        stop: ends the reading of a model of many parts when it is set.

    Raises:
        ModelFileError: it is not there, is not a model of that kind, or does not say what june
            has to know; or `stop` was set.
    """
    if role == "llm":
        return describe_llm(path, stop)
    return _whisper(path) if role == "stt" else _voice(path)


def _whisper(path: Path) -> LocalModel:
    folder = path.parent if path.name == MAIN_FILE["ctranslate2"] else path
    user = "a Whisper model for CTranslate2"
    weights = read_weights(present_file(folder / "model.bin", user))
    if weights.kind != WHISPER:
        kind = printable(weights.kind)
        raise ModelFileError(f"{folder} is a {kind} for CTranslate2, and june hears with Whisper.")
    vocabulary = next(
        (file for file in (folder / "vocabulary.json", folder / "vocabulary.txt") if file.is_file()),
        folder / "vocabulary.json",
    )
    names = [folder / "model.bin", folder / "config.json", folder / "tokenizer.json", vocabulary]
    if weights.mels not in (0, PLAIN_MELS):
        names.append(folder / "preprocessor_config.json")
    files = own_files([present_file(name, user) for name in names])
    is_english = _tokens(vocabulary) <= ENGLISH_VOCABULARY
    model = Model(
        name=folder.name,
        role="stt",
        format="ctranslate2",
        languages=("en",) if is_english else ("mul",),
        parameters_b=max(weights.parameters, 1) / 1e9,
        files=files,
    )
    return LocalModel(model, folder)


def _tokens(vocabulary: Path) -> int:
    """Return how many tokens a vocabulary has: a list in JSON, or one a line."""
    if vocabulary.suffix != ".json":
        return read_text(vocabulary).rstrip("\n").count("\n") + 1
    tokens = read_json(vocabulary)
    if not isinstance(tokens, list):
        raise ModelFileError(f"{vocabulary} is not a vocabulary of CTranslate2, which is a list of tokens.")
    return len(tokens)


def _voice(path: Path) -> LocalModel:
    path = only_file(path, MAIN_FILE["piper"])
    settings = present_file(path.with_name(f"{path.name}.json"), f"the Piper voice {path.name}")
    said = read_json(settings)
    for key in ("audio.sample_rate", "phoneme_id_map"):
        if _inside(said, *key.split(".")) is None:
            raise ModelFileError(f"{settings} does not say {key}, which june needs of a Piper voice.")
    code = code_of(_inside(said, "language", "code"))
    files = own_files([path, settings])
    model = Model(
        name=path.name,
        role="tts",
        format="piper",
        languages=(code,) if code else (),
        parameters_b=files[0].size_bytes / F32_BYTES / 1e9,  # its weights are in float32
        files=files,
    )
    return LocalModel(model, path)


def _inside(value: Any, *keys: str) -> Any:
    """Return what stands under keys within one another; None if there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
