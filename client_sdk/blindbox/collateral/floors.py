"""
The newest evaluation of Intel's that a verified proof has shown, so that nobody can take this user back to
an older one.

Intel's collateral is valid for a month, and carries a number (`tcbEvaluationDataNumber`) that grows
whenever a weakness became known. Whoever hands out the last month's collateral hides the newest weakness;
once a proof has shown a number, proofs with a lower one are refused here. The file belongs to the user, not
to one call: several processes may raise its numbers, and none lowers them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from blindbox_attestation.errors import InvalidPolicy

from .. import places, process

VERSION: Final = 1
HIGHEST: Final = (1 << 32) - 1
MOST: Final = 4096  # kinds of platforms; Intel has made a few dozen

_FMSPC: Final = re.compile(r"[0-9A-F]{12}")


class Floors:
    """By FMSPC, the kind of a platform in Intel's words: twelve upper-case hexadecimal digits."""

    def __init__(self, file: Callable[[], Path]) -> None:
        self._file = file
        self._last: tuple[object, dict[str, int]] = (None, {})
        self._shown: dict[tuple[str, str], int] = {}  # in this process, should the file not be writable

    def of(self, fmspc: str) -> int:
        """
        The lowest number that is still accepted; 0 if none has been seen. `InvalidPolicy` if nobody can
        tell.
        """
        path = self._path()
        kept = {} if path is None else self._kept(path)
        return max(kept.get(fmspc, 0), self._shown.get((str(path), fmspc), 0))

    def lift(self, fmspc: str, number: int) -> None:
        """Raise the floor to `number`, which a verified proof has shown; a lower number changes nothing."""
        if not _FMSPC.fullmatch(fmspc) or not 0 <= number <= HIGHEST:
            raise ValueError(f"no floor is kept for {fmspc!a} and {number}")
        if number <= self.of(fmspc):
            return
        path = self._path()
        with process.guard():
            self._shown[str(path), fmspc] = max(number, self._shown.get((str(path), fmspc), 0))
        if path is None:
            return
        # Where nothing can be written, the floor holds for as long as this process does.
        with contextlib.suppress(OSError), _locked(path):
            kept = _read(path)
            if number > kept.get(fmspc, 0):
                places.write(path, _encode({**kept, fmspc: number}))

    def _kept(self, path: Path) -> dict[str, int]:
        """What the file holds; read again only when it is another one, or has been touched."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return {}
        except OSError:
            return _read(path)  # which says what is wrong
        seen = (str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        before, kept = self._last
        if seen != before:
            kept = _read(path)
            self._last = seen, kept
        return kept

    def _path(self) -> Path | None:
        try:
            return self._file()
        except RuntimeError:  # nobody knows where this user's home is
            return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, and one thread. A killed process leaves nothing locked."""
    try:
        import fcntl
    except ImportError:  # not on Windows: there, of two processes at the same instant, one may be forgotten
        yield
        return
    places.make(path.parent)
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, int]:
    try:
        data = places.read_own(path, secret=False)
        return {} if data is None else _decode(json.loads(data))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        # Going on without it would lower what it holds.
        raise InvalidPolicy(
            f"{path} keeps the oldest evaluation of Intel's that is still accepted, and cannot be used: "
            f"{error}. Removing it accepts any evaluation again that is valid"
        ) from error


def _decode(told: Any) -> dict[str, int]:
    if not isinstance(told, dict) or set(told) != {"version", "tcb_evaluation"} or told["version"] != VERSION:
        raise ValueError("it is not in the form that this version writes")
    kept = told["tcb_evaluation"]
    if not isinstance(kept, dict) or len(kept) > MOST:
        raise ValueError("it holds something else")
    for fmspc, number in kept.items():
        if not _FMSPC.fullmatch(fmspc) or type(number) is not int or not 0 <= number <= HIGHEST:
            raise ValueError(f"it holds {fmspc!a}: {number!a}")
    return kept


def _encode(kept: dict[str, int]) -> bytes:
    return json.dumps({"version": VERSION, "tcb_evaluation": dict(sorted(kept.items()))}, indent=1).encode()
