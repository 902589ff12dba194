"""
How a file is written, told by its first bytes; the name only breaks ties.

What looks like data and is none (a web page, a spreadsheet, a pointer to a file) is refused by what it is.
"""

from __future__ import annotations

from enum import Enum
from pathlib import PurePath
from typing import Final

from .errors import DataError, unreadable

BEGINNING: Final = 64 << 10
"""How many of a file's first bytes `Form.of` makes good use of."""


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
        found = _found(beginning)
        if named is None or named is found or {named, found} == {cls.JSON, cls.JSONL}:
            return found
        if named is cls.CSV and found is not cls.PARQUET:
            return named  # a CSV may begin with a bracket
        raise unreadable(f"its name says {named.value} and its content {found.value}", "file")


_ENDINGS: Final = {
    ".jsonl": Form.JSONL,
    ".ndjson": Form.JSONL,
    ".json": Form.JSON,
    ".csv": Form.CSV,
    ".tsv": Form.CSV,
    ".parquet": Form.PARQUET,
}
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_UTF_8_MARK: Final = b"\xef\xbb\xbf"
_STRANGERS: Final = {  # how it begins: what it is, and what to do
    b"PK\x03\x04": "it is compressed or an archive; upload the file that is in it (or, of a spreadsheet, its "
    "CSV)",
    b"\x1f\x8b": "it is compressed or an archive; upload the file that is in it",
    b"BZh": "it is compressed or an archive; upload the file that is in it",
    b"\xfd7zXZ": "it is compressed or an archive; upload the file that is in it",
    b"\x28\xb5\x2f\xfd": "it is compressed or an archive; upload the file that is in it",
    b"7z\xbc\xaf": "it is compressed or an archive; upload the file that is in it",
    b"\xd0\xcf\x11\xe0": "it is an old spreadsheet or document; save it as CSV (UTF-8)",
    b"%PDF": "it is a PDF, and rows are needed",
    b"{\\rtf": "it is a document (RTF), and rows are needed",
    b"ARROW1": "it is an Arrow or Feather file; save it as Parquet",
    b"SQLite format 3": "it is a database; save the table as CSV (UTF-8)",
    b"version https://git-lfs": "it is Git LFS's pointer to a file; git lfs pull brings the file itself",
}


def _found(beginning: bytes) -> Form:
    if beginning.startswith(b"PAR1"):
        return Form.PARQUET
    if beginning.startswith(b"PARE"):
        raise unreadable("it is Parquet with encryption of its own; save it without", "file")
    for mark, what in _STRANGERS.items():
        if beginning.startswith(mark):
            raise unreadable(what, "file")
    if beginning.startswith(_UTF_16):
        message = "The file is UTF-16. Save it as UTF-8 and upload it again."
        raise DataError(message, code="invalid_encoding", param="file")
    if beginning.startswith(b"\x80") or b"\0" in beginning:
        raise unreadable("it is neither text nor Parquet (UTF-16 without its mark, or binary data)", "file")
    start = beginning.removeprefix(_UTF_8_MARK).lstrip()
    if not start:
        raise unreadable("it is empty", "file")
    if start[:1] == b"<":
        what = "it is HTML or XML: a page (of a login or an error?) was saved in place of the file"
        raise unreadable(what, "file")
    return Form.JSON if start[:1] == b"[" else Form.JSONL if start[:1] == b"{" else Form.CSV
