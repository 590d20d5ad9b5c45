r"""Text that a voice can say, cut into sentences while the language model still writes.

A sentence must go out before its paragraph ends, and a Markdown parser such as markdown-it-py reads whole
blocks. So the markup is read here, one character at a time: the sentences are the same wherever the
stream was cut, and each character costs about the same.

What becomes of markup:

- A fenced code block, an HTML comment, a tag, a `<script>`: nothing. Inline code: its words.
- A link says its label, an image its alternative text. URLs and e-mail addresses: nothing; a bare domain
  name ("Node.js", "example.com") is a word. Citations "[1]", footnote marks, task boxes: nothing.
- A heading, list item, table row or paragraph ends a sentence, and gets a full stop if it has no closing
  punctuation. A line that starts with a small letter goes on with the line before it. The number of a list
  item is said. Table cells and arrows become commas. Indented text is text, not code.
- Markers of emphasis, headings, quotes, rules and `$…$` or `\(…\)`, brackets, braces, backslashes: nothing.
  Between operands `*` becomes "×"; before a number `~` becomes "≈" and `#` becomes "№".
- Emoji, and symbols that espeak-ng reads badly or not at all: nothing. Control, zero-width, private and
  surrogate characters: nothing. `[[`, where Piper reads phonemes, cannot appear: no bracket is kept.

A sentence ends at ".", "!" or "?" before a space and a character that is no small letter; at "。！？।؟" and
their like at once; at the end of a line. It does not end at initials, dotted or known abbreviations, an
ellipsis, or a number that may be an ordinal ("am 3. Mai"). In doubt two sentences stay together: that
is heard less than a sentence torn apart.
"""
# ruff: noqa: RUF001, RUF002 - the look-alikes of ASCII are what this module is about

import html
import re
import string
import unicodedata
from collections.abc import Callable, Generator
from functools import lru_cache

MAX_CHARACTERS = 200
"""Longest sentence; a longer one is cut at a pause or a word, so that one synthesis stays short."""

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

_BULLETS = frozenset("-+*•‣⁃∙·–—●○◦▪■")
_LINE_MARKERS = _BULLETS | frozenset("#> \t\r\u3000")
_READ_SYMBOLS = frozenset("°©®™№+±×÷−≈≤≥≠∞√∑∫¬=<>~")
"""What espeak-ng reads (tried with piper-tts 1.8), and three that `_RULES` still need."""
_INSTEAD = dict.fromkeys("[]{}\\`^", " ") | {"|": ", ", "•": ", ", "℃": "°C", "℉": "°F", "´": "'"}
_ADDRESS_END = re.compile('[\\s"<>|“”«»।؟\u2e80-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]')
"""A URL ends there; Chinese, Japanese and Korean follow it without a space."""
_TAG = re.compile(
    r"/?(?P<name>[A-Za-z][A-Za-z0-9-]*)(?:[\s/].*)?"
    r"|[A-Za-z][A-Za-z0-9+.-]*:\S*|[^\s@]+@[^\s@]+|[!?].*"  # autolinks, declarations
)
_LINE_TAG = re.compile("blockquote|br|details|div|d[lt]|h[1-6]|hr|li|ol|p|pre|summary|table|tr|ul")

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

_FENCE = 3
"""Marks that open a fenced code block, at least."""

_Reader = Generator[None, str, str]
"""Takes characters as they come; its value is the first one that it has no use for."""


@lru_cache(maxsize=4096)
def _plain(char: str) -> str:
    """What stands for a character in speech: itself, others, a space, or "" if it has no width."""
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
    """Whether `text` is a whole sentence, if `following` is the next visible character."""
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
    """Whether `text` ends with an abbreviation, or a number that may be an ordinal."""
    before, last = ["", "", *text.rsplit(maxsplit=2)][-2:]
    last = last.lstrip("\"'“‘«„([¿¡*_")
    if re.fullmatch(r"\d\d?", last):  # a day or a list item; a longer one is a year
        return not before or before[-1] in ",." or bool(_BEFORE_ORDINAL.fullmatch(before))
    return bool(
        _ABBREVIATION.fullmatch(last) or (following.isdigit() and _ABBREVIATION_BEFORE_NUMBER.fullmatch(last))
    )


def _tidy(text: str) -> str:
    """`text` by `_RULES`, over and over: what a removal joins may be markup again."""
    before = None
    while text != before:
        before = text
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
    return text.strip()


class _Sentences:
    """Collects characters without markup into sentences."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.text = ""
        """The open sentence."""
        self._address_tail: str | None = None
        """While a URL is skipped: the punctuation that it ends with so far, as it may be the sentence's."""

    def say(self, text: str) -> None:
        for char in text:
            if self._address_tail is not None:
                if not _ADDRESS_END.match(char):
                    is_punctuation = char in _ENDS or char in _PAUSES or char in _CLOSERS
                    self._address_tail = (self._address_tail + char)[-8:] if is_punctuation else ""
                    continue
                self.end_address()
            for plain in _plain(char):
                self._append(plain)

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
        tail, self._address_tail = self._address_tail or "", None
        for char in tail:
            self._append(char)

    def end_sentence(self) -> None:
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


class SentenceStream:
    """Cuts a growing answer into sentences a voice can say; one stream for one answer."""

    def __init__(self) -> None:
        self._out = _Sentences()
        self._open_brackets = 0
        self._constructs: dict[str, Callable[[], _Reader]] = {
            "`": self._code,
            "~": self._tildes,
            "<": self._tag,
            "&": self._entity,
            "[": self._bracket,
            "]": self._closing_bracket,
            "!": self._exclamation,
            "\\": self._backslash,
        }
        self._document = self._read_document()
        next(self._document)

    def feed(self, text: str) -> list[str]:
        """The sentences that `text` has finished: plain, each at most `MAX_CHARACTERS` long.

        The same sentences come out however an answer is cut into texts. A sentence is finished when
        the first character of the next one is there, or its line has ended.
        """
        for char in text:
            if _plain(char):
                self._document.send(char)
        finished, self._out.finished = self._out.finished, []
        return finished

    def finish(self) -> list[str]:
        """The sentences that are left when the answer is complete."""
        finished = self.feed("\n")  # the end of a line settles every construct
        self._out.end_sentence()
        return finished + self._out.finished

    def _read_document(self) -> Generator[None, str, None]:
        char = yield
        while True:
            is_block = False  # a heading or table row, which no line goes on with
            while char in _LINE_MARKERS:
                is_block |= char == "#"
                if char in _BULLETS:
                    self._out.end_sentence()
                marker, char = char, (yield)
                if marker in _BULLETS and not char.isspace():
                    self._out.say(marker)
                    break
            else:
                is_block |= char == "|"
                if is_block or not char.islower():
                    self._out.end_sentence()
            self._open_brackets = 0
            while char != "\n":
                if construct := self._constructs.get(char):
                    char = yield from construct()
                else:
                    self._out.say(char)
                    char = yield
            if is_block:
                self._out.end_sentence()
            else:
                self._out.end_line()
            char = yield

    def _run(self, mark: str) -> Generator[None, str, tuple[int, str]]:
        length, char = 1, (yield)
        while char == mark:
            length += 1
            char = yield
        return length, char

    def _code(self) -> _Reader:
        opening, char = yield from self._run("`")
        info = ""
        while opening >= _FENCE and char not in "`\n":
            info += char
            char = yield
        if opening >= _FENCE and char == "\n":
            return (yield from self._fence("`", opening))
        self._out.say(info)
        closing = 0
        while char != "\n" and closing != opening:
            if char == "`":
                closing, char = yield from self._run("`")
                if closing != opening:
                    self._out.say("`")
            else:
                self._out.say(char)
                char = yield
        self._out.end_address()
        return char

    def _tildes(self) -> _Reader:
        length, char = yield from self._run("~")
        if length >= _FENCE and not self._out.text:  # at the start of a line; elsewhere people draw with them
            return (yield from self._fence("~", length))
        self._out.say("~" * length)
        return char

    def _fence(self, mark: str, opening: int) -> _Reader:
        """Skips code up to a line that ends with the fence: models forget to give it a line of its own."""
        self._out.end_sentence()
        length, char = 0, (yield)
        while char != "\n" or length < opening:
            if char == mark:
                length += 1
            elif char == "\n" or not char.isspace():
                length = 0
            char = yield
        return char

    def _tag(self) -> _Reader:
        tag, char = "", (yield)
        if char.isascii() and (char.isalpha() or char in "/!?"):
            while char not in "<>\n":
                tag += char
                char = yield
                if tag == "!--":
                    return (yield from self._skip_past("-->", "--" + char))
        match = _TAG.fullmatch(tag)
        if char != ">" or not match:
            self._out.say("<" + tag)
            return char
        name = (match["name"] or "").lower()
        if name in {"script", "style"} and tag[0] != "/":
            return (yield from self._skip_past(f"</{name}>"))
        if name in {"td", "th"}:
            self._out.say("|")
        elif _LINE_TAG.fullmatch(name):
            self._out.end_sentence()
        self._out.end_address()
        return (yield)

    def _skip_past(self, end: str, skipped: str = "") -> _Reader:
        """Skips over lines too."""
        while not skipped.endswith(end):
            skipped = (skipped + (yield).lower())[-len(end) :]
        return (yield)

    def _entity(self) -> _Reader:
        name, char = "", (yield)
        while char.isascii() and (char.isalnum() or char == "#"):
            name += char
            char = yield
        if char != ";":
            self._out.say("&" + name)
            return char
        self._out.say(html.unescape(f"&{name};"))
        return (yield)

    def _bracket(self) -> _Reader:
        self._out.say("[")
        char = yield
        if char == "^":
            return (yield from self._skip_label())
        mark = ""
        while char in " xX0123456789":
            mark += char
            char = yield
        if char == "]" and (mark.isdigit() or mark in {" ", "x", "X"}):  # a citation, a task box
            return (yield from self._destination())
        self._out.say(mark)
        self._open_brackets += 1
        return char

    def _closing_bracket(self) -> _Reader:
        if not self._open_brackets:
            self._out.say("]")
            return (yield)
        self._open_brackets -= 1
        return (yield from self._destination())

    def _destination(self) -> _Reader:
        """Skips what may follow a link's label: `(…)` or `[…]`."""
        self._out.end_address()
        char = yield
        if char == "[":
            return (yield from self._skip_label())
        if char != "(":
            return char
        depth, escaped = 1, False
        while depth:
            char = yield
            if char == "\n":
                return char
            if not escaped:
                depth += (char == "(") - (char == ")")
            escaped = char == "\\" and not escaped
        return (yield)

    def _skip_label(self) -> _Reader:
        char = yield
        while char not in "]\n":
            char = yield
        return char if char == "\n" else (yield)

    def _exclamation(self) -> _Reader:
        char = yield
        if char != "[":  # an image
            self._out.say("!")
        return char

    def _backslash(self) -> _Reader:
        char = yield
        if char not in string.punctuation:
            self._out.say(" ")
            return char
        if char not in "()[]":  # LaTeX's marks
            self._out.say(char)
        return (yield)


def speakable(text: str) -> str:
    """All of `text` that a voice can say, as plain sentences; "" if there is nothing to say."""
    stream = SentenceStream()
    return " ".join(stream.feed(text) + stream.finish())
