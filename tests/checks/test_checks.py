"""`python -m june check`: its findings and their remedies."""

import _ctypes
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from june import hardware, kernels
from june.__main__ import app
from june.checks import Finding, machine, models, network
from june.hardware import Gpu
from june.kernels import Kernel
from june.lineup import ChosenModels
from june.models import LocalModel
from june.sections import PROJECT_ROOT, LlmSettings
from june.settings import Settings, complete_settings
from tests.conftest import CATALOGUE
from tests.discord_server import DiscordServer
from tests.models.gguf_writer import gguf, write
from tests.program import write_settings
from tests.telegram_server import TelegramServer

DISCORD_TOKEN = "MTIz.a-token-that.nobody-may-see"  # noqa: S105 (of the test's own server)
WRONG_TOKEN = "987654321:AAH-another-token-nobody-made"  # noqa: S105 (of nobody)


def check(*arguments: str | Path) -> tuple[int, list[str]]:
    """Return the exit status and the lines of output."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.output.splitlines()


def findings(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the findings by name."""
    status, lines = check("--json", *arguments)
    (line,) = lines
    told = json.loads(line)
    assert told["can_start"] is (status == 0)
    return status, {finding.pop("name"): finding for finding in told["findings"]}


@pytest.mark.parametrize(("is_compiled", "status"), [(True, "ok"), (False, "warning")])
def test_it_says_which_kernels_compute(
    is_compiled: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = tmp_path / "made.kernel", tmp_path / "other.kernel"
    if is_compiled:
        made.symlink_to(_ctypes.__file__)  # any library will do
    monkeypatch.setattr(kernels, "LLM", tuple(Kernel(made, frozenset(flags)) for flags in ({"none"}, ())))
    monkeypatch.setattr(kernels, "VOICE", Kernel(other, frozenset({"none"})))
    found = machine.own_kernels()
    assert (found.status, "made.kernel" in found.found, "other" in found.found) == (status, True, False)


def test_it_says_when_no_kernel_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"sse2"}))
    assert machine.own_kernels() == Finding("kernels", "ok", "june's own kernels for this CPU: none")


def test_on_this_machine_june_can_start(settings_file: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "june", "check", "--settings", settings_file],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT_ROOT,
    )
    _, found = findings("--settings", settings_file)
    assert len(child.stdout.splitlines()) == len(found)
    assert child.stderr == ""


def checked_turn(settings_file: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the findings on a turn by stage."""
    child = subprocess.run(
        [sys.executable, "-m", "june", "check", "--turn", "--json", "--settings", settings_file],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT_ROOT,
    )
    assert child.stderr == ""
    told = json.loads(child.stdout)
    found = {each["name"].partition("turn, ")[2]: each for each in told["findings"]}
    assert told["can_start"] is (child.returncode == 0)
    return child.returncode, {stage: each for stage, each in found.items() if stage}


def test_a_turn_is_tried_stage_by_stage(settings_file: Path) -> None:
    status, found = checked_turn(settings_file)
    assert status == 0
    assert list(found) == ["decode", "stt", "llm", "tts", "encode"]
    assert {each["status"] for each in found.values()} == {"ok"}
    assert "hours of sleep" in found["stt"]["found"]


def test_a_turn_that_fails_is_told_with_its_stage(tmp_path: Path) -> None:
    status, found = checked_turn(write_settings(tmp_path, llm={"timeout_s": 0.001}))
    assert status == 1
    assert {stage: each["status"] for stage, each in found.items()} == {
        "decode": "ok",
        "stt": "ok",
        "llm": "failed",
    }
    assert "0.001 s" in found["llm"]["found"]
    assert "models pull" in found["llm"]["remedy"]


def test_a_recording_that_is_refused_fails_the_turn(tmp_path: Path) -> None:
    status, found = checked_turn(write_settings(tmp_path, audio={"max_bytes": 1000}))
    assert status == 1
    assert {stage: each["status"] for stage, each in found.items()} == {"decode": "failed"}


def test_each_line_is_one_finding_with_its_status(settings_file: Path) -> None:
    status, found = findings("--settings", settings_file)
    assert status == 0
    assert found.keys() >= {
        "python", "libraries", "compiler", "container", "user", "capabilities", "clock", "settings", "gpu",
        "choice", "stt", "llm", "tts", "disk", "store", "memory", "chat apps"
    }  # fmt: skip
    assert all(finding.keys() == {"status", "found", "remedy"} for finding in found.values())
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")
    _, lines = check("--settings", settings_file)
    for line, (name, finding) in zip(lines, found.items(), strict=True):
        assert line.split(maxsplit=1)[0] == finding["status"]
        assert name in line


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("[stt]\nwindw = 8", "did you mean 'window'?"),
        ("[stt]\nwindow = 3", "stt.window"),
        ("[llm", "expected TOML"),
    ],
)
def test_wrong_settings_are_named_with_where_to_look(wrong: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(wrong)
    status, found = findings("--settings", file)
    assert status == 1
    assert found["settings"]["status"] == "failed"
    assert told in found["settings"]["found"]
    assert "settings.example.toml" in found["settings"]["remedy"]
    status, lines = check("--settings", file)
    assert status == 1
    assert [line.split(maxsplit=1)[0] for line in lines].count("failed") == 1
    assert len(lines) == len(found)


def test_missing_models_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[models]\ndirectory = "empty"\npreset = "starter"\n')
    (tmp_path / "empty").mkdir()
    status, found = findings("--settings", file)
    assert status == 1
    for role, model in {"stt": "whisper-tiny-en", "llm": "smollm2-135m-instruct", "tts": "en_US-joe"}.items():
        assert found[role]["status"] == "failed"
        assert f"python -m june models pull {model}" in found[role]["remedy"]
    assert found["disk"]["status"] in {"ok", "warning"}


def test_a_model_that_is_not_in_the_catalogue_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[llm]\nmodel = "gpt-17"\n')
    status, found = findings("--settings", file)
    assert status == 1
    assert "gpt-17" in found["models"]["found"]
    assert "models list" in found["models"]["remedy"]


def test_missing_models_are_no_obstacle_where_june_pulls_them_at_its_start(tmp_path: Path) -> None:
    file = write_settings(tmp_path, models={"directory": str(tmp_path / "empty"), "pull_at_start": True})
    status, found = findings("--settings", file)
    assert status == 0
    assert [found[role]["status"] for role in ("stt", "llm", "tts")] == ["warning"] * 3
    assert "still to pull take 0.4 GB" in found["disk"]["found"]


# --- the machine ---


@pytest.mark.parametrize(
    ("mark", "text", "kind"),
    [
        (".dockerenv", "", "Docker"),
        ("run/.containerenv", "", "Podman"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/pod1\n", "kubepods"),
    ],
)
def test_a_container_is_told_by_the_marks_of_its_engine(
    mark: str, text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("container", raising=False)
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text(text)
    is_inside, finding = machine.container(tmp_path)
    assert is_inside
    assert kind in finding.found


def test_a_plain_machine_is_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("container", raising=False)
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    assert machine.container(tmp_path)[0] is False


@pytest.mark.parametrize(
    ("held", "barred", "status", "told"),
    [
        ("0000000000000000", 1, "ok", "holds none; may gain none"),
        ("0000000000000000", 0, "ok", "may gain them"),
        ("0000000000200001", 0, "warning", "holds 2 and needs none"),
    ],
)
def test_capabilities_are_counted(held: str, barred: int, status: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "status"
    file.write_text(f"Name:\tjune\nCapEff:\t{held}\nNoNewPrivs:\t{barred}\n")
    finding = machine.capabilities(file)
    assert finding.status == status
    assert told in finding.found


def test_a_clock_that_stands_before_junes_release_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    assert machine.clock().status == "warning"
    assert "1970-01-02" in machine.clock().found


# --- disk and memory ---


def test_a_store_whose_folder_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a file, no folder"
    file.touch()
    status, found = findings("--settings", write_settings(tmp_path, store={"path": str(file / "june.db")}))
    assert status == 1
    assert "cannot hold june's messages" in found["store"]["found"]
    assert "store.path" in found["store"]["remedy"]


def chosen(llm: str) -> ChosenModels:
    names = ("whisper-tiny-en", llm, "en_US-joe-medium")
    stt, language_model, tts = (LocalModel(CATALOGUE[name], CATALOGUE[name].path(Path())) for name in names)
    return ChosenModels(stt, language_model, tts, reason="")


def test_memory_that_does_not_hold_the_cache_is_told_with_what_would_help() -> None:
    settings = complete_settings().model_validate({"llm": {"llama_cpp": {"kv_tokens": 2_000_000_000}}})
    (finding,) = models.memory(settings, chosen("smollm2-135m-instruct"), ())
    assert finding.status == "warning"
    assert "2000000000 tokens of cache for 8 conversations" in finding.found
    assert "llm.llama_cpp.kv_tokens" in finding.remedy


def test_a_context_longer_than_the_models_own_is_refused() -> None:
    settings = Settings(llm=LlmSettings(context_tokens=8193))
    found = {each.name: each for each in models.memory(settings, chosen("smollm2-135m-instruct"), ())}
    assert found["context"].status == "failed"
    assert "trained for 8,192 tokens of context, and llm.context_tokens is 8,193" in found["context"].found


def test_a_large_model_without_a_gpu_is_refused() -> None:
    (finding,) = models.memory(Settings(), chosen("qwen3-32b"), ())
    assert (finding.name, finding.status) == ("gpu memory", "failed")
    assert "no NVIDIA GPU was found" in finding.found


def test_a_gpu_that_llama_cpp_was_not_built_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("june.llm.llama_cpp.library.gpu_offload_supported", lambda: False)
    gpu = Gpu("GPU of a test", 48_000_000_000, 40_000_000_000, (8, 9), unified_memory=False)
    found = {each.name: each for each in models.gpu_libraries(Settings(), (gpu,))}
    assert found["cuda, llm"].found == "llama.cpp was built without CUDA"


def test_a_large_model_of_the_owners_own_without_a_gpu_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "large.gguf", gguf(tensors=[(100_000, 100_000)]))
    settings = write_settings(tmp_path, llm={"model": str(file), "context_tokens": 2048})
    status, found = findings("--settings", settings)
    assert status == 1
    assert found["llm"]["found"] == "large.gguf, your own"
    assert "large.gguf has 10 billion parameters, more than" in found["gpu memory"]["found"]


def test_what_is_wrong_with_a_file_of_the_owners_own_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "broken.gguf", b"<html>")
    status, found = findings("--settings", write_settings(tmp_path, llm={"model": "./broken.gguf"}))
    assert status == 1
    assert f"llm.model: {file} is not a GGUF file that june can use" in found["models"]["found"]


@pytest.mark.parametrize("is_pulled_at_start", [False, True])
def test_a_model_on_hugging_face_that_is_not_here_is_told(is_pulled_at_start: bool, tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "models": {"pull_at_start": is_pulled_at_start},
        "llm": {"model": "hf:a/b/c.gguf"},
    }
    status, found = findings("--settings", write_settings(tmp_path, **sections))
    assert (status, found["models"]["status"]) == ((0, "warning") if is_pulled_at_start else (1, "failed"))
    remedy = "june pulls it" if is_pulled_at_start else "python -m june models pull hf:a/b/c.gguf"
    assert remedy in found["models"]["remedy"]
    status, found = findings("--turn", "--settings", write_settings(tmp_path, **sections))
    assert (status, found["turn"]["status"]) == (1, "failed")
    assert found["turn"]["found"] == "no turn was made: llm.model: hf:a/b/c.gguf is not here yet"
    assert "python -m june models pull" in found["turn"]["remedy"]


@pytest.mark.parametrize(("free_gb", "status"), [(40, "ok"), (21.5, "warning")])
def test_gpu_memory_is_compared_with_the_model_and_the_cache_of_all_slots(
    free_gb: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("june.llm.llama_cpp.library.gpu_offload_supported", lambda: True)
    gpu = Gpu("GPU of a test", 48_000_000_000, int(free_gb * 1e9), (8, 9), unified_memory=False)
    settings = complete_settings().model_validate(
        {"llm": {"context_tokens": 2048, "llama_cpp": {"kv_tokens": 16_384}}}
    )
    told = {each.name: each for each in models.memory(settings, chosen("qwen3-32b"), (gpu,))}
    assert told["gpu memory"].status == status
    assert "25.1 GB with 16384 tokens of cache" in told["gpu memory"].found
    assert told["memory"].status == "ok"


# --- ports, tokens and what the platforms say ---


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("section", "key", "more"),
    [("api", "port", {}), ("telegram", "webhook_port", {"token": WRONG_TOKEN, "mode": "webhook"})],
)
def test_a_port_that_is_taken_is_named_with_its_key(section: str, key: str, more: dict[str, str]) -> None:
    def look(port: int) -> Finding:
        keys: dict[str, dict[str, Any]] = {"api": {"host": "127.0.0.1", "port": 0}}
        keys[section] = keys.get(section, {}) | more | {key: port}
        chosen = complete_settings().model_validate(keys)
        return list(network.ports(chosen))[-1]

    with taken_port() as port:
        finding = look(port)
    assert finding.status == "failed"
    assert f"127.0.0.1:{port}" in finding.found
    assert f"{section}.{key}" in finding.remedy
    assert look(port).status == "ok"


def test_an_endpoint_that_others_reach_needs_a_token() -> None:
    open_to_all = complete_settings().model_validate({"api": {"host": "0.0.0.0", "port": 0}})  # noqa: S104 - not opened
    exposure, port = network.ports(open_to_all)
    assert exposure.status == "failed"
    assert "api.token" in exposure.found
    assert port.status == "ok"


@pytest.mark.parametrize(
    ("app_name", "token", "is_right"),
    [
        ("telegram", "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", True),
        ("telegram", "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", False),
        ("telegram", "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw and a comment", False),
        ("discord", "MTA4NDU2Nzg5MDEyMzQ1Njc4OQ.GxYz12.a1-b2_c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9", True),
        ("discord", "Bot MTA4NDU2Nzg5MDEyMzQ1Njc4OQ.GxYz12.a1-b2_c3", False),
        ("discord", "bm8gbnVtYmVy.GxYz12.a1-b2_c3", False),
        ("discord", "a1b2c3d4e5f6a7b8c9d0", False),  # the client secret, which stands beside it in the portal
    ],
)
def test_a_token_is_looked_at_before_anybody_is_asked(app_name: str, token: str, *, is_right: bool) -> None:
    (finding,) = network.tokens(complete_settings().model_validate({app_name: {"token": token}}))
    assert finding.status == ("ok" if is_right else "failed")
    assert token not in finding.found + finding.remedy


async def online(folder: Path, **sections: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
    """Return the exit status of `check --online`, the last finding of each name, and the whole output."""
    file = write_settings(folder, **sections)
    command = (sys.executable, "-m", "june", "check", "--online", "--json", "--settings", str(file))
    child = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=PROJECT_ROOT
    )
    said, _ = await child.communicate()
    found = {each["name"]: each for each in json.loads(said)["findings"]}
    return child.returncode or 0, found, said.decode()


async def test_online_the_platforms_say_whose_the_tokens_are(tmp_path: Path) -> None:
    async with TelegramServer() as telegram, DiscordServer(token=DISCORD_TOKEN) as discord:
        status, found, said = await online(
            tmp_path,
            telegram={"token": telegram.token, "api_base": telegram.base_url},
            discord={"token": DISCORD_TOKEN, "api_base": discord.api_base, "gateway": discord.gateway},
            telemetry={"otlp_endpoint": f"{telegram.base_url}/of-no-traces"},
        )
        assert [call.method for call in telegram.calls] == ["getMe"]
    assert status == 0
    assert "accepts the token of @june" in found["telegram"]["found"]
    assert "accepts the token of @june" in said.partition(discord.api_base)[2]
    assert discord.gateway in found["discord"]["found"]
    assert found["clock, online"]["status"] == "ok"
    assert "/of-no-traces answers" in found["traces"]["found"]
    assert telegram.token not in said
    assert DISCORD_TOKEN not in said


async def test_online_a_refused_token_and_a_silent_server_are_told_without_the_token(tmp_path: Path) -> None:
    with taken_port() as port:
        gone = f"http://127.0.0.1:{port}"
    async with TelegramServer() as telegram:
        status, found, said = await online(
            tmp_path,
            telegram={"token": WRONG_TOKEN, "api_base": telegram.base_url},
            discord={"token": DISCORD_TOKEN, "api_base": gone, "gateway": gone.replace("http", "ws")},
        )
    assert status == 1
    assert found["telegram"]["status"] == "failed"
    assert "does not accept the token" in found["telegram"]["found"]
    assert found["discord"]["status"] == "warning"
    assert f"{gone} does not answer" in said
    assert WRONG_TOKEN not in said
    assert DISCORD_TOKEN not in said


@asynccontextmanager
async def server_with_date(date: str) -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"ok": True, "result": {"username": "clock"}}, headers={"Date": date})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_online_a_clock_that_differs_from_the_servers_is_told(tmp_path: Path) -> None:
    async with server_with_date(formatdate(time.time() - 3600, usegmt=True)) as address:
        status, found, _ = await online(tmp_path, telegram={"token": WRONG_TOKEN, "api_base": address})
    assert status == 0
    assert found["clock, online"]["status"] == "warning"
    assert "s ahead of" in found["clock, online"]["found"]
    assert "NTP" in found["clock, online"]["remedy"]
