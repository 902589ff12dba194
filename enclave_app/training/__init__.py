"""
What teaches a model: the `Trainer` protocol and the values that pass through it.

A trainer is an iterator that says where it stands and ends with what it made. It never touches the weights
that are being served: it works on its own copy. `counting.py` only counts; `sft.py` trains with trl and peft
in a process of its own; `workshop.py` decides whose turn it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..datasets import Pairs
from ..engines.adapter import Adapter

Phase = Literal["queued", "reading", "loading", "training", "publishing"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    epochs: int = 3
    learning_rate: float = 2e-4
    batch_size: int = 8
    seed: int = 0
    rank: int = 16
    most_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training stands. A number that is not known yet is None."""

    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out, with figures for the caller: rows, tokens, losses, seconds."""

    adapter: Adapter
    report: dict[str, Any] = field(default_factory=dict)


class TrainingFailed(Exception):
    """The training ended without an adapter. The message is for the caller and holds no rows."""


class Unlearnable(TrainingFailed):
    """The rows or the recipe cannot give an adapter; other ones may. The message names no contents."""


class Trainer(Protocol):
    """
    Teaches the tenants' base model; each step yields where it stands, the last item is the result.

    `stopped` is asked at least every second; once it says yes, the iterator ends without a result and
    leaves nothing running.
    """

    def train(
        self, data: Pairs, recipe: Recipe, stopped: Callable[[], bool]
    ) -> Iterator[Progress | Trained]: ...
