"""A file → rows, or an error that names what is wrong and quotes nothing."""

from __future__ import annotations

import io
import json
import time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindbox_data import (
    MOST_COLUMNS,
    MOST_IN_A_CELL,
    DataError,
    Form,
    Pair,
    Selection,
    Wanted,
    open_rows,
    select,
)

ROWS = [{"q": "one", "a": "eins"}, {"q": "two", "a": "zwei"}, {"q": "two", "a": "zwei"}]
WANTED = Wanted("q", "a", 3)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


FILES = {
    "rows.jsonl": jsonl(ROWS),
    "rows.json": json.dumps(ROWS).encode(),
    "rows.csv": b"q,a\none,eins\ntwo,zwei\ntwo,zwei\n",
    "rows.parquet": parquet(ROWS),
}


def chosen(data: bytes, name: str = "rows.jsonl", wanted: Wanted = WANTED) -> Selection:
    return select(open_rows(io.BytesIO(data), Form.of(name, data[: 64 << 10]), wanted), wanted)


def taken(data: bytes, name: str = "rows.jsonl", wanted: Wanted = WANTED) -> tuple[tuple[str, str], ...]:
    examples = chosen(data, name, wanted).examples
    return tuple((each.question, each.answer) for each in examples if isinstance(each, Pair))


def refused(data: bytes, name: str = "rows.jsonl", wanted: Wanted = WANTED) -> DataError:
    with pytest.raises(DataError) as caught:
        chosen(data, name, wanted)
    assert caught.value.code
    assert caught.value.param
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_the_same_rows_and_duplicates_are_fine(name: str) -> None:
    assert taken(FILES[name], name) == (("one", "eins"), ("two", "zwei"), ("two", "zwei"))
    assert taken(FILES[name], "no-ending-at-all") == taken(FILES[name], name)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xef\xbb\xbfq,a\r\none,eins\r\n", "a.csv"),
        (b"q;a\none;eins\n", "a.csv"),
        (b"q\ta\none\teins\n", "a.csv"),
        (b'a,"q",extra\neins,"one",x\n', "a.csv"),
        (b"\n\nq,a\n\none,eins\n", "a.csv"),
        (b'\n\n{"q": "one", "a": "eins", "extra": [1]}\n\n', "a.jsonl"),
        (b' [{"q": "one", "a": "eins"}]', "a.json"),
        (b'{"q": "one", "a": "eins"}', "a.json"),
        (b'{"q": "one", "a": "eins"}\r\n', "a.ndjson"),
    ],
)
def test_common_ways_of_writing_are_understood(data: bytes, name: str) -> None:
    assert taken(data, name, Wanted("q", "a", 1)) == (("one", "eins"),)


def test_a_csv_cell_may_hold_lines_and_quotes() -> None:
    data = b'q,a\n"one\nline, ""two""",eins\n'
    assert taken(data, "a.csv", Wanted("q", "a", 1)) == (('one\nline, "two"', "eins"),)


def test_the_first_rows_are_taken_and_what_follows_is_not_judged() -> None:
    data = jsonl([*ROWS, {"q": None}, {"nonsense": 1}])
    assert len(taken(data)) == 3


def test_numbers_and_truth_values_are_written_as_text() -> None:
    data = jsonl([{"q": 1, "a": 2.5}, {"q": True, "a": False}])
    assert taken(data, wanted=Wanted("q", "a", 2)) == (("1", "2.5"), ("true", "false"))


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_column_lists_the_columns_there_are(name: str) -> None:
    error = refused(FILES[name], name, Wanted("Q", "answer", 3))
    assert error.param == "question_column"
    assert 'Did you mean "q"? The columns are: "q", "a".' in error.message
    assert refused(FILES[name], name, Wanted("q", "answer", 3)).param == "answer_column"


def test_many_columns_are_listed_in_part() -> None:
    row = {f"column {n}": "x" for n in range(100)}
    assert "and 60 more" in refused(jsonl([row])).message


@pytest.mark.parametrize("name", FILES)
def test_asking_for_more_rows_than_there_are_says_how_many_there_are(name: str) -> None:
    error = refused(FILES[name], name, Wanted("q", "a", 4))
    assert error.code == "too_few_examples"
    assert "has 3 rows. Ask for at most 3" in error.message


@pytest.mark.parametrize("data", [b"q,a\n", b"[]"])
def test_a_file_without_rows_says_so(data: bytes) -> None:
    assert "no rows" in refused(data, "a.csv" if data[:1] == b"q" else "a.json").message


BAD = [
    ({"q": None, "a": "x"}, "null_value", "null"),
    ({"q": "x", "a": ""}, "empty_text", "empty or blank"),
    ({"q": " \n\t", "a": "x"}, "empty_text", "empty or blank"),
    ({"q": "canary", "a": {"canary": 1}}, "wrong_type", "neither text nor a number"),
    ({"q": ["canary"], "a": "x"}, "wrong_type", "neither text nor a number"),
    ({"q": "canary"}, "missing_column", "without one of the columns"),
    ({"q": "x" * (MOST_IN_A_CELL + 1), "a": "x"}, "too_many_tokens", "longer than 1048576 characters"),
    ({"q": "canary \ud800", "a": "x"}, "invalid_encoding", "not valid Unicode"),
]


@pytest.mark.parametrize(("row", "code", "words"), BAD)
def test_bad_rows_are_counted_and_named_and_not_quoted(row: dict[str, Any], code: str, words: str) -> None:
    """S-20: row numbers, never what stands in the rows."""
    data = jsonl([*ROWS, row, ROWS[0], row])
    error = refused(data, wanted=Wanted("q", "a", 6))
    assert error.code == code
    assert f"2 are {words} (rows 4, 6)" in error.message
    assert "canary" not in error.message
    report = chosen(data, wanted=Wanted("q", "a", 6, on_invalid="skip")).report
    assert (report.rows_used, report.rows_dropped, report.dropped_rows) == (4, 2, [4, 6])
    assert report.told()["dropped"] == {code: {"count": 2, "rows": [4, 6]}}
    everything = refused(
        jsonl([ROWS[0] | {"q": ""}, ROWS[0] | {"q": ""}]), wanted=Wanted("q", "a", 2, "skip")
    )
    assert "No row of 2 can be used" in everything.message


def test_missing_numbers_in_parquet_are_null() -> None:
    data = parquet([{"q": 1.5, "a": "x"}, {"q": float("nan"), "a": "y"}])
    assert "1 is null (row 2)" in refused(data, "a.parquet", Wanted("q", "a", 2)).message


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"", "a.jsonl", "empty"),
        (b" \n ", "a.jsonl", "empty"),
        (b"PK\x03\x04canary", "a.zip", "archive"),
        (b"\x1f\x8bcanary", "a.jsonl.gz", "compressed"),
        (b"\x80\x04\x95canary", "a.pkl", "neither text nor Parquet"),
        (b"q,a\n\0canary,x\n", "a.csv", "neither text nor Parquet"),
        (b"PAR1canary", "a.parquet", "damaged"),
        (parquet(ROWS)[:-20], "a.parquet", "damaged"),
        (parquet(ROWS)[:100] + b"canary" + parquet(ROWS)[106:], "a.parquet", "damaged"),
        (b"q,a\none,eins\n", "a.parquet", "its name says parquet"),
        (b'{"q": "canary"', "a.jsonl", "line 1 is not JSON"),
        (jsonl(ROWS) + b"\ncanary", "a.jsonl", "line 4 is not JSON"),
        (jsonl(ROWS) + b"\n[1]", "a.jsonl", "line 4 is not a JSON object"),
        (b'{"a":' * 100_000, "a.jsonl", "nested too deep"),
        (b"[1, 2]", "a.json", "row 1 is not a JSON object"),
        (b'[{"q": "canary", "a": "x"}, ', "a.json", "the file is not JSON (line 1, column 29)"),
        (b"q,a\none\n", "a.csv", "row 1 has 1 cell and the first line 2"),
        (b"q,q\none,two\n", "a.csv", 'names a column twice: "q"'),
        (b'q,a\n"canary', "a.csv", "is not CSV"),
        (b"q,a\n\xe9canary,x\n", "a.csv", "not UTF-8 (line 2, byte 4)"),
        ("q,a\nonü,x\n".encode("utf-16"), "a.csv", "UTF-16. Save it as UTF-8"),
        ("q,a\nonü,x\n".encode("utf-16-le"), "a.csv", "neither text"),
        (b"%PDF-1.7 canary", "a.pdf", "a PDF, and rows are needed"),
        (b'{\n  "q": "canary",\n  "a": "x"\n}', "a.json", "all of them as one array"),
        (b'{"q": "canary", "q": "x", "a": "y"}', "a.jsonl", "line 1 names a column twice"),
        (b'[{"q": "x", "a": "y", "extra": {"canary": 1, "canary": 2}}]', "a.json", "names a column twice"),
    ],
)
def test_unreadable_files_are_refused_with_the_place_of_the_fault(data: bytes, name: str, words: str) -> None:
    """S-18, S-20: pickles and archives are not opened, and no content is repeated."""
    error = refused(data, name, Wanted("q", "a", 4))
    assert words in error.message, error.message
    assert "canary" not in error.message


@pytest.mark.parametrize("columns", [MOST_COLUMNS + 1, 300_000])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_more_columns_than_anybody_means_are_refused_at_once(columns: int, form: str) -> None:
    """A list of names that is compared with itself would keep the enclave busy for hours."""
    names = ["q"] * columns if form == "csv" else [f"column {n}" for n in range(columns)]
    data = ",".join(names).encode() if form == "csv" else jsonl([dict.fromkeys(names, 1)])
    began = time.monotonic()
    assert f"{columns} columns" in refused(data, f"a.{form}").message
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "odd", [pa.array([2**31 - 1], pa.date32()), pa.array([2**61], pa.timestamp("us"))], ids=["date", "time"]
)
def test_a_date_beyond_the_calendar_in_parquet_is_a_data_error(odd: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"q": ["canary"], "a": odd}), sink)
    assert "a date that is out of range" in refused(sink.getvalue(), "a.parquet").message


def test_a_small_parquet_file_does_not_become_endless_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of a dictionary, said again and again, takes no room in the file but all of the memory."""
    monkeypatch.setattr("blindbox_data.selection.MOST_IN_ALL", 10 << 20)
    sink = io.BytesIO()
    pq.write_table(pa.table({"q": ["x" * (1 << 20)] * 50, "a": ["y"] * 50}), sink)
    assert len(sink.getvalue()) < 1 << 20
    error = refused(sink.getvalue(), "a.parquet", Wanted("q", "a", 50))
    assert "by row 10. Ask for fewer" in error.message


def test_decimals_in_parquet_are_numbers() -> None:
    data = parquet([{"q": Decimal("1.50"), "a": "x"}])
    assert taken(data, "a.parquet", Wanted("q", "a", 1)) == (("1.50", "x"),)


def judged(data: bytes, name: str) -> bool:
    """Whether it may be trained on; anything but a `DataError` comes through."""
    try:
        taken(data, name)
    except DataError:
        return False
    return True


@given(st.binary(max_size=300))
def test_no_bytes_whatever_raise_anything_but_a_data_error(data: bytes) -> None:
    for name in FILES:
        judged(data, name)


@given(st.binary(max_size=40), st.integers(0, 2000))
def test_a_damaged_parquet_file_raises_nothing_but_a_data_error(noise: bytes, place: int) -> None:
    good = FILES["rows.parquet"]
    place %= len(good)
    judged(good[:place] + noise + good[place + len(noise) :], "rows.parquet")


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20))
def test_rows_survive_json_lines_and_parquet(pairs: list[tuple[str, str]]) -> None:
    kept = [(q, a) for q, a in pairs if q.strip() and a.strip()]
    rows = [{"q": q, "a": a} for q, a in pairs]
    for data, name in ((jsonl(rows), "a.jsonl"), (parquet(rows), "a.parquet")):
        if kept:
            assert taken(data, name, Wanted("q", "a", len(rows), "skip")) == tuple(kept)
        else:
            refused(data, name, Wanted("q", "a", len(rows), "skip"))
