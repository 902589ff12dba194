"""
The JSON form of an `SnpPolicy`: one table, from which reading, writing and the schema follow.

What the values mean is checked in `policy.py`, where the object is made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from .policy import (
    CHIP_ID_SIZE,
    HOST_DATA_SIZE,
    KEY_DIGEST_SIZE,
    MEASUREMENT_SIZE,
    TURIN_CHIP_ID_SIZE,
    SnpPolicy,
)
from .report import KEY_NAMES
from .tcb import FAMILIES, LAYOUTS, STEPPINGS, Tcb, family_named


def _read_floors(value: object, where: str) -> dict[str, Tcb]:
    told = strict_json.fields(value, where, (), value if isinstance(value, dict) else ())
    floors: dict[str, Tcb] = {}
    for name, floor in told.items():
        family = family_named(name)
        if family is None:
            known = ", ".join(FAMILIES)
            raise strict_json.JsonRefused(
                f"{where} has an unknown key {name[:64]!a}; "
                f"it knows {known}, and steppings as in 'Genoa/a0/2'",
                "unknown-key",
            )
        here = f"{where} of {name}"
        parts = strict_json.fields(floor, here, tuple(LAYOUTS[family]))
        floors[name] = Tcb(
            **{part: strict_json.integer(found, here, 0, 255) for part, found in parts.items()}
        )
    return floors


def _write_floors(floors: Mapping[str, Tcb]) -> strict_json.Object:
    return {
        name: {part: getattr(floor, part) for part in LAYOUTS[str(family_named(name))]}
        for name, floor in sorted(floors.items())
    }


def _floor_schema(family: str) -> strict_json.Object:
    part = {"type": "integer", "minimum": 0, "maximum": 255}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(LAYOUTS[family]),
        "properties": dict.fromkeys(LAYOUTS[family], part),
    }


FORMS: Final[Mapping[str, Form]] = {
    "measurements": policy_form.hex_set(
        MEASUREMENT_SIZE, about="Launch digests of the images that are trusted.", required=True
    ),
    "minimum_tcb": policy_form.nested(
        _read_floors,
        _write_floors,
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {family: _floor_schema(family) for family in FAMILIES},
            "patternProperties": {pattern: _floor_schema(family) for family, pattern in STEPPINGS.items()},
            "description": "The oldest firmware, one floor for each processor family that is accepted. "
            "The floor of a stepping, as in Genoa/a0/2, takes the place of its family's.",
        },
        required=True,
    ),
    "vmpl": policy_form.integer(3, about="The privilege level that must have asked for the report."),
    "signing_keys": policy_form.names(KEY_NAMES.values(), about="The kinds of key that may have signed."),
    "chip_ids": policy_form.hex_set(
        CHIP_ID_SIZE,
        TURIN_CHIP_ID_SIZE,
        about="The processors that are accepted; without it, any genuine one.",
    ),
    "csp_ids": policy_form.texts(about="The clouds whose VLEK may sign, as its certificate names them."),
    "id_key_digests": policy_form.hex_set(KEY_DIGEST_SIZE, about="Keys that may have signed the ID block."),
    "author_key_digests": policy_form.hex_set(KEY_DIGEST_SIZE, about="Keys that may stand behind those."),
    "host_data": policy_form.hex_one(HOST_DATA_SIZE, about="What the host must have given at launch."),
    "minimum_guest_svn": policy_form.integer((1 << 32) - 1, about="The oldest version of the ID block."),
    "allow_smt": policy_form.flag(about="Whether sibling threads may run on the same core."),
    "allow_masked_chip_id": policy_form.flag(about="Whether a chip may hide which one it is."),
    "platform_info_required": policy_form.integer(
        policy_form.INTEGER_MOST, about="Bits of PLATFORM_INFO that must be set."
    ),
    "platform_info_forbidden": policy_form.integer(
        policy_form.INTEGER_MOST, about="Bits of PLATFORM_INFO that must not be set."
    ),
    "revocation": policy_form.choice(
        ("required", "unchecked"), about="Whether a current revocation list must be there."
    ),
}

SCHEMA: Final = policy_form.object_schema(FORMS, "AMD SEV-SNP.")


def read(value: object, where: str) -> SnpPolicy:
    return SnpPolicy(**policy_form.read_fields(value, where, FORMS))


def write(policy: SnpPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, FORMS)
