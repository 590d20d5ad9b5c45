"""The image, built from the Dockerfile by a real engine and run as compose.yaml and compose.cpu.yaml run it.

A fresh Debian stands for Ubuntu, june uses this machine's network, and the tests' Bot API server is its
Telegram; nothing else differs. The first run compiles llama.cpp, and later ones find it in the engine's build
cache.
"""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.models import load_catalogue
from june.sections import PROJECT_ROOT
from june.settings import Settings
from june.stt.faster_whisper import FasterWhisper
from tests.deploy.container_engine import BASE_IMAGE, Engine, obstacle, running_engine
from tests.program import Program, free_port
from tests.telegram_server import ALICE, TelegramServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(obstacle()), reason=obstacle())]

MAX_IMAGE_BYTES = 1_000_000_000
GRACE_S = 45
"""Of compose.yaml."""
OVERRIDE = """
services:
  june:
    build:
      network: host
      args: {{BUILD_IMAGE: {base}, RUNTIME_IMAGE: {base}}}
    network_mode: {network}
    restart: "{restart}"
    ports: !reset []
    environment: {environment}
volumes:
  models: {{name: {models}}}
secrets:
  june_telegram__token: {{file: /shared_folder/secrets/june_telegram__token}}
  june_api__token: {{file: /shared_folder/secrets/june_api__token}}
"""


@dataclass
class Service:
    """june as Compose runs it, in a project of its own."""

    engine: Engine
    project: str

    async def compose(self, *command: str) -> str:
        """Run one of Compose's commands for this project; what it wrote."""
        files = ["compose.yaml", "compose.cpu.yaml", f"/shared_folder/{self.project}.yaml"]
        options = [f"--project-name={self.project}", *(f"--file={file}" for file in files)]
        return await self.engine.run("docker", "compose", *options, *command)

    async def container(self) -> str:
        """Its id."""
        return (await self.compose("ps", "--all", "--quiet", "june")).strip()

    async def inspect(self, template: str) -> str:
        """Return what `docker inspect` says about the container."""
        return (
            await self.engine.run("docker", "inspect", f"--format={template}", await self.container())
        ).strip()

    async def execute(self, *command: str) -> tuple[int, str]:
        """Run a command in the container, as its user; exit status and output."""
        return await self.engine.attempt("docker", "exec", await self.container(), *command)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Program]:
        """Start it; what it logs. It is taken away at the end of the block."""
        try:
            await self.compose("up", "--detach", "--no-build", "june")
            follow = ["docker", "logs", "--follow", await self.container()]
            process = await self.engine.start(*follow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            program = Program(process)
            try:
                yield program
            finally:
                if program.is_running:
                    await program.kill()
        finally:
            await self.compose("down", "--timeout=1")

    async def stop(self) -> int:
        """Stop it as Compose does; the exit status. It has to end before Docker kills it."""
        begin_s = time.monotonic()
        await self.compose("stop")
        assert time.monotonic() - begin_s < GRACE_S
        return int(await self.inspect("{{.State.ExitCode}}"))


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """Start an engine and build the image."""
    async with running_engine(PROJECT_ROOT) as running:
        await service(running, "build").compose("build", "june")
        yield running


def service(
    engine: Engine,
    project: str,
    server: TelegramServer | None = None,
    *,
    network: str = "host",
    restart: str = "unless-stopped",
    models: str = "june-test-models",
    **variables: str,
) -> Service:
    """Return june in a project of its own, with these variables and this server for Telegram."""
    secrets = engine.folder / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    (secrets / "june_telegram__token").write_text(server.token if server else "123456789:AAH-no-token")
    (secrets / "june_api__token").write_text("a token of the test's own")
    environment = {
        "JUNE_ACCESS__OWNERS": json.dumps([f"telegram:{ALICE}"]),
        "JUNE_API__HOST": "127.0.0.1",
        "JUNE_API__PORT": str(free_port()),
        "JUNE_LLM__TEMPERATURE": "0",
        "JUNE_LLM__PRESENCE_PENALTY": "0",
        "JUNE_TELEGRAM__API_BASE": server.base_url if server else "http://127.0.0.1:1",
        **variables,
    }
    override = OVERRIDE.format(
        base=BASE_IMAGE, network=network, restart=restart, models=models, environment=json.dumps(environment)
    )
    (engine.folder / f"{project}.yaml").write_text(override)
    return Service(engine, project)


async def test_the_image_has_at_most_a_gigabyte_and_each_library_of_llama_cpp_once(engine: Engine) -> None:
    size_bytes = int(await engine.run("docker", "image", "inspect", "--format={{.Size}}", "june:cpu"))
    assert size_bytes <= MAX_IMAGE_BYTES
    find = ["find", "/opt", "/usr", "-type", "f", "(", "-name", "libllama*", "-o", "-name", "libggml*", ")"]
    found = (
        await engine.run("docker", "run", "--rm", "--entrypoint", *find[:1], "june:cpu", *find[1:])
    ).split()
    assert sorted(Path(file).name for file in found) == [
        "libggml-base.so",
        "libggml-cpu.so",
        "libggml.so",
        "libllama.so",
    ]


@pytest.mark.parametrize(
    "files", [["compose.yaml"], ["compose.yaml", "compose.cpu.yaml"]], ids=["gpu", "cpu"]
)
async def test_compose_itself_reads_the_files_with_and_without_limits_in_the_environment(
    engine: Engine, files: list[str]
) -> None:
    command = ["docker", "compose", *(f"--file={file}" for file in files), "config", "--format=json"]

    async def limits(*variables: str) -> dict[str, Any]:
        june = json.loads(await engine.run("env", *variables, *command))["services"]["june"]
        return dict(june["deploy"]["resources"]["limits"])

    assert "cpus" not in await limits()
    assert "memory" not in await limits("MEMORY_LIMIT=0")
    assert await limits("MEMORY_LIMIT=6g", "CPU_LIMIT=1.5") == {
        "cpus": 1.5,
        "memory": str(6 * 2**30),
        "pids": 512,
    }


async def test_a_first_start_pulls_the_models_and_answers_a_voice_message_by_voice(
    engine: Engine, stt: FasterWhisper, settings: Settings, questions: tuple[Question, ...]
) -> None:
    async with TelegramServer() as server:
        june = service(engine, "voice", server, JUNE_LLM__MAX_TOKENS="40")  # the tiny Whisper hears it well
        async with june.up() as log:
            await log.logged("pull.finished", timeout_s=300)
            await log.logged("june.started")
            server.push_file("voice", questions[0].audio)
            answer = await server.wait_for(lambda call: call.ok and call.method == "sendVoice", timeout_s=120)
            heard = await stt.transcribe(decode(answer.voice, settings.audio))
            written = await said_by_june(june)
            assert len(written.split()) >= 3
            assert wrong_words(written, heard.text) <= len(written.split()) // 3
            await is_shut_in(june)
            await is_healthy(june)
            assert await june.stop() == 0


async def said_by_june(june: Service) -> str:
    """Return the text of june's answer from june's store."""
    command = ["python", "-m", "june", "messages", "history", "--json", "--chat", f"telegram:{ALICE}"]
    status, said = await june.execute(*command)
    assert status == 0, said
    (answer,) = [it for it in json.loads(said) if it["direction"] == "out" and it["kind"] == "voice"]
    return str(answer["text"])


async def is_shut_in(june: Service) -> None:
    """Check that june is an ordinary user without capabilities, on a read-only file system."""
    _, status = await june.execute("cat", "/proc/1/status")
    about = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE))
    assert set(about["Uid"].split()) == set(about["Gid"].split()) == {"10001"}
    assert [int(about[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert about["NoNewPrivs"] == "1"
    for folder in ("/", "/app", "/opt/june", "/etc", "/usr/bin"):
        assert (await june.execute("touch", f"{folder}/new"))[0] != 0
    assert await june.inspect("{{.HostConfig.ReadonlyRootfs}}") == "true"


async def is_healthy(june: Service) -> None:
    """Return as soon as Docker calls the container healthy."""
    events = ["docker", "events", "--since=10m", "--format={{.Status}}", "--filter=event=health_status"]
    process = await june.engine.start(
        *events,
        f"--filter=container={await june.container()}",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"health_status: healthy\n"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(("shutdown_s", "answers"), [("20", 1), ("0.1", 0)], ids=["finished", "waits"])
async def test_stopped_in_the_middle_of_a_turn_it_ends_with_zero_and_the_answer_comes(
    engine: Engine, questions: tuple[Question, ...], shutdown_s: str, answers: int
) -> None:
    async with TelegramServer() as server:
        june = service(engine, f"turn-{answers}", server, JUNE_CHAT__SHUTDOWN_S=shutdown_s)
        async with june.up() as log:
            await log.logged("june.started", timeout_s=300)
            server.push_file("voice", questions[0].audio)
            await server.wait_for(lambda call: call.method == "sendChatAction")
            assert await june.stop() == 0
            assert len(server.sent("sendVoice")) == answers
            if not answers:
                await june.compose("start")
                await server.wait_for(lambda call: call.ok and call.method == "sendVoice", timeout_s=120)


@asynccontextmanager
async def endless_index() -> AsyncIterator[str]:
    """Serve a package index whose files begin but never end, and yield its address."""

    async def page(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        wheel = next(it for it in wheels if it.requirement.partition("==")[0] == name)
        file = wheel.requirement.replace("==", "-").replace("-", "_", name.count("-")) + "-py3-none-any.whl"
        return web.Response(text=f'<a href="/files/{file}">{file}</a>', content_type="text/html")

    async def file(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(10**8)})
        await response.prepare(request)
        await response.write(bytes(2**20))
        await asyncio.Event().wait()
        return response

    wheels = [wheel for model in load_catalogue().values() for wheel in model.wheels]
    app = web.Application()
    app.router.add_get("/simple/{name}/", page)
    app.router.add_get("/files/{file}", file)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/simple"
    finally:
        await runner.cleanup()


async def test_stopped_in_the_middle_of_a_first_pull_it_ends_with_zero(engine: Engine) -> None:
    async with TelegramServer() as server, endless_index() as index:
        june = service(engine, "pull", server, models="june-test-no-models", PIP_INDEX_URL=index)
        async with june.up() as log:
            await log.logged("pull.advanced")
            assert await june.stop() == 0
            assert "june.started" not in log.output


async def test_without_a_network_the_first_start_fails_and_its_last_words_are_the_reason(
    engine: Engine,
) -> None:
    june = service(engine, "alone", network="none", restart="no", models="june-test-none")
    async with june.up():
        container = await june.container()
        async with asyncio.timeout(120):
            status = await engine.run("docker", "wait", container)
        said = await engine.run("docker", "logs", container)
        assert int(status) == 2
        reason = "no connection to the package index (NameResolutionError)."
        assert re.fullmatch(rf"june: pip cannot download \S+: {re.escape(reason)}", said.splitlines()[-1])
