"""
The name of a policy: 32 bytes that equal policies, and no others, share.

A key that was proved under one policy is never used under another; this is how the two are told apart. Every
field of the object that takes part in its equality is in the digest, whether or not it has a form in JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import timedelta
from typing import Any


def digest_of(label: bytes, policy: object) -> bytes:
    """SHA-256 over the label and the policy, each field by its name."""
    return hashlib.sha256(label + spelled(policy).encode("ascii")).digest()


def spelled(value: object) -> str:
    """The one spelling of a policy, or of a part of it."""
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, timedelta):
        return {"microseconds": value // timedelta(microseconds=1)}
    if is_dataclass(value):
        told = {one.name: _plain(getattr(value, one.name)) for one in fields(value) if one.compare}
        return [type(value).__name__, told]
    if isinstance(value, Mapping):
        return {"mapping": sorted(([_plain(key), _plain(one)] for key, one in value.items()), key=json.dumps)}
    if isinstance(value, Set):
        return {"set": sorted((_plain(one) for one in value), key=json.dumps)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    raise TypeError(f"a {type(value).__name__} has no place in a policy")
