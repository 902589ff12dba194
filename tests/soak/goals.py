"""
The ten goals that a run under load can show (docs/soak.md), each as a function of how long it may take.

A goal starts an enclave of its own, lets a crowd at it and gives back figures: what was found, what is
wanted, and whether it was held. Ratios are to a baseline of the same run, for machines differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blindbox_attestation.channel import varint

from .caller import Broken, Line, Proven, Sealed
from .crowd import (
    Calls,
    Elsewhere,
    Streams,
    busy,
    fresh,
    idle,
    leaving,
    mixed,
    now_and_then,
    question,
    streaming,
)
from .enclave import REPOSITORY, Enclave, served

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    goal: str
    what: str
    found: str
    wanted: str
    held: bool


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how large a run is: all of it, or a taste of it that takes seconds."""

    quick: bool = False
    minutes: float = 30.0  # of G-10

    def of(self, full: float, taste: float) -> float:
        return taste if self.quick else full

    def many(self, full: int, taste: int) -> int:
        return taste if self.quick else full


def p(percent: float, values: list[float]) -> float:
    """A percentile, in the values' own unit; infinite where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("inf")


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


@contextmanager
def watched(enclave: Enclave) -> Iterator[list[int]]:
    """The memory of all its processes, taken ten times a second, in bytes."""
    seen, stop = [enclave.resident()], threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            seen.append(enclave.resident())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        seen.append(enclave.resident())


def throughput(pace: Pace) -> list[Figure]:
    """G-1: 2 KiB up, 2 KiB down, 16 clients; sealed and plain take turns."""
    seconds, rounds = pace.of(5.0, 1.0), pace.many(3, 1)
    found: dict[bool, list[Calls]] = {True: [], False: []}
    with served() as shell, served(sealed=False) as bare, Elsewhere(2) as crowd:
        for _, sealed in itertools.product(range(rounds), (False, True)):
            port = shell.port if sealed else bare.port
            halves = [crowd.start(busy, port, sealed, 8, seconds, 2048) for _ in range(2)]
            found[sealed].append(sum((half.result() for half in halves), Calls()))
    rate = {
        sealed: statistics.median(len(calls.seconds) / calls.elapsed for calls in turns)
        for sealed, turns in found.items()
    }
    slowest = statistics.median(p(99, calls.seconds) for calls in found[True])
    ratio = statistics.median(
        (len(one.seconds) / one.elapsed) / (len(other.seconds) / other.elapsed)
        for one, other in zip(found[True], found[False], strict=True)
    )
    return [
        Figure("G-1", "sealed calls a second", f"{rate[True]:.0f}", "≥ 500", rate[True] >= 500),
        Figure("G-1", "99th percentile of a sealed call", ms(slowest), "≤ 100 ms", slowest <= 0.1),
        Figure("G-1", "sealed to plain", f"{ratio:.2f}", "≥ 0.60", ratio >= 0.6),
        _nothing_else("G-1", sum((*found[True], *found[False]), Calls()).other),
    ]


def overhead(pace: Pace) -> list[Figure]:
    """G-2: what the seal adds to one call of one client, X-Wing and all."""
    seconds, rounds = pace.of(3.0, 0.5), pace.many(5, 1)
    added: dict[int, list[float]] = {50: [], 99: []}
    with served() as shell, served(sealed=False) as bare, Elsewhere(1) as crowd:
        for _ in range(rounds):
            plain: Calls = crowd.run(busy, bare.port, False, 1, seconds, 2048)
            sealed: Calls = crowd.run(busy, shell.port, True, 1, seconds, 2048)
            for percent, differences in added.items():
                differences.append(p(percent, sealed.seconds) - p(percent, plain.seconds))
    typical, slow = (statistics.median(differences) for differences in added.values())
    return [
        Figure("G-2", "added to a call, median", ms(typical), "≤ 2 ms", typical <= 0.002),
        Figure("G-2", "added to a call, 99th percentile", ms(slow), "≤ 10 ms", slow <= 0.01),
    ]


def streams(pace: Pace) -> list[Figure]:
    """G-3: 256 streams at once, 20 tokens a second each, for a minute."""
    seconds = pace.of(60.0, 3.0)
    with served(rate=20) as enclave, Elsewhere(2) as crowd, watched(enclave) as memory:
        halves = [crowd.start(streaming, enclave.port, 128, int(20 * seconds), mark, 0.01) for mark in "ab"]
        found = sum((half.result() for half in halves), Streams())
        spent = enclave.cpu()
    peak = max(memory) / MIB
    burden = 1e6 * spent["server"] / (256 * 20 * seconds)
    return [
        Figure("G-3", "streams that came whole", f"{found.whole} of 256", "256", found.whole == 256),
        Figure("G-3", "truncated", _told(found.truncated, found.why), "0", found.truncated == 0),
        Figure("G-3", "swapped", str(found.swapped), "0", found.swapped == 0),
        Figure("G-3", "memory of all processes", f"{peak:.0f} MiB", "≤ 512 MiB", peak <= 512),
        Figure("G-3", "server's processor time for a token", f"{burden:.0f} µs", "(told)", True),
    ]


def idlers(pace: Pace) -> list[Figure]:
    """G-4: 2,000 connections that say nothing, and what a new one then waits."""
    many, calls = pace.many(2000, 300), pace.many(300, 40)
    stay = pace.of(12.0, 3.0)
    with served() as enclave, Elsewhere(2) as crowd:
        crowd.run(fresh, enclave.port, 20, 0.0)
        before = p(99, crowd.run(fresh, enclave.port, calls, 0.01))
        open_ones = crowd.start(idle, enclave.port, many, stay + calls * 0.04)
        while enclave.descriptors() < many and not open_ones.done():
            time.sleep(0.1)
        during = p(99, crowd.run(fresh, enclave.port, calls, 0.01))
        still = open_ones.result()
    return [
        Figure("G-4", "idle connections kept", f"{still} of {many}", str(many), still == many),
        Figure(
            "G-4",
            "99th percentile of a new call, beside none",
            f"{during / before:.2f}×",
            "≤ 2×",
            during <= 2 * before,
        ),
    ]


def overload(pace: Pace) -> list[Figure]:
    """G-5: ten times what the engine can do (4 sequences of 20 tokens at 40 a second: 8 calls a second)."""
    seconds, capacity = pace.of(60.0, 4.0), 8
    with (
        served(rate=40, most_sequences=4, max_waiting=8, max_waiting_each=8) as enclave,
        Elsewhere(2) as crowd,
    ):
        calm: Calls = crowd.run(now_and_then, enclave.port, True, 3.0, pace.of(10.0, 3.0), 20)
        halves = [
            crowd.start(now_and_then, enclave.port, True, 5.0 * capacity, seconds, 20) for _ in range(2)
        ]
        storm = sum((half.result() for half in halves), Calls())
        ended = time.monotonic()
        usual, back = p(99, calm.seconds), float("inf")
        while time.monotonic() < ended + 15:
            after: Calls = crowd.run(now_and_then, enclave.port, True, 3.0, 1.0, 20)
            if p(99, after.seconds) <= 1.5 * usual:
                back = time.monotonic() - ended - after.elapsed
                break
    slowest = p(99, storm.refused)
    served_part = len(storm.seconds) / storm.elapsed
    return [
        Figure(
            "G-5",
            "calls that ended otherwise than 200, or 429/503 with Retry-After",
            _told(storm.other.total(), storm.other),
            "0",
            not storm.other,
        ),
        Figure("G-5", "refused", f"{len(storm.refused)}", "≥ 1", len(storm.refused) > 0),
        Figure("G-5", "99th percentile of a refusal", ms(slowest), "≤ 250 ms", slowest <= 0.25),
        Figure("G-5", "answered a second meanwhile", f"{served_part:.1f} of {capacity}", "(told)", True),
        Figure("G-5", "until calls are as fast as before", f"{back:.1f} s", "≤ 5 s", back <= 5),
    ]


def slow_ones(pace: Pace) -> list[Figure]:
    """G-6: 500 heads and 500 bodies that drip in, 100 readers that do not read, and healthy calls beside."""
    heads, bodies, readers = pace.many(500, 60), pace.many(500, 60), pace.many(100, 10)
    limits = {} if not pace.quick else {"head_seconds": 1.0, "receipt_seconds": 2.0, "stall_seconds": 1.0}
    head_limit, body_limit = pace.of(10.0, 1.0), pace.of(60.0, 2.0)
    calls = pace.many(300, 30)
    with served(rate=20, send_buffer=32768, **limits) as enclave, Elsewhere(2) as crowd:
        crowd.run(fresh, enclave.port, 20, 0.0)
        before = p(99, crowd.run(fresh, enclave.port, calls, 0.03))
        dripping = crowd.start(_dripping, enclave.port, heads, bodies, pace.of(2.0, 0.5), body_limit + 15)
        silent = crowd.start(_not_reading, enclave.port, readers, pace.of(150.0, 12.0))
        held = _running(enclave, readers)
        time.sleep(2.0)  # for all to be there
        during = p(99, crowd_alone(fresh, enclave.port, calls, 0.03))
        head_seconds, body_seconds = dripping.result()
        _until_free(enclave, 150)
        left = 0 if not silent.done() else readers  # they must have been cut off, not have gone
    return [
        Figure("G-6", "slow heads cut off, the last after", f"{max(head_seconds):.1f} s",
               f"≤ {head_limit:.0f} s", max(head_seconds) <= head_limit + 1.5),
        Figure("G-6", "slow bodies cut off, the last after", f"{max(body_seconds):.1f} s",
               f"≤ {body_limit:.0f} s", max(body_seconds) <= body_limit + 3),
        Figure("G-6", "readers that do not read: places held, and at the end", f"{held}, {left}",
               f"{readers}, 0", held == readers and not left),
        Figure("G-6", "99th percentile of a healthy call, beside none", f"{during / before:.2f}×", "≤ 2×",
               during <= 2 * before),
    ]  # fmt: skip


def crowd_alone(crowd: Callable[..., object], *args: object) -> list[float]:
    """In one more process, where those at hand are busy."""
    with Elsewhere(1) as one:
        found: list[float] = one.run(crowd, *args)  # type: ignore[arg-type]
        return found


async def _dripping(
    port: int, heads: int, bodies: int, apart: float, patience: float
) -> tuple[list[float], list[float]]:
    """Each sends a little, so many seconds apart; seconds until it was cut off."""
    body = (
        b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-chunked-req\r\n"
    )
    body += b"Content-Length: 100000\r\n\r\n"

    async def drip(start: bytes, drop: bytes) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = time.monotonic()
        with contextlib.suppress(OSError):
            writer.write(start)
            while time.monotonic() < started + patience:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(apart):
                        await reader.read(4096)  # an answer, then the end
                        break
                writer.write(drop)
        writer.close()
        return time.monotonic() - started

    slow = [drip(b"GET / HTTP/1.1\r\n", b"x: y\r\n") for _ in range(heads)]
    slow += [drip(body, b"\x00") for _ in range(bodies)]
    found = await asyncio.gather(*slow)
    return list(found[:heads]), list(found[heads:])


async def _not_reading(port: int, many: int, patience: float) -> int:
    """Readers that ask for long streams, read nothing and stay."""
    proven = await Proven.of(port)
    callers = [Sealed(proven, receive_buffer=4096) for _ in range(many)]
    for one in callers:
        await one.send("POST", "/v1/completions", question("z" * 4000, 4000, stream=True))
    await asyncio.sleep(patience)
    for one in callers:
        one.line.close()
    return many


def _running(enclave: Enclave, wanted: int) -> int:
    """How many exchanges there are in the gateway, once there are so many as wanted."""
    most, until = 0, time.monotonic() + 20
    while most < wanted and time.monotonic() < until:
        time.sleep(0.05)
        most = max(most, int(enclave.state()["running"]))
    return most


def _until_free(enclave: Enclave, patience: float) -> float:
    """Seconds until nothing is in the gateway nor in the engine any more."""
    started = time.monotonic()
    while time.monotonic() < started + patience:
        state = enclave.state()
        if not state["running"] and not state["sequences"]:
            return time.monotonic() - started
        time.sleep(0.02)
    return patience


def disconnects(pace: Pace) -> list[Figure]:
    """G-7: 1,000 callers hang up at a random moment of a stream, of waiting, or before."""
    batches, each = pace.many(10, 2), pace.many(100, 30)
    slowest, outcome = 0.0, Counter[str]()
    with served(rate=100, most_sequences=32) as enclave, Elsewhere(1) as crowd:
        for seed in (-1, -2):  # warm up
            crowd.run(leaving, enclave.port, each, seed)
            _until_free(enclave, 10)
        files, memory = enclave.descriptors(), enclave.resident()
        for seed in range(batches):
            outcome += crowd.run(leaving, enclave.port, each, seed)
            slowest = max(slowest, _until_free(enclave, 10))
        left = enclave.state()
        time.sleep(0.5)
        more_files, more_memory = enclave.descriptors() - files, enclave.resident() / memory - 1
    broken = Counter({why: n for why, n in outcome.items() if why not in ("hung up", "answered before")})
    return [
        Figure("G-7", "hung up", f"{outcome['hung up']} of {batches * each}", "(told)", True),
        Figure("G-7", "slots free after the last left", f"{slowest:.2f} s", "≤ 1 s", slowest <= 1),
        Figure("G-7", "sequences left over", f"{left['sequences']:.0f}", "0", not left["sequences"]),
        Figure("G-7", "files more open than before", str(more_files), "0", abs(more_files) <= 2),
        Figure("G-7", "memory against before", f"{more_memory:+.1%}", "± 5 %", abs(more_memory) <= 0.05),
        _nothing_else("G-7", broken),
    ]  # fmt: skip


def drain(pace: Pace) -> list[Figure]:
    """G-8: SIGTERM while 64 streams run."""
    seconds = pace.of(15.0, 4.0)
    with served(rate=20) as enclave, Elsewhere(1) as crowd:
        proven = asyncio.run(Proven.of(enclave.port))
        running = crowd.start(streaming, enclave.port, 64, int(20 * seconds), "d")
        _running(enclave, 64)
        time.sleep(0.5)
        enclave.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        time.sleep(0.3)
        refused = asyncio.run(_turned_away(proven))
        found: Streams = running.result()
        code = enclave.process.wait(60)
        took = time.monotonic() - told
    return [
        Figure("G-8", "streams that finished", f"{found.whole} of 64", "64", found.whole == 64),
        Figure("G-8", "truncated", _told(found.truncated, found.why), "0", not found.truncated),
        Figure("G-8", "new work is turned away after", ms(refused), "≤ 100 ms", refused <= 0.1),
        Figure("G-8", "exit code", str(code), "0", code == 0),
        Figure("G-8", "gone after", f"{took:.1f} s", "≤ 30 s", took <= 30),
    ]


async def _turned_away(proven: Proven) -> float:
    """Seconds until new work hears that it is not taken: no connection, or a refusal that says so."""
    started = time.monotonic()
    try:
        reply = await Sealed(proven).ask("POST", "/v1/completions", question("more", 4))
    except (OSError, Broken):
        return time.monotonic() - started
    return time.monotonic() - started if reply.status == 503 else float("inf")


def large_input(pace: Pace) -> list[Figure]:
    """G-9: too much of everything."""
    size = pace.many(1 << 30, 300 << 20)
    figures = []
    with served() as enclave:
        asyncio.run(_healthy(enclave.port))
        for what, send in _TOO_MUCH.items():
            before = enclave.resident()
            with watched(enclave) as memory:
                said, seconds = asyncio.run(send(enclave.port, size))
            grown = (max(memory) - before) / MIB
            figures.append(
                Figure("G-9", what, f"{said}, {seconds:.2f} s after the limit, {grown:+.0f} MiB",
                       "4xx or closed, ≤ 1 s, ≤ 32 MiB",
                       (said == "closed" or said[0] == "4") and seconds <= 1 and grown <= 32)
            )  # fmt: skip
        asyncio.run(_healthy(enclave.port))
    said, grown = _huge_evidence(size)
    held = said == "AttestationError" and grown <= 32
    figures.append(
        Figure("G-9", "evidence without end, at the client", f"{said}, {grown:+.0f} MiB",
               "AttestationError, ≤ 32 MiB", held)
    )  # fmt: skip
    return figures


async def _healthy(port: int) -> None:
    reply = await Sealed(await Proven.of(port)).ask("POST", "/test", {"input_text": "x", "max_new_tokens": 1})
    if reply.status != 200:
        raise Broken(f"the enclave answers {reply.status}")


async def _send_all(line: Line, pieces: Iterator[bytes]) -> tuple[str, float]:
    """Send until it is answered; the answer's status, and the seconds from the last byte that was taken."""
    reader, writer = line.ends
    answer = asyncio.create_task(reader.readuntil(b"\r\n"))
    last = time.monotonic()
    with contextlib.suppress(OSError):
        for piece in pieces:
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
            last = time.monotonic()
    try:
        async with asyncio.timeout(30):
            status = (await answer).split(b" ")[1].decode()
    except TimeoutError:
        status = "no answer"
    except (OSError, asyncio.IncompleteReadError):
        status = "closed"
    seconds = time.monotonic() - last
    line.close()
    return status, seconds


async def _endless_body(port: int, size: int) -> tuple[str, float]:
    line = Line(port)
    fields = b"Content-Type: message/ohttp-chunked-req\r\nTransfer-Encoding: chunked\r\n"
    await line.send(b"POST", b"/.well-known/ohttp-gateway", fields, b"")
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    return await _send_all(line, itertools.repeat(piece, size // 65536))


async def _announced_body(port: int, size: int) -> tuple[str, float]:
    line = Line(port)
    fields = b"Content-Type: message/ohttp-chunked-req\r\nContent-Length: %d\r\n" % size
    await line.send(b"POST", b"/.well-known/ohttp-gateway", fields, b"")
    return await _send_all(line, iter(()))


async def _sealed_body(port: int, size: int) -> tuple[str, float]:
    """A prompt without end, sealed as it is sent."""
    from blindbox_attestation.channel import bhttp, ohttp

    proven = await Proven.of(port)
    sealer = ohttp.RequestSealer(proven.config)
    head = bhttp.RequestHead(
        b"POST",
        b"https",
        proven.authority,
        b"/v1/completions",
        ((b"content-type", b"application/json"), (b"authorization", b"Bearer " + b"t" * 32)),
    )
    openers: list[ohttp.ResponseOpener] = []

    def pieces() -> Iterator[bytes]:
        start = sealer.seal(bhttp.request_start(head) + bhttp.content(b'{"model": "echo", "prompt": "'))
        openers.append(sealer.response_opener())
        yield b"%x\r\n%s\r\n" % (len(start), start)
        for _ in range(size // 16000):
            sealed = sealer.seal(bhttp.content(b"x" * 16000))
            yield b"%x\r\n%s\r\n" % (len(sealed), sealed)

    line = Line(port)
    fields = b"Content-Type: message/ohttp-chunked-req\r\nTransfer-Encoding: chunked\r\n"
    await line.send(b"POST", b"/.well-known/ohttp-gateway", fields, b"")
    _, writer = line.ends
    answer = asyncio.create_task(line.head())
    last = time.monotonic()
    with contextlib.suppress(OSError):
        for piece in pieces():
            if answer.done():
                break
            writer.write(piece)
            await writer.drain()
            last = time.monotonic()
    try:
        _, outer = await answer
        sealed = b"".join([piece async for piece in line.body(outer)])
    except (Broken, OSError):
        return "closed", time.monotonic() - last
    seconds = time.monotonic() - last
    opener = openers[0]
    parser = bhttp.ResponseParser()
    events = [event for piece in (*opener.feed(sealed), *opener.close()) for event in parser.feed(piece)]
    status = next(event.status for event in events if isinstance(event, bhttp.ResponseHead))
    line.close()
    return str(status), seconds


async def _bomb(port: int, size: int) -> tuple[str, float]:
    """A megabyte that would be a gigabyte, announced as gzip, inside the seal."""
    import gzip

    body = gzip.compress(bytes(min(size, 256 << 20)), 9)
    caller = Sealed(await Proven.of(port), more_fields=((b"content-encoding", b"gzip"),))
    reply = await caller.ask("POST", "/v1/completions", body)
    return str(reply.status), reply.seconds


async def _many_headers(port: int, size: int) -> tuple[str, float]:
    line = Line(port)
    await line.open()
    start = iter((b"GET / HTTP/1.1\r\n",))
    return await _send_all(line, itertools.chain(start, itertools.repeat(b"x-name: value\r\n" * 100, 1000)))


async def _many_sealed_fields(port: int, size: int) -> tuple[str, float]:
    """Such a request cannot be written with our own writer: RFC 9292 §3.1, by hand."""
    proven = await Proven.of(port)
    parts = (b"GET", b"https", proven.authority, b"/v1/models")
    field = b"\x06x-name\x05value"
    message = b"\x00" + b"".join(varint.encode(len(part)) + part for part in parts)
    message += varint.encode(100_000 * len(field)) + 100_000 * field + b"\x00\x00"
    reply = await Sealed(proven).ask_with(message)
    return str(reply.status), reply.seconds


_TOO_MUCH = {
    "a body without end, not sealed": _endless_body,
    "a body announced as 1 GiB": _announced_body,
    "a prompt without end, sealed": _sealed_body,
    "1 : 1000 gzip, sealed": _bomb,
    "100,000 headers": _many_headers,
    "100,000 fields, sealed": _many_sealed_fields,
}

_ASK = """
import re, sys, warnings
warnings.simplefilter("ignore")
import blindbox.requests as requests
from blindbox_attestation import AttestationError, UnsafeSimulatedPolicy
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
try:
    requests.get(sys.argv[1], policy=UnsafeSimulatedPolicy(), timeout=60)
    said = "accepted"
except Exception as error:
    said = "AttestationError" if isinstance(error, AttestationError) else type(error).__name__
print(said, peak() - before)
"""


def _huge_evidence(size: int) -> tuple[str, float]:
    """What the SDK says to a server whose evidence does not end, and how many MiB it took."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listening.accept()
                with peer, contextlib.suppress(OSError):
                    peer.recv(65536)
                    kind = b"application/blindbox-attestation+json"
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n{" % kind)
                    for _ in range(size >> 16):
                        peer.sendall(b" " * 65536)

    threading.Thread(target=serve, daemon=True).start()
    path = os.pathsep.join(str(REPOSITORY / room) for room in ("client_sdk", "attestation", "data"))
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, f"http://127.0.0.1:{listening.getsockname()[1]}/x"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    listening.close()
    said, grown = asked.stdout.split()
    return said, int(grown) / 1024


def soak(pace: Pace) -> list[Figure]:
    """G-10: everything at once, at about half of what two cores can do; memory after the warm-up is flat."""
    seconds = 60 * pace.minutes if not pace.quick else 8.0
    callers = 12
    seen: list[tuple[float, int]] = []
    with served(rate=100, most_sequences=32) as enclave, Elsewhere(2) as crowd:
        started = time.monotonic()
        halves = [crowd.start(mixed, enclave.port, callers // 2, seconds, seed) for seed in (1, 2)]
        while not all(half.done() for half in halves):
            time.sleep(0.5)
            seen.append((time.monotonic() - started, enclave.resident()))
        outcome = sum((half.result() for half in halves), Counter[str]())
        free = _until_free(enclave, 5)
    unexplained = Counter({why: n for why, n in outcome.items() if why.startswith("unexplained")})
    warm = [(at, size) for at, size in seen if at >= min(180.0, seconds / 3)]
    slope = 60 * statistics.linear_regression([at for at, _ in warm], [size / MIB for _, size in warm]).slope
    return [
        Figure("G-10", f"calls in {seconds / 60:.1f} minutes", f"{outcome.total()}", "(told)", True),
        Figure("G-10", "unexplained", _told(unexplained.total(), unexplained), "0", not unexplained),
        Figure("G-10", "memory", f"{slope:+.2f} MiB a minute", "< 1 MiB", slope < 1 or pace.quick),
        Figure("G-10", "left over at the end", "nothing" if free < 5 else "something", "nothing", free < 5),
    ]  # fmt: skip


def _told(many: int, why: Counter[str]) -> str:
    return f"{many}" + (f" ({', '.join(f'{n} × {what}' for what, n in why.most_common(3))})" if why else "")


def _nothing_else(goal: str, other: Counter[str]) -> Figure:
    return Figure(goal, "calls that broke", _told(other.total(), other), "0", not other)


GOALS: dict[str, Callable[[Pace], list[Figure]]] = {
    "G-1": throughput,
    "G-2": overhead,
    "G-3": streams,
    "G-4": idlers,
    "G-5": overload,
    "G-6": slow_ones,
    "G-7": disconnects,
    "G-8": drain,
    "G-9": large_input,
    "G-10": soak,
}
