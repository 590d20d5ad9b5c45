"""Promises of the catalogue: what ships with june, and what a wrong entry is told."""

import re
from pathlib import Path

import pytest

from june.errors import ModelFileError
from june.models import (
    GPU_LLMS,
    GPU_STT,
    GPU_TTS,
    STARTER,
    load_catalogue,
)

SHIPPED = load_catalogue()


def test_the_shipped_catalogue_holds_the_presets_in_their_roles() -> None:
    roles = [SHIPPED[name].role for name in (*STARTER, GPU_STT, *GPU_LLMS, GPU_TTS)]
    assert roles == ["stt", "llm", "tts", "stt", "llm", "llm", "llm", "tts"]


def test_the_shipped_catalogue_offers_what_the_readme_promises() -> None:
    assert SHIPPED.keys() >= {"qwen3-32b", "qwen3-30b-a3b-thinking-2507", "gemma-3-270m"}
    voices = [model for model in SHIPPED.values() if model.role == "tts"]
    assert len(voices) > 12
    assert len({language for voice in voices for language in voice.languages}) >= 12


def test_each_shipped_voice_has_the_settings_file_that_piper_reads() -> None:
    for model in SHIPPED.values():
        if model.format == "piper":
            assert [file.name for file in model.files] == [f"{model.name}.onnx", f"{model.name}.onnx.json"]


def test_what_an_engine_loads_is_a_folder_for_whisper_and_a_file_otherwise() -> None:
    loaded = [SHIPPED[name].path(Path("m")) for name in STARTER]
    assert [str(path) for path in loaded] == [
        "m/whisper-tiny-en",
        "m/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
        "m/en_US-joe-medium/en_US-joe-medium.onnx",
    ]


ENTRY = """
[x]
role = "llm"
format = "gguf"
licence = "MIT"
languages = ["en"]
parameters_b = 1
kv_bytes_per_token = 1
context_tokens_max = 1
huggingface = { repo = "a/b", revision = "0123456789012345678901234567890123456789" }
files = [{ name = "x.gguf", size_bytes = 1, sha256 = "SHA" }]
""".replace("SHA", "0" * 64)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ('licence = "MIT"', 'licence = ""', "x.licence"),
        ('name = "x.gguf"', 'name = "../x.gguf"', "x.files.0.name"),
        ("size_bytes = 1, ", "", "x.files.0.size_bytes"),
        ("0" * 64, "0" * 63, "x.files.0.sha256"),
        ("kv_bytes_per_token = 1", "", "kv_bytes_per_token"),
        ('name = "x.gguf"', 'name = "x.bin"', "one file .gguf"),
        ("huggingface =", "# huggingface =", "either wheels or huggingface"),
        ("role", "colour = 1\nrole", "x.colour"),
        ("[x]", "[x", "cannot be read"),
    ],
)
def test_a_wrong_entry_is_named(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(ENTRY)
    assert list(load_catalogue(file)) == ["x"]
    file.write_text(ENTRY.replace(right, wrong))
    with pytest.raises(ModelFileError, match=re.escape(told)):
        load_catalogue(file)
