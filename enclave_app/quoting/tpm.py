"""
Quotes of a TPM 2.0: SPEC §4.4.

What the TPM signs is only as honest as who runs it: on an ordinary VM that is the hypervisor. Azure's, which
the paravisor inside the confidential VM runs, is asked in `azure.py`, with the means of this module.

The attestation key is one of three: a persistent one that the operator names; the cloud's, grown from the
template that Google's VMs keep in non-volatile memory beside its certificate; or one grown from our own
template. The last two are primary keys of the endorsement hierarchy: the same TPM grows the same key at every
boot, so it can be pinned.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.evidence import AK_CHAIN, TPM
from blindbox_attestation.vtpm.area import Area
from blindbox_attestation.vtpm.evidence import spelled
from blindbox_attestation.vtpm.quote import HASHES

from . import Quote, QuoteUnavailable
from .endorsements import read_endorsements, read_event_log, together
from .tpm_commands import (
    ECC,
    ENDORSEMENT,
    RSA,
    SHA256,
    Device,
    Tpm,
    TpmFailure,
    Transport,
    restricted_signing_key,
    sized,
)

REGISTERS: Final = (*range(10), *range(11, 16))
"""What a boot measures. Not 10, which the kernel's IMA moves, nor 16 to 23, which software can reset."""

EVENT_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
ATTEMPTS: Final = 5

# Google's: go-tpm-tools, client/handles.go. Kind of key → index of the template and of the certificate.
KINDS: Final = {"ecc": ECC, "rsa": RSA}
TEMPLATES: Final = {ECC: 0x01C10003, RSA: 0x01C10001}
CERTIFICATES: Final = {ECC: 0x01C10002, RSA: 0x01C10000}

AK: Final = re.compile(r"ecc|rsa|0x81[0-9a-f]{6}")
"""How an operator says which key: its kind, or the handle of a persistent one."""

Kept = TypeVar("Kept")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """A key in an open TPM that signs nothing but what the TPM itself has seen."""

    handle: int
    area: bytes  # TPMT_PUBLIC
    read: Area
    certificate: bytes = b""  # DER, where a cloud left one

    def public_bytes(self) -> bytes:
        """SubjectPublicKeyInfo, as a policy pins it."""
        return spelled(self.read.key)


@dataclass(frozen=True, slots=True)
class TpmQuote:
    """What the TPM signed, and the register values it signed about."""

    attest: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    registers: dict[int, bytes]

    def fields(self) -> dict[str, object]:
        """As they stand in evidence: SPEC §4.4."""
        return {
            "attest": strict_json.to_base64(self.attest),
            "signature": strict_json.to_base64(self.signature),
            "pcrs": {str(register): value.hex() for register, value in self.registers.items()},
        }


class HeldTpm(Generic[Kept]):
    """
    One TPM that stays open, for one asker at a time.

    `prepare` runs at each opening, and what it gives is kept with it. A TPM that fails is opened once more,
    since its keys may have gone with a reset.
    """

    def __init__(self, open_tpm: Callable[[], Transport], prepare: Callable[[Tpm], Kept]) -> None:
        self._open_tpm = open_tpm
        self._prepare = prepare
        self._lock = threading.Lock()
        self._held: tuple[Tpm, Kept] | None = None

    def use(self, ask: Callable[[Tpm, Kept], Answer]) -> Answer:
        """What `ask` gives. Raises `QuoteUnavailable`."""
        with self._lock:
            if self._held is not None:
                with suppress(OSError, TpmFailure):
                    return self._once(ask)
            try:
                return self._once(ask)
            except (OSError, TpmFailure) as failure:
                raise QuoteUnavailable(f"asking the TPM failed: {failure}") from failure

    def _once(self, ask: Callable[[Tpm, Kept], Answer]) -> Answer:
        try:
            if self._held is None:
                self._held = self._opened()
            return ask(*self._held)
        except BaseException:
            self._drop()
            raise

    def _opened(self) -> tuple[Tpm, Kept]:
        tpm = Tpm(self._open_tpm())
        try:
            return tpm, self._prepare(tpm)
        except BaseException:
            tpm.close()
            raise

    def _drop(self) -> None:
        if self._held is not None:
            self._held[0].close()
            self._held = None


class TpmQuoter:
    """
    Quotes of whatever TPM `open_tpm` opens.

    `ak` is "ecc", "rsa" or the handle of a persistent key; `bank` the hash of the registers that are quoted.
    `ak_chain.der` in `endorsements_dir` holds the key's certificates, or those above the one the cloud left.
    """

    platform = TPM

    def __init__(
        self,
        open_tpm: Callable[[], Transport] = Device,
        *,
        ak: str = "ecc",
        bank: int = SHA256,
        endorsements_dir: Path | None = None,
        event_log: Path = EVENT_LOG,
    ) -> None:
        if not AK.fullmatch(ak):
            raise ValueError(f"the attestation key is {ak!r}; it is ecc, rsa or a handle like 0x81000001")
        self._bank = bank
        self._endorsements_dir = endorsements_dir
        self._event_log = event_log
        self._tpm = HeldTpm(open_tpm, lambda tpm: attestation_key(tpm, ak))

    def check(self) -> None:
        """Raise now, with a reason, if this machine cannot answer."""
        self._tpm.use(lambda tpm, key: None)

    def quote(self, bound: Bound) -> Quote:
        """A quote whose extraData is B."""
        key, quote = self._tpm.use(lambda tpm, key: (key, take_quote(tpm, key, bound.digest, self._bank)))
        evidence = {
            "version": 1,
            **quote.fields(),
            "ak_public": strict_json.to_base64(key.public_bytes()),
            "ak_area": strict_json.to_base64(key.area),
        }
        chain = key.certificate + read_endorsements(self._endorsements_dir).get(AK_CHAIN, b"")
        return Quote(
            strict_json.dump(evidence),
            together(read_event_log(self._event_log), {AK_CHAIN: chain} if chain else {}),
        )


def attestation_key(tpm: Tpm, ak: str) -> AttestationKey:
    """The operator's key, the cloud's, or one of our own; see the head of this module."""
    if ak not in KINDS:
        return persistent_key(tpm, int(ak, 16))
    kind = KINDS[ak]
    template = tpm.nv_read(TEMPLATES[kind])
    handle, area = tpm.create_primary(ENDORSEMENT, template or restricted_signing_key(kind))
    certificate = tpm.nv_read(CERTIFICATES[kind]) if template is not None else None
    return AttestationKey(handle, area, _usable(area), trimmed(certificate or b""))


def persistent_key(tpm: Tpm, handle: int) -> AttestationKey:
    """The key that somebody left under this handle."""
    area = tpm.read_public(handle)
    if area is None:
        raise QuoteUnavailable(f"the TPM has no key under the handle {handle:#010x}")
    return AttestationKey(handle, area, _usable(area))


def _usable(area: bytes) -> Area:
    """
    The same public area, read, if its key is of use.

    One that is not restricted would sign a forged quote for whoever may use it; clients refuse it.
    """
    try:
        found = Area.parse(area)
    except MalformedEvidence as error:
        raise QuoteUnavailable(f"the TPM key is of no use: {error}") from error
    if found.lacks() or found.hash_algorithm not in HASHES:
        why = f"lacks {', '.join(found.lacks())}" if found.lacks() else f"hash {found.hash_algorithm:#06x}"
        raise QuoteUnavailable(f"the TPM key is no attestation key ({why}); name another one")
    return found


def take_quote(tpm: Tpm, key: AttestationKey, extra_data: bytes, bank: int = SHA256) -> TpmQuote:
    """
    A quote, and the values that it is about.

    Registers may move between reading and quoting. The quote ends with the digest of the values it covers
    (TPMS_QUOTE_INFO), by the hash that the key signs with; values that fit were read in time, else all is
    done again.
    """
    for _ in range(ATTEMPTS):
        registers = tpm.pcr_read(bank, REGISTERS)
        attest, signature = tpm.quote(key.handle, extra_data, bank, REGISTERS)
        values = b"".join(registers[register] for register in REGISTERS)
        if attest.endswith(sized(hashlib.new(HASHES[key.read.hash_algorithm].name, values).digest())):
            return TpmQuote(attest, signature, registers)
    raise QuoteUnavailable(f"the TPM's registers moved during each of {ATTEMPTS} quotes")


def trimmed(certificate: bytes) -> bytes:
    """A DER certificate without the zeros that fill up its place in non-volatile memory."""
    if certificate[:2] != b"\x30\x82":  # a SEQUENCE of 256 to 65535 bytes, as any certificate is
        return b""
    return certificate[: 4 + int.from_bytes(certificate[2:4])]
