"""
In which order rows are learned: a pure function of the seed, the epoch and the rows' lengths.

So a training that was killed goes on with the very batch that would have come next. Rows of a batch are of
about one length (padding is work for nothing), and batches come in an order that has nothing to do with it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Final

POOL: Final = 50
"""Batches whose rows are sorted by length together: enough to match lengths, few enough to stay random."""


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in batches of `size` (one of them may be smaller)."""
    chance = random.Random(f"blindbox/order/v1 {seed} {epoch}")  # noqa: S311 - no secret, and the same again
    rows = list(range(len(lengths)))
    chance.shuffle(rows)
    found: list[list[int]] = []
    for at in range(0, len(rows), size * POOL):
        pool = sorted(rows[at : at + size * POOL], key=lambda row: lengths[row])
        found += [pool[begin : begin + size] for begin in range(0, len(pool), size)]
    chance.shuffle(found)
    if epoch == 0 and found:
        # What does not fit into memory fails in the first step, not after an hour.
        widest = max(range(len(found)), key=lambda n: len(found[n]) * max(lengths[row] for row in found[n]))
        found.insert(0, found.pop(widest))
    return found


def steps_an_epoch(rows: int, size: int) -> int:
    """How many batches `batches` gives."""
    return -(-rows // size)


def chance_of(seed: int, step: int, rank: int) -> int:
    """The seed of what happens by chance (dropout) in one step of one process."""
    return int.from_bytes(hashlib.sha256(f"blindbox/step/v1 {seed} {step} {rank}".encode()).digest()[:7])
