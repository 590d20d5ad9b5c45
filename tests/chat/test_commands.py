"""What the commands do and answer, with a real store."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from june.chat.commands import COMMANDS, Commands, in_markdown
from june.chat.formatting import visible
from june.chat.intake import Gate
from june.messages import ChatPreferences, Inbound
from june.sections import AccessSettings, ReplySettings, SttSettings
from june.settings import Settings
from june.store import Store, open_store
from tests.stored import place_by_default

OWNER, BOB, STRANGER = "telegram:1", "telegram:2", "telegram:3"
CHAT, GROUP = "telegram:77", "telegram:-100"


@dataclass
class Desk:
    """The commands before a real store. `answering` are the chats that are being answered."""

    store: Store
    settings: Settings
    answering: set[str] = field(default_factory=set)
    forgotten: list[str] = field(default_factory=list)
    messages: int = 0

    def __post_init__(self) -> None:
        self.gate = Gate(
            self.store,
            self.settings.access,
            place_by_default,
            on_received=lambda _: None,
            wake_delivery=lambda: None,
        )
        self.commands = Commands(
            self.store,
            self.gate,
            access=self.settings.access,
            reply=self.settings.reply,
            stt=self.settings.stt,
            was_stopped=self._was_stopped,
            forget=self._forget,
            status=self._status,
        )

    async def _forget(self, chat: str) -> None:
        self.forgotten.append(chat)

    def _was_stopped(self, chat: str) -> bool:
        found = chat in self.answering
        self.answering.discard(chat)
        return found

    async def _status(self, is_owner: bool) -> str:
        return f"All is well, {'owner' if is_owner else 'guest'}."

    async def receive(
        self, words: str, user: str = OWNER, chat: str = CHAT, kind: Literal["text", "command"] = "command"
    ) -> int:
        """Receive a message, and return its id in the inbox."""
        self.messages += 1
        message = Inbound(
            "telegram", f"m{self.messages}", chat, user, "Bob", kind, words, is_group=chat == GROUP
        )
        (row,) = await self.store.inbox.receive(
            [(message, "owner" if user == OWNER else "allowed")], place=place_by_default
        )
        return row.id

    async def run(self, words: str, user: str = OWNER, chat: str = CHAT) -> str:
        """Return the answer to a command that was received and claimed as june does it."""
        await self.receive(words, user, chat)
        row = await self.store.inbox.claim(exclude_chats=(), lease_s=60)
        assert row is not None
        answer = await self.commands.run(row)
        await self.store.inbox.finish(row.id, [], outcome="command")
        return answer

    async def converse(self, question: str) -> None:
        """Store a question and its answer."""
        message_id = await self.receive(question, kind="text")
        await self.store.inbox.claim(exclude_chats=(), lease_s=60)
        await self.store.inbox.finish(message_id, [], outcome="answered", answer="Blue.")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "june.db") as opened:
        yield opened


@pytest.fixture
def desk(store: Store) -> Desk:
    access = AccessSettings(owners=[OWNER], allowed=[BOB], pairing=True)
    return Desk(store, Settings(access=access))


# --- the list ---


def test_every_command_is_listed_as_both_platforms_take_it() -> None:
    names = [info.name for info in COMMANDS]
    assert sorted(names) == sorted(
        [
            "start",
            "help",
            "queue",
            "reset",
            "voice",
            "language",
            "stop",
            "retry",
            "status",
            "allow",
            "deny",
            "pair",
            "users",
        ]
    )
    assert {info.name for info in COMMANDS if info.owners_only} == {"allow", "deny", "pair", "queue", "users"}
    for info in COMMANDS:
        assert re.fullmatch("[a-z]{1,32}", info.name)
        assert 1 <= len(info.description) <= 100


@pytest.mark.parametrize("name", [info.name for info in COMMANDS])
async def test_every_command_answers_and_knows_its_words_in_any_case(desk: Desk, name: str) -> None:
    answer = await desk.run(f"/{name.upper()}")
    assert answer
    assert "do not know" not in answer


@pytest.mark.parametrize("words", ["/sing", "/", "", "/voic on", "/sing\nvoice"])
async def test_an_unknown_command_is_answered_with_where_the_known_ones_stand(desk: Desk, words: str) -> None:
    assert await desk.run(words) == "I do not know that command; /help lists those that I know."


async def test_a_command_of_someone_shut_out_meanwhile_is_not_answered(desk: Desk) -> None:
    await desk.store.people.set_access(BOB, "denied", name="", added_by=OWNER)
    assert await desk.run("/help", BOB) == ""


@pytest.mark.parametrize(
    "words", ["/allow telegram:3", "/deny telegram:3", "/pair", "/users", "/queue a task"]
)
async def test_what_is_for_owners_is_for_owners_only(desk: Desk, words: str) -> None:
    assert await desk.run(words, BOB) == "That is for my owner."
    assert await desk.store.people.all() == []


@pytest.mark.parametrize("command", ["/start", "/help"])
async def test_help_lists_to_everyone_what_they_may_do(desk: Desk, command: str) -> None:
    for_owner, for_bob = await desk.run(command), await desk.run(command, BOB)
    for info in COMMANDS:
        assert f"/{info.name}" in for_owner
        assert (f"/{info.name}" in for_bob) is not info.owners_only


async def test_start_says_what_june_is(desk: Desk) -> None:
    answer = await desk.run("/start ABCDEFGH", BOB)  # a code that has served already
    assert answer.startswith("Hello! I am june, a voice assistant")


# --- this chat ---


@pytest.mark.parametrize(
    ("words", "mode", "sentence"),
    [
        ("/voice on", "voice", "I answer with voice messages here."),
        ("/Voice OFF", "text", "I answer in writing here."),
        ("/voice  both ", "both", "I answer with voice messages and in writing here."),
        ("/voice\nauto", "mirror", "I answer voice messages with voice messages here, and text in writing."),
    ],
)
async def test_voice_sets_how_one_chat_is_answered_and_says_it(
    desk: Desk, words: str, mode: str, sentence: str
) -> None:
    await desk.store.conversations.set_preferences(CHAT, ChatPreferences(language="de"))
    assert await desk.run(words, BOB) == sentence
    assert await desk.store.conversations.preferences(CHAT) == ChatPreferences(mode=mode, language="de")  # type: ignore[arg-type]
    assert await desk.store.conversations.preferences(GROUP) == ChatPreferences()
    assert await desk.run("/voice", BOB) == sentence


async def test_voice_without_a_word_says_what_the_settings_say(store: Store) -> None:
    desk = Desk(store, Settings(access=AccessSettings(owners=[OWNER]), reply=ReplySettings(mode="both")))
    assert await desk.run("/voice") == "I answer with voice messages and in writing here."
    assert await store.conversations.preferences(CHAT) == ChatPreferences()


@pytest.mark.parametrize("words", ["/voice loud", "/voice on off", "/voice mirror"])
async def test_voice_says_what_it_expects(desk: Desk, words: str) -> None:
    assert await desk.run(words) == "After /voice I expect on | off | both | auto."
    assert await desk.store.conversations.preferences(CHAT) == ChatPreferences()


async def test_language_sets_what_is_spoken_in_one_chat(desk: Desk) -> None:
    await desk.store.conversations.set_preferences(CHAT, ChatPreferences(mode="both"))
    assert await desk.run("/language DE") == "I expect `de` to be spoken here."
    assert await desk.store.conversations.preferences(CHAT) == ChatPreferences(mode="both", language="de")
    assert await desk.run("/language") == "I expect `de` to be spoken here."
    assert await desk.run("/language pt-BR") == "I expect `pt` to be spoken here."
    assert await desk.run("/language auto") == "I find out for myself which language is spoken here."
    assert await desk.store.conversations.preferences(CHAT) == ChatPreferences(mode="both")


async def test_language_auto_is_what_the_settings_say(store: Store) -> None:
    access, stt = AccessSettings(owners=[OWNER]), SttSettings(language="fr")
    assert await Desk(store, Settings(access=access, stt=stt)).run("/language auto") == (
        "I expect `fr` to be spoken here."
    )


@pytest.mark.parametrize(
    "words", ["/language e", "/language german", "/language xx", "/language d3", "/language en de"]
)
async def test_language_says_what_it_expects(desk: Desk, words: str) -> None:
    assert await desk.run(words) == "After /language I expect auto, or a code such as en."
    assert await desk.store.conversations.preferences(CHAT) == ChatPreferences()


async def test_stop_ends_this_chats_answer(desk: Desk) -> None:
    desk.answering |= {CHAT, GROUP}
    assert await desk.run("/stop now please") == "Stopped."
    assert desk.answering == {GROUP}
    assert await desk.run("/stop") == "There is nothing to stop."


async def test_reset_forgets_this_chats_conversation(desk: Desk) -> None:
    await desk.converse("What colour is the sky?")
    assert await desk.store.conversations.messages(CHAT, 10)
    assert await desk.run("/reset") == "Our conversation is forgotten."
    assert await desk.store.conversations.messages(CHAT, 10) == ()
    assert desk.forgotten == [CHAT]


async def test_retry_makes_the_last_message_new_without_a_word(desk: Desk) -> None:
    await desk.converse("What colour is the sky?")
    assert await desk.run("/retry") == ""
    again = await desk.store.inbox.claim(exclude_chats=(), lease_s=60)
    assert again is not None
    assert again.message.text == "What colour is the sky?"


async def test_retry_says_that_there_is_nothing_to_answer(desk: Desk) -> None:
    assert await desk.run("/retry") == "There is no message here that I could answer again."


async def test_status_tells_owners_more(desk: Desk) -> None:
    assert await desk.run("/status") == "All is well, owner."
    assert await desk.run("/status", BOB) == "All is well, guest."


# --- who may talk with june ---


async def test_allow_and_deny_take_effect_at_once(desk: Desk) -> None:
    assert await desk.run("/allow Telegram:3") == "I answer `telegram:3` from now on."
    assert await desk.gate.role_of(STRANGER) == "allowed"
    assert await desk.run("/deny telegram:3") == "I ignore `telegram:3` from now on."
    assert await desk.run("/deny telegram:2") == "I ignore `telegram:2` from now on."
    assert [await desk.gate.role_of(user) for user in (STRANGER, BOB)] == [None, None]
    assert {person.added_by for person in await desk.store.people.all()} == {OWNER}


async def test_who_is_shut_out_keeps_the_name(desk: Desk) -> None:
    await desk.store.people.set_access(STRANGER, "allowed", name="Mallory", added_by=OWNER)
    await desk.run("/deny telegram:3")
    assert [(person.role, person.name) for person in await desk.store.people.all()] == [("denied", "Mallory")]


@pytest.mark.parametrize("command", ["allow", "deny"])
async def test_an_owner_is_neither_let_in_nor_shut_out(desk: Desk, command: str) -> None:
    assert await desk.run(f"/{command} {OWNER}") == (
        "`telegram:1` is an owner, and only my settings can change that."
    )
    assert await desk.store.people.all() == []


@pytest.mark.parametrize("command", ["allow", "deny"])
@pytest.mark.parametrize(
    "who", ["", "3", "telegram:", "telegram:abc", "signal:3", "telegram:3 telegram:4", "telegram:" + "1" * 21]
)
async def test_an_id_is_of_the_form_that_the_settings_take(desk: Desk, command: str, who: str) -> None:
    assert await desk.run(f"/{command} {who}") == (
        f"After /{command} I expect an id such as telegram:123456789."
    )
    assert await desk.store.people.all() == []


async def test_pair_makes_a_code_that_lets_one_person_in(desk: Desk) -> None:
    answer = await desk.run("/pair")
    code = re.fullmatch(
        "`(.{8})` lets one person in who sends it to me in private within 15 minutes.", answer
    )
    assert code is not None
    await desk.gate.receive(
        [
            Inbound("telegram", f"p{user}", user, user, "Mallory", "text", code[1])
            for user in (STRANGER, "telegram:4")
        ]
    )
    assert [(person.user, person.added_by) for person in await desk.store.people.all()] == [(STRANGER, OWNER)]


async def test_pair_makes_no_code_where_others_see_it(desk: Desk) -> None:
    assert await desk.run("/pair", chat=GROUP) == "Ask me for a code in private, where nobody else sees it."


async def test_pair_makes_no_code_when_nobody_takes_one(store: Store) -> None:
    desk = Desk(store, Settings(access=AccessSettings(owners=[OWNER])))
    assert await desk.run("/pair") == (
        "Codes are switched off; `access.pairing = true` in my settings switches them on."
    )


async def test_users_lists_everyone_with_what_they_are(desk: Desk) -> None:
    await desk.store.people.set_access(STRANGER, "allowed", name="Eve *bold*", added_by=OWNER)
    await desk.store.people.set_access("telegram:4", "denied", name="", added_by=OWNER)
    await desk.store.people.set_access(OWNER, "denied", name="Boss", added_by=OWNER)
    assert visible(await desk.run("/users")).split("\n") == [
        "Owners",
        "",
        "• telegram:1 Boss",
        "",
        "Allowed",
        "",
        "• telegram:2",
        "• telegram:3 Eve *bold*",
        "",
        "Denied",
        "",
        "• telegram:4",
    ]


async def test_users_says_where_there_is_nobody(store: Store) -> None:
    desk = Desk(store, Settings(access=AccessSettings(owners=[OWNER])))
    assert (await desk.run("/users")).count("nobody") == 2


@pytest.mark.parametrize(
    "name",
    [
        "[click](https://evil.example)",
        "**bold** _it_ ~~no~~ `code` ||spoiler||",
        "<b>x</b> &amp; # head",
        "@everyone <@1>",
        "a\\",
        "Zoé 小明 🙂",
    ],
)
def test_a_name_shows_as_it_is(name: str) -> None:
    assert visible(f"- `telegram:3` {in_markdown(name)}") == f"• telegram:3 {name}"


@given(st.text(max_size=40))
def test_no_name_leaves_its_line(name: str) -> None:
    assert "\n" not in visible(f"- `telegram:3` {in_markdown(name)}")


def test_a_name_cannot_turn_the_direction_of_what_follows() -> None:
    assert in_markdown("Bob\u202e\r\n\x07") == "Bob"
