"""
What came of one attempt to prove a machine: as one value, and as a file, `blindbox-proof/1` (SPEC §7).

A `Report` is written by whoever asked the machine, accepted or refused, and read by somebody else, later.
Nothing that the file says about itself is believed: what is read is a `SavedProof`, which can be judged again
from its evidence, offline. How a report looks to people is in `page.py` and `text.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from blindbox_attestation import policy as policies
from blindbox_attestation import strict_json
from blindbox_attestation.channel import ohttp
from blindbox_attestation.errors import AttestationError, InvalidPolicy, MalformedEvidence, SealingError
from blindbox_attestation.evidence import (
    ENDORSEMENTS,
    MAX_DOCUMENT,
    NONCE_SIZE,
    SIMULATED,
    AttestationDocument,
)
from blindbox_attestation.simulated import UnsafeSimulatedPolicy
from blindbox_attestation.steps import NAMES, Check, Step
from blindbox_attestation.verify import AnyPolicy, Verified, verify

from .. import __version__
from ..errors import CollateralUnavailable, NoPolicy, UnreadableProof
from ..origin import origin_of
from ..printable import MAX_SHOWN, plain, short
from ..proof import Proof

FORMAT: Final = "blindbox-proof/1"
PROGRAM: Final = f"blindbox {__version__}"
MAX_PROOF: Final = 8 * 1024 * 1024
MAX_COLLATERAL: Final = 1024 * 1024  # all together
_DEEPEST: Final = policies.MAX_DEPTH + 1  # a policy, and the object around it

Verdict = Literal["accepted", "simulated", "refused", "not judged"]
"""
"simulated" is not a kind of "accepted": a program that looks for the latter never takes the former for it.
"not judged" means that there was nothing to judge: no policy, or the machine was not reached.
"""

VERDICTS: Final[tuple[Verdict, ...]] = ("accepted", "simulated", "refused", "not judged")
_OUTCOMES: Final = ("passed", "failed", "not applicable", "not asked")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a machine was not accepted."""

    kind: str  # the name of the error's type
    code: str  # SPEC §4, or one of SPEC §7
    message: str

    @classmethod
    def of(cls, error: Exception, message: str = "") -> Problem:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "not-reached")
        return cls(type(error).__name__, plain(getattr(error, "code", code)), plain(message or str(error)))


_CODES: Final = (
    (SealingError, "no-common-suite"),  # its key configuration, well proved, is none that is spoken here
    (InvalidPolicy, "invalid-policy"),
    (UnreadableProof, "unreadable-proof"),
    (ValueError, "invalid-address"),
)
"""For errors that bring no code of SPEC §4. They are listed in SPEC §7."""


@dataclass(frozen=True, slots=True)
class Again:
    """What came of judging a saved proof again."""

    said: Verdict  # by the file
    agrees: bool
    differs: tuple[
        str, ...
    ]  # which parts of the file say something else; only told for the same time and policy
    own_policy: bool  # the policy came from the file itself, so whoever wrote the file chose it
    written_by: str


@dataclass(frozen=True, slots=True)
class Report:
    """One attempt: what was asked, what came, what was checked, and the verdict."""

    origin: str
    at: datetime
    policy: AnyPolicy | None = None
    nonce: bytes = b""
    document: bytes = b""  # empty if none came
    collateral: Mapping[str, bytes] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    verified: Verified | None = None
    until: datetime | None = None  # how long it is relied on
    error: Exception | None = None  # with which it ended
    problem: Problem | None = None  # the same, as it is told
    again: Again | None = None

    @classmethod
    def of(cls, proof: Proof) -> Report:
        return cls(
            origin=proof.origin,
            at=proof.verified_at,
            policy=proof.policy,
            nonce=proof.nonce,
            document=proof.document,
            collateral=proof.collateral,
            steps=_plain_steps(proof.steps),
            verified=proof.verified,
            until=proof.not_after,
        )

    def judged(self) -> Report:
        """The same attempt, with what `verify` says of what came."""
        assert self.policy is not None
        try:
            verified = verify(
                self.document, self.policy, nonce=self.nonce, now=self.at, collateral=self.collateral
            )
        except AttestationError as error:
            return self.ended(error)
        proved = replace(
            self, verified=verified, steps=_plain_steps(verified.steps), until=verified.not_after
        )
        try:
            ohttp.preferred(ohttp.parse_key_configs(verified.key_config))
        except SealingError as error:
            return proved.ended(error)
        return proved

    def ended(self, error: Exception, message: str = "") -> Report:
        """The same attempt, which ended with this error."""
        steps = _plain_steps(error.steps) if isinstance(error, AttestationError) else self.steps
        return replace(
            self, steps=steps, verified=None, until=None, error=error, problem=Problem.of(error, message)
        )

    @property
    def verdict(self) -> Verdict:
        if self.error is None:
            return "simulated" if self.simulated else "accepted"
        judged = isinstance(self.error, AttestationError | SealingError) and not isinstance(
            self.error, NoPolicy
        )
        return "refused" if judged else "not judged"

    @property
    def simulated(self) -> bool:
        """Whether the machine is, or says it is, simulated: then nothing at all was proved."""
        if self.verified is not None:
            return self.verified.simulated
        claimed = self.claimed
        return claimed is not None and claimed.platform == SIMULATED

    @property
    def claimed(self) -> AttestationDocument | None:
        """What the document says, if it can be read. A claim, to be shown as one."""
        try:
            return AttestationDocument.parse(self.document) if self.document else None
        except MalformedEvidence:
            return None

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if self.problem is not None:
            failed = next((step for step in self.steps if step.outcome == "failed"), None)
            where = f"Refused at step {failed.number}, “{failed.name}”: " if failed else ""
            if not where and self.verdict == "refused":
                where = "Refused: "
            return where + self.problem.message
        assert self.verified is not None
        if self.simulated:
            return (
                "Simulated, so nothing was proved: the evidence is signed with a key that everybody has, "
                "and whoever runs this machine can read all that is sent to it."
            )
        return (
            f"{self.verified.title} proved at {spoken(self.at)} that this machine runs the program with "
            f"measurement {short(self.verified.measurement.hex())}, which the policy accepts."
        )

    def to_json(self) -> str:
        """The file of SPEC §7. `SavedProof.parse` reads it."""
        return json.dumps(self._to_object(), indent=2, ensure_ascii=True) + "\n"

    def _to_object(self) -> strict_json.Object:
        base64 = strict_json.to_base64
        value: strict_json.Object = {
            "format": FORMAT,
            "program": PROGRAM,
            "verdict": self.verdict,
            "summary": plain(self.summary),
            "simulated": self.simulated,
            "origin": plain(self.origin),
            "verified_at": instant(self.at),
            "machine": self._machine(),
            "error": None,
            "steps": [_step_object(step) for step in self.steps],
            "policy": None,
            "policy_digest": None,
            "nonce": base64(self.nonce),
            "document": base64(self.document),
            "collateral": {name: base64(held) for name, held in sorted(self.collateral.items())},
        }
        if self.problem is not None:
            told = self.problem
            value["error"] = {"type": told.kind, "code": told.code, "message": told.message}
        if (text := policy_text(self.policy)) is not None:
            value["policy"] = json.loads(text)
        if self.policy is not None:
            value["policy_digest"] = policy_digest(self.policy).hex()
        if self.again is not None:
            value["again"] = {
                "said": self.again.said,
                "agrees": self.again.agrees,
                "differs": list(self.again.differs),
                "own_policy": self.again.own_policy,
                "written_by": self.again.written_by,
            }
        return value

    def _machine(self) -> strict_json.Object | None:
        proved = self.verified
        if proved is None:
            return None
        return {
            "platform": proved.platform,
            "title": proved.title,
            "trusts": list(proved.trusts),
            "measurement": proved.measurement.hex(),
            "evidence_id": proved.evidence_id.hex(),
            "boot_id": proved.boot_id.hex(),
            "config_digest": proved.config_digest.hex(),
            "tls_spki_sha256": proved.tls_spki_sha256.hex(),
            "not_before": instant(proved.not_before),
            "not_after": instant(proved.not_after),
        }


@dataclass(frozen=True, slots=True)
class SavedProof:
    """
    What a proof file holds. A claim: nothing here has been verified, and its verdict is not believed.

    `verify` judges the evidence again, and `judge` tells of a refusal as well. Neither touches the network.
    """

    origin: str  # where whoever wrote the file says that it asked; no evidence names it
    verified_at: datetime
    policy: AnyPolicy | None  # as the file has it; None if it has no JSON form
    policy_digest: bytes | None
    nonce: bytes
    document: bytes
    collateral: Mapping[str, bytes]
    verdict: Verdict  # as the file says
    written_by: str
    told: strict_json.Object = field(repr=False)  # the whole file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedProof:
        """Read a proof file. Raises `UnreadableProof`."""
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_PROOF + 1)
        except OSError as error:
            raise UnreadableProof(
                f"the proof file {os.fspath(path)!r} cannot be read: {error.strerror}"
            ) from error
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> SavedProof:
        """Read a proof (SPEC §7). Raises `UnreadableProof`."""
        if len(data) > MAX_PROOF:
            raise UnreadableProof(f"the proof is larger than {MAX_PROOF} bytes, more are not read")
        try:
            return cls._read(strict_json.parse(data, deepest=_DEEPEST))
        except strict_json.JsonRefused as error:
            raise UnreadableProof(f"the proof: {error}") from error
        except InvalidPolicy as error:
            raise UnreadableProof(f"the policy in the proof cannot be used: {error}") from error

    @classmethod
    def _read(cls, value: strict_json.Object) -> SavedProof:
        # The format comes first: a later one may have other keys, and deserves the better message.
        if value.get("format") != FORMAT:
            found = value.get("format")
            told = f"{found[:64]!a}" if isinstance(found, str) else "missing or no string"
            raise UnreadableProof(f"the format of the proof is {told}, this program reads {FORMAT!r}")
        strict_json.fields(value, "the proof", _KEYS, ("again",))
        _check_told(value)
        digest = value["policy_digest"]
        digest = None if digest is None else strict_json.from_hex(digest, "policy_digest", (32,))
        policy = None
        if value["policy"] is not None:
            policy = policies.read(strict_json.dump(value["policy"]))
            if _digest(value["policy"]) != digest:
                raise UnreadableProof(
                    "the policy in the proof is not the one that its digest names: it was changed"
                )
        document = strict_json.from_base64(value["document"], "document")
        if len(document) > MAX_DOCUMENT:
            raise UnreadableProof(f"the document is {len(document)} bytes, at most {MAX_DOCUMENT} are judged")
        nonce = strict_json.from_base64(value["nonce"], "nonce")
        if len(nonce) not in (0, NONCE_SIZE):
            raise UnreadableProof(f"the nonce is {len(nonce)} bytes, expected {NONCE_SIZE} or none")
        collateral = {
            name: strict_json.from_base64(held, f"collateral {name}")
            for name, held in strict_json.fields(value["collateral"], "collateral", (), ENDORSEMENTS).items()
        }
        if sum(map(len, collateral.values())) > MAX_COLLATERAL:
            raise UnreadableProof(f"the collateral is larger than {MAX_COLLATERAL} bytes")
        return cls(
            origin=_origin(value["origin"]),
            verified_at=_time(value["verified_at"], "verified_at"),
            policy=policy,
            policy_digest=digest,
            nonce=nonce,
            document=document,
            collateral=collateral,
            verdict=value["verdict"],
            written_by=value["program"],
            told=value,
        )

    def verify(self, *, at: datetime | None = None, policy: AnyPolicy | None = None) -> Proof:
        """
        Judge the saved evidence again, at `at` (or when the file says it was judged), without any network.

        Without a `policy` it is the one in the file, which whoever wrote the file has chosen. Raises what
        `blindbox_attestation.verify` raises, and `UnreadableProof` if there is nothing to judge.
        """
        report = self.judge(at=at, policy=policy)
        if report.error is not None:
            raise report.error
        assert report.verified is not None
        assert report.policy is not None
        return Proof(
            self.origin,
            report.verified,
            report.policy,
            self.nonce,
            self.document,
            self.collateral,
            report.verified.not_after,
        )

    def judge(self, *, at: datetime | None = None, policy: AnyPolicy | None = None) -> Report:
        """As `verify`; a refusal is told in the report, together with whether the file agrees."""
        if not self.document:
            raise UnreadableProof("this proof holds no attestation document: there is nothing to judge again")
        chosen = policy if policy is not None else self.policy
        if chosen is None:
            raise UnreadableProof(
                "the policy of this proof cannot be written in a file (it has roots of its own, or accepts "
                "simulated machines); say what must be proved with --policy FILE, or policy=… in Python"
            )
        if at is not None and at.tzinfo is None:
            raise ValueError("at must say its time zone")
        now = self.verified_at if at is None else at.astimezone(UTC)
        report = Report(self.origin, now, chosen, self.nonce, self.document, self.collateral).judged()
        theirs = chosen == self.policy if self.policy is not None else chosen.digest == self.policy_digest
        same = now == self.verified_at and theirs
        differs = self._differences(report) if same else ()
        return replace(
            report,
            again=Again(
                said=self.verdict,
                agrees=report.verdict == self.verdict and not differs,
                differs=differs,
                own_policy=policy is None,
                written_by=self.written_by,
            ),
        )

    def _differences(self, report: Report) -> tuple[str, ...]:
        ours, told = report._to_object(), self.told
        differs = [name for name in _JUDGED if ours[name] != told[name]]
        error, theirs = ours["error"] or {}, told["error"] or {}
        if theirs.get("type") == CollateralUnavailable.__name__ and theirs["code"] == error.get("code"):
            # Who was asked in vain is told in its message, and cannot be told again.
            differs = [name for name in differs if name not in ("error", "summary")]
        return tuple(differs)


_JUDGED: Final = ("verdict", "summary", "simulated", "machine", "error", "steps")
"""What follows from the evidence, the policy and the time, and can therefore be compared."""

_KEYS: Final = (
    "format",
    "program",
    "origin",
    "verified_at",
    *_JUDGED,
    "policy",
    "policy_digest",
    "nonce",
    "document",
    "collateral",
)


def policy_digest(policy: AnyPolicy) -> bytes:
    """32 bytes that name a policy: of its JSON form, where it has one."""
    text = policy_text(policy)
    return policy.digest if text is None else _digest(json.loads(text))


def _digest(policy: strict_json.Object) -> bytes:
    """Of a policy as it stands in a file: a later release, whose policies say more, still reads it."""
    return hashlib.sha256(strict_json.dump(policy)).digest()


_MACHINE_TEXTS: Final = (
    "platform",
    "title",
    "measurement",
    "evidence_id",
    "boot_id",
    "config_digest",
    "tls_spki_sha256",
    "not_before",
    "not_after",
)


def _check_told(value: strict_json.Object) -> None:
    """That what is said, and not believed, at least has the types that it should."""
    for name in ("program", "summary"):
        _text(value[name], name)
    _one_of(value["verdict"], "verdict", VERDICTS)
    strict_json.boolean(value["simulated"], "simulated")
    if value["machine"] is not None:
        machine = strict_json.fields(value["machine"], "machine", (*_MACHINE_TEXTS, "trusts"))
        for name in _MACHINE_TEXTS:
            _text(machine[name], f"machine: {name}")
        for one in strict_json.items(machine["trusts"], "machine: trusts"):
            _text(one, "machine: trusts")
    if value["error"] is not None:
        for name, told in strict_json.fields(value["error"], "error", ("type", "code", "message")).items():
            _text(told, f"error: {name}")
    for step in strict_json.items(value["steps"], "steps"):
        strict_json.fields(step, "a step", ("number", "name", "outcome", "detail", "checks"))
        strict_json.integer(step["number"], "number of a step", min(NAMES), max(NAMES))
        _one_of(step["outcome"], "outcome of a step", _OUTCOMES)
        _text(step["name"], "name of a step")
        _text(step["detail"], "detail of a step")
        for check in strict_json.items(step["checks"], "checks of a step"):
            strict_json.fields(check, "a check", ("name", "outcome", "found", "wanted", "source"))
            _one_of(check["outcome"], "outcome of a check", _OUTCOMES)
            for name in ("name", "found", "wanted", "source"):
                _text(check[name], f"{name} of a check")
    if "again" in value:
        again = strict_json.fields(
            value["again"], "again", ("said", "agrees", "differs", "own_policy", "written_by")
        )
        _one_of(again["said"], "again: said", VERDICTS)
        strict_json.boolean(again["agrees"], "again: agrees")
        strict_json.boolean(again["own_policy"], "again: own_policy")
        _text(again["written_by"], "again: written_by")
        for one in strict_json.items(again["differs"], "again: differs"):
            _one_of(one, "again: differs", _JUDGED)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_SHOWN or plain(value) != value:
        raise strict_json.JsonRefused(
            f"{where} is not a string of at most {MAX_SHOWN} printable characters", "wrong-type"
        )
    return value


def _one_of(value: object, where: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise strict_json.JsonRefused(f"{where} is none of {', '.join(choices)}", "wrong-type")


def _origin(value: object) -> str:
    text = strict_json.text(value, "origin", 1024)
    try:
        right = origin_of(text) == text
    except ValueError:
        right = False
    if not right:
        raise strict_json.JsonRefused("origin is no address as this program writes them", "wrong-type")
    return text


def _time(value: object, where: str) -> datetime:
    """A time has one spelling, that of `instant`."""
    found = time_of(strict_json.text(value, where))
    if found is None or instant(found) != value:
        raise strict_json.JsonRefused(f"{where} is no time like 2026-01-31T12:00:00Z", "wrong-type")
    return found


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────


def policy_text(policy: Any) -> str | None:
    """The policy's JSON, or None if no file can hold it."""
    if policy is None or isinstance(policy, UnsafeSimulatedPolicy):
        return None
    try:
        text: str = policy.to_json()
    except InvalidPolicy:
        return None
    return text


def instant(time: datetime) -> str:
    """2026-01-31T12:00:00Z, with a fraction where there is one."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def time_of(text: str) -> datetime | None:
    """The time in a text of ISO 8601 that says its zone; None if it is none, or too far away to count."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo is not None and 1970 < found.year < 9999 else None


def spoken(time: datetime) -> str:
    """The same for people, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _plain_steps(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple(
        replace(
            step,
            name=plain(step.name),
            detail=plain(step.detail),
            checks=tuple(
                Check(
                    plain(check.name),
                    check.outcome,
                    plain(check.found),
                    plain(check.wanted),
                    plain(check.source),
                )
                for check in step.checks
            ),
        )
        for step in steps
    )


def _step_object(step: Step) -> strict_json.Object:
    return {
        "number": step.number,
        "name": step.name,
        "outcome": step.outcome,
        "detail": step.detail,
        "checks": [
            {
                "name": check.name,
                "outcome": check.outcome,
                "found": check.found,
                "wanted": check.wanted,
                "source": check.source,
            }
            for check in step.checks
        ],
    }
