"""
Sealed, atomic files: a tenant's data sets and adapters.

A file is written beside its place, flushed, and renamed into it, so that a reader finds the old one or
the new one and never half of either. Its bytes are unreadable without the tenant's key, and a file moved to
another name or another tenant does not open. What this does not give is freshness: whoever holds the
disk may put yesterday's file back.

    file    = "blindbox-file/1\\n" ‖ salt (32) ‖ chunk… ‖ final chunk
    key     = HKDF-SHA256(tenant key, salt, "blindbox/file/v1" ‖ kind ‖ "/" ‖ name)
    chunk   = AES-256-GCM(key, nonce = u64 number ‖ 0 0 0 ‖ final, no associated data), 256 KiB of plaintext
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .refusals import Busy
from .tenants import Tenant

MAGIC: Final = b"blindbox-file/1\n"
CHUNK: Final = 256 << 10
_TAG = 16
_HEAD = len(MAGIC) + 32
_NAME = re.compile(r"[a-z0-9-]{1,64}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Missing(Exception):
    """The tenant has no such file."""


class Damaged(Exception):
    """The file is there, but it is not what this tenant wrote under this name."""


def new_id(prefix: str) -> str:
    """A name nobody can guess: callers never choose names of files."""
    return f"{prefix}-{secrets.token_hex(16)}"


class Store:
    """Files by tenant, kind and name, under one folder that only this user may enter."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self.root = root
        self._sweep()

    @classmethod
    def temporary(cls) -> Store:
        """A store in a fresh folder; the caller removes it."""
        return cls(Path(tempfile.mkdtemp(prefix="blindbox-")))

    def writer(self, tenant: Tenant, kind: str, name: str) -> Writer:
        """Begin a file. It appears under its name when the `with` block ends without an error."""
        with self._folder(tenant, kind, create=True) as folder:
            return Writer(os.dup(folder), _key_of(tenant, kind, name), _checked(name))

    def write(self, tenant: Tenant, kind: str, name: str, data: bytes) -> None:
        """Write a whole file."""
        with self.writer(tenant, kind, name) as writer:
            writer.write(data)

    def read(self, tenant: Tenant, kind: str, name: str) -> bytes:
        """The whole plaintext, authenticated to its end. Raises `Missing` or `Damaged`."""
        return b"".join(self.pieces(tenant, kind, name))

    def pieces(self, tenant: Tenant, kind: str, name: str) -> Iterator[bytes]:
        """The plaintext in pieces; the end of the iteration means that the file was whole."""
        with self._open(tenant, kind, name) as descriptor, open(descriptor, "rb", closefd=False) as file:
            head = file.read(_HEAD)
            if len(head) != _HEAD or not head.startswith(MAGIC):
                raise Damaged(f"{kind}/{name} does not begin as a sealed file")
            cipher = AESGCM(_key_of(tenant, kind, name)(head[len(MAGIC) :]))
            chunk, number = file.read(CHUNK + _TAG), 0
            while True:
                following = file.read(CHUNK + _TAG)
                try:
                    yield cipher.decrypt(_nonce(number, final=not following), chunk, None)
                except InvalidTag:
                    raise Damaged(
                        f"{kind}/{name} was altered, cut short or sealed by another tenant"
                    ) from None
                if not following:
                    return
                chunk, number = following, number + 1

    def version(self, tenant: Tenant, kind: str, name: str) -> str:
        """A value that changes with every write; cheap, and not a proof of anything. Raises `Missing`."""
        with self._open(tenant, kind, name) as descriptor:
            return os.pread(descriptor, 32, len(MAGIC)).hex()

    def size(self, tenant: Tenant, kind: str, name: str) -> int:
        """Bytes of plaintext. Raises `Missing`."""
        with self._open(tenant, kind, name) as descriptor:
            sealed = os.fstat(descriptor).st_size - _HEAD
        return sealed - _TAG * max(1, -(-sealed // (CHUNK + _TAG)))

    def names(self, tenant: Tenant, kind: str) -> list[str]:
        """What the tenant has of this kind, sorted."""
        try:
            with self._folder(tenant, kind) as folder:
                return sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))
        except Missing:
            return []

    def delete(self, tenant: Tenant, kind: str, name: str) -> None:
        """Remove a file. Raises `Missing`."""
        with self._folder(tenant, kind) as folder:
            try:
                os.unlink(_checked(name), dir_fd=folder)
            except FileNotFoundError:
                raise Missing(name) from None
            os.fsync(folder)

    @contextmanager
    def _folder(self, tenant: Tenant, kind: str, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder, opened step by step: no step follows a symbolic link."""
        steps = (_checked(tenant.id), _checked(kind))
        current = os.open(self.root, _FOLDER)
        try:
            for step in steps:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(step, 0o700, dir_fd=current)
                        os.fsync(current)
                try:
                    inner = os.open(step, _FOLDER, dir_fd=current)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                        raise Missing(kind) from None
                    raise
                os.close(current)
                current = inner
            yield current
        finally:
            os.close(current)

    @contextmanager
    def _open(self, tenant: Tenant, kind: str, name: str) -> Iterator[int]:
        with self._folder(tenant, kind) as folder:
            try:
                descriptor = os.open(_checked(name), _READ, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    raise Missing(name) from None
                raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what a crash left half-written."""
        for path in self.root.glob("*/*/.*.part"):
            path.unlink(missing_ok=True)


class Writer:
    """A file being written; see `Store.writer`. Leaving the block by an error leaves no trace of it."""

    def __init__(self, folder: int, key_of: _KeyOf, name: str) -> None:
        self._folder = folder
        self._name = name
        self._part = f".{secrets.token_hex(8)}.part"
        salt = secrets.token_bytes(32)
        self._cipher = AESGCM(key_of(salt))
        self._number = 0
        self._held = bytearray()
        self.size = 0
        try:
            self._file = open(os.open(self._part, _WRITE, 0o600, dir_fd=folder), "wb")  # noqa: SIM115
            self._file.write(MAGIC + salt)
        except OSError as error:
            os.close(folder)
            raise _full(error) from None

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
            self._seal(bytes(self._held), final=True)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._folder)

    def _seal(self, data: bytes, *, final: bool) -> None:
        try:
            self._file.write(self._cipher.encrypt(_nonce(self._number, final=final), data, None))
        except OSError as error:
            raise _full(error) from None
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


def _full(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "The enclave's disk is full; delete files you no longer need, or try again later."
        return Busy(message, code="no_space", retry_after=60)
    return error
