"""
Rows out of CSV: a first line of names, then cells, separated by whatever the first line uses most.

Cells may be quoted and hold lines. A row with more or fewer cells than there are names is refused: what stood
in which column could only be guessed.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from .errors import listed, unreadable
from .json_rows import check_number
from .lines import MOST_IN_A_ROW, lines

_QUOTED = re.compile(r'"[^"]*"')


def csv_rows(file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows under the first line, with its names."""
    numbered = lines(file, any_end=True)
    begins, first = next((each for each in numbered if each[1].strip("\r\n")), (1, ""))
    # The library has one limit for all readers of a process; it is only ever raised here.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_IN_A_ROW))
    reader = csv.reader(_with(first, (text for _, text in numbered)), _dialect(first), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        check_number(len(header))
        twice = sorted(name for name, times in Counter(header).items() if times > 1)
        if twice:
            raise unreadable(f"its first line names a column twice: {listed(twice)}")
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                there = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
                raise unreadable(
                    f"row {number} has {there} and the first line {len(header)} (a cell that holds the "
                    "separator, a quote or a line break has to be quoted)"
                )
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error:
        raise unreadable(
            f"line {begins - 1 + reader.line_num} is not CSV (a quote left open, or a huge cell?)"
        ) from None


class _Comma(csv.excel):
    delimiter = ","


class _Semicolon(csv.excel):
    delimiter = ";"


class _Tab(csv.excel):
    delimiter = "\t"


def _dialect(first: str) -> type[csv.Dialect]:
    """The separator that the first line uses most; a comma where it uses none."""
    bare = _QUOTED.sub("", first)
    return max((_Comma, _Semicolon, _Tab), key=lambda dialect: bare.count(dialect.delimiter))


def _with(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
