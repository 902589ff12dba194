"""A real token of a real Confidential Space, and the verdict that each form of it must get."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blindbox_attestation.gcp import GcpPolicy, appraise
from tests.kit.verdict import verdict

ISSUED = datetime.fromtimestamp(1757060250, UTC)
EXPIRES = datetime.fromtimestamp(1757063850, UTC)
THEN = datetime(2025, 9, 5, 8, 20, tzinfo=UTC)
NOW = datetime(2026, 7, 1, tzinfo=UTC)

POLICY = GcpPolicy(
    audiences={"z08381475938604996746"},
    image_digests={"sha256:e2e5e3672f416ac9ca71aa639abf86db0b713729a48c125a925af6c808b20b5d"},
    hardware={"GCP_INTEL_TDX"},
    minimum_version=250800,
    tcb_statuses={"UpToDate"},
    project_ids={"oak-examples-477357"},
    service_accounts={"724467010559-compute@developer.gserviceaccount.com"},
)
NONCE = b"75a91c8dbe289f190d5e70ab1cb70c93cc14d7243f0ef3ff5326a622ead220a6"


@pytest.fixture(scope="module")
def token(vectors: Path) -> bytes:
    return read(vectors, "confidential_space_token")


def read(vectors: Path, name: str) -> bytes:
    return (vectors / "gcp" / f"{name}.jwt").read_bytes()


def code_of(data: bytes, policy: GcpPolicy = POLICY, now: datetime = THEN) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(data, {}, policy, now=now))


def test_a_genuine_token_is_accepted_in_its_hour(token: bytes) -> None:
    claims = appraise(token, {}, POLICY, now=THEN)
    assert claims.measurement.hex().startswith("e2e5e367")
    assert claims.carries(NONCE)
    assert not claims.carries(NONCE[:-1])
    assert (claims.hardware, claims.software_version) == ("GCP_INTEL_TDX", 250800)


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (ISSUED - timedelta(seconds=61), "token-not-valid-now"),
        (ISSUED - timedelta(seconds=60), "accepted"),
        (EXPIRES + timedelta(seconds=59), "accepted"),
        (EXPIRES + timedelta(seconds=60), "token-not-valid-now"),
        (NOW, "certificate-not-valid-now"),
    ],
)
def test_a_genuine_token_is_of_no_use_outside_its_hour(token: bytes, now: datetime, code: str) -> None:
    """C-1, C-11, C-24."""
    assert code_of(token, now=now) == code


def test_a_token_without_an_algorithm_is_refused(vectors: Path) -> None:
    """C-14."""
    assert code_of(read(vectors, "token_alg_none")) == "unsupported-signature-algorithm"


def test_a_token_with_another_debug_status_is_refused(vectors: Path) -> None:
    """C-7, C-15: for its signature, before its claims are believed."""
    assert code_of(read(vectors, "token_tampered_dbgstat")) == "bad-signature"


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"audiences": {"another"}}, "wrong-audience"),
        ({"hardware": {"GCP_AMD_SEV_SNP"}}, "hardware-model"),
        ({"image_digests": {"sha256:" + "0" * 64}}, "measurement-mismatch"),
        ({"minimum_version": 250801}, "tcb-too-old"),
        ({"tcb_statuses": {"OutOfDate"}}, "tcb-status"),
        ({"support_attributes": {"EXPERIMENTAL"}}, "support-level"),
        ({"project_ids": {"another"}}, "instance-not-listed"),
        ({"service_accounts": {"another"}}, "instance-not-listed"),
        ({"instance_ids": {"3087957179640521392"}}, "accepted"),
    ],
)
def test_a_genuine_token_is_refused_where_the_policy_asks_for_something_else(
    token: bytes, wish: dict[str, set[str] | int], code: str
) -> None:
    """C-6, C-51."""
    assert code_of(token, replace(POLICY, **wish)) == code


def test_a_root_of_its_own_is_refused(token: bytes) -> None:
    """C-13: the same token, with another root pinned."""
    assert code_of(token, replace(POLICY, roots={bytes(32): "nobody"})) == "unpinned-root"


def test_every_truncation_of_a_genuine_token_is_refused(token: bytes) -> None:
    """C-19."""
    codes = {code_of(token[:size]) for size in range(len(token))}
    assert codes == {"malformed-token", "bad-signature"}


def test_a_flipped_bit_in_any_byte_of_a_genuine_token_is_refused(token: bytes) -> None:
    """C-15."""
    for at in range(len(token)):
        flipped = token[:at] + bytes((token[at] ^ 1 << at % 8,)) + token[at + 1 :]
        assert code_of(flipped) != "accepted", at
