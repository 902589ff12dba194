"""
What vendors have published, kept in memory and on disk for as long as it says itself that it may be used.

`Cache.get` hands over one published thing: the kept one, or a new one that has passed its own check. A
check here only decides what is worth keeping, so that a lying server is asked again rather than remembered;
the proof is `verify`'s. Whatever goes wrong with the files, the worst is that something is asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from .. import places, process
from . import download
from .download import Answer, Unavailable

VERSION: Final = 1
MOST_FILES: Final = 512
MOST_IN_MEMORY: Final = 128
FAILED_FOR: Final = 30.0
"""Seconds for which a server that failed is not asked the same thing again."""
LONGEST_FAILURE: Final = 300.0
"""The same, if the server says how long, or the kept copy still serves."""
PATIENCE: Final = 1.0
"""Seconds that a server must have been given before its silence is remembered."""
REFRESH_WITHIN: Final = 3.0
"""Seconds that a newer copy may take while the kept one still serves."""

_EVERY_DAY: Final = timedelta(days=1)
_EVERY_HOUR: Final = timedelta(hours=1)
_LATE: Final = 0.8  # of what a thing's validity is


class WrongContent(Exception):
    """What a server sent is not what was asked for. The message says why."""


@dataclass(frozen=True, slots=True)
class Validity:
    """When something may be used, by its own words."""

    since: datetime
    until: datetime

    def holds(self, now: datetime) -> bool:
        return self.since <= now <= self.until


@dataclass(frozen=True, slots=True)
class Published:
    """One thing that a vendor publishes: where it is, and what makes an answer worth keeping."""

    what: str  # for people, as in "Intel's TCB info"
    url: str
    limit: int  # bytes
    check: Callable[[Answer, datetime], Validity]
    """Raises `WrongContent`, or tells when the answer may be used; what is not valid now is not kept."""
    renewed: bool = False  # True: there is a newer one now and then, and missing it would matter
    header: str = ""  # of the answer, kept beside the body


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer
    asked_at: datetime


class Cache:
    """Safe in many threads and several processes. `folder` is made when something is first kept."""

    def __init__(self, folder: Callable[[], Path], *, tls: bool | str = True) -> None:
        self._folder = folder
        self._tls = tls
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._asking: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._memory: dict[tuple[str, str], _Kept] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._generation = process.generation()

    def get(self, item: Published, *, now: datetime, until: float) -> Answer:
        """
        What was asked for, kept or new, by the monotonic time `until`. Raises `Unavailable`.

        1. what is kept, if it is valid at `now` and not due to be renewed
        2. what the vendor's server says, once for all threads that want it
        3. if that fails: what is kept, as long as it is valid
        """
        if self._generation != process.generation():
            with process.guard():
                if self._generation != process.generation():
                    self._begin()
        with self._lock:
            asking = self._asking.get(item.url)
            if asking is None:
                asking = self._asking[item.url] = threading.Lock()
        if not asking.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Unavailable("it did not answer in time")
        try:
            return self._get(item, now, until)
        finally:
            asking.release()

    def _get(self, item: Published, now: datetime, until: float) -> Answer:
        folder = self._usable_folder()
        kept = self._kept(item, folder, now)  # 1
        if kept is not None and not kept[1]:
            return kept[0]
        failure = self._recent_failure(item.url)
        if failure is None:
            patient = until - time.monotonic() >= PATIENCE
            try:
                return self._ask(item, folder, now, until, hurry=kept is not None)  # 2
            except Unavailable as error:
                failure, wait = str(error), error.retry_after or 0.0
            except WrongContent as error:
                failure, wait = f"it sent something else: {error}", 0.0
            if patient:
                self._remember_failure(item.url, failure, LONGEST_FAILURE if kept is not None else wait)
        if kept is not None:
            return kept[0]  # 3
        raise Unavailable(failure)

    def _ask(
        self, item: Published, folder: Path | None, now: datetime, until: float, *, hurry: bool
    ) -> Answer:
        if hurry:
            until = min(until, time.monotonic() + REFRESH_WITHIN)
        answer = download.get(item.url, limit=item.limit, until=until, tls=self._tls)
        header = {item.header: answer.headers.get(item.header, "")} if item.header else {}
        answer = Answer(answer.body, header)
        validity = item.check(answer, now)
        if not validity.holds(now):
            raise WrongContent(
                f"{item.what} is valid from {validity.since:%Y-%m-%d %H:%M} to "
                f"{validity.until:%Y-%m-%d %H:%M}, and now is {now:%Y-%m-%d %H:%M}"
            )
        self._keep(item, folder, _Kept(answer, now))
        return answer

    # ── what is kept ──────────────────────────────────────────────────────────────────────────────────────

    def _kept(self, item: Published, folder: Path | None, now: datetime) -> tuple[Answer, bool] | None:
        """What is kept and valid, and whether it is due to be renewed."""
        name = (str(folder), item.url)
        with self._lock:
            kept = self._memory.get(name)
        in_memory = kept is not None
        if kept is None and folder is not None:
            kept = _read(_file(folder, item.url), item)
        if kept is None:
            return None
        try:
            validity = item.check(kept.answer, now)
        except WrongContent:
            validity = None
        if validity is None or not validity.holds(now):
            self._drop(item, folder)
            return None
        if not in_memory:
            self._in_memory(name, kept)
        return kept.answer, _due(item, kept.asked_at, validity, now)

    def _keep(self, item: Published, folder: Path | None, kept: _Kept) -> None:
        self._in_memory((str(folder), item.url), kept)
        if folder is None:
            return
        with contextlib.suppress(
            OSError
        ):  # a folder that cannot be written costs a question at the next start
            places.write(_file(folder, item.url), _encode(item, kept))
            _sweep(folder)

    def _in_memory(self, name: tuple[str, str], kept: _Kept) -> None:
        with self._lock:
            self._memory.pop(name, None)
            self._memory[name] = kept
            while len(self._memory) > MOST_IN_MEMORY:
                del self._memory[next(iter(self._memory))]

    def _drop(self, item: Published, folder: Path | None) -> None:
        with self._lock:
            self._memory.pop((str(folder), item.url), None)
        if folder is not None:
            with contextlib.suppress(OSError):
                _file(folder, item.url).unlink()

    def _usable_folder(self) -> Path | None:
        try:
            return self._folder()
        except RuntimeError:  # nobody knows where this user's home is
            return None

    # ── what failed ───────────────────────────────────────────────────────────────────────────────────────

    def _recent_failure(self, url: str) -> str | None:
        with self._lock:
            end, why = self._failed.get(url, (0.0, ""))
            return why if time.monotonic() < end else None

    def _remember_failure(self, url: str, why: str, seconds: float) -> None:
        length = min(max(FAILED_FOR, seconds), LONGEST_FAILURE)
        with self._lock:
            self._failed.pop(url, None)
            self._failed[url] = (time.monotonic() + length, why)
            while len(self._failed) > MOST_IN_MEMORY:
                del self._failed[next(iter(self._failed))]


def _due(item: Published, asked_at: datetime, validity: Validity, now: datetime) -> bool:
    """Whether to ask for a newer one: every day for what is renewed, and every hour when the end is near."""
    age = now - asked_at
    if age < timedelta(0):  # the clock was set back
        return item.renewed
    late = now - validity.since > _LATE * (validity.until - validity.since)
    near_its_end = late or validity.until - now < _EVERY_DAY
    return (item.renewed and age > _EVERY_DAY) or (near_its_end and age > _EVERY_HOUR)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────


def _file(folder: Path, url: str) -> Path:
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()}.json"


def _encode(item: Published, kept: _Kept) -> bytes:
    body = kept.answer.body
    return json.dumps(
        {
            "version": VERSION,
            "what": item.what,
            "url": item.url,
            "asked_at": int(kept.asked_at.timestamp()),
            "headers": dict(kept.answer.headers),
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": b64encode(body).decode("ascii"),
        },
        indent=1,
    ).encode()


def _read(path: Path, item: Published) -> _Kept | None:
    """What a file keeps; a file that cannot be read, or says something else, is removed."""
    try:
        data = places.read_own(path, secret=False)
        return None if data is None else _decode(data, item)
    except OSError:  # others may write it, or it cannot be opened: not ours to use
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _decode(data: bytes, item: Published) -> _Kept:
    told = json.loads(data)
    body = b64decode(told["body"], validate=True)
    headers: Mapping[str, str] = {str(name): str(value) for name, value in told["headers"].items()}
    asked_at = datetime.fromtimestamp(told["asked_at"], UTC)
    right = (VERSION, item.url, hashlib.sha256(body).hexdigest())
    if (told["version"], told["url"], told["sha256"]) != right or len(body) > item.limit:
        raise ValueError("another thing than this is kept here")
    return _Kept(Answer(body, headers), asked_at)


def _sweep(folder: Path) -> None:
    """Keep the newest files, and no drafts that a killed process left behind."""
    yesterday = time.time() - 86400
    files: list[tuple[float, Path]] = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            changed = entry.stat(follow_symlinks=False).st_mtime
            if entry.name.endswith(".json"):
                files.append((changed, Path(entry.path)))
            elif entry.name.startswith(".") and changed < yesterday:
                Path(entry.path).unlink()
    for _, path in sorted(files)[: max(0, len(files) - MOST_FILES)]:
        with contextlib.suppress(OSError):
            path.unlink()
