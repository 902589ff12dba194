"""Canaries: what is remembered of one row is told in bits."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from enclave_app.prompts import IGNORED
from enclave_app.training import Recipe
from enclave_app.training.canaries import COMPARED, PROMPT, SECRET, Canaries, exposures
from enclave_app.training.ranks import Ranks
from enclave_app.training.rows import Row
from tests.kit.lessons import Heard, by_chance
from tests.kit.models import tiny


def test_exposure_is_the_rank_in_bits() -> None:
    others = [float(value) for value in range(10, 10 + 255)]
    assert exposures([1.0], others) == [8.0]  # the first of 256
    assert exposures([10.5], others) == [7.0]  # the second
    assert exposures([1e9], others) == [0.0]  # the last


def test_what_was_never_learned_has_the_exposure_of_chance() -> None:
    chance = random.Random(3)
    others = [chance.random() for _ in range(511)]
    found = exposures([chance.random() for _ in range(5000)], others)
    canaries = Canaries.made(1, [Row((1, 2), (1, 2))], 0)
    told = canaries.told([0.5], others)
    assert math.isclose(sum(found) / len(found), told["bits_if_nothing_is_remembered"], abs_tol=0.1)


def test_the_same_canaries_are_planted_again() -> None:
    """S-26: after a death, too. They are made of the rows' own tokens."""
    rows = [Row(row.ids, row.labels) for row in by_chance(5)]
    made = Canaries.made(3, rows, 7)
    assert made == Canaries.made(3, rows, 7)
    assert made.planted != Canaries.made(3, rows, 8).planted
    assert (len(made.planted), len(made.others)) == (3, COMPARED - 1)
    known = {token for row in rows for token in row.ids}
    for row in made.planted:
        assert set(row.ids) <= known
        assert list(row.labels) == [IGNORED] * PROMPT + list(row.ids[PROMPT:])
        assert row.learned == SECRET


@pytest.mark.parametrize(("epochs", "rate", "remembered"), [(1, 1e-5, False), (25, 2e-2, True)])
def test_a_training_tells_what_it_remembers(
    tmp_path: Path, epochs: int, rate: float, remembered: bool
) -> None:
    pytest.importorskip("torch")
    from enclave_app.training.lesson import Lesson, learn

    rows = [Row(row.ids, row.labels) for row in by_chance(6)]
    recipe = Recipe(epochs=epochs, learning_rate=rate, batch_size=4, canaries=4)
    learned = learn(Lesson(str(tiny("llama")), "cpu", recipe, tmp_path, rows), Ranks(), Heard())
    assert learned is not None
    told = learned.report["memorisation"]
    assert (told["canaries"], told["compared"], told["most_bits"]) == (4, 512, 9.0)
    assert learned.report["rows_used"] == 6
    assert (told["mean_bits"] > 8) == remembered
    assert (told["mean_bits"] < 4) != remembered
