"""Real documents of real enclaves, and the verdict that each must get."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest

from blindbox_attestation.nitro import Document, NitroPolicy, appraise
from blindbox_attestation.nitro.document import IMAGE_PCRS
from tests.kit.verdict import verdict

RELEASE = bytes(range(48))

ACCEPTED = ["valid_2025-12", "valid_pcr8_signed_image"]
DEBUG = ["debug_zero_pcrs", "valid_nonce_userdata_debug"]
GENUINE = [*ACCEPTED, *DEBUG]


def read(vectors: Path, name: str) -> bytes:
    return (vectors / "nitro" / f"{name}.cbor").read_bytes()


def policy_for(data: bytes) -> NitroPolicy:
    image = Document.parse(data).pcrs[0]
    return NitroPolicy(pcrs={0: {image if any(image) else RELEASE}})


def code_of(data: bytes, policy: NitroPolicy | None = None, now: datetime | None = None) -> str:
    """The code that an appraisal at the document's own time ends with, or "accepted"."""
    return verdict(
        lambda: appraise(data, {}, policy or policy_for(data), now=now or Document.parse(data).timestamp)
    )


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_genuine_document_is_accepted_at_its_time(vectors: Path, name: str) -> None:
    data = read(vectors, name)
    told = cbor2.loads(cbor2.loads(data)[2])
    claims = appraise(data, {}, policy_for(data), now=Document.parse(data).timestamp)
    assert claims.measurement == told["pcrs"][0]
    assert dict(claims.pcrs) == told["pcrs"]
    assert claims.module_id == told["module_id"]
    assert claims.nonce == (told["nonce"] or b"")


@pytest.mark.parametrize("name", DEBUG)
def test_a_genuine_document_of_a_debug_enclave_is_refused(vectors: Path, name: str) -> None:
    """C-7: also by a policy that only asks who signed the image."""
    data = read(vectors, name)
    assert not any(any(Document.parse(data).pcrs[number]) for number in IMAGE_PCRS)
    assert code_of(data) == "debug-allowed"
    assert code_of(data, NitroPolicy(pcrs={8: {RELEASE}})) == "debug-allowed"


def test_a_document_with_a_flipped_signature_is_refused(vectors: Path) -> None:
    """C-15."""
    assert code_of(read(vectors, "valid_2025-12_badsig")) == "bad-signature"


def test_a_document_under_a_root_of_its_own_is_refused(vectors: Path) -> None:
    """C-13: its chain is good, and begins at nobody's root."""
    data = read(vectors, "custom_root")
    assert code_of(data) == "unpinned-root"


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_document_is_of_no_use_a_day_later(vectors: Path, name: str) -> None:
    """C-1, C-11: the time is the caller's, never one out of the document or its certificates."""
    data = read(vectors, name)
    told = Document.parse(data).timestamp
    assert code_of(data, now=told + timedelta(minutes=6)) == "outside-validity"
    assert code_of(data, now=told + timedelta(days=1)) == "certificate-not-valid-now"
    assert code_of(data, now=datetime(2026, 7, 1, tzinfo=UTC)) == "certificate-not-valid-now"
    assert code_of(data, now=told - timedelta(days=1)) == "certificate-not-valid-now"


def test_the_nonce_of_a_genuine_document_is_compared_whole(vectors: Path) -> None:
    """C-1, C-5."""
    data = read(vectors, "valid_pcr8_signed_image")
    claims = appraise(data, {}, policy_for(data), now=Document.parse(data).timestamp)
    assert len(claims.nonce) == 256
    assert claims.carries(claims.nonce)
    assert not claims.carries(claims.nonce[:-1])
    silent = read(vectors, "valid_2025-12")
    without = appraise(silent, {}, policy_for(silent), now=Document.parse(silent).timestamp)
    assert not without.carries(claims.nonce)


def test_the_signer_and_the_instance_of_a_genuine_document_can_be_named(vectors: Path) -> None:
    """C-51: the instance by its id, as its owner knows it."""
    data = read(vectors, "valid_pcr8_signed_image")
    signer = Document.parse(data).pcrs[8]
    asked = NitroPolicy(pcrs={8: {signer}}, instance_ids={"i-020b6af9246d90e92"})
    assert code_of(data, asked) == "accepted"
    assert code_of(data, replace(asked, instance_ids={"i-020b6af9246d90e93"})) == "instance-not-listed"
    assert code_of(data, replace(asked, pcrs={8: {RELEASE}})) == "pcr-mismatch"


@pytest.mark.parametrize("name", GENUINE)
def test_every_truncation_of_a_genuine_document_is_refused(vectors: Path, name: str) -> None:
    """C-19."""
    data = read(vectors, name)
    policy, now = policy_for(data), Document.parse(data).timestamp
    assert {code_of(data[:size], policy, now) for size in range(len(data))} == {"malformed-cose"}


def test_a_flipped_bit_in_any_byte_of_a_genuine_document_is_refused(vectors: Path) -> None:
    """C-15: also in the end mark of its payload, and in every certificate."""
    data = read(vectors, "valid_2025-12")
    policy, now = policy_for(data), Document.parse(data).timestamp
    for at in range(len(data)):
        flipped = data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]
        assert code_of(flipped, policy, now) != "accepted", at


def test_a_document_spliced_from_two_genuine_ones_is_refused(vectors: Path) -> None:
    """C-13: the certificates of one document do not vouch for another's payload."""
    one, other = (read(vectors, name) for name in ACCEPTED)
    protected, unprotected, payload, _ = cbor2.loads(one)
    spliced = cbor2.dumps([protected, unprotected, payload, cbor2.loads(other)[3]])
    assert code_of(spliced) == "bad-signature"
