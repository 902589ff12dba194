"""
`/v1/blindbox/status`: where the caller's own requests stand. What is told of others is only how full it is.

`blindbox top` shows it. What may be told is decided where it is counted, in `Desk.standing`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from .rooms import Asking, Rooms


def router(rooms: Rooms) -> APIRouter:
    """The route, over these rooms."""
    routes = APIRouter()

    @routes.get("/v1/blindbox/status")
    async def status(asking: Asking) -> Any:
        told = {"object": "blindbox.status", **asdict(rooms.desk.standing(asking.id))}
        return JSONResponse(told, headers={"cache-control": "no-store"})

    return routes
