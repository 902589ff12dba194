"""
Which AWS Nitro enclaves are acceptable: steps 9 to 13 of SPEC §4.

A `NitroPolicy` says yes to what it names: the image, or whoever signed it. Debug enclaves are never accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from .. import policy_values
from ..errors import DebugAllowed, InvalidPolicy, MeasurementMismatch, PolicyRefused
from ..policy_words import Words
from ..roots import AWS_ROOTS
from ..walk import Finding
from .claims import ZERO, NitroClaims, pcr_of
from .document import IMAGE_PCRS, INSTANCE_PCR, PCR_SIZE, PCRS, ROLE_PCR, SIGNER_PCR

LONGEST_AGE: Final = 3 * 60 * 60  # seconds; a leaf certificate lives no longer
LONGEST_SKEW: Final = 60 * 60

_NAMES_A_PROGRAM: Final = (0, SIGNER_PCR)
_NEVER_ZERO: Final = (*IMAGE_PCRS, SIGNER_PCR)
_OF_THE_MACHINE: Final = (ROLE_PCR, INSTANCE_PCR)


@dataclass(frozen=True, slots=True)
class NitroPolicy:
    """
    What must be true of a Nitro enclave.

    `pcrs` says which values a register may have; PCR0 (the image) or PCR8 (who signed it) is among them.
    Without `instance_ids`, `iam_roles`, PCR3 or PCR4, *any AWS account that runs this image* passes. An
    enclave hands out a cached document (SPEC §2.1, form 2) for up to half an hour: who accepts those allows
    `max_age_seconds` for it.
    """

    pcrs: Mapping[int, Set[bytes]]
    instance_ids: Set[str] | None = None  # of the parent: "i-…"
    iam_roles: Set[str] | None = None  # of the parent: "arn:aws:iam::…"
    max_age_seconds: int = 300  # of a document
    clock_skew_seconds: int = 60
    roots: Mapping[bytes, str] = field(default_factory=lambda: AWS_ROOTS)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        freeze(self, "pcrs", _pcrs(self.pcrs))
        for name in ("instance_ids", "iam_roles"):
            if (values := getattr(self, name)) is not None:
                freeze(self, name, policy_values.words(name, values))
        policy_values.integer("max_age_seconds", self.max_age_seconds, LONGEST_AGE)
        policy_values.integer("clock_skew_seconds", self.clock_skew_seconds, LONGEST_SKEW)
        freeze(self, "roots", policy_values.roots(self.roots))

    def __hash__(self) -> int:
        return hash((frozenset(self.pcrs.items()), self.instance_ids, self.iam_roles))

    @property
    def max_age(self) -> timedelta:
        return timedelta(seconds=self.max_age_seconds)

    @property
    def clock_skew(self) -> timedelta:
        return timedelta(seconds=self.clock_skew_seconds)

    def check_firmware(self, claims: NitroClaims, finding: Finding) -> None:
        """Step 9."""
        finding.does_not_apply("a Nitro document names no firmware; AWS keeps it current")

    def check_debug(self, claims: NitroClaims, finding: Finding) -> None:
        """Step 10: an enclave in debug mode has a valid signature, and zeros where its image should be."""
        for number in IMAGE_PCRS:
            finding.expect(
                claims.pcrs[number] != ZERO,
                f"PCR{number} is not zero",
                found=claims.pcrs[number],
                wanted="not all zero",
                source="pcrs",
                error=DebugAllowed,
                code="debug-allowed",
                message=f"PCR{number} is all zero: the enclave runs in debug mode, and its parent can "
                "read its console. Was it started with --debug-mode?",
            )
        finding.passed("not in debug mode")

    def check_part(self, claims: NitroClaims, finding: Finding) -> None:
        """Step 11."""
        finding.does_not_apply("a Nitro document can only be asked for from inside the enclave")

    def check_launch(self, claims: NitroClaims, finding: Finding) -> None:
        """Step 12: the image, or who signed it, and any other register that the policy names."""
        for number in sorted(claims.pcrs.keys() | self.pcrs.keys()):
            if number not in _OF_THE_MACHINE:
                self._check_register(number, claims, finding, code="pcr-mismatch")
        finding.passed(f"PCR0 {claims.measurement.hex()}")

    def check_machine(self, claims: NitroClaims, finding: Finding) -> None:
        """Step 13: on whose instance, in which role, if the policy says so."""
        for number in _OF_THE_MACHINE:
            self._check_register(number, claims, finding, code="instance-not-listed")
        for what, number, named in (
            ("IAM role", ROLE_PCR, self.iam_roles),
            ("instance", INSTANCE_PCR, self.instance_ids),
        ):
            if named is not None:
                finding.expect(
                    claims.pcrs.get(number) in {pcr_of(one) for one in named},
                    what,
                    found=_told(claims, number),
                    wanted=named,
                    source=f"PCR{number}",
                    code="instance-not-listed",
                    message=f"PCR{number} is that of no {what} which the policy names "
                    f"(the document is from {claims.module_id!a})",
                )
        if self._names_a_machine:
            finding.passed(claims.module_id)
        else:
            finding.was_not_asked("the policy names no machines: any AWS account that runs this image passes")

    @property
    def _names_a_machine(self) -> bool:
        named = self.pcrs.keys() & set(_OF_THE_MACHINE)
        return bool(named) or self.instance_ids is not None or self.iam_roles is not None

    def _check_register(self, number: int, claims: NitroClaims, finding: Finding, *, code: str) -> None:
        allowed = self.pcrs.get(number)
        if allowed is None:
            finding.not_asked(f"PCR{number}", found=_told(claims, number), source="pcrs")
            return
        finding.expect(
            claims.pcrs.get(number) in allowed,
            f"PCR{number}",
            found=_told(claims, number),
            wanted=allowed,
            source="pcrs",
            error=PolicyRefused if number else MeasurementMismatch,
            code=code if number else "measurement-mismatch",
            message=f"PCR{number} is {_told(claims, number)}, which is none of the "
            f"{len(allowed)} values that the policy names",
        )

    def in_words(self) -> Words:
        checks = [f"PCR{number} is {_choice(values)}." for number, values in sorted(self.pcrs.items())]
        checks.append("The enclave is not in debug mode (PCR0 to PCR2 are not zero).")
        checks.append(f"The document is at most {self.max_age_seconds} seconds old.")
        for what, values in (("parent instance", self.instance_ids), ("parent's IAM role", self.iam_roles)):
            if values is not None:
                checks.append(f"The {what} is {' or '.join(sorted(values))}.")
        unchecked = [
            "AWS's revocation lists are not consulted; an enclave's certificate lives for three hours."
        ]
        if 0 not in self.pcrs:
            unchecked.append("Which image runs: any that the named certificate has signed.")
        if not self._names_a_machine:
            unchecked.append("Whose machine it is: any AWS account that runs this image passes.")
        return Words(
            trusts=("AWS: its Nitro hardware and hypervisor keep the parent instance out, and it signs.",),
            checks=tuple(checks),
            unchecked=tuple(unchecked),
        )


def _pcrs(values: object) -> Mapping[int, frozenset[bytes]]:
    if not isinstance(values, Mapping) or not any(number in values for number in _NAMES_A_PROGRAM):
        raise InvalidPolicy(
            "pcrs names no program, so it would accept any: give PCR0 (the image) or PCR8 (its signer)"
        )
    found: dict[int, frozenset[bytes]] = {}
    for number, allowed in values.items():
        if not isinstance(number, int) or isinstance(number, bool) or number not in PCRS:
            raise InvalidPolicy(f"pcrs: {number!r} is no register, expected 0 to {PCRS[-1]}")
        found[number] = policy_values.digests(f"PCR{number}", allowed, PCR_SIZE)
        if number in _NEVER_ZERO and ZERO in found[number]:
            raise InvalidPolicy(
                f"PCR{number}: zeros are those of a debug enclave, or of an image nobody signed"
            )
    return MappingProxyType(found)


def _told(claims: NitroClaims, number: int) -> str:
    value = claims.pcrs.get(number)
    return "not in the document" if value is None else value.hex()


def _choice(values: Set[bytes]) -> str:
    return " or ".join(sorted(f"{one.hex()[:16]}…" for one in values))
