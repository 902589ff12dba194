"""
The pieces of a page: its frame, and the only ways for a string onto it.

A page holds everything and loads nothing: no script, no link, no picture. What it shows was partly written by
somebody else, so every string is made printable and escaped here, in one place (`text`).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape

from ..printable import is_hex, plain
from . import PROGRAM, Verdict
from .style import STYLE


def framed(title: str, body: Iterable[str]) -> str:
    """A whole page, as text of HTML."""
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
        f"<title>{text(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        *body,
        f"<footer>Written by {text(PROGRAM)}. This page runs no script and loads nothing.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def header(kind: str, mark: str, what: str, word: str, why: str) -> Iterator[str]:
    """The verdict, where it is seen first."""
    yield f'<header class="{kind}">'
    yield f"<p>{text(what)}</p>"
    yield f'<h1><span class="mark">{mark}</span> {text(word)}</h1>'
    yield f'<p class="why">{prose(why)}</p>'
    yield "</header>"


def headline(verdict: Verdict, accepted: str) -> tuple[str, str, str]:
    """Class, mark and word of a verdict; `accepted` is the word for a good one."""
    return {
        "accepted": ("good", "✔", accepted),
        "simulated": ("bad", "✘", "Simulated: proves nothing"),
        "refused": ("bad", "✘", "Refused"),
        "not judged": ("none", "–", "Not judged"),
    }[verdict]


def honest(trusts: Iterable[str], beside: str, limits: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Who has to be honest for a verdict, and beside it what the verdict leaves open."""
    yield '<div class="columns"><section><h2>Who has to be honest</h2>'
    yield "<p>The verdict means something only as long as these are honest and have not lost their keys:</p>"
    yield from listed(trusts)
    yield "<p>And whoever wrote the program that the measurement names, and whoever chose the policy.</p>"
    yield f"</section><section><h2>{text(beside)}</h2>"
    yield from reasons(limits)
    yield "</section></div>"


def table_row(kind: str, cells: Iterable[tuple[str, str]]) -> str:
    """A row of a table: labels of ours, and cells that are markup already."""
    told = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells)
    return f'<tr class="{kind}">{told}</tr>'


def band(words: str) -> str:
    """A warning across the page."""
    return f'<p class="band" role="alert">{text(words)}</p>'


def rows(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names and values."""
    yield "<dl>"
    yield from (f"<dt>{text(name)}</dt><dd>{value(one)}</dd>" for name, one in pairs)
    yield "</dl>"


def listed(sentences: Iterable[str]) -> Iterator[str]:
    yield "<ul>"
    yield from (f"<li>{prose(sentence)}</li>" for sentence in sentences)
    yield "</ul>"


def reasons(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of which each entry has a beginning in bold."""
    yield "<ul>"
    yield from (f"<li><b>{text(name)}</b> {prose(why)}</li>" for name, why in pairs)
    yield "</ul>"


def folded(about: str, held: str, *, lines: bool = False) -> str:
    # Only what we have encoded ourselves keeps its lines: it is ASCII, and its strings are escaped.
    shown = escape(held) if lines else escape(held if held.isascii() else plain(held))
    return f"<details><summary>{prose(about)}</summary><pre>{shown}</pre></details>"


def text(words: str) -> str:
    """The only way for a string onto the page."""
    return escape(plain(words), quote=True)


def value(words: str) -> str:
    return f"<code>{text(words)}</code>" if len(words) >= 16 and is_hex(words) else prose(words)


def prose(words: str) -> str:
    """A sentence; long values in hexadecimal within it may be broken anywhere."""
    return " ".join(
        f"<code>{text(word)}</code>" if len(word) >= 16 and is_hex(word.rstrip(".,;:)…")) else text(word)
        for word in plain(words).split(" ")
    )
