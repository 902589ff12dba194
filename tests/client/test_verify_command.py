"""`blindbox verify` and `blindbox trust --list`: what they print, write, and end with."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blindbox import Policy, SnpPolicy, Tcb, cli
from blindbox.adapter import SealedAdapter
from blindbox.commands.status import complain, status_of
from blindbox.errors import PolicyRefused
from blindbox.report import Report, SavedProof
from blindbox.report.text import show
from blindbox.trust import TrustStore
from blindbox_attestation.steps import Check, Step
from enclave_app.identity import Identity
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.enclave import RunningEnclave, running, simulated_quoter
from tests.kit.kds import KeyService
from tests.kit.pinned_amd import FakeAmdQuoter, accepting, current_list
from tests.kit.relay import Box, http_reply

ANOTHER = Policy(
    snp=SnpPolicy(
        measurements={bytes(48)}, minimum_tcb={"Genoa": Tcb(bootloader=4, tee=0, snp=22, microcode=213)}
    )
).to_json()
"""A policy that the machine of these tests does not fulfil."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(ANOTHER)
    return path


@pytest.fixture(scope="module")
def machine(amd: FakeAmd) -> Iterator[RunningEnclave]:
    """An enclave that proves itself to a pinned root."""
    with running(identity=Identity(FakeAmdQuoter(amd), config_digest=bytes(48))) as one:
        yield one


@pytest.fixture
def its_policy(amd: FakeAmd, tmp_path: Path) -> Path:
    """The policy that this machine fulfils."""
    path = tmp_path / "accepts.json"
    path.write_text(accepting(amd).to_json())
    return path


# ── a machine is asked ────────────────────────────────────────────────────────────────────────────────────


def test_verify_proves_a_machine_and_says_who_has_to_be_trusted(
    machine: RunningEnclave, its_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", machine.origin, "--policy", str(its_policy)]) == cli.DONE
    told, errors = capsys.readouterr()
    assert errors == ""
    assert "\033" not in told
    assert told.count("✔ passed") >= 11
    assert f"proved: AMD SEV-SNP, measurement {MEASUREMENT.hex()}" in told
    assert "if you trust AMD" in told
    assert "· not asked" in told
    assert "signature of the chip" not in told
    assert cli.main(["verify", machine.origin, "--policy", str(its_policy), "-v"]) == cli.DONE
    assert "signature of the chip: yes, as wanted" in capsys.readouterr().out


def test_every_step_has_one_line_with_its_own_mark(
    machine: RunningEnclave, its_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A skip never looks like a pass."""
    assert cli.main(["verify", machine.origin, "--policy", str(its_policy), "--json"]) == cli.DONE
    report = json.loads(capsys.readouterr().out)
    assert [step["number"] for step in report["steps"]] == list(range(1, 14))
    assert cli.main(["verify", machine.origin, "--policy", str(its_policy)]) == cli.DONE
    told = capsys.readouterr().out
    marks = {"passed": "✔", "failed": "✘", "not applicable": "–", "not asked": "·"}
    for step in report["steps"]:
        line = next(line for line in told.splitlines() if line.startswith(f"  {step['number']:>2}  "))
        assert f"{marks[step['outcome']]} {step['outcome']}" in line
        assert step["name"] in line


def test_verify_shows_the_failed_check_and_says_so_in_its_status(
    machine: RunningEnclave, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", machine.origin, "--policy", str(policy_file)]) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "✘ failed" in told
    assert "wanted at least bootloader 4, snp 22, microcode 213" in told
    assert told.splitlines()[-1].startswith("not proved: ")
    assert told.splitlines()[-1].endswith("[tcb-too-old]")
    assert cli.main(["verify", machine.origin, "--policy", str(policy_file), "--json"]) == cli.NOT_PROVED
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "refused"
    assert report["machine"] is None
    assert report["steps"][-1]["outcome"] == "failed"
    assert report["error"]["code"] == "tcb-too-old"
    assert report["error"]["type"] == "TcbTooOld"


def test_simulated_evidence_is_never_called_proved(
    enclave: RunningEnclave,
    policy: Any,
    policy_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C-21. (No option admits simulated evidence: the second half slips it in.)"""
    assert cli.main(["verify", enclave.origin, "--policy", str(policy_file), "--json"]) == cli.NOT_PROVED
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["simulated"]) == ("refused", True)
    assert report["error"]["code"] == "simulated-evidence"
    monkeypatch.setattr(SealedAdapter, "policy_for", lambda *a: policy)
    assert cli.main(["verify", enclave.origin]) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "SIMULATED: nothing was proved" in told
    assert "proved: " not in told
    assert cli.main(["verify", enclave.origin, "--json"]) == cli.NOT_PROVED
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["simulated"]) == ("simulated", True)


def test_verify_says_so_where_a_proven_key_is_none_that_is_spoken(
    amd: FakeAmd, its_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A genuine machine, and behind its proof a key configuration of another time."""

    class Unheard(Identity):
        def _add(self) -> None:
            super()._add()
            self._generations[-1].key_config = b"\x00\x03\x01\xff\xff"

    identity = Unheard(FakeAmdQuoter(amd), config_digest=bytes(48))
    saved = tmp_path / "proof.json"
    with running(identity=identity) as enclave:
        arguments = ["verify", enclave.origin, "--policy", str(its_policy), "--save", str(saved)]
        assert cli.main(arguments) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "KEM 0xffff is not spoken here" in told
    assert "[no-common-suite]" in told
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(its_policy)]) == cli.NOT_PROVED
    assert "refused, as the file says" in capsys.readouterr().out


def test_verify_without_policy_or_machine_is_told_kindly(
    policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "http://127.0.0.1:9"]) == cli.USAGE
    assert "blindbox trust http://127.0.0.1:9 --policy FILE" in capsys.readouterr().err
    assert cli.main(["verify", "http://127.0.0.1:9", "--policy", str(policy_file)]) == cli.UNREACHABLE
    assert "refused" in capsys.readouterr().err
    assert cli.main(["verify", "nowhere:80", "--policy", str(policy_file)]) == cli.USAGE
    assert cli.main(["verify", "127.0.0.1:9", "--policy", str(policy_file)]) == cli.USAGE
    assert "names no scheme; write it whole" in capsys.readouterr().err
    with Box(lambda asked: http_reply(404, "text/plain", b"")) as box:
        assert cli.main(["verify", box.origin, "--policy", str(policy_file)]) == cli.NOT_PROVED
    assert "attestation document" in capsys.readouterr().out


def test_tls_to_a_port_without_it_is_told_kindly(
    enclave: RunningEnclave, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = enclave.origin.replace("http:", "https:")
    assert cli.main(["verify", origin, "--policy", str(policy_file)]) == cli.UNREACHABLE
    assert "did you mean http://?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("origin", "policy", "status", "code"),
    [
        ("http://127.0.0.1:9", True, cli.UNREACHABLE, "not-reached"),
        ("http://127.0.0.1:9", False, cli.USAGE, "no-policy"),
        ("nowhere:80", True, cli.USAGE, "invalid-address"),
        ("http://127.0.0.1:9", "/nonexistent", cli.USAGE, "invalid-policy"),
    ],
)
def test_json_is_printed_also_where_there_was_nothing_to_judge(
    origin: str,
    policy: bool | str,
    status: int,
    code: str,
    policy_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program that reads it gets an answer in every case; the status says the same."""
    given = ["--policy", str(policy_file if policy is True else policy)] if policy else []
    assert cli.main(["verify", origin, *given, "--json"]) == status
    told, errors = capsys.readouterr()
    report = json.loads(told)
    assert report["verdict"] == "not judged"
    assert report["error"]["code"] == code
    assert report["steps"] == []
    assert errors.startswith("blindbox: ")


def test_json_is_printed_also_where_no_document_came(
    policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Box(lambda asked: http_reply(404, "text/plain", b"")) as box:
        assert cli.main(["verify", box.origin, "--policy", str(policy_file), "--json"]) == cli.NOT_PROVED
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["error"]["code"], report["document"]) == ("refused", "no-evidence", "")


def test_what_a_machine_says_cannot_write_on_the_terminal(
    amd: FakeAmd, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters and line breaks of the other side are told, not obeyed."""
    hostile = "x\x1b[2J\n   1  ✔ passed\u202e"
    check = Check(hostile, "failed", hostile, hostile, hostile)
    error = PolicyRefused(hostile, code="code")
    error.steps = (Step(9, hostile, "failed", hostile, (check,)),)
    error.add_note(hostile)
    report = Report("http://a:80", NOON, amd.policy()).ended(error)
    for out in (io.StringIO(), Terminal()):
        show(report, out, verbose=True)
        for character in ("\x1b[2J", "\u202e"):
            assert character not in out.getvalue()
        assert not [line for line in out.getvalue().splitlines() if line.startswith("   1")]
        assert "\\u{1b}[2J" in out.getvalue()
    assert complain(status_of(error)[1], 1) == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "\x1b" not in told


def test_an_unreachable_machine_has_a_report_and_a_page_as_well(
    policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, page = tmp_path / "proof.json", tmp_path / "page.html"
    arguments = ["--policy", str(policy_file), "--save", str(proof), "--html", str(page)]
    assert cli.main(["verify", "http://127.0.0.1:9", *arguments]) == cli.UNREACHABLE
    assert capsys.readouterr().out == ""
    assert "Not judged" in page.read_text(encoding="utf-8")
    assert SavedProof.load(proof).verdict == "not judged"
    assert cli.main(["verify", "--offline", str(proof)]) == cli.USAGE
    assert "holds no attestation document" in capsys.readouterr().err


# ── saved, and judged again ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saved(machine: RunningEnclave, its_policy: Path, tmp_path: Path) -> Path:
    path = tmp_path / "proof.json"
    arguments = [
        "verify",
        machine.origin,
        "--policy",
        str(its_policy),
        "--save",
        str(path),
        "--no-collateral",
    ]
    assert cli.main(arguments) == cli.DONE
    return path


def test_a_saved_proof_is_judged_again_without_the_network(
    saved: Path, its_policy: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(its_policy)]) == cli.DONE
    told, errors = capsys.readouterr()
    assert "accepted, as the file says" in told
    assert errors == ""
    assert cli.main(["verify", "--offline", str(saved)]) == cli.DONE
    assert "you are trusting the policy in this file" in capsys.readouterr().err
    assert cli.main(["verify", "--offline", str(saved), "--json"]) == cli.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["again"]["agrees"] is True
    assert report["again"]["own_policy"] is True
    assert report["verdict"] == "accepted"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--at", "2039-01-01T00:00:00Z"], "certificate-not-valid-now"),
        (["--at", "2026-01-01T00:00:00+01:00"], "crl-not-valid-now"),
    ],
)
def test_at_another_time_it_is_refused(
    saved: Path, more: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["verify", "--offline", str(saved), *more]) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert f"[{code}]" in told
    assert "but the file says: accepted" in told


def test_now_is_a_time_too(saved: Path, its_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "--offline", str(saved), "--policy", str(its_policy), "--at", "now"]
    assert cli.main(arguments) == cli.DONE
    assert "accepted, as the file says" in capsys.readouterr().out


def test_by_another_policy_it_is_refused(
    saved: Path, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(policy_file)]) == cli.NOT_PROVED
    told, errors = capsys.readouterr()
    assert "[tcb-too-old]" in told
    assert "trusting the policy" not in errors


def test_a_report_that_cannot_be_written_hides_neither_the_other_nor_the_verdict(
    saved: Path, its_policy: Path, policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ["--html", str(tmp_path)]
    offline = ["verify", "--offline", str(saved), "--policy"]
    assert cli.main([*offline, str(its_policy), *page]) == cli.USAGE
    told = capsys.readouterr()
    assert "proved: AMD SEV-SNP" in told.out
    assert f"{tmp_path} cannot be written: Is a directory" in told.err
    assert cli.main([*offline, str(policy_file), *page]) == cli.NOT_PROVED
    address, kept = "http://127.0.0.1:1", tmp_path / "kept.html"
    files = ["--save", str(tmp_path), "--html", str(kept)]
    assert cli.main(["verify", address, "--policy", str(policy_file), *files]) == cli.UNREACHABLE
    assert "Not judged" in kept.read_text()


def test_a_file_from_the_future_is_told_of(
    saved: Path, its_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C-24: by what time it is judged is the writer's choice, and a machine's clock is its operator's."""
    file = json.loads(saved.read_text())
    file["verified_at"] = "2999-01-01T00:00:00Z"
    saved.write_text(json.dumps(file))
    capsys.readouterr()
    arguments = ["verify", "--offline", str(saved), "--policy", str(its_policy)]
    assert cli.main(arguments) == cli.NOT_PROVED
    assert "made at 2999-01-01 00:00:00 UTC, which is still to come" in capsys.readouterr().err
    cli.main([*arguments, "--at", "now"])
    assert "still to come" not in capsys.readouterr().err


def test_a_file_that_lies_is_told_of(
    saved: Path, its_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = json.loads(saved.read_text())
    file["machine"]["measurement"] = "00" * 48
    saved.write_text(json.dumps(file))
    capsys.readouterr()
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(its_policy)]) == cli.DONE
    told = capsys.readouterr().out
    assert "the file differs in: machine" in told
    assert MEASUREMENT.hex() in told
    assert "00" * 48 not in told


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\x00" * 100, b'{"format": "blindbox-proof/1"}', b"[" * 10**6, b"9" * (9 << 20)]
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_hostile_proof_file_ends_with_status_two(
    data: bytes, form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C-17, C-18: whatever is in it."""
    path = tmp_path / "proof.json"
    path.write_bytes(data)
    assert cli.main(["verify", "--offline", str(path), *form]) == cli.USAGE
    told, errors = capsys.readouterr()
    assert "the proof" in errors
    assert "Traceback" not in errors
    if form:
        report = json.loads(told)
        assert (report["verdict"], report["error"]["code"]) == ("not judged", "unreadable-proof")
    else:
        assert told == ""


def test_a_missing_file_and_an_unreadable_policy_end_with_status_two(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "--offline", "/nonexistent"]) == cli.USAGE
    assert "cannot be read" in capsys.readouterr().err
    assert cli.main(["verify", "--offline", str(saved), "--policy", "/nonexistent"]) == cli.USAGE
    capsys.readouterr()
    assert cli.main(["verify", "--offline", str(saved), "--html", "/nonexistent/page.html"]) == cli.USAGE
    told, errors = capsys.readouterr()
    assert "/nonexistent/page.html" in errors
    assert "proved: AMD SEV-SNP" in told  # the verdict is told all the same


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["http://a", "--offline", "x"],
        ["--offline", "x", "--save", "y"],
        ["--offline", "x", "--pccs", "http://a"],
        ["--offline", "x", "--at", "2026-11-21"],
        ["--offline", "x", "--at", "2026-11-21T12:00:00"],
        ["--offline", "x", "--at", "tomorrow"],
        ["http://a", "--at", "now"],
        ["http://a", "--no-collateral", "--pccs", "http://b"],
    ],
)
def test_what_makes_no_sense_together_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", *arguments])
    assert caught.value.code == cli.USAGE
    assert "blindbox verify: error: " in capsys.readouterr().err


def test_a_refusal_is_saved_too_and_so_is_its_page(
    machine: RunningEnclave, policy_file: Path, tmp_path: Path
) -> None:
    proof, page = tmp_path / "proof.json", tmp_path / "page.html"
    arguments = ["--policy", str(policy_file), "--save", str(proof), "--html", str(page)]
    assert cli.main(["verify", machine.origin, *arguments]) == cli.NOT_PROVED
    assert SavedProof.load(proof).verdict == "refused"
    assert "Refused" in page.read_text(encoding="utf-8")
    assert cli.main(["verify", "--offline", str(proof), "--html", str(page)]) == cli.NOT_PROVED
    assert "whoever wrote the file chose it" in page.read_text(encoding="utf-8")


# ── what was fetched beside the evidence ──────────────────────────────────────────────────────────────────


@pytest.fixture
def silent_about_revocation(amd: FakeAmd) -> Iterator[RunningEnclave]:
    """A machine that does not send its vendor's revocation list."""
    quoter = FakeAmdQuoter(amd)
    del quoter.endorsements["crl"]
    with running(identity=Identity(quoter, config_digest=bytes(48))) as one:
        yield one


def test_what_was_fetched_from_the_vendor_is_saved_with_the_proof(
    silent_about_revocation: RunningEnclave,
    amd: FakeAmd,
    its_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "proof.json"
    with KeyService(amd) as service:
        service.lists[amd.family] = current_list(amd)
        monkeypatch.setattr("blindbox.collateral.amd_kds.ADDRESS", service.origin)
        asked = ["verify", silent_about_revocation.origin, "--policy", str(its_policy)]
        assert cli.main([*asked, "--no-collateral"]) == cli.NOT_PROVED
        assert "[crl-missing]" in capsys.readouterr().out
        assert service.paths == []
        assert cli.main([*asked, "--save", str(saved)]) == cli.DONE
        assert len(service.paths) == 1
        assert SavedProof.load(saved).collateral == {"crl": service.lists[amd.family]}
        capsys.readouterr()
        assert cli.main(["verify", "--offline", str(saved), "--policy", str(its_policy)]) == cli.DONE
        assert "accepted, as the file says" in capsys.readouterr().out
        assert len(service.paths) == 1


def test_a_mirror_that_is_no_address_is_wrong_usage(
    machine: RunningEnclave, its_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", machine.origin, "--policy", str(its_policy), "--pccs"]
    assert cli.main([*arguments, "ftp://pccs.example"]) == cli.USAGE
    assert "a mirror is given as" in capsys.readouterr().err
    assert cli.main([*arguments, "https://pccs.example:8081"]) == cli.DONE  # for TDX: this one is not asked


def test_what_could_not_be_fetched_is_told_and_the_refusal_is_the_same_offline(
    silent_about_revocation: RunningEnclave,
    its_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """C-23: a dead server is a refusal, with a reason that names it."""
    saved = tmp_path / "proof.json"
    monkeypatch.setattr("blindbox.collateral.amd_kds.ADDRESS", "http://127.0.0.1:9")
    asked = ["verify", silent_about_revocation.origin, "--policy", str(its_policy), "--save", str(saved)]
    assert cli.main(asked) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "[crl-missing]" in told
    assert "http://127.0.0.1:9" in told
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(its_policy)]) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "[crl-missing]" in told
    assert "refused, as the file says" in told


# ── a terminal ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_gets_colours_and_lines_that_fit(amd: FakeAmd, monkeypatch: pytest.MonkeyPatch) -> None:
    key_config = Identity(simulated_quoter(), config_digest=bytes(48)).key_config
    report = Report("http://a:80", NOON, amd.policy(), bytes(32), amd.document(key_config)).judged()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    show(report, out, verbose=True)
    assert "\033[32m✔ passed" in out.getvalue()
    for line in out.getvalue().splitlines():
        bare = (
            line.replace("\033[32m", "").replace("\033[33m", "").replace("\033[2m", "").replace("\033[0m", "")
        )
        assert len(bare) <= 80 or "measurement" in bare
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    show(report, out)
    assert "\033" not in out.getvalue()


def test_a_terminal_without_these_marks_is_no_reason_to_fail(
    machine: RunningEnclave, its_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii", errors="strict"))
    assert cli.main(["verify", machine.origin, "--policy", str(its_policy)]) == cli.DONE
    sys.stdout.flush()
    assert b"\\u2714 passed" in held.getvalue()


# ── trust --list ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_broken_file_does_not_hide_the_other_policies(capsys: pytest.CaptureFixture[str]) -> None:
    store = TrustStore()
    for host in ("a.example", "b.example", "c.example"):
        store.set(f"http://{host}", Policy.from_json(ANOTHER))
    first, second, _ = sorted(store.folder.iterdir())
    first.write_text("{")
    second.chmod(0o666)
    assert cli.main(["trust", "--list"]) == cli.USAGE
    told, errors = capsys.readouterr()
    assert "http://c.example:80" in told
    assert "http://a.example:80" not in told
    assert first.name in errors
    assert "chmod" in errors
