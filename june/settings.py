"""june's settings: typed sections, read once at start.

Where a value comes from, the strongest first:

1. the environment: `JUNE_SECTION__KEY`, such as `JUNE_STT__WINDOW=30`;
2. a secret file: `june_section__key` in the folder `JUNE_SECRETS_DIR` (by default `/run/secrets`);
3. the settings file: `--settings FILE`, else `settings.toml` beside `settings.example.toml`;
4. the default, which `settings.example.toml` shows.

A wrong key, type or value raises `SettingsError`, whose one sentence names the source, the key and
what was expected, and never the value: it might be a secret.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSourceError

from june.errors import SettingsError

ENV_PREFIX = "JUNE_"

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
    """Gates against hostile recordings, and the clean-up of honest ones."""

    max_bytes: int = Field(default=20_000_000, ge=1)
    """Largest recording accepted, in bytes."""
    max_duration_s: Seconds = 600.0
    """Longest recording accepted, in decoded seconds."""
    cleanup: bool = False
    """High-pass filter, noise reduction and even loudness before transcription."""
    opus_bitrate: int = Field(default=32_000, ge=6_000, le=128_000)
    """Bit rate of a reply, in bit/s."""


class SttSettings(Section):
    """Speech to text."""

    backend: Literal["faster_whisper"] = "faster_whisper"
    """Engine that transcribes."""
    model: str = ""
    """Name in the catalogue; empty: the preset's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; "auto": the GPU if its libraries load, else the CPU."""
    compute_type: Literal["auto", "int8", "int8_float16", "float16", "float32"] = "auto"
    """Arithmetic of the weights; "auto": int8 on the CPU, float16 on a GPU."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: as many as the model's size makes use of, at most one for each core."""
    language: str = Field(default="", pattern=r"^([a-z]{2,3})?$")
    """ISO 639-1 code of the language spoken, such as "en"; empty: heard from the recording."""
    beam_size: int = Field(default=1, ge=1, le=16)
    """Hypotheses kept while decoding; 1 is greedy and fastest."""
    window: Literal["auto"] | Annotated[float, Field(ge=5, le=30)] = "auto"
    """Seconds the encoder looks at; "auto" follows the recording, 30 is Whisper's own."""
    vad: bool = True
    """Skip stretches without speech before transcribing."""
    vad_min_silence_ms: int = Field(default=500, ge=0, le=10_000)
    """Shortest silence that is skipped, in milliseconds."""
    no_speech_threshold: Probability = 0.6
    """A segment this probably without speech is dropped, if its log-probability is low too; 0 to 1."""
    log_prob_threshold: float = Field(default=-1.0, le=0)
    """Mean log-probability a token below which a segment counts as unsure."""
    compression_ratio_threshold: float = Field(default=2.4, gt=1)
    """Text that compresses better than this is a repetition, and is transcribed once more."""
    timeout_s: Seconds = 60.0
    """Time limit of one transcription, in seconds."""


class LlmSettings(Section):
    """The language model."""

    backend: Literal["llama_cpp"] = "llama_cpp"
    """Engine that writes the answers."""
    model: str = ""
    """Name in the catalogue; empty: the preset's."""
    context_tokens: int = Field(default=4096, ge=256)
    """Context of one conversation, prompt and answer, in tokens."""
    slots: int = Field(default=8, ge=1, le=64)
    """Conversations that are kept in the cache, and decoded together."""
    kv_tokens: int = Field(default=0, ge=0)
    """Cache of all conversations together, in tokens, never less than one context; 0: one context on the
    CPU, on a GPU one for each slot as far as half of its free memory goes."""
    max_waiting: int = Field(default=64, ge=0)
    """Answers that may wait for a slot or for cache; one more is refused."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: one for each core."""
    kernel: Literal["auto", "llama.cpp"] = "auto"
    """"auto": june's own, for attention and weights in Q8_0 and Q4_1, where the CPU allows them; "llama.cpp":
    never."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers computed on the GPU; -1: all."""
    gpu_partial: bool = False
    """Allow that a part of the layers stays on the CPU."""
    gpu_only_above_b: float = Field(default=8.0, gt=0)
    """A model with more billion parameters than this never loads on the CPU."""
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    """Number format of the attention cache; q8_0 halves it and needs flash attention."""
    flash_attention: Literal["auto"] | bool = "auto"
    """Fused attention kernels; "auto": where the backend has them."""
    prefill_chunk_tokens: int = Field(default=256, ge=16, le=4096)
    """Prompt tokens evaluated at a time, of all conversations; running answers go on between chunks."""
    prefill_pause_s: float = Field(default=0.2, gt=0, le=10)
    """How long a chunk may hold up running answers, in seconds; it becomes smaller for that."""
    state_dir: OptionalPath = ""
    """Folder, relative to the settings file, for what the cache held of conversations that lost their place
    or were there when june ended: their history is not evaluated anew. Personal data; empty: none is kept."""
    state_max_gb: float = Field(default=2.0, gt=0)
    """Size of that folder in GB; the oldest are deleted first."""
    system_prompt: str = (
        "You are june, a helpful voice assistant. Answer in one to three short sentences of plain, "
        "speakable text, without lists or markdown."
    )
    """What the model is told before each conversation."""
    thinking: bool = False
    """Let the model think before it answers, if it can; the thought is never spoken."""
    thinking_budget_tokens: int = Field(default=0, ge=0)
    """A thought of more tokens is brought to its end, and the answer follows; 0: no limit but max_tokens."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """An answer ends before any of these words or signs."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Randomness; 0 always takes the likeliest token."""
    top_p: Probability = 0.8
    """Smallest set of tokens with this probability in all; 1: off."""
    top_k: int = Field(default=20, ge=0)
    """Only the likeliest k tokens; 0: off."""
    min_p: Probability = 0.0
    """Only tokens at least this probable against the likeliest; 0: off."""
    presence_penalty: float = Field(default=1.5, ge=-2, le=2)
    """Penalty for tokens the answer already holds; 0: off."""
    repeat_penalty: float = Field(default=1.0, ge=1, le=2)
    """Factor against tokens seen in the last 64; 1: off."""
    seed: int = Field(default=-1, ge=-1, le=2**32 - 2)
    """Seed of the random draw; -1: a new one each time."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer, thought included, in tokens."""
    timeout_s: Seconds = 120.0
    """Time limit of one answer, in seconds."""


class TtsSettings(Section):
    """Text to speech."""

    backend: Literal["piper"] = "piper"
    """Engine that speaks."""
    model: str = ""
    """Name in the catalogue; empty: the preset's."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: one for each core, four at the most."""
    kernel: Literal["auto", "onnxruntime"] = "auto"
    """"auto": june's own, in bfloat16, where the CPU and the voice allow it; "onnxruntime": never."""
    speed: float = Field(default=1.0, ge=0.5, le=2)
    """Speaking rate; 2 is twice as fast."""
    sentence_pause_s: float = Field(default=0.3, ge=0, le=5)
    """Pause between two sentences, in seconds."""
    voices: dict[str, str] = {}
    """Voice by the language spoken, such as {de = "de_DE-thorsten-medium"}; others: the model above."""
    timeout_s: Seconds = 30.0
    """Time limit of one sentence, in seconds."""


class ReplySettings(Section):
    """The answer."""

    mode: Literal["mirror", "voice", "text", "both"] = "mirror"
    """"mirror": voice with its text to a voice message, text to text; /voice sets it for a chat."""
    echo_transcript: bool = True
    """Show above the answer what was heard."""
    stream_text: bool = True
    """Show the text while it is written."""
    max_voice_s: float = Field(default=300.0, ge=30)
    """Longest voice message; a longer answer is spoken in several, in seconds."""
    overlap: Literal["auto"] | bool = "auto"
    """Speak while the model still writes; "auto": unless they would share too few cores."""


class TelegramSettings(Section):
    """Telegram."""

    token: SecretStr = SecretStr("")
    """Secret. The bot's token, from @BotFather; empty: june is not on Telegram."""
    api_base: str = Field(default="https://api.telegram.org", pattern="^https?://")
    """Address of the Bot API, Telegram's or one's own server's."""
    mode: Literal["polling", "webhook"] = "polling"
    """Whether june asks for messages, or is called at webhook_url."""
    webhook_url: str = Field(default="", pattern="^(https://.*)?$")
    """Public address that Telegram calls."""
    webhook_secret: SecretStr = SecretStr("")
    """Secret. What Telegram sends in the header X-Telegram-Bot-Api-Secret-Token."""
    webhook_host: str = "127.0.0.1"
    """Address that june listens on for the webhook."""
    webhook_port: int = Field(default=8443, ge=0, le=65_535)
    """Port that june listens on for the webhook."""


class DiscordSettings(Section):
    """Discord."""

    token: SecretStr = SecretStr("")
    """Secret. The bot's token, from the developer portal; empty: june is not on Discord."""
    api_base: str = Field(default="https://discord.com/api/v10", pattern="^https?://")
    """Address of Discord's API."""
    gateway: str = Field(default="wss://gateway.discord.gg/", pattern="^wss?://")
    """Address of Discord's gateway."""


class StoreSettings(Section):
    """The file that holds what was received, what is to be sent, and what was said."""

    path: PathSetting = Path("june.db")
    """SQLite file; relative to the settings file."""
    keep_audio_days: float = Field(default=30.0, ge=0)
    """Days after which june's own voice messages are deleted from it; their text stays."""
    keep_messages_days: int = Field(default=0, ge=0)
    """Days after which messages that are done are deleted, but for what the model is shown; 0: never."""


Person = Annotated[str, Field(pattern=r"^(telegram|discord):\d{1,20}$")]


class AccessSettings(Section):
    """Who is served."""

    owners: list[Person] = []
    """People whom june belongs to, such as "telegram:123456789"."""
    allowed: list[Person] = []
    """People whom june answers too, such as "discord:987654321098765432"."""
    pairing: bool = False
    """Let a stranger in who sends a one-time code that an owner made with /pair."""
    messages_per_minute: int = Field(default=20, ge=1)
    """Messages that one person may send in a minute; owners any number."""
    audio_s_per_day: float = Field(default=3600.0, gt=0)
    """Seconds of recordings that one person may send in 24 hours; owners any number."""


RouteName = Literal["assistant", "queue", "forward"]


class RoutesSettings(Section):
    """What becomes of a message."""

    owner: RouteName = "assistant"
    """An owner's messages: "assistant" (june answers), "queue" (they wait for one of the owner's programs) or
    "forward" (they go to the first owner)."""
    allowed: RouteName = "assistant"
    """The messages of people who are allowed: one of the same three."""
    queue_word: str = ""
    """An owner's note that begins with this word goes to the queue, as after /queue; empty: none does."""

    def after_queue_word(self, text: str) -> str | None:
        """What follows the queue's word at the beginning of a text; None: it does not begin with that."""
        word = self.queue_word.strip()
        begin = text.lstrip()
        rest = begin[len(word) :]
        if not word or begin[: len(word)].casefold() != word.casefold() or rest[:1].isalnum():
            return None
        return rest.lstrip(" \t\n,.:;!?-") or None


class QueueSettings(Section):
    """The owner's queue: messages that programs claim over HTTP."""

    lease_s: float = Field(default=300.0, ge=1, le=86_400)
    """How long a claimed message is its program's, unless the program asks otherwise, in seconds."""
    max_attempts: int = Field(default=5, ge=1)
    """How often a message is claimed in vain before it is given up and the owner is told."""
    question_s: float = Field(default=86_400.0, ge=1)
    """How long a question waits for its answer, unless the program asks otherwise, in seconds."""


class ApiSettings(Section):
    """The HTTP endpoint: the owner's queue, health and metrics."""

    host: str = "127.0.0.1"
    """Address that june listens on; other machines need api.token; empty: june does not listen."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """Port that june listens on; 0: any that is free, which the log names."""
    token: SecretStr = SecretStr("")
    """Secret. What programs send as "Authorization: Bearer …"; empty: only this machine is served."""


class ChatSettings(Section):
    """Conversations in the chat apps."""

    names: list[Annotated[str, Field(min_length=1)]] = ["june"]
    """Names that june answers to in a group, when one is spoken in a voice message."""
    busy: Literal["queue", "interrupt"] = "queue"
    """What a new message does while its chat's answer is in the making: wait, or end that answer."""
    max_turns: int = Field(default=8, ge=1, le=64)
    """Answers in the making at a time, over all chats."""
    max_attempts: int = Field(default=5, ge=1)
    """How often a message is tried when june is killed over it, before its sender is told."""
    history_messages: int = Field(default=20, ge=0)
    """Messages of a conversation that the model is shown, as far as its context holds them."""
    shutdown_s: Seconds = 20.0
    """Time that answers in the making have when june is asked to stop; the rest wait for its return."""


class DeliverySettings(Section):
    """Sending answers."""

    max_attempts: int = Field(default=20, ge=1)
    """How often a message is sent before june gives it up; 20 with their growing pauses are an hour."""
    group_window_s: float = Field(default=1.0, ge=0, le=60)
    """Notices to one chat within so many seconds go as one message; answers never wait."""
    timeout_s: Seconds = 60.0
    """Time limit of one request to a chat app, in seconds."""


class TelemetrySettings(Section):
    """What june tells of itself: logs, traces, and stacks when it stands still."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """"console" for people, "json" for machines; "auto": console on a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is logged."""
    log_content: bool = False
    """Log what people say and what is answered. Personal data: leave it off."""
    log_user_ids: bool = False
    """Log who somebody is, such as "telegram:123456789", and not only a hash; tells you your own number."""
    otlp_endpoint: str = Field(default="", pattern="^(https?://.+)?$")
    """Where traces are sent by OTLP over HTTP, such as "http://localhost:4318"; empty: nowhere."""
    watchdog_s: float = Field(default=30.0, ge=0)
    """Seconds that the event loop may stand still until its stack is shown, then until june ends; 0: any."""


class Settings(BaseSettings):
    """All settings; one field a section."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    models: ModelsSettings = ModelsSettings()
    audio: AudioSettings = AudioSettings()
    stt: SttSettings = SttSettings()
    llm: LlmSettings = LlmSettings()
    tts: TtsSettings = TtsSettings()
    reply: ReplySettings = ReplySettings()
    telegram: TelegramSettings = TelegramSettings()
    discord: DiscordSettings = DiscordSettings()
    store: StoreSettings = StoreSettings()
    access: AccessSettings = AccessSettings()
    routes: RoutesSettings = RoutesSettings()
    queue: QueueSettings = QueueSettings()
    api: ApiSettings = ApiSettings()
    chat: ChatSettings = ChatSettings()
    delivery: DeliverySettings = DeliverySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    def secret_values(self) -> tuple[str, ...]:
        """Each secret that is set, for whoever must keep it out of what is shown."""
        values = (value for name in type(self).model_fields for _, value in getattr(self, name))
        return tuple(
            value.get_secret_value()
            for value in values
            if isinstance(value, SecretStr) and value.get_secret_value()
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then secret files, then the settings file, which comes as arguments."""
        del settings_cls, dotenv_settings
        secrets = NestedSecretsSettingsSource(
            file_secret_settings,
            secrets_dir=_secrets_dir(),
            secrets_dir_missing="ok",
            secrets_nested_delimiter="__",
        )
        return env_settings, secrets, init_settings


def load_settings(file: Path | None = None) -> Settings:
    """The settings from `file` (by default `settings.toml`, if there is one) and the environment.

    Raises:
        SettingsError: a file cannot be read, or a key, type or value is wrong.
    """
    chosen = file or PROJECT_ROOT / "settings.toml"
    from_file: dict[str, Any] = {}
    if file is not None or chosen.exists():
        from_file = _read_toml(chosen)
        try:
            _FileSettings.model_validate(from_file, strict=True)
        except ValidationError as error:
            raise SettingsError(_explain(error, lambda _: chosen.name)) from None
    try:
        _refuse_unknown_names()
        settings = Settings(**from_file)
    except ValidationError as error:
        raise SettingsError(_explain(error, _variable_or_secret)) from None
    except OSError as error:
        raise SettingsError(f"secret file {Path(error.filename).name}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"secret files in {_secrets_dir()}: expected UTF-8 text.") from None
    except UnreadableSourceError as error:  # the folder is too large; never the value
        raise SettingsError(f"secret files: {error}.") from None
    folder = chosen.resolve().parent
    models = settings.models.model_copy(update={"directory": folder / settings.models.directory})
    store = settings.store.model_copy(update={"path": folder / settings.store.path})
    llm = settings.llm
    if llm.state_dir:
        llm = llm.model_copy(update={"state_dir": folder / llm.state_dir})
    return settings.model_copy(update={"models": models, "llm": llm, "store": store})


_FileSettings = create_model(
    "_FileSettings",
    __config__=Section.model_config,
    **{name: (field.annotation, field.default) for name, field in Settings.model_fields.items()},  # type: ignore[call-overload]
)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file.name}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file.name}: expected UTF-8 text.") from None
    except RecursionError:
        raise SettingsError(f"{file.name}: expected tables of plain values, not nested so deeply.") from None
    except ValueError as error:  # a TOMLDecodeError, or an integer of thousands of digits
        # The parser's message names the place, and may quote a single character there.
        place = re.search(r"\(at (.*)\)$", str(error))
        where = f" at {place[1]}" if place else ""
        raise SettingsError(f"{file.name}: expected TOML, and found something else{where}.") from None


def _secrets_dir() -> Path:
    chosen = os.environ.get("JUNE_SECRETS_DIR")
    if chosen and not Path(chosen).is_dir():
        raise SettingsError("environment variable JUNE_SECRETS_DIR: expected a folder.")
    return Path(chosen or "/run/secrets")


def _names_outside() -> Iterator[tuple[str, list[str]]]:
    """What a sentence calls each variable and secret file of june's, and the parts of its name."""
    names = [(f"environment variable {variable}", variable.lower()) for variable in os.environ]
    names += [(f"secret file {file.name}", file.name.lower()) for file in sorted(_secrets_dir().glob("*"))]
    for source, name in names:
        if name.startswith(ENV_PREFIX.lower()):
            yield source, name.removeprefix(ENV_PREFIX.lower()).split("__")


def _refuse_unknown_names() -> None:
    """An unknown section outside of the file would otherwise be ignored without a word."""
    for source, (section, *keys) in _names_outside():
        if section in Settings.model_fields and len(keys) != 1:
            raise SettingsError(f"{source}: expected the name of a key, such as JUNE_STT__WINDOW.")
        if section not in Settings.model_fields and keys:
            raise SettingsError(f"{source}: {_unknown(section, Settings.model_fields, 'section')}")


def _variable_or_secret(location: tuple[str, ...]) -> str:
    sources = (source for source, parts in _names_outside() if parts == list(location))
    return next(sources, "secret files")


def _explain(error: ValidationError, name_source: Callable[[tuple[str, ...]], str]) -> str:
    """One sentence on the first wrong key: its source, its name and what was expected."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    location = tuple(str(part) for part in errors[0]["loc"][:2])
    key = ".".join(location)
    source = name_source(location)
    if errors[0]["type"] == "extra_forbidden":
        fields = Settings.model_fields
        if len(location) == 1:
            return f"{source}: {_unknown(key, fields, 'section')}"
        section = cast("type[Section]", fields[location[0]].annotation)
        return f"{source}: {_unknown(location[1], section.model_fields, f'key in [{location[0]}]')}"
    expected = dict.fromkeys(
        each["msg"].removeprefix("Input should be ").replace("String should match", "text of the")
        for each in errors
        if each["loc"][:2] == location
    )
    return f"{source}: {key}: expected {' or '.join(expected)}."


def _unknown(name: str, known: Iterable[str], kind: str) -> str:
    close = get_close_matches(name, known, n=1)
    expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}."
    return f"{name!r} is no {kind}; {expected}"
