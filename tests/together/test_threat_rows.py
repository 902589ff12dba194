"""The catalogue of threats is a list of promises; each promised row has a test that names it."""

from __future__ import annotations

import ast
import re

from tests.conftest import REPOSITORY

PROMISED = {
    *(f"C-{n}" for n in (*range(1, 47), 48, 49, 51)),
    *(f"S-{n}" for n in (*range(1, 6), 7, 17, 18, 20, 29, 31, 32, 33, 35, 36)),
}


def named_rows() -> dict[str, list[str]]:
    """Row → the tests whose docstring names it before its colon or full stop, as in `C-28, C-29: …`."""
    rows: dict[str, list[str]] = {}
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for row in re.findall(r"\b[CS]-\d+\b", ast.get_docstring(node) or ""):
                    rows.setdefault(row, []).append(f"{path.name}::{node.name}")
    return rows


def test_every_promised_row_of_the_catalogue_has_a_test_that_names_it() -> None:
    missing = sorted(PROMISED - named_rows().keys(), key=lambda row: (row[0], int(row[2:])))
    assert not missing, f"no test names {', '.join(missing)}"


def test_the_page_of_threats_marks_exactly_the_rows_that_tests_name() -> None:
    page = (REPOSITORY / "docs" / "threats.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([CS]-\d+) \|.*\| (✔?) ?\|$", page, re.MULTILINE))
    assert {row for row, mark in rows.items() if mark} == set(named_rows())
