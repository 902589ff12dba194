"""`blindbox top`: what it shows of the caller's own requests, live and for programs, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import blindbox.requests as requests
from blindbox import cli
from blindbox.commands import top
from blindbox.commands.top import NotTold, Standing
from enclave_app.engines.echo import EchoEngine
from enclave_app.identity import Identity
from tests.conftest import REPOSITORY
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave, running
from tests.kit.pinned_amd import FakeAmdQuoter, accepting, refusing

TOLD: dict[str, Any] = {
    "object": "blindbox.status",
    "waiting": 1,
    "running": 1,
    "tokens_per_second": 31.25,
    "kv_tokens": 256,
    "kv_room": 1024,
    "answers": [{"prompt_tokens": 128, "generated_tokens": 40, "most_tokens": 128, "seconds": 1.25}],
    "load": {"org/model": {"sequences": 0.5, "kv": 0.25, "waiting": 0.0}},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def policy(amd: FakeAmd, tmp_path: Path) -> str:
    path = tmp_path / "policy.json"
    path.write_text(accepting(amd).to_json())
    return str(path)


@pytest.fixture(scope="module")
def machine(amd: FakeAmd) -> Iterator[RunningEnclave]:
    """The whole enclave over an engine that says twenty tokens a second to two callers at once."""
    engine = EchoEngine(rate=20.0, most_sequences=2)
    with whole_app(engine=engine, name="org/echo", quoter=FakeAmdQuoter(amd), max_waiting=4) as one:
        yield one


@contextmanager
def asking(origin: str, policy: str, times: int) -> Iterator[None]:
    """So many answers are under way as long as the block lasts."""
    with requests.Session(policy=policy) as session:

        def ask() -> None:
            body = {"messages": [{"role": "user", "content": "x" * 500}], "stream": True, "max_tokens": 400}
            answers.append(session.post(f"{origin}/v1/chat/completions", json=body, stream=True))

        answers: list[Any] = []
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(times)]
        for thread in threads:
            thread.start()
        try:
            until = time.monotonic() + 60
            while sum(_standing(session, origin).values()) < times and time.monotonic() < until:
                time.sleep(0.02)
            yield
        finally:
            until = time.monotonic() + 60
            while _busy(session, origin) and time.monotonic() < until:
                while answers:  # one that had waited begins when another ends
                    answers.pop().close()
                time.sleep(0.02)


def _busy(session: Any, origin: str) -> bool:
    """Whether anybody's answer is under way; a test may have become another tenant meanwhile."""
    load = session.get(f"{origin}/v1/blindbox/status").json()["load"]
    return any(sum(each.values()) for each in load.values())


def _standing(session: Any, origin: str) -> dict[str, int]:
    told = session.get(f"{origin}/v1/blindbox/status").json()
    return {name: told[name] for name in ("running", "waiting")}


@contextmanager
def telling(amd: FakeAmd, *answers: Response) -> Iterator[str]:
    """A proved machine that answers the status with these, one after the other, and then with the last."""
    left = list(answers)

    async def status(_: Any) -> Response:
        return left.pop(0) if len(left) > 1 else left[0]

    identity = Identity(FakeAmdQuoter(amd), config_digest=bytes(48))
    with running(Starlette(routes=[Route(top._PATH, status)]), identity=identity) as one:
        yield one.origin


def told(**change: Any) -> Response:
    return PlainTextResponse(json.dumps(TOLD | change))


# ── once ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_shows_the_callers_own_requests_and_of_others_only_how_full_it_is(
    machine: RunningEnclave, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with asking(machine.origin, policy, 3):
        assert cli.main(["top", machine.origin, "--policy", policy, "--once"]) == cli.DONE
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert "\033" not in shown
    lines = shown.splitlines()
    assert re.match(
        rf"{machine.origin} proved: AMD SEV-SNP, evidence [0-9a-f]{{16}}…, \d\d:\d\d:\d\d$", lines[0]
    )
    assert re.match(r"yours    2 running, 1 waiting, [\d.]+ tokens/s$", lines[2])
    assert re.match(r"memory   1,800 of 1,048,576 tokens \(0\.2 %\) are kept for you$", lines[3])
    assert lines[4] == "all      org/echo: places ▮▮▮▮ ≤ 100 %, memory ▮▯▯▯ ≤ 25 %, queue ▮▯▯▯ ≤ 25 %"
    assert [line.split()[:1] + line.split()[2:3] for line in lines[7:]] == [["500", "400"], ["500", "400"]]


def test_another_caller_is_shown_none_of_them(
    machine: RunningEnclave, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-22: a tenant's requests are that tenant's alone."""
    with asking(machine.origin, policy, 2):
        monkeypatch.setenv("BLINDBOX_HOME", str(tmp_path / "another"))
        with requests.Session(policy=policy) as session:
            assert _standing(session, machine.origin) == {"running": 0, "waiting": 0}


def test_programs_get_an_object_a_line(
    machine: RunningEnclave, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["top", machine.origin, "--policy", policy, "--once", "--json"]) == cli.DONE
    (line,) = capsys.readouterr().out.splitlines()
    value = json.loads(line)
    assert value["running"] == 0
    assert value["kv_room"] == 1 << 20
    assert value["load"] == {"org/echo": {"sequences": 0.0, "kv": 0.0, "waiting": 0.0}}
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", value["at"])


# ── live ──────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted(after: int, monkeypatch: pytest.MonkeyPatch, how: int = signal.SIGINT) -> None:
    """Ctrl-C while it sleeps the nth time."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == after:
            os.kill(os.getpid(), how)

    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep))


def test_a_terminal_is_redrawn_and_left_as_it_was_found(
    amd: FakeAmd, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", terminal)
    interrupted(2, monkeypatch)
    with telling(amd, told(), told(running=7)) as origin:
        assert cli.main(["top", origin, "--policy", policy]) == cli.DONE
    drawn = terminal.getvalue()
    assert drawn.startswith("\033[?1049h\033[?25l\033[H")
    assert drawn.endswith("\033[?25h\033[?1049l")
    assert drawn.count("\033[H") == 2
    assert "7\033[0m running" in drawn
    plain = re.sub(r"\033\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert max(map(len, plain.replace("\r", "").split("\n"))) == 40


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:4]
from pathlib import Path
from blindbox import cli
from tests.client.test_top import FakeAmd, accepting, telling, told
from tests.kit.pinned_amd import pinned
policy = Path(sys.argv[4]) / "policy.json"
with pinned(FakeAmd()) as amd, telling(amd, told()) as origin:
    policy.write_text(accepting(amd).to_json())
    sys.exit(cli.main(["top", origin, "--policy", str(policy)]))
"""


def test_ctrl_c_in_a_real_terminal_leaves_it_clean(tmp_path: Path) -> None:
    """The program itself, behind a pseudo-terminal: its last word undoes its first."""
    ours, theirs = pty.openpty()
    rooms = [str(REPOSITORY / room) for room in (".", "client_sdk", "attestation", "data")]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *rooms, str(tmp_path)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        drawn = b""
        while b"are kept for you" not in drawn:
            drawn += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed
            while True:
                drawn += os.read(ours, 4096)
        assert process.wait(120) == cli.DONE
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(ours)
    assert drawn.startswith(b"\033[?1049h\033[?25l")
    assert drawn.endswith(b"\033[?25h\033[?1049l")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_is_no_terminal_gets_plain_lines_until_it_is_told_to_stop(
    how: int, amd: FakeAmd, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(3, monkeypatch, how)
    before = signal.getsignal(signal.SIGTERM)
    with telling(amd, told()) as origin:
        assert cli.main(["top", origin, "--policy", policy, "--json", "--interval", "0.1"]) == cli.DONE
    shown = capsys.readouterr().out
    assert [json.loads(line)["waiting"] for line in shown.splitlines()] == [1, 1, 1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_machine_that_is_busy_is_asked_again(
    amd: FakeAmd, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(2, monkeypatch)
    with telling(amd, PlainTextResponse("later", 503), told()) as origin:
        assert cli.main(["top", origin, "--policy", policy]) == cli.DONE
    shown, errors = capsys.readouterr()
    assert "HTTP 503; trying again" in errors
    assert "1 running, 1 waiting, 31.2 tokens/s" in shown


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (PlainTextResponse("no", 404), "older release"),
        (PlainTextResponse("{"), "cannot be read"),
        (PlainTextResponse("x" * ((1 << 20) + 1)), "larger than"),
        (told(waiting=-1), "cannot be read"),
    ],
)
def test_a_machine_that_tells_nothing_of_use_ends_it_with_a_reason(
    answer: Response, why: str, amd: FakeAmd, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with telling(amd, answer) as origin:
        assert cli.main(["top", origin, "--policy", policy]) == cli.UNREACHABLE
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"waiting": "1"},
        {"running": True},
        {"running": 1.5},
        {"tokens_per_second": float("nan")},
        {"tokens_per_second": float("inf")},
        {"kv_room": 1 << 60},
        {"answers": {}},
        {"answers": [{}]},
        {"answers": None},
        {"load": []},
        {"load": {"org/model": 1}},
    ],
)
def test_figures_that_are_none_are_refused(change: dict[str, Any]) -> None:
    assert Standing.parse(json.dumps(TOLD).encode()).kv_room == 1024
    if change == {"answers": {}}:
        assert Standing.parse(json.dumps(TOLD | change).encode()).answers == ()
        return
    with pytest.raises(NotTold, match="cannot be read"):
        Standing.parse(json.dumps(TOLD | change).encode())


def test_a_name_that_a_terminal_would_obey_is_told_by_its_numbers() -> None:
    hostile = {"\033[2J\u202e\n": TOLD["load"]["org/model"]}
    (load,) = Standing.parse(json.dumps(TOLD | {"load": hostile}).encode()).load
    assert load.name.isprintable()


def test_a_machine_that_proves_nothing_is_not_asked(
    amd: FakeAmd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(refusing(amd).to_json())
    with telling(amd, told()) as origin:
        assert cli.main(["top", origin, "--policy", str(path), "--once"]) == cli.NOT_PROVED
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("interval", ["0", "nan", "soon", "1e9"])
def test_an_interval_that_is_none_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["top", "http://203.0.113.1:80", "--interval", interval])
    assert ended.value.code == cli.USAGE
    assert "0.1 to 3600" in capsys.readouterr().err
