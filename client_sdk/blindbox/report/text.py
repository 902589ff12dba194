"""A report as lines for a terminal: the steps, what failed or was not asked in them, and the verdict."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator
from typing import Final, TextIO

from blindbox_attestation.steps import Check, Step

from ..printable import plain, short
from . import Report, instant, spoken

MARKS: Final = {
    "passed": ("✔", "32"),
    "failed": ("✘", "31"),
    "not applicable": ("–", "2"),
    "not asked": ("·", "33"),
}
"""Outcome → its mark, and its colour on a terminal."""

_NARROWEST: Final = 60
_WIDEST: Final = 120
_OUTCOME: Final = 17  # what a mark, the longest outcome and a space take


def show(report: Report, out: TextIO, *, verbose: bool = False) -> None:
    """Print the report. With `verbose`, every check of every step."""
    width = _width(out)
    print(report.origin, file=out)
    for step in report.steps:
        _line(f"  {step.number:>2}  ", step.outcome, f"{step.name}: {step.detail}", width, out)
        for check in step.checks:
            if verbose or check.outcome in ("failed", "not asked"):
                for told in _told(step, check, verbose):
                    _line("        ", check.outcome, told, width, out)
    for line, colour in _verdict(report):
        print(painted(line, colour, out) if colour else line, file=out)


def _told(step: Step, check: Check, verbose: bool) -> Iterator[str]:
    """One line about a check; none if the step's own line has said it all."""
    whole = verbose or check.outcome == "failed"
    found, wanted = (check.found, check.wanted) if whole else (short(check.found), short(check.wanted))
    if check.outcome == "failed" and found == step.detail and not wanted:
        return
    if found and found == wanted and check.outcome == "passed":
        told = f"{check.name}: {found}, as wanted"
    else:
        parts = [f"found {found}"] if found else []
        parts += [f"wanted {wanted}"] if wanted else []
        told = f"{check.name}: {', '.join(parts)}" if parts else check.name
    yield f"{told} ({check.source})" if check.source and whole else told


def _verdict(report: Report) -> Iterator[tuple[str, str]]:
    """The last lines, with their colours."""
    if report.problem is not None:
        yield f"not proved: {report.problem.message} [{report.problem.code}]", "31"
        yield from ((plain(note), "") for note in getattr(report.error, "__notes__", ()))
    elif report.verified is not None:
        proved = report.verified
        if report.simulated:
            yield "SIMULATED: nothing was proved, for anybody can make this evidence", "1;31"
            yield f"        it says: measurement {proved.measurement.hex()}", ""
        else:
            yield f"proved: {proved.title}, measurement {proved.measurement.hex()}", "32"
            yield f"        at {spoken(report.at)}, until {spoken(report.until or proved.not_after)}", ""
            yield f"        if you trust {', '.join(proved.trusts)}", ""
    if report.again is not None:
        agrees = "as the file says" if report.again.agrees else f"but the file says: {report.again.said}"
        yield f"judged again as of {instant(report.at)}: {report.verdict}, {agrees}", ""
        if report.again.differs and report.again.said == report.verdict:
            yield (
                f"the file differs in: {', '.join(report.again.differs)} (it was written by "
                f"{report.again.written_by})",
                "31",
            )


def _line(start: str, outcome: str, text: str, width: int | None, out: TextIO) -> None:
    mark, colour = MARKS[outcome]
    told = f"{mark} {outcome}"
    first = start + painted(f"{told:<{_OUTCOME}}", colour, out)
    indent = " " * (len(start) + _OUTCOME)
    if width is None:
        print(first + text, file=out)
        return
    lines = textwrap.wrap(text, width - len(indent), break_on_hyphens=False) or [""]
    print(first + lines[0], file=out)
    for line in lines[1:]:
        print(indent + line, file=out)


def _width(out: TextIO) -> int | None:
    """Lines are broken for people only: a program that reads them wants each whole."""
    if not out.isatty():
        return None
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))


def painted(text: str, colour: str, out: TextIO) -> str:
    """Colour only for a person who looks."""
    return f"\033[{colour}m{text}\033[0m" if out.isatty() and not os.environ.get("NO_COLOR") else text
