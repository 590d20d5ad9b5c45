"""The recorded questions that ship with june, and how well one was heard."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

QUESTIONS = Path(__file__).parent / "questions"


@dataclass(frozen=True, slots=True)
class Question:
    """A recording and the words spoken in it."""

    audio: bytes
    text: str


def load_questions(folder: Path = QUESTIONS) -> tuple[Question, ...]:
    """Return the recorded questions that ship with june."""
    entries = tomllib.loads((folder / "questions.toml").read_text(encoding="utf-8"))["questions"]
    return tuple(Question((folder / each["file"]).read_bytes(), each["text"]) for each in entries)


def wrong_words(spoken: str, heard: str) -> int:
    """Return how many words to insert, delete or replace to turn one text into the other (Levenshtein)."""
    reference, hypothesis = split_words(spoken), split_words(heard)
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def split_words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()
