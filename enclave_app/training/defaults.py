"""
How often, in which portions and how fast is learned, where a caller leaves it open: by the number of rows.

A pure function, so that whoever reads a job's recipe can see where it came from. What a small model needs to
say again what it was taught was tried: some fifty steps at a quick rate, and to have read a row some eight
times. Of many rows three times have to be enough, for time's sake.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Final, Literal

from . import Recipe
from .order import steps_an_epoch

Choice = Literal["epochs", "batch_size", "learning_rate"]
CHOICES: Final[tuple[Choice, ...]] = ("epochs", "batch_size", "learning_rate")

READINGS: Final = 9
FEWEST_STEPS: Final = 50
"""Where `READINGS` make fewer, there are more of them …"""
STEPS: Final = 100
"""… and where they make more, fewer, down to `FEWEST_EPOCHS`."""
FEWEST_EPOCHS: Final = 3
MOST_EPOCHS: Final = 25
"""A row or two are known by then; the rest would only take time."""
PORTIONS: Final = 6
"""Steps of an epoch for which the batch is made smaller: the same reading moves the weights more often."""
QUICK: Final = 1e-3
"""LoRA's rate for a hundred steps: at the usual one, which suits thousands, they leave much unlearned."""


def suited(recipe: Recipe, left_open: Collection[str], rows: int, most_epochs: int) -> Recipe:
    """
    The recipe with what was left open decided for so many rows; what a caller said stays as it is.

    1. the batch is the usual one, or the largest smaller one of which an epoch has `PORTIONS`
    2. the rows are read `READINGS` times, or as often as makes `FEWEST_STEPS` to `STEPS`, and from
       `FEWEST_EPOCHS` to `MOST_EPOCHS` times; where the caller has said how many steps, as often as makes
       those; never more often than the operator allows
    3. the rate is `QUICK` for so many steps, and falls with the root of more of them to the usual one; where
       the weights themselves learn (`method` is "full") it is the usual one, for they do not come back
    """
    batch, epochs, rate = recipe.batch_size, recipe.epochs, recipe.learning_rate
    if "batch_size" in left_open:  # 1
        while batch > 1 and rows < PORTIONS * batch:
            batch //= 2
    steps = max(1, steps_an_epoch(rows, batch))
    if "epochs" in left_open:  # 2
        if recipe.most_steps is None:
            epochs = max(READINGS, -(-FEWEST_STEPS // steps))
            epochs = max(FEWEST_EPOCHS, min(epochs, -(-STEPS // steps), MOST_EPOCHS))
        else:
            epochs = -(-recipe.most_steps // steps)
        epochs = max(1, min(epochs, most_epochs))
    if "learning_rate" in left_open and recipe.method != "full":  # 3
        taken = min(steps * epochs, recipe.most_steps or steps * epochs)
        falling = QUICK * math.sqrt(STEPS / max(STEPS, taken))
        rate = max(rate, float(f"{falling:.1g}"))  # more digits than were measured would say nothing
    return replace(recipe, batch_size=batch, epochs=epochs, learning_rate=rate)
