"""
What is counted, for the operator: numbers and durations, never whose and never what.

Every label comes from a list that is fixed when the process has started: routes as they are written in the
code, the operator's own names of models, the codes of our own refusals. Nothing a caller sends becomes one
(threats.md S-15, S-20). `operators_port.py` shows them; `measured.py` counts requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MOST_CODES: Final = 64
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

_LIMITS: Final = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads

Gauges = Callable[[], Iterable[tuple[str, str, dict[str, float]]]]
"""Figures of the moment: name, what it means, and values by engine."""


class Figures:
    """The counters of one enclave, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._codes: set[str] = set()
        self._requests = self._counter("requests", "Requests inside the seal", "route", "status")
        self._seconds = Histogram(
            "blindbox_request_seconds",
            "From a request's head to the end of its answer",
            ["route"],
            buckets=_WHOLE,
            registry=self._registry,
        )
        self._read = self._counter("prompt_tokens", "Tokens of prompts that were started")
        self._written = self._counter("generated_tokens", "Tokens that were generated")
        self._refused = self._counter("refusals", "Requests that were refused, by code", "code")
        self._restarts = self._counter("engine_restarts", "Engines that ended unexpectedly", "engine")
        self._first = Histogram(
            "blindbox_first_token_seconds",
            "From a prompt's place in the line to its first token",
            buckets=_FIRST,
            registry=self._registry,
        )
        self._each = Histogram(
            "blindbox_token_seconds",
            "Between the tokens of one answer, its mean",
            buckets=_EACH,
            registry=self._registry,
        )

    def served(self, route: str, status: int, seconds: float, code: str | None) -> None:
        """A request was answered; `route` as the code writes it, `code` that of its refusal."""
        self._requests.labels(route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)
        if code is not None:
            if code not in self._codes and len(self._codes) >= _MOST_CODES:
                code = "other"
            self._codes.add(code)
            self._refused.labels(code).inc()

    def started(self, prompt_tokens: int) -> None:
        """A prompt was handed to its engine."""
        self._read.inc(prompt_tokens)

    def generated(self, tokens: int) -> None:
        """So many tokens came."""
        self._written.inc(tokens)

    def first_token(self, seconds: float) -> None:
        """An answer's first token came, so long after it was asked for."""
        self._first.observe(seconds)

    def token(self, seconds: float) -> None:
        """An answer ended whose tokens were so far apart."""
        self._each.observe(seconds)

    def restarted(self, engine: str) -> None:
        """An engine ended unexpectedly."""
        self._restarts.labels(engine).inc()

    def watch(self, gauges: Gauges) -> None:
        """Ask for these each time the figures are read."""
        self._registry.register(_Moment(gauges))

    def text(self) -> bytes:
        """All of it in Prometheus's text format (version 0.0.4)."""
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"blindbox_{name}", meaning, labels, registry=self._registry)


class _Moment(Collector):
    """Gauges that are asked for when they are read."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, meaning, values in self._gauges():
            family = GaugeMetricFamily(f"blindbox_{name}", meaning, labels=["engine"])
            for engine, value in values.items():
                family.add_metric([engine], value)
            yield family


def resident_bytes(pid: int | None = None) -> int:
    """The memory a process has in RAM; 0 where that cannot be told."""
    try:
        pages = Path("/proc", str(pid or "self"), "statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def free_bytes(root: Path = Path("/")) -> int | None:
    """The memory that a new process could have: the machine's, and what this container may still take."""
    free = []
    try:
        for line in (root / "proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) << 10)
        own = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        own = []
    groups = root / "sys/fs/cgroup"
    for line in own:
        _, kinds, name = line.split(":", 2)
        if kinds in ("", "memory"):
            top = groups / kinds
            place = top / name.lstrip("/")
            # A limit of any group around this one holds too. Inside a container, its own is at the top.
            for group in (place, *(each for each in place.parents if each.is_relative_to(top))):
                free += _free_in(group)
    return max(0, min(free)) if free else None


def _free_in(group: Path) -> list[int]:
    """What a group may still take, in either form kernels have; nothing where it has no limit."""
    for most, taken in _LIMITS:
        try:
            limit = (group / most).read_text("ascii").strip()
            now = int((group / taken).read_text("ascii"))
            told = (group / "memory.stat").read_text("ascii").splitlines()
        except (OSError, ValueError):
            continue
        # Files that were read count as taken, but make room for whoever needs it.
        spare = sum(int(line.split()[1]) for line in told if line.startswith("inactive_file "))
        return [] if limit == "max" else [int(limit) - now + min(now, spare)]
    return []
