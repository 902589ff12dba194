"""
Training receipts that an honest machine would write: by AMD's fake, or by whoever a test wants.

A test changes one thing, before the machine signs (`made`) or after it (`retold`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from blindbox_attestation.binding import evidence_id, transcript_bytes
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.receipt import (
    Dataset,
    File,
    Receipt,
    ReceiptFile,
    SigningKey,
    Trainer,
    canonical,
)
from tests.kit import NOON
from tests.kit.amd import FakeAmd

KEY = SigningKey.from_bytes(bytes(range(32)))
DATA = b'{"question": "What is a canary?", "answer": "a bird that sang in the mine"}\n'
WEIGHTS = b"the bytes of adapter_model.safetensors"

RECEIPT = Receipt(
    job="ftjob-0123456789abcdef0123456789abcdef",
    model="ft:SmolLM2-135M:mine:0123456789ab",
    base="SmolLM2-135M",
    base_fingerprint="ab" * 32,
    template="chat",
    template_digest="cd" * 32,
    dataset=Dataset(
        file=File("file-0123456789abcdef", hashlib.sha256(DATA).digest()),
        validation_file=None,
        rows_read=210,
        rows_used=200,
        validation_rows=20,
        tokens=12345,
    ),
    recipe={"method": "lora", "learning_rate": "0.0002", "rank": 16, "targets": ("q_proj",), "dropout": "0"},
    start=None,
    adapter=hashlib.sha256(WEIGHTS).digest(),
    steps=75,
    tokens=37035,
    first_loss=3.25,
    last_loss=0.125,
    validation_loss=None,
    started_at=int((NOON - timedelta(minutes=20)).timestamp()),
    finished_at=int(NOON.timestamp()),
    resumed=0,
    trainer=Trainer(fast=True, processes=1, versions={"torch": "2.9.1", "trl": "0.25.0"}),
    evidence_id=bytes(48),
    document_sha256=bytes(32),
)
"""What the receipt says; the document it names is put in by `made`."""


def document_of(amd: FakeAmd, key: SigningKey | None = KEY, **changes: Any) -> bytes:
    """A document of form 2 that is kept beside what `key` signs."""
    told = {"nonce": b"", **changes}
    return amd.document(**(told if key is None else {"receipt_key": key.public_bytes, **told}))


def made(
    amd: FakeAmd, *, document: bytes | None = None, key: SigningKey = KEY, **changes: Any
) -> ReceiptFile:
    """A whole receipt file; `changes` are fields of `Receipt`, and are signed."""
    document = document_of(amd, key) if document is None else document
    claimed = AttestationDocument.parse(document)
    told = transcript_bytes(claimed.platform, claimed.transcript)
    named: dict[str, Any] = {
        "evidence_id": evidence_id(told, claimed.evidence),
        "document_sha256": hashlib.sha256(document).digest(),
    }
    receipt = replace(RECEIPT, **{**named, **changes})
    return ReceiptFile(receipt, key.sign(receipt.encode()), document)


def retold(file: ReceiptFile, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with a change in it that nobody signed, in its one spelling."""
    told = json.loads(file.encode())
    change(told)
    return canonical(told)
