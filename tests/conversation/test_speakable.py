"""What a voice is given to say, and when."""
# ruff: noqa: RUF001 - the look-alikes of ASCII are what these tests are about

import re
import string
import sys
import tracemalloc
import unicodedata
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from june.conversation import sentences as module
from june.conversation.sentences import MAX_CHARACTERS
from june.conversation.speakable import SentenceStream, speakable


def sentences(*texts: str) -> list[str]:
    stream = SentenceStream()
    return [sentence for text in texts for sentence in stream.feed(text)] + stream.finish()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@pytest.mark.parametrize(
    "expected",
    [
        ["Hello there.", "How are you?", "Fine!"],
        ["Pi is 3.14, or 1,000.50 times 2.", "It is 10:30 now."],
        ["Dr. Smith met Mr. and Mrs. Jones in St. Louis.", "They left."],
        ["Some fruit, e.g. this one, i.e. Peter's.", "The U.S. President and the U.S. president came."],
        ["It is No. 5 on the list.", "No.", "It is not."],
        ["We meet at 10 a.m. tomorrow.", "Version v2.0.1 of Node.js is out.", "Use 1.5 kg."],
        ["J. F. Kennedy said so in 1961.", "Then he left."],
        ["The answer is 42.", "It was easy.", "See Fig. 3 and pp. 4 to 6."],
        ["Well... I think so.", "Hm… Maybe not."],
        ["What?!", "Really?!", "Yes!!!"],
        ['"Stop!" he said.', '"Go."', "(It was late.)", "They went."],
        ["Er kommt am 3. Mai.", "Am Montag, 3. Mai, z. B. Berlin.", "Es war im 19. Jahrhundert."],
        ["Der 2. Weltkrieg endete am 8. 5. 1945.", "Dr. Müller wohnt in Nr. 5, d. h. nebenan."],
        ["¿Qué tal?", "¡Muy bien!", "El Sr. García vive en EE. UU."],
        ["C'est M. Dupont.", "Ça va?", "Oui."],
        ["Привет.", "Это г. Москва, ул. Ленина.", "Как дела?"],
        ["यह अच्छा है।", "डॉ. शर्मा आए।", "क्या?"],
        ["كيف حالك؟", "أنا بخير.", "د. محمد هنا."],
        ["안녕하세요.", "네.", "알겠습니다."],
        ["It costs $5 or €6, about 5% & 20 °C.", "So 1 + 2 = 3 and −5 ± 1."],
    ],
)
def test_plain_sentences_come_out_as_they_are(expected: list[str]) -> None:
    assert sentences(" ".join(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好。世界！“真的吗？”是的，3.14。", ["你好。", "世界！", "“真的吗？”", "是的，3.14。"]),
        ("「はい。」そうです！？本当", ["「はい。」", "そうです！？", "本当."]),
        ("यह है।ठीक", ["यह है।", "ठीक."]),
        ("Ça va ? « Oui. » Non", ["Ça va?", "« Oui.", "Non."]),
        ("# A title\nText goes\non here\nAnd here", ["A title.", "Text goes on here.", "And here."]),
        ("Title\n=====\n## Next ##\nx\n---\n***\n_ _ _\ny", ["Title.", "Next.", "x.", "y."]),
        ("Buy:\n- milk\n* eggs,\n  brown\n+ ham!\n", ["Buy:", "milk.", "eggs, brown.", "ham!"]),
        ("1. Heat it\n2. Eat it.\n10) Rest", ["1. Heat it.", "2. Eat it.", "10) Rest."]),
        ("- [x] done\n- [ ] open", ["done.", "open."]),
        ("> a quote\n> goes on\n>\n> > Deep", ["a quote goes on.", "Deep."]),
        ("-5 degrees\n\n+1 point", ["-5 degrees.", "+1 point."]),
        ("| A | B |\n|---|:-:|\n| 1 | `x` |\nthen", ["A, B.", "1, x.", "then."]),
        ("Look:\n```python\nprint('Hi. You')\n```\nDone.", ["Look:", "Done."]),
        ("Look: ```py\ncode\ncode```\nDone.", ["Look:", "Done."]),
        ("A fence:\n```\n```x y\nz\n``\n```\nthen so~~~\nand on", ["A fence:", "then so and on."]),
        ("~~~~\ncode\n~~~\ncode\n~~~~~  \nDone.", ["Done."]),
        ("- item\n  ```\n  code\n  ```\n> ```sh\n> code\n> ```\nDone.", ["item.", "Done."]),
        ("So:\n```\ncode. Never closed", ["So:"]),
        ("Use `print`, ``a`b`` or `os.path.join()`.", ["Use print, a b or os.path.join."]),
        ("```not a fence``` is `<b>` and `a_b[0]`", ["not a fence is b and a b 0."]),
        ("An `unclosed tick. And\nMore", ["An unclosed tick.", "And.", "More."]),
        ("See [the docs](https://x.org/a_(b) 'T'), ![a cat](c.png).", ["See the docs, a cat."]),
        ("[![badge](b.svg)](u)[Two][ref] [[Three]](u) [four", ["badge Two Three four."]),
        ("([a](b\\)c)) [12 apples] [https://x.org](u)and [b](u\nNext", ["(a) 12 apples and b.", "Next."]),
        ("[One. Two](u) [three] \\[four\\] a](b)", ["One.", "Two three four a (b)."]),
        ("A fact.[^1] More [2].[3](u)\n\n[^1]: A note\n[1]: https://x.org", ["A fact.", "More.", "A note."]),
        ("Visit https://x.org/a_b?c=1&d=*2*. Then go.", ["Visit.", "Then go."]),
        ("(see http://x.org), www.x.org, <https://x.org/> or x.org!", ["(see), or x.org!"]),
        ("**https://x.org** ftp://x.org。请看https://x.org/a。谢谢", ["请看。", "谢谢."]),
        (
            "See: https://x.org. # www.x.org/a_b<b>B</b> `http://x.org`-like C:\\temp",
            ["See.", "B -like C: temp."],
        ),
        ("# Off https://x.org\nNext. Stop!  he said", ["Off.", "Next.", "Stop! he said."]),
        ("Mail me_too@x.org, <a@x.org> or mailto:b@x.org. Bye", ["Mail, or.", "Bye."]),
        (
            "**One. Two.** *Three.* __Four._ ~~Five.~~ ***S**ix*",
            ["One.", "Two.", "Three.", "Four.", "Five.", "Six."],
        ),
        ("5 * 3, 5*3, a * b, snake_case, _x_y_, __init__", ["5 × 3, 5×3, a × b, snake case, x y, init."]),
        ("2**3, $3x$, $$ 5 $$", ["2 3, 3x, 5."]),
        ("~5 kg, #1, C#, #tag, a~b", ["≈5 kg, №1, C#, tag, ab."]),
        ("<p>One<br/>two</p><b class='x'>H</b><sub>2</sub>O", ["One.", "two.", "H2O."]),
        ("A <!-- no.\nNo --> b <script>x = 1</script>c <y, z", ["A b c y, z."]),
        ("<table><tr><td>a</td><td>b</td></tr></table>", ["a, b."]),
        ("Fish &amp; chips&nbsp;&#33; &lt;b&gt; AT&T &bogus; R&D", ["Fish & chips!", "b AT&T &bogus; R&D."]),
        ("$x + y$, \\(a\\), \\[b\\], $$c$$, $HOME, \\alpha", ["x + y, a, b, c, HOME, alpha."]),
        ("It is $5, US$6 or 7 $. \\$8 it is", ["It is $5, US$6 or 7 $.", "$8 it is."]),
        ("a -> b → c => d <- e -- f, use --all", ["a, b, c, d, e, f, use all."]),
        ("x <= 5 >= 4 < 3 > 2", ["x ≤ 5 ≥ 4 3 2."]),
        ("Hi 😀! 👨‍👩‍👧 🇩🇪 👍🏽 ❤️ ⚠️ Press 1️⃣ ✅", ["Hi!", "Press 1."]),
        ("Great!🎉 Next ①", ["Great!", "Next 1."]),
        ("a\x00b\u200bc\ufeffd\u202ee\ud800f\ue000g\u00adh\ti\r\nJ", ["abcdefgh i.", "J."]),
        ("\ufeff# Title\nlower", ["Title.", "lower."]),
        ("𝗕𝗼𝗹𝗱 20℃ a\u00a0 \u3000b", ["Bold 20°C a b."]),
        ("One\\\ntwo, 3 \\* 4 \\# \\_", ["One two, 3 × 4."]),
        ("[[h@]] &#91;&#91;x&#93;&#93; [\u200b[y]] {[z]}", ["h@ x y z."]),
        ("ht**tp://x.org** www*.x.org http:&#47;/x.org a@*x.org", ["ht."]),
    ],
)
def test_markup_is_never_said(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    "text", ["", " \n\t", "😀🎉", "---", "***\n```\ncode\n```", "https://x.org", "?!", "[](u)"]
)
def test_nothing_is_said_where_nothing_can_be(text: str) -> None:
    assert sentences(text) == []
    assert speakable(text) == ""


def test_a_whole_text_is_its_sentences_in_one_line() -> None:
    assert speakable("# Hi\n\n- **One**\n- Two!") == "Hi. One. Two!"


@pytest.mark.parametrize(
    ("text", "following", "expected"),
    [
        ("It is 3.", "1", []),
        ("It is 3. ", "n", []),
        ("It is 3. ", "N", ["It is 3."]),
        ("It is done.", "\n", ["It is done."]),
        ("Well.) ", "T", ["Well.)"]),
        ("好。", "你", ["好。"]),
        ("A line\n", "g", []),
        ("A line\n", "G", ["A line."]),
        ("- An item\n", "-", ["An item."]),
        ("# A title", "\n", ["A title."]),
        ("Look: ```py", "\n", ["Look:"]),
    ],
)
def test_a_sentence_waits_for_the_one_character_that_settles_it(
    text: str, following: str, expected: list[str]
) -> None:
    stream = SentenceStream()
    assert stream.feed(text) == []
    assert stream.feed(following) == expected


def test_a_long_sentence_is_cut_at_its_last_pause_or_else_at_a_word() -> None:
    with_pause = "word " * 30 + "pause, " + "word " * 30
    assert sentences(with_pause)[0].endswith("pause,")
    without = "word " * 60
    assert words(" ".join(sentences(without))) == ["word"] * 60
    assert len(sentences(without)) == len(sentences("Well, " + without)) == 2
    assert "".join(sentences("x" * 500 + ".")) == "x" * 500 + "."
    assert [len(piece) for piece in sentences("语" * 500)] == [200, 200, 101]
    assert sentences("语" * 150 + "，" + "语" * 100)[0] == "语" * 150 + "，"


PIECES = st.sampled_from([
    *"`*_[](){}<>!#$&~|\\\n\n  .,;:?\"'-+=/@^%。！।؟…",
    "```", "```py\n", "~~~\n", "**", "[[", "]]", "](", "![", "[^1]", "- ", "1. ", "# ", "> ", "://", "->",
    "https://", "www.", "mailto:", "a@b.org", "x.org", "&amp;", "&#91;", "<br>", "<b>", "</b>", "<!--", "-->",
    "😀", "\u200d", "\ufe0f", "\u20e3", "🇩", "🏽", "\u200b", "\x00", "\x1b", "\ud800", "\ufeff", "①", "→",
    "Dr.", "e.g.", "No.", "3.14", "10:30", "Word", "word", "U.S.", "am 3. Mai", "中文", "हिन्दी", "كيف", "Да",
])  # fmt: skip
HOSTILE = st.lists(PIECES | st.text(st.characters(), max_size=5), max_size=60).map("".join)


@given(HOSTILE, st.lists(st.integers(0, 9), min_size=1))
def test_the_same_sentences_come_out_wherever_the_text_was_cut(text: str, sizes: list[int]) -> None:
    texts, start = [], 0
    for size in sizes:
        texts.append(text[start : start + size])
        start += size
    assert sentences(*texts, text[start:]) == sentences(text) == sentences(*text)


UNSPEAKABLE = re.compile(
    r"[`*_~|<>{}\\^\[\]]|(?<![A-Za-z])#|://|\bwww\.\w|[A-Za-z0-9]@[A-Za-z0-9]+\.[A-Za-z0-9]|\s\s|[^\S ]"
)


@given(HOSTILE)
def test_whatever_is_written_only_what_can_be_said_comes_out(text: str) -> None:
    for sentence in sentences(text):
        assert not UNSPEAKABLE.search(sentence)
        assert not re.search("[\ufe00-\ufe0f\u20e3\U0001f000-\U0001faff]", sentence)
        assert {unicodedata.category(char)[0] for char in sentence}.isdisjoint("C")
        assert any(char.isalnum() for char in sentence)
        assert sentence == sentence.strip()
        assert len(sentence) <= MAX_CHARACTERS


PROSE_WORD = st.text(string.ascii_letters + "äßéñжя中の", min_size=1, max_size=300)


@given(
    st.lists(
        st.tuples(PROSE_WORD, st.sampled_from([" ", ", ", ". ", "! ", "?\n", "\n", "; ", " – ", "… ", "。"]))
    )
)
def test_words_of_prose_are_neither_lost_nor_moved(pieces: list[tuple[str, str]]) -> None:
    text = "".join(word + gap for word, gap in pieces)
    said = " ".join(sentences(text))
    assert "".join(words(said)) == "".join(words(text))
    if all(len(word) < MAX_CHARACTERS for word, _ in pieces):
        assert words(said) == words(text)


ENGLISH_WORD = st.sampled_from(
    ["the", "fox", "and", "I", "nobody", "jumps", "Ohio", "quietly", "half-way", "it's"]
)
ENGLISH_END = st.sampled_from(
    ["trees", "dogs", "3.14", "1999", "10:30", "**night**", "`code`", "[me](u)", "so-called"]
)


@given(
    st.lists(st.tuples(st.lists(ENGLISH_WORD, max_size=20), ENGLISH_END, st.sampled_from(".!?")), min_size=2)
)
def test_a_sentence_of_english_is_out_two_characters_after_its_end(
    pieces: list[tuple[list[str], str, str]],
) -> None:
    stream = SentenceStream()
    out: list[str] = []
    written = [" ".join(["Now", *each, last]) + end for each, last, end in pieces]
    for number, sentence in enumerate(written):
        for char in " " + sentence if number else sentence:
            if len(out) < number and char == sentence[0]:
                out += stream.feed(char)
                assert len(out) == number
            else:
                out += stream.feed(char)
    assert out + stream.finish() == [speakable(sentence) for sentence in written]


ENDLESS = {
    "prose": "The quick brown fox, it jumps over the lazy dog. How are you? ",
    "letters": "a",
    "quotes": 'a."',
    "backticks": "a ` `` ",
    "brackets": "[",
    "links": "[a](",
    "tags": "<a ",
    "entities": "&a",
    "stars": "*a* ",
    "underscores": "_a",
    "parentheses": "(" * 120 + ")" * 120,
    "dollars": "$a",
    "schemes": "a" * 240 + "://b ",
    "addresses": "a@b.",
    "dots": "a.",
    "dashes": "-",
}


class Pattern:
    """A pattern that counts the characters it was given."""

    characters = 0

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern

    def sub(self, replacement: str, text: str) -> str:
        """Return `text` with the pattern's replacements."""
        assert len(text) <= MAX_CHARACTERS
        Pattern.characters += len(text)
        return self.pattern.sub(replacement, text)


@pytest.mark.parametrize("piece", ENDLESS.values(), ids=ENDLESS)
def test_work_grows_no_faster_than_the_text(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tuple((Pattern(pattern), replacement) for pattern, replacement in module._RULES)  # noqa: SLF001
    monkeypatch.setattr(module, "_RULES", rules)
    Pattern.characters = lines = 0

    def count(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += 1
        return count

    text = (piece * 5_000)[:5_000]
    stream = SentenceStream()
    tracer = sys.gettrace()
    sys.settrace(count)
    try:
        for char in text:
            stream.feed(char)
        stream.finish()
    finally:
        sys.settrace(tracer)
    assert lines <= 100 * len(text)
    assert Pattern.characters <= 5 * len(rules) * len(text)


@pytest.mark.parametrize("start", ["https://", "```\n", "<!--", "[a](", "[^", "word "])
@pytest.mark.parametrize("piece", ["abc,d.e/f)", "?)........"])
def test_memory_does_not_grow_with_what_is_skipped(start: str, piece: str) -> None:
    stream = SentenceStream()
    stream.feed(start)
    tracemalloc.start()
    try:
        for _ in range(5_000):
            stream.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 30_000
    finally:
        tracemalloc.stop()
