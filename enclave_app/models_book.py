"""
Where a tenant's tuned models are written down, and what they are called.

    models    ID    the record: what it is called, what it was made of, when
    adapters  ID    the adapter itself (engines/adapter.py)

The record is written last and removed first, so what is listed is whole; it names the adapter's digest, so an
adapter from another time is found out. An id is made of the job's: it is known before the model is there, and
publishing a second time after a crash makes no second model.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from .engines.adapter import Adapter, MalformedAdapter, Manifest
from .refusals import Refusal
from .store import Damaged, Missing, Store
from .tenants import Tenant

MODELS: Final = "models"
ADAPTERS: Final = "adapters"
TUNED: Final = "ft:"
SUFFIX: Final = re.compile(r"[A-Za-z0-9._-]{0,64}")
_NAME: Final = re.compile(r"ft:.+:[A-Za-z0-9._-]{0,64}:([0-9a-f]{12})(?::ckpt-step-([0-9]{1,8}))?")
_LONGEST: Final = 512  # characters of a name
_FIGURE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_REMEMBERED: Final = 4096


def model_id(job: str) -> str:
    """The id of the model that a job makes."""
    return hashlib.sha256(f"blindbox/model-id/v1\n{job}".encode()).hexdigest()[:12]


def model_name(base: str, suffix: str, job: str) -> str:
    """What callers call the model that a job makes."""
    return f"{TUNED}{base}:{suffix}:{model_id(job)}"


def checkpoint_name(base: str, suffix: str, job: str, step: int) -> str:
    """What callers call the model as it was at a step."""
    return f"{model_name(base, suffix, job)}:ckpt-step-{step}"


class Wanted(NamedTuple):
    """What a name of a tuned model says; whether there is one, it does not."""

    id: str
    step: int | None  # of a checkpoint

    @classmethod
    def of(cls, name: str) -> Wanted | None:
        """None where the name is not a tuned model's."""
        found = _NAME.fullmatch(name) if len(name) <= _LONGEST else None
        return None if found is None else cls(found[1], None if found[2] is None else int(found[2]))


@dataclass(frozen=True, slots=True)
class Record:
    """A tuned model, as it is kept."""

    id: str
    number: int  # of the tenant's models: the newest has the highest, for the clock may jump
    job: str
    base: str  # name of the base model
    suffix: str
    created_at: int  # Unix seconds
    manifest: Manifest
    figures: Mapping[str, int | float] = field(default_factory=dict)  # of its training, for the model card

    @property
    def name(self) -> str:
        """What its owner calls it."""
        return f"{TUNED}{self.base}:{self.suffix}:{self.id}"

    def encode(self) -> bytes:
        """For the sealed store."""
        return json.dumps({"blindbox-model": 1, **asdict(self)}).encode()

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """The inverse of `encode`; raises `ValueError`, `KeyError` or `TypeError`."""
        fields = json.loads(data)
        if fields.pop("blindbox-model") != 1:
            raise ValueError("another version of a record")
        return cls(**{**fields, "manifest": Manifest.of(fields["manifest"])})


class Shelved(NamedTuple):
    """A tenant's models, the newest first, and the ids of those whose record cannot be read."""

    records: tuple[Record, ...]
    damaged: tuple[str, ...]


class ModelsBook:
    """The records and adapters of all tenants; whoever calls holds the tenant's key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: OrderedDict[tuple[str, str, str], Record] = OrderedDict()  # tenant, id, version
        self._writing = threading.Lock()

    def all(self, tenant: Tenant) -> Shelved:
        """Everything of this tenant's."""
        records, damaged = [], []
        for name in self._store.names(tenant, MODELS):
            try:
                records.append(self.record(tenant, name))
            except Missing:
                continue  # removed between the two lines
            except Damaged:
                damaged.append(name)
        records.sort(key=lambda record: record.number, reverse=True)
        return Shelved(tuple(records), tuple(damaged))

    def record(self, tenant: Tenant, name: str) -> Record:
        """The model of this id; raises `Missing` or `Damaged`."""
        at = (tenant.id, name, self._store.version(tenant, MODELS, name))
        known = self._read.get(at)
        if known is not None:
            return known
        try:
            record = Record.parse(self._store.read(tenant, MODELS, name))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Damaged(f"{MODELS}/{name} is no record") from None
        if record.id != name:
            raise Damaged(f"{MODELS}/{name} is another's record")
        self._read[at] = record
        while len(self._read) > _REMEMBERED:
            self._read.popitem(last=False)
        return record

    def adapter(self, tenant: Tenant, record: Record) -> Adapter:
        """What the record tells of; raises `Missing` or `Damaged`."""
        return self.parsed(record, self._store.read(tenant, ADAPTERS, record.id))

    def parsed(self, record: Record, data: bytes) -> Adapter:
        """The adapter of this record; raises `Damaged` if the bytes are not it."""
        try:
            adapter = Adapter.parse(data)
        except MalformedAdapter as error:
            raise Damaged(f"{ADAPTERS}/{record.id} is no adapter") from error
        if adapter.manifest != record.manifest:
            raise Damaged(f"{ADAPTERS}/{record.id} is not the adapter of its record")
        return adapter

    def write(
        self,
        tenant: Tenant,
        *,
        job: str,
        base: str,
        suffix: str,
        adapter: Adapter,
        now: int,
        figures: Mapping[str, Any],
        most: int,
    ) -> Record:
        """
        Keep a model, if there is room for one more: its adapter, then its record.

        The same model of the same job a second time changes nothing; another one takes its place.
        """
        name = model_id(job)
        with self._writing:
            there = self.all(tenant)
            before = next((record for record in there.records if record.id == name), None)
            if before is not None and before.manifest == adapter.manifest:
                return before
            if before is None and name not in there.damaged:
                self.room(tenant, most=most)
            record = Record(
                id=name,
                number=1 + max((each.number for each in there.records), default=0),
                job=job,
                base=base,
                suffix=suffix,
                created_at=now,
                manifest=adapter.manifest,
                figures=_figures(figures),
            )
            with suppress(Missing):
                self._store.delete(tenant, MODELS, name)
            try:
                self._store.write(tenant, ADAPTERS, name, adapter.encode())
                self._store.write(tenant, MODELS, name, record.encode())
            except BaseException:
                with suppress(Missing):  # there was no room: then it should not lie there either
                    self._store.delete(tenant, ADAPTERS, name)
                raise
            return record

    def room(self, tenant: Tenant, *, most: int, coming: int = 0) -> None:
        """Raise `Refusal` where the tenant has as many models as one may have, with those that are coming."""
        there = len(self._store.names(tenant, MODELS))
        if there + coming >= most:
            raise Refusal(
                f"You have {there} tuned models{f' and {coming} being made' if coming else ''}; the limit is "
                f"{most}. Delete one with DELETE /v1/models/ID; GET /v1/models lists them.",
                code="too_many_models",
            )

    def delete(self, tenant: Tenant, name: str) -> None:
        """Remove a model: what lists it first. Raises `Missing`."""
        with self._writing:
            self._store.delete(tenant, MODELS, name)
            for known in list(self._read):
                if known[:2] == (tenant.id, name):
                    self._read.pop(known, None)
            with suppress(Missing):
                self._store.delete(tenant, ADAPTERS, name)

    def delete_all(self, tenant: Tenant) -> list[str]:
        """Remove every model of a tenant, and what a crash left without a record; the models' ids."""
        removed = []
        for name in self._store.names(tenant, MODELS):
            with suppress(Missing):
                self.delete(tenant, name)
                removed.append(name)
        for name in self._store.names(tenant, ADAPTERS):
            with suppress(Missing):
                self._store.delete(tenant, ADAPTERS, name)
        return removed


def _figures(told: Mapping[str, Any]) -> dict[str, int | float]:
    """Numbers alone: a text may be somebody's row."""
    return {
        name: value
        for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and _FIGURE.fullmatch(name)
    }
