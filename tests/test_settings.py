"""Where settings come from, and the one sentence for a wrong setting."""

import json
import os
import re
import string
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from june import llm, stt
from june import settings as module
from june.errors import SettingsError
from june.llm import LlmBackend
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.models.backends import Backend
from june.sections import PROJECT_ROOT, ModelsSettings, Section
from june.settings import Settings, complete_settings, load_settings

EXAMPLE = PROJECT_ROOT / "settings.example.toml"
SECRET = "hf_Zq7wXk29vLtR"  # noqa: S105 - nobody's
FIELDS = complete_settings().model_fields.items()
SECTIONS = {name: cast("type[Section]", field.annotation) for name, field in FIELDS}
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]

PEOPLE = 'access.owners: expected people on Telegram or Discord, such as "telegram:123456789".'

Load = Callable[[str], Settings]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove june's variables, except for the folder of secret files, and the owner's settings file."""
    for variable in os.environ:
        if variable.upper().startswith("JUNE_"):
            monkeypatch.delenv(variable)
    (tmp_path / "secrets").mkdir()
    monkeypatch.setenv("JUNE_SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a settings file with this text."""

    def load_text(text: str) -> Settings:
        file = tmp_path / "settings.toml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file)

    return load_text


def complaint(load: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as raised:
        load()
    return str(raised.value)


# The example


def commented_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line of TOML with the comment right above it, unwrapped."""
    comment: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
        else:
            if line:
                yield line, " ".join(comment)
            comment = []


def unwrapped(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, type, object]]:
    """Each key of a table and of those in it, with the type of its value, since 1 == 1.0 == True."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield f"[{path}{key}]", dict, None
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", type(value), value


def described(name: str, section: type[Section]) -> Iterator[tuple[str, str]]:
    """Each section and key with what its docstring says."""
    yield f"[{name}]", unwrapped(section.__doc__)
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from described(f"{name}.{key}", field.annotation)
        else:
            yield key, unwrapped(field.description)


def test_the_example_has_each_section_and_key_with_its_default() -> None:
    example = tomllib.loads(EXAMPLE.read_text("utf-8"))
    defaults = json.loads(complete_settings()().model_dump_json())
    assert list(flat(example)) == list(flat(defaults))


def test_the_example_describes_each_section_and_key_as_its_docstring_does() -> None:
    expected = [pair for name, section in SECTIONS.items() for pair in described(name, section)]
    found = [
        (line.partition(" = ")[0], comment) for line, comment in commented_lines(EXAMPLE.read_text("utf-8"))
    ]
    assert found == expected
    assert all(comment for _, comment in found)


def test_loading_the_example_is_loading_nothing() -> None:
    example, nothing = load_settings(EXAMPLE), load_settings()
    assert example.models.directory == PROJECT_ROOT / "models"
    assert example.store.path == PROJECT_ROOT / "june.db"
    assert example.model_copy(update={"models": nothing.models, "store": nothing.store}) == nothing
    assert example.models.model_copy(update={"directory": nothing.models.directory}) == nothing.models


# Where a value comes from


def test_the_environment_is_stronger_than_a_secret_file_that_than_the_file_and_that_than_the_default(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load("").tts.speed == 1.0
    assert load("tts.speed = 1.1").tts.speed == 1.1
    (tmp_path / "secrets" / "june_tts__speed").write_text("1.2\n")
    assert load("tts.speed = 1.1").tts.speed == 1.2
    monkeypatch.setenv("JUNE_TTS__SPEED", "1.3")
    assert load("tts.speed = 1.1").tts.speed == 1.3


def test_sources_are_merged_key_by_key(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secrets" / "june_llm__model").write_text("from-a-secret-file")
    monkeypatch.setenv("JUNE_LLM__SEED", "7")
    llm = load("[llm]\ntop_k = 5").llm
    assert (llm.model, llm.seed, llm.top_k, llm.max_tokens) == ("from-a-secret-file", 7, 5, 512)


def test_the_file_beside_the_example_is_read_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("stt.beam_size = 5")
    assert load_settings().stt.beam_size == 5


def test_a_secret_file_gives_its_text_without_the_line_end(load: Load, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "june_models__hugging_face_token").write_text(f"{SECRET}\n")
    assert load("").models.hugging_face_token == SecretStr(SECRET)


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_relative_models_directory_is_relative_to_the_settings_file(
    source: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory, expected in (("voices", tmp_path / "voices"), ("/srv/voices", Path("/srv/voices"))):
        if source == "environment":
            monkeypatch.setenv("JUNE_MODELS__DIRECTORY", directory)
        text = f"models.directory = '{directory}'" if source == "file" else ""
        assert load(text).models.directory == expected


def test_a_language_may_have_its_region(load: Load) -> None:
    settings = load("[stt]\nlanguage = 'en-GB'\n[tts]\nvoices = {de-DE = 'v', PT_br = 'w', zh-Hant = 'x'}")
    assert settings.stt.language == "en"
    assert settings.tts.voices == {"de": "v", "pt": "w", "zh": "x"}


@pytest.mark.parametrize("state_dir", ["", Path("/var/lib/june/states")])
def test_a_folder_that_may_be_none_is_the_same_after_json(state_dir: Path | Literal[""]) -> None:
    settings = LlamaCppSettings(state_dir=state_dir)
    assert LlamaCppSettings.model_validate_json(settings.model_dump_json()).state_dir == state_dir


# The section of one engine


def test_an_engines_own_section_is_read_from_each_source(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(text: str) -> LlamaCppSettings:
        return load(text).llm.own(LlamaCppSettings)

    assert own("") == LlamaCppSettings()
    assert own("[llm.llama_cpp]\nkv_type = 'q8_0'").kv_type == "q8_0"
    (tmp_path / "secrets" / "june_llm__llama_cpp__kv_type").write_text("q4_0\n")
    assert own("[llm.llama_cpp]\nkv_type = 'q8_0'").kv_type == "q4_0"
    monkeypatch.setenv("JUNE_LLM__LLAMA_CPP__KV_TYPE", "f16")
    chosen = own("[llm.llama_cpp]\nkv_type = 'q8_0'\nthreads = 2\nstate_dir = 'states'")
    assert (chosen.kv_type, chosen.threads, chosen.state_dir) == ("f16", 2, tmp_path / "states")


MOVED = "llm.kv_type is now llm.llama_cpp.kv_type (in the environment JUNE_LLM__LLAMA_CPP__KV_TYPE)."


def test_a_key_that_has_moved_to_an_engines_section_is_told_where_it_is_now(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complaint(lambda: load("[llm]\nkv_type = 'q8_0'")) == f"settings.toml: {MOVED}"
    load("")
    with monkeypatch.context() as patch:
        patch.setenv("JUNE_LLM__KV_TYPE", "q8_0")
        assert complaint(load_settings) == f"environment variable JUNE_LLM__KV_TYPE: {MOVED}"
    (tmp_path / "secrets" / "june_llm__kv_type").write_text("q8_0")
    assert complaint(load_settings) == f"secret file june_llm__kv_type: {MOVED}"


class OwnSettings(Section):
    """An engine with a secret."""

    key: SecretStr = SecretStr("")
    """Secret."""


def test_an_engine_brings_its_section_by_the_line_in_its_rooms_table(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Backend("nowhere:Engine", settings=f"{OwnSettings.__module__}:OwnSettings")
    monkeypatch.setitem(stt.BACKENDS, "other", line)
    settings = load(f"[stt.other]\nkey = '{SECRET}'")
    assert settings.stt.own(OwnSettings).key.get_secret_value() == SECRET
    assert settings.secret_values() == (SECRET,)


def test_the_path_of_ones_own_model_is_relative_to_the_settings_file(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("JUNE_STT__MODEL", "./whisper")
    settings = load(
        "[llm]\nmodel = 'my.gguf'\n[tts]\nmodel = '~/joe.onnx'\n"
        "voices = {de = '../de', fr = 'hf:a/b/c.onnx', it = 'it_IT-paola-medium', es = '/v/es.onnx'}"
    )
    assert settings.stt.model == str(tmp_path / "whisper")
    assert settings.llm.model == str(tmp_path / "my.gguf")
    assert settings.tts.model == "/home/someone/joe.onnx"
    assert list(settings.tts.voices.values()) == [
        str(tmp_path / "../de"),
        "hf:a/b/c.onnx",
        "it_IT-paola-medium",
        "/v/es.onnx",
    ]


@pytest.mark.parametrize("backend", ["server", "not one"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "qwen.gguf", "~nobody/x.gguf"])
def test_what_a_server_calls_its_model_is_not_taken_for_a_path(
    backend: str, model: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llm.BACKENDS, "server", LlmBackend("nowhere:Engine", opens="endpoint"))
    assert load(f"[llm]\nbackend = '{backend}'\nmodel = '{model}'").llm.model == model


def test_a_model_with_a_nul_in_its_path_is_refused(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"^\[llm\]: expected a model's path without a NUL character\.$"):
        load('llm.model = "a\\u0000.gguf"')


def test_the_home_of_nobody_is_refused(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"\[llm\]: expected a model's path in a home that exists"):
        load("llm.model = '~nobody-of-that-name/x.gguf'")


def test_a_models_directory_may_be_in_the_home(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load("models.directory = '~/voices'").models.directory == Path("/home/someone/voices")


@pytest.mark.parametrize(
    ("section", "key", "text", "expected"),
    [
        ("stt", "window", "30", 30.0),
        ("stt", "window", "12.5", 12.5),
        ("stt", "window", "auto", "auto"),
        ("stt", "vad", "false", False),
        ("stt", "beam_size", "5", 5),
        ("reply", "overlap", "auto", "auto"),
        ("reply", "overlap", "true", True),
        ("llm__llama_cpp", "flash_attention", "false", False),
        ("llm", "system_prompt", "[1, 2]", "[1, 2]"),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_key(
    section: str, key: str, text: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"JUNE_{section}__{key}".upper(), text)
    value = attrgetter(f"{section.replace('__', '.')}.{key}")(load_settings())
    assert (type(value), value) == (type(expected), expected)


# What a wrong one gets


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[sttt]", "'sttt' is not a section; did you mean 'stt'?"),
        (
            "a = 1",
            f"'a' is not a section; expected one of {', '.join(SECTIONS)}.",
        ),
        ("[stt]\nwindwo = 30", "'windwo' is not a key in [stt]; did you mean 'window'?"),
        (
            "[models]\nx = 1",
            f"'x' is not a key in [models]; expected one of {', '.join(ModelsSettings.model_fields)}.",
        ),
        ('[models]\n"a\\nb" = 1', r"'a\nb' is not a key in [models]; expected one of "),
        ("[stt]\nbeam_size = 'five'", "stt.beam_size: expected a valid integer."),
        ("[stt]\nbeam_size = '5'", "stt.beam_size: expected a valid integer."),
        ("[stt]\nbeam_size = true", "stt.beam_size: expected a valid integer."),
        ("[stt]\nbeam_size = 5.0", "stt.beam_size: expected a valid integer."),
        ("[stt]\nbeam_size = 99", "stt.beam_size: expected less than or equal to 16."),
        ("[stt]\nvad = 1", "stt.vad: expected a valid boolean."),
        ("[stt]\nvad = [true]", "stt.vad: expected a valid boolean."),
        ("[stt]\nwindow = 3", "stt.window: expected 'auto' or greater than or equal to 5."),
        ("[stt]\nwindow = '30'", "stt.window: expected 'auto' or a valid number."),
        ("[stt]\nwindow = true", "stt.window: expected 'auto' or a valid number."),
        ("[stt]\nlanguage = 'English'", "stt.language: expected a language code such as de or pt-BR."),
        ("[stt]\nlanguage = 'xx'", "stt.language: expected a language code such as de or pt-BR."),
        ("[tts]\nvoices = {german = 'v'}", "tts.voices: expected a language code such as de or pt-BR."),
        ("[tts]\nvoices = {de = ''}", "tts.voices: expected a voice for each language code, such as de."),
        (
            "[tts]\nvoices = {de-DE = 'v', de-AT = 'w'}",
            "tts.voices: expected one voice for each language, whatever its region.",
        ),
        ("[access]\nowners = ['telegram:alice']", PEOPLE),
        ("[access]\nowners = ['telegram:1', 'discord:1x']", PEOPLE),
        ("[access]\nowners = ['matrix:1']", PEOPLE),
        ("[access]\nallowed = ['discord:']", PEOPLE.replace("owners", "allowed")),
        ("[stt]\ntimeout_s = nan", "stt.timeout_s: expected a finite number."),
        ("[reply]\noverlap = 1", "reply.overlap: expected 'auto' or a valid boolean."),
        ("[models]\npreset = 'cpu'", "models.preset: expected 'auto', 'starter' or 'gpu'."),
        (
            "[models]\ndirectory = 5",
            "models.directory: expected a path, in a home that exists if it begins with ~.",
        ),
        (
            "[models]\ndirectory = '~no-such-user/models'",
            "models.directory: expected a path, in a home that exists if it begins with ~.",
        ),
        (
            "[llm.llama_cpp]\nkv_typ = 'f16'",
            "'kv_typ' is not a key in [llm.llama_cpp]; did you mean 'kv_type'?",
        ),
        ("[llm.llama_cpp]\nkv_type = 'f32'", "llm.llama_cpp.kv_type: expected 'f16', 'q8_0' or 'q4_0'."),
        ("[llm]\nllama_cpp = 3", "llm.llama_cpp: expected a table."),
        ("stt = 3", "stt: expected a table."),
        ("[stt]\nwindow =", "expected TOML, and found something else at end of document."),
        ("[stt]\nwindow = 1 2", "expected TOML, and found something else at line 2, column 12."),
        ("[stt]\nthreads = 1" + "0" * 5000, "expected TOML, and found something else."),
        ("stt = " + "[" * 5000, "expected tables of plain values, not nested so deeply."),
    ],
)
def test_a_wrong_file_gets_one_sentence_that_names_it_the_key_and_what_was_expected(
    text: str, sentence: str, load: Load
) -> None:
    said = complaint(lambda: load(text))
    assert said.startswith(f"settings.toml: {sentence}")
    assert sentence.endswith(" of ") or said == f"settings.toml: {sentence}"
    assert len(said.splitlines()) == 1


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes("[llm]\nsystem_prompt = 'Grüße'".encode("latin-1"))
    assert complaint(lambda: load_settings(file)) == "mine.toml: expected UTF-8 text."


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    missing = complaint(lambda: load_settings(tmp_path / "mine.toml"))
    assert missing == "mine.toml: cannot be read: No such file or directory."
    folder = complaint(lambda: load_settings(tmp_path / "secrets"))
    assert folder == "secrets: cannot be read: Is a directory."


WRONG_NAMES_AND_VALUES = [
    ("june_sttt__window", "30", "'sttt' is not a section; did you mean 'stt'?"),
    ("june_stt__windwo", "30", "'windwo' is not a key in [stt]; did you mean 'window'?"),
    ("june_stt", '{"window": 30}', "expected the name of a key, such as JUNE_STT__WINDOW."),
    ("june_stt__window__s", "30", "expected the name of a key, such as JUNE_STT__WINDOW."),
    ("june_llm__llama_cpp", '{"threads": 1}', "expected the name of a key, such as JUNE_STT__WINDOW."),
    ("june_llm__llama_cpp__threads__x", "1", "expected the name of a key, such as JUNE_STT__WINDOW."),
    (
        "june_llm__llamacpp__kv_type",
        "f16",
        "'llamacpp' is not a section in [llm]; did you mean 'llama_cpp'?",
    ),
    ("june_llm__llama_cpp__thread", "1", "'thread' is not a key in [llm.llama_cpp]; did you mean 'threads'?"),
    ("june_llm__llama_cpp__kv_type", "f32", "llm.llama_cpp.kv_type: expected 'f16', 'q8_0' or 'q4_0'."),
    ("june_stt__beam_size", "99", "stt.beam_size: expected less than or equal to 16."),
    (
        "june_stt__beam_size",
        "true",
        "stt.beam_size: expected a valid integer, unable to parse string as an integer.",
    ),
    (
        "june_stt__window",
        "",
        "stt.window: expected 'auto' or a valid number, unable to parse string as a number.",
    ),
    ("june_access__owners", '["matrix:1"]', PEOPLE),
    ("june_models__preset", "cpu", "models.preset: expected 'auto', 'starter' or 'gpu'."),
    (
        "june_models__directory",
        "~no-such-user/models",
        "models.directory: expected a path, in a home that exists if it begins with ~.",
    ),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_NAMES_AND_VALUES)
def test_a_wrong_variable_gets_one_sentence_that_names_it(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (name, name.upper()):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert complaint(load_settings) == f"environment variable {variable}: {sentence}"


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_NAMES_AND_VALUES)
def test_a_wrong_secret_file_gets_one_sentence_that_names_it(
    name: str, value: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "secrets" / name).write_text(value)
    assert complaint(load_settings) == f"secret file {name}: {sentence}"


def test_variables_of_other_programs_are_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUNE_HOME", "JUNEAU__WEATHER", "OTHER__KEY"):
        monkeypatch.setenv(name, "1")
        (tmp_path / "secrets" / name.lower()).write_text("1")
    here = load_settings()
    assert here == load_settings(EXAMPLE).model_copy(update={"models": here.models, "store": here.store})


def test_a_secret_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets" / "june_models__hugging_face_token").write_bytes(b"\xff\xfe")
    assert complaint(load_settings) == f"secret files in {tmp_path / 'secrets'}: expected UTF-8 text."


def test_a_secret_file_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        file = Path(folder) / "june_models__hugging_face_token"
        file.write_text(SECRET)
        file.chmod(0)
        monkeypatch.setenv("JUNE_SECRETS_DIR", folder)
        monkeypatch.setattr(module, "PROJECT_ROOT", Path(folder))
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(65534)
        try:
            assert complaint(load_settings) == f"secret file {file.name}: Permission denied."
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("folder", ["nowhere", "file", "~no-such-user"])
def test_a_folder_of_secret_files_that_is_none_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUNE_SECRETS_DIR", str(tmp_path / folder) if folder[0] != "~" else folder)
    assert complaint(load_settings) == "environment variable JUNE_SECRETS_DIR: expected a folder."


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        f"[models]\npreset = '{SECRET}'",
        f"[models]\nhugging_face_token = ['{SECRET}']",
        f"[models]\nhugging_face_token = {{a = '{SECRET}'}}",
        f"[models]\nhugging_face_token = {SECRET}",
        f"[models]\nhugging_face_token = '{SECRET}",
        f"[models]\nhuging_face_token = '{SECRET}'",
        f"[stt]\nlanguage = '{SECRET}'",
        f"models = '{SECRET}'",
    ],
)
def test_the_sentence_on_a_wrong_file_holds_no_value(text: str, load: Load) -> None:
    assert SECRET not in complaint(lambda: load(text))


@pytest.mark.parametrize(
    "name",
    [
        "june_models",
        "june_models__preset",
        "june_models__huging_face_token",
        "june_models__hugging_face_token__x",
        "june_model__hugging_face_token",
        "june_stt__window",
    ],
)
def test_the_sentence_on_a_wrong_variable_or_secret_file_holds_no_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(name.upper(), SECRET)
        assert SECRET not in complaint(load_settings)
    (tmp_path / "secrets" / name).write_text(SECRET)
    assert SECRET not in complaint(load_settings)


@pytest.mark.parametrize("show", [repr, str, Settings.model_dump_json, lambda settings: str(settings.models)])
def test_settings_can_be_shown_without_their_secrets(show: Callable[[Settings], str], load: Load) -> None:
    settings = load(f"[models]\nhugging_face_token = '{SECRET}'")
    assert settings.models.hugging_face_token.get_secret_value() == SECRET
    assert SECRET not in show(settings)


# Whatever is written


printable = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
garbage = st.one_of(
    printable.map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "false", "auto", "'auto'", "1979-05-27", "[]", "[1, 'a']", "{}", "{a = 1}", ""]),
    st.text(string.printable, max_size=20),
)


def loads_or_says_so_in_one_line(file: Path | None = None) -> None:
    try:
        loaded: Any = load_settings(file)
    except SettingsError as error:
        assert re.fullmatch(r"[^\n\r]+[.?]", str(error))  # noqa: PT017 - both outcomes are right
    else:
        assert isinstance(loaded, Settings)


@given(place=st.sampled_from(KEYS), value=garbage)
def test_whatever_a_key_is_in_the_file_loading_succeeds_or_says_so_in_one_line(
    place: tuple[str, str], value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.toml"
    file.write_text(f"[{place[0]}]\n{place[1]} = {value}\n", encoding="utf-8")
    loads_or_says_so_in_one_line(file)


@given(place=st.sampled_from(KEYS), value=printable | garbage)
def test_whatever_a_key_is_in_the_environment_loading_succeeds_or_says_so_in_one_line(
    place: tuple[str, str], value: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("__".join(("JUNE_" + place[0], place[1])), value)
        loads_or_says_so_in_one_line()


@given(data=st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
def test_whatever_the_file_holds_loading_succeeds_or_says_so_in_one_line(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.toml"
    file.write_bytes(data)
    loads_or_says_so_in_one_line(file)
