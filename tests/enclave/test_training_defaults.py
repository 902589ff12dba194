"""What is decided where a caller leaves it open: enough steps of few rows, no more than enough of many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enclave_app.training import Recipe
from enclave_app.training.defaults import (
    CHOICES,
    FEWEST_EPOCHS,
    FEWEST_STEPS,
    MOST_EPOCHS,
    PORTIONS,
    QUICK,
    READINGS,
    STEPS,
    suited,
)
from enclave_app.training.order import steps_an_epoch


def steps(recipe: Recipe, rows: int) -> int:
    return recipe.epochs * steps_an_epoch(rows, recipe.batch_size)


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "taken", "rate"),
    [
        (1, 1, 25, 25, 1e-3),
        (3, 1, 17, 51, 1e-3),
        (12, 2, 9, 54, 1e-3),
        (24, 4, 9, 54, 1e-3),
        (48, 8, 9, 54, 1e-3),
        (60, 8, 9, 72, 1e-3),
        (100, 8, 8, 104, 1e-3),
        (400, 8, 3, 150, 8e-4),
        (1000, 8, 3, 375, 5e-4),
        (7000, 8, 3, 2625, 2e-4),
        (100_000, 8, 3, 37_500, 2e-4),
    ],
)
def test_few_rows_are_read_often_in_small_batches_and_many_as_usual(
    rows: int, batch_size: int, epochs: int, taken: int, rate: float
) -> None:
    found = suited(Recipe(), CHOICES, rows, 100)
    assert (found.batch_size, found.epochs, steps(found, rows)) == (batch_size, epochs, taken)
    assert found.learning_rate == rate


def test_whatever_the_number_of_rows_there_are_enough_steps_and_no_needless_ones() -> None:
    usual = Recipe()
    for rows in range(1, 2000):
        found = suited(usual, CHOICES, rows, 100)
        an_epoch = steps_an_epoch(rows, found.batch_size)
        assert FEWEST_EPOCHS <= found.epochs <= MOST_EPOCHS
        assert steps(found, rows) >= min(FEWEST_STEPS, MOST_EPOCHS * rows)
        assert found.epochs == FEWEST_EPOCHS or (found.epochs - 1) * an_epoch < STEPS
        assert found.epochs <= READINGS or (found.epochs - 1) * an_epoch < FEWEST_STEPS
        assert 1 <= found.batch_size <= usual.batch_size
        assert found.batch_size == 1 or an_epoch >= PORTIONS
        assert usual.learning_rate <= found.learning_rate <= QUICK
    assert steps(suited(usual, CHOICES, 0, 100), 1) > 0  # the canaries alone, say


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"epochs": 2}, {"batch_size": 4, "epochs": 2, "learning_rate": QUICK}),
        ({"batch_size": 8}, {"batch_size": 8, "epochs": 17, "learning_rate": QUICK}),  # 3 steps an epoch
        ({"batch_size": 1}, {"batch_size": 1, "epochs": 5, "learning_rate": 9e-4}),  # 120 of them
        ({"learning_rate": 3e-5}, {"batch_size": 4, "epochs": 9, "learning_rate": 3e-5}),
        (
            {"epochs": 3, "batch_size": 8, "learning_rate": 2e-4},
            {"batch_size": 8, "epochs": 3, "learning_rate": 2e-4},
        ),
    ],
)
def test_what_a_caller_has_said_stays(said: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = replace(Recipe(), seed=9, rank=4, **said)
    found = suited(recipe, [name for name in CHOICES if name not in said], 24, 100)
    assert found == replace(recipe, **expected)


def test_the_operator_has_the_last_word_on_epochs() -> None:
    for most in (1, 2, 7):
        assert suited(Recipe(epochs=min(3, most)), CHOICES, 12, most).epochs == most


@pytest.mark.parametrize(("wanted", "epochs"), [(1, 1), (6, 1), (7, 2), (200, 34), (10_000, 100)])
def test_where_the_steps_are_said_the_epochs_make_them(wanted: int, epochs: int) -> None:
    """24 rows, 4 at a time. The rate is that of the steps, not of what the epochs would make."""
    found = suited(Recipe(most_steps=wanted), CHOICES, 24, 100)
    assert found.epochs == epochs
    assert found.learning_rate == {200: 7e-4, 10_000: 4e-4}.get(wanted, QUICK)


def test_all_of_the_weights_learn_at_the_usual_rate() -> None:
    for method in ("lora", "qlora"):
        assert suited(Recipe(method=method), CHOICES, 24, 100).learning_rate == QUICK
    assert suited(Recipe(method="full"), CHOICES, 24, 100).learning_rate == Recipe().learning_rate
