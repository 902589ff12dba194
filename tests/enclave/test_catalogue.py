"""Which models there are for whom: one's own and the enclave's, and nobody else's; how they come and go."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_app import catalogue as catalogue_module
from enclave_app.catalogue import Catalogue, Served, Source, checkpoint_name, model_id, model_name
from enclave_app.checkpoint import CHECKPOINTS, Checkpoint, MalformedCheckpoint, name_in_store
from enclave_app.engines import Sampling, Work
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.engines.desk import Desk
from enclave_app.engines.echo import ByteTokenizer, EchoEngine
from enclave_app.engines.worker import UnusableEngine, Worker, in_process, in_thread
from enclave_app.models_book import ADAPTERS, MODELS, Record, Wanted
from enclave_app.prompts import Template
from enclave_app.refusals import Conflict, Failed, NotFound, Refusal
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from tests.enclave.test_desk import run, text_of, until
from tests.kit.tensors import floats, lora, written

ANN, BOB = Tenant.of("ann-" + "a" * 40), Tenant.of("bob-" + "b" * 40)
JOB, OTHER = "ftjob-" + "1" * 32, "ftjob-" + "2" * 32


def source(name: str, **spec: Any) -> Source:
    async def make() -> Worker:
        return await in_process({"engine": "echo"} | spec)

    return Source(name, make, ByteTokenizer(), fingerprint=f"fingerprint of {name}")


def an_adapter(seed: int = 0, **changes: Any) -> Adapter:
    template = Template.TEXT
    weights = changes.pop("weights", None) or lora(seed=seed)
    fields = {
        "model": "fingerprint of base",
        "template": template.value,
        "template_digest": template.digest(ByteTokenizer()),
        "rank": 4,
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


# --- who finds what -----------------------------------------------------------------------------------


def test_everyone_finds_the_enclaves_own_models(catalogue: Catalogue) -> None:
    for name in ("base", "instruct"):
        served = run(catalogue.find(ANN, name))
        assert (served.name, served.tuning) == (name, None)
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct"]
    assert run(catalogue.mine(ANN)) is None


def test_a_tuned_model_is_found_by_its_owner_under_a_name_made_of_its_job(catalogue: Catalogue) -> None:
    adapter = an_adapter()
    name = catalogue.publish(ANN, JOB, "mill", adapter)
    assert name == f"ft:base:mill:{model_id(JOB)}" == model_name("base", "mill", JOB)
    mine = run(catalogue.mine(ANN))
    assert mine is not None
    assert mine.name == name
    assert mine.tuning is not None
    assert mine.tuning.load() == adapter
    assert mine.tuning.owner == ANN.id
    assert mine.source is catalogue.base
    found = run(catalogue.find(ANN, name)).tuning
    assert found is not None
    assert found.version == mine.tuning.version
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct", name]
    assert catalogue.adapter(ANN, name) == adapter


def test_a_tenant_has_many_models_and_the_newest_is_the_one_that_answers_without_a_name(
    catalogue: Catalogue,
) -> None:
    names = [catalogue.publish(ANN, f"ftjob-{number:032x}", "", an_adapter(number)) for number in range(12)]
    assert len(set(names)) == 12
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct", *reversed(names)]
    newest = run(catalogue.mine(ANN))
    assert newest is not None
    assert newest.name == names[-1]
    versions = {served.tuning.version for served in run(catalogue.all(ANN)) if served.tuning is not None}
    assert len(versions) == 12
    for number, name in enumerate(names):
        assert catalogue.adapter(ANN, name) == an_adapter(number)


def test_nobody_finds_anothers_model_and_is_told_nothing_of_it(catalogue: Catalogue, store: Store) -> None:
    """S-22: the same answer as for a name that never was, whatever is tried with it."""
    name = catalogue.publish(ANN, JOB, "", an_adapter())
    store.write(ANN, CHECKPOINTS, name_in_store(JOB, 3), a_checkpoint().encode())
    mine = run(catalogue.mine(ANN))
    assert mine is not None
    assert run(catalogue.mine(BOB)) is None
    told = []
    step = f"{name}:ckpt-step-3"
    guesses = [name, name[:-1] + "_", f"ft:base::{'0' * 12}", f"ft:../base::{'0' * 12}", step]
    for guess in guesses:
        attempts = [catalogue.find(BOB, guess), *([] if guess == step else [catalogue.delete(BOB, guess)])]
        for attempt in attempts:
            with pytest.raises(NotFound) as refused:
                run(attempt)
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
            told.append(refused.value.message)
        for ask in (catalogue.adapter, catalogue.owned):
            with pytest.raises(NotFound):
                ask(BOB, guess)
    assert len(set(told)) == 1
    assert [each.name for each in run(catalogue.all(BOB))] == ["base", "instruct"]
    assert catalogue.adapter(ANN, name) == an_adapter()


def test_a_name_has_to_be_the_whole_name(catalogue: Catalogue) -> None:
    name = catalogue.publish(ANN, JOB, "mill", an_adapter())
    for wrong in (
        name.replace("mill", "mil1"),
        name.replace("base", "instruct"),
        name.upper(),
        f"{name}:ckpt-step-1",
        f"{name}\n",
        name.removeprefix("ft:"),
        "ft:" + "x" * 10_000,
        name + "\0",
    ):
        with pytest.raises(NotFound):
            run(catalogue.find(ANN, wrong))


@pytest.mark.parametrize("suffix", ["a:b", "a/b", "..\\", "ü", "x" * 65, "a\n", "a b"])
def test_a_suffix_that_would_break_a_name_is_refused(catalogue: Catalogue, suffix: str) -> None:
    """S-17: what a caller writes reaches no path, and no route."""
    with pytest.raises(Refusal) as refused:
        catalogue.publish(ANN, JOB, suffix, an_adapter())
    assert refused.value.param == "suffix"
    assert run(catalogue.mine(ANN)) is None


@pytest.mark.parametrize("changes", [{"model": "another"}, {"template_digest": "another"}])
def test_a_model_for_another_base_or_template_is_told_and_the_rest_is_still_served(
    catalogue: Catalogue, store: Store, changes: dict[str, Any]
) -> None:
    adapter = an_adapter(**changes)
    with pytest.raises(Conflict):
        catalogue.publish(ANN, JOB, "", adapter)
    record = Record(model_id(JOB), 1, JOB, "base", "", 1, adapter.manifest)  # from when the base was another
    store.write(ANN, ADAPTERS, record.id, adapter.encode())
    store.write(ANN, MODELS, record.id, record.encode())
    for asked in (catalogue.mine(ANN), catalogue.find(ANN, record.name)):
        with pytest.raises(Conflict) as refused:
            run(asked)
        assert refused.value.code == "adapter_mismatch"
    assert run(catalogue.find(ANN, "base")).tuning is None
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct"]
    assert catalogue.owned(ANN, record.name) == (record, adapter)  # it can still be taken home
    run(catalogue.delete(ANN, record.name))
    assert run(catalogue.mine(ANN)) is None


def test_each_tuned_model_has_a_fingerprint_of_its_own(catalogue: Catalogue) -> None:
    names = [
        "base",
        *(catalogue.publish(ANN, job, "", an_adapter(at)) for at, job in enumerate((JOB, OTHER))),
    ]
    found = {run(catalogue.find(ANN, name)).fingerprint for name in names}
    assert len(found) == 3
    assert "fingerprint of base" in found
    other = Catalogue(replace(catalogue.base, fingerprint=""), catalogue.instruct, Desk(), catalogue._store)
    assert other.untuned(other.base).fingerprint == ""


# --- how they are kept --------------------------------------------------------------------------------


def test_to_publish_the_same_again_makes_no_second_model(catalogue: Catalogue) -> None:
    """S-26: a server that was killed while it published does so again."""
    first = catalogue.publish(ANN, JOB, "", an_adapter())
    catalogue.publish(ANN, OTHER, "", an_adapter(1))
    assert catalogue.publish(ANN, JOB, "", an_adapter()) == first
    newest = run(catalogue.mine(ANN))
    assert newest is not None
    assert newest.name == model_name("base", "", OTHER)
    assert catalogue.publish(ANN, JOB, "", an_adapter(2)) == first  # trained again, from an earlier step
    assert catalogue.adapter(ANN, first) == an_adapter(2)
    assert len(run(catalogue.all(ANN))) == 4


def test_a_model_is_there_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-27: whatever write is the last that happens, what is listed can be loaded."""
    catalogue = Catalogue(source("base"), source("instruct"), Desk(), store)
    writes = 0
    real = Store.write

    def failing(self: Store, tenant: Tenant, kind: str, name: str, data: bytes) -> None:
        nonlocal writes
        if writes == 0:
            raise OSError("the power is gone")
        writes -= 1
        real(self, tenant, kind, name, data)

    monkeypatch.setattr(Store, "write", failing)
    for allowed in range(3):
        writes = allowed
        try:
            name = catalogue.publish(ANN, JOB, "", an_adapter())
        except OSError:
            assert allowed < 2
            assert run(catalogue.mine(ANN)) is None
            assert store.names(ANN, ADAPTERS) == []  # S-28: what could not be kept takes no room
        else:
            assert allowed == 2
            assert catalogue.adapter(ANN, name) == an_adapter()


KILLED = """
import os, sys
from pathlib import Path
from tests.enclave.test_catalogue import *
store = Store(Path(sys.argv[1]))
catalogue = Catalogue(source("base"), source("instruct"), Desk(), store)
print("begun", flush=True)
for number in range(int(sys.argv[2]), 10**6):
    catalogue.publish(ANN, f"ftjob-{number:032x}", "", an_adapter(number))
    if number % 3 == 2:
        catalogue.book.delete(ANN, model_id(f"ftjob-{number - 1:032x}"))
    print(number, flush=True)
"""


def test_what_is_listed_after_a_kill_is_whole(tmp_path: Path) -> None:
    """S-26, S-27: killed at any time while it publishes and deletes, every model that is listed loads."""
    first = 0
    for pause in (0.0, 0.004, 0.013):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(first)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        for _ in range(3):
            first = int(child.stdout.readline()) + 1
        subprocess.run(["sleep", str(pause)], check=True)
        child.kill()
        child.wait()
        child.stdout.close()
        catalogue = Catalogue(source("base"), source("instruct"), Desk(), Store(tmp_path), most_models=10**6)
        there = catalogue.book.all(ANN)
        assert not there.damaged
        assert len(there.records) >= first - first // 3 - 1
        for record in there.records:
            assert catalogue.owned(ANN, record.name)[0] == record
        first = max(int(record.job.removeprefix("ftjob-"), 16) for record in there.records) + 1


def test_a_tenant_may_keep_so_many_models_and_one_that_is_there_counts_once(store: Store) -> None:
    """S-24: and what others have does not count."""
    catalogue = Catalogue(source("base"), source("instruct"), Desk(), store, most_models=2)
    catalogue.publish(BOB, JOB, "", an_adapter())
    first = catalogue.publish(ANN, JOB, "", an_adapter())
    catalogue.room(ANN)
    with pytest.raises(Refusal, match="1 being made"):
        catalogue.room(ANN, coming=1)
    catalogue.publish(ANN, OTHER, "", an_adapter(1))
    with pytest.raises(Refusal) as refused:
        catalogue.publish(ANN, "ftjob-" + "3" * 32, "", an_adapter(2))
    assert (refused.value.status, refused.value.code) == (400, "too_many_models")
    assert catalogue.publish(ANN, JOB, "", an_adapter(3)) == first
    run(catalogue.delete(ANN, first))
    catalogue.publish(ANN, "ftjob-" + "3" * 32, "", an_adapter(2))


def test_of_a_deleted_model_nothing_stays(catalogue: Catalogue, store: Store) -> None:
    name = catalogue.publish(ANN, JOB, "", an_adapter())
    older = catalogue.publish(ANN, OTHER, "", an_adapter(1))
    tuning = run(catalogue.find(ANN, name)).tuning
    assert tuning is not None
    run(catalogue.delete(ANN, name))
    assert store.names(ANN, MODELS) == store.names(ANN, ADAPTERS) == [model_id(OTHER)]
    with pytest.raises(NotFound):
        tuning.load()
    for again in (catalogue.find(ANN, name), catalogue.delete(ANN, name)):
        with pytest.raises(NotFound):
            run(again)
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct", older]
    catalogue.publish(ANN, JOB, "x", an_adapter(2))
    store.write(ANN, ADAPTERS, "0" * 12, b"a crash left it")
    assert run(catalogue.delete_all(ANN)) == [model_name("base", "x", JOB), older]
    assert store.names(ANN, MODELS) == store.names(ANN, ADAPTERS) == []


def test_what_is_not_ones_own_is_not_deleted(catalogue: Catalogue) -> None:
    name = catalogue.publish(ANN, JOB, "", an_adapter())
    for wrong in ("base", "instruct", f"{name}:ckpt-step-3"):
        with pytest.raises(Refusal) as refused:
            run(catalogue.delete(ANN, wrong))
        assert (refused.value.status, refused.value.code) == (400, "not_deletable")


@pytest.mark.parametrize("kind", [MODELS, ADAPTERS])
@pytest.mark.parametrize("change", ["flip", "cut", "foreign", "older"])
def test_what_was_altered_on_the_disk_is_never_used(tmp_path: Path, kind: str, change: str) -> None:
    """S-29, S-22: a flipped bit, a cut file, another tenant's, an older one of the same name."""
    catalogue = Catalogue(source("base"), source("instruct"), Desk(), Store(tmp_path))
    kept = tmp_path / ANN.id / kind / model_id(JOB)
    catalogue.publish(ANN, JOB, "", an_adapter(7))
    older = kept.read_bytes()
    catalogue.publish(ANN, JOB, "", an_adapter())
    catalogue.publish(BOB, JOB, "", an_adapter())
    name, data = model_name("base", "", JOB), bytearray(kept.read_bytes())
    match change:
        case "flip":
            data[len(data) // 2] ^= 1
        case "cut":
            del data[-20:]
        case "foreign":
            data[:] = (tmp_path / BOB.id / kind / model_id(JOB)).read_bytes()
        case "older":
            data[:] = older
    kept.write_bytes(data)
    catalogue = Catalogue(source("base"), source("instruct"), Desk(), Store(tmp_path))  # after another start
    with pytest.raises(Failed) as refused:
        catalogue.adapter(ANN, name)
    assert refused.value.code == "damaged_adapter"
    if kind == MODELS and change != "older":
        with pytest.raises(Failed):
            run(catalogue.mine(ANN))
        assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct"]
    catalogue.adapter(BOB, name)
    run(catalogue.delete(ANN, name))
    assert run(catalogue.mine(ANN)) is None


@pytest.mark.parametrize(
    "weights",
    [
        b"no tensors at all",
        floats({"base_model.model.q.lora_A.weight": (4, 5)}),
        floats({"model.layers.0.self_attn.q_proj.weight": (6, 5)}),
        lora(rank=3),
        lora("../../etc/passwd"),
        lora() + b"\0",
        written({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b""),
    ],
)
def test_what_is_no_adapter_is_not_published(catalogue: Catalogue, weights: bytes) -> None:
    """S-29"""
    with pytest.raises(Failed) as refused:
        catalogue.publish(ANN, JOB, "", an_adapter(weights=weights))
    assert refused.value.code == "damaged_adapter"
    with pytest.raises(Failed):  # nor under a digest that is another's
        catalogue.publish(ANN, JOB, "", replace(an_adapter(), weights=lora(seed=1)))
    assert run(catalogue.mine(ANN)) is None


# --- checkpoints --------------------------------------------------------------------------------------


def a_checkpoint(step: int = 3, seed: int = 0, **changes: Any) -> Checkpoint:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    state = floats(
        {
            "adapter." + module + ".lora_A.weight": (4, 5),
            "optimizer.exp_avg.0": (4, 5),
            "adapter." + module + ".lora_B.weight": (6, 4),
        },
        seed,
    )
    fields: dict[str, Any] = {
        "job": JOB,
        "step": step,
        "total_steps": 9,
        "created_at": 1_700_000_000,
        "suffix": "mill",
        "loss": 0.5,
        "validation_loss": None,
        "model": "fingerprint of base",
        "template": Template.TEXT.value,
        "template_digest": Template.TEXT.digest(ByteTokenizer()),
        "method": "lora",
        "rank": 4,
        "alpha": 8,
        "state": state,
    }
    return Checkpoint(**(fields | changes))


def test_a_checkpoint_is_a_model_of_its_own(catalogue: Catalogue, store: Store) -> None:
    """Before its job is done and afterwards, without being listed."""
    for step in (3, 6):
        made = a_checkpoint(step, seed=step)
        store.write(ANN, CHECKPOINTS, made.name, made.encode())
    name = checkpoint_name("base", "mill", JOB, 3)
    assert name == f"ft:base:mill:{model_id(JOB)}:ckpt-step-3"
    third, sixth = (run(catalogue.find(ANN, name[:-1] + step)) for step in "36")
    assert third.tuning is not None
    assert sixth.tuning is not None
    assert third.tuning.version != sixth.tuning.version
    assert third.fingerprint != sixth.fingerprint
    assert (third.name, third.created, third.template) == (name, 1_700_000_000, Template.TEXT)
    adapter = third.tuning.load()
    assert (adapter.manifest.rank, adapter.manifest.alpha, adapter.manifest.targets) == (4, 8, ("q_proj",))
    assert {each: len(parts) for each, parts in adapter.modules().items()} == {
        "model.layers.0.self_attn.q_proj": 2
    }
    assert adapter != sixth.tuning.load()
    assert Adapter.parse(adapter.encode()) == adapter
    published = catalogue.publish(ANN, JOB, "mill", an_adapter())
    assert run(catalogue.find(ANN, name)).tuning is not None
    assert [each.name for each in run(catalogue.all(ANN))] == ["base", "instruct", published]
    for wrong in (name.replace("mill", "wind"), name[:-1] + "4", name[:-1] + "03"):
        with pytest.raises(NotFound):
            run(catalogue.find(ANN, wrong))
    store.delete(ANN, CHECKPOINTS, name_in_store(JOB, 3))
    with pytest.raises(NotFound):
        third.tuning.load()


def test_a_checkpoint_that_is_damaged_or_made_for_another_model_is_told(
    catalogue: Catalogue, store: Store
) -> None:
    name, place = checkpoint_name("base", "mill", JOB, 3), name_in_store(JOB, 3)
    bad = {
        "adapter_mismatch": a_checkpoint(model="another").encode(),
        "damaged_adapter": b"no checkpoint",
    }
    for code, data in bad.items():
        store.write(ANN, CHECKPOINTS, place, data)
        with pytest.raises(Refusal) as refused:
            run(catalogue.find(ANN, name))
        assert refused.value.code == code
    for state in (b"", floats({"optimizer.step": (1,)}), a_checkpoint().state[:-4]):
        store.write(ANN, CHECKPOINTS, place, a_checkpoint(state=state).encode())
        with pytest.raises(Failed):
            catalogue.adapter(ANN, name)


def test_a_checkpoint_survives_its_encoding_and_another_ones_head_does_not() -> None:
    made = a_checkpoint()
    data = made.encode()
    assert Checkpoint.parse(made.name, data) == made
    assert Checkpoint.head(made.name, data[:4096]) == replace(made, state=b"")
    with pytest.raises(MalformedCheckpoint):
        Checkpoint.head(name_in_store(JOB, 4), data)
    for broken in (b"", data[:20], data[:30], data.replace(b'"rank": 4', b'"rank":-4')):
        with pytest.raises(MalformedCheckpoint):
            Checkpoint.parse(made.name, broken)


def test_names_are_read_as_they_are_written() -> None:
    for base in ("base", "org/base-1.5", "a:b"):
        assert Wanted.of(model_name(base, "", JOB)) == (model_id(JOB), None)
        assert Wanted.of(checkpoint_name(base, "x.y", JOB, 12)) == (model_id(JOB), 12)


# --- how they are made ready --------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    store: Store, *, rate: float = 0.0, gates: dict[Adapter, asyncio.Event] | None = None, **options: Any
) -> AsyncIterator[Catalogue]:
    """
    A catalogue whose tuned models have processes of their own, over the echo engine.

    Those that have a gate are not made before it is open.
    """
    spec = {"engine": "echo", "rate": rate, "tunes": "apart"}

    async def tuned(of: Adapter) -> Worker:
        if gates and of in gates:
            await gates[of].wait()
        return await in_process(spec, of)

    async def make() -> Worker:
        return await in_thread(EchoEngine(rate=rate, tunes="apart"))

    base = Source("base", make, ByteTokenizer(), fingerprint="fingerprint of base", tuned=tuned)
    desk = Desk(**options)
    try:
        yield Catalogue(base, base, desk, store)
    finally:
        desk.close()


def mark(adapter: Adapter) -> str:
    return f"[{adapter.manifest.weights_sha256[:16]}] "


async def answered(catalogue: Catalogue, served: Served, text: str = "hello") -> str:
    assert served.tuning is not None
    await catalogue.desk.tuned("base", served.tuning)
    sampling = Sampling(max_new_tokens=1000)
    work = Work(tuple(text.encode()), sampling, tuning=served.tuning.version, owner=ANN.id)
    return await text_of(catalogue.desk.ask("base", work))


def held(catalogue: Catalogue) -> int:
    return len(catalogue.desk._shelves["base"]._held)


def test_a_new_model_takes_over_without_a_request_that_fails_or_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Requests come all the while, and there is place for one model only: those that run are answered by the
    model that they began with, those that come by the old one until the new one is ready.
    """
    monkeypatch.setattr(catalogue_module, "GRACE_SECONDS", 1.0)

    async def tried() -> None:
        old, new = an_adapter(1), an_adapter(2)
        gate = asyncio.Event()
        async with opened(store, rate=200, gates={new: gate}, most_tuned=1) as catalogue:
            await catalogue.prepare(ANN, await asyncio.to_thread(catalogue.publish, ANN, JOB, "", old))
            over = asyncio.Event()
            seen: list[str] = []

            async def caller() -> None:
                while not over.is_set():
                    served = await catalogue.mine(ANN)
                    assert served is not None
                    await asyncio.sleep(0.02)  # its prompt is being read: meanwhile the other may take over
                    seen.append(await answered(catalogue, served, "x" * 30))

            callers = [asyncio.create_task(caller()) for _ in range(6)]
            await until(lambda: len(seen) > 6)
            name = await asyncio.to_thread(catalogue.publish, ANN, OTHER, "", new)
            preparing = asyncio.create_task(catalogue.prepare(ANN, name))
            before = len(seen)
            await until(lambda: len(seen) > before + 12)  # nobody waits for it
            assert not preparing.done()
            running = asyncio.create_task(
                answered(catalogue, await catalogue.find(ANN, model_name("base", "", JOB)), "y" * 300)
            )
            await until(
                lambda: any(
                    answer.prompt_tokens == 300 and answer.generated_tokens
                    for answer in catalogue.desk.standing(ANN.id).answers
                )
            )
            gate.set()
            assert await preparing > 0
            await until(lambda: seen[-6:] == [f"{mark(new)}{'x' * 30}"] * 6)
            over.set()
            await asyncio.gather(*callers)
            assert await running == f"{mark(old)}{'y' * 300}"
            told = [text[: len(mark(old))] for text in seen]
            assert set(told) == {mark(old), mark(new)}
            await until(lambda: held(catalogue) == 1)
            # The old one is still there to be asked by its name.
            assert await answered(catalogue, await catalogue.find(ANN, model_name("base", "", JOB))) == (
                f"{mark(old)}hello"
            )

    run(tried())


def test_a_deleted_model_finishes_what_it_is_answering_and_leaves(store: Store) -> None:
    async def tried() -> None:
        async with opened(store, rate=30) as catalogue:
            name = await asyncio.to_thread(catalogue.publish, ANN, JOB, "", an_adapter())
            served = await catalogue.find(ANN, name)
            await catalogue.prepare(ANN, name)
            assert served.tuning is not None
            work = Work(tuple(b"x" * 60), Sampling(), tuning=served.tuning.version, owner=ANN.id)
            answer = catalogue.desk.ask("base", work)
            await until(lambda: answer.tokens > 0)
            await catalogue.delete(ANN, name)
            assert held(catalogue) == 1
            assert await text_of(answer) == mark(an_adapter()) + "x" * 60
            await until(lambda: held(catalogue) == 0)
            with pytest.raises(NotFound):
                await answered(catalogue, served)

    run(tried())


def test_a_model_that_cannot_be_made_ready_is_published_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others fill the memory: whoever waits for the check is told, and what was trained is not lost."""
    monkeypatch.setattr(catalogue_module, "PATIENCE_SECONDS", 0.0)

    async def tried() -> None:
        free = 1 << 40
        async with opened(store, free=lambda: free) as catalogue:
            name = await asyncio.to_thread(catalogue.publish, ANN, JOB, "", an_adapter())
            free = 0
            with pytest.raises(Refusal) as refused:
                await catalogue.check(ANN, name, [[1]], [[2]])
            assert refused.value.code == "no_memory"
            free = 1 << 40
            mine = await catalogue.mine(ANN)
            assert mine is not None
            assert await answered(catalogue, mine) == f"{mark(an_adapter())}hello"

    run(tried())


def test_what_is_served_is_compared_with_what_was_trained_token_by_token(store: Store) -> None:
    async def tried() -> None:
        async with opened(store) as catalogue:
            adapter = an_adapter()
            name = await asyncio.to_thread(catalogue.publish, ANN, JOB, "", adapter)
            right = tuple(f"{mark(adapter)}abc".encode())
            wrong = (*right[:5], 0, *right[6:])
            found = await catalogue.check(
                ANN,
                name,
                [list(b"abc"), list(b"abc"), list(b"abcdef"), [], [1]],
                [right, wrong, right[:3], right, ()],
            )
            seconds = found.pop("ready_seconds")
            tokens = {"tokens": 2 * len(right) + 3, "equal": len(right) + 5 + 3}
            assert found == {"prompts": 3, "same": 2} | tokens
            assert 0 < seconds < 300
            assert (await catalogue.check(ANN, name, [], []))["ready_seconds"] == seconds

    run(tried())


def test_both_engines_are_started_at_once_and_only_once(store: Store) -> None:
    async def tried() -> None:
        events: list[str] = []
        together = asyncio.Barrier(2)  # neither goes on before both are there

        def slow(name: str) -> Source:
            async def make() -> Worker:
                events.append(name)
                async with asyncio.timeout(60):
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
