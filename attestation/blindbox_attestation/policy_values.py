"""
What the fields of a policy may hold: sets that name somebody, digests of the right size, bounded numbers.

Each function gives back the frozen value, or raises `InvalidPolicy`. What a field means is said in
`policy.py` of each platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType

from .errors import InvalidPolicy

FINGERPRINT_SIZE = 32


def several(name: str, values: object) -> frozenset[object]:
    """A set that is not empty: an empty one would accept nobody."""
    if not isinstance(values, Set | list | tuple) or not values:
        raise InvalidPolicy(f"{name} is {values!r}, expected a set that names at least one")
    try:
        return frozenset(values)
    except TypeError as error:
        raise InvalidPolicy(f"{name}: {error}") from error


def digests(name: str, values: object, size: int) -> frozenset[bytes]:
    found = frozenset(one for one in several(name, values) if isinstance(one, bytes) and len(one) == size)
    if found != several(name, values):
        raise InvalidPolicy(f"{name}: expected {size} bytes each")
    return found


def words(name: str, values: object, most: int = 256) -> frozenset[str]:
    """Short printable strings, compared letter by letter."""
    found = frozenset(
        one
        for one in several(name, values)
        if isinstance(one, str) and 0 < len(one) <= most and one.isascii() and one.isprintable()
    )
    if found != several(name, values):
        raise InvalidPolicy(f"{name}: expected printable strings of 1 to {most} characters")
    return found


def integer(name: str, value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidPolicy(f"{name} is {value!r}, expected 0 to {most}")
    return value


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidPolicy(f"{name} is {value!r}, expected True or False")
    return value


def roots(values: object) -> Mapping[bytes, str]:
    """Fingerprint → name of a root; without any, nobody could be believed."""
    if not isinstance(values, Mapping) or not values:
        raise InvalidPolicy("without roots nobody could be believed")
    for fingerprint, name in values.items():
        if (
            not isinstance(fingerprint, bytes)
            or len(fingerprint) != FINGERPRINT_SIZE
            or not isinstance(name, str)
        ):
            raise InvalidPolicy("roots: expected SHA-256 fingerprints, each with a name")
    return MappingProxyType(dict(values))
