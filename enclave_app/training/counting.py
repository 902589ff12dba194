"""
A trainer that counts its steps and learns nothing. For trying the app where no model is.

Its adapter is different for different rows, so that a test can see that something was published.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator

from ..datasets import Pairs
from ..engines.adapter import Adapter, Manifest
from ..engines.echo import ByteTokenizer
from ..prompts import Template
from . import Progress, Recipe, Trained


class CountingTrainer:
    """Counts."""

    def __init__(self, seconds_a_step: float = 0.0) -> None:
        self._seconds = seconds_a_step

    def train(self, data: Pairs, recipe: Recipe, stopped: Callable[[], bool]) -> Iterator[Progress | Trained]:
        total = -(-len(data.rows) // recipe.batch_size) * recipe.epochs
        for step in range(total + 1):
            if stopped():
                return
            left = (total - step) * self._seconds
            yield Progress("training", step, total, loss=1 / (step + 1), eta_seconds=left)
            time.sleep(self._seconds)
        weights = json.dumps([data.rows, recipe.epochs, recipe.seed]).encode()
        manifest = Manifest(
            model="",  # as the echo engine's source says of itself: there are no weights to be made for
            template=Template.TEXT.value,
            template_digest=Template.TEXT.digest(ByteTokenizer()),
            rank=recipe.rank,
            alpha=recipe.rank,
            targets=(),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        report = {
            "rows_used": len(data.rows),
            "steps": total,
            "first_loss": 1.0,
            "last_loss": 1 / (total + 1),
        }
        yield Trained(Adapter(manifest, weights), report)
