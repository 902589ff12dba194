"""
A report as one page for people: the verdict, who has to be honest for it, each check, and the evidence.

The page holds everything and loads nothing: no script, no link, no picture. What it shows was partly written
by the machine it is about, so every string is made printable and escaped here, in one place (`_text`).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from typing import Final

from blindbox_attestation import strict_json
from blindbox_attestation.platforms import PLATFORMS
from blindbox_attestation.steps import NAMES, Check, Step

from ..policy_told import told
from ..printable import is_hex, plain
from . import PROGRAM, Report, Verdict, instant, policy_digest, policy_text, spoken
from .style import STYLE

_HEADINGS: Final[dict[Verdict, tuple[str, str, str]]] = {  # verdict → class, mark, word
    "accepted": ("good", "✔", "Accepted"),
    "simulated": ("bad", "✘", "Simulated: proves nothing"),
    "refused": ("bad", "✘", "Refused"),
    "not judged": ("none", "–", "Not judged"),
}
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
    kind, mark, word = _HEADINGS[report.verdict]
    digest = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="'
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(word)}: {_text(report.origin)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        *_band(report),
        f'<header class="{kind}">',
        "<p>BlindBox proof report</p>",
        f'<h1><span class="mark">{mark}</span> {_text(word)}</h1>',
        f'<p class="why">{_prose(report.summary)}</p>',
        "</header>",
        "<main>",
        *_machine(report),
        *_trust(report),
        *_policy(report),
        *_steps(report),
        *_again(report),
        *_evidence(report),
        "</main>",
        f"<footer>Written by {_text(PROGRAM)}. This page runs no script and loads nothing.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _band(report: Report) -> Iterator[str]:
    if report.simulated:
        yield (
            '<p class="band" role="alert">SIMULATED EVIDENCE · PROVES NOTHING · '
            "whoever runs this machine can read everything</p>"
        )
    if report.again is not None and not report.again.agrees:
        said = f"The file that was judged says “{report.again.said}”, written by {report.again.written_by}"
        where = f"; it differs in: {', '.join(report.again.differs)}" if report.again.differs else ""
        yield f'<p class="band" role="alert">{_text(said + where)}</p>'


def _machine(report: Report) -> Iterator[str]:
    proved, claimed = report.verified, report.claimed
    rows: list[tuple[str, str]] = [("Address", report.origin), ("Checked", spoken(report.at))]
    if proved is not None:
        rows += [
            ("Platform", f"{proved.title} ({proved.platform})"),
            ("Program (measurement)", proved.measurement.hex()),
            ("Settings (digest)", proved.config_digest.hex()),
            ("Its key lives", f"{spoken(proved.not_before)} to {spoken(proved.not_after)}"),
        ]
        if report.until is not None and report.until != proved.not_after:
            rows.append(("Relied on until", f"{spoken(report.until)}, then asked again"))
        rows += [("Boot", proved.boot_id.hex()), ("Evidence", proved.evidence_id.hex())]
        if proved.tls_spki_sha256:
            rows.append(("TLS key (SHA-256)", proved.tls_spki_sha256.hex()))
    elif claimed is not None:
        platform = PLATFORMS.get(claimed.platform)
        title = f"{platform.title} ({claimed.platform})" if platform else claimed.platform
        rows += [
            ("Says that it is", f"{title}; this was not proved"),
            ("Boot, it says", claimed.transcript.boot_id.hex()),
        ]
    if report.problem is not None:
        rows.append(("Reason", f"{report.problem.code} ({report.problem.kind})"))
    yield "<section><h2>The machine</h2><dl>"
    yield from (f"<dt>{_text(name)}</dt><dd>{_value(value)}</dd>" for name, value in rows)
    yield "</dl></section>"


def _trust(report: Report) -> Iterator[str]:
    if report.verified is None or report.simulated:
        return
    yield '<div class="columns"><section><h2>Who has to be honest</h2>'
    yield "<p>The verdict means something only as long as these are honest and have not lost their keys:</p>"
    yield from _list(report.verified.trusts)
    yield "<p>And whoever wrote the program that the measurement names, and whoever chose the policy.</p>"
    yield "</section>"
    yield "<section><h2>What this does not prove</h2><ul>"
    yield from (f"<li><b>{_text(name)}</b> {_prose(why)}</li>" for name, why in NOT_PROVED)
    yield "</ul></section></div>"


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
        yield f"<h3>{_text(title)}</h3>"
        for heading, sentences in (
            ("It relies on", words.trusts),
            ("It asks", words.checks),
            ("It leaves open", words.unchecked),
        ):
            if sentences:
                yield f"<h4>{heading}</h4>"
                yield from _list(sentences)
    yield f"<p>Name of this policy (digest): {_value(policy_digest(report.policy).hex())}</p></section>"


def _steps(report: Report) -> Iterator[str]:
    if not report.steps:
        return
    yield "<section><h2>The thirteen steps</h2>"
    counts = [
        f"{sum(check.outcome == outcome for step in report.steps for check in step.checks)} {outcome}"
        for outcome in ("passed", "failed", "not applicable", "not asked")
    ]
    yield f"<p>Single checks: {_text(', '.join(counts))}. The first failure ends the walk.</p>"
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
    yield f'<article class="{kind}"><h3><span class="number">{number}</span> {_text(sentence)}'
    yield f'<span class="outcome"><span class="mark">{mark}</span> {outcome}</span></h3>'
    if step is not None and step.detail:
        yield f"<p>{_prose(step.detail)}</p>"
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
        ("What was checked", _text(check.name)),
        ("Found", _value(check.found)),
        ("Wanted", _value(check.wanted)),
        ("Found in", _text(check.source)),
    )
    return (
        f'<tr class="{kind}">'
        + "".join(f'<td data-label="{label}">{value}</td>' for label, value in cells)
        + "</tr>"
    )


def _again(report: Report) -> Iterator[str]:
    if not report.document:
        return
    yield "<section><h2>Judge it again</h2><ol>"
    yield "<li>If you were not given <code>proof.json</code>, copy it from the end of this page.</li>"
    yield "<li>Take the policy from where you would take it for your own machines, not from this page.</li>"
    command = f"blindbox verify --offline proof.json --policy policy.json --at {instant(report.at)}"
    yield "<li>Run this. It uses no network, and believes nothing that the file says about itself:"
    yield f"<pre>{_text(command)}</pre></li></ol></section>"


def _evidence(report: Report) -> Iterator[str]:
    if not report.document and policy_text(report.policy) is None:
        return
    yield "<section><h2>The evidence</h2>"
    if report.nonce:
        yield f"<p>The question (nonce): {_value(report.nonce.hex())}</p>"
    held = [("The machine’s attestation document, exactly as it came", report.document)]
    held += [(f"Fetched from its vendor: {name}", value) for name, value in sorted(report.collateral.items())]
    for name, value in held:
        if value:
            about = f"{name}: {len(value):,} bytes, SHA-256 {hashlib.sha256(value).hexdigest()}"
            yield _folded(about, strict_json.to_base64(value))
    if (policy := policy_text(report.policy)) is not None:
        yield _folded("The policy, as JSON", policy)
    if report.document:
        yield _folded("The whole proof, proof.json", report.to_json(), lines=True)
    yield "</section>"


# ── pieces ────────────────────────────────────────────────────────────────────────────────────────────────


def _folded(about: str, held: str, *, lines: bool = False) -> str:
    # Only what we have encoded ourselves keeps its lines: it is ASCII, and its strings are escaped.
    shown = escape(held) if lines else escape(held if held.isascii() else plain(held))
    return f"<details><summary>{_prose(about)}</summary><pre>{shown}</pre></details>"


def _list(sentences: Iterable[str]) -> Iterator[str]:
    yield "<ul>"
    yield from (f"<li>{_prose(sentence)}</li>" for sentence in sentences)
    yield "</ul>"


def _text(text: str) -> str:
    """The only way for a string onto the page."""
    return escape(plain(text), quote=True)


def _value(text: str) -> str:
    return f"<code>{_text(text)}</code>" if len(text) >= 16 and is_hex(text) else _prose(text)


def _prose(text: str) -> str:
    """A sentence; long values in hexadecimal within it may be broken anywhere."""
    return " ".join(
        f"<code>{_text(word)}</code>" if len(word) >= 16 and is_hex(word.rstrip(".,;:)…")) else _text(word)
        for word in plain(text).split(" ")
    )
