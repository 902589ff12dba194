"""Each comparison of SEV-SNP evidence is told with what was found, what was wanted, and where."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from blindbox_attestation.errors import AttestationError
from blindbox_attestation.snp import SnpPolicy, Tcb, appraise, chain
from blindbox_attestation.steps import Check
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd

AMD = FakeAmd("Genoa")
TURIN = FakeAmd("Turin")
CLOUD = FakeAmd("Milan", signing_key="vlek")

WISHES: dict[str, Any] = {
    "chip_ids": {AMD.chip_id},
    "host_data": b"\x09" * 32,
    "minimum_guest_svn": 1,
    "allow_smt": False,
    "id_key_digests": {b"\x01" * 48},
    "author_key_digests": {b"\x02" * 48},
    "platform_info_required": 0x20,
    "platform_info_forbidden": 0x02,
}
GRANTED: dict[str, Any] = {
    "host_data": b"\x09" * 32,
    "policy": 0x20000,
    "platform_info": 0x24,
    "id_key_digest": b"\x01" * 48,
    "author_key_digest": b"\x02" * 48,
    "flags": 1,
}


def checks(policy: SnpPolicy, amd: FakeAmd = AMD, /, **report: Any) -> dict[tuple[int, str], Check]:
    """Every check of a walk, by step and name; of a refused one, up to the refusal."""
    walk = Walk()
    with suppress(AttestationError):
        appraise(amd.report(**report), amd.endorsements(), policy, now=NOON, walk=walk)
    found = [(step.number, check) for step in walk.steps for check in step.checks]
    told = {(number, check.name): check for number, check in found}
    assert len(told) == len(found), "two checks of one name in one step"
    return told


@pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")
@pytest.mark.parametrize("amd", [AMD, TURIN, CLOUD], ids=["Genoa", "Turin", "VLEK"])
def test_a_check_that_passed_says_what_was_found_wanted_and_where(amd: FakeAmd) -> None:
    told = checks(amd.snp_policy(), amd)
    for check in told.values():
        assert check.outcome != "failed"
        if check.outcome == "passed":
            assert check.found
            assert check.wanted
            assert check.source
    assert {number for number, _ in told} == {4, 5, 6, 7, 9, 10, 11, 12, 13}
    assert told[4, "root"].found == told[4, "root"].wanted
    assert told[12, "measurement"].found == told[12, "measurement"].wanted == MEASUREMENT.hex()
    assert told[9, "reported TCB"].wanted == f"at least {amd.tcb}"


def test_a_wish_that_was_not_made_does_not_look_like_one_that_was_granted() -> None:
    """What the machine says is told all the same."""
    plain = {name for name, check in checks(AMD.snp_policy()).items() if check.outcome == "not asked"}
    assert plain == {
        (10, "sibling threads"),
        (10, "platform information"),
        (12, "guest SVN"),
        (12, "ID key"),
        (12, "author key"),
        (13, "host data"),
        (13, "chip id"),
        (13, "cloud"),
    }
    asked = checks(AMD.snp_policy(**WISHES), **GRANTED)
    assert plain <= set(asked)
    assert asked.pop((13, "cloud")).outcome == "not asked"  # no VCEK names one
    assert {check.outcome for check in asked.values()} == {"passed"}


def test_what_such_a_machine_does_not_have_does_not_look_asked_either() -> None:
    old = checks(AMD.snp_policy(), version=2, cpuid=bytes(3))
    assert old[6, "family by CPUID"].outcome == "not applicable"
    with pytest.warns(UserWarning, match="Milan"):
        held = checks(CLOUD.snp_policy(), CLOUD)
    assert held[6, "chip the certificate is for"].outcome == "not applicable"


@pytest.mark.parametrize(
    ("wishes", "report", "name"),
    [
        ({}, {"policy": 0x30000 | 1 << 19}, (10, "debugging")),
        ({}, {"vmpl": 1}, (11, "VMPL")),
        ({}, {"measurement": b"\x01" * 48}, (12, "measurement")),
        ({"minimum_tcb": {"Genoa": Tcb(bootloader=255, snp=0, microcode=0)}}, {}, (9, "reported TCB")),
        ({"host_data": b"\x09" * 32}, {}, (13, "host data")),
        ({"roots": {b"\x01" * 32: "Genoa"}}, {}, (4, "root")),
    ],
)
def test_the_check_that_failed_is_the_last_and_tells_the_difference(
    wishes: dict[str, Any], report: dict[str, Any], name: tuple[int, str]
) -> None:
    told = checks(AMD.snp_policy(**wishes), **report)
    assert list(told)[-1] == name
    assert told[name].outcome == "failed"
    assert told[name].found != told[name].wanted
    assert told[name].source
    assert [check.outcome for check in told.values()].count("failed") == 1


def test_what_is_remembered_of_certificates_does_not_outlive_their_validity() -> None:
    """C-11: the same bytes, judged at another time, are judged anew."""
    policy, report, sent = AMD.snp_policy(), AMD.report(), AMD.endorsements()
    appraise(report, sent, policy, now=NOON)
    remembered = chain._certificate.cache_info()
    appraise(report, sent, policy, now=NOON)
    assert chain._certificate.cache_info().misses == remembered.misses
    for years, code in ((20, "certificate-not-valid-now"), (-20, "certificate-not-valid-now")):
        with pytest.raises(AttestationError) as refused:
            appraise(report, sent, policy, now=NOON.replace(year=NOON.year + years))
        assert refused.value.code == code


def test_what_is_remembered_is_of_exactly_these_bytes() -> None:
    """C-15: after a good chain, the same with one bit flipped anywhere is refused as before."""
    policy, report, sent = AMD.snp_policy(), AMD.report(), AMD.endorsements()
    appraise(report, sent, policy, now=NOON)
    for what, good in sent.items():
        for at in range(0, len(good), 61):
            changed = bytearray(good)
            changed[at] ^= 1
            with pytest.raises(AttestationError):
                appraise(report, {**sent, what: bytes(changed)}, policy, now=NOON)
    appraise(report, sent, policy, now=NOON)


def test_what_is_remembered_is_bounded() -> None:
    for remembered in (
        chain._certificate,
        chain._signed,
        chain._endorsed,
        chain._revocation_list,
        chain._signed_list,
    ):
        assert remembered.cache_info().maxsize == 64
