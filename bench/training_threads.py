"""
How a training's threads should wait for each other: the sums of one layer, alone and beside busy loops.

    python bench/training_threads.py [--seconds 4] [--loops 0 1 2] [--rounds 1] [--only NAME …]

Each way is a process of its own, with the niceness of a training. Passes a second tell how fast it learned,
the processor's time of a pass how much of that was work: it should be the same whatever runs beside it.
The loops are processes that want a core and have the niceness of whoever started this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from enclave_app.training.sft_child import NICE  # noqa: E402

WAYS: Final[dict[str, dict[str, str]]] = {
    "as libgomp comes": {},
    "10000 spins": {"GOMP_SPINCOUNT": "10000"},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "no spins": {"OMP_WAIT_POLICY": "passive"},
    "bound to cores": {"OMP_PROC_BIND": "true"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOOP: Final = "while True: pass"


def main() -> None:
    """Measure each way, interleaved in rounds, and print as it comes."""
    parser = argparse.ArgumentParser(description="How a training's threads should wait for each other.")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2], help="busy processes beside it")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="rows of the matrices")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(passes(options.tokens, options.seconds)), flush=True)
        return
    print(f"{'':18}{'loops':>6}{'passes/s':>10}{'ms of the processor':>21}{'load':>7}")
    for _ in range(options.rounds):
        for name in options.only:
            for loops in options.loops:
                found = measure(WAYS[name], loops, options)
                load = os.getloadavg()[0]
                print(f"{name:18}{loops:6}{found['rate']:10.1f}{found['cost']:21.1f}{load:7.1f}", flush=True)


def measure(way: dict[str, str], loops: int, options: argparse.Namespace) -> dict[str, Any]:
    """One process, and so many loops beside it."""
    command = [sys.executable, __file__, "--child", "--tokens", str(options.tokens)]
    with contextlib.ExitStack() as stack:
        for _ in range(loops):
            loop = subprocess.Popen([sys.executable, "-S", "-c", LOOP])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        told = subprocess.run(
            [*command, "--seconds", str(options.seconds)],
            env={**os.environ, **way},
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def passes(tokens: int, seconds: float) -> dict[str, float]:
    """The feed-forward sums of SmolLM2-135M with LoRA beside one of them, for so long."""
    import torch

    os.nice(NICE)  # before there are other threads: each has its own niceness
    states, up, down = torch.randn(tokens, 576), torch.randn(576, 1536), torch.randn(1536, 576)
    one, other = torch.randn(576, 16), torch.randn(16, 1536)

    def once() -> None:
        inner = states @ up + (states @ one) @ other
        inner = torch.nn.functional.silu(inner) * inner
        torch.nn.functional.rms_norm(inner @ down + states, (576,))

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    for _ in range(20):
        once()
    count, before, began = 0, spent(), time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        once()
        count += 1
    return {"rate": count / passed, "cost": 1000 * (spent() - before) / count}


if __name__ == "__main__":
    main()
