"""What the routes may use, and how they learn who is asking. They make nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from ..catalogue import Catalogue
from ..datasets import Hub
from ..engines.desk import Desk
from ..settings import Settings
from ..store import Store
from ..tenants import Tenant, tenant_from
from ..training.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything a route can call."""

    settings: Settings
    store: Store
    catalogue: Catalogue
    desk: Desk
    workshop: Workshop
    hub: Hub


async def _asking(authorization: Annotated[str | None, Header()] = None) -> Tenant:
    return tenant_from(authorization)


Asking = Annotated[Tenant, Depends(_asking)]
