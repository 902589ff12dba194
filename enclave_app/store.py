"""
Sealed, atomic files: a tenant's data sets, jobs and models.

A file is written beside its place, flushed, and renamed into it, so that a reader finds the old one or
the new one and never half of either. Its bytes are unreadable without the tenant's key, and a file moved to
another name or another tenant does not open.

Within a boot it is fresh, too: which files a folder holds is noted when the folder is first looked into, and
from then on only this program's own writing and deleting changes the note. Whoever holds the disk and puts
yesterday's file back, brings a deleted one back or takes one away is found out (`Damaged`). What was done
while the enclave was off is not noticed: nothing here outlives the memory.

How much a tenant may keep is counted in `quota.py`, chunk by chunk as it is written.

    file    = "blindbox-file/1\\n" ‖ salt (32) ‖ chunk… ‖ final chunk
    key     = HKDF-SHA256(tenant key, salt, "blindbox/file/v1" ‖ kind ‖ "/" ‖ name)
    chunk   = AES-256-GCM(key, nonce = u64 number ‖ 0 0 0 ‖ final, no associated data), 256 KiB of plaintext
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .quota import Quota
from .refusals import Conflict, Failed
from .tenants import Tenant

MAGIC: Final = b"blindbox-file/1\n"
CHUNK: Final = 256 << 10
EMPTY_NOTED: Final = 20_000
"""Emptied folders that are remembered. The notes of all others take about 200 bytes a file."""
_SALT = 32
_TAG = 16
_HEAD = len(MAGIC) + _SALT
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
_LISTS = ("models", "file-descriptions", "uploads", "jobs")
"""Kinds that tell what there is: deleted before what they tell of."""


class Missing(Exception):
    """The tenant has no such file."""


class Damaged(Exception):
    """The file is there, but it is not what this tenant wrote under this name, or not what it wrote last."""


class Exists(Exception):
    """There is a file of this name already."""


def new_id(prefix: str) -> str:
    """A name nobody can guess: callers never choose names of files."""
    return f"{prefix}-{secrets.token_hex(16)}"


class Store:
    """
    Files by tenant, kind and name, under one folder that only this user may enter.

    Each tenant may keep `most_bytes` there (`quota.py`); None = as many as fit.
    """

    def __init__(self, root: Path, *, most_bytes: int | None = None) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self.root = root
        self._notes = _Notes()
        self._quota = Quota(root, most_bytes)
        self._sweep()

    @classmethod
    def temporary(cls, *, most_bytes: int | None = None) -> Store:
        """A store in a fresh folder; the caller removes it."""
        return cls(Path(tempfile.mkdtemp(prefix="blindbox-")), most_bytes=most_bytes)

    def check_room(
        self, tenant: Tenant, kind: str, size: int, *, param: str | None = None, why: str = ""
    ) -> None:
        """
        Raise `TooLarge` where a file of so many bytes is more than the tenant may keep.

        It is for saying so before the bytes are taken, and sets nothing aside: writing looks again.
        """
        sealed = _HEAD + size + _TAG * max(1, -(-size // CHUNK))
        with self._notes.guard:
            self._quota.check(tenant.id, kind, sealed, param=param, why=why)

    def writer(self, tenant: Tenant, kind: str, name: str, *, exclusive: bool = False) -> Writer:
        """
        Begin a file. It appears under its name when the `with` block ends without an error.

        With `exclusive` that end raises `Exists` where another was there first, which stays as it is.
        Beginning, writing and ending raise `TooLarge` where it is more than the tenant may keep.
        """
        with self._folder(tenant.id, kind, create=True) as folder:
            note = _Place(self._notes, self._quota, (tenant.id, kind), _checked(name))
            return Writer(os.dup(folder), _key_of(tenant, kind, name), note, exclusive=exclusive)

    def write(self, tenant: Tenant, kind: str, name: str, data: bytes) -> None:
        """Write a whole file."""
        with self.writer(tenant, kind, name) as writer:
            writer.write(data)

    def create(self, tenant: Tenant, kind: str, name: str, data: bytes) -> None:
        """Write a whole file that is not there yet: of several who try, one does. Raises `Exists`."""
        with self.writer(tenant, kind, name, exclusive=True) as writer:
            writer.write(data)

    def reader(self, tenant: Tenant, kind: str, name: str) -> io.BufferedReader:
        """
        The plaintext as a file that can be read and sought in, opened chunk by chunk as it is read.

        That its end is its end is seen here, the rest as it is read. Raises `Missing` or `Damaged`, and
        reading raises `Damaged`.
        """
        return io.BufferedReader(self._reader(tenant, kind, name), CHUNK)

    def read(self, tenant: Tenant, kind: str, name: str) -> bytes:
        """The whole plaintext, authenticated to its end. Raises `Missing` or `Damaged`."""
        return b"".join(self.pieces(tenant, kind, name))

    def pieces(self, tenant: Tenant, kind: str, name: str) -> Iterator[bytes]:
        """The plaintext in pieces; the end of the iteration means that the file was whole."""
        with self._reader(tenant, kind, name) as reader:
            for number in range(reader.chunks):
                yield reader.chunk(number)

    def opener(self, tenant: Tenant, kind: str, name: str) -> Callable[[], bytes]:
        """
        What `read` gives, now and later, for one who must not hold the tenant's key so long.

        It has the key of this one file, as it is now: when that is deleted or written anew, calling raises
        `Missing`.
        """
        descriptor, head = self._open(tenant.id, kind, name)
        os.close(descriptor)
        key, owner = _key_of(tenant, kind, name)(head[len(MAGIC) :]), tenant.id

        def read() -> bytes:
            descriptor, found = self._open(owner, kind, name)
            if found != head:
                os.close(descriptor)
                raise Missing(name)
            with Reader(descriptor, key, f"{kind}/{name}") as reader:
                return b"".join(reader.chunk(number) for number in range(reader.chunks))

        return read

    def version(self, tenant: Tenant, kind: str, name: str) -> str:
        """A value that changes with every write; cheap. Raises `Missing`, or `Damaged` if it went back."""
        descriptor, head = self._open(tenant.id, kind, name)
        os.close(descriptor)
        return head[len(MAGIC) :].hex()

    def size(self, tenant: Tenant, kind: str, name: str) -> int:
        """Bytes of plaintext. Raises `Missing`."""
        descriptor, _ = self._open(tenant.id, kind, name)
        try:
            sealed = os.fstat(descriptor).st_size - _HEAD
        finally:
            os.close(descriptor)
        return sealed - _TAG * _chunks_of(sealed)

    def names(self, tenant: Tenant, kind: str) -> list[str]:
        """What the tenant has of this kind, sorted."""
        place = (tenant.id, kind)
        with suppress(Missing), self._folder(tenant.id, kind):
            pass  # it is noted now, if it was not before
        with self._notes.guard:
            return sorted(self._notes.of(place))

    def delete(self, tenant: Tenant, kind: str, name: str) -> None:
        """Remove a file. Raises `Missing`."""
        place = (tenant.id, kind)
        try:
            with self._folder(tenant.id, kind) as folder:
                with self._notes.guard:
                    size = _lies(_checked(name), folder)
                    with suppress(FileNotFoundError):  # somebody else has removed it
                        os.unlink(name, dir_fd=folder)
                    there = self._notes.deleted(place, name)
                    if there:
                        self._quota.give_back(*place, size)
                os.fsync(folder)
        except Missing:
            with self._notes.guard:
                there = self._notes.deleted(place, name)
        if not there:
            raise Missing(name)

    def delete_all(self, tenant: Tenant) -> dict[str, int]:
        """Remove everything of a tenant; says how many files there were of each kind."""
        removed: dict[str, int] = {}
        try:
            with self._folder(tenant.id) as folder:
                kinds = [kind for kind in os.listdir(folder) if _NAME.fullmatch(kind)]
        except Missing:
            return {}
        for kind in sorted(kinds, key=lambda kind: (kind not in _LISTS, kind)):
            with suppress(Missing), self._folder(tenant.id, kind) as inner:
                with self._notes.guard:
                    for name in os.listdir(inner):
                        size = _lies(name, inner)
                        # A file that is being written goes with it, and whoever writes it is told.
                        with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                            os.unlink(name, dir_fd=inner)
                            if _NAME.fullmatch(name):
                                self._quota.give_back(tenant.id, kind, size)
                    names = list(self._notes.of((tenant.id, kind)))
                    for name in names:
                        self._notes.deleted((tenant.id, kind), name)
                os.fsync(inner)
                removed[kind] = len(names)
        with suppress(Missing), self._folder(tenant.id) as folder:
            for kind in kinds:
                with suppress(OSError):  # what is in it is none of ours
                    os.rmdir(kind, dir_fd=folder)
            os.fsync(folder)
        return {kind: number for kind, number in removed.items() if number}

    def _reader(self, tenant: Tenant, kind: str, name: str) -> Reader:
        key_of = _key_of(tenant, kind, name)
        descriptor, head = self._open(tenant.id, kind, name)
        return Reader(descriptor, key_of(head[len(MAGIC) :]), f"{kind}/{name}")

    @contextmanager
    def _folder(self, owner: str, *kinds: str, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder, opened step by step: no step follows a symbolic link."""
        steps = [_checked(step) for step in (owner, *kinds)]
        current = os.open(self.root, _FOLDER)
        try:
            fresh = False
            for step in steps:
                if create:
                    fresh = _made(step, current)
                try:
                    inner = os.open(step, _FOLDER, dir_fd=current)
                except OSError as error:
                    if error.errno in _NOT_THERE:
                        raise Missing(step) from None
                    raise
                os.close(current)
                current = inner
            if kinds:
                with self._notes.guard:
                    self._notes.begin((owner, *kinds), current, fresh=fresh)
            yield current
        finally:
            os.close(current)

    def _open(self, owner: str, kind: str, name: str) -> tuple[int, bytes]:
        """A descriptor of the file, which the caller closes, and its head. It is the one written last."""
        place, what = (owner, kind), f"{kind}/{_checked(name)}"
        try:
            with self._folder(owner, kind) as folder, self._notes.guard:  # no renaming in between
                descriptor = os.open(name, _READ, dir_fd=folder)
                try:
                    head = os.pread(descriptor, _HEAD, 0)
                    self._notes.judge(place, name, head, what)
                except BaseException:
                    os.close(descriptor)
                    raise
                return descriptor, head
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
        except Missing:
            pass
        with self._notes.guard:
            if name in self._notes.of(place):
                raise Damaged(f"{what} was taken away, and not by this enclave")
        raise Missing(name)

    def _sweep(self) -> None:
        """Remove what a crash left half-written."""
        for path in self.root.glob("*/*/.*.part"):
            path.unlink(missing_ok=True)


class _Notes:
    """
    Which files there are, and of each the version that is to be found. Touched only under `guard`.

    A version is the first bytes of the salt; None stands for a file from before this boot that has not been
    opened yet.
    """

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self._folders: dict[tuple[str, ...], dict[str, int | None]] = {}
        self._emptied: dict[tuple[str, ...], None] = {}  # in the order in which it happened

    def begin(self, place: tuple[str, ...], folder: int, *, fresh: bool) -> None:
        """Note a folder that is seen for the first time; in a fresh one nothing can be."""
        if place not in self._folders:
            names = [] if fresh else os.listdir(folder)
            self._folders[place] = {name: None for name in names if _NAME.fullmatch(name)}
            self._is_empty(place)

    def of(self, place: tuple[str, ...]) -> dict[str, int | None]:
        return self._folders.get(place, {})

    def written(self, place: tuple[str, ...], name: str, salt: bytes) -> None:
        self._folders.setdefault(place, {})[name] = _version(salt)
        self._emptied.pop(place, None)

    def deleted(self, place: tuple[str, ...], name: str) -> bool:
        """Whether it was there."""
        there = name in self.of(place)
        if there:
            del self._folders[place][name]
            self._is_empty(place)
        return there

    def judge(self, place: tuple[str, ...], name: str, head: bytes, what: str) -> None:
        """Raise `Damaged` if this is not the file that was written last."""
        folder = self.of(place)
        if name not in folder:
            raise Damaged(f"{what} was put back after it had been deleted, or put there by somebody else")
        if len(head) != _HEAD or not head.startswith(MAGIC):
            raise Damaged(f"{what} does not begin as a sealed file")
        found = _version(head[len(MAGIC) :])
        if folder[name] is None:
            folder[name] = found
        elif folder[name] != found:
            raise Damaged(f"{what} is not what was written last: an older one was put back, or another one")

    def _is_empty(self, place: tuple[str, ...]) -> None:
        """Emptied folders are many where many callers come once; the oldest are forgotten."""
        if self._folders[place]:
            return
        self._emptied.pop(place, None)
        self._emptied[place] = None
        if len(self._emptied) > EMPTY_NOTED:
            oldest = next(iter(self._emptied))
            del self._emptied[oldest], self._folders[oldest]


class _Place:
    """Where one file will be, and what it takes there, for its `Writer`."""

    __slots__ = ("_notes", "_place", "_quota", "_size", "name")

    def __init__(self, notes: _Notes, quota: Quota, place: tuple[str, str], name: str) -> None:
        self._notes = notes
        self._quota = quota
        self._place = place
        self._size = 0  # counted for a file that is not there yet
        self.name = name

    def count(self, size: int) -> None:
        """So many bytes are about to be written; raises `TooLarge`."""
        with self._notes.guard:
            self._quota.take(*self._place, size)
            self._size += size

    def leave(self) -> None:
        """Nothing of it is left."""
        with self._notes.guard:
            self._quota.give_back(*self._place, self._size)
            self._size = 0

    def take(self, part: str, folder: int, salt: bytes, *, exclusive: bool) -> None:
        """Rename `part` to the file, and note it in the same moment."""
        with self._notes.guard:
            if exclusive and self.name in self._notes.of(self._place):
                raise Exists(self.name)
            before = _lies(self.name, folder)
            try:
                os.rename(part, self.name, src_dir_fd=folder, dst_dir_fd=folder)
            except FileNotFoundError:
                raise Conflict(
                    "What was being written is gone: everything of yours was deleted meanwhile.",
                    code="deleted_meanwhile",
                ) from None
            self._notes.written(self._place, self.name, salt)
            self._quota.give_back(*self._place, before)
            self._size = 0  # it lies there now


class Reader(io.RawIOBase):
    """One sealed file, open; see `Store.reader`. It holds one chunk, and closes the descriptor."""

    def __init__(self, descriptor: int, key: bytes, what: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._cipher = AESGCM(key)
        self._what = what
        self._at = 0
        self._held: tuple[int, bytes] | None = None
        sealed = os.fstat(descriptor).st_size - _HEAD
        self.chunks = _chunks_of(sealed)
        self.size = sealed - _TAG * self.chunks
        try:
            self.chunk(self.chunks - 1)  # a file that was cut short has another last chunk
        except BaseException:
            self.close()
            raise

    def chunk(self, number: int) -> bytes:
        """The plaintext of one chunk."""
        if self._held is not None and self._held[0] == number:
            return self._held[1]
        sealed = os.pread(self._descriptor, CHUNK + _TAG, _HEAD + number * (CHUNK + _TAG))
        try:
            data = self._cipher.decrypt(_nonce(number, final=number == self.chunks - 1), sealed, None)
        except InvalidTag:
            raise Damaged(f"{self._what} was altered, cut short or sealed by another tenant") from None
        self._held = (number, data)
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        number, start = divmod(self._at, CHUNK)
        if self._at >= self.size:
            return 0
        data = self.chunk(number)[start : start + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        from_where = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}
        if whence not in from_where or from_where[whence] + offset < 0:
            raise ValueError("there is no such place in the file")
        self._at = from_where[whence] + offset
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Writer:
    """A file being written; see `Store.writer`. Leaving the block by an error leaves no trace of it."""

    def __init__(self, folder: int, key_of: _KeyOf, place: _Place, *, exclusive: bool = False) -> None:
        self._folder = folder
        self._place = place
        self._exclusive = exclusive
        self._part = f".{secrets.token_hex(8)}.part"
        self._salt = secrets.token_bytes(_SALT)
        self._cipher = AESGCM(key_of(self._salt))
        self._number = 0
        self._held = bytearray()
        self._file = -1
        self.size = 0
        try:
            place.count(_HEAD)
            with _room():
                self._file = os.open(self._part, _WRITE, 0o600, dir_fd=folder)
                _write(self._file, MAGIC + self._salt)
        except BaseException:
            self._abandon()
            os.close(folder)
            raise

    def write(self, data: bytes) -> None:
        """Add bytes; whole chunks are sealed and leave memory at once."""
        self._held += data
        self.size += len(data)
        # The last chunk is sealed as the last, so one that merely happens to be full has to wait.
        while len(self._held) > CHUNK:
            self._seal(bytes(self._held[:CHUNK]), final=False)
            del self._held[:CHUNK]

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
            else:
                self._abandon()
        finally:
            os.close(self._folder)

    def _publish(self) -> None:
        try:
            with _room():
                self._seal(bytes(self._held), final=True)
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1
                self._place.take(self._part, self._folder, self._salt, exclusive=self._exclusive)
                os.fsync(self._folder)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._folder)
        self._place.leave()

    def _seal(self, data: bytes, *, final: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._number, final=final), data, None)
        self._place.count(len(sealed))
        with _room():
            _write(self._file, sealed)
        self._number += 1


class _KeyOf:
    """The key of one file: salt → key. Holds the tenant's key no longer than the file is open."""

    __slots__ = ("_info", "_secret")

    def __init__(self, secret: bytes, info: bytes) -> None:
        self._secret = secret
        self._info = info

    def __call__(self, salt: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=salt, info=self._info).derive(self._secret)


def _key_of(tenant: Tenant, kind: str, name: str) -> _KeyOf:
    return _KeyOf(tenant.key, b"blindbox/file/v1" + f"{_checked(kind)}/{_checked(name)}".encode("ascii"))


def _checked(name: str) -> str:
    """The one gate for names that reach the file system. A name that may not exist is simply not there."""
    if not _NAME.fullmatch(name):
        raise Missing("no such name")
    return name


def _nonce(number: int, *, final: bool) -> bytes:
    return struct.pack(">Q3xB", number, final)


def _chunks_of(sealed: int) -> int:
    return max(1, -(-sealed // (CHUNK + _TAG)))


def _version(salt: bytes) -> int:
    return int.from_bytes(salt[:8], "big")


def _made(name: str, folder: int) -> bool:
    """Whether this made the folder; it may have been there."""
    try:
        with _room():
            os.mkdir(name, 0o700, dir_fd=folder)
            os.fsync(folder)
    except FileExistsError:
        return False
    return True


def _lies(name: str, folder: int) -> int:
    """How many bytes lie under this name; 0 = none."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _write(descriptor: int, data: bytes) -> None:
    """All of it; one call may take a part where the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _room() -> Iterator[None]:
    """A full disk, in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failed(
            "The enclave's disk is full; nothing was changed. Delete files you no longer need, or try again "
            "later.",
            code="no_space",
            status=507,
            retry_after=60,
        ) from None
