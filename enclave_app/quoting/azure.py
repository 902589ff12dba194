"""
Azure's confidential VMs: the paravisor's report, and a quote of the TPM that the paravisor runs: SPEC §4.5.

The guest cannot choose what the processor's report says. The report vouches for the TPM's attestation key,
and the TPM's quote for our binding. What makes the report checkable comes from the metadata service of the
host, over the link-local address: the chip's certificates (SNP), or a quote made from the report (TDX).
Nothing of it is trusted here.

Sources: Microsoft, "Guest attestation for confidential VMs" (NV indices, `/metadata/THIM/amd/certification`,
`/acc/tdquote`); the reading of the report is the shared room's, `blindbox_attestation/azure/hcl.py`.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from blindbox_attestation import strict_json
from blindbox_attestation.azure.hcl import SNP, TDX, Hcl
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.evidence import AK_CHAIN, AZURE_SNP, AZURE_TDX

from . import Quote, QuoteUnavailable
from .endorsements import from_pem, read_endorsements, read_event_log, together
from .local_http import ask
from .tpm import EVENT_LOG, AttestationKey, HeldTpm, TpmQuote, persistent_key, take_quote, trimmed
from .tpm_commands import Device, Tpm, TpmFailure, Transport

REPORT_INDEX: Final = 0x01400001
USER_DATA_INDEX: Final = 0x01400002
USER_DATA_SIZE: Final = 64
AK_HANDLE: Final = 0x81000003
AK_CERTIFICATE_INDEX: Final = 0x01C101D0
METADATA: Final = "http://169.254.169.254"
PLATFORMS: Final = {SNP: AZURE_SNP, TDX: AZURE_TDX}

FRESH_FOR: Final = 3600.0  # seconds that an answer of the metadata service is used again for the same report
RETRY_AFTER: Final = 60.0  # seconds until a service that failed is asked again


def platform_of(open_tpm: Callable[[], Transport]) -> str | None:
    """Which confidential VM of Azure this is, by its name in a document; None on every other machine."""
    try:
        tpm = Tpm(open_tpm())
    except OSError:
        return None
    try:
        try:
            found = tpm.nv_public(REPORT_INDEX)
        except (OSError, TpmFailure):  # an older kind of TPM, or a broken one
            return None
        return None if found is None else PLATFORMS[read_report(tpm)[1].kind]
    except (OSError, TpmFailure) as failure:
        raise QuoteUnavailable(f"the paravisor's report cannot be read from the TPM: {failure}") from failure
    finally:
        tpm.close()


def read_report(tpm: Tpm) -> tuple[bytes, Hcl]:
    """What the paravisor keeps, as it came and read."""
    blob = tpm.nv_read(REPORT_INDEX)
    if blob is None:
        raise QuoteUnavailable(
            f"the TPM has nothing at {REPORT_INDEX:#010x}: this is no confidential VM of Azure"
        )
    try:
        return blob, Hcl.parse(blob)
    except MalformedEvidence as error:
        raise QuoteUnavailable(str(error)) from error


def write_user_data(tpm: Tpm, value: bytes) -> None:
    """
    Have the paravisor make a new report whose JSON carries these 64 bytes.

    Quotes do not need it: their extraData carries the binding, and does not wait for the processor.
    """
    if len(value) != USER_DATA_SIZE:
        raise ValueError(f"user data is {len(value)} bytes, expected {USER_DATA_SIZE}")
    if tpm.nv_public(USER_DATA_INDEX) is None:
        tpm.nv_define(USER_DATA_INDEX, USER_DATA_SIZE)
    tpm.nv_write(USER_DATA_INDEX, value)


def _paravisors_key(tpm: Tpm) -> AttestationKey:
    read_report(tpm)  # on other machines somebody else's key may be there
    certificate = trimmed(tpm.nv_read(AK_CERTIFICATE_INDEX) or b"")
    return replace(persistent_key(tpm, AK_HANDLE), certificate=certificate)


@dataclass(frozen=True, slots=True)
class _FromHost:
    """What the metadata service said about one report."""

    report: bytes
    until: float
    certificates: Mapping[str, bytes]
    td_quote: bytes | None


class AzureQuoter:
    """
    Quotes of the paravisor's TPM under the key that the processor's report vouches for.

    A file in `endorsements_dir` wins over what the metadata service says. That service's certificates may be
    missing: a client asks AMD for them. Without the quote that it makes for TDX there is no evidence.
    """

    def __init__(
        self,
        platform: str,
        open_tpm: Callable[[], Transport] = Device,
        *,
        endorsements_dir: Path | None = None,
        event_log: Path = EVENT_LOG,
        metadata: str = METADATA,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.platform = platform
        self._endorsements_dir = endorsements_dir
        self._event_log = event_log
        self._metadata = metadata
        self._monotonic = monotonic
        self._tpm = HeldTpm(open_tpm, _paravisors_key)
        self._asking = threading.Lock()
        self._from_host: _FromHost | None = None

    def check(self) -> None:
        """Raise now, with a reason, if this machine cannot answer."""
        _, hcl = self._tpm.use(lambda tpm, key: read_report(tpm))
        if PLATFORMS[hcl.kind] != self.platform:
            raise QuoteUnavailable(f"this machine is {PLATFORMS[hcl.kind]}, and not {self.platform}")

    def quote(self, bound: Bound) -> Quote:
        """
        1. the paravisor's report, and a quote of its TPM whose extraData is B
        2. what the host knows about that report: kept for an hour, since it does not depend on B
        """

        def asked(tpm: Tpm, key: AttestationKey) -> tuple[bytes, Hcl, TpmQuote, bytes]:
            blob, hcl = read_report(tpm)
            return blob, hcl, take_quote(tpm, key, bound.digest), key.certificate

        blob, hcl, quote, certificate = self._tpm.use(asked)  # 1
        host = self._host(hcl)  # 2
        evidence = {"version": 1, "hcl": strict_json.to_base64(blob), **quote.fields()}
        if host.td_quote is not None:
            evidence["td_quote"] = strict_json.to_base64(host.td_quote)
        laid_ready = read_endorsements(self._endorsements_dir)
        chain = certificate + laid_ready.get(AK_CHAIN, b"")
        return Quote(
            strict_json.dump(evidence),
            together(
                host.certificates,
                read_event_log(self._event_log),
                laid_ready,
                {AK_CHAIN: chain} if chain else {},
            ),
        )

    def _host(self, hcl: Hcl) -> _FromHost:
        with self._asking:
            known = self._from_host
            if known is None or known.report != hcl.report or self._monotonic() >= known.until:
                known = self._from_host = self._ask_host(hcl)
            return known

    def _ask_host(self, hcl: Hcl) -> _FromHost:
        now = self._monotonic()
        if hcl.kind == TDX:
            return _FromHost(hcl.report, now + FRESH_FOR, {}, td_quote(hcl.report, self._metadata))
        try:
            return _FromHost(hcl.report, now + FRESH_FOR, chip_certificates(self._metadata), None)
        except QuoteUnavailable:
            return _FromHost(hcl.report, now + RETRY_AFTER, {}, None)


def chip_certificates(metadata: str = METADATA, seconds: float = 5.0) -> dict[str, bytes]:
    """The VCEK of this machine's chip and the two certificates above it."""
    answer = _object(
        ask(
            metadata, "GET", "/metadata/THIM/amd/certification", headers={"Metadata": "true"}, seconds=seconds
        )
    )
    found = from_pem(_text(answer, "vcekCert")) + from_pem(_text(answer, "certificateChain"))
    if len(found) != 3:
        raise QuoteUnavailable(
            f"the metadata service has {len(found)} certificates, expected VCEK, ASK and ARK"
        )
    return dict(zip(("vcek", "ask", "ark"), found, strict=True))


def td_quote(report: bytes, metadata: str = METADATA, seconds: float = 20.0) -> bytes:
    """The quote that the host's quoting enclave makes from this TDREPORT."""
    question = {"report": base64.urlsafe_b64encode(report).rstrip(b"=").decode("ascii")}
    answer = _object(
        ask(
            metadata,
            "POST",
            "/acc/tdquote",
            body=strict_json.dump(question),
            headers={"Content-Type": "application/json", "Metadata": "true"},
            seconds=seconds,
        )
    )
    text = _text(answer, "quote").rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise QuoteUnavailable("the metadata service's quote is not base64url") from error


def _object(answer: bytes) -> dict[str, Any]:
    try:
        return strict_json.parse(answer)
    except strict_json.JsonRefused as error:
        raise QuoteUnavailable(f"the metadata service's answer: {error}") from error


def _text(answer: dict[str, Any], name: str) -> bytes:
    value = answer.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise QuoteUnavailable(f"the metadata service's answer has no text {name!r}")
    return value.encode("ascii")
