"""
What AMD SEV-SNP measures of our image: the launch digest, for each processor and number of processors.

SEV Secure Nested Paging Firmware ABI Specification (AMD 56860), §8.17.2: firmware, hashes of the kernel and
the first state of each virtual processor go into one chain of hashes, page by page. The pages are laid out as
QEMU does it, with `kernel-hashes=on` and the unified kernel image as `-kernel`; no `-initrd`, no `-append`.

The formats are sev-snp-measure's, of AMD's and IBM's open-source project; ours is that the chain is continued
from n to n + 1 processors, and that a file which breaks its format is told so beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .errors import MeasureError, UnreadableFirmware
from .ovmf import Firmware

PROCESSORS: Final = ("EPYC-Milan", "EPYC-Genoa", "EPYC-Turin")
"""As QEMU names them with `-cpu`: the model is in a processor's first state, and so in the digest."""
MOST_VCPUS: Final = 64
GUEST_FEATURES: Final = 0x1
"""SEV_FEATURES of the guest: SNPActive, and nothing else; what QEMU and KVM start a guest with."""


def launch_digests(
    firmware: Path,
    uki: Path,
    *,
    processors: Sequence[str] = PROCESSORS,
    most_vcpus: int = MOST_VCPUS,
) -> dict[str, bytes]:
    """A name such as `EPYC-Genoa x4` → its launch digest. Raises `UnreadableFirmware`."""
    try:
        from sevsnpmeasure.gctx import GCTX
        from sevsnpmeasure.guest import snp_update_metadata_pages
        from sevsnpmeasure.ovmf import OVMF
        from sevsnpmeasure.sev_hashes import SevHashes
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
        from sevsnpmeasure.vmm_types import VMMType
        from sevsnpmeasure.vmsa import VMSA
    except ImportError as error:
        raise MeasureError(
            "launch digests of SEV-SNP need the package sev-snp-measure: make test has it"
        ) from error

    Firmware.parse(firmware.read_bytes()).check_snp()
    try:
        ovmf = OVMF(str(firmware))
        memory = GCTX()
        memory.update_normal_pages(ovmf.gpa(), ovmf.data())
        snp_update_metadata_pages(memory, ovmf, SevHashes(str(uki), "", ""), VMMType.QEMU)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise UnreadableFirmware(f"its launch cannot be measured: {error}") from error
    found: dict[str, bytes] = {}
    for processor in processors:
        launch = GCTX(seed=memory.ld())
        states = VMSA(
            SevMode.SEV_SNP, ovmf.sev_es_reset_eip(), CPU_SIGS[processor], GUEST_FEATURES, VMMType.QEMU
        )
        for number, state in enumerate(states.pages(most_vcpus), start=1):
            launch.update_vmsa_page(state)
            found[f"{processor} x{number}"] = launch.ld()
    return found
