"""
The mutation score: `python -m tests.mutation MODULE… [--out FILE] [--doc FILE] -- PYTEST ARGUMENTS`.

All tests run once, and which lines each of them runs is written down. Then, for each mutant, a forked child
puts the changed code in the place of the function's own and runs only the tests that come by, until one
fails: first those that have noticed something nearby, then the quick ones. Keys and fixtures of
the fake vendors stay warm; what the verifier itself remembers is forgotten first.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import io
import itertools
import json
import os
import signal
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from .mutants import Mutant, mutants
from .page import page

SECONDS = 20  # for one test; an endless loop counts as noticed
MOST_TIME = 20.0  # seconds that the tests for one mutant took the first time, all together
PACKAGE = "blindbox_attestation"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant."""

    module: str
    function: str
    line: int
    text: str  # of the line
    lie: str
    fate: str  # "killed", "survived", "untested", "stillborn"


@dataclass(frozen=True, slots=True)
class Work:
    """One mutant, and who might notice it."""

    module: str
    source: str
    mutant: Mutant
    function: types.FunctionType | None
    tests: list[int]


class Plugin:
    """Runs the tests once, then once more for each mutant, in children."""

    def __init__(self, modules: list[str], jobs: int) -> None:
        self.modules = modules
        self.jobs = jobs
        self.came_by: dict[tuple[str, int], set[int]] = defaultdict(set)  # (file, line) → tests
        self.order: dict[int, tuple[int, float]] = {}  # of a test: how many of its kind before it, seconds
        self.noticed: dict[str, list[int]] = defaultdict(list)  # function or module → tests, the latest last
        self.outcomes: list[Outcome] = []
        self.clean = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for name in self.modules:
            importlib.import_module(name)
        kinds: Counter[str] = Counter()
        for number, item in enumerate(session.items):
            kind = item.nodeid.partition("[")[0]
            self.order[number] = (kinds[kind], self._first_run(item, number))
            kinds[kind] += 1
        work = list(self._work())
        seconds = sum(took for _, took in self.order.values())
        print(f"{len(session.items)} tests in {seconds:.0f} s, {len(work)} mutants", file=sys.stderr)
        gc.collect()
        made()
        gc.freeze()
        self._all(work, session.items)
        return True

    def _first_run(self, item: pytest.Item, number: int) -> float:
        root = str(Path(importlib.import_module(PACKAGE).__path__[0])) + os.sep
        ran: set[tuple[str, int]] = set()

        def line(frame: types.FrameType, event: str, _argument: Any) -> Any:
            ran.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame: types.FrameType, event: str, _argument: Any) -> Any:
            return line if frame.f_code.co_filename.startswith(root) else None

        forget()
        began = time.perf_counter()
        sys.settrace(call)
        try:
            reports = runtestprotocol(item, log=False, nextitem=None)
        finally:
            sys.settrace(None)
        failed = [report for report in reports if report.failed]
        for report in failed:
            self.clean = False
            print(f"fails without any lie: {item.nodeid}: {report.longreprtext[-800:]}", file=sys.stderr)
        for place in ran if not failed else ():
            self.came_by[place].add(number)
        return time.perf_counter() - began

    def _work(self) -> Iterator[Work]:
        for name in self.modules:
            module = importlib.import_module(name)
            file = str(module.__file__)
            source = Path(file).read_text(encoding="utf-8")
            for mutant in mutants(source):
                tests: set[int] = set().union(*(self.came_by.get((file, at), ()) for at in mutant.lines))
                yield Work(name, source, mutant, lookup(module, mutant.function), list(tests))

    def _all(self, work: list[Work], items: list[pytest.Item]) -> None:
        running: dict[int, tuple[Work, int]] = {}
        for one in work:
            if one.function is None or not one.tests:
                self._note(one, "untested")
                continue
            while len(running) >= self.jobs:
                self._reap(running)
            sys.stderr.flush()
            tests = self._best_first(one)
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                os._exit(in_child(one, {number: items[number] for number in tests}, writing))
            os.close(writing)
            running[child] = (one, reading)
        while running:
            self._reap(running)

    def _best_first(self, work: Work) -> list[int]:
        """Who noticed other lies about this function, then about this module; then one of each kind."""
        near = {number: at for at, number in enumerate(self.noticed[work.module])}
        nearer = {
            number: at for at, number in enumerate(self.noticed[f"{work.module}.{work.mutant.function}"])
        }

        def rank(number: int) -> tuple[int, int, float]:
            before, seconds = self.order[number]
            return -nearer.get(number, -1), -near.get(number, -1), seconds * (1 + before / 10)

        ranked = sorted(work.tests, key=rank)
        sums = itertools.accumulate(self.order[number][1] for number in ranked)
        return [number for number, so_far in zip(ranked, sums, strict=True) if so_far < MOST_TIME]

    def _reap(self, running: dict[int, tuple[Work, int]]) -> None:
        child, status = os.wait()
        work, reading = running.pop(child)
        with os.fdopen(reading) as told:
            test = told.read()
        for where in (work.module, f"{work.module}.{work.mutant.function}") if test else ():
            self.noticed[where].append(int(test))
        code = os.waitstatus_to_exitcode(status)
        self._note(work, {0: "survived", 3: "stillborn"}.get(code, "killed"))

    def _note(self, work: Work, fate: str) -> None:
        mutant = work.mutant
        text = work.source.splitlines()[mutant.line - 1].strip()
        self.outcomes.append(Outcome(work.module, mutant.function, mutant.line, text, mutant.lie, fate))
        if len(self.outcomes) % 200 == 0:
            print(
                f"  {len(self.outcomes)}: {dict(Counter(one.fate for one in self.outcomes))}", file=sys.stderr
            )


def in_child(work: Work, items: dict[int, pytest.Item], writing: int) -> int:
    """0: no test noticed. Else the one that did is told."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    assert work.function is not None
    try:
        code = compile(work.mutant.told(work.source), work.function.__code__.co_filename, "exec")
        exchange(work.function, find_code(code, work.mutant.function))
    except (SyntaxError, ValueError, LookupError):
        return 3
    forget()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for number, item in items.items():
            signal.alarm(SECONDS)
            try:
                failed = any(one.failed for one in runtestprotocol(item, log=False, nextitem=None))
            except BaseException:
                failed = True
            if failed:
                os.write(writing, str(number).encode())
                return 1
    return 0


def exchange(function: types.FunctionType, changed: types.CodeType) -> None:
    """Give the function its new code, and the functions it has made and handed out theirs."""
    twins = dict(_twins(function.__code__, changed))
    for one in made():
        if (new := twins.get(one.__code__)) and new.co_freevars == one.__code__.co_freevars:
            one.__code__ = new


@functools.cache
def made() -> tuple[types.FunctionType, ...]:
    """Every function there is; asked before the objects are frozen, for then they are listed no more."""
    return tuple(
        thing
        for thing in gc.get_objects()
        if isinstance(thing, types.FunctionType) and str(thing.__module__).startswith(PACKAGE)
    )


def _twins(old: types.CodeType, new: types.CodeType) -> Iterator[tuple[types.CodeType, types.CodeType]]:
    yield old, new
    ours, theirs = ([one for one in code.co_consts if isinstance(one, types.CodeType)] for code in (old, new))
    if [one.co_name for one in ours] == [one.co_name for one in theirs]:
        for pair in zip(ours, theirs, strict=True):
            yield from _twins(*pair)


def lookup(module: types.ModuleType, qualified: str) -> types.FunctionType | None:
    """The function object behind a name, whatever it is wrapped in."""
    found: Any = module
    for part in qualified.split("."):
        found = vars(found).get(part) if isinstance(found, type | types.ModuleType) else None
        if found is None:
            return None
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found if isinstance(found, types.FunctionType) else None


def find_code(code: types.CodeType, qualified: str) -> types.CodeType:
    """The code of a function within the code of its module."""
    for part in qualified.split("."):
        code = next(one for one in code.co_consts if isinstance(one, types.CodeType) and one.co_name == part)
    return code


def forget() -> None:
    """Empty what the verifier remembers, so that changed code is entered again."""
    for thing in caches():
        thing.cache_clear()


@functools.cache
def caches() -> tuple[Any, ...]:
    return tuple(
        thing
        for thing in gc.get_objects()
        if isinstance(thing, functools._lru_cache_wrapper)
        and str(getattr(thing, "__module__", "")).startswith(PACKAGE)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("modules", nargs="+", help=f"within {PACKAGE}; a package stands for all its modules")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="every mutant's fate, as JSON")
    parser.add_argument("--doc", type=Path, help="the page of docs/ to write")
    ours, theirs = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    options = parser.parse_args(ours)
    plugin = Plugin(list(modules(options.modules)), options.jobs)
    pytest.main(["-q", "-p", "no:cacheprovider", *theirs], plugins=[plugin])
    if not plugin.outcomes:
        return 1
    for one in plugin.outcomes:
        if one.fate in ("survived", "untested"):
            print(f"{one.fate}: {one.module}.{one.function}:{one.line}: {one.lie}: {one.text}")
    counts = Counter(one.fate for one in plugin.outcomes)
    judged = counts.total() - counts["stillborn"]
    print(f"{100 * counts['killed'] / judged:.1f} % of {judged} mutants killed: {dict(counts)}")
    told = [asdict(one) for one in plugin.outcomes]
    if options.out:
        options.out.write_text(json.dumps(told, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.doc:
        options.doc.write_text(page(told), encoding="utf-8")
    return 0 if plugin.clean else 1


def modules(names: list[str]) -> Iterator[str]:
    """Full names: `snp` is `blindbox_attestation.snp` and every module in it."""
    for name in names:
        full = name if name.startswith(PACKAGE) else f"{PACKAGE}.{name}"
        module = importlib.import_module(full)
        yield full
        for folder in getattr(module, "__path__", ()):
            for file in sorted(Path(folder).glob("*.py")):
                if file.stem != "__init__":
                    yield f"{full}.{file.stem}"


if __name__ == "__main__":
    sys.exit(main())
