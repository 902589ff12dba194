"""
Where routes ask engines: each model's line, its tuned models, and what one caller may know of all that.

Admission, turns and limits are in `turns.py`, one engine's life in `station.py`, tuned models in `tuned.py`;
what comes out is an `Answer` (`answer.py`). Here they are joined, counted for the operator, and stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..figures import Figures, free_bytes, resident_bytes
from ..refusals import NotFound
from . import Card, Tuning, Work
from .answer import Answer, Piece
from .station import Make, Station, Words, stopping
from .tuned import MakeTuned, Shelf
from .turns import Bounds

__all__ = ["Answer", "Desk", "Load", "Make", "MakeTuned", "Piece", "Running", "Standing", "Words"]

HANG_SECONDS: Final = 300.0
_STEPS: Final = 4  # of what is told of others' load: empty, a quarter, a half, three quarters, full
_GAUGE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """One of the caller's answers that is being written."""

    prompt_tokens: int
    generated_tokens: int
    most_tokens: int  # that it may generate
    seconds: float  # since the engine began


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, rounded to quarters: what others ask is nobody's business (threats.md S-23)."""

    sequences: float
    kv: float
    waiting: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What one caller may know of all engines: everything of its own, little of others'."""

    waiting: int
    running: int
    tokens_per_second: float  # of all its answers
    kv_tokens: int  # that are kept for its running answers
    kv_room: int  # that all callers have together
    answers: tuple[Running, ...]
    load: dict[str, Load]  # by the model's name; `tuned` = tuned models that have engines of their own


class Desk:
    """
    All engines' lines. Lives on one event loop.

    `most_waiting` prompts may wait for one engine, `most_of_one` of them one tenant's, and one tenant's
    prompts and answers may have `tokens_of_one` at a time; `most_tuned` tuned models are held beside each
    base model, in `tuned_bytes` of memory (0 = in what is free). An engine that is busy is given
    `hang_seconds` between two signs of life.
    """

    def __init__(
        self,
        *,
        most_waiting: int = 64,
        most_of_one: int = 16,
        tokens_of_one: int = 1 << 18,
        most_tuned: int = 4,
        tuned_bytes: int = 0,
        hang_seconds: float = HANG_SECONDS,
        figures: Figures | None = None,
        free: Callable[[], int | None] = free_bytes,
    ) -> None:
        self.figures = figures or Figures()
        self.draining = False
        self._bounds = Bounds(most_waiting, most_of_one, tokens_of_one)
        self._most_tuned = most_tuned
        self._tuned_bytes = tuned_bytes
        self._hang_seconds = hang_seconds
        self._free = free
        self._stations: dict[str, Station] = {}
        self._shelves: dict[str, Shelf] = {}
        self._closed = False
        self._gauged: dict[str, dict[str, float]] = {}
        self.figures.watch(self._moment)

    async def open(self, name: str, make: Make, words: Words, tuned: MakeTuned | None = None) -> Card:
        """Start an engine and wait until it is warm; `tuned` starts one for a tuned model."""

        def station(start: Make, *, beside: bool = True) -> Station:
            return Station(
                "tuned" if beside else name,
                start,
                words,
                bounds=self._bounds,
                figures=self.figures,
                hang_seconds=self._hang_seconds,
                apart=beside,
            )

        opened = self._stations[name] = station(make, beside=False)
        if self._closed:
            opened.close()
        self._shelves[name] = Shelf(
            opened,
            tuned,
            station,
            most=self._most_tuned,
            most_waiting=self._bounds.waiting,
            most_of_one=self._bounds.waiting_each,
            budget=self._tuned_bytes,
            free=self._free,
        )
        await opened.open()
        return opened.card

    def card(self, name: str) -> Card:
        """What the engine of this name can do."""
        return self._station(name).card

    def ask(self, name: str, work: Work, *, stops: tuple[str, ...] = ()) -> Answer:
        """
        Queue a sequence; raises `Refusal` at once where it cannot be served or would wait too long.

        Use the answer in an `async with`: leaving it cancels what is not finished.
        """
        if self.draining:
            raise stopping()
        station = self._shelves[name].station(work.tuning) if work.tuning else self._station(name)
        return station.ask(work, stops)

    async def tuned(self, name: str, tuning: Tuning) -> None:
        """
        Make a tuned model ready, if it is not; `Work.tuning` may then name its version.

        Ask it before the next `await`: it may be taken from memory when nobody does.
        """
        if self.draining:
            raise stopping()
        await self._shelves[name].ready(tuning)

    def holds(self, name: str, version: str) -> bool:
        """Is this tuned model in memory?"""
        return name in self._shelves and self._shelves[name].holds(version)

    def let_go(self, name: str, version: str, *, after: float = 0.0) -> None:
        """Take a tuned model from memory when its answers are given, but not within so many seconds."""
        if name in self._shelves:
            self._shelves[name].let_go(version, after=after)

    def let_go_all(self, name: str, owner: str, beginning: str = "") -> None:
        """The same for every tuned model of this owner's, or those whose version begins so."""
        if name in self._shelves:
            self._shelves[name].let_go_all(owner, beginning)

    def keep(self, name: str, version: str) -> None:
        """Do not let it go after all."""
        if name in self._shelves:
            self._shelves[name].keep(version)

    # For one caller, and for the operator

    def standing(self, owner: str) -> Standing:
        """Where this caller stands."""
        now = time.monotonic()
        running: list[Answer] = []
        waiting = 0
        for station in self._all():
            runs, waits = station.turns.of(owner)
            running += runs
            waiting += len(waits)
        return Standing(
            waiting=waiting,
            running=len(running),
            tokens_per_second=round(sum(_rate(answer, now) for answer in running), 2),
            kv_tokens=sum(answer.reserved for answer in running),
            kv_room=sum(station.card.room for station in self._stations.values()),
            answers=tuple(
                Running(
                    prompt_tokens=len(answer.work.ids),
                    generated_tokens=answer.tokens,
                    most_tokens=answer.work.sampling.max_new_tokens,
                    seconds=round(now - (answer.started or now), 3),
                )
                for answer in running
            ),
            load={name: _load(stations, self._bounds) for name, stations in self._by_name().items()},
        )

    @property
    def ready(self) -> bool:
        """Can every engine be asked?"""
        return (
            not self.draining
            and bool(self._stations)
            and all(station.state == "ready" for station in self._stations.values())
        )

    def health(self) -> dict[str, dict[str, Any]]:
        """Each engine's state, for the operator."""
        return {
            name: {
                "state": station.state,
                "restarts": station.restarts,
                "running": len(station.turns.running),
                "waiting": station.turns.waiting,
                "room_tokens": station.card.room,
                "most_sequences": station.card.most_sequences,
                "tuned_apart": len(self._shelves[name].stations),
                "details": dict(station.card.details),
            }
            for name, station in self._stations.items()
        }

    async def gauge(self) -> None:
        """Ask the engines for their own figures, before `figures` is read; a busy one may not answer."""
        by_name = self._by_name()
        asked = {name: [asyncio.ensure_future(each.gauges()) for each in by_name[name]] for name in by_name}
        every = [task for tasks in asked.values() for task in tasks]
        if every:
            await asyncio.wait(every, timeout=_GAUGE_SECONDS)
        for name, tasks in asked.items():
            told = [task.result() for task in tasks if task.done() and not task.cancelled()]
            self._gauged[name] = {
                key: sum(each.get(key, 0.0) for each in told) for each in told for key in each
            }
        for task in every:
            task.cancel()

    def _moment(self) -> Iterable[tuple[str, str, dict[str, float]]]:
        names = self._by_name()

        def of(figure: Callable[[Station], float]) -> dict[str, float]:
            return {name: float(sum(figure(each) for each in stations)) for name, stations in names.items()}

        yield "waiting", "Prompts that wait", of(lambda each: each.turns.waiting)
        yield "running", "Sequences that are being continued", of(lambda each: len(each.turns.running))
        yield "kv_reserved_tokens", "Tokens kept for what runs", of(lambda each: each.turns.reserved)
        yield "kv_room_tokens", "Tokens that the KV cache holds", of(lambda each: each.card.room)
        used = {
            name: told["kv_used_tokens"] for name, told in self._gauged.items() if "kv_used_tokens" in told
        }
        yield "kv_used_tokens", "Tokens in the KV cache, as the engine says", used
        yield "engine_ready", "Engines that can be asked", of(lambda each: each.state == "ready")
        resident = of(lambda each: 0 if each.pid is None else resident_bytes(each.pid))
        yield "engine_resident_bytes", "Memory of the engines' processes", resident
        yield "server_resident_bytes", "Memory of the process that answers", {"": float(resident_bytes())}

    # Its end

    async def drain(self, seconds: float) -> None:
        """Take nothing new, wait so long for what runs and waits, and end what is left."""
        self.draining = True
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(each.turns.asked for each in self._all()):
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End every engine; what still runs is told that the enclave stops."""
        self._closed = True
        for shelf in self._shelves.values():
            shelf.close()
        for station in self._stations.values():
            station.close()

    def _station(self, name: str) -> Station:
        station = self._stations.get(name)
        if station is None:
            raise NotFound("There is no such model.", code="model_not_found", param="model")
        return station

    def _all(self) -> Iterable[Station]:
        return [station for stations in self._by_name().values() for station in stations]

    def _by_name(self) -> dict[str, list[Station]]:
        named = {name: [station] for name, station in self._stations.items()}
        apart = [station for shelf in self._shelves.values() for station in shelf.stations]
        return named | ({"tuned": apart} if apart else {})


def _rate(answer: Answer, now: float) -> float:
    if answer.first is None or answer.tokens < 2:
        return 0.0
    return (answer.tokens - 1) / max(1e-3, now - answer.first)


def _load(stations: list[Station], bounds: Bounds) -> Load:
    def quarters(part: int, whole: int) -> float:
        return min(_STEPS, -(-part * _STEPS // max(1, whole))) / _STEPS

    return Load(
        sequences=quarters(
            sum(each.turns.width for each in stations), sum(each.card.most_sequences for each in stations)
        ),
        kv=quarters(sum(each.turns.reserved for each in stations), sum(each.card.room for each in stations)),
        waiting=quarters(sum(each.turns.waiting for each in stations), bounds.waiting * len(stations)),
    )
