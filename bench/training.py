"""
Fine-tuning on this machine's processor: ours beside trl, on the same rows, with the same losses.

    python bench/training.py [--model FOLDER] [--rounds 1] [--quick] [--keep FILE] [--plot FILE]

Every training runs in a process of its own, one after another, in rounds; medians are told. `--keep` writes
each result down, and what is there already is not done again. Two data sets: full batches of 4 rows of 512
tokens, all of them learned, and ragged ones of questions and answers, of which the answers are learned.
Tokens are real ones: padding does not count. What the processor could do at most is measured in the same run.
The trainings themselves are in `training_peers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from training_peers import BATCH, COMPILED, CONTENDERS, FLOAT32, MOST, NEWCOMER, OURS, TUNED, WIDTH  # noqa: E402

from enclave_app.settings import MALLOC_TUNABLES  # noqa: E402

DEMO = CHECKOUT / ".cache" / "models" / "smollm2-135m-instruct"
DATA: Final = ("full", "ragged")
TOLERANCE: Final = 0.01  # of a loss, to call two trainings equal


@dataclass
class Row:
    """What was measured of one contender: tokens a second of each data set, and its peak of memory."""

    name: str
    rate: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)  # of the ragged rows


def main() -> None:
    """Measure, print, plot."""
    options = _arguments()
    say(f"{options.model.name}; {os.cpu_count()} cores.")
    kept = _kept(options.keep)
    limits = [_child("limits", str(options.model))]
    plan = [
        (turn, name, data) for turn in range(options.rounds) for data in options.data for name in options.only
    ]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn, name, data in plan:
        if name == COMPILED and shutil.which("g++") is None:
            say(f"  {name}: absent, there is no C++ compiler")
            continue
        steps = options.steps[data] if name in (TUNED, OURS) else options.few_steps[data]
        steps = min(steps, 3) if name == NEWCOMER else steps  # minutes each, where bf16 is emulated
        wanted = {"contender": name, "data": data, "steps": steps, "folder": str(options.model)}
        key = json.dumps([turn, wanted])
        if key not in kept:
            try:
                kept[key] = _child("train", json.dumps(wanted), tuned=name not in (NEWCOMER, FLOAT32))
            except subprocess.CalledProcessError as error:
                said = error.stderr.strip() or f"ended with {error.returncode}"
                say(f"  {name}: failed: {said.splitlines()[-1]}")
                continue
            if options.keep:
                with options.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({key: kept[key]}) + "\n")
        found.setdefault((name, data), []).append(kept[key])
        rate, peak = _rate(kept[key]), kept[key]["peak"] / 2**20
        say(f"  round {turn + 1}: {name:20} {data:7} {rate:7.1f} tokens/s, {peak:6.0f} MiB")
    limits.append(_child("limits", str(options.model)))
    limit = max(limits, key=lambda each: float(each["gemm"]))
    rows = _rows(found, options.only)
    report = "\n".join([table(rows, limit), "", goals(rows, limit)])
    print(f"\n{report}", flush=True)
    if options.plot:
        plot(rows, limit, options.plot)


def _rate(run: dict[str, Any]) -> float:
    """Tokens a second: the median of all steps but the first, which sets things up."""
    steps = zip(run["tokens"][1:], run["seconds"][1:], strict=True)
    return float(statistics.median(tokens / seconds for tokens, seconds in steps))


def _rows(found: dict[tuple[str, str], list[dict[str, Any]]], names: list[str]) -> list[Row]:
    rows = []
    for name in names:
        row = Row(name)
        for data in DATA:
            runs = found.get((name, data), [])
            if runs:
                row.rate[data] = statistics.median(_rate(run) for run in runs)
                row.peak[data] = max(run["peak"] for run in runs)
        ragged = found.get((name, "ragged"), [])
        row.losses = ragged[0]["losses"] if ragged else []
        if row.rate:
            rows.append(row)
    return rows


def table(rows: list[Row], limit: dict[str, Any]) -> str:
    """The rows as text, and what of the processor's limit each uses."""
    lines = [
        f"{'':20}{'full':>10}{'of sums':>9}{'peak MiB':>10}{'ragged':>10}{'peak MiB':>10}{'last loss':>11}",
    ]
    for row in rows:
        line = f"{row.name:20}"
        if "full" in row.rate:
            line += f"{row.rate['full']:10.1f}{_of_limit(row, limit):9.0%}{row.peak['full'] / 2**20:10.0f}"
        else:
            line += f"{'–':>10}{'–':>9}{'–':>10}"
        if "ragged" in row.rate:
            line += f"{row.rate['ragged']:10.1f}{row.peak['ragged'] / 2**20:10.0f}"
            line += f"{row.losses[-1]:11.4f} of step {len(row.losses)}"
        lines.append(line)
    return "\n".join(
        [
            *lines,
            "",
            f"full      tokens/s of batches of {BATCH} × {WIDTH} tokens, all of them learned",
            f"of sums   4 × parameters × tokens/s, of the best matrix product "
            f"({limit['gemm'] / 1e9:.0f} GFLOP/s, {limit['kind']})",
            f"ragged    tokens/s of batches of {BATCH} questions with answers, 24 to 360 tokens",
        ]
    )


def _of_limit(row: Row, limit: dict[str, Any]) -> float:
    return float(4 * limit["parameters"] * row.rate["full"] / limit["gemm"])


def goals(rows: list[Row], limit: dict[str, Any]) -> str:
    """The ratios that are promised, and whether they hold."""
    named = {row.name: row for row in rows}
    lines = []

    def told(what: str, found: float, goal: float, *, most: bool = False) -> None:
        met = found <= goal if most else found >= goal
        lines.append(f"{what}: {found:.2f} ({'≤' if most else '≥'} {goal}: {'met' if met else 'MISSED'})")

    ours, newcomer, tuned = (named.get(name) for name in (OURS, NEWCOMER, TUNED))
    if ours is None or "full" not in ours.rate:
        return ""
    if newcomer is not None and "full" in newcomer.rate:
        told("full batches, of trl as it comes", ours.rate["full"] / newcomer.rate["full"], 4.5)
        told("its memory, of trl's as it comes", ours.peak["full"] / newcomer.peak["full"], 0.6, most=True)
    if newcomer is not None and "ragged" in newcomer.rate:
        told("ragged batches, of trl as it comes", ours.rate["ragged"] / newcomer.rate["ragged"], 5.0)
    if tuned is not None and "full" in tuned.rate:
        told("full batches, of trl tuned", ours.rate["full"] / tuned.rate["full"], 2.2)
        told("its memory, of trl's tuned", ours.peak["full"] / tuned.peak["full"], 0.6, most=True)
    told(f"full batches, of the limit in {limit['kind']}", _of_limit(ours, limit), 0.49)
    if tuned is not None and tuned.losses and ours.losses:
        pairs = list(zip(ours.losses, tuned.losses, strict=False))
        worst = max(abs(one - other) / other for one, other in pairs)
        met = "met" if worst <= TOLERANCE else "MISSED"
        lines.append(f"losses of {len(pairs)} steps, apart by {worst:.3%} at most (≤ {TOLERANCE:.0%}: {met})")
    return "\n".join(lines)


def plot(rows: list[Row], limit: dict[str, Any], path: Path) -> None:
    """Tokens per second of both data sets, a group of bars for each contender."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "blindbox"  # the same picture for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.75 * len(rows)))
    shades = pyplot.get_cmap("viridis")
    for number, data in enumerate(DATA):
        at = [place + number * 0.4 for place in range(len(rows))]
        bars = axes.barh(
            at, [row.rate.get(data, 0.0) for row in rows], 0.36, color=shades(0.15 + 0.7 * number)
        )
        bars.set_label({"full": f"{BATCH} × {WIDTH}, all learned", "ragged": "questions and answers"}[data])
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    most = limit["gemm"] / (4 * limit["parameters"])
    axes.axvline(most, color="grey", linestyle=":", linewidth=1)
    axes.text(
        most,
        (len(rows) - 0.6) / 2,
        "matrix products alone ",
        fontsize=8,
        color="grey",
        ha="right",
        va="center",
        rotation=90,
    )
    axes.set_yticks([place + 0.2 for place in range(len(rows))], [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, LoRA r=16 on all linear layers")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def say(text: str) -> None:
    """How far it is; the table itself goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def _child(*arguments: str, tuned: bool = False) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"GLIBC_TUNABLES": MALLOC_TUNABLES} if tuned else {}
    program = str(CHECKOUT / "bench" / "training_peers.py")
    told = subprocess.run(
        [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def _kept(path: Path | None) -> dict[str, dict[str, Any]]:
    kept: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        for line in path.read_text("utf-8").splitlines():
            kept.update(json.loads(line))
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Tokens per second of fine-tuning, beside trl.",
        epilog=f"Prepares the demo's model where it is not there. {MOST} steps of losses are compared.",
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="a model's folder (default: the demo's)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each: for a look, not for figures"
    )
    parser.add_argument("--keep", type=Path, help="a file of results; those in it are not measured again")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    options = parser.parse_args()
    if options.model == DEMO and not DEMO.exists():
        prepare = [sys.executable, "-m", "enclave_app.models", "prepare-demo", str(DEMO)]
        subprocess.run(prepare, cwd=CHECKOUT, check=True)
    if not (options.model / "config.json").exists():
        parser.error(f"there is no model in {options.model}")
    options.steps = {"full": 2, "ragged": 4} if options.quick else {"full": 4, "ragged": MOST}
    options.few_steps = {"full": 2, "ragged": 3} if options.quick else {"full": 2, "ragged": 8}
    return options


if __name__ == "__main__":
    main()
