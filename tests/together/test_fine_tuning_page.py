"""docs/fine-tuning.md followed to the letter: its data, its commands in order, its Python, its options."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import blindbox
from blindbox import cli
from tests.conftest import REPOSITORY
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.pinned_amd import accepting

PAGE = (REPOSITORY / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
NOT_FOLLOWED = ("blindbox proxy", "blindbox ui")  # they serve until they are told to stop
SIMULATED = "client_sdk/examples/simulated.py"


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def place(
    machine: RunningEnclave, amd: FakeAmd, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunningEnclave:
    """A folder as the page finds it: the policy, and the CSV that it shows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.json").write_text(accepting(amd).to_json())
    (tmp_path / "handbook.csv").write_text(blocks("csv")[0])
    return machine


def commands() -> list[str]:
    """Those of whoever has a confidential machine."""
    theirs = [block for block in blocks("sh") if SIMULATED not in block]
    lines = [line.partition(" #")[0].strip() for block in theirs for line in block.splitlines()]
    return [line for line in lines if line.startswith("blindbox ") and not line.startswith(NOT_FOLLOWED)]


def test_the_commands_of_the_page_work_in_their_order(
    place: RunningEnclave, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a CSV to an answer, a verified receipt and an adapter; and then nothing is left."""
    job = ""
    done = []
    for line in commands():
        words = shlex.split(line.replace("$ORIGIN", place.origin).replace("$JOB", job))
        assert cli.main(words[1:]) == cli.DONE, (line, capsys.readouterr().err)
        told = capsys.readouterr()
        if words[1] == "finetune":
            job = told.out.splitlines()[0]
        if "--ask" in words:
            assert "Who signs engagement letters?" in told.out
        done.append(line)
    assert len(done) >= 12
    assert {"handbook.csv", "loss.svg", "loss.csv", "runs", "receipt.json", "adapter"} <= {
        path.name for path in Path().iterdir()
    }
    assert blindbox.jobs(place.origin) == []


def test_the_python_of_the_page_works(place: RunningEnclave, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trust", place.origin, "--policy", "policy.json"]) == cli.DONE
    told = follow_the_python(place.origin, capsys)
    assert "Who signs engagement letters?" in told
    assert "What is the evening telephone line?" in told
    assert told.splitlines()[-1] == "accepted"
    assert blindbox.jobs(place.origin) == []


def follow_the_python(origin: str, capsys: pytest.CaptureFixture[str], *changes: tuple[str, str]) -> str:
    """Run it from its beginning to its end, but for what shows other programs; returns what it prints."""
    python = blocks("python")
    names: dict[str, object] = {}
    for which in ("blindbox.finetune(", "blindbox.receipt.verify(", "blindbox/tenant"):
        (text,) = (block for block in python if which in block)
        for old, new in (("http://HOST:80", origin), *changes):
            text = text.replace(old, new)
        exec(compile(text, "fine-tuning.md", "exec"), names)
    return capsys.readouterr().out


# ── without confidential hardware ─────────────────────────────────────────────────────────────────────────


def test_a_shell_without_confidential_hardware_runs_every_command_as_it_stands(
    own_home: Path, tmp_path: Path
) -> None:
    """By a real shell, with the function that the page defines; each command says what it is worth."""
    (beginning,) = (block for block in blocks("sh") if SIMULATED in block)
    script = [f"cd {shlex.quote(str(REPOSITORY))}"]
    script += [line for line in beginning.splitlines() if not line.startswith((". ", "ORIGIN=", "blindbox "))]
    script += [f"cd {shlex.quote(str(tmp_path))}", "blindbox verify $ORIGIN > 0.out 2> 0.err; echo $? > 0.rc"]
    followed = [line for line in commands() if not line.startswith(("blindbox trust", "blindbox verify"))]
    for number, line in enumerate(followed, 1):
        script.append(f"{line} > {number}.out 2> {number}.err; echo $? > {number}.rc")
        if line.startswith("blindbox finetune"):
            script.append(f"JOB=$(head -n 1 {number}.out)")
    (tmp_path / "handbook.csv").write_text(blocks("csv")[0])
    with whole_app(name="org/echo") as enclave:
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(sys.path),
            "ORIGIN": enclave.origin,
            "BLINDBOX_HOME": str(own_home),
            "LANG": "C.UTF-8",
        }
        subprocess.run(["sh", "-c", "\n".join(script)], env=env, check=True)

    assert (tmp_path / "0.rc").read_text().strip() == str(cli.NOT_PROVED)
    assert "SIMULATED: nothing was proved" in (tmp_path / "0.out").read_text()
    for number, line in enumerate(followed, 1):
        out, err, status = ((tmp_path / f"{number}.{kind}").read_text() for kind in ("out", "err", "rc"))
        judged = "receipt verify" in line
        assert int(status) == (cli.NOT_PROVED if judged else cli.DONE), (line, out, err)
        loud = "SIMULATED: machines are accepted here that prove nothing" in err
        assert loud == ("data check" not in line)
        if judged:
            assert "SIMULATED: nothing was proved" in out
            assert "is handbook.csv" in out
        if "--receipt" in line:
            assert "wrote receipt.json: SIMULATED" in out
        if "--ask" in line:
            assert "Who signs engagement letters?" in out
    made = {one.name for one in tmp_path.iterdir()}
    assert {"loss.svg", "loss.csv", "runs", "receipt.json", "adapter"} <= made


@pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning")
def test_the_python_of_the_page_works_without_confidential_hardware(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handbook.csv").write_text(blocks("csv")[0])
    comment = "# without confidential hardware: policy = "
    with whole_app(name="org/echo") as enclave:
        told = follow_the_python(enclave.origin, capsys, (comment, "policy = "))
    assert told.splitlines()[-1] == "simulated"


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
        *("--command", "--run", "--judges", "--origin", "--file", "--policy", "--watch", "--detach"),
        *("--plot", "--metrics", "--download", "--receipt", "--alpha", "--dropout"),
    }
