"""The voice of docs/backends.md, made as the page says, speaks june's answer."""

import json
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np

from june import audio
from june.messages import Pcm
from june.sections import PROJECT_ROOT, AudioSettings
from tests.documents import follow

SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- "  # a to m
    "-. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."  # n to z
)
LETTERS = dict(zip(SIGNS.split(), "abcdefghijklmnopqrstuvwxyz", strict=True))
DOT_S = 0.03
STEP_S = 0.005


def decoded(pcm: Pcm) -> str:
    """Return the words that 16 kHz samples hold in Morse code, whose dots last `DOT_S`."""
    step = round(STEP_S * 16_000)
    loudness = np.abs(pcm[: len(pcm) // step * step]).reshape(-1, step).max(axis=1)
    morse = ""
    for is_tone, run in groupby(loudness > 0.3 * loudness.max()):
        dots = len(list(run)) * STEP_S / DOT_S
        morse += ("-" if dots > 2 else ".") if is_tone else " / " if dots > 5 else " " if dots > 2 else ""
    words = [word.split() for word in morse.strip(" /").split("/")]
    return " ".join("".join(LETTERS[signs] for signs in word) for word in words)


def test_the_documented_voice_speaks_an_answer_that_can_be_read_from_its_sound(tmp_path: Path) -> None:
    follow("A voice", tmp_path, table="june/tts/__init__.py")
    (tmp_path / "settings.toml").write_text(
        f'[models]\ndirectory = "{PROJECT_ROOT / "models"}"\npreset = "starter"\n'
        "[llm]\ntemperature = 0\nmax_tokens = 12\n"
        '[tts]\nbackend = "morse"\nspeed = 2\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "june", "ask", "--text", "What colour is the sky?", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    words = re.findall("[a-z]+", answer["reply"]["text"].lower())
    assert words
    pcm = audio.decode((tmp_path / "reply.ogg").read_bytes(), AudioSettings(cleanup=False))
    assert decoded(pcm) == " ".join(words)
