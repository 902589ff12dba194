"""Parquet, read in a process of its own: the same rows, the same words, and no file ends the server."""

from __future__ import annotations

import datetime
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blindbox_data import DataError, Form, Wanted, open_rows, select
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.jobs import parquet
from enclave_app.jobs.parquet import Stopped, parquet_rows
from enclave_app.jobs.reading import read_lesson
from enclave_app.refusals import Refusal
from enclave_app.store import Damaged, Store
from enclave_app.training import Recipe
from tests.kit.jobs import ANN

ROWS = [{"question": f"Where is mill {n}?", "answer": f"At weir {n}."} for n in range(300)]
CHAT = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Eins."}]


def written(rows: list[dict[str, Any]] | pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), sink, **how)
    return sink.getvalue()


def judged(rows: Iterator[Any], wanted: Wanted) -> Any:
    """What comes of these rows: examples and report, or the error."""
    try:
        selection = select(rows, wanted)
    except DataError as error:
        return error.message, error.code, error.param
    return selection.shape, selection.examples, selection.rows, selection.report


def children() -> list[int]:
    """The readers that this process has started and that are there still."""
    found = []
    for each in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with suppress(OSError):  # a thread, or a child, that has just ended
            for child in each.read_text().split():
                with suppress(OSError):
                    if b"parquet_child" in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append(int(child))
    return found


GOOD = written(ROWS)
FLAT = Wanted("q", "a")
MAP = pa.map_("string", "string")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (GOOD, Wanted()),
        (GOOD, Wanted(number=7)),
        (GOOD, Wanted(number=301)),
        (GOOD, Wanted(most_rows=200)),
        (GOOD, Wanted("question", "anser")),
        (written([{"q": None, "a": "x"}, {"q": "y", "a": ""}, {"q": "é\0", "a": "z"}]), FLAT),
        (written([{"q": None, "a": "x"}, {"q": "y", "a": "z"}]), Wanted("q", "a", on_invalid="skip")),
        (written([{"q": Decimal("1.50"), "a": 2**62}, {"q": Decimal(3), "a": 4}]), FLAT),
        (written([{"q": 0.5, "a": True}, {"q": float("nan"), "a": False}]), Wanted("q", "a", number=1)),
        (written([{"q": float("inf"), "a": "x"}, {"q": float("nan"), "a": "y"}]), FLAT),
        (written([{"q": datetime.date(2020, 1, 1), "a": "x"}]), FLAT),
        (written([{"q": b"\xff", "a": "x"}]), FLAT),
        (written([{"q": ["x"], "a": "x"}]), FLAT),
        (written([{"messages": CHAT}, {"messages": CHAT[:1]}]), Wanted(on_invalid="skip")),
        (written([{"messages": [{**CHAT[0], "weight": Decimal(1)}, CHAT[1]]}]), Wanted()),
        (written(pa.table({"text": ["x"], "m": pa.array([[("k", "v")]], MAP)})), Wanted()),
        (written([{"text": "x" * ((1 << 20) + 1)}, {"text": "y"}]), Wanted()),
        (GOOD[:-20], Wanted()),
        (GOOD[:100] + b"canary" + GOOD[106:], Wanted()),
        (b"PAR1", Wanted()),
        (written(pa.table({"q": pa.array([], "string"), "a": pa.array([], "string")})), FLAT),
    ],
)  # fmt: skip
def test_what_is_read_and_what_is_refused_is_the_same_as_in_one_process(data: bytes, wanted: Wanted) -> None:
    here = judged(open_rows(io.BytesIO(data), Form.PARQUET, wanted), wanted)
    assert judged(parquet_rows(io.BytesIO(data), wanted), wanted) == here
    assert not children()


def test_rows_before_a_fault_come_before_it() -> None:
    rows = [{"text": "good"}] * 400 + [{"text": "bad"}]
    data = written(rows, use_dictionary=False, compression="none")
    data = data.replace(b"\x03\0\0\0bad", b"\x03\0\0\0\xff\xff\xff")
    read: list[Any] = []
    here: list[Any] = []
    with pytest.raises(DataError, match="damaged"):
        read.extend(parquet_rows(io.BytesIO(data), Wanted()))
    with pytest.raises(DataError, match="damaged"):
        here.extend(open_rows(io.BytesIO(data), Form.PARQUET, Wanted()))
    assert read == here
    assert read


class Counting(io.BytesIO):
    """Knows how much of it was read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_no_more_is_read_than_the_rows_that_are_wanted() -> None:
    rows = [{"text": os.urandom(4000).hex()} for _ in range(4000)]
    data = written(rows, row_group_size=100, use_dictionary=False)
    file = Counting(data)
    assert select(parquet_rows(file, Wanted(number=3)), Wanted(number=3)).report.rows_used == 3
    assert file.count < len(data) / 4


def test_a_stream_that_cannot_be_sought_in_is_read_as_well() -> None:
    pieces = [GOOD[at : at + 1000] for at in range(0, len(GOOD), 1000)]
    read = read_lesson(pieces, Form.PARQUET, Wanted(), Recipe(), ByteTokenizer())
    assert read.report["rows_read"] == 300


# --- what a file may do -----------------------------------------------------------------------


class Fatal(io.BytesIO):
    """Ends the process that reads it, once it has read so much."""

    def __init__(self, data: bytes, how: Callable[[int], None]) -> None:
        super().__init__(data)
        self._how = how
        self._left = 3

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if not self._left:
            (child,) = children()
            self._how(child)
        return super().read(size)


def ended_by(number: signal.Signals) -> Callable[[int], None]:
    return lambda child: os.kill(child, number)


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (signal.SIGABRT, "it is damaged", "invalid_file_format"),
        (signal.SIGSEGV, "it is damaged", "invalid_file_format"),
        (signal.SIGKILL, "more memory than the 3072 MiB", "too_many_tokens"),
        (signal.SIGXCPU, "takes too long", "invalid_file_format"),
    ],
)
def test_a_file_that_ends_its_reader_is_refused_and_the_server_lives(
    number: signal.Signals, words: str, code: str
) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        read_lesson(Fatal(GOOD, ended_by(number)), Form.PARQUET, Wanted(), Recipe(), ByteTokenizer())
    assert (caught.value.status, caught.value.code) == (400, code)
    assert not children()
    again = read_lesson(io.BytesIO(GOOD), Form.PARQUET, Wanted(), Recipe(), ByteTokenizer())
    assert again.report["rows_read"] == 300


def test_a_reader_that_says_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    ahead = 0.0

    def later() -> float:  # once it is stopped, a minute passes between two looks at the clock
        nonlocal ahead
        ahead += 60.0 * stopped.is_set()
        return time.monotonic() + ahead

    def stop(child: int) -> None:
        os.kill(child, signal.SIGSTOP)
        stopped.set()

    monkeypatch.setattr(parquet, "time", SimpleNamespace(monotonic=later))
    with pytest.raises(DataError, match="takes too long"):
        list(parquet_rows(Fatal(GOOD, stop), Wanted(), silence=50.0))
    assert stopped.is_set()
    assert not children()


def test_a_file_that_becomes_too_much_memory_is_refused_in_words() -> None:
    texts = [f"{n}{'x' * (1 << 20)}"[: 1 << 20] for n in range(200)]
    data = written(pa.table({"text": texts}), use_dictionary=False, compression="zstd", write_batch_size=1)
    assert len(data) < 1 << 20
    with pytest.raises(DataError, match="more memory than the 450 MiB") as caught:
        list(parquet_rows(io.BytesIO(data), Wanted(), memory=450 << 20))
    assert caught.value.code == "too_many_tokens"


def test_what_its_reader_says_is_not_believed_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PROGRAM", "tests.kit.babbler")
    with pytest.raises(DataError, match="it is damaged"):
        list(parquet_rows(io.BytesIO(GOOD), Wanted()))


def test_a_job_that_is_cancelled_ends_the_reader() -> None:
    wish = threading.Event()

    def stop(child: int) -> None:
        os.kill(child, signal.SIGSTOP)
        wish.set()

    file = Fatal(GOOD, stop)
    with pytest.raises(Stopped):
        list(parquet_rows(file, Wanted(), wish.is_set))
    assert not children()


def test_whoever_stops_listening_ends_the_reader() -> None:
    # More than the pipe and the buffer after it hold: the reader cannot have come to its end by itself.
    texts = [os.urandom(2000).hex() for _ in range(500)]
    rows = parquet_rows(io.BytesIO(written([{"text": text} for text in texts])), Wanted())
    assert next(rows)[0] == 1
    assert children()
    rows.close()  # type: ignore[attr-defined]
    assert not children()


def test_the_reader_is_gone_before_rows_become_tokens() -> None:
    seen: list[list[int]] = []

    class Watching(ByteTokenizer):
        def __call__(self, *args: Any, **more: Any) -> Any:
            seen.append(children())
            return super().__call__(*args, **more)

    read_lesson(io.BytesIO(GOOD), Form.PARQUET, Wanted(number=5), Recipe(), Watching())
    assert seen
    assert not any(seen)


def test_a_damaged_file_of_the_store_is_told_as_that(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = written([{"text": os.urandom(1000).hex()} for _ in range(300)], use_dictionary=False)
    store.write(ANN, "files", "rows", rows)
    (sealed,) = (each for each in tmp_path.rglob("*") if each.is_file() and each.stat().st_size > len(rows))
    reader = store.reader(ANN, "files", "rows")
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.write_bytes(data)
    with reader, pytest.raises(Damaged):
        list(parquet_rows(reader, Wanted()))
    assert not children()


def test_the_rows_are_on_no_disk(tmp_path: Path) -> None:
    """S-21: whatever either process writes a row to, it is a pipe."""
    strace = "/usr/bin/strace"
    if not Path(strace).exists():
        pytest.skip("needs strace")
    program = (
        "import io, sys; sys.path[:0] = sys.argv[1:]; from tests.enclave.test_jobs_parquet import *\n"
        "rows = [{'question': 'canary-' * 50, 'answer': str(n)} for n in range(3000)]\n"
        "assert len(list(parquet_rows(io.BytesIO(written(rows, use_dictionary=False)), Wanted()))) == 3000"
    )
    paths = [path for path in sys.path if path]
    subprocess.run(
        [strace, "-f", "-qq", "-y", "-s", "64", "-e", "trace=write,pwrite64,writev", "-o",
         str(tmp_path / "calls"), sys.executable, "-B", "-c", program, *paths],
        check=True,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text("utf-8", "replace")
    seen = {re.sub(r":.*", "", where) for where in re.findall(r"write[v64]*\(\d+<([^>]*)>.*canary", calls)}
    assert seen == {"pipe"}
