"""
What was checked, written down while it is checked.

A `Walk` goes through the steps of SPEC §4 in order. What passed, what failed and what did not apply are three
different things here, so that a skipped check never looks like a passed one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import AttestationError
from .steps import NAMES, Outcome, Step


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
