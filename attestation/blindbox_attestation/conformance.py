"""
The verifier as a black box: `python -m blindbox_attestation.conformance CASE.json…`

Reads a case, judges it, and prints one line of JSON: {"case", "verdict", "code", "step", "detail"}. This
is the one module of the room that opens files: those that a case names, relative to the case. A case may
bring roots of its own, which no policy file can, so an "accept" here is a test result and not a proof.
Form of a case: SPEC §4.9.

Exit status: 0 every case accepted · 10 some case refused · 2 some case could not be read.
With --expect: 0 every case came out as its "expect" says · 1 some did not · 2 some could not be read.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from . import strict_json
from .errors import AttestationError, BlindBoxError
from .evidence import ENDORSEMENTS, MAX_DOCUMENT
from .policy import AllOf, AnyOf, Policy, read
from .verify import appraise, verify
from .walk import Walk

ACCEPTED, UNEXPECTED, UNREADABLE, REFUSED = 0, 1, 2, 10

MAX_CASE: Final = 1 << 20
_REQUIRED = ("policy", "now")
_OPTIONAL = (
    "version",
    "about",
    "document",
    "platform",
    "evidence",
    "endorsements",
    "nonce",
    "nonce_text",
    "roots",
    "expect",
)
_PEM = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----\s+([A-Za-z0-9+/=\s]+?)-----END [A-Z0-9 ]+-----")


class UnreadableCase(Exception):
    """The case itself makes no sense: nothing was judged."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case."""

    accepted: bool
    code: str  # "accepted", or the code of SPEC §4
    step: int  # the step that refused; 13 for an accepted one
    detail: str

    @property
    def word(self) -> str:
        return "accept" if self.accepted else "refuse"


@dataclass(frozen=True, slots=True)
class Case:
    """One case, read, with its files."""

    platform: str  # of the evidence; empty for a whole document
    evidence: bytes  # or the document
    endorsements: Mapping[str, bytes]
    nonce: bytes | None
    now: datetime
    policy: Policy | AnyOf | AllOf
    expect: strict_json.Object | None

    @classmethod
    def load(cls, path: Path, vectors: Path | None = None) -> Case:
        """`vectors` is what file names beginning with "vectors:" are relative to. Raises `UnreadableCase`."""
        try:
            return cls._read(strict_json.parse(_contents(path, MAX_CASE)), path.parent, vectors)
        except (OSError, ValueError, BlindBoxError) as error:
            raise UnreadableCase(str(error)) from error

    @classmethod
    def _read(cls, value: strict_json.Object, folder: Path, vectors: Path | None) -> Case:
        told = strict_json.fields(value, "the case", _REQUIRED, _OPTIONAL)
        strict_json.integer(told.get("version", 1), "version", 1, 1)
        if ("document" in told) == ("evidence" in told) or ("evidence" in told) != ("platform" in told):
            raise UnreadableCase("a case has either a document, or a platform and its evidence")
        if "nonce" in told and "nonce_text" in told:
            raise UnreadableCase("a case has a nonce or a nonce_text, not both")

        def file(name: object, where: str) -> bytes:
            given = strict_json.text(name, where, 1024)
            prefix, _, rest = given.partition("vectors:")
            if prefix == "" and rest:
                if vectors is None:
                    raise UnreadableCase(f"{where} is {given}; say where the vectors are with --vectors")
                return _contents(vectors / rest, 16 * MAX_DOCUMENT)
            return _contents(folder / given, 16 * MAX_DOCUMENT)

        endorsements = strict_json.fields(told.get("endorsements", {}), "endorsements", (), ENDORSEMENTS)
        policy = told["policy"]
        text = file(policy, "policy") if isinstance(policy, str) else strict_json.dump(policy)
        nonce: bytes | None = None
        if "nonce_text" in told:
            nonce = strict_json.text(told["nonce_text"], "nonce_text", 1024).encode("ascii")
        elif told.get("nonce") is not None:
            nonce = _nonce(told["nonce"])
        if nonce == b"":
            raise UnreadableCase("an empty nonce says nothing; leave it out")
        return cls(
            platform=strict_json.text(told["platform"], "platform") if "platform" in told else "",
            evidence=file(told.get("evidence", told.get("document")), "evidence"),
            endorsements={name: _der(file(one, name)) for name, one in endorsements.items()},
            nonce=nonce,
            now=_time(told["now"]),
            policy=_with_roots(read(text), told.get("roots", {})),
            expect=_expected(told["expect"]) if "expect" in told else None,
        )

    def judge(self) -> Verdict:
        """Let the verifier speak."""
        walk = Walk()
        try:
            if self.platform:
                if not isinstance(self.policy, Policy):
                    raise UnreadableCase("evidence without a document is judged by one policy alone")
                appraise(
                    self.platform,
                    self.evidence,
                    self.endorsements,
                    self.policy,
                    nonce=self.nonce,
                    now=self.now,
                    walk=walk,
                )
            else:
                verify(
                    self.evidence,
                    self.policy,
                    nonce=self.nonce or b"",
                    now=self.now,
                    collateral=self.endorsements,
                )
        except AttestationError as error:
            step = error.steps[-1].number if error.steps else 0
            return Verdict(False, error.code, step, str(error))
        return Verdict(True, "accepted", 13, "every step passed, or was not asked for")


def as_expected(verdict: Verdict, expect: strict_json.Object) -> bool:
    """Whether all that the case expects came true: "verdict", and "code" and "step" where they are given."""
    found: dict[str, object] = {"verdict": verdict.word, "code": verdict.code, "step": verdict.step}
    return all(name in found and found[name] == wanted for name, wanted in expect.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the cases that are named; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m blindbox_attestation.conformance",
        description="Judge attestation cases, one line of JSON for each.",
        epilog="exit status: 0 all accepted, 10 some refused, 2 some unreadable; "
        "with --expect: 0 all as expected, 1 some not, 2 some unreadable",
    )
    parser.add_argument("cases", nargs="+", metavar="CASE.json", type=Path)
    parser.add_argument(
        "--vectors", metavar="DIR", type=Path, help='what "vectors:…" file names are relative to'
    )
    parser.add_argument("--expect", action="store_true", help='compare with what each case\'s "expect" says')
    options = parser.parse_args(arguments)
    statuses = {_print(path, options.vectors, expect=options.expect) for path in options.cases}
    order = (UNREADABLE, UNEXPECTED, REFUSED, ACCEPTED)
    return next(status for status in order if status in statuses)


def _print(path: Path, vectors: Path | None, *, expect: bool) -> int:
    told: dict[str, object] = {"case": str(path)}
    try:
        case = Case.load(path, vectors)
        verdict = case.judge()
        if expect and case.expect is None:
            raise UnreadableCase('the case has no "expect"')
    except UnreadableCase as error:
        print(json.dumps(told | {"verdict": "unreadable", "code": "", "step": 0, "detail": str(error)}))
        return UNREADABLE
    told |= {"verdict": verdict.word, "code": verdict.code, "step": verdict.step, "detail": verdict.detail}
    if expect and case.expect is not None:
        told["as_expected"] = good = as_expected(verdict, case.expect)
        print(json.dumps(told))
        return ACCEPTED if good else UNEXPECTED
    print(json.dumps(told))
    return ACCEPTED if verdict.accepted else REFUSED


def _with_roots(policy: Policy | AnyOf | AllOf, roots: object) -> Policy | AnyOf | AllOf:
    """The same policy, trusting the fake vendors that a case brings: policy key → {SHA-256 of DER: name}."""
    if not isinstance(roots, dict):
        raise UnreadableCase("roots is not an object")
    if not roots:
        return policy
    if not isinstance(policy, Policy):
        return type(policy)(tuple(_with_roots(one, roots) for one in policy.policies))
    changed: dict[str, Any] = {}
    for key, given in roots.items():
        platform, _, whose = key.partition(".")
        inner = {"azure_snp": "snp", "azure_tdx": "tdx"}.get(platform)
        part = changed.get(platform, policy.part(platform))
        if part is None or not isinstance(given, dict) or whose not in (("", "ak") if inner else ("",)):
            raise UnreadableCase(f"roots: the policy has no part {key!a}")
        pinned = {
            strict_json.from_hex(print_, f"roots of {key}", (32,)): strict_json.text(name, key)
            for print_, name in given.items()
        }
        if inner is None or whose:
            changed[platform] = replace(part, roots=pinned)
        else:
            changed[platform] = replace(part, **{inner: replace(getattr(part, inner), roots=pinned)})
    return replace(policy, **changed)


def _contents(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnreadableCase(f"{path.name} is larger than {most} bytes")
    return data


def _der(data: bytes) -> bytes:
    """What is in PEM, as DER after DER; anything else as it is."""
    if not data.lstrip().startswith(b"-----BEGIN "):
        return data
    return b"".join(base64.b64decode(b"".join(body.split()), validate=True) for body in _PEM.findall(data))


def _nonce(value: object) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-f]{2}){1,1024}", value):
        raise UnreadableCase("nonce is not 1 to 1024 bytes in lower-case hex; left out, it is not asked")
    return bytes.fromhex(value)


def _expected(value: object) -> strict_json.Object:
    """Read strictly: a misspelt expectation would never be disappointed, or always."""
    told = strict_json.fields(value, "expect", ("verdict",), ("code", "step"))
    if told["verdict"] not in ("accept", "refuse"):
        raise UnreadableCase(f"the verdict expected is {told['verdict']!a}, and not 'accept' or 'refuse'")
    return told


def _time(value: object) -> datetime:
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        found = datetime.fromisoformat(strict_json.text(value, "now"))
    except (ValueError, OverflowError, OSError) as error:
        raise UnreadableCase(
            f"now is {value!a}, expected Unix seconds or a time like '2026-06-01T12:00:00Z'"
        ) from error
    if found.tzinfo is None:
        raise UnreadableCase(f"now is {value!a} without a time zone; end it with Z for UTC")
    return found


if __name__ == "__main__":
    sys.exit(main())
