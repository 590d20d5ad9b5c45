"""A chat app that is written from docs/backends.md alone carries a voice turn."""

import ast
import asyncio
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import structlog

import june.chat
from june.api.requests import Send, Wanted
from june.app import serve
from june.audio import decode
from june.bench.recordings import Question, wrong_words
from june.chat import Adapter
from june.chat.apps import APPS, chat_app, is_person, token_shapes
from june.checks import network
from june.sections import AudioSettings, TelemetrySettings
from june.settings import load_settings
from june.stt.faster_whisper import FasterWhisper
from june.telemetry import configure_logging, log
from tests.api_client import Office
from tests.documents import code_blocks, section
from tests.program import write_settings

PAGE = section("docs/backends.md", "A chat app")
MODULE, LINE = code_blocks(PAGE, "python")
(SETTINGS,) = code_blocks(PAGE, "toml")


@pytest.fixture
def folder_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the module of the page, where the page says that it stands, with its line in the table."""
    ((name, path),) = ast.literal_eval(f"{{{LINE}}}").items()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "folder.py").write_text(MODULE)
    monkeypatch.setattr(june.chat, "__path__", [*june.chat.__path__, str(tmp_path / "code")])
    monkeypatch.setitem(APPS, name, path)
    yield importlib.import_module(path)
    del sys.modules[path]


@pytest.fixture
def settings_file(tmp_path: Path, folder_app: ModuleType) -> Path:
    """Write the page's settings, with a folder of the test's."""
    sections = tomllib.loads(SETTINGS)
    sections[folder_app.APP.name]["path"] = str(tmp_path / "chat")
    (tmp_path / "chat").mkdir()
    return write_settings(tmp_path, **sections)


async def test_it_carries_a_whole_voice_turn(
    tmp_path: Path, settings_file: Path, questions: tuple[Question, ...], stt: FasterWhisper
) -> None:
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(load_settings(settings_file), stop))
    (tmp_path / "chat" / "question.ogg").write_bytes(questions[0].audio)
    text, voice = (tmp_path / "chat" / f"answer question.ogg{end}" for end in (".txt", ""))
    async with asyncio.timeout(120):
        while not (text.exists() and voice.exists()):
            assert not serving.done(), serving.exception()
            await asyncio.sleep(0.1)
    stop.set()
    await serving
    heard, _, answer = text.read_text().partition("\n\n")
    assert wrong_words(questions[0].text, heard) <= 2
    spoken = await stt.transcribe(decode(voice.read_bytes(), AudioSettings()))
    assert wrong_words(answer, spoken.text) <= len(answer.split()) / 2


def test_it_is_an_adapter_and_all_of_june_knows_it(settings_file: Path, folder_app: ModuleType) -> None:
    settings = load_settings(settings_file)
    app = chat_app("folder:1")
    assert app is folder_app.APP
    adapter: Adapter = app.create(settings.section_of(app), settings.delivery)
    assert (adapter.platform, adapter.health().state) == ("folder", "starting")
    assert [finding.status for finding in network.tokens(settings)] == ["ok"]
    assert Send.model_validate({"to": "folder:1", "text": "Hello"}).to == "folder:1"
    assert Wanted.model_validate({"platform": "folder"}).platform == "folder"


def test_its_tokens_stand_in_no_line_of_the_log(
    folder_app: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = re.compile(r"\bfolder-[0-9a-f]{8}\b")
    monkeypatch.setattr(folder_app, "APP", replace(folder_app.APP, token_shape=shape))
    configure_logging(TelemetrySettings(log_format="json"), (), token_shapes())
    log.warning("adapter.failed", detail="refused: folder-0123abcd", of="folder-0123")
    structlog.reset_defaults()
    written = json.loads(capsys.readouterr().err)
    assert (written["detail"], written["of"]) == ("refused: [redacted]", "folder-0123")


@pytest.mark.usefixtures("folder_app")
async def test_the_description_of_the_api_names_it(tmp_path: Path) -> None:
    async with Office(tmp_path) as office:
        schemas = (await office.client.get("/openapi.json")).body["components"]["schemas"]
    assert schemas["Platform"]["enum"] == ["telegram", "discord", "folder"]
    assert re.fullmatch(schemas["Send"]["properties"]["to"]["pattern"], "folder:1")


@pytest.mark.usefixtures("folder_app")
def test_without_its_line_nothing_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(APPS, "folder")
    assert not is_person("folder:1")
    assert chat_app("folder") is None
