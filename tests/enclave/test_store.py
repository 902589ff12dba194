"""Sealed, atomic files: whole or not at all, and only for their tenant."""

from __future__ import annotations

import errno
import gc
import io
import os
import random
import shutil
import signal
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_app import store as store_module
from enclave_app.refusals import Conflict, Failed
from enclave_app.store import CHUNK, Damaged, Exists, Missing, Store, new_id
from enclave_app.tenants import Tenant

ALICE, BOB = Tenant.of("alice-alice-alice"), Tenant.of("bob-bob-bob-bob-bob")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def only_file(store: Store) -> Path:
    (path,) = (path for path in store.root.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
def test_what_is_written_is_read_and_measured(store: Store, size: int) -> None:
    data = os.urandom(size)
    store.write(ALICE, "files", "one", data)
    assert store.read(ALICE, "files", "one") == data
    assert store.size(ALICE, "files", "one") == size
    assert store.names(ALICE, "files") == ["one"]


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.binary(max_size=3000), max_size=200))
def test_pieces_of_any_size_come_back_as_one(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.writer(ALICE, "files", "one") as writer:
        for piece in pieces:
            writer.write(piece)
    assert store.read(ALICE, "files", "one") == b"".join(pieces)


def interrupted(store: Store) -> None:
    with store.writer(ALICE, "files", "one") as writer:
        writer.write(b"new" * CHUNK)
        raise KeyboardInterrupt


def test_an_interrupted_writing_leaves_the_previous_file_and_no_trace(store: Store) -> None:
    store.write(ALICE, "files", "one", b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(store)
    assert store.read(ALICE, "files", "one") == b"old"
    assert len(list(store.root.rglob("*.part"))) == 0
    assert only_file(store).name == "one"


def test_a_reader_never_sees_half_a_file(store: Store) -> None:
    with store.writer(ALICE, "files", "one") as writer:
        writer.write(b"x" * (2 * CHUNK))
        with pytest.raises(Missing):
            store.read(ALICE, "files", "one")
        assert store.names(ALICE, "files") == []
    assert len(store.read(ALICE, "files", "one")) == 2 * CHUNK


def test_a_crash_leaves_something_that_the_next_start_sweeps_away(store: Store) -> None:
    store.write(ALICE, "files", "one", b"kept")
    part = only_file(store).with_name(".0123456789abcdef.part")
    part.write_bytes(b"half")
    again = Store(store.root)
    assert not part.exists()
    assert again.read(ALICE, "files", "one") == b"kept"


def test_the_version_changes_with_every_writing(store: Store) -> None:
    store.write(ALICE, "adapters", "current", b"same")
    first = store.version(ALICE, "adapters", "current")
    assert first == store.version(ALICE, "adapters", "current")
    store.write(ALICE, "adapters", "current", b"same")
    assert store.version(ALICE, "adapters", "current") != first


def test_no_flipped_byte_is_read_as_data(store: Store) -> None:
    store.write(ALICE, "files", "one", b"a secret of some length")
    path = only_file(store)
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(Damaged):
            store.read(ALICE, "files", "one")


def test_chunks_cut_off_repeated_or_swapped_are_refused(store: Store) -> None:
    store.write(ALICE, "files", "one", os.urandom(3 * CHUNK + 5))
    path = only_file(store)
    good = path.read_bytes()
    head, sealed = good[:48], good[48:]
    chunks = [sealed[start : start + CHUNK + 16] for start in range(0, len(sealed), CHUNK + 16)]
    assert len(chunks) == 4
    for broken in (
        [],
        chunks[:-1],
        chunks[:1],
        [*chunks, chunks[-1]],
        [chunks[1], chunks[0], *chunks[2:]],
        chunks[1:],
    ):
        path.write_bytes(head + b"".join(broken))
        with pytest.raises(Damaged):
            store.read(ALICE, "files", "one")
    path.write_bytes(good + b"x")
    with pytest.raises(Damaged):
        store.read(ALICE, "files", "one")


def test_a_file_moved_to_another_tenant_name_or_kind_does_not_open(store: Store) -> None:
    """S-22: the disk's owner cannot hand one tenant's file to another."""
    for tenant, kind, name in ((BOB, "files", "one"), (ALICE, "files", "two"), (ALICE, "adapters", "one")):
        store.write(tenant, kind, name, b"theirs")
        store.write(ALICE, "files", "one", b"mine")
        mine = store.root / ALICE.id / "files" / "one"
        (store.root / tenant.id / kind / name).write_bytes(mine.read_bytes())
        with pytest.raises(Damaged):
            store.read(tenant, kind, name)


def test_what_lies_on_disk_shows_neither_contents_nor_token_nor_key(store: Store) -> None:
    store.write(ALICE, "files", "one", b"canary" * 1000)
    path = only_file(store)
    assert b"canary" not in path.read_bytes()
    assert "alice" not in str(path)
    assert ALICE.key not in path.read_bytes()
    assert ALICE.key.hex() not in repr(ALICE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in (store.root, *path.parents[:2])} == {0o700}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\0b",
        "A",
        "é",
        "a.b",
        "a" * 65,
        "..%2f",
        "a\n",
        ".x.part",
    ],
)
def test_names_that_may_not_exist_are_simply_not_there(store: Store, name: str) -> None:
    """S-17: one gate for every name that reaches the file system."""
    for call in (store.read, store.version, store.size, store.delete):
        with pytest.raises(Missing):
            call(ALICE, "files", name)
        with pytest.raises(Missing):
            call(ALICE, name, "one")
    with pytest.raises(Missing):
        store.write(ALICE, "files", name, b"x")
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_symbolic_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    """S-17: not for a file, not for a folder on the way to it."""
    store.write(ALICE, "files", "one", b"x")
    folder = store.root / ALICE.id / "files"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one").write_bytes((folder / "one").read_bytes())
    (folder / "link").symlink_to(outside / "one")
    with pytest.raises(Missing):
        store.read(ALICE, "files", "link")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(outside)
    with pytest.raises(Damaged, match="taken away"):
        store.read(ALICE, "files", "one")
    with pytest.raises(Missing):
        Store(store.root).read(ALICE, "files", "one")


def test_deleting_is_final_and_names_are_not_guessable(store: Store) -> None:
    store.write(ALICE, "files", "one", b"x")
    store.delete(ALICE, "files", "one")
    with pytest.raises(Missing):
        store.read(ALICE, "files", "one")
    with pytest.raises(Missing):
        store.delete(ALICE, "files", "one")
    assert len({new_id("file") for _ in range(100)}) == 100
    assert len(new_id("file")) == 37


def test_a_temporary_store_is_fresh_and_private() -> None:
    first, second = Store.temporary(), Store.temporary()
    try:
        assert first.root != second.root
        assert first.root.stat().st_mode & 0o777 == 0o700
    finally:
        first.root.rmdir()
        second.root.rmdir()


# --- fresh within a boot ----------------------------------------------------------------------


def test_an_older_version_that_was_put_back_is_found_out(store: Store) -> None:
    """Genuine bytes of the same tenant, name and kind, only older: by any way of reading."""
    store.write(ALICE, "models", "one", b"first")
    path = only_file(store)
    before = path.read_bytes()
    store.write(ALICE, "models", "one", b"second")
    after = path.read_bytes()
    path.write_bytes(before)
    for look in (store.read, store.version, store.size, store.reader):
        with pytest.raises(
            Damaged, match="models/one is not what was written last: an older one was put back"
        ):
            look(ALICE, "models", "one")
    path.write_bytes(after)
    assert store.read(ALICE, "models", "one") == b"second"
    store.write(ALICE, "models", "one", b"third")
    assert store.read(ALICE, "models", "one") == b"third"


def test_a_deleted_file_that_was_put_back_is_found_out(store: Store) -> None:
    store.write(ALICE, "models", "one", b"x")
    path = only_file(store)
    kept = path.read_bytes()
    store.delete(ALICE, "models", "one")
    path.write_bytes(kept)
    with pytest.raises(Damaged, match="put back after it had been deleted"):
        store.read(ALICE, "models", "one")
    assert store.names(ALICE, "models") == []
    with pytest.raises(Missing):
        store.delete(ALICE, "models", "one")
    assert not path.exists()
    path.write_bytes(kept)
    store.create(ALICE, "models", "one", b"new")
    assert store.read(ALICE, "models", "one") == b"new"


def test_a_file_that_was_taken_away_is_not_simply_missing(store: Store) -> None:
    """Who hides the newest model would have the one before it served."""
    store.write(ALICE, "models", "one", b"x")
    store.write(ALICE, "models", "two", b"x")
    (store.root / ALICE.id / "models" / "two").unlink()
    assert store.names(ALICE, "models") == ["one", "two"]
    with pytest.raises(Damaged, match="taken away"):
        store.read(ALICE, "models", "two")
    shutil.rmtree(store.root / ALICE.id)
    with pytest.raises(Damaged, match="taken away"):
        store.read(ALICE, "models", "one")
    store.delete(ALICE, "models", "one")
    with pytest.raises(Missing):
        store.read(ALICE, "models", "one")


def test_what_an_earlier_boot_wrote_is_held_to_what_was_seen_of_it_first(store: Store) -> None:
    store.write(ALICE, "files", "one", b"old")
    older = only_file(store).read_bytes()
    store.write(ALICE, "files", "one", b"new")
    newer = only_file(store).read_bytes()
    only_file(store).write_bytes(older)  # while the enclave was off: nobody can know
    again = Store(store.root)
    assert again.read(ALICE, "files", "one") == b"old"
    only_file(store).write_bytes(newer)
    with pytest.raises(Damaged):
        again.read(ALICE, "files", "one")
    planted = store.root / ALICE.id / "files" / "two"
    planted.write_bytes(newer)
    with pytest.raises(Damaged):
        again.read(ALICE, "files", "two")
    assert again.names(ALICE, "files") == ["one"]


def test_a_whole_folder_that_was_put_back_is_found_out(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        store.write(ALICE, "files", f"file-{number}", b"x")
    shutil.copytree(store.root, tmp_path / "copy")
    store.delete_all(ALICE)
    shutil.copytree(tmp_path / "copy", store.root, dirs_exist_ok=True)
    assert store.names(ALICE, "files") == []
    with pytest.raises(Damaged):
        store.read(ALICE, "files", "file-0")


def test_what_is_noted_of_many_files_is_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 200 bytes a file, and of emptied folders not more than a bound."""
    notes = store._notes
    tracemalloc.start()
    try:
        for number in range(20_000):
            notes.written((ALICE.id, "job-events"), f"ftjob-{number:032x}-0001", os.urandom(32))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 20_000 * 300
    monkeypatch.setattr(store_module, "EMPTY_NOTED", 10)
    for number in range(50):
        tenant = Tenant.of(f"tenant-{number:032}")
        store.write(tenant, "files", "one", b"x")
        store.delete(tenant, "files", "one")
    assert len(notes._emptied) == 10
    assert len(notes._folders) == 11
    for number in range(50):
        store.names(Tenant.of(f"stranger-{number:032}"), "files")
    assert len(notes._folders) == 11, "who merely asks leaves nothing behind"


def test_nobody_reads_an_unjudged_version_while_others_write(store: Store) -> None:
    """A thousand writings and readings of one name at once: each reader sees a whole file, and no alarm."""
    store.write(ALICE, "files", "one", bytes(1000))

    def work(number: int) -> None:
        if number % 2:
            store.write(ALICE, "files", "one", bytes([number % 256]) * 1000)
        else:
            assert len(set(store.read(ALICE, "files", "one"))) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))


# --- one of several, and everything of a tenant -----------------------------------------------


def test_of_several_who_create_a_file_one_does(store: Store) -> None:
    """A job's key is written once, however often the call comes."""
    together = threading.Barrier(8)

    def create(number: int) -> bool:
        together.wait()
        try:
            store.create(ALICE, "job-keys", "one", b"%d" % number)
        except Exists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.read(ALICE, "job-keys", "one") == b"%d" % won.index(True)
    with pytest.raises(Exists):
        store.create(ALICE, "job-keys", "one", b"later")
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == ["one"]
    store.delete(ALICE, "job-keys", "one")
    store.create(ALICE, "job-keys", "one", b"again")


def test_everything_of_a_tenant_goes_and_is_counted(store: Store) -> None:
    for kind, names in (("files", 3), ("models", 2), ("jobs", 1)):
        for number in range(names):
            store.write(ALICE, kind, f"n{number}", b"x")
    store.write(BOB, "files", "one", b"kept")
    writer = store.writer(ALICE, "files", "late")
    assert store.delete_all(ALICE) == {"models": 2, "jobs": 1, "files": 3}
    with pytest.raises(Conflict), writer:
        writer.write(b"begun before, ended after")
    assert not (store.root / ALICE.id / "files").exists()
    assert only_file(store).read_bytes()
    assert store.read(BOB, "files", "one") == b"kept"
    assert store.names(ALICE, "files") == []
    assert store.delete_all(ALICE) == {}
    store.write(ALICE, "files", "n0", b"new")
    assert store.read(ALICE, "files", "n0") == b"new"


def test_a_list_goes_before_what_it_tells_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of it, nothing is listed that is not whole."""
    for kind in ("adapters", "file-descriptions", "files", "models"):
        store.write(ALICE, kind, "one", b"x")
    gone: list[str] = []
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        gone.append(os.path.basename(os.readlink(f"/proc/self/fd/{dir_fd}")))
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    store.delete_all(ALICE)
    assert gone == ["file-descriptions", "models", "adapters", "files"]


# --- read as a file ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]),
    steps=st.lists(
        st.tuples(st.integers(0, 4 * CHUNK), st.integers(0, 2 * CHUNK), st.sampled_from([0, 1, 2])),
        max_size=12,
    ),
)
def test_a_reader_is_a_file(
    tmp_path_factory: pytest.TempPathFactory, size: int, steps: list[tuple[int, int, int]]
) -> None:
    """Sought and read at will, as the same bytes in memory are."""
    store = Store(tmp_path_factory.mktemp("store"))
    data = random.Random(size).randbytes(size)
    store.write(ALICE, "files", "one", data)
    plain = io.BytesIO(data)
    with store.reader(ALICE, "files", "one") as sealed:
        assert sealed.seekable()
        assert not sealed.writable()
        for offset, length, whence in steps:
            offset = {0: offset, 1: min(offset, 1000), 2: -min(offset, size)}[whence]
            assert sealed.seek(offset, whence) == plain.seek(offset, whence)
            assert sealed.read(length) == plain.read(length)
        assert (sealed.seek(0), plain.seek(0)) == (0, 0)
        assert list(sealed) == list(plain)
        with pytest.raises(ValueError, match=r"no such place|negative"):
            sealed.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        sealed.read()


def test_a_reader_says_so_where_the_disk_altered_cut_or_lengthened_the_file(store: Store) -> None:
    store.write(ALICE, "files", "one", os.urandom(3 * CHUNK))
    path = only_file(store)
    good = path.read_bytes()
    for broken in (good[:-1], good[: -CHUNK - 16], good[:48], good + b"x", good + bytes(CHUNK + 16)):
        path.write_bytes(broken)
        with pytest.raises(Damaged):
            store.reader(ALICE, "files", "one")
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with store.reader(ALICE, "files", "one") as file:
        with pytest.raises(Damaged):
            file.read(1)
        file.seek(2 * CHUNK)
        assert len(file.read()) == CHUNK


def test_a_reader_opens_no_more_than_it_is_asked_for(store: Store) -> None:
    """Parquet's footer stands at the end: to read it, and one column, is not to read it all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.table({"text": [os.urandom(4000).hex() for _ in range(800)], "n": list(range(800))})
    told = io.BytesIO()
    pq.write_table(rows, told, row_group_size=100, compression="none", use_dictionary=False)
    store.write(ALICE, "files", "one", told.getvalue())
    with store.reader(ALICE, "files", "one") as file:
        raw: Any = file.raw
        opened: list[int] = []
        real = raw._cipher

        class Counting:
            def decrypt(self, nonce: bytes, data: bytes, more: None) -> bytes:
                opened.append(len(data))
                plain: bytes = real.decrypt(nonce, data, more)
                return plain

        raw._cipher = Counting()
        with pq.ParquetFile(file) as parquet:
            assert parquet.read(columns=["n"]).column("n").to_pylist() == list(range(800))
        assert sum(opened) < len(told.getvalue())
        assert len(told.getvalue()) > 6_000_000
    path = only_file(store)
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with store.reader(ALICE, "files", "one") as file, pytest.raises(Damaged), pq.ParquetFile(file) as parquet:
        parquet.read()


def test_a_reader_holds_its_file_open_and_nothing_more(store: Store) -> None:
    """A file that is replaced meanwhile is read to its end as it was; and no descriptor is left."""
    store.write(ALICE, "files", "one", b"o" * (2 * CHUNK))
    gc.collect()  # what other tests left open is no part of this
    before = len(os.listdir("/proc/self/fd"))
    with store.reader(ALICE, "files", "one") as file:
        store.write(ALICE, "files", "one", b"n")
        assert set(file.read()) == {ord("o")}
    for broken in (Missing, Damaged):
        name = "two" if broken is Missing else "one"
        if broken is Damaged:
            only_file(store).write_bytes(b"x")
        with pytest.raises(broken):
            store.reader(ALICE, "files", name)
    assert len(os.listdir("/proc/self/fd")) <= before


# --- killed at any call to the system ---------------------------------------------------------


class Killed(BaseException):
    """From here on nothing of the process runs, its tidying up neither."""


class Counted:
    """`os` as the store sees it: at the call of number `last`, and at every later one, `end` is called."""

    def __init__(self, last: int, end: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self._last = last
        self._end = end

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "mkdir", "write", "fsync", "close", "rename", "unlink", "pread", "listdir"):
            return real

        def call(*args: Any, **more: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) >= self._last:
                self._end()
            return real(*args, **more)

        return call


OLD, NEW = os.urandom(CHUNK + 100), os.urandom(2 * CHUNK + 5)


def replaced(root: Path) -> None:
    """What is done when the process ends: a file is replaced, one is new, one goes."""
    store = Store(root)
    store.write(ALICE, "files", "one", NEW)
    store.write(ALICE, "models", "new", NEW)
    store.delete(ALICE, "files", "gone")


def before(root: Path) -> None:
    store = Store(root)
    store.write(ALICE, "files", "one", OLD)
    store.write(ALICE, "files", "gone", OLD)


def judged(root: Path) -> str:
    """What the next start finds: whole files, old or new, in the order in which they were written."""
    store = Store(root)
    assert not list(root.rglob("*.part"))
    one = store.read(ALICE, "files", "one")
    assert one in (OLD, NEW)
    models = {name: store.read(ALICE, "models", name) for name in store.names(ALICE, "models")}
    assert models in ({}, {"new": NEW})
    names = store.names(ALICE, "files")
    assert names in (["gone", "one"], ["one"])
    state = f"{one == NEW:d}{len(models)}{'gone' not in names:d}"
    assert state in ("000", "100", "110", "111"), state
    return state


def test_killed_at_any_call_it_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-27: at each call to the system of a replacing, a creating and a deleting."""

    def die() -> None:
        raise Killed

    seen: list[str] = []
    for last in range(1, 1000):
        root = tmp_path / str(last)
        before(root)
        counted = Counted(last, die)
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "os", counted)
            try:
                replaced(root)
            except Killed:
                pass
            else:
                break
        seen.append(judged(root))
        shutil.rmtree(root)
    assert len(seen) > 40
    assert seen == sorted(seen)
    assert set(seen) == {"000", "100", "110", "111"}


@pytest.mark.parametrize("last", [*range(3, 44, 8)])
def test_killed_for_good_it_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """S-27: a process of its own that sends itself SIGKILL in the middle."""
    before(tmp_path / "data")
    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(
                store_module, "os", Counted(last, lambda: os.kill(os.getpid(), signal.SIGKILL))
            )
            replaced(tmp_path / "data")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    judged(tmp_path / "data")


def test_a_file_reaches_the_disk_before_its_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-27: flushed, renamed, and the folder flushed; a name without contents can then not be left."""
    store = Store(tmp_path)
    store.write(ALICE, "files", "one", OLD)
    counted = Counted(1000, lambda: None)
    monkeypatch.setattr(store_module, "os", counted)
    store.write(ALICE, "files", "one", NEW)
    ordered = [name for name in counted.calls if name in ("write", "fsync", "rename", "unlink")]
    assert ordered == ["write"] * 4 + ["fsync", "rename", "fsync"]


class Full:
    """`os` on a disk that has room for so many bytes."""

    def __init__(self, room: int, at: str = "write") -> None:
        self._room = room
        self._at = at

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self._at:
            return real

        def call(*args: Any, **more: Any) -> Any:
            if name != "write":
                raise OSError(errno.ENOSPC, "full")
            self._room -= len(args[1])
            if self._room < 0:
                raise OSError(errno.EDQUOT, "over the quota")
            return real(*args, **more)

        return call


@pytest.mark.parametrize("at", ["write", "fsync", "mkdir", "open", "rename"])
def test_a_full_disk_is_a_refusal_and_the_old_file_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """S-28: wherever the disk says so; the next writing works when there is room again."""
    store.write(ALICE, "files", "one", OLD)
    kind = "jobs" if at == "mkdir" else "files"
    for room in (0, 10, CHUNK, 2 * CHUNK) if at == "write" else (0,):
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "os", _Opening() if at == "open" else Full(room, at))
            with pytest.raises(Failed) as told:
                store.write(ALICE, kind, "one", NEW)
        assert (told.value.status, told.value.code) == (507, "no_space")
        assert store.read(ALICE, "files", "one") == OLD
        assert not list(store.root.rglob("*.part"))
    store.write(ALICE, kind, "one", NEW)
    assert store.read(ALICE, kind, "one") == NEW


class _Opening:
    """`os` that can make no new file: there is no inode left."""

    def __getattr__(self, name: str) -> Any:
        return self.open if name == "open" else getattr(os, name)

    @staticmethod
    def open(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "full")
        return os.open(path, flags, *args, **more)


def test_descriptors_are_given_back_where_writing_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(ALICE, "files", "one", OLD)
    gc.collect()
    there = len(os.listdir("/proc/self/fd"))
    for broken in (Full(0), Full(CHUNK), Full(0, "fsync"), Full(0, "rename"), _Opening()):
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "os", broken)
            with pytest.raises(Failed):
                store.write(ALICE, "files", "one", NEW)
    assert len(os.listdir("/proc/self/fd")) <= there
