"""
Answers while a model learns: what each costs the other, in the enclave's real processes.

    python bench/training_beside.py [--model FOLDER] [--cores 0 1] [--answers 8] [--steps 8]

One caller asks the base model through the sealed client, one prompt after another and without a pause, which
is the most that one caller can do to a training. A fine-tuning job of the same model learns meanwhile, in
rows of one length, all of them learned. Each is measured alone and then both at once, in one run of the
enclave; medians are told. `--cores` are values of BLINDBOX_TRAINING_THREADS (0 = all), an enclave for each.
The enclave and its caller are those of `serving.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from serving import DEMO, Sealed

import blindbox

BATCH: Final = 2
WIDTH: Final = 256  # tokens of a row
ROWS: Final = 400
LOOKS_APART: Final = 0.5  # seconds
SETTLED: Final = 2  # steps that are not counted: the first sets things up, the second fills the caches


@dataclass
class Row:
    """What was measured with so many cores for the training."""

    cores: int
    alone: list[Answer] = field(default_factory=list)
    beside: list[Answer] = field(default_factory=list)
    rate_alone: float = 0.0  # tokens a second that are learned
    rate_beside: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as its caller had it."""

    first: float  # seconds to the first token
    rate: float  # tokens a second, behind the first


class Caller:
    """Asks one prompt after another; each is new, so that no prefix cache helps."""

    def __init__(self, enclave: Sealed, prompt: int, new: int, vocabulary: int) -> None:
        self._enclave, self._length, self._new = enclave, prompt, new
        self._chance = random.Random(0)
        self._words = range(vocabulary // 50, vocabulary - vocabulary // 50)

    def ask(self) -> Answer:
        """One prompt, one answer of exactly so many tokens."""
        found = self._enclave.run([self._chance.choices(self._words, k=self._length)], self._new)
        if found.tokens != self._new:
            raise SystemExit(f"the answer has {found.tokens} tokens, not {self._new}")
        return Answer(found.first, (found.tokens - 1) / (found.seconds - found.first))

    @contextlib.contextmanager
    def asking(self) -> Iterator[list[Answer]]:
        """Ask on and on while the block runs; the list grows."""
        heard: list[Answer] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                heard.append(self.ask())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            over.set()
            thread.join()


class Learning:
    """A fine-tuning job that runs until the block ends, and how fast it learns."""

    def __init__(self, origin: str) -> None:
        self._job = blindbox.finetune(
            origin,
            list(itertools.islice(_texts(), ROWS)),
            policy=blindbox.UnsafeSimulatedPolicy(),
            batch_size=BATCH,
            max_length=WIDTH,
            epochs=100,
            check=False,
        )

    def __enter__(self) -> Learning:
        return self

    def __exit__(self, *_: object) -> None:
        self._job.cancel()
        while not self._job.refresh().finished:
            time.sleep(LOOKS_APART)
        self._job.close()

    def rate(self, steps: int, skipped: int, enough: Callable[[], bool] = lambda: True) -> float:
        """Tokens a second over at least so many steps, behind those that are skipped, until it is enough."""
        began_at, began = self._after(self._step() + skipped)
        ended_at, ended = self._after(began_at + steps)
        while not enough():
            ended_at, ended = self._after(ended_at + 1)
        return (ended_at - began_at) * BATCH * WIDTH / (ended - began)

    def _step(self) -> int:
        if self._job.refresh().finished:
            raise SystemExit(f"the training ended: {self._job.error or self._job.status}")
        return int(self._job.progress.get("step") or 0)

    def _after(self, step: int) -> tuple[int, float]:
        """Which step has ended once this one has, and when that was seen."""
        while (now := self._step()) < step:
            time.sleep(LOOKS_APART)
        return now, time.perf_counter()


def main() -> None:
    """Measure and print."""
    options = _arguments()
    warnings.simplefilter("ignore", blindbox.UnsafeSimulationWarning)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-beside-") as home:
        os.environ["BLINDBOX_HOME"] = home  # the tenant of this run is nobody afterwards
        for cores in options.cores:
            rows.append(measure(cores, options))
    print(f"\n{table(rows, options)}", flush=True)


def measure(cores: int, options: argparse.Namespace) -> Row:
    """One enclave: asked, then learning, then both."""
    row = Row(cores)
    say(f"{options.model.name}, {_cores(cores)} for the training, of {os.cpu_count()}; load {_load()}")
    enclave = Sealed(options.model, options.weights, options.kv_cache_mib, training_threads=str(cores))
    with contextlib.closing(enclave):
        caller = Caller(enclave, options.prompt, options.new, options.vocabulary)
        caller.ask()  # for warming up
        row.alone = [caller.ask() for _ in range(options.answers)]
        say(f"  asked alone:   {_told(row.alone)}; load {_load()}")
        with Learning(enclave.origin) as learning:
            row.rate_alone = learning.rate(options.steps, SETTLED)
            say(f"  learns alone:  {row.rate_alone:.1f} tokens/s; load {_load()}")
            with caller.asking() as heard:
                # The first answer and the first step began before the other was there.
                row.rate_beside = learning.rate(options.steps, 1, lambda: len(heard) > options.answers)
                row.beside = heard[1:]
            say(f"  both at once:  {_told(row.beside)}; {row.rate_beside:.1f} tokens/s; load {_load()}")
    return row


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """What each costs the other."""
    lines = [f"{'':24}{'first, s':>10}{'worst':>8}{'tokens/s':>10}{'learned/s':>11}"]
    for row in rows:
        lines += [
            f"{_cores(row.cores)} for the training",
            f"{'  asked alone':24}{_figures(row.alone)}{'–':>11}",
            f"{'  learning alone':24}{'–':>10}{'–':>8}{'–':>10}{row.rate_alone:11.1f}",
            f"{'  both at once':24}{_figures(row.beside)}{row.rate_beside:11.1f}",
            f"{'  of it alone':24}{_first(row.beside) / _first(row.alone):9.2f}×{'':8}"
            f"{_rate(row.beside) / _rate(row.alone):10.0%}{row.rate_beside / row.rate_alone:11.0%}",
        ]
    return "\n".join(
        [
            *lines,
            "",
            f"first      seconds to the first token of one caller's answers, prompts of {options.prompt}",
            f"tokens/s   of its answers of {options.new} tokens, behind the first",
            f"learned/s  tokens/s of the training, batches of {BATCH} × {WIDTH} tokens, all of them learned",
        ]
    )


def say(text: str) -> None:
    """How far it is; the table itself goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def _first(answers: list[Answer]) -> float:
    return statistics.median(each.first for each in answers)


def _rate(answers: list[Answer]) -> float:
    return statistics.median(each.rate for each in answers)


def _figures(answers: list[Answer]) -> str:
    return f"{_first(answers):10.3f}{max(each.first for each in answers):8.3f}{_rate(answers):10.1f}"


def _told(answers: list[Answer]) -> str:
    return f"first token {_first(answers):.3f} s, {_rate(answers):.1f} tokens/s ({len(answers)} answers)"


def _cores(cores: int) -> str:
    return "all cores" if not cores else f"{cores} core{'s' if cores > 1 else ''}"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _texts() -> Iterator[dict[str, str]]:
    """Rows of more words than a row may have tokens, by a skewed draw: there is something to learn."""
    chance = random.Random(0)
    lexicon = ["".join(chance.choices("aeioubdklmnprst", k=chance.randint(2, 7))) for _ in range(400)]
    while True:
        yield {"text": " ".join(lexicon[int(400 * chance.random() ** 3)] for _ in range(WIDTH + 16))}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What answering and fine-tuning cost each other.")
    parser.add_argument("--model", type=Path, default=DEMO, help="a model's folder (default: the demo's)")
    parser.add_argument("--weights", choices=("int8", "bf16", "int4"), default="int8")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1], help="for the training; 0 = all")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--answers", type=int, default=8, help="at least so many of each kind are measured")
    parser.add_argument("--steps", type=int, default=8, help="at least so many are measured, each time")
    parser.add_argument("--kv-cache-mib", type=int, default=1024)
    options = parser.parse_args()
    options.model = options.model.resolve()
    if not (options.model / "config.json").exists():
        parser.error(f"there is no model in {options.model}")
    options.vocabulary = json.loads((options.model / "config.json").read_text("utf-8"))["vocab_size"]
    return options


if __name__ == "__main__":
    main()
