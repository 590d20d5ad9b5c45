"""Markdown as Discord shows it.

By https://support.discord.com/hc/articles/210298617 and the behaviour of its client, which reads markup
with regular expressions after simple-markdown: so emphasis is closed at each line's end, a backslash stands
before every character that might be markup, and a bare URL gets its angle brackets, which also keep Discord
from putting a preview below the answer.
"""

import re

from june.chat.formatting.markdown import read
from june.chat.formatting.splitting import MarkedText, Marks, is_blank, kinds, split, with_markup

_ZERO_WIDTH = "\u200b"
"""Keeps apart what would be markup together; `read` leaves none in the text."""

_AROUND = {"bold": "**", "italic": "*", "strike": "~~"}
_LITERAL = re.compile(
    r"(?P<url>https?://(?:[^\s<>*`\\|~\[\]]|~(?!~))*[^\s<>*`\\|~\[\].,;:!?'\"])"
    r"|(?P<special>[\\*_~`|\[\]<])"
    r"|(?P<mention>@)(?=everyone|here|[!&]?\d)",
    re.IGNORECASE,
)
_MENTION_SIGN = re.compile(r"@(?=everyone|here|[!&]?\d)")
_MUTED = f"@{_ZERO_WIDTH}"
_LINE_START = re.compile(r"(\s*)(?:([-+#>])(?=[#>]*(?:\s|$))|(\d+)([.)])(?=\s|$))")
_IN_URL = {ord(char): f"%{ord(char):02X}" for char in "()*|~`@\\"}


def discord_parts(markdown: str, *, limit: int = 2000) -> list[str]:
    """Return Discord's Markdown in messages that each stand alone; empty if there is nothing to see.

    Args:
        markdown: what the model wrote, finished or not.
        limit: code points, with all markup. Discord counts code points (discord/discord-api-docs#1315).
    """
    pieces = split(read(markdown), lambda piece: len(_render(piece)) / limit, window=limit)
    return [_render(piece) for piece in pieces]


def _render(piece: MarkedText) -> str:
    lines: list[str] = []
    in_code = False
    start = 0
    while start < len(piece.text):
        end = piece.text.find("\n", start) + 1 or len(piece.text)
        line = piece[start:end]
        quote = "> " if "quote" in kinds(line.marks[0]) else ""
        language = next((mark.value for mark in line.marks[0] if mark.kind == "pre"), None)
        if language is None:
            lines.append(quote + _line(line))
        else:
            if not in_code:
                lines.append(f"{quote}```{language}")
            lines.append(quote + _apart(line.text.removesuffix("\n")))
            in_code = line.text.endswith("\n") and "pre" in kinds(line.marks[-1])
            if not in_code:
                lines.append(f"{quote}```")
        start = end
    return "\n".join(lines)


def _apart(code: str) -> str:
    """Return code in which no fence ends: Discord knows none longer than three, and no escape."""
    return re.sub("`(?=``)", f"`{_ZERO_WIDTH}", code)


def _line(line: MarkedText) -> str:
    out = next((f"{mark.value} " for mark in line.marks[0] if mark.kind == "heading"), "")
    is_start = True
    for closings, openings, text, marks in with_markup(line, _markers):
        touch = closings and openings and closings[-1] == openings[0]
        out += closings + (_ZERO_WIDTH if touch else "") + openings
        if "marker" in kinds(marks):
            out += text.replace("•", "-")
            continue
        out += _code(text) if "code" in kinds(marks) else _escape(text, is_start=is_start and not openings)
        is_start = is_start and not text.strip() and not openings
    return out.rstrip("\n")


def _markers(marks: Marks) -> list[tuple[str, str]]:
    markers = []
    for kind, value in marks:
        if kind in _AROUND:
            markers.append((_AROUND[kind], _AROUND[kind]))
        elif kind == "link":
            markers.append(("[", f"]({value.translate(_IN_URL)})"))
    return markers


def _code(text: str) -> str:
    if "`" not in text:
        return f"`{text}`"
    return _escape(text, is_start=False) if "``" in text else f"`` {text} ``"


def _escape(text: str, *, is_start: bool) -> str:
    escaped = _LITERAL.sub(_escape_one, text)
    if is_start and (found := _LINE_START.match(escaped)):
        spaces, sign, number, dot = found.groups()
        escaped = spaces + (f"\\{sign}" if sign else f"{number}\\{dot}") + escaped[found.end() :]
    return escaped


def _escape_one(found: re.Match[str]) -> str:
    if url := found["url"]:
        while url.endswith(")") and url.count("(") < url.count(")"):
            url = url[:-1]
        return f"<{_MENTION_SIGN.sub(_MUTED, url)}>" + found["url"][len(url) :]
    return _MUTED if found["mention"] else f"\\{found['special']}"


_MARKUP = re.compile(
    r"""
    (?P<quote>(?:^>\ [^\n]*(?:\n|\Z))+)
    |```(?:[\w+.#-]*\n)?(?P<fence>.*?)```
    |(?P<ticks>`{1,2})(?!`)(?P<code>[^\n]+?)(?<!`)(?P=ticks)(?!`)
    |\\(?P<escaped>[^0-9A-Za-z\s])
    |<(?P<url>(?i:https?)://[^\s>]+)>
    |^(?:\#{1,3}|-\#)\ |\[|\]\([^\s()]*\)|[*_]+|~~|\|\||\u200b
    |^(?P<indent>\ *)-(?=\ |$)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


def visible_discord(text: str) -> str:
    """Return what a reader sees of a part."""
    return _MARKUP.sub(_seen, text).replace(_ZERO_WIDTH, "")


def _seen(found: re.Match[str]) -> str:
    if found["quote"]:
        return visible_discord(re.sub(r"^> ", "", found["quote"], flags=re.MULTILINE))
    if found["indent"] is not None:
        return found["indent"] + "•"
    return found["fence"] or found["code"] or found["escaped"] or found["url"] or ""


_ALIVE = re.compile(r"@(?:everyone|here)\b|<@[!&]?\d+>|(?<!\\)<#\d+>")


def validate_discord(text: str, *, limit: int = 2000) -> list[str]:
    """Return what is wrong with a part, one sentence each; empty if Discord takes it and it pings nobody.

    Discord refuses only what is empty or too long; what it cannot read as markup, it shows as it is.
    """
    problems = []
    outside = _MARKUP.sub(
        lambda found: found[0] if found["fence"] is None and not found["code"] else " ", text
    )
    if "```" in _MARKUP.sub("", text):
        problems.append("A code block is not closed.")
    if _ALIVE.search(outside):
        problems.append("A mention is alive.")
    if is_blank(visible_discord(text)):
        problems.append("There is nothing to see.")
    if len(text) > limit:
        problems.append(f"The text has {len(text)} characters, more than {limit}.")
    return problems
