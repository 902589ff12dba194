"""
Many callers at once, in processes of their own: what they do, and what they bring back.

Each kind of crowd is an async function of a port and plain values, so that a process can be told to run it
(`elsewhere`). What comes back are numbers and words, never an exception: a call that broke is a result.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .caller import Broken, Caller, Line, Plain, Proven, Reply, Sealed

Crowd = Callable[..., Coroutine[Any, Any, Any]]


def _run(crowd: Crowd, args: tuple[Any, ...]) -> Any:
    warnings.simplefilter("ignore")  # that the machine is simulated is known
    return asyncio.run(crowd(*args))


class Elsewhere:
    """Processes in which crowds are run."""

    def __init__(self, many: int) -> None:
        self._pool = ProcessPoolExecutor(many, multiprocessing.get_context("spawn"))

    def start(self, crowd: Crowd, *args: Any) -> Future[Any]:
        return self._pool.submit(_run, crowd, args)

    def run(self, crowd: Crowd, *args: Any) -> Any:
        return self.start(crowd, *args).result()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


async def caller(port: int, sealed: bool) -> Callable[[], Caller]:
    """Makes callers of one kind; an enclave is proved once for all of them."""
    if not sealed:
        return lambda: Plain(port)
    proven = await Proven.of(port)
    return lambda: Sealed(proven)


def question(text: str, tokens: int, *, stream: bool = False) -> dict[str, Any]:
    return {"model": "echo", "prompt": text, "max_tokens": tokens, "stream": stream}


@dataclass(slots=True)
class Calls:
    """What became of calls: seconds of those that were answered, and how often what else."""

    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)  # 429 and 503 that say when to come back
    other: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0

    def note(self, reply: Reply) -> None:
        if reply.status == 200:
            self.seconds.append(reply.seconds)
        elif reply.status in (429, 503) and b"retry-after" in reply.fields:
            self.refused.append(reply.seconds)
        else:
            self.other[f"status {reply.status}"] += 1

    def __add__(self, more: Calls) -> Calls:
        return Calls(
            self.seconds + more.seconds,
            self.refused + more.refused,
            self.other + more.other,
            max(self.elapsed, more.elapsed),
        )


async def busy(port: int, sealed: bool, clients: int, seconds: float, size: int) -> Calls:
    """Each client asks again as soon as it is answered: `size` bytes up, and as many down."""
    new, calls = await caller(port, sealed), Calls()
    text = {"input_text": "x" * (size - 60), "max_new_tokens": 1}
    warm = [new() for _ in range(clients)]
    await asyncio.gather(*(one.ask("POST", "/test", text) for one in warm))
    started = time.monotonic()

    async def keep_asking(one: Caller) -> None:
        while time.monotonic() < started + seconds:
            try:
                calls.note(await one.ask("POST", "/test", text))
            except (Broken, OSError) as error:
                calls.other[type(error).__name__] += 1

    await asyncio.gather(*(keep_asking(one) for one in warm))
    calls.elapsed = time.monotonic() - started
    for one in warm:
        one.line.close()
    return calls


async def now_and_then(port: int, sealed: bool, per_second: float, seconds: float, tokens: int) -> Calls:
    """New callers come so many a second, whether or not those before have been answered."""
    new, calls = await caller(port, sealed), Calls()
    started, running = time.monotonic(), set[asyncio.Task[None]]()

    async def one_call(number: int) -> None:
        one = new()
        try:
            calls.note(await one.ask("POST", "/v1/completions", question(f"{number:08d}" * 8, tokens)))
        except (Broken, OSError) as error:
            calls.other[type(error).__name__] += 1
        finally:
            one.line.close()

    for number in range(round(per_second * seconds)):
        await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
        task = asyncio.create_task(one_call(number))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    calls.elapsed = time.monotonic() - started
    return calls


@dataclass(slots=True)
class Streams:
    """What became of streams."""

    whole: int = 0
    truncated: int = 0  # without their end, or refused
    swapped: int = 0  # with something else in them than was asked for
    first: list[float] = field(default_factory=list)  # seconds to the first token
    why: Counter[str] = field(default_factory=Counter)

    def __add__(self, more: Streams) -> Streams:
        return Streams(
            self.whole + more.whole,
            self.truncated + more.truncated,
            self.swapped + more.swapped,
            self.first + more.first,
            self.why + more.why,
        )


async def streaming(
    port: int, many: int, tokens: int, mark: str, apart: float = 0.0, streams: Streams | None = None
) -> Streams:
    """
    So many streams at once, each of a text of its own, `apart` seconds between their starts.

    What becomes of them is written into `streams` as it happens, where some are given.
    """
    new = await caller(port, True)
    streams = Streams() if streams is None else streams

    async def one_stream(number: int) -> None:
        await asyncio.sleep(number * apart)
        text = (f"{mark}{number:05d} " * tokens)[:tokens]
        one, heard = new(), ""
        started = time.monotonic()
        try:
            async for event in one.stream("/v1/completions", question(text, tokens, stream=True)):
                if not heard:
                    streams.first.append(time.monotonic() - started)
                heard += event["choices"][0]["text"]
        except (Broken, OSError, KeyError) as error:
            streams.truncated += 1
            streams.why[str(error)[:60]] += 1
        else:
            streams.whole += 1
            streams.swapped += heard != text
        finally:
            one.line.close()

    await asyncio.gather(*(one_stream(number) for number in range(many)))
    return streams


async def leaving(port: int, many: int, seed: int) -> Counter[str]:
    """Callers that hang up at a random moment, politely or not; the last has gone when this returns."""
    new, rng, left = await caller(port, True), random.Random(seed), Counter[str]()

    async def one_leaves() -> None:
        one, stream = new(), rng.random() < 0.6
        stay, reset = rng.uniform(0.0, 0.5), rng.random() < 0.5
        wish = question("y" * 400, 400, stream=stream)
        try:
            async with asyncio.timeout(stay):
                if stream:
                    async for _ in one.stream("/v1/completions", wish):
                        pass
                else:
                    await one.ask("POST", "/v1/completions", wish)
            left["answered before"] += 1
        except TimeoutError:
            left["hung up"] += 1
        except (Broken, OSError) as error:
            left[type(error).__name__] += 1
        finally:
            one.line.close(reset=reset)

    await asyncio.gather(*(one_leaves() for _ in range(many)))
    return left


async def mixed(port: int, callers: int, seconds: float, seed: int) -> Counter[str]:
    """All kinds of calls, each caller one after the other with pauses; what was not as it should is named."""
    proven, outcome = await Proven.of(port), Counter[str]()
    until = time.monotonic() + seconds

    async def one_caller(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        one = Sealed(proven)
        while time.monotonic() < until:
            kind = rng.choice(["whole", "stream", "stream", "bad", "models", "leave", "proof", "file"])
            try:
                async with asyncio.timeout(60):
                    said = await _one_call(one, kind, rng)
            except (Broken, OSError, TimeoutError) as error:
                said = f"{type(error).__name__}: {str(error)[:60]}"
                one.line.close()
            outcome[kind if said == "ok" else f"unexplained {kind}: {said}"] += 1
            if rng.random() < 0.1:
                one.line.close()
            await asyncio.sleep(rng.uniform(0.0, 0.4))
        one.line.close()

    await asyncio.gather(*(one_caller(number) for number in range(callers)))
    return outcome


async def _one_call(one: Sealed, kind: str, rng: random.Random) -> str:
    """One call of this kind; "ok", or what was wrong."""
    text = f"{rng.random():.17f} " * rng.randint(1, 20)
    tokens = len(text)
    if kind == "whole":
        reply = await one.ask("POST", "/v1/completions", question(text, tokens))
        return "ok" if reply.status == 200 and reply.json["choices"][0]["text"] == text else str(reply.status)
    if kind == "stream":
        wish = question(text, tokens, stream=True)
        heard = [event["choices"][0]["text"] async for event in one.stream("/v1/completions", wish)]
        return "ok" if "".join(heard) == text else "another text"
    if kind == "bad":
        reply = await one.ask("POST", "/v1/completions", {"model": "echo", "prompt": 7, "max_tokens": -1})
        return "ok" if 400 <= reply.status < 500 else str(reply.status)
    if kind == "models":
        reply = await one.ask("GET", "/v1/models")
        return "ok" if reply.status == 200 else str(reply.status)
    if kind == "proof":
        await Proven.of(one.proven.port)
        return "ok"
    if kind == "leave":
        gone = Sealed(one.proven)
        async for _ in gone.stream("/v1/completions", question(text, tokens, stream=True)):
            break
        gone.line.close(reset=rng.random() < 0.5)
        return "ok"
    reply = await one.ask("GET", "/v1/files")
    return "ok" if reply.status == 200 else str(reply.status)


async def idle(port: int, many: int, seconds: float) -> int:
    """Connections that were used once and then say nothing; how many were still open at the end."""
    lines = [Line(port) for _ in range(many)]
    for at in range(0, many, 50):
        await asyncio.gather(*(_alive(line) for line in lines[at : at + 50]))
    await asyncio.sleep(seconds)
    still = sum(line.is_open for line in lines)
    for line in lines:
        line.close()
    return still


async def _alive(line: Line) -> None:
    await line.send(b"GET", b"/", b"", b"")
    _, fields = await line.head()
    async for _ in line.body(fields):
        pass


async def fresh(port: int, many: int, pause: float) -> list[float]:
    """Seconds that one sealed call takes on a connection of its own, one after the other."""
    new, seconds = await caller(port, True), []
    for _ in range(many):
        one, started = new(), time.monotonic()
        await one.ask("POST", "/test", {"input_text": "healthy", "max_new_tokens": 1})
        seconds.append(time.monotonic() - started)
        one.line.close()
        await asyncio.sleep(pause)
    return seconds
