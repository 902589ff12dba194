"""
Intel TDX quotes: from bytes to a `Quote`.

This module reads; it does not judge. Whether a quote is genuine is decided in `chain.py` and `dcap.py`,
whether it is acceptable in `policy.py`. Layout: Intel, "TDX DCAP: Quote Generation Library and Quote
Verification Library", appendix A.3 (version 4) and A.4 (version 5); TDREPORT in "Intel TDX Module ABI
Specification". SPEC §4.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from ..errors import MalformedEvidence

MAX_QUOTE: Final = 1 << 14
"""Genuine quotes have about 5000 bytes; some hosts hand them over in a padded buffer of 8000."""

TEE_TDX: Final = 0x81
TEE_SGX: Final = 0
KEY_ECDSA_P256: Final = 2
INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

TD_1_0: Final = 2  # body types of version 5; version 4 knows only the first
TD_1_5: Final = 3

QE_REPORT_DATA: Final = slice(320, 384)  # in the quoting enclave's report
AUTHENTICATION_SIZE: Final = 32  # what every quoting enclave of Intel's sends; dcap-qvl takes no other

_HEADER: Final = struct.Struct("<HHI4s16s20s")
_BODY_KIND: Final = struct.Struct("<HI")  # version 5: type and size of the body
_BODY_1_0: Final = struct.Struct("<16s48s48sQQQ48s48s48s48s48s48s48s48s64s")
_BODY_1_5: Final = struct.Struct("<16s48s")  # what 1.5 adds at the end
_BODY_SIZES: Final = {TD_1_0: _BODY_1_0.size, TD_1_5: _BODY_1_0.size + _BODY_1_5.size}
_LENGTH: Final = struct.Struct("<I")
_SIGNATURE: Final = struct.Struct(
    "<64s64sHI"
)  # signature, attestation key, type and size of what certifies the key
_QE: Final = struct.Struct(
    "<384s64sH"
)  # report of the quoting enclave, its signature, size of the next field
_CERTIFICATES: Final = struct.Struct("<HI")  # type and size

_CERTIFIED_BY_QE_REPORT: Final = 6
_CERTIFICATES_IN_PEM: Final = 5


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as it came. Nothing here has been verified."""

    data: bytes  # the quote without the padding after it
    version: int
    body: int  # TD_1_0 or TD_1_5
    content: bytes  # the body as it came
    tee_tcb_svn: bytes  # 16 bytes; the first two are the module's security and major version
    mrseam: bytes  # 48 bytes, the TDX module
    mrsignerseam: bytes  # 48 bytes, zero: signed by Intel
    seam_attributes: int
    td_attributes: int
    xfam: int
    mrtd: bytes  # 48 bytes, what was there when the machine was made
    mrconfigid: bytes  # 48 bytes each, chosen by the host
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]  # 48 bytes each, what was started since
    report_data: bytes  # 64 bytes, chosen by the guest
    mrservicetd: bytes | None  # 48 bytes; only in a 1.5 body
    attestation_key: bytes  # 64 bytes, x ‖ y on P-256
    qe_report: bytes  # 384 bytes, the quoting enclave about itself
    authentication: bytes  # 32 bytes, of the quoting enclave's
    pck_chain: bytes  # PEM

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        """Raises `MalformedEvidence`."""
        if len(data) > MAX_QUOTE:
            raise _malformed(f"it has {len(data)} bytes, at most {MAX_QUOTE} are read")
        version, key_type, tee, reserved, vendor, _ = _unpack(_HEADER, data, 0)
        if tee != TEE_TDX:
            kind = "an SGX enclave" if tee == TEE_SGX else f"TEE type {tee:#x}"
            raise MalformedEvidence(f"the quote is about {kind}, expected a TDX guest", code="wrong-tee-type")
        if version not in (4, 5):
            raise MalformedEvidence(
                f"TDX quote of version {version}, expected 4 or 5", code="unsupported-quote-version"
            )
        if key_type != KEY_ECDSA_P256:
            raise MalformedEvidence(
                f"the attestation key is of type {key_type}, expected {KEY_ECDSA_P256} (ECDSA P-256)",
                code="unsupported-signature-algorithm",
            )
        if any(reserved):
            raise MalformedEvidence(
                f"reserved bytes of the quote's header are {reserved.hex()}, expected zeros",
                code="reserved-bits",
            )
        if vendor != INTEL_QE:
            raise _malformed(
                f"its quoting enclave is of vendor {vendor.hex()}, expected Intel's {INTEL_QE.hex()}"
            )
        at, body = _HEADER.size, TD_1_0
        if version == 5:
            body, size = _unpack(_BODY_KIND, data, at)
            if body not in _BODY_SIZES:
                raise MalformedEvidence(
                    f"the quote's body is of type {body}, expected {TD_1_0} (TD 1.0) or {TD_1_5} (TD 1.5)",
                    code="unsupported-quote-version",
                )
            if size != _BODY_SIZES[body]:
                raise _malformed(
                    f"a body of type {body} is said to have {size} bytes, not {_BODY_SIZES[body]}"
                )
            at += _BODY_KIND.size
        return cls._parse(data, version, body, at)

    @classmethod
    def _parse(cls, data: bytes, version: int, body: int, at: int) -> Quote:
        (
            tee_tcb_svn,
            mrseam,
            mrsignerseam,
            seam_attributes,
            td_attributes,
            xfam,
            mrtd,
            mrconfigid,
            mrowner,
            mrownerconfig,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            report_data,
        ) = _unpack(_BODY_1_0, data, at)
        mrservicetd: bytes | None = None
        if body == TD_1_5:
            _, mrservicetd = _unpack(_BODY_1_5, data, at + _BODY_1_0.size)
        content = data[at : at + _BODY_SIZES[body]]
        at += _BODY_SIZES[body]

        (size,) = _unpack(_LENGTH, data, at)
        at += _LENGTH.size
        end = at + size
        if end > len(data):
            raise _malformed(f"it ends after {len(data)} bytes, {end} were announced")
        _, key, kind, size = _unpack(_SIGNATURE, data, at)
        at += _SIGNATURE.size
        if kind != _CERTIFIED_BY_QE_REPORT or at + size != end:
            raise _malformed(
                f"its key is certified by data of type {kind} and {size} bytes, "
                f"expected type {_CERTIFIED_BY_QE_REPORT} and {end - at} bytes"
            )
        qe_report, _, size = _unpack(_QE, data, at)
        at += _QE.size
        if size != AUTHENTICATION_SIZE:
            raise _malformed(f"its authentication data has {size} bytes, expected {AUTHENTICATION_SIZE}")
        authentication = data[at : at + size]
        at += size
        kind, size = _unpack(_CERTIFICATES, data, at)
        at += _CERTIFICATES.size
        if kind != _CERTIFICATES_IN_PEM or at + size != end:
            raise _malformed(
                f"its certificates are data of type {kind} and {size} bytes, "
                f"expected type {_CERTIFICATES_IN_PEM} (a PEM chain) and {end - at} bytes"
            )
        # Hosts hand a quote over in a larger buffer. What is in it after the quote is under no signature.
        if any(data[end:]):
            raise MalformedEvidence(
                f"{len(data) - end} bytes follow the quote, and they are not zeros", code="trailing-bytes"
            )
        return cls(
            data=data[:end],
            version=version,
            body=body,
            content=content,
            tee_tcb_svn=tee_tcb_svn,
            mrseam=mrseam,
            mrsignerseam=mrsignerseam,
            seam_attributes=seam_attributes,
            td_attributes=td_attributes,
            xfam=xfam,
            mrtd=mrtd,
            mrconfigid=mrconfigid,
            mrowner=mrowner,
            mrownerconfig=mrownerconfig,
            rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3),
            report_data=report_data,
            mrservicetd=mrservicetd,
            attestation_key=key,
            qe_report=qe_report,
            authentication=authentication,
            pck_chain=data[at:end],
        )


def _unpack(form: struct.Struct, data: bytes, at: int) -> tuple[Any, ...]:
    if at + form.size > len(data):
        raise _malformed(f"it ends after {len(data)} bytes, {at + form.size} were expected")
    return form.unpack_from(data, at)


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the TDX quote cannot be read: {what}", code="malformed-quote")
