"""`blindbox receipt verify` and `blindbox.receipt`: what they prove, print, write, and end with."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import blindbox
from blindbox import Policy, SnpPolicy, Tcb, cli
from blindbox.errors import (
    AttestationError,
    ForgedReceipt,
    InvalidPolicy,
    ReceiptMismatch,
    ReceiptRefused,
    UnreadableReceipt,
)
from blindbox.report import Report
from blindbox.report.receipt import judge
from blindbox.report.receipt_page import page
from blindbox_attestation.receipt import File, ReceiptFile, SigningKey
from enclave_app.identity import Identity
from tests.enclave.test_jobs_receipts import signed
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.enclave import make_identity
from tests.kit.pinned_amd import FakeAmdQuoter, accepting, current_list, pinned
from tests.kit.receipts import DATA, RECEIPT, WEIGHTS, document_of, made
from tests.kit.simulated import unsafe

STRANGE = "ft:<b>x</b>[2J&amp;"
"""A model's name that a page or a terminal would act upon."""


@pytest.fixture
def file(amd: FakeAmd) -> ReceiptFile:
    return made(amd)


@pytest.fixture
def receipt(file: ReceiptFile, tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    path.write_bytes(file.encode())
    return path


@pytest.fixture
def policy(amd: FakeAmd, tmp_path: Path) -> Path:
    """What the machine of these tests fulfils."""
    path = tmp_path / "policy.json"
    path.write_text(accepting(amd).to_json())
    return path


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A policy that it does not fulfil."""
    tcb = Tcb(bootloader=1, tee=0, snp=1, microcode=1)
    path = tmp_path / "another.json"
    path.write_text(Policy(snp=SnpPolicy(measurements={bytes(48)}, minimum_tcb={"Genoa": tcb})).to_json())
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The tuned model as it is downloaded."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("adapter_config.json", "{}")
        archive.writestr("adapter_model.safetensors", WEIGHTS)
    return path


def verify(*arguments: str | Path) -> int:
    return cli.main(["receipt", "verify", *map(str, arguments)])


# ── what it tells ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_is_proved_and_told(
    receipt: Path, policy: Path, adapter: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(receipt, "--policy", policy, "--adapter", adapter, "--data", data) == cli.DONE
    told, errors = capsys.readouterr()
    assert errors == ""
    assert "\033" not in told
    for words in (
        "ftjob-0123456789abcdef0123456789abcdef",
        "210 read, 200 used, 20 held back; 12,345 tokens",
        "3.25 at first, 0.125 at last",
        "learning_rate 0.0002, method lora, rank 16, targets q_proj",
        "the fast path; 1 process; torch 2.9.1, trl 0.25.0",
        "2026-06-01 12:00:00 UTC, after 0:20:00",
        hashlib.sha256(DATA).hexdigest(),
        "✔ the model that came out is ",
        "✔ the file that was learned from is ",
        f"proved: AMD SEV-SNP, measurement {MEASUREMENT.hex()}",
        "if you trust AMD",
        "it does not say that the data was good",
    ):
        assert words in told


def test_a_report_for_programs_holds_the_receipt_and_the_machine(
    receipt: Path, policy: Path, data: Path, file: ReceiptFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(receipt, "--policy", policy, "--data", data, "--json") == cli.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["verdict"]) == ("blindbox-receipt-report/1", "accepted")
    assert told["receipt"] == json.loads(file.receipt.encode())
    assert told["machine"]["measurement"] == MEASUREMENT.hex()
    assert told["machine"]["evidence_id"] == told["receipt"]["evidence"]["id"]
    assert [(one["what"], one["fits"]) for one in told["files"]] == [("data", True)]
    assert told["error"] is None
    assert told["simulated"] is False


def test_a_page_shows_it_and_loads_nothing(
    receipt: Path, policy: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "receipt.html"
    assert verify(receipt, "--policy", policy, "--adapter", adapter, "--html", html) == cli.DONE
    shown = html.read_text("utf-8")
    assert "Signed by a machine you accept" in shown
    assert "What this does not show" in shown
    assert "default-src 'none'" in shown
    for active in ("<script", "http://", "https://", "<img", "src=", "url("):
        assert active not in shown
    capsys.readouterr()
    assert verify(receipt, "--policy", policy, "--html", tmp_path / "no" / "where.html") == cli.USAGE
    assert "cannot be written" in capsys.readouterr().err


def test_what_a_machine_named_cannot_act_on_a_page_or_a_terminal(
    amd: FakeAmd, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "strange.json"
    path.write_bytes(made(amd, model=STRANGE, base="<img src=x onerror=alert(1)>").encode())
    html = tmp_path / "strange.html"
    assert verify(path, "--policy", policy, "--html", html) == cli.DONE
    assert "\033" not in capsys.readouterr().out
    assert "<b>x</b>" not in html.read_text("utf-8")
    assert "<img" not in html.read_text("utf-8")


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_another_one_is_told_and_ends_with_1(
    receipt: Path, policy: Path, adapter: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are compared, and what was proved of the machine is said all the same."""
    data.write_bytes(DATA + b"\n")
    with zipfile.ZipFile(adapter, "w") as archive:
        archive.writestr("adapter_model.safetensors", WEIGHTS + b"!")
    assert verify(receipt, "--policy", policy, "--adapter", adapter, "--data", data) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert "✘ the model that came out is not" in told
    assert "✘ the file that was learned from is not" in told
    assert "the machine is proved, and signed it" in told
    assert told.splitlines()[-1].startswith("does not fit: ")
    assert told.splitlines()[-1].endswith("[adapter-mismatch]")
    assert verify(receipt, "--policy", policy, "--data", data, "--json") == cli.NOT_PROVED
    out, errors = capsys.readouterr()
    report = json.loads(out)
    assert (report["verdict"], report["error"]["code"]) == ("refused", "data-mismatch")
    assert report["receipt"]["dataset"]["rows_used"] == 200
    assert "[data-mismatch]" in errors


def test_a_machine_that_is_not_accepted_ends_with_1_and_nothing_of_its_words_is_shown(
    receipt: Path, another: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "refused.html"
    assert verify(receipt, "--policy", another, "--html", html) == cli.NOT_PROVED
    told = capsys.readouterr().out
    assert told.splitlines()[-1].endswith("[measurement-mismatch]")
    for shown in (told, html.read_text("utf-8")):
        assert RECEIPT.job not in shown
        assert RECEIPT.model not in shown
    assert "Refused" in html.read_text("utf-8")


@pytest.mark.parametrize("to", ["signature", "receipt", "document"])
def test_a_receipt_that_was_changed_ends_with_1(
    file: ReceiptFile, amd: FakeAmd, policy: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SigningKey.from_bytes(bytes(32))
    changes: dict[str, Any] = {
        "signature": bytes(64),
        "receipt": replace(file.receipt, last_loss=0.001),
        "document": document_of(amd, other),
    }
    path = tmp_path / "forged.json"
    path.write_bytes(replace(file, **{to: changes[to]}).encode())
    assert verify(path, "--policy", policy) == cli.NOT_PROVED
    assert "[bad-receipt-signature]" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_ends_with_2(
    receipt: Path, policy: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = tmp_path / "edited.json"
    edited.write_bytes(receipt.read_bytes() + b"\n")
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(adapter.read_bytes()[:60])
    crowd = tmp_path / "crowd"
    crowd.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (crowd / name).write_bytes(b"")
    for arguments, words in (
        ((missing, "--policy", policy), "cannot be read"),
        ((edited, "--policy", policy), "keep the bytes that came"),
        ((receipt, "--policy", missing), "policy file"),
        ((receipt, "--policy", receipt), "the policy"),
        ((receipt, "--policy", policy, "--data", missing), "No such file"),
        ((receipt, "--policy", policy, "--adapter", missing), "No such file"),
        ((receipt, "--policy", policy, "--adapter", empty), "it holds none"),
        ((receipt, "--policy", policy, "--adapter", crowd), "a.safetensors, b.safetensors"),
        ((receipt, "--policy", policy, "--adapter", broken), "no archive that can be read"),
        ((receipt, "--policy", policy, "--proof", receipt), "format of the proof"),
        ((receipt, "--policy", policy, "--proof", missing), "cannot be read"),
    ):
        assert verify(*arguments) == cli.USAGE, arguments
        out, errors = capsys.readouterr()
        assert words in errors, arguments
        assert out == ""
        assert verify(*arguments, "--json") == cli.USAGE
        told = json.loads(capsys.readouterr().out)
        assert told["verdict"] == "not judged"
        assert told["error"]["code"] not in ("", "not-reached")


def test_the_grammar_asks_for_a_policy(receipt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verify(receipt)
    assert ended.value.code == cli.USAGE
    assert "--policy" in capsys.readouterr().err


def test_a_time_that_is_still_to_come_is_warned_about(
    policy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The host sets the clock by which a receipt is dated."""
    future = FakeAmd(name="Tomorrow")
    later = int(datetime.now(UTC).timestamp()) + 7200
    sent = future.endorsements(crl=current_list(future))
    document = document_of(future, not_before=later - 60, not_after=later + 600, endorsements=sent)
    path = tmp_path / "later.json"
    path.write_bytes(made(future, document=document, finished_at=later).encode())
    with pinned(future):
        policy.write_text(accepting(future).to_json())
        assert verify(path, "--policy", policy) == cli.DONE
    assert "still to come" in capsys.readouterr().err


# ── what the vendor had published ─────────────────────────────────────────────────────────────────────────


def test_what_the_machine_did_not_send_comes_from_a_saved_proof(
    amd: FakeAmd, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.json"
    bare.write_bytes(made(amd, document=document_of(amd, endorsements={})).encode())
    assert verify(bare, "--policy", policy) == cli.NOT_PROVED
    assert "give it with --proof FILE" in capsys.readouterr().err
    proof = tmp_path / "proof.json"
    report = Report(
        "http://192.0.2.1:80",
        NOON,
        Policy.from_json(policy.read_text()),
        bytes(range(32)),
        amd.document(nonce=bytes(range(32)), endorsements={}),
        amd.endorsements(),
    ).judged()
    # Its key is none of ours, so this proof is a refusal; what the vendor published is in it all the same.
    proof.write_text(report.to_json())
    assert verify(bare, "--policy", policy, "--proof", proof) == cli.DONE


# ── in Python ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_in_python(
    file: ReceiptFile, receipt: Path, policy: Path, another: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    proved = blindbox.receipt.verify(receipt, policy, adapter=adapter, data=data)
    assert proved.receipt == file.receipt
    assert proved.verdict == "accepted"
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(adapter) as archive:
        archive.extractall(folder)
    for place in (folder, folder / "adapter_model.safetensors"):
        blindbox.receipt.verify(file.encode(), policy, adapter=place)
    with pytest.raises(ReceiptMismatch):
        blindbox.receipt.verify(receipt, policy, data=policy)
    with pytest.raises(ReceiptMismatch, match="no validation file"):
        blindbox.receipt.verify(receipt, policy, validation=data)
    with pytest.raises(AttestationError):
        blindbox.receipt.verify(receipt, another)
    with pytest.raises(UnreadableReceipt):
        blindbox.receipt.verify(b"{}", policy)
    with pytest.raises(InvalidPolicy):
        blindbox.receipt.verify(receipt, Policy)  # type: ignore[arg-type]
    assert issubclass(ForgedReceipt, ReceiptRefused)


def test_a_validation_file_is_compared_too(amd: FakeAmd, policy: Path, data: Path) -> None:
    held = File("file-held", hashlib.sha256(DATA).digest())
    one = made(amd, dataset=replace(RECEIPT.dataset, validation_file=held)).encode()
    proved = blindbox.receipt.verify(one, policy, validation=data)
    assert proved.receipt.dataset.validation_file == held
    report = judge(one, Policy.from_json(policy.read_text()), validation=data)
    assert [one.fits for one in report.files] == [True]
    assert "Validation data" in page(report)


def test_a_compressed_archive_is_read_piece_by_piece(
    file: ReceiptFile, amd: FakeAmd, policy: Path, tmp_path: Path
) -> None:
    """Packed again by its owner; 100 MB of zeros in it cost no memory."""
    path = tmp_path / "packed.zip"
    size, digest = 100 << 20, hashlib.sha256()
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("sub/adapter_model.safetensors", "w") as inside,
    ):
        for _ in range(size >> 20):
            inside.write(bytes(1 << 20))
            digest.update(bytes(1 << 20))
    one = made(amd, adapter=digest.digest()).encode()
    tracemalloc.start()
    blindbox.receipt.verify(one, policy, adapter=path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20


# ── what an enclave signs ─────────────────────────────────────────────────────────────────────────────────


def test_what_an_enclave_signs_is_accepted_by_the_command(
    amd: FakeAmd, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the key in its memory to a verdict on another machine, with today's clock."""
    path = tmp_path / "receipt.json"
    path.write_bytes(signed(Identity(FakeAmdQuoter(amd), config_digest=bytes(48))))
    assert verify(path, "--policy", policy) == cli.DONE
    assert "proved: AMD SEV-SNP" in capsys.readouterr().out


def test_a_simulated_machines_receipt_is_refused_by_every_policy_file(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C-35: no file can hold a policy that accepts it; in Python it is called simulated, never accepted."""
    path, html = tmp_path / "receipt.json", tmp_path / "receipt.html"
    path.write_bytes(signed(make_identity()))
    assert verify(path, "--policy", policy, "--json", "--html", html) == cli.NOT_PROVED
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["simulated"]) == ("refused", True)
    assert report["error"]["code"] == "simulated-evidence"
    assert "PROVES NOTHING" in html.read_text("utf-8")
    assert blindbox.receipt.verify(path, unsafe()).verdict == "simulated"
    judged = judge(path, unsafe())
    assert judged.verdict == json.loads(judged.to_json())["verdict"] == "simulated"
    assert "PROVES NOTHING" in page(judged)
    assert "Accepted" not in page(judged)
