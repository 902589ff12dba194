"""
A taste of `make soak`, in seconds: that nothing breaks, is lost or left over. How fast it is, is told there.

The enclave is the same, in processes of its own; the callers are in this one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from .crowd import Streams, fresh, idle, leaving, mixed, now_and_then, streaming
from .enclave import Enclave, served
from .goals import MIB, Pace, _bomb, _huge_evidence, _many_sealed_fields, _until_free, watched
from .replays import replays

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.UnsafeSimulationWarning")


@pytest.fixture(scope="module")
def enclave() -> Iterator[Enclave]:
    with served(rate=40) as enclave:
        yield enclave


def test_256_streams_at_once_come_whole_and_none_is_anothers(enclave: Enclave) -> None:
    """G-3: and all processes of the server together stay below 512 MiB."""
    with watched(enclave) as memory:
        found = asyncio.run(streaming(enclave.port, 256, 40, "s"))
    assert (found.whole, found.truncated, found.swapped) == (256, 0, 0), found.why
    assert max(memory) <= 512 * MIB


def test_whoever_hangs_up_leaves_nothing_behind(enclave: Enclave) -> None:
    """S-11: G-7: 60 callers leave at random moments; the gateway's places and the engine's are free again."""
    before = enclave.descriptors()
    outcome = asyncio.run(leaving(enclave.port, 60, 1))
    assert _until_free(enclave, 60) < 60
    assert outcome["hung up"] > 30
    assert set(outcome) <= {"hung up", "answered before"}
    deadline = time.monotonic() + 60
    while enclave.descriptors() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert enclave.descriptors() <= before + 2


def test_idle_connections_keep_nobody_waiting(enclave: Enclave) -> None:
    """G-4: 200 connections that say nothing are kept, and new calls are answered beside them."""

    async def both() -> int:
        idlers = asyncio.create_task(idle(enclave.port, 200, 1.0))
        await fresh(enclave.port, 10, 0.05)
        return await idlers

    assert asyncio.run(both()) == 200


def test_calls_of_all_kinds_end_as_they_should(enclave: Enclave) -> None:
    """G-10: for three seconds."""
    outcome = asyncio.run(mixed(enclave.port, 6, 3.0, 1))
    assert outcome.total() >= 6
    assert not [kind for kind in outcome if kind.startswith("unexplained")], outcome
    assert _until_free(enclave, 60) < 60


def test_too_many_fields_and_bombs_are_refused_inside_the_seal(enclave: Enclave) -> None:
    """S-6, S-7: G-9: 100,000 fields, and a megabyte that unpacks to a quarter of a gigabyte."""
    before = enclave.resident()
    with watched(enclave) as memory:
        fields, _ = asyncio.run(_many_sealed_fields(enclave.port, 0))
        bomb, _ = asyncio.run(_bomb(enclave.port, 256 << 20))
    assert (fields[0], bomb[0]) == ("4", "4")
    assert max(memory) - before <= 32 * MIB


def test_evidence_without_end_does_not_fill_a_clients_memory() -> None:
    """C-18: G-9, at the client."""
    said, grown = _huge_evidence(256 << 20)
    assert said == "AttestationError"
    assert grown <= 32


def test_overload_ends_in_answers_or_in_a_time_to_come_back() -> None:
    """S-10: G-5: ten times what the engine can do; no call breaks, and some are served."""
    with served(rate=40, most_sequences=4, max_waiting=4, max_waiting_each=4) as enclave:
        calls = asyncio.run(now_and_then(enclave.port, True, 60.0, 3.0, 20))
        assert not calls.other
        assert calls.seconds
        assert calls.refused
        assert _until_free(enclave, 60) < 60


def test_told_to_stop_it_finishes_its_streams() -> None:
    """S-12: G-8: 64 streams run on to their end after SIGTERM, and the exit code is 0."""
    with served(rate=20) as enclave:

        async def stop_amidst() -> tuple[int, int]:
            found = Streams()
            running = asyncio.create_task(streaming(enclave.port, 64, 50, "d", streams=found))
            while len(found.first) < 64 and not running.done():  # every one has begun
                await asyncio.sleep(0.02)
            enclave.process.send_signal(signal.SIGTERM)
            await running
            return found.whole, found.truncated

        assert asyncio.run(stop_amidst()) == (64, 0)
        assert enclave.process.wait(120) == 0


def test_what_is_recorded_and_sent_again_is_done_once() -> None:
    """S-1: G-17: 50 requests that make files and jobs, five copies of each at once, and across a kill -9."""
    for figure in replays(Pace(quick=True)):
        assert figure.held, figure
