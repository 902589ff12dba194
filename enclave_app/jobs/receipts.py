"""
Signs what a training was, for its owner to keep: the enclave's side of SPEC §8.

A receipt is made when the tuned model has been published, from what the job, its reading and its training
have told; it holds digests, counts and options, never a cell. What it looks like, and how it is judged, is in
`blindbox_attestation/receipt.py`. Here it is only made; that it is kept sealed is the bench's business.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from blindbox_attestation.binding import evidence_id, transcript_bytes
from blindbox_attestation.errors import MalformedEvidence, UnreadableReceipt
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.receipt import (
    Dataset,
    File,
    Option,
    Receipt,
    ReceiptFile,
    Trainer,
    number_text,
)

from ..engines.adapter import Adapter
from ..identity import Identity
from ..quoting import QuoteUnavailable
from ..training import Recipe
from . import Job, Source

_DIGITS: Final = 9  # significant ones of a loss: more are noise
_PLACES: Final = 15
_ABSURD: Final = 1e15


class NoReceipt(Exception):
    """No receipt could be made; the tuned model is there all the same. The message is for its owner."""


class Signer:
    """Makes receipts with the key of this boot, which is in the transcript of every document it shows."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def sign(
        self,
        job: Job,
        adapter: Adapter,
        *,
        data_sha256: str,
        validation_sha256: str | None = None,
        start: Adapter | None = None,
    ) -> bytes:
        """
        The receipt file of a job that has published `adapter`. Waits for a quote; raises `NoReceipt`.

        The digests are of the files' bytes as they were uploaded, or what `hub.DataSet` says; `start` is the
        adapter that the training went on from, if any.
        """
        try:
            # The document first, then the time: so the time lies within the document's window. It is the
            # clock by which documents are dated, and the host may set it: LIMITS.md.
            document = self._identity.document_to_keep()
            claimed = AttestationDocument.parse(document)
            told = transcript_bytes(claimed.platform, claimed.transcript)
            receipt = _receipt(
                job,
                adapter,
                dataset=_dataset(job, data_sha256, validation_sha256),
                start=None if start is None else bytes.fromhex(start.manifest.weights_sha256),
                finished_at=self._identity.now,
                evidence=evidence_id(told, claimed.evidence),
                document=hashlib.sha256(document).digest(),
            )
            return ReceiptFile(receipt, self._identity.sign_receipt(receipt.encode()), document).encode()
        except QuoteUnavailable as error:
            raise NoReceipt(
                "The machine did not speak about itself, so there is no receipt for this job."
            ) from error
        except (UnreadableReceipt, MalformedEvidence, ValueError, TypeError, KeyError) as error:
            raise NoReceipt(
                f"What the job told does not fit a receipt ({type(error).__name__}), so there is none."
            ) from error


def _receipt(
    job: Job,
    adapter: Adapter,
    *,
    dataset: Dataset,
    start: bytes | None,
    finished_at: int,
    evidence: bytes,
    document: bytes,
) -> Receipt:
    report, manifest = job.report, adapter.manifest
    return Receipt(
        job=job.id,
        model=job.fine_tuned_model or "",
        base=_base_of(job.order.model),
        base_fingerprint=manifest.model,
        template=manifest.template,
        template_digest=manifest.template_digest,
        dataset=dataset,
        recipe=_options(job.order.recipe),
        start=start,
        adapter=bytes.fromhex(manifest.weights_sha256),
        steps=int(report["steps"]),
        tokens=int(report.get("tokens", report.get("tokens_learned", 0))),
        first_loss=_loss(report.get("first_loss")),
        last_loss=_loss(report.get("last_loss")),
        validation_loss=_loss(_validation(report)),
        started_at=job.created_at if job.started_at is None else job.started_at,
        finished_at=finished_at,
        resumed=job.resumed,
        trainer=_trainer(report),
        evidence_id=evidence,
        document_sha256=document,
    )


def _dataset(job: Job, data_sha256: str, validation_sha256: str | None) -> Dataset:
    order, read = job.order, job.data or {}
    held = order.validation
    return Dataset(
        file=File(_name_of(order.training), bytes.fromhex(data_sha256)),
        validation_file=None
        if held is None or validation_sha256 is None
        else File(_name_of(held), bytes.fromhex(validation_sha256)),
        rows_read=int(read["rows_read"]),
        rows_used=int(read["rows_used"]),
        validation_rows=int(read.get("validation_rows", 0)),
        tokens=_count(read.get("tokens", read.get("tokens_learned", 0))),
    )


def _name_of(source: Source) -> str:
    """A file's id; of a hub's data set its name and the commit that was read."""
    return f"{source.name}@{source.revision}" if source.hub else source.name


def _base_of(name: str) -> str:
    """The base model's name in `ft:BASE:SUFFIX:ID`; any other name is itself."""
    return name.split(":")[1] if name.startswith("ft:") and name.count(":") >= 3 else name


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _options(recipe: Recipe) -> dict[str, Option]:
    """Every field of the recipe, by its name: an option that comes with a release is in its receipts."""
    return {each.name: _option(getattr(recipe, each.name)) for each in fields(recipe)}


def _option(value: Any) -> Option:
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, list | tuple):
        return tuple(str(one) for one in value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"an option that is a {type(value).__name__}")


def _trainer(report: Mapping[str, Any]) -> Trainer:
    return Trainer(
        fast=report.get("fast_path") is True,
        processes=int(report.get("processes", 1)),
        versions={str(name): str(version) for name, version in (report.get("versions") or {}).items()},
    )


def _validation(report: Mapping[str, Any]) -> Any:
    """The validation loss of the weights that were kept; else the last there was."""
    losses = [(step, loss) for step, loss in report.get("validation_losses") or ()]
    return dict(losses).get(report.get("best_step"), losses[-1][1] if losses else None)


def _loss(value: Any) -> float | None:
    """A loss, to the digits that mean something; None where there is none, or it is no number to speak of."""
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) >= _ABSURD:
        return None
    return round(float(f"{value:.{_DIGITS}g}"), _PLACES)
