"""Small lessons of tokens, and a listener that keeps what it hears: for tests of training."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclave_app.prompts import IGNORED, Example, Template
from enclave_app.tokenizer import FolderTokenizer
from enclave_app.training import Recipe, Stop, Task

ROWS = (("Where does the mill stand?", "The upper weir."), ("What is the river called?", "Wend."))


def never() -> Stop:
    """Nobody stops it."""
    return ""


def by_chance(number: int, seed: int = 0, *, most: int = 40) -> list[Example]:
    """Rows of token ids that every tiny model knows."""
    chance = random.Random(seed)
    found = []
    for _ in range(number):
        ids = tuple(chance.randrange(3, 250) for _ in range(chance.randrange(8, most)))
        found.append(Example(ids, (IGNORED,) * 4 + ids[4:], cut=False))
    return found


def task_of(folder: Path, rows: Any = ROWS, *, recipe: Recipe, **more: Any) -> Task:
    """Questions and answers, as the model in this folder is taught them."""
    words = FolderTokenizer(folder)
    template = Template.for_tuning(words, plain_text=False)
    end = min(words.ends, default=None)
    examples = [
        template.example(words, question, answer, end=end, most=recipe.most_tokens)
        for question, answer in rows
    ]
    return Task(examples, recipe, template.value, template.digest(words), **more)


@dataclass(slots=True)
class Heard:
    """A lesson's listener."""

    pause_at: int | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[int, bytes] = field(default_factory=dict)

    def progress(self, phase: str, **more: Any) -> None:
        if phase == "training":
            self.steps.append(more)

    def snapshot(self, position: Any, state: bytes) -> None:
        self.snapshots[position.step] = state

    def paused(self) -> bool:
        return self.pause_at is not None and self.steps[-1]["step"] >= self.pause_at
