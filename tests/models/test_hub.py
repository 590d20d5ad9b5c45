"""Promises of models on Hugging Face, named by their place: asked for once, pulled, verified, remembered."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from june import lineup
from june.commands.models import app
from june.errors import ModelFileError
from june.models.catalogue import folder_of
from june.models.hub import pin
from june.models.pull import plan_pull, pull
from june.models.references import NotPulledError, Place, find, parse_place, read_pinned
from june.settings import Settings
from tests.models.conftest import Server, sha256
from tests.models.gguf_writer import gguf

COMMIT, LATER = "a" * 40, "b" * 40
GGUF = "hf:some/model/q4/my-model.gguf"


@dataclass
class Hub:
    """A repository on the server in the place of Hugging Face."""

    server: Server
    directory: Path

    def publish(
        self, files: Mapping[str, bytes], *, commit: str = COMMIT, revision: str = "", said: object = None
    ) -> None:
        """Show files at a commit; without a revision as the newest."""
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": "0", "lfs": self._lfs(path, data)}
            for path, data in files.items()
        ]
        page = "/api/models/some/model" + (f"/revision/{revision}" if revision else "")
        answer = {"id": "some/model", "sha": commit, "siblings": siblings} if said is None else said
        self.server.pages[page] = json.dumps(answer).encode()
        for path, data in files.items():
            self.server.pages[f"/some/model/resolve/{commit}/{path}"] = data

    def _lfs(self, path: str, data: bytes) -> dict[str, object] | None:
        if path.endswith(".json"):  # small files are kept without one
            return None
        return {"sha256": sha256(data), "size": len(data), "pointerSize": 1}

    def pull(self, reference: str) -> None:
        """Pull a model as `models pull` does."""
        files = pin(reference, None, self.directory)
        pull(plan_pull([files], self.directory), lambda *_: None)


@pytest.fixture
def hub(hugging_face: Server, tmp_path: Path) -> Hub:
    return Hub(hugging_face, tmp_path)


# --- how a place is written ---


@pytest.mark.parametrize(
    ("reference", "repo", "path", "revision", "role"),
    [
        ("hf:a/b/c.gguf", "a/b", "c.gguf", "", "llm"),
        ("hf:a/b/q4/c.gguf@main", "a/b", "q4/c.gguf", "main", "llm"),
        ("hf:a/b/de/de_DE/x.onnx", "a/b", "de/de_DE/x.onnx", "", "tts"),
        ("hf:a/b", "a/b", "", "", "stt"),
        ("hf:a/b@refs/pr/1", "a/b", "", "refs/pr/1", "stt"),
        ("hf:a/b/whisper", "a/b", "whisper", "", "stt"),
    ],
)
def test_a_place_is_repository_file_and_revision(
    reference: str, repo: str, path: str, revision: str, role: str
) -> None:
    place = parse_place(reference)
    assert place == Place(reference, repo, path, revision)
    assert place.role == role


@pytest.mark.parametrize(
    "reference",
    [
        "hf:",
        "hf:a",
        "hf:a/b/../c.gguf",
        "hf:../b/c.gguf",
        "hf:a/b/c.gguf@",
        "hf:a b/c",
        "hf:a/b?x=1",
        "hf:a/b//etc/x.gguf",
    ],
)
def test_what_is_no_place_is_refused(reference: str) -> None:
    with pytest.raises(ModelFileError, match=r"expected hf:OWNER/REPO/FILE or hf:OWNER/REPO/FILE@REVISION\."):
        parse_place(reference)


def test_each_place_has_a_folder_of_its_own_with_a_name_that_a_file_system_takes() -> None:
    names = ["hf:a/b--c/x.gguf", "hf:a/b/c/x.gguf", "hf:a/b@v1", "hf:a/b/v1", f"hf:a/{'x' * 900}.gguf"]
    folders = {folder_of(name, Path("models")).name for name in names}
    assert len(folders) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,220}", folder) for folder in folders)
    assert folder_of("qwen3-8b", Path("models")) == Path("models/qwen3-8b")


# --- pulling ---


def test_a_language_model_is_pulled_verified_and_found_again_without_network(hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf(), "README.md": b"no"})
    with pytest.raises(NotPulledError, match=f"run: python -m june models pull {GGUF}"):
        find(GGUF, "llm", {}, hub.directory)
    hub.pull(GGUF)
    hub.server.pages.clear()
    found = find(GGUF, "llm", {}, hub.directory)
    assert found.name == GGUF
    assert found.path.name == "my-model.gguf"
    assert found.path.parent.parent == hub.directory
    assert found.entry.context_tokens_max == 2048
    assert [file.sha256 for file in found.entry.files] == [sha256(gguf())]
    asked = len(hub.server.requests)
    hub.pull(GGUF)
    assert len(hub.server.requests) == asked


def test_a_file_does_not_change_by_itself(hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    first = pin(GGUF, "llm", hub.directory)
    hub.publish({"q4/my-model.gguf": gguf() + b"more"}, commit=LATER)
    assert pin(GGUF, "llm", hub.directory) == first
    hub.pull(GGUF)
    assert find(GGUF, "llm", {}, hub.directory).path.read_bytes() == gguf()


def test_a_revision_is_a_model_of_its_own(hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    hub.publish({"q4/my-model.gguf": gguf() + b"more"}, commit=LATER, revision="v2")
    for reference in (GGUF, f"{GGUF}@v2"):
        hub.pull(reference)
    sizes = [find(each, "llm", {}, hub.directory).entry.size_bytes for each in (GGUF, f"{GGUF}@v2")]
    assert sizes == [len(gguf()), len(gguf()) + 4]


def test_an_interrupted_pull_goes_on_at_the_same_commit(hub: Hub) -> None:
    data = gguf() + bytes(100_000)
    hub.publish({"q4/my-model.gguf": data})
    pin(GGUF, "llm", hub.directory)
    hub.server.drop_after = [50_000, 0]
    with pytest.raises(ModelFileError, match="pull again to go on"):
        hub.pull(GGUF)
    hub.publish({"q4/my-model.gguf": b"another"}, commit=LATER)
    hub.pull(GGUF)
    assert find(GGUF, "llm", {}, hub.directory).path.read_bytes() == data
    assert hub.server.requests[-1][1] == "bytes=50000-"


def test_another_content_than_hugging_face_promised_is_thrown_away(hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    hub.server.pages[f"/some/model/resolve/{COMMIT}/q4/my-model.gguf"] = gguf()[:-1] + b"x"
    with pytest.raises(ModelFileError, match="has sha256"):
        hub.pull(GGUF)
    assert not list(hub.directory.glob("*/*.gguf"))


def test_all_parts_of_a_split_model_are_pulled(hub: Hub) -> None:
    names = [f"big-0000{part}-of-00002.gguf" for part in (1, 2)]
    hub.publish({f"q8/{name}": gguf() for name in names} | {"q8/other.gguf": gguf()})
    reference = f"hf:some/model/q8/{names[0]}"
    hub.pull(reference)
    assert [file.name for file in find(reference, "llm", {}, hub.directory).entry.files] == names


def test_a_voice_comes_with_its_settings_and_whisper_with_its_folder(
    hub: Hub, model_paths: dict[str, Path]
) -> None:
    whisper = {path.name: path.read_bytes() for path in model_paths["whisper-tiny-en"].glob("[a-z]*")}
    said = {"audio": {"sample_rate": 22_050}, "phoneme_id_map": {}, "language": {"code": "de_DE"}}
    voice = {"de/x.onnx": b"weights", "de/x.onnx.json": json.dumps(said).encode()}
    hub.publish(
        voice | {f"small/{name}": data for name, data in whisper.items()} | {"small/README.md": b"no"}
    )
    for reference in ("hf:some/model/de/x.onnx", "hf:some/model/small"):
        hub.pull(reference)
    found = find("hf:some/model/de/x.onnx", "tts", {}, hub.directory)
    assert (found.entry.languages, found.path.name) == (("de",), "x.onnx")
    found = find("hf:some/model/small", "stt", {}, hub.directory)
    assert found.entry.languages == ("en",)
    assert {file.name for file in found.entry.files} == set(whisper)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("hf:some/model/none.gguf", "some/model has no none.gguf, which hf:some/model/none.gguf needs"),
        ("hf:some/model/q8/big-00002-of-00002.gguf", "name the first part, big-00001-of-00002.gguf"),
        ("hf:some/model/q8/big-00001-of-00003.gguf", "has no q8/big-00001-of-00003.gguf"),
        ("hf:some/model/voice.onnx", "has no voice.onnx.json"),
        ("hf:some/model", "has no model.bin"),
        (f"{GGUF}@v3", "has no q4/my-model.gguf|cannot be asked|no revision|has no some/model"),
        ("hf:some/other/x.gguf", "has no some/other|cannot be asked"),
    ],
)
def test_what_is_not_there_is_named(reference: str, told: str, hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf(), "voice.onnx": b"x"})
    with pytest.raises(ModelFileError, match=told) as refusal:
        hub.pull(reference)
    assert "\n" not in str(refusal.value)
    assert not list(hub.directory.iterdir())


@pytest.mark.parametrize(
    "said", [{}, {"id": "x", "sha": "../..", "siblings": [{"rfilename": "q4/my-model.gguf", "size": 1}]}]
)
def test_an_answer_that_june_does_not_know_is_refused(said: object, hub: Hub) -> None:
    hub.publish({}, said=said)
    with pytest.raises(ModelFileError, match=r"june does not know of hf:|has no q4/|cannot be asked"):
        hub.pull(GGUF)


def test_a_damaged_note_is_told(hub: Hub) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    hub.pull(GGUF)
    (note,) = hub.directory.glob("*/.pinned.json")
    note.write_text(note.read_text().replace("my-model.gguf", "../my-model.gguf"))
    with pytest.raises(ModelFileError, match="is damaged; delete it and pull the model again"):
        read_pinned(GGUF, hub.directory)


async def test_a_start_that_is_cancelled_does_not_wait_for_a_silent_hugging_face(
    hub: Hub, settings: Settings
) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    hub.server.hold = threading.Event()
    chosen = settings.model_copy(
        update={
            "models": settings.models.model_copy(update={"directory": hub.directory}),
            "llm": settings.llm.model_copy(update={"model": GGUF}),
        }
    )
    starting = asyncio.create_task(lineup.pull_models(chosen))
    assert await asyncio.to_thread(hub.server.is_holding.wait, 30)
    begin = time.monotonic()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert time.monotonic() - begin < 3
    assert not list(hub.directory.iterdir())


def test_no_answer_is_told_in_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelFileError, match=f"Hugging Face cannot be asked for {GGUF}: "):
        hub.pull(GGUF)


@pytest.mark.parametrize(("reference", "role"), [(GGUF, "tts"), (GGUF, "stt"), ("hf:a/b", "llm")])
def test_a_model_for_another_role_is_refused_before_anybody_is_asked(
    reference: str, role: str, hub: Hub
) -> None:
    with pytest.raises(ModelFileError, match=r" is not a f(ile \.gguf|ile \.onnx|older with a model)"):
        pin(reference, role, hub.directory)  # type: ignore[arg-type]
    assert hub.server.requests == []


# --- the commands, and a start ---


@pytest.fixture
def command(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("JUNE_MODELS__DIRECTORY", str(hub.directory))
    monkeypatch.setenv("JUNE_MODELS__PRESET", "starter")
    return CliRunner()


def test_the_commands_pull_list_and_verify_a_place(
    hub: Hub, command: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUNE_MODELS__HUGGING_FACE_TOKEN", "hf_secret")
    hub.publish({"q4/my-model.gguf": gguf()})
    assert command.invoke(app, ["pull", GGUF]).exit_code == 0
    assert [token for _, _, token in hub.server.requests] == ["Bearer hf_secret"] * 2
    assert GGUF in command.invoke(app, ["list"]).output
    assert command.invoke(app, ["verify"]).output == f"{GGUF}: verified\n"
    find(GGUF, "llm", {}, hub.directory).path.write_bytes(gguf()[:-1] + b"x")
    result = command.invoke(app, ["verify", GGUF])
    assert result.exit_code == 1
    assert f"{GGUF}: my-model.gguf has sha256" in result.output


async def test_a_start_pulls_a_place_of_the_settings(hub: Hub, settings: Settings) -> None:
    hub.publish({"q4/my-model.gguf": gguf()})
    starter = settings.models.directory
    for name in ("whisper-tiny-en", "en_US-joe-medium"):
        (hub.directory / name).symlink_to(starter / name)
    chosen = settings.model_copy(
        update={
            "models": settings.models.model_copy(update={"directory": hub.directory}),
            "llm": settings.llm.model_copy(update={"model": GGUF, "context_tokens": 2048}),
        }
    )
    with pytest.raises(NotPulledError, match=r"llm\.model: hf:some/model/q4/my-model\.gguf is not here yet"):
        lineup.choose_models(chosen)
    await lineup.pull_models(chosen)
    assert lineup.choose_models(chosen).llm.name == GGUF
    assert lineup.find_llms(chosen)[GGUF] == GGUF
