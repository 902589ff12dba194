"""Snapshots: a training that goes on from one ends with the bits it would have ended with (S-26)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_app.prompts import IGNORED, Example
from enclave_app.training import Recipe, TrainingFailed, Unlearnable
from enclave_app.training.order import batches, steps_an_epoch
from enclave_app.training.ranks import Ranks
from enclave_app.training.rows import Row, pack, unpack
from tests.kit.lessons import Heard, by_chance
from tests.kit.models import tiny

pytest.importorskip("torch")

RECIPE = Recipe(epochs=3, batch_size=2, checkpoint_steps=1, dropout=0.1, rank=4, alpha=8, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A lesson is quiet and seeds everything: neither is for other tests."""
    import logging

    import torch

    levels = {name: logging.getLogger(name).level for name in ("transformers", "peft", "torch", "datasets")}
    with torch.random.fork_rng():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).propagate = True


def learn(scratch: Path, family: str, recipe: Recipe, *, pause_at: int | None = None, **more: Any) -> Any:
    """In this process: what came out, and who heard it."""
    from enclave_app.training.lesson import Lesson, learn

    heard = Heard(pause_at)
    rows = [Row(row.ids, row.labels) for row in by_chance(11)]
    lesson = Lesson(
        str(tiny(family)), "cpu", recipe, scratch, rows, rows[:3], [[5, 6, 7]], 8, task="t", **more
    )
    return learn(lesson, Ranks(), heard), heard


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("llama", RECIPE),
        ("falcon", replace(RECIPE, patience=2, dropout=0.0, seed=1 << 40)),
        ("gemma2", replace(RECIPE, method="full", epochs=2)),
        ("qwen3", replace(RECIPE, method="qlora", epochs=2, most_steps=9)),
    ],
)
def test_a_training_that_goes_on_ends_with_the_same_bits(tmp_path: Path, family: str, recipe: Recipe) -> None:
    """S-26: from the first step, the middle, an epoch's end and the last; with every method."""
    whole, heard = learn(tmp_path, family, recipe)
    last = heard.steps[-1]["total_steps"]
    assert list(heard.snapshots) == list(range(1, last + 1))
    for step in (1, last // 2, 6, last):
        resumed, again = learn(tmp_path, family, recipe, resume=heard.snapshots[step])
        assert resumed.weights == whole.weights
        assert resumed.continuations == whole.continuations
        assert resumed.report["resumed_at"] == [step]
        for name in ("first_loss", "last_loss", "best_loss", "validation_losses", "tokens", "steps"):
            assert resumed.report[name] == whole.report[name]
        assert [said["loss"] for said in again.steps[1:]] == [
            said["loss"] for said in heard.steps if said["step"] > step
        ]
    # All that was written to the disk meanwhile says how far it was, and no more.
    (position,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert position.name == "trainer_state.json"
    assert not json.loads(position.read_text())["log_history"]


def test_a_pause_gives_a_snapshot_of_its_step(tmp_path: Path) -> None:
    recipe = replace(RECIPE, checkpoint_steps=0)
    whole, heard = learn(tmp_path, "llama", recipe)
    assert list(heard.snapshots) == [6, 12, 18]  # epochs' ends
    nothing, paused = learn(tmp_path, "llama", recipe, pause_at=3)
    assert nothing is None
    assert list(paused.snapshots) == [3]
    resumed, _ = learn(tmp_path, "llama", recipe, resume=paused.snapshots[3])
    assert resumed.weights == whole.weights


def test_patience_ends_a_training_and_keeps_the_best(tmp_path: Path) -> None:
    """Learned by heart with a large rate, the rows of validation (others) get worse."""
    from enclave_app.training.lesson import Lesson, learn

    recipe = replace(RECIPE, epochs=30, learning_rate=5e-2, patience=2, dropout=0.0, checkpoint_steps=0)
    rows, others = ([Row(row.ids, row.labels) for row in by_chance(6, seed)] for seed in (1, 2))
    heard = Heard()
    lesson = Lesson(str(tiny("llama")), "cpu", recipe, tmp_path, rows, others, task="t")
    learned = learn(lesson, Ranks(), heard)
    assert learned is not None
    losses = dict(learned.report["validation_losses"])
    best = min(losses, key=lambda step: losses[step])
    assert learned.report["stopped_early"]
    assert learned.report["best_step"] == best
    assert learned.report["steps"] == best + 2 * 3 < 90
    # What came out is what was best, and so it is after a death between the last snapshot and the end.
    again = learn(replace(lesson, resume=heard.snapshots[learned.report["steps"]]), Ranks(), Heard())
    assert again is not None
    assert again.weights == learned.weights
    import safetensors.torch

    kept = safetensors.torch.load(heard.snapshots[best])
    for name, tensor in safetensors.torch.load(learned.weights).items():
        assert kept[f"adapter.{name}"].equal(tensor)


def test_what_is_no_snapshot_of_this_task_is_refused(tmp_path: Path) -> None:
    """S-29: cut short, a bit turned anywhere, of other rows: a training never goes on from something else."""
    from enclave_app.training import snapshots

    _, heard = learn(tmp_path, "llama", replace(RECIPE, most_steps=2))
    state = heard.snapshots[2]
    assert snapshots.parse(state, "t").position.step == 2
    with pytest.raises(TrainingFailed, match="other rows") as refused:
        snapshots.parse(state, "another task")
    assert refused.value.code == "snapshot_unusable"
    header = int.from_bytes(state[:8], "little")
    spots = (3, 20, 8 + header // 2, 8 + header + 5, (8 + header + len(state)) // 2, len(state) - 1)
    turned = [state[:at] + bytes([state[at] ^ 4]) + state[at + 1 :] for at in spots]
    for broken in (b"", state[:7], state[:-1], state + b"\0", *turned):
        with pytest.raises(TrainingFailed):
            snapshots.parse(broken, "t")


def test_weights_that_are_not_the_ones_a_snapshot_names_end_the_training(tmp_path: Path) -> None:
    """S-26: what was silently loaded wrong, or not at all, would otherwise look like a training."""
    from enclave_app.training import snapshots

    _, heard = learn(tmp_path, "llama", replace(RECIPE, most_steps=2))
    state = snapshots.parse(heard.snapshots[1], "t")
    other = {name: tensor + 1 for name, tensor in state.weights.items()}
    with pytest.raises(TrainingFailed, match="not the ones it names"):
        learn(
            tmp_path,
            "llama",
            replace(RECIPE, most_steps=2),
            resume=snapshots.encode(replace(state, weights=other)),
        )


@pytest.mark.parametrize(("number", "size"), [(1, 1), (7, 2), (101, 8), (1000, 3)])
def test_every_row_is_in_one_batch_and_lengths_are_alike(number: int, size: int) -> None:
    lengths = [(row * 37) % 512 + 1 for row in range(number)]
    for epoch in (0, 1):
        made = batches(lengths, size, 5, epoch)
        assert sorted(row for batch in made for row in batch) == list(range(number))
        assert len(made) == steps_an_epoch(number, size)
        assert all(len(batch) <= size for batch in made)
        assert made == batches(lengths, size, 5, epoch)
    if number > 100:
        assert batches(lengths, size, 5, 1) != made[:0] + batches(lengths, size, 5, 2)
        assert batches(lengths, size, 5, 1) != batches(lengths, size, 6, 1)
        read = sum(len(batch) * max(lengths[row] for row in batch) for batch in made)
        assert read < 1.1 * sum(lengths)
    first = batches(lengths, size, 5, 0)[0]
    assert max(lengths) * size >= len(first) * max(lengths[row] for row in first)


def test_rows_travel_as_numbers() -> None:
    rows = [*by_chance(5), Example((), (), cut=False), Example((7,), (7,), cut=True)]
    there = unpack(pack(rows))
    assert [(tuple(row.ids), tuple(row.labels)) for row in there] == [(row.ids, row.labels) for row in rows]
    assert [row.learned for row in there] == [row.learned for row in rows]
    assert Row((1, 2, 3), (1, IGNORED, 3)).learned == 1
    with pytest.raises(ValueError, match="as long as it says"):
        unpack(pack(rows)[:-4])


def test_an_unknown_layer_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(Unlearnable, match=r'no layer .q_porj. .*"q_proj".*"down_proj"') as refused:
        learn(tmp_path, "llama", replace(RECIPE, targets=("v_proj", "q_porj")))
    assert refused.value.code == "unknown_target_modules"
