"""
The enclave that is put under load: the real app and server over the echo engine, in processes of their own.

    with served(rate=20) as enclave: …        # python -m tests.soak.enclave OPTIONS, on loopback

`python -m enclave_app` cannot be told how fast its echo engine is; that is all that differs here. Asked by a
line on its standard input, it says in JSON what it is at.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Enclave:
    """A running one."""

    port: int
    process: subprocess.Popen[str]

    def state(self) -> dict[str, Any]:
        """What it holds at this moment: exchanges in the gateway, sequences in the engine."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("state\n")
        self.process.stdin.flush()
        return dict(json.loads(_line(self.process, 120)))

    def pids(self) -> list[int]:
        """Its processes."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except OSError:
                continue
        return found

    def resident(self) -> int:
        """Bytes of memory of all its processes; what they share is counted in each."""
        return sum(_resident(pid) for pid in self.pids())

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time so far, of the process that answers and of the others."""
        own = _cpu(self.process.pid)
        return {"server": own, "engine": sum(map(_cpu, self.pids())) - own}

    def descriptors(self) -> int:
        """Open files and sockets of the process that answers."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(**options: Any) -> Iterator[Enclave]:
    """A process that serves with these options (those of `_Options`), ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.enclave", json.dumps(options)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Enclave(int(_line(process, 120)), process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise TimeoutError("the enclave under load does not answer")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the enclave under load ended with {process.wait()}")
    return line


# The process itself


@dataclass(frozen=True, slots=True)
class _Options:
    """How the enclave is set up."""

    rate: float = 0.0  # steps of the engine a second; 0 = as fast as it can
    most_sequences: int = 256
    max_waiting: int = 256
    max_waiting_each: int = 256
    sealed: bool = True
    tick_seconds: float | None = None
    head_seconds: float | None = None
    stall_seconds: float | None = None
    receipt_seconds: float | None = None
    drain_seconds: int = 30
    send_buffer: int = 0  # of each connection; what loopback has by default takes minutes to fill
    port: int = 0  # of loopback; 0 = one that is free
    data_dir: str | None = None  # where an earlier one left its data
    settings: dict[str, Any] = field(default_factory=dict)  # more of `Settings`


def main() -> int:
    options = _Options(**json.loads(sys.argv[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, most), most))

    from dataclasses import replace

    from enclave_app import edge
    from enclave_app.catalogue import Source
    from enclave_app.engines.echo import ByteTokenizer
    from enclave_app.engines.worker import Worker, in_process
    from enclave_app.main import create_app
    from enclave_app.serving import Server
    from enclave_app.settings import Settings
    from enclave_app.training.counting import CountingTrainer
    from tests.kit.enclave import simulated_quoter

    loop: list[asyncio.AbstractEventLoop] = []
    workers: list[Worker] = []

    async def engine() -> Worker:
        spec = {"engine": "echo", "rate": options.rate, "most_sequences": options.most_sequences}
        workers.append(await in_process(spec))
        loop.append(asyncio.get_running_loop())
        return workers[-1]

    async def state() -> dict[str, float]:
        sequences = (await workers[-1].gauges())["sequences"]
        return {"running": shell._running, "receiving": shell._receiving, "sequences": sequences}

    def now() -> dict[str, float]:
        return asyncio.run_coroutine_threadsafe(state(), loop[-1]).result(60)

    settings = Settings(
        engine="echo",
        quoter="simulated",
        max_waiting=options.max_waiting,
        max_waiting_each=options.max_waiting_each,
        drain_seconds=options.drain_seconds,
        data_dir=None if options.data_dir is None else Path(options.data_dir),
        **options.settings,
    )
    echo = Source("echo", engine, ByteTokenizer())
    shell = create_app(
        settings, base=echo, instruct=echo, trainer=CountingTrainer(), quoter=simulated_quoter()
    )
    chosen = {
        name: value
        for name in ("tick_seconds", "receipt_seconds")
        if (value := getattr(options, name)) is not None
    }
    shell._limits = replace(shell._limits, **chosen)
    edge.HEAD_SECONDS = options.head_seconds or edge.HEAD_SECONDS
    edge.STALL_SECONDS = options.stall_seconds or edge.STALL_SECONDS

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
    listener.bind(("127.0.0.1", options.port))
    port = listener.getsockname()[1]

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await shell._inside(scope, receive, send)

    app: Any = shell if options.sealed else bare
    config = edge.server_config(app, host="127.0.0.1", port=port, log_config=None)
    server = Server(config, shell, drain_seconds=settings.drain_seconds)
    threading.Thread(target=_answer, args=(server, port, now), daemon=True).start()
    server.run(sockets=[listener])
    return server.exit_code


def _answer(server: Any, port: int, now: Callable[[], dict[str, float]]) -> None:
    """Say the port once it is open, then the state at each line."""
    while not server.started:
        time.sleep(0.01)
    print(port, flush=True)
    for _ in sys.stdin:
        print(json.dumps(now()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
