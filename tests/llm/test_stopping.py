"""Stop strings in text that arrives in pieces."""

from hypothesis import example, given
from hypothesis import strategies as st

from june.llm.stopping import StopStrings


def stopped(pieces: list[str], strings: tuple[str, ...]) -> tuple[str, bool]:
    """Return the text that comes out, and whether it was stopped."""
    stop = StopStrings(strings)
    text = "".join([*map(stop.feed, pieces), stop.finish()])
    return text, stop.found


texts = st.text("abc", max_size=20)
strings = st.lists(st.text("abc", max_size=4), max_size=3).map(tuple)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(pieces=cut_texts(), strings=strings)
@example(pieces=["abc"], strings=("abc", "b"))
@example(pieces=["aab"], strings=("ab", "aab"))
def test_where_a_text_is_cut_changes_nothing(pieces: list[str], strings: tuple[str, ...]) -> None:
    assert stopped(pieces, strings) == stopped(list("".join(pieces)), strings)
    assert stopped(pieces, strings) == stopped(["".join(pieces)], strings)


@given(text=texts, strings=strings)
def test_an_answer_is_all_that_stands_before_the_first_stop_string(
    text: str, strings: tuple[str, ...]
) -> None:
    answer, found = stopped([text], strings)
    real = [each for each in strings if each]
    assert text.startswith(answer)
    assert not any(each in answer for each in real)
    assert found == any(each in text for each in real)
    if found:
        assert any(text[len(answer) :].startswith(each) for each in real)
    else:
        assert answer == text


def test_text_comes_out_at_once_unless_it_may_begin_a_stop_string() -> None:
    stop = StopStrings(("\n\n", "User:"))
    assert stop.feed("Hello") == "Hello"
    assert stop.feed(" Us") == " "
    assert stop.feed("ain\n") == "Usain"
    assert stop.feed("Bolt") == "\nBolt"
    assert stop.feed(" U") == " "
    assert not stop.found
    assert stop.feed("ser: no") == ""
    assert stop.found
    assert stop.feed("more") == ""
    assert stop.finish() == ""
