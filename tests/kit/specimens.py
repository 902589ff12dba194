"""
One honest machine of each platform, with all the files that prove it: what the tests cut, flip and
garble.

A specimen is made by a fake vendor, so that it is accepted at NOON; those of real machines are in the
vectors and are judged by the corpus. `judge` says whether the files, as changed, still prove the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from blindbox_attestation.errors import AttestationError
from blindbox_attestation.policy import Policy
from blindbox_attestation.verify import appraise
from blindbox_attestation.vtpm import EventRule, MeasuredBoot
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.aws import FakeAws
from tests.kit.azure import FakeAzure
from tests.kit.google import FakeGoogle
from tests.kit.intel import FakeIntel
from tests.kit.tpm import BOOT, FakeTpm, log_of, registers_of

NONCE = bytes(range(48))


@dataclass(frozen=True)
class Specimen:
    """An honest machine's files: "evidence", and its endorsements by name."""

    platform: str
    files: Mapping[str, bytes]
    policy: Policy
    nonce: bytes
    now: datetime = NOON

    def judge(self, changed: Mapping[str, bytes] | None = None) -> None:
        """Raises `AttestationError` unless the files prove the machine."""
        files = {**self.files, **(changed or {})}
        appraise(self.platform, files.pop("evidence"), files, self.policy, nonce=self.nonce, now=self.now)

    def code(self, changed: Mapping[str, bytes]) -> str:
        """The code it is refused with, or "accepted"."""
        try:
            self.judge(changed)
        except AttestationError as error:
            return error.code
        return "accepted"


def _snp(signing_key: str, family: str) -> Specimen:
    amd = FakeAmd(family, signing_key=signing_key)
    evidence = amd.report(NONCE.ljust(64, b"\x00"))
    return Specimen("sev-snp", {"evidence": evidence, **amd.endorsements()}, amd.policy(), NONCE)


def _tdx(version: int) -> Specimen:
    intel = FakeIntel()
    evidence = intel.quote(NONCE.ljust(64, b"\x00"), version=version)
    return Specimen(
        "tdx", {"evidence": evidence, **intel.endorsements()}, Policy(tdx=intel.tdx_policy()), NONCE
    )


def _nitro() -> Specimen:
    aws = FakeAws()
    return Specimen("nitro", {"evidence": aws.document(nonce=NONCE)}, Policy(nitro=aws.policy()), NONCE)


def _gcp() -> Specimen:
    google = FakeGoogle()
    nonce = NONCE.hex()[:64]
    token = google.token(eat_nonce=nonce)
    return Specimen(
        "gcp-confidential-space", {"evidence": token}, Policy(gcp=google.policy()), nonce.encode("ascii")
    )


def _boot() -> MeasuredBoot:
    """Looks at a register, at Secure Boot, and at two events of the log."""
    (command_line,) = (one.digest("sha256") for one in BOOT if one.register == 8)
    certificate = hashlib.sha256(b"the vendor's certificate").digest()
    return MeasuredBoot(
        pcrs={4: {registers_of()[4]}},
        events=(
            EventRule(register=8, only={command_line}),
            EventRule(register=7, variable="db", sha256_of_data={certificate}),
        ),
    )


def _tpm(kind: str) -> Specimen:
    tpm = FakeTpm(kind)
    policy = Policy(tpm=tpm.tpm_policy(boot=_boot()))
    return Specimen("tpm", {"evidence": tpm.evidence(NONCE), **tpm.endorsements()}, policy, NONCE)


def _azure_snp() -> Specimen:
    """With a log of the boot, and Azure's certificate for the TPM's key."""
    azure = FakeAzure(FakeAmd())
    policy = azure.policy(boot=_boot(), ak_certificate="required", roots=azure.roots)
    evidence = azure.evidence(NONCE, pcrs=registers_of())
    endorsements = azure.endorsements(event_log=log_of(), ak_chain=azure.ak_chain())
    return Specimen(azure.platform, {"evidence": evidence, **endorsements}, policy, NONCE)


def _azure_tdx() -> Specimen:
    """With neither."""
    azure = FakeAzure(FakeIntel())
    files = {"evidence": azure.evidence(NONCE), **azure.endorsements()}
    return Specimen(azure.platform, files, azure.policy(), NONCE)


_MAKERS: Mapping[str, Callable[[], Specimen]] = {
    "snp-vcek": lambda: _snp("vcek", "Genoa"),
    "snp-vlek": lambda: _snp("vlek", "Turin"),
    "tdx-v4": lambda: _tdx(4),
    "tdx-v5": lambda: _tdx(5),
    "nitro": _nitro,
    "gcp": _gcp,
    "tpm-ecc": lambda: _tpm("ecc"),
    "tpm-rsa": lambda: _tpm("rsa"),
    "az-snp": _azure_snp,
    "az-tdx": _azure_tdx,
}

NAMES = tuple(_MAKERS)


@cache
def specimen(name: str) -> Specimen:
    """The specimen of that name, made once."""
    return _MAKERS[name]()
