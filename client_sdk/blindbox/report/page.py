"""
A report as one page for people: the verdict, who has to be honest for it, each check, and the evidence.

What it shows was partly written by the machine it is about: the ways for a string onto a page are in
`markup.py`, and there are no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from blindbox_attestation import strict_json
from blindbox_attestation.platforms import PLATFORMS
from blindbox_attestation.steps import NAMES, Check, Step

from ..policy_told import told
from . import Report, instant, policy_digest, policy_text, spoken
from .markup import (
    band,
    folded,
    framed,
    header,
    headline,
    honest,
    listed,
    prose,
    rows,
    table_row,
    text,
    value,
)

_OUTCOMES: Final = {  # outcome → class, mark
    "passed": ("good", "✔"),
    "failed": ("bad", "✘"),
    "not applicable": ("none", "–"),
    "not asked": ("open", "·"),
    "not reached": ("none", ""),
}

NOT_PROVED: Final = (
    (
        "Whose machine it is.",
        "Unless the policy names machines (step 13), any genuine one that runs this program passes.",
    ),
    ("That the program is good.", "A measurement pins it. Somebody must still have read it, and rebuilt it."),
    (
        "Physical attacks.",
        "Equipment on the memory bus has produced forged evidence; no check in software sees it.",
    ),
    ("Side channels.", "Neither those of the processor, nor those of timing."),
    ("What happened later.", "A certificate that is revoked afterwards is still good in this report."),
    ("That it goes on answering.", "The host can refuse, delay or stop at any time."),
    ("Its address.", "Evidence does not name it: it is where this program says that it asked."),
    (
        "Freshness, to anybody else.",
        "Whoever asked chose the nonce, and only they know that it was new. To another reader the evidence "
        "shows that the machine made it for this key, within the life of the key; not that it was asked at "
        "the time above.",
    ),
)
"""In short what attestation cannot show, and a report even less."""


def page(report: Report) -> str:
    """The whole page, as text of HTML."""
    kind, mark, word = headline(report.verdict, "Accepted")
    body = (
        *_band(report),
        *header(kind, mark, "BlindBox proof report", word, report.summary),
        "<main>",
        *_machine(report),
        *_trust(report),
        *_policy(report),
        *_steps(report),
        *_again(report),
        *_evidence(report),
        "</main>",
    )
    return framed(f"{word}: {report.origin}", body)


def _band(report: Report) -> Iterator[str]:
    if report.simulated:
        yield band("SIMULATED EVIDENCE · PROVES NOTHING · whoever runs this machine can read everything")
    if report.again is not None and not report.again.agrees:
        said = f"The file that was judged says “{report.again.said}”, written by {report.again.written_by}"
        where = f"; it differs in: {', '.join(report.again.differs)}" if report.again.differs else ""
        yield band(said + where)


def _machine(report: Report) -> Iterator[str]:
    proved, claimed = report.verified, report.claimed
    told_of: list[tuple[str, str]] = [("Address", report.origin), ("Checked", spoken(report.at))]
    if proved is not None:
        told_of += [
            ("Platform", f"{proved.title} ({proved.platform})"),
            ("Program (measurement)", proved.measurement.hex()),
            ("Settings (digest)", proved.config_digest.hex()),
            ("Its key lives", f"{spoken(proved.not_before)} to {spoken(proved.not_after)}"),
        ]
        if report.until is not None and report.until != proved.not_after:
            told_of.append(("Relied on until", f"{spoken(report.until)}, then asked again"))
        told_of += [("Boot", proved.boot_id.hex()), ("Evidence", proved.evidence_id.hex())]
        if proved.tls_spki_sha256:
            told_of.append(("TLS key (SHA-256)", proved.tls_spki_sha256.hex()))
    elif claimed is not None:
        platform = PLATFORMS.get(claimed.platform)
        title = f"{platform.title} ({claimed.platform})" if platform else claimed.platform
        told_of += [
            ("Says that it is", f"{title}; this was not proved"),
            ("Boot, it says", claimed.transcript.boot_id.hex()),
        ]
    if report.problem is not None:
        told_of.append(("Reason", f"{report.problem.code} ({report.problem.kind})"))
    yield "<section><h2>The machine</h2>"
    yield from rows(told_of)
    yield "</section>"


def _trust(report: Report) -> Iterator[str]:
    if report.verified is None or report.simulated:
        return
    yield from honest(report.verified.trusts, "What this does not prove", NOT_PROVED)


def _policy(report: Report) -> Iterator[str]:
    if report.policy is None:
        return
    yield "<section><h2>What was asked: the policy</h2>"
    if report.again is not None and report.again.own_policy:
        yield (
            '<p class="warning">This policy came from the saved file: whoever wrote the file chose it. '
            "Judge again with a policy of your own before you rely on the verdict.</p>"
        )
    for title, words in told(report.policy):
        yield f"<h3>{text(title)}</h3>"
        for heading, sentences in (
            ("It relies on", words.trusts),
            ("It asks", words.checks),
            ("It leaves open", words.unchecked),
        ):
            if sentences:
                yield f"<h4>{heading}</h4>"
                yield from listed(sentences)
    yield f"<p>Name of this policy (digest): {value(policy_digest(report.policy).hex())}</p></section>"


def _steps(report: Report) -> Iterator[str]:
    if not report.steps:
        return
    yield "<section><h2>The thirteen steps</h2>"
    counts = [
        f"{sum(check.outcome == outcome for step in report.steps for check in step.checks)} {outcome}"
        for outcome in ("passed", "failed", "not applicable", "not asked")
    ]
    yield f"<p>Single checks: {text(', '.join(counts))}. The first failure ends the walk.</p>"
    walked = {step.number: step for step in report.steps}
    yield '<ol class="strip">'
    for number in NAMES:
        kind, mark = _OUTCOMES[walked[number].outcome if number in walked else "not reached"]
        yield f'<li class="{kind}"><span class="mark">{mark}</span> {number}</li>'
    yield "</ol>"
    for number, name in NAMES.items():
        yield from _step(number, name, walked.get(number))
    yield "</section>"


def _step(number: int, name: str, step: Step | None) -> Iterator[str]:
    outcome = step.outcome if step is not None else "not reached"
    kind, mark = _OUTCOMES[outcome]
    sentence = name[0].upper() + name[1:]
    yield f'<article class="{kind}"><h3><span class="number">{number}</span> {text(sentence)}'
    yield f'<span class="outcome"><span class="mark">{mark}</span> {outcome}</span></h3>'
    if step is not None and step.detail:
        yield f"<p>{prose(step.detail)}</p>"
    if step is not None and step.checks:
        yield "<table><thead><tr><th>Outcome</th><th>What was checked</th><th>Found</th><th>Wanted</th>"
        yield "<th>Found in</th></tr></thead><tbody>"
        for check in step.checks:
            yield _row(check)
        yield "</tbody></table>"
    yield "</article>"


def _row(check: Check) -> str:
    kind, mark = _OUTCOMES[check.outcome]
    cells = (
        ("Outcome", f'<span class="mark">{mark}</span> {check.outcome}'),
        ("What was checked", text(check.name)),
        ("Found", value(check.found)),
        ("Wanted", value(check.wanted)),
        ("Found in", text(check.source)),
    )
    return table_row(kind, cells)


def _again(report: Report) -> Iterator[str]:
    if not report.document:
        return
    yield "<section><h2>Judge it again</h2><ol>"
    yield "<li>If you were not given <code>proof.json</code>, copy it from the end of this page.</li>"
    yield "<li>Take the policy from where you would take it for your own machines, not from this page.</li>"
    command = f"blindbox verify --offline proof.json --policy policy.json --at {instant(report.at)}"
    yield "<li>Run this. It uses no network, and believes nothing that the file says about itself:"
    yield f"<pre>{text(command)}</pre></li></ol></section>"


def _evidence(report: Report) -> Iterator[str]:
    if not report.document and policy_text(report.policy) is None:
        return
    yield "<section><h2>The evidence</h2>"
    if report.nonce:
        yield f"<p>The question (nonce): {value(report.nonce.hex())}</p>"
    held = [("The machine’s attestation document, exactly as it came", report.document)]
    held += [(f"Fetched from its vendor: {name}", data) for name, data in sorted(report.collateral.items())]
    for name, data in held:
        if data:
            about = f"{name}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"
            yield folded(about, strict_json.to_base64(data))
    if (policy := policy_text(report.policy)) is not None:
        yield folded("The policy, as JSON", policy)
    if report.document:
        yield folded("The whole proof, proof.json", report.to_json(), lines=True)
    yield "</section>"
