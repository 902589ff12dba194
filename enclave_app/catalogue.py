"""
Which models there are for whom: the base model, the instruct model, and each caller's own tuned ones.

A caller names a model; what comes back is all that is needed to ask it: its engine, its tokenizer, the
template it wants to be asked with, and the adapter if there is one. Nobody finds another tenant's model, nor
learns whether there is one. How models are kept is `models_book.py`, how checkpoints `checkpoint.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from .checkpoint import CHECKPOINTS, Checkpoint, MalformedCheckpoint, job_of, name_in_store
from .engines import Card, Sampling, Tuning, Work
from .engines.adapter import Adapter, MalformedAdapter, Manifest
from .engines.desk import Desk, Make, MakeTuned
from .engines.tuned import GRACE_SECONDS
from .models_book import (
    ADAPTERS,
    SUFFIX,
    ModelsBook,
    Record,
    Wanted,
    checkpoint_name,
    model_id,
    model_name,
)
from .prompts import Template
from .refusals import Busy, Conflict, Failed, NotFound, Refusal, nearest
from .store import Damaged, Missing, Store
from .tenants import Tenant

__all__ = [
    "Catalogue",
    "Served",
    "Source",
    "checkpoint_name",
    "model_id",
    "model_name",
]

PATIENCE_SECONDS: Final = 60.0
"""So long `prepare` waits for room, where those who are being answered leave none."""
_PAUSE: Final = 0.5
_REMEMBERED: Final = 1024


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
    weights: str = ""  # names the tuned weights; "" = those of the source

    @property
    def tokenizer(self) -> Any:
        return self.source.tokenizer

    @property
    def fingerprint(self) -> str:
        """Names the weights that answer: the base model's, and what was made of them. "" = not known."""
        if self.tuning is None:
            return self.source.fingerprint
        return hashlib.sha256(f"{self.source.fingerprint}\n{self.weights}".encode()).hexdigest()


class Catalogue:
    """
    The models, by name and by caller. Engines are started when the app is, or when first asked for.

    A tenant may have `most_models` tuned ones.
    """

    def __init__(
        self, base: Source, instruct: Source, desk: Desk, store: Store, *, most_models: int = 32
    ) -> None:
        self.base = base
        self.instruct = instruct
        self.desk = desk
        self.book = ModelsBook(store)
        self._store = store
        self._most_models = most_models
        self._opening = asyncio.Lock()
        self._open = False
        self._since = int(time.time())
        self._coming: Counter[str] = Counter()  # versions that are being prepared
        self._seconds: dict[str, float] = {}  # that it took, by version

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

    # --- who finds what -------------------------------------------------------------------------------

    def untuned(self, source: Source) -> Served:
        """One of the enclave's own models."""
        return Served(source.name, source, Template.for_base(source.tokenizer), None, self._since)

    async def mine(self, tenant: Tenant) -> Served | None:
        """The caller's newest tuned model, if there is any; while that is made ready, the one before it."""
        return await asyncio.to_thread(self._newest, tenant)

    async def find(self, tenant: Tenant, name: str) -> Served:
        """The model a caller named; raises `NotFound`."""
        for source in (self.base, self.instruct):
            if name == source.name:
                return self.untuned(source)
        found = await asyncio.to_thread(self._named, tenant, name)
        if found is None:
            raise await self._not_found(tenant, name)
        return found

    async def all(self, tenant: Tenant) -> list[Served]:
        """All models this caller may name, the newest tuned one first; what cannot be used is left out."""
        own = [self.untuned(source) for source in dict.fromkeys((self.base, self.instruct))]
        return own + await asyncio.to_thread(self._usable, tenant)

    def adapter(self, tenant: Tenant, name: str) -> Adapter:
        """What a tuned model or a checkpoint was made with; raises `NotFound` or `Conflict`."""
        return self._own(tenant, name).load()

    def check_own(self, tenant: Tenant, name: str) -> None:
        """Raise what `adapter` would for a name, without reading so much."""
        self._own(tenant, name)

    def _own(self, tenant: Tenant, name: str) -> Tuning:
        found = self._named(tenant, name)
        if found is None or found.tuning is None:
            raise _none_of_yours()
        return found.tuning

    def owned(self, tenant: Tenant, name: str) -> tuple[Record, Adapter]:
        """A tuned model as it was made, whether it can be asked here or not; raises `NotFound`."""
        wanted = Wanted.of(name)
        try:
            if wanted is not None and wanted.step is None:
                record = self.book.record(tenant, wanted.id)
                if record.name == name:
                    return record, self.book.adapter(tenant, record)
        except Missing:
            pass
        except Damaged:
            raise _damaged(name) from None
        raise _none_of_yours()

    async def _not_found(self, tenant: Tenant, name: str) -> NotFound:
        known = [each.name for each in await self.all(tenant)]
        return NotFound(
            f"There is no model of that name for you.{nearest(name, known)} GET /v1/models lists them.",
            code="model_not_found",
            param="model",
        )

    def _newest(self, tenant: Tenant) -> Served | None:
        there = self.book.all(tenant)
        if there.damaged:
            # It may be the newest: to answer with another would let who holds the disk choose the model.
            raise _damaged(f"ft:{self.base.name}::{there.damaged[0]}")
        if not there.records:
            return None
        newest = self._served(tenant, there.records[0])
        if not self._is_coming(newest):
            return newest
        for record in there.records[1:]:
            if self._fits(record.manifest):
                older = self._served(tenant, record)
                if not self._is_coming(older):
                    return older if self._is_held(older) else newest
        return newest

    def _usable(self, tenant: Tenant) -> list[Served]:
        return [
            self._served(tenant, record)
            for record in self.book.all(tenant).records
            if self._fits(record.manifest)
        ]

    def _named(self, tenant: Tenant, name: str) -> Served | None:
        wanted = Wanted.of(name)
        if wanted is None:
            return None
        try:
            if wanted.step is not None:
                return self._checkpoint(tenant, name, wanted)
            record = self.book.record(tenant, wanted.id)
        except Missing:
            return None
        except Damaged:
            raise _damaged(name) from None
        return self._served(tenant, record) if record.name == name else None

    def _served(self, tenant: Tenant, record: Record) -> Served:
        """Raises `Conflict` where it was made for something else than what is served here."""
        self._check(record.manifest)

        load = _Fetch(
            record.name,
            partial(self._store.opener, tenant, ADAPTERS, record.id),
            lambda data: self._seen(self.book.parsed(record, data)),
        )
        tuning = Tuning(_version(tenant, record), load, owner=tenant.id)
        template, weights = Template(record.manifest.template), record.manifest.weights_sha256
        return Served(record.name, self.base, template, tuning, record.created_at, weights)

    def _checkpoint(self, tenant: Tenant, name: str, wanted: Wanted) -> Served | None:
        """The model as it was at a step of its training; raises `Missing` or `Damaged`."""
        jobs = {job_of(each) for each in self._store.names(tenant, CHECKPOINTS)}
        job = next((each for each in jobs if model_id(each) == wanted.id), None)
        if job is None or wanted.step is None:
            return None
        place = name_in_store(job, wanted.step)
        version = self._store.version(tenant, CHECKPOINTS, place)
        try:
            with closing(self._store.pieces(tenant, CHECKPOINTS, place)) as pieces:  # type: ignore[type-var]
                head = Checkpoint.head(place, next(pieces))
        except MalformedCheckpoint:
            raise Damaged(f"{CHECKPOINTS}/{place} is no checkpoint") from None
        if name != checkpoint_name(self.base.name, head.suffix, job, head.step):
            return None
        self._check_made_for(head.model, head.template, head.template_digest)

        load = _Fetch(
            name,
            partial(self._store.opener, tenant, CHECKPOINTS, place),
            lambda data: self._seen(Checkpoint.parse(place, data).adapter()),
        )
        tuning = Tuning(f"{_checkpoints_of(tenant, job)}{place} {version}", load, owner=tenant.id)
        return Served(name, self.base, Template(head.template), tuning, head.created_at, f"{place} {version}")

    def _seen(self, adapter: Adapter) -> Adapter:
        """Raises `MalformedAdapter` where a model's adapter does not hold what it has to (S-29)."""
        if self.base.fingerprint:  # the echo engine's has no weights
            adapter.modules()
        return adapter

    def _fits(self, manifest: Manifest) -> bool:
        try:
            self._check(manifest)
        except Conflict:
            return False
        return True

    def _check(self, manifest: Manifest) -> None:
        self._check_made_for(manifest.model, manifest.template, manifest.template_digest)

    def _check_made_for(self, model: str, template: str, digest: str) -> None:
        if model != self.base.fingerprint or Template(template).digest(self.base.tokenizer) != digest:
            raise Conflict(
                "Your tuned model was made for another base model or prompt template. Fine-tune again.",
                code="adapter_mismatch",
            )

    def _is_coming(self, served: Served) -> bool:
        return served.tuning is not None and self._coming[served.tuning.version] > 0

    def _is_held(self, served: Served) -> bool:
        return served.tuning is not None and self.desk.holds(served.source.name, served.tuning.version)

    # --- how they come and go -------------------------------------------------------------------------

    def room(self, tenant: Tenant, coming: int = 0) -> None:
        """Raise `Refusal` where one more tuned model, beside those that are being made, has no room."""
        self.book.room(tenant, most=self._most_models, coming=coming)
        self._store.check_room(tenant, ADAPTERS, 0)  # how large it will be nobody knows yet

    def publish(
        self,
        tenant: Tenant,
        job: str,
        suffix: str,
        adapter: Adapter,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """
        Make a job's adapter a model of its owner's; its name. Once it is there, all of it lasts.

        Of `more` the model card shows the numbers. To publish the same again changes nothing.
        """
        if not SUFFIX.fullmatch(suffix):
            raise Refusal(
                "suffix may have up to 64 letters, digits, dots, hyphens and underscores.",
                code="invalid_value",
                param="suffix",
            )
        self._check(adapter.manifest)
        try:
            Adapter.parse(self._seen(adapter).encode())
        except MalformedAdapter as error:
            raise Failed(f"What the training made is no adapter: {error}.", code="damaged_adapter") from error
        return self.book.write(
            tenant,
            job=job,
            base=self.base.name,
            suffix=suffix,
            adapter=adapter,
            now=int(time.time()),
            figures=more or {},
            most=self._most_models,
        ).name

    async def prepare(self, tenant: Tenant, name: str) -> float:
        """
        Have a tuned model in memory, ready to be asked; the seconds that it took.

        Until it is, `mine` goes on giving the one before it, which leaves when its last answers are given.
        Where those who are being answered leave no room for it, this waits a while. Raises `Refusal`.
        """
        await self.open()
        served = await self.find(tenant, name)
        if served.tuning is None or self._is_held(served):
            return 0.0
        version, began = served.tuning.version, time.monotonic()
        older = await asyncio.to_thread(self._replaced, tenant, name)
        self._coming[version] += 1
        try:
            if older:  # there is place for both, until the new one is there
                self.desk.let_go(served.source.name, older, after=math.inf)
            await self._ready(served, began + PATIENCE_SECONDS)
        except BaseException:
            self.desk.keep(served.source.name, older)
            raise
        finally:
            self._coming[version] -= 1
            self._coming += Counter()
        self.desk.let_go(served.source.name, older, after=GRACE_SECONDS)
        self._seconds[version] = time.monotonic() - began
        while len(self._seconds) > _REMEMBERED:
            del self._seconds[next(iter(self._seconds))]
        return self._seconds[version]

    async def _ready(self, served: Served, until: float) -> None:
        assert served.tuning is not None
        while True:
            try:
                return await self.desk.tuned(served.source.name, served.tuning)
            except Busy as busy:
                if busy.code not in ("tuned_models_busy", "no_memory") or time.monotonic() > until:
                    raise
                await asyncio.sleep(_PAUSE)

    def _replaced(self, tenant: Tenant, name: str) -> str:
        """The version that was the newest before the model of this name; "" where that is not the newest."""
        usable = self._usable(tenant)
        if len(usable) < 2 or usable[0].name != name or usable[1].tuning is None:
            return ""
        return usable[1].tuning.version

    async def check(
        self,
        tenant: Tenant,
        name: str,
        probes: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
    ) -> dict[str, Any]:
        """
        How what is served compares with what was trained: greedy tokens up to the first difference, and how
        many of the answers have none.

        `continuations` are what the trainer's own arithmetic answers `probes` with.
        """
        seconds = await self.prepare(tenant, name)
        served = await self.find(tenant, name)
        pairs = [(ids, said) for ids, said in zip(probes, continuations, strict=True) if ids and said]
        served_tokens = await asyncio.gather(
            *(self._greedy(tenant, served, ids, len(said)) for ids, said in pairs)
        )
        if served.tuning is not None:
            seconds = self._seconds.get(served.tuning.version, seconds)
        alike = [_alike(said, found) for (_, said), found in zip(pairs, served_tokens, strict=True)]
        return {
            "prompts": len(pairs),
            "same": sum(count == len(said) for (_, said), count in zip(pairs, alike, strict=True)),
            "tokens": sum(len(said) for _, said in pairs),
            "equal": sum(alike),
            "ready_seconds": round(seconds, 3),
        }

    async def _greedy(self, tenant: Tenant, served: Served, ids: Sequence[int], most: int) -> list[int]:
        version = ""
        if served.tuning is not None:
            await self.desk.tuned(served.source.name, served.tuning)
            version = served.tuning.version
        sampling = Sampling(max_new_tokens=most, do_sample=False, ignore_end=True)
        found: list[int] = []
        work = Work(tuple(ids), sampling, tuning=version, owner=tenant.id)
        async with self.desk.ask(served.source.name, work) as answer:
            async for piece in answer:
                found += [token.id for token in piece.tokens]
        return found

    async def delete(self, tenant: Tenant, name: str) -> None:
        """
        Remove a tuned model of the caller's. What is being answered by it is answered to its end.

        Raises `NotFound`, and `Refusal` for what is not theirs to delete.
        """
        wanted = Wanted.of(name)
        if wanted is not None and wanted.step is not None:
            raise Refusal(
                "A checkpoint belongs to its job and goes with it: DELETE /v1/fine_tuning/jobs/ID.",
                code="not_deletable",
                param="model",
            )
        if name in (self.base.name, self.instruct.name):
            raise Refusal(
                "This model is the enclave's own; only your tuned models can be deleted.",
                code="not_deletable",
                param="model",
            )
        version = await asyncio.to_thread(self._delete, tenant, name, wanted)
        if version is None:
            raise await self._not_found(tenant, name)
        self.desk.let_go(self.base.name, version)

    def let_go(self, tenant: Tenant, job: str) -> None:
        """Take a job's checkpoints from memory, for they are gone from the disk; the job's model stays."""
        self.desk.let_go_all(self.base.name, tenant.id, _checkpoints_of(tenant, job))

    async def delete_all(self, tenant: Tenant) -> list[str]:
        """Remove every tuned model of the caller's; the names of those that there were."""
        there = await asyncio.to_thread(self.book.all, tenant)
        removed = set(await asyncio.to_thread(self.book.delete_all, tenant))
        self.desk.let_go_all(self.base.name, tenant.id)  # checkpoints as well
        names = [record.name for record in there.records if record.id in removed]
        return names + [f"ft:{self.base.name}::{name}" for name in there.damaged if name in removed]

    def _delete(self, tenant: Tenant, name: str, wanted: Wanted | None) -> str | None:
        """The version of what was removed; a damaged one is known by its id alone."""
        version = ""
        try:
            if wanted is None:
                return None
            try:
                record = self.book.record(tenant, wanted.id)
                if record.name != name:
                    return None
                version = _version(tenant, record)
            except Damaged:
                pass
            self.book.delete(tenant, wanted.id)
        except Missing:
            return None
        return version


class _Fetch:
    """
    Loads a tuned model, for as long as it is in memory: a worker that dies has to be given it again.

    That is longer than its owner's request lasts. So the owner's key is let go of with the first loading, and
    the key of this one file stays (S-33): it opens nothing but what is in memory anyway.
    """

    def __init__(
        self, name: str, opener: Callable[[], Callable[[], bytes]], parse: Callable[[bytes], Adapter]
    ) -> None:
        self._name = name
        self._opener: Callable[[], Callable[[], bytes]] | None = opener
        self._read: Callable[[], bytes] | None = None
        self._parse = parse

    def __call__(self) -> Adapter:
        try:
            opener = self._opener
            if opener is not None:
                self._read, self._opener = opener(), None
            assert self._read is not None
            return self._parse(self._read())
        except Missing:
            raise _none_of_yours() from None
        except (Damaged, MalformedCheckpoint, MalformedAdapter):
            raise _damaged(self._name) from None


def _checkpoints_of(tenant: Tenant, job: str) -> str:
    """What the versions of a job's checkpoints begin with, and those of nothing else."""
    return f"{tenant.id} {job} "


def _version(tenant: Tenant, record: Record) -> str:
    return f"{tenant.id} {record.id} {record.manifest.weights_sha256}"


def _alike(wanted: Sequence[int], found: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    for at, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            return at
    return min(len(wanted), len(found))


def _none_of_yours() -> NotFound:
    return NotFound(
        "You have no tuned model of that name. GET /v1/models lists yours.",
        code="model_not_found",
        param="model",
    )


def _damaged(name: str) -> Failed:
    return Failed(
        f"What is stored of {name} is damaged. DELETE /v1/models/{name} removes it; then fine-tune again.",
        code="damaged_adapter",
    )
