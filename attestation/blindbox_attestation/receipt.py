"""
The training receipt: what was made of which data, by which measured program, from bytes to a value and back.

A machine writes one when a training ends, and signs it with a key that its attested transcript names; the
document with that transcript travels in the same file. Both ends are here: `SigningKey` signs,
`verify_receipt` judges. A receipt holds digests, counts and options, and no text of what was learned.
Format: SPEC §8.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from . import strict_json
from .binding import same
from .errors import ForgedReceipt, ReceiptMismatch, UnreadableReceipt
from .evidence import MAX_DOCUMENT
from .verify import AnyPolicy, Verified, verify_kept

FORMAT: Final = "blindbox-receipt/1"
MEDIA_TYPE: Final = "application/blindbox-receipt+json"
MAX_RECEIPT: Final = 512 * 1024  # of which the document, in base64, may be 342 KiB
MAX_SIGNED: Final = 64 * 1024  # of the signed part
MAX_WORDS: Final = 256  # characters of a string
MAX_OPTIONS: Final = 64  # of a recipe; and libraries of a trainer
MAX_LIST: Final = 256  # of an option
SIGNATURE_SIZE: Final = 64

_LABEL: Final = b"blindbox/receipt/v1\x00"
_MOST: Final = (1 << 63) - 1
_LAST_SECOND: Final = 253402300799  # of the year 9999
_DIGEST: Final = 32
_EVIDENCE_ID: Final = 48
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{0,23}[1-9])?")

Option: TypeAlias = bool | int | str | tuple[str, ...] | None
"""What an option of a recipe may be; a fraction is a string, in the form of `number_text`."""

Verdict = Literal["accepted", "simulated"]


@dataclass(frozen=True, slots=True)
class File:
    """
    A file that was uploaded: its name in the enclave, and the digest of its bytes.

    Or a data set that was fetched from a hub: `ORG/NAME@COMMIT`, and the digest of its files' digests.
    """

    id: str
    sha256: bytes  # 32 bytes


@dataclass(frozen=True, slots=True)
class Dataset:
    """What was learned from."""

    file: File
    validation_file: File | None  # where the rows that were held back are a file of their own
    rows_read: int
    rows_used: int
    validation_rows: int
    tokens: int  # of the rows that were used, each once


@dataclass(frozen=True, slots=True)
class Trainer:
    """How it was trained, for people: which program it was, the measurement says."""

    fast: bool  # on the fast path, or plainly
    processes: int
    versions: Mapping[str, str]  # of the libraries

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one training was, as the machine tells it. Nothing here has been verified."""

    job: str
    model: str  # the name by which its owner asks the tuned model
    base: str  # the name of the model that was tuned, …
    base_fingerprint: str  # … and what it is: configuration, tokenizer and layout of the weights
    template: str  # how questions are asked, …
    template_digest: str  # … exactly
    dataset: Dataset
    recipe: Mapping[str, Option]
    start: bytes | None  # SHA-256 of the adapter that the training went on from
    adapter: bytes  # SHA-256 of the tuned weights, the file adapter_model.safetensors
    steps: int
    tokens: int  # learned from, all epochs together
    first_loss: float | None
    last_loss: float | None
    validation_loss: float | None
    started_at: int  # Unix seconds of the enclave's clock, which its host sets
    finished_at: int
    resumed: int  # how often it was taken up again after a stop
    trainer: Trainer
    evidence_id: bytes  # 48 bytes, of the document in the same file
    document_sha256: bytes  # of that document's bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", MappingProxyType(dict(self.recipe)))

    @property
    def finished(self) -> datetime:
        return datetime.fromtimestamp(self.finished_at, UTC)

    @property
    def started(self) -> datetime:
        return datetime.fromtimestamp(self.started_at, UTC)

    def encode(self) -> bytes:
        """Canonical JSON: what is signed. What could not be read again raises `UnreadableReceipt` here."""
        written = canonical(_written(self))
        try:
            right = _signed(strict_json.parse(written)) == self
        except strict_json.JsonRefused as error:
            raise UnreadableReceipt(f"the receipt: {error}", code=error.code) from error
        if not right:
            raise UnreadableReceipt("the receipt would be read as another one", code="wrong-type")
        return written


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A receipt, its signature, and the document of whoever signed. A claim: nothing has been verified."""

    receipt: Receipt
    signature: bytes
    document: bytes

    @classmethod
    def parse(cls, data: bytes) -> ReceiptFile:
        """
        Read a receipt file (SPEC §8). Raises `UnreadableReceipt`.

        There is one spelling of each receipt: a file that is not what `encode` writes is refused, so every
        byte of it has a meaning.
        """
        if len(data) > MAX_RECEIPT:
            _unreadable(f"{len(data)} bytes, at most {MAX_RECEIPT} are read", "receipt-too-large")
        try:
            found = cls._read(strict_json.parse(data))
            right = found.encode() == data
        except strict_json.JsonRefused as error:
            raise UnreadableReceipt(f"the receipt: {error}", code=error.code) from error
        if not right:
            _unreadable(
                "spelled otherwise than a machine writes it; keep the bytes that came, without a line more",
                "not-canonical",
            )
        return found

    @classmethod
    def _read(cls, value: strict_json.Object) -> ReceiptFile:
        # The format comes first: a later one may have other keys, and deserves the better message.
        if value.get("format") != FORMAT:
            found = value.get("format")
            told = f"{found[:64]!a}" if isinstance(found, str) else "missing or no string"
            _unreadable(f"the format is {told}, this program reads {FORMAT!r}", "unsupported-version")
        strict_json.fields(value, "the file", ("format", "receipt", "signature", "document"))
        signature = strict_json.from_base64(value["signature"], "signature")
        if len(signature) != SIGNATURE_SIZE:
            _unreadable(f"the signature is {len(signature)} bytes, expected {SIGNATURE_SIZE}", "wrong-type")
        document = strict_json.from_base64(value["document"], "document")
        if len(document) > MAX_DOCUMENT:
            _unreadable(f"the document is larger than {MAX_DOCUMENT} bytes", "document-too-large")
        return cls(_signed(value["receipt"]), signature, document)

    def encode(self) -> bytes:
        """The file as it is handed out."""
        base64 = strict_json.to_base64
        return canonical(
            {
                "format": FORMAT,
                "receipt": _written(self.receipt),
                "signature": base64(self.signature),
                "document": base64(self.document),
            }
        )


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What was proved: a machine that the policy accepts has signed this receipt."""

    receipt: Receipt
    machine: Verified  # as it was when the training ended

    @property
    def simulated(self) -> bool:
        """True: nothing was proved, for anybody can be that machine."""
        return self.machine.simulated

    @property
    def verdict(self) -> Verdict:
        """Simulated is no kind of accepted: who looks for the latter never takes the former for it."""
        return "simulated" if self.simulated else "accepted"

    def check_adapter(self, sha256: bytes) -> None:
        """That the weights with this digest are the ones that came out. Raises `ReceiptMismatch`."""
        _same_file("adapter", sha256, self.receipt.adapter, "the training made", "adapter-mismatch")

    def check_data(self, sha256: bytes) -> None:
        """That the file with this digest is the one that was learned. Raises `ReceiptMismatch`."""
        _same_file("data", sha256, self.receipt.dataset.file.sha256, "was learned", "data-mismatch")

    def check_validation(self, sha256: bytes) -> None:
        """That the file with this digest is the one that was held back. Raises `ReceiptMismatch`."""
        held = self.receipt.dataset.validation_file
        if held is None:
            raise ReceiptMismatch(
                "the training had no validation file; rows held back from the data are in the data's digest",
                code="validation-mismatch",
            )
        _same_file("validation file", sha256, held.sha256, "was held back", "validation-mismatch")


def _same_file(what: str, found: bytes, wanted: bytes, did: str, code: str) -> None:
    if not same(found, wanted):
        raise ReceiptMismatch(
            f"the {what} at hand has SHA-256 {found.hex()}, what {did} has {wanted.hex()}", code=code
        )


def verify_receipt(
    data: bytes, policy: AnyPolicy, *, collateral: Mapping[str, bytes] | None = None
) -> VerifiedReceipt:
    """
    Prove that a machine which `policy` accepts has signed the receipt in `data`.

    1. read the file                                                              SPEC §8
    2. verify its document, in the cached form, at the time when the training ended   SPEC §4
    3. take the key out of the transcript that was verified; there is one
    4. see that it signed the receipt
    5. see that the receipt names this very document

    `collateral` is as for `verify`. Returns what was proved. Raises `ReceiptRefused` or, where it is the
    machine that did not prove itself, `AttestationError`, at the first step that fails.
    """
    claimed = ReceiptFile.parse(data)  # 1
    receipt = claimed.receipt
    machine = verify_kept(claimed.document, policy, at=receipt.finished, collateral=collateral)  # 2
    if not machine.receipt_key:  # 3
        raise ForgedReceipt(
            "the machine is genuine and has no key for receipts, so it cannot have signed one",
            code="no-receipt-key",
        )
    try:  # 4
        Ed25519PublicKey.from_public_bytes(machine.receipt_key).verify(
            claimed.signature, _LABEL + receipt.encode()
        )
    except (InvalidSignature, ValueError) as error:
        raise ForgedReceipt(
            "the receipt is not signed by the machine that came with it: it was changed, or put together "
            "from two",
            code="bad-receipt-signature",
        ) from error
    named = same(receipt.evidence_id, machine.evidence_id)  # 5
    if not named or not same(receipt.document_sha256, hashlib.sha256(claimed.document).digest()):
        raise ForgedReceipt(
            "the machine signed this receipt with another document beside it than the one in the file",
            code="wrong-document",
        )
    return VerifiedReceipt(receipt, machine)


class SigningKey:
    """
    The enclave's key for receipts. It has no export and no copy, and signs nothing but receipts.
    """

    __slots__ = ("_key", "public_bytes")

    public_bytes: bytes  # 32 bytes
    _key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's randomness."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, seed: bytes) -> SigningKey:
        """Take the 32 bytes of an Ed25519 private key (RFC 8032)."""
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> SigningKey:
        self = cls.__new__(cls)
        self._key = key
        self.public_bytes = key.public_key().public_bytes_raw()
        return self

    def sign(self, receipt: bytes) -> bytes:
        """64 bytes that say: this machine has written this receipt, given as `Receipt.encode` gives it."""
        return self._key.sign(_LABEL + receipt)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a signing key has one owner: it cannot be copied or pickled")

    __copy__ = __deepcopy__ = __reduce__ = __getstate__ = _refuse
    __reduce_ex__ = _refuse

    def __repr__(self) -> str:
        return f"<SigningKey of {hashlib.sha256(self.public_bytes).hexdigest()[:16]}>"


# ── the form ──────────────────────────────────────────────────────────────────────────────────────────────


def canonical(value: strict_json.Object) -> bytes:
    """The one spelling: keys in their order, nothing between tokens, ASCII, integers only."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def number_text(value: float) -> str:
    """
    A number as a receipt spells it: decimal, no exponent, as short as it reads back, `0.0002`.

    JSON's numbers have many spellings, and a signature needs one.
    """
    if not math.isfinite(value):
        raise UnreadableReceipt("a receipt holds finite numbers only", code="wrong-type")
    text = format(Decimal(repr(float(value))), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    text = "0" if text == "-0" else text
    if not _NUMBER.fullmatch(text):
        raise UnreadableReceipt(f"{value!r} is too large or too fine for a receipt", code="wrong-type")
    return text


def _written(receipt: Receipt) -> strict_json.Object:
    data, trainer = receipt.dataset, receipt.trainer
    return {
        "job": receipt.job,
        "model": receipt.model,
        "base": {"name": receipt.base, "fingerprint": receipt.base_fingerprint},
        "template": {"name": receipt.template, "digest": receipt.template_digest},
        "dataset": {
            "file": _file_written(data.file),
            "validation_file": None if data.validation_file is None else _file_written(data.validation_file),
            "rows_read": data.rows_read,
            "rows_used": data.rows_used,
            "validation_rows": data.validation_rows,
            "tokens": data.tokens,
        },
        "recipe": {
            name: list(value) if isinstance(value, tuple) else value for name, value in receipt.recipe.items()
        },
        "start": None if receipt.start is None else receipt.start.hex(),
        "adapter": receipt.adapter.hex(),
        "steps": receipt.steps,
        "tokens": receipt.tokens,
        "losses": {
            "first": _number_written(receipt.first_loss),
            "last": _number_written(receipt.last_loss),
            "validation": _number_written(receipt.validation_loss),
        },
        "started_at": receipt.started_at,
        "finished_at": receipt.finished_at,
        "resumed": receipt.resumed,
        "trainer": {
            "fast": trainer.fast,
            "processes": trainer.processes,
            "versions": dict(trainer.versions),
        },
        "evidence": {"id": receipt.evidence_id.hex(), "document": receipt.document_sha256.hex()},
    }


_KEYS: Final = (
    "job",
    "model",
    "base",
    "template",
    "dataset",
    "recipe",
    "start",
    "adapter",
    "steps",
    "tokens",
    "losses",
    "started_at",
    "finished_at",
    "resumed",
    "trainer",
    "evidence",
)


def _signed(value: object) -> Receipt:
    """The inverse of `_written`."""
    told = strict_json.fields(value, "the receipt", _KEYS)
    if len(canonical(told)) > MAX_SIGNED:
        raise strict_json.JsonRefused(f"it is larger than {MAX_SIGNED} bytes", "receipt-too-large")
    base = strict_json.fields(told["base"], "base", ("name", "fingerprint"))
    template = strict_json.fields(told["template"], "template", ("name", "digest"))
    losses = strict_json.fields(told["losses"], "losses", ("first", "last", "validation"))
    evidence = strict_json.fields(told["evidence"], "evidence", ("id", "document"))
    return Receipt(
        job=_words(told["job"], "job"),
        model=_words(told["model"], "model"),
        base=_words(base["name"], "base: name"),
        base_fingerprint=_words(base["fingerprint"], "base: fingerprint"),
        template=_words(template["name"], "template: name"),
        template_digest=_words(template["digest"], "template: digest"),
        dataset=_dataset(told["dataset"]),
        recipe={name: _option(one, f"recipe: {name}") for name, one in _named(told["recipe"], "recipe")},
        start=None if told["start"] is None else strict_json.from_hex(told["start"], "start", (_DIGEST,)),
        adapter=strict_json.from_hex(told["adapter"], "adapter", (_DIGEST,)),
        steps=_count(told["steps"], "steps"),
        tokens=_count(told["tokens"], "tokens"),
        first_loss=_number(losses["first"], "losses: first"),
        last_loss=_number(losses["last"], "losses: last"),
        validation_loss=_number(losses["validation"], "losses: validation"),
        started_at=strict_json.integer(told["started_at"], "started_at", 0, _LAST_SECOND),
        finished_at=strict_json.integer(told["finished_at"], "finished_at", 0, _LAST_SECOND),
        resumed=_count(told["resumed"], "resumed"),
        trainer=_trainer(told["trainer"]),
        evidence_id=strict_json.from_hex(evidence["id"], "evidence: id", (_EVIDENCE_ID,)),
        document_sha256=strict_json.from_hex(evidence["document"], "evidence: document", (_DIGEST,)),
    )


def _dataset(value: object) -> Dataset:
    told = strict_json.fields(
        value,
        "dataset",
        ("file", "validation_file", "rows_read", "rows_used", "validation_rows", "tokens"),
    )
    held = told["validation_file"]
    return Dataset(
        file=_file(told["file"], "dataset: file"),
        validation_file=None if held is None else _file(held, "dataset: validation_file"),
        rows_read=_count(told["rows_read"], "dataset: rows_read"),
        rows_used=_count(told["rows_used"], "dataset: rows_used"),
        validation_rows=_count(told["validation_rows"], "dataset: validation_rows"),
        tokens=_count(told["tokens"], "dataset: tokens"),
    )


def _trainer(value: object) -> Trainer:
    told = strict_json.fields(value, "trainer", ("fast", "processes", "versions"))
    return Trainer(
        fast=strict_json.boolean(told["fast"], "trainer: fast"),
        processes=_count(told["processes"], "trainer: processes"),
        versions={
            name: _words(one, f"trainer: versions: {name}")
            for name, one in _named(told["versions"], "trainer: versions")
        },
    )


def _file(value: object, where: str) -> File:
    told = strict_json.fields(value, where, ("id", "sha256"))
    return File(
        _words(told["id"], f"{where}: id"),
        strict_json.from_hex(told["sha256"], f"{where}: sha256", (_DIGEST,)),
    )


def _file_written(file: File) -> strict_json.Object:
    return {"id": file.id, "sha256": file.sha256.hex()}


def _named(value: object, where: str) -> Sequence[tuple[str, Any]]:
    """
    A few names and what stands there. Options and libraries come and go with releases, so that which names
    there are is left to the machine.
    """
    if not isinstance(value, dict):
        raise strict_json.JsonRefused(f"{where} is not an object", "wrong-type")
    if len(value) > MAX_OPTIONS:
        raise strict_json.JsonRefused(
            f"{where} has {len(value)} entries, at most {MAX_OPTIONS} are read", "wrong-type"
        )
    for name in value:
        if not _NAME.fullmatch(name):
            raise strict_json.JsonRefused(f"{where} has an unknown key {name[:64]!a}", "unknown-key")
    return tuple(value.items())


def _option(value: object, where: str) -> Option:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return strict_json.integer(value, where, -_MOST, _MOST)
    if isinstance(value, list):
        if len(value) > MAX_LIST:
            raise strict_json.JsonRefused(f"{where} is a list of {len(value)}", "wrong-type")
        return tuple(_words(one, where) for one in value)
    return _words(value, where)


def _words(value: object, where: str) -> str:
    """A short string that shows as it is: no control character, nothing that turns the line around."""
    if not isinstance(value, str) or len(value) > MAX_WORDS or not value.isprintable():
        raise strict_json.JsonRefused(
            f"{where} is not a string of at most {MAX_WORDS} printable characters", "wrong-type"
        )
    return value


def _count(value: object, where: str) -> int:
    return strict_json.integer(value, where, 0, _MOST)


def _number(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value) and number_text(float(value)) == value:
        return float(value)
    raise strict_json.JsonRefused(f"{where} is no number like '0.25', in its one spelling", "wrong-type")


def _number_written(value: float | None) -> str | None:
    return None if value is None else number_text(value)


def _unreadable(why: str, code: str) -> NoReturn:
    raise UnreadableReceipt(f"the receipt: {why}", code=code)
