"""What the cache held of conversations, as files: saved, restored, refused, bounded and forgotten."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from june.errors import GenerationError, ModelLoadError
from june.llm.llama_cpp.model import LlamaCpp
from june.llm.llama_cpp.settings import LlamaCppSettings
from june.llm.llama_cpp.state_files import HEADER, StateFiles, delete
from june.llm.switching import SwitchableModel
from june.messages import ChatMessage, ChatRequest, Sampling, Usage
from june.models import LocalModel
from june.sections import LlmSettings
from tests.conftest import CATALOGUE, LLM
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer

ANN, BOB = "telegram:1", "telegram:2"
TOKENS = list(range(300))
HISTORY = tuple(
    ChatMessage("assistant" if turn % 2 else "user", " ".join(f"{turn}{number:02}" for number in range(28)))
    for turn in range(12)
)
"""More than 1,000 tokens."""
QUESTION = ChatMessage("user", "Repeat: 🎉🦄🎉🦄")


# --- the files ---


@contextmanager
def opened(folder: Path, model: str = "small-f16", max_bytes: int = 100_000) -> Iterator[StateFiles]:
    files = StateFiles(folder, max_bytes)
    try:
        files.open(model)
        yield files
    finally:
        files.close()


def paths(folder: Path) -> list[Path]:
    """All files, in the folders of all models."""
    return sorted(folder.glob("*/*"))


def kept(folder: Path) -> set[str]:
    """Their names."""
    return {path.name for path in paths(folder)}


def keep(folder: Path, *conversations: str, model: str = "small-f16") -> list[Path]:
    """Return the files of these conversations, saved in this order."""
    saved: list[Path] = []
    for conversation in conversations:
        with opened(folder, model) as files:
            files.put(conversation, TOKENS, bytearray(b"state of " + conversation.encode()))
        (new,) = set((folder / model).iterdir()) - set(saved)
        saved.append(new)
    return saved


def test_what_was_saved_is_taken_once(tmp_path: Path) -> None:
    keep(tmp_path, ANN)
    with opened(tmp_path) as files:
        assert list(files.tokens(ANN)) == TOKENS
        assert list(files.tokens(BOB)) == []
        saved = files.take(ANN)
        assert saved is not None
        assert list(saved.tokens) == TOKENS
        assert bytes(saved.state) == b"state of telegram:1"
        assert files.take(ANN) is None
    assert kept(tmp_path) == set()


def test_only_the_owner_can_read_it_and_no_name_shows_whose_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    (path,) = keep(folder, ANN)
    assert [each.stat().st_mode & 0o777 for each in (path, path.parent, folder)] == [0o600, 0o700, 0o700]
    assert ANN not in str(path)
    assert ANN.encode() not in path.read_bytes().replace(b"state of telegram:1", b"")


@pytest.mark.parametrize("damage", ["cut", "longer", "bit", "token", "foreign", "empty", "text"])
def test_a_file_that_is_not_what_was_written_is_refused_and_goes(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, bob = keep(tmp_path, ANN, BOB)
    whole = ann.read_bytes()
    changed = {
        "cut": whole[:-5],
        "longer": whole + b"\0",
        "bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        "token": whole[: HEADER.size] + b"\7" + whole[HEADER.size + 1 :],
        "foreign": bob.read_bytes(),
        "empty": b"",
        "text": b"This is a text of some length, and no file of june's; it has no header, either.",
    }
    ann.write_bytes(changed[damage])
    with opened(tmp_path) as files:
        assert list(files.tokens(ANN)) == [] or files.take(ANN) is None
        assert files.take(ANN) is None
    assert kept(tmp_path) == {bob.name}
    told = capsys.readouterr()
    assert "state.refused" in told.out + told.err
    assert ANN not in told.out + told.err


def test_what_another_model_wrote_is_not_read_and_is_forgotten_too(tmp_path: Path) -> None:
    (large,) = keep(tmp_path, ANN, model="large-f16")
    with opened(tmp_path, "small-f16") as files:
        assert files.take(ANN) is None
        os.link(large, tmp_path / "small-f16" / large.name)
        assert files.take(ANN) is None
    assert kept(tmp_path) == set()


def test_the_oldest_are_deleted_first_when_there_is_no_room(tmp_path: Path) -> None:
    saved = keep(tmp_path, ANN, BOB, "telegram:3")
    for age, path in zip((2, 3, 1), saved, strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    stranger = tmp_path / "holiday" / "photograph.jpg"
    stranger.parent.mkdir()
    stranger.write_bytes(bytes(5_000))
    size = saved[0].stat().st_size
    with opened(tmp_path, "large-f16", max_bytes=3 * size) as files:
        files.put("telegram:4", TOKENS, bytearray(b"state of telegram:4"))
        files.put("telegram:5", TOKENS, bytearray(4 * size))  # larger than all the room
    assert len(kept(tmp_path)) == 4
    assert not saved[1].exists()
    assert stranger.exists()
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.kv")) <= 3 * size


async def test_the_old_and_the_forgotten_are_deleted(tmp_path: Path) -> None:
    ann, bob, old = keep(tmp_path, ANN, BOB, "telegram:3")
    os.utime(old, (1e9, 1e9))
    await delete(tmp_path, older_than_s=86_400)
    assert kept(tmp_path) == {ann.name, bob.name}
    await delete(tmp_path, conversations=[ANN, "telegram:9"])
    assert kept(tmp_path) == {bob.name}
    await delete(tmp_path / "missing", conversations=[ANN], older_than_s=1)


async def test_what_is_forgotten_while_it_is_written_is_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    make_room = StateFiles._make_room  # noqa: SLF001 - where the writing begins

    def wait(self: StateFiles, size_bytes: int) -> None:
        begun.set()
        go_on.wait(20)
        make_room(self, size_bytes)

    monkeypatch.setattr(StateFiles, "_make_room", wait)
    with opened(tmp_path) as files:
        files.put(ANN, TOKENS, bytearray(b"state"))
        assert begun.wait(20)
        assert list(files.tokens(ANN)) == TOKENS
        await files.forget(ANN)
        assert list(files.tokens(ANN)) == []
        go_on.set()
    assert kept(tmp_path) == set()


def test_a_file_that_a_kill_left_half_written_goes_at_the_next_start(tmp_path: Path) -> None:
    (ann,) = keep(tmp_path, ANN)
    ann.rename(ann.with_suffix(".4711.partial"))
    with opened(tmp_path):
        assert kept(tmp_path) == set()


def test_a_full_disk_costs_only_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as files:
        (tmp_path / "small-f16").rmdir()
        files.put(ANN, TOKENS, bytearray(b"state"))
    told = capsys.readouterr()
    assert "state.dropped" in told.out + told.err


# --- llama.cpp ---


@dataclass(frozen=True)
class Answer:
    """An answer, and how much of its prompt had been saved."""

    text: str
    usage: Usage
    restored_tokens: int


def asks(*messages: ChatMessage, conversation: str = ANN, max_tokens: int = 12) -> ChatRequest:
    return ChatRequest(messages, Sampling(temperature=0), max_tokens, conversation=conversation)


async def answer(llm: LlamaCpp, request: ChatRequest) -> Answer:
    before = llm.stats().prompt_tokens_restored
    deltas = [delta async for delta in llm.stream(request)]
    usage = deltas[-1].usage
    assert usage is not None
    text = "".join(delta.text for delta in deltas)
    return Answer(text, usage, llm.stats().prompt_tokens_restored - before)


@pytest.fixture
def own(tmp_path: Path) -> LlamaCppSettings:
    """Return settings with a folder for what is saved."""
    return LlamaCppSettings(state_dir=tmp_path / "states")


ONE_SLOT = LlmSettings(slots=1)
"""Whoever comes takes the place of the one before."""


@asynccontextmanager
async def loaded(
    own: LlamaCppSettings, model_paths: dict[str, Path], llm_settings: LlmSettings = ONE_SLOT
) -> AsyncIterator[LlamaCpp]:
    llm = LlamaCpp(llm_settings, LocalModel(CATALOGUE[LLM], model_paths[LLM]), own)
    try:
        await llm.load()
        yield llm
    finally:
        await llm.close()


SHORT = HISTORY[:5]
"""Enough to be saved, and soon evaluated."""


async def test_after_a_restart_only_what_is_new_is_evaluated_and_the_answer_is_the_same(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    off = own.model_copy(update={"state_dir": ""})
    async with loaded(off, model_paths) as llm:
        await answer(llm, asks(*HISTORY, max_tokens=1))
        expected = await answer(llm, asks(*HISTORY, QUESTION))
    async with loaded(own, model_paths) as llm:
        await answer(llm, asks(*HISTORY, max_tokens=1))
    async with loaded(own, model_paths) as llm:
        again = await answer(llm, asks(*HISTORY, QUESTION))
    assert again.usage.prompt_tokens > 1_000
    assert again.usage.cached_tokens > 0.9 * again.usage.prompt_tokens
    assert again.restored_tokens == again.usage.cached_tokens
    assert (again.text, again.usage) == (expected.text, expected.usage)
    assert len(again.text) > 3


async def test_who_lost_their_place_to_another_is_restored_when_they_return(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    async with loaded(own, model_paths) as llm:
        await answer(llm, asks(*SHORT, max_tokens=1))
        other = await answer(llm, asks(ChatMessage("user", "Hello"), conversation=BOB))
        again = await answer(llm, asks(*SHORT, QUESTION))
        assert llm.stats().kv_used_tokens >= again.usage.prompt_tokens
    assert other.restored_tokens == 0
    assert again.restored_tokens > 0.9 * again.usage.prompt_tokens


@pytest.mark.parametrize("damage", ["cut", "foreign state"])
async def test_whose_file_is_damaged_is_answered_all_the_same(
    own: LlamaCppSettings, model_paths: dict[str, Path], damage: str
) -> None:
    folder = Path(own.state_dir)
    async with loaded(own, model_paths) as llm:
        await answer(llm, asks(*SHORT, max_tokens=1))
    (path,) = paths(folder)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1_000])
    else:  # all is right but what llama.cpp is given
        with opened(folder, path.parent.name, max_bytes=10**9) as files:
            saved = files.take(ANN)
            assert saved is not None
            files.put(ANN, saved.tokens, saved.state[:-1_000])
    async with loaded(own, model_paths) as llm:
        again = await answer(llm, asks(*SHORT, QUESTION))
        assert not path.exists()
        assert (
            await answer(llm, asks(*SHORT, QUESTION))
        ).usage.cached_tokens == again.usage.prompt_tokens - 1
    assert (again.usage.cached_tokens, again.restored_tokens) == (0, 0)
    assert again.text


async def test_what_another_number_format_wrote_is_not_read(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    async with loaded(own, model_paths) as llm:
        await answer(llm, asks(*SHORT, max_tokens=1))
    compact = own.model_copy(update={"kv_type": "q8_0", "flash_attention": True})
    async with loaded(compact, model_paths) as llm:
        assert (await answer(llm, asks(*SHORT, QUESTION))).restored_tokens == 0


async def test_the_forgotten_is_neither_in_the_cache_nor_in_the_folder(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    folder = Path(own.state_dir)
    async with loaded(own, model_paths) as llm:
        await answer(llm, asks(*SHORT, max_tokens=1))
        await llm.forget(ANN)
        assert llm.stats().kv_used_tokens == 0
        assert (await answer(llm, asks(*SHORT, max_tokens=1))).usage.cached_tokens == 0
    assert len(kept(folder)) == 1
    await llm.forget(ANN)  # also when no model is in memory any more
    assert kept(folder) == set()


async def test_what_is_forgotten_while_the_model_is_exchanged_is_not_saved(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    async def create(name: str) -> LlamaCpp:
        entry = CATALOGUE[LLM].model_copy(update={"name": name})
        return LlamaCpp(ONE_SLOT, LocalModel(entry, model_paths[LLM]), own)

    first = await create("first")
    model = SwitchableModel(create, "first", first)
    await model.load()
    await model.warm_up()
    try:
        await answer(first, asks(*SHORT, max_tokens=1))
        model.begin_switch("second")
        async with asyncio.timeout(60):
            while model.status().state == "loaded":  # noqa: ASYNC110 - a status is looked at
                await asyncio.sleep(0)
        await model.forget(ANN)
        assert model.status().name == "second"
        assert kept(Path(own.state_dir)) == set()
    finally:
        await model.close()


async def test_without_a_folder_nothing_is_written_and_the_cache_forgets_all_the_same(
    own: LlamaCppSettings, model_paths: dict[str, Path], tmp_path: Path
) -> None:
    async with loaded(own.model_copy(update={"state_dir": ""}), model_paths) as llm:
        await answer(llm, asks(*SHORT, max_tokens=1))
        await llm.forget(ANN)
        assert llm.stats().kv_used_tokens == 0
    assert paths(tmp_path) == []


async def test_the_bound_holds_for_what_is_saved_at_the_end(
    own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    roomy = own.model_copy(update={"state_max_gb": 0.02})
    slots = LlmSettings(slots=3)
    with capture_logs() as logs:
        async with loaded(roomy, model_paths, slots) as llm:
            for name in (ANN, BOB):
                await answer(llm, asks(*SHORT, ChatMessage("user", name), conversation=name, max_tokens=1))
    assert [each["conversations"] for each in logs if each["event"] == "states.saved"] == [1]
    async with loaded(roomy, model_paths, slots) as llm:
        again = [
            await answer(llm, asks(*SHORT, ChatMessage("user", name), conversation=name, max_tokens=1))
            for name in (BOB, ANN)
        ]
    assert sum(path.stat().st_size for path in paths(Path(roomy.state_dir))) <= 0.02e9
    assert (again[0].restored_tokens > 300, again[1].restored_tokens) == (True, 0)


async def test_a_folder_that_cannot_be_had_is_told_of_before_the_model_is_read(
    own: LlamaCppSettings, model_paths: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "states").write_text("no folder")
    with pytest.raises(ModelLoadError, match=r"llm\.llama_cpp\.state_dir: .*states cannot be written to"):
        async with loaded(own, model_paths):
            pass


@pytest.mark.parametrize("name", ["hf:some/model/q4/x.gguf@v1", "x" * 250 + ".gguf"])
async def test_a_model_of_any_name_keeps_its_conversations(
    name: str, own: LlamaCppSettings, model_paths: dict[str, Path]
) -> None:
    entry = CATALOGUE[LLM].model_copy(update={"name": name})
    llm = LlamaCpp(ONE_SLOT, LocalModel(entry, model_paths[LLM]), own)
    await llm.load()
    await answer(llm, asks(*SHORT, max_tokens=1))
    await llm.close()
    assert own.state_dir
    assert len(paths(own.state_dir)) == 1


async def test_what_cannot_be_deleted_is_not_said_to_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, ANN)

    def refuse(_: Path, *, missing_ok: bool) -> None:
        assert missing_ok
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(GenerationError, match="Permission denied"):
        await delete(tmp_path, conversations=[ANN])


# --- june ---


async def test_a_chat_is_restored_after_a_restart_and_forgotten_by_reset_and_by_age(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            reply={"mode": "text", "stream_text": False},
            llm={"max_tokens": 3},
            store={"keep_messages_days": 1},
            **{"llm.llama_cpp": {"state_dir": "states"}},
        )
        folder = tmp_path / "states"
        async with running(file) as june:
            await june.logged("june.started")
            server.push(SHORT[0].content * 3)
            await june.logged("turn.finished")
            assert await june.terminate() == 0
        (saved,) = paths(folder)
        assert str(ALICE) not in june.output
        async with running(file) as june:
            await june.logged("june.started")
            server.push("What is the sky?")
            assert (await june.logged("turn.finished"))["cached_tokens"] > 300
            assert paths(folder) == []  # it is in the cache again
            server.push("/reset")
            await server.wait_for(lambda call: "is forgotten" in (call.text or ""))
            assert await june.terminate() == 0
        assert paths(folder) == []
        saved.write_bytes(b"")
        os.utime(saved, (1e9, 1e9))
        async with running(file) as june:
            await june.logged("store.pruned")
            assert paths(folder) == []
            assert await june.terminate() == 0
