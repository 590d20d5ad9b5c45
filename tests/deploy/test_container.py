"""The container, as far as a machine without a container engine can tell.

`image` lays out what the Dockerfile copies, with a Python that has june's pinned libraries and no other, and
runs the Dockerfile's own command line in it, under its environment, as an ordinary user who may write to
/models, /data and /tmp only. `test_image` builds the image and runs that.
"""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientSession

from june.bench.recordings import Question
from june.models import STARTER
from june.sections import PROJECT_ROOT
from june.settings import Settings, complete_settings
from tests.program import Program, free_port
from tests.telegram_server import ALICE, TelegramServer

NOBODY = 65_534
API_TOKEN = "a token of the test's own"  # noqa: S105
DOCKERFILE = (PROJECT_ROOT / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line.strip()
]
"""Each as its keyword and the rest."""
RUNTIME = INSTRUCTIONS[max(number for number, each in enumerate(INSTRUCTIONS) if each[0] == "FROM") :]


def instruction(keyword: str) -> str:
    """Return the arguments of the final stage's only instruction with this keyword."""
    (found,) = [rest for name, rest in RUNTIME if name == keyword]
    return found


def test_the_image_runs_as_a_user_with_a_fixed_number_who_is_not_root() -> None:
    user, _, group = instruction("USER").partition(":")
    assert user == group == "10001"


def test_june_is_process_one_and_gets_the_signal_that_docker_sends() -> None:
    assert json.loads(instruction("ENTRYPOINT")) == ["python", "-m", "june"]
    assert json.loads(instruction("CMD")) == ["run"]
    assert instruction("STOPSIGNAL") == "SIGTERM"


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a linter of this environment at the repository's root."""
    tool = Path(sys.executable).with_name(name)
    return subprocess.run([tool, *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    done = run_tool("hadolint", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_let_in_and_what_is_secret_is_not() -> None:
    let_in = {
        line.removeprefix("!")
        for line in (PROJECT_ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {source for name, rest in INSTRUCTIONS if name == "COPY" for source in _sources(rest)}
    assert let_in == copied
    assert all(any(PROJECT_ROOT.glob(source)) for source in copied)


def test_no_other_change_of_the_lock_compiles_llama_cpp_again(tmp_path: Path) -> None:
    """It is compiled from the build tools and from its own pin, which one step takes out of the lock."""
    (compiling,) = [number for number, (_, rest) in enumerate(INSTRUCTIONS) if "LLAVA_BUILD" in rest]
    begin = max(number for number in range(compiling) if INSTRUCTIONS[number][0] == "FROM")
    copied = [rest for name, rest in INSTRUCTIONS[begin:compiling] if name == "COPY"]
    assert copied == ["requirements/build.txt ./", "--from=pin /llama.txt ./"]
    (taking,) = [rest for name, rest in INSTRUCTIONS[:begin] if name == "RUN"]
    here = taking.replace("/runtime.txt", str(PROJECT_ROOT / "requirements/runtime.txt"))
    subprocess.run(["sh", "-c", here.replace("/llama.txt", str(tmp_path / "llama.txt"))], check=True)  # noqa: S607
    pin = r"llama-cpp-python==\S+( \\\n +--hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(pin, (tmp_path / "llama.txt").read_text())


def test_a_machine_with_few_cores_or_an_older_engine_takes_what_is_written() -> None:
    limits = composed("compose.yaml")["services"]["june"]["deploy"]["resources"]["limits"]
    assert limits["cpus"] == "${CPU_LIMIT:-0}"
    assert "--start-interval" not in DOCKERFILE


def _sources(copy: str) -> list[str]:
    return [] if copy.startswith("--from") else copy.split()[:-1]


# --- compose.yaml ---


class Loader(yaml.SafeLoader):
    """Knows Compose's !reset, which takes a key away when two files are merged."""


Loader.add_constructor("!reset", lambda *_: None)


def composed(*names: str) -> dict[str, Any]:
    """One Compose file, or the first with the others over it."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = _merge(merged, yaml.load((PROJECT_ROOT / name).read_text("utf-8"), Loader))  # noqa: S506 - safe
    return merged


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        both = below | {key: _merge(below.get(key), value) for key, value in above.items()}
        return {key: value for key, value in both.items() if value is not None or key in SHORT_FORMS}
    return above


SHORT_FORMS = {"models", "data", "prometheus", "grafana"}
"""Volumes with no options are keys without a value."""
VARIANTS = {"gpu": ("compose.yaml",), "cpu": ("compose.yaml", "compose.cpu.yaml")}


@pytest.mark.parametrize("names", VARIANTS.values(), ids=VARIANTS)
def test_compose_files_keep_to_the_schema_and_to_the_linters_rules(names: tuple[str], tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(composed(*names)))
    checked = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    assert checked.returncode == 0, checked.stdout
    # No limit of cores is right for every machine: the owner sets one, or has none.
    (tmp_path / ".env").write_text("CPU_LIMIT=2\n")
    linted = run_tool("compose-lint", "check", "--format", "json", "--fail-on", "low", file)
    rules = set(re.findall(r'"rule_id": ?"(CL-\d+)"', linted.stdout))
    # CL-0019 asks for digests of images, which cannot be known before an image is built or looked up.
    assert rules == {"CL-0019"}, linted.stdout


def test_the_cpu_variant_asks_for_no_gpu() -> None:
    june = composed(*VARIANTS["gpu"])["services"]["june"]
    assert june["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "reservations" not in composed(*VARIANTS["cpu"])["services"]["june"]["deploy"]["resources"]


@pytest.mark.parametrize("names", VARIANTS.values(), ids=VARIANTS)
def test_compose_shuts_june_in(names: tuple[str]) -> None:
    june = composed(*names)["services"]["june"]
    assert june["read_only"]
    assert june["cap_drop"] == ["ALL"]
    assert june["security_opt"] == ["no-new-privileges:true"]
    assert [volume.partition(":")[2] for volume in june["volumes"]] == ["/models", "/data"]
    assert [mount.partition(":")[0] for mount in june["tmpfs"]] == ["/tmp"]  # noqa: S108 - the container's
    assert all(port.startswith("127.0.0.1:") for port in june["ports"])


def test_compose_waits_longer_than_june_takes_to_end() -> None:
    june = composed("compose.yaml")["services"]["june"]
    assert int(june["stop_grace_period"].removesuffix("s")) > 2 * Settings().chat.shutdown_s


def test_only_what_watches_june_is_in_the_profile_observability() -> None:
    services = composed("compose.yaml")["services"]
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles.pop("june") == []
    assert set(profiles) == {"prometheus", "grafana", "jaeger"}
    assert all(each == ["observability"] for each in profiles.values())


def test_what_compose_mounts_from_here_is_here_and_read_only() -> None:
    mounts = [
        volume.split(":")
        for service in composed("compose.yaml")["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert len(mounts) == 3
    for source, _, mode in mounts:
        assert (PROJECT_ROOT / source).is_dir()
        assert mode == "ro"


def environments() -> Iterator[tuple[str, str]]:
    """Every variable of june's that the image and the Compose files set."""
    yield from shell_pairs(instruction("ENV"))
    for names in VARIANTS.values():
        yield from composed(*names)["services"]["june"]["environment"].items()


def shell_pairs(text: str) -> Iterator[tuple[str, str]]:
    for word in text.split():
        key, _, value = word.partition("=")
        yield key, value


def test_every_variable_and_secret_of_junes_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JUNE_")]:
        monkeypatch.delenv(name)
    secrets = [name for name in composed("compose.yaml")["secrets"] if name.startswith("june_")]
    for name, value in [*environments(), *((secret.upper(), "x") for secret in secrets)]:
        if name.startswith("JUNE_"):
            section, key = name.removeprefix("JUNE_").lower().split("__")
            assert key in type(getattr(complete_settings()(), section)).model_fields
            monkeypatch.setenv(name, value)
    assert Settings().models.directory == Path("/models")
    assert Settings().store.path == Path("/data/june.db")
    assert Settings().models.pull_at_start


# --- the command line of the image ---


def link(source: str, target: str) -> None:
    """Make a hard link, or a copy where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def lay_out_python(root: Path) -> None:
    """Lay out a Python with the packages of requirements/runtime.txt, and nothing else."""
    version = f"python3.{sys.version_info.minor}"
    stdlib = root / "python" / "lib" / version
    unused = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "config-*")
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, copy_function=link, ignore=unused)
    (root / "python" / "bin").mkdir()
    link(os.path.realpath(sys.executable), str(root / "python" / "bin" / "python"))
    for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so.*"):
        link(os.path.realpath(library), str(root / "python" / "lib" / library.name))
    site, installed = root / "site", Path(sysconfig.get_path("purelib"))
    site.mkdir()
    pinned = re.findall(
        r"^([a-z0-9-]+)==", (PROJECT_ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE
    )
    for name in pinned:
        with suppress(PackageNotFoundError):  # for another system or Python
            for top in {file.parts[0] for file in files(name) or ()} - {".."}:
                if (installed / top).is_dir() and not (site / top).exists():
                    shutil.copytree(installed / top, site / top, copy_function=link)
                elif (installed / top).is_file() and not (site / top).exists():
                    link(str(installed / top), str(site / top))


def lay_out_app(root: Path) -> None:
    """Lay out the files that the Dockerfile's last stage copies, as read-only."""
    app = root / "app"
    app.mkdir()
    for name, rest in RUNTIME:
        if name == "COPY":
            *_, target = rest.split()
            for source in _sources(rest):
                origin = PROJECT_ROOT / source
                place = app / target if origin.is_dir() else app / target / origin.name
                if origin.is_dir():
                    shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(origin, place)
    for path in (app, *app.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """Lay out the image and yield its root."""
    root = Path(tempfile.mkdtemp(prefix="june-image-"))  # pytest's own folders keep other users out
    root.chmod(0o755)
    lay_out_python(root)
    lay_out_app(root)
    yield root
    for path in (root / "app", *(root / "app").rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(root)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything that nobody may write to."""
    paths = [path for part in ("app", "site", "python") for path in (root / part).rglob("*")]
    stats = ((path, path.lstat()) for path in paths)
    return {
        str(path): (each.st_size, each.st_mtime_ns) for path, each in stats if not stat.S_ISLNK(each.st_mode)
    }


@dataclass
class Image:
    """The laid out image with volumes of its own."""

    root: Path
    volumes: Path
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """The image's, with its places where they are here, and no variable of this process."""
        places = {
            "/opt/june/bin": str(self.root / "python" / "bin"),
            "/models": str(self.volumes / "models"),
            "/data/": f"{self.volumes}/data/",
            "/tmp": str(self.volumes / "tmp"),  # noqa: S108 - the container's
        }
        found = dict(shell_pairs(instruction("ENV")))
        for name, value in found.items():
            for place, here in places.items():
                if value.startswith(place):
                    found[name] = value.replace(place, here, 1)
        more = {
            "LD_LIBRARY_PATH": str(self.root / "python" / "lib"),
            "PYTHONPATH": str(self.root / "site"),
            "TMPDIR": str(self.volumes / "tmp"),
            "JUNE_SECRETS_DIR": str(self.volumes / "secrets"),
        }
        return found | more | self.variables

    async def start(self, command: list[str], *, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        """Start a command of the image, as the user nobody if this process is root."""
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        as_nobody += ["--inh-caps=-all", "--bounding-set=-all"]
        here = [word.replace("/app/", f"{self.root}/app/") for word in command]
        here[0] = str(self.root / "python" / "bin" / here[0])
        return await asyncio.create_subprocess_exec(
            *(as_nobody if os.geteuid() == 0 else []),
            *here,
            cwd=self.root / "app",
            env=self.environment,
            limit=2**20,
            stdout=stdout,
            stderr=stderr,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Program]:
        """Run the image's entrypoint and command."""
        command = json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD"))
        program = Program(await self.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        try:
            yield program
        finally:
            if program.is_running:
                await program.kill()

    async def run(self, command: list[str]) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = await self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()


Build = Callable[..., Image]


@pytest.fixture
def image(tree: Path) -> Iterator[Build]:
    """Return a function that makes an image with volumes: empty, or with the starter models."""
    made = []

    def build(*, with_models: bool = True, secrets: dict[str, str], **variables: str) -> Image:
        volumes = Path(tempfile.mkdtemp(prefix="june-volumes-"))
        made.append(volumes)
        volumes.chmod(0o755)
        for name in ("models", "data", "tmp", "secrets"):
            (volumes / name).mkdir()
        for name in STARTER if with_models else ():
            source = (PROJECT_ROOT / "models" / name).resolve()
            shutil.copytree(source, volumes / "models" / name, copy_function=link)
        for name, value in secrets.items():
            (volumes / "secrets" / name).write_text(f"{value}\n")
        if os.geteuid() == 0:
            for path in (volumes / name for name in ("models", "data", "tmp")):
                for each in (path, *(inner for inner in path.rglob("*") if inner.is_dir())):
                    os.chown(each, NOBODY, NOBODY)
        return Image(tree, volumes, variables)

    yield build
    for volumes in made:
        shutil.rmtree(volumes)


HEALTH_CHECK = json.loads(instruction("HEALTHCHECK").partition("CMD")[2])


async def test_the_images_command_serves_as_an_ordinary_user_and_ends_with_zero_on_sigterm(
    image: Build, tree: Path, questions: tuple[Question, ...]
) -> None:
    before = snapshot(tree)
    port = free_port()
    async with TelegramServer() as server:
        built = image(
            secrets={"june_telegram__token": server.token, "june_api__token": API_TOKEN},
            JUNE_API__HOST="0.0.0.0",  # noqa: S104 - as in compose.yaml, with a token
            JUNE_API__PORT=str(port),
            JUNE_TELEGRAM__API_BASE=server.base_url,
            JUNE_ACCESS__OWNERS=json.dumps([f"telegram:{ALICE}"]),
            JUNE_MODELS__PRESET="starter",
            JUNE_LLM__MAX_TOKENS="12",
        )
        status, said = await built.run(HEALTH_CHECK)
        assert (status, "june does not answer" in said) == (1, True)
        async with built.running() as june:
            await june.logged("june.started")
            server.push_file("voice", questions[0].audio)
            await server.wait_for(lambda call: call.method == "sendVoice" and call.ok)
            status, said = await built.run(HEALTH_CHECK)
            assert (status, json.loads(said)["status"]) == (0, "ok")
            assert API_TOKEN not in said
            status, said = await built.run([*json.loads(instruction("ENTRYPOINT")), "check", "--json"])
            assert f"june runs and listens on 0.0.0.0:{port}" in said
            assert status == 0
            async with asyncio.timeout(Settings().chat.shutdown_s):
                assert await june.terminate() == 0
    assert snapshot(tree) == before
    assert (built.volumes / "data" / "june.db").exists()


async def test_the_first_start_receives_messages_while_models_are_pulled_and_can_be_stopped(
    image: Build,
) -> None:
    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.put(writer)

    asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    async with TelegramServer() as server, await asyncio.start_server(hang, "127.0.0.1", 0) as index:
        port = index.sockets[0].getsockname()[1]
        built = image(
            with_models=False,
            secrets={"june_telegram__token": server.token},
            JUNE_TELEGRAM__API_BASE=server.base_url,
            JUNE_ACCESS__OWNERS=json.dumps([f"telegram:{ALICE}"]),
            JUNE_MODELS__PRESET="starter",
            JUNE_API__PORT=str(listening := free_port()),
            PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple",
        )
        async with built.running() as june:
            started = await june.logged("pull.started")
            assert set(started["models"]) == set(STARTER)
            assert started["download_bytes"] > 200_000_000
            writer = await asyncio.wait_for(asked.get(), 30)
            server.push("hello")
            await server.acknowledged()
            status, said = await built.run(HEALTH_CHECK)
            assert (status, json.loads(said)["models"]) == (0, [])
            async with (
                ClientSession() as session,
                session.get(f"http://127.0.0.1:{listening}/ready") as answer,
            ):
                assert (answer.status, await answer.json()) == (503, {"ready": False})
            async with asyncio.timeout(Settings().chat.shutdown_s):
                assert await june.terminate() == 0
            writer.close()
        status, said = await built.run(
            ["python", "-m", "june", "messages", "history", "--chat", f"telegram:{ALICE}"]
        )
        assert status == 0
        assert "hello" in said


async def test_check_finds_nothing_amiss_in_the_image(image: Build) -> None:
    built = image(
        secrets={"june_telegram__token": "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"},
        JUNE_MODELS__PRESET="starter",
        JUNE_API__PORT="0",
    )
    command = [*json.loads(instruction("ENTRYPOINT")), "check", "--json"]
    status, said = await built.run(command)
    found = {each["name"]: each for each in json.loads(said)["findings"]}
    assert status == 0
    for name in ("user", "libraries", "stt", "llm", "tts", "disk", "store", "telegram"):
        assert found[name]["status"] == "ok", found[name]
    if os.geteuid() == 0:
        assert found["user"]["found"] == f"user {NOBODY}, not root"
        assert found["capabilities"]["found"] == "holds none; may gain none"
