"""
The JSON form of a `MeasuredBoot`, as one table; reading, writing and the schema follow.

Every policy of a machine with a TPM has it under `boot`. What the values mean is checked in `boot.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .. import policy_form, strict_json
from ..event_log import BANK_SIZES
from ..policy_form import Form
from .boot import LOGGED, MAX_RULES, RESETTABLE, SHA256_SIZE, EventRule, MeasuredBoot
from .quote import BANKS_READ, PCRS

_SIZES: Final = tuple(BANK_SIZES[bank] for bank in BANKS_READ)

RULE_FORMS: Final[Mapping[str, Form]] = {
    "register": policy_form.integer(LOGGED[-1], about="The register that the rule is about.", required=True),
    "only": policy_form.hex_set(
        *_SIZES, about="Digests, of the policy's bank: nothing else was measured into the register."
    ),
    "variable": policy_form.one_text(
        about="A variable that the firmware measured before it began to boot, such as db.", most=64
    ),
    "sha256_of_data": policy_form.hex_set(SHA256_SIZE, about="SHA-256 of what the variable may hold."),
}


def _read_registers(value: object, where: str) -> dict[int, frozenset[bytes]]:
    known = {str(register): register for register in PCRS if register not in RESETTABLE}
    told = strict_json.fields(value, where, (), tuple(known))
    return {known[name]: _VALUES.read(values, f"{where} {name}") for name, values in told.items()}


def _write_registers(value: Mapping[int, frozenset[bytes]]) -> strict_json.Object | None:
    return {str(register): _VALUES.write(values) for register, values in sorted(value.items())}


def _read_rules(value: object, where: str) -> tuple[EventRule, ...]:
    return tuple(
        EventRule(**policy_form.read_fields(one, where, RULE_FORMS))
        for one in strict_json.items(value, where)
    )


def _write_rules(value: tuple[EventRule, ...]) -> list[Any]:
    return [policy_form.write_fields(rule, RULE_FORMS) for rule in value]


_VALUES: Final = policy_form.hex_set(*_SIZES, about="The values that the register may have.")

FORMS: Final[Mapping[str, Form]] = {
    "pcrs": policy_form.nested(
        _read_registers,
        _write_registers,
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {str(register): _VALUES.schema for register in PCRS if register not in RESETTABLE},
            "description": "What a register may hold, in that bank. A register or an event is needed.",
        },
    ),
    "events": policy_form.nested(
        _read_rules,
        _write_rules,
        {
            "type": "array",
            "maxItems": MAX_RULES,
            "items": policy_form.object_schema(RULE_FORMS, "What the log must say of one register."),
            "description": "Rules about single registers, read from the log of the boot.",
        },
    ),
    "bank": policy_form.choice(BANKS_READ, about="The hash of the registers."),
    "secure_boot": policy_form.choice(
        ("required", "unchecked"), about="Whether the firmware's log must say that Secure Boot is on."
    ),
    "event_log": policy_form.choice(
        ("required", "unused"), about="Whether the log of the boot must be there and add up."
    ),
}

SCHEMA: Final = {
    **policy_form.object_schema(FORMS, "A measured boot."),
    "anyOf": [{"required": ["pcrs"]}, {"required": ["events"]}],
}


def read(value: object, where: str) -> MeasuredBoot:
    return MeasuredBoot(**policy_form.read_fields(value, where, FORMS))


def write(boot: MeasuredBoot) -> strict_json.Object:
    return policy_form.write_fields(boot, FORMS)


FORM: Final = policy_form.nested(read, write, SCHEMA, required=True)
"""A boot within a policy."""
