"""
Whose turn it is: the prompts that wait for one engine, those that run, and which is next when there is room.

Tenants take turns by tokens, not by requests: next is the one that has been given least, counting what its
running sequences may still become, so that a hundred prompts of one tenant do not come before the single one
of another. What a sequence did not use is handed back when it ends. Whoever was away comes back with no turns
saved up (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, §4).

Where the next does not fit yet, smaller ones go before it, but only such as end before it could begin anyway
(backfilling: Lifka, "The ANL/IBM SP scheduling system", 1995): neither does a large one wait for ever, nor do
small ones wait for it while there is room.

Nothing here waits or knows an engine; `station.py` asks and tells. Tenants cost nothing to make, so turns
between them are fair as far as each caller is one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..refusals import Busy, RateLimited, Refusal
from .answer import Answer
from .pace import Pace

_REMEMBERED = 4096  # tenants that are away


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait."""

    waiting: int = 256  # prompts, of all tenants together
    waiting_each: int = 64  # … and of one
    tokens_each: int = 1 << 18  # of one tenant's prompts and answers, waiting and running


@dataclass(slots=True, eq=False)
class _Tenant:
    """One tenant's place."""

    waiting: deque[Answer] = field(default_factory=deque)
    running: dict[int, Answer] = field(default_factory=dict)
    settled: int = 0  # tokens that its ended sequences used, read and written
    reserved: int = 0  # by its running sequences
    asked: int = 0  # by all of its sequences, those that wait too

    @property
    def here(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def given(self) -> int:
        """Tokens read and written for it so far."""
        return self.settled + sum(answer.used for answer in self.running.values())

    @property
    def turn(self) -> tuple[int, int]:
        """The least is next: what it was given and what it was promised, then who came first."""
        return self.settled + self.reserved, self.waiting[0].key


class Turns:
    """The line before one engine."""

    def __init__(self, bounds: Bounds, pace: Pace) -> None:
        self._bounds = bounds
        self._pace = pace
        self._tenants: dict[str, _Tenant] = {}
        self._away: OrderedDict[str, int] = OrderedDict()  # tenants who left with more than the least
        self.running: dict[int, Answer] = {}
        self.waiting = 0
        self.reserved = 0  # tokens, by what runs
        self.width = 0  # sequences that run; a beam is one

    def enter(self, answer: Answer) -> None:
        """Take a place in the line; raises `Refusal` where there is none."""
        bounds, tenant = self._bounds, self._tenants.get(answer.owner)
        if answer.reserved > bounds.tokens_each:
            raise Refusal(
                f"Prompt and answer together have {answer.reserved} tokens; one caller may have "
                f"{bounds.tokens_each} at a time. Shorten the prompt, or ask for fewer new tokens.",
                code="token_budget",
            )
        if tenant is not None and len(tenant.waiting) >= bounds.waiting_each:
            raise RateLimited(
                f"{len(tenant.waiting)} prompts of yours are waiting already, as many as may. "
                "Wait for some of their answers, then send this one again.",
                code="too_many_waiting",
                retry_after=self._pace.until(len(tenant.waiting) * self._sharing()),
            )
        if tenant is not None and tenant.asked + answer.reserved > bounds.tokens_each:
            raise RateLimited(
                f"Your prompts and answers that wait or run have {tenant.asked} tokens; with this one it "
                f"would be {tenant.asked + answer.reserved}, and {bounds.tokens_each} is the most. "
                "Wait for some of the answers, or ask for fewer new tokens.",
                code="token_budget",
                retry_after=self._pace.until(1 + len(tenant.waiting) * self._sharing()),
            )
        if self.waiting >= bounds.waiting:
            raise Busy(
                f"{self.waiting} prompts are waiting already, as many as may. Try again later.",
                code="overloaded",
                retry_after=self._pace.until(self.waiting),
            )
        if tenant is None:
            tenant = self._tenants[answer.owner] = _Tenant()
        if not tenant.here:
            tenant.settled = max(self._away.pop(answer.owner, 0), self._least())
        tenant.waiting.append(answer)
        tenant.asked += answer.reserved
        self.waiting += 1

    def next(self, room: int, most: int) -> Answer | None:
        """
        Who is to be started, in `room` tokens and as one of at most `most` sequences; it counts as running.
        """
        line = sorted((each for each in self._tenants.values() if each.waiting), key=lambda each: each.turn)
        if not line or self.width >= most:
            return None
        free, places = room - self.reserved, most - self.width
        first = line[0].waiting[0]
        if first.reserved <= free and first.width <= places:
            return self._start(line[0], first)
        steps = self._steps_until(first, free, places)
        for tenant in line:
            for answer in tenant.waiting:
                if answer.reserved <= free and answer.width <= places and answer.remaining <= steps:
                    return self._start(tenant, answer)
        return None

    def leave(self, answer: Answer) -> bool:
        """Give up its place, wherever that is; tells whether it was running. Leaving twice is no error."""
        tenant = self._tenants.get(answer.owner)
        if tenant is None:
            return False
        ran = self.running.pop(answer.key, None) is not None
        if ran:
            del tenant.running[answer.key]
            tenant.settled += answer.used
            tenant.reserved -= answer.reserved
            self.reserved -= answer.reserved
            self.width -= answer.width
        elif answer in tenant.waiting:
            tenant.waiting.remove(answer)
            self.waiting -= 1
        else:
            return False
        tenant.asked -= answer.reserved
        if not tenant.here:
            self._part(answer.owner, tenant)
        return ran

    @property
    def asked(self) -> bool:
        """Does anything run or wait?"""
        return bool(self._tenants)

    def all(self) -> Iterator[Answer]:
        """Everything that runs or waits."""
        for tenant in self._tenants.values():
            yield from tenant.running.values()
            yield from tenant.waiting

    def of(self, owner: str) -> tuple[list[Answer], list[Answer]]:
        """One tenant's: what runs, and what waits."""
        tenant = self._tenants.get(owner)
        return ([], []) if tenant is None else (list(tenant.running.values()), list(tenant.waiting))

    def _start(self, tenant: _Tenant, answer: Answer) -> Answer:
        tenant.waiting.remove(answer)
        tenant.running[answer.key] = answer
        tenant.reserved += answer.reserved
        self.running[answer.key] = answer
        self.reserved += answer.reserved
        self.width += answer.width
        self.waiting -= 1
        return answer

    def _part(self, owner: str, tenant: _Tenant) -> None:
        del self._tenants[owner]
        if not self._tenants:
            self._away.clear()  # nobody is here to whom it would be unfair
        elif tenant.settled > self._least():
            self._away[owner] = tenant.settled
            while len(self._away) > _REMEMBERED:
                self._away.popitem(last=False)

    def _least(self) -> int:
        return min((each.given for each in self._tenants.values() if each.here), default=0)

    def _sharing(self) -> int:
        """Among how many tenants the engine's pace is shared."""
        return max(1, sum(bool(each.waiting) for each in self._tenants.values()))

    def _steps_until(self, answer: Answer, free: int, places: int) -> int:
        """After how many steps at most there will be room for it: a sequence makes a token a step."""
        steps = 0
        for other in sorted(self.running.values(), key=lambda each: each.remaining):
            if answer.reserved <= free and answer.width <= places:
                break
            free += other.reserved
            places += other.width
            steps = other.remaining
        return steps
