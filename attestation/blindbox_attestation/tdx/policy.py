"""
Which Intel TDX guests are acceptable: steps 9 to 13 of SPEC §4.

A `TdxPolicy` says yes to what it names. An empty set is an error, and no field opens a door by being left
out. A guest that can be debugged or moved, a revoked machine, and a TDX module that is not Intel's: nothing
accepts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from .. import policy_values
from ..errors import InvalidPolicy, MeasurementMismatch, TcbTooOld
from ..policy_words import Words
from ..roots import INTEL_ROOTS
from ..walk import Finding
from . import attributes, rtmr
from .claims import TdxClaims

__all__ = ["STATUSES", "TdxPolicy"]

REGISTER_SIZE: Final = 48
SVN_SIZE: Final = 16
ID_SIZE: Final = 16
FMSPC_SIZE: Final = 6
RTMRS: Final = range(4)

UP_TO_DATE: Final = "UpToDate"
STATUSES: Final = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
"""Intel's words for a machine's firmware that a policy may name. "Revoked" is none of them."""

_MOST_EVALUATION: Final = (1 << 32) - 1

EventLog = Literal["required", "unused"]


@dataclass(frozen=True, slots=True)
class TdxPolicy:
    """
    What must be true of a TDX guest.

    `mrtd` are the firmware images that are trusted, `rtmrs` what they may have started (0 the firmware's
    settings, 1 and 2 kernel, command line and initial file system, 3 what the system measured itself).
    `minimum_tcb_evaluation` is the oldest of Intel's TCB evaluations by which "up to date" is judged. Without
    `mr_config_id`, `ppids` or `platform_instance_ids`, *any genuine machine running this image* passes.
    """

    mrtd: Set[bytes]
    minimum_tcb_evaluation: int
    rtmrs: Mapping[int, Set[bytes]] | None = None
    statuses: Set[str] = frozenset({UP_TO_DATE})
    accepted_advisories: Set[str] | None = None  # "INTEL-SA-…", for statuses other than UpToDate
    mrseam: Set[bytes] | None = None
    minimum_tee_tcb_svn: bytes | None = None  # 16 bytes, compared one by one
    xfam_allowed: int | None = None
    mr_config_id: bytes | None = None
    mr_owner: bytes | None = None
    mr_owner_config: bytes | None = None
    ppids: Set[bytes] | None = None
    platform_instance_ids: Set[bytes] | None = None
    fmspcs: Set[bytes] | None = None
    event_log: EventLog = "unused"
    events: Mapping[int, Set[bytes]] | None = None  # RTMR → digests: nothing else was measured into it
    roots: Mapping[bytes, str] = field(default_factory=lambda: INTEL_ROOTS)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        for name, size in (
            ("mrtd", REGISTER_SIZE),
            ("mrseam", REGISTER_SIZE),
            ("ppids", ID_SIZE),
            ("platform_instance_ids", ID_SIZE),
            ("fmspcs", FMSPC_SIZE),
        ):
            values = getattr(self, name)
            if values is not None or name == "mrtd":
                freeze(self, name, policy_values.digests(name, values, size))
        for name, size in (
            ("mr_config_id", REGISTER_SIZE),
            ("mr_owner", REGISTER_SIZE),
            ("mr_owner_config", REGISTER_SIZE),
            ("minimum_tee_tcb_svn", SVN_SIZE),
        ):
            value = getattr(self, name)
            if value is not None:
                policy_values.digests(name, [value], size)
        if self.rtmrs is not None:
            freeze(self, "rtmrs", _registers("rtmrs", self.rtmrs, RTMRS))
        if self.events is not None:
            freeze(self, "events", _registers("events", self.events, rtmr.IN_CCEL))
            if self.event_log != "required":
                raise InvalidPolicy(
                    "events are read from the event log: say event_log='required' beside them"
                )
        freeze(self, "statuses", policy_values.words("statuses", self.statuses))
        for status in self.statuses:
            if status not in STATUSES:
                raise InvalidPolicy(
                    f"statuses: {status!r} can not be accepted; choose of {', '.join(STATUSES)}"
                )
        if self.accepted_advisories is not None:
            freeze(
                self,
                "accepted_advisories",
                policy_values.words("accepted_advisories", self.accepted_advisories, 64),
            )
        policy_values.integer("minimum_tcb_evaluation", self.minimum_tcb_evaluation, _MOST_EVALUATION)
        if self.xfam_allowed is not None:
            policy_values.integer("xfam_allowed", self.xfam_allowed, (1 << 63) - 1)
        if self.event_log not in ("required", "unused"):
            raise InvalidPolicy(f"event_log is {self.event_log!r}, expected 'required' or 'unused'")
        freeze(self, "roots", policy_values.roots(self.roots))

    def __hash__(self) -> int:
        return hash((self.mrtd, self.minimum_tcb_evaluation, self.mr_config_id))

    def with_tcb_evaluation_floor(self, number: int) -> TdxPolicy:
        """The same policy, and besides: judged by Intel's evaluation `number` or a newer one."""
        return replace(self, minimum_tcb_evaluation=max(self.minimum_tcb_evaluation, number))

    def check_tcb(self, claims: TdxClaims, finding: Finding) -> None:
        """Step 9: Intel's word for the firmware is one of ours, and not an old one."""
        told = f" ({', '.join(sorted(claims.advisories))})" if claims.advisories else ""
        finding.expect(
            claims.status in self.statuses,
            "TCB status",
            found=claims.status + told,
            wanted=self.statuses,
            source="TCB info and QE identity",
            error=TcbTooOld,
            code="tcb-status",
            message=f"Intel says of the machine's firmware: {claims.status}{told}; the policy accepts "
            f"{' or '.join(sorted(self.statuses))}. Has the host's firmware been updated?",
        )
        if claims.status == UP_TO_DATE:
            finding.not_applicable("advisories", "the firmware is up to date")
        else:
            accepted: Set[str] = self.accepted_advisories or frozenset()
            unread = sorted(claims.advisories - accepted)
            finding.expect(
                not unread,
                "advisories",
                found=claims.advisories or "none",
                wanted=accepted or "none",
                source="TCB info and QE identity",
                error=TcbTooOld,
                code="advisory-not-accepted",
                message=f"the machine is open to {', '.join(unread)}, "
                "which the policy's accepted_advisories do not name",
            )
        finding.expect(
            claims.tcb_evaluation >= self.minimum_tcb_evaluation,
            "TCB evaluation",
            found=claims.tcb_evaluation,
            wanted=f"at least {self.minimum_tcb_evaluation}",
            source="TCB info and QE identity",
            error=TcbTooOld,
            code="tcb-evaluation-too-old",
            message=f"the machine was judged by Intel's TCB evaluation {claims.tcb_evaluation}, "
            f"the policy asks for {self.minimum_tcb_evaluation}; has newer collateral been fetched?",
        )
        floor = self.minimum_tee_tcb_svn
        if floor is None:
            finding.not_asked("TEE TCB SVN", found=claims.tee_tcb_svn, source="TEE_TCB_SVN")
        else:
            finding.expect(
                # One by one: in a packed number a high module version would hide a low one beside it.
                all(found >= wanted for found, wanted in zip(claims.tee_tcb_svn, floor, strict=True)),
                "TEE TCB SVN",
                found=claims.tee_tcb_svn,
                wanted=f"each byte at least {floor.hex()}",
                source="TEE_TCB_SVN",
                error=TcbTooOld,
            )
        finding.passed(f"{claims.status}, TCB evaluation {claims.tcb_evaluation}")

    def check_guest(self, claims: TdxClaims, finding: Finding) -> None:
        """Step 10: what the guest shares with its host."""
        attributes.check(claims.td_attributes, claims.xfam, claims.mrservicetd, self.xfam_allowed, finding)
        finding.passed(f"no debugging, no migration; attributes {claims.td_attributes:#x}")

    def check_module(self, claims: TdxClaims, finding: Finding) -> None:
        """Step 11: the TDX module that spoke is Intel's, and one that is accepted."""
        finding.expect(
            not any(claims.mrsignerseam) and not claims.seam_attributes,
            "TDX module signed by Intel",
            found=f"{claims.mrsignerseam.hex()}, attributes {claims.seam_attributes:#x}",
            wanted="zeros",
            source="MRSIGNERSEAM, SEAMATTRIBUTES",
            code="seam-mismatch",
            message="the TDX module is not a production module of Intel's",
        )
        if self.mrseam is None:
            finding.not_asked("TDX module", found=claims.mrseam, source="MRSEAM")
        else:
            finding.expect(
                claims.mrseam in self.mrseam,
                "TDX module",
                found=claims.mrseam,
                wanted=self.mrseam,
                source="MRSEAM",
                code="seam-mismatch",
                message=f"the TDX module is {claims.mrseam.hex()}, which the policy does not name",
            )
        finding.passed(f"TDX module {claims.tee_tcb_svn[1]}.{claims.tee_tcb_svn[0]} of Intel's")

    def check_launch(self, claims: TdxClaims, finding: Finding) -> None:
        """Step 12: the firmware, and what it started."""
        finding.expect(
            claims.mrtd in self.mrtd,
            "MRTD",
            found=claims.mrtd,
            wanted=self.mrtd,
            source="quote",
            error=MeasurementMismatch,
            message=f"the machine launched {claims.mrtd.hex()}, which is none of the "
            f"{len(self.mrtd)} measurements that the policy names",
        )
        for number, found in enumerate(claims.rtmrs):
            wanted = (self.rtmrs or {}).get(number)
            if wanted is None:
                finding.not_asked(f"RTMR{number}", found=found, source="quote")
                continue
            finding.expect(
                found in wanted,
                f"RTMR{number}",
                found=found,
                wanted=wanted,
                source="quote",
                error=MeasurementMismatch,
                code="rtmr-mismatch",
                message=f"RTMR{number} is {found.hex()}, which is none of the {len(wanted)} values "
                "that the policy names",
            )
        if self.event_log == "unused":
            finding.not_asked("event log")
        else:
            rtmr.check(claims.event_log, claims.rtmrs, self.events or {}, finding)
        finding.passed(f"measurement {claims.mrtd.hex()}")

    def check_machine(self, claims: TdxClaims, finding: Finding) -> None:
        """Step 13: whose machine it is, if the policy says so."""
        asked = False
        for name, code, found, wanted in (
            ("MRCONFIGID", "config-id", claims.mrconfigid, self.mr_config_id),
            ("MROWNER", "owner", claims.mrowner, self.mr_owner),
            ("MROWNERCONFIG", "owner", claims.mrownerconfig, self.mr_owner_config),
        ):
            if wanted is None:
                finding.not_asked(name, found=found, source="quote")
                continue
            asked = True
            finding.expect(found == wanted, name, found=found, wanted=wanted, source="quote", code=code)
        for name, one, named in (
            ("PPID", claims.ppid, self.ppids),
            ("platform instance id", claims.platform_instance_id, self.platform_instance_ids),
            ("FMSPC", claims.fmspc, self.fmspcs),
        ):
            seen = "none" if one is None else one
            if named is None:
                finding.not_asked(name, found=seen, source="PCK certificate")
                continue
            asked = True
            finding.expect(
                one in named,
                name,
                found=seen,
                wanted=named,
                source="PCK certificate",
                code="platform-not-listed",
            )
        if asked:
            finding.passed(f"processor {claims.ppid[:8].hex()}…")
        else:
            finding.was_not_asked("the policy names no machines: any genuine one running this image passes")

    def in_words(self) -> Words:
        """The policy in plain sentences."""
        checks = [
            f"An Intel TDX machine whose firmware Intel calls {' or '.join(sorted(self.statuses))}, "
            f"by TCB evaluation {self.minimum_tcb_evaluation} or newer, and which is not revoked.",
            "The guest cannot be debugged or moved, and no service machine is bound to it.",
            f"It was started with one of {len(self.mrtd)} firmware images (MRTD).",
        ]
        unchecked: list[str] = []
        if self.accepted_advisories is not None:
            checks.append(f"Accepted although open: {', '.join(sorted(self.accepted_advisories))}.")
        named = sorted(self.rtmrs or ())
        if named:
            registers = " and ".join(f"RTMR{number}" for number in named)
            checks.append(f"What was started since has one of the values named, in {registers}.")
        unchecked += [f"{_MEANINGS[number]} (RTMR{number})." for number in RTMRS if number not in named]
        if self.event_log == "required":
            checks.append("The log of the boot is there and gives the same RTMR0, RTMR1 and RTMR2.")
        for number, digests in sorted((self.events or {}).items()):
            checks.append(f"Nothing was measured into RTMR{number} but {len(digests)} named digests.")
        for wish, yes, no in (
            (self.mrseam, "The TDX module is one of those named.", "Which of Intel's TDX modules it is."),
            (self.minimum_tee_tcb_svn, "The TDX module is not older than the floor.", ""),
            (self.xfam_allowed, "The guest uses no other processor features than those named.", ""),
            (self.fmspcs, "The kind of machine is one of those named.", ""),
            (self.mr_owner, "The owner that the host gave (MROWNER) is the one named.", ""),
            (self.mr_owner_config, "The owner's configuration (MROWNERCONFIG) is the one named.", ""),
            (self.mr_config_id, "The configuration that the host gave (MRCONFIGID) is the one named.", ""),
            (self.ppids, "The processor is one of those named.", ""),
            (self.platform_instance_ids, "The platform is one of those named.", ""),
        ):
            if wish is not None:
                checks.append(yes)
            elif no:
                unchecked.append(no)
        if self.mr_config_id is None and self.ppids is None and self.platform_instance_ids is None:
            unchecked.append("Whose machine it is: any genuine one that runs this image passes.")
        return Words(
            trusts=("Intel, for the processor, the TDX module, the quoting enclave and the collateral.",),
            checks=tuple(checks),
            unchecked=tuple(unchecked),
        )


_MEANINGS: Final = (
    "The firmware's settings",
    "The boot loader or kernel",
    "The kernel's command line and initial file system",
    "What the running system measured itself",
)


def _registers(name: str, values: object, known: range) -> Mapping[int, frozenset[bytes]]:
    if not isinstance(values, Mapping) or not values:
        raise InvalidPolicy(f"{name} names no register; leave it out if none is to be compared")
    for number in values:
        if not isinstance(number, int) or isinstance(number, bool) or number not in known:
            raise InvalidPolicy(f"{name}: there is no register {number!r}, only 0 to {known[-1]}")
    return MappingProxyType(
        {
            number: policy_values.digests(f"RTMR{number}", allowed, REGISTER_SIZE)
            for number, allowed in sorted(values.items())
        }
    )
