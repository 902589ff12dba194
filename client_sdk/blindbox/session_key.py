"""
A proven key for one origin under one policy, and when to ask again.

`SessionKeys` decides *when* a machine must prove itself; `verify` decides *whether* it did, and `adapter.py`
carries the bytes. One proof is under way per origin and policy at a time: whoever comes meanwhile waits for
it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from blindbox_attestation.channel import ohttp
from blindbox_attestation.verify import AnyPolicy, Verified

from . import process
from .collateral import NOBODY, Collateral, Watch

Fetch: TypeAlias = Callable[[bytes], bytes]
"""Asks the origin for its attestation document, with a nonce (or b"" for the cached form)."""

NONCE_SIZE = 32


@dataclass(frozen=True, slots=True)
class ProvenKey:
    """A key of a machine the policy accepts, and until when it may be used without asking again."""

    origin: str
    verified: Verified
    config: ohttp.KeyConfig
    usable_until: datetime
    usable_until_tick: float  # the same by a clock that nobody can set back
    policy: AnyPolicy = field(repr=False)  # what it was judged by
    nonce: bytes = field(repr=False)  # our question; none in the cached form
    document: bytes = field(repr=False)  # the answer, as it came
    collateral: Mapping[str, bytes] = field(repr=False)  # what was fetched from vendors beside it

    def usable(self, now: datetime, tick: float) -> bool:
        return now < self.usable_until and tick < self.usable_until_tick


def prove(
    origin: str,
    policy: AnyPolicy,
    fetch: Fetch,
    *,
    now: datetime,
    tick: float,
    collateral: Collateral | None = None,
    watch: Watch = lambda policy, fetched: None,
) -> ProvenKey:
    """
    Ask the machine at `origin` to prove itself, and take the key out of the same transcript that was proved.

    1. a nonce of our own (none if the policy accepts the cached form)   SPEC §2.1
    2. fetch the document
    3. verify it, with what its vendor publishes if that was not sent    SPEC §4
    4. choose the key                                                    SPEC §5.1
    """
    nonce = b"" if policy.accept_cached else secrets.token_bytes(NONCE_SIZE)  # 1
    document = fetch(nonce)  # 2
    asked = NOBODY if collateral is None else collateral
    verified, fetched = asked.verify(document, policy, nonce=nonce, now=now, watch=watch)  # 3
    config = ohttp.preferred(ohttp.parse_key_configs(verified.key_config))  # 4
    until = min(verified.not_after, now + policy.max_age)
    until_tick = tick + max(0.0, (until - now).total_seconds())
    return ProvenKey(origin, verified, config, until, until_tick, policy, nonce, document, fetched)


class SessionKeys:
    """The proven keys of one process. Safe in many threads; empty again after `fork`."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        tick: Callable[[], float] | None = None,
    ) -> None:
        import time

        self._now = now
        self._tick = tick or time.monotonic
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, bytes], ProvenKey] = {}
        self._latest: dict[str, ProvenKey] = {}  # by origin, the newest last
        self._under_way: dict[tuple[str, bytes], _UnderWay] = {}
        self._generation = process.generation()

    def get(
        self,
        origin: str,
        policy: AnyPolicy,
        fetch: Fetch,
        *,
        instead_of: ProvenKey | None = None,
        collateral: Collateral | None = None,
    ) -> ProvenKey:
        """
        The proven key for this origin and policy; asks the machine if there is none that may still be used.

        `instead_of` is a key that turned out to be of no use: any other that is proven will do.
        `collateral` fetches what the machine did not send; with None, nobody is asked.
        """
        if self._generation != process.generation():
            with process.guard():
                if self._generation != process.generation():
                    self._begin()
        if policy.max_age <= timedelta(0):
            key = prove(origin, policy, fetch, now=self._now(), tick=self._tick(), collateral=collateral)
            with self._lock:
                self._note(key)
            return key
        name = (origin, policy.digest)
        with self._lock:
            known = self._keys.get(name)
            if known is not None and known is not instead_of and known.usable(self._now(), self._tick()):
                return known
            proof = self._under_way.get(name)
            mine = proof is None
            if proof is None:
                proof = self._under_way[name] = _UnderWay()
        if not mine:
            return proof.wait()
        try:
            key = proof.key = prove(
                origin, policy, fetch, now=self._now(), tick=self._tick(), collateral=collateral
            )
        except BaseException as error:
            proof.error = error
            raise
        finally:
            with self._lock:
                del self._under_way[name]
                if proof.key is not None:
                    self._keys[name] = proof.key
                    self._note(proof.key)
                else:
                    self._keys.pop(name, None)
            proof.done.set()
        return key

    def _note(self, key: ProvenKey) -> None:
        self._latest.pop(key.origin, None)
        self._latest[key.origin] = key

    def latest(self) -> dict[str, ProvenKey]:
        """What each origin proved last, whether or not it may still be used; by origin, the newest last."""
        with self._lock:
            return dict(self._latest)

    def forget(self) -> None:
        """Drop every proven key."""
        with self._lock:
            self._keys.clear()
            self._latest.clear()


class _UnderWay:
    """One proof that several threads may wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.key: ProvenKey | None = None
        self.error: BaseException | None = None

    def wait(self) -> ProvenKey:
        self.done.wait()
        if self.key is not None:
            return self.key
        if isinstance(self.error, Exception):
            raise self.error
        raise InterruptedError("the thread that asked for the proof was stopped; try again") from self.error
