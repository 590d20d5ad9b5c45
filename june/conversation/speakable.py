r"""Text that a voice can say, cut into sentences while the language model still writes.

A sentence must go out before its paragraph ends, and a Markdown parser such as markdown-it-py reads whole
blocks. So the markup is read here, one character at a time: the sentences are the same wherever the
stream was cut, and each character costs about the same.

What becomes of markup:

- A fenced code block, an HTML comment, a tag, a `<script>`: nothing. Inline code: its words.
- A link says its label, an image its alternative text. Citations "[1]", footnote marks, task boxes: nothing.
- A heading, list item, table row or paragraph ends a sentence, and gets a full stop if it has no closing
  punctuation. A line that starts with a small letter goes on with the line before it. The number of a list
  item is said. Indented text is text, not code.
- Markers of headings, quotes and rules, `\(…\)` and backslashes: nothing.

What stands for a single character, and where a sentence ends, is decided in `june.conversation.sentences`.
"""
# ruff: noqa: RUF001 - the look-alikes of ASCII are what this module is about

import html
import re
import string
from collections.abc import Callable, Generator

from june.conversation.sentences import Sentences, spoken_form

_BULLETS = frozenset("-+*•‣⁃∙·–—●○◦▪■")
_LINE_MARKERS = _BULLETS | frozenset("#> \t\r\u3000")
_TAG = re.compile(
    r"/?(?P<name>[A-Za-z][A-Za-z0-9-]*)(?:[\s/].*)?"
    r"|[A-Za-z][A-Za-z0-9+.-]*:\S*|[^\s@]+@[^\s@]+|[!?].*"  # autolinks, declarations
)
_LINE_TAG = re.compile("blockquote|br|details|div|d[lt]|h[1-6]|hr|li|ol|p|pre|summary|table|tr|ul")

_FENCE = 3
"""Marks that open a fenced code block, at least."""

_Reader = Generator[None, str, str]
"""Takes characters as they come; returns the first one that it has no use for."""


class SentenceStream:
    """Cuts a growing answer into sentences a voice can say; one stream for one answer."""

    def __init__(self) -> None:
        self._out = Sentences()
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
        """Return the sentences that `text` has finished: plain, each at most `MAX_CHARACTERS` long.

        The same sentences come out however an answer is cut into texts. A sentence is finished when
        the first character of the next one is there, or its line has ended.
        """
        for char in text:
            if spoken_form(char):
                self._document.send(char)
        finished, self._out.finished = self._out.finished, []
        return finished

    def finish(self) -> list[str]:
        """Return the sentences that are left when the answer is complete."""
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
        """Skip code up to a line that ends with the fence: models forget to give it a line of its own."""
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
        """Skip to the end mark, over lines too."""
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
        """Skip what may follow a link's label: `(…)` or `[…]`."""
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
    """Return all of `text` that a voice can say, as plain sentences; "" if there is nothing to say."""
    stream = SentenceStream()
    return " ".join(stream.feed(text) + stream.finish())
