"""
Which doors this machine has to its hardware, and what stands behind them.

It only looks; each quoter does its own asking. Tests put other doors in a `Machine`'s place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import azure, configfs, gcp, nitro, tpm
from .configfs import Tree
from .tpm_commands import Device, Transport


@dataclass(frozen=True, slots=True)
class Machine:
    """The places where Linux and the clouds put what can be asked for evidence."""

    tsm_reports: Path = configfs.TSM_REPORTS
    tree: Tree = field(default_factory=Tree)
    ccel: Path = configfs.CCEL
    tee_devices: tuple[Path, ...] = (Path("/dev/sev-guest"), Path("/dev/tdx_guest"), Path("/dev/tdx-guest"))
    open_tpm: Callable[[], Transport] = Device
    tpm_event_log: Path = tpm.EVENT_LOG
    metadata: str = azure.METADATA
    nsm: Path = nitro.DEVICE
    launcher: Path = gcp.LAUNCHER
    command_line: Path = Path("/proc/cmdline")

    def platform(self) -> str | None:
        """
        The platform that this machine can prove, by its name in a document; None without one to take unasked.

        1. the kernel's report interface: nobody stands between it and the processor
        2. Azure's paravisor, which keeps its report in the virtual TPM
        3. the Nitro security module
        4. Confidential Space's launcher: Google speaks for the hardware
        5. a device without a report interface: named, so that its quoter says what is missing
        6. in the measured virtual machine its TPM: nothing is simulated there
        """
        found = configfs.provider(self.tsm_reports, self.tree)  # 1
        if found is not None:
            # An interface of another vendor is hardware too: its quoter refuses it by name.
            return configfs.PLATFORMS.get(found, "sev-snp")
        paravisor = azure.platform_of(self.open_tpm)  # 2
        if paravisor is not None:
            return paravisor
        if self.nsm.exists():  # 3
            return "nitro"
        if self.launcher.exists():  # 4
            return "gcp-confidential-space"
        for device in self.tee_devices:  # 5
            if device.exists():
                return "tdx" if device.name.startswith("tdx") else "sev-snp"
        return "tpm" if self.measured() else None  # 6

    def measured(self) -> bool:
        """Was it started from the machine image, whose root hash stands on the kernel's command line?"""
        try:
            words = self.command_line.read_text(errors="replace").split()
        except OSError:
            return False
        return any(word.startswith("blindbox.root=") for word in words)
