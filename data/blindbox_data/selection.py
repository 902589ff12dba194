"""
Rows → the examples that are asked for, and a report; or an error that names what is wrong with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import DataError, rows_told
from .oddities import WORDS, oddities, scripts
from .report import FEW, Lengths, Report, Rows, longest
from .shapes import Fault, Shape
from .values import Conversation, Example, Pair
from .wanted import Wanted

MOST_IN_ALL: Final = 256 << 20
"""Characters of all examples together; a small file can say the same one a million times."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What may be trained on, with the number of the row each example was."""

    shape: Shape
    examples: tuple[Example, ...]
    rows: tuple[int, ...]
    report: Report


def select(rows: Iterator[tuple[int, Mapping[str, Any]]], wanted: Wanted) -> Selection:
    """
    Take the first `wanted.number` rows and judge them.

    1. the columns are there, in the first row and in each
    2. the texts are there and not blank; numbers and truth values are written as text
    3. there are as many rows as asked for, and no more than may be trained on
    """
    _check_number(wanted)
    first = next(rows, None)
    if first is None:
        raise DataError("The data set has no rows.", code="too_few_examples")
    found = _Found(Shape.of(first[1], wanted.question_column, wanted.answer_column), wanted)
    number: int | None = first[0]
    row: Mapping[str, Any] = first[1]
    while number is not None:
        found.take(number, row)
        if found.seen == wanted.number:
            break
        number, row = next(rows, (None, {}))
    found.check()
    return found.selection()


def texts_of(example: Example) -> list[str]:
    """All that is written in it."""
    if isinstance(example, Pair):
        return [example.question, example.context, example.answer]
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    return [example.text]


class _Found:
    """What was found so far."""

    def __init__(self, shape: Shape, wanted: Wanted) -> None:
        self.seen = 0
        self._shape = shape
        self._wanted = wanted
        self._examples: list[Example] = []
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._faults: dict[Fault, Rows] = {}
        self._duplicates = Rows()
        self._digests: set[bytes] = set()
        self._problems: dict[str, Rows] = {}
        self._size = 0

    def take(self, number: int, row: Mapping[str, Any]) -> None:
        """One more row."""
        if self.seen == self._wanted.most_rows:
            most = self._wanted.most_rows
            raise DataError(
                f"The data set has more than {most} rows, which is the limit. Say with "
                f"number_elements_for_training how many of the first are to be used (at most {most}).",
                code="too_many_examples",
                param="number_elements_for_training",
            )
        self.seen += 1
        example = self._shape.example(row)
        if isinstance(example, Fault):
            self._faults.setdefault(example, Rows()).add(number)
            return
        digest = _digest(example)
        if digest in self._digests:
            self._duplicates.add(number)
            if self._wanted.dedup:
                return
        self._digests.add(digest)
        texts = texts_of(example)
        length = sum(map(len, texts))
        self._size += length
        if self._size > MOST_IN_ALL:
            raise DataError(
                f"The rows hold more than {MOST_IN_ALL} characters by row {number}. Ask for fewer.",
                code="too_many_tokens",
                param="number_elements_for_training",
            )
        for problem in {problem for text in texts for problem in oddities(text)}:
            self._problems.setdefault(problem, Rows()).add(number)
        self._examples.append(example)
        self._rows.append(number)
        self._lengths.append(length)

    def check(self) -> None:
        """Raise `DataError` where what was found is not what was asked for."""
        seen, wanted = self.seen, self._wanted
        if wanted.number is not None and seen < wanted.number:
            raise DataError(
                f"number_elements_for_training is {wanted.number}, but the data set has {seen} "
                f"{'row' if seen == 1 else 'rows'}. Ask for at most {seen}, or upload more rows.",
                code="too_few_examples",
                param="number_elements_for_training",
            )
        if self._faults and (wanted.on_invalid == "error" or not self._examples):
            told = "; ".join(
                f"{'1 is' if rows.count == 1 else f'{rows.count} are'} {fault.words} "
                f"({rows_told(rows.numbers, rows.count)})"
                for fault, rows in self._faults.items()
            )
            first = next(iter(self._faults))
            if self._examples:
                it = "it" if sum(rows.count for rows in self._faults.values()) == 1 else "them"
                why = f"Of {seen} rows, {told}. Mend {it}, or send "
                why += f'"on_invalid": "skip" to train without {it}.'
            elif seen == 1:
                why = f"The only row cannot be used: it is {first.words}."
            else:
                why = f"No row of {seen} can be used: {told}."
            raise DataError(why, code=first.code)

    def selection(self) -> Selection:
        """All of it."""
        dropped = {fault.code: rows for fault, rows in self._faults.items()}
        if self._wanted.dedup and self._duplicates.count:
            dropped["duplicate"] = self._duplicates
        report = Report(
            shape=self._shape.kind,
            columns=self._shape.columns,
            rows_read=self.seen,
            rows_used=len(self._examples),
            dropped=dropped,
            duplicates=self._duplicates,
            characters=Lengths.of(self._lengths),
            longest=longest(self._rows, self._lengths),
            problems={name: self._problems[name] for name in WORDS if name in self._problems},
            scripts=scripts(text for example in self._examples for text in texts_of(example)),
            warnings=tuple(self._warnings(dropped)),
        )
        return Selection(self._shape, tuple(self._examples), tuple(self._rows), report)

    def _warnings(self, dropped: Mapping[str, Rows]) -> Iterator[str]:
        used = len(self._examples)
        if used < FEW:
            yield (
                f"Only {'1 row is' if used == 1 else f'{used} rows are'} used: a model learns "
                f"{'its' if used == 1 else 'their'} wording by heart and little else. Fifty good ones are a "
                "start."
            )
        for fault, rows in self._faults.items():
            yield f"{_rows(rows)} left out, being {fault.words}."
        if "duplicate" in dropped:
            yield f"{_rows(self._duplicates)} left out, saying what an earlier row says."
        elif self._duplicates.count:
            yield (
                f"{_rows(self._duplicates)} there again, saying what an earlier row says; each is learned as "
                f"often as it is there (dedup leaves {'it' if self._duplicates.count == 1 else 'them'} out)."
            )
        for name, words in WORDS.items():
            if name in self._problems:
                rows = self._problems[name]
                one = words.replace("hold ", "holds ", 1).replace("mix ", "mixes ", 1)
                yield f"{_counted(rows)} {one if rows.count == 1 else words}: {_numbers(rows)}."


def _check_number(wanted: Wanted) -> None:
    if wanted.number is not None and not 1 <= wanted.number <= wanted.most_rows:
        raise DataError(
            f"number_elements_for_training may be 1 to {wanted.most_rows}.",
            code="invalid_value",
            param="number_elements_for_training",
        )


def _digest(example: Example) -> bytes:
    """The same for two examples that teach the same."""
    if isinstance(example, Conversation):
        written: list[Any] = [[each.told(), each.learned] for each in example.messages]
        parts: Any = [written, example.tools]
    else:
        parts = texts_of(example)
    told = json.dumps(parts, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(told, digest_size=16).digest()


def _counted(rows: Rows) -> str:
    return "1 row" if rows.count == 1 else f"{rows.count} rows"


def _rows(rows: Rows) -> str:
    return f"{_counted(rows)} ({_numbers(rows)}) {'is' if rows.count == 1 else 'are'}"


def _numbers(rows: Rows) -> str:
    return rows_told(rows.numbers, rows.count)
