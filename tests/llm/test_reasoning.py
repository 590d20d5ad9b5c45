"""Thought and answer, told apart while they are being written."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from june.llm.reasoning import CLOSE, OPEN, ReasoningSplitter


def split(*pieces: str, thinking: bool = False) -> tuple[str, str]:
    """Return the whole answer and the whole thought."""
    splitter = ReasoningSplitter(thinking=thinking)
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return "".join(text for text, _ in parts), "".join(reasoning for _, reasoning in parts)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    """Texts that are dense with tags and pieces of them, cut anywhere."""
    fragments = [OPEN, CLOSE, "<", ">", "/", "think", "<th", "</", "a", "b c", " ", "\n\n"]
    text = "".join(draw(st.lists(st.sampled_from(fragments), max_size=12)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("Four.", "Four.", ""),
        ("<think>2 + 2</think>Four.", "Four.", "2 + 2"),
        ("<think>\n2 + 2\n</think>\n\nFour.\n", "Four.\n", "\n2 + 2\n"),
        ("<think></think>\n\nFour.", "Four.", ""),
        ("\n<think>a</think>\n<think>b</think>\nFour.", "Four.", "ab"),
        ("Well, <think>hm</think> four.", "Well,  four.", "hm"),
        ("Is 1 < 2? Yes: 1 <think about it", "Is 1 < 2? Yes: 1 <think about it", ""),
        ("<think>is 1 < 2 </thin", "", "is 1 < 2 </thin"),
        ("<think>never closed", "", "never closed"),
        ("<think>a <think> within</think>Four.", "Four.", "a <think> within"),
        ("", "", ""),
    ],
)
def test_the_thought_is_what_stands_between_the_tags(text: str, answer: str, thought: str) -> None:
    assert split(text) == (answer, thought)
    assert split(*text) == (answer, thought)


@given(pieces=cut_texts(), thinking=st.booleans())
@example(pieces=["<", "think", ">a<", "/think>\n", "\nb"], thinking=False)
@example(pieces=["<<thi", "nk>a<</think", ">b"], thinking=False)
def test_where_a_text_is_cut_changes_nothing(pieces: list[str], *, thinking: bool) -> None:
    assert split(*pieces, thinking=thinking) == split("".join(pieces), thinking=thinking)


@given(pieces=cut_texts(), thinking=st.booleans())
def test_no_word_is_lost_or_doubled(pieces: list[str], *, thinking: bool) -> None:
    answer, thought = split(*pieces, thinking=thinking)
    for letter in "abc":  # no tag has one
        assert (answer + thought).count(letter) == "".join(pieces).count(letter)


words = st.text("ab \n", max_size=8)


@given(turns=st.lists(st.tuples(words, words), max_size=4), last=words, data=st.data())
def test_no_piece_of_a_tag_comes_out(turns: list[tuple[str, str]], last: str, data: st.DataObject) -> None:
    text = "".join(f"{answer}{OPEN}{thought}{CLOSE}" for answer, thought in turns) + last
    splitter = ReasoningSplitter()
    answer = thought = ""
    while text:
        size = data.draw(st.integers(1, len(text)))
        more_answer, more_thought = splitter.feed(text[:size])
        text = text[size:]
        answer, thought = answer + more_answer, thought + more_thought
        assert not set("<>/think") & set(answer + thought)
    assert splitter.finish() == ("", "")
    assert answer == ("".join(before for before, _ in turns) + last).lstrip()
    assert thought == "".join(within for _, within in turns)


def test_a_thought_that_the_template_opened_needs_no_tag() -> None:
    assert split("2 + 2</think>\n\nFour.", thinking=True) == ("Four.", "2 + 2")
    assert split("never closed", thinking=True) == ("", "never closed")


def test_text_comes_out_at_once_unless_it_may_be_a_tag() -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed("1 ") == ("1 ", "")
    assert splitter.feed("<") == ("", "")
    assert splitter.feed(" 2 <thin") == ("< 2 ", "")
    assert splitter.feed("k>hm") == ("", "hm")
    assert splitter.feed(" <") == ("", " ")
    assert splitter.feed("/think>") == ("", "")
    assert splitter.feed(" yes") == (" yes", "")
    assert splitter.finish() == ("", "")
