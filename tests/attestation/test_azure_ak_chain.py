"""Azure's own certificates for the TPM's key: asked for or not, but never half."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from blindbox_attestation.errors import AttestationError
from tests.kit import NOON
from tests.kit.amd import FakeAmd, chip_key
from tests.kit.azure import FakeAzure, ak_of

OTHER = FakeAzure(FakeAmd(), name="another machine")


@pytest.fixture
def azure() -> FakeAzure:
    return FakeAzure(FakeAmd())


def code_of(azure: FakeAzure, chain: bytes | None, **changes: Any) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    policy = azure.azure_policy(**{"ak_certificate": "required", "roots": azure.roots, **changes})
    try:
        claims = azure.appraise(azure.evidence(), policy, ak_chain=chain)
    except AttestationError as error:
        return error.code
    assert claims.ak_certified == (policy.ak_certificate == "required")
    return "accepted"


def test_a_chain_to_the_pinned_root_is_accepted(azure: FakeAzure) -> None:
    assert code_of(azure, azure.ak_chain()) == "accepted"


@pytest.mark.parametrize("algorithm", [SHA384(), SHA512()])
def test_both_hashes_that_azure_uses_are_understood(azure: FakeAzure, algorithm: Any) -> None:
    leaf = azure.certificate("ak", hash_algorithm=algorithm)
    assert code_of(azure, azure.ak_chain(ak=leaf)) == "accepted"


def test_zeros_after_the_chain_are_the_padding_of_the_tpms_index(azure: FakeAzure) -> None:
    assert code_of(azure, azure.ak_chain() + bytes(500)) == "accepted"


def test_padding_alone_is_no_chain(azure: FakeAzure) -> None:
    """C-19: the index of a machine that was given no certificate."""
    assert code_of(azure, bytes(500)) == "malformed-certificate"


def test_a_policy_that_does_not_ask_does_not_look(azure: FakeAzure) -> None:
    """Machines of before 2026 have certificates of issuers that nobody pins."""
    for chain in (None, b"", b"no certificate", OTHER.ak_chain()):
        assert code_of(azure, chain, ak_certificate="unused") == "accepted"


def test_a_certificate_for_another_key_is_refused(azure: FakeAzure) -> None:
    """C-2: genuine, and another machine's."""
    assert code_of(azure, OTHER.ak_chain()) == "wrong-attestation-key"


@pytest.mark.parametrize("chain", [None, b""])
def test_no_chain_is_refused(azure: FakeAzure, chain: bytes | None) -> None:
    assert code_of(azure, chain) == "missing-endorsement"


def test_a_root_that_is_not_pinned_is_refused(azure: FakeAzure) -> None:
    """C-13."""
    again = azure.certificate("root", not_after=NOON + timedelta(days=1))
    assert code_of(azure, azure.ak_chain(root=again)) == "unpinned-root"
    only_leaf = azure.certificate("ak")
    assert code_of(azure, only_leaf) == "unpinned-root"


@pytest.mark.parametrize(
    ("who", "change", "code"),
    [
        ("ak", {"signer": "another"}, "bad-certificate-signature"),
        ("authority", {"signer": "another"}, "bad-certificate-signature"),
        ("ak", {"hash_algorithm": SHA256()}, "bad-certificate-signature"),  # C-14
        ("ak", {"issuer": "root", "signer": "authority"}, "wrong-issuer"),
        ("ak", {"not_after": NOON - timedelta(days=1)}, "certificate-not-valid-now"),
        ("authority", {"not_before": NOON + timedelta(days=1)}, "certificate-not-valid-now"),
        ("ak", {"authority": True}, "wrong-certificate-kind"),
        ("authority", {"authority": False}, "wrong-certificate-kind"),
        ("ak", {"public_key": ak_of("another").public_key()}, "wrong-attestation-key"),
    ],
)
def test_one_certificate_that_is_otherwise_is_refused(
    azure: FakeAzure, who: str, change: dict[str, Any], code: str
) -> None:
    """C-13, C-14: one change at a time."""
    assert code_of(azure, azure.ak_chain(**{who: azure.certificate(who, **change)})) == code


@pytest.mark.parametrize("tail", [b"\x01", b"\x00\x01", b"\x30", b"\x30\x03\x01", bytes(20_000)])
def test_other_bytes_than_padding_are_refused(azure: FakeAzure, tail: bytes) -> None:
    """C-17, C-18."""
    expected = "accepted" if not any(tail) else "malformed-certificate"
    assert code_of(azure, azure.ak_chain() + tail) == expected


def test_every_truncation_of_the_chain_is_refused(azure: FakeAzure) -> None:
    """C-19."""
    chain = azure.ak_chain()
    cuts = range(1, len(chain), 61)
    codes = {code_of(azure, chain[:size]) for size in cuts}
    assert codes == {"malformed-certificate"}
    leaf = len(azure.certificate("ak"))
    assert code_of(azure, chain[:leaf]) == "unpinned-root"


def test_an_authority_with_a_short_key_is_refused(azure: FakeAzure) -> None:
    """C-14."""
    short = ak_of("a short one", 1024)
    chain = azure.ak_chain(
        ak=azure.certificate("ak", signer=short),
        authority=azure.certificate("authority", public_key=short.public_key()),
    )
    assert code_of(azure, chain) == "bad-certificate-signature"


def test_an_authority_with_a_key_of_another_kind_is_refused(azure: FakeAzure) -> None:
    """C-14."""
    authority = azure.certificate("authority", public_key=chip_key("elliptic").public_key())
    assert code_of(azure, azure.ak_chain(authority=authority)) == "bad-certificate-signature"
