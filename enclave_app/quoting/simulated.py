"""
Evidence that proves nothing, for laptops and tests: SPEC §4.2.

It is shaped and judged like AMD SEV-SNP evidence, and signed with a key that everybody has. Only a client
that says `UnsafeSimulatedPolicy` takes it. A machine with real hardware refuses to make it, so that a
deployment which lost its settings stops instead of running unproven.
"""

from __future__ import annotations

from blindbox_attestation.binding import Bound, report_data
from blindbox_attestation.simulated import SIMULATED_ENDORSEMENTS, simulated_report

from . import Quote, QuoteUnavailable
from .machine import Machine


class SimulatedQuoter:
    """Signs with the public development key. Refuses to exist on a machine that has real hardware."""

    platform = "simulated"

    def __init__(self, machine: Machine | None = None) -> None:
        found = (machine or Machine()).platform()
        if found is not None:
            raise QuoteUnavailable(
                f"this machine can prove itself ({found}), so it makes no simulated evidence; "
                f"use the quoter 'auto' or {found!r}"
            )

    def quote(self, bound: Bound) -> Quote:
        return Quote(simulated_report(report_data(bound.digest)), SIMULATED_ENDORSEMENTS)
