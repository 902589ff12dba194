"""What a Confidential Space policy accepts, what it refuses, and what cannot be a policy at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import (
    AttestationError,
    DebugAllowed,
    InvalidPolicy,
    MeasurementMismatch,
    PolicyRefused,
    TcbTooOld,
)
from blindbox_attestation.gcp import GcpClaims, GcpPolicy, appraise, policy_json
from blindbox_attestation.gcp.policy import HARDWARE, SUPPORT_ATTRIBUTES
from blindbox_attestation.gcp.token import to_base64url
from blindbox_attestation.platforms import PLATFORMS
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.google import ACCOUNT, AUDIENCE, IMAGE, INSTANCE, PROJECT, FakeGoogle

GOOGLE = FakeGoogle()
OTHER_IMAGE = "sha256:" + "0" * 64
BOUND = Bound(digest=bytes(range(48)), nonce=bytes(range(32)), key_config=b"keys" * 300)
SPOKEN = to_base64url(BOUND.digest).decode("ascii")


def refusal(policy: GcpPolicy | None = None, **changes: Any) -> AttestationError | None:
    """What a well-signed token is refused with; None if it is accepted."""
    try:
        appraise(GOOGLE.token(**changes), {}, policy or GOOGLE.policy(), now=NOON)
    except AttestationError as error:
        return error
    return None


def code_of(policy: GcpPolicy | None = None, **changes: Any) -> str:
    error = refusal(policy, **changes)
    return "accepted" if error is None else error.code


def claims_of(**changes: Any) -> GcpClaims:
    return appraise(GOOGLE.token(**changes), {}, GOOGLE.policy(), now=NOON)


def container(**changes: Any) -> dict[str, Any]:
    return {"submods": {"container": changes}}


def space(*attributes: str) -> dict[str, Any]:
    return {"submods": {"confidential_space": {"support_attributes": list(attributes)}}}


@pytest.mark.parametrize(
    ("claims", "code", "kind", "step"),
    [
        # 10: the host cannot look inside
        ({"dbgstat": "enabled"}, "debug-allowed", DebugAllowed, 10),
        ({"dbgstat": "disabled"}, "debug-allowed", DebugAllowed, 10),
        ({"dbgstat": "Disabled-Since-Boot"}, "debug-allowed", DebugAllowed, 10),
        ({"dbgstat": None}, "debug-allowed", DebugAllowed, 10),
        ({"secboot": False}, "secure-boot-off", PolicyRefused, 10),
        ({"secboot": None}, "secure-boot-off", PolicyRefused, 10),
        (space(), "support-level", PolicyRefused, 10),
        (space("USABLE", "LATEST"), "support-level", PolicyRefused, 10),
        (space("stable"), "support-level", PolicyRefused, 10),
        ({"submods": {"confidential_space": None}}, "support-level", PolicyRefused, 10),
        # 11: who says it, to whom, about what
        ({"iss": "https://confidentialcomputing.googleapis.com/"}, "wrong-token-issuer", PolicyRefused, 11),
        ({"iss": "https://accounts.google.com"}, "wrong-token-issuer", PolicyRefused, 11),
        ({"iss": None}, "wrong-token-issuer", PolicyRefused, 11),
        ({"aud": AUDIENCE + "/"}, "wrong-audience", PolicyRefused, 11),
        ({"aud": AUDIENCE.upper()}, "wrong-audience", PolicyRefused, 11),
        ({"aud": None}, "wrong-audience", PolicyRefused, 11),
        ({"swname": "GCE"}, "hardware-model", PolicyRefused, 11),
        ({"swname": None}, "hardware-model", PolicyRefused, 11),
        ({"hwmodel": "GCP_SHIELDED_VM"}, "hardware-model", PolicyRefused, 11),
        ({"hwmodel": "GCP_AMD_SEV"}, "hardware-model", PolicyRefused, 11),
        ({"hwmodel": "GCP_AMD_SEV_SNP"}, "hardware-model", PolicyRefused, 11),
        ({"hwmodel": None}, "hardware-model", PolicyRefused, 11),
        # 12: the program
        (container(image_digest=OTHER_IMAGE), "measurement-mismatch", MeasurementMismatch, 12),
        (container(image_digest=None), "measurement-mismatch", MeasurementMismatch, 12),
        (container(env_override={"DEBUG": "1"}), "override-not-allowed", PolicyRefused, 12),
        (container(cmd_override=["/bin/sh"]), "override-not-allowed", PolicyRefused, 12),
        (container(env_override={}), "accepted", None, 0),
        (container(cmd_override=[]), "accepted", None, 0),
        ({"submods": None}, "support-level", PolicyRefused, 10),
    ],
)
def test_a_token_with_one_claim_otherwise_is_refused_for_that_reason(
    claims: dict[str, Any], code: str, kind: type | None, step: int
) -> None:
    """C-6, C-7: well signed; what is missing is refused like what is wrong."""
    error = refusal(**claims)
    if kind is None:
        assert error is None
        return
    assert type(error) is kind
    assert (error.code, error.steps[-1].number) == (code, step)


@pytest.mark.parametrize("model", ["GCP_AMD_SEV", "GCP_AMD_SEV_ES", "GCP_AMD_SEV_SNP", "GCP_INTEL_TDX"])
def test_each_kind_of_machine_is_accepted_where_the_policy_names_it(model: str) -> None:
    assert code_of(GOOGLE.policy(hardware={model}), hwmodel=model) == "accepted"


def test_the_support_that_is_asked_for_must_all_be_there() -> None:
    both = GOOGLE.policy(support_attributes={"STABLE", "LATEST"})
    assert code_of(both) == "accepted"
    assert code_of(both, **space("STABLE", "USABLE")) == "support-level"
    assert code_of(GOOGLE.policy(support_attributes={"USABLE"}), **space("USABLE")) == "accepted"


def test_old_images_of_confidential_space_are_refused_below_the_floor() -> None:
    """C-8."""
    assert code_of(GOOGLE.policy(minimum_version=260400)) == "accepted"
    error = refusal(GOOGLE.policy(minimum_version=260401))
    assert type(error) is TcbTooOld
    assert (error.code, error.steps[-1].number) == ("tcb-too-old", 9)
    assert code_of(GOOGLE.policy(minimum_version=1), swversion=None) == "tcb-too-old"
    assert code_of(GOOGLE.policy(), swversion=None) == "accepted"


def test_the_tcb_status_is_compared_if_the_policy_names_any() -> None:
    """C-12: with what Google tells of it."""
    asked = GOOGLE.policy(tcb_statuses={"UpToDate"})
    assert code_of(asked) == "accepted"
    assert code_of(asked, tdx={"gcp_attester_tcb_status": "OutOfDate"}) == "tcb-status"
    assert code_of(asked, tdx=None) == "tcb-status"
    assert code_of(tdx=None) == "accepted"


def test_what_an_operator_may_change_is_what_the_policy_names() -> None:
    level = GOOGLE.policy(environment_overrides={"LEVEL", "PORT"})
    assert code_of(level, **container(env_override={"LEVEL": "3"})) == "accepted"
    assert code_of(level, **container(env_override={"LEVEL": "3", "DEBUG": "1"})) == "override-not-allowed"
    assert code_of(level, **container(cmd_override=["sh"])) == "override-not-allowed"
    assert code_of(GOOGLE.policy(allow_command_override=True), **container(cmd_override=["sh"])) == "accepted"


@pytest.mark.parametrize(
    ("wish", "claims"),
    [
        ({"project_ids": {PROJECT, "another"}}, {"submods": {"gce": {"project_id": "somebody-s"}}}),
        ({"instance_ids": {INSTANCE}}, {"submods": {"gce": {"instance_id": "1"}}}),
        ({"service_accounts": {ACCOUNT}}, {"google_service_accounts": ["x@y.example"]}),
    ],
)
def test_a_policy_may_name_the_project_the_machine_or_the_account(
    wish: dict[str, Any], claims: dict[str, Any]
) -> None:
    """C-51: the same image in another project is another machine."""
    asked = GOOGLE.policy(**wish)
    assert code_of(asked) == "accepted"
    assert code_of(**claims) == "accepted"
    assert code_of(asked, **claims) == "instance-not-listed"
    assert code_of(asked, submods={"gce": None}, google_service_accounts=None) == "instance-not-listed"


def test_the_report_says_what_was_not_asked() -> None:
    """C-51."""
    walk = Walk()
    appraise(GOOGLE.token(), {}, GOOGLE.policy(), now=NOON, walk=walk)
    last = walk.steps[-1]
    assert last.outcome == "not asked"
    assert "any project" in last.detail
    assert [check.outcome for check in last.checks] == ["not asked"] * 3
    walk = Walk()
    appraise(GOOGLE.token(), {}, GOOGLE.policy(project_ids={PROJECT}), now=NOON, walk=walk)
    assert walk.steps[-1].outcome == "passed"


# --- binding ---


@pytest.mark.parametrize("nonces", [SPOKEN, [SPOKEN], ["another one", SPOKEN], [SPOKEN, "another one"]])
def test_a_token_speaks_for_the_key_whose_binding_is_among_its_nonces(nonces: object) -> None:
    claims = claims_of(eat_nonce=nonces)
    assert claims.speaks_for(BOUND)
    assert claims.carries(SPOKEN.encode("ascii"))


@pytest.mark.parametrize(
    "nonces",
    [
        None,
        [],
        "",
        SPOKEN[:-1],
        SPOKEN + "=",
        SPOKEN + "A",
        SPOKEN.lower(),
        BOUND.digest.hex(),
        [SPOKEN[:32], SPOKEN[32:]],
        to_base64url(BOUND.nonce).decode("ascii"),
        to_base64url(bytes(48)).decode("ascii"),
    ],
)
def test_any_other_nonce_is_another_answer(nonces: object) -> None:
    """C-1, C-2, C-5: one of the nonces is the whole binding, in its one spelling."""
    claims = claims_of(eat_nonce=nonces)
    assert not claims.speaks_for(BOUND)
    assert not claims.carries(SPOKEN.encode("ascii"))


# --- policies ---


@pytest.mark.parametrize(
    "wish",
    [
        {"audiences": set()},
        {"audiences": None},
        {"audiences": AUDIENCE},
        {"audiences": {""}},
        {"audiences": {"x" * 1025}},
        {"image_digests": set()},
        {"image_digests": {IMAGE.removeprefix("sha256:")}},
        {"image_digests": {IMAGE.upper()}},
        {"image_digests": {"sha512:" + "0" * 64}},
        {"image_digests": {bytes(32)}},
        {"hardware": set()},
        {"hardware": {"GCP_SHIELDED_VM"}},
        {"hardware": {"GCP_SHIELDED_VM", "GCP_INTEL_TDX"}},
        {"hardware": {"INTEL_TDX"}},
        {"hardware": "GCP_INTEL_TDX"},
        {"support_attributes": set()},
        {"support_attributes": {"stable"}},
        {"tcb_statuses": set()},
        {"environment_overrides": set()},
        {"project_ids": set()},
        {"instance_ids": set()},
        {"instance_ids": {1234}},
        {"service_accounts": set()},
        {"minimum_version": -1},
        {"minimum_version": "260400"},
        {"minimum_version": 10**9 + 1},
        {"clock_skew_seconds": 3601},
        {"clock_skew_seconds": -1},
        {"allow_command_override": 1},
        {"allow_command_override": None},
        {"roots": {}},
    ],
)
def test_a_policy_that_could_not_mean_what_it_says_is_no_policy(wish: dict[str, Any]) -> None:
    """C-22: an empty set accepts nobody; a shielded VM is no TEE."""
    with pytest.raises(InvalidPolicy):
        GOOGLE.policy(**wish)


@pytest.mark.parametrize("absent", ["audiences", "image_digests", "hardware"])
def test_what_has_no_safe_default_has_to_be_said(absent: str) -> None:
    """C-22: in Python and in JSON."""
    told = {"audiences": {AUDIENCE}, "image_digests": {IMAGE}, "hardware": {"GCP_INTEL_TDX"}}
    del told[absent]
    with pytest.raises(TypeError, match=absent):
        GcpPolicy(**told)
    with pytest.raises(strict_json.JsonRefused) as caught:
        policy_json.read({name: sorted(values) for name, values in told.items()}, "gcp")
    assert caught.value.code == "missing-key"
    assert absent in policy_json.SCHEMA["required"]


SHORT = GcpPolicy(audiences={AUDIENCE}, image_digests={IMAGE}, hardware={"GCP_INTEL_TDX"})
FULL = GcpPolicy(
    audiences={AUDIENCE, "another"},
    image_digests={IMAGE, OTHER_IMAGE},
    hardware={"GCP_INTEL_TDX", "GCP_AMD_SEV"},
    support_attributes={"STABLE", "LATEST"},
    minimum_version=250800,
    tcb_statuses={"UpToDate"},
    environment_overrides={"LEVEL"},
    allow_command_override=True,
    project_ids={PROJECT},
    instance_ids={INSTANCE},
    service_accounts={ACCOUNT},
    clock_skew_seconds=0,
)


@pytest.mark.parametrize("policy", [SHORT, FULL])
def test_a_policy_and_its_json_are_the_same(policy: GcpPolicy) -> None:
    read = policy_json.read(strict_json.parse(strict_json.dump(policy_json.write(policy))), "gcp")
    assert read == policy
    assert hash(read) == hash(policy)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"roots": {}}, "unknown-key"),
        ({"debug": True}, "unknown-key"),
        ({"audiences": AUDIENCE}, "wrong-type"),
        ({"minimum_version": "250800"}, "wrong-type"),
        ({"allow_command_override": 1}, "wrong-type"),
    ],
)
def test_a_misspelt_wish_in_json_is_an_error(change: dict[str, Any], code: str) -> None:
    with pytest.raises(strict_json.JsonRefused) as caught:
        policy_json.read({**policy_json.write(FULL), **change}, "gcp")
    assert caught.value.code == code
    json.dumps(policy_json.SCHEMA)


def test_a_policy_says_in_words_that_it_is_google_who_says_it() -> None:
    """C-51: who has to be trusted, and what is left open."""
    short, full = SHORT.in_words(), FULL.in_words()
    assert short.trusts[0].startswith("Google")
    assert any("hardware's own evidence" in one for one in short.unchecked)
    assert any("any project" in one for one in short.unchecked)
    assert not any("any project" in one for one in full.unchecked)
    assert any("Memory integrity" in one for one in full.unchecked)
    assert not any("Memory integrity" in one for one in short.unchecked)
    for value in (AUDIENCE, IMAGE, PROJECT, INSTANCE, ACCOUNT, "LEVEL", "UpToDate"):
        assert any(value in one for one in full.checks)
    assert "The operator has not changed the command of the image." in short.checks
    assert "The operator has not changed the command of the image." not in full.checks
    assert "Of the environment, the operator has set nothing." in short.checks
    for left_open in (
        "What the operator writes into those variables.",
        "The command that the operator gives to the image.",
    ):
        assert left_open in full.unchecked
        assert left_open not in short.unchecked


@pytest.mark.parametrize(
    "wish", [{"project_ids": {PROJECT}}, {"instance_ids": {INSTANCE}}, {"service_accounts": {ACCOUNT}}]
)
def test_who_names_a_machine_in_any_way_is_not_told_that_any_passes(wish: dict[str, Any]) -> None:
    """C-51: in the report, and in the policy's own words."""
    policy, walk = GOOGLE.policy(**wish), Walk()
    appraise(GOOGLE.token(), {}, policy, now=NOON, walk=walk)
    assert walk.steps[-1].outcome == "passed"
    assert not any("any project" in one for one in policy.in_words().unchecked)


def test_a_policy_may_name_all_that_there_is() -> None:
    """And is not changed by whoever changes the sets that it was made from."""
    attributes, hardware = set(SUPPORT_ATTRIBUTES), set(HARDWARE)
    policy = GOOGLE.policy(support_attributes=attributes, hardware=hardware)
    attributes.clear()
    hardware.clear()
    assert (policy.support_attributes, policy.hardware) == (set(SUPPORT_ATTRIBUTES), set(HARDWARE))


def test_who_names_a_shielded_vm_is_told_why_it_is_refused() -> None:
    """C-22: its host can read its memory."""
    with pytest.raises(InvalidPolicy, match="no TEE"):
        GOOGLE.policy(hardware={"GCP_SHIELDED_VM"})


def test_what_an_operator_has_set_is_told_in_a_short_line() -> None:
    error = refusal(**container(image_digest=IMAGE, env_override={"X" * 200: "", "Y\n": ""}))
    assert error is not None
    assert error.code == "override-not-allowed"
    assert f"has set {'X' * 64}, Y\\n in the" in str(error)


def test_the_table_of_platforms_says_whose_verdict_it_is() -> None:
    platform = PLATFORMS["gcp-confidential-space"]
    assert platform.trusts == ("Google",)
    assert "Google's verdict" in platform.title
