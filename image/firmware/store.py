"""
The cache of built firmware: under the digest of all that decides its bytes.

An entry is a file and, written after it, its SHA-256 beside it; an entry that does not fit its hash is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from image.vm import packages
from image.vm.errors import UnusableOutput

from . import room, source, tools

CODE: Final = (Path(__file__).with_name("tools.py"), Path(room.__file__), room.SCRIPT)
_ROOM: Final = "room."


def recipe() -> str:
    """A name for all that decides the bytes: both locks, our patches, this code."""
    parts = [tools.LOCK, source.LOCK, *CODE, *source.patches()]
    named = "".join(f"{_sha256(part)} {part.name}\n" for part in parts)
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def found(name: str, of: str) -> Path | None:
    """The file of this name that the recipe `of` gave, if it is there and whole."""
    file = _folder(of) / name
    try:
        told = file.with_name(f"{name}.sha256").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return file if packages.is_right(file, told) else None


def keep(name: str, of: str, built: Path) -> Path:
    """Put a file there; what lay there is replaced."""
    file = _folder(of) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{name}.part")
    shutil.copyfile(built, beside)
    _settle(beside)
    beside.replace(file)
    beside.write_text(f"{_sha256(file)}\n", "ascii")
    _settle(beside)
    beside.replace(file.with_name(f"{name}.sha256"))  # the last: what it tells of is there
    return file


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time: another that is under way is waited for. What a killed one left is removed."""
    cache = packages.cache(tools.PART)
    with (cache / ".lock").open("w") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  another build is under way: waiting for it", flush=True)
            fcntl.flock(turn, fcntl.LOCK_EX)
        for left in cache.glob(f"{_ROOM}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def new_room() -> Iterator[Path]:
    """An empty folder for a build, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=_ROOM, dir=packages.cache(tools.PART)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def deliver(data: bytes, to: Path) -> None:
    """Write a file that appears whole or not at all, readable by everybody. Raises `UnusableOutput`."""
    beside = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        number, beside = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)
        with os.fdopen(number, "wb") as file:
            file.write(data)
        _settle(Path(beside))
        Path(beside).replace(to)
        beside = None
    except OSError as error:
        raise UnusableOutput(f"{to} cannot be written: {error.strerror}") from error
    finally:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)


def _folder(of: str) -> Path:
    return packages.cache(tools.PART) / "built" / of


def _settle(file: Path) -> None:
    file.chmod(0o644)
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
