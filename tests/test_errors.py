"""Every failure has a sentence for the person in the chat, and every sentence is used."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import june
from june import errors
from june.errors import SENTENCES, JuneError, ModelLoadError, StageError

SOURCES = sorted(Path(june.__file__).parent.rglob("*.py"))
TREE = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, JuneError)
}


def code_of(call: ast.Call, kind: type[StageError]) -> ast.expr | None:
    """Return the argument `code` of a call that makes such an error; None if the class fixes it."""
    names = list(inspect.signature(kind).parameters)
    arguments = dict(zip(names, call.args, strict=False)) | {
        each.arg or "": each.value for each in call.keywords
    }
    return arguments.get("code")


def codes_made() -> Iterator[tuple[str, ast.expr]]:
    """Yield where a stage's error is made, and its code."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                kind = TREE.get(name)
                if kind is not None and issubclass(kind, StageError) and kind is not ModelLoadError:
                    code = code_of(node, kind)
                    assert code is not None, f"{source}:{node.lineno}"
                    yield f"{source.name}:{node.lineno}", code


def sentences_used() -> set[str]:
    """Return the codes whose sentence is used without an error: `SENTENCES["…"]`."""
    return {
        node.slice.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "SENTENCES"
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    }


def test_every_error_is_made_with_a_code_that_has_a_sentence() -> None:
    places = list(codes_made())
    assert len(places) > 10
    for place, code in places:
        assert isinstance(code, ast.Constant), f"{place}: the code is not written out"
        assert code.value in SENTENCES, place


def test_every_sentence_is_told_somewhere() -> None:
    made = {code.value for _, code in codes_made() if isinstance(code, ast.Constant)}
    assert made | sentences_used() | {ModelLoadError("").code} == set(SENTENCES)


@pytest.mark.parametrize("sentence", SENTENCES.values())
def test_a_sentence_can_be_said_to_a_person(sentence: str) -> None:
    assert re.fullmatch(r"[A-Z][^_<>{}\n]{10,80}\.", sentence)


def test_an_error_tells_the_person_its_sentence_and_the_owner_its_detail() -> None:
    error = StageError("stt", "stt_failed", "Whisper failed: RuntimeError.")
    assert str(error) == "Whisper failed: RuntimeError."
    assert error.sentence == "Something went wrong while I was listening."


@pytest.mark.parametrize(
    ("error", "stage", "code"),
    [
        (errors.ModelLoadError("detail"), "load", "model_unavailable"),
        (errors.AudioError("encode", "encode_failed", "detail"), "encode", "encode_failed"),
        (errors.TranscriptionError("stt_failed", "detail"), "stt", "stt_failed"),
        (errors.GenerationError("llm_failed", "detail"), "llm", "llm_failed"),
        (errors.SynthesisError("tts_failed", "detail"), "tts", "tts_failed"),
    ],
)
def test_an_error_knows_its_stage_and_code(error: StageError, stage: str, code: str) -> None:
    assert (error.stage, error.code, str(error)) == (stage, code, "detail")


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    drawn = re.findall(r"^[ │]*(├── |└── |)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert sorted(name for _, name in drawn) == sorted(TREE)
