"""Characters of an answer, collected into sentences that a voice can say.

What reads the markup (`june.conversation.speakable`) hands over one character after the other. Here it is
decided what stands for a character in speech, and where a sentence ends:

- Emoji, and symbols that espeak-ng reads badly or not at all: nothing. Control, zero-width, private and
  surrogate characters: nothing. Table cells and arrows become commas.
- URLs and e-mail addresses: nothing; a bare domain name ("Node.js", "example.com") is a word.
- Markers of emphasis, `$…$`, brackets, braces, backslashes: nothing. Between operands `*` becomes "×";
  before a number `~` becomes "≈" and `#` becomes "№". `[[`, where Piper reads phonemes, cannot appear: no
  bracket is kept.

A sentence ends at ".", "!" or "?" before a space and a character that is not a small letter; at "。！？।؟"
and their like at once; at the end of a line. It does not end at initials, dotted or known abbreviations, an
ellipsis, or a number that may be an ordinal ("am 3. Mai"). In doubt two sentences stay together: that
is heard less than a sentence torn apart.
"""
# ruff: noqa: RUF001, RUF002 - the look-alikes of ASCII are what this module is about

import re
import string
import unicodedata
from functools import lru_cache

MAX_CHARACTERS = 200
"""The longest sentence; a longer one is cut at a pause or a word, so that one synthesis stays short."""

_UNSPACED_ENDS = frozenset("。！？｡؟۔।॥։።")
_ENDS = _UNSPACED_ENDS | frozenset(".!?…")
_PAUSES = ",;:，、；："
_MARKERS = "*_~"
_CLOSERS = "\"'”’»›)）」』】》〉" + _MARKERS
_PAUSE = re.compile(r"[,;:!?—](?= )|[，、；：]")

_ABBREVIATION = re.compile(
    r"[^\W\d_\u1100-\uffff]|(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}"  # "J", "U.S", "z.B"; not one Chinese or Hangul
    "|dr|mr|mrs|ms|prof|st|sr|sra|srta|dra|rev|gen|col|lt|sgt|capt|hon|gov|sen|rep|mt|ft|vs|approx"
    "|hr|fr|dipl|ing|ca|bzw|inkl|evtl|ggf|vgl|sog|mio|mrd|str|dhr|mevr|bijv|sig|dott|ee|np|ул|डॉ",
    re.IGNORECASE,
)
_ABBREVIATION_BEFORE_NUMBER = re.compile(
    "nos?|nr|nº|núm|figs?|eq|pp|vol|ch|chap|art|sec|abs|abb|kap|cap|pág|pag|стр|рис"
    "|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    re.IGNORECASE,
)
_BEFORE_ORDINAL = re.compile(
    "am|im|vom|zum|zur|beim|der|die|das|dem|den|des|ab|bis|seit|und|oder|jede[nrs]?", re.IGNORECASE
)

_READ_SYMBOLS = frozenset("°©®™№+±×÷−≈≤≥≠∞√∑∫¬=<>~")
"""What espeak-ng reads (tried with piper-tts 1.8), and three that `_RULES` still need."""
_INSTEAD = dict.fromkeys("[]{}\\`^", " ") | {"|": ", ", "•": ", ", "℃": "°C", "℉": "°F", "´": "'"}
_ADDRESS_END = re.compile('[\\s"<>|“”«»।؟\u2e80-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]')
"""A URL ends there; Chinese, Japanese and Korean follow it without a space."""

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\$\$", " "),
        (r"\$(?=\S)([^$]*[^\s$])\$(?!\d)", r"\1"),  # pandoc's rule for $…$: "$5 or $6" is money
        (r"(?<!\d)(?<!\d )\$(?! ?[-−.]?\d)", ""),
        (r"(?<=\w) \* (?=\w)", " × "),
        (r"(?<=\d)\*(?=\d)", "×"),
        (r"(?<=\d)\*+(?=\d)", " "),
        (r"\*", ""),
        (r"\S*://\S*|(?i:\bwww\.\w\S*)", ""),  # only what other rules have joined
        (r"(?:mailto:)?[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", ""),
        (r"(?<=[^\W_])_+(?=[^\W_])", " "),
        (r"_", ""),
        (r"(?<!~)~(?=\d)", "≈"),
        (r"~", ""),
        (r"#(?=\d)", "№"),
        (r"(?<![A-Za-z])#", ""),  # "C#" keeps it
        (r"[-=]+>|<-+", ", "),
        (r"<=", "≤"),
        (r">=", "≥"),
        (r"[<>]", " "),
        (r"(?<!\S)--+(?=\w)", ""),
        (r"--+", ", "),
        (r"\([ ()]*\)", ""),
        (r"\s+", " "),
        (r"\( ", "("),
        (r" ([,;:.!?…)]+)(?= |$)", r"\1"),
        (r"([,;:])(?: ?[,;:])+", r"\1"),
        (r"[,;:]([.!?])(?= |$)", r"\1"),
        (r"^ ?(?:[,;:!?)»”…]+|[-–—.=/+'\"]+(?= )) ?", ""),
    )
)
"""What is left to do for a whole sentence. No rule makes it longer."""


@lru_cache(maxsize=4096)
def spoken_form(char: str) -> str:
    """Return what stands for a character in speech: itself, others, a space, or "" if it has no width."""
    if char in _INSTEAD or char.isspace():
        return _INSTEAD.get(char, " ")
    category = unicodedata.category(char)
    if category[0] == "C" or category == "Me" or "\ufe00" <= char <= "\ufe0f" or char >= "\U000e0000":
        return ""
    if "①" <= char <= "⑳" or unicodedata.decomposition(char).startswith("<font>"):
        return unicodedata.normalize("NFKC", char)
    if category in {"Sk", "Sm", "So"} and char not in _READ_SYMBOLS:
        return ", " if char < "\u3000" and "ARROW" in unicodedata.name(char, "") else " "
    return char


def _ends_sentence(text: str, following: str) -> bool:
    """Return whether `text` is a whole sentence, if `following` is the next visible character."""
    core = text.rstrip(_CLOSERS + " ")
    end = core[-1:]
    if end in _UNSPACED_ENDS:
        return following not in _ENDS and following not in _CLOSERS
    if end not in _ENDS or " " not in text[len(core) :] or following != following.title():
        return False
    if end == ".":
        return not core.endswith("..") and not _needs_its_dot(core[:-1], following)
    return end != "…"


def _needs_its_dot(text: str, following: str) -> bool:
    """Return whether `text` ends with an abbreviation, or a number that may be an ordinal."""
    before, last = ["", "", *text.rsplit(maxsplit=2)][-2:]
    last = last.lstrip("\"'“‘«„([¿¡*_")
    if re.fullmatch(r"\d\d?", last):  # a day or a list item; a longer one is a year
        return not before or before[-1] in ",." or bool(_BEFORE_ORDINAL.fullmatch(before))
    return bool(
        _ABBREVIATION.fullmatch(last) or (following.isdigit() and _ABBREVIATION_BEFORE_NUMBER.fullmatch(last))
    )


def _tidy(text: str) -> str:
    """Apply `_RULES` to `text` over and over: what a removal joins may be markup again."""
    before = None
    while text != before:
        before = text
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
    return text.strip()


class Sentences:
    """Collects characters without markup into sentences.

    Attributes:
        finished: the sentences that are whole; whoever takes them empties the list.
        text: the open sentence.
    """

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.text = ""
        self._address_tail: str | None = None
        """While a URL is skipped: the punctuation that it ends with so far, as it may be the sentence's."""

    def say(self, text: str) -> None:
        """Add text to the open sentence; what ends it there moves it to `finished`."""
        for char in text:
            if self._address_tail is not None:
                if not _ADDRESS_END.match(char):
                    is_punctuation = char in _ENDS or char in _PAUSES or char in _CLOSERS
                    self._address_tail = (self._address_tail + char)[-8:] if is_punctuation else ""
                    continue
                self.end_address()
            for one in spoken_form(char):
                self._append(one)

    def _append(self, char: str) -> None:
        if char == " ":
            if self.text and not self.text.endswith(" "):
                self.text += " "
            return
        if char not in _MARKERS and _ends_sentence(self.text, char):
            core = self.text.rstrip(_MARKERS)
            self.text, opening = core, self.text[len(core) :]
            self.end_sentence()
            self.text = opening
        if char == "/" and self.text.endswith(":/"):
            self.text = self.text[:-2].rstrip(string.ascii_letters + string.digits + "+")
            self._address_tail = ""
        elif char.isalnum() and re.search(r"(?<![^\W_])www\.$", self.text[-5:], re.IGNORECASE):
            self.text = self.text[:-4]
            self._address_tail = ""
        else:
            self.text += char
        if len(self.text) >= MAX_CHARACTERS:
            self._cut()

    def _cut(self) -> None:
        pauses = [pause.end() for pause in _PAUSE.finditer(self.text, MAX_CHARACTERS // 2)]
        at = pauses[-1] if pauses else max(self.text.rfind(" "), 0) or len(self.text)
        self._finish(_tidy(self.text[:at]))
        self.text = self.text[at:].lstrip()

    def _finish(self, sentence: str) -> None:
        if any(char.isalnum() for char in sentence):
            self.finished.append(sentence)

    def end_address(self) -> None:
        """End the URL that is being skipped, if there is one; its last punctuation is the sentence's."""
        tail, self._address_tail = self._address_tail or "", None
        for char in tail:
            self._append(char)

    def end_sentence(self) -> None:
        """Finish the open sentence, with a full stop if it has no closing punctuation."""
        self.end_address()
        sentence = _tidy(self.text).rstrip(",;")
        self.text = ""
        if sentence.rstrip(_CLOSERS)[-1:] not in {*_ENDS, *_PAUSES}:
            sentence += "."
        self._finish(sentence)

    def end_line(self) -> None:
        """End the sentence if its punctuation says so; else the next line may go on with it."""
        self.say(" ")
        if self.text.rstrip(_CLOSERS + " ")[-1:] in _ENDS:
            self.end_sentence()
