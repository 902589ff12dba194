"""Nitro documents as bytes: what is read, and that everything else is refused where it is found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation import cbor
from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.nitro import Document, appraise
from blindbox_attestation.nitro.document import MAX_DOCUMENT
from tests.kit import NOON
from tests.kit.aws import PCRS, PROTECTED, FakeAws, pcr
from tests.kit.verdict import verdict

AWS = FakeAws()
GOOD = AWS.document(user_data=b"user", nonce=b"nonce", public_key=b"key")


def code_of(data: bytes) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(data, {}, AWS.policy(), now=NOON))


def signed(*parts: bytes) -> bytes:
    """A payload put together by hand, and well signed."""
    return AWS.sign(b"".join(parts))


def pairs(leave_out: str = "", **changes: object) -> bytes:
    told = AWS.told(**changes)
    return b"".join(cbor.encode(name) + cbor.encode(one) for name, one in told.items() if name != leave_out)


def test_a_document_is_read() -> None:
    document = Document.parse(GOOD)
    assert (document.user_data, document.nonce, document.public_key) == (b"user", b"nonce", b"key")
    assert document.timestamp == NOON
    assert dict(document.pcrs) == PCRS
    assert len(document.cabundle) == 4
    assert code_of(GOOD) == "accepted"


def test_another_cbor_library_reads_the_same() -> None:
    protected, unprotected, payload, signature = cbor2.loads(GOOD)
    document = Document.parse(GOOD)
    assert (document.protected, {}, document.payload) == (protected, unprotected, payload)
    assert document.signature == signature
    assert document.signed == cbor2.dumps(["Signature1", protected, b"", payload])
    told = cbor2.loads(payload)
    assert told["pcrs"] == dict(document.pcrs)
    assert tuple(told["cabundle"]) == document.cabundle


def test_the_tag_of_cose_may_stand_before_it() -> None:
    payload = cbor.encode(AWS.told())
    assert code_of(AWS.sign(payload, tagged=True)) == "accepted"
    assert code_of(b"\xd1" + GOOD) == "malformed-cose"
    assert code_of(b"\xd2\xd2" + GOOD) == "malformed-cose"


def test_an_end_mark_in_place_of_the_payload_s_length_is_read_as_aws_writes_it() -> None:
    assert code_of(signed(b"\xbf", pairs(), b"\xff")) == "accepted"


@pytest.mark.parametrize("absent", ["public_key", "user_data", "nonce"])
def test_what_an_enclave_did_not_give_may_be_absent_null_or_empty(absent: str) -> None:
    for data in (
        AWS.document(leave_out=(absent,)),
        AWS.document(**{absent: None}),
        AWS.document(**{absent: b""}),
    ):
        assert getattr(Document.parse(data), absent) == b""
        assert code_of(data) == "accepted"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: signed(b"\xaa", pairs()), "cut short"),
        (lambda: signed(b"\xaa", pairs(), cbor.encode("digest"), cbor.encode("SHA384")), "twice"),
        (lambda: signed(b"\xbf", pairs(), cbor.encode("nonce"), b"\xf6", b"\xff"), "twice"),
        (lambda: signed(b"\xbf", pairs()), "cut short"),
        (lambda: signed(b"\xa9", pairs(), b"\x00"), "after the end"),
        (lambda: signed(b"\xb9\x00\x09", pairs()), "shortest"),
        (lambda: AWS.document(pcrs={**PCRS, 32: pcr("x")}), "a register '32'"),
        (lambda: AWS.document(pcrs={**PCRS, -1: pcr("x")}), "a register '-1'"),
        (lambda: AWS.document(pcrs={**PCRS, "0": pcr("x")}), "a register '0'"),
        (lambda: AWS.document(pcrs={**PCRS, 5: bytes(32)}), "32 bytes for PCR5"),
        (lambda: AWS.document(pcrs={**PCRS, 5: bytes(64)}), "64 bytes for PCR5"),
        (lambda: AWS.document(pcrs={**PCRS, 5: "x" * 48}), "str for PCR5"),
        (lambda: AWS.document(pcrs={0: PCRS[0], 1: PCRS[1]}), "no PCR2"),
        (lambda: AWS.document(pcrs={}), "no PCR0"),
        (lambda: AWS.document(pcrs=[PCRS[0]] * 16), "tuple for pcrs"),
        (lambda: AWS.document(digest="SHA256"), "another digest"),
        (lambda: AWS.document(digest="sha384"), "another digest"),
        (lambda: AWS.document(timestamp=0), "timestamp 0"),
        (lambda: AWS.document(timestamp=-1), "timestamp -1"),
        (lambda: AWS.document(timestamp=1 << 63), "timestamp 9223372036854775808"),
        (lambda: AWS.document(timestamp="now"), "str for the timestamp"),
        (lambda: AWS.document(module_id=""), "module_id"),
        (lambda: AWS.document(module_id="i" * 129), "module_id"),
        (lambda: AWS.document(module_id="i-\x1b[31m"), "module_id"),
        (lambda: AWS.document(module_id=b"i-1"), "bytes for module_id"),
        (lambda: AWS.document(certificate=b""), "0 bytes for the certificate"),
        (lambda: AWS.document(certificate=bytes(1025)), "1025 bytes for the certificate"),
        (lambda: AWS.document(certificate=None), "NoneType for the certificate"),
        (lambda: AWS.document(cabundle=[]), "0 certificates in its cabundle"),
        (lambda: AWS.document(cabundle=[b"\x30"] * 9), "9 certificates in its cabundle"),
        (lambda: AWS.document(cabundle=[b""]), "0 bytes for a certificate"),
        (lambda: AWS.document(cabundle=bytes(4)), "bytes for cabundle"),
        (lambda: AWS.document(user_data=bytes(513)), "513 bytes for user_data"),
        (lambda: AWS.document(nonce=bytes(513)), "513 bytes for nonce"),
        (lambda: AWS.document(public_key=bytes(1025)), "1025 bytes for public_key"),
        (lambda: AWS.document(nonce="nonce"), "str for nonce"),
        (lambda: AWS.document(extra=1), "has the keys"),
        (lambda: AWS.document(Nonce=b"x"), "has the keys"),
        (lambda: AWS.sign(cbor.encode([1, 2])), "no map"),
        (lambda: AWS.sign(b""), "cut short"),
        (lambda: AWS.sign(cbor.encode(AWS.told()), unprotected={4: b"kid"}), "unprotected"),
        (lambda: cbor.encode((PROTECTED, {}, cbor.encode(AWS.told()))), "array of four"),
        (lambda: cbor.encode((PROTECTED, {}, cbor.encode(AWS.told()), bytes(96), 0)), "array of four"),
        (lambda: cbor.encode({1: 2}), "array of four"),
        (lambda: cbor.encode((PROTECTED, {}, None, bytes(96))), "NoneType for the payload"),
        (lambda: cbor.encode((PROTECTED, {}, AWS.told(), bytes(96))), "dict for the payload"),
        (lambda: cbor.encode((PROTECTED, None, cbor.encode(AWS.told()), bytes(96))), "unprotected"),
        (lambda: cbor.encode(({1: -35}, {}, cbor.encode(AWS.told()), bytes(96))), "dict for the protected"),
        (lambda: cbor.encode((PROTECTED, {}, cbor.encode(AWS.told()), bytes(95))), "95 bytes for the sig"),
        (lambda: cbor.encode((PROTECTED, {}, cbor.encode(AWS.told()), bytes(97))), "97 bytes for the sig"),
        (lambda: b"\x9f" + GOOD[1:] + b"\xff", "indefinite"),
        (lambda: bytes(MAX_DOCUMENT + 1), "at most 16384"),
        (lambda: b"", "cut short"),
    ],
)
def test_another_spelling_or_content_is_refused(make: Callable[[], bytes], why: str) -> None:
    """C-17, C-18: duplicate keys, other lengths, other types, other sizes; also when they are well signed."""
    with pytest.raises(MalformedEvidence, match=why) as caught:
        Document.parse(make())
    assert caught.value.code == "malformed-cose"


@pytest.mark.parametrize("absent", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
def test_nothing_that_is_needed_may_be_missing(absent: str) -> None:
    assert code_of(AWS.document(leave_out=(absent,))) == "malformed-cose"


@pytest.mark.parametrize(
    "header",
    [
        {1: -7},  # ES256
        {1: -36},  # ES512
        {1: 35},
        {1: 5},  # HMAC
        {1: None},
        {1: "ES384"},
        {},
        {1: -35, 4: b"kid"},
        {2: -35},
        [1, -35],
    ],
)
def test_another_algorithm_is_refused_whatever_the_signature(header: object) -> None:
    """C-14: the algorithm is fixed; what the header says is only compared with it."""
    data = AWS.sign(cbor.encode(AWS.told()), protected=cbor.encode(header))
    assert code_of(data) == "unsupported-signature-algorithm"


def test_a_header_with_a_second_spelling_is_refused() -> None:
    """C-17: well signed, and not in the shortest form."""
    payload = cbor.encode(AWS.told())
    for header in (b"\xa1\x01\x39\x00\x22", b"\xbf\x01\x38\x22\xff", b"\xa2\x01\x38\x22\x01\x38\x22"):
        assert code_of(AWS.sign(payload, protected=header)) == "malformed-cose"


def test_every_truncation_is_refused() -> None:
    """C-19: at every length, with the same code."""
    assert {code_of(GOOD[:size]) for size in range(len(GOOD))} == {"malformed-cose"}
    assert code_of(GOOD + b"\x00") == "malformed-cose"


def test_a_flipped_bit_in_any_byte_is_refused() -> None:
    """C-15: every byte of a document is read or signed; none is without a meaning."""
    accepted = [
        at
        for at in range(len(GOOD))
        if code_of(GOOD[:at] + bytes((GOOD[at] ^ 1 << at % 8,)) + GOOD[at + 1 :]) == "accepted"
    ]
    assert accepted == []


@settings(max_examples=1000)
@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_typed_error(data: bytes) -> None:
    """C-18: also as the payload of something that is otherwise well made."""
    assert code_of(data) != "accepted"
    assert code_of(AWS.sign(data)) == "malformed-cose"


def test_the_time_is_told_to_the_millisecond() -> None:
    data = AWS.document(timestamp=int(NOON.timestamp() * 1000) + 578)
    assert Document.parse(data).timestamp == NOON + timedelta(milliseconds=578)


def test_what_is_as_long_as_it_may_be_or_as_short_is_read() -> None:
    """C-18: the bounds themselves belong to what is read."""
    for size in (1, 128):
        assert len(Document.parse(AWS.document(module_id="i" * size)).module_id) == size
    for count, size in ((1, 1), (1, 1024), (8, 1)):
        told = Document.parse(AWS.document(certificate=bytes(size), cabundle=[bytes(size)] * count))
        assert (len(told.certificate), [len(one) for one in told.cabundle]) == (size, [size] * count)
    told = Document.parse(AWS.document(public_key=bytes(1024), user_data=bytes(512), nonce=bytes(512)))
    assert (len(told.public_key), len(told.user_data), len(told.nonce)) == (1024, 512, 512)
    with pytest.raises(MalformedEvidence, match="after the end"):
        Document.parse(bytes(MAX_DOCUMENT))


def test_what_an_enclave_may_give_may_all_be_missing() -> None:
    assert code_of(AWS.document(leave_out=("public_key", "user_data", "nonce"))) == "accepted"


def test_a_name_of_the_module_is_of_plain_letters() -> None:
    """C-17: none that looks like another."""
    assert code_of(AWS.document(module_id="i-\u0430bc")) == "malformed-cose"
