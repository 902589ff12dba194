"""
`/v1/models`: what a caller may name as `model`. The enclave's own models, and the caller's tuned ones, which
are theirs to take home and to delete.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from .. import model_card, zipped
from ..catalogue import Served
from .rooms import Asking, Rooms


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/models")
    catalogue = rooms.catalogue

    @routes.get("")
    async def models(asking: Asking) -> Any:
        await catalogue.open()
        return {"object": "list", "data": [_told(rooms, each) for each in await catalogue.all(asking)]}

    # Before the one below, which takes every path: a model's name may have a slash in it.
    @routes.get("/{name:path}/content")
    async def content(name: str, asking: Asking) -> Any:
        record, adapter = await asyncio.to_thread(catalogue.owned, asking, name)
        files = model_card.files(record, adapter)
        return StreamingResponse(
            iterate_in_threadpool(zipped.zipped(files)),
            media_type="application/zip",
            headers={
                "content-length": str(await asyncio.to_thread(zipped.size, files)),
                "content-disposition": f'attachment; filename="{record.id}.zip"',
            },
        )

    @routes.get("/{name:path}")
    async def model(name: str, asking: Asking) -> Any:
        await catalogue.open()
        return _told(rooms, await catalogue.find(asking, name))

    @routes.delete("/{name:path}")
    async def delete(name: str, asking: Asking) -> Any:
        await catalogue.delete(asking, name)
        return {"id": name, "object": "model", "deleted": True}

    return routes


def _told(rooms: Rooms, served: Served) -> dict[str, Any]:
    """OpenAI's model object, and what one has to know to ask it well."""
    card = rooms.catalogue.card(served)
    tuned = served.tuning is not None
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "you" if tuned else "blindbox",
        "parent": served.source.name if tuned else None,
        "root": served.source.name,
        "max_model_len": card.context,
        "abilities": sorted(card.abilities),
        "most_logprobs": card.most_logprobs,
    }
