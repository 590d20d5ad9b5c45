"""`/health`, `/ready`, `/metrics` and `/openapi.json`."""

import asyncio
import json
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from june import __version__
from june.api.requests import timestamp
from june.api.services import Services
from june.chat.apps import APPS, chat_apps
from june.conversation.failing import FailingStage
from june.errors import StageError, StoreError
from june.store import Waiting
from june.telemetry import exposition

STORE_TIMEOUT_S = 2.0
TICK_S = 0.01
MAX_LOOP_LAG_S = 1.0
"""An event loop that is later than this keeps every chat waiting."""


class Monitoring:
    """Handlers of the monitoring endpoints."""

    def __init__(self, services: Services) -> None:
        self._services = services
        description = yaml.safe_load(Path(__file__).with_name("openapi.yaml").read_text("utf-8"))
        schemas = description["components"]["schemas"]
        people = "|".join(f"{app.name}:({app.person})" for app in chat_apps())
        schemas["Platform"]["enum"] = list(APPS)
        schemas["Send"]["properties"]["to"]["pattern"] = f"^(owner|{people})$"
        self._description = json.dumps(description).encode()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the handlers."""
        return [
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/openapi.json", self._openapi, allow_head=False),
        ]

    async def _health(self, _: web.Request) -> web.Response:
        adapters = {name: adapter.health() for name, adapter in self._services.adapters.items()}
        waiting, lag_s = await asyncio.gather(self._waiting(), _loop_lag_s())
        failing = self._services.failing_stages()
        is_well = (
            all(health.state != "down" for health in adapters.values())
            and waiting is not None
            and lag_s < MAX_LOOP_LAG_S
            and not failing
        )
        body: dict[str, Any] = {
            "status": "ok" if is_well else "failing",
            "version": __version__,
            "adapters": {name: asdict(health) for name, health in adapters.items()},
            "models": [
                {"name": model.name, "backend": model.backend, "device": model.device}
                for model in self._services.models()
            ],
            "failing_stages": [_failing_json(each) for each in failing],
            "store": "failing" if waiting is None else "ok",
            "loop_lag_s": round(lag_s, 4),
            "queue": None if waiting is None else asdict(waiting),
        }
        return web.json_response(body, status=HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _ready(self, _: web.Request) -> web.Response:
        is_ready = self._services.is_ready()
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return web.json_response({"ready": is_ready}, status=status)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = exposition(",".join(request.headers.getall("Accept", ())))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    async def _waiting(self) -> Waiting | None:
        """Return the counts of unfinished messages; None: the store does not answer."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await self._services.store.history.waiting()
        except (StoreError, StageError, TimeoutError):
            return None


def _failing_json(failing: FailingStage) -> dict[str, Any]:
    return {
        "stage": failing.stage,
        "error": failing.code,
        "failures": failing.failures,
        "since": timestamp(failing.since_s),
    }


async def _loop_lag_s() -> float:
    """Return how late the event loop is now, in seconds."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + TICK_S
    await asyncio.sleep(TICK_S)
    return max(0.0, loop.time() - due_s)
