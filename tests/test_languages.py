"""Promises of language codes."""

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES

from june.languages import KNOWN, language_code


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("de", "de"),
        ("de-DE", "de"),
        ("EN_us", "en"),
        ("zh-Hant-TW", "zh"),
        ("yue", "yue"),
        ("nb-NO", "no"),
        ("jv", "jw"),
        ("fil-PH", "tl"),
    ],
)
def test_a_tag_is_its_language(tag: str, code: str) -> None:
    assert language_code(tag) == code


@pytest.mark.parametrize("tag", ["", "german", "deu", "xx", "de-", "-de", "de DE", "d", "de-DE\n", "dé"])
def test_what_is_no_code_of_a_language_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="expected a language code such as de"):
        language_code(tag)


def test_the_languages_are_those_that_whisper_hears() -> None:
    assert set(_LANGUAGE_CODES) == KNOWN
