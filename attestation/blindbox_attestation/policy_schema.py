"""
The JSON Schema (2020-12) of a policy file, made from the tables by which it is read.

It says what can be said about the form. What the values mean together (a set of zeros, a bit that is both
required and forbidden) is refused where the policy object is made.
"""

from __future__ import annotations

from typing import Final

from . import strict_json
from .policy import CONFIG_DIGESTS, DEEPEST, LONGEST_AGE, LONGEST_SKEW, MOST, PARTS, VERSION

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_VERSION: Final = {"version": {"const": VERSION}}
_SEVERAL: Final = {
    "any_of": "A machine is accepted if one of these accepts it.",
    "all_of": "A machine is accepted if every one of these accepts it.",
}


def schema() -> strict_json.Object:
    """What a policy file may look like."""
    return {
        "$schema": DIALECT,
        "title": "BlindBox policy",
        "description": "Which machines may hold a key that is used: none but those that are named.",
        "oneOf": _kinds(DEEPEST, top=True),
        "$defs": {key: part.schema for key, part in PARTS.items()},
    }


def _kinds(deep: int, *, top: bool) -> list[strict_json.Object]:
    """A policy on its own, or several in one, as long as they may still be nested."""
    version = _VERSION if top else {}
    kinds = [_policy(version)]
    if deep:
        inner = {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST,
            "items": {"oneOf": _kinds(deep - 1, top=False)},
        }
        kinds += [
            _object({**version, word: {**inner, "description": about}}, [*version, word])
            for word, about in _SEVERAL.items()
        ]
    return kinds


def _policy(version: strict_json.Object) -> strict_json.Object:
    parts = {key: {"$ref": f"#/$defs/{key}"} for key in PARTS}
    times = {
        "accept_cached": {
            "type": "boolean",
            "description": "Whether evidence without a nonce of one's own is taken too.",
        },
        "max_age_seconds": {
            "type": "integer",
            "minimum": 0,
            "maximum": int(LONGEST_AGE.total_seconds()),
            "description": "How long a proof may be relied on before asking again.",
        },
        "clock_skew_seconds": {
            "type": "integer",
            "minimum": 0,
            "maximum": int(LONGEST_SKEW.total_seconds()),
            "description": "How far this clock and the machine's may be apart.",
        },
    }
    settings = {"config_digests": CONFIG_DIGESTS.schema}
    some = [{"required": [key]} for key in PARTS]
    return {**_object({**version, **parts, **times, **settings}, [*version]), "anyOf": some}


def _object(properties: strict_json.Object, required: list[str]) -> strict_json.Object:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }
