"""
The JSON form of a `NitroPolicy`: one table, from which reading, writing and the schema follow.

What the values mean is checked in `policy.py`, where the object is made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from .document import PCR_SIZE, PCRS
from .policy import LONGEST_AGE, LONGEST_SKEW, NitroPolicy

FORMS: Final[Mapping[str, Form]] = {
    "pcrs": policy_form.registers(
        PCR_SIZE,
        PCRS,
        about="What a register may hold: PCR0 is the image, PCR8 who signed it; one of them is needed.",
        required=True,
    ),
    "instance_ids": policy_form.texts(about="Ids of the parent instances that are accepted (PCR4)."),
    "iam_roles": policy_form.texts(about="ARNs of the parent's IAM roles that are accepted (PCR3)."),
    "max_age_seconds": policy_form.integer(LONGEST_AGE, about="How old a document may be."),
    "clock_skew_seconds": policy_form.integer(
        LONGEST_SKEW, about="How far in the future of this clock a document or its certificates may begin."
    ),
}

SCHEMA: Final = policy_form.object_schema(FORMS, "AWS Nitro Enclaves.")


def read(value: object, where: str) -> NitroPolicy:
    return NitroPolicy(**policy_form.read_fields(value, where, FORMS))


def write(policy: NitroPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, FORMS)
