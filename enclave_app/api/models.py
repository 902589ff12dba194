"""`/v1/models`: what a caller may name as `model`. The enclave's own models, and the caller's tuned one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..catalogue import Served
from ..refusals import Refusal
from ..tenants import Tenant
from .rooms import Asking, Rooms


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/models")

    @routes.get("")
    async def models(asking: Asking) -> Any:
        await rooms.catalogue.open()
        return {"object": "list", "data": [_told(rooms, each) for each in await _all(rooms, asking)]}

    @routes.get("/{name:path}")
    async def model(name: str, asking: Asking) -> Any:
        await rooms.catalogue.open()
        return _told(rooms, await rooms.catalogue.find(asking, name))

    return routes


async def _all(rooms: Rooms, asking: Tenant) -> list[Served]:
    try:
        return await rooms.catalogue.all(asking)
    except Refusal:
        # The caller's own model cannot be used as it lies there. Asking for it says why; the others can be.
        catalogue = rooms.catalogue
        return [catalogue.untuned(source) for source in dict.fromkeys((catalogue.base, catalogue.instruct))]


def _told(rooms: Rooms, served: Served) -> dict[str, Any]:
    """OpenAI's model object, and what one has to know to ask it well."""
    card = rooms.catalogue.card(served)
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "blindbox" if served.tuning is None else "you",
        "max_model_len": card.context,
        "abilities": sorted(card.abilities),
        "most_logprobs": card.most_logprobs,
    }
