"""The verifier as a black box: a case goes in, one line of JSON and an exit status come out."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation.conformance import main
from blindbox_attestation.snp.tcb import Tcb
from tests.conftest import REPOSITORY
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, MEASUREMENT, FakeAmd

AMD = FakeAmd("Genoa")
NONCE = bytes(range(32))
POLICY = {
    "version": 1,
    "snp": {
        "measurements": [MEASUREMENT.hex()],
        "minimum_tcb": {"Genoa": {"bootloader": 10, "tee": 0, "snp": 0x19, "microcode": 0x54}},
    },
}


def write_case(folder: Path, **changes: Any) -> Path:
    """A case that is accepted, except for the changes; None leaves a key out."""
    (folder / "report.bin").write_bytes(AMD.report(NONCE.ljust(64, b"\x00")))
    for name, der in AMD.endorsements().items():
        (folder / f"{name}.der").write_bytes(der)
    case: dict[str, Any] = {
        "platform": "sev-snp",
        "evidence": "report.bin",
        "endorsements": {name: f"{name}.der" for name in AMD.endorsements()},
        "nonce": NONCE.hex(),
        "now": NOON.isoformat(),
        "policy": POLICY,
        "roots": {"snp": {root.hex(): family for root, family in AMD.roots.items()}},
        **changes,
    }
    path = folder / "case.json"
    path.write_text(json.dumps({name: value for name, value in case.items() if value is not None}))
    return path


def judged(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    status = main([str(one) for one in arguments])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_honest_case_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_case(tmp_path)
    status, (line,) = judged(capsys, path)
    assert status == 0
    assert set(line) == {"case", "verdict", "code", "step", "detail"}
    assert (line["case"], line["verdict"], line["code"]) == (str(path), "accept", "accepted")


@pytest.mark.parametrize(
    ("changes", "code", "step"),
    [
        ({"nonce": "ff" * 32}, "wrong-nonce", 8),
        ({"now": "2099-01-01T00:00:00Z"}, "certificate-not-valid-now", 4),
        ({"endorsements": {}}, "missing-endorsement", 4),
        ({"roots": None}, "unpinned-root", 4),
        ({"platform": "tdx"}, "platform-not-accepted", 2),
        ({"platform": "simulated"}, "simulated-evidence", 2),
        ({"platform": "a toaster"}, "platform-not-accepted", 2),
    ],
)
def test_a_refusal_says_its_code_and_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: str, step: int
) -> None:
    status, (line,) = judged(capsys, write_case(tmp_path, **changes))
    assert (status, line["verdict"], line["code"], line["step"]) == (10, "refuse", code, step)
    assert line["detail"]


def test_without_a_nonce_nothing_is_said_about_freshness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(capsys, write_case(tmp_path, nonce=None))[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {}},
        {"policy": {**POLICY, "simulated": {}}},
        {"policy": None},
        {"now": "2026-06-01T12:00:00"},
        {"now": "noon"},
        {"nonce": "xyz"},
        {"nonce": ""},
        {"nonce_text": "and a nonce"},
        {"evidence": "nowhere.bin"},
        {"evidence": "vectors:snp/report.bin"},
        {"document": "report.bin"},
        {"endorsements": {"vcek": "nowhere.der"}},
        {"endorsements": {"passport": "vcek.der"}},
        {"roots": {"tdx": {}}},
        {"roots": {"snp": {"00": "Genoa"}}},
        {"roots": {"snp.ak": {}}},
        {"roots": []},
        {"colour": "blue"},
        {"version": 2},
    ],
)
def test_a_case_that_makes_no_sense_is_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    status, (line,) = judged(capsys, write_case(tmp_path, **changes))
    assert (status, line["verdict"]) == (2, "unreadable")
    assert line["detail"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"now": 1, "now": 2}', "\ud800"])
def test_a_file_that_is_no_case_is_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert judged(capsys, path)[0] == 2
    assert judged(capsys, tmp_path / "nothing.json")[0] == 2


def test_certificates_may_be_in_pem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_case(tmp_path)
    for name, der in AMD.endorsements().items():
        body = base64.encodebytes(der).decode("ascii")
        kind = "X509 CRL" if name == "crl" else "CERTIFICATE"
        (tmp_path / f"{name}.der").write_text(f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n")
    assert judged(capsys, path)[0] == 0


def test_a_whole_document_is_judged_as_a_client_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document: dict[str, Any] = {"platform": None, "evidence": None, "document": "document.json"}
    (tmp_path / "document.json").write_bytes(AMD.document(KEY_CONFIG, NONCE, endorsements={}))
    assert judged(capsys, write_case(tmp_path, **document))[0] == 0
    bare = write_case(tmp_path, **document, endorsements=None)
    assert judged(capsys, bare)[1][0]["code"] == "missing-endorsement"
    old = write_case(tmp_path, **document, nonce="00" * 32)
    assert judged(capsys, old)[1][0]["code"] == "wrong-nonce"
    either = {"version": 1, "any_of": [POLICY_PART, {**POLICY_PART, "max_age_seconds": 60}]}
    assert judged(capsys, write_case(tmp_path, **document, policy=either))[0] == 0


POLICY_PART = {"snp": POLICY["snp"]}


def test_several_cases_take_the_worst_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("good", "bad", "none")]
    for folder in folders:
        folder.mkdir()
    good = write_case(folders[0])
    bad = write_case(folders[1], nonce="00" * 32)
    none = folders[2] / "case.json"
    assert judged(capsys, good, bad)[0] == 10
    status, lines = judged(capsys, good, bad, none)
    assert status == 2
    assert [line["verdict"] for line in lines] == ["accept", "refuse", "unreadable"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nonce": "xyz"}, "nonce is not 1 to 1024 bytes in lower-case hex"),
        ({"now": "noon"}, "now is 'noon', expected Unix seconds or a time like"),
        ({"now": 10**18}, "now is 1000000000000000000, expected Unix seconds or a time like"),
        ({"now": "2026-06-01T12:00:00"}, "without a time zone; end it with Z"),
        ({"expect": ["accept"]}, "expect is not an object"),
        ({"expect": {}}, "expect has no 'verdict'"),
        ({"expect": {"verdict": "accepted"}}, "is 'accepted', and not 'accept' or 'refuse'"),
        ({"expect": {"verdict": "refuse", "kode": "bad-signature"}}, "unknown key 'kode'"),
    ],
)
def test_what_is_wrong_with_a_case_is_said_so_that_it_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    status, (line,) = judged(capsys, "--expect", write_case(tmp_path, **changes))
    assert (status, line["verdict"]) == (2, "unreadable")
    assert told in line["detail"]


@pytest.mark.parametrize(
    ("expect", "status"),
    [
        ({"verdict": "refuse", "code": "wrong-nonce", "step": 8}, 0),
        ({"verdict": "refuse"}, 0),
        ({"verdict": "accept"}, 1),
        ({"verdict": "refuse", "code": "vmpl"}, 1),
        ({"verdict": "refuse", "mood": "good"}, 2),
        (None, 2),
    ],
)
def test_a_case_can_say_what_it_expects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expect: dict[str, Any] | None, status: int
) -> None:
    path = write_case(tmp_path, nonce="00" * 32, expect=expect)
    assert judged(capsys, "--expect", path)[0] == status


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "blindbox_attestation.conformance", str(write_case(tmp_path, nonce="00"))],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY / "attestation"), "PATH": ""},
        check=False,
    )
    assert run.returncode == 10, run.stderr
    assert json.loads(run.stdout)["code"] == "wrong-nonce"


def test_real_files_are_named_by_where_the_vectors_are(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = (vectors / "snp" / "turin_v5_report.bin").read_bytes()
    policy = {
        "version": 1,
        "snp": {
            "measurements": [report[0x90:0xC0].hex()],
            "minimum_tcb": {"Turin": {"fmc": 0, "bootloader": 1, "tee": 0, "snp": 2, "microcode": 0x47}},
            "revocation": "unchecked",
        },
    }
    path = write_case(
        tmp_path,
        evidence="vectors:snp/turin_v5_report.bin",
        endorsements={
            "vcek": "vectors:snp/turin_v5_vcek.der",
            "ask": "vectors:snp/roots_turin_ask.pem",
            "ark": "vectors:snp/roots_turin_ark.pem",
        },
        policy=policy,
        roots=None,
        nonce=report[0x50:0x90].hex(),
    )
    assert judged(capsys, "--vectors", vectors, path)[0] == 0


def test_the_floor_of_the_honest_case_is_the_machine_s_own() -> None:
    assert AMD.tcb == Tcb(bootloader=10, snp=0x19, microcode=0x54)
