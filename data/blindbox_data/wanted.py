"""What a caller asks of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MOST_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    Which rows, and what of them.

    Where no column is named, the first row tells. `number` None means all rows there are.
    """

    question_column: str | None = None
    answer_column: str | None = None
    number: int | None = None
    on_invalid: Literal["error", "skip"] = "error"
    dedup: bool = False
    most_rows: int = MOST_ROWS

    @property
    def plain_text(self) -> bool:
        """One column for both means that the column is the text to learn."""
        return self.question_column is not None and self.question_column == self.answer_column
