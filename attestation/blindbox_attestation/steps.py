"""
The numbered steps of SPEC §4, the checks within each, and what came of them; how they are walked is
`walk.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Outcome = Literal["passed", "failed", "not applicable", "not asked"]

NAMES: Final = {
    1: "the document is readable",
    2: "the policy names the platform",
    3: "the evidence is readable",
    4: "its certificates lead to a pinned root",
    5: "no certificate is revoked",
    6: "its vendor speaks for this machine and this firmware",
    7: "the evidence is signed by the machine",
    8: "it is about this key and this question",
    9: "firmware and microcode are new enough",
    10: "the host cannot look inside",
    11: "the right part of the machine asked",
    12: "the right program was launched",
    13: "it is a machine the policy names",
}
"""The steps of SPEC §4."""


class Check(NamedTuple):
    """
    One comparison within a step.

    "not asked" means that the policy has no wish about it, "not applicable" that this machine has no
    such thing. A tuple, because a proof has some forty, and a frozen dataclass takes three times as long
    to make.
    """

    name: str
    outcome: Outcome
    found: str  # what the evidence says; empty where nothing was looked at
    wanted: str  # what the policy or the format asks for
    source: str  # where `found` was read


@dataclass(frozen=True, slots=True)
class Step:
    """One step of SPEC §4, and what came of it."""

    number: int
    name: str
    outcome: Outcome
    detail: str
    checks: tuple[Check, ...] = ()
