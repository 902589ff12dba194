"""
Two layers in one walk: what the processor's own platform finds in a step is told within the same step here.

On Azure the processor vouches for the paravisor, and the paravisor's TPM for the guest. Each number of SPEC
§4 is walked once all the same: `Beneath` lets the processor's platform walk by itself, and hands out its
steps one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import AttestationError
from ..walk import Finding, Walk

T = TypeVar("T")


class Beneath(Generic[T]):
    """The steps of the layer below, and what it found if it came to its end."""

    __slots__ = ("_failure", "_found", "_steps")

    def __init__(self, walk_through: Callable[[Walk], T]) -> None:
        walk = Walk()
        self._found: T | None = None
        self._failure: AttestationError | None = None
        try:
            self._found = walk_through(walk)
        except AttestationError as error:
            self._failure = error
        self._steps = {step.number: step for step in walk.steps}

    def tell(self, number: int, finding: Finding) -> None:
        """Write down what the layer below found in this step; if it failed there, its error is raised."""
        step = self._steps[number]
        finding.checks.extend(step.checks)
        if step.outcome == "failed":
            assert self._failure is not None
            raise self._failure
        finding.outcome, finding.detail = step.outcome, step.detail

    def tell_later(self, walk: Walk) -> None:
        """
        A refusal in a step after the last one told. `tdx` has such: `dcap-qvl` refuses at once what our own
        judging would refuse in step 9 or 10.
        """
        if self._failure is not None:
            number = max(self._steps)
            with walk.step(number) as finding:
                self.tell(number, finding)

    @property
    def found(self) -> T:
        """What the layer below came to; its error, if that has not been told."""
        if self._failure is not None:
            raise self._failure
        return self._found  # type: ignore[return-value]
