"""
Rows out of Parquet: the columns that are asked for and no others, a few rows at a time.

Text stays in the file's own dictionary until a row is handed out, so that one value said a million times
takes its room once. Lists and objects are taken for the messages of a chat alone; elsewhere they are refused.
`pyarrow` reads; it is imported when there is a Parquet file, and not before.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from .errors import DataError, listed, shown, unreadable
from .json_rows import check_number
from .lines import MOST_IN_A_ROW, too_long
from .parquet_pages import unpacked
from .shapes import Shape
from .wanted import Wanted

MOST_HELD: Final = 1 << 30
"""Bytes of a file that can be read only from its beginning on; it is held in memory while it is read."""
MOST_UNPACKED: Final = 512 << 20
"""Bytes that one group of rows may become, in the columns that are read."""
MOST_IN_A_PAGE: Final = 128 << 20
"""Bytes that one page of a column may become; a megabyte is usual."""
_AT_ONCE: Final = 64


def parquet_rows(file: BinaryIO, wanted: Wanted | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows; without `wanted` with all columns that hold text or numbers."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "To read Parquet, pyarrow is needed (pip install pyarrow); or save the rows as JSON Lines.",
            code="invalid_file_format",
            param="file",
        ) from None
    source = _seekable(file)
    number = 0
    try:
        with pq.ParquetFile(pa.PythonFile(source, mode="r")) as opened:
            schema = opened.schema_arrow
            columns = _columns(schema, wanted, pa)
            whole = opened.metadata.num_rows
            texts = _texts(opened.schema, set(columns))
            nested = {name for name in columns if pa.types.is_nested(schema.field(name).type)}
        if not whole:
            return
        _check_size(source, columns)
        source.seek(0)
        with pq.ParquetFile(
            pa.PythonFile(source, mode="r"), read_dictionary=texts, pre_buffer=False
        ) as opened:
            for batch in opened.iter_batches(batch_size=_AT_ONCE, columns=columns, use_threads=False):
                cells = [batch.column(at) for at in range(batch.num_columns)]
                names = batch.schema.names
                lists = [cell for name, cell in zip(names, cells, strict=True) if name in nested]
                for row in range(batch.num_rows):
                    number += 1
                    if any(_written_out(cell.slice(row, 1), pa) > MOST_IN_A_ROW for cell in lists):
                        raise too_long(f"Row {number}")
                    yield number, {name: cell[row].as_py() for name, cell in zip(names, cells, strict=True)}
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, MemoryError):
        raise unreadable(
            "it is damaged, not Parquet after all, or holds a date that is out of range"
        ) from None


def _columns(schema: Any, wanted: Wanted | None, pa: Any) -> list[str]:
    """The names of what is to be read, checked."""
    names: list[str] = schema.names
    check_number(len(names))
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise unreadable(f"it names a column twice: {listed(twice)}")
    if wanted is None:
        return [name for name in names if not pa.types.is_nested(schema.field(name).type)]
    shape = Shape.of(names, wanted.question_column, wanted.answer_column)
    for name in shape.columns:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) and name not in shape.nested:
            raise DataError(
                f'The column "{shown(name)}" holds a {_told(kind, pa)} in each row, and text or a number is '
                'wanted. Write it as text, or upload a chat under the name "messages".',
                code="wrong_type",
                param="question_column" if name == shape.question else "answer_column",
            )
    return list(shape.columns)


def _check_size(file: BinaryIO, columns: list[str]) -> None:
    """A few bytes can become many; what they say they become is known before one of them is unpacked."""
    for group, (size, largest) in enumerate(unpacked(file, set(columns)), start=1):
        if size > MOST_UNPACKED or largest > MOST_IN_A_PAGE:
            raise DataError(
                f"Row group {group} of the Parquet file becomes {size >> 20} MiB when it is unpacked, "
                f"with a page of {largest >> 20} MiB; {MOST_UNPACKED >> 20} and {MOST_IN_A_PAGE >> 20} MiB "
                "are the limits. Write it in smaller row groups (row_group_size=10000).",
                code="too_many_tokens",
            )


def _texts(schema: Any, columns: set[str]) -> list[str]:
    """The paths of all texts in these columns, however deep they lie."""
    leaves = (schema.column(at) for at in range(len(schema)))
    return [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type == "STRING"
        and (leaf.path in columns or leaf.path.partition(".")[0] in columns)
    ]


def _written_out(array: Any, pa: Any) -> int:
    """How many bytes these values are once each is a text of its own."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.cast(pa.int64()).take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_written_out(field, pa) for field in array.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(array) + _written_out(array.flatten(), pa)
    return int(array.nbytes)


def _told(kind: Any, pa: Any) -> str:
    if pa.types.is_map(kind):
        return "map"
    return "struct (an object)" if pa.types.is_struct(kind) else "list"


def _seekable(file: BinaryIO) -> BinaryIO:
    """Parquet is read from its end: what comes as a stream has to be held."""
    if file.seekable():
        return file
    held = io.BytesIO()
    while piece := file.read(1 << 20):
        held.write(piece)
        if held.tell() > MOST_HELD:
            raise DataError(
                f"The Parquet file is larger than {MOST_HELD >> 20} MiB. Upload JSON Lines, which is read as "
                "it comes, or fewer rows.",
                code="too_many_tokens",
            )
    held.seek(0)
    return held
