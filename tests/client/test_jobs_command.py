"""`blindbox finetune` and `blindbox jobs`, as somebody types them, against the whole enclave."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import blindbox
from blindbox import Policy, SnpPolicy, cli
from enclave_app.training.counting import CountingTrainer
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.pinned_amd import FakeAmdQuoter, pinned

FAILED = 4


@pytest.fixture(scope="module")
def amd() -> Iterator[FakeAmd]:
    vendor = FakeAmd()
    with pinned(vendor):
        yield vendor


@pytest.fixture(scope="module")
def machine(amd: FakeAmd) -> Iterator[RunningEnclave]:
    with whole_app(name="org/echo", quoter=FakeAmdQuoter(amd)) as one:
        yield one


@pytest.fixture(scope="module")
def slow(amd: FakeAmd) -> Iterator[RunningEnclave]:
    with whole_app(name="org/echo", quoter=FakeAmdQuoter(amd), trainer=CountingTrainer(0.05)) as one:
        yield one


@pytest.fixture
def policy(amd: FakeAmd, tmp_path: Path) -> str:
    path = tmp_path / "policy.json"
    accepted = SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Genoa": amd.tcb})
    path.write_text(Policy(snp=accepted).to_json())
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "handbook.csv"
    lines = [f'"What is clause {n}?","Clause {n}, it is short."' for n in range(24)]
    path.write_text("\n".join(["ask,reply", *lines]))
    return str(path)


NAMED = ["--name", "handbook"]
WISHES = ["--plot", "loss.svg", "--metrics", "loss.csv", "--download", "adapter", "--receipt", "receipt.json"]
COLUMNS = ["--question-column", "ask", "--answer-column", "reply"]


def run(
    command: Sequence[str], capsys: pytest.CaptureFixture[str], *, ends: int = cli.DONE
) -> tuple[str, str]:
    status = cli.main(command)
    out, err = capsys.readouterr()
    assert status == ends, (out, err)
    return out, err


def test_a_file_becomes_a_model_a_plot_an_adapter_and_a_receipt(
    machine: RunningEnclave,
    policy: str,
    rows: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = run(
        ["finetune", machine.origin, rows, "--policy", policy, *COLUMNS, "--epochs", "2", *NAMED, *WISHES],
        capsys,
    )
    job = out.splitlines()[0]
    assert job.startswith("ftjob-")
    assert "succeeded: ft:org/echo:handbook:" in err
    assert (tmp_path / "loss.svg").read_text().startswith("<svg")
    assert [row["step"] for row in csv.DictReader((tmp_path / "loss.csv").open())] == list("123456")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    assert "wrote receipt.json: verified, 24 rows of" in out

    # Somebody else judges the receipt, with the files at hand and no network.
    out, _ = run(
        ["receipt", "verify", "receipt.json", "--policy", policy, "--adapter", "adapter", "--data", rows],
        capsys,
    )
    assert "handbook" in out

    out, _ = run(["jobs", machine.origin, "--policy", policy], capsys)
    assert out.split()[0] == job
    assert "succeeded" in out
    assert "ft:org/echo:handbook:" in out
    at = ["jobs", machine.origin, job, "--policy", policy]
    out, _ = run(at, capsys)
    assert "rows used          24" in out
    out, _ = run([*at, "--json"], capsys)
    assert json.loads(out)["status"] == "succeeded"
    out, _ = run([*at, "--events"], capsys)
    assert out.splitlines()[-1].endswith("The job succeeded.")
    out, _ = run([*at, "--events", "--json"], capsys)
    assert json.loads(out.splitlines()[0])["message"].startswith("The job was created")
    out, _ = run([*at, "--ask", "What is clause 4?"], capsys)
    assert "What is clause 4?" in out
    out, _ = run([*at, "--tensorboard", "runs"], capsys)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    out, _ = run([*at, "--delete"], capsys)
    assert out.startswith("deleted: ft:org/echo:handbook:")
    out, err = run(["jobs", machine.origin, "--policy", policy], capsys)
    assert out == ""
    assert "you have no job there" in err


def test_a_job_is_left_to_itself_paused_resumed_and_cancelled(
    slow: RunningEnclave, policy: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(
        ["finetune", slow.origin, rows, "--policy", policy, *COLUMNS, "--epochs", "100", "--detach"], capsys
    )
    job = out.strip()
    assert f"blindbox jobs {slow.origin} {job} --watch" in err
    at = ["jobs", slow.origin, job, "--policy", policy]
    assert "paused" in run([*at, "--pause"], capsys)[0]
    assert "paused; resume() goes on" in run([*at, "--watch"], capsys)[1]
    out, _ = run([*at, "--resume"], capsys)
    assert "queued" in out or "running" in out
    assert "cancelled" in run([*at, "--cancel"], capsys)[0]
    _, err = run([*at, "--watch"], capsys, ends=FAILED)
    assert "[cancelled]" in err
    _, err = run([*at, "--resume"], capsys, ends=cli.USAGE)
    assert "blindbox: refused: " in err
    assert "wrong_status" in err


def test_ctrl_c_stops_the_watching_and_not_the_job(
    slow: RunningEnclave, policy: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real SIGINT, once the job has made a step."""

    def interrupt() -> None:
        while True:
            found = blindbox.jobs(slow.origin, policy=policy)
            if any(one.status == "running" and one.progress.get("step") for one in found):
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    out, err = run(["finetune", slow.origin, rows, "--policy", policy, *COLUMNS, "--epochs", "100"], capsys)
    watcher.join()
    job = out.strip()
    assert f"it goes on; look again with: blindbox jobs {slow.origin} {job} --watch" in err
    with blindbox.job(slow.origin, job, policy=policy) as one:
        assert one.status == "running"
        one.cancel()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--question-column", "aks", "--answer-column", "reply"], "[missing_column]"),
        ([*COLUMNS, "--number", "25"], "[too_few_examples]"),
        ([], "[missing_column]"),
    ],
)
def test_a_file_that_cannot_be_used_is_not_sent(
    more: list[str], said: str, rows: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is at this address."""
    _, err = run(["finetune", "http://127.0.0.1:9", rows, "--policy", policy, *more], capsys, ends=cli.USAGE)
    assert said in err
    assert "clause" not in err


def test_what_the_enclave_refuses_is_told_with_the_name_of_the_option(
    machine: RunningEnclave, policy: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["finetune", machine.origin, rows, "--policy", policy, *COLUMNS]
    _, err = run([*at, "--learning-rate", "10"], capsys, ends=cli.USAGE)
    assert "refused: blindbox.learning_rate is 10" in err
    assert "[blindbox.learning_rate, invalid_value]" in err
    _, err = run(["jobs", machine.origin, "ftjob-0", "--policy", policy, "--watch"], capsys, ends=cli.USAGE)
    assert "job_not_found" in err


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "http://127.0.0.1:9", "--cancel"],
        ["jobs", "http://127.0.0.1:9", "--receipt", "receipt.json"],
        ["finetune", "http://127.0.0.1:9", "rows.csv", "--detach", "--plot", "loss.svg"],
        ["finetune", "http://127.0.0.1:9", "no such file.csv"],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(command, capsys, ends=cli.USAGE)


def test_a_machine_that_proves_nothing_gets_nothing(
    machine: RunningEnclave, amd: FakeAmd, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    accepted = SnpPolicy(measurements={bytes(48)}, minimum_tcb={"Genoa": amd.tcb})
    other.write_text(Policy(snp=accepted).to_json())
    command = ["finetune", machine.origin, rows, "--policy", str(other), *COLUMNS]
    _, err = run(command, capsys, ends=cli.NOT_PROVED)
    assert "not proved" in err


def test_what_a_model_says_cannot_act_upon_the_terminal() -> None:
    from blindbox.commands.jobs import _speakable

    assert _speakable("one\n\033[2Jtwo\u202e") == "one\n\\u{1b}[2Jtwo\\u{202e}"
