"""
Training receipts on the reader's side: judge one, and compare it with the files at hand.

    proved = blindbox.receipt.verify("receipt.json", "policy.json", adapter="adapter.zip", data="rows.jsonl")
    proved.receipt.dataset.rows_used

The network is not used. What a receipt is, and what it takes to prove one, is in
`blindbox_attestation/receipt.py`; how the verdict looks to people is in `report/receipt.py`.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final, TypeAlias

from blindbox_attestation.errors import InvalidPolicy, UnreadableReceipt
from blindbox_attestation.receipt import MAX_RECEIPT, VerifiedReceipt, verify_receipt
from blindbox_attestation.verify import AnyPolicy

from . import trust

__all__ = ["VerifiedReceipt", "digest_of_file", "digest_of_weights", "read", "verify"]

PathOrBytes: TypeAlias = bytes | str | os.PathLike[str]

_WEIGHTS: Final = ".safetensors"
_MOST_TOLD: Final = 4
_PIECE: Final = 1 << 20


def verify(
    receipt: PathOrBytes,
    policy: AnyPolicy | str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    collateral: Mapping[str, bytes] | None = None,
) -> VerifiedReceipt:
    """
    Prove that a machine which `policy` accepts signed this receipt, and that it is about these files.

    `receipt` is the file's bytes or its path, `policy` a policy or the path of one. `adapter` is the tuned
    model as it was downloaded (the archive, its folder, or the weights in it), `data` and `validation` are
    the files that were uploaded. `collateral` is what the machine's vendor had published, where the machine
    did not send it: `Proof.collateral` of the same machine has it.

    Raises `ReceiptRefused` (with a `code`), `AttestationError` if the machine is not proved, `OSError` or
    `ValueError` for a file that cannot be read. A simulated machine proves nothing: only a policy that
    accepts it in code gets here, and the result's `verdict` is "simulated".
    """
    if isinstance(policy, str | os.PathLike):
        policy = trust.read_policy(policy)
    elif isinstance(policy, type):
        raise InvalidPolicy(f"policy is the class {policy.__name__}, not one of its objects")
    proved = verify_receipt(read(receipt), policy, collateral=collateral)
    if adapter is not None:
        proved.check_adapter(digest_of_weights(adapter))
    if data is not None:
        proved.check_data(digest_of_file(data))
    if validation is not None:
        proved.check_validation(digest_of_file(validation))
    return proved


def read(receipt: PathOrBytes) -> bytes:
    """The bytes of a receipt's file; of one that is much too long, only as many as it takes to see that."""
    if isinstance(receipt, bytes):
        return receipt
    try:
        with open(receipt, "rb") as file:
            return file.read(MAX_RECEIPT + 1)
    except OSError as error:
        raise UnreadableReceipt(
            f"the receipt {os.fspath(receipt)!r} cannot be read: {error.strerror}", code="receipt-unreadable"
        ) from error


def digest_of_file(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return _digest(file)


def digest_of_weights(path: str | os.PathLike[str]) -> bytes:
    """
    SHA-256 of the tuned weights: of a .safetensors file, or of the only one in a folder or an archive.
    """
    place = Path(path)
    if place.is_dir():
        return digest_of_file(place / _weights([one.name for one in place.iterdir()], place))
    with open(place, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            return _digest(file)
        try:
            archive = zipfile.ZipFile(file)
            with archive.open(_weights(archive.namelist(), place)) as weights:
                return _digest(weights)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{place} is no archive that can be read ({type(error).__name__})") from error


def _weights(names: list[str], place: Path) -> str:
    found = sorted(name for name in names if name.endswith(_WEIGHTS))
    if len(found) != 1:
        have = ", ".join(found[:_MOST_TOLD]) or "none"
        raise ValueError(f"{place} has to hold one file of weights (*{_WEIGHTS}); it holds {have}")
    return found[0]


def _digest(file: IO[bytes]) -> bytes:
    # An archive says how large its files are; they are read piece by piece, and none is kept.
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.digest()
