"""
Serving a language model: ours, proved and sealed over HTTP, beside engines called bare in their own process.

    python bench/serving.py [--model FOLDER] [--weights int8] [--callers 1 8 16] [--rounds 3] [--plot FILE]

Every engine runs the same model file in a process of its own; rounds are interleaved, so that what else the
machine does falls on all alike, and medians are told. Prompts are random tokens, new ones for every call, so
that no prefix cache helps; answers are exactly `--new` tokens long, the likeliest ones. Tokens per second
count from the first request to the last token, prompts included. What this machine's memory and processor
could do at most is measured in the same run. Peers are in `serving_peers.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
from serving_peers import PEERS, Peer

import blindbox
import blindbox.requests as requests

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO = CHECKOUT / ".cache" / "models" / "smollm2-135m-instruct"
OURS = "blindbox, sealed"
NAIVE = "generate, one at a time"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one kind: so many callers at once, a prompt each."""

    seconds: float
    first: float  # seconds to the first token, the median of the callers
    tokens: int


class Contender(Protocol):
    """Something that answers prompts of token ids."""

    name: str
    absent: str

    def run(self, prompts: list[list[int]], new: int) -> Measured:
        """Answer all of them, as well at once as it can; exactly `new` tokens each."""
        ...

    def memory(self) -> int:
        """Peak resident bytes of all its processes."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


class Sealed:
    """The enclave's application in its real processes, asked through the sealed client by threads of ours."""

    name = OURS

    def __init__(self, model: Path, weights: str, kv_cache_mib: int, **settings: str) -> None:
        self.absent = ""
        self._port = _free_port()
        self.origin = f"http://127.0.0.1:{self._port}"
        began = time.monotonic()
        cache = CHECKOUT / ".cache"
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/"),
            "BLINDBOX_MODEL": str(model),
            "BLINDBOX_INSTRUCT_MODEL": str(model),
            "BLINDBOX_EXPORTS_DIR": str(cache / "exported"),
            "BLINDBOX_WEIGHTS": weights,
            "BLINDBOX_KV_CACHE_MIB": str(kv_cache_mib),
            "BLINDBOX_QUOTER": "simulated",
            "BLINDBOX_HOST": "127.0.0.1",
            "BLINDBOX_PORT": str(self._port),
            **{f"BLINDBOX_{name.upper()}": value for name, value in settings.items()},
        }
        self._log = (cache / "bench-enclave.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "enclave_app"],
            env=environment,
            cwd=CHECKOUT,
            stderr=self._log,
        )
        self._session = requests.Session(policy=blindbox.UnsafeSimulatedPolicy())
        # The client's defaults bound a whole call to minutes; a benchmark waits.
        self._timeout = 3600
        self._name = self._wait()
        self.started = time.monotonic() - began
        self._peak = _Peak(self._process.pid)

    def run(self, prompts: list[list[int]], new: int) -> Measured:
        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            told = list(pool.map(lambda ids: self._ask(ids, new), prompts))
        return Measured(
            time.perf_counter() - began,
            statistics.median(first for first, _ in told),
            sum(tokens for _, tokens in told),
        )

    def _ask(self, ids: list[int], new: int) -> tuple[float, int]:
        began = time.perf_counter()
        first, tokens = 0.0, 0
        body = {
            "model": self._name,
            "prompt": ids,
            "max_tokens": new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"{self.origin}/v1/completions"
        with self._session.post(url, json=body, stream=True, timeout=self._timeout) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines(chunk_size=None):
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                # Random tokens may write nothing that can be shown yet; the first event is the first token.
                first = first or time.perf_counter() - began
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        return first, tokens

    def memory(self) -> int:
        return self._peak.bytes

    def close(self) -> None:
        self._peak.stop()
        self._session.close()
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def _wait(self) -> str:
        """The model's name, once the enclave answers."""
        while True:
            if self._process.poll() is not None:
                raise SystemExit(f"the enclave did not start; its log is {self._log.name}")
            try:
                listed = self._session.get(f"{self.origin}/v1/models", timeout=60)
                listed.raise_for_status()
                return str(listed.json()["data"][0]["id"])
            except (requests.RequestException, blindbox.AttestationError):
                time.sleep(0.1)


class _Peak(threading.Thread):
    """Peak resident memory of a process and its children, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.1):
            with contextlib.suppress(psutil.Error):
                found = [self._root, *self._root.children(recursive=True)]
                # Shared pages (the mapped model) are counted once for each process: an upper bound.
                self.bytes = max(self.bytes, sum(each.memory_info().rss for each in found))

    def stop(self) -> None:
        self._done.set()


@dataclass
class Row:
    """What was measured of one contender: medians of the rounds."""

    name: str
    first: dict[int, float] = field(default_factory=dict)  # prompt length → seconds
    rate: dict[tuple[int, int], float] = field(default_factory=dict)  # (prompt length, callers) → tokens/s
    memory: int = 0


def measure(contenders: list[Contender], options: argparse.Namespace, vocabulary: int) -> list[Row]:
    """Interleaved rounds over all contenders; a first round of each is for warming up and not counted."""
    chance = random.Random(options.seed)
    seen: dict[tuple[str, int, int], list[Measured]] = {}
    plan = [(length, callers) for length in options.prompt for callers in options.callers]
    for number in range(options.rounds + 1):
        for contender in contenders:
            for length, callers in plan if number else plan[:1]:
                if contender.name == NAIVE and callers != min(options.callers):
                    continue  # one after another: more callers wait longer, and that is all
                prompts = [
                    [chance.randrange(vocabulary // 50, vocabulary - vocabulary // 50) for _ in range(length)]
                    for _ in range(callers)
                ]
                found = contender.run(prompts, options.new)
                if found.tokens != callers * options.new:
                    wanted = callers * options.new
                    raise SystemExit(f"{contender.name} wrote {found.tokens} tokens, not {wanted}")
                if number:
                    seen.setdefault((contender.name, length, callers), []).append(found)
                    say(
                        f"  round {number}: {contender.name:28} {callers:2} × {length}: "
                        f"{found.tokens / found.seconds:7.1f} tokens/s, first token {found.first:.3f} s"
                    )
    rows = []
    for contender in contenders:
        row = Row(contender.name, memory=contender.memory())
        for length, callers in plan:
            asked = min(options.callers) if contender.name == NAIVE else callers
            runs = seen[contender.name, length, asked]
            row.rate[length, callers] = statistics.median(run.tokens / run.seconds for run in runs)
            if callers == min(options.callers):
                row.first[length] = statistics.median(run.first for run in runs)
        rows.append(row)
    return rows


def table(rows: list[Row], options: argparse.Namespace, limits: dict[str, Any]) -> str:
    """The rows as text, and what of the machine's limits each uses."""
    short, long = min(options.prompt), max(options.prompt)
    heads = [f"{callers} × {short}" for callers in options.callers]
    heads += [f"{callers} × {long}" for callers in options.callers] if long != short else []
    lines = [
        f"{'tokens/s, callers × prompt':28}"
        + "".join(f"{head:>10}" for head in heads)
        + f"{'first, s':>10}{'of reads':>10}{'of sums':>9}{'peak MiB':>10}"
    ]
    least, most = min(options.callers), max(options.callers)
    for row in rows:
        rates = [row.rate[short, callers] for callers in options.callers]
        rates += [row.rate[long, callers] for callers in options.callers] if long != short else []
        reads = row.rate[short, least] * limits["parameters"] / limits["read"]
        sums = 2 * limits["parameters"] * row.rate[short, most] / limits["gemm"]
        lines.append(
            f"{row.name:28}"
            + "".join(f"{rate:10.1f}" for rate in rates)
            + f"{row.first[long]:10.3f}{reads:10.0%}{sums:9.0%}{row.memory / 2**20:10.0f}"
        )
    lines += [
        "",
        f"first     seconds to the first token of a prompt of {long}, for one caller",
        f"of reads  a byte a parameter × tokens/s of {least} caller, of what the memory gives "
        f"({limits['read'] / 1e9:.1f} GB/s)",
        f"of sums   2 × parameters × tokens/s of {most} callers, of the best matrix product "
        f"({limits['gemm'] / 1e9:.0f} GFLOP/s, {limits['gemm_kind']})",
    ]
    return "\n".join(lines)


def goals(rows: list[Row], options: argparse.Namespace) -> str:
    """The ratios that are promised, and whether they hold."""
    named = {row.name: row for row in rows}
    ours, short, long = named[OURS], min(options.prompt), max(options.prompt)
    lines = []

    def told(what: str, found: float, goal: float, *, most: bool = False) -> None:
        met = found <= goal if most else found >= goal
        lines.append(f"{what}: {found:.2f} ({'≤' if most else '≥'} {goal}: {'met' if met else 'MISSED'})")

    naive, bare = named.get(NAIVE), named.get("openvino, bare")
    if naive is not None:
        one = naive.rate[short, min(options.callers)]
        for callers, goal in ((8, 10.0), (16, 13.0)):
            if callers in options.callers:
                found = ours.rate[short, callers] / one
                told(f"{callers} callers, of one-at-a-time generate", found, goal)
        told(
            f"first token at {long}, of generate's",
            ours.first[long] / naive.first[long],
            0.6,
            most=True,
        )
    if bare is not None:
        for callers in options.callers:
            found = ours.rate[short, callers] / bare.rate[short, callers]
            told(f"{callers} caller(s), of the bare pipeline", found, 0.93)
    others = [row for row in rows if row.name.startswith(("llama.cpp", "generate", "vllm"))]
    for callers in options.callers:
        if others:
            best = max(others, key=lambda row: row.rate[short, callers])
            ratio = ours.rate[short, callers] / best.rate[short, callers]
            lines.append(f"{callers} caller(s), of the best peer ({best.name}): {ratio:.2f}")
    return "\n".join(lines)


def plot(rows: list[Row], options: argparse.Namespace, path: Path) -> None:
    """Tokens per second by callers, a group of bars for each contender."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "blindbox"  # the same picture for the same numbers
    from matplotlib import pyplot

    short = min(options.prompt)
    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.45 * len(rows) * len(options.callers) / 2))
    height = 0.8 / len(options.callers)
    shades = pyplot.get_cmap("viridis")
    for number, callers in enumerate(options.callers):
        at = [place + number * height for place in range(len(rows))]
        colour = shades(0.15 + 0.7 * number / max(1, len(options.callers) - 1))
        bars = axes.barh(at, [row.rate[short, callers] for row in rows], height * 0.9, color=colour)
        bars.set_label(f"{callers} caller{'s' if callers > 1 else ''}")
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"tokens per second, prompts of {short} tokens, {options.new} new ones each")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, plot."""
    options = _arguments()
    warnings.simplefilter("ignore", blindbox.UnsafeSimulationWarning)
    options.model = options.model.resolve()  # the enclave is told of no other
    say(f"{options.model.name}, {options.weights} weights for OpenVINO; {os.cpu_count()} cores.")
    limits = _limits(options.model)
    contenders: list[Contender] = []
    with contextlib.ExitStack() as stack:
        for name in (OURS, *options.peers):
            say(f"starting {name} …")
            contender: Contender
            if name == OURS:
                sealed = Sealed(options.model, options.weights, options.kv_cache_mib)
                contender = sealed
                say(f"  answers {sealed.started:.1f} s after its process was started")
            else:
                contender = Peer(name, options.model, options.weights, options.kv_cache_mib)
            stack.callback(contender.close)
            if contender.absent:
                say(f"  {name} is absent: {contender.absent}")
            else:
                contenders.append(contender)
        rows = measure(contenders, options, int(limits["vocabulary"]))
    report = "\n".join([table(rows, options, limits), "", goals(rows, options)])
    print(f"\n{report}", flush=True)
    if options.plot:
        plot(rows, options, options.plot)


def say(text: str) -> None:
    """How far it is; the table itself goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def _limits(model: Path) -> dict[str, Any]:
    """What the machine can do at most, measured by PyTorch in a process of its own, and the model's size."""
    program = CHECKOUT / "bench" / "serving_peers.py"
    told = subprocess.run(
        [sys.executable, str(program), "limits", str(model)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Tokens per second, sealed, beside engines called bare.",
        epilog="The first run exports the model for OpenVINO and writes it for llama.cpp, into .cache.",
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="a model's folder (default: the demo's)")
    parser.add_argument("--weights", choices=("int8", "bf16", "int4"), default="int8")
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 512], help="lengths, in tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-mib", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
