"""
The figures of a training, step by step: which of them are told, and the curve that they make.

A job tells so many figures and no more, however long it is. They travel as events; from the events the curve
is read back, as rows or as a file. Nothing here is written down or said aloud.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..training import Progress
from . import Event

MOST_FIGURES: Final = 5000
"""Of one job. A longer training tells the figures of every second step, or of every third …"""


class Curve:
    """The figures of a run that begins behind `step`: collected until those of a step are whole."""

    def __init__(self, step: int = 0) -> None:
        self._told = step
        self._told_loss = step  # of the last evaluation that was told
        self._told_kept = step  # the last checkpoint that was
        self._pending: dict[str, Any] | None = None  # of the last step, until nothing can be added to them

    def add(self, at: Progress) -> dict[str, Any] | None:
        """Where the training stands. The figures of the step before come back, now that they are whole."""
        figures = {
            "step": at.step,
            "total_steps": at.total_steps,
            "train_loss": at.loss,
            "valid_loss": at.validation_loss,
            "learning_rate": at.learning_rate,
            "tokens_per_second": at.tokens_per_second,
            "epoch": at.epoch,
        }
        if self._pending is not None and self._pending["step"] == at.step:
            self._pending |= {name: value for name, value in figures.items() if value is not None}
            return None
        whole = self.take()
        if at.validation_loss is not None:
            if not _too_soon(self._told_loss, at.step, at.total_steps):
                self._told_loss, self._pending = at.step, figures
        elif at.step > self._told and not _too_soon(self._told, at.step, at.total_steps):
            self._pending = figures
        return whole

    def take(self) -> dict[str, Any] | None:
        """Nothing is added to the last step's figures any more: they are to be told."""
        figures, self._pending = self._pending, None
        if figures is not None:
            self._told = max(self._told, figures["step"])
        return figures

    def tells_of_checkpoint(self, step: int, total: int) -> bool:
        """Is the checkpoint at this step worth a word?"""
        if _too_soon(self._told_kept, step, total):
            return False
        self._told_kept = step
        return True


def words_of(figures: Mapping[str, Any]) -> str:
    """A step's figures as a sentence."""
    loss = "" if figures["train_loss"] is None else f": training loss {figures['train_loss']:.4f}"
    more = "" if figures["valid_loss"] is None else f", validation loss {figures['valid_loss']:.4f}"
    return f"Step {figures['step']}/{figures['total_steps']}{loss}{more}"


def curve_of(events: Iterable[Event]) -> Sequence[dict[str, Any]]:
    """The figures of each step that was told, once, in order."""
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.data is not None and event.step is not None:
            known = {name: value for name, value in event.data.items() if value is not None}
            rows[event.step] = {"time": event.created_at, **rows.get(event.step, {}), **known}
    names = ("loss", "validation_loss", "learning_rate", "tokens_per_second", "epoch", "time")
    told = {"loss": "train_loss", "validation_loss": "valid_loss"}
    return [
        {"step": step, **{name: row.get(told.get(name, name)) for name in names}}
        for step, row in sorted(rows.items())
    ]


def csv_of(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """As OpenAI writes it; accuracies are not known here."""
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for row in curve:
        told = ("" if row[name] is None else repr(row[name]) for name in ("loss", "validation_loss"))
        lines.append(f"{row['step']},{next(told)},,{next(told)},")
    return "\n".join([*lines, ""]).encode()


def finite(value: Any) -> Any:
    """What JSON can tell: a loss that is no number any more is none, wherever it stands."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def short(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with no more validation losses than a job may have figures; that of what was kept stays."""
    told: dict[str, Any] = finite(report)
    losses = told.get("validation_losses") or []
    every = 1 + len(losses) // MOST_FIGURES
    if every > 1:
        best, last = told.get("best_step"), losses[-1]
        told["validation_losses"] = [
            each for at, each in enumerate(losses) if at % every == 0 or each[0] == best or each is last
        ]
    return told


def _too_soon(told: int, step: int, total: int) -> bool:
    """Is it so soon after what was told that there would be more than `MOST_FIGURES` in all?"""
    every = 1 + total // MOST_FIGURES
    return step // every == told // every and step != total
