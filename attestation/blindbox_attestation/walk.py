"""
What was checked, written down while it is checked.

A `Walk` goes through the steps of SPEC §4 in order. What passed, what failed, what did not apply and what the
policy did not ask are four different things here, so that a skipped check never looks like a passed one.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime
from types import TracebackType
from typing import Final

from .errors import AttestationError, PolicyRefused
from .steps import NAMES, Check, Outcome, Step

_MOST_NAMED: Final = 4
_SEVERAL: Final = (frozenset, list, tuple, Set)


class Finding:
    """What a step has to tell: a line of its own, and one entry for each check in it."""

    __slots__ = ("checks", "detail", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome = "passed"
        self.detail = ""
        self.checks: list[Check] = []

    def passed(self, detail: str) -> None:
        self.detail = detail

    def does_not_apply(self, why: str) -> None:
        self.outcome, self.detail = "not applicable", why

    def was_not_asked(self, why: str) -> None:
        self.outcome, self.detail = "not asked", why

    def expect(
        self,
        true: bool,
        name: str,
        *,
        found: object,
        wanted: object,
        source: str,
        error: type[AttestationError] = PolicyRefused,
        code: str | None = None,
        message: str = "",
    ) -> None:
        """
        One check: write down what was found and what was wanted, and raise `error` unless it is
        `true`.

        Bytes are told in hexadecimal, sets as a choice. Without a `message` the error says
        "{name} is {found}, expected {wanted}".
        """
        outcome: Outcome = "passed" if true else "failed"
        check = Check(name, outcome, told(found), told(wanted), source)
        self.checks.append(check)
        if not true:
            raise error(message or f"{name} is {check.found}, expected {check.wanted}", code=code)

    def not_asked(self, name: str, *, found: object = "", source: str = "") -> None:
        """The policy has no wish about this; what was found is told all the same."""
        self.checks.append(Check(name, "not asked", told(found), "", source))

    def not_applicable(self, name: str, why: str) -> None:
        self.checks.append(Check(name, "not applicable", why, "", ""))


def told(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "yes" if value else "no"
    # An integer is no set, which an abstract class takes long to find out: some forty times a proof.
    if not isinstance(value, int) and isinstance(value, _SEVERAL):
        if len(value) > _MOST_NAMED:
            return f"one of {len(value)}"
        return " or ".join(sorted(map(told, value)))
    return str(value)


def moment(time: datetime) -> str:
    """A time in UTC as a person reads it. `strftime` takes ten times as long, and there are many times."""
    return f"{time.isoformat(' ', 'seconds')[:19]} UTC"


def day(time: datetime) -> str:
    return time.isoformat()[:10]


class Walk:
    """The steps so far. An error that ends the walk carries them, the failed one last."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def step(self, number: int) -> _Stride:
        return _Stride(self._steps, number)


class _Stride:
    """One step being walked. A class, for a generator takes four times as long, a dozen times a proof."""

    __slots__ = ("_finding", "_number", "_steps")

    def __init__(self, steps: list[Step], number: int) -> None:
        self._steps = steps
        self._number = number
        self._finding = Finding()

    def __enter__(self) -> Finding:
        return self._finding

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Anything but an `AttestationError` is no outcome of a step, and passes by."""
        finding, name = self._finding, NAMES[self._number]
        if error is None:
            step = Step(self._number, name, finding.outcome, finding.detail, tuple(finding.checks))
            self._steps.append(step)
        elif isinstance(error, AttestationError):
            checks = tuple(finding.checks)
            if not checks or checks[-1].outcome != "failed":
                checks += (Check(error.code.replace("-", " "), "failed", str(error), "", ""),)
            self._steps.append(Step(self._number, name, "failed", str(error), checks))
            error.steps = tuple(self._steps)
