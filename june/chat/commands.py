"""What the commands do, such as /voice, and what they answer."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal

from june.chat import CommandInfo
from june.chat.apps import is_person
from june.chat.formatting import escape
from june.chat.intake import Gate, new_pairing_code
from june.languages import language_code
from june.sections import AccessSettings, ReplySettings, SttSettings
from june.store import Received, Store

COMMANDS = (
    CommandInfo("start", "Say hello"),
    CommandInfo("help", "List what I can do"),
    CommandInfo("voice", "How I answer here", "on | off | both | auto"),
    CommandInfo("language", "Which language is spoken here", "auto, or a code such as en"),
    CommandInfo("stop", "End the answer that I am giving"),
    CommandInfo("retry", "Answer the last message again"),
    CommandInfo("queue", "Hand something to my owner's programs", "a text", owners_only=True),
    CommandInfo("reset", "Forget our conversation"),
    CommandInfo("status", "Say how I am"),
    CommandInfo("allow", "Let someone in", "an id such as telegram:123456789", owners_only=True),
    CommandInfo("deny", "Shut someone out", "an id such as telegram:123456789", owners_only=True),
    CommandInfo("pair", "Make a code that lets someone in", owners_only=True),
    CommandInfo("users", "List who may talk with me", owners_only=True),
)

CODE_VALID_S = 15 * 60.0

Mode = Literal["mirror", "voice", "text", "both"]

MODES: dict[str, Mode] = {"on": "voice", "off": "text", "both": "both", "auto": "mirror"}
"""What /voice takes, and what it means."""
MODE_SENTENCES: dict[Mode, str] = {
    "voice": "I answer with voice messages here.",
    "text": "I answer in writing here.",
    "both": "I answer with voice messages and in writing here.",
    "mirror": "I answer voice messages with voice messages here, and text in writing.",
}


class Commands:
    """The commands of `COMMANDS`.

    Args:
        store: people, preferences and conversations.
        gate: knows who is an owner.
        access: owners and allowed people.
        reply: how a chat is answered that has set nothing for itself.
        stt: which language is spoken in such a chat.
        was_stopped: whether an answer was ended in a chat, since it was asked last; /stop ends it when it
            arrives, before its turn.
        forget: has the language model keep nothing of a chat's conversation.
        status: Markdown on how june is; more of it if it is told that an owner asks.
    """

    def __init__(
        self,
        store: Store,
        gate: Gate,
        *,
        access: AccessSettings,
        reply: ReplySettings,
        stt: SttSettings,
        was_stopped: Callable[[str], bool],
        forget: Callable[[str], Awaitable[None]],
        status: Callable[[bool], Awaitable[str]],
    ) -> None:
        self._store = store
        self._gate = gate
        self._access = access
        self._reply = reply
        self._stt = stt
        self._was_stopped = was_stopped
        self._forget = forget
        self._status_text = status
        self._run: dict[str, Callable[[Received, Sequence[str]], Awaitable[str]]] = {
            "start": self._start,
            "help": self._help,
            "voice": self._voice,
            "language": self._language,
            "stop": self._stop,
            "retry": self._retry,
            "queue": self._queue,
            "reset": self._reset,
            "status": self._status,
            "allow": self._allow,
            "deny": self._deny,
            "pair": self._pair,
            "users": self._users,
        }

    async def run(self, received: Received) -> str:
        """Carry out a command, and return the Markdown that answers it; "": nothing does.

        Args:
            received: its text is the command with its argument, such as "/voice on", in any case.

        Raises:
            StoreError: the command was not carried out.
            GenerationError: what the language model keeps of a conversation cannot be deleted.
        """
        name, *arguments = received.message.text.casefold().lstrip("/").split() or [""]
        role = await self._gate.role_of(received.message.user)
        if role is None:  # shut out since the command was received
            return ""
        info = next((info for info in COMMANDS if info.name == name), None)
        if info is None:
            return "I do not know that command; /help lists those that I know."
        if info.owners_only and role != "owner":
            return "That is for my owner."
        return await self._run[name](received, arguments)

    async def _start(self, received: Received, arguments: Sequence[str]) -> str:
        return (
            "Hello! I am june, a voice assistant that runs on its owner's own machine. Send me a voice"
            " message or write to me, and I answer. In a group, mention me, reply to me, or say my name in a"
            " voice message.\n\n"
        ) + await self._help(received, arguments)

    async def _help(self, received: Received, _: Sequence[str]) -> str:
        is_owner = await self._is_owner(received.message.user)
        known = [info for info in COMMANDS if is_owner or not info.owners_only]
        return "\n".join(f"- {_usage(info)}: {info.description}." for info in known)

    async def _voice(self, received: Received, arguments: Sequence[str]) -> str:
        chat = received.message.chat
        preferences = await self._store.conversations.preferences(chat)
        mode = preferences.mode or self._reply.mode
        if arguments:
            if len(arguments) > 1 or arguments[0] not in MODES:
                return _expected("voice")
            mode = MODES[arguments[0]]
            await self._store.conversations.set_preferences(chat, replace(preferences, mode=mode))
        return MODE_SENTENCES[mode]

    async def _language(self, received: Received, arguments: Sequence[str]) -> str:
        chat = received.message.chat
        preferences = await self._store.conversations.preferences(chat)
        if len(arguments) > 1:
            return _expected("language")
        if arguments:
            try:
                spoken = "" if arguments[0] == "auto" else language_code(arguments[0])
            except ValueError:
                return _expected("language")
            preferences = replace(preferences, language=spoken)
            await self._store.conversations.set_preferences(chat, preferences)
        language = preferences.language or self._stt.language
        if language:
            return f"I expect `{language}` to be spoken here."
        return "I find out for myself which language is spoken here."

    async def _stop(self, received: Received, _: Sequence[str]) -> str:
        return "Stopped." if self._was_stopped(received.message.chat) else "There is nothing to stop."

    async def _retry(self, received: Received, _: Sequence[str]) -> str:
        found = await self._store.inbox.retry_last(received.message.chat)
        return "" if found else "There is no message here that I could answer again."

    async def _queue(self, _: Received, __: Sequence[str]) -> str:
        return _expected("queue")  # with a text, it never comes here

    async def _reset(self, received: Received, _: Sequence[str]) -> str:
        await self._store.conversations.forget(received.message.chat)
        await self._forget(received.message.chat)
        return "Our conversation is forgotten."

    async def _status(self, received: Received, _: Sequence[str]) -> str:
        return await self._status_text(await self._is_owner(received.message.user))

    async def _allow(self, received: Received, arguments: Sequence[str]) -> str:
        return await self._set_access(received, "allow", arguments)

    async def _deny(self, received: Received, arguments: Sequence[str]) -> str:
        return await self._set_access(received, "deny", arguments)

    async def _set_access(
        self, received: Received, command: Literal["allow", "deny"], arguments: Sequence[str]
    ) -> str:
        user = arguments[0] if len(arguments) == 1 else ""
        if not is_person(user):
            return _expected(command)
        if await self._is_owner(user):
            return f"`{user}` is an owner, and only my settings can change that."
        names = {person.user: person.name for person in await self._store.people.all()}
        await self._store.people.set_access(
            user,
            "allowed" if command == "allow" else "denied",
            name=names.get(user, ""),
            added_by=received.message.user,
        )
        return f"I answer `{user}` from now on." if command == "allow" else f"I ignore `{user}` from now on."

    async def _pair(self, received: Received, _: Sequence[str]) -> str:
        if not self._access.pairing:
            return "Codes are switched off; `access.pairing = true` in my settings switches them on."
        if received.message.is_group:
            return "Ask me for a code in private, where nobody else sees it."
        code = new_pairing_code()
        await self._store.people.add_pairing_code(code, made_by=received.message.user, valid_s=CODE_VALID_S)
        minutes = f"{CODE_VALID_S / 60:.0f}"
        return f"`{code}` lets one person in who sends it to me in private within {minutes} minutes."

    async def _users(self, _: Received, __: Sequence[str]) -> str:
        access = self._access
        known = dict.fromkeys((*access.owners, *access.allowed), "")
        known |= {person.user: person.name for person in await self._store.people.all()}
        groups: dict[str, list[str]] = {"Owners": [], "Allowed": [], "Denied": []}
        for user, name in known.items():
            role = await self._gate.role_of(user)
            heading = "Denied" if role is None else "Owners" if role == "owner" else "Allowed"
            groups[heading].append(f"- `{user}` {in_markdown(name)}".rstrip())
        return "\n\n".join(
            "\n".join([f"**{heading}**", "", *(lines or ["nobody"])]) for heading, lines in groups.items()
        )

    async def _is_owner(self, user: str) -> bool:
        return await self._gate.role_of(user) == "owner"


def _usage(info: CommandInfo) -> str:
    return f"/{info.name} {info.argument}".rstrip()


def _expected(name: str) -> str:
    """Return one sentence on how to use a command."""
    info = next(info for info in COMMANDS if info.name == name)
    return f"After /{name} I expect {info.argument}."


def in_markdown(name: str) -> str:
    """Return a name that its bearer chose, as Markdown that shows it and does nothing else."""
    return escape("".join(filter(str.isprintable, name)))
