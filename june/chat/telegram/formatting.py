"""Markdown as Telegram's HTML, by https://core.telegram.org/bots/api#html-style."""

import html
import re

from june.chat.formatting.markdown import read
from june.chat.formatting.splitting import (
    MarkedText,
    Marks,
    is_blank,
    kinds,
    split,
    utf16_length,
    with_markup,
)

RAW_BYTES_PER_UNIT = 4
"""A part's markup has at most this many bytes for each unit of its limit. Escapes and long links may make it
much longer than what is seen, and the server refuses a raw text of a size that its documentation does not
tell."""

_TAGS = {"bold": "b", "italic": "i", "strike": "s", "code": "code", "quote": "blockquote", "heading": "b"}


def telegram_parts(markdown: str, *, limit: int = 4096) -> list[str]:
    """Return Telegram's HTML in messages that each stand alone; empty if there is nothing to see.

    Args:
        markdown: what the model wrote, finished or not.
        limit: UTF-16 code units that are visible; the tags come on top.
    """

    def size(piece: MarkedText) -> float:
        raw_bytes = len(_render(piece).encode())
        return max(utf16_length(piece.text), raw_bytes / RAW_BYTES_PER_UNIT) / limit

    return [_render(piece) for piece in split(read(markdown), size, window=limit)]


def _tags(marks: Marks) -> list[tuple[str, str]]:
    """Return the opening and closing tag of each mark. Nothing may be in code, and code only in a quote."""
    found = kinds(marks)
    tags = []
    for kind, value in marks:
        if (
            kind == "marker"
            or (kind == "bold" and "heading" in found)
            or (kind == "code" and "link" in found)
        ):
            continue
        if kind not in {"code", "pre", "quote"} and (
            "pre" in found or ("code" in found and "link" not in found)
        ):
            continue
        if kind == "link":
            tags.append((f'<a href="{html.escape(value)}">', "</a>"))
        elif kind == "pre" and value:
            tags.append((f'<pre><code class="language-{value}">', "</code></pre>"))
        elif kind == "pre":
            tags.append(("<pre>", "</pre>"))
        else:
            tags.append((f"<{_TAGS[kind]}>", f"</{_TAGS[kind]}>"))
    return tags


def _render(piece: MarkedText) -> str:
    return "".join(
        closings + openings + html.escape(text, quote=False)
        for closings, openings, text, _ in with_markup(piece, _tags)
    )


def visible_telegram(html_text: str) -> str:
    """Return what a reader sees of a part."""
    return html.unescape(re.sub(r"<[^<>]*>", "", html_text))


_TOKEN = re.compile(
    r"<(?P<end>/?)(?P<tag>[a-z][a-z0-9-]*)(?P<attributes>[^<>]*)>|&(?P<entity>[^&;\s]*;?)|[<>]"
)
_ATTRIBUTES = {
    "a": re.compile(r' href="(?:https?://|tg://|mailto:)[^"]*"'),
    "code": re.compile(r'(?: class="language-[^"\s]+")?'),
    "blockquote": re.compile(r"(?: expandable)?"),
    "span": re.compile(r' class="tg-spoiler"'),
    "tg-emoji": re.compile(r' emoji-id="\d+"'),
} | dict.fromkeys(
    ["b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "tg-spoiler", "pre"], re.compile("")
)
_ENTITY = re.compile(r"(?:lt|gt|amp|quot|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_NEVER_IN_THEMSELVES = {"a", "blockquote", "code", "pre"}


def validate_telegram(html_text: str, *, limit: int = 4096) -> list[str]:
    """Return what is wrong with a part, one sentence each; empty if Telegram takes it and loses no mark.

    Covers the documented rules: tags, attributes, entities, balance, what may be nested, and length after
    the entities are parsed. Says nothing about whether a link's target exists.
    """
    problems = _markup_problems(html_text)
    text = visible_telegram(html_text)
    if is_blank(text):
        problems.append("There is nothing to see.")
    if utf16_length(text) > limit:
        problems.append(f"The text has {utf16_length(text)} UTF-16 code units, more than {limit}.")
    return problems


def _markup_problems(html_text: str) -> list[str]:
    problems = []
    open_tags: list[str] = []
    for token in _TOKEN.finditer(html_text):
        tag, entity = token["tag"], token["entity"]
        if entity is not None:
            if not _ENTITY.fullmatch(entity):
                problems.append(f"There is no entity &{entity} in Telegram's HTML.")
        elif not tag:
            problems.append(f"A {token[0]} in the text is not escaped.")
        elif tag not in _ATTRIBUTES:
            problems.append(f"Telegram knows no tag <{tag}>.")
        elif token["end"]:
            if not open_tags or open_tags.pop() != tag:
                problems.append(f"</{tag}> does not close what was opened last.")
        else:
            if not _ATTRIBUTES[tag].fullmatch(token["attributes"]):
                problems.append(f"<{tag}> does not have the attributes that Telegram wants.")
            if not _may_stand_in(tag, open_tags):
                problems.append(f"<{tag}> may not stand in <{open_tags[-1]}>.")
            open_tags.append(tag)
    return problems + [f"<{tag}> is not closed." for tag in open_tags]


def _may_stand_in(tag: str, outer: list[str]) -> bool:
    if tag == "code" and outer and outer[-1] == "pre":
        return True
    if tag in {"code", "pre"}:
        return set(outer) <= {"blockquote"}
    return not {"code", "pre"} & set(outer) and not (tag in _NEVER_IN_THEMSELVES and tag in outer)
