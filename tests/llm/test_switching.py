"""Promises of exchanging the language model while june runs."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from june.bench.recordings import Question
from june.errors import GenerationError, ModelChangeError, ModelFileError, ModelLoadError
from june.llm import ChatModel
from june.llm.llama_cpp.model import LlamaCpp
from june.llm.switching import SwitchableModel
from june.messages import ChatMessage, ChatRequest, ModelDescription, Sampling
from june.models import LocalModel
from june.settings import Settings
from tests.api_client import talking_to
from tests.conftest import CATALOGUE, LLM, STT, TTS
from tests.fakes import FakeLlm
from tests.models.gguf_writer import gguf, write
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer

QUESTION = ChatRequest((ChatMessage("user", "Hello"),), Sampling(temperature=0), max_tokens=5)


@dataclass
class NamedLlm(FakeLlm):
    """A fake that notes when it is loaded and freed, and may fail to load."""

    name: str = ""
    events: list[str] = field(default_factory=list)
    fails: bool = False

    async def load(self) -> None:
        """Load, or not."""
        if self.fails:
            raise ModelLoadError(f"There is no room for {self.name}.")
        self.events.append(f"load {self.name}")

    async def close(self) -> None:
        """Free it."""
        self.events.append(f"free {self.name}")

    def describe(self) -> ModelDescription:
        """Its name."""
        return ModelDescription(self.name, "fake", "cpu", {})


@dataclass
class Shelf:
    """The models that there are."""

    events: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    unsuited: set[str] = field(default_factory=set)
    crashing: set[str] = field(default_factory=set)

    async def create(self, name: str) -> NamedLlm:
        """Return the model of that name, not yet loaded."""
        if name in self.missing:
            raise ModelFileError(f"{name} is not here.")
        if name in self.unsuited:
            raise ModelLoadError(f"{name} was trained for less context.")
        if name in self.crashing:
            raise KeyError(name)
        return NamedLlm(name=name, pieces=(name, "!"), events=self.events, fails=name in self.broken)


@asynccontextmanager
async def loaded(shelf: Shelf, name: str = "small") -> AsyncIterator[SwitchableModel]:
    model = SwitchableModel(shelf.create, name, await shelf.create(name))
    await model.load()
    await model.warm_up()
    try:
        yield model
    finally:
        await model.close()


async def answer(model: ChatModel) -> str:
    return "".join([delta.text async for delta in model.stream(QUESTION)])


async def until(reached: Callable[[], bool]) -> None:
    """Return when a status is reached."""
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 - a status is looked at, and sets no event
            await asyncio.sleep(0)


async def settled(model: SwitchableModel) -> None:
    """Return when no change is going on."""
    await until(lambda: not model.status().changing)


async def test_what_was_begun_ends_on_the_old_model_and_what_comes_meanwhile_waits_for_the_new() -> None:
    shelf = Shelf()
    async with loaded(shelf) as model:
        async with aclosing(model.stream(QUESTION)) as begun:
            first = await anext(begun)
            model.begin_switch("large")
            coming = asyncio.create_task(answer(model))
            await until(lambda: model.status().state == "finishing")
            assert (first.text, (await anext(begun)).text) == ("small", "!")
            assert shelf.events == ["load small"]
        assert await coming == "large!"
        assert shelf.events == ["load small", "free small", "load large"]
        assert model.status().name == "large"
    assert shelf.events[3:] == ["free large"]


@pytest.mark.parametrize("fault", ["broken", "missing", "unsuited"])
async def test_a_model_that_cannot_be_had_leaves_the_old_one_at_work(fault: str) -> None:
    shelf = Shelf()
    async with loaded(shelf) as model:
        getattr(shelf, fault).add("large")
        model.begin_switch("large")
        await settled(model)
        assert "large" in model.status().error
        assert (model.status().name, model.status().state) == ("small", "loaded")
        assert await answer(model) == "small!"
        model.begin_switch("other")
        await settled(model)
        assert (model.status().name, model.status().error) == ("other", "")


@pytest.mark.parametrize("fault", ["missing", "unsuited", "crashing"])
async def test_where_the_old_model_cannot_be_had_again_either_both_reasons_are_told(fault: str) -> None:
    shelf = Shelf(broken={"large"})
    async with loaded(shelf) as model:
        getattr(shelf, fault).add("small")
        model.begin_switch("large")
        await settled(model)
        status = model.status()
        assert (status.state, status.target) == ("unloaded", "")
        assert status.error.startswith("There is no room for large. ")
        assert len(status.error) > len("There is no room for large. ")
        getattr(shelf, fault).clear()
        model.begin_load("small")
        await settled(model)
        assert await answer(model) == "small!"


async def test_without_a_model_an_answer_is_refused_until_one_is_loaded() -> None:
    shelf = Shelf()
    async with loaded(shelf) as model:
        model.begin_unload()
        await settled(model)
        with pytest.raises(GenerationError) as refusal:
            await answer(model)
        assert refusal.value.code == "model_unavailable"
        model.begin_load("large")
        await settled(model)
        assert await answer(model) == "large!"
    assert shelf.events == ["load small", "free small", "load large", "free large"]


async def test_nothing_is_loaded_twice_and_one_change_goes_on_at_a_time() -> None:
    shelf = Shelf()
    async with loaded(shelf) as model:
        model.begin_load("small")
        model.begin_switch("small")
        assert not model.status().changing
        with pytest.raises(ModelChangeError, match="switch replaces it"):
            model.begin_load("large")
        model.begin_switch("large")
        for change in (model.begin_unload, lambda: model.begin_switch("other")):
            with pytest.raises(ModelChangeError, match="going on"):
                change()
        await settled(model)
    assert shelf.events == ["load small", "free small", "load large", "free large"]


async def test_llama_cpp_is_replaced_under_load(settings: Settings, model_paths: dict[str, Path]) -> None:
    async def create(name: str) -> LlamaCpp:
        entry = CATALOGUE[LLM].model_copy(update={"name": name})
        return LlamaCpp(settings.llm, LocalModel(entry, model_paths[LLM]))

    model = SwitchableModel(create, "first", await create("first"))
    await model.load()
    await model.warm_up()
    try:
        answers = [asyncio.create_task(answer(model)) for _ in range(4)]
        await asyncio.sleep(0)
        model.begin_switch("second")
        answers += [asyncio.create_task(answer(model)) for _ in range(4)]
        assert all(await asyncio.gather(*answers))
        await settled(model)
        assert (model.status().name, model.status().error) == ("second", "")
    finally:
        await model.close()


async def models_command(file: Path, port: int, *arguments: str) -> tuple[int, str]:
    """Exit status, and what was printed on either output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "june", "models", *arguments, "--settings", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"JUNE_API__PORT": str(port)},
    )
    output, _ = await process.communicate()
    return int(process.returncode or 0), output.decode()


async def is_ready(port: int) -> bool:
    async with talking_to(port) as client:
        ready = await client.get("/ready")
    assert ready.body == {"ready": ready.status == 200}
    return bool(ready.body["ready"])


async def test_the_model_of_a_running_june_is_unloaded_and_loaded_by_command(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            reply={"mode": "text", "stream_text": False},
        )
        async with running(file) as june:
            port = int((await june.logged("api.opened"))["port"])
            await june.logged("june.started")
            assert await is_ready(port)
            status, output = await models_command(file, port, "switch", "qwen3-8b")
            assert (status, "pull it first" in output) == (2, True)
            assert await models_command(file, port, "unload") == (0, f"{LLM}: unloaded\n")
            status, output = await models_command(file, port, "status", "--json")
            assert LLM not in [model["name"] for model in json.loads(output)["loaded"]]
            assert not await is_ready(port)
            server.push("Hello?")
            refused = await server.wait_for(lambda call: call.method == "sendMessage")
            assert refused.text == "One of my models is not available at the moment."
            assert await models_command(file, port, "load", LLM) == (0, f"{LLM}: loaded\n")
            status, output = await models_command(file, port, "status", "--json")
            assert (status, json.loads(output)["llm"]["state"]) == (0, "loaded")
            assert LLM in [model["name"] for model in json.loads(output)["loaded"]]
            assert await is_ready(port)
            server.push("What is the sky?")
            await june.logged("turn.finished")
            assert await june.terminate() == 0


async def test_june_answers_by_voice_with_three_models_of_the_owners_own_and_switches_to_another(
    tmp_path: Path, model_paths: dict[str, Path], questions: tuple[Question, ...]
) -> None:
    shutil.copytree(model_paths[STT], tmp_path / "my whisper")
    shutil.copytree(model_paths[TTS].parent, tmp_path / "voice")
    own, other, outside = tmp_path / "own.gguf", tmp_path / "models" / "other.gguf", tmp_path / "outside.gguf"
    other.parent.mkdir()
    for path in (own, other):
        shutil.copy(model_paths[LLM], path)
    outside.symlink_to("/etc/passwd")
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            models={"directory": "models"},
            stt={"model": "my whisper/"},
            llm={"model": "own.gguf"},
            tts={"model": "./voice"},
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            reply={"mode": "voice", "stream_text": False},
        )
        async with running(file) as june:
            port = int((await june.logged("api.opened"))["port"])
            await june.logged("june.started")
            server.push_file("voice", questions[0].audio, duration=3)
            await server.wait_for(lambda call: call.method == "sendVoice")
            status, output = await models_command(file, port, "status", "--json")
            assert json.loads(output)["present"] == ["other.gguf", "own.gguf"]
            status, output = await models_command(file, port, "switch", str(outside))
            assert (status, "There is no such language model here" in output) == (2, True)
            assert await models_command(file, port, "switch", str(other)) == (0, "other.gguf: loaded\n")
            assert await models_command(file, port, "switch", "own.gguf") == (0, "own.gguf: loaded\n")
            write(other.with_name("short.gguf"), gguf())
            status, output = await models_command(file, port, "switch", "short.gguf")
            assert (status, "short.gguf was trained for 2,048 tokens of context" in output) == (2, True)
            status, output = await models_command(file, port, "switch", f"{'x' * 300}.gguf")
            assert (status, "There is no such language model here" in output) == (2, True)
            assert await june.terminate() == 0
        assert str(tmp_path) not in june.output
