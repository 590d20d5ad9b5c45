"""Promises that `openapi.yaml` and the server agree."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
import yaml

from june.api.requests import MAX_BODY_BYTES, Claim, Extend, Fail, Replace, Respond, Send
from june.api.server import routes
from june.messages import ModelDescription
from june.sections import PROJECT_ROOT
from june.store import MAX_TEXT
from tests.api_client import Office

DESCRIPTION = yaml.safe_load((PROJECT_ROOT / "june/api/openapi.yaml").read_text("utf-8"))
MODELS = {"tiny": ModelDescription("tiny", "faster_whisper", "cpu", {})}


async def test_the_description_is_served_as_json(tmp_path: Path) -> None:
    async with Office(tmp_path) as office:
        served = await office.client.get("/openapi.json")
        assert (served.content_type, served.body) == ("application/json", DESCRIPTION)


async def test_every_endpoint_is_described_and_none_other(tmp_path: Path) -> None:
    described = {
        (method.upper(), path)
        for path, item in DESCRIPTION["paths"].items()
        for method in item
        if method in {"get", "put", "post", "patch", "delete"}
    }
    async with Office(tmp_path) as office:
        served = {
            (route.method, re.sub(r"\{id:.*?\}\}?(?=/|$)", "{id}", route.path))
            for route in routes(office.services)
        }
    assert served == described


@pytest.mark.parametrize("model", [Send, Claim, Extend, Respond, Fail, Replace])
def test_a_body_has_the_keys_that_are_described(model: type) -> None:
    schema = DESCRIPTION["components"]["schemas"][model.__name__]
    fields = model.model_fields  # type: ignore[attr-defined]
    assert set(schema["properties"]) == set(fields)
    assert set(schema.get("required", [])) == {name for name, field in fields.items() if field.is_required()}


def test_the_longest_text_is_as_described() -> None:
    assert DESCRIPTION["components"]["schemas"]["Text"]["maxLength"] == MAX_TEXT
    assert MAX_TEXT * len("\\ud83d\\ude00") < MAX_BODY_BYTES


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with Office(tmp_path) as office:
        office.models, office.is_ready = tuple(MODELS.values()), True
        await office.arrive("One", "Two", "Three")
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "run"),
            f"{office.client.base_url}/openapi.json",
            *("--exclude-path", "/v1/events"),  # it does not end
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "4"),
            *("--generation-deterministic", "--no-color"),
            *("--request-timeout", "10", "--max-time", "25"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert b"Tested: 18" in output
