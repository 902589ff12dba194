"""
The JSON form of a `TpmPolicy`, as one table; reading, writing and the schema follow.

What the values mean is checked in `policy.py`, where the object is made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from ..strict_json import JsonRefused
from . import boot_json
from .policy import KEY_DIGEST_SIZE, TpmPolicy

_INSTANCE: Final = policy_form.integer(policy_form.INTEGER_MOST, about="The id of a virtual machine.")


def _read_instances(value: object, where: str) -> frozenset[int]:
    found = [_INSTANCE.read(one, where) for one in strict_json.items(value, where)]
    if len(set(found)) != len(found):
        raise JsonRefused(f"{where} names something twice", "wrong-type")
    return frozenset(found)


FORMS: Final[Mapping[str, Form]] = {
    "boot": boot_json.FORM,
    "ak_keys": policy_form.hex_set(
        KEY_DIGEST_SIZE,
        about="Attestation keys that are pinned: SHA-256 of SubjectPublicKeyInfo. Without it, certificates.",
    ),
    "projects": policy_form.texts(about="Ids of the Google projects that are accepted."),
    "instances": policy_form.nested(
        _read_instances,
        sorted,
        {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": _INSTANCE.schema,
            "description": "Ids of the Google virtual machines that are accepted.",
        },
    ),
    "zones": policy_form.texts(about="Google zones that are accepted."),
}

SCHEMA: Final = policy_form.object_schema(FORMS, "The TPM of an ordinary machine.")


def read(value: object, where: str) -> TpmPolicy:
    return TpmPolicy(**policy_form.read_fields(value, where, FORMS))


def write(policy: TpmPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, FORMS)
