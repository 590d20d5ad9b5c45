"""Docker's engine on a Debian machine that has none: Debian's docker.io in a root file system of its own.

Needs root and debootstrap, and no registry: a fresh Debian stands for the base image. The engine is entered
by pivot_root in mounts of its own, since in a chroot it can import no image. It has no network of its own:
what runs in it uses the network of this machine.

A folder keeps from run to run what takes minutes to make: the engine's root file system, and in it the
engine's images and build cache.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

FOLDER = Path(os.environ.get("JUNE_CONTAINER_CACHE") or "~/.cache/june-container").expanduser()
SUITE = "trixie"
PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "docker-compose", "ca-certificates", "iptables")
BASE_IMAGE = "debian-base"
PIP_KEYS = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host")

MAKE_ENGINE = """
set -e
rm -rf engine.part && cp -a base engine.part && cp -L /etc/resolv.conf engine.part/etc/
printf '#!/bin/sh\\nexit 101\\n' > engine.part/usr/sbin/policy-rc.d  # the package starts no engine
chmod +x engine.part/usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
chroot engine.part apt-get update
chroot engine.part apt-get install --yes --no-install-recommends "$@"
chroot engine.part apt-get clean
mv engine.part engine
"""
MAKE_BASE = """
set -e
rm -rf base.part && debootstrap --variant=minbase "$1" base.part "$2"
rm -rf base.part/var/cache/apt/archives/*.deb base.part/var/lib/apt/lists/*  # as images are published
mv base.part base
"""
ENTER = """
set -e
mount --make-rprivate /
cp -L /etc/resolv.conf engine/etc/
mount --bind engine engine
mount -t proc proc engine/proc
mount --rbind /sys engine/sys
mount --rbind /dev engine/dev
mount -t tmpfs tmpfs engine/run
mkdir -p engine/shared_folder engine/repository engine/old
mount --bind . engine/shared_folder
mount --bind "$1" engine/repository
mount -o remount,bind,ro engine/repository
cd engine
pivot_root . old
umount -l /old
exec dockerd --bridge=none --iptables=false --ip6tables=false --host=unix:///shared_folder/docker.sock
"""


def obstacle() -> str:
    """Return why no engine can run here; empty if it can."""
    if os.geteuid() != 0:
        return "a container engine needs root"
    if "ID=debian\n" not in Path("/etc/os-release").read_text():
        return "the container engine is installed with debootstrap from a Debian machine's mirror"
    if shutil.which("debootstrap") is None:
        return "the container engine is installed with debootstrap: apt-get install debootstrap"
    return ""


class Engine:
    """A running engine. It sees `folder` as /shared_folder and the repository, read-only, as /repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *command: str, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        """Start a command beside the engine, with none of this process's variables."""
        assert self._process is not None
        variables = [
            "DOCKER_HOST=unix:///shared_folder/docker.sock",
            "HOME=/root",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        enter = ["nsenter", f"--target={self._process.pid}", "--mount", "--root", "--wdns=/repository"]
        return await asyncio.create_subprocess_exec(
            *enter, "env", "--ignore-environment", *variables, *command, stdout=stdout, stderr=stderr
        )

    async def attempt(self, *command: str) -> tuple[int, str]:
        """Run a command; its exit status, and what it wrote on both outputs."""
        process = await self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, said.decode()

    async def run(self, *command: str) -> str:
        """Run a command that has to succeed; what it wrote."""
        status, said = await self.attempt(*command)
        assert status == 0, f"{' '.join(command)} ended with {status}:\n{said[-4000:]}"
        return said

    async def serve(self, repository: Path) -> None:
        """Start the engine, and return when it answers."""
        # It ends with this process, however this process ends.
        command = ["setpriv", "--pdeathsig=TERM", "unshare", "--mount", "bash", "-c", ENTER, "engine"]
        self._process = await asyncio.create_subprocess_exec(
            *("nice", *command, str(repository)),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        listening = asyncio.Event()
        self._reading = asyncio.create_task(self._keep_log(listening))
        async with asyncio.timeout(60):
            await listening.wait()

    async def _keep_log(self, listening: asyncio.Event) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with (self.folder / "dockerd.log").open("wb", buffering=0) as log:
            async for line in self._process.stderr:
                log.write(line)
                if b"API listen on" in line:
                    listening.set()

    async def end(self) -> None:
        """End the engine, and return when it has ended."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()
            await self._reading

    async def make_base_image(self) -> None:
        """Make an image of the fresh Debian, in which pip reaches what it reaches on this machine."""
        if (await self.attempt("docker", "image", "inspect", "debian-root"))[0]:
            archive = self.folder / "base.tar"
            run_here("tar", "--directory=base", "--create", f"--file={archive}", ".", cwd=self.folder)
            await self.run("docker", "import", "/shared_folder/base.tar", "debian-root")
            archive.unlink()
        write_base_image(self.folder / "base-image")
        await self.run("docker", "build", "--quiet", f"--tag={BASE_IMAGE}", "/shared_folder/base-image")


def write_base_image(context: Path) -> None:
    """Write the files that add to the fresh Debian how pip reaches its index from this machine."""
    context.mkdir(exist_ok=True)
    configuration = pip_configuration()
    certificates = Path(configuration["cert"]).read_bytes() if "cert" in configuration else b""
    (context / "ca.crt").write_bytes(certificates)
    if certificates:
        configuration["cert"] = "/etc/host-ca.crt"
    lines = [f"{key} = {value}\n" for key, value in configuration.items()]
    (context / "pip.conf").write_text("".join(["[global]\n", *lines]))
    copies = "COPY ca.crt /etc/host-ca.crt\nCOPY pip.conf /etc/pip.conf\n"
    (context / "Dockerfile").write_text(f"FROM debian-root\n{copies}")


def pip_configuration() -> dict[str, str]:
    """Return how pip reaches its index from this machine: addresses of the network, not of the disk."""
    said = run_here(sys.executable, "-m", "pip", "config", "list")
    found: dict[str, str] = {}
    for key, value in re.findall(r"^[^=]*\.([a-z-]+)='(.*)'$", said, re.MULTILINE):  # variables come first
        if key in PIP_KEYS and not value.startswith("file:"):
            found.setdefault(key, value)
    return found


def debian_mirror() -> str:
    """Return where this machine gets its Debian packages from."""
    for file in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        text = file.read_text() if file.exists() else ""
        if found := re.search(r"^(?:URIs:|deb(?: \[.*?\])?)\s+(\S+)", text, re.MULTILINE):
            return found[1]
    raise AssertionError("/etc/apt names no Debian mirror")


def run_here(*command: str, cwd: Path | None = None) -> str:
    """Run a command of this machine's that has to succeed; what it wrote."""
    done = subprocess.run(
        ["nice", *command],  # noqa: S607
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
    )
    return done.stdout


def make_roots(folder: Path) -> None:
    """Install a fresh Debian, and a copy of it with Docker, if an earlier run has not."""
    if not (folder / "base").exists():
        run_here("sh", "-c", MAKE_BASE, "base", SUITE, debian_mirror(), cwd=folder)
    if not (folder / "engine").exists():
        run_here("sh", "-c", MAKE_ENGINE, "engine", *PACKAGES, cwd=folder)


@asynccontextmanager
async def running_engine(repository: Path) -> AsyncIterator[Engine]:
    """Run an engine for as long as the block does, with no container in it and the base image."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        flock(lock, LOCK_EX | LOCK_NB)  # another run with this folder fails at once
        await asyncio.to_thread(make_roots, FOLDER)
        engine = Engine(FOLDER)
        try:
            await engine.serve(repository)
            if left := (
                await engine.run("docker", "ps", "--all", "--quiet")
            ).split():  # by a run that was killed
                await engine.run("docker", "rm", "--force", "--volumes", *left)
            await engine.run("docker", "volume", "prune", "--all", "--force")
            await engine.make_base_image()
            yield engine
            await engine.run("docker", "volume", "prune", "--all", "--force")
            await engine.run("docker", "image", "prune", "--force")
        finally:
            await engine.end()
