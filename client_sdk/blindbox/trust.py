"""
Which policy belongs to which origin, like known_hosts, but nothing is ever trusted on first use.

A policy comes from a person (`blindbox trust ORIGIN --policy FILE`), never from the network, and no file can
hold one that accepts simulated evidence: `policy.read` knows no such word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from blindbox_attestation import policy as policies
from blindbox_attestation.errors import InvalidPolicy
from blindbox_attestation.policy import AnyKind

from . import places
from .origin import origin_of


class TrustStore:
    """The policies of one user, one file an origin."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int, int], AnyKind]] = {}

    @property
    def folder(self) -> Path:
        return self._folder if self._folder is not None else places.home() / "trust"

    def get(self, url: str) -> AnyKind | None:
        """The policy stored for the URL's origin, or None. An unreadable file is an error, not a None."""
        origin = origin_of(url)
        path = places.file_for(self.folder, origin, ".json")
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        known = self._read.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        data = _own(path)
        if data is None:
            return None
        policy = _parse(data, origin, path)
        self._read[path] = (stamp, policy)
        return policy

    def set(self, url: str, policy: AnyKind) -> str:
        """Store the policy for the URL's origin, and return that origin."""
        origin = origin_of(url)
        entry = {"version": 1, "origin": origin, "policy": json.loads(policy.to_json())}
        places.write(
            places.file_for(self.folder, origin, ".json"), (json.dumps(entry, indent=2) + "\n").encode()
        )
        return origin

    def forget(self, url: str) -> bool:
        """Remove what is stored for the URL's origin; False if there was nothing."""
        try:
            places.file_for(self.folder, origin_of(url), ".json").unlink()
        except FileNotFoundError:
            return False
        return True

    def all(self) -> dict[str, AnyKind]:
        """Every stored origin and its policy."""
        found: dict[str, AnyKind] = {}
        for _, held in self.each():
            if isinstance(held, InvalidPolicy):
                raise held
            found |= held
        return found

    def each(self) -> Iterator[tuple[Path, dict[str, AnyKind] | InvalidPolicy]]:
        """Every file of the store: the origin and its policy, or why there is none."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                data = _own(path)
                if data is not None:
                    origin = str(_entry(data, path)["origin"])
                    yield path, {origin: _parse(data, origin, path)}
            except InvalidPolicy as error:
                yield path, error


def read_policy(path: str | os.PathLike[str]) -> AnyKind:
    """The policy in a file that a person names."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidPolicy(
            f"the policy file {os.fspath(path)!r} cannot be read: {error.strerror}"
        ) from error
    return policies.read(data)


def _own(path: Path) -> bytes | None:
    try:
        return places.read_own(path, secret=False)
    except PermissionError as error:
        raise InvalidPolicy(str(error)) from error


def _entry(data: bytes, path: Path) -> dict[str, object]:
    try:
        entry = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidPolicy(f"{path} is not JSON; store the policy again with: blindbox trust") from error
    if not isinstance(entry, dict) or set(entry) != {"version", "origin", "policy"} or entry["version"] != 1:
        raise InvalidPolicy(
            f"{path} is not a stored policy of this version; store it again with: blindbox trust"
        )
    return entry


def _parse(data: bytes, origin: str, path: Path) -> AnyKind:
    entry = _entry(data, path)
    if entry["origin"] != origin:
        raise InvalidPolicy(f"{path} speaks about another origin than {origin}")
    return policies.read(json.dumps(entry["policy"]))


STORE = TrustStore()
"""The user's own store."""
