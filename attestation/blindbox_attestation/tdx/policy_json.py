"""
The JSON form of a `TdxPolicy`: one table, from which reading, writing and the schema follow.

What the values mean is checked in `policy.py`, where the object is made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from .policy import FMSPC_SIZE, ID_SIZE, REGISTER_SIZE, RTMRS, STATUSES, SVN_SIZE, TdxPolicy
from .rtmr import IN_CCEL

FORMS: Final[Mapping[str, Form]] = {
    "mrtd": policy_form.hex_set(
        REGISTER_SIZE, about="Firmware images that are trusted (MRTD).", required=True
    ),
    "minimum_tcb_evaluation": policy_form.integer(
        (1 << 32) - 1,
        about="The oldest of Intel's TCB evaluations (tcbEvaluationDataNumber) to judge by.",
        required=True,
    ),
    "rtmrs": policy_form.registers(REGISTER_SIZE, RTMRS, about="Values that RTMR0 to RTMR3 may have."),
    "statuses": policy_form.names(STATUSES, about="Intel's words for the firmware that are accepted."),
    "accepted_advisories": policy_form.texts(
        about="Intel's advisories (INTEL-SA-…) that may apply to a machine that is not up to date.", most=64
    ),
    "mrseam": policy_form.hex_set(
        REGISTER_SIZE, about="TDX modules that are accepted; without it, any of Intel's."
    ),
    "minimum_tee_tcb_svn": policy_form.hex_one(SVN_SIZE, about="The least TEE_TCB_SVN, byte by byte."),
    "xfam_allowed": policy_form.integer(
        policy_form.INTEGER_MOST, about="Bits of XFAM (processor features) that may be set."
    ),
    "mr_config_id": policy_form.hex_one(REGISTER_SIZE, about="What the host must have given as MRCONFIGID."),
    "mr_owner": policy_form.hex_one(REGISTER_SIZE, about="What the host must have given as MROWNER."),
    "mr_owner_config": policy_form.hex_one(
        REGISTER_SIZE, about="What the host must have given as MROWNERCONFIG."
    ),
    "ppids": policy_form.hex_set(
        ID_SIZE, about="The processors that are accepted; without it, any genuine one."
    ),
    "platform_instance_ids": policy_form.hex_set(ID_SIZE, about="The platforms that are accepted."),
    "fmspcs": policy_form.hex_set(FMSPC_SIZE, about="The kinds of machine that are accepted."),
    "event_log": policy_form.choice(
        ("required", "unused"),
        about="Whether the log of the boot must be there, and give the same RTMR0 to RTMR2.",
    ),
    "events": policy_form.registers(
        REGISTER_SIZE, IN_CCEL, about="Digests: nothing else was measured into that register, by the log."
    ),
}

SCHEMA: Final = policy_form.object_schema(FORMS, "Intel TDX.")


def read(value: object, where: str) -> TdxPolicy:
    return TdxPolicy(**policy_form.read_fields(value, where, FORMS))


def write(policy: TdxPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, FORMS)
