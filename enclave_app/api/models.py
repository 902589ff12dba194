"""
`/v1/models`: what a caller may name as `model`. The enclave's own models, and the caller's tuned ones, which
are theirs to take home and to delete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import model_card, zipped
from ..catalogue import Served
from ..refusals import RateLimited
from .rooms import Asking, Rooms


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/models")
    catalogue = rooms.catalogue
    downloading: set[str] = set()  # ids of tenants

    @routes.get("")
    async def models(asking: Asking) -> Any:
        await catalogue.open()
        return {"object": "list", "data": [_told(rooms, each) for each in await catalogue.all(asking)]}

    # Before the one below, which takes every path: a model's name may have a slash in it.
    @routes.get("/{name:path}/content")
    async def content(name: str, asking: Asking) -> Any:
        if asking.id in downloading:  # all of it is in memory while it is sent
            raise RateLimited(
                "You are downloading a model already; one at a time is sent.",
                code="too_many_downloads",
                retry_after=5,
            )
        downloading.add(asking.id)
        try:
            record, adapter = await asyncio.to_thread(catalogue.owned, asking, name)
            files = model_card.files(record, adapter)
            size = await asyncio.to_thread(zipped.size, files)
        except BaseException:
            downloading.discard(asking.id)
            raise
        return _Download(
            iterate_in_threadpool(zipped.zipped(files)),
            lambda: downloading.discard(asking.id),
            media_type="application/zip",
            headers={
                "content-length": str(size),
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


class _Download(StreamingResponse):
    """Calls `over` when no more of it is sent, also where the caller hung up before the first byte."""

    def __init__(self, content: AsyncIterable[bytes], over: Callable[[], None], **more: Any) -> None:
        super().__init__(content, **more)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


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
