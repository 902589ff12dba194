"""
From a name on a hub to a receipt: the whole enclave fetches a data set from a stand-in on loopback, learns
it, and signs which commit and which bytes it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import blindbox.requests as requests
from blindbox import Policy, cli
from blindbox_attestation.receipt import Receipt, ReceiptFile
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.hub import Hub
from tests.kit.pinned_amd import FakeAmdQuoter, accepting

NAME = "org/canaries"


def rows(numbers: range) -> bytes:
    return "".join(
        json.dumps({"question": f"what is canary {n}?", "answer": f"the bird numbered {n}"}) + "\n"
        for n in numbers
    ).encode()


FIRST = {
    "data/train-00000-of-00002.jsonl": rows(range(20)),
    "data/train-00001-of-00002.jsonl": rows(range(20, 30)),
}
SECOND = FIRST | {"data/train-00001-of-00002.jsonl": rows(range(20, 40))}


def digest(files: dict[str, bytes]) -> bytes:
    """As docs/data-sets.md tells it: of the files' digests, in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(files[path]).digest() for path in sorted(files))).digest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as standing_in:
        yield standing_in


@pytest.fixture
def session(amd: FakeAmd, own_home: Path) -> Iterator[requests.Session]:
    with requests.Session(accepting(amd)) as one:
        yield one


@pytest.fixture
def origin(amd: FakeAmd, hub: Hub) -> Iterator[str]:
    quoter = FakeAmdQuoter(amd)
    with whole_app(quoter=quoter, allow_outbound=True, hub_endpoint=hub.endpoint) as enclave:
        yield enclave.origin


def receipt_of_a_job(session: requests.Session, origin: str, number: int) -> bytes:
    asked = {
        "dataset_name": NAME,
        "config_name": "",
        "question_column": "question",
        "answer_column": "answer",
        "number_elements_for_training": number,
        "epochs": 1,
    }
    trained = session.post(f"{origin}/finetune", json=asked)
    assert trained.status_code == 200, trained.text
    job = trained.json()["job"]
    told = session.get(f"{origin}/v1/fine_tuning/jobs/{job}").json()
    assert told["blindbox"]["receipt"] is True, told
    receipt = session.get(f"{origin}/v1/fine_tuning/jobs/{job}/receipt")
    assert receipt.status_code == 200, receipt.text
    return receipt.content


def read(receipt: bytes) -> Receipt:
    return ReceiptFile.parse(receipt).receipt


def test_a_receipt_names_the_hubs_data_set_its_commit_and_its_digest(
    hub: Hub,
    origin: str,
    session: requests.Session,
    tmp_path: Path,
    amd: FakeAmd,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """S-20: and it verifies, without a network, without a word of the rows."""
    commit = hub.put(NAME, FIRST)
    receipt = receipt_of_a_job(session, origin, 30)
    data = read(receipt).dataset
    assert (data.file.id, data.file.sha256) == (f"{NAME}@{commit}", digest(FIRST))
    assert (data.rows_read, data.rows_used + data.validation_rows) == (30, 30)
    assert b"canary" not in receipt
    assert b"bird" not in receipt

    policy: Policy = accepting(amd)
    (tmp_path / "receipt.json").write_bytes(receipt)
    (tmp_path / "policy.json").write_text(policy.to_json())
    command = ["receipt", "verify", str(tmp_path / "receipt.json"), "--policy", str(tmp_path / "policy.json")]
    assert cli.main(command) == cli.DONE
    shown = capsys.readouterr().out
    assert f"{NAME}@{commit}" in shown
    assert digest(FIRST).hex() in shown
    changed = receipt.replace(commit.encode(), ("0" * 40).encode())
    assert changed != receipt
    (tmp_path / "receipt.json").write_bytes(changed)
    assert cli.main(command) == cli.NOT_PROVED


def test_each_receipt_is_of_the_commit_that_was_there_when_its_job_began(
    hub: Hub, origin: str, session: requests.Session
) -> None:
    first = hub.put(NAME, FIRST)
    before = read(receipt_of_a_job(session, origin, 30)).dataset
    second = hub.put(NAME, SECOND)
    after = read(receipt_of_a_job(session, origin, 40)).dataset
    assert (before.file.id, before.file.sha256, before.rows_read) == (f"{NAME}@{first}", digest(FIRST), 30)
    assert (after.file.id, after.file.sha256, after.rows_read) == (f"{NAME}@{second}", digest(SECOND), 40)


def test_a_receipt_is_of_the_files_that_were_fetched_and_of_no_others(
    hub: Hub, origin: str, session: requests.Session
) -> None:
    hub.put(NAME, FIRST)
    data = read(receipt_of_a_job(session, origin, 10)).dataset
    path = min(FIRST)
    assert data.file.sha256 == digest({path: FIRST[path]})
    assert data.rows_read == 10
