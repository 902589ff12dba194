"""
Tuned models in memory: beside the base model's weights or in a process of their own; so many, and whose.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from enclave_app.engines import Sampling, Tuning, Work
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.engines.desk import Desk
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.engines.worker import Worker, in_process
from enclave_app.figures import resident_bytes
from enclave_app.refusals import Busy, Failed, RateLimited, Refusal
from tests.enclave.test_desk import NAME, run, text_of, the_worker, until

WAYS = ["within", "apart"]
Way = Literal["within", "apart", "no"]


def adapter(name: str) -> Adapter:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Adapter(Manifest("base", "text", "", 8, 16, ("q_proj",), digest), name.encode())


def mark(name: str) -> str:
    """What an answer of this adapter begins with."""
    return f"[{adapter(name).manifest.weights_sha256[:16]}] "


def tuning(name: str, owner: str = "") -> Tuning:
    return Tuning(f"version of {name}", lambda: adapter(name), owner=owner or name)


@asynccontextmanager
async def opened(
    way: Way,
    *,
    rate: float = 0.0,
    most_tuned: int = 2,
    most_sequences: int = 64,
    made: list[Worker] | None = None,
    **options: Any,
) -> AsyncIterator[Desk]:
    desk = Desk(most_tuned=most_tuned, **options)
    spec = {"engine": "echo", "rate": rate, "tunes": way, "most_sequences": most_sequences}

    async def tuned(of: Adapter) -> Worker:
        worker = await in_process(spec, of)
        if made is not None:
            made.append(worker)
        return worker

    try:
        await desk.open(NAME, lambda: in_process(spec), ByteTokenizer(), tuned)
        yield desk
    finally:
        desk.close()


def work(text: str, of: Tuning | None, **sampling: Any) -> Work:
    return Work(
        tuple(text.encode()),
        Sampling(**sampling),
        tuning=of.version if of else "",
        owner=of.owner if of else "",
    )


async def asked(desk: Desk, of: Tuning | None, text: str = "hello") -> str:
    if of is not None:
        await desk.tuned(NAME, of)
    return await text_of(desk.ask(NAME, work(text, of)))


def held(desk: Desk) -> set[str]:
    return set(desk._shelves[NAME]._held)


@pytest.mark.parametrize("way", WAYS)
def test_each_tuned_model_answers_as_itself_and_the_base_as_before(way: Way) -> None:
    async def tried() -> None:
        async with opened(way) as desk:
            a, b = tuning("a"), tuning("b")
            answers = await asyncio.gather(*(asked(desk, of) for of in (a, b, None, a, b)))
            of_a, of_b = f"{mark('a')}hello", f"{mark('b')}hello"
            assert answers == [of_a, of_b, "hello", of_a, of_b]

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_many_who_ask_for_one_model_at_once_have_it_loaded_once(way: Way) -> None:
    async def tried() -> None:
        async with opened(way, most_of_one=20) as desk:
            loads = 0

            def load() -> Adapter:
                nonlocal loads
                loads += 1
                return adapter("a")

            of = Tuning("version", load, owner="a")
            assert set(await asyncio.gather(*(asked(desk, of) for _ in range(20)))) == {f"{mark('a')}hello"}
            assert loads == 1

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_the_one_that_rested_longest_makes_room_for_another(way: Way) -> None:
    async def tried() -> None:
        made: list[Worker] = []
        async with opened(way, most_tuned=2, made=made) as desk:
            a, b, c = tuning("a"), tuning("b"), tuning("c")
            for of in (a, b, a, c):
                await asked(desk, of)
            assert held(desk) == {a.version, c.version}
            if way == "apart":
                assert [worker.alive for worker in made] == [True, False, True]
                assert not os.path.exists(f"/proc/{made[1].pid}")
            assert await asked(desk, b) == f"{mark('b')}hello"

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_answering_is_never_taken_away(way: Way) -> None:
    async def tried() -> None:
        async with opened(way, rate=50, most_tuned=1) as desk:
            a, b = tuning("a"), tuning("b")
            await desk.tuned(NAME, a)
            answer = desk.ask(NAME, work("x" * 40, a))
            with pytest.raises(Busy) as refused:
                await desk.tuned(NAME, b)
            assert (refused.value.status, refused.value.code) == (503, "tuned_models_busy")
            assert await text_of(answer) == mark("a") + "x" * 40
            assert await asked(desk, b) == f"{mark('b')}hello"

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_let_go_answers_to_its_end_and_leaves_its_place_at_once(way: Way) -> None:
    async def tried() -> None:
        async with opened(way, rate=50, most_tuned=1) as desk:
            old, new = tuning("old", "me"), tuning("new", "me")
            await desk.tuned(NAME, old)
            running, waiting = (desk.ask(NAME, work(text, old)) for text in ("x" * 40, "y" * 30))
            desk.let_go(NAME, old.version)
            assert await asked(desk, new) == f"{mark('new')}hello"
            assert held(desk) == {old.version, new.version}
            assert await text_of(running) == mark("old") + "x" * 40
            assert await text_of(waiting) == mark("old") + "y" * 30
            assert held(desk) == {new.version}

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_let_go_may_be_asked_as_long_as_it_is_there(way: Way) -> None:
    async def tried() -> None:
        async with opened(way, most_tuned=1) as desk:
            old, new = tuning("old"), tuning("new")
            await asked(desk, old)
            desk.let_go(NAME, old.version, after=math.inf)
            await asked(desk, new)
            assert await asked(desk, old) == f"{mark('old')}hello"
            assert held(desk) == {old.version, new.version}
            desk.keep(NAME, old.version)
            desk.let_go(NAME, "none such")
            desk.let_go(NAME, old.version, after=0.05)
            assert desk.holds(NAME, old.version)
            await until(lambda: not desk.holds(NAME, old.version))
            assert held(desk) == {new.version}

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_one_tenants_models_stay_beside_each_other_until_somebody_needs_the_place(way: Way) -> None:
    async def tried() -> None:
        async with opened(way, most_tuned=3) as desk:
            mine = [tuning(name, "me") for name in "abc"]
            for of in mine:
                await asked(desk, of)
            assert held(desk) == {of.version for of in mine}
            await asked(desk, tuning("other"))
            assert held(desk) == {tuning("other").version, *(of.version for of in mine[1:])}

    run(tried())


def test_tuned_models_take_no_more_memory_than_they_may() -> None:
    """S-13: of those within the base's process the tensors are counted."""

    async def tried() -> None:
        size = len(adapter("aa").weights)
        async with opened("within", most_tuned=9, tuned_bytes=2 * size) as desk:
            a, b, c = tuning("aa"), tuning("bb"), tuning("cc")
            for of in (a, b, a, c):
                await asked(desk, of)
            assert held(desk) == {a.version, c.version}
        async with opened("within", most_tuned=9, tuned_bytes=size - 1) as desk:
            with pytest.raises(Busy) as refused:
                await desk.tuned(NAME, a)
            assert refused.value.code == "no_memory"
            assert await asked(desk, None) == "hello"

    run(tried())


def test_the_processes_of_tuned_models_take_no_more_memory_than_they_may() -> None:
    """S-13: the one that rested longest goes, one that answers does not."""

    async def tried() -> None:
        made: list[Worker] = []
        async with opened("apart", rate=50, most_tuned=9, made=made) as desk:
            shelf = desk._shelves[NAME]
            a, b, c = tuning("a"), tuning("b"), tuning("c")
            await asked(desk, a)
            one = resident_bytes(made[0].pid)
            shelf._budget = int(2.5 * one)
            await asked(desk, b)
            await asked(desk, a)
            assert held(desk) == {a.version, b.version}
            await asked(desk, c)
            assert held(desk) == {a.version, c.version}
            answers = [desk.ask(NAME, work("x" * 20, of)) for of in (a, c)]
            with pytest.raises(Busy) as refused:
                await desk.tuned(NAME, b)
            assert refused.value.code == "no_memory"
            assert [await text_of(answer) for answer in answers] == [
                mark(name) + "x" * 20 for name in ("a", "c")
            ]
            assert await asked(desk, b) == f"{mark('b')}hello"

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_while_one_model_is_loaded_others_are_answered(way: Way) -> None:
    async def tried() -> None:
        async with opened(way) as desk:
            a = tuning("a")
            await desk.tuned(NAME, a)
            import threading

            go = threading.Event()

            def slow() -> Adapter:
                go.wait(120)
                return adapter("b")

            loading = asyncio.create_task(desk.tuned(NAME, Tuning("b", slow, owner="b")))
            await asyncio.sleep(0.05)
            assert await asked(desk, a) == f"{mark('a')}hello"
            assert await asked(desk, None) == "hello"
            assert not loading.done()
            go.set()
            await loading

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_a_caller_who_goes_away_does_not_take_the_model_from_others_who_wait_for_it(way: Way) -> None:
    async def tried() -> None:
        async with opened(way) as desk:
            a = tuning("a")
            first = asyncio.create_task(asked(desk, a))
            second = asyncio.create_task(asked(desk, a))
            await asyncio.sleep(0)
            first.cancel()
            assert await second == f"{mark('a')}hello"

    run(tried())


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_that_cannot_be_loaded_is_told_and_may_be_tried_again(way: Way) -> None:
    async def tried() -> None:
        async with opened(way) as desk:
            tries = 0

            def load() -> Adapter:
                nonlocal tries
                tries += 1
                if tries == 1:
                    raise Failed("The stored adapter is damaged.", code="damaged_adapter")
                return adapter("a")

            of = Tuning("version", load, owner="a")
            with pytest.raises(Failed, match="damaged"):
                await asked(desk, of)
            assert held(desk) == set()
            assert await asked(desk, of) == f"{mark('a')}hello"

    run(tried())


def test_an_enclave_that_holds_no_tuned_models_says_so() -> None:
    async def tried() -> None:
        for way, most in (("no", 2), ("apart", 0)):
            async with opened(way, most_tuned=most) as desk:  # type: ignore[arg-type]
                with pytest.raises(Refusal) as refused:
                    await desk.tuned(NAME, tuning("a"))
                assert (refused.value.status, refused.value.code) == (400, "no_tuned_models")

    run(tried())


def test_a_tuned_model_that_does_not_fit_the_memory_is_refused_and_the_base_goes_on() -> None:
    """S-13: memory that is not there is not asked for."""

    async def tried() -> None:
        free = 10 << 30
        made: list[Worker] = []
        async with opened("apart", made=made, free=lambda: free) as desk:
            a, b = tuning("a"), tuning("b")
            await asked(desk, a)
            free = 1 << 20
            with pytest.raises(Busy) as refused:
                await desk.tuned(NAME, b)
            assert (refused.value.status, refused.value.code) == (503, "no_memory")
            # What rested was given up first, in the hope of room.
            assert (held(desk), made[0].alive) == (set(), False)
            assert await asked(desk, None) == "hello"
            free = 10 << 30
            assert await asked(desk, b) == f"{mark('b')}hello"

    run(tried())


def test_a_tuned_models_own_process_that_dies_fails_its_answers_and_no_others() -> None:
    async def tried() -> None:
        made: list[Worker] = []
        async with opened("apart", rate=50, made=made) as desk:
            a, b = tuning("a"), tuning("b")
            await desk.tuned(NAME, a)
            await desk.tuned(NAME, b)
            dying = desk.ask(NAME, work("x" * 100, a))
            living = desk.ask(NAME, work("y" * 20, b))
            await until(lambda: dying.tokens > 0)
            os.kill(made[0].pid or 0, signal.SIGKILL)
            with pytest.raises(Failed) as failed:
                await text_of(dying)
            assert failed.value.code == "engine_restarted"
            assert held(desk) == {b.version}
            assert await text_of(living) == mark("b") + "y" * 20
            assert await asked(desk, a) == f"{mark('a')}hello"
            assert len(made) == 3
            assert desk.ready

    run(tried())


def test_a_base_that_was_started_again_gets_back_the_adapters_that_somebody_waits_for() -> None:
    async def tried() -> None:
        async with opened("within", rate=50, most_sequences=1) as desk:
            a, b = tuning("a"), tuning("b")
            await desk.tuned(NAME, b)
            await desk.tuned(NAME, a)
            running = desk.ask(NAME, work("x" * 400, None))
            waiting = desk.ask(NAME, work("hello", a))
            await until(lambda: running.tokens > 0)
            os.kill(the_worker(desk).pid or 0, signal.SIGKILL)
            with pytest.raises(Failed):
                await text_of(running)
            assert await text_of(waiting) == f"{mark('a')}hello"
            assert held(desk) == {a.version}
            assert await asked(desk, b) == f"{mark('b')}hello"

    run(tried())


def test_what_is_asked_of_a_model_that_is_not_in_memory_is_refused_not_answered_by_another() -> None:
    """S-22: never somebody else's adapter, nor the base model in its place."""

    async def tried() -> None:
        async with opened("apart") as desk:
            with pytest.raises(Failed):
                desk.ask(NAME, work("hello", tuning("a")))

    run(tried())


def test_one_tenant_who_waits_for_a_model_many_times_leaves_room_for_others() -> None:
    """S-24: the line for what is being loaded is bounded for each tenant, as every other line is."""
    ready = threading.Event()

    def load() -> Adapter:
        assert ready.wait(120)
        return adapter("a")

    async def tried() -> None:
        async with opened("within", most_waiting=8, most_of_one=4) as desk:
            slow = Tuning("version", load, owner="a")
            waiting = [asyncio.create_task(desk.tuned(NAME, slow)) for _ in range(8)]
            await until(lambda: sum(task.done() for task in waiting) == 4)
            assert await asked(desk, tuning("b")) == f"{mark('b')}hello"
            ready.set()
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(end) for end in ends] == [type(None)] * 4 + [RateLimited] * 4
            await desk.tuned(NAME, slow)  # there is room again

    run(tried())
