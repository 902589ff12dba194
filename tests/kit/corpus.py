"""
What a corpus is made of: machines that are accepted, and cases that differ from them in one thing.

A `Draft` is a case before it is written. The tables of each platform (`corpus_snp.py` and its neighbours)
name what is changed and what has to come of it, from SPEC §4 and the intention, never from what the verifier
said. `write` puts them down as folders, in the form of SPEC §4.9; what several cases share lies in `_base`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.kit import NOON

SECOND: Final = timedelta(seconds=1)
ACCEPTED: Final = "accepted"
BASE: Final = "_base"
_KINDS: Final = {
    "vcek": "der", "vlek": "der", "ask": "der", "asvk": "der", "ark": "der", "crl": "der",
    "collateral": "json", "event_log": "bin", "ak_chain": "der",
}  # fmt: skip
"""Endorsement → how its file is called."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A case before it is written."""

    name: str
    about: str
    code: str  # "accepted", or the code of SPEC §4
    step: int
    platform: str  # empty for a whole document
    evidence: bytes  # or the document
    suffix: str  # of its file
    endorsements: Mapping[str, bytes]
    policy: Json
    roots: Json
    now: datetime
    nonce: bytes | None
    nonce_text: str | None

    @property
    def expect(self) -> Json:
        if self.code == ACCEPTED:
            return {"verdict": "accept"}
        return {"verdict": "refuse", "code": self.code, "step": self.step}


@dataclass(frozen=True)
class Machine:
    """An honest machine with all that is accepted about it: what cases differ from."""

    platform: str
    key: str  # of its part of a policy
    evidence: bytes
    policy: Json
    roots: Json
    endorsements: Mapping[str, bytes] = field(default_factory=dict)
    suffix: str = "bin"
    now: datetime = NOON
    nonce: bytes | None = None
    nonce_text: str | None = None

    def accepted(self, name: str, about: str, **changes: Any) -> Draft:
        """A case that must be accepted."""
        return self._case(name, about, ACCEPTED, 13, changes)

    def refused(self, name: str, about: str, code: str, step: int, **changes: Any) -> Draft:
        """A case that must be refused in this step, with this code."""
        return self._case(name, about, code, step, changes)

    def _case(self, name: str, about: str, code: str, step: int, changes: dict[str, Any]) -> Draft:
        """`wish` changes fields of the platform's policy, `endorsements` single ones; None leaves one out."""
        machine = self.with_wish(changes.pop("wish", {}))
        beside = {**machine.endorsements, **changes.pop("endorsements", {})}
        told: dict[str, Any] = {
            "platform": machine.platform,
            "evidence": machine.evidence,
            "suffix": machine.suffix,
            "policy": machine.policy,
            "roots": machine.roots,
            "now": machine.now,
            "nonce": machine.nonce,
            "nonce_text": machine.nonce_text,
            **changes,
        }
        beside = {key: value for key, value in beside.items() if value is not None}
        return Draft(name=name, about=about, code=code, step=step, endorsements=beside, **told)

    def with_wish(self, wish: Mapping[str, Any]) -> Machine:
        """The same machine, and a policy with these fields otherwise; None leaves one out."""
        part = merged(self.policy[self.key], wish)
        return replace(self, policy={**self.policy, self.key: part})


def merged(told: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """The same members but for the changes; None leaves one out."""
    return {name: value for name, value in {**told, **changes}.items() if value is not None}


def hexes(*values: bytes) -> list[str]:
    """A set of byte strings, as a policy writes it."""
    return sorted(value.hex() for value in values)


def named(roots: Mapping[bytes, str]) -> Json:
    """Roots, as a case writes them."""
    return {fingerprint.hex(): name for fingerprint, name in roots.items()}


def fingerprint(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """The same bytes with one bit turned."""
    at %= len(data)
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def put(data: bytes, at: int, value: bytes) -> bytes:
    """The same bytes with others in one place."""
    return data[:at] + value + data[at + len(value) :]


def write(drafts: Iterable[Draft], folder: Path) -> int:
    """One folder for each case, in place of what was there; returns how many."""
    cases = list(drafts)
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    assert not twice, f"cases of the same name: {twice}"
    if folder.exists():
        shutil.rmtree(folder)
    shared = _Shared(folder, cases)
    for case in cases:
        place = folder / case.name
        place.mkdir(parents=True)
        told: Json = {"version": 1, "about": case.about, "expect": case.expect}
        if case.platform:
            told["platform"] = case.platform
        told["evidence" if case.platform else "document"] = shared.file(
            place, f"evidence.{case.suffix}" if case.platform else "document.json", case.evidence
        )
        if case.endorsements:
            told["endorsements"] = {
                name: shared.file(place, f"{name}.{_KINDS[name]}", value)
                for name, value in case.endorsements.items()
            }
        if case.nonce is not None:
            told["nonce"] = case.nonce.hex()
        if case.nonce_text is not None:
            told["nonce_text"] = case.nonce_text
        told["now"] = case.now.isoformat().replace("+00:00", "Z")
        told["policy"] = shared.policy(place, case.policy)
        if case.roots:
            told["roots"] = case.roots
        (place / "case.json").write_text(json.dumps(told, indent=1) + "\n", encoding="ascii")
    return len(cases)


class _Shared:
    """The files of a folder: those that several cases need are written once, beside the cases."""

    def __init__(self, folder: Path, cases: Iterable[Draft]) -> None:
        self._base = folder / BASE
        self._names: dict[str, bytes] = {}
        self._uses: Counter[bytes] = Counter()
        self._policies: Counter[str] = Counter()
        for case in cases:
            self._uses.update([case.evidence, *case.endorsements.values()])
            self._policies[json.dumps(case.policy)] += 1

    def file(self, place: Path, name: str, data: bytes) -> str:
        """The name under which the case finds these bytes."""
        if self._uses[data] == 1:
            (place / name).write_bytes(data)
            return name
        stem, _, suffix = name.rpartition(".")
        if self._names.get(name, data) != data:
            name = f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"
        self._names[name] = data
        self._base.mkdir(parents=True, exist_ok=True)
        (self._base / name).write_bytes(data)
        return f"../{BASE}/{name}"

    def policy(self, place: Path, policy: Json) -> Any:
        """Written out in the case, unless others have it too, or it is several and so too deep for a case."""
        text = json.dumps(policy)
        uses = self._policies[text]
        if uses == 1 and not {"any_of", "all_of"} & policy.keys():
            return policy
        data = (json.dumps(policy, indent=1) + "\n").encode("ascii")
        self._uses[data] = uses
        return self.file(place, "policy.json", data)
