"""
Where a job stands, shown where somebody looks: a notebook, a terminal, or a log that takes plain lines.

`shown` chooses. A `Pulse` shows it again while nothing is heard, so that what works in silence, as a model
that is being loaded, is seen to be alive. What is told of the job is handed in; nothing here knows the
enclave.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from typing import IO, Any, Final, Protocol, TypeGuard

from .curve import Curve, finite, sparkline
from .printable import plain

_WIDTH: Final = 28  # of a bar
_SHARES: Final = 10  # plain lines: one for each so many percent
_LINES_APART: Final = 30.0  # seconds: and one when nothing was said for so long
_LINES_APART_BEFORE: Final = 10.0  # … as long as no step is made
_LOOKS_APART: Final = 10.0  # seconds of silence after which somebody has to ask
_LOOKS_APART_BEFORE: Final = 2.0
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PHASES: Final = {  # what is done in a phase, for people
    "queued": "waiting for its turn",
    "reading": "reading the data",
    "loading": "loading the model",
    "checking": "comparing what is served with what was trained",
    "publishing": "publishing the model",
}


@dataclass(slots=True)
class Standing:
    """Where a job stands. A figure that is not known is None."""

    job: str
    phase: str = "queued"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # step, loss, validation_loss: for a curve
    since: float = field(default_factory=time.monotonic)  # when this phase was first seen

    def learn(self, told: dict[str, Any]) -> None:
        """Take over the figures that an event or a job's `progress` has."""
        if _counts(step := told.get("step")) and step < self.step:
            return  # an older event, as after a dropped stream
        for name, others in _FIGURES.items():
            right = _counts if name in {"step", "total_steps"} else finite
            for other in others:
                if right(value := told.get(other)):
                    setattr(self, name, value)
        if isinstance(phase := told.get("phase"), str) and plain(phase) != self.phase:
            self.phase, self.since = plain(phase), time.monotonic()
        if self.step and (told.keys() & {"loss", "train_loss", "validation_loss", "valid_loss"}):
            row: dict[str, Any] = {"step": self.step}
            for name in ("loss", "validation_loss"):
                value = next((told[one] for one in _FIGURES[name] if finite(told.get(one))), None)
                if value is not None:
                    row[name] = value
            if self.rows and self.rows[-1]["step"] == self.step:  # told again
                self.rows[-1] |= row
            else:
                self.rows.append(row)

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    @property
    def stepping(self) -> bool:
        """Are steps made, so that figures tell how far it is?"""
        return self.phase == "training" and bool(self.total_steps)

    def told(self) -> str:
        """In words: the figures, or what else is done, and for how long by now."""
        if self.stepping:
            return self.figures()
        done, waited = _PHASES.get(self.phase, self.phase), time.monotonic() - self.since
        return f"{done}  {_elapsed(waited)}" if waited >= 1 else done

    def figures(self) -> str:
        """The numbers, in words; only those that are known."""
        told = []
        if self.total_steps:
            told.append(f"{self.step}/{self.total_steps}")
        if self.loss is not None:
            told.append(f"loss {self.loss:.3f}")
        if self.validation_loss is not None:
            told.append(f"held-back {self.validation_loss:.3f}")
        if self.tokens_per_second:
            told.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.eta_seconds is not None and self.step < self.total_steps:
            told.append(f"{_duration(self.eta_seconds)} left")
        return "  ".join(told)


def _counts(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


_FIGURES: Final = {
    "step": ("step",),
    "total_steps": ("total_steps",),
    "loss": ("loss", "train_loss"),
    "validation_loss": ("validation_loss", "valid_loss"),
    "tokens_per_second": ("tokens_per_second",),
    "eta_seconds": ("eta_seconds",),
}


class Shown(Protocol):
    """Shows where a job stands, again and again; then how it ended, or that nobody looks any more."""

    @property
    def beat(self) -> float | None:
        """Seconds between two looks at it while nothing is heard; None: it need not be shown again."""

    def show(self, at: Standing) -> None: ...

    def say(self, message: str) -> None: ...

    def leave(self) -> None: ...

    def end(self, at: Standing, message: str) -> None: ...


class Nothing:
    """Shows nothing."""

    beat = None

    def show(self, at: Standing) -> None: ...

    def say(self, message: str) -> None: ...

    def leave(self) -> None: ...

    def end(self, at: Standing, message: str) -> None: ...


class Lines:
    """For logs: a line for each tenth of the way, each message, and now and then where nothing is said."""

    beat = 1.0

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._told: tuple[str, int] | None = None
        self._at = 0.0

    def show(self, at: Standing) -> None:
        place = (at.phase, int(at.share * _SHARES))
        now = time.monotonic()
        apart = _LINES_APART if at.stepping else _LINES_APART_BEFORE
        if place == self._told and now - self._at < apart:
            return
        self._told, self._at = place, now
        self.say(f"{at.phase}  {at.figures()}".rstrip() if at.stepping else at.told())

    def say(self, message: str) -> None:
        print(f"  {message}", file=self._file, flush=True)

    def leave(self) -> None: ...

    def end(self, at: Standing, message: str) -> None:
        if at.total_steps:
            self.say(f"at its end  {at.figures()}")
        self.say(message)


class Terminal:
    """One line that is written over, and messages above it."""

    beat = 0.2

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def show(self, at: Standing) -> None:
        full = round(_WIDTH * at.share)
        bar = "█" * full + "░" * (_WIDTH - full)
        alive = _SPINNER[int(time.monotonic() / self.beat) % len(_SPINNER)]
        self._write(f"{alive} {bar} {at.told()}" if at.stepping else f"{alive} {at.told()}")

    def say(self, message: str) -> None:
        for line in textwrap.wrap(message, max(20, shutil.get_terminal_size().columns - 3)):
            self._write(f"  {line}")
            self._file.write("\n")

    def leave(self) -> None:
        self._file.write("\n")
        self._file.flush()

    def end(self, at: Standing, message: str) -> None:
        if at.rows:
            self.say(f"loss {Curve(at.rows).text(_WIDTH)}")
        self.say(message)
        self._file.flush()

    def _write(self, line: str) -> None:
        columns = shutil.get_terminal_size().columns
        self._file.write(f"\r{line[: columns - 1]}\033[K")
        self._file.flush()


class Notebook:
    """One piece of HTML that is changed in place: a bar, the figures, the curve so far."""

    beat = 1.0

    def __init__(self, display: Any, html: Any) -> None:
        self._display, self._html = display, html
        self._handle: Any = None
        self._messages: list[str] = []
        self._at = 0.0

    def show(self, at: Standing) -> None:
        now = time.monotonic()
        if self._handle is None or now - self._at >= 0.5:
            self._at = now
            self._put(self._page(at, at.told()))

    def say(self, message: str) -> None:
        self._messages = [*self._messages[-4:], message]

    def leave(self) -> None: ...

    def end(self, at: Standing, message: str) -> None:
        self._put(self._page(at, message) + (Curve(at.rows).svg() if at.rows else ""))

    def _page(self, at: Standing, figures: str) -> str:
        losses = [row["loss"] for row in at.rows if row.get("loss") is not None]
        notes = "".join(f"<br><small>{escape(note)}</small>" for note in self._messages)
        return (
            f'<div><progress value="{at.share:.4f}" max="1" style="width:24em"></progress> '
            f"{escape(figures)} <code>{sparkline(losses, 24)}</code>{notes}</div>"
        )

    def _put(self, page: str) -> None:
        if self._handle is None:
            self._handle = self._display(self._html(page), display_id=True)
        else:
            self._handle.update(self._html(page))


class Pulse:
    """
    Shows where a job stands again and again while its block runs, and asks if nothing is heard for a while.

    It beats in a thread of its own, beside whoever waits for the job's next word in the block; nobody waits
    for that thread. What is heard is taken in within `heard`, so that the two never write at once.
    """

    def __init__(self, display: Shown, at: Standing, ask: Callable[[], dict[str, Any]]) -> None:
        self._display, self._at, self._ask = display, at, ask
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._heard = time.monotonic()

    @contextmanager
    def heard(self) -> Iterator[None]:
        with self._lock:
            yield
        self._heard = time.monotonic()

    def __enter__(self) -> Pulse:
        if self._display.beat is not None:
            threading.Thread(target=self._run, args=(self._display.beat,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:  # a beat that has begun ends
            pass

    def _run(self, beat: float) -> None:
        self._show({})
        while not self._over.wait(beat):
            apart = _LOOKS_APART if self._at.stepping else _LOOKS_APART_BEFORE
            told = {}
            if time.monotonic() - self._heard > apart:
                # Whatever is wrong is found by whoever waits for events, and told there.
                with suppress(Exception):
                    told = self._ask()
                self._heard = time.monotonic()
            self._show(told)

    def _show(self, told: dict[str, Any]) -> None:
        with self._lock:
            if not self._over.is_set():
                self._at.learn(told)
                self._display.show(self._at)


def shown(progress: bool, file: IO[str] | None = None) -> Shown:
    """What suits the place this runs in; with False, nothing."""
    if not progress:
        return Nothing()
    told = file if file is not None else sys.stderr
    if file is None and (notebook := _notebook()) is not None:
        return notebook
    if told.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(told)
    return Lines(told)


def _notebook() -> Notebook | None:
    """IPython's display, where this runs in a notebook. It is looked at, never imported for the purpose."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return None
    shell = ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):  # none, or the one of a terminal
        return None
    from importlib import import_module

    tools = import_module("IPython.display")
    return Notebook(tools.display, tools.HTML)


def _elapsed(seconds: float) -> str:
    """Unlike a guess at what is left, it is seen to go on."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
