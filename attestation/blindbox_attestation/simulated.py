"""
Evidence that proves nothing, for laptops, demonstrations and tests (SPEC §4.2).

It has the shape of SEV-SNP evidence and is judged by the same code, but its signing key is public: anybody
can make it. Only an `UnsafeSimulatedPolicy`, written in code, accepts it; no environment variable, no policy
file and no field of a message can.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from .development_chain import ARK, ASK, CHIP_ID, CRL, DEVELOPMENT_ROOT, PUBLIC_PRIVATE_KEY, VCEK
from .policy import check_times, checked_settings
from .policy_digest import digest_of
from .snp.policy import MUST_BE_ONE, SMT_ALLOWED, SnpPolicy
from .snp.report import ECDSA_P384_SHA384, SIGNED_SIZE, Report
from .snp.tcb import GENOA, Tcb

SIMULATED_MEASUREMENT: Final = hashlib.sha384(b"blindbox/simulated/v1").digest()
"""What a simulated machine says it has launched; any other 48 bytes would be as true."""

SIMULATED_ENDORSEMENTS: Final[Mapping[str, bytes]] = MappingProxyType(
    {"ark": ARK, "ask": ASK, "vcek": VCEK, "crl": CRL}
)

_TCB: Final = Tcb(bootloader=1, snp=1, microcode=1)
_POLICY_LABEL: Final = b"blindbox/policy/unsafe-simulated/v1\x00"


class UnsafeSimulationWarning(UserWarning):
    """Somebody accepts simulated evidence. Nothing is proved, and the host can read everything."""


@dataclass(frozen=True, slots=True)
class UnsafeSimulatedPolicy:
    """
    Accepts simulated machines, and no others. It proves nothing: for trying things out, never for secrets.

    It has the same shape as `Policy`, is no subclass of it, and cannot be written in JSON.
    """

    measurements: Set[bytes] = frozenset({SIMULATED_MEASUREMENT})
    accept_cached: bool = False
    max_age: timedelta = timedelta(minutes=10)
    clock_skew: timedelta = timedelta(minutes=5)
    host_data: bytes | None = None
    config_digests: Set[bytes] | None = None
    snp: SnpPolicy = field(init=False, repr=False, compare=False)
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        snp = SnpPolicy(
            measurements=self.measurements,
            minimum_tcb={GENOA: _TCB},
            host_data=self.host_data,
            roots={DEVELOPMENT_ROOT: GENOA},
        )
        check_times(self.accept_cached, self.max_age, self.clock_skew)
        object.__setattr__(self, "config_digests", checked_settings(self.config_digests))
        object.__setattr__(self, "measurements", snp.measurements)
        object.__setattr__(self, "snp", snp)
        object.__setattr__(self, "digest", digest_of(_POLICY_LABEL, self))
        warnings.warn(
            "UnsafeSimulatedPolicy accepts machines that prove nothing: "
            "whoever runs them can read all that is sent",
            UnsafeSimulationWarning,
            stacklevel=3,
        )

    def with_host_data(self, host_data: bytes) -> UnsafeSimulatedPolicy:
        """The same policy, and besides: launched with exactly this HOST_DATA (32 bytes)."""
        return replace(self, host_data=host_data)


def simulated_report(report_data: bytes, *, host_data: bytes = bytes(32)) -> bytes:
    """A report that says what an honest machine would say, signed with the key that everybody has."""
    if len(report_data) != 64 or len(host_data) != 32:
        raise ValueError("report data has 64 bytes, host data 32")
    tcb = _TCB.encode(GENOA)
    report = Report(
        version=5,
        guest_svn=0,
        policy=MUST_BE_ONE | SMT_ALLOWED,
        family_id=bytes(16),
        image_id=bytes(16),
        vmpl=0,
        signature_algorithm=ECDSA_P384_SHA384,
        current_tcb=tcb,
        platform_info=1,
        flags=0,
        report_data=report_data,
        measurement=SIMULATED_MEASUREMENT,
        host_data=host_data,
        id_key_digest=bytes(48),
        author_key_digest=bytes(48),
        report_id=bytes(32),
        report_id_ma=b"\xff" * 32,
        reported_tcb=tcb,
        cpuid=bytes((0x19, 0x11, 0x01)),
        chip_id=CHIP_ID,
        committed_tcb=tcb,
        current_firmware=bytes((0, 55, 1)),
        committed_firmware=bytes((0, 55, 1)),
        launch_tcb=tcb,
        launch_mitigations=bytes(8),
        current_mitigations=bytes(8),
        signature=bytes(512),
    )
    return sign_report(report, _public_private_key())


def sign_report(report: Report, key: EllipticCurvePrivateKey) -> bytes:
    """
    The bytes of a report with the signature a chip would put there: R and S, 72 bytes each, little endian.
    """
    unsigned = report.encode()[:SIGNED_SIZE]
    r, s = decode_dss_signature(key.sign(unsigned, ECDSA(SHA384())))
    return unsigned + (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\x00")


@cache
def _public_private_key() -> EllipticCurvePrivateKey:
    return derive_private_key(PUBLIC_PRIVATE_KEY, SECP384R1())
