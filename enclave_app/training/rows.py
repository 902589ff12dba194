"""
Rows on their way into the training's process: token ids and labels as numbers, never as text.

    frame = u32 rows ‖ u32 length of each ‖ i32 ids of all rows ‖ i32 labels of all rows

Both ends are one machine, so the numbers are in its own byte order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..prompts import IGNORED, Example


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what is read, and what of it is learned."""

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def learned(self) -> int:
        """How many tokens are learned; the first one of a row is never predicted."""
        labels = list(self.labels[1:])
        return len(labels) - labels.count(IGNORED)


def pack(rows: Iterable[Example | Row]) -> bytes:
    """Rows as one frame."""
    lengths, ids, labels = array("I"), array("i"), array("i")
    for row in rows:
        lengths.append(len(row.ids))
        ids.extend(row.ids)
        labels.extend(row.labels)
    return array("I", [len(lengths)]).tobytes() + lengths.tobytes() + ids.tobytes() + labels.tobytes()


def unpack(frame: bytes) -> list[Row]:
    """The inverse of `pack`; the numbers stay in the frame."""
    numbers = memoryview(frame).cast("I")
    lengths = numbers[1 : 1 + numbers[0]].tolist()
    values = memoryview(frame)[4 * (1 + len(lengths)) :].cast("i")
    half = len(values) // 2
    if sum(lengths) != half or len(values) != 2 * half:
        raise ValueError("a frame of rows is not as long as it says")
    begins = accumulate(lengths, initial=0)
    return [
        Row(values[at : at + length], values[half + at : half + at + length])
        for at, length in zip(begins, lengths, strict=False)
    ]
