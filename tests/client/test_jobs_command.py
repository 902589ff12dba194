"""`blindbox finetune` and `blindbox jobs`, as somebody types them, against the whole enclave."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import blindbox
from blindbox import cli
from blindbox.job_handle import Job
from blindbox.printable import plain_lines
from enclave_app.engines import Update
from enclave_app.engines.echo import EchoEngine
from enclave_app.training.counting import CountingTrainer
from tests.conftest import REPOSITORY
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.pinned_amd import FakeAmdQuoter, accepting, refusing
from tests.kit.simulated import unsafe

FAILED = 4


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
    path.write_text(accepting(amd).to_json())
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
        [
            *("finetune", machine.origin, rows, "--policy", policy, *COLUMNS),
            *("--epochs", "2", "--batch-size", "8", *NAMED, *WISHES),
        ],
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
    out, err = run([*at, "--ask", "What is clause 4?"], capsys)
    assert "What is clause 4?\n ### Answer:\n" in out
    assert err == ""
    out, err = run([*at, "--ask", "What is clause 4?", "--max-tokens", "5"], capsys)
    assert len(out) == 6
    assert "cut off after 5 tokens; --max-tokens N allows more" in err
    out, _ = run([*at, "--tensorboard", "runs"], capsys)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    out, err = run([*at, "--delete"], capsys)
    assert out.startswith("deleted: ft:org/echo:handbook:")
    kept = err.removeprefix("blindbox: what it learned from is kept: ").strip()
    again = ["finetune", machine.origin, kept, "--policy", policy, *COLUMNS]
    job = run(again, capsys)[0].splitlines()[0]
    out, err = run(["jobs", machine.origin, job, "--policy", policy, "--delete", "--data"], capsys)
    assert out.strip().endswith(f"{job}, {kept}")
    assert err == ""
    out, err = run(["jobs", machine.origin, "--policy", policy], capsys)
    assert out == ""
    assert f"make one with: blindbox finetune {machine.origin} FILE" in err


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
    for watching in ([*at, "--watch"], [*at, "--watch", "--receipt", "receipt.json"]):
        _, err = run(watching, capsys)
        assert (
            err.splitlines()[-1] == f"blindbox: it goes on with: blindbox jobs {slow.origin} {job} --resume"
        )
    _, err = run([*at, "--ask", "why?"], capsys, ends=cli.USAGE)
    assert "--watch waits for it" in err
    out, _ = run([*at, "--resume"], capsys)
    assert "queued" in out or "running" in out
    assert "cancelled" in run([*at, "--cancel"], capsys)[0]
    _, err = run([*at, "--watch"], capsys, ends=FAILED)
    assert "[cancelled]" in err
    assert err.count("cancelled") == 3  # how it ended, why, and the word for programs
    _, err = run([*at, "--resume"], capsys, ends=cli.USAGE)
    assert "blindbox: refused: " in err
    assert "wrong_status" in err


def test_ctrl_c_stops_the_watching_and_not_the_job(
    slow: RunningEnclave,
    policy: str,
    rows: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real SIGINT, once the command watches and the job has made a step."""
    waits, watched = Job.wait, threading.Event()

    def wait(job: Job) -> Job:
        watched.set()
        return waits(job)

    monkeypatch.setattr(Job, "wait", wait)

    def interrupt() -> None:
        assert watched.wait(120)
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
    assert "refused: --learning-rate is 10" in err
    assert "[--learning-rate, invalid_value]" in err
    _, err = run(["jobs", machine.origin, "ftjob-0", "--policy", policy, "--watch"], capsys, ends=cli.USAGE)
    assert f"blindbox jobs {machine.origin} lists yours" in err
    assert "job_not_found" in err


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "http://127.0.0.1:9", "--cancel"],
        ["jobs", "http://127.0.0.1:9", "ftjob-1", "--data"],
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
    other.write_text(refusing(amd).to_json())
    command = ["finetune", machine.origin, rows, "--policy", str(other), *COLUMNS]
    _, err = run(command, capsys, ends=cli.NOT_PROVED)
    assert "not proved" in err


def test_what_a_model_says_cannot_act_upon_the_terminal() -> None:
    assert plain_lines("one\n\033[2J\ttwo\r\u202e") == "one\n\\u{1b}[2J\ttwo \\u{202e}"


class Halting(EchoEngine):
    """Says its first letter, and the rest when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.freed = threading.Event(), threading.Event()
        self.may.set()  # what is served is compared with what was trained, at the job's end

    def step(self) -> list[Update]:
        if any(at for _, at, _ in self._open.values()) and not self.may.wait(0.02):
            return []
        return super().step()

    def cancel(self, key: int) -> None:
        super().cancel(key)
        self.freed.set()


@contextmanager
def asking(engine: Halting, own_home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process of its own, that has asked a tuned model and got one letter."""
    rows = [{"question": f"What is clause {n}?", "answer": f"Clause {n}."} for n in range(3)]
    with whole_app(engine=engine) as enclave:
        job = blindbox.finetune(enclave.origin, rows, policy=unsafe()).wait(progress=False)
        engine.may.clear()
        engine.freed.clear()
        example = REPOSITORY / "client_sdk" / "examples" / "simulated.py"
        command = [sys.executable, str(example), "jobs", enclave.origin, job.id, "--ask", "Why?"]
        env = os.environ | {"PYTHONPATH": ":".join(sys.path), "BLINDBOX_HOME": str(own_home)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=env
        ) as one:
            assert one.stdout is not None
            assert one.stdout.read(1) == b"["
            try:
                yield one
            finally:
                one.kill()
                engine.may.set()


@pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning")
def test_an_answer_is_printed_as_it_comes(own_home: Path) -> None:
    """Its first letter was there when the model had said no other."""
    engine = Halting()
    with asking(engine, own_home) as command:
        engine.may.set()
        out, _ = command.communicate(timeout=120)
    assert b"Why?" in out
    assert out.endswith(b"\n")
    assert command.returncode == cli.DONE


@pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning")
def test_ctrl_c_amid_an_answer_ends_it_here_and_in_the_enclave(own_home: Path) -> None:
    engine = Halting()
    with asking(engine, own_home) as command:
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=120)
        assert engine.freed.wait(120)
    assert (command.returncode, out) == (cli.INTERRUPTED, b"\n")
    assert err.splitlines()[-1] == b"blindbox: stopped"
    assert b"Traceback" not in err
