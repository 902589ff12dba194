"""
Which Confidential Space workloads are acceptable: steps 9 to 13 of SPEC §4.

A `GcpPolicy` says yes to what it names. What it judges is what Google says about the machine: no hardware
evidence travels in a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from .. import policy_values
from ..errors import DebugAllowed, InvalidPolicy, MeasurementMismatch, TcbTooOld
from ..policy_words import Words
from ..roots import CONFIDENTIAL_SPACE_ROOTS
from ..walk import Finding
from .claims import GcpClaims
from .token import MAX_TEXT

ISSUER: Final = "https://confidentialcomputing.googleapis.com"
SOFTWARE: Final = "CONFIDENTIAL_SPACE"
NO_DEBUG: Final = "disabled-since-boot"
STABLE: Final = "STABLE"
SUPPORT_ATTRIBUTES: Final = ("EXPERIMENTAL", "LATEST", "STABLE", "USABLE")

HARDWARE: Final = ("GCP_AMD_SEV", "GCP_AMD_SEV_ES", "GCP_AMD_SEV_SNP", "GCP_INTEL_TDX")
NO_TEE: Final = "GCP_SHIELDED_VM"

LONGEST_SKEW: Final = 60 * 60  # seconds
LATEST_VERSION: Final = 10**9

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class GcpPolicy:
    """
    What must be true of a Confidential Space workload.

    `audiences` are whom a token may be made out to, `image_digests` the container images that are trusted
    ("sha256:…"), `hardware` the kinds of machine. Without `project_ids`, `instance_ids` or
    `service_accounts`, *anybody's project that runs this image* passes.
    """

    audiences: Set[str]
    image_digests: Set[str]
    hardware: Set[str]
    support_attributes: Set[str] = frozenset({STABLE})  # all of them are needed
    minimum_version: int = 0  # of the Confidential Space image, such as 250800
    tcb_statuses: Set[str] | None = None  # as Google tells Intel's, such as "UpToDate"
    environment_overrides: Set[str] | None = None  # names of variables that the operator may set
    allow_command_override: bool = False
    project_ids: Set[str] | None = None
    instance_ids: Set[str] | None = None
    service_accounts: Set[str] | None = None  # one of them is needed
    clock_skew_seconds: int = 60
    roots: Mapping[bytes, str] = field(default_factory=lambda: CONFIDENTIAL_SPACE_ROOTS)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        freeze(self, "audiences", policy_values.words("audiences", self.audiences, MAX_TEXT))
        freeze(self, "image_digests", policy_values.words("image_digests", self.image_digests))
        for digest in self.image_digests:
            if not _DIGEST.fullmatch(digest):
                raise InvalidPolicy(
                    f"image_digests: {digest!a} is not sha256: and 64 digits in lower-case hex"
                )
        freeze(self, "hardware", _hardware(self.hardware))
        attributes = policy_values.words("support_attributes", self.support_attributes)
        if not attributes <= set(SUPPORT_ATTRIBUTES):
            raise InvalidPolicy(f"support_attributes: expected some of {', '.join(SUPPORT_ATTRIBUTES)}")
        freeze(self, "support_attributes", attributes)
        for name in (
            "tcb_statuses",
            "environment_overrides",
            "project_ids",
            "instance_ids",
            "service_accounts",
        ):
            if (values := getattr(self, name)) is not None:
                freeze(self, name, policy_values.words(name, values))
        policy_values.integer("minimum_version", self.minimum_version, LATEST_VERSION)
        policy_values.integer("clock_skew_seconds", self.clock_skew_seconds, LONGEST_SKEW)
        policy_values.flag("allow_command_override", self.allow_command_override)
        freeze(self, "roots", policy_values.roots(self.roots))

    def __hash__(self) -> int:
        return hash((self.audiences, self.image_digests, self.hardware))

    @property
    def clock_skew(self) -> timedelta:
        return timedelta(seconds=self.clock_skew_seconds)

    def check_firmware(self, claims: GcpClaims, finding: Finding) -> None:
        """Step 9: how old the image of Confidential Space is, and what Google says of the processor."""
        finding.expect(
            claims.software_version >= self.minimum_version,
            "version of Confidential Space",
            found=claims.software_version,
            wanted=f"at least {self.minimum_version}",
            source="swversion",
            error=TcbTooOld,
            code="tcb-too-old",
        )
        if self.tcb_statuses is None:
            finding.not_asked("TCB status", found=claims.tcb_status, source="gcp_attester_tcb_status")
        else:
            finding.expect(
                claims.tcb_status in self.tcb_statuses,
                "TCB status",
                found=claims.tcb_status or "not in the token",
                wanted=self.tcb_statuses,
                source="gcp_attester_tcb_status",
                error=TcbTooOld,
                code="tcb-status",
            )
        finding.passed(f"Confidential Space {claims.software_version}")

    def check_debug(self, claims: GcpClaims, finding: Finding) -> None:
        """Step 10: the production image, never opened for debugging, started with secure boot."""
        finding.expect(
            claims.debug_status == NO_DEBUG,
            "debugging",
            found=claims.debug_status or "not in the token",
            wanted=NO_DEBUG,
            source="dbgstat",
            error=DebugAllowed,
            code="debug-allowed",
            message=f"debugging is {claims.debug_status!a}, expected {NO_DEBUG!a}: the operator can log in. "
            "Was the debug image of Confidential Space started?",
        )
        finding.expect(
            claims.secure_boot,
            "secure boot",
            found=claims.secure_boot,
            wanted=True,
            source="secboot",
            code="secure-boot-off",
        )
        finding.expect(
            claims.support_attributes >= self.support_attributes,
            "support of the Confidential Space image",
            found=claims.support_attributes,
            wanted=" and ".join(sorted(self.support_attributes)),
            source="support_attributes",
            code="support-level",
            message=f"the Confidential Space image is {_list(claims.support_attributes)}, "
            f"the policy asks for {_list(self.support_attributes)}",
        )
        finding.passed(f"debugging {claims.debug_status}, secure boot")

    def check_part(self, claims: GcpClaims, finding: Finding) -> None:
        """Step 11: Google's service says it, to us, about Confidential Space on an accepted machine."""
        finding.expect(
            claims.issuer == ISSUER,
            "issuer",
            found=claims.issuer,
            wanted=ISSUER,
            source="iss",
            code="wrong-token-issuer",
        )
        finding.expect(
            claims.audience in self.audiences,
            "audience",
            found=claims.audience,
            wanted=self.audiences,
            source="aud",
            code="wrong-audience",
            message=f"the token is made out to {claims.audience!a}, which the policy does not name",
        )
        for name, found, wanted, source in (
            ("software", claims.software, {SOFTWARE}, "swname"),
            ("hardware", claims.hardware, self.hardware, "hwmodel"),
        ):
            finding.expect(
                found in wanted,
                name,
                found=found or "not in the token",
                wanted=wanted,
                source=source,
                code="hardware-model",
            )
        finding.passed(f"{claims.hardware}, for {claims.audience}")

    def check_launch(self, claims: GcpClaims, finding: Finding) -> None:
        """Step 12: the container image, and what the operator changed of its environment and command."""
        finding.expect(
            claims.image_digest in self.image_digests,
            "container image",
            found=claims.image_digest or "not in the token",
            wanted=self.image_digests,
            source="image_digest",
            error=MeasurementMismatch,
            code="measurement-mismatch",
            message=f"the workload is {claims.image_digest!a}, which is none of the "
            f"{len(self.image_digests)} images that the policy names",
        )
        allowed = self.environment_overrides or frozenset()
        finding.expect(
            claims.environment_overrides <= allowed,
            "environment set by the operator",
            found=_list(claims.environment_overrides),
            wanted=f"nothing but {_list(allowed)}" if allowed else "nothing",
            source="env_override",
            code="override-not-allowed",
            message=f"the operator has set {_list(claims.environment_overrides - allowed)} in the "
            "environment, which the policy does not allow",
        )
        if self.allow_command_override:
            finding.not_asked(
                "command set by the operator", found=claims.command_overridden, source="cmd_override"
            )
        else:
            finding.expect(
                not claims.command_overridden,
                "command set by the operator",
                found=claims.command_overridden,
                wanted=False,
                source="cmd_override",
                code="override-not-allowed",
                message="the operator has changed the command of the image, which the policy does not allow",
            )
        finding.passed(f"image {claims.image_digest}")

    def check_machine(self, claims: GcpClaims, finding: Finding) -> None:
        """Step 13: in whose project, on which machine, under which account, if the policy says so."""
        for name, found, wanted, source in (
            ("project", {claims.project_id}, self.project_ids, "project_id"),
            ("instance", {claims.instance_id}, self.instance_ids, "instance_id"),
            ("service account", claims.service_accounts, self.service_accounts, "google_service_accounts"),
        ):
            if wanted is None:
                finding.not_asked(name, found=found, source=source)
            else:
                finding.expect(
                    not wanted.isdisjoint(found),
                    name,
                    found=found,
                    wanted=wanted,
                    source=source,
                    code="instance-not-listed",
                    message=f"the {name} is {_list(found)}, which the policy does not name",
                )
        if self._names_a_machine:
            finding.passed(f"project {claims.project_id}, instance {claims.instance_id}")
        else:
            finding.was_not_asked("the policy names no machines: any project that runs this image passes")

    @property
    def _names_a_machine(self) -> bool:
        return not (self.project_ids is None and self.instance_ids is None and self.service_accounts is None)

    def in_words(self) -> Words:
        checks = [
            f"Google says that the machine is {' or '.join(sorted(self.hardware))}.",
            f"The token is made out to {' or '.join(sorted(self.audiences))}.",
            f"The container image is {' or '.join(sorted(self.image_digests))}.",
            f"The Confidential Space image is {_list(self.support_attributes)}, at least version "
            f"{self.minimum_version}, with secure boot, and was never open for debugging.",
        ]
        overrides = _list(self.environment_overrides or frozenset())
        checks.append(f"Of the environment, the operator has set {overrides}.")
        if self.tcb_statuses is not None:
            checks.append(f"Google tells the TCB status as {' or '.join(sorted(self.tcb_statuses))}.")
        if not self.allow_command_override:
            checks.append("The operator has not changed the command of the image.")
        for what, values in (
            ("project", self.project_ids),
            ("instance", self.instance_ids),
            ("service account", self.service_accounts),
        ):
            if values is not None:
                checks.append(f"The {what} is {' or '.join(sorted(values))}.")
        unchecked = [
            "The hardware's own evidence: Google has looked at it, and a token has only Google's word.",
            "Google's revocation lists are not consulted.",
        ]
        if self.hardware & {"GCP_AMD_SEV", "GCP_AMD_SEV_ES"}:
            unchecked.append(
                "Memory integrity: SEV without SNP encrypts memory, and does not keep it from change."
            )
        if self.environment_overrides is not None:
            unchecked.append("What the operator writes into those variables.")
        if self.allow_command_override:
            unchecked.append("The command that the operator gives to the image.")
        if not self._names_a_machine:
            unchecked.append("Whose machine it is: any project that runs this image passes.")
        return Words(
            trusts=(
                "Google: its attestation service looks at the machine, and signs what it has seen.",
                "The maker of the processor.",
            ),
            checks=tuple(checks),
            unchecked=tuple(unchecked),
        )


def _hardware(values: object) -> frozenset[str]:
    found = policy_values.words("hardware", values)
    if NO_TEE in found:
        raise InvalidPolicy(f"hardware: {NO_TEE} is no TEE, its host can read its memory")
    if not found <= set(HARDWARE):
        raise InvalidPolicy(f"hardware is {sorted(found)}, expected some of {', '.join(HARDWARE)}")
    return found


def _list(names: Set[str]) -> str:
    return ", ".join(sorted(one[:64].encode("unicode_escape").decode("ascii") for one in names)) or "nothing"
