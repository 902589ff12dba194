"""Which models there are for whom: one's own and the enclave's, and nobody else's."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from enclave_app.catalogue import ADAPTERS, CURRENT, Catalogue, Source
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.engines.desk import Desk
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.engines.worker import UnusableEngine, Worker, in_process
from enclave_app.prompts import Template
from enclave_app.refusals import Conflict, Failed, NotFound
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from tests.enclave.test_desk import run

ANN, BOB = Tenant.of("ann-" + "a" * 40), Tenant.of("bob-" + "b" * 40)


def source(name: str, **spec: Any) -> Source:
    async def make() -> Worker:
        return await in_process({"engine": "echo"} | spec)

    return Source(name, make, ByteTokenizer(), fingerprint=f"fingerprint of {name}")


def an_adapter(weights: bytes = b"w", **changes: Any) -> Adapter:
    template = Template.TEXT
    fields = {
        "model": "fingerprint of base",
        "template": template.value,
        "template_digest": template.digest(ByteTokenizer()),
        "rank": 8,
        "alpha": 16,
        "targets": ("q_proj",),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return Adapter(Manifest(**(fields | changes)), weights)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def catalogue(store: Store) -> Catalogue:
    return Catalogue(source("base"), source("instruct"), Desk(), store)


def publish(store: Store, tenant: Tenant, adapter: Adapter) -> None:
    store.write(tenant, ADAPTERS, CURRENT, adapter.encode())


def test_everyone_finds_the_enclaves_own_models(catalogue: Catalogue) -> None:
    for name in ("base", "instruct"):
        served = run(catalogue.find(ANN, name))
        assert (served.name, served.tuning) == (name, None)
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct"]
    assert run(catalogue.mine(ANN)) is None


def test_a_tuned_model_is_found_by_its_owner_under_a_name_made_of_its_weights(
    catalogue: Catalogue, store: Store
) -> None:
    adapter = an_adapter()
    publish(store, ANN, adapter)
    mine = run(catalogue.mine(ANN))
    assert mine is not None
    assert mine.name == f"ft:base::{adapter.manifest.weights_sha256[:8]}"
    assert mine.tuning is not None
    assert mine.tuning.load() == adapter
    assert mine.tuning.owner == ANN.id
    assert mine.source is catalogue.base
    found = run(catalogue.find(ANN, mine.name)).tuning
    assert found is not None
    assert found.version == mine.tuning.version
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct", mine.name]


def test_nobody_finds_anothers_model_and_is_told_nothing_of_it(catalogue: Catalogue, store: Store) -> None:
    """S-22: the same answer as for a name that never was."""
    publish(store, ANN, an_adapter())
    mine = run(catalogue.mine(ANN))
    assert mine is not None
    assert run(catalogue.mine(BOB)) is None
    told = []
    for name in (mine.name, mine.name[:-1] + "_"):
        with pytest.raises(NotFound) as refused:
            run(catalogue.find(BOB, name))
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        told.append(refused.value.message)
    assert told[0] == told[1]
    assert [each.name for each in run(catalogue.all(BOB))] == ["base", "instruct"]


def test_a_new_training_gives_another_version_and_name_for_the_same_owner(
    catalogue: Catalogue, store: Store
) -> None:
    publish(store, ANN, an_adapter(b"old"))
    old = run(catalogue.mine(ANN))
    publish(store, ANN, an_adapter(b"new"))
    new = run(catalogue.mine(ANN))
    assert old is not None
    assert new is not None
    assert old.name != new.name
    assert old.tuning is not None
    assert new.tuning is not None
    assert old.tuning.version != new.tuning.version
    assert old.tuning.owner == new.tuning.owner
    with pytest.raises(NotFound):
        run(catalogue.find(ANN, old.name))


@pytest.mark.parametrize("changes", [{"model": "another"}, {"template_digest": "another"}])
def test_an_adapter_for_another_model_or_template_is_told_and_the_rest_is_still_served(
    catalogue: Catalogue, store: Store, changes: dict[str, Any]
) -> None:
    publish(store, ANN, an_adapter(**changes))
    with pytest.raises(Conflict) as refused:
        run(catalogue.mine(ANN))
    assert refused.value.code == "adapter_mismatch"
    assert run(catalogue.find(ANN, "base")).tuning is None
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct"]
    with pytest.raises(NotFound):
        run(catalogue.find(ANN, "none such"))


def test_a_damaged_adapter_is_told_without_a_word_of_what_is_in_it(
    catalogue: Catalogue, store: Store
) -> None:
    store.write(ANN, ADAPTERS, CURRENT, b"canary, no adapter")
    with pytest.raises(Failed) as refused:
        run(catalogue.mine(ANN))
    assert refused.value.code == "damaged_adapter"
    assert "canary" not in refused.value.message


def test_both_engines_are_started_at_once_and_only_once(store: Store) -> None:
    async def tried() -> None:
        events: list[str] = []
        together = asyncio.Barrier(2)  # neither goes on before both are there

        def slow(name: str) -> Source:
            async def make() -> Worker:
                events.append(name)
                async with asyncio.timeout(10):
                    await together.wait()
                return await in_process({"engine": "echo"})

            return Source(name, make, ByteTokenizer())

        desk = Desk()
        catalogue = Catalogue(slow("base"), slow("instruct"), desk, store)
        try:
            await asyncio.gather(catalogue.open(), catalogue.open())
            await catalogue.open()
            assert sorted(events) == ["base", "instruct"]
            assert desk.ready
        finally:
            desk.close()

    run(tried())


def test_an_engine_that_cannot_be_started_is_told_though_the_other_can(store: Store) -> None:
    async def tried() -> None:
        desk = Desk()
        catalogue = Catalogue(source("base"), source("instruct", engine="none such"), desk, store)
        try:
            with pytest.raises(UnusableEngine, match="none such"):
                await catalogue.open()
            assert not desk.ready
        finally:
            desk.close()

    run(tried())
