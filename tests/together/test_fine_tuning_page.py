"""docs/fine-tuning.md followed to the letter: its data, its commands in order, its Python, its options."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import blindbox
from blindbox import Policy, SnpPolicy, cli
from tests.conftest import REPOSITORY
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.pinned_amd import FakeAmdQuoter, pinned

PAGE = (REPOSITORY / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
NOT_FOLLOWED = ("blindbox proxy", "blindbox ui")  # they serve until they are told to stop


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def machine() -> Iterator[tuple[RunningEnclave, FakeAmd]]:
    amd = FakeAmd()
    with pinned(amd), whole_app(name="org/echo", quoter=FakeAmdQuoter(amd)) as one:
        yield one, amd


@pytest.fixture
def place(
    machine: tuple[RunningEnclave, FakeAmd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunningEnclave:
    """A folder as the page finds it: the policy, and the CSV that it shows."""
    enclave, amd = machine
    monkeypatch.setenv("BLINDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    accepted = SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Genoa": amd.tcb})
    (tmp_path / "policy.json").write_text(Policy(snp=accepted).to_json())
    (tmp_path / "handbook.csv").write_text(blocks("csv")[0])
    return enclave


def commands() -> list[str]:
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("blindbox ") and not line.startswith(NOT_FOLLOWED)]


def test_the_commands_of_the_page_work_in_their_order(
    place: RunningEnclave, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a CSV to an answer, a verified receipt and an adapter; and then nothing is left."""
    job = ""
    done = []
    for line in commands():
        words = shlex.split(line.replace("http://HOST:80", place.origin).replace("ftjob-…", job))
        if "--pause" in words:  # of a job that has ended by now
            continue
        assert cli.main(words[1:]) == cli.DONE, (line, capsys.readouterr().err)
        told = capsys.readouterr()
        if words[1] == "finetune":
            job = told.out.splitlines()[0]
        if "--ask" in words:
            assert "Who signs engagement letters?" in told.out
        done.append(line)
    assert len(done) >= 11
    assert {"handbook.csv", "loss.svg", "loss.csv", "runs", "receipt.json", "adapter"} <= {
        path.name for path in Path().iterdir()
    }
    assert blindbox.jobs(place.origin) == []


def test_the_python_of_the_page_works(place: RunningEnclave, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trust", place.origin, "--policy", "policy.json"]) == cli.DONE
    (journey,) = (block for block in blocks("python") if "blindbox.finetune(" in block)
    names: dict[str, object] = {}
    exec(compile(journey.replace("http://HOST:80", place.origin), "fine-tuning.md", "exec"), names)
    assert "Who signs engagement letters?" in capsys.readouterr().out
    (removal,) = (block for block in blocks("python") if "blindbox/tenant" in block)
    exec(compile(removal.replace("http://HOST:80", place.origin), "fine-tuning.md", "exec"), names)
    assert blindbox.jobs(place.origin) == []


def test_every_option_is_on_the_page_and_every_one_on_the_page_exists() -> None:
    table = PAGE.split("## Options")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    not_options = {"origin", "data", "policy", "session", "key", "check", "on_upload"}
    assert told == set(inspect.signature(blindbox.finetune).parameters) - not_options

    flags = {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)`", row[1])}
    options = cli.parser().parse_args(["finetune", "ORIGIN", "FILE"])
    there = {f"--{name.replace('_', '-')}" for name in vars(options)}
    assert flags <= there
    # `--r` … `--target-modules` stands for what lies between them.
    assert there - flags <= {
        *("--command", "--run", "--origin", "--file", "--policy", "--watch", "--detach"),
        *("--plot", "--metrics", "--download", "--receipt", "--alpha", "--dropout"),
    }
