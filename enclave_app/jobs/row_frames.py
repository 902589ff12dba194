"""
Rows on their way through a pipe: JSON, in which what a Parquet file can hold and JSON cannot say has a name.

Text, numbers, truth values and null stand for themselves; anything else is a pair of its kind and what it
holds. What comes out is judged as what went in would be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

PIECE: Final = 4 << 20
"""Bytes of a file that are handed down at once."""

Row = tuple[int, Mapping[str, Any]]


class Other:
    """What stood in a cell and is neither text, number, list nor object: it is refused by its kind."""


def packed(number: int, row: Mapping[str, Any]) -> bytes:
    """A row as it goes up."""
    told = [number, [[name, _told(cell)] for name, cell in row.items()]]
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass")


def framed(rows: Iterable[bytes]) -> bytes:
    """Rows as a frame."""
    return b"[" + b",".join(rows) + b"]"


def unpacked(frame: bytes) -> Iterator[Row]:
    """The rows of a frame; raises what a value raises that is none."""
    for number, cells in json.loads(frame.decode("utf-8", "surrogatepass")):
        if not isinstance(number, int):
            raise TypeError
        yield number, {name: _meant(cell) for name, cell in cells}


def _told(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, list):
        return ["list", [_told(each) for each in value]]
    if isinstance(value, tuple):
        return ["tuple", [_told(each) for each in value]]
    if isinstance(value, dict):
        return ["object", [[name, _told(each)] for name, each in value.items()]]
    return ["other", None]


def _meant(cell: Any) -> Any:
    if not isinstance(cell, list):
        return cell
    kind, held = cell
    if kind == "decimal":
        return Decimal(held)
    if kind == "list":
        return [_meant(each) for each in held]
    if kind == "tuple":
        return tuple(_meant(each) for each in held)
    if kind == "object":
        return {name: _meant(each) for name, each in held}
    return Other()
