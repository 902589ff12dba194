"""
The inner app: thin routes over engines, training and the store. It knows no keys and is never served bare.

`build_api` makes the plain FastAPI app; `main.create_app` puts the sealing gateway around it.
"""

from __future__ import annotations

from fastapi import FastAPI

from . import answers, files, house
from .rooms import Rooms

__all__ = ["Rooms", "build_api"]


def build_api(rooms: Rooms) -> FastAPI:
    """
    The app with all its routes.

    No documentation routes, and telemetry off in so many words: FastAPI 0.165 would otherwise send spans,
    metrics and validation errors (with the values in them) to whatever OpenTelemetry provider the
    environment sets up.
    """
    app = FastAPI(
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
    answers.install(app)
    app.include_router(house.router(rooms))
    app.include_router(files.router(rooms))
    return app
