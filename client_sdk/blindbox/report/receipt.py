"""
What came of judging a training receipt: as one value, for people, and for programs.

A `ReceiptReport` tells of a refusal as well. Of a receipt that was not proved only that is shown: its words
could be anybody's. How it looks is in `receipt_text.py` and `receipt_page.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from blindbox_attestation import strict_json
from blindbox_attestation.errors import (
    AttestationError,
    InvalidPolicy,
    ReceiptMismatch,
    ReceiptRefused,
    UnreadableReceipt,
)
from blindbox_attestation.receipt import Receipt, VerifiedReceipt, number_text, verify_receipt
from blindbox_attestation.verify import AnyPolicy

from ..errors import UnreadableProof
from ..printable import plain, short
from ..receipt import PathOrBytes, digest_of_file, digest_of_weights, read
from . import PROGRAM, Problem, Verdict, instant, spoken

FORMAT: Final = "blindbox-receipt-report/1"

LIMITS: Final = (
    (
        "That the data was good.",
        "Nor that the model is. A receipt says which measured program read which bytes, and made which.",
    ),
    (
        "The time.",
        "It is that of the machine's clock, which its host sets. Compare it with when you asked for the job.",
    ),
    (
        "That nobody can tell what the data was.",
        "Whoever holds this and has a guess at the whole file can see whether it is right: so it is for a "
        "short or guessable file. Hand a receipt to those who may know.",
    ),
    (
        "That receipts cannot be linked.",
        "All that one boot of a machine has signed carry the same key, and can be told to be of one machine.",
    ),
    (
        "Every byte of the base model.",
        "Its fingerprint names configuration, tokenizer and the layout of the weights. That the weights are "
        "those you mean follows from the image, if they are in it, or else from who runs the machine.",
    ),
)
"""In short what a receipt does not show. At length: attestation/LIMITS.md."""


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file at hand, and whether the receipt is about it."""

    what: str  # adapter, data, validation
    path: str
    sha256: bytes
    problem: str = ""  # empty: it is

    @property
    def fits(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class ReceiptReport:
    """One receipt, judged."""

    path: str
    proved: VerifiedReceipt | None = None
    files: tuple[HeldFile, ...] = ()
    error: Exception | None = None

    @property
    def verdict(self) -> Verdict:
        """
        "accepted" is a receipt that was proved and fits every file that was given; a simulated machine's
        never is.
        """
        if self.error is None:
            return "simulated" if self.simulated else "accepted"
        unread = isinstance(self.error, UnreadableReceipt | InvalidPolicy)
        judged = isinstance(self.error, AttestationError | ReceiptRefused) and not unread
        return "refused" if judged else "not judged"

    @property
    def simulated(self) -> bool:
        if self.proved is not None:
            return self.proved.simulated
        return getattr(self.error, "code", "") == "simulated-evidence"

    @property
    def problem(self) -> Problem | None:
        if self.error is None:
            return None
        error = self.error
        message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        kinds = ((InvalidPolicy, "invalid-policy"), (UnreadableProof, "unreadable-proof"))
        code = next((code for kind, code in kinds if isinstance(error, kind)), "file-unreadable")
        return Problem(type(error).__name__, plain(getattr(error, "code", code)), plain(message))

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if self.problem is not None:
            return self.problem.message
        assert self.proved is not None
        machine, receipt = self.proved.machine, self.proved.receipt
        if self.simulated:
            return (
                "Simulated, so nothing was proved: the receipt is signed by a machine that anybody can be, "
                "and whoever ran it could read all that was sent to it."
            )
        return (
            f"{machine.title} proved that the program with measurement {short(machine.measurement.hex())}, "
            f"which the policy accepts, ended this training at {spoken(receipt.finished)} by its clock."
        )

    def to_json(self) -> str:
        """For programs. What the receipt says is only there if it was proved."""
        value: strict_json.Object = {
            "format": FORMAT,
            "program": PROGRAM,
            "verdict": self.verdict,
            "summary": plain(self.summary),
            "simulated": self.simulated,
            "error": None,
            "machine": None,
            "receipt": None,
            "files": [
                {
                    "what": one.what,
                    "path": plain(one.path),
                    "sha256": one.sha256.hex(),
                    "fits": one.fits,
                    "problem": plain(one.problem),
                }
                for one in self.files
            ],
        }
        if self.problem is not None:
            told = self.problem
            value["error"] = {"type": told.kind, "code": told.code, "message": told.message}
        if self.proved is not None:
            machine = self.proved.machine
            value["receipt"] = json.loads(self.proved.receipt.encode())
            value["machine"] = {
                "platform": machine.platform,
                "title": machine.title,
                "trusts": list(machine.trusts),
                "measurement": machine.measurement.hex(),
                "evidence_id": machine.evidence_id.hex(),
                "boot_id": machine.boot_id.hex(),
                "config_digest": machine.config_digest.hex(),
                "receipt_key": machine.receipt_key.hex(),
                "not_before": instant(machine.not_before),
                "not_after": instant(machine.not_after),
            }
        return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def judge(
    receipt: PathOrBytes,
    policy: AnyPolicy,
    *,
    adapter: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    collateral: Mapping[str, bytes] | None = None,
) -> ReceiptReport:
    """
    As `receipt.verify`; a refusal is told in the report, and every file is compared, also after one that does
    not fit. Files that cannot be read are `OSError` or `ValueError` here too.
    """
    report = ReceiptReport("" if isinstance(receipt, bytes) else os.fspath(receipt))
    try:
        report = replace(report, proved=verify_receipt(read(receipt), policy, collateral=collateral))
    except (AttestationError, ReceiptRefused) as error:
        return replace(report, error=error)
    proved = report.proved
    assert proved is not None
    files: list[HeldFile] = []
    first: ReceiptMismatch | None = None
    for what, path, digest, check in (
        ("adapter", adapter, digest_of_weights, proved.check_adapter),
        ("data", data, digest_of_file, proved.check_data),
        ("validation", validation, digest_of_file, proved.check_validation),
    ):
        if path is None:
            continue
        held = HeldFile(what, os.fspath(path), digest(path))
        try:
            check(held.sha256)
        except ReceiptMismatch as error:
            held, first = replace(held, problem=str(error)), first or error
        files.append(held)
    return replace(report, files=tuple(files), error=first)


WHAT: Final = {
    "adapter": "the model that came out",
    "data": "the file that was learned from",
    "validation": "the file that was held back",
}
"""What a file at hand should be, for people."""

# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────


def told(receipt: Receipt) -> Iterator[tuple[str, str]]:
    """What a receipt says: a name, and what stands there. Its words are printable, or it was not read."""
    data = receipt.dataset
    yield "Job", receipt.job
    yield "Tuned model", receipt.model
    yield "Weights (SHA-256)", receipt.adapter.hex()
    yield "Base model", receipt.base
    if receipt.base_fingerprint:
        yield "Base model's fingerprint", receipt.base_fingerprint
    if receipt.start is not None:
        yield "Went on from weights", receipt.start.hex()
    yield "Data", data.file.id
    yield "Data (SHA-256)", data.file.sha256.hex()
    yield (
        "Rows",
        f"{data.rows_read:,} read, {data.rows_used:,} used, {data.validation_rows:,} held back; "
        f"{data.tokens:,} tokens",
    )
    if data.validation_file is not None:
        yield "Validation data", data.validation_file.id
        yield "Validation data (SHA-256)", data.validation_file.sha256.hex()
    yield "Questions are asked as", receipt.template
    yield "Exactly so (SHA-256)", receipt.template_digest
    yield "Learned", f"{receipt.steps:,} steps, {receipt.tokens:,} tokens"
    yield "Loss", _losses(receipt)
    yield "Options", ", ".join(f"{name} {_option(value)}" for name, value in sorted(receipt.recipe.items()))
    yield "Trainer", _trainer(receipt)
    yield "Began", spoken(receipt.started)
    yield "Ended", spoken(receipt.finished) + _took(receipt)
    if receipt.resumed:
        yield "Taken up again", f"{receipt.resumed} times, after a stop"


def _losses(receipt: Receipt) -> str:
    parts = (
        ("at first", receipt.first_loss),
        ("at last", receipt.last_loss),
        ("on rows held back", receipt.validation_loss),
    )
    said = [f"{number_text(value)} {when}" for when, value in parts if value is not None]
    return ", ".join(said) or "not told"


def _option(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "/".join(value) or "none"
    return str(value) or "none"


def _trainer(receipt: Receipt) -> str:
    trainer = receipt.trainer
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(trainer.versions.items()))
    path = "the fast path" if trainer.fast else "no fast path"
    processes = f"{trainer.processes} process" + ("" if trainer.processes == 1 else "es")
    return "; ".join(part for part in (path, processes, libraries) if part)


def _took(receipt: Receipt) -> str:
    seconds = receipt.finished_at - receipt.started_at
    if seconds < 0:
        return ", which is before it began: the clock was set back meanwhile"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f", after {hours:d}:{minutes:02d}:{seconds:02d}"
