"""`/v1/models`: showing, loading, unloading and switching the language model."""

from dataclasses import asdict
from http import HTTPStatus

from aiohttp import web

from june.api.problems import ProblemError
from june.api.requests import ModelName, NoFields, read_body
from june.api.services import Services
from june.llm.switching import SwitchableModel
from june.models.present import find_present
from june.workers import run_aside


class ModelChanges:
    """Handlers of `/v1/models`. They begin a change, which continues after the request is answered."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the handlers."""
        return [
            web.get("/v1/models", self._show),
            web.post("/v1/models/load", self._load),
            web.post("/v1/models/unload", self._unload),
            web.post("/v1/models/switch", self._switch),
        ]

    async def _show(self, _: web.Request) -> web.Response:
        return await self._answer()

    async def _load(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        self._llm().begin_load(name)
        return await self._answer(HTTPStatus.ACCEPTED)

    async def _unload(self, request: web.Request) -> web.Response:
        await read_body(request, NoFields)
        self._llm().begin_unload()
        return await self._answer(HTTPStatus.ACCEPTED)

    async def _switch(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        self._llm().begin_switch(name)
        return await self._answer(HTTPStatus.ACCEPTED)

    async def _name(self, request: web.Request) -> str:
        called = (await read_body(request, ModelName)).name
        name = await run_aside(lambda _: find_present(called, self._services.present_llms()))
        if name is None:
            raise ProblemError(
                HTTPStatus.NOT_FOUND,
                "There is no such language model here: pull it first, put its file into the folder "
                "models.directory, or let llm.model name it.",
            )
        return name

    def _llm(self) -> SwitchableModel:
        llm = self._services.llm()
        if llm is None:
            raise ProblemError(HTTPStatus.CONFLICT, "The models are not loaded yet.")
        return llm

    async def _answer(self, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
        present = await run_aside(lambda _: list(self._services.present_llms()))
        llm = self._services.llm()
        body = {
            "llm": None if llm is None else asdict(llm.status()),
            "loaded": [asdict(description) for description in self._services.models()],
            "present": present,
        }
        return web.json_response(body, status=status)
