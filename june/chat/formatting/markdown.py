"""What the model's Markdown says, for any chat app: text with marks on it.

CommonMark with GitHub's tables and strikethrough, but nothing that a model writes gets lost:

- Raw HTML is text. So are link reference definitions (`[1]: https://…`), which a model writes as a list of
  sources and CommonMark would hide; and a line of dashes under a paragraph is a rule, not a heading.
- A list item begins with "• " or its number. A heading below level 3 or in a list is bold. A quote in a
  quote is one quote.
- A table that a phone can show is code, aligned in columns; a wide one, or one with links, has a line
  "head: cell" for each cell. Cells beyond the head's stay in the last one.
- A link leads to http or https; an image is a link with its alternative text. Where no chat app would make
  a link (mail and tg addresses, hosts without a dot), or where the label looks like another address, the
  target is written after the label. Any other scheme is left as the model wrote it.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, list_block, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.token import Token

from june.chat.formatting.splitting import Kind, Mark, MarkedText, Marks, kinds

DEEPEST_BLOCK = 20
"""Nested quotes; lists count twice. Deeper markers are text: markdown-it leaves out what is nested deeper
than its `maxNesting`, and its time grows with each level."""

LONGEST_URL = 1000
"""Characters; a longer one stays text, so that a link always fits in one message."""

WIDEST_TABLE = 48
"""Columns of a fixed-width font; about what a phone shows in one line."""

_SCHEME = re.compile(r"(?:https?://|tg://|mailto:)\S+", re.IGNORECASE)
_PUBLIC = re.compile(r"https?://(?:[^/?#]*@)?(?:[^/?#@:]*\.[^/?#@:]|\[)", re.IGNORECASE)
"""What Telegram links: TDLib's `check_link_impl` wants a dot in the host, or IPv6."""

_SPACES = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], " ")
_UNSEEN = dict.fromkeys([0x200B, *range(0x202A, 0x202F)], "")
"""Zero-width space, with which Discord's markup is kept apart; embeddings, which Telegram takes out."""
_INLINE = str.maketrans(_SPACES | _UNSEEN)
_CODE = str.maketrans({key: value for key, value in _SPACES.items() if chr(key) not in "\t\n"} | _UNSEEN)

_STYLES: dict[str, Kind] = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}
_RULE = "─" * 10
_MOST_INDENTATION = 16
_LARGE_HEADINGS = 3
_LANGUAGE = re.compile(r"[\w+#.-]{1,32}", re.ASCII)


def _quote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return state.level < DEEPEST_BLOCK and blockquote(state, start, end, silent)


def _list(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return state.level < DEEPEST_BLOCK and list_block(state, start, end, silent)


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Apply markdown-it's rule, but keep the cells beyond the head's in the last cell."""
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    columns = sum(token.type == "th_open" for token in state.tokens[first:])
    cells: list[str] = []
    last: Token | None = None
    for token in state.tokens[first:]:
        if token.type == "tr_open" and token.map:
            cells = escapedSplit(getLine(state, token.map[0]).strip().removeprefix("|").removesuffix("|"))
        elif token.type == "inline":
            last = token
        elif token.type == "tr_close" and last and len(cells) > columns:
            last.content = "|".join(cells[columns - 1 :]).strip()
    return True


class _Parser(MarkdownIt):
    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False, "maxNesting": DEEPEST_BLOCK + 5})
        self.enable(["table", "strikethrough"]).disable(
            ["reference", "lheading", "html_block", "html_inline"]
        )
        inside = ["paragraph", "reference", "blockquote", "list"]  # what each rule may end, as in markdown-it
        self.block.ruler.at("blockquote", _quote, {"alt": inside})
        self.block.ruler.at("list", _list, {"alt": inside[:3]})
        self.block.ruler.at("table", _table, {"alt": inside[:2]})

    def validateLink(self, url: str) -> bool:  # noqa: N802 - markdown-it's name
        return len(url) <= LONGEST_URL and bool(_SCHEME.fullmatch(url))


_PARSER = _Parser()


def read(markdown: str) -> MarkedText:
    """Return the text that a reader should see, and what each of its characters is.

    Lone surrogates become "�"; control characters, spaces; zero-width spaces, nothing.
    """
    text = markdown.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    writer = _Writer()
    writer.write_blocks(iter(_PARSER.parse(text)))
    return writer.written()


class _Writer:
    """Writes a document's blocks one after the other."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._marks: list[Marks] = []
        self._open: Marks = ()
        self._outer: list[Marks] = []
        self._indents: list[int] = []
        """The width of the marker of each open list item."""
        self._numbers: list[int | None] = []
        """The next number of each open list; None in a bulleted one."""
        self._gap: str | None = ""
        """What separates the next block from the last; None after the marker of a list item."""

    def written(self) -> MarkedText:
        return MarkedText("".join(self._text), self._marks)

    def _add(self, text: str, *marks: Mark) -> None:
        self._text.append(text)
        self._marks.extend([self._open + marks] * len(text))

    def _enter(self, mark: Mark) -> None:
        self._outer.append(self._open)
        if mark.kind not in kinds(self._open):
            self._open += (mark,)

    def _leave(self) -> None:
        self._open = self._outer.pop()

    def _begin(self, *, is_text: bool = False) -> None:
        """Separate a block from the last; text may share a list item's first line, and is indented."""
        if self._gap is not None:
            self._add(self._gap)
            if is_text:
                self._add(self._indentation())
        elif not is_text:
            self._add("\n")
        self._end()

    def _end(self) -> None:
        self._gap = "\n" if self._indents else "\n\n"

    def _indentation(self) -> str:
        return " " * min(sum(self._indents), _MOST_INDENTATION)

    def write_blocks(self, tokens: Iterator[Token]) -> None:
        for token in tokens:
            if token.type == "table_open":
                self._write_table(tokens)
            elif token.nesting > 0:
                self._open_block(token)
            elif token.nesting < 0:
                self._close_block(token)
            else:
                self._write_leaf(token)

    def _open_block(self, token: Token) -> None:
        match token.type:
            case "paragraph_open":
                self._begin(is_text=True)
            case "heading_open":
                self._begin(is_text=True)
                large = len(token.markup) <= _LARGE_HEADINGS and not self._indents
                self._enter(Mark("heading", token.markup) if large else Mark("bold"))
            case "blockquote_open":
                self._begin()
                self._enter(Mark("quote"))
                self._gap = ""
            case "bullet_list_open":
                self._begin()
                self._numbers.append(None)
                self._gap = ""
            case "ordered_list_open":
                self._begin()
                self._numbers.append(int(token.attrs.get("start", 1)))
                self._gap = ""
            case "list_item_open":
                self._begin_item()

    def _close_block(self, token: Token) -> None:
        match token.type:
            case "heading_close":
                self._leave()
                self._gap = "\n"
            case "blockquote_close":
                self._leave()
                self._end()
            case "bullet_list_close" | "ordered_list_close":
                self._numbers.pop()
                self._end()
            case "list_item_close":
                self._indents.pop()
                self._gap = "\n"

    def _write_leaf(self, token: Token) -> None:
        match token.type:
            case "inline":
                self._write_inline(token.children or [])
            case "fence" | "code_block":
                language = (token.info.split() or [""])[0]
                self._write_code(token.content, language if _LANGUAGE.fullmatch(language) else "")
            case "hr":
                self._begin(is_text=True)
                self._add(_RULE)

    def _begin_item(self) -> None:
        number = self._numbers[-1]
        marker = "• " if number is None else f"{number}. "
        self._add((self._gap or "") + self._indentation())
        self._add(marker, Mark("marker"))
        if number is not None:
            self._numbers[-1] = number + 1
        self._indents.append(len(marker))
        self._gap = None

    def _write_code(self, code: str, language: str) -> None:
        code = code.translate(_CODE).strip("\n")
        if code.strip():
            self._begin()
            self._add(code, Mark("pre", language))

    def _write_table(self, tokens: Iterator[Token]) -> None:
        rows: list[list[Sequence[Token]]] = []
        for token in tokens:
            if token.type == "table_close":
                break
            if token.type == "tr_open":
                rows.append([])
            elif token.type == "inline":
                rows[-1].append(token.children or [])
        texts = [[_plain(cell).strip() for cell in row] for row in rows]
        widths = [max(map(_width, column)) for column in zip(*texts, strict=True)]
        linked = any(token.type in {"link_open", "image"} for row in rows for cell in row for token in cell)
        if linked or sum(widths) + 3 * (len(widths) - 1) > WIDEST_TABLE:
            self._write_rows(rows)
            return
        lines = [
            " | ".join(text + " " * (width - _width(text)) for text, width in zip(row, widths, strict=True))
            for row in texts
        ]
        lines.insert(1, "-+-".join("-" * width for width in widths))
        self._write_code("\n".join(line.rstrip() for line in lines), "")

    def _write_rows(self, rows: list[list[Sequence[Token]]]) -> None:
        heads, *body = rows
        self._begin()
        gap = self._indentation()
        for row in body or [heads]:
            for head, cell in zip(heads, row, strict=True):
                if not _plain(cell).strip():
                    continue
                self._add(gap)
                if head is not cell:
                    self._enter(Mark("bold"))
                    self._write_inline(head)
                    self._leave()
                    self._add(": ")
                self._write_inline(cell)
                gap = "\n" + self._indentation()
            gap = "\n\n" + self._indentation()

    def _write_inline(self, tokens: Sequence[Token]) -> None:
        links: list[tuple[str, int, int]] = []
        for token in tokens:
            match token.type:
                case "softbreak" | "hardbreak":
                    self._add("\n" + self._indentation())
                case "code_inline":
                    self._add(token.content.translate(_INLINE), Mark("code"))
                case "strong_open" | "em_open" | "s_open":
                    self._enter(Mark(_STYLES[token.type]))
                case "link_open" if token.info != "auto":
                    links.append((str(token.attrs["href"]), len(self._text), len(self._marks)))
                    self._enter(Mark("link", links[-1][0]))
                case "link_close" if token.info != "auto":
                    self._leave()
                    self._end_link(*links.pop())
                case "strong_close" | "em_close" | "s_close":
                    self._leave()
                case "image" if links:
                    self._add(_plain([token]))
                case "image":
                    url, chunk, start = str(token.attrs["src"]), len(self._text), len(self._marks)
                    self._add(_plain([token]), Mark("link", url))
                    self._end_link(url, chunk, start)
                case _:
                    self._add(token.content.translate(_INLINE))

    def _end_link(self, url: str, chunk: int, start: int) -> None:
        """Show the target where the label leads nowhere, or names an address itself."""
        label = "".join(self._text[chunk:])
        address = url.removeprefix("mailto:")
        if label.strip() and "://" not in label and _PUBLIC.match(url):
            return
        for at in range(start, len(self._marks)):
            self._marks[at] = tuple(mark for mark in self._marks[at] if mark.kind != "link")
        if not label.strip():
            self._add(address)
        elif address.rstrip("/") not in label and _PARSER.normalizeLink(label) != url:
            self._add(f" ({address})")


def _plain(tokens: Sequence[Token]) -> str:
    """Return the words of inline tokens."""
    return "".join(
        _plain(token.children or []) if token.type == "image" else token.content.translate(_INLINE)
        for token in tokens
    )


def _width(text: str) -> int:
    """Return how many columns a text takes in a fixed-width font."""
    return sum(
        2
        if unicodedata.east_asian_width(char) in "WF"
        else unicodedata.category(char) not in {"Mn", "Me", "Cf"}
        for char in text
    )
