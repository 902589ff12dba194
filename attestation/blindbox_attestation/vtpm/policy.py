"""
Which machines with a TPM are acceptable: steps 9 to 13 of SPEC §4.

A `TpmPolicy` trusts whoever runs the TPM: on an ordinary virtual machine that is the hypervisor, and nothing
keeps it from looking into the machine. What the boot has to be is said in `boot.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from .. import policy_values
from ..errors import InvalidPolicy
from ..policy_words import Words
from ..roots import GCE_AK_ROOTS
from ..walk import Finding
from .boot import MeasuredBoot
from .claims import TpmClaims

KEY_DIGEST_SIZE: Final = 32
_MOST_INSTANCE: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """
    What must be true of a machine that only has a TPM.

    `ak_keys` pins attestation keys, by the SHA-256 of their SubjectPublicKeyInfo; without it a key must have
    a certificate that leads to `roots`. Without `projects` and `instances`, *any machine of that cloud* with
    the same boot passes.
    """

    boot: MeasuredBoot
    ak_keys: Set[bytes] | None = None
    projects: Set[str] | None = None  # ids of Google's projects
    instances: Set[int] | None = None  # ids of Google's virtual machines
    zones: Set[str] | None = None
    roots: Mapping[bytes, str] = field(default_factory=lambda: GCE_AK_ROOTS)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        if not isinstance(self.boot, MeasuredBoot):
            raise InvalidPolicy(f"boot is {self.boot!r}, expected a MeasuredBoot")
        if self.ak_keys is not None:
            freeze(self, "ak_keys", policy_values.digests("ak_keys", self.ak_keys, KEY_DIGEST_SIZE))
        for name in ("projects", "zones"):
            if (values := getattr(self, name)) is not None:
                freeze(self, name, policy_values.words(name, values))
        if self.instances is not None:
            found = policy_values.several("instances", self.instances)
            freeze(
                self,
                "instances",
                frozenset(policy_values.integer("instances", one, _MOST_INSTANCE) for one in found),
            )
        freeze(self, "roots", policy_values.roots(self.roots))

    def __hash__(self) -> int:
        return hash((self.boot, self.ak_keys, self.projects, self.instances, self.zones))

    @property
    def names_a_machine(self) -> bool:
        return (self.projects, self.instances, self.zones) != (None, None, None)

    @property
    def needs_chain(self) -> bool:
        """Certificates are needed for a key that is not pinned, and to know whose machine it is."""
        return self.ak_keys is None or self.names_a_machine

    def check_firmware(self, claims: TpmClaims, finding: Finding) -> None:
        """Step 9."""
        for name, value in (
            ("firmware of the TPM", claims.firmware_version),
            ("resets", claims.reset_count),
            ("restarts", claims.restart_count),
            ("the clock is safe", claims.clock_is_safe),
        ):
            finding.not_asked(name, found=f"{value:#x}" if name.startswith("firm") else value, source="quote")
        finding.was_not_asked("vendors of TPMs number their firmware each in their own way")

    def check_host(self, claims: TpmClaims, finding: Finding) -> None:
        """Step 10: a TPM does not keep the host out. What the boot says of Secure Boot is looked at."""
        self.boot.check_secure_boot(claims.measured, finding)
        finding.not_applicable("memory is kept from the host", "a TPM does not do that")
        finding.passed("Secure Boot as the policy asks; a TPM does not keep the host out of the memory")

    def check_part(self, claims: TpmClaims, finding: Finding) -> None:
        """Step 11."""
        finding.does_not_apply("any program on the machine that may use the TPM can ask for a quote")

    def check_launch(self, claims: TpmClaims, finding: Finding) -> None:
        """Step 12."""
        self.boot.check_launch(claims.measured, finding)
        finding.passed(f"registers of the {claims.measured.bank} bank, as the policy names them")

    def check_machine(self, claims: TpmClaims, finding: Finding) -> None:
        """Step 13: whose machine it is, by Google's certificate, if the policy says so."""
        instance = claims.instance
        for name, found, named in (
            ("project", instance and instance.project_id, self.projects),
            ("zone", instance and instance.zone, self.zones),
            ("instance", instance and instance.instance_id, self.instances),
        ):
            if named is None:
                finding.not_asked(name, found=found or "not told", source="ak_chain")
                continue
            finding.expect(
                found in named,
                name,
                found=found or "not told",
                wanted=named,
                source="ak_chain",
                code="instance-not-listed",
                message=f"the certificate is for {instance or 'no machine that it names'}; "
                f"its {name} is none of those that the policy names",
            )
        if self.names_a_machine or self.ak_keys is not None:
            finding.passed(str(instance) if instance else "the machine of a pinned key")
        else:
            finding.was_not_asked("the policy names no machine: any of this cloud with the same boot passes")

    def in_words(self) -> Words:
        boot = self.boot.in_words()
        checks: list[str] = []
        unchecked = ["Whether the host looks into the machine: a TPM cannot tell."]
        if self.ak_keys is not None:
            checks.append(f"The quote is signed by one of {len(self.ak_keys)} pinned keys.")
        else:
            unchecked.append("Whether the certificate of the key was revoked: no list of them is published.")
        if self.needs_chain:
            roots = " or ".join(sorted(set(self.roots.values())))
            checks.append(f"The key of the quote is certified under {roots}.")
        for what, values in (
            ("project", self.projects),
            ("zone", self.zones),
            ("instance", self.instances),
        ):
            if values is not None:
                checks.append(f"The machine's {what} is {' or '.join(sorted(map(str, values)))}.")
        if not self.names_a_machine and self.ak_keys is None:
            unchecked.append("Whose machine it is: any of this cloud with the same boot passes.")
        return Words(
            trusts=(
                "Whoever runs the TPM: on an ordinary virtual machine, the hypervisor and its operator.",
                "The firmware, which measures the first program of all.",
            ),
            checks=(*checks, *boot.checks),
            unchecked=(*unchecked, *boot.unchecked),
        )
