"""What becomes of the model's Markdown in each chat app."""

import itertools
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import discord
import pytest
import simcord
from aiogram import Bot
from aiogram.enums import ParseMode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from teremok import MockedSession

from june.chat.discord.formatting import discord_parts, validate_discord, visible_discord
from june.chat.discord.settings import DiscordSettings
from june.chat.formatting import visible
from june.chat.formatting.splitting import is_blank
from june.chat.telegram.formatting import telegram_parts, validate_telegram, visible_telegram


class Platform(NamedTuple):
    """The functions of one chat app."""

    parts: Callable[..., list[str]]
    validate: Callable[..., list[str]]
    visible: Callable[[str], str]


TELEGRAM = Platform(telegram_parts, validate_telegram, visible_telegram)
DISCORD = Platform(discord_parts, validate_discord, visible_discord)
both = pytest.mark.parametrize("platform", [TELEGRAM, DISCORD], ids=["telegram", "discord"])

EXAMPLES = [
    # what the model wrote, Telegram's HTML, Discord's markdown
    ("plain", "plain", "plain"),
    ("**b** *i* ~~s~~ `c`", "<b>b</b> <i>i</i> <s>s</s> <code>c</code>", "**b** *i* ~~s~~ `c`"),
    ("***both***", "<i><b>both</b></i>", "***both***"),
    ("**a *b* c**", "<b>a <i>b</i> c</b>", "**a *b* c**"),
    ("**a***b*", "<b>a</b><i>b</i>", "**a**\u200b*b*"),
    ("**a `b` c**", "<b>a </b><code>b</code><b> c</b>", "**a `b` c**"),
    ("1 < 2 & 3 > 2", "1 &lt; 2 &amp; 3 &gt; 2", r"1 \< 2 & 3 > 2"),
    ("<b>raw</b>", "&lt;b&gt;raw&lt;/b&gt;", r"\<b>raw\</b>"),
    ("one\ntwo  \nthree", "one\ntwo\nthree", "one\ntwo\nthree"),
    ("one\n\n\n\ntwo", "one\n\ntwo", "one\n\ntwo"),
    ("# T\ntext", "<b>T</b>\ntext", "# T\ntext"),
    ("#### T\ntext", "<b>T</b>\ntext", "**T**\ntext"),
    ("text\n---\nmore", "text\n\n──────────\n\nmore", "text\n\n──────────\n\nmore"),
    ("- a\n- b\n  1. c\n  2. d", "• a\n• b\n  1. c\n  2. d", "- a\n- b\n  1. c\n  2. d"),
    ("* a\n\n  b\n* c", "• a\n  b\n• c", "- a\n  b\n- c"),
    ("7) a\n8) b", "7. a\n8. b", "7. a\n8. b"),
    ("- a\n\n  ```\n  x\n  ```", "• a\n<pre>x</pre>", "- a\n```\nx\n```"),
    ("> a\n> > b\n\nc", "<blockquote>a\n\nb</blockquote>\n\nc", "> a\n> \n> b\n\nc"),
    ("```py\nx < 1\n```", '<pre><code class="language-py">x &lt; 1</code></pre>', "```py\nx < 1\n```"),
    ('```a b"c\nx\n```', '<pre><code class="language-a">x</code></pre>', "```a\nx\n```"),
    ("````\n```\nx\n```\n````", "<pre>```\nx\n```</pre>", "```\n`\u200b``\nx\n`\u200b``\n```"),
    ("`` a`b ``", "<code>a`b</code>", "`` a`b ``"),
    ("``` a``b ```", "<code>a``b</code>", r"a\`\`b"),
    ("[l](https://a.bc/d)", '<a href="https://a.bc/d">l</a>', "[l](https://a.bc/d)"),
    (
        "[w](https://a.bc/d_(e)?f=1&g=2)",
        '<a href="https://a.bc/d_(e)?f=1&amp;g=2">w</a>',
        "[w](https://a.bc/d_%28e%29?f=1&g=2)",
    ),
    ("[**l**](https://a.bc)", '<a href="https://a.bc"><b>l</b></a>', "[**l**](https://a.bc)"),
    ("[`l`](https://a.bc)", '<a href="https://a.bc">l</a>', "[`l`](https://a.bc)"),
    ("![alt](https://a.bc/d.png)", '<a href="https://a.bc/d.png">alt</a>', "[alt](https://a.bc/d.png)"),
    ("![](https://a.bc/d.png)", "https://a.bc/d.png", "<https://a.bc/d.png>"),
    ("https://a.bc/d_e_f.", "https://a.bc/d_e_f.", "<https://a.bc/d_e_f>."),
    ("[m](mailto:a@b.cd) <a@b.cd>", "m (a@b.cd) a@b.cd", "m (a@b.cd) a@b.cd"),
    ("[local](http://localhost:80/)", "local (http://localhost:80/)", "local (<http://localhost:80/>)"),
    ("[https://a.bc](https://a.bc)", "https://a.bc", "<https://a.bc>"),
    ("[https://a.bc](https://d.ef)", "https://a.bc (https://d.ef)", "<https://a.bc> (<https://d.ef>)"),
    ("[evil](javascript:x)", "[evil](javascript:x)", r"\[evil\](javascript:x)"),
    ("a [1]\n\n[1]: https://b.cd", "a [1]\n\n[1]: https://b.cd", "a \\[1\\]\n\n\\[1\\]: <https://b.cd>"),
    (
        "| a | bc |\n|---|:-:|\n| def | g |",
        "<pre>a   | bc\n----+---\ndef | g</pre>",
        "```\na   | bc\n----+---\ndef | g\n```",
    ),
    ("|a|b|\n|-|-|\n|c|d|e|", "<pre>a | b\n--+----\nc | d|e</pre>", "```\na | b\n--+----\nc | d|e\n```"),
    (
        "|a|b|\n|-|-|\n|c|[d](https://e.fg)|\n|h||",
        '<b>a</b>: c\n<b>b</b>: <a href="https://e.fg">d</a>\n\n<b>a</b>: h',
        "**a**: c\n**b**: [d](https://e.fg)\n\n**a**: h",
    ),
    (r"\*a\* 2 * 3 _ | a_b", "*a* 2 * 3 _ | a_b", r"\*a\* 2 \* 3 \_ \| a\_b"),
    (r"\- a", "- a", r"\- a"),
    (r"\# a", "# a", r"\# a"),
    (r"\> a", "&gt; a", r"\> a"),
    (r"1\. a", "1. a", r"1\. a"),
    ("- \\# a", "• # a", "- \\# a"),
    ("@everyone <@12> <#3>", "@everyone &lt;@12&gt; &lt;#3&gt;", "@\u200beveryone \\<@\u200b12> \\<#3>"),
    ("half a **word", "half a **word", r"half a \*\*word"),
    ("half ```js\nx", "half ```js\nx", "half \\`\\`\\`js\nx"),
    ("```js\nhalf", '<pre><code class="language-js">half</code></pre>', "```js\nhalf\n```"),
    ("a\ud800\x00&nbsp;b", "a\ufffd\ufffd\xa0b", "a\ufffd\ufffd\xa0b"),
]


@pytest.mark.parametrize(("markdown", "telegram", "discord_text"), EXAMPLES)
def test_markdown_is_written_in_each_apps_own_markup(markdown: str, telegram: str, discord_text: str) -> None:
    assert telegram_parts(markdown) == [telegram]
    assert discord_parts(markdown) == [discord_text]


@both
@pytest.mark.parametrize("nothing", ["", " \n\t", "\u200b\u2060", "&#8203;", "#", "```\n\n```", "\u2800"])
def test_what_shows_nothing_is_no_message(platform: Platform, nothing: str) -> None:
    assert platform.parts(nothing) == []


NASTY = [
    *"*_~`|[](){}<>#+-=.!&\\\"'\n :@/",
    *[
        "**",
        "__",
        "~~",
        "```",
        "~~~",
        "||",
        "\n\n",
        "\n```py\n",
        "\n- ",
        "\n  - ",
        "\n1. ",
        "\n   2) ",
        "\n> ",
    ],
    *[
        "\n>> ",
        "\n# ",
        "\n#### ",
        "\n---\n",
        "\n    ",
        "  \n",
        "\\\n",
        "\n|a|b|\n|-|-|\n|",
        " | ",
        "|\n|",
        "-# ",
    ],
    *[
        "[a](https://b.cd/e_(f)) ",
        "](http://g.hi)",
        "![x](https://j.k)",
        "https://l.mn/o_p*q ",
        "<mailto:r@s.tu>",
    ],
    *[
        "[y](tg://z)",
        "[https://1.2](https://3.4)",
        "<b>",
        "</i>",
        "<!-- ",
        "&amp;",
        "&#x202e;",
        "&#10;",
        "&bogus;",
    ],
    *[
        "@everyone",
        "@here",
        "<@1>",
        "<@&2>",
        "<#3>",
        "<:e:4>",
        "word",
        "two words",
        "Ende. Anfang",
        "1. ",
        "x" * 40,
    ],
    *[
        "👨\u200d👩\u200d👧\u200d👦",
        "🇩🇪🇫🇷",
        "👍🏽",
        "e\u0301",
        "שלום",
        "\u202bמ\u202c",
        "你好。",
        "\u200d",
        "\u200b",
    ],
    *["\ud800", "\udfff", "\x00", "\x07", "\t", "\r\n", "\x85", "\u2028", "\ufeff", "\xa0", "\u2800"],
]
nasty = st.lists(st.sampled_from(NASTY), max_size=60).map("".join)
texts = st.one_of(nasty, nasty, st.text(max_size=200), st.lists(st.one_of(nasty, st.text())).map("\n\n".join))


def check(platform: Platform, markdown: str, limit: int) -> list[str]:
    parts = platform.parts(markdown, limit=limit)
    for part in parts:
        assert platform.validate(part, limit=limit) == [], part
    intended = visible(markdown)
    delivered = [platform.visible(part) for part in parts]
    if parts or visible_letters(intended):
        assert with_ink("".join(delivered)) == with_ink(intended)
    if max(map(len, intended.split()), default=0) <= limit // 16:
        assert " ".join(delivered).split() == (intended.split() if parts else [])
    return parts


def with_ink(text: str) -> str:
    """Return the characters that a reader sees; the others may go where a text is cut."""
    return "".join(char for char in text if not is_blank(char))


def visible_letters(text: str) -> bool:
    return any(char.isalnum() for char in text)


@both
@settings(max_examples=200, deadline=None)
@given(markdown=texts, limit=st.sampled_from([64, 100, 700]))
@example(markdown="> " * 50 + "deep " * 50, limit=64)
@example(markdown="".join("  " * depth + f"- {depth}\n" for depth in range(50)), limit=64)
@example(markdown="- " * 50 + "deep", limit=64)
@example(markdown=f"[{'label ' * 30}](https://a.bc/{'d' * 900})", limit=64)
@example(markdown="```" + "language" * 50 + "\ncode\n```", limit=64)
@example(markdown="&<>" * 300 + "**" + "_*`" * 200, limit=100)
@example(markdown="HTTP://0", limit=64)
@example(markdown="0" * 48 + "[[HTTP://0  \ufeff", limit=64)
def test_every_part_is_valid_and_no_word_is_lost(platform: Platform, markdown: str, limit: int) -> None:
    check(platform, markdown, limit)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([piece for piece in NASTY if not set(piece) & set("`~(:@&")]), max_size=60
    )
)
@example(pieces=["> "] * 50)
@example(pieces=["- "] * 50)
@example(pieces=["\n" + " " * 2 * depth + "- " for depth in range(50)])
@example(pieces=["|a|b|\n|-|-|\n", "|", "|", "|", "|"])
@example(pieces=["\n---\n", "\n---\n"])
@example(pieces=[" | ", "x" * 40, "\n---\n", "  \n"])
def test_every_word_that_is_not_markup_is_meant_to_be_seen(pieces: list[str]) -> None:
    markdown = "".join(f"{piece}word{number}." for number, piece in enumerate(pieces))
    seen = re.findall(r"word\d+\.", visible(markdown))  # a wide table repeats its heads with each cell
    assert list(dict.fromkeys(seen)) == re.findall(r"word\d+\.", markdown)


@both
@settings(max_examples=40, deadline=None)
@given(markdown=nasty, limit=st.just(2000))
def test_whatever_is_written_so_far_is_valid(platform: Platform, markdown: str, limit: int) -> None:
    for end in range(0, len(markdown), 7):
        check(platform, markdown[:end], limit)


@both
@settings(max_examples=20, deadline=None)
@given(markdown=nasty.filter(str.strip))
def test_long_texts_stay_whole(platform: Platform, markdown: str) -> None:
    check(platform, (markdown + "\n\n") * (3000 // len(markdown) + 1), 1024)


@pytest.mark.parametrize(
    ("markdown", "parts"),
    [
        ("one two\nthree.\n\nfour five. six", ["one two\nthree.", "four five. six"]),
        ("one two three\nfour five six.", ["one two three", "four five six."]),
        ("One two thr. Four five six seven", ["One two thr.", "Four five six seven"]),
        ("aaaa bbbb cccc dddd eeee", ["aaaa bbbb cccc dddd", "eeee"]),
        ("a" * 45, ["a" * 20, "a" * 20, "a" * 5]),
        ("👨\u200d👩\u200d👧\u200d👦" * 3, ["👨\u200d👩\u200d👧\u200d👦"] * 3),
        ("x" * 19 + "👍🏽", ["x" * 19, "👍🏽"]),
        ("x" * 19 + "e\u0301", ["x" * 19, "e\u0301"]),
        ("x" + "🇩🇪" * 6, ["x" + "🇩🇪" * 4, "🇩🇪" * 2]),
        ("**aaaa bbbb** cccc *dddd eeee*", ["<b>aaaa bbbb</b> cccc <i>dddd</i>", "<i>eeee</i>"]),
        (
            "```c\nint a = 1;\nint b = 2;\n```",
            [
                '<pre><code class="language-c">int a = 1;</code></pre>',
                '<pre><code class="language-c">int b = 2;</code></pre>',
            ],
        ),
    ],
)
def test_the_cut_is_at_the_best_place(markdown: str, parts: list[str]) -> None:
    assert telegram_parts(markdown, limit=20) == parts


def test_a_discord_fence_is_closed_and_opened_again() -> None:
    code = "\n".join(f"line {number}" for number in range(9))
    assert discord_parts(f"```py\n{code}\n```", limit=50) == [
        "```py\nline 0\nline 1\nline 2\nline 3\nline 4\n```",
        "```py\nline 5\nline 6\nline 7\nline 8\n```",
    ]


def test_telegram_counts_what_is_visible_in_utf16() -> None:
    assert [len(part) for part in telegram_parts("😀" * 2048)] == [2048]
    assert len(telegram_parts("😀" * 2049)) == 2
    assert len(telegram_parts("**" + "a" * 4096 + "**")) == 1


def test_discord_counts_code_points_and_markup() -> None:
    assert len(discord_parts("😀" * 2000)) == 1
    assert len(discord_parts("😀" * 2001)) == 2
    assert len(discord_parts("**" + "a" * 1997 + "**")) == 2


@both
@pytest.mark.parametrize(
    "piece",
    ["x", "a**b", "[", "![", "[a](", "`a", ">", "- a\n", "1|2\n", "&", "!", "\u200d", "a|b\n-|-\n1|2|3\n"],
)
def test_work_grows_with_the_length_alone(platform: Platform, piece: str) -> None:
    few, many = (calls(platform.parts, piece * (length // len(piece))) for length in (1_000, 10_000))
    assert many <= 15 * few


def calls(function: Callable[[str], object], text: str) -> int:
    """How many functions a call comes to: its work, whatever else the machine does."""
    count = itertools.count()
    sys.setprofile(lambda *_: next(count))
    try:
        function(text)
    finally:
        sys.setprofile(None)
    return next(count)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ("<u>a</u>", ""),
        ("<h1>a</h1>", "Telegram knows no tag <h1>."),
        ("<b>a", "<b> is not closed."),
        ("<b><i>a</b></i>", "</b> does not close what was opened last."),
        ("a</b>", "</b> does not close what was opened last."),
        ("a &nbsp; b", "There is no entity &nbsp; in Telegram's HTML."),
        ("a & b", "There is no entity & in Telegram's HTML."),
        ("a < b", "A < in the text is not escaped."),
        ("<code><b>a</b></code>", "<b> may not stand in <code>."),
        ("<b><code>a</code></b>", "<code> may not stand in <b>."),
        (
            "<blockquote><blockquote>a</blockquote></blockquote>",
            "<blockquote> may not stand in <blockquote>.",
        ),
        ('<a href="javascript:x">a</a>', "<a> does not have the attributes that Telegram wants."),
        ("<b> \u200b</b>", "There is nothing to see."),
        ("<b>aaaaaaaaa😀</b>", "The text has 11 UTF-16 code units, more than 10."),
    ],
)
def test_the_telegram_validator_names_each_problem(html: str, problem: str) -> None:
    assert validate_telegram(html, limit=10)[:1] == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`@here`", ""),
        ("```\n@everyone\n```", ""),
        ("```py\na", "A code block is not closed."),
        ("a @everyone", "A mention is alive."),
        ("\\<@12>", "A mention is alive."),
        ("<#12>", "A mention is alive."),
        ("**", "There is nothing to see."),
        ("a" * 41, "The text has 41 characters, more than 40."),
    ],
)
def test_the_discord_validator_names_each_problem(text: str, problem: str) -> None:
    assert validate_discord(text, limit=40)[:1] == ([problem] if problem else [])


def samples(parts: Callable[..., list[str]], *, limit: int) -> list[str]:
    """Parts of all examples, and of what Hypothesis found, each time the same."""
    found = [markdown for markdown, _, _ in EXAMPLES]

    @settings(max_examples=100, derandomize=True, database=None)
    @given(nasty)
    def collect(markdown: str) -> None:
        found.append(markdown * 20)

    collect()
    return [part for markdown in found for part in parts(markdown, limit=limit)]


async def test_teremok_accepts_every_part() -> None:
    """It counts the markup as well, as Telegram does not; a part's is at most four times its limit."""
    bot = Bot("42:TEST", session=MockedSession())
    for part in samples(telegram_parts, limit=1024):
        await bot.send_message(1, part, parse_mode=ParseMode.HTML)


async def test_simcord_accepts_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discord.http.Route, "BASE", DiscordSettings().api_base)  # other tests have their own
    client = discord.Client(
        intents=discord.Intents.default(), allowed_mentions=discord.AllowedMentions.none()
    )
    async with simcord.run(client) as env:
        handle = env.create_guild().create_text_channel("general")
        await env.settle()
        channel = client.get_channel(handle.id)
        assert isinstance(channel, discord.TextChannel)
        for part in samples(discord_parts, limit=2000):
            message = await channel.send(part)
            assert not message.mentions
            assert not message.mention_everyone
