"""
How much a training remembers of a single row, measured with rows made for it ("The Secret Sharer", 2019).

Canaries are rows of tokens drawn by chance from the tokens of the real rows. They are put into a copy of the
order of rows and learned once an epoch, as any row is. Afterwards each is compared with others made in the
same way that were never learned: its rank among them, by how likely the model finds it, is its exposure.

    exposure = log2(those compared) - log2(rank)        in bits; not remembered: 1.4 on average

What cannot be told apart from what was never seen has not been remembered. The most that can be measured is
log2 of the number compared.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..prompts import IGNORED
from .rows import Row

COMPARED: Final = 512  # with itself
PROMPT: Final = 6  # tokens that are read, …
SECRET: Final = 6  # … and that are learned


@dataclass(frozen=True, slots=True)
class Canaries:
    """Rows to plant, and the like of them that are never learned."""

    planted: tuple[Row, ...]
    others: tuple[Row, ...]

    @classmethod
    def made(cls, number: int, rows: Sequence[Row], seed: int) -> Canaries:
        """The same ones for the same rows and seed: a training that was killed plants them again."""
        words = sorted({token for row in rows for token in row.ids})
        chance = random.Random(f"blindbox/canaries/v1 {seed}")  # noqa: S311 - no secret, and the same again

        def one() -> Row:
            ids = chance.choices(words, k=PROMPT + SECRET)
            return Row(ids, [IGNORED] * PROMPT + ids[PROMPT:])

        return cls(tuple(one() for _ in range(number)), tuple(one() for _ in range(COMPARED - 1)))

    def told(self, planted: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
        """The report, from how unlikely (nats) the model finds the planted ones and the others."""
        found = exposures(planted, others)
        return {
            "canaries": len(found),
            "compared": len(others) + 1,
            "most_bits": round(math.log2(len(others) + 1), 2),
            "exposure_bits": [round(bits, 2) for bits in found],
            "mean_bits": round(sum(found) / len(found), 2),
            "greatest_bits": round(max(found), 2),
            "bits_if_nothing_is_remembered": round(_by_chance(len(others) + 1), 2),
        }


def exposures(planted: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each one's exposure: it has the first rank when the model finds nothing more likely."""
    ordered = sorted(others)
    most = math.log2(len(ordered) + 1)
    return [most - math.log2(bisect_left(ordered, each) + 1) for each in planted]


def _by_chance(compared: int) -> float:
    """The mean exposure where every rank is as likely as any other."""
    return math.log2(compared) - math.lgamma(compared + 1) / math.log(2) / compared
