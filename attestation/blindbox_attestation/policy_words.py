"""A policy in plain sentences, for the person who has to sign it off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """What a policy relies on, what it looks at, and what it leaves open. Each entry is one sentence."""

    trusts: tuple[str, ...]
    checks: tuple[str, ...]
    unchecked: tuple[str, ...]
