"""
Who this enclave is: its boot id, its keys, what has been proved about them, and what has been said to them
already.

SPEC §3 (keys), §2 (documents), §5.3 and §5.4 (what is live, what was seen), §8 (what is signed). Everything
here lives in memory and dies with the process; nothing gives a private key away. How a sealed message is
opened is `channel/ohttp.py`, what is answered is `gateway.py`.

The host controls the clock. It decides when a key is renewed and which times a document states, both of which
the client checks with a clock of its own. No replay check asks what time it is.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

from blindbox_attestation.binding import Bound, evidence_id, transcript_bytes
from blindbox_attestation.channel.hpke import X25519, X_WING, PrivateKey
from blindbox_attestation.channel.ohttp import KeyConfig, encode_key_configs
from blindbox_attestation.errors import SealingError
from blindbox_attestation.evidence import CACHED, FRESH, NONCE_SIZE, PROFILE, AttestationDocument, Transcript
from blindbox_attestation.receipt import SigningKey

from .quoting import Quoter

KEMS = (X_WING, X25519)  # the preferred one first: SPEC §5.1

LIFE = 24 * 3600  # seconds; a new generation is made at half of it
GRACE = 300  # how long a key opens after its life
MARGIN = 300  # how much earlier its end is advertised, so that a proof never outlives its key
MAX_LIVE = 3
CACHED_FOR = 3600  # form 2: the longest window the client accepts
CACHED_KEPT = 64  # documents of form 2 that stay live beside the bounded list of the others


class Replayed(SealingError):
    """This sealed message was opened before."""


class KeyClosed(SealingError):
    """The key is gone, or has opened as many messages as can be remembered."""


class AlreadyReceived(Exception):
    """A request with this request id has run, or is running."""


class QuotesBusy(Exception):
    """More proofs are asked for than the hardware makes; worth another try after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again after {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class QuoteLimits:
    """What strangers may ask of the hardware: quotes are slow, and firmware throttles (threats.md S-14)."""

    concurrent: int = 2  # quotes in the making at once
    patience: float = (
        5.0  # seconds a caller may have to wait in line; who would wait longer is sent away at once
    )
    per_second: float = 100.0
    burst: int = 256


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Generation:
    """Two keys that share a configuration, and everything that is forgotten together with them."""

    keys: dict[int, PrivateKey]
    key_config: bytes
    born: int  # Unix seconds of the enclave's clock
    born_monotonic: float
    seen: dict[int, set[bytes]]  # by key id; SPEC §5.4
    requests: set[bytes] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    cached: tuple[bytes, int] | None = None  # the document of form 2 and when it was made
    cached_evidence: deque[bytes] = field(default_factory=lambda: deque(maxlen=CACHED_KEPT))

    @property
    def not_after(self) -> int:
        return self.born + LIFE - MARGIN


class Identity:
    """
    The enclave's keys and memory.

    `clock` gives Unix seconds, `monotonic` seconds that a host cannot wind back; `new_key` makes a private
    key of a KEM, `new_signing_key` the one for receipts, which lives as long as the boot: a receipt is judged
    years later, when no message to open is left. Every method may be called from any thread; none but
    `document`, `fetch` and `document_to_keep` waits.
    """

    def __init__(
        self,
        quoter: Quoter,
        *,
        config_digest: bytes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        new_key: Callable[[int], PrivateKey] = PrivateKey.generate,
        new_signing_key: Callable[[], SigningKey] = SigningKey.generate,
        tls_spki_sha256: bytes = b"",
        seen_per_key: int = 1 << 19,
        live_evidence: int = 1 << 16,
        quote_limits: QuoteLimits = QuoteLimits(),
    ) -> None:
        self.boot_id = secrets.token_bytes(16)
        self._quoter = quoter
        self._config_digest = config_digest
        self._clock = clock
        self._monotonic = monotonic
        self._new_key = new_key
        self._signing_key = new_signing_key()
        self._tls_spki_sha256 = tls_spki_sha256
        self._seen_per_key = seen_per_key
        self._live_evidence = live_evidence
        self._lock = threading.RLock()
        self._caching = threading.Lock()
        self._next_key_id = secrets.randbelow(256)
        self._generations: list[_Generation] = []
        self._open: Mapping[int, PrivateKey] = MappingProxyType({})
        self._evidence: OrderedDict[bytes, _Generation] = OrderedDict()
        self._line = _Line(quote_limits, monotonic)
        self.renew()

    # Keys: SPEC §3

    @property
    def platform(self) -> str:
        """What proves this machine, by its name in a document."""
        return self._quoter.platform

    @property
    def authority(self) -> str:
        """The name by which a client reaches this very boot: SPEC §5.3."""
        return self.boot_id.hex()

    @property
    def key_config(self) -> bytes:
        """The configuration that is advertised now, as the bytes that are attested."""
        return self._current().key_config

    @property
    def receipt_key(self) -> bytes:
        """What verifies this boot's receipts; it is in the transcript of every document."""
        return self._signing_key.public_bytes

    @property
    def now(self) -> int:
        """Unix seconds of the enclave's clock, the one by which its documents are dated."""
        return int(self._clock())

    def sign_receipt(self, receipt: bytes) -> bytes:
        """Sign a receipt of this enclave's own making (SPEC §8). No bytes that a caller chose come here."""
        return self._signing_key.sign(receipt)

    def opening_keys(self) -> Mapping[int, PrivateKey]:
        """Every key that may still open, by its id."""
        self._current()
        return self._open

    def renew(self) -> None:
        """Make a generation if one is due, and drop those whose time is over. Cheap; called often."""
        with self._lock:
            while self._generations and self._age(self._generations[0]) > LIFE + GRACE:
                self._drop(self._generations[0])
            if not self._generations or self._age(self._generations[-1]) >= LIFE / 2:
                self._add()

    def _current(self) -> _Generation:
        with self._lock:
            self.renew()
            return self._generations[-1]

    def _age(self, generation: _Generation) -> float:
        # The larger of both: winding the clock back does not lengthen a key's life.
        return max(self._clock() - generation.born, self._monotonic() - generation.born_monotonic)

    def _add(self) -> None:
        keys: dict[int, PrivateKey] = {}
        configs: list[KeyConfig] = []
        taken = {key_id for generation in self._generations for key_id in generation.keys}
        for kem in KEMS:
            while self._next_key_id in taken:
                self._next_key_id = (self._next_key_id + 1) % 256
            key_id, key = self._next_key_id, self._new_key(kem)
            self._next_key_id = (key_id + 1) % 256  # an id comes back as late as it can
            keys[key_id] = key
            configs.append(KeyConfig(key_id, kem, key.public_bytes))
        generation = _Generation(
            keys=keys,
            key_config=encode_key_configs(configs),
            born=int(self._clock()),
            born_monotonic=self._monotonic(),
            seen={key_id: set() for key_id in keys},
        )
        self._generations.append(generation)
        if len(self._generations) > MAX_LIVE:
            self._drop(self._generations[0])
        self._reopen()

    def _drop(self, generation: _Generation) -> None:
        self._generations.remove(generation)
        self._evidence = OrderedDict((e, g) for e, g in self._evidence.items() if g is not generation)
        generation.keys.clear()
        self._reopen()

    def _reopen(self) -> None:
        self._open = MappingProxyType(
            {
                key_id: key
                for generation in self._generations
                for key_id, key in generation.keys.items()
                if key_id not in generation.closed
            }
        )

    def _of(self, key_id: int) -> _Generation:
        for generation in self._generations:
            if key_id in generation.keys:
                return generation
        raise KeyClosed("this key is no longer live")

    # Memory: SPEC §5.3, §5.4. Nothing below looks at a clock.

    def admit(self, key_id: int, replay_id: bytes) -> None:
        """
        Let a sealed message be opened, once.

        Raises `Replayed` the second time and `KeyClosed` when no more can be remembered; a new generation is
        made before that, so that clients find an open key when they prove again.
        """
        with self._lock:
            generation = self._of(key_id)
            seen = generation.seen[key_id]
            if key_id in generation.closed:
                raise KeyClosed("this key opens no more messages")
            if replay_id in seen:
                raise Replayed("this message was opened before")
            if len(seen) >= self._seen_per_key:
                generation.closed.add(key_id)
                self._reopen()
                raise KeyClosed("this key opens no more messages")
            seen.add(replay_id)
            # At three quarters the next key takes over; those who hold this one may finish.
            if generation is self._generations[-1] and len(seen) * 4 >= self._seen_per_key * 3:
                self._add()

    def begin(self, key_id: int, request_id: bytes, first_evidence: bytes | None = None) -> None:
        """
        Let the request of this id run, once, under whichever live key it comes. Raises `AlreadyReceived`.

        A repeated request names the proof under which it was first sent. Once that is forgotten, so may be
        the id, and nobody can tell any more whether it ran.
        """
        with self._lock:
            if first_evidence is not None and self._proved(first_evidence) is None:
                raise AlreadyReceived
            if any(request_id in generation.requests for generation in self._generations):
                raise AlreadyReceived
            # As many as messages admitted under this generation at most, so bounded with them.
            self._of(key_id).requests.add(request_id)

    def is_live(self, key_id: int, evidence: bytes) -> bool:
        """Whether this evidence was given for the generation of this key, and not too many others since."""
        with self._lock:
            generation = self._proved(evidence)
            return generation is not None and key_id in generation.keys

    def _proved(self, evidence: bytes) -> _Generation | None:
        """The live generation that this evidence is about."""
        return self._evidence.get(evidence) or next(
            (generation for generation in self._generations if evidence in generation.cached_evidence), None
        )

    # Documents: SPEC §2

    def document(self, nonce: bytes | None) -> bytes:
        """
        Ask the machine: a fresh document over `nonce` (form 1), or the cached one (form 2). Waits for a
        quote.
        """
        generation = self._current()
        if nonce is not None:
            if len(nonce) != NONCE_SIZE:
                raise ValueError(f"the nonce is {len(nonce)} bytes, expected {NONCE_SIZE}")
            return self._prove(generation, nonce, FRESH, generation.born, generation.not_after)
        with self._caching:  # one quote, however many wait for it
            cached = self._cached(generation, CACHED_FOR / 2)
            if cached is None:
                now = int(self._clock())
                end = min(now + CACHED_FOR, generation.not_after)
                cached = self._prove(generation, b"", CACHED, now, end)
                generation.cached = (cached, now)
            return cached

    def document_to_keep(self) -> bytes:
        """
        A new document of form 2, to be kept beside what this boot signs. Waits for a quote.

        New each time, for some policies ask how old evidence was when it was used. It opens no doors: a
        client that is shown it proves again.
        """
        generation = self._current()
        now = self.now
        return self._prove(
            generation, b"", CACHED, now, min(now + CACHED_FOR, generation.not_after), live=False
        )

    async def fetch(self, nonce: bytes | None) -> bytes:
        """
        `document`, off the event loop and within the limits; raises `QuotesBusy`. Form 2 comes from memory.
        """
        if nonce is None:
            cached = self._cached(self._current(), CACHED_FOR / 2)
            if cached is not None:
                return cached
            return await self._line.together(lambda: self.document(None))
        return await self._line.alone(lambda: self.document(nonce))

    def _cached(self, generation: _Generation, seconds: float) -> bytes | None:
        if generation.cached is None:
            return None
        document, made = generation.cached
        return document if 0 <= self._clock() - made < seconds else None

    def _prove(
        self,
        generation: _Generation,
        nonce: bytes,
        form: int,
        not_before: int,
        not_after: int,
        *,
        live: bool = True,
    ) -> bytes:
        platform = self.platform
        transcript = Transcript(
            key_config=generation.key_config,
            nonce=nonce,
            form=form,
            not_before=not_before,
            not_after=not_after,
            boot_id=self.boot_id,
            config_digest=self._config_digest,
            profile=PROFILE,
            tls_spki_sha256=self._tls_spki_sha256,
            receipt_key=self.receipt_key,
        )
        told = transcript_bytes(platform, transcript)
        quote = self._quoter.quote(Bound.of(told, transcript))
        if live:
            self._remember(generation, form, evidence_id(told, quote.evidence))
        return AttestationDocument(
            platform=platform,
            transcript=transcript,
            evidence=quote.evidence,
            endorsements=dict(quote.endorsements),
        ).encode()

    def _remember(self, generation: _Generation, form: int, proved: bytes) -> None:
        with self._lock:
            if form == CACHED:  # apart, so that strangers who ask for fresh proofs cannot push it out
                generation.cached_evidence.append(proved)
            elif generation in self._generations:
                self._evidence[proved] = generation
                self._evidence.move_to_end(proved)
                while len(self._evidence) > self._live_evidence:
                    self._evidence.popitem(last=False)


class _Line:
    """Those who wait for a quote: few threads, and nobody is let in who would wait longer than `patience`."""

    def __init__(self, limits: QuoteLimits, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(limits.concurrent, thread_name_prefix="quote")
        self._waiting = 0
        self._pace = 0.02  # seconds a quote takes, smoothed
        self._allowance = float(limits.burst)
        self._filled = monotonic()
        self._shared: asyncio.Future[bytes] | None = None

    async def alone(self, ask: Callable[[], bytes]) -> bytes:
        """A quote for one caller."""
        now = self._monotonic()
        elapsed, self._filled = now - self._filled, now
        self._allowance = min(self._limits.burst, self._allowance + elapsed * self._limits.per_second)
        wait = self._waiting * self._pace / self._limits.concurrent
        if self._allowance < 1 or wait > self._limits.patience:
            raise QuotesBusy(max(1, math.ceil(wait)))
        self._allowance -= 1
        return await self._run(ask)

    async def together(self, ask: Callable[[], bytes]) -> bytes:
        """One quote for all who ask while it is being made."""
        if self._shared is None or self._shared.done():
            self._shared = asyncio.ensure_future(self._run(ask))
        # Shielded: that one caller goes away does not take the answer from the others.
        return await asyncio.shield(self._shared)

    async def _run(self, ask: Callable[[], bytes]) -> bytes:
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._timed, ask)
        finally:
            self._waiting -= 1

    def _timed(self, ask: Callable[[], bytes]) -> bytes:
        start = self._monotonic()
        try:
            return ask()
        finally:
            self._pace += (self._monotonic() - start - self._pace) / 8
