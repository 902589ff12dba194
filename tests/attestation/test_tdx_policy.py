"""Whether a genuine TDX guest is acceptable: one change at a time, each with the code that it must get."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound, binding, report_data, transcript_bytes
from blindbox_attestation.errors import (
    AttestationError,
    DebugAllowed,
    InvalidPolicy,
    MalformedEvidence,
    MeasurementMismatch,
    PolicyRefused,
    TcbTooOld,
)
from blindbox_attestation.evidence import TDX
from blindbox_attestation.roots import INTEL_ROOTS
from blindbox_attestation.tdx import TdxClaims, TdxPolicy, appraise, policy_json
from blindbox_attestation.tdx.policy import STATUSES
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.intel import EVALUATION, MRSEAM, MRTD, RTMRS, SEPT_VE_DISABLE, TEE_TCB_SVN, FakeIntel

INTEL = FakeIntel()
OTHER = b"\x01" * 48


def judged(
    wishes: dict[str, Any] | None = None, collateral: bytes | None = None, **changes: Any
) -> TdxClaims:
    """What comes of a genuine guest with these changes under a policy with these wishes."""
    endorsements = INTEL.endorsements() if collateral is None else {"collateral": collateral}
    return appraise(INTEL.quote(**changes), endorsements, INTEL.tdx_policy(**(wishes or {})), now=NOON)


def refused(
    wishes: dict[str, Any] | None = None, collateral: bytes | None = None, **changes: Any
) -> tuple[type[AttestationError], str, int]:
    with pytest.raises(AttestationError) as caught:
        judged(wishes, collateral, **changes)
    return type(caught.value), caught.value.code, caught.value.steps[-1].number


# --- step 9 ---


def collateral_with(where: str, status: str) -> bytes:
    if where == "platform":
        return INTEL.collateral(tcb_info=INTEL.tcb_info(status=status))
    if where == "module":
        return INTEL.collateral(tcb_info=INTEL.tcb_info(module_status=status))
    return INTEL.collateral(qe_identity=INTEL.qe_identity(status=status))


@pytest.mark.parametrize(
    ("where", "status"),
    [
        *(("platform", status) for status in STATUSES),
        *product(("module", "enclave"), ("UpToDate", "OutOfDate")),
    ],
)
def test_a_status_is_accepted_if_and_only_if_the_policy_names_it(where: str, status: str) -> None:
    """C-12: whichever of the three parts has it."""
    collateral = collateral_with(where, status)
    for named in STATUSES:
        wishes = {"statuses": {named}}
        if named == status:
            assert judged(wishes, collateral).status == status
        else:
            assert refused(wishes, collateral) == (TcbTooOld, "tcb-status", 9)


@pytest.mark.parametrize(
    ("where", "status"),
    [
        *(("platform", status) for status in ("TDRelaunchAdvised", "uptodate", "")),
        *product(("module", "enclave"), (*STATUSES[1:4], STATUSES[5], "TDRelaunchAdvised", "")),
    ],
)
def test_a_status_that_intel_does_not_give_there_is_refused(where: str, status: str) -> None:
    """C-12: a word without a meaning is not taken for a good one."""
    collateral = collateral_with(where, status)
    assert refused({"statuses": set(STATUSES)}, collateral) == (MalformedEvidence, "malformed-collateral", 6)


WITH_AN_OLD_PART = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "OutOfDate": "OutOfDate",
    "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
}


@pytest.mark.parametrize(("platform", "together"), WITH_AN_OLD_PART.items())
@pytest.mark.parametrize(("module", "enclave"), [("OutOfDate", "UpToDate"), ("UpToDate", "OutOfDate")])
def test_an_old_module_or_quoting_enclave_makes_the_machine_out_of_date(
    platform: str, together: str, module: str, enclave: str
) -> None:
    """C-12: the worst of the three parts counts."""
    collateral = INTEL.collateral(
        tcb_info=INTEL.tcb_info(status=platform, module_status=module),
        qe_identity=INTEL.qe_identity(status=enclave),
    )
    assert judged({"statuses": set(STATUSES)}, collateral).status == together
    assert refused({"statuses": set(STATUSES) - {together}}, collateral) == (TcbTooOld, "tcb-status", 9)


def test_advisories_of_every_part_have_to_be_accepted_by_name() -> None:
    """C-12: a status that is less than up to date is only as good as the reading of its advisories."""
    collateral = INTEL.collateral(
        tcb_info=INTEL.tcb_info(status="SWHardeningNeeded", advisories=["INTEL-SA-1", "INTEL-SA-2"]),
        qe_identity=INTEL.qe_identity(status="OutOfDate", advisories=["INTEL-SA-3"]),
    )
    everything = {"INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3"}
    wishes: dict[str, Any] = {"statuses": set(STATUSES)}
    assert (
        judged({**wishes, "accepted_advisories": everything | {"INTEL-SA-4"}}, collateral).advisories
        == everything
    )
    assert refused(wishes, collateral) == (TcbTooOld, "advisory-not-accepted", 9)
    for missing in everything:
        named = {**wishes, "accepted_advisories": everything - {missing}}
        assert refused(named, collateral) == (TcbTooOld, "advisory-not-accepted", 9)


@pytest.mark.parametrize("older", ["tcb_info", "qe_identity"])
def test_the_older_of_both_evaluations_counts(older: str) -> None:
    """C-12: collateral of before a recovery is in force for weeks after it."""
    make = INTEL.tcb_info if older == "tcb_info" else INTEL.qe_identity
    collateral = INTEL.collateral(**{older: make(tcbEvaluationDataNumber=EVALUATION - 1)})
    assert refused(None, collateral) == (TcbTooOld, "tcb-evaluation-too-old", 9)
    wishes = {"minimum_tcb_evaluation": EVALUATION - 1}
    assert judged(wishes, collateral).tcb_evaluation == EVALUATION - 1


def test_a_floor_can_only_be_raised() -> None:
    policy = INTEL.tdx_policy()
    assert policy.with_tcb_evaluation_floor(EVALUATION - 5) == policy
    raised = policy.with_tcb_evaluation_floor(EVALUATION + 1)
    assert raised.minimum_tcb_evaluation == EVALUATION + 1
    with pytest.raises(TcbTooOld) as caught:
        appraise(INTEL.quote(), INTEL.endorsements(), raised, now=NOON)
    assert caught.value.code == "tcb-evaluation-too-old"


def test_the_modules_version_is_compared_byte_by_byte() -> None:
    """C-8: a higher byte does not make up for a lower one."""
    assert judged({"minimum_tee_tcb_svn": TEE_TCB_SVN}).tee_tcb_svn == TEE_TCB_SVN
    assert judged({"minimum_tee_tcb_svn": bytes(16)}).tee_tcb_svn == TEE_TCB_SVN
    for number in range(16):
        floor = bytearray(16)
        floor[number] = TEE_TCB_SVN[number] + 1
        assert refused({"minimum_tee_tcb_svn": bytes(floor)}) == (TcbTooOld, "tcb-too-old", 9)


# --- step 10 ---


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("attributes", "error", "code"),
    [
        *((SEPT_VE_DISABLE | 1 << bit, DebugAllowed, "debug-allowed") for bit in range(8)),
        *((SEPT_VE_DISABLE | 1 << bit, PolicyRefused, "td-attributes") for bit in range(8, 28)),
        (SEPT_VE_DISABLE | 1 << 29, PolicyRefused, "migration-allowed"),
        *((SEPT_VE_DISABLE | 1 << bit, PolicyRefused, "td-attributes") for bit in range(32, 64)),
        (0, PolicyRefused, "td-attributes"),
        (1, DebugAllowed, "debug-allowed"),
    ],
)
def test_every_bit_by_which_the_host_could_look_inside_is_refused(
    attributes: int, error: type[AttestationError], code: str, version: int
) -> None:
    """C-7: well signed. Bits without a meaning today are refused until somebody has read what they mean."""
    assert refused(td_attributes=attributes, version=version) == (error, code, 10)


@pytest.mark.parametrize("extra", [0, 1 << 30, 1 << 31, 1 << 30 | 1 << 31])
def test_keys_in_the_processor_are_the_guests_own_business(extra: int) -> None:
    assert judged(td_attributes=SEPT_VE_DISABLE | extra).td_attributes == SEPT_VE_DISABLE | extra


def test_a_service_machine_is_refused() -> None:
    """C-7: it could take the guest elsewhere."""
    assert refused(version=5, mrservicetd=OTHER) == (PolicyRefused, "service-td", 10)


def test_processor_features_are_those_that_the_policy_names() -> None:
    assert judged({"xfam_allowed": 0x602E7}).xfam == 0x602E7
    assert judged({"xfam_allowed": 0x602E7}, xfam=3).xfam == 3
    assert refused({"xfam_allowed": 0x602E6}) == (PolicyRefused, "td-attributes", 10)


# --- step 11 ---


def test_a_module_that_is_not_a_production_module_of_intels_is_refused() -> None:
    assert refused(mrsignerseam=OTHER) == (PolicyRefused, "seam-mismatch", 11)
    assert refused(seam_attributes=1) == (PolicyRefused, "seam-mismatch", 11)
    # Also if the collateral calls it right: Intel's own modules have no signer there.
    module = {"mrsigner": OTHER.hex(), "attributes": "00" * 8, "attributesMask": "FF" * 8}
    level = {"tcb": {"isvsvn": 5}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": "UpToDate"}
    told = INTEL.tcb_info(tdxModuleIdentities=[{"id": "TDX_01", **module, "tcbLevels": [level]}])
    collateral = INTEL.collateral(tcb_info=told)
    assert refused(None, collateral, mrsignerseam=OTHER) == (PolicyRefused, "seam-mismatch", 11)


def test_a_module_that_the_policy_does_not_name_is_refused() -> None:
    assert judged({"mrseam": {MRSEAM, OTHER}}).mrseam == MRSEAM
    assert refused({"mrseam": {OTHER}}) == (PolicyRefused, "seam-mismatch", 11)


# --- step 12 ---


def test_another_firmware_is_refused() -> None:
    """C-6."""
    assert refused(mrtd=OTHER) == (MeasurementMismatch, "measurement-mismatch", 12)
    assert judged({"mrtd": {MRTD, OTHER}}, mrtd=OTHER).measurement == OTHER


@pytest.mark.parametrize("number", range(4))
def test_every_register_that_the_policy_names_is_compared(number: int) -> None:
    """C-6: and a register that it does not name is not."""
    changed = (*RTMRS[:number], OTHER, *RTMRS[number + 1 :])
    assert refused(rtmrs=changed) == (MeasurementMismatch, "rtmr-mismatch", 12)
    assert judged({"rtmrs": {number: {RTMRS[number], OTHER}}}, rtmrs=changed).rtmrs == changed
    others = {other: {RTMRS[other]} for other in range(4) if other != number}
    assert judged({"rtmrs": others}, rtmrs=changed).rtmrs == changed
    # A value that belongs to another register is a wrong one.
    assert refused({"rtmrs": {number: {RTMRS[number - 1]}}}) == (MeasurementMismatch, "rtmr-mismatch", 12)


# --- step 13 ---


@pytest.mark.parametrize(
    ("field", "wish", "code"),
    [
        ("mrconfigid", "mr_config_id", "config-id"),
        ("mrowner", "mr_owner", "owner"),
        ("mrownerconfig", "mr_owner_config", "owner"),
    ],
)
def test_what_the_host_had_to_give_is_compared(field: str, wish: str, code: str) -> None:
    """C-51."""
    assert getattr(judged({wish: OTHER}, **{field: OTHER}), field) == OTHER
    assert refused({wish: OTHER}) == (PolicyRefused, code, 13)
    assert refused({wish: bytes(48)}, **{field: OTHER}) == (PolicyRefused, code, 13)


def test_another_machine_with_the_same_image_is_refused_if_machines_are_named() -> None:
    """C-51: diversion. A genuine machine, bought or broken, that runs the very same program."""
    ours = {"ppids": {INTEL.ppid}, "platform_instance_ids": {INTEL.instance}, "fmspcs": {INTEL.fmspc}}
    assert judged(ours).ppid == INTEL.ppid
    for wishes in ({"ppids": {bytes(16)}}, {"platform_instance_ids": {bytes(16)}}, {"fmspcs": {bytes(6)}}):
        assert refused(wishes) == (PolicyRefused, "platform-not-listed", 13)


def test_a_machine_without_a_platform_id_is_on_no_list_of_them() -> None:
    small = FakeIntel(authority="processor")
    policy = small.tdx_policy(platform_instance_ids={small.instance})
    with pytest.raises(PolicyRefused) as caught:
        appraise(small.quote(), small.endorsements(), policy, now=NOON)
    assert caught.value.code == "platform-not-listed"


# --- step 8 ---


def test_claims_speak_for_one_binding_in_all_64_bytes() -> None:
    """C-5."""
    told = FakeAmd().transcript()
    transcript = transcript_bytes(TDX, told)
    bound = Bound.of(transcript, told)
    data = report_data(binding(transcript))
    assert judged(user_data=data).speaks_for(bound)
    assert judged(user_data=data).carries(data)
    for other in (data[:48] + bytes(15) + b"\x01", bytes(64), data[::-1]):
        claims = judged(user_data=other)
        assert not claims.speaks_for(bound)
        assert not claims.carries(data)
    assert judged(user_data=data).carries(
        data[:48]
    )  # a shorter value stands at the front, and zeros after it
    assert not judged(user_data=data).carries(data[:47])
    assert not judged(user_data=data).carries(data + b"\x00")


# --- the policy itself ---


@pytest.mark.parametrize(
    "wishes",
    [
        {"mrtd": set()},
        {"mrtd": None},
        {"mrtd": {bytes(47)}},
        {"mrtd": {"00" * 48}},
        {"mrtd": bytes(48)},
        {"minimum_tcb_evaluation": None},
        {"minimum_tcb_evaluation": -1},
        {"minimum_tcb_evaluation": True},
        {"minimum_tcb_evaluation": 1 << 32},
        {"rtmrs": {}},
        {"rtmrs": {4: {bytes(48)}}},
        {"rtmrs": {True: {bytes(48)}}},
        {"rtmrs": {0: set()}},
        {"rtmrs": {0: {bytes(32)}}},
        {"rtmrs": [bytes(48)]},
        {"statuses": set()},
        {"statuses": {"Revoked"}},
        {"statuses": {"UpToDate", "Revoked"}},
        {"statuses": {"uptodate"}},
        {"statuses": "UpToDate"},
        {"accepted_advisories": set()},
        {"accepted_advisories": {7}},
        {"mrseam": set()},
        {"minimum_tee_tcb_svn": bytes(15)},
        {"minimum_tee_tcb_svn": 6},
        {"xfam_allowed": -1},
        {"mr_config_id": bytes(32)},
        {"mr_owner": "x"},
        {"mr_owner_config": bytes(49)},
        {"ppids": set()},
        {"ppids": {bytes(15)}},
        {"platform_instance_ids": {bytes(6)}},
        {"fmspcs": {bytes(16)}},
        {"event_log": "maybe"},
        {"event_log": None},
        {"events": {0: {bytes(48)}}},
        {"events": {}, "event_log": "required"},
        {"events": {3: {bytes(48)}}, "event_log": "required"},
        {"events": {0: {bytes(32)}}, "event_log": "required"},
        {"roots": {}},
        {"roots": None},
        {"roots": {bytes(31): "x"}},
    ],
)
def test_a_policy_that_could_not_mean_what_it_says_is_refused(wishes: dict[str, Any]) -> None:
    """C-22."""
    with pytest.raises(InvalidPolicy):
        INTEL.tdx_policy(**wishes)


def test_measurements_and_a_floor_have_to_be_given() -> None:
    """C-22: neither is open by being left out."""
    with pytest.raises(TypeError):
        TdxPolicy(mrtd={MRTD})  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        TdxPolicy(minimum_tcb_evaluation=1)  # type: ignore[call-arg]
    plain = TdxPolicy(mrtd={MRTD}, minimum_tcb_evaluation=1)
    assert plain.statuses == {"UpToDate"}
    assert plain.roots == INTEL_ROOTS


def test_a_policy_cannot_be_changed_from_outside() -> None:
    allowed, registers = {MRTD}, {0: {RTMRS[0]}}
    policy = INTEL.tdx_policy(mrtd=allowed, rtmrs=registers)
    allowed.add(OTHER)
    registers[0].add(OTHER)
    registers[1] = {OTHER}
    assert policy.mrtd == {MRTD}
    assert policy.rtmrs == {0: {RTMRS[0]}}
    assert hash(policy) == hash(INTEL.tdx_policy(rtmrs={0: {RTMRS[0]}}))


FULL: dict[str, Any] = {
    "mrtd": {MRTD, OTHER},
    "minimum_tcb_evaluation": 17,
    "rtmrs": {0: {RTMRS[0]}, 3: {RTMRS[3], OTHER}},
    "statuses": {"UpToDate", "SWHardeningNeeded"},
    "accepted_advisories": {"INTEL-SA-00615"},
    "mrseam": {MRSEAM},
    "minimum_tee_tcb_svn": TEE_TCB_SVN,
    "xfam_allowed": 0x602E7,
    "mr_config_id": OTHER,
    "mr_owner": bytes(48),
    "mr_owner_config": OTHER,
    "ppids": {INTEL.ppid},
    "platform_instance_ids": {INTEL.instance},
    "fmspcs": {INTEL.fmspc},
    "event_log": "required",
    "events": {1: {OTHER}},
}


@pytest.mark.parametrize("wishes", [FULL, {"mrtd": {MRTD}, "minimum_tcb_evaluation": 0}])
def test_a_policy_is_the_same_after_a_trip_through_json(wishes: dict[str, Any]) -> None:
    policy = TdxPolicy(**wishes)
    text = strict_json.dump(policy_json.write(policy))
    assert policy_json.read(strict_json.parse(text), "tdx") == policy


def test_every_field_has_a_form_in_json_but_the_roots() -> None:
    """C-21: a file cannot bring a root along."""
    assert {*FULL} == {*policy_json.FORMS}
    assert {*TdxPolicy.__dataclass_fields__} - {*FULL} == {"roots"}
    assert policy_json.SCHEMA["required"] == ["mrtd", "minimum_tcb_evaluation"]
    told = policy_json.write(TdxPolicy(**FULL))
    for lie in ({"roots": {}}, {"mrtds": []}):
        with pytest.raises(strict_json.JsonRefused):
            policy_json.read({**told, **lie}, "tdx")
    with pytest.raises(InvalidPolicy):
        policy_json.read({**told, "statuses": ["Revoked"]}, "tdx")


def test_a_policy_says_in_words_what_it_checks_and_what_it_leaves_open() -> None:
    small = TdxPolicy(mrtd={MRTD}, minimum_tcb_evaluation=17).in_words()
    assert any("Intel" in one for one in small.trusts)
    assert any("17" in one for one in small.checks)
    assert sum("RTMR" in one for one in small.unchecked) == 4
    assert any("any genuine one" in one for one in small.unchecked)
    full = TdxPolicy(**FULL).in_words()
    assert [one[-6:-2] for one in full.unchecked if "RTMR" in one] == ["TMR1", "TMR2"]
    assert not [one for one in INTEL.tdx_policy().in_words().unchecked if "RTMR" in one]
    assert not any("any genuine one" in one for one in full.unchecked)
    assert len(full.checks) > len(small.checks) + 8
    for one in (*full.trusts, *full.checks, *full.unchecked, *small.checks, *small.unchecked):
        assert one.endswith(".")
