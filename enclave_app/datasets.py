"""
A file → the rows with the columns asked for, or a refusal that names what is wrong.

JSON Lines, JSON, CSV and Parquet are told apart by what is in them; the name only breaks ties. A refusal
names columns and row numbers (the first row is 1), never what stands in a row.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, Final, Literal, Protocol

from .refusals import Failed, NotFound, Refusal, listed, nearest

MOST_IN_A_CELL: Final = 1 << 20
MOST_IN_ALL: Final = 256 << 20  # characters; a small Parquet file can say the same one a million times
MOST_COLUMNS: Final = 10_000
_PARQUET = b"PAR1"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how it begins
_SHOWN = 20
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Form(Enum):
    """How a file is written."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"

    @classmethod
    def of(cls, filename: str, beginning: bytes) -> Form:
        """Recognise a file by its first bytes; a name that says something else is refused."""
        named = _ENDINGS.get(PurePath(filename).suffix.casefold())
        if beginning.startswith(_PARQUET):
            found = cls.PARQUET
        elif beginning.startswith(_ARCHIVES):
            raise _unreadable("it is compressed or an archive; upload the file that is in it", "file")
        elif beginning.startswith(_UTF_16):
            message = "The file is UTF-16. Save it as UTF-8 and upload it again."
            raise Refusal(message, code="invalid_encoding", param="file")
        elif beginning.startswith(b"%PDF"):
            raise _unreadable("it is a PDF, and rows are needed", "file")
        elif beginning.startswith(b"\x80") or b"\0" in beginning:
            raise _unreadable("it is neither text nor Parquet", "file")
        else:
            start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
            if not start:
                raise _unreadable("it is empty", "file")
            found = cls.JSON if start[:1] == b"[" else cls.JSONL if start[:1] == b"{" else cls.CSV
        if named is None or named is found or {named, found} == {cls.JSON, cls.JSONL}:
            return found
        if named is cls.CSV and found is not cls.PARQUET:
            return named  # a CSV may begin with a bracket
        raise _unreadable(f"its name says {named.value} and its content {found.value}", "file")


_ENDINGS = {
    ".jsonl": Form.JSONL,
    ".ndjson": Form.JSONL,
    ".json": Form.JSON,
    ".csv": Form.CSV,
    ".parquet": Form.PARQUET,
}
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows a caller asks for."""

    question_column: str
    answer_column: str
    number: int
    on_invalid: Literal["error", "skip"] = "error"

    @property
    def plain_text(self) -> bool:
        """One column for both means that the column is the text to learn."""
        return self.question_column == self.answer_column


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows that may be trained on: both texts are there and not blank."""

    rows: tuple[tuple[str, str], ...]
    plain_text: bool
    skipped: tuple[int, ...] = ()  # numbers of the rows left out, where the caller allowed it


class Hub(Protocol):
    """Where data sets that nobody uploaded come from."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]: ...


def select(rows: Iterator[tuple[int, Mapping[str, Any]]], wanted: Wanted) -> Pairs:
    """
    Take the first `wanted.number` rows and judge them.

    1. the columns are there, in the first row and in each
    2. both values are text and not blank; numbers and truth values are written as text
    3. there are as many rows as asked for
    """
    first = next(rows, None)
    if first is None:
        raise Refusal("The data set has no rows.", code="too_few_examples", param="dataset_name")
    _check_columns(first[1], wanted)
    pairs: list[tuple[str, str]] = []
    faults: dict[str, list[int]] = {}
    seen = size = 0
    for number, row in _with(first, rows):
        if seen == wanted.number:
            break
        seen += 1
        question, answer = (_cell(row, column) for column in (wanted.question_column, wanted.answer_column))
        fault = next((cell for cell in (question, answer) if isinstance(cell, _Fault)), None)
        if fault is not None:
            faults.setdefault(fault.value, []).append(number)
        else:
            assert isinstance(question, str)
            assert isinstance(answer, str)
            pairs.append((question, answer))
            size += len(question) + len(answer)
            if size > MOST_IN_ALL:
                raise Refusal(
                    f"The rows hold more than {MOST_IN_ALL} characters by row {number}. Ask for fewer.",
                    code="too_many_tokens",
                    param="number_elements_for_training",
                )
    if seen < wanted.number:
        raise Refusal(
            f"number_elements_for_training is {wanted.number}, but the data set has {seen} "
            f"{'row' if seen == 1 else 'rows'}. Ask for at most {seen}, or upload more rows.",
            code="too_few_examples",
            param="number_elements_for_training",
        )
    bad = sorted(number for numbers in faults.values() for number in numbers)
    if bad and (wanted.on_invalid == "error" or not pairs):
        told = "; ".join(
            f"{_counted(len(numbers))} {what} ({_numbers(numbers)})" for what, numbers in faults.items()
        )
        raise Refusal(
            f'Of {seen} rows, {told}. Mend them, or send "on_invalid": "skip" to train without them.'
            if pairs
            else f"No row of {seen} can be used: {told}.",
            code=_FAULT_CODES[next(iter(faults))],
            param="dataset_name",
        )
    return Pairs(tuple(pairs), wanted.plain_text, tuple(bad))


def read(data: bytes, form: Form) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers, as they stand in the file."""
    return {Form.JSONL: _jsonl, Form.JSON: _json, Form.CSV: _csv, Form.PARQUET: _parquet}[form](data)


# --- cells ------------------------------------------------------------------------------------


class _Fault(Enum):
    MISSING = "without one of the columns"
    NULL = "null"
    EMPTY = "empty or blank"
    TYPE = "neither text nor a number"
    LONG = f"longer than {MOST_IN_A_CELL} characters"
    UNICODE = "not valid Unicode"


_FAULT_CODES = {
    _Fault.MISSING.value: "missing_column",
    _Fault.NULL.value: "null_value",
    _Fault.EMPTY.value: "empty_text",
    _Fault.TYPE.value: "wrong_type",
    _Fault.LONG.value: "too_many_tokens",
    _Fault.UNICODE.value: "invalid_encoding",
}


def _cell(row: Mapping[str, Any], column: str) -> str | _Fault:
    if column not in row:
        return _Fault.MISSING
    value = row[column]
    if value is None or value != value:  # Parquet writes a missing number as NaN
        return _Fault.NULL
    if isinstance(value, int | float):
        value = json.dumps(value)
    elif isinstance(value, Decimal):
        value = str(value)
    if not isinstance(value, str):
        return _Fault.TYPE
    if len(value) > MOST_IN_A_CELL:
        return _Fault.LONG
    if not value.strip():
        return _Fault.EMPTY
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return _Fault.UNICODE
    return value


def _check_columns(row: Mapping[str, Any], wanted: Wanted) -> None:
    for param in ("question_column", "answer_column"):
        column = getattr(wanted, param)
        if column not in row:
            raise Refusal(
                f'There is no column "{column[:80]}".{nearest(column, row)} The columns are: {listed(row)}.',
                code="missing_column",
                param=param,
            )


def _with(
    first: tuple[int, Mapping[str, Any]], rest: Iterator[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield first
    yield from rest


def _counted(number: int) -> str:
    return "1 is" if number == 1 else f"{number} are"


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"{'row' if len(numbers) == 1 else 'rows'} {shown}{more}"


# --- forms ------------------------------------------------------------------------------------


def _jsonl(data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    for line, text in enumerate(_text(data).split("\n"), start=1):
        if not text.strip():
            continue
        number += 1
        if text.strip() == "{":
            raise _unreadable(
                f"line {line} begins an object that goes on below; write each object on one line, or "
                "all of them as one array"
            )
        yield number, _object(_parsed(text, f"line {line}"), f"line {line}")


def _json(data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    parsed = _parsed(_text(data), "the file")
    if not isinstance(parsed, list):
        raise _unreadable("its JSON is not an array of objects")
    for number, row in enumerate(parsed, start=1):
        yield number, _object(row, f"row {number}")


def _csv(data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = _text(data)
    lines = csv.reader(io.StringIO(text, newline=""), _dialect(text), strict=True)
    csv.field_size_limit(2 * MOST_IN_A_CELL)
    try:
        header = [name.strip() for name in next((cells for cells in lines if cells), [])]
        _check_number(len(header))
        twice = sorted(name for name, times in Counter(header).items() if times > 1)
        if twice:
            raise _unreadable(f"its first line names a column twice: {listed(twice)}")
        number = 0
        for cells in lines:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                there = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
                raise _unreadable(f"row {number} has {there} and the first line {len(header)}")
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error:
        raise _unreadable(f"line {lines.line_num} is not CSV (a quote left open, or a huge cell?)") from None


def _parquet(data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            _check_number(len(file.schema_arrow.names))
            if file.metadata.num_rows and len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
                raise _unreadable("it names a column twice")
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError):
        raise _unreadable(
            "it is damaged, not Parquet after all, or holds a date that is out of range"
        ) from None


class _Comma(csv.excel):
    delimiter = ","


class _Semicolon(csv.excel):
    delimiter = ";"


class _Tab(csv.excel):
    delimiter = "\t"


def _dialect(text: str) -> type[csv.Dialect]:
    """The separator that the first line uses most; a comma where it uses none."""
    first = text.split("\n", 1)[0]
    return max((_Comma, _Semicolon, _Tab), key=lambda dialect: first.count(dialect.delimiter))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = (
            f"The file is not UTF-8 (line {line}, byte {error.start}). Save it as UTF-8 and upload it again."
        )
        raise Refusal(message, code="invalid_encoding", param="dataset_name") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except _Twice:
        raise _unreadable(f"{where} names a column twice in one object") from None
    except json.JSONDecodeError as error:
        place = (
            f"column {error.colno}" if where != "the file" else f"line {error.lineno}, column {error.colno}"
        )
        raise _unreadable(f"{where} is not JSON ({place})") from None
    except (RecursionError, ValueError):
        raise _unreadable(f"{where} is nested too deep or holds a number that is too long") from None


class _Twice(Exception):
    """An object with two values of one name: which of them is meant?"""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _Twice
    return row


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(f"{where} is not a JSON object with columns as names")
    _check_number(len(value))
    return value


def _check_number(columns: int) -> None:
    """So many columns are a mistake, or meant to keep us busy."""
    if columns > MOST_COLUMNS:
        raise _unreadable(f"it has {columns} columns, and {MOST_COLUMNS} are the limit")


def _unreadable(why: str, param: str = "dataset_name") -> Refusal:
    return Refusal(
        f"The file cannot be read: {why}. JSON Lines, JSON, CSV (UTF-8, with a first line of names) and "
        "Parquet are understood.",
        code="invalid_file_format",
        param=param,
    )


# --- the hub ----------------------------------------------------------------------------------


class NoHub:
    """The rule: what is trained on is uploaded, so that no third party learns of it."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]:
        raise NotFound(
            "There is no uploaded data set of this name, and this enclave fetches nothing from outside. "
            'Upload a file with POST /v1/files (purpose "fine-tune") and send its id as dataset_name.',
            code="dataset_not_found",
            param="dataset_name",
            status=400,
        )


class HuggingFaceHub:
    """Public data sets, where the operator allows outbound traffic: data files only, never scripts."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]:
        if not _HUB_NAME.fullmatch(name) or ".." in name:
            raise Refusal(
                'dataset_name is neither the id of an uploaded file ("file-…") nor a name like "ORG/NAME".',
                code="dataset_not_found",
                param="dataset_name",
            )
        from datasets import load_dataset
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            check_repository(HfApi().list_repo_files(name, repo_type="dataset"))
            rows = load_dataset(name, config, split="train", streaming=True)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403, 404):
                message = "The hub has no public data set of this name."
                raise Refusal(message, code="dataset_not_found", param="dataset_name") from None
            raise Failed(
                "The hub did not answer; try again later.", code="hub_unreachable", status=503
            ) from None
        except (ValueError, FileNotFoundError):
            message = "The data set has no such config_name, or no train split."
            raise Refusal(message, code="unknown_config", param="config_name") from None
        except OSError:
            raise Failed(
                "The hub cannot be reached; try again later.", code="hub_unreachable", status=503
            ) from None
        yield from islice(rows, number)


def check_repository(files: list[str]) -> None:
    """Refuse a repository that carries code, or nothing that could be read as data (threats.md S-18)."""
    if any(name.endswith(".py") for name in files):
        raise Refusal(
            "This data set is made by a script, and scripts are never run here. Upload its rows as a file.",
            code="unsafe_dataset",
            param="dataset_name",
        )
    if not any(name.endswith((".parquet", ".jsonl", ".json", ".csv")) for name in files):
        message = "This data set has no Parquet, JSON or CSV files."
        raise Refusal(message, code="invalid_file_format", param="dataset_name")


def numbered(rows: Iterator[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers, for sources that do not count."""
    return iter(enumerate(rows, start=1))
