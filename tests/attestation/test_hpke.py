"""HPKE against its published vectors, against `cryptography`'s one-shot form, and against hostile keys."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as one_shot
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.channel import hpke
from blindbox_attestation.errors import MalformedMessage, SealingError

unhex = bytes.fromhex
BOTH_KEMS = pytest.mark.parametrize("kem", [hpke.X25519, hpke.X_WING], ids=["x25519", "x-wing"])
AEADS = {
    hpke.AEAD_AES_128_GCM: one_shot.AEAD.AES_128_GCM,
    hpke.AEAD_AES_256_GCM: one_shot.AEAD.AES_256_GCM,
    hpke.AEAD_CHACHA20_POLY1305: one_shot.AEAD.CHACHA20_POLY1305,
}
ALL_AEADS = pytest.mark.parametrize("aead", list(AEADS), ids=["aes-128-gcm", "aes-256-gcm", "chacha20"])
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def published(vectors: Path, name: str) -> list[dict[str, Any]]:
    """The base-mode entries of a file of vectors that use the KEMs and the KDF of this module."""
    entries = json.loads((vectors / "crypto" / name).read_text())
    ours = [
        entry
        for entry in entries
        if entry["mode"] == 0 and entry["kem_id"] in hpke.KEMS and entry["kdf_id"] == hpke.KDF_HKDF_SHA256
    ]
    assert ours, f"{name} has no entry that this module can be tried on"
    return ours


def pair(
    kem: int, aead: int = hpke.AEAD_AES_256_GCM, info: bytes = b"info"
) -> tuple[hpke.SenderContext, hpke.RecipientContext]:
    key = hpke.PrivateKey.generate(kem)
    enc, sender = hpke.setup_sender(kem, hpke.KDF_HKDF_SHA256, aead, key.public_bytes, info)
    return sender, hpke.setup_recipient(key, hpke.KDF_HKDF_SHA256, aead, enc, info)


# --- published vectors


def check_recipient(entry: dict[str, Any]) -> None:
    key = hpke.PrivateKey.from_bytes(entry["kem_id"], unhex(entry["skRm"]))
    assert key.public_bytes.hex() == entry["pkRm"]
    assert key._decapsulate(unhex(entry["enc"])).hex() == entry["shared_secret"]
    context = hpke.setup_recipient(
        key, entry["kdf_id"], entry["aead_id"], unhex(entry["enc"]), unhex(entry["info"])
    )
    for message in entry["encryptions"]:
        assert context.open(unhex(message["aad"]), unhex(message["ct"])).hex() == message["pt"]
    for export in entry["exports"]:
        assert (
            context.export(unhex(export["exporter_context"]), export["L"]).hex() == export["exported_value"]
        )


def test_a_recipient_opens_and_exports_the_vectors_of_rfc_9180(vectors: Path) -> None:
    """RFC 9180 appendix A, base mode with X25519."""
    entries = published(vectors, "rfc9180_hpke_subset.json")
    assert {entry["aead_id"] for entry in entries} >= {hpke.AEAD_AES_128_GCM}
    for entry in entries:
        check_recipient(entry)


def test_a_sender_seals_and_exports_the_vectors_of_rfc_9180(vectors: Path) -> None:
    """RFC 9180 appendix A, base mode with X25519, with the ephemeral key of the vectors."""
    for entry in published(vectors, "rfc9180_hpke_subset.json"):
        enc, context = hpke.setup_sender(
            entry["kem_id"],
            entry["kdf_id"],
            entry["aead_id"],
            unhex(entry["pkRm"]),
            unhex(entry["info"]),
            _ephemeral=unhex(entry["skEm"]),
        )
        assert enc.hex() == entry["enc"]
        for message in entry["encryptions"]:
            assert context.seal(unhex(message["aad"]), unhex(message["pt"])).hex() == message["ct"]
        for export in entry["exports"]:
            exported = context.export(unhex(export["exporter_context"]), export["L"])
            assert exported.hex() == export["exported_value"]


def test_a_recipient_opens_and_exports_the_vectors_of_post_quantum_hpke(vectors: Path) -> None:
    """draft-ietf-hpke-pq: every entry whose KEM and KDF are spoken here."""
    entries = published(vectors, "hpke_pq_vectors_even.json")
    assert {entry["kem_id"] for entry in entries} >= {hpke.X_WING}
    for entry in entries:
        check_recipient(entry)


def test_x_wing_expands_seeds_and_decapsulates_as_published(vectors: Path) -> None:
    """draft-connolly-cfrg-xwing-kem appendix C."""
    entries = json.loads((vectors / "crypto" / "xwing_vectors.json").read_text())
    assert len(entries) >= 3
    for entry in entries:
        key = hpke.PrivateKey.from_bytes(hpke.X_WING, unhex(entry["sk"]))
        assert key.public_bytes.hex() == entry["pk"]
        assert key._decapsulate(unhex(entry["ct"])).hex() == entry["ss"]


def test_x_wing_encapsulates_the_x25519_half_as_published(vectors: Path) -> None:
    """The ML-KEM half is random in this library; the other half must follow from the vector."""
    for entry in json.loads((vectors / "crypto" / "xwing_vectors.json").read_text()):
        shared, enc = hpke._encapsulate(hpke.X_WING, unhex(entry["pk"]), unhex(entry["eseed"])[32:])
        assert enc[1088:].hex() == entry["ct"][2 * 1088 :]
        key = hpke.PrivateKey.from_bytes(hpke.X_WING, unhex(entry["sk"]))
        assert key._decapsulate(enc) == shared


def test_aes_gcm_gives_what_wycheproof_expects(vectors: Path) -> None:
    suites = {128: hpke.AEAD_AES_128_GCM, 256: hpke.AEAD_AES_256_GCM}
    valid = invalid = 0
    for group in json.loads((vectors / "crypto" / "wycheproof_aes_gcm_test.json").read_text())["testGroups"]:
        if group["ivSize"] != 96 or group["tagSize"] != 128 or group["keySize"] not in suites:
            continue
        for case in group["tests"]:
            parts = suites[group["keySize"]], unhex(case["key"]), unhex(case["iv"])
            sealed = unhex(case["ct"]) + unhex(case["tag"])
            if case["result"] == "valid":
                valid += 1
                assert hpke.Sealer(*parts).seal(unhex(case["aad"]), unhex(case["msg"])) == sealed
                assert hpke.Opener(*parts).open(unhex(case["aad"]), sealed) == unhex(case["msg"])
            else:
                invalid += 1
                with pytest.raises(SealingError):
                    hpke.Opener(*parts).open(unhex(case["aad"]), sealed)
    assert valid > 50
    assert invalid > 20


def test_x25519_gives_what_wycheproof_expects_and_refuses_low_order_points(vectors: Path) -> None:
    """C-32: every zero shared secret of Wycheproof is refused, every other one agrees."""
    refused = agreed = 0
    for group in json.loads((vectors / "crypto" / "wycheproof_x25519_test.json").read_text())["testGroups"]:
        for case in group["tests"]:
            private, public = unhex(case["private"]), unhex(case["public"])
            if not any(unhex(case["shared"])):
                refused += 1
                key = hpke.PrivateKey.from_bytes(hpke.X25519, private)
                with pytest.raises(SealingError):
                    hpke.setup_recipient(key, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_128_GCM, public, b"")
            else:
                agreed += 1
                shared = hpke._exchange(X25519PrivateKey.from_private_bytes(private), public)
                assert shared.hex() == case["shared"]
    assert refused >= 15
    assert agreed >= 200


# --- against `cryptography`'s own HPKE, which has no contexts


@pytest.fixture(scope="module")
def foreign_keys() -> dict[int, tuple[Any, bytes, one_shot.KEM]]:
    """Recipients made by `cryptography`: private key, public bytes, its name of the KEM."""
    x25519, mlkem = X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()
    raw_x25519 = x25519.public_key().public_bytes_raw()
    return {
        hpke.X25519: (x25519, raw_x25519, one_shot.KEM.X25519),
        hpke.X_WING: (
            one_shot.MLKEM768X25519PrivateKey(mlkem, x25519),
            mlkem.public_key().public_bytes_raw() + raw_x25519,
            one_shot.KEM.MLKEM768_X25519,
        ),
    }


@BOTH_KEMS
@ALL_AEADS
def test_what_we_seal_another_implementation_opens(
    kem: int, aead: int, foreign_keys: dict[int, tuple[Any, bytes, one_shot.KEM]]
) -> None:
    private, public, name = foreign_keys[kem]
    enc, context = hpke.setup_sender(kem, hpke.KDF_HKDF_SHA256, aead, public, b"some info")
    suite = one_shot.Suite(name, one_shot.KDF.HKDF_SHA256, AEADS[aead])
    assert suite.decrypt(enc + context.seal(b"", b"plain"), private, info=b"some info") == b"plain"


@BOTH_KEMS
@ALL_AEADS
def test_what_another_implementation_seals_we_open(kem: int, aead: int) -> None:
    key = hpke.PrivateKey.generate(kem)
    public: Any = X25519PublicKey.from_public_bytes(key.public_bytes[-32:])
    name = one_shot.KEM.X25519
    if kem == hpke.X_WING:
        mlkem = MLKEM768PublicKey.from_public_bytes(key.public_bytes[:-32])
        public, name = one_shot.MLKEM768X25519PublicKey(mlkem, public), one_shot.KEM.MLKEM768_X25519
    sealed = one_shot.Suite(name, one_shot.KDF.HKDF_SHA256, AEADS[aead]).encrypt(b"plain", public, info=b"x")
    size = hpke.KEMS[kem].enc
    context = hpke.setup_recipient(key, hpke.KDF_HKDF_SHA256, aead, sealed[:size], b"x")
    assert context.open(b"", sealed[size:]) == b"plain"


# --- contexts


@BOTH_KEMS
@ALL_AEADS
def test_both_ends_agree_on_messages_and_on_exports(kem: int, aead: int) -> None:
    sender, recipient = pair(kem, aead)
    for n in range(3):
        assert recipient.open(b"aad", sender.seal(b"aad", b"message %d" % n)) == b"message %d" % n
    for length in (0, 1, 16, 32, 255):
        assert sender.export(b"one", length) == recipient.export(b"one", length)
        assert len(sender.export(b"one", length)) == length
    assert sender.export(b"one", 32) != sender.export(b"two", 32)


@settings(max_examples=50, deadline=None)
@given(messages=st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), max_size=8))
def test_any_sequence_of_messages_comes_back(messages: list[tuple[bytes, bytes]]) -> None:
    sender, recipient = pair(hpke.X25519)
    sealed = [(aad, sender.seal(aad, plaintext)) for aad, plaintext in messages]
    assert [recipient.open(aad, one) for aad, one in sealed] == [plaintext for _, plaintext in messages]


def test_messages_open_only_in_their_order() -> None:
    """C-29: neither skipped, nor repeated, nor turned round; and a failure does not move the sequence on."""
    sender, recipient = pair(hpke.X25519)
    first, second = sender.seal(b"", b"first"), sender.seal(b"", b"second")
    with pytest.raises(SealingError):
        recipient.open(b"", second)
    assert recipient.open(b"", first) == b"first"
    with pytest.raises(SealingError):
        recipient.open(b"", first)
    assert recipient.open(b"", second) == b"second"


@pytest.mark.parametrize("change", ["info", "aad", "bit", "cut", "key"])
def test_a_message_opens_only_as_it_was_sealed(change: str) -> None:
    key, other = hpke.PrivateKey.generate(hpke.X_WING), hpke.PrivateKey.generate(hpke.X_WING)
    kdf, aead = hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM
    enc, sender = hpke.setup_sender(hpke.X_WING, kdf, aead, key.public_bytes, b"info")
    sealed = sender.seal(b"aad", b"plain")
    recipient = hpke.setup_recipient(
        other if change == "key" else key, kdf, aead, enc, b"infO" if change == "info" else b"info"
    )
    if change == "bit":
        sealed = bytes([sealed[0] ^ 1]) + sealed[1:]
    if change == "cut":
        sealed = sealed[:-1]
    with pytest.raises(SealingError):
        recipient.open(b"aaD" if change == "aad" else b"aad", sealed)


def test_a_context_refuses_the_message_after_its_last_nonce() -> None:
    """C-31: RFC 9180 §5.2, message limit; the counter never wraps into a used nonce."""
    last = 2**96 - 2
    sender, recipient = pair(hpke.X25519)
    sender._sequence = itertools.count(last)
    recipient._sequence = last
    sealed = sender.seal(b"", b"the last one")
    assert recipient.open(b"", sealed) == b"the last one"
    with pytest.raises(SealingError):
        sender.seal(b"", b"one too many")
    with pytest.raises(SealingError):
        recipient.open(b"", sealed)


def test_contexts_and_private_keys_cannot_be_copied_or_pickled() -> None:
    """C-31: two owners of one context would use a nonce twice."""
    sender, recipient = pair(hpke.X25519)
    for held in (sender, recipient, hpke.PrivateKey.generate(hpke.X_WING)):
        for take in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="one owner"):
                take(held)


def test_no_secret_shows_in_a_representation() -> None:
    seed = b"seed that nobody should ever see"
    key = hpke.PrivateKey.from_bytes(hpke.X_WING, seed)
    sender, recipient = pair(hpke.X25519)
    shown = " ".join(map(repr, (key, sender, recipient)))
    assert seed.hex() not in shown
    assert repr(seed) not in shown
    assert not hasattr(key, "__dict__")
    assert not hasattr(sender, "__dict__")


@BOTH_KEMS
def test_every_message_has_an_encapsulation_of_its_own(kem: int) -> None:
    """C-31: no (enc, sequence) pair comes twice, to one recipient, over many requests."""
    key = hpke.PrivateKey.generate(kem)
    rounds = 5000
    seen = {
        hpke.setup_sender(kem, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM, key.public_bytes, b"")[0][-32:]
        for _ in range(rounds)
    }
    assert len(seen) == rounds


@pytest.mark.slow
def test_a_hundred_thousand_messages_have_encapsulations_of_their_own() -> None:
    """C-31: the long form."""
    key = hpke.PrivateKey.generate(hpke.X25519)
    rounds = 100_000
    seen = {
        hpke.setup_sender(hpke.X25519, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_128_GCM, key.public_bytes, b"")[0]
        for _ in range(rounds)
    }
    assert len(seen) == rounds


# --- hostile keys


def recipient_of(key: hpke.PrivateKey, enc: bytes) -> hpke.RecipientContext:
    return hpke.setup_recipient(key, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM, enc, b"")


def sender_to(kem: int, public: bytes) -> tuple[bytes, hpke.SenderContext]:
    return hpke.setup_sender(kem, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM, public, b"")


@pytest.mark.parametrize("point", LOW_ORDER)
@BOTH_KEMS
def test_a_low_order_point_is_refused_in_keys_and_in_encapsulations(kem: int, point: bytes) -> None:
    """C-32: also as the X25519 half of X-Wing, where ML-KEM alone would still have made a secret."""
    key = hpke.PrivateKey.generate(kem)
    with pytest.raises(SealingError):
        sender_to(kem, key.public_bytes[:-32] + point)
    enc, _ = sender_to(kem, key.public_bytes)
    with pytest.raises(SealingError):
        recipient_of(key, enc[:-32] + point)


@pytest.mark.parametrize("change", [-1, 1, -32, 32], ids=str)
@BOTH_KEMS
def test_keys_and_encapsulations_of_a_wrong_length_are_refused(kem: int, change: int) -> None:
    """C-32: one byte short, one too many, a half missing, a half too many, and nothing at all."""
    key = hpke.PrivateKey.generate(kem)
    enc, _ = sender_to(kem, key.public_bytes)

    def resized(data: bytes) -> bytes:
        return data[:change] if change < 0 else data + bytes(change)

    for public in (resized(key.public_bytes), b""):
        with pytest.raises(MalformedMessage):
            sender_to(kem, public)
    for one in (resized(enc), b""):
        with pytest.raises(MalformedMessage):
            recipient_of(key, one)


@pytest.mark.parametrize("at", [0, 100, 767])
def test_an_ml_kem_key_with_a_coefficient_beyond_the_modulus_is_refused(at: int) -> None:
    """C-32: FIPS 203 §7.2, modulus check, on the first, some middle and the last coefficient."""
    public = bytearray(hpke.PrivateKey.generate(hpke.X_WING).public_bytes)
    # Two coefficients of 12 bits lie in three bytes; 3329 is the least that is not reduced.
    triple = 3 * (at // 2)
    packed = int.from_bytes(public[triple : triple + 3], "little")
    shift = 12 * (at % 2)
    packed = packed & ~(0xFFF << shift) | 3329 << shift
    public[triple : triple + 3] = packed.to_bytes(3, "little")
    with pytest.raises(MalformedMessage):
        sender_to(hpke.X_WING, bytes(public))


def test_an_altered_ml_kem_ciphertext_opens_nothing() -> None:
    """C-32: implicit rejection gives another secret, and with it no plaintext."""
    key = hpke.PrivateKey.generate(hpke.X_WING)
    enc, sender = sender_to(hpke.X_WING, key.public_bytes)
    sealed = sender.seal(b"", b"plain")
    with pytest.raises(SealingError):
        recipient_of(key, bytes([enc[0] ^ 1]) + enc[1:]).open(b"", sealed)


def test_algorithms_that_are_not_spoken_are_refused() -> None:
    key = hpke.PrivateKey.generate(hpke.X25519)
    for kem, kdf, aead in (
        (0x0010, 1, 1),
        (hpke.X25519, 2, 1),
        (hpke.X25519, 1, 0xFFFF),
        (hpke.X25519, 1, 9),
    ):
        with pytest.raises(SealingError):
            hpke.setup_sender(kem, kdf, aead, key.public_bytes, b"")
    with pytest.raises(SealingError):
        hpke.PrivateKey.generate(0x0010)
    with pytest.raises(ValueError, match="32 bytes"):
        hpke.PrivateKey.from_bytes(hpke.X_WING, b"short")
