"""Whether spoken words are for june, or tell it to stop."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from june.conversation.addressing import is_stop, names_june


@pytest.mark.parametrize(
    "text",
    [
        *(
            "June, what is the time?",
            "Hey JUNE!",
            "What do you think, june",
            "That is June's turn.",
            "_june_",
        ),
        "¿June?",
        "june你好",
    ],
)
def test_a_name_is_heard_as_a_word_in_any_case(text: str) -> None:
    assert names_june(text, ["june"])


@pytest.mark.parametrize(
    "text", ["Juneau is a city.", "The injunex", "Jun e", "july", "", "June\N{COMBINING DIAERESIS}"]
)
def test_a_part_of_another_word_is_no_name(text: str) -> None:
    assert not names_june(text, ["june"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Привет, Джун!", "джун"),
        ("小明你好", "小明"),
        ("ねえ、ジュン、今何時。", "ジュン"),
        ("จูนสวัสดี", "จูน"),
        ("Hallo STRASSE", "straße"),
        ("wake up hey  June now", "Hey June"),
        (unicodedata.normalize("NFD", "Bonjour Zoé"), unicodedata.normalize("NFC", "zoé")),
        ("जून, नमस्ते", "जून"),
    ],
)
def test_a_name_may_be_of_any_script_and_of_several_words(text: str, name: str) -> None:
    assert names_june(text, ["nobody", name])


def test_a_vowel_sign_makes_another_word() -> None:
    assert not names_june("जूनी", ["जून"])


def test_no_name_and_a_name_without_letters_are_never_named() -> None:
    assert not names_june("june", [])
    assert not names_june("", ["!"])
    assert not names_june("! !", ["!"])


@given(st.text(), st.text(), st.sampled_from(["june", "Джун", "小明"]))
def test_a_name_between_spaces_is_heard_whatever_stands_around_it(before: str, after: str, name: str) -> None:
    assert names_june(f"{before} {name} {after}", [name])


@pytest.mark.parametrize(
    "text",
    [
        *("stop", "Stop.", " STOP! ", "June, stop!", "Stop, June.", "Stop! Stop! Stop!", "June! June! Stop!"),
        *("Stopp!", "Halt.", "Arrête !", unicodedata.normalize("NFD", "Arrête"), "¡Para!", "Basta.", "Стоп."),
        *("停止。", "ストップ。", "멈춰.", "रुको।", "توقف."),
    ],
)
def test_an_utterance_that_is_only_stop_means_it(text: str) -> None:
    assert is_stop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "June.",
        "...",
        "Stop the music in the kitchen.",
        "Where is the bus stop?",
        "Don't stop.",
        "unstoppable",
    ],
)
def test_an_utterance_that_is_more_than_stop_does_not(text: str) -> None:
    assert not is_stop(text)


def test_stop_is_heard_with_any_name_that_june_has() -> None:
    assert is_stop("Hey Computer, stop!", ["June", "Hey Computer"])
    assert not is_stop("Computer, stop!", ["june"])
