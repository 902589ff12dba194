"""
What was found in a data set: counts, lengths and row numbers. No cell's text is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

NUMBERS: Final = 100
"""How many row numbers are kept of each kind; all are counted."""
LONGEST: Final = 5
FEW: Final = 10


@dataclass(slots=True)
class Rows:
    """Rows of one kind: how many, and the first of their numbers."""

    count: int = 0
    numbers: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        """One more."""
        self.count += 1
        if len(self.numbers) < NUMBERS:
            self.numbers.append(number)

    def told(self) -> dict[str, Any]:
        """For a report."""
        return {"count": self.count, "rows": list(self.numbers)}


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the examples are, in characters or in tokens."""

    least: int
    median: int
    most_but_twentieth: int  # 95 of 100 are no longer
    most: int
    histogram: tuple[tuple[int, int, int], ...]  # from, to (both included), how many

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Buckets double in width: 0, 1, 2–3, 4–7, …"""
        if not lengths:
            return cls(0, 0, 0, 0, ())
        ordered = sorted(lengths)
        buckets: dict[int, int] = {}
        for length in ordered:
            buckets[length.bit_length()] = buckets.get(length.bit_length(), 0) + 1
        first, last = min(buckets), max(buckets)
        return cls(
            least=ordered[0],
            median=ordered[(len(ordered) - 1) // 2],
            most_but_twentieth=ordered[-(-len(ordered) * 95 // 100) - 1],
            most=ordered[-1],
            histogram=tuple(
                (1 << bits >> 1, (1 << bits) - 1, buckets.get(bits, 0)) for bits in range(first, last + 1)
            ),
        )

    def told(self) -> dict[str, Any]:
        """For a report."""
        return {
            "least": self.least,
            "median": self.median,
            "p95": self.most_but_twentieth,
            "most": self.most,
            "histogram": [{"from": low, "to": high, "rows": rows} for low, high, rows in self.histogram],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What `select` found."""

    shape: str
    columns: tuple[str, ...]  # that were read
    rows_read: int
    rows_used: int
    dropped: dict[str, Rows]  # by the fault's word, or "duplicate"
    duplicates: Rows  # rows that say what an earlier one says, dropped or not
    characters: Lengths
    longest: tuple[tuple[int, int], ...]  # row number, characters
    problems: dict[str, Rows]  # by the names of `oddities.WORDS`
    scripts: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def rows_dropped(self) -> int:
        """All of them together."""
        return sum(rows.count for rows in self.dropped.values())

    @property
    def dropped_rows(self) -> list[int]:
        """The first of their numbers, in order."""
        return sorted(number for rows in self.dropped.values() for number in rows.numbers)[:NUMBERS]

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "shape": self.shape,
            "columns": list(self.columns),
            "rows_read": self.rows_read,
            "rows_used": self.rows_used,
            "rows_dropped": self.rows_dropped,
            "dropped": {name: rows.told() for name, rows in self.dropped.items()},
            "duplicates": self.duplicates.told(),
            "characters": self.characters.told(),
            "longest": [{"row": row, "characters": characters} for row, characters in self.longest],
            "problems": {name: rows.told() for name, rows in self.problems.items()},
            "scripts": dict(self.scripts),
            "warnings": list(self.warnings),
        }


def longest(numbers: Iterable[int], lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The longest rows, the longest first."""
    ranked = sorted(zip(lengths, numbers, strict=True), key=lambda each: (-each[0], each[1]))
    return tuple((number, length) for length, number in ranked[:LONGEST])
