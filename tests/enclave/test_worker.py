"""An engine in another process: what is said arrives as it was meant; each side notices the other's end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from enclave_app.engines import Card, Constraint, Refused, Sampling, Token, Update, Work
from enclave_app.engines.adapter import Adapter, Manifest
from enclave_app.engines.echo import EchoEngine
from enclave_app.engines.worker import (
    UnusableEngine,
    Worker,
    WorkerGone,
    environment,
    in_process,
    in_thread,
    serve,
)
from enclave_app.refusals import Busy, Conflict, Refusal
from tests.enclave.test_desk import run, until
from tests.enclave.test_tuned import adapter
from tests.kit.process import gone

EVERYTHING = Sampling(
    max_new_tokens=7,
    do_sample=False,
    temperature=0.5,
    top_k=3,
    top_p=0.25,
    min_p=0.125,
    presence_penalty=-1.5,
    frequency_penalty=1.5,
    repetition_penalty=1.25,
    logit_bias=((3, -100.0), (5, 0.5)),
    seed=2**63 - 1,
    logprobs=3,
    num_beams=2,
    ignore_end=True,
    constraint=Constraint('{"type":"object"}', "<tool>", "</tool>"),
)


class Recorder(EchoEngine):
    """An echo engine that notes what it is told, and refuses in a step when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def card(self) -> Card:
        return Card(100, 200, 3, 4, 16, frozenset({"beams", "schema"}), 5, "within", (("weights", "none"),))

    def start(self, key: int, work: Work) -> None:
        self.told.append(work)
        if work.owner == "refused":
            raise Busy("It is too much.", code="much", param="n", retry_after=9)
        super().start(key, work)

    def step(self) -> list[Update | Refused]:  # type: ignore[override]
        done: list[Update | Refused] = list(super().step())
        return [
            Refused(each.key, Conflict("Not that.", code="late"))
            if isinstance(each, Update) and each.tokens and each.tokens[0].id == 13
            else each
            for each in done
        ]


class Heard:
    """What a worker said."""

    def __init__(self, worker: Worker) -> None:
        self.updates: list[Update] = []
        self.refusals: dict[int, Refusal] = {}
        self.ends = 0
        worker.heard, worker.gone = self.updates.append, self._gone
        worker.refused = self.refusals.__setitem__

    def _gone(self) -> None:
        self.ends += 1


@asynccontextmanager
async def working(spec: dict[str, Any] | None = None) -> AsyncIterator[tuple[Worker, Heard]]:
    worker = await in_process(spec or {"engine": "echo"})
    try:
        await worker.ready()
        yield worker, Heard(worker)
    finally:
        worker.close()


def test_every_wish_arrives_as_it_was_meant() -> None:
    async def tried() -> None:
        engine = Recorder()
        worker = await in_thread(engine)
        assert await worker.ready() == engine.card()
        heard = Heard(worker)
        works = [
            Work((1, 2, 3), EVERYTHING, owner="é"),
            Work((4,), Sampling()),
        ]
        for key, each in enumerate(works):
            worker.start(key, each)
        await until(lambda: sum(update.finish is not None for update in heard.updates) == 2)
        assert engine.told == works
        assert heard.updates[0] == Update(0, (Token(1, -0.125, ((1, -0.125),)),), None)
        worker.close()

    run(tried())


def test_a_refusal_arrives_as_the_one_it_was_also_from_the_middle_of_a_step() -> None:
    async def tried() -> None:
        worker = await in_thread(Recorder())
        await worker.ready()
        heard = Heard(worker)
        worker.start(1, Work((1,), Sampling(), owner="refused"))
        worker.start(2, Work((13,), Sampling()))
        await until(lambda: len(heard.refusals) == 2)
        at_once, later = heard.refusals[1], heard.refusals[2]
        assert isinstance(at_once, Busy)
        assert (at_once.message, at_once.code, at_once.param) == ("It is too much.", "much", "n")
        assert (at_once.status, at_once.retry_after) == (503, 9)
        assert isinstance(later, Conflict)
        assert later.code == "late"
        worker.close()

    run(tried())


def test_an_adapter_is_loaded_once_however_many_ask_and_can_be_forgotten() -> None:
    async def tried() -> None:
        async with working() as (worker, heard):
            await asyncio.gather(*(worker.load("v", adapter("a")) for _ in range(3)))
            worker.start(1, Work((65,), Sampling(), tuning="v"))
            await until(lambda: bool(heard.updates) and heard.updates[-1].finish is not None)
            text = bytes(token.id for update in heard.updates for token in update.tokens)
            assert text == f"[{adapter('a').manifest.weights_sha256[:16]}] A".encode()
            worker.unload("v")
            worker.start(2, Work((65,), Sampling(), tuning="v"))
            await until(lambda: 2 in heard.refusals)

    run(tried())


def test_a_large_adapter_passes_while_tokens_come() -> None:
    async def tried() -> None:
        weights = os.urandom(16 << 20)
        import hashlib

        large = Adapter(Manifest("b", "text", "", 8, 16, (), hashlib.sha256(weights).hexdigest()), weights)
        async with working() as (worker, heard):
            worker.start(1, Work(tuple([65] * 5000), Sampling(max_new_tokens=5000)))
            await worker.load("large", large)
            await until(lambda: bool(heard.updates) and heard.updates[-1].finish is not None)
            assert len(heard.updates) == 5000

    run(tried())


def test_a_process_that_is_killed_is_noticed_and_whoever_waits_is_told() -> None:
    async def tried() -> None:
        async with working({"engine": "echo", "rate": 5.0}) as (worker, heard):
            os.kill(worker.pid or 0, signal.SIGSTOP)
            waiting = [
                asyncio.ensure_future(worker.gauges()),
                asyncio.ensure_future(worker.load("v", adapter("a"))),
            ]
            await asyncio.sleep(0.05)
            os.kill(worker.pid or 0, signal.SIGKILL)
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [WorkerGone, WorkerGone]
            await until(lambda: heard.ends == 1)
            assert not worker.alive
            with pytest.raises(WorkerGone):
                worker.start(1, Work((1,), Sampling()))

    run(tried())


def test_closing_ends_the_process_and_is_no_unexpected_end() -> None:
    async def tried() -> None:
        async with working() as (worker, heard):
            worker.close()
            worker.close()
            await worker.ended()
            await asyncio.sleep(0.05)
            assert gone(worker.pid or 0)
            assert heard.ends == 0

    run(tried())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"engine": "none such"}, "none such"),
        ({"engine": "echo", "unknown_option": 1}, "unknown_option"),
    ],
)
def test_an_engine_that_cannot_be_made_says_why(spec: dict[str, Any], words: str) -> None:
    async def tried() -> None:
        worker = await in_process(spec)
        with pytest.raises(UnusableEngine, match=words):
            await worker.ready()
        await worker.ended()
        assert gone(worker.pid or 0)

    run(tried())


def test_a_process_that_dies_while_it_loads_is_an_engine_that_cannot_be_made() -> None:
    async def tried() -> None:
        worker = await in_process({"engine": "echo"})
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(UnusableEngine, match="want of memory"):
            await worker.ready()

    run(tried())


def test_an_engine_whose_steps_bring_nothing_says_that_it_makes_them() -> None:
    """S-13: so that a long prompt is not taken for a hang."""

    class Reading(EchoEngine):
        def step(self) -> list[Update]:
            time.sleep(0.02)
            return []

    async def tried() -> None:
        worker = await in_thread(Reading())
        await worker.ready()
        begun = worker.last_sign
        worker.start(1, Work((1,), Sampling()))
        await until(lambda: worker.last_sign > begun + 1)
        worker.close()

    run(tried())


def test_the_engine_ends_when_the_other_side_does() -> None:
    here, there = socket.socketpair()
    serving = threading.Thread(target=serve, args=(EchoEngine(), there))
    serving.start()
    (length,) = struct.unpack(">xQ", here.recv(9))
    assert json.loads(here.recv(length))["say"] == "ready"
    here.close()
    serving.join(60)
    assert not serving.is_alive()


def test_a_worker_sees_little_of_the_environment() -> None:
    """S-31: what would change how it runs does not reach it."""
    outer = {"PATH": "/usr/bin", "LD_PRELOAD": "/tmp/x.so", "BLINDBOX_MODEL": "x", "HF_HOME": "/tmp"}
    seen = environment(outer)
    assert seen["PATH"] == "/usr/bin"
    assert not {"LD_PRELOAD", "BLINDBOX_MODEL", "HF_HOME"} & seen.keys()
    assert seen["HF_HUB_OFFLINE"] == "1"


def test_prompts_that_take_long_to_begin_do_not_keep_those_who_are_answered_waiting() -> None:
    """S-10: a grammar takes a second to be made; between two of them there is a step for everybody."""
    done: list[str] = []

    class Slow(EchoEngine):
        def start(self, key: int, work: Work) -> None:
            time.sleep(0.11)
            done.append("start")
            super().start(key, work)

        def step(self) -> list[Update]:
            done.append("step")
            return super().step()

    async def tried() -> None:
        worker = await in_thread(Slow())
        try:
            await worker.ready()
            for key in range(6):
                worker.start(key, Work((65,) * 100, Sampling(max_new_tokens=100)))
            await until(lambda: done.count("start") == 6)
        finally:
            worker.close()

    run(tried())
    assert "start start" not in " ".join(done[done.index("step") :])
