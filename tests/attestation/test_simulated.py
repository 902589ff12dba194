"""Simulated evidence: judged by the same code, and let in by one object only."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import pickle
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import blindbox_attestation
from blindbox_attestation import (
    AttestationError,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    Policy,
    PolicyRefused,
    SnpPolicy,
    Tcb,
    UnsafeSimulatedPolicy,
    UnsafeSimulationWarning,
    Verified,
    verify,
)
from blindbox_attestation.binding import binding, report_data, transcript_bytes
from blindbox_attestation.development_chain import ARK, DEVELOPMENT_ROOT
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.policy import PARTS
from blindbox_attestation.roots import AMD_ROOTS
from blindbox_attestation.simulated import SIMULATED_ENDORSEMENTS, SIMULATED_MEASUREMENT, simulated_report
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.simulated import unsafe

AMD = FakeAmd("Genoa")
NONCE = bytes(range(32))
FORBIDDEN = {"os", "time", "random", "socket", "pathlib", "io", "sys", "importlib", "subprocess", "ctypes"}
FLOOR = Tcb(bootloader=0, snp=0, microcode=0)


def document(
    platform: str = "simulated", *, nonce: bytes = NONCE, host_data: bytes = bytes(32), **told: Any
) -> bytes:
    transcript = AMD.transcript(KEY_CONFIG, nonce, **told)
    evidence = simulated_report(
        report_data(binding(transcript_bytes(platform, transcript))), host_data=host_data
    )
    return AttestationDocument(platform, transcript, evidence, SIMULATED_ENDORSEMENTS).encode()


def judged(data: bytes, policy: Policy | UnsafeSimulatedPolicy, now: datetime = NOON) -> Verified:
    return verify(data, policy, nonce=NONCE, now=now)


def test_an_unsafe_policy_accepts_a_simulated_machine_and_says_so() -> None:
    proved = judged(document(), unsafe())
    assert proved.simulated
    assert "simulated=True" in repr(proved)
    assert proved.platform == "simulated"
    assert proved.key_config == KEY_CONFIG
    assert proved.measurement == SIMULATED_MEASUREMENT
    assert {step.number: step.outcome for step in proved.steps if step.outcome != "passed"} == {
        13: "not asked"
    }


def test_making_an_unsafe_policy_warns() -> None:
    """C-21: whoever writes it, hears it."""
    with pytest.warns(UnsafeSimulationWarning, match="prove nothing"):
        UnsafeSimulatedPolicy()


@pytest.mark.parametrize("now", [datetime(2025, 1, 1, tzinfo=UTC), NOON, datetime(2100, 1, 1, tzinfo=UTC)])
def test_the_development_chain_is_valid_for_a_long_time(now: datetime) -> None:
    start = int(now.timestamp()) - 60
    judged(document(not_before=start, not_after=start + 3600), unsafe(), now)


def real_policies() -> list[Policy]:
    """Every shape of policy that is not an unsafe one."""
    floors = {"Genoa": FLOOR, "Turin": FLOOR}
    plain = SnpPolicy(measurements={SIMULATED_MEASUREMENT}, minimum_tcb=floors)
    loose = replace(plain, revocation="unchecked", allow_masked_chip_id=True, signing_keys={"vcek", "vlek"})
    own = replace(plain, roots=AMD.roots)
    return [
        Policy(snp=plain),
        Policy(snp=loose),
        Policy(snp=own),
        Policy(snp=loose, accept_cached=True, max_age=timedelta(hours=24), clock_skew=timedelta(hours=1)),
        Policy.from_json(Policy(snp=loose).to_json()),
        Policy(snp=plain).with_host_data(bytes(32)),
    ]


def test_no_ordinary_policy_accepts_a_simulated_machine() -> None:
    """C-21: neither when it says what it is, nor when it says it is a real one."""
    for policy in real_policies():
        with pytest.raises(PlatformNotAccepted) as refused:
            judged(document(), policy)
        assert refused.value.code == "simulated-evidence"
        with pytest.raises(AttestationError) as refused_root:
            judged(document("sev-snp"), policy)
        assert refused_root.value.code == "unpinned-root"


def test_no_policy_can_be_given_the_development_root() -> None:
    """C-21: not among real ones, not alone."""
    assert hashlib.sha256(ARK).digest() == DEVELOPMENT_ROOT
    assert DEVELOPMENT_ROOT not in AMD_ROOTS
    for roots in ({DEVELOPMENT_ROOT: "Genoa"}, {**AMD_ROOTS, DEVELOPMENT_ROOT: "Turin"}):
        snp = SnpPolicy(measurements={SIMULATED_MEASUREMENT}, minimum_tcb={"Genoa": FLOOR}, roots=roots)
        with pytest.raises(InvalidPolicy):
            Policy(snp=snp)


WORDS = [
    "simulated",
    "allow_simulated",
    "unsafe",
    "UnsafeSimulatedPolicy",
    "development",
    "debug",
    "insecure",
    "roots",
    "platform",
    "platforms",
    "type",
    "class",
    "__class__",
    "verify",
    "mode",
    "test",
]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("value", [True, 1, "simulated", "UnsafeSimulatedPolicy", {}, ["simulated"]])
def test_no_word_in_a_policy_file_admits_simulated_evidence(word: str, value: object) -> None:
    """C-21: at any level of the file."""
    good = json.loads(real_policies()[0].to_json())
    for edit in (
        {**good, word: value},
        {**good, "snp": {**good["snp"], word: value}},
        {word: value},
        {"version": 1, word: value},
    ):
        with pytest.raises(InvalidPolicy):
            Policy.from_json(json.dumps(edit))


@pytest.mark.parametrize("word", WORDS)
def test_no_word_in_a_document_admits_simulated_evidence(word: str) -> None:
    """C-21: the machine does not get to say what it is judged by."""
    told = json.loads(document())
    policy = real_policies()[0]
    for edit in ({**told, word: True}, {**told, "transcript": {**told["transcript"], word: True}}):
        if word in told:
            continue
        with pytest.raises(AttestationError):
            judged(json.dumps(edit).encode(), policy)
    for platform in (word, "Simulated", "simulated ", "sev-snp,simulated"):
        with pytest.raises(AttestationError):
            judged(json.dumps({**told, "platform": platform}).encode(), policy)


NAMES = [
    "BLINDBOX_SIMULATED",
    "BLINDBOX_UNSAFE",
    "BLINDBOX_ALLOW_SIMULATED",
    "BLINDBOX_QUOTER",
    "BLINDBOX_INSECURE",
    "BLINDBOX_DEBUG",
    "BLINDBOX_POLICY",
    "BLINDBOX_DEVELOPMENT",
    "BLINDBOX_TEST",
    "DEBUG",
    "CI",
    "PYTHONINSPECT",
]


def test_no_environment_variable_admits_simulated_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """C-21: all of them set, to anything."""
    for value in ("1", "true", "simulated", ""):
        for name in NAMES:
            monkeypatch.setenv(name, value)
        test_no_ordinary_policy_accepts_a_simulated_machine()


def test_the_verifier_takes_nothing_but_its_five_arguments() -> None:
    """C-21: there is no other way in: no keyword, no field, no environment in this room at all."""
    assert list(inspect.signature(verify).parameters) == ["document", "policy", "nonce", "now", "collateral"]
    assert [field.name for field in fields(Policy)] == [
        *PARTS,
        "accept_cached",
        "max_age",
        "clock_skew",
        "config_digests",
        "digest",
    ]
    assert not issubclass(UnsafeSimulatedPolicy, Policy)
    assert not hasattr(UnsafeSimulatedPolicy, "from_json")
    assert not hasattr(UnsafeSimulatedPolicy, "to_json")


def test_the_shared_room_asks_the_machine_it_runs_on_for_nothing() -> None:
    """C-21: no module of it imports what could read an environment, a file, a clock or a socket."""
    asked: list[str] = []
    for path in sorted(Path(blindbox_attestation.__path__[0]).rglob("*.py")):
        if path.name == "conformance.py":  # a command, which reads the files that a case names
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            asked += [f"{path.name}: {name}" for name in names if name.split(".")[0] in FORBIDDEN]
    assert asked == []


def test_an_unsafe_policy_is_not_unpickled_into_another_s_process() -> None:
    """C-21: no stored bytes hold one."""
    with pytest.raises(TypeError):
        pickle.dumps(unsafe())


def test_an_unsafe_policy_refuses_real_machines() -> None:
    """C-21: it is for one thing."""
    with pytest.raises(PlatformNotAccepted):
        judged(AMD.document(KEY_CONFIG, NONCE), unsafe())
    with pytest.raises(AttestationError) as refused:
        judged(AMD.document(KEY_CONFIG, NONCE, platform="simulated"), unsafe())
    assert refused.value.code == "unpinned-root"


def test_relabelled_evidence_is_not_the_evidence_that_was_signed() -> None:
    """C-20, C-21: the platform is under the hash."""
    told = json.loads(document("sev-snp"))
    with pytest.raises(AttestationError) as refused:
        judged(json.dumps({**told, "platform": "simulated"}).encode(), unsafe())
    assert refused.value.code == "unbound-key"


def test_the_rest_of_the_judgement_is_the_same_for_a_simulated_machine() -> None:
    """The same steps: measurement, host data, nonce, form, time."""
    with pytest.raises(MeasurementMismatch):
        judged(document(), unsafe(measurements={b"\x01" * 48}))
    ours = unsafe(host_data=b"\x02" * 32)
    assert judged(document(host_data=b"\x02" * 32), ours).claims.host_data == b"\x02" * 32
    with pytest.raises(PolicyRefused):
        judged(document(), ours)
    with pytest.raises(AttestationError) as refused:
        judged(document(nonce=NONCE[::-1]), unsafe())
    assert refused.value.code == "wrong-nonce"
    cached = document(nonce=b"", not_after=int(NOON.timestamp()) + 60)
    assert verify(cached, unsafe(accept_cached=True), nonce=b"", now=NOON).simulated
    with pytest.raises(PolicyRefused):
        verify(cached, unsafe(), nonce=b"", now=NOON)


@pytest.mark.parametrize(
    "wish",
    [
        {"measurements": set()},
        {"measurements": None},
        {"accept_cached": None},
        {"max_age": None},
        {"clock_skew": timedelta(hours=2)},
        {"host_data": b""},
    ],
)
def test_an_empty_unsafe_policy_cannot_be_made_either(wish: dict[str, Any]) -> None:
    """C-22: unsafe, but not meaningless."""
    with pytest.raises(InvalidPolicy):
        unsafe(**wish)


def test_a_simulated_report_takes_only_what_fits() -> None:
    for size in (0, 48, 63, 65):
        with pytest.raises(ValueError, match="64"):
            simulated_report(bytes(size))
