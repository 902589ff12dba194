"""Sealed, atomic files: whole or not at all, and only for their tenant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_app.store import CHUNK, Damaged, Missing, Store, new_id
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
    with pytest.raises(Missing):
        store.read(ALICE, "files", "one")


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
