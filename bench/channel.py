#!/usr/bin/env python3
"""
What the seal costs: `blindbox.requests` against plain `requests`, on the same route of the same application.

Two servers run side by side, each in a process of its own, with the same settings; one has the gateway around
the application. Clients ask them in turn, in short interleaved rounds, so that whatever else the machine does
befalls both. Figures are medians over the rounds; a ratio is the median of each round's own ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / room) for room in (".", "client_sdk", "attestation", "data")]

KINDS = ("plain", "sealed")
SIZES = (1 << 10, 2 << 10, 1 << 20)
CLIENTS = (1, 16)
LEAST_RATIO = 0.5  # of sealed to plain throughput, 2 KiB and 16 clients
MOST_ADDED = 3.0  # ms that one sealed call adds at the median


@dataclass(frozen=True, slots=True)
class Round:
    """One kind of client, one size, for a moment."""

    per_second: float
    median: float  # ms of one call
    p99: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    size: int
    clients: int
    processes: int
    plain: Round
    sealed: Round
    ratio: float  # sealed to plain throughput
    added: float  # ms at the median of one call


# The server


def serve(kind: str) -> None:
    """An application that answers with what it was sent, bare or behind the gateway. Prints the port."""
    import socket

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from enclave_app.edge import server_config
    from enclave_app.gateway import Gateway
    from tests.kit.enclave import make_identity

    async def test(request: Request) -> JSONResponse:
        return JSONResponse({"text": (await request.json())["input_text"]})

    app: Any = Starlette(routes=[Route("/test", test, methods=["POST"])])
    if kind == "sealed":
        app = Gateway(app, make_identity())
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = server_config(app, host="127.0.0.1", port=listener.getsockname()[1], log_config=None)
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def server(kind: str) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


# The clients


def new_session(kind: str) -> Any:
    """A session as people make one: nothing is tuned on either side."""
    if kind == "plain":
        import requests

        return requests.Session()
    import blindbox.requests
    from blindbox_attestation import UnsafeSimulatedPolicy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return blindbox.requests.Session(policy=UnsafeSimulatedPolicy())


def question(text: str) -> dict[str, Any]:
    """As much down as up."""
    return {"input_text": text}


def text_of(size: int) -> str:
    return f"say {os.urandom(size // 2).hex()}"[:size]


def client_process(orders: Connection) -> None:
    """Runs rounds on demand; its sessions live on between them, as a caller's do."""
    warnings.simplefilter("ignore")
    sessions: dict[tuple[str, int], Any] = {}
    while True:
        order = orders.recv()
        if order is None:
            return
        kind, origin, size, threads, seconds = order
        for number in range(threads):
            session = sessions.setdefault((kind, number), None) or new_session(kind)
            sessions[kind, number] = session
            session.headers["Authorization"] = f"Bearer {'benchmark-' * 4}"
            session.post(f"{origin}/test", json=question("say x"))  # connect, and prove
        orders.send("ready")
        orders.recv()
        latencies: list[float] = []

        def ask(session: Any, text: str, end: float, url: str, into: list[float]) -> None:
            own = []
            while (start := time.perf_counter()) < end:
                answer = session.post(url, json=question(text)).json()
                own.append(time.perf_counter() - start)
                if not answer["text"].startswith(text):
                    raise AssertionError("the echo is not what was said")
            into += own

        end, url = time.perf_counter() + seconds, f"{origin}/test"
        workers = [
            threading.Thread(target=ask, args=(sessions[kind, number], text_of(size), end, url, latencies))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        orders.send(latencies)


class Clients:
    """So many clients, as threads spread over processes."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=client_process, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(5)

    def run(self, kind: str, origin: str, size: int, clients: int, seconds: float) -> Round:
        pipes = self.pipes[:clients]
        share, more = divmod(clients, len(pipes))
        for number, pipe in enumerate(pipes):
            pipe.send((kind, origin, size, share + (number < more), seconds))
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        latencies = sorted(latency for pipe in pipes for latency in pipe.recv())
        if not latencies:
            raise RuntimeError("no call ended within the round; give it more --seconds")
        return Round(
            len(latencies) / seconds,
            1000 * statistics.median(latencies),
            1000 * latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
        )


# The comparison


def compare(
    clients: Clients, origins: dict[str, str], size: int, number: int, rounds: int, seconds: float
) -> Row:
    taken: dict[str, list[Round]] = {kind: [] for kind in KINDS}
    for turn in range(rounds):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            taken[kind].append(clients.run(kind, origins[kind], size, number, seconds))
    pairs = list(zip(taken["plain"], taken["sealed"], strict=True))
    return Row(
        size,
        number,
        min(number, len(clients.pipes)),
        middle(taken["plain"]),
        middle(taken["sealed"]),
        statistics.median(sealed.per_second / plain.per_second for plain, sealed in pairs),
        statistics.median(sealed.median - plain.median for plain, sealed in pairs),
    )


def middle(rounds: list[Round]) -> Round:
    return Round(
        *(statistics.median(values) for values in zip(*(asdict(one).values() for one in rounds), strict=True))
    )


def named(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def table(rows: list[Row]) -> str:
    head = (
        "body",
        "clients",
        "plain/s",
        "sealed/s",
        "ratio",
        "plain ms",
        "sealed ms",
        "added ms",
        "plain p99",
        "sealed p99",
    )
    lines = [head]
    for row in rows:
        lines.append(
            (
                named(row.size),
                f"{row.clients}",
                f"{row.plain.per_second:.0f}",
                f"{row.sealed.per_second:.0f}",
                f"{row.ratio:.2f}",
                f"{row.plain.median:.2f}",
                f"{row.sealed.median:.2f}",
                f"{row.added:+.2f}",
                f"{row.plain.p99:.1f}",
                f"{row.sealed.p99:.1f}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def verdicts(rows: list[Row]) -> list[str]:
    """The two promises, and whether this run kept them."""
    said = []
    for row in rows:
        if (row.size, row.clients) == (2 << 10, 16):
            kept = "met" if row.ratio >= LEAST_RATIO else "NOT MET"
            said.append(
                f"sealed throughput, 2 KiB, 16 clients: {row.ratio:.2f} of plain (≥ {LEAST_RATIO}: {kept})"
            )
        if (row.size, row.clients) == (2 << 10, 1):
            kept = "met" if row.added <= MOST_ADDED else "NOT MET"
            said.append(
                f"a sealed call of 2 KiB adds {row.added:.2f} ms at the median (≤ {MOST_ADDED}: {kept})"
            )
    return said


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each kind (default 5)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a round (default 1.5)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="client processes (default: one a core)"
    )
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    rounds, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    with ExitStack() as stack:
        # The client keeps a tenant's token; not among the user's own here.
        os.environ["BLINDBOX_HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
        origins = {kind: stack.enter_context(server(kind)) for kind in KINDS}
        clients = Clients(options.processes)
        stack.callback(clients.close)
        rows = [compare(clients, origins, s, n, rounds, seconds) for s in SIZES for n in CLIENTS]
    if options.json:
        run = {"cores": os.cpu_count(), "processes": options.processes, "rounds": rounds, "seconds": seconds}
        print(json.dumps(run | {"rows": [asdict(row) for row in rows]}))
        return 0
    shared = min(options.processes, max(CLIENTS))
    print("POST to an application that answers with what it was sent: so much text up and down, as JSON.")
    print(f"X-Wing and AES-256-GCM; loopback; clients and server share {os.cpu_count()} cores.")
    print(f"Each server is one process; 16 clients are threads in {shared} process(es), a session each.")
    print(f"{rounds} interleaved round(s) of {seconds} s of each kind, one after the other; medians.\n")
    print(table(rows))
    print()
    for line in verdicts(rows):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
