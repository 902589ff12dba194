"""Genuine reports that a policy refuses: one good case, then one change at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation.errors import (
    AttestationError,
    DebugAllowed,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    PolicyRefused,
    TcbTooOld,
)
from blindbox_attestation.snp import MilanWarning, SnpPolicy, Tcb, appraise
from tests.kit import NOON
from tests.kit.amd import CLOUD, MEASUREMENT, FakeAmd

AMD = FakeAmd("Genoa")
TURIN = FakeAmd("Turin")
OTHER = b"\x01" * 48


def lower(tcb: Tcb, part: str) -> Tcb:
    return replace(tcb, **{part: getattr(tcb, part) - 1})


def higher(tcb: Tcb, part: str) -> Tcb:
    return replace(tcb, **{part: getattr(tcb, part) + 1})


PARTS = [*[(AMD, part) for part in ("bootloader", "snp", "microcode")], *[(TURIN, part) for part in
         ("fmc", "bootloader", "tee", "snp", "microcode")]]  # fmt: skip

REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[AttestationError], str]] = [
    # 10: what the host may do
    ({"policy": 0x30000 | 1 << 19}, {}, DebugAllowed, "debug-allowed"),
    ({"policy": 0x30000 | 1 << 18}, {}, PolicyRefused, "migration-allowed"),
    ({"report_id_ma": bytes(32)}, {}, PolicyRefused, "migration-allowed"),
    ({"policy": 0x10000}, {}, PolicyRefused, "policy-bits"),
    ({"policy": 0}, {}, PolicyRefused, "policy-bits"),
    *[({"policy": 0x30000 | 1 << bit}, {}, PolicyRefused, "policy-bits") for bit in range(26, 64)],
    ({}, {"allow_smt": False}, PolicyRefused, "policy-bits"),
    ({"policy": 0x20000}, {"allow_smt": False}, PolicyRefused, "platform-info"),
    ({"platform_info": 0x05}, {"platform_info_required": 0x20}, PolicyRefused, "platform-info"),
    ({"platform_info": 0x25}, {"platform_info_forbidden": 0x04}, PolicyRefused, "platform-info"),
    # 11: who asked
    ({"vmpl": 1}, {}, PolicyRefused, "vmpl"),
    ({"vmpl": 0xFFFFFFFF}, {}, PolicyRefused, "vmpl"),
    ({"vmpl": 0}, {"vmpl": 1}, PolicyRefused, "vmpl"),
    ({}, {"signing_keys": {"vlek"}}, PolicyRefused, "signing-key-kind"),
    # 12: what was launched
    ({"measurement": OTHER}, {}, MeasurementMismatch, "measurement-mismatch"),
    ({"measurement": bytes(48)}, {}, MeasurementMismatch, "measurement-mismatch"),
    ({"measurement": MEASUREMENT[:-1] + b"\x00"}, {}, MeasurementMismatch, "measurement-mismatch"),
    ({"guest_svn": 3}, {"minimum_guest_svn": 4}, PolicyRefused, "guest-svn"),
    ({}, {"id_key_digests": {OTHER}}, PolicyRefused, "id-block"),
    ({"id_key_digest": OTHER, "flags": 1}, {"author_key_digests": {OTHER}}, PolicyRefused, "id-block"),
    ({"author_key_digest": OTHER, "flags": 0}, {"author_key_digests": {OTHER}}, PolicyRefused, "id-block"),
    # 13: whose machine
    ({}, {"host_data": b"\x01" * 32}, PolicyRefused, "host-data"),
    ({"host_data": b"\x01" * 32}, {"host_data": b"\x02" * 32}, PolicyRefused, "host-data"),
    ({}, {"chip_ids": {b"\x01" * 64}}, PolicyRefused, "chip-not-listed"),
]

ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"measurements": {OTHER, MEASUREMENT}}),
    ({"policy": 0x20000, "platform_info": 0x24}, {"allow_smt": False}),
    ({"policy": 0x3001F}, {}),
    *[({"policy": 0x30000 | 1 << bit}, {}) for bit in range(20, 26)],
    ({"platform_info": 0x67}, {"platform_info_required": 0x27}),
    ({"vmpl": 3}, {"vmpl": 3}),
    ({}, {"signing_keys": {"vcek", "vlek"}}),
    ({"guest_svn": 4}, {"minimum_guest_svn": 4}),
    ({"id_key_digest": OTHER}, {"id_key_digests": {OTHER}}),
    ({"author_key_digest": OTHER, "flags": 1}, {"author_key_digests": {OTHER}}),
    ({"host_data": b"\x01" * 32}, {"host_data": b"\x01" * 32}),
    ({}, {"chip_ids": {AMD.chip_id, b"\x01" * 64}}),
    ({}, {"minimum_tcb": {"Genoa": Tcb(bootloader=0, snp=0, microcode=0)}}),
    # a provider raises what it reports after it has updated: all levels move apart, in this order
    (
        {"current_tcb": higher(higher(AMD.tcb, "snp"), "snp"), "committed_tcb": higher(AMD.tcb, "snp"),
         "launch_tcb": higher(AMD.tcb, "snp")}, {},
    ),
]  # fmt: skip


def judge(amd: FakeAmd, report: dict[str, Any], policy: dict[str, Any]) -> None:
    appraise(amd.report(**report), amd.endorsements(), amd.snp_policy(**policy), now=NOON)


@pytest.mark.parametrize(("report", "policy"), ACCEPTED)
def test_a_report_that_keeps_to_the_policy_is_accepted(
    report: dict[str, Any], policy: dict[str, Any]
) -> None:
    judge(AMD, report, policy)


@pytest.mark.parametrize(("report", "policy", "kind", "code"), REFUSED)
def test_a_genuine_report_outside_the_policy_is_refused_for_its_own_reason(
    report: dict[str, Any], policy: dict[str, Any], kind: type[AttestationError], code: str
) -> None:
    """C-6, C-7: another measurement, and each bit that lets the host in."""
    with pytest.raises(kind) as refused:
        judge(AMD, report, policy)
    assert refused.value.code == code
    assert [step.outcome for step in refused.value.steps][-1] == "failed"


@pytest.mark.parametrize(("amd", "part"), PARTS)
def test_one_part_of_the_tcb_below_its_floor_is_too_old(amd: FakeAmd, part: str) -> None:
    """C-8: each part of each of the levels, however high the others are."""
    floor = {amd.family: higher(amd.tcb, part)}
    with pytest.raises(TcbTooOld, match=part) as refused:
        judge(amd, {}, {"minimum_tcb": floor})
    assert refused.value.code == "tcb-too-old"
    judge(amd, {}, {"minimum_tcb": {amd.family: lower(amd.tcb, part)}})


@pytest.mark.parametrize("level", ["committed_tcb", "launch_tcb"])
@pytest.mark.parametrize(("amd", "part"), PARTS)
def test_a_level_other_than_the_reported_one_is_held_to_the_floor_too(
    amd: FakeAmd, part: str, level: str
) -> None:
    """C-8: what the firmware may go back to, and what the guest was launched under."""
    with pytest.raises(TcbTooOld, match=part) as refused:
        judge(amd, {level: lower(amd.tcb, part)}, {})
    assert refused.value.code == "tcb-too-old"


@pytest.mark.parametrize(
    "changes",
    [
        {"current_tcb": -1},  # below what is committed
        {"current_tcb": -1, "committed_tcb": -1},  # below what is reported
        {"committed_tcb": -1},
        {"launch_tcb": +1},  # launched under newer firmware than there is
        {"committed_tcb": +1},
    ],
)
@pytest.mark.parametrize(("amd", "part"), PARTS)
def test_levels_that_contradict_each_other_are_refused(
    amd: FakeAmd, part: str, changes: dict[str, int]
) -> None:
    """C-8: current ≥ committed ≥ reported, and current ≥ launch, in every part."""
    report = {
        level: lower(amd.tcb, part) if step < 0 else higher(amd.tcb, part) for level, step in changes.items()
    }
    floor = {amd.family: Tcb(bootloader=0, snp=0, microcode=0)}
    with pytest.raises(TcbTooOld) as refused:
        judge(amd, report, {"minimum_tcb": floor})
    assert refused.value.code == "tcb-inconsistent"


def test_a_family_is_accepted_only_by_its_name() -> None:
    with pytest.raises(PlatformNotAccepted, match="Turin"):
        judge(AMD, {}, {"minimum_tcb": {"Turin": TURIN.tcb}})


def test_eight_bytes_name_a_turin_chip() -> None:
    judge(TURIN, {}, {"chip_ids": {TURIN.hwid}})
    with pytest.raises(PolicyRefused):
        judge(TURIN, {}, {"chip_ids": {b"\x01" * 8}})


@pytest.mark.parametrize(
    "wish",
    [
        {"measurements": set()},
        {"measurements": []},
        {"measurements": None},
        {"measurements": MEASUREMENT},
        {"measurements": {MEASUREMENT[:-1]}},
        {"measurements": {MEASUREMENT.hex()}},
        {"minimum_tcb": {}},
        {"minimum_tcb": None},
        {"minimum_tcb": {"Rome": AMD.tcb}},
        {"minimum_tcb": {"genoa": AMD.tcb}},
        {"minimum_tcb": {"Genoa": None}},
        {"minimum_tcb": {"Genoa": TURIN.tcb}},
        {"minimum_tcb": AMD.tcb},
        {"signing_keys": set()},
        {"signing_keys": None},
        {"signing_keys": "vcek"},
        {"signing_keys": {"none"}},
        {"signing_keys": [["vcek"]]},
        {"chip_ids": set()},
        {"chip_ids": {bytes(64)}},
        {"chip_ids": {b"\x01" * 63}},
        {"host_data": b""},
        {"host_data": b"\x01" * 31},
        {"host_data": "00" * 32},
        {"id_key_digests": set()},
        {"id_key_digests": {bytes(48)}},
        {"author_key_digests": []},
        {"author_key_digests": {b"\x01" * 32}},
        {"vmpl": 4},
        {"vmpl": -1},
        {"vmpl": True},
        {"vmpl": None},
        {"minimum_guest_svn": -1},
        {"minimum_guest_svn": "1"},
        {"platform_info_required": 1, "platform_info_forbidden": 1},
        {"platform_info_required": None},
        {"allow_smt": None},
        {"allow_masked_chip_id": "yes"},
        {"revocation": "off"},
        {"revocation": False},
        {"revocation": None},
        {"roots": {}},
        {"roots": None},
        {"roots": {b"\x01" * 31: "Genoa"}},
        {"roots": {b"\x01" * 32: "Rome"}},
    ],
)
def test_a_policy_that_could_not_mean_what_it_says_cannot_be_made(wish: dict[str, Any]) -> None:
    """C-22: empty, None, of another type or of another length."""
    AMD.snp_policy()
    with pytest.raises(InvalidPolicy):
        AMD.snp_policy(**wish)


def test_a_policy_without_measurements_or_floors_cannot_be_made() -> None:
    """C-22: there is no default for either."""
    with pytest.raises(TypeError):
        SnpPolicy()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SnpPolicy(measurements={MEASUREMENT})  # type: ignore[call-arg]


def test_a_policy_does_not_change_when_the_set_it_was_made_from_does() -> None:
    measurements = {MEASUREMENT}
    floors = {"Genoa": AMD.tcb}
    policy = AMD.snp_policy(measurements=measurements, minimum_tcb=floors)
    measurements.add(OTHER)
    floors["Milan"] = AMD.tcb
    assert policy.measurements == {MEASUREMENT}
    assert set(policy.minimum_tcb) == {"Genoa"}
    with pytest.raises(TypeError):
        policy.minimum_tcb["Milan"] = AMD.tcb  # type: ignore[index]


def test_naming_milan_warns() -> None:
    """Its attestation keys have been extracted in software."""
    with pytest.warns(MilanWarning):
        SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Milan": AMD.tcb})


def test_a_machine_of_another_cloud_is_refused_when_the_policy_names_clouds() -> None:
    """C-51: the same image and a genuine key, held by somebody else."""
    amd = FakeAmd("Milan", signing_key="vlek")
    report = amd.report()
    appraise(report, amd.endorsements(), amd.snp_policy(csp_ids={CLOUD}), now=NOON)
    with pytest.raises(PolicyRefused) as refused:
        appraise(report, amd.endorsements(), amd.snp_policy(csp_ids={"CN=elsewhere"}), now=NOON)
    assert refused.value.code == "cloud-not-listed"
    genoa = FakeAmd("Genoa")  # a chip's own key names no cloud
    with pytest.raises(PolicyRefused) as refused:
        appraise(genoa.report(), genoa.endorsements(), genoa.snp_policy(csp_ids={CLOUD}), now=NOON)
    assert refused.value.code == "cloud-not-listed"
