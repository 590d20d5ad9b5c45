"""The sections of june's settings; each part of june gets its own section.

A section is one table of the settings file. `june.settings` composes them into the root and reads it; no
lower layer knows the root.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, SecretStr
from pydantic_core import PydanticCustomError

from june.languages import language_code

PROJECT_ROOT = Path(__file__).resolve().parent.parent
"""Where `settings.toml` and `models/` stand: the checkout, or the container's work directory."""


def _expand(value: object) -> Path:
    if isinstance(value, str | Path):
        with suppress(RuntimeError):  # no such user
            return Path(value).expanduser()
    raise PydanticCustomError("path", "Input should be a path, in a home that exists if it begins with ~")


PathSetting = Annotated[Path, BeforeValidator(_expand)]
OptionalPath = Annotated[
    Path | Literal[""], PlainValidator(lambda value: "" if value == "" else _expand(value))
]
"""Plain, since the union takes JSON's "" for the path ".", which is the working folder."""


def _language(tag: str) -> str:
    try:
        return language_code(tag) if tag else ""
    except ValueError:
        raise PydanticCustomError("language", "Input should be a language code such as de or pt-BR") from None


def _by_language(voices: dict[str, str]) -> dict[str, str]:
    by_language = {_language(tag): voice for tag, voice in voices.items()}
    if "" in by_language or "" in by_language.values():
        raise PydanticCustomError("voices", "Input should be a voice for each language code, such as de")
    if len(by_language) < len(voices):
        raise PydanticCustomError(
            "voices", "Input should be one voice for each language, whatever its region"
        )
    return by_language


Language = Annotated[str, AfterValidator(_language)]
Voices = Annotated[dict[str, str], AfterValidator(_by_language)]
Seconds = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One table of the settings file."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


S = TypeVar("S", bound=Section)


class ModelSection(Section):
    """What every engine of a kind is told; `june.settings` adds the sections that single engines have."""

    def own(self, kind: type[S]) -> S:
        """Return an engine's own section; its defaults where `june.settings` has not added it."""
        return next((value for _, value in self if isinstance(value, kind)), kind())


class ModelsSettings(Section):
    """Where model files are, and which set of them is used."""

    directory: PathSetting = Path("models")
    """Folder of the downloaded models; relative to the settings file."""
    preset: Literal["auto", "starter", "gpu"] = "auto"
    """The set of models: "starter" (small, CPU), "gpu", or "auto": "gpu" where a GPU has room for it."""
    pull_at_start: bool = False
    """Pull the chosen models that are missing when june starts, while messages are already received."""
    hugging_face_token: SecretStr = SecretStr("")
    """Secret. Access token for models that Hugging Face gives only to known users."""


class AudioSettings(Section):
    """Limits on recordings, and their clean-up."""

    max_bytes: int = Field(default=20_000_000, ge=1)
    """Largest accepted recording, in bytes."""
    max_duration_s: Seconds = 600.0
    """Longest accepted recording, in decoded seconds."""
    cleanup: bool = False
    """High-pass filter, noise reduction and even loudness before transcription."""
    opus_bitrate: int = Field(default=32_000, ge=6_000, le=128_000)
    """Bit rate of a reply, in bit/s."""


class SttSettings(ModelSection):
    """Speech to text."""

    backend: str = ""
    """Engine that transcribes; empty: Whisper, by faster-whisper."""
    model: str = ""
    """Name in the catalogue, path of your own file or folder, or hf:OWNER/REPO/FILE; empty: the preset's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; "auto": the GPU if its libraries load, else the CPU."""
    compute_type: Literal["auto", "int8", "int8_float16", "float16", "float32"] = "auto"
    """Arithmetic of the weights; "auto": int8 on the CPU, float16 on a GPU."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: as many as suit the model's size, at most one for each core."""
    language: Language = ""
    """Code of the language spoken, such as "en" or "en-GB"; empty: detected in the recording."""
    beam_size: int = Field(default=1, ge=1, le=16)
    """Hypotheses kept while decoding; 1 is greedy and fastest."""
    window: Literal["auto"] | Annotated[float, Field(ge=5, le=30)] = "auto"
    """Length of the encoder's window, in seconds; "auto" follows the recording, 30 is Whisper's own."""
    vad: bool = True
    """Skip stretches without speech before transcribing."""
    vad_min_silence_ms: int = Field(default=500, ge=0, le=10_000)
    """Shortest silence that is skipped, in milliseconds."""
    no_speech_threshold: Probability = 0.6
    """0 to 1; a segment more probably without speech is dropped if its log-probability is low too."""
    log_prob_threshold: float = Field(default=-1.0, le=0)
    """Mean log-probability per token below which a segment counts as unsure."""
    compression_ratio_threshold: float = Field(default=2.4, gt=1)
    """A text that compresses better than this counts as a repetition and is transcribed again."""
    timeout_s: Seconds = 60.0
    """Time limit of one transcription, in seconds."""


class LlmSettings(ModelSection):
    """The language model."""

    backend: str = ""
    """Engine that writes the answers; empty: llama.cpp in june's own process."""
    model: str = ""
    """Name in the catalogue, path of your own file or folder, or hf:OWNER/REPO/FILE; empty: the preset's."""
    context_tokens: int = Field(default=4096, ge=256)
    """Context of one conversation, prompt and answer, in tokens."""
    slots: int = Field(default=8, ge=1, le=64)
    """Conversations that are kept in the cache and decoded together."""
    max_waiting: int = Field(default=64, ge=0)
    """Answers that may wait for a slot or for cache; one more is refused."""
    system_prompt: str = (
        "You are june, a helpful voice assistant. Answer in one to three short sentences of plain, "
        "speakable text, without lists or markdown."
    )
    """The instruction that the model gets before each conversation."""
    thinking: bool = False
    """Let the model think before it answers, if it can; the thought is never spoken."""
    thinking_budget_tokens: int = Field(default=0, ge=0)
    """A thought of more tokens is cut off, and the answer follows; 0: only max_tokens limits it."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """An answer ends before any of these texts."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Randomness; 0 always takes the likeliest token."""
    top_p: Probability = 0.8
    """Smallest set of tokens with this probability in all; 1: off."""
    top_k: int = Field(default=20, ge=0)
    """Only the likeliest k tokens; 0: off."""
    min_p: Probability = 0.0
    """Only tokens with at least this share of the likeliest token's probability; 0: off."""
    presence_penalty: float = Field(default=1.5, ge=-2, le=2)
    """Penalty for tokens that the answer already holds; 0: off."""
    repeat_penalty: float = Field(default=1.0, ge=1, le=2)
    """Penalty factor for tokens among the last 64; 1: off."""
    seed: int = Field(default=-1, ge=-1, le=2**32 - 2)
    """Seed of the random draw; -1: a new one each time."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer, thought included, in tokens."""
    timeout_s: Seconds = 120.0
    """Time limit of one answer, in seconds."""


class TtsSettings(ModelSection):
    """Text to speech."""

    backend: str = ""
    """Engine that speaks; empty: Piper."""
    model: str = ""
    """Name in the catalogue, path of your own file or folder, or hf:OWNER/REPO/FILE; empty: the preset's."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: one for each core, four at the most."""
    kernel: Literal["auto", "onnxruntime"] = "auto"
    """"auto": june's own kernels in bfloat16, if the CPU and the voice support them; "onnxruntime": never."""
    speed: float = Field(default=1.0, ge=0.5, le=2)
    """Speaking rate; 2 is twice as fast."""
    sentence_pause_s: float = Field(default=0.3, ge=0, le=5)
    """Pause between two sentences, in seconds."""
    voices: Voices = {}
    """Voices for languages, such as {de = "de_DE-thorsten-medium"}; tts.model speaks all other languages."""
    timeout_s: Seconds = 30.0
    """Time limit of one sentence, in seconds."""


class ReplySettings(Section):
    """The answer."""

    mode: Literal["mirror", "voice", "text", "both"] = "mirror"
    """"mirror": a voice message gets voice and text, a text gets text; /voice sets it for a chat."""
    echo_transcript: bool = True
    """Show the transcript of a voice message above the answer."""
    stream_text: bool = True
    """Show the text while the model writes it."""
    max_voice_s: float = Field(default=300.0, ge=30)
    """Longest voice message, in seconds; a longer answer is spoken in several messages."""
    overlap: Literal["auto"] | bool = "auto"
    """Speak while the model writes; "auto": if it computes elsewhere, or there are cores for both."""


class AppSettings(Section):
    """A chat app; each has a section of its own, a subclass of this, in its package below june/chat."""

    token: SecretStr = SecretStr("")
    """Secret. What the app knows june by; empty: june is not on it."""


class StoreSettings(Section):
    """The file that holds received messages, messages to send, and conversations."""

    path: PathSetting = Path("june.db")
    """SQLite file; relative to the settings file."""
    keep_audio_days: float = Field(default=30.0, ge=0)
    """Days after which june's own voice messages are deleted from the file; their text stays."""
    keep_messages_days: int = Field(default=0, ge=0)
    """Days after which finished messages are deleted, except those that the model is shown; 0: never."""


Person = str
"""Such as "telegram:123456789": the chat app, and who it is there. `june.settings` checks it."""


class AccessSettings(Section):
    """The people that june answers."""

    owners: list[Person] = []
    """The owners of june, such as "telegram:123456789"."""
    allowed: list[Person] = []
    """Other people that june answers, such as "discord:987654321098765432"."""
    pairing: bool = False
    """Admit a stranger who sends a one-time code that an owner made with /pair."""
    messages_per_minute: int = Field(default=20, ge=1)
    """Messages that one person may send per minute; owners have no limit."""
    audio_s_per_day: float = Field(default=3600.0, gt=0)
    """Seconds of recordings that one person may send in 24 hours; owners have no limit."""


RouteName = Literal["assistant", "queue", "forward"]


class RoutesSettings(Section):
    """What june does with a message."""

    owner: RouteName = "assistant"
    """An owner's messages: "assistant" (june answers), "queue" (they wait for one of the owner's programs) or
    "forward" (they go to the first owner)."""
    allowed: RouteName = "assistant"
    """Messages of allowed people: one of the same three."""
    queue_word: str = ""
    """An owner's note that begins with this word goes to the queue, like /queue; empty: no word."""

    def after_queue_word(self, text: str) -> str | None:
        """Return what follows the queue word at the start of a text; None: no such word, or nothing else."""
        word = self.queue_word.strip()
        begin = text.lstrip()
        rest = begin[len(word) :]
        if not word or begin[: len(word)].casefold() != word.casefold() or rest[:1].isalnum():
            return None
        return rest.lstrip(" \t\n,.:;!?-") or None


class QueueSettings(Section):
    """The owner's queue: messages that programs claim over HTTP."""

    lease_s: float = Field(default=300.0, ge=1, le=86_400)
    """How long a claim on a message lasts, in seconds, unless the program asks for another time."""
    max_attempts: int = Field(default=5, ge=1)
    """How often a message may be claimed without success before june gives it up and tells the owner."""
    question_s: float = Field(default=86_400.0, ge=1)
    """How long a question waits for its answer, in seconds, unless the program asks for another time."""


class ApiSettings(Section):
    """The HTTP endpoint: the owner's queue, health and metrics."""

    host: str = "127.0.0.1"
    """Address that june listens on; other machines need api.token; empty: june does not listen."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """Port that june listens on; 0: any free port, which the log names."""
    token: SecretStr = SecretStr("")
    """Secret. Programs send it as "Authorization: Bearer …"; empty: june serves only this machine."""


class ChatSettings(Section):
    """Conversations in the chat apps."""

    names: list[Annotated[str, Field(min_length=1)]] = ["june"]
    """Names to which june answers in a group when a voice message contains one."""
    busy: Literal["queue", "interrupt"] = "queue"
    """What a new message does while june still answers its chat: wait ("queue"), or end that answer."""
    max_turns: int = Field(default=8, ge=1, le=64)
    """Answers that june makes at the same time, in all chats."""
    max_attempts: int = Field(default=5, ge=1)
    """How often june tries a message if it is killed each time, before it tells the sender."""
    history_messages: int = Field(default=20, ge=0)
    """Messages of a conversation that the model is shown, as far as they fit into its context."""
    shutdown_s: Seconds = 20.0
    """Seconds for current answers to end when june is asked to stop; the rest wait for its restart."""


class DeliverySettings(Section):
    """Sending answers."""

    max_attempts: int = Field(default=20, ge=1)
    """How often june tries to send a message; 20 tries with their growing pauses take an hour."""
    group_window_s: float = Field(default=1.0, ge=0, le=60)
    """Notices to one chat within this many seconds are sent as one message; answers never wait."""
    timeout_s: Seconds = 60.0
    """Time limit of one request to a chat app, in seconds."""


class TelemetrySettings(Section):
    """Logs, traces, and the watchdog."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """"console" for people, "json" for machines; "auto": console on a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is logged."""
    log_content: bool = False
    """Log what people say and june's answers. Personal data: leave it off."""
    log_user_ids: bool = False
    """Log people such as "telegram:123456789" instead of a hash; use it to find your own number."""
    otlp_endpoint: str = Field(default="", pattern="^(https?://.+)?$")
    """Where to send traces with OTLP over HTTP, such as "http://localhost:4318"; empty: nowhere."""
    watchdog_s: float = Field(default=30.0, ge=0)
    """Seconds of stall after which the event loop's stack is shown; june ends after twice as many; 0: off."""
