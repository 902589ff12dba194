"""
Which AMD SEV-SNP guests are acceptable: steps 9 to 13 of SPEC §4.

An `SnpPolicy` says yes to what it names. A family without a floor is not accepted, an empty set is an error,
and no field opens a door by being left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from ..errors import (
    DebugAllowed,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    PolicyRefused,
    TcbTooOld,
)
from ..roots import AMD_ROOTS
from ..walk import Finding
from .claims import SnpClaims
from .report import KEY_NAMES
from .tcb import FAMILIES, MILAN, Tcb

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
    one floor for each processor family that is accepted. Without `chip_ids` or `host_data`, *any genuine
    machine running this image* passes.
    """

    measurements: Set[bytes]
    minimum_tcb: Mapping[str, Tcb]
    vmpl: int = 0
    signing_keys: Set[str] = frozenset({"vcek"})
    chip_ids: Set[bytes] | None = None  # 64 bytes each; 8 will do for Turin
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
        if self.host_data is not None:
            _digests("host_data", {self.host_data}, HOST_DATA_SIZE)
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
        if MILAN in self.minimum_tcb:
            warnings.warn(
                "this policy accepts EPYC Milan, whose attestation keys have been extracted in software: "
                "no TCB floor helps there (see LIMITS.md)",
                MilanWarning,
                stacklevel=3,
            )

    def __hash__(self) -> int:
        return hash((self.measurements, self.host_data, self.chip_ids))

    def check_tcb(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 9: no older than the floor, by part, and the four levels agree with each other."""
        floor = self.minimum_tcb.get(claims.family)
        if floor is None:
            named = ", ".join(sorted(self.minimum_tcb))
            raise PlatformNotAccepted(f"the machine is a {claims.family}, the policy names {named}")
        for name, level in (
            ("reported", claims.reported_tcb),
            ("committed", claims.committed_tcb),
            ("launch", claims.launch_tcb),
        ):
            if below := level.below(floor):
                raise TcbTooOld(
                    f"the {name} TCB is below the policy's floor for {claims.family}: {', '.join(below)}; "
                    "has the host's firmware been updated?"
                )
        for lower_name, lower, upper_name, upper in (
            ("committed", claims.committed_tcb, "reported", claims.reported_tcb),
            ("current", claims.current_tcb, "committed", claims.committed_tcb),
            ("current", claims.current_tcb, "launch", claims.launch_tcb),
        ):
            if below := lower.below(upper):
                raise TcbTooOld(
                    f"the {lower_name} TCB is below the {upper_name} one: {', '.join(below)}",
                    code="tcb-inconsistent",
                )
        finding.passed(f"{claims.family}: {claims.reported_tcb}")

    def check_guest_policy(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 10: what the host was allowed to do with the guest, and how the machine is set up."""
        bits = claims.guest_policy
        if bits & DEBUG_ALLOWED:
            raise DebugAllowed("the guest was launched with debugging allowed: its host can read its memory")
        if bits & MIGRATION_ALLOWED or claims.has_migration_agent:
            raise PolicyRefused("the guest may be moved by a migration agent", code="migration-allowed")
        if not bits & MUST_BE_ONE or bits >> _FIRST_UNKNOWN_BIT:
            raise PolicyRefused(f"reserved bits of the guest policy are wrong: {bits:#x}", code="policy-bits")
        if not self.allow_smt and bits & SMT_ALLOWED:
            raise PolicyRefused("the guest may run with SMT, the policy forbids it", code="policy-bits")
        info = claims.platform_info
        forbidden = self.platform_info_forbidden | (0 if self.allow_smt else SMT_ENABLED)
        missing, unwanted = self.platform_info_required & ~info, forbidden & info
        if missing or unwanted:
            raise PolicyRefused(
                f"platform information is {info:#x}: required bits {missing:#x} are not set, "
                f"forbidden bits {unwanted:#x} are",
                code="platform-info",
            )
        finding.passed(f"no debugging, no migration; guest policy {bits:#x}, platform information {info:#x}")

    def check_requester(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 11: the privilege level that asked, and the kind of key that signed."""
        if claims.vmpl != self.vmpl:
            raise PolicyRefused(
                f"the report was asked for at VMPL {claims.vmpl}, expected {self.vmpl}", code="vmpl"
            )
        if claims.signing_key not in self.signing_keys:
            accepted = " or ".join(sorted(self.signing_keys))
            raise PolicyRefused(
                f"the report is signed by a {claims.signing_key}, the policy accepts {accepted}",
                code="signing-key-kind",
            )
        cloud = f" of {claims.csp_id!a}" if claims.csp_id is not None else ""
        finding.passed(f"VMPL {claims.vmpl}, signed by a {claims.signing_key}{cloud}")

    def check_launch(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 12: the program, its version, and who signed its ID block."""
        if claims.measurement not in self.measurements:
            raise MeasurementMismatch(
                f"the machine launched {claims.measurement.hex()}, which is none of the "
                f"{len(self.measurements)} measurements that the policy names"
            )
        if claims.guest_svn < self.minimum_guest_svn:
            raise PolicyRefused(
                f"guest SVN is {claims.guest_svn}, the policy asks for {self.minimum_guest_svn}",
                code="guest-svn",
            )
        if self.id_key_digests is not None and claims.id_key_digest not in self.id_key_digests:
            raise PolicyRefused(
                f"the ID block is signed by key {claims.id_key_digest.hex()}, which the policy does not name",
                code="id-block",
            )
        if self.author_key_digests is not None and (
            not claims.has_author_key or claims.author_key_digest not in self.author_key_digests
        ):
            raise PolicyRefused(
                f"the author key is {claims.author_key_digest.hex()}, which the policy does not name",
                code="id-block",
            )
        finding.passed(f"measurement {claims.measurement.hex()}")

    def check_machine(self, claims: SnpClaims, finding: Finding) -> None:
        """Step 13: whose machine it is, if the policy says so."""
        if self.host_data is None and self.chip_ids is None:
            finding.does_not_apply("the policy names no machines: any genuine one running this image passes")
            return
        told: list[str] = []
        if self.host_data is not None:
            if claims.host_data != self.host_data:
                raise PolicyRefused(
                    f"host data is {claims.host_data.hex()}, expected {self.host_data.hex()}",
                    code="host-data",
                )
            told.append(f"host data {claims.host_data.hex()}")
        if self.chip_ids is not None:
            if claims.chip_id is None or claims.chip_id not in self.chip_ids:
                chip = claims.chip_id.hex() if claims.chip_id is not None else "hidden"
                raise PolicyRefused(
                    f"the chip is {chip}, which the policy does not name", code="chip-not-listed"
                )
            told.append(f"chip {claims.chip_id[:8].hex()}…")
        finding.passed(", ".join(told))


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
    for family, floor in values.items():
        if family not in FAMILIES or not isinstance(floor, Tcb):
            raise InvalidPolicy(
                f"minimum_tcb: {family!r} is none of {', '.join(FAMILIES)}, or its floor is no Tcb"
            )
        if family != "Turin" and floor.fmc:
            raise InvalidPolicy(f"minimum_tcb: {family} has no fmc, only Turin does")
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
