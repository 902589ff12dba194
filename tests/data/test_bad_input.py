"""What people send by mistake, or to do harm: each is refused in words that say what and where."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindbox_data import (
    MOST_IN_A_ROW,
    DataError,
    Form,
    Pair,
    Selection,
    Text,
    Wanted,
    open_rows,
    select,
)

GOOD = {"question": "Where does the mill stand?", "answer": "At the weir."}


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(table: Any, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def read(data: bytes, name: str = "rows.jsonl", **wanted: Any) -> Selection:
    wish = Wanted(**wanted)
    return select(open_rows(io.BytesIO(data), Form.of(name, data[: 64 << 10]), wish), wish)


def refused(data: bytes, name: str = "rows.jsonl", **wanted: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(data, name, **wanted)
    assert "canary" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("beginning", "name", "words"),
    [
        (b"<!DOCTYPE html>\n<title>canary", "rows.csv", "it is HTML or XML"),
        (b"\n <html>canary", "rows.jsonl", "it is HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "rows.parquet", "Git LFS"),
        (b"ARROW1\0\0canary", "rows.arrow", "save it as Parquet"),
        (b"\xd0\xcf\x11\xe0canary", "rows.xls", "save it as CSV"),
        (b"PK\x03\x04canary", "rows.xlsx", "spreadsheet"),
        (b"{\\rtf1 canary", "rows.jsonl", "RTF"),
        (b"SQLite format 3\0canary", "rows.db", "database"),
        (b"PAREcanary", "rows.parquet", "encryption"),
        (b"\xfe\xff\0q", "rows.csv", "UTF-16"),
    ],
)
def test_what_is_no_data_set_is_called_by_what_it_is(beginning: bytes, name: str, words: str) -> None:
    """S-18: none of them is opened."""
    error = refused(beginning, name)
    assert words in error.message
    assert error.param == "file"


def test_broken_json_is_named_by_its_line() -> None:
    rows = jsonl(*[GOOD] * 16)
    error = refused(rows + b'{"question": "canary\n')
    assert "line 17 is not JSON (column 21)" in error.message
    assert error.code == "invalid_file_format"
    array = b"[\n" + b",\n".join(rows.splitlines()) + b',\n{"question": canary}\n]'
    assert "the file is not JSON (line 18, column 14)" in refused(array, "rows.json").message


@pytest.mark.parametrize("padding", [0, 1, 250_000, 262_000, 600_000])
def test_an_arrays_fault_is_placed_rightly_however_far_in_it_lies(padding: int) -> None:
    data = b'[\n{"question": "' + b"x" * padding + b'",\n "answer": "y"},\n  {"question" "canary"}]'
    error = refused(data, "rows.json")
    assert "(line 4, column 15)" in error.message


def test_letters_on_the_border_of_two_pieces_are_read_whole() -> None:
    for shift in range(4):
        rows = [{"question": "x" * shift + "水車é" * 60_000, "answer": "ü"}] * 2
        for data, name in (
            (jsonl(*rows), "a.jsonl"),
            (json.dumps(rows, ensure_ascii=False).encode(), "a.json"),
        ):
            example = read(data, name).examples[1]
            assert isinstance(example, Pair)
            assert example.question == rows[0]["question"]


@pytest.mark.parametrize("form", list(Form))
def test_a_byte_order_mark_and_nothing_else_has_no_rows(form: Form) -> None:
    if form in (Form.JSONL, Form.CSV):
        assert list(open_rows(io.BytesIO(b"\xef\xbb\xbf"), form)) == []
    else:
        with pytest.raises(DataError):
            list(open_rows(io.BytesIO(b"\xef\xbb\xbf"), form))


def test_two_encodings_in_one_file_are_told_as_that() -> None:
    data = "question,answer\nOù?,là\n".encode() + "Où?,là\n".encode("latin-1")
    error = refused(data, "a.csv")
    assert "line 3" in error.message
    assert "two encodings are mixed" in error.message
    assert error.code == "invalid_encoding"
    array = '[{"question": "é", "answer": "x"},\n'.encode() + '{"question": "é"}]'.encode("latin-1")
    assert "not UTF-8 (line 2, byte 50), though" in refused(array, "a.json").message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_end_of_line_and_a_byte_order_mark_are_understood(mark: bytes, end: str) -> None:
    data = mark + end.join(["question,answer", 'a,"b', 'c"', "d,e", ""]).encode()
    assert read(data, "a.csv").examples == (Pair("a", f"b{end}c"), Pair("d", "e"))


def test_ends_of_lines_on_the_border_of_two_pieces_are_one_end() -> None:
    class Slowly(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(1)

    data = b"question,answer\r\na,b\r\n\r\nc,d\re,f"
    rows = list(open_rows(Slowly(data), Form.CSV))
    assert [tuple(row.values()) for _, row in rows] == [("a", "b"), ("c", "d"), ("e", "f")]


def test_a_huge_cell_is_a_fault_of_its_row_and_a_huger_one_of_the_file() -> None:
    cell = "canary" * (20 << 20 >> 2)
    for data, name in (
        (jsonl(GOOD, {"question": cell, "answer": "x"}), "a.jsonl"),
        (f"question,answer\na,b\n{cell},x\n".encode(), "a.csv"),
    ):
        error = refused(data, name)
        assert error.code == "too_many_tokens"
        assert "1 is longer than 1048576 characters (row 2)" in error.message
        assert read(data, name, on_invalid="skip").report.rows_used == 1
    huge = jsonl(GOOD, {"question": "x", "answer": "y", "other": "z" * MOST_IN_A_ROW})
    assert "Line 2 is longer than 32 MiB" in refused(huge).message


def test_more_rows_than_may_be_trained_on_are_refused_without_reading_them_all() -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            line = jsonl(GOOD)
            Endless.taken += len(line)
            buffer[: len(line)] = line
            return len(line)

    wanted = Wanted(most_rows=1000)
    with pytest.raises(DataError, match="more than 1000 rows") as caught:
        select(open_rows(Endless(), Form.JSONL, wanted), wanted)  # type: ignore[arg-type]
    assert caught.value.code == "too_many_examples"
    assert Endless.taken < 1 << 20
    assert read(jsonl(*[GOOD] * 9), number=5, most_rows=5).report.rows_read == 5
    for number in (0, -1, 6):
        assert refused(jsonl(GOOD), number=number, most_rows=5).code == "invalid_value"


def test_a_large_file_is_never_held_in_memory() -> None:
    class Long(io.RawIOBase):
        """Lines, then an array or CSV, of about 30 MB."""

        def __init__(self, head: bytes, row: bytes, tail: bytes) -> None:
            self.pieces: Iterator[bytes] = filter(None, [head, *[row * 64] * 200, tail])

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return next(self.pieces, b"")

    cell = b"x" * 2300
    for form, head, row, tail in (
        (Form.JSONL, b"", b'{"question": "%s", "answer": 1}\n' % cell, b""),
        (Form.CSV, b"question,answer\n", b"%s,1\n" % cell, b""),
        (Form.JSON, b"[", b'{"question": "%s", "answer": 1},' % cell, b'{"question": "", "answer": 1}]'),
    ):
        tracemalloc.start()
        file: Any = Long(head, row, tail)
        count = sum(1 for _ in open_rows(file, form))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count in (12_800, 12_801)
        assert peak < 4 << 20, form


def test_only_the_columns_that_are_meant_are_read_from_parquet() -> None:
    """The others may hold anything, and damage in them harms nobody."""
    rows = 2000
    table = pa.table(
        {
            "big": ["canary" * 1000 + str(n) for n in range(rows)],
            "question": [f"q {n}" for n in range(rows)],
            "nested": [[n] for n in range(rows)],
            "answer": list(range(rows)),
        }
    )
    data = parquet(table, use_dictionary=False, compression="none")

    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.taken += len(data)
            return data

    wanted = Wanted("question", "answer")
    selection = select(open_rows(Counting(data), Form.PARQUET, wanted), wanted)
    assert selection.examples[1] == Pair("q 1", "1")
    assert len(selection.examples) == rows
    assert Counting.taken < len(data) / 20


@pytest.mark.parametrize(
    ("cell", "what"), [(["canary"], "list"), ({"canary": 1}, "struct (an object)"), ([{"canary": 1}], "list")]
)
def test_nested_columns_of_parquet_are_refused_by_name(cell: Any, what: str) -> None:
    data = parquet(pa.Table.from_pylist([{"question": "x", "answer": cell}]))
    error = refused(data, "a.parquet")
    assert f'The column "answer" holds a {what} in each row' in error.message
    assert (error.code, error.param) == ("wrong_type", "answer_column")


def test_a_parquet_file_that_says_it_is_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-24: a million zeros are some bytes; what they become is known before they are unpacked."""
    table = pa.table({"question": ["canary" + "0" * 1000] * 3000, "answer": ["x"] * 3000})
    data = parquet(table, use_dictionary=False, compression="zstd")
    assert len(data) < 20_000
    monkeypatch.setattr("blindbox_data.parquet.MOST_UNPACKED", 1 << 20)
    error = refused(data, "a.parquet")
    assert "Row group 1" in error.message
    assert "smaller row groups" in error.message
    assert error.code == "too_many_tokens"


def test_a_parquet_file_that_hides_what_it_becomes_is_found_out_by_its_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S-24: the summary is made to lie; the pages' own headers cannot, for by them the library reserves."""
    table = pa.table({"text": ["0" * 2000] * 10_000})
    data = parquet(table, use_dictionary=False, compression="zstd", data_page_size=1 << 30)

    def told(file: bytes) -> int:
        chunk = pq.ParquetFile(io.BytesIO(file)).metadata.row_group(0).column(0)
        return int(chunk.total_uncompressed_size)

    lying = data.replace(_varint(told(data)), _varint(2 << 20))  # as many bytes, another number
    assert len(data) == len(lying) < 1 << 15
    assert (told(data) >> 20, told(lying) >> 20) == (19, 2)
    for limit in ("MOST_UNPACKED", "MOST_IN_A_PAGE"):
        with monkeypatch.context() as patched:
            patched.setattr(f"blindbox_data.parquet.{limit}", 10 << 20)
            for file in (data, lying):
                assert (
                    "becomes 19 MiB when it is unpacked, with a page of 19 MiB"
                    in refused(file, "a.parquet").message
                )
    assert read(lying, "a.parquet").report.rows_used == 10_000


def _varint(number: int) -> bytes:
    """As thrift writes it: zigzag, seven bits a byte."""
    number, out = number << 1, b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_every_usual_way_of_writing_parquet_is_read(version: str, dictionary: bool, compression: str) -> None:
    rows = [{"question": f"q {n % 40} {'x' * (n % 90)}", "answer": f"a {n}"} for n in range(3000)]
    data = parquet(
        pa.Table.from_pylist(rows),
        data_page_version=version,
        use_dictionary=dictionary,
        compression=compression,
        data_page_size=3000,
        row_group_size=1300,
        write_page_index=dictionary,
    )
    assert read(data, "a.parquet").examples == tuple(Pair(row["question"], row["answer"]) for row in rows)


def test_one_value_said_a_million_times_takes_its_room_once() -> None:
    said = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 100_000])
    data = parquet(pa.table({"text": said}), store_schema=False)
    assert len(data) < 1 << 20
    wanted = Wanted("text", "text", number=2000)
    before = pa.total_allocated_bytes()
    rows = open_rows(io.BytesIO(data), Form.PARQUET, wanted)
    most = 0
    for number, _ in rows:
        most = max(most, pa.total_allocated_bytes() - before)
        if number == 1000:
            break
    assert most < 16 << 20  # two gigabytes, written out


def test_a_chat_that_says_one_thing_without_end_is_found_out_before_it_is_written_out() -> None:
    """S-24: fifty kilobytes of file, and one row of them would be gigabytes."""
    said = {"role": "user", "content": "x" * 100_000}
    answered = {"role": "assistant", "content": "y"}
    table = pa.Table.from_pylist([{"messages": [said, answered]}, {"messages": [said] * 1000 + [answered]}])
    data = parquet(table)
    assert len(data) < 50_000
    error = refused(data, "a.parquet")
    assert "Row 2 is longer than 32 MiB" in error.message
    assert error.code == "too_many_tokens"
    assert read(data, "a.parquet", number=1).report.rows_used == 1


def test_a_parquet_file_that_comes_as_a_stream_is_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    data = parquet(pa.Table.from_pylist([GOOD]))
    wanted = Wanted()
    assert select(open_rows(Stream(data), Form.PARQUET, wanted), wanted).report.rows_used == 1
    monkeypatch.setattr("blindbox_data.parquet.MOST_HELD", 100)
    with pytest.raises(DataError, match="Upload JSON Lines"):
        next(open_rows(Stream(data), Form.PARQUET, wanted))


def test_a_file_of_the_disk_is_read_as_any_other(tmp_path: Path) -> None:
    for name, data in (("a.parquet", parquet(pa.Table.from_pylist([GOOD]))), ("a.jsonl", jsonl(GOOD))):
        (tmp_path / name).write_bytes(data)
        with (tmp_path / name).open("rb") as file:
            wanted = Wanted()
            assert select(open_rows(file, Form.of(name, data), wanted), wanted).report.rows_used == 1
            assert not file.closed


def test_three_rows_are_enough_and_a_warning() -> None:
    selection = read(jsonl(*[GOOD | {"answer": f"a {n}"} for n in range(3)]))
    assert len(selection.examples) == 3
    assert "Only 3 rows are used" in selection.report.warnings[0]
    assert read(jsonl(GOOD)).report.rows_used == 1
    assert read(jsonl(*[GOOD | {"answer": f"a {n}"} for n in range(10)])).report.warnings == ()


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["messages", "question", "answer", "text", "prompt", "completion", "input", "tools"])
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "weight", "tool_calls", "name", "x"]),
    st.sampled_from(["user", "assistant", "system", "tool"]) | CELLS,
    max_size=4,
)


@given(
    st.lists(st.dictionaries(NAMES, CELLS | st.lists(MESSAGE, max_size=4), max_size=4), max_size=6),
    st.sampled_from([None, "question", "messages", "text"]),
    st.sampled_from([None, "answer", "messages", "text"]),
    st.sampled_from(["error", "skip"]),
    st.booleans(),
)
def test_no_rows_whatever_raise_anything_but_a_data_error(
    rows: list[Any], question: str | None, answer: str | None, on_invalid: Any, dedup: bool
) -> None:
    wanted = Wanted(question, answer, on_invalid=on_invalid, dedup=dedup)
    for data, form in ((jsonl_of(rows), Form.JSONL), (json.dumps(rows).encode(), Form.JSON)):
        try:
            selection = select(open_rows(io.BytesIO(data), form, wanted), wanted)
        except DataError as error:
            json.dumps([error.message, error.code, error.param])
        else:
            assert selection.report.rows_used == len(selection.examples) == len(selection.rows)
            json.dumps(selection.report.told())


def jsonl_of(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


@given(st.binary(max_size=200), st.sampled_from(list(Form)), st.integers(1, 7))
def test_no_bytes_whatever_raise_anything_but_a_data_error_however_they_come(
    data: bytes, form: Form, size: int
) -> None:
    """Also where the form is another than what is in it, and where a piece ends anywhere."""

    class Bits(io.BytesIO):
        def read(self, wanted: int | None = -1) -> bytes:
            return super().read(size if wanted is None or wanted < 0 else min(size, wanted))

    def read_from(file: Any) -> bool:
        try:
            return all(isinstance(name, str) for _, row in open_rows(file, form) for name in row)
        except DataError:
            return False

    assert read_from(io.BytesIO(data)) is read_from(Bits(data))


def test_a_text_column_is_learned_as_text() -> None:
    assert read(jsonl({"text": "One."})).examples == (Text("One."),)
