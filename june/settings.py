"""june's settings: the root of all sections (`june.sections`), read once at start.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, SecretStr, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSourceError

from june import llm, stt, tts
from june.chat.apps import chat_apps, is_person
from june.chat.descriptor import ChatApp
from june.errors import ModelFileError, SettingsError
from june.models.backends import Backend, own_sections
from june.models.references import own_path
from june.sections import (
    PROJECT_ROOT,
    AccessSettings,
    ApiSettings,
    AppSettings,
    AudioSettings,
    ChatSettings,
    DeliverySettings,
    LlmSettings,
    ModelsSettings,
    QueueSettings,
    ReplySettings,
    RoutesSettings,
    Section,
    StoreSettings,
    SttSettings,
    TelemetrySettings,
    TtsSettings,
)

ENV_PREFIX = "JUNE_"


class _Root(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class Settings(_Root):
    """All settings, with one field for each section.

    `complete_settings` adds the sections of the chat apps, and the engines' own sections within [stt], [llm]
    and [tts]; only the tables of apps and engines name them.
    """

    models: ModelsSettings = ModelsSettings()
    audio: AudioSettings = AudioSettings()
    stt: SttSettings = SttSettings()
    llm: LlmSettings = LlmSettings()
    tts: TtsSettings = TtsSettings()
    reply: ReplySettings = ReplySettings()
    store: StoreSettings = StoreSettings()
    access: AccessSettings = AccessSettings()
    routes: RoutesSettings = RoutesSettings()
    queue: QueueSettings = QueueSettings()
    api: ApiSettings = ApiSettings()
    chat: ChatSettings = ChatSettings()
    delivery: DeliverySettings = DeliverySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    def section_of(self, app: ChatApp) -> AppSettings:
        """Return the section of a chat app."""
        section: AppSettings = getattr(self, app.name)
        return section

    def secret_values(self) -> tuple[str, ...]:
        """Return each secret that is set, so that it can be kept out of all output."""
        return tuple(value for name in type(self).model_fields for value in _secrets(getattr(self, name)))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the environment, then secret files, then the settings file, which comes as arguments."""
        del settings_cls, dotenv_settings
        secrets = NestedSecretsSettingsSource(
            file_secret_settings,
            secrets_dir=_secrets_dir(),
            secrets_dir_missing="ok",
            secrets_nested_delimiter="__",
        )
        return env_settings, secrets, init_settings


def _secrets(section: Section) -> Iterator[str]:
    for _, value in section:
        if isinstance(value, Section):
            yield from _secrets(value)
        elif isinstance(value, SecretStr) and value.get_secret_value():
            yield value.get_secret_value()


def complete_settings() -> type[Settings]:
    """Return `Settings` with the section of each chat app, which come first, and those of engines."""
    engines = {room: tuple(own_sections(table).items()) for room, table in _tables().items()}
    return _complete(tuple(chat_apps()), tuple(engines.items()))


def _tables() -> dict[str, Mapping[str, Backend]]:
    """Return the engines of each room, by the room's section."""
    return {"stt": stt.BACKENDS, "llm": llm.BACKENDS, "tts": tts.BACKENDS}


Engines = tuple[tuple[str, tuple[tuple[str, type[Section]], ...]], ...]
"""The engines' own sections, by room and name; tuples, since arguments of a cached function are hashed."""


@cache
def _complete(apps: tuple[ChatApp, ...], engines: Engines) -> type[Settings]:
    sections: dict[str, Any] = {app.name: (app.settings, app.settings()) for app in apps}
    bases: Any = (Settings, create_model("AppSections", __base__=_Root, **sections))
    rooms: dict[str, Any] = {}
    for room, own in engines:
        section = cast("type[Section]", Settings.model_fields[room].annotation)
        within: dict[str, Any] = {name: (kind, kind()) for name, kind in own}
        whole = create_model(section.__name__, __base__=section, __doc__=section.__doc__, **within)
        rooms[room] = (whole, whole())
    complete: type[Settings] = create_model("CompleteSettings", __base__=bases, **rooms)
    return complete


def load_settings(file: Path | None = None) -> Settings:
    """Return the settings from `file` (by default `settings.toml`, if there is one) and the environment.

    Raises:
        SettingsError: a file cannot be read, or a key, type or value is wrong.
    """
    chosen = file or PROJECT_ROOT / "settings.toml"
    complete = complete_settings()
    fields = complete.model_fields.items()
    sections = {name: cast("type[Section]", field.annotation) for name, field in fields}
    from_file: dict[str, Any] = {}
    if file is not None or chosen.exists():
        from_file = _read_toml(chosen)
        try:
            checked = _file_model(complete).model_validate(from_file, strict=True)
        except ValidationError as error:
            raise SettingsError(_explain(error, sections, lambda _: chosen.name)) from None
        _check_people(checked, lambda _: chosen.name)
    try:
        _refuse_unknown_names(sections)
        settings = complete(**from_file)
    except ValidationError as error:
        raise SettingsError(_explain(error, sections, _variable_or_secret)) from None
    except OSError as error:
        raise SettingsError(f"secret file {Path(error.filename).name}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"secret files in {_secrets_dir()}: expected UTF-8 text.") from None
    except UnreadableSourceError as error:  # the folder is too large; the text never holds a value
        raise SettingsError(f"secret files: {error}.") from None
    _check_people(settings, _variable_or_secret)
    folder = chosen.resolve().parent
    changed: dict[str, Any] = {
        name: _beside(getattr(settings, name), folder) for name in complete.model_fields
    }
    for room, table in _tables().items():
        backend = table.get(changed[room].backend or next(iter(table)))
        if backend is not None and backend.opens == "files":  # an unknown one is told when it is opened
            changed[room] = _with_own_paths(changed[room], room, folder)
    return settings.model_copy(update=changed)


def _beside(section: Section, folder: Path) -> Section:
    """Return the section with absolute paths; relative ones start at the settings file's folder."""
    changed: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section):
            changed[name] = _beside(value, folder)
        elif isinstance(value, Path):
            changed[name] = folder / value
    return section.model_copy(update=changed) if changed else section


S = TypeVar("S", SttSettings, LlmSettings, TtsSettings)


def _with_own_paths(section: S, name: str, folder: Path) -> S:
    """Return the section with absolute paths of the owner's own models, in the same way."""
    try:
        changed: dict[str, Any] = {"model": own_path(section.model, folder)}
        if isinstance(section, TtsSettings):
            voices = section.voices.items()
            changed["voices"] = {language: own_path(voice, folder) for language, voice in voices}
    except ModelFileError as error:
        raise SettingsError(f"[{name}]: {error}") from None
    return section.model_copy(update=changed)


@cache
def _file_model(complete: type[Settings]) -> type[BaseModel]:
    """Return the model of the file alone, without the environment and the secret files."""
    sections: dict[str, Any] = {
        name: (field.annotation, field.default) for name, field in complete.model_fields.items()
    }
    return create_model("FileSettings", __config__=Section.model_config, **sections)


def _check_people(settings: Any, name_source: Callable[[tuple[str, ...]], str]) -> None:
    """Check that each person in [access] has the form of a person on one of the chat apps.

    Raises:
        SettingsError: an entry does not have this form.
    """
    for key in ("owners", "allowed"):
        if not all(map(is_person, getattr(settings.access, key))):
            source = name_source(("access", key))
            names = " or ".join(app.title for app in chat_apps())
            raise SettingsError(
                f'{source}: access.{key}: expected people on {names}, such as "telegram:123456789".'
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
        # The parser's message names the place and may quote one character there.
        place = re.search(r"\(at (.*)\)$", str(error))
        where = f" at {place[1]}" if place else ""
        raise SettingsError(f"{file.name}: expected TOML, and found something else{where}.") from None


def _secrets_dir() -> Path:
    chosen = os.environ.get("JUNE_SECRETS_DIR")
    if chosen and not Path(chosen).is_dir():
        raise SettingsError("environment variable JUNE_SECRETS_DIR: expected a folder.")
    return Path(chosen or "/run/secrets")


def _names_outside() -> Iterator[tuple[str, list[str]]]:
    """Yield what a sentence calls each variable and secret file of june's, and the parts of its name."""
    names = [(f"environment variable {variable}", variable.lower()) for variable in os.environ]
    names += [(f"secret file {file.name}", file.name.lower()) for file in sorted(_secrets_dir().glob("*"))]
    for source, name in names:
        if name.startswith(ENV_PREFIX.lower()):
            yield source, name.removeprefix(ENV_PREFIX.lower()).split("__")


def _refuse_unknown_names(sections: Mapping[str, type[Section]]) -> None:
    """Refuse variables and secret files that would otherwise be ignored silently.

    Raises:
        SettingsError: a name has an unknown section, or is not the name of one key.
    """
    for source, (name, *keys) in _names_outside():
        if name not in sections:
            if keys:
                raise SettingsError(f"{source}: {_unknown(name, sections, 'section')}")
            continue
        within = _sections_of(sections[name])
        if len(keys) > 1 and within and keys[0] not in within:
            raise SettingsError(f"{source}: {_unknown(keys[0], within, f'section in [{name}]')}")
        if len(keys) != (2 if keys and keys[0] in within else 1):
            raise SettingsError(f"{source}: expected the name of a key, such as JUNE_STT__WINDOW.")


def _sections_of(section: type[Section]) -> dict[str, type[Section]]:
    """Return the sections within a section, by name."""
    kinds = {name: field.annotation for name, field in section.model_fields.items()}
    return {
        name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)
    }


def _variable_or_secret(location: tuple[str, ...]) -> str:
    sources = (source for source, parts in _names_outside() if parts == list(location))
    return next(sources, "secret files")


def _explain(
    error: ValidationError,
    sections: Mapping[str, type[Section]],
    name_source: Callable[[tuple[str, ...]], str],
) -> str:
    """Return one sentence on the first wrong key: its source, its name and what was expected."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    whole = tuple(map(str, errors[0]["loc"]))
    depth = 3 if len(whole) > 1 and whole[1] in _sections_of(sections.get(whole[0], Section)) else 2
    location = whole[:depth]
    source = name_source(location)
    if errors[0]["type"] == "extra_forbidden":
        return f"{source}: {_unknown_key(location, sections)}"
    expected = dict.fromkeys(
        "a table"
        if each["type"] == "model_type"
        else each["msg"].removeprefix("Input should be ").replace("String should match", "text of the")
        for each in errors
        if tuple(map(str, each["loc"][:depth])) == location
    )
    return f"{source}: {'.'.join(location)}: expected {' or '.join(expected)}."


def _unknown_key(location: tuple[str, ...], sections: Mapping[str, type[Section]]) -> str:
    """Return a sentence on an unknown section or key; for a key that has moved, it says where it is now."""
    *path, name = location
    if not path:
        return _unknown(name, sections, "section")
    section = sections[path[0]]
    within = _sections_of(section)
    if len(path) > 1:
        section, within = within[path[1]], {}
    for inner, kind in within.items():
        if name in kind.model_fields:
            now = (*path, inner, name)
            variable = f"{ENV_PREFIX}{'__'.join(now)}".upper()
            return f"{'.'.join(location)} is now {'.'.join(now)} (in the environment {variable})."
    return _unknown(name, section.model_fields, f"key in [{'.'.join(path)}]")


def _unknown(name: str, known: Iterable[str], kind: str) -> str:
    close = get_close_matches(name, known, n=1)
    expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}."
    return f"{name!r} is not a {kind}; {expected}"
