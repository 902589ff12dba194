"""What the routes may use, and how they learn who is asking. They make nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from ..catalogue import Catalogue
from ..engines.desk import Desk
from ..jobs.foreman import Foreman
from ..settings import Settings
from ..store import Store
from ..tenants import Tenant, tenant_from


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything a route can call."""

    settings: Settings
    store: Store
    catalogue: Catalogue
    desk: Desk
    foreman: Foreman


async def _asking(request: Request, authorization: Annotated[str | None, Header()] = None) -> Tenant:
    tenant = tenant_from(authorization)
    foreman: Foreman = request.app.state.foreman
    foreman.seen(tenant)  # what it left unfinished goes on, whatever it asks for
    return tenant


Asking = Annotated[Tenant, Depends(_asking)]
