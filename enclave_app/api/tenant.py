"""`DELETE /v1/blindbox/tenant`: everything that the caller has here goes, and they are told what it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from ..store import Store
from ..tenants import Tenant
from . import files, uploads
from .rooms import Asking, Rooms


def router(rooms: Rooms) -> APIRouter:
    """The route, over these rooms."""
    routes = APIRouter()

    @routes.delete("/v1/blindbox/tenant")
    async def forget(asking: Asking) -> Any:
        removed = await rooms.foreman.forget(asking)
        told = {kind.replace("-", "_"): count for kind, count in sorted(removed.items())}
        return {"object": "blindbox.tenant", "deleted": True, "removed": told}

    return routes


def expiring(store: Store) -> Callable[[Tenant], None]:
    """Removes a tenant's files and uploads that are over; called when a tenant is first seen."""

    def expire(tenant: Tenant) -> None:
        files.expire(store, tenant, time.time())
        uploads.expire(store, tenant, time.time())

    return expire
