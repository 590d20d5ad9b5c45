"""The HTTP server: aiohttp on june's own event loop."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from june.api import page
from june.api.access import check_exposure, guard
from june.api.claims import Claims
from june.api.events import Events
from june.api.messages import Messages
from june.api.models import ModelChanges
from june.api.monitoring import Monitoring
from june.api.problems import problems
from june.api.requests import MAX_BODY_BYTES
from june.api.services import Services
from june.errors import SettingsError
from june.sections import ApiSettings
from june.telemetry import log

SILENT = logging.getLogger("june.api")
"""aiohttp logs requests that it cannot parse in full, which may hold a token: its log is disabled."""
SILENT.disabled = True
SHUTDOWN_S = 1.0
"""Time that open requests have to end; aiohttp waits up to twice as long."""


def routes(services: Services) -> list[web.RouteDef]:
    """Return every route that `openapi.yaml` describes."""
    parts = (
        Messages(services),
        Claims(services),
        Events(services),
        ModelChanges(services),
        Monitoring(services),
    )
    return [route for part in parts for route in part.routes()]


@asynccontextmanager
async def serving(settings: ApiSettings, services: Services) -> AsyncIterator[int]:
    """Serve while the block runs, and yield the port.

    Args:
        settings: the section `[api]`.
        services: the parts of june that the endpoints use.

    Raises:
        SettingsError: june cannot listen at the address, or must not listen there without a token.
    """
    check_exposure(settings)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[problems, guard(settings, page.FILES)])
    app.add_routes([*routes(services), *page.routes()])
    runner = web.AppRunner(
        app, access_log=None, logger=SILENT, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise SettingsError(
                f"api.port: june cannot listen on {settings.host}:{settings.port}: {error.strerror}."
            ) from None
        port = int(runner.addresses[0][1])
        served = "whoever has the token" if settings.token.get_secret_value() else "this machine only"
        log.info("api.opened", host=settings.host, port=port, serves=served)
        yield port
    finally:
        services.closing.set()
        await runner.cleanup()
