"""
Asks the machine to speak about itself.

A `Quoter` turns 64 bytes into evidence that carries them. What those bytes mean is decided in `identity.py`;
whether evidence is worth anything is decided by the client. Nothing here verifies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


class QuoteUnavailable(Exception):
    """The machine did not speak about itself; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Quote:
    """
    What the machine said, and what its vendor says about the machine. Nothing in here has been verified.
    """

    evidence: bytes
    endorsements: Mapping[str, bytes] = field(default_factory=dict)  # DER, by the names of SPEC §2


class Quoter(Protocol):
    """Asks one kind of machine. `quote` may take seconds and may be called from several threads."""

    @property
    def platform(self) -> str: ...

    def quote(self, report_data: bytes) -> Quote: ...


QuoterName = Literal["auto", "sev-snp", "simulated"]


def find_quoter(name: QuoterName = "auto", *, endorsements_dir: Path | None = None) -> Quoter:
    """
    The quoter of that name; `auto` takes the hardware's, or the simulated one where there is no hardware.

    A machine that has hardware never runs simulated, whatever was asked for: see `simulated.py`.
    """
    from .configfs import ConfigfsQuoter
    from .simulated import SimulatedQuoter, hardware

    if name == "simulated" or (name == "auto" and not hardware()):
        return SimulatedQuoter()
    if name in ("auto", "sev-snp"):
        quoter = ConfigfsQuoter(endorsements_dir=endorsements_dir)
        quoter.check()
        return quoter
    raise ValueError(f"there is no quoter named {name!r}: auto, sev-snp or simulated")
