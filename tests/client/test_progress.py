"""Where a job stands, as a terminal, a log and a notebook show it."""

from __future__ import annotations

import io
import math
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import blindbox
from blindbox import progress
from blindbox.progress import Lines, Notebook, Nothing, Standing, Terminal, shown
from enclave_app.training import Progress, Snapshot, Stop, Task, Trained
from enclave_app.training.counting import CountingTrainer
from tests.kit.app import whole_app
from tests.kit.simulated import unsafe


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(total: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "phase": "training",
            "step": step,
            "total_steps": total,
            "train_loss": 2 / step,
            "tokens_per_second": 1234.5,
            "eta_seconds": float(total - step),
        }
        for step in range(1, total + 1)
    ]


def walk(display: Any) -> Standing:
    at = Standing("ftjob-1")
    for told in steps():
        at.learn(told)
        display.show(at)
    display.say("A checkpoint was written.")
    display.end(at, "succeeded: ft:base::1")
    return at


def test_a_log_gets_a_line_for_each_tenth_and_each_message() -> None:
    file = io.StringIO()
    walk(Lines(file))
    lines = file.getvalue().splitlines()
    assert len(lines) == 14
    assert lines[0] == "  training  1/40  loss 2.000  1,234 tokens/s  39 s left"
    assert lines[-3:] == [
        "  A checkpoint was written.",
        "  at its end  40/40  loss 0.050  1,234 tokens/s",
        "  succeeded: ft:base::1",
    ]
    assert "\r" not in file.getvalue()


def test_a_terminal_gets_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    file = Screen()
    walk(Terminal(file))
    told = file.getvalue()
    assert told.count("\n") == 3  # the message, the curve, and the end
    assert "█" * 14 + "░" * 14 in told
    assert "loss 2.000 █" in told
    assert all(len(line) < 110 for line in told.replace("\033[K", "").split("\r"))


def test_a_narrow_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    file = Screen()
    walk(Terminal(file))
    assert all(
        len(line) <= 30 for line in file.getvalue().replace("\033[K", "").replace("\n", "\r").split("\r")
    )


def test_a_notebook_gets_a_bar_that_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            pages.append(page)

    def display(page: str, display_id: bool = False) -> Handle:
        assert display_id
        pages.append(page)
        return Handle()

    kernel = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: kernel  # type: ignore[attr-defined]
    tools = types.ModuleType("IPython.display")
    tools.display, tools.HTML = display, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", tools)
    one = shown(True)
    assert isinstance(one, Notebook)
    one.say("<b>not markup</b>")
    walk(one)
    assert 2 <= len(pages) < 40  # not one for each step
    assert "<progress" in pages[0]
    assert "&lt;b&gt;not markup" in pages[0]
    assert "succeeded: ft:base::1" in pages[-1]
    assert "<svg" in pages[-1]


def test_what_suits_the_place_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(shown(False), Nothing)
    assert isinstance(shown(True, io.StringIO()), Lines)
    assert isinstance(shown(True, Screen()), Terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(shown(True, Screen()), Lines)


def test_an_older_event_takes_nothing_back() -> None:
    at = Standing("ftjob-1")
    told = steps()
    at.learn(told[9])
    at.learn(told[3])
    assert (at.step, at.loss) == (10, 0.2)
    assert [row["step"] for row in at.rows] == [10]


@pytest.mark.parametrize(
    "junk",
    [
        *(
            {"step": "9"},
            {"step": True},
            {"step": math.nan, "total_steps": 3},
            {"step": -1},
            {"step": 1 << 60},
        ),
        *({"loss": "low"}, {"loss": math.inf}, {"train_loss": math.nan}, {"phase": 3}, {}),
    ],
)
def test_figures_that_are_none_are_passed_by(junk: dict[str, Any]) -> None:
    at = Standing("ftjob-1")
    at.learn(junk)
    assert (at.step, at.loss, at.phase) == (0, None, "queued")
    for display in (Lines(io.StringIO()), Terminal(Screen())):
        display.show(at)
        display.end(at, "over")


def test_a_phase_that_a_terminal_would_obey_is_told_by_its_numbers() -> None:
    at = Standing("ftjob-1")
    at.learn({"phase": "\033[2J"})
    assert at.phase.isprintable()


def test_a_step_that_is_told_again_is_one_row() -> None:
    at = Standing("ftjob-1")
    at.learn({"step": 1, "loss": 2.0})
    at.learn({"step": 1, "validation_loss": 3.0})
    assert at.rows == [{"step": 1, "loss": 2.0, "validation_loss": 3.0}]


def test_before_the_first_step_it_is_told_what_is_done_and_for_how_long() -> None:
    at = Standing("ftjob-1")
    at.learn({"phase": "loading"})
    assert at.told() == "loading the model"
    at.since -= 34
    assert at.told() == "loading the model  34 s"
    at.since -= 91
    assert at.told() == "loading the model  2 min 05 s"
    at.since += 91
    at.learn({"phase": "loading", "total_steps": 9})
    assert at.told() == "loading the model  34 s"
    at.learn({"phase": "later", "step": 9})  # of a release to come
    assert at.told() == "later"


class Loading(CountingTrainer):
    """Loads its model until somebody has seen it do so."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        yield Progress("loading")
        assert self.seen.wait(120)
        yield from super().train(task, stopped)


class Watched(io.StringIO):
    """Where progress is written; `twice` is set when it has been told twice that a model is being loaded."""

    def __init__(self, twice: threading.Event, *, terminal: bool) -> None:
        super().__init__()
        self._twice, self._terminal, self._times = twice, terminal, 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._times += text.count("loading the model")
        if self._times >= 2:
            self._twice.set()
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning")
def test_a_model_that_is_being_loaded_gives_signs_of_life(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of it, and none comes until it is done: it is asked for, and shown again and again."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_LOOKS_APART_BEFORE", 0.0)
    monkeypatch.setattr(progress, "_LINES_APART_BEFORE", 0.0)
    trainer = Loading()
    screen = Watched(trainer.seen, terminal=terminal)
    with whole_app(trainer=trainer) as enclave:
        rows = [{"question": f"{n}?", "answer": f"{n}."} for n in range(3)]
        job = blindbox.finetune(enclave.origin, rows, policy=unsafe())
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            job.wait()
    assert job.status == "succeeded"
    told = screen.getvalue()
    assert told.count("loading the model") >= 2
    assert "succeeded: ft:echo:" in told.splitlines()[-1]
    assert ("\r" in told) == terminal
