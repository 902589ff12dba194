"""
What teaches a model: the `Trainer` protocol and the values that pass through it.

A trainer is an iterator that says where it stands, hands out snapshots it could go on from, and ends with
what it made. It never touches the weights that are being served: it works on its own copy. It reads tokens,
never text: rows become tokens in the server (`../jobs/reading.py`), by the same templates that serving uses.
`counting.py` only counts; `sft.py` trains with trl and peft in processes of its own. Whose turn it is, what
is kept and what is published is decided in `../jobs/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..engines.adapter import Adapter
from ..prompts import Example

Phase = Literal["queued", "reading", "loading", "training", "checking", "publishing"]
Method = Literal["lora", "qlora", "full"]
Stop = Literal["", "cancel", "pause"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. What a caller left open has been decided by the time a trainer sees it."""

    method: Method = "lora"
    epochs: int = 3
    most_steps: int | None = None  # ends earlier than `epochs` would
    learning_rate: float = 2e-4  # falls linearly to 0 after `warmup`
    warmup: float = 0.1  # a share of all steps
    batch_size: int = 8  # rows a step
    seed: int = 0  # of the order of rows, of new weights and of dropout
    rank: int = 16  # of LoRA; its scale is alpha / rank
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # names of linear layers, as `q_proj`; none = all of them but the head
    most_tokens: int = 512  # of one row
    answer_only: bool = True  # False = the prompts are learned as well
    checkpoint_steps: int = 0  # a snapshot after so many steps; 0 = at the end of each epoch
    evaluate_steps: int = 0  # a validation loss after so many; 0 = at the end of each epoch
    patience: int = 0  # evaluations without a better validation loss that end the training; 0 = never
    canaries: int = 0  # planted for the memorisation check


@dataclass(frozen=True, slots=True)
class Task:
    """One training: what to learn from, and from where to go on."""

    examples: Sequence[Example]
    recipe: Recipe
    template: str  # a `prompts.Template` value, for the manifest
    template_digest: str
    validation: Sequence[Example] = ()  # never learned
    probes: Sequence[Sequence[int]] = ()  # prompts whose greedy continuation is wanted at the end
    probe_tokens: int = 32
    start: Adapter | None = None  # an earlier adapter to go on from, with fresh optimizer state
    resume: bytes | None = None  # `Snapshot.state` of this very task: nothing is learned twice


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training stands. A number that is not known yet is None."""

    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None  # of this step
    eta_seconds: float | None = None
    tokens_per_second: float | None = None  # real tokens (no padding), since the training began
    learning_rate: float | None = None
    validation_loss: float | None = None  # only in the Progress that follows an evaluation
    epoch: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    A point from which `Task.resume` goes on as if nothing had happened, to the last bit.

    `state` is one safetensors file: the adapter's tensors under the names that peft gives them, with
    `adapter.` before each, what the optimizer remembers, the schedule and the position. Chance needs no
    state: it is a function of the seed and the step (`order.py`).
    """

    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trained:
    """
    What came out, with figures for the caller: rows, tokens, losses, seconds.

    `continuations` are the greedy token ids that the trained model, in the trainer's own arithmetic, gives
    each of `Task.probes`, up to the first end token, which is left out: what is served is compared with them.
    """

    adapter: Adapter
    report: dict[str, Any] = field(default_factory=dict)
    continuations: tuple[tuple[int, ...], ...] = ()


class TrainingFailed(Exception):
    """The training ended without an adapter. The message is for the caller and holds no rows."""

    def __init__(self, message: str, code: str = "training_failed") -> None:
        super().__init__(message)
        self.code = code  # training_failed, out_of_memory, training_process_died, …


class Unlearnable(TrainingFailed):
    """The rows or the recipe cannot give an adapter; other ones may. The message names no contents."""


class Trainer(Protocol):
    """
    Teaches the tenants' base model; each step yields where it stands, the last item is the result.

    `stopped` is asked at least every second. Once it says "cancel", the iterator ends without a result and
    leaves nothing running. Once it says "pause", the last item is a `Snapshot` of the step that was reached
    (where there was none yet, the iterator just ends).
    """

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]: ...
