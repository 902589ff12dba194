"""
What is wrong with a data set, in words for whoever made it: what was found, where, what is wanted instead.

An error names columns, rows, lines and bytes. It never says what stands in a cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Final

_COMPARED: Final = 1000  # names: comparing is slow, and a file may have many
_LONGEST: Final = 500
_SHOWN: Final = 20


class DataError(Exception):
    """
    A file or its rows cannot be used as they stand: `code` in one stable word, `param` the wish at fault.

    `param` is `dataset_name` where the file's content is at fault, `file` where it is the file itself, and
    otherwise the name of the field of `Wanted`, as the house API spells it.
    """

    def __init__(self, message: str, *, code: str, param: str = "dataset_name") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


def unreadable(why: str, param: str = "dataset_name") -> DataError:
    """The file is not what it should be; `why` completes a sentence."""
    return DataError(
        f"The file cannot be read: {why}. JSON Lines, JSON, CSV (UTF-8, with a first line of names) and "
        "Parquet are understood.",
        code="invalid_file_format",
        param=param,
    )


def nearest(wanted: str, there: Iterable[str]) -> str:
    """` Did you mean "…"?`, or nothing where no name is near."""
    found = near(wanted, there)
    return "" if found is None else f' Did you mean "{shown(found)}"?'


def near(wanted: str, there: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that is most like the wanted one, if one is like it at all; letters' case is nothing."""
    names = {name.casefold().strip(): name for name in islice(there, _COMPARED) if len(name) <= _LONGEST}
    found = get_close_matches(wanted.casefold(), names, n=1, cutoff=cutoff) if len(wanted) <= _LONGEST else []
    return names[found[0]] if found else None


def listed(names: Iterable[str], most: int = 40) -> str:
    """Names in quotes; the rest of a long list is counted."""
    all_names = list(names)
    told = ", ".join(f'"{shown(name)}"' for name in all_names[:most])
    return told + (f" and {len(all_names) - most} more" if len(all_names) > most else "")


def shown(name: str) -> str:
    """A column's name, fit for a message: not without end, and nothing in it that cannot be printed."""
    return "".join(each if each.isprintable() else "�" for each in name[:80])


def rows_told(numbers: Iterable[int], count: int) -> str:
    """`row 4`, `rows 4, 6`, `rows 1, 2, … and 7 more`."""
    first = list(islice(numbers, _SHOWN))
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{'row' if count == 1 else 'rows'} {', '.join(map(str, first))}{more}"
