"""A proof that was saved: whoever reads it judges again, offline, and believes nothing that it says."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import blindbox.requests as requests
from blindbox import Proof
from blindbox.errors import AttestationError, BlindBoxError, SealingError, UnreadableProof
from blindbox.report import FORMAT, MAX_PROOF, Report, SavedProof
from blindbox.report.page import page
from blindbox.tenant import TokenStore
from enclave_app.identity import Identity
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.enclave import RunningEnclave, running, simulated_quoter
from tests.kit.pinned_amd import FakeAmdQuoter, accepting

NONCE = bytes(range(32))
ORIGIN = "http://203.0.113.7:80"
KEY_CONFIG = Identity(simulated_quoter(), config_digest=bytes(48)).key_config


def report_of(amd: FakeAmd, policy: Any = None, *, collateral: bool = True, **changes: Any) -> Report:
    """A report of an honest machine, judged at noon; of what its vendor publishes, a part was fetched."""
    sent = amd.endorsements(crl=None) if collateral else None
    document = amd.document(KEY_CONFIG, NONCE, endorsements=sent, **changes)
    fetched = {"crl": amd.endorsements()["crl"]} if collateral else {}
    return Report(ORIGIN, NOON, policy or accepting(amd), NONCE, document, fetched).judged()


def changed(report: Report, **changes: Any) -> bytes:
    return json.dumps({**json.loads(report.to_json()), **changes}).encode()


# ── there and back ────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_proof_is_judged_again_to_the_same_end(amd: FakeAmd, no_network: None) -> None:
    for report in (report_of(amd), report_of(amd, policy=accepting(amd), collateral=False)):
        saved = SavedProof.parse(report.to_json().encode())
        again = saved.judge()
        assert report.verdict == again.verdict == "accepted"
        assert again.again is not None
        assert again.again.agrees
        assert again.steps == report.steps
        assert again.verified == report.verified
        assert saved.verify().evidence_id == report.verified.evidence_id.hex()  # type: ignore[union-attr]
        assert saved.policy == report.policy


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"policy": 0xB0000}, "debug-allowed"),
        ({"measurement": bytes(48)}, "measurement-mismatch"),
        (
            {"not_after": int(NOON.timestamp()) - 3600, "not_before": int(NOON.timestamp()) - 7200},
            "outside-validity",
        ),
        ({"nonce": bytes(32)}, "wrong-nonce"),
    ],
)
def test_a_refusal_is_saved_and_refused_again_for_its_reason(
    amd: FakeAmd, change: dict[str, Any], code: str
) -> None:
    arguments = {"nonce": NONCE, **change}
    nonce = arguments.pop("nonce")
    document = amd.document(KEY_CONFIG, nonce, **arguments)
    report = Report(ORIGIN, NOON, accepting(amd), NONCE, document).judged()
    saved = SavedProof.parse(report.to_json().encode())
    assert saved.verdict == "refused"
    with pytest.raises(AttestationError) as caught:
        saved.verify()
    assert caught.value.code == code
    again = saved.judge()
    assert again.again is not None
    assert again.again.agrees
    assert again.steps == report.steps
    assert again.steps[-1].outcome == "failed"


def test_every_check_is_in_the_file_with_its_outcome_found_wanted_and_source(amd: FakeAmd) -> None:
    file = json.loads(report_of(amd).to_json())
    assert file["format"] == FORMAT
    checks = [check for step in file["steps"] for check in step["checks"]]
    assert {check["outcome"] for check in checks} >= {"passed", "not asked"}
    (nonce,) = (check for check in checks if check["name"] == "nonce")
    assert nonce == {
        "name": "nonce",
        "outcome": "passed",
        "found": NONCE.hex(),
        "wanted": NONCE.hex(),
        "source": "transcript",
    }
    assert all(check["found"] and check["source"] for check in checks if check["outcome"] == "passed")


def test_a_session_has_the_newest_proof_of_each_origin(amd: FakeAmd, tmp_path: Path) -> None:
    """From the call to the file and back, with a machine that proves itself to the pinned vendor's root."""
    policy = accepting(amd)
    identity = Identity(FakeAmdQuoter(amd), config_digest=bytes(48))
    with (
        running(identity=identity) as one,
        running(identity=identity) as other,
        requests.Session(policy) as session,
    ):
        assert session.proof is None
        assert session.proofs == {}
        answer = session.get(one.origin + "/anything")
        assert session.proof is not None
        assert session.proof.origin == one.origin
        assert session.proof.evidence_id == answer.blindbox.evidence_id  # type: ignore[attr-defined]
        session.get(other.origin + "/anything")
        assert session.proof.origin == other.origin
        assert list(session.proofs) == [one.origin, other.origin]
        proof = session.proofs[one.origin]
    assert proof.title == "AMD SEV-SNP"
    assert proof.trusts == ("AMD",)
    assert not proof.simulated
    assert proof.policy == policy
    assert {check.name for check in proof.checks} >= {"nonce", "measurement"}
    path = tmp_path / "proof.json"
    proof.save(path)
    saved = Proof.load(path)
    assert saved.verify(policy=policy).evidence_id == proof.evidence_id
    assert saved.verify(policy=policy).document == proof.document
    again = saved.judge(policy=policy).again
    assert again is not None
    assert again.agrees
    assert not again.own_policy


def test_a_policy_that_asks_each_time_still_leaves_a_proof(enclave: RunningEnclave, policy: Any) -> None:
    with requests.Session(replace(policy, max_age=timedelta(0))) as session:
        session.get(enclave.origin + "/echo")
        first = session.proof
        session.get(enclave.origin + "/echo")
        assert first is not None
        assert session.proof is not None
        assert session.proof.nonce != first.nonce
        session._door.keys.forget()
        assert session.proof is None


def test_a_time_without_its_zone_is_a_mistake_of_the_caller(amd: FakeAmd) -> None:
    saved = SavedProof.parse(report_of(amd).to_json().encode())
    with pytest.raises(ValueError, match="time zone"):
        saved.verify(at=NOON.replace(tzinfo=None))


def test_a_proof_is_saved_as_a_page_if_its_name_says_so(amd: FakeAmd, tmp_path: Path) -> None:
    proof = SavedProof.parse(report_of(amd).to_json().encode()).verify()
    proof.save(tmp_path / "proof.HTML")
    assert (tmp_path / "proof.HTML").read_text(encoding="utf-8") == proof.to_html()
    assert proof in {SavedProof.parse(proof.to_json().encode()).verify()}


# ── simulated ─────────────────────────────────────────────────────────────────────────────────────────────


def test_simulated_evidence_is_never_written_as_accepted(
    enclave: RunningEnclave, session: requests.Session, policy: Any
) -> None:
    """C-21: visible in the file; and no file can make it acceptable, only an object in code."""
    session.get(enclave.origin + "/echo")
    assert session.proof is not None
    text = session.proof.to_json()
    file = json.loads(text)
    assert file["verdict"] == "simulated"
    assert file["simulated"] is True
    assert "nothing was proved" in file["summary"]
    assert file["policy"] is None
    saved = SavedProof.parse(text.encode())
    with pytest.raises(UnreadableProof, match="say what must be proved"):
        saved.verify()
    assert saved.verify(policy=policy).simulated
    report = saved.judge(policy=policy)
    assert report.verdict == "simulated"
    assert report.again is not None
    assert report.again.agrees


def test_simulated_evidence_is_refused_by_any_other_policy(
    amd: FakeAmd, enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-21: and the refusal says so, also where the file lies."""
    session.get(enclave.origin + "/echo")
    assert session.proof is not None
    lie = changed(session.proof.report, verdict="accepted", simulated=False)
    report = SavedProof.parse(lie).judge(policy=accepting(amd))
    assert report.verdict == "refused"
    assert report.problem is not None
    assert report.problem.code == "simulated-evidence"
    assert report.simulated
    assert report.again is not None
    assert not report.again.agrees


# ── another time, another policy ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (NOON + timedelta(days=40), "crl-not-valid-now"),
        (NOON + timedelta(days=2), "outside-validity"),
        (NOON - timedelta(days=1), "outside-validity"),
        (NOON + timedelta(days=365 * 20), "certificate-not-valid-now"),
    ],
)
def test_at_another_time_it_may_be_refused(amd: FakeAmd, at: datetime, code: str) -> None:
    saved = SavedProof.parse(report_of(amd).to_json().encode())
    with pytest.raises(AttestationError) as caught:
        saved.verify(at=at)
    assert caught.value.code == code
    assert saved.verify(at=NOON + timedelta(hours=1)).verified_at == NOON + timedelta(hours=1)


def test_another_policy_is_the_one_that_counts(amd: FakeAmd) -> None:
    saved = SavedProof.parse(report_of(amd).to_json().encode())
    with pytest.raises(AttestationError) as caught:
        saved.verify(policy=accepting(amd, measurements={bytes(48)}))
    assert caught.value.code == "measurement-mismatch"
    report = saved.judge(policy=accepting(amd, measurements={bytes(48)}))
    assert report.again is not None
    assert not report.again.agrees
    assert not report.again.own_policy
    assert saved.judge().again.own_policy  # type: ignore[union-attr]


# ── lies ──────────────────────────────────────────────────────────────────────────────────────────────────


def flipped(field: str, at: int = -60) -> Callable[[dict[str, Any]], None]:
    def change(file: dict[str, Any]) -> None:
        held = bytearray(b64decode(file[field]))
        held[at] ^= 1
        file[field] = b64encode(held).decode()

    return change


def set_to(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file.update({field: value})


def without_collateral(file: dict[str, Any]) -> None:
    file["collateral"] = {}


def other_collateral(file: dict[str, Any]) -> None:
    file["collateral"]["crl"] = b64encode(FakeAmd("Milan").crl()).decode()


def other_evidence(file: dict[str, Any]) -> None:
    document = json.loads(b64decode(file["document"]))
    evidence = bytearray(b64decode(document["evidence"]))
    evidence[0x90] ^= 1  # of the measurement
    document["evidence"] = b64encode(evidence).decode()
    file["document"] = b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


def other_key(file: dict[str, Any]) -> None:
    document = json.loads(b64decode(file["document"]))
    document["transcript"]["boot_id"] = b64encode(bytes(16)).decode()
    file["document"] = b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flipped("nonce", 0), "wrong-nonce"),
        (other_evidence, "bad-signature"),
        (other_key, "unbound-key"),
        (without_collateral, "crl-missing"),
        (other_collateral, "crl-bad-signature"),
        (set_to("verified_at", "2026-06-05T12:00:00Z"), "outside-validity"),
    ],
)
def test_a_file_whose_evidence_was_changed_is_refused_for_its_reason(
    amd: FakeAmd, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    """C-15: what decides is the evidence, and any change to that breaks it."""
    file = json.loads(report_of(amd).to_json())
    change(file)
    report = SavedProof.parse(json.dumps(file).encode()).judge()
    assert report.verdict == "refused"
    assert report.problem is not None
    assert report.problem.code == code
    assert report.again is not None
    assert not report.again.agrees


def in_machine(file: dict[str, Any]) -> None:
    file["machine"]["measurement"] = "00" * 48


def in_steps(file: dict[str, Any]) -> None:
    file["steps"][8]["checks"][0]["found"] = "something newer"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (set_to("verdict", "refused"), "verdict"),
        (set_to("summary", "All is well, no need to look."), "summary"),
        (set_to("simulated", True), "simulated"),
        (set_to("error", {"type": "X", "code": "x", "message": "x"}), "error"),
        (in_machine, "machine"),
        (in_steps, "steps"),
    ],
)
def test_what_a_file_says_about_itself_is_compared_and_not_believed(
    amd: FakeAmd, change: Callable[[dict[str, Any]], None], part: str
) -> None:
    file = json.loads(report_of(amd).to_json())
    change(file)
    report = SavedProof.parse(json.dumps(file).encode()).judge()
    assert report.verdict == "accepted"
    assert report.again is not None
    assert report.again.differs == (part,)
    assert not report.again.agrees
    assert json.loads(report.to_json())["machine"]["measurement"] == report.verified.measurement.hex()  # type: ignore[union-attr]


def test_the_address_and_the_program_are_only_the_writer_s_word(amd: FakeAmd) -> None:
    """No evidence names either; the page says so of the address."""
    lie = changed(report_of(amd), origin="http://bank.example:80", program="blindbox 99")
    report = SavedProof.parse(lie).judge()
    assert report.verdict == "accepted"
    assert report.again is not None
    assert report.again.agrees
    assert report.again.written_by == "blindbox 99"
    text = page(report)
    assert "Evidence does not name it: it is where this program says that it asked." in text


def test_a_refusal_that_was_rewritten_as_accepted_is_still_a_refusal(amd: FakeAmd) -> None:
    refused = report_of(amd, policy=accepting(amd, measurements={bytes(48)}))
    accepted = json.loads(report_of(amd).to_json())
    lie = {**accepted, **{name: json.loads(refused.to_json())[name] for name in ("policy", "policy_digest")}}
    report = SavedProof.parse(json.dumps(lie).encode()).judge()
    assert report.verdict == "refused"
    assert report.problem is not None
    assert report.problem.code == "measurement-mismatch"
    assert report.again is not None
    assert set(report.again.differs) >= {"verdict", "machine", "steps"}


def test_a_policy_that_was_changed_in_the_file_is_noticed(amd: FakeAmd) -> None:
    file = json.loads(report_of(amd).to_json())
    file["policy"]["snp"]["measurements"] = ["00" * 48]
    with pytest.raises(UnreadableProof, match="it was changed"):
        SavedProof.parse(json.dumps(file).encode())


# ── hostile files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": "blindbox-proof/2"}',
        b'{"format": "blindbox-proof/1"}',
        b'{"format": "blindbox-proof/1", "format": "blindbox-proof/1"}',
        pytest.param(b"[" * 100_000, id="deep list"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        pytest.param(b" " * (MAX_PROOF + 1), id="oversized"),
    ],
)
def test_what_is_no_proof_file_is_an_error_of_its_own_type(data: bytes) -> None:
    """C-17, C-18: strict, and bounded before it is read."""
    with pytest.raises(UnreadableProof) as caught:
        SavedProof.parse(data)
    assert isinstance(caught.value, BlindBoxError)
    assert len(str(caught.value)) < 1000


ODD: list[Any] = [None, True, -1, 10**18, "x", "\u202e\x1b[2J", [], [[]], {}, {"x": 1}, "A" * 20_000]


def test_every_field_with_a_value_of_another_kind_is_refused_or_changes_nothing(amd: FakeAmd) -> None:
    """C-17: in every place of the file, one at a time."""
    whole = json.loads(report_of(amd).to_json())

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        for key, held in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
            yield value, key
            if isinstance(held, dict | list) and held and key != "policy":
                yield from places(held)

    tried = refused = 0
    for owner, key in list(places(whole))[:400]:
        before = owner[key]
        for odd in ODD:
            owner[key] = odd
            tried += 1
            try:
                SavedProof.parse(json.dumps(whole).encode()).judge()
            except UnreadableProof:
                refused += 1
        owner[key] = before
    assert SavedProof.parse(json.dumps(whole).encode()).judge().verdict == "accepted"
    assert refused > tried // 2


@given(data=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_at_all_are_an_error_of_its_own_type(data: bytes) -> None:
    with pytest.raises(UnreadableProof):
        SavedProof.parse(data)


@given(at=st.integers(0, 20_000), to=st.binary(min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_some_bytes_changed_is_judged_or_refused_and_nothing_else(
    amd: FakeAmd, at: int, to: bytes
) -> None:
    text = report_of(amd).to_json().encode()
    at %= len(text)
    with suppress(UnreadableProof):
        SavedProof.parse(text[:at] + to + text[at + len(to) :]).judge()


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_file_that_was_cut_or_continued_is_refused(amd: FakeAmd, cut: int) -> None:
    text = report_of(amd).to_json().encode()
    for data in (text[:-1][:-cut], text + b"x"):
        with pytest.raises(UnreadableProof):
            SavedProof.parse(data)


def test_an_unknown_or_a_missing_key_is_refused(amd: FakeAmd) -> None:
    report = report_of(amd)
    with pytest.raises(UnreadableProof, match="unknown key"):
        SavedProof.parse(changed(report, note="trust me"))
    for name in json.loads(report.to_json()):
        file = json.loads(report.to_json())
        del file[name]
        with pytest.raises(UnreadableProof):
            SavedProof.parse(json.dumps(file).encode())


def test_a_time_and_an_address_have_one_spelling(amd: FakeAmd) -> None:
    report = report_of(amd)
    for time in (
        "2026-06-01T12:00:00+00:00",
        "2026-06-01T12:00:00",
        "2026-06-01",
        "9999-12-31T23:59:59Z",
        "now",
    ):
        with pytest.raises(UnreadableProof, match="verified_at"):
            SavedProof.parse(changed(report, verified_at=time))
    for origin in ("http://EXAMPLE.com:80", "example.com", "http://a:80/path", "javascript:alert(1)", ""):
        with pytest.raises(UnreadableProof, match="origin"):
            SavedProof.parse(changed(report, origin=origin))


def test_a_proof_without_evidence_says_that_there_is_nothing_to_judge(amd: FakeAmd) -> None:
    empty = Report(ORIGIN, NOON, accepting(amd)).ended(AttestationError("nothing came", code="no-evidence"))
    saved = SavedProof.parse(empty.to_json().encode())
    with pytest.raises(UnreadableProof, match="no attestation document"):
        saved.judge()
    with pytest.raises(UnreadableProof, match="cannot be read"):
        Proof.load("/nonexistent/proof.json")


# ── what else must not be in it ───────────────────────────────────────────────────────────────────────────


def test_neither_token_nor_call_is_in_a_proof(enclave: RunningEnclave, session: requests.Session) -> None:
    """C-44: a proof is made to be handed on."""
    canary = "canary-c0ffee"
    session.post(
        f"{enclave.origin}/echo/{canary}",
        params={"q": canary},
        json={"input_text": canary},
        headers={"X-Secret": canary},
    )
    assert session.proof is not None
    told = session.proof.to_json() + session.proof.to_html() + repr(session.proof)
    held = "".join(
        b64decode(word).decode("latin-1")
        for word in re.findall(r"[A-Za-z0-9+/]{40,}={0,2}", told)
        if len(word) % 4 == 0
    )
    token = TokenStore().token(enclave.origin)
    for secret in (canary, token):
        assert secret not in told
        assert secret not in held


def test_a_proven_machine_without_a_key_of_ours_is_refused_there_as_well(amd: FakeAmd) -> None:
    document = amd.document(b"\x00\x03\x01\xff\xff", NONCE)
    report = Report(ORIGIN, NOON, accepting(amd), NONCE, document).judged()
    assert report.verdict == "refused"
    assert report.problem is not None
    assert report.problem.code == "no-common-suite"
    assert len(report.steps) == 13
    saved = SavedProof.parse(report.to_json().encode())
    with pytest.raises(SealingError):
        saved.verify()
    assert saved.judge().again.agrees  # type: ignore[union-attr]


def test_now_is_told_to_the_microsecond_and_comes_back(amd: FakeAmd) -> None:
    at = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
    report = Report(ORIGIN, at, accepting(amd), NONCE, amd.document(KEY_CONFIG, NONCE)).judged()
    assert SavedProof.parse(report.to_json().encode()).verified_at == at
