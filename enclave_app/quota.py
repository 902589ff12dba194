"""
How much of the disk each tenant has, and how much it may have.

Counted are sealed bytes as they lie there, those that are being written among them. A tenant is counted when
it first writes after a start, by a look at its folder; from then on the store tells what comes and what goes.
What tells of the rest (records of jobs, descriptions of files …) is small, and limited in number elsewhere.
It has a little room of its own: so the job of a tenant whose share is full still ends in order, and what
takes the room can be listed and deleted.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from .refusals import TooLarge

RECORDS: Final = frozenset(
    {"models", "file-descriptions", "uploads", "jobs", "job-events", "job-keys", "receipts"}
)
"""Kinds of files that tell of others."""
FOR_RECORDS: Final = 64 << 20  # bytes that these may take when everything else is full

_TOLD: Final[Mapping[str, str]] = {
    "files": "files (DELETE /v1/files/ID)",
    "upload-parts": "unfinished uploads (POST /v1/uploads/ID/cancel)",
    "checkpoints": "checkpoints (DELETE /v1/fine_tuning/jobs/ID)",
    "adapters": "tuned models (DELETE /v1/models/ID)",
}
"""What takes most room, as its owner knows it, and how it goes."""


class Quota:
    """Bytes by tenant and kind. It is not locked by itself: the store's guard is held by whoever calls."""

    def __init__(self, root: Path, most: int | None) -> None:
        """Each tenant may have `most` bytes under `root`, never more than half of the disk; None = all."""
        self._root = root
        self._most = None if most is None else min(most, shutil.disk_usage(root).total // 2)
        self._used: dict[str, Counter[str]] = {}  # of those who have anything

    def check(self, owner: str, kind: str, size: int, *, param: str | None = None, why: str = "") -> None:
        """Raise `TooLarge` where so many bytes more are too many; `why` explains the number."""
        if self._most is not None:
            self._check(self._of(owner), kind, size, param, why)

    def take(self, owner: str, kind: str, size: int) -> None:
        """So many bytes are about to be written; raises `TooLarge` where they are too many."""
        if self._most is not None:
            used = self._of(owner)
            self._check(used, kind, size)
            used[kind] += size
            self._used[owner] = used

    def give_back(self, owner: str, kind: str, size: int) -> None:
        """So many bytes are gone."""
        used = self._used.get(owner)
        if used is None:  # not counted yet, and when it is they are not there
            return
        used[kind] = max(0, used[kind] - size)  # the disk's owner may have made a file longer
        if not used.total():
            del self._used[owner]  # tenants come and go, and any token is one

    def _check(
        self, used: Counter[str], kind: str, size: int, param: str | None = None, why: str = ""
    ) -> None:
        assert self._most is not None
        if used.total() + size <= self._most + (FOR_RECORDS if kind in RECORDS else 0):
            return
        there = [f"{_amount(used[kind])} in {words}" for kind, words in _TOLD.items() if used[kind]]
        rest = used.total() - sum(used[kind] for kind in _TOLD)
        if rest:
            there.append(f"{_amount(rest)} in records")
        raise TooLarge(
            f"You may keep {_amount(self._most)} here, and have {_amount(used.total())}"
            f"{': ' if there else ''}{', '.join(there)}. This takes {_amount(size)} more{why}. Delete what "
            "you no longer need, then try again; nothing that was there has changed.",
            code="storage_quota",
            param=param,
        )

    def _of(self, owner: str) -> Counter[str]:
        used = self._used.get(owner)
        if used is None:
            used = self._counted(owner)
            if used:
                self._used[owner] = used
        return used

    def _counted(self, owner: str) -> Counter[str]:
        """What lies in the tenant's folder; what is being written has been told, and is not looked at."""
        found: Counter[str] = Counter()
        for kind in _inside(self._root / owner):
            for file in _inside(Path(kind.path)) if kind.is_dir(follow_symlinks=False) else ():
                with suppress(FileNotFoundError):
                    if file.is_file(follow_symlinks=False) and not file.name.startswith("."):
                        found[kind.name] += file.stat(follow_symlinks=False).st_size
        return found


def _inside(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _amount(size: int) -> str:
    """Bytes for people."""
    if size < 1 << 20:
        return f"{size} bytes"
    return f"{size / (1 << 20):.1f} MiB" if size < 1 << 30 else f"{size / (1 << 30):.2f} GiB"
