"""
An enclave in a process of its own, as `python -m enclave_app` runs it, over echo engines of a chosen speed:
for what can only be seen from outside, such as signals.

    with in_its_own_process(rate=20) as enclave:
        enclave.process.send_signal(signal.SIGTERM)

Run as a module, it is that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOMS = [
    str(Path(__file__).resolve().parents[2] / room) for room in ("", "client_sdk", "attestation", "data")
]
_START = (
    f"import sys; sys.path[:0] = {_ROOMS!r}; from tests.kit.process import main; sys.exit(main(sys.argv[1]))"
)


def free_port() -> int:
    """A port that is free now, of those that the kernel gives to nobody by itself: it stays free."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass(frozen=True, slots=True)
class Process:
    """A running enclave."""

    process: subprocess.Popen[str]
    port: int
    operators_port: int
    said: list[str] = field(default_factory=list)  # to stderr, once it has ended

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask_operator(self, path: str) -> tuple[int, str]:
        """Status and body of the operator's port."""
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.operators_port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def engines(self) -> list[int]:
        """The process ids of its engines."""
        return children(self.process.pid)

    def end(self, seconds: float = 120) -> int:
        """Wait until it has ended; its exit code."""
        _, told = self.process.communicate(timeout=seconds)
        self.said.extend(told.splitlines())
        return self.process.returncode


def children(pid: int) -> list[int]:
    """The processes that this one started and that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def gone(pid: int) -> bool:
    """Is there no such process any more? One that nobody has reaped yet is gone too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def in_its_own_process(
    *, engine: dict[str, Any] | None = None, ready: bool = True, **settings: Any
) -> Iterator[Process]:
    """Start it, wait until it is ready (unless told not to), and end it with the block."""
    port, operators = free_port(), free_port()
    told = {"engine": engine or {}, "settings": {"port": port, "operator_port": operators, **settings}}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, json.dumps(told)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
        text=True,
    )
    enclave = Process(process, port, operators)
    try:
        if ready:
            _wait_until_ready(enclave)
        yield enclave
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _wait_until_ready(enclave: Process, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and enclave.process.poll() is None:
        with contextlib.suppress(OSError):
            if enclave.ask_operator("/ready")[0] == 200:
                with socket.create_connection(("127.0.0.1", enclave.port)):
                    return
        time.sleep(0.05)
    raise AssertionError("the enclave did not become ready")


def main(told: str) -> int:
    """The process."""
    options = json.loads(told)

    from enclave_app.catalogue import Source
    from enclave_app.engines.echo import ByteTokenizer
    from enclave_app.engines.worker import Worker, in_process
    from enclave_app.logs import to_stderr
    from enclave_app.main import create_app
    from enclave_app.serving import serve
    from enclave_app.settings import Settings
    from enclave_app.training.counting import CountingTrainer
    from tests.kit.enclave import simulated_quoter

    spec = {"engine": "echo"} | options["engine"]

    async def engine() -> Worker:
        return await in_process(spec)

    to_stderr()
    settings = Settings(**({"engine": "echo", "host": "127.0.0.1"} | options["settings"]))
    echo = Source("echo", engine, ByteTokenizer())
    app = create_app(settings, base=echo, instruct=echo, trainer=CountingTrainer(), quoter=simulated_quoter())
    return serve(app, settings)
