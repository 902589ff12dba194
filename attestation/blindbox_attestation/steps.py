"""
What was checked, written down while it is checked.

A `Walk` goes through the numbered steps of SPEC §4 in order. What passed, what failed and what did not apply
are three different things here, so that a skipped check never looks like a passed one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from .errors import AttestationError

Outcome = Literal["passed", "failed", "not applicable"]

NAMES: Final = {
    1: "the document is readable",
    2: "the policy names the platform",
    3: "the evidence is readable",
    4: "its certificates lead to a pinned root",
    5: "no certificate is revoked",
    6: "the certificate is for this chip and this firmware",
    7: "the evidence is signed by the chip",
    8: "it is about this key and this question",
    9: "firmware and microcode are new enough",
    10: "the host cannot look inside",
    11: "the right part of the machine asked",
    12: "the right program was launched",
    13: "it is a machine the policy names",
}
"""The steps of SPEC §4."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of SPEC §4, and what came of it."""

    number: int
    name: str
    outcome: Outcome
    detail: str


class Finding:
    """What a step has to tell when it has passed."""

    __slots__ = ("detail", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome = "passed"
        self.detail = ""

    def passed(self, detail: str) -> None:
        self.detail = detail

    def does_not_apply(self, why: str) -> None:
        self.outcome, self.detail = "not applicable", why


class Walk:
    """The steps so far. An error that ends the walk carries them, the failed one last."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    @contextmanager
    def step(self, number: int) -> Iterator[Finding]:
        finding = Finding()
        try:
            yield finding
        except AttestationError as error:
            self._steps.append(Step(number, NAMES[number], "failed", str(error)))
            error.steps = self.steps
            raise
        self._steps.append(Step(number, NAMES[number], finding.outcome, finding.detail))
