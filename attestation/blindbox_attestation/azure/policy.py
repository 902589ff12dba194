"""
Which Azure confidential machines are acceptable: steps 9 to 13 of SPEC §4, what the processor's own policy
leaves.

The processor's policy judges the processor and the paravisor's firmware, which is the same for all machines
of a release; `boot` judges what this machine has started. Both are required: one without the other names no
program.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from .. import policy_values
from ..errors import InvalidPolicy
from ..policy_words import Words
from ..roots import AZURE_VTPM_ROOTS
from ..snp.policy import SnpPolicy
from ..tdx.policy import TdxPolicy
from ..vtpm.boot import MeasuredBoot
from ..walk import Finding
from .claims import AzureClaims

__all__ = ["AzureSnpPolicy", "AzureTdxPolicy"]

REQUIRED: Final = "required"
CHOICES: Final = {
    "secure_boot": (REQUIRED, "unchecked"),
    "console": ("off", "unchecked"),
    "ak_certificate": (REQUIRED, "unused"),
}

_SOURCE: Final = "vm-configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzurePolicy:
    """
    What must be true of an Azure machine, whatever its processor. Use `AzureSnpPolicy` or `AzureTdxPolicy`.

    `secure_boot` is the paravisor's word for it; `boot.secure_boot` looks into the log of the boot besides.
    The serial console is on in ordinary machines, which is why it is accepted unless `console="off"`: over it
    the host types and reads whatever the guest offers there. `vm_ids` are told by the host, and are worth
    what it is.
    """

    boot: MeasuredBoot
    secure_boot: Literal["required", "unchecked"] = "required"
    console: Literal["off", "unchecked"] = "unchecked"
    vm_ids: Set[str] | None = None  # in either case
    ak_certificate: Literal["required", "unused"] = "unused"
    roots: Mapping[bytes, str] = field(default_factory=lambda: AZURE_VTPM_ROOTS)  # of the TPM's certificates

    def __post_init__(self) -> None:
        if not isinstance(self.boot, MeasuredBoot):
            raise InvalidPolicy(
                "boot is no MeasuredBoot; the processor's measurement does not say what was booted here"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InvalidPolicy(f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}")
        if self.vm_ids is not None:
            named = frozenset(one.lower() for one in policy_values.words("vm_ids", self.vm_ids, 64))
            object.__setattr__(self, "vm_ids", named)
        object.__setattr__(self, "roots", policy_values.roots(self.roots))

    def __hash__(self) -> int:
        return hash((self.secure_boot, self.vm_ids))

    @property
    def processor(self) -> SnpPolicy | TdxPolicy:
        """The policy for the layer below."""
        raise NotImplementedError

    def check_configuration(self, claims: AzureClaims[Any], finding: Finding) -> None:
        """Step 10: how the paravisor has set up the machine."""
        vm = claims.vm
        if self.secure_boot == REQUIRED:
            finding.expect(
                vm.secure_boot is True,
                "secure boot",
                found=_told(vm.secure_boot),
                wanted="on",
                source=_SOURCE,
                code="secure-boot-off",
                message="the machine was started without secure boot: anything may have been booted",
            )
        else:
            finding.not_asked("secure boot", found=_told(vm.secure_boot), source=_SOURCE)
        finding.expect(
            vm.tpm_enabled is True,
            "TPM enabled",
            found=_told(vm.tpm_enabled),
            wanted="on",
            source=_SOURCE,
            code="vtpm-off",
            message="the paravisor says that the machine has no TPM: then whose quote is this?",
        )
        if self.console == "off":
            finding.expect(
                vm.console_enabled is False,
                "serial console",
                found=_told(vm.console_enabled),
                wanted="off",
                source=_SOURCE,
                code="console-enabled",
                message="the machine has a serial console, which the host can use; the policy forbids it",
            )
        else:
            finding.not_asked("serial console", found=_told(vm.console_enabled), source=_SOURCE)
        self.boot.check_secure_boot(claims.tpm.measured, finding)
        finding.passed(f"{finding.detail}; secure boot {_told(vm.secure_boot)}")

    def check_boot(self, claims: AzureClaims[Any], finding: Finding) -> None:
        """Step 12: what the machine has started, by the registers of its TPM."""
        self.boot.check_launch(claims.tpm.measured, finding)
        registers = ", ".join(map(str, sorted(self.boot.relied_on)))
        finding.passed(f"{finding.detail}; what was booted, by PCR {registers}")

    def check_vm(self, claims: AzureClaims[Any], finding: Finding) -> None:
        """Step 13: which of the host's machines it is."""
        found = claims.vm.unique_id
        if self.vm_ids is None:
            finding.not_asked("VM id", found=found or "none", source=_SOURCE)
            return
        finding.expect(
            found in self.vm_ids,
            "VM id",
            found=found or "none",
            wanted=self.vm_ids,
            source=_SOURCE,
            code="instance-not-listed",
        )
        finding.outcome = "passed"
        finding.passed(f"VM {found}")

    def in_words(self) -> Words:
        """The policy in plain sentences."""
        below, boot = self.processor.in_words(), self.boot.in_words()
        checks = [
            "The processor's report was made for this machine's TPM, and the TPM's quote for this connection."
        ]
        unchecked = [
            "Of which boot the processor's report is: with the TPM's key it may be of an earlier one, "
            "with the firmware levels and the settings that the machine had then."
        ]
        for wish, yes, no in (
            (self.secure_boot == REQUIRED, "Secure boot is on.", "Whether secure boot is on."),
            (
                self.console == "off",
                "There is no serial console.",
                "Whether the host can use the machine's serial console; ordinary machines have one.",
            ),
            (
                self.ak_certificate == REQUIRED,
                "Azure's certificates vouch for the TPM's key, besides the processor.",
                "",
            ),
            (
                self.vm_ids is not None,
                "The machine's id, which the host tells, is one of those named.",
                "Which of Azure's machines it is, by the id that the host gives it.",
            ),
        ):
            if wish:
                checks.append(yes)
            elif no:
                unchecked.append(no)
        return Words(
            trusts=(
                *below.trusts,
                "Microsoft, for the paravisor: the firmware that is measured, and that emulates the TPM.",
            ),
            checks=(*below.checks, *checks, *boot.checks),
            unchecked=(*below.unchecked, *unchecked, *boot.unchecked),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSnpPolicy(AzurePolicy):
    """What must be true of an Azure machine on AMD SEV-SNP. `snp.measurements` are paravisors' firmware."""

    snp: SnpPolicy

    def __post_init__(self) -> None:
        if not isinstance(self.snp, SnpPolicy):
            raise InvalidPolicy("snp is no SnpPolicy; without it no processor is accepted")
        # The paravisor runs at level 0. From any other the guest itself can ask, with whatever hash it likes.
        if self.snp.vmpl:
            raise InvalidPolicy(
                f"snp.vmpl is {self.snp.vmpl}; on Azure only a report of VMPL 0 proves anything"
            )
        AzurePolicy.__post_init__(self)

    def __hash__(self) -> int:
        return hash((AzurePolicy.__hash__(self), self.snp))

    @property
    def processor(self) -> SnpPolicy:
        return self.snp

    def with_host_data(self, host_data: bytes) -> AzureSnpPolicy:
        """The same policy, and besides: launched with exactly this HOST_DATA (32 bytes)."""
        return replace(self, snp=self.snp.with_host_data(host_data))


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureTdxPolicy(AzurePolicy):
    """What must be true of an Azure machine on Intel TDX. `tdx.mrtd` are paravisors' firmware."""

    tdx: TdxPolicy

    def __post_init__(self) -> None:
        if not isinstance(self.tdx, TdxPolicy):
            raise InvalidPolicy("tdx is no TdxPolicy; without it no processor is accepted")
        if self.tdx.event_log != "unused":
            raise InvalidPolicy("on Azure the log of the boot is the TPM's: ask for it in boot, not in tdx")
        AzurePolicy.__post_init__(self)

    def __hash__(self) -> int:
        return hash((AzurePolicy.__hash__(self), self.tdx))

    @property
    def processor(self) -> TdxPolicy:
        return self.tdx

    def with_tcb_evaluation_floor(self, number: int) -> AzureTdxPolicy:
        """The same policy, and besides: judged by Intel's evaluation `number` or a newer one."""
        return replace(self, tdx=self.tdx.with_tcb_evaluation_floor(number))


def _told(value: bool | None) -> str:
    return "not told" if value is None else "on" if value else "off"
