"""
A judged receipt as one page for people: the verdict, what was made of what, by whom, and what stays open.

What it shows was written by a machine that may be anybody's until it is proved; how strings come onto a page
is in `markup.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import spoken
from .markup import band, folded, framed, header, headline, honest, rows, table_row, text, value
from .receipt import LIMITS, WHAT, ReceiptReport, told


def page(report: ReceiptReport) -> str:
    """The whole page, as text of HTML."""
    kind, mark, word = headline(report.verdict, "Signed by a machine you accept")
    body = (
        *_band(report),
        *header(kind, mark, "BlindBox training receipt", word, report.summary),
        "<main>",
        *_files(report),
        *_training(report),
        *_machine(report),
        *_trust(report),
        *_again(report),
        "</main>",
    )
    return framed(f"{word}: training receipt", body)


def _band(report: ReceiptReport) -> Iterator[str]:
    if report.simulated:
        yield band("SIMULATED EVIDENCE · PROVES NOTHING · whoever ran this machine could read everything")


def _files(report: ReceiptReport) -> Iterator[str]:
    if not report.files:
        return
    yield "<section><h2>The files at hand</h2>"
    yield "<table><thead><tr><th>Outcome</th><th>File</th><th>What it should be</th><th>SHA-256</th></tr>"
    yield "</thead><tbody>"
    for held in report.files:
        kind, mark, outcome = ("good", "✔", "it is") if held.fits else ("bad", "✘", "it is not")
        cells = (
            ("Outcome", f'<span class="mark">{mark}</span> {outcome}'),
            ("File", text(held.path)),
            ("What it should be", text(WHAT[held.what])),
            ("SHA-256", value(held.sha256.hex())),
        )
        yield table_row(kind, cells)
    yield "</tbody></table></section>"


def _training(report: ReceiptReport) -> Iterator[str]:
    if report.proved is None:
        return
    yield "<section><h2>What was made of what</h2>"
    yield from rows(told(report.proved.receipt))
    yield "</section>"


def _machine(report: ReceiptReport) -> Iterator[str]:
    if report.proved is None:
        if report.problem is not None:
            yield "<section><h2>Why</h2>"
            yield from rows([("Reason", f"{report.problem.code} ({report.problem.kind})")])
            yield "<p>What the file says is not shown: without a proof it is anybody's word.</p></section>"
        return
    machine = report.proved.machine
    yield "<section><h2>The machine</h2>"
    yield from rows(
        [
            ("Platform", f"{machine.title} ({machine.platform})"),
            ("Program (measurement)", machine.measurement.hex()),
            ("Settings (digest)", machine.config_digest.hex()),
            ("Judged as of", f"{spoken(machine.verified_at)}, when the training ended by its clock"),
            ("Boot", machine.boot_id.hex()),
            ("Evidence", machine.evidence_id.hex()),
            ("Key of its receipts", machine.receipt_key.hex()),
        ]
    )
    yield "</section>"


def _trust(report: ReceiptReport) -> Iterator[str]:
    if report.proved is None or report.simulated:
        return
    yield from honest(report.proved.machine.trusts, "What this does not show", LIMITS)


def _again(report: ReceiptReport) -> Iterator[str]:
    yield "<section><h2>Judge it again</h2><p>This page is a picture of a verdict. The receipt is the file"
    yield "itself; this uses no network, and believes nothing but your policy:</p>"
    yield f"<pre>{text('blindbox receipt verify receipt.json --policy policy.json')}</pre>"
    yield folded("This report, for programs", report.to_json(), lines=True)
    yield "</section>"
