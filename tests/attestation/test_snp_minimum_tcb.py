"""Floors by family and by stepping, and the dated table they may be taken from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation import InvalidPolicy, PlatformNotAccepted, Policy, SnpPolicy, Tcb, TcbTooOld
from blindbox_attestation.snp import appraise, minimum_tcb
from blindbox_attestation.snp.tcb import LAYOUTS, family_named, family_of, stepping_of
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

GENOA, BERGAMO = bytes((0x19, 0x11, 1)), bytes((0x19, 0xA0, 2))
AMD = FakeAmd("Genoa")
HIGH = replace(AMD.tcb, microcode=AMD.tcb.microcode + 1)
LOW = replace(AMD.tcb, microcode=0)


def judge(floors: dict[str, Tcb], walk: Walk | None = None, **report: Any) -> None:
    policy = AMD.snp_policy(minimum_tcb=floors)
    appraise(AMD.report(**report), AMD.endorsements(), policy, now=NOON, walk=walk)


def test_the_floor_of_a_stepping_takes_the_place_of_its_family_s() -> None:
    """C-8: microcode is counted anew for each stepping, so one number for a family is wrong for most."""
    judge({"Genoa": HIGH, "Genoa/a0/2": LOW}, cpuid=BERGAMO)
    judge({"Genoa": LOW, "Genoa/a0/2": HIGH}, cpuid=GENOA)
    with pytest.raises(TcbTooOld, match="Genoa/a0/2") as refused:
        judge({"Genoa": LOW, "Genoa/a0/2": HIGH}, cpuid=BERGAMO)
    assert refused.value.code == "tcb-too-old"
    with pytest.raises(TcbTooOld) as refused:
        judge({"Genoa": HIGH, "Genoa/a0/2": LOW}, cpuid=GENOA)
    assert refused.value.code == "tcb-too-old"


def test_a_policy_that_names_steppings_only_accepts_no_other_of_the_family() -> None:
    judge({"Genoa/a0/2": LOW}, cpuid=BERGAMO)
    for cpuid in (GENOA, bytes((0x19, 0xA0, 1)), bytes((0x19, 0xA1, 2))):
        with pytest.raises(PlatformNotAccepted) as refused:
            judge({"Genoa/a0/2": LOW}, cpuid=cpuid)
        assert refused.value.code == "platform-not-accepted"


def test_a_report_that_hides_its_stepping_gets_no_floor_that_is_lower() -> None:
    """C-8: version 2 has no CPUID, so it could be the very stepping that must have more."""
    old = {"version": 2, "cpuid": bytes(3)}
    judge({"Genoa": LOW}, **old)
    for floors in ({"Genoa": LOW, "Genoa/a0/2": HIGH}, {"Genoa/a0/2": LOW}):
        with pytest.raises(PlatformNotAccepted) as refused:
            judge(floors, **old)
        assert refused.value.code == "platform-not-accepted"
    judge({"Genoa": LOW, "Turin/02/1": HIGH}, **old)


def test_the_report_tells_which_processor_it_is_by_name() -> None:
    walk = Walk()
    judge({"Genoa": LOW}, walk, cpuid=BERGAMO)
    ninth = next(step for step in walk.steps if step.number == 9)
    assert (ninth.checks[0].name, ninth.checks[0].found) == ("processor", "Genoa/a0/2")
    assert stepping_of(GENOA) == "Genoa/11/1"
    assert family_of(bytes((0x19, 0x55, 0))) is None
    assert family_of(bytes((0x18, 0x11, 0))) is None


@pytest.mark.parametrize(
    "name",
    ["Genoa/", "Genoa/11", "Genoa/1/1", "Genoa/A0/2", "Genoa/a0/02", "Genoa/20/1", "Milan/11/1", "Rome/31/0",
     "/11/1", "Genoa/a0/2\n", 1, None, b"Genoa"],
)  # fmt: skip
def test_a_floor_for_no_processor_is_an_error(name: Any) -> None:
    """C-22: a second spelling is none either."""
    with pytest.raises(InvalidPolicy):
        SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={name: LOW})


def test_floors_by_stepping_come_back_from_json_and_change_the_digest() -> None:
    plain = Policy(snp=SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Genoa": LOW}))
    assert plain.snp is not None
    more = Policy(snp=replace(plain.snp, minimum_tcb={"Genoa": LOW, "Genoa/a0/2": LOW}))
    assert more.digest != plain.digest
    assert Policy.from_json(more.to_json()) == more


# --- the table ---


def test_every_number_of_the_table_has_a_bulletin_a_date_and_a_source() -> None:
    for bulletin in minimum_tcb.BULLETINS:
        assert re.fullmatch(r"AMD-SB-3\d{3}", bulletin.name)
        assert re.fullmatch(r"20\d\d(-\d\d(-\d\d)?)?", bulletin.published)
        assert bulletin.published <= minimum_tcb.COLLECTED
        assert re.search(r"CVE-20\d\d-\d+", bulletin.about)
        assert bulletin.quoted_in
        assert bulletin.fixes
        for fix in bulletin.fixes:
            family = family_named(fix.processor)
            assert family is not None
            assert set(fix.parts) <= set(LAYOUTS[family])
            assert all(0 < number <= 255 for number in fix.parts.values())
            # microcode is not comparable between steppings, so it is never said for a family
            assert ("microcode" in fix.parts) == (fix.processor != family)


def test_the_floors_are_what_the_bulletins_ask_for_together() -> None:
    floors = minimum_tcb.floors()
    for bulletin in minimum_tcb.BULLETINS:
        for fix in bulletin.fixes:
            for name, floor in floors.items():
                if fix.processor in (name, family_named(name)):
                    assert all(getattr(floor, part) >= number for part, number in fix.parts.items()), name
    assert floors["Genoa/11/1"] == Tcb(bootloader=0, snp=0x1B, microcode=0x56)
    assert floors["Milan/01/2"] == Tcb(bootloader=0, snp=0x1D, microcode=0x44)
    assert floors["Turin/02/1"] == Tcb(bootloader=0, snp=0x04, microcode=0x51)
    SnpPolicy(measurements={MEASUREMENT}, minimum_tcb=floors)


def test_the_floors_are_a_policy_s_in_json_too() -> None:
    policy = Policy(snp=SnpPolicy(measurements={MEASUREMENT}, minimum_tcb=minimum_tcb.floors()))
    assert Policy.from_json(policy.to_json()) == policy
    assert set(json.loads(policy.to_json())["snp"]["minimum_tcb"]) == set(minimum_tcb.floors())
