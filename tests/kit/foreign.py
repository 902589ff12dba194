"""
Real evidence that other projects keep in containers of their own, put into the form of SPEC §4.

Nothing is signed again: the bytes that the hardware signed stay as they are, only what is around them is
ours. `overlay` makes a folder in which both lie, under the names that the cases of `tests/vectors/real` have:

    python -m tests.kit.foreign VECTORS NEW_FOLDER
"""

from __future__ import annotations

import json
import ssl
import struct
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from blindbox_attestation import strict_json
from tests.kit.azure import from_foreign

CONVERTED: Final = "converted"
_AZURE: Final = (
    "snp_milan_evidence",
    "snp_milan_v0_evidence",
    "snp_milan_bad_pcr7",
    "snp_milan_bad_runtime",
    "tdx_evidence",
    "tdx_ak_chain_2026-06",
)
_AZURE_ROOT: Final = "azure/azure_vtpm_root_2023.pem"
_GOOGLE: Final = ("vtpm/gce_ak_cert.pem", "vtpm/gce_ak_intermediate.pem", "vtpm/gce_ek_ak_root.pem")


def overlay(vectors: Path, into: Path) -> None:
    """In `into`, everything that is in `vectors`, and `converted/` with what was put into our form."""
    for one in vectors.iterdir():
        (into / one.name).symlink_to(one)
    for name, data in _converted(vectors):
        path = into / CONVERTED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def sources(name: str) -> tuple[str, ...]:
    """The files of the shared folder that a name stands for; a converted one is made of one or several."""
    folder, _, rest = name.partition("/")
    if folder != CONVERTED:
        return (name,) if name else ()
    platform, machine, file = rest.split("/")
    if platform == "azure":
        root = (_AZURE_ROOT,) if file == "ak_chain.der" else ()
        return (f"azure/{machine}.json", *root)
    if machine == "gce":
        return _GOOGLE
    if machine == "rsa_quote_evidence":
        return (f"vtpm/{machine}.json",)
    return tuple(f"vtpm/{machine}_{part}" for part in ("quote.msg", "quote.sig", "quote.pcrs", "ak.pem"))


def _converted(vectors: Path) -> Iterator[tuple[str, bytes]]:
    for name in _AZURE:
        machine = from_foreign(vectors / "azure" / f"{name}.json")
        yield f"azure/{name}/evidence.json", machine.evidence
        for kind, der in machine.endorsements.items():
            root = _der(vectors / _AZURE_ROOT) if kind == "ak_chain" else b""
            yield f"azure/{name}/{kind}.der", der + root
    for name in ("swtpm_ecc", "swtpm_rsa"):
        yield f"vtpm/{name}/evidence.json", _of_tpm2_tools(vectors / "vtpm", name)
    yield "vtpm/rsa_quote_evidence/evidence.json", _of_trustee(vectors / "vtpm" / "rsa_quote_evidence.json")
    yield "vtpm/gce/ak_chain.der", b"".join(_der(vectors / one) for one in _GOOGLE)


def _der(pem: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.read_text(encoding="ascii").strip())


def evidence(attest: bytes, signature: bytes, ak_public: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    """The evidence of SPEC §4.4."""
    return strict_json.dump(
        {
            "version": 1,
            "attest": strict_json.to_base64(attest),
            "signature": strict_json.to_base64(signature),
            "ak_public": strict_json.to_base64(ak_public),
            "pcrs": {str(register): value.hex() for register, value in pcrs.items()},
        }
    )


def _of_tpm2_tools(folder: Path, name: str) -> bytes:
    """As `tpm2_quote --pcrs_format=serialized` leaves them: the selection, then lists of at most eight."""
    key = load_pem_public_key((folder / f"{name}_ak.pem").read_bytes())
    data = (folder / f"{name}_quote.pcrs").read_bytes()
    bitmap = int.from_bytes(data[7:10], "little")
    values: list[bytes] = []
    (lists,) = struct.unpack_from("<I", data, 132)
    for at in range(136, 136 + 532 * lists, 532):
        (count,) = struct.unpack_from("<I", data, at)
        values += [data[at + 6 + 66 * one : at + 38 + 66 * one] for one in range(count)]
    registers = [one for one in range(24) if bitmap >> one & 1]
    return evidence(
        (folder / f"{name}_quote.msg").read_bytes(),
        (folder / f"{name}_quote.sig").read_bytes(),
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        dict(zip(registers, values, strict=True)),
    )


def _of_trustee(path: Path) -> bytes:
    """The container of Confidential Containers' trustee."""
    told = json.loads(path.read_bytes())
    quote = told["tpm_quote"]
    pcrs = {register: bytes.fromhex(value) for register, value in enumerate(quote["pcrs"])}
    return evidence(
        b64decode(quote["message"]), b64decode(quote["signature"]), b64decode(told["ak_public"]), pcrs
    )


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True)
    overlay(Path(sys.argv[1]).resolve(), target)
