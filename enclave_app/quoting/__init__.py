"""
Asks the machine to speak about itself.

A `Quoter` turns what has to be said (`Bound`: SPEC §2.1) into evidence that carries it, in the place its
platform has for that. What the words mean is decided in `identity.py`; whether evidence is worth anything is
decided by the client. Nothing here verifies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

from blindbox_attestation.binding import Bound

if TYPE_CHECKING:
    from enclave_app.quoting.machine import Machine


class QuoteUnavailable(Exception):
    """The machine did not speak about itself; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Quote:
    """
    What the machine said, and what its vendor says about the machine. Nothing in here has been verified.
    """

    evidence: bytes
    endorsements: Mapping[str, bytes] = field(default_factory=dict)  # by the names of SPEC §2


class Quoter(Protocol):
    """Asks one kind of machine. `quote` may take seconds and may be called from several threads."""

    @property
    def platform(self) -> str: ...

    def quote(self, bound: Bound) -> Quote: ...


QuoterName = Literal[
    "auto",
    "sev-snp",
    "tdx",
    "az-snp-vtpm",
    "az-tdx-vtpm",
    "nitro",
    "gcp-confidential-space",
    "tpm",
    "simulated",
]
QUOTERS: Final[tuple[str, ...]] = get_args(QuoterName)


def find_quoter(
    name: QuoterName = "auto",
    *,
    endorsements_dir: Path | None = None,
    tpm_ak: str = "ecc",
    audience: str = "blindbox",
    machine: Machine | None = None,
) -> Quoter:
    """
    The quoter of that name, once it is known to answer; `auto` takes what the machine has (see `machine.py`).

    A machine that has TEE hardware never runs simulated, whatever was asked for. A TPM by itself is no such
    hardware, since its word is as good as its hypervisor's: it is used when it is asked for by name, and in
    the measured virtual machine where there is nothing better.
    """
    from enclave_app.quoting.machine import Machine

    here = machine or Machine()
    platform = here.platform() or "simulated" if name == "auto" else name
    if platform in ("sev-snp", "tdx"):
        from .configfs import ConfigfsQuoter

        configfs = ConfigfsQuoter(
            here.tsm_reports,
            endorsements_dir,
            platform=platform,
            tree=here.tree,
            event_log=here.ccel,
        )
        configfs.check()
        return configfs
    if platform in ("az-snp-vtpm", "az-tdx-vtpm"):
        from .azure import AzureQuoter

        azure = AzureQuoter(
            platform,
            here.open_tpm,
            endorsements_dir=endorsements_dir,
            event_log=here.tpm_event_log,
            metadata=here.metadata,
        )
        azure.check()
        return azure
    if platform == "nitro":
        from .nitro import NitroQuoter

        nitro = NitroQuoter(here.nsm)
        nitro.check()
        return nitro
    if platform == "gcp-confidential-space":
        from .gcp import ConfidentialSpaceQuoter

        space = ConfidentialSpaceQuoter(audience, here.launcher)
        space.check()
        return space
    if platform == "tpm":
        from .tpm import TpmQuoter

        tpm = TpmQuoter(
            here.open_tpm,
            ak=tpm_ak,
            endorsements_dir=endorsements_dir,
            event_log=here.tpm_event_log,
        )
        tpm.check()
        return tpm
    if platform == "simulated":
        from .simulated import SimulatedQuoter

        return SimulatedQuoter(here)
    raise ValueError(f"there is no quoter named {name!r}: {', '.join(QUOTERS)}")
