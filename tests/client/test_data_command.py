"""`blindbox data check`: what the machine would say, said before anything is sent."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blindbox import cli
from blindbox.cli import DONE, USAGE
from tests.conftest import REPOSITORY

ROWS = [{"question": f"canary q {n}", "answer": f"canary a {n}" * (n + 1)} for n in range(40)]


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def check(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, str, str]:
    status = cli.main(["data", "check", str(path), *options])
    told = capsys.readouterr()
    assert "canary" not in told.out + told.err
    return status, told.out, told.err


def test_a_good_file_is_told_with_its_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, [*ROWS, ROWS[3]])
    status, out, err = check(capsys, path)
    assert (status, err) == (DONE, "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"rows.jsonl: JSONL, {path.stat().st_size / 1024:.1f} KiB, SHA-256 {digest}" in out
    assert '41 of 41 would be used: questions and answers ("question", "answer")' in out
    assert "written in  Latin 100%" in out
    assert "longest     row 40 (" in out
    assert "! 1 row (row 41) is there again" in out
    bars = [line for line in out.splitlines() if "█" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 41


def test_for_programs_it_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = check(
        capsys, written(tmp_path, [*ROWS, {"question": None}]), "--json", "--on-invalid", "skip"
    )
    told = json.loads(out)
    assert status == DONE
    assert told["usable"]
    assert told["form"] == "jsonl"
    assert told["report"]["rows_used"] == 40
    assert told["report"]["dropped"] == {"null_value": {"count": 1, "rows": [41]}}


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([*ROWS, {"question": "x", "answer": ""}], [], "1 is empty or blank (row 41)"),
        (ROWS, ["--question-column", "quesiton", "--answer-column", "answer"], 'Did you mean "question"?'),
        (ROWS, ["--number", "41"], "the data set has 40 rows"),
        (ROWS, ["--most-rows", "39"], "more than 39 rows"),
    ],
)
def test_a_file_that_would_be_refused_is_refused_in_the_machines_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], options: list[str], words: str
) -> None:
    path = written(tmp_path, rows)
    status, out, err = check(capsys, path, *options)
    assert (status, out) == (USAGE, "")
    assert words in err
    status, out, _ = check(capsys, path, *options, "--json")
    assert status == USAGE
    told = json.loads(out)
    assert not told["usable"]
    assert words in told["error"]["message"]


def test_rows_are_skipped_numbered_and_deduplicated_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, [ROWS[0], ROWS[0], {"question": 1}, ROWS[1], ROWS[2]])
    status, out, _ = check(capsys, path, "--dedup", "--on-invalid", "skip", "--number", "4")
    assert status == DONE
    assert "2 of 4 would be used" in out
    assert "left out    1 missing_column (row 3)" in out
    assert "left out    1 duplicate (row 2)" in out


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = check(capsys, tmp_path / "none.csv")
    assert status == USAGE
    assert "No such file" in err


def test_nothing_heavy_is_loaded_and_nothing_asked_of_the_network(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, _: event.startswith('socket') and sys.exit(9))\n"
        "from blindbox import cli\n"
        f"status = cli.main(['data', 'check', {str(path)!r}])\n"
        "heavy = {'pyarrow', 'numpy', 'pandas', 'tokenizers', 'enclave_app', 'requests'} & set(sys.modules)\n"
        "sys.exit(status or (7 if heavy else 0))"
    )
    rooms = [str(REPOSITORY / room) for room in ("client_sdk", "attestation", "data")]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(rooms)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
