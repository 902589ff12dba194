"""
The JSON form of a `GcpPolicy`: one table, from which reading, writing and the schema follow.

What the values mean is checked in `policy.py`, where the object is made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from .policy import HARDWARE, LATEST_VERSION, LONGEST_SKEW, SUPPORT_ATTRIBUTES, GcpPolicy
from .token import MAX_TEXT

FORMS: Final[Mapping[str, Form]] = {
    "audiences": policy_form.texts(
        most=MAX_TEXT, about="Whom the token may be made out to (aud).", required=True
    ),
    "image_digests": policy_form.texts(
        about="The container images that are trusted, as sha256: and 64 hex digits.", required=True
    ),
    "hardware": policy_form.names(
        HARDWARE, about="The kinds of machine (hwmodel); GCP_AMD_SEV is the weakest.", required=True
    ),
    "support_attributes": policy_form.names(
        SUPPORT_ATTRIBUTES, about="What the image of Confidential Space must be, all of it."
    ),
    "minimum_version": policy_form.integer(
        LATEST_VERSION, about="The oldest image of Confidential Space (swversion)."
    ),
    "tcb_statuses": policy_form.texts(about="What Google may tell as the TCB status, for Intel TDX."),
    "environment_overrides": policy_form.texts(
        about="Variables that the operator may set; without it, none."
    ),
    "allow_command_override": policy_form.flag(about="Whether the operator may change the image's command."),
    "project_ids": policy_form.texts(about="The projects that are accepted; without it, anybody's."),
    "instance_ids": policy_form.texts(about="The machines that are accepted, by their number."),
    "service_accounts": policy_form.texts(about="Accounts of which the workload must have one."),
    "clock_skew_seconds": policy_form.integer(
        LONGEST_SKEW, about="How far this clock and Google's may be apart."
    ),
}

SCHEMA: Final = policy_form.object_schema(FORMS, "Google Confidential Space.")


def read(value: object, where: str) -> GcpPolicy:
    return GcpPolicy(**policy_form.read_fields(value, where, FORMS))


def write(policy: GcpPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, FORMS)
