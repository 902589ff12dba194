"""
Where this user's policies and tokens live, and how a small file is put there whole.

`BLINDBOX_HOME`, else `$XDG_CONFIG_HOME/blindbox`, else `~/.config/blindbox`. Folders are made with mode 700,
files with 600. A file appears under its name complete or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote


def home() -> Path:
    """The folder of this user's BlindBox settings; it need not exist yet."""
    # Every call asks, and the environment may change in between: paths are kept by what it says.
    if given := os.environ.get("BLINDBOX_HOME"):
        return _path(given)
    if config := os.environ.get("XDG_CONFIG_HOME"):
        return _path(config, "blindbox")
    if (user := os.path.expanduser("~")).startswith("~"):
        raise RuntimeError("the user's home folder is unknown; set BLINDBOX_HOME")
    return _path(user, ".config", "blindbox")


@lru_cache(maxsize=64)
def _path(*parts: str) -> Path:
    return Path(*parts)


def file_for(folder: Path, origin: str, suffix: str) -> Path:
    """One file an origin. The name can be read by people, and no two origins share one."""
    name = quote(origin, safe="")
    if len(name) > 200:
        name = name[:120] + "-" + hashlib.sha256(origin.encode()).hexdigest()
    return folder / f"{name}{suffix}"


def write_new(path: Path, data: bytes) -> bool:
    """Write `path` unless it exists; False if it does. Of several processes exactly one wins."""
    draft = _draft(path, data)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def write(path: Path, data: bytes) -> None:
    """Write or replace `path` in one step."""
    draft = _draft(path, data)
    try:
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def make(folder: Path) -> None:
    """Make a folder, and those above it that are missing; to these `mkdir` gives what the umask leaves."""
    for above in reversed(folder.parents):
        if not above.exists():
            above.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _draft(path: Path, data: bytes) -> Path:
    make(path.parent)
    draft = path.with_name(f".{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    return draft


def read_own(path: Path, *, secret: bool) -> bytes | None:
    """
    The file's bytes, or None if there is none.

    PermissionError if others may change it (or, for a secret, read it), as ssh does with its keys.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if os.name == "posix":
            status = os.fstat(file.fileno())
            if status.st_uid not in {os.getuid(), 0} or status.st_mode & (0o077 if secret else 0o022):
                wanted = "600" if secret else "644"
                raise PermissionError(f"{path} must belong to you alone; try: chmod {wanted} {path}")
        return file.read(1 << 20)
