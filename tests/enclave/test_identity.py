"""Keys, proofs and memory of an enclave."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation import UnsafeSimulatedPolicy, UnsafeSimulationWarning, verify
from blindbox_attestation.binding import Bound, evidence_id, transcript_bytes
from blindbox_attestation.channel import ohttp
from blindbox_attestation.channel.hpke import X25519, X_WING, PrivateKey
from blindbox_attestation.evidence import CACHED, AttestationDocument
from blindbox_attestation.receipt import SigningKey
from enclave_app.gateway import Gateway
from enclave_app.identity import (
    CACHED_FOR,
    CACHED_KEPT,
    GRACE,
    LIFE,
    MARGIN,
    AlreadyReceived,
    Identity,
    KeyClosed,
    QuoteLimits,
    QuotesBusy,
    Replayed,
)
from enclave_app.quoting import Quote
from tests.kit import NOON
from tests.kit.enclave import make_echo_app, make_identity, simulated_quoter
from tests.kit.peer import call, exchange, seal

HOUR = 3600.0


class Clock:
    """Wall and monotonic time that a test moves."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()
        self.up = 1000.0

    def forward(self, seconds: float) -> None:
        self.now += seconds
        self.up += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(clock: Clock) -> Identity:
    return make_identity(clock=lambda: clock.now, monotonic=lambda: clock.up)


def key_ids(identity: Identity) -> set[int]:
    return {config.key_id for config in ohttp.parse_key_configs(identity.key_config)}


def test_two_boots_have_nothing_in_common() -> None:
    one, two = make_identity(), make_identity()
    assert one.boot_id != two.boot_id
    assert one.key_config != two.key_config
    assert one.receipt_key != two.receipt_key
    assert len(one.boot_id) == 16
    assert one.authority == one.boot_id.hex()


def test_a_generation_is_two_keys_and_all_suites_the_better_first(identity: Identity) -> None:
    configs = ohttp.parse_key_configs(identity.key_config)
    assert [config.kem for config in configs] == [X_WING, X25519]
    assert {config.suites for config in configs} == {ohttp.SUITES}
    assert set(identity.opening_keys()) == {config.key_id for config in configs}


def test_the_whole_offer_is_what_is_attested(identity: Identity) -> None:
    """
    C-20: the attested key configuration is the advertised one byte for byte, with its suites in their order.
    """
    nonce = secrets.token_bytes(32)
    document = AttestationDocument.parse(identity.document(nonce))
    assert document.transcript.key_config == identity.key_config
    assert document.transcript.nonce == nonce
    assert document.transcript.profile == "blindbox/1"
    assert document.transcript.boot_id == identity.boot_id


def test_the_key_for_receipts_is_in_every_document_and_outlives_the_others(
    identity: Identity, clock: Clock
) -> None:
    """One for the whole boot: a receipt is about a training that may take longer than a key to open with."""
    told = set()
    for _ in range(3):
        for document in (identity.document(bytes(32)), identity.document(None), identity.document_to_keep()):
            told.add(AttestationDocument.parse(document).transcript.receipt_key)
        clock.forward(LIFE)
    assert told == {identity.receipt_key}
    assert len(identity.receipt_key) == 32


def test_a_document_to_keep_is_new_each_time_and_opens_no_door(identity: Identity, clock: Clock) -> None:
    """S-1: who holds a receipt holds its document; a request that names it is told to prove again."""
    served = identity.document(None)
    proved = evidence_id_of(served)
    kept = []
    for _ in range(CACHED_KEPT + 5):  # more than there is room for
        clock.forward(1)
        kept.append(identity.document_to_keep())
    key_id = min(key_ids(identity))
    assert len(set(kept)) == len(kept)
    assert served not in kept
    assert identity.is_live(key_id, proved)
    assert not any(identity.is_live(key_id, evidence_id_of(document)) for document in kept)
    told = AttestationDocument.parse(kept[-1]).transcript
    assert (told.form, told.nonce, told.not_before) == (CACHED, b"", int(clock.now))
    assert told.not_after - told.not_before == CACHED_FOR


def evidence_id_of(document: bytes) -> bytes:
    claimed = AttestationDocument.parse(document)
    return evidence_id(transcript_bytes(claimed.platform, claimed.transcript), claimed.evidence)


def test_a_key_is_renewed_at_half_its_life_and_dropped_after_its_end(
    identity: Identity, clock: Clock
) -> None:
    first = key_ids(identity)
    clock.forward(LIFE / 2 - 1)
    assert key_ids(identity) == first
    clock.forward(1)
    second = key_ids(identity)
    assert not second & first
    assert set(identity.opening_keys()) == first | second
    clock.forward(LIFE / 2 + GRACE)
    assert first <= set(identity.opening_keys())
    clock.forward(1)
    assert not first & set(identity.opening_keys())


def test_at_most_three_generations_are_live(identity: Identity, clock: Clock) -> None:
    for _ in range(20):
        clock.forward(LIFE / 2)
        identity.renew()
        assert len(identity.opening_keys()) <= 6
        assert len(identity.opening_keys()) % 2 == 0


def test_key_ids_are_never_shared_by_live_keys(clock: Clock) -> None:
    """Over more generations than there are ids."""
    identity = make_identity(clock=lambda: clock.now, monotonic=lambda: clock.up)
    for _ in range(150):
        clock.forward(LIFE / 2)
        identity.renew()
        ids = [key_id for generation in identity._generations for key_id in generation.keys]
        assert len(ids) == len(set(ids))


def test_winding_the_clock_back_does_not_lengthen_a_keys_life(identity: Identity, clock: Clock) -> None:
    first = key_ids(identity)
    clock.now -= 30 * 24 * HOUR
    clock.up += LIFE + GRACE + 1
    assert not first & set(identity.opening_keys())


def test_the_advertised_end_is_before_the_real_one(identity: Identity, clock: Clock) -> None:
    transcript = AttestationDocument.parse(identity.document(bytes(32))).transcript
    assert transcript.not_after == int(clock.now) + LIFE - MARGIN
    assert transcript.not_after - transcript.not_before <= 48 * HOUR


def test_both_forms_verify(identity: Identity, clock: Clock) -> None:
    nonce = secrets.token_bytes(32)
    with warnings.catch_warnings(action="ignore", category=UnsafeSimulationWarning):
        fresh = UnsafeSimulatedPolicy()
        cached = UnsafeSimulatedPolicy(accept_cached=True)
        assert verify(identity.document(nonce), fresh, nonce=nonce, now=NOON).boot_id == identity.boot_id
        verified = verify(identity.document(None), cached, nonce=b"", now=NOON)
    assert (verified.not_after - verified.not_before).total_seconds() <= CACHED_FOR
    assert identity.is_live(next(iter(key_ids(identity))), verified.evidence_id)


def test_the_cached_document_is_renewed_before_it_ends_and_with_its_key(
    identity: Identity, clock: Clock
) -> None:
    first = identity.document(None)
    clock.forward(CACHED_FOR / 2 - 1)
    assert identity.document(None) == first
    clock.forward(1)
    second = identity.document(None)
    assert second != first
    clock.forward(LIFE / 2 - CACHED_FOR / 2)
    third = AttestationDocument.parse(identity.document(None))
    assert third.transcript.key_config == identity.key_config


def test_evidence_is_live_for_its_own_generation_only_and_the_list_is_bounded(clock: Clock) -> None:
    identity = make_identity(clock=lambda: clock.now, monotonic=lambda: clock.up, live_evidence=10)
    (key_id, _) = sorted(key_ids(identity))
    identity.document(None)
    (cached,) = identity._generations[0].cached_evidence
    identity.document(bytes(32))
    (first,) = identity._evidence
    assert identity.is_live(key_id, first)
    for number in range(10):
        identity.document(bytes([number + 1]) * 32)
    assert not identity.is_live(key_id, first)
    assert len(identity._evidence) == 10
    assert identity.is_live(key_id, cached)  # strangers cannot push the cached proof out
    clock.forward(LIFE / 2)
    assert not any(identity.is_live(key, cached) for key in key_ids(identity))
    clock.forward(LIFE / 2 + GRACE + 1)
    identity.renew()
    assert not identity._evidence


def test_a_message_is_admitted_once_at_any_hour(identity: Identity, clock: Clock) -> None:
    """S-1: no clock is asked: a replay is one, however the host winds the time."""
    (key_id, _) = sorted(key_ids(identity))
    identity.admit(key_id, b"seen")
    for seconds in (-10 * 365 * 24 * HOUR, 0, 1, 23 * HOUR):
        clock.now = NOON.timestamp() + seconds
        with pytest.raises(Replayed):
            identity.admit(key_id, b"seen")


def test_many_threads_admit_a_message_once(identity: Identity) -> None:
    """S-1: also where two threads ask in the same moment."""
    (key_id, _) = sorted(key_ids(identity))
    admitted: list[int] = []
    barrier = threading.Barrier(8)

    def replay() -> None:
        barrier.wait()
        for number in range(300):
            try:
                identity.admit(key_id, number.to_bytes(4, "big"))
            except Replayed:
                continue
            admitted.append(number)

    threads = [threading.Thread(target=replay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admitted) == list(range(300))


def test_a_full_memory_closes_its_key_and_no_other() -> None:
    """S-1: bounded, and closed when full; what was seen stays seen."""
    identity = make_identity(seen_per_key=4)
    first, second = sorted(key_ids(identity))
    for number in range(4):
        identity.admit(first, bytes([number]))
    with pytest.raises(KeyClosed):
        identity.admit(first, b"one more")
    assert first not in identity.opening_keys()
    with pytest.raises(KeyClosed):
        identity.admit(first, bytes([0]))
    identity.admit(second, b"still open")
    assert not {first, second} & key_ids(identity)  # a new generation is advertised


def test_a_key_that_is_gone_admits_nothing(identity: Identity, clock: Clock) -> None:
    (key_id, _) = sorted(key_ids(identity))
    clock.forward(LIFE + GRACE + 1)
    identity.renew()
    with pytest.raises(KeyClosed):
        identity.admit(key_id, b"late")


def test_a_request_id_is_known_to_every_live_generation(identity: Identity, clock: Clock) -> None:
    """S-1: sealing a request again to a newer key does not make it new."""
    (old, _) = sorted(key_ids(identity))
    identity.begin(old, b"request id")
    clock.forward(LIFE / 2)
    (new, _) = sorted(key_ids(identity))
    with pytest.raises(AlreadyReceived):
        identity.begin(new, b"request id")
    identity.begin(new, b"another")


class SlowQuoter:
    """A machine whose quotes take 200 ms, as firmware's may."""

    platform = "simulated"

    def __init__(self, seconds: float = 0.2) -> None:
        self.seconds = seconds
        self.quotes = 0
        self.at_once = 0
        self.most_at_once = 0
        self.hurry = threading.Event()
        self._lock = threading.Lock()

    def quote(self, bound: Bound) -> Quote:
        with self._lock:
            self.quotes += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.hurry.wait(self.seconds)
        with self._lock:
            self.at_once -= 1
        return simulated_quoter().quote(bound)


def test_a_flood_of_questions_neither_piles_up_nor_blocks() -> None:
    """
    S-14: 1000 askers at once of a machine that quotes in 200 ms: few wait, the rest are sent away at once.
    """
    quoter = SlowQuoter()
    identity = make_identity(quoter, quote_limits=QuoteLimits(patience=1.0, burst=50))
    gateway = Gateway(make_echo_app(), identity)
    path = b"/.well-known/blindbox/attestation"

    async def ask() -> tuple[list[int], float, float]:
        identity._line._pace = quoter.seconds  # as it is after the first few
        loop = asyncio.get_running_loop()
        start = loop.time()
        flood = [
            asyncio.create_task(
                call(gateway, method="GET", path=path, query=b"nonce=" + (b"%042d" % n) + b"A", media=None)
            )
            for n in range(1000)
        ]
        await asyncio.sleep(0)
        healthy = loop.time()
        assert (await exchange(gateway, seal(identity))).status == 200
        assert (await call(gateway, method="GET", path=b"/", media=None)).body == b"alive"
        healthy = loop.time() - healthy
        outers = await asyncio.gather(*flood)
        for outer in outers:
            assert outer.status == 200 or (
                outer.status == 503 and int(dict(outer.headers)[b"retry-after"]) >= 1
            )
        return [outer.status for outer in outers], loop.time() - start, healthy

    statuses, seconds, healthy = asyncio.run(ask())
    assert 5 <= statuses.count(200) <= 15 + seconds / quoter.seconds  # on a slow machine some come later
    assert quoter.quotes == statuses.count(200)
    assert quoter.most_at_once <= 2
    assert seconds < 60  # and not the 200 that it would take to answer all
    assert healthy < 30


def test_the_cached_document_costs_one_quote_however_many_ask() -> None:
    """S-14: coalesced while it is made, served from memory afterwards, also while the hardware is busy."""
    quoter = SlowQuoter()
    identity = make_identity(quoter)

    async def ask() -> None:
        documents = await asyncio.gather(*(identity.fetch(None) for _ in range(500)))
        assert len(set(documents)) == 1
        assert quoter.quotes == 1
        quoter.seconds = 100.0  # or until all have been served from memory
        busy = [asyncio.create_task(identity.fetch(bytes([n]) * 32)) for n in range(4)]
        while not quoter.at_once:
            await asyncio.sleep(0.001)
        for _ in range(100):
            assert await identity.fetch(None) == documents[0]
        assert not any(one.done() for one in busy)
        quoter.hurry.set()
        await asyncio.gather(*busy)

    asyncio.run(ask())


def test_proofs_are_given_out_at_a_bounded_rate(clock: Clock) -> None:
    """S-14: a burst, then so many a second."""
    limits = QuoteLimits(per_second=10, burst=3)
    identity = make_identity(clock=lambda: clock.now, monotonic=lambda: clock.up, quote_limits=limits)

    async def ask() -> None:
        for _ in range(3):
            await identity.fetch(bytes(32))
        with pytest.raises(QuotesBusy) as refused:
            await identity.fetch(bytes(32))
        assert refused.value.retry_after == 1
        clock.forward(0.1)
        await identity.fetch(bytes(32))

    asyncio.run(ask())


def test_no_private_key_leaves_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    S-33: after boot, proofs, traffic, rotation and a signature, the seed of no key is in any file the process
    wrote or holds open, nor in anything the identity or its keys offer to a caller.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    seeds: list[bytes] = []

    def known(kem: int) -> PrivateKey:
        seeds.append(secrets.token_bytes(32))
        return PrivateKey.from_bytes(kem, seeds[-1])

    def known_signing() -> SigningKey:
        seeds.append(secrets.token_bytes(32))
        return SigningKey.from_bytes(seeds[-1])

    clock = Clock()
    identity = make_identity(
        clock=lambda: clock.now, monotonic=lambda: clock.up, new_key=known, new_signing_key=known_signing
    )
    gateway = Gateway(make_echo_app(), identity)
    before = time.time()

    async def use() -> list[bytes]:
        outers = []
        for _ in range(3):
            outers.append((await call(gateway, seal(identity, b"POST", b"/anything", b"x").body)).body)
            outers.append(await identity.fetch(secrets.token_bytes(32)))
            outers.append(await identity.fetch(None))
            outers.append(identity.document_to_keep())
            outers.append(identity.sign_receipt(b"{}"))
            clock.forward(LIFE / 2)
        return outers

    said = asyncio.run(use())
    assert len(seeds) == 2 * 3 + 1
    spelled = [form for seed in seeds for form in (seed, seed.hex().encode(), seed[::-1])]
    said += [repr(identity).encode(), repr(vars(identity)).encode(), repr(identity.opening_keys()).encode()]
    assert not [where for where in said for form in spelled if form in where]
    for path in written_since(before, tmp_path):
        with suppress(OSError):  # somebody else's, and gone by now
            content = path.read_bytes()
            assert not any(form in content for form in spelled), path
    # Not even on purpose: a key has no way to say itself.
    signing = identity._signing_key
    assert {name for name in dir(signing) if not name.startswith("_")} == {
        "from_bytes",
        "generate",
        "public_bytes",
        "sign",
    }
    with pytest.raises(TypeError):
        signing.__reduce_ex__(4)
    assert signing.public_bytes not in seeds
    offered = {name for name in dir(identity) if "sign" in name or "receipt" in name}
    assert offered - {"_signing_key"} == {"receipt_key", "sign_receipt"}
    for key in identity.opening_keys().values():
        public = [name for name in dir(key) if not name.startswith("_")]
        assert set(public) <= {"generate", "from_bytes", "kem", "public_bytes"}
        with pytest.raises(TypeError):
            key.__reduce_ex__(4)
        assert key.public_bytes not in seeds


def written_since(moment: float, *folders: Path) -> list[Path]:
    """
    Every readable regular file below the writable places, and every file this process holds open, that is
    new.
    """
    places = {Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"), *folders}
    found: set[Path] = set()
    for place in places:
        for folder, _, names in os.walk(place, onerror=lambda _: None):
            found |= {Path(folder, name) for name in names}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.add(Path(os.readlink(descriptor)))
        except OSError:
            continue
    new = []
    for path in found:
        try:
            stat = path.stat()
            if (
                path.is_file()
                and stat.st_mtime >= moment - 1
                and stat.st_size < 64 << 20
                and os.access(path, os.R_OK)
            ):
                new.append(path)
        except OSError:
            continue
    return new


def test_a_dropped_key_is_released(identity: Identity, clock: Clock) -> None:
    """S-33: nothing keeps an old key once its time is over, no request either that came under it and runs."""
    old = {key.public_bytes for key in identity.opening_keys().values()}

    def alive() -> set[bytes]:
        gc.collect()
        return old & {one.public_bytes for one in gc.get_objects() if type(one) is PrivateKey}

    async def long_after() -> set[bytes]:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            entered.set()
            await leave.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"at last"})

        asked = asyncio.create_task(exchange(Gateway(app, identity), seal(identity)))
        await entered.wait()
        clock.forward(LIFE + GRACE + 1)
        identity.renew()
        left = alive()
        leave.set()
        assert (await asked).body == b"at last"
        return left

    assert alive() == old
    assert not asyncio.run(long_after())
