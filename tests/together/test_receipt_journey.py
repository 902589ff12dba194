"""
From a file on a caller's machine to a verdict on somebody else's: a job over the sealed channel, the model
and the receipt taken home, and `blindbox receipt verify` with no network.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox import Policy, cli
from blindbox_attestation.receipt import MEDIA_TYPE, ReceiptFile
from tests.kit.amd import FakeAmd
from tests.kit.enclave import RunningEnclave
from tests.kit.pinned_amd import accepting

ROWS = [{"question": f"what is canary {n}?", "answer": f"the bird numbered {n}"} for n in range(60)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def policy(amd: FakeAmd) -> Policy:
    return accepting(amd)


def done(session: requests.Session, origin: str, job: str) -> dict[str, Any]:
    """The job, once it has ended."""
    deadline = time.monotonic() + 120
    while True:
        told: dict[str, Any] = session.get(f"{origin}{JOBS}/{job}").json()
        if told["status"] in ("succeeded", "failed", "cancelled") or time.monotonic() > deadline:
            return told
        time.sleep(0.05)


def test_what_was_made_of_my_file_can_be_shown_to_somebody_else(
    machine: RunningEnclave, policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-20: nothing of a row is in the receipt; whoever is handed it judges by a policy of their own."""
    origin = machine.origin
    with requests.Session(policy) as session:
        sent = session.post(
            f"{origin}/v1/files", files={"file": ("rows.jsonl", DATA)}, data={"purpose": "fine-tune"}
        )
        assert sent.status_code == 200, sent.text
        asked = session.post(
            f"{origin}{JOBS}",
            json={"training_file": sent.json()["id"], "model": "org/echo", "suffix": "mine"},
        )
        assert asked.status_code == 200, asked.text
        job = done(session, origin, asked.json()["id"])
        assert job["status"] == "succeeded", job
        assert job["blindbox"]["receipt"] is True
        receipt = session.get(f"{origin}{JOBS}/{job['id']}/receipt")
        content = session.get(f"{origin}/v1/models/{job['fine_tuned_model']}/content")
    assert receipt.headers["content-type"] == MEDIA_TYPE
    told = ReceiptFile.parse(receipt.content).receipt
    assert (told.job, told.model) == (job["id"], job["fine_tuned_model"])
    assert told.adapter.hex() == job["blindbox"]["adapter"]
    assert told.dataset.file.sha256 == hashlib.sha256(DATA).digest()
    assert (told.dataset.rows_read, told.dataset.rows_used) == (60, 60 - told.dataset.validation_rows)
    assert told.steps > 0
    for word in (b"canary", b"bird"):
        assert word not in receipt.content

    for name, data in (("receipt.json", receipt.content), ("model.zip", content.content), ("rows", DATA)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "policy.json").write_text(policy.to_json())
    command = ["receipt", "verify", str(tmp_path / "receipt.json"), "--policy", str(tmp_path / "policy.json")]
    command += ["--adapter", str(tmp_path / "model.zip"), "--data", str(tmp_path / "rows")]
    assert cli.main(command) == cli.DONE
    assert "proved: AMD SEV-SNP" in capsys.readouterr().out
    (tmp_path / "rows").write_bytes(DATA[:-1])
    assert cli.main(command) == cli.NOT_PROVED
    assert "[data-mismatch]" in capsys.readouterr().out
