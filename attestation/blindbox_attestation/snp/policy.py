"""
Which AMD SEV-SNP guests are acceptable: steps 9 to 13 of SPEC §4.

An `SnpPolicy` says yes to what it names. A family without a floor is not accepted, an empty set is an error,
and no field opens a door by being left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, cast

from .. import policy_values
from ..errors import (
    DebugAllowed,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    TcbTooOld,
)
from ..policy_words import Words
from ..roots import AMD_ROOTS
from ..walk import Finding
from .claims import SnpClaims
from .policy_words import in_words
from .report import KEY_NAMES
from .tcb import FAMILIES, MILAN, TURIN, Tcb, family_named

__all__ = ["MilanWarning", "SnpPolicy", "Tcb"]

MEASUREMENT_SIZE: Final = 48
HOST_DATA_SIZE: Final = 32
KEY_DIGEST_SIZE: Final = 48
CHIP_ID_SIZE: Final = 64
TURIN_CHIP_ID_SIZE: Final = 8

# Guest policy bits (AMD 56860, table GUEST_POLICY)
SMT_ALLOWED: Final = 1 << 16
MUST_BE_ONE: Final = 1 << 17
MIGRATION_ALLOWED: Final = 1 << 18
DEBUG_ALLOWED: Final = 1 << 19
_FIRST_UNKNOWN_BIT: Final = 26

# Platform information bits (AMD 56860, table PLATFORM_INFO)
SMT_ENABLED: Final = 1 << 0
ALIAS_CHECK: Final = 1 << 5

Revocation = Literal["required", "unchecked"]


class MilanWarning(UserWarning):
    """
    A policy names EPYC Milan, whose attestation keys have been extracted in software (arXiv 2605.12990).
    """


@dataclass(frozen=True, slots=True)
class SnpPolicy:
    """
    What must be true of an SEV-SNP guest.

    `measurements` are the launch digests of the images that are trusted, `minimum_tcb` the oldest firmware,
    one floor for each processor family that is accepted ("Genoa"), or for one model and stepping of it
    ("Genoa/a0/2", as CPUID counts them), which then takes the place of the family's. Without `chip_ids` or
    `host_data`, *any genuine machine running this image* passes.
    """

    measurements: Set[bytes]
    minimum_tcb: Mapping[str, Tcb]
    vmpl: int = 0
    signing_keys: Set[str] = frozenset({"vcek"})
    chip_ids: Set[bytes] | None = None  # 64 bytes each; 8 will do for Turin
    csp_ids: Set[str] | None = None  # the clouds whose VLEK may sign; a VCEK names none
    host_data: bytes | None = None
    minimum_guest_svn: int = 0
    allow_smt: bool = True
    allow_masked_chip_id: bool = False
    id_key_digests: Set[bytes] | None = None
    author_key_digests: Set[bytes] | None = None
    platform_info_required: int = 0
    platform_info_forbidden: int = 0
    revocation: Revocation = "required"
    roots: Mapping[bytes, str] = field(default_factory=lambda: AMD_ROOTS)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        freeze(self, "measurements", _digests("measurements", self.measurements, MEASUREMENT_SIZE))
        freeze(self, "minimum_tcb", _floors(self.minimum_tcb))
        freeze(self, "signing_keys", _names("signing_keys", self.signing_keys, KEY_NAMES.values()))
        if self.chip_ids is not None:
            ids = _digests("chip_ids", self.chip_ids, CHIP_ID_SIZE, TURIN_CHIP_ID_SIZE)
            freeze(self, "chip_ids", frozenset(one.ljust(CHIP_ID_SIZE, b"\x00") for one in ids))
            if bytes(CHIP_ID_SIZE) in (self.chip_ids or ()):
                raise InvalidPolicy("a chip id of zeros is that of a chip which hides it")
        if self.csp_ids is not None:
            freeze(self, "csp_ids", policy_values.words("csp_ids", self.csp_ids))
        if self.host_data is not None:
            _digests("host_data", [self.host_data], HOST_DATA_SIZE)
        for name in ("id_key_digests", "author_key_digests"):
            digests = getattr(self, name)
            if digests is not None:
                freeze(self, name, _digests(name, digests, KEY_DIGEST_SIZE))
                if bytes(KEY_DIGEST_SIZE) in getattr(self, name):
                    raise InvalidPolicy(f"{name}: a digest of zeros is that of no key")
        _integer("vmpl", self.vmpl, 3)
        _integer("minimum_guest_svn", self.minimum_guest_svn, (1 << 32) - 1)
        _integer("platform_info_required", self.platform_info_required, (1 << 63) - 1)
        _integer("platform_info_forbidden", self.platform_info_forbidden, (1 << 63) - 1)
        if self.platform_info_required & self.platform_info_forbidden:
            raise InvalidPolicy("a bit of platform_info is both required and forbidden")
        for name in ("allow_smt", "allow_masked_chip_id"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidPolicy(f"{name} is neither True nor False")
        if self.revocation not in ("required", "unchecked"):
            raise InvalidPolicy(f"revocation is {self.revocation!r}, expected 'required' or 'unchecked'")
        freeze(self, "roots", _roots(self.roots))
        if MILAN in map(family_named, self.minimum_tcb):
            warnings.warn(
                "this policy accepts EPYC Milan, whose attestation keys have been extracted in software: "
                "no TCB floor helps there (see LIMITS.md)",
                MilanWarning,
                stacklevel=3,
            )

    def __hash__(self) -> int:
        return hash((self.measurements, self.host_data, self.chip_ids))

    def with_host_data(self, host_data: bytes) -> SnpPolicy:
        """The same policy, and besides: launched with exactly this HOST_DATA (32 bytes)."""
        return replace(self, host_data=host_data)

    def floor(self, claims: SnpClaims) -> tuple[str, Tcb] | None:
        """The floor that counts for this machine, and its name: its stepping's, or else its family's."""
        for name in (claims.stepping, claims.family):
            if name is not None and name in self.minimum_tcb:
                return name, self.minimum_tcb[name]
        return None

    def check_tcb(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 9: no older than the floor, by part, and the four levels agree with each other."""
        machine = claims.stepping or claims.family
        named = ", ".join(sorted(self.minimum_tcb))
        floor = self.floor(claims)
        # Without a CPUID the machine could be of a stepping with a floor of its own, hiding it.
        hidden = claims.stepping is None and any(
            one.startswith(f"{claims.family}/") for one in self.minimum_tcb
        )
        finding.expect(
            floor is not None and not hidden,
            "processor",
            found=machine,
            wanted=tuple(self.minimum_tcb),
            source="certificate and report, CPUID",
            error=PlatformNotAccepted,
            message=f"the report does not tell the stepping of this {machine}, "
            "and the policy has floors by stepping"
            if hidden
            else f"the machine is a {machine}, the policy names {named}",
        )
        whose, least = cast(tuple[str, Tcb], floor)
        wanted = f"at least {least}"
        for name, level in (
            ("reported", claims.reported_tcb),
            ("committed", claims.committed_tcb),
            ("launch", claims.launch_tcb),
        ):
            below = level.below(least)
            finding.expect(
                not below,
                f"{name} TCB",
                found=level,
                wanted=wanted,
                source=f"report, {name.upper()}_TCB",
                error=TcbTooOld,
                message=f"the {name} TCB is below the policy's floor for {whose}: {', '.join(below)}; "
                "has the host's firmware been updated?",
            )
        for lower_name, lower, upper_name, upper in (
            ("committed", claims.committed_tcb, "reported", claims.reported_tcb),
            ("current", claims.current_tcb, "committed", claims.committed_tcb),
            ("current", claims.current_tcb, "launch", claims.launch_tcb),
        ):
            below = lower.below(upper)
            finding.expect(
                not below,
                f"{lower_name} TCB against the {upper_name} one",
                found=lower,
                wanted=f"at least {upper}",
                source=f"report, {lower_name.upper()}_TCB",
                error=TcbTooOld,
                code="tcb-inconsistent",
                message=f"the {lower_name} TCB is below the {upper_name} one: {', '.join(below)}",
            )
        finding.passed(f"{machine}: {claims.reported_tcb}")

    def check_guest_policy(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 10: what the host was allowed to do with the guest, and how the machine is set up."""
        bits, info = claims.guest_policy, claims.platform_info
        finding.expect(
            not bits & DEBUG_ALLOWED,
            "debugging",
            found="allowed" if bits & DEBUG_ALLOWED else "forbidden",
            wanted="forbidden",
            source="report, POLICY bit 19",
            error=DebugAllowed,
            message="the guest was launched with debugging allowed: its host can read its memory",
        )
        moved = bool(bits & MIGRATION_ALLOWED) or claims.has_migration_agent
        finding.expect(
            not moved,
            "migration",
            found="allowed" if moved else "forbidden",
            wanted="forbidden",
            source="report, POLICY bit 18 and REPORT_ID_MA",
            code="migration-allowed",
            message="the guest may be moved by a migration agent",
        )
        finding.expect(
            bool(bits & MUST_BE_ONE) and not bits >> _FIRST_UNKNOWN_BIT,
            "reserved bits of the guest policy",
            found=f"{bits:#x}",
            wanted=f"bit 17 set, none from {_FIRST_UNKNOWN_BIT} on",
            source="report, POLICY",
            code="policy-bits",
            message=f"reserved bits of the guest policy are wrong: {bits:#x}",
        )
        if self.allow_smt:
            allowed = "allowed" if bits & SMT_ALLOWED else "forbidden"
            finding.not_asked("sibling threads", found=allowed, source="report, POLICY bit 16")
        else:
            finding.expect(
                not bits & SMT_ALLOWED,
                "sibling threads",
                found="allowed" if bits & SMT_ALLOWED else "forbidden",
                wanted="forbidden",
                source="report, POLICY bit 16",
                code="policy-bits",
                message="the guest may run with SMT, the policy forbids it",
            )
        forbidden = self.platform_info_forbidden | (0 if self.allow_smt else SMT_ENABLED)
        missing, unwanted = self.platform_info_required & ~info, forbidden & info
        if not self.platform_info_required and not forbidden:
            finding.not_asked("platform information", found=f"{info:#x}", source="report, PLATFORM_INFO")
        else:
            finding.expect(
                not missing and not unwanted,
                "platform information",
                found=f"{info:#x}",
                wanted=f"all of {self.platform_info_required:#x}, none of {forbidden:#x}",
                source="report, PLATFORM_INFO",
                code="platform-info",
                message=f"platform information is {info:#x}: required bits {missing:#x} are not set, "
                f"forbidden bits {unwanted:#x} are",
            )
        finding.passed(f"no debugging, no migration; guest policy {bits:#x}, platform information {info:#x}")

    def check_requester(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 11: the privilege level that asked, and the kind of key that signed."""
        finding.expect(
            claims.vmpl == self.vmpl,
            "VMPL",
            found=claims.vmpl,
            wanted=self.vmpl,
            source="report, VMPL",
            code="vmpl",
            message=f"the report was asked for at VMPL {claims.vmpl}, expected {self.vmpl}",
        )
        finding.expect(
            claims.signing_key in self.signing_keys,
            "kind of signing key",
            found=claims.signing_key,
            wanted=self.signing_keys,
            source="report, FLAGS",
            code="signing-key-kind",
            message=f"the report is signed by a {claims.signing_key}, "
            f"the policy accepts {' or '.join(sorted(self.signing_keys))}",
        )
        cloud = f" of {claims.csp_id!a}" if claims.csp_id is not None else ""
        finding.passed(f"VMPL {claims.vmpl}, signed by a {claims.signing_key}{cloud}")

    def check_launch(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 12: the program, its version, and who signed its ID block."""
        finding.expect(
            claims.measurement in self.measurements,
            "measurement",
            found=claims.measurement,
            wanted=self.measurements,
            source="report, MEASUREMENT",
            error=MeasurementMismatch,
            message=f"the machine launched {claims.measurement.hex()}, which is none of the "
            f"{len(self.measurements)} measurements that the policy names",
        )
        source = "report, GUEST_SVN"
        if not self.minimum_guest_svn:
            finding.not_asked("guest SVN", found=claims.guest_svn, source=source)
        else:
            finding.expect(
                claims.guest_svn >= self.minimum_guest_svn,
                "guest SVN",
                found=claims.guest_svn,
                wanted=f"at least {self.minimum_guest_svn}",
                source=source,
                code="guest-svn",
                message=f"guest SVN is {claims.guest_svn}, the policy asks for {self.minimum_guest_svn}",
            )
        for name, what, found, there, wanted in (
            ("ID key", "the ID block is signed by key", claims.id_key_digest, True, self.id_key_digests),
            (
                "author key",
                "the author key is",
                claims.author_key_digest,
                claims.has_author_key,
                self.author_key_digests,
            ),
        ):
            source = f"report, {name.upper().replace(' ', '_')}_DIGEST"
            if wanted is None:
                finding.not_asked(name, found=found if any(found) else "none", source=source)
            else:
                finding.expect(
                    there and found in wanted,
                    name,
                    found=found if there else "none",
                    wanted=wanted,
                    source=source,
                    code="id-block",
                    message=f"{what} {found.hex()}, which the policy does not name",
                )
        finding.passed(f"measurement {claims.measurement.hex()}")

    def check_machine(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 13: whose machine it is, if the policy says so."""
        chip = "hidden" if claims.chip_id is None else claims.chip_id.hex()
        told: list[str] = []
        if self.host_data is None:
            finding.not_asked("host data", found=claims.host_data, source="report, HOST_DATA")
        else:
            finding.expect(
                claims.host_data == self.host_data,
                "host data",
                found=claims.host_data,
                wanted=self.host_data,
                source="report, HOST_DATA",
                code="host-data",
                message=f"host data is {claims.host_data.hex()}, expected {self.host_data.hex()}",
            )
            told.append(f"host data {claims.host_data.hex()}")
        if self.chip_ids is None:
            finding.not_asked("chip id", found=chip, source="report, CHIP_ID")
        else:
            finding.expect(
                claims.chip_id is not None and claims.chip_id in self.chip_ids,
                "chip id",
                found=chip,
                wanted=self.chip_ids,
                source="report, CHIP_ID",
                code="chip-not-listed",
                message=f"the chip is {chip}, which the policy does not name",
            )
            told.append(f"chip {chip[:16]}…")
        cloud = claims.csp_id or "not told"
        if self.csp_ids is None:
            finding.not_asked("cloud", found=cloud, source=f"{claims.signing_key} certificate, cspID")
        else:
            finding.expect(
                claims.csp_id in self.csp_ids,
                "cloud",
                found=cloud,
                wanted=self.csp_ids,
                source=f"{claims.signing_key} certificate, cspID",
                code="cloud-not-listed",
                message=f"the cloud is {cloud!a}, which the policy does not name",
            )
            told.append(f"cloud {cloud}")
        if told:
            finding.passed(", ".join(told))
        else:
            finding.was_not_asked("the policy names no machines: any genuine one running this image passes")

    def in_words(self) -> Words:
        """The policy in sentences, for whoever has to sign it off."""
        return in_words(self)


def _digests(name: str, values: object, *sizes: int) -> frozenset[bytes]:
    if not isinstance(values, Set | list | tuple) or not values:
        raise InvalidPolicy(f"{name} is empty: it would accept nobody")
    expected = " or ".join(map(str, sizes))
    for value in values:
        if not isinstance(value, bytes) or len(value) not in sizes:
            raise InvalidPolicy(f"{name}: expected {expected} bytes, not {_what(value)}")
    return frozenset(values)


def _what(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"


def _names(name: str, values: object, known: Collection[str]) -> frozenset[str]:
    if (
        not isinstance(values, Set | list | tuple)
        or not values
        or not all(value in known for value in values)
    ):
        raise InvalidPolicy(f"{name} is {values!r}, expected some of {', '.join(sorted(known))}")
    return frozenset(values)


def _floors(values: object) -> Mapping[str, Tcb]:
    if not isinstance(values, Mapping) or not values:
        raise InvalidPolicy(
            "minimum_tcb names no processor family, so it would accept nobody; give a floor for "
            + ", ".join(FAMILIES)
        )
    for name, floor in values.items():
        family = family_named(name) if isinstance(name, str) else None
        if family is None or not isinstance(floor, Tcb):
            raise InvalidPolicy(
                f"minimum_tcb: {name!r} is none of {', '.join(FAMILIES)}, and no stepping of one "
                "(as in 'Genoa/a0/2'), or its floor is no Tcb"
            )
        if family != TURIN and floor.fmc:
            raise InvalidPolicy(f"minimum_tcb: {name} has no fmc, only Turin does")
    return MappingProxyType(dict(values))


def _roots(values: object) -> Mapping[bytes, str]:
    if not isinstance(values, Mapping) or not values:
        raise InvalidPolicy("without roots nobody could be believed")
    for fingerprint, family in values.items():
        if not isinstance(fingerprint, bytes) or len(fingerprint) != 32 or family not in FAMILIES:
            raise InvalidPolicy("roots: expected SHA-256 fingerprints, each with its processor family")
    return MappingProxyType(dict(values))


def _integer(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidPolicy(f"{name} is {value!r}, expected 0 to {most}")
