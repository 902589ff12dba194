"""Names of test cases that are the same in every process: workers that share a suite compare them."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """`repr` without addresses, and sets in order."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{shown(key)}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, set | frozenset) and value:
        return "{" + ", ".join(sorted(map(shown, value))) + "}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
