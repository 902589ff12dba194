"""
Which models there are for whom: the base model, the instruct model, and each caller's own tuned one.

A caller names a model; what comes back is all that is needed to ask it: its engine, its tokenizer, the
template it wants to be asked with, and the adapter if there is one. Nobody finds another tenant's model, nor
learns whether there is one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

from .engines import Card, Tuning
from .engines.adapter import Adapter, MalformedAdapter, Manifest
from .engines.desk import Desk, Make, MakeTuned
from .prompts import Template
from .refusals import Conflict, Failed, NotFound, Refusal, nearest
from .store import Damaged, Missing, Store
from .tenants import Tenant

ADAPTERS: Final = "adapters"
CURRENT: Final = "current"
_REMEMBERED: Final = 1024
_TUNED: Final = "ft:"


@dataclass(frozen=True, slots=True)
class Source:
    """A model of this enclave: its name, its tokenizer, and how its engine is started."""

    name: str
    make: Make = field(repr=False)
    tokenizer: Any = field(repr=False)  # a FolderTokenizer, or what has its methods
    fingerprint: str = ""  # `Model.fingerprint`: what an adapter must have been made for
    tuned: MakeTuned | None = field(default=None, repr=False)  # starts an engine for a tuned model, …
    # … where the base model's cannot take the adapter in


@dataclass(frozen=True, slots=True)
class Served:
    """A model as one caller may ask it."""

    name: str
    source: Source
    template: Template
    tuning: Tuning | None
    created: int  # Unix seconds

    @property
    def tokenizer(self) -> Any:
        return self.source.tokenizer


class Catalogue:
    """The models, by name and by caller. Engines are started when the app is, or when first asked for."""

    def __init__(self, base: Source, instruct: Source, desk: Desk, store: Store) -> None:
        self.base = base
        self.instruct = instruct
        self.desk = desk
        self._store = store
        self._opening = asyncio.Lock()
        self._open = False
        self._since = int(time.time())
        self._manifests: dict[str, Manifest] = {}  # by version; to read one takes the whole adapter

    async def open(self) -> None:
        """Start the engines, once, and wait until they are warm."""
        async with self._opening:
            if self._open:
                return
            # Both at once. Where one fails, whoever asked closes the desk, and with it the other.
            await asyncio.gather(
                *(
                    self.desk.open(each.name, each.make, each.tokenizer, each.tuned)
                    for each in dict.fromkeys((self.base, self.instruct))
                )
            )
            self._open = True

    def card(self, served: Served) -> Card:
        """What the model's engine can do."""
        return self.desk.card(served.source.name)

    def untuned(self, source: Source) -> Served:
        """One of the enclave's own models."""
        return Served(source.name, source, Template.for_base(source.tokenizer), None, self._since)

    async def mine(self, tenant: Tenant) -> Served | None:
        """The caller's tuned model, if there is one."""
        return await asyncio.to_thread(self._tuned, tenant)

    async def find(self, tenant: Tenant, name: str) -> Served:
        """The model a caller named; raises `NotFound`."""
        for source in (self.base, self.instruct):
            if name == source.name:
                return self.untuned(source)
        mine = await self.mine(tenant) if name.startswith(_TUNED) else None
        if mine is not None and name == mine.name:
            return mine
        known = [each.name for each in await self.all(tenant)]
        raise NotFound(
            f"There is no model of that name for you.{nearest(name, known)} GET /v1/models lists them.",
            code="model_not_found",
            param="model",
        )

    async def all(self, tenant: Tenant) -> list[Served]:
        """All models this caller may name; a tuned one that cannot be used is left out."""
        own = [self.untuned(source) for source in dict.fromkeys((self.base, self.instruct))]
        try:
            mine = await self.mine(tenant)
        except Refusal:
            mine = None  # what is wrong with it is told to whoever asks it
        return own if mine is None else [*own, mine]

    def _tuned(self, tenant: Tenant) -> Served | None:
        try:
            version = self._store.version(tenant, ADAPTERS, CURRENT)
        except Missing:
            return None

        def load() -> Adapter:
            return self._adapter(tenant)

        # The version is read from the disk, unauthenticated: alone it could be that of another tenant's file.
        tuning = Tuning(f"{tenant.id} {version}", load, owner=tenant.id)
        manifest = self._manifests.get(tuning.version)
        if manifest is None:
            manifest = self._manifests[tuning.version] = load().manifest
            while len(self._manifests) > _REMEMBERED:
                self._manifests.pop(next(iter(self._manifests)))
        template = Template(manifest.template)
        if (
            manifest.model != self.base.fingerprint
            or template.digest(self.base.tokenizer) != manifest.template_digest
        ):
            raise Conflict(
                "Your tuned model was made for another base model or prompt template. Fine-tune again.",
                code="adapter_mismatch",
            )
        name = f"{_TUNED}{self.base.name}::{manifest.weights_sha256[:8]}"
        return Served(name, self.base, template, tuning, self._since)

    def _adapter(self, tenant: Tenant) -> Adapter:
        try:
            return Adapter.parse(self._store.read(tenant, ADAPTERS, CURRENT))
        except (Damaged, MalformedAdapter):
            raise Failed(
                "The stored adapter is damaged. Fine-tune again to replace it.", code="damaged_adapter"
            ) from None
