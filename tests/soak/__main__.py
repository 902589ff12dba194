"""
`python -m tests.soak [G-1 … G-10, G-17] [--minutes N] [--quick] [--doc FILE]`: each figure against its wish.

Everything runs on loopback and stops by itself; the exit code is 1 if a figure was not held. All of it takes
about twelve minutes and the minutes of G-10.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
import warnings
from pathlib import Path

from .goals import GOALS as UNDER_LOAD
from .goals import Figure, Pace
from .replays import replays

GOALS = {**UNDER_LOAD, "G-17": replays}
HEADER = """# Under load

What `make soak` found, figure by figure, against what has to be held. Each goal starts an enclave of its own
(the real app and server over the echo engine, each in a process) and lets callers at it that seal what they
send; enclave and callers share the machine. What each goal does is told in
[tests/soak/goals.py](../tests/soak/goals.py), and G-17 in [tests/soak/replays.py](../tests/soak/replays.py).
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("goals", nargs="*", metavar="G-N", help=f"of {', '.join(GOALS)}; none = all")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long G-10 is (30)")
    parser.add_argument("--quick", action="store_true", help="a taste of each, in seconds")
    parser.add_argument("--doc", type=Path, help="write the table to this page")
    asked = parser.parse_args()
    unknown = [goal for goal in asked.goals if goal not in GOALS]
    if unknown:
        parser.error(f"there is no goal {', '.join(unknown)}; there are {', '.join(GOALS)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, most), most))
    warnings.simplefilter("ignore")  # that the machine is simulated is known

    figures: list[Figure] = []
    for goal in asked.goals or GOALS:
        started = time.monotonic()
        found = GOALS[goal](Pace(asked.quick, asked.minutes))
        figures += found
        for figure in found:
            print(_line(figure), flush=True)
        print(f"      {time.monotonic() - started:.0f} s\n", flush=True)
    missed = [figure for figure in figures if not figure.held]
    print(f"{len(figures) - len(missed)} of {len(figures)} figures held")
    if asked.doc is not None:
        asked.doc.write_text(_page(figures), encoding="utf-8")
    return 1 if missed else 0


def _line(figure: Figure) -> str:
    mark = "ok  " if figure.held else "MISS"
    return f"{mark}  {figure.goal:<5} {figure.what:<62} {figure.found:<40} {figure.wanted}"


def _page(figures: list[Figure]) -> str:
    command = " ".join(["python -m tests.soak", *sys.argv[1:]])
    told = (
        f"{time.strftime('%-d %B %Y')}, `{command}`. {os.cpu_count()} cores ({platform.machine()}), "
        f"{platform.system()}, Python {platform.python_version()}."
    )
    rows = [
        f"| {f.goal} | {f.what} | {f.found} | {f.wanted} | {'✔' if f.held else 'missed'} |" for f in figures
    ]
    table = ["| goal | figure | found | wanted | held |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join([HEADER, told, "", *table, ""])


if __name__ == "__main__":
    sys.exit(main())
