"""
A data set for fine-tuning: a file → rows → examples and a report, or an error that says what is wrong.

The machine that trains and the person who sends the data judge it by this one piece of code, so that what
was found good on a laptop is not refused later. Only the standard library is used; `pyarrow` reads Parquet,
and is imported when there is a Parquet file. Nothing is opened here: a file comes as an object with `read`.

    form = Form.of("rows.csv", beginning)
    selection = select(open_rows(file, form, wanted), wanted)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from .csv_rows import csv_rows
from .errors import DataError
from .form import BEGINNING, Form
from .json_rows import MOST_COLUMNS, json_array, json_lines
from .lines import MOST_IN_A_ROW
from .parquet import parquet_rows
from .report import Lengths, Report, Rows
from .selection import MOST_IN_ALL, Selection, select
from .shapes import MOST_IN_A_CELL, MOST_MESSAGES, Fault, Shape
from .values import Conversation, Example, Message, Pair, Text
from .wanted import MOST_ROWS, Wanted

__all__ = [
    "BEGINNING",
    "MOST_COLUMNS",
    "MOST_IN_ALL",
    "MOST_IN_A_CELL",
    "MOST_IN_A_ROW",
    "MOST_MESSAGES",
    "MOST_ROWS",
    "Conversation",
    "DataError",
    "Example",
    "Fault",
    "Form",
    "Lengths",
    "Message",
    "Pair",
    "Report",
    "Rows",
    "Selection",
    "Shape",
    "Text",
    "Wanted",
    "open_rows",
    "select",
]


def open_rows(
    file: BinaryIO, form: Form, wanted: Wanted | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """
    The rows of a file with their numbers, from 1, as they come.

    Lines, arrays and CSV are read from any stream. Parquet wants one that can seek (another is held in
    memory), and reads only the columns that `wanted` means.
    """
    if form is Form.PARQUET:
        return parquet_rows(file, wanted)
    return {Form.JSONL: json_lines, Form.JSON: json_array, Form.CSV: csv_rows}[form](file)
