"""
A proven key for one origin under one policy, and when to ask again.

`SessionKeys` decides *when* a machine must prove itself; `verify` decides *whether* it did, and `adapter.py`
carries the bytes. One proof is under way per origin and policy at a time: whoever comes meanwhile waits for
it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from blindbox_attestation.channel import ohttp
from blindbox_attestation.policy import Policy
from blindbox_attestation.simulated import UnsafeSimulatedPolicy
from blindbox_attestation.verify import Verified, verify

from . import process

AnyPolicy: TypeAlias = Policy | UnsafeSimulatedPolicy
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

    def usable(self, now: datetime, tick: float) -> bool:
        return now < self.usable_until and tick < self.usable_until_tick


def prove(origin: str, policy: AnyPolicy, fetch: Fetch, *, now: datetime, tick: float) -> ProvenKey:
    """
    Ask the machine at `origin` to prove itself, and take the key out of the same transcript that was proved.

    1. a nonce of our own (none if the policy accepts the cached form)   SPEC §2.1
    2. fetch the document
    3. verify it                                                         SPEC §4
    4. choose the key                                                    SPEC §5.1
    """
    nonce = b"" if policy.accept_cached else secrets.token_bytes(NONCE_SIZE)  # 1
    document = fetch(nonce)  # 2
    verified = verify(document, policy, nonce=nonce, now=now)  # 3
    config = ohttp.preferred(ohttp.parse_key_configs(verified.key_config))  # 4
    until = min(verified.not_after, now + policy.max_age)
    return ProvenKey(origin, verified, config, until, tick + max(0.0, (until - now).total_seconds()))


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
        self._under_way: dict[tuple[str, bytes], _UnderWay] = {}
        self._generation = process.generation()

    def get(
        self, origin: str, policy: AnyPolicy, fetch: Fetch, *, instead_of: ProvenKey | None = None
    ) -> ProvenKey:
        """
        The proven key for this origin and policy; asks the machine if there is none that may still be used.

        `instead_of` is a key that turned out to be of no use: any other that is proven will do.
        """
        if self._generation != process.generation():
            with process.guard():
                if self._generation != process.generation():
                    self._begin()
        if policy.max_age <= timedelta(0):
            return prove(origin, policy, fetch, now=self._now(), tick=self._tick())
        name = (origin, policy.digest)
        with self._lock:
            key = self._keys.get(name)
            if key is not None and key is not instead_of and key.usable(self._now(), self._tick()):
                return key
            proof = self._under_way.get(name)
            mine = proof is None
            if proof is None:
                proof = self._under_way[name] = _UnderWay()
        if not mine:
            return proof.wait()
        try:
            key = proof.key = prove(origin, policy, fetch, now=self._now(), tick=self._tick())
        except BaseException as error:
            proof.error = error
            raise
        finally:
            with self._lock:
                del self._under_way[name]
                if proof.key is not None:
                    self._keys[name] = proof.key
                else:
                    self._keys.pop(name, None)
            proof.done.set()
        return key

    def forget(self) -> None:
        """Drop every proven key."""
        with self._lock:
            self._keys.clear()


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
