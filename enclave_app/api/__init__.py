"""
The inner app: thin routes over engines, training and the store. It knows no keys and is never served bare.

`build_api` makes the plain FastAPI app; `main.create_app` puts the sealing gateway around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from . import alpaca, answers, chat, completions, files, house, jobs, models, status, tenant, uploads
from .rooms import Rooms

__all__ = ["Rooms", "build_api"]


def build_api(rooms: Rooms) -> FastAPI:
    """
    The app with all its routes.

    No documentation routes, and telemetry off in so many words: FastAPI 0.165 would otherwise send spans,
    metrics and validation errors (with the values in them) to whatever OpenTelemetry provider the
    environment sets up.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await rooms.catalogue.open()
        rooms.foreman.open()
        yield
        rooms.desk.close()
        await asyncio.to_thread(rooms.foreman.close)

    app = FastAPI(
        lifespan=life,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda _: True,
        },
    )
    app.state.foreman = rooms.foreman
    answers.install(app)
    for routes in (house, alpaca, models, chat, completions, files, uploads, jobs, tenant, status):
        app.include_router(routes.router(rooms))
    return app
