"""Genuine TDX quotes, at the time at which they were genuine: every row of the manifest gets its verdict."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation.errors import AttestationError, DebugAllowed, RevokedEvidence, TcbTooOld
from blindbox_attestation.tdx import Quote, TdxClaims, TdxPolicy, appraise
from blindbox_attestation.walk import Walk

COS_ADVISORIES = frozenset(f"INTEL-SA-0{number}" for number in (1010, 1036, 1076, 1079, 1099, 1103, 1111))


def judged(
    vectors: Path, quote: str, collateral: str, at: int, *, walk: Walk | None = None, **wishes: Any
) -> TdxClaims:
    """What comes of the quote at that second, under a policy that names its MRTD."""
    data = (vectors / "tdx" / quote).read_bytes()
    mrtd = wishes.pop("mrtd", {Quote.parse(data).mrtd})
    policy = TdxPolicy(**{"mrtd": mrtd, "minimum_tcb_evaluation": 17, **wishes})
    endorsements = {"collateral": (vectors / "tdx" / collateral).read_bytes()}
    return appraise(data, endorsements, policy, now=datetime.fromtimestamp(at, UTC), walk=walk)


V4 = ("v4_uptodate_quote.bin", "v4_uptodate_collateral.json", 1750414563)
V5 = ("v5_td15_uptodate_quote.bin", "fmspc_90c06f_2026-02_collateral.json", 1771498731)
NO_MATCH = ("v5_nomatch_tcb_quote.bin", "fmspc_90c06f_2026-02_collateral.json", 1771498731)
DEBUG = ("v4_debug_td_quote.bin", "fmspc_50806f_2026-03_collateral.json", 1773786090)
COS = ("v4_gcp_cos113_quote.bin", "fmspc_00806f_2026-01_collateral.json", 1769590905)


def test_a_genuine_quote_of_version_4_is_accepted(vectors: Path) -> None:
    walk = Walk()
    claims = judged(vectors, *V4, walk=walk)
    assert (claims.status, claims.advisories, claims.tcb_evaluation) == ("UpToDate", frozenset(), 17)
    assert claims.mrtd.hex().startswith("91eb2b44d141d4ec")
    assert claims.report_data.hex().startswith("9a9d48e7f6799642")
    assert claims.tee_tcb_svn.hex() == "06010300000000000000000000000000"
    assert claims.fmspc.hex() == "b0c06f000000"
    assert claims.mrservicetd is None
    assert [(step.number, step.outcome) for step in walk.steps] == [
        *((number, "passed") for number in (3, 4, 5, 6, 7, 9, 10, 11, 12)),
        (13, "not asked"),
    ]


def test_a_genuine_quote_of_version_5_is_accepted(vectors: Path) -> None:
    claims = judged(vectors, *V5)
    assert (claims.status, claims.quote_version, claims.tcb_evaluation) == ("UpToDate", 5, 18)
    assert claims.mrtd.hex().startswith("7348651a34b2d2d3")
    assert claims.mrservicetd == bytes(48)


@pytest.mark.parametrize(
    ("quote", "code"),
    [
        ("v4_uptodate_quote_tampered_rd.bin", "bad-signature"),
        ("v4_uptodate_quote_tampered_qesig.bin", "bad-qe-signature"),
    ],
)
def test_a_genuine_quote_with_one_byte_changed_is_refused(vectors: Path, quote: str, code: str) -> None:
    """C-15, C-16: report data, and the quoting enclave's report."""
    with pytest.raises(AttestationError) as caught:
        judged(vectors, quote, *V4[1:])
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("later", "code"),
    [(timedelta(days=400), "crl-not-valid-now"), (timedelta(days=-10), "crl-not-valid-now")],
)
@pytest.mark.parametrize("vector", [V4, V5, COS], ids=["v4", "v5", "cos"])
def test_a_genuine_quote_is_refused_when_its_collateral_is_too_old_or_from_the_future(
    vectors: Path, vector: tuple[str, str, int], later: timedelta, code: str
) -> None:
    """C-11: the lists of revoked certificates come from the same day as the rest."""
    quote, collateral, at = vector
    with pytest.raises(RevokedEvidence) as caught:
        judged(vectors, quote, collateral, at + int(later.total_seconds()))
    assert caught.value.code == code


def test_a_genuine_quote_of_a_machine_that_no_level_describes_is_refused(vectors: Path) -> None:
    with pytest.raises(AttestationError) as caught:
        judged(vectors, *NO_MATCH)
    assert (caught.value.code, caught.value.steps[-1].number) == ("tcb-level-unknown", 6)


def test_a_genuine_quote_of_a_guest_under_debug_is_refused(vectors: Path) -> None:
    """C-7: genuine in every other respect; it fails where the host could look inside, and for that reason."""
    with pytest.raises(DebugAllowed) as caught:
        judged(vectors, *DEBUG)
    assert caught.value.code == "debug-allowed"
    assert [step.number for step in caught.value.steps] == [3, 4, 5, 6, 7, 10]


def test_a_genuine_quote_of_an_out_of_date_machine_is_refused_unless_the_policy_says_so(
    vectors: Path,
) -> None:
    """C-12: and then only if it names every advisory."""
    with pytest.raises(TcbTooOld) as caught:
        judged(vectors, *COS)
    assert caught.value.code == "tcb-status"
    statuses = {"UpToDate", "OutOfDate"}
    with pytest.raises(TcbTooOld) as caught:
        judged(vectors, *COS, statuses=statuses)
    assert caught.value.code == "advisory-not-accepted"
    with pytest.raises(TcbTooOld) as caught:
        judged(vectors, *COS, statuses=statuses, accepted_advisories=COS_ADVISORIES - {"INTEL-SA-01111"})
    assert caught.value.code == "advisory-not-accepted"
    claims = judged(vectors, *COS, statuses=statuses, accepted_advisories=COS_ADVISORIES)
    assert (claims.status, claims.advisories) == ("OutOfDate", COS_ADVISORIES)


def test_a_genuine_quote_of_an_sgx_enclave_is_no_tdx_quote(vectors: Path) -> None:
    """C-13: also with its own collateral."""
    with pytest.raises(AttestationError) as caught:
        judged(vectors, "sgx_v3_quote.bin", "sgx_v3_collateral.json", 1750416971, mrtd={bytes(48)})
    assert caught.value.code == "wrong-tee-type"


def test_collateral_for_sgx_is_none_for_tdx(vectors: Path) -> None:
    """C-13: signed by Intel, for another kind of thing and by another authority."""
    with pytest.raises(AttestationError) as caught:
        judged(vectors, V4[0], "sgx_v3_collateral.json", 1750416971)
    assert caught.value.code == "crl-bad-signature"


def test_collateral_of_another_kind_of_machine_is_refused(vectors: Path) -> None:
    quote, _, at = V5
    with pytest.raises(AttestationError) as caught:
        judged(vectors, quote, "fmspc_00806f_2026-01_collateral.json", at)
    assert caught.value.code == "collateral-mismatch"


def test_the_padding_after_a_genuine_quote_is_no_part_of_it(vectors: Path) -> None:
    """C-17: buffers of 70 and of thousands of zeros; a bit in them is refused."""
    for name, _, _ in (V4, COS):
        data = (vectors / "tdx" / name).read_bytes()
        quote = Quote.parse(data)
        assert len(quote.data) < len(data)
        assert Quote.parse(quote.data) == quote
        with pytest.raises(AttestationError) as caught:
            Quote.parse(data[:-1] + b"\x01")
        assert caught.value.code == "trailing-bytes"
