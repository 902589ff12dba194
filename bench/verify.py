#!/usr/bin/env python3
"""
What a proof costs: our verifier on a machine of each platform, next to other verifiers on the same bytes.

"cold" is with every cache of ours emptied before each call: the first proof of a process. "warm" is a later
one of the same machine: its vendor's certificates and collateral, and the log of its boot, are known; no
signature or value of its evidence ever is. What counts is processor time, in rounds of everybody one after
the other. Figures are medians over the rounds; a ratio is the median of each round's own ratio.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / room) for room in (".", "client_sdk", "attestation", "data")]

from peers import PEERS, Peer, median_of  # noqa: E402

COLD, WARM = "cold", "warm"
MOST_TDX = 1.2  # times what `dcap-qvl` takes
MOST_FIRST_CALL = 15.0  # ms
MOST_IMPORT = 300.0  # ms
FRESH_PROCESSES = 9
IMPORT = "import blindbox"
IMPORT_BOTH = "import blindbox, blindbox.requests"
FIRST_CALL = "first call, fresh process"


@dataclass(frozen=True, slots=True)
class Row:
    """One case, judged by one verifier."""

    case: str
    about: str
    verifier: str
    ms: float
    cold_ratio: float  # ours, cold, to this one
    warm_ratio: float
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """How long something took, in ms."""

    wall: float
    processor: float  # of this process

    @classmethod
    def now(cls) -> Spent:
        return cls(1000 * time.perf_counter(), 1000 * time.process_time())

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.processor - other.processor)

    @classmethod
    def middle(cls, several: list[Spent]) -> Spent:
        return cls(*(statistics.median(values) for values in zip(*map(astuple, several), strict=True)))


@dataclass(frozen=True, slots=True)
class Goal:
    """What was promised, and what this run found."""

    text: str
    found: float
    most: float
    unit: str

    @property
    def met(self) -> bool:
        return self.found <= self.most

    def __str__(self) -> str:
        mark, unit = "✔" if self.met else "✘", self.unit
        return f"{mark} {self.text}: {self.found:.2f}{unit} (≤ {self.most:g}{unit})"


# --- one proof ----------------------------------------------------------------------------------------------


def caches() -> list[Any]:
    """Every cache that the shared room has."""
    found = {
        id(value): value
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "blindbox_attestation"
        for value in vars(module).values()
        if isinstance(value, functools._lru_cache_wrapper)
    }
    return list(found.values())


def compare(case: Any, rounds: int, calls: int) -> Iterator[Row]:
    from blindbox_attestation.verify import appraise

    came: dict[str, bytes] = {}

    def arrive() -> None:
        """As it comes over the wire: bytes that nobody has hashed yet."""
        came.update({name: bytes(bytearray(value)) for name, value in files.items()})

    def forget() -> None:
        arrive()
        for cache in kept:
            cache.cache_clear()

    def ours() -> None:
        evidence = came["evidence"]
        endorsements = {name: value for name, value in came.items() if name != "evidence"}
        appraise(case.platform, evidence, endorsements, case.policy, nonce=None, now=case.now)

    files = {"evidence": case.evidence, **case.endorsements}
    arrive()
    ours()  # so that everything is imported
    kept = caches()
    with ExitStack() as stack:
        peers = [Peer(name, files, int(case.now.timestamp())) for name in case.peers]
        for peer in peers:
            stack.callback(peer.close)
        measured: dict[str, Callable[[], float]] = {
            COLD: lambda: median_of(ours, calls, forget),
            WARM: lambda: median_of(ours, calls, arrive),
        }
        measured |= {peer.name: functools.partial(peer.round, calls) for peer in peers if not peer.absent}
        taken: dict[str, list[float]] = {name: [] for name in measured}
        for turn in range(rounds):
            for name in measured if turn % 2 else reversed(measured):
                taken[name].append(measured[name]())
    for name, values in taken.items():
        cold, warm = (
            statistics.median(mine / theirs for mine, theirs in zip(taken[which], values, strict=True))
            for which in (COLD, WARM)
        )
        yield Row(case.name, case.about, name, statistics.median(values), cold, warm)
    for peer in peers:
        if peer.absent:
            yield Row(case.name, case.about, peer.name, 0.0, 0.0, 0.0, peer.absent)


# --- the first call of a client -----------------------------------------------------------------------------


@contextmanager
def enclave() -> Iterator[str]:
    """A simulated enclave over the echo application, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def serve() -> None:
    from tests.kit.enclave import running

    with running() as one:
        print(one.origin, flush=True)
        sys.stdin.read()


# In a process that has loaded nothing yet.
IMPORTS = """
import time
def lap(): return time.perf_counter(), time.process_time()
one = lap()
import blindbox
two = lap()
import blindbox.requests
three = lap()
print(*one, *two, *three)
"""


def imports() -> dict[str, Spent]:
    told = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:4])},
    )
    laps = [float(value) for value in told.stdout.split()]
    first, second, third = (Spent(1000 * laps[at], 1000 * laps[at + 1]) for at in (0, 2, 4))
    return {IMPORT: second - first, IMPORT_BOTH: third - first}


def ask(origin: str) -> dict[str, Spent]:
    """Of this process: its first call, that of later sessions, and any later call."""
    warnings.simplefilter("ignore")
    import blindbox.requests
    from blindbox_attestation import UnsafeSimulatedPolicy

    def first_call() -> Any:
        session = blindbox.requests.Session(policy=UnsafeSimulatedPolicy())
        session.get(f"{origin}/count").raise_for_status()
        return session

    def median(call: Callable[[], Any]) -> Spent:
        laps = [Spent.now()]
        for _ in range(7):
            call()
            laps.append(Spent.now())
        return Spent.middle([after - before for before, after in pairwise(laps)])

    start = Spent.now()
    session = first_call()
    return {
        FIRST_CALL: Spent.now() - start,
        "first call of a later session": median(first_call),
        "a later call": median(lambda: session.get(f"{origin}/count")),
    }


def client(processes: int) -> dict[str, Spent]:
    """Medians over so many fresh processes."""
    taken: list[dict[str, Spent]] = []
    with tempfile.TemporaryDirectory() as home, enclave() as origin:
        for _ in range(processes + 1):
            told = subprocess.run(
                [sys.executable, __file__, "--ask", origin],
                stdout=subprocess.PIPE,
                check=True,
                env=os.environ | {"BLINDBOX_HOME": home},
            )
            asked = {name: Spent(**value) for name, value in json.loads(told.stdout).items()}
            taken.append(imports() | asked)
    taken = taken[1:]  # the first of them makes the folder for tokens, and warms the disk
    return {name: Spent.middle([one[name] for one in taken]) for name in taken[0]}


# --- the table ----------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = [("platform", "verifier", "ms", "cold/it", "warm/it")]
    case = ""
    for row in rows:
        name = row.case if row.case != case else ""
        case = row.case
        if row.absent:
            lines.append((name, row.verifier, "absent", "", row.absent))
            continue
        ours = row.verifier in (COLD, WARM)
        ratios = ("", "") if ours else (f"{row.cold_ratio:.2f}", f"{row.warm_ratio:.2f}")
        lines.append((name, f"blindbox, {row.verifier}" if ours else row.verifier, f"{row.ms:.2f}", *ratios))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    left, right = widths[:2], widths[2:]
    return "\n".join(
        "  ".join(
            [cell.ljust(width) for cell, width in zip(line[:2], left, strict=True)]
            + [cell.rjust(width) for cell, width in zip(line[2:4], right, strict=True)]
            + [line[4].rjust(len("warm/it"))]
        ).rstrip()
        for line in lines
    )


def goals(rows: list[Row], most: dict[str, float], seen: dict[str, Spent]) -> Iterator[Goal]:
    for row in rows:
        if row.case in most and row.verifier in (COLD, WARM):
            yield Goal(f"{row.case}, {row.verifier}", row.ms, most[row.case], " ms")
        if row.verifier == "dcap-qvl" and not row.absent:
            yield Goal(f"{row.case}, cold, to dcap-qvl", row.cold_ratio, MOST_TDX, "")
            yield Goal(f"{row.case}, warm, to dcap-qvl", row.warm_ratio, MOST_TDX, "")
    for name, limit in ((FIRST_CALL, MOST_FIRST_CALL), (IMPORT, MOST_IMPORT)):
        yield Goal(name, seen[name].wall, limit, " ms")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of each (default 9)")
    parser.add_argument("--calls", type=int, default=20, help="calls in a round (default 20)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", metavar="ORIGIN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.ask:
        print(json.dumps({name: asdict(value) for name, value in ask(options.ask).items()}))
        return 0
    warnings.simplefilter("ignore")
    from cases import cases, vectors

    rounds, calls, processes = (
        (1, 5, 2) if options.quick else (options.rounds, options.calls, FRESH_PROCESSES)
    )
    folder = vectors()
    measured = cases(folder)
    rows = [row for case in measured for row in compare(case, rounds, calls)]
    seen = client(processes)
    found = list(goals(rows, {case.name: case.most for case in measured if case.most}, seen))
    if options.json:
        run = {"cores": os.cpu_count(), "rounds": rounds, "calls": calls, "vectors": folder is not None}
        client_said = {name: asdict(value) for name, value in seen.items()}
        said = [asdict(goal) | {"met": goal.met} for goal in found]
        print(json.dumps(run | {"rows": [asdict(row) for row in rows], "client": client_said, "goals": said}))
        return 0
    print(f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}.")
    whose = (
        "Real machines" if folder else "No vectors (BLINDBOX_VECTORS): machines of the tests' fake vendors"
    )
    print(f"{whose}; {rounds} interleaved round(s) of {calls} calls of each; medians.\n")
    print("\n".join(f"{case.name:<24}{case.about}" for case in measured) + "\n")
    print(table(rows))
    unseen = sorted(PEERS.keys() - {row.verifier for row in rows})
    if unseen:
        print(f"\nnot measured, for they read real machines only: {', '.join(unseen)}")
    print(f"\nblindbox.requests over a local simulated enclave, {processes} fresh processes; medians\n")
    print(f"{'':<36}{'ms':>7}{'of its processor':>20}")
    for name, spent in seen.items():
        print(f"{name:<36}{spent.wall:>7.1f}{spent.processor:>20.1f}")
    print()
    print("\n".join(map(str, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
