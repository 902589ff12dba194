"""
Evidence that proves nothing, for laptops and tests: SPEC §4.2.

It is shaped and judged like AMD SEV-SNP evidence, and signed with a key that everybody has. Only a client
that says `UnsafeSimulatedPolicy` takes it. A machine with real hardware refuses to make it, so that a
deployment which lost its settings stops instead of running unproven.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blindbox_attestation.simulated import SIMULATED_ENDORSEMENTS, simulated_report

from . import Quote, QuoteUnavailable
from .configfs import TSM_REPORTS, provider

DEVICES = (Path("/dev/sev-guest"), Path("/dev/tdx_guest"), Path("/dev/tdx-guest"))


def hardware(devices: Iterable[Path] = DEVICES, tsm_reports: Path = TSM_REPORTS) -> str | None:
    """The first sign that this machine can prove itself for real, in words; None on an ordinary machine."""
    for device in devices:
        if device.exists():
            return f"{device} exists"
    found = provider(tsm_reports)
    return f"{tsm_reports} has the provider {found!r}" if found is not None else None


class SimulatedQuoter:
    """Signs with the public development key. Refuses to exist on a machine that has real hardware."""

    platform = "simulated"

    def __init__(self, *, devices: Iterable[Path] = DEVICES, tsm_reports: Path = TSM_REPORTS) -> None:
        found = hardware(devices, tsm_reports)
        if found is not None:
            raise QuoteUnavailable(
                f"this machine can prove itself ({found}), so it makes no simulated evidence; "
                "use the quoter 'auto' or 'sev-snp'"
            )

    def quote(self, report_data: bytes) -> Quote:
        return Quote(simulated_report(report_data), SIMULATED_ENDORSEMENTS)
