"""A judged receipt as lines for a terminal: what it says, the files at hand, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TextIO

from blindbox_attestation.errors import ReceiptMismatch

from ..printable import plain
from .receipt import WHAT, ReceiptReport, told
from .text import painted

_NAME: Final = 27


def show(report: ReceiptReport, out: TextIO) -> None:
    """Print it. Of a receipt that was not proved there is only the verdict."""
    if report.proved is not None:
        print(f"training receipt {plain(report.path)}", file=out)
        for name, value in told(report.proved.receipt):
            print(f"  {name:<{_NAME}}{plain(value)}", file=out)
    for held in report.files:
        mark, verb, colour = ("✔", "is", "32") if held.fits else ("✘", "is not", "31")
        print(painted(f"  {mark} {WHAT[held.what]} {verb} {plain(held.path)}", colour, out), file=out)
    for line, colour in _verdict(report):
        print(painted(line, colour, out) if colour else line, file=out)


def _verdict(report: ReceiptReport) -> Iterator[tuple[str, str]]:
    """The last lines, with their colours."""
    if report.proved is not None:
        machine = report.proved.machine
        if report.simulated:
            yield "SIMULATED: nothing was proved, for anybody can be this machine", "1;31"
            yield f"        it says: measurement {machine.measurement.hex()}", ""
        else:
            signed = "proved" if report.error is None else "the machine is proved, and signed it"
            yield f"{signed}: {machine.title}, measurement {machine.measurement.hex()}", "32"
            yield f"        settings {machine.config_digest.hex()}", ""
            yield f"        if you trust {', '.join(machine.trusts)}", ""
            yield "        it does not say that the data was good, and the time is its host's", ""
    if report.problem is not None:
        how = "does not fit" if isinstance(report.error, ReceiptMismatch) else "not proved"
        yield f"{how}: {report.problem.message} [{report.problem.code}]", "31"
