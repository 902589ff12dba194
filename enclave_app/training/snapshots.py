"""
A training's whole state at one step as one safetensors file, and back. Reading it runs nothing.

    tensors    adapter.NAME                                   what has been learned
               best.NAME                                      what was best, where the best is kept
               optimizer.PARAMETER.exp_avg …                  what the optimizer remembers
    metadata   blindbox-snapshot/1 = JSON: position, schedule of the learning rate, digest of all tensors

Of chance nothing has to be kept: what happens by chance in a step is a function of the seed and the step
(`order.py`). A snapshot that is not of this very task, or whose weights are not the ones it names once they
are in the model, is refused: a training that goes on from something else would look as if all were well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from . import TrainingFailed

FORMAT: Final = "blindbox-snapshot/1"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands, and what it will have to tell at its end."""

    task: str  # digest of rows and recipe
    step: int = 0
    total_steps: int = 0
    losses: tuple[float, ...] = ()  # first, last and least
    validation: tuple[tuple[int, float], ...] = ()  # step, loss
    best_step: int = 0
    ended: bool = False  # by patience: there is nothing more to learn
    resumed: tuple[int, ...] = ()
    seconds: float = 0.0  # of learning, in all the processes' lives together
    tokens: int = 0
    adapter: str = ""  # SHA-256 of `encode_weights` of what has been learned

    def learned(self, loss: float, seconds: float, tokens: int) -> Position:
        """One step further."""
        first, _, least = self.losses or (loss, loss, loss)
        return replace(
            self,
            step=self.step + 1,
            losses=(first, loss, min(least, loss)),
            seconds=self.seconds + seconds,
            tokens=self.tokens + tokens,
        )

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Position:
        """From JSON, where tuples are lists."""
        made = cls(**fields)
        return replace(
            made,
            losses=tuple(made.losses),
            validation=tuple((int(step), float(loss)) for step, loss in made.validation),
            resumed=tuple(made.resumed),
        )


@dataclass(frozen=True, slots=True)
class State:
    """What a snapshot holds."""

    position: Position
    weights: Mapping[str, Tensor] = field(repr=False)
    best: Mapping[str, Tensor] = field(repr=False)
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(repr=False)  # by parameter
    schedule: Mapping[str, Any] = field(default_factory=dict)


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """An adapter as safetensors: the same weights are the same bytes."""
    encoded: bytes = safetensors.torch.save(dict(weights))
    return encoded


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """What `Position.adapter` says of these weights."""
    return hashlib.sha256(encode_weights(weights)).hexdigest()


def encode(state: State) -> bytes:
    """The snapshot's bytes."""
    tensors = {f"adapter.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for name, kept in state.optimizer.items():
        tensors |= {f"optimizer.{name}.{what}": tensor for what, tensor in kept.items()}
    head = {"position": asdict(state.position), "schedule": state.schedule, "digest": _digest(tensors)}
    encoded: bytes = safetensors.torch.save(tensors, {FORMAT: json.dumps(head)})
    return encoded


def parse(data: bytes, task: str) -> State:
    """The inverse of `encode`; raises `TrainingFailed` for bytes that are not a snapshot of this task."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][FORMAT])
        position = Position.parse(head["position"])
        if head["digest"] != _digest(tensors):
            raise ValueError("digest")
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name in _named("optimizer.", tensors):
            parameter, _, what = name.rpartition(".")
            optimizer.setdefault(parameter, {})[what] = tensors[f"optimizer.{name}"]
        state = State(
            position, _named("adapter.", tensors), _named("best.", tensors), optimizer, dict(head["schedule"])
        )
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable("it cannot be read") from error
    if position.task != task:
        raise unusable("it is of other rows or another recipe")
    return state


def unusable(why: str) -> TrainingFailed:
    """The error of a snapshot that cannot be gone on from."""
    return TrainingFailed(
        f"The training cannot go on from its last snapshot: {why}. Start it again from the beginning.",
        code="snapshot_unusable",
    )


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).numpy().data)
    return found.hexdigest()
