"""What of a conversation fits the model's context."""

from hypothesis import given
from hypothesis import strategies as st

from june.conversation.memory import fit
from june.messages import ChatMessage
from june.sections import LlmSettings

SETTINGS = LlmSettings(context_tokens=1_024, max_tokens=256, system_prompt="Be brief.")


def turns(count: int, characters: int) -> tuple[ChatMessage, ...]:
    return tuple(
        message
        for number in range(count)
        for message in (
            ChatMessage("user", f"{number} ".ljust(characters, "?")),
            ChatMessage("assistant", f"{number} ".ljust(characters, "!")),
        )
    )


def test_a_short_history_is_shown_whole() -> None:
    assert fit(turns(3, 50), "And now?", SETTINGS) == turns(3, 50)


def test_of_a_long_history_the_newest_half_is_shown() -> None:
    assert fit(turns(10, 150), "And now?", SETTINGS) == turns(10, 150)[10:]


def test_the_beginning_stays_where_it_is_while_the_conversation_grows() -> None:
    first = [fit(turns(count, 100), "And now?", SETTINGS)[0] for count in range(1, 20)]
    assert len(set(first)) < len(first) / 2


@given(
    st.lists(st.tuples(st.text(max_size=2_000), st.text(max_size=2_000)), max_size=12),
    st.text(max_size=300),
)
def test_what_is_shown_are_the_newest_whole_turns_and_fits(
    pairs: list[tuple[str, str]], question: str
) -> None:
    history = tuple(
        message
        for asked, answered in pairs
        for message in (ChatMessage("user", asked), ChatMessage("assistant", answered))
    )
    shown = fit(history, question, SETTINGS)
    assert shown == history[len(history) - len(shown) :]
    assert len(shown) % 2 == 0
    text = SETTINGS.system_prompt + question + "".join(message.content for message in shown)
    room_bytes = 3 * (SETTINGS.context_tokens - SETTINGS.max_tokens)
    assert not shown or len(text.encode("utf-8", "replace")) <= room_bytes
