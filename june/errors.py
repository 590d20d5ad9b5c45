"""The error tree.

    JuneError
    ├── SettingsError                a wrong key, type or value in the settings
    ├── ModelFileError               a model file is missing, or differs from the catalogue
    ├── ModelChangeError             the language model cannot be exchanged now
    ├── StoreError                   the file of messages cannot be used
    ├── QueueError(code)             a program's request on a message is refused
    ├── ApiError(status)             june's own API refuses a command's request, or is out of reach
    ├── AdapterError                 the connection to a chat app is lost or was refused
    ├── DeliveryError(reason)        a chat app did not accept a message, or did not hand out a file
    └── StageError(stage, code)      one stage of a turn failed
        ├── ModelLoadError           a model cannot be loaded on this machine
        ├── AudioError               a recording that june cannot read, or speech that it cannot encode
        ├── TranscriptionError       speech to text
        ├── GenerationError          the language model
        └── SynthesisError           text to speech

A library's exceptions are translated once, in the module that owns the library. The text of an
error is for the owner's terminal and log: it never holds what a person said or wrote. The person
in the chat gets `StageError.sentence`, one for each code.
"""

from typing import Literal

Stage = Literal["load", "download", "decode", "stt", "llm", "tts", "encode", "store"]

Refusal = Literal[
    "try_again", "voice_forbidden", "too_large", "markup", "not_modified", "moved", "gone", "refused"
]
"""Why a chat app refused a request: it may accept it later; the chat takes no voice messages; the file is too
large; it does not understand the markup; the message has this text already; the chat has another name now;
the message, file or chat is gone; it will never accept it."""

QueueRefusal = Literal["unknown", "conflict", "no_access"]

SENTENCES = {
    "audio_empty": "That recording is empty.",
    "audio_too_large": "That recording is larger than I accept.",
    "audio_too_long": "That recording is longer than I accept.",
    "audio_too_large_for_app": "That recording is larger than the chat app hands out to me.",
    "audio_too_short": "That recording is too short to hold a word.",
    "audio_unreadable": "I cannot read that file as a recording.",
    "audio_unsupported": "I do not accept recordings of that kind.",
    "bad_grammar": "I cannot answer in the form that was asked for.",
    "attempts_spent": "I was interrupted over that message again and again, so I gave it up.",
    "busy": "I have too much to do at the moment. Please try again in a minute.",
    "context_overflow": "That is more text than I can keep in mind at once.",
    "download_failed": "I could not fetch that recording from the chat app.",
    "encode_failed": "I could not turn my answer into a voice message.",
    "internal": "Something went wrong inside me. Please try again.",
    "llm_empty": "I could not think of an answer.",
    "llm_failed": "Something went wrong while I was thinking.",
    "model_unavailable": "One of my models is not available at the moment.",
    "nothing_heard": "I heard nothing in that recording.",
    "nothing_to_say": "There is nothing in my answer that can be spoken.",
    "stt_failed": "Something went wrong while I was listening.",
    "timeout": "That took me too long, so I stopped.",
    "tts_failed": "I could not speak my answer.",
    "voice_unknown": "I do not have that voice.",
}
"""Sentences for the person in the chat, by error code."""

OTHERS_REASONS = {
    "audio_empty", "audio_too_large", "audio_too_large_for_app", "audio_too_long", "audio_too_short",
    "audio_unreadable", "audio_unsupported", "bad_grammar", "busy", "context_overflow", "download_failed",
    "model_unavailable", "nothing_heard", "nothing_to_say",
}  # fmt: skip
"""Codes of failures whose cause is the message, a chat app, the load, or a model that the owner unloaded:
june can still answer the next turn."""


class JuneError(Exception):
    """A failure that june explains in one sentence."""


class SettingsError(JuneError):
    """A wrong key, type or value; the text names the file or variable, the key and the expected value."""


class ModelFileError(JuneError):
    """A model's file is missing, cannot be downloaded, or differs from the catalogue's sha256."""


class ModelChangeError(JuneError):
    """The language model cannot be loaded, unloaded or replaced now; one sentence for the owner."""


class StoreError(JuneError):
    """The file of messages cannot be opened, read or written."""


class QueueError(JuneError):
    """A program's request on a message is refused; the text is one sentence for the program's author.

    Args:
        code: there is no such message or recording; its status or kind forbids the request, or the
            idempotency key belongs to another request; the person has no access.
        detail: one sentence, without any text that a person spoke or wrote.
    """

    def __init__(self, code: QueueRefusal, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ApiError(JuneError):
    """june's own API refuses a command's request or is out of reach.

    Args:
        status: the HTTP status; 0: there was no response.
        detail: one sentence, without the token and without any text that a person spoke or wrote.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class AdapterError(JuneError):
    """The connection to a chat app is lost or was refused; the text never holds a token.

    Args:
        detail: one sentence for the owner.
        retry_after_s: how long the platform asks to wait; None if it does not say.
    """

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeliveryError(JuneError):
    """A chat app did not accept a message, or did not hand out a file; the text never holds a token.

    Args:
        reason: the kind of refusal.
        detail: one sentence for the owner, without the text of the message.
        retry_after_s: how long the platform asks to wait; None if it does not say.
        moved_to: for "moved": the chat's new name, as in `Inbound.chat`.
    """

    def __init__(
        self, reason: Refusal, detail: str, *, retry_after_s: float | None = None, moved_to: str = ""
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.moved_to = moved_to


class StageError(JuneError):
    """One stage of a turn failed.

    Args:
        stage: the stage that failed.
        code: the kind of failure, a key of `SENTENCES`.
        detail: one sentence for the owner, without any text that a person spoke or wrote.
    """

    def __init__(self, stage: Stage, code: str, detail: str) -> None:
        super().__init__(detail)
        self.stage = stage
        self.code = code

    @property
    def sentence(self) -> str:
        """The sentence for the person in the chat."""
        return SENTENCES[self.code]

    @property
    def is_own(self) -> bool:
        """Whether the cause of the failure is june itself."""
        return self.code not in OTHERS_REASONS


class ModelLoadError(StageError):
    """A model cannot be loaded on this machine."""

    def __init__(self, detail: str) -> None:
        super().__init__("load", "model_unavailable", detail)


class AudioError(StageError):
    """A recording that june cannot read, or speech that it cannot encode."""


class TranscriptionError(StageError):
    """Speech to text failed."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__("stt", code, detail)


class GenerationError(StageError):
    """The language model did not give an answer."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__("llm", code, detail)


class SynthesisError(StageError):
    """Text to speech failed."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__("tts", code, detail)
