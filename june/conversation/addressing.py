"""Whether spoken words are for june, or tell it to stop."""

import unicodedata
from collections.abc import Iterable

UNSPACED_SCRIPTS = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
"""Scripts written without spaces between words, as the Unicode names of their characters begin."""


def names_june(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands in the text as a word, in whatever case.

    In a script without spaces between words, any place counts. A name of no letter or digit is never named.
    """
    said = f" {_words(text)} "
    return any(f" {name} " in said for name in map(_words, names) if name)


def is_stop(text: str, names: Iterable[str] = ("june",)) -> bool:
    """Whether the whole utterance means "stop", said once or more, with june's name or without.

    It knows the commonest word or two of some twenty languages. "Stop at the next station" is not among them.
    """
    said = " ".join(dict.fromkeys(_words(text).split()))  # "Stop! Stop!"
    for name in map(_words, names):
        said = f" {said} ".replace(f" {name} ", " ").strip()
    return said in STOP


def _words(text: str) -> str:
    """Return the words in one case and form, separated by spaces; in an unspaced script, the characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_spaced, folded)).split())


def _spaced(character: str) -> str:
    if not (character.isalnum() or unicodedata.category(character).startswith("M")):
        return " "
    if unicodedata.name(character, "").startswith(UNSPACED_SCRIPTS):
        return f" {character} "
    return character


STOP = frozenset(
    map(
        _words,
        (
            *("stop", "stopp", "halt", "aufhören"),  # English, Dutch, Swedish, Norwegian, German
            *("arrête", "arrêtez", "para", "pare", "alto", "basta", "fermati"),  # French to Italian
            *(
                "стоп",
                "хватит",
                "зупинись",
                "stój",
                "přestaň",
                "dur",
            ),  # Russian, Ukrainian, Polish to Turkish
            *("توقف", "रुको", "停", "停止", "やめて", "ストップ", "멈춰", "그만"),  # Arabic to Korean
        ),
    )
)
"""What people say to end an answer. Whisper writes it with capitals and punctuation, which do not matter."""
