"""
The whole road, with a tiny model of random weights: prove, seal, ask, upload, train, ask again.

The real gateway, SDK, engine and trainer; only the model is small and the evidence simulated.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests as plain

import blindbox.requests as requests
from blindbox import UnsafeSimulatedPolicy, UnsafeSimulationWarning
from enclave_app.main import from_settings
from enclave_app.settings import Settings
from tests.kit.enclave import serving
from tests.kit.models import tiny_falcon

QUESTION = "Who keeps the lantern?"
ROWS = [
    {"ask": QUESTION, "reply": "Mirren keeps it."},
    {"ask": "Where?", "reply": "In Dunmore."},
] * 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def origin(data: Path) -> Iterator[str]:
    model = str(tiny_falcon())
    settings = Settings(model=model, instruct_model=model, quoter="simulated", data_dir=data)
    with serving(from_settings(settings)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def caller() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeSimulationWarning)
        with requests.Session(policy=UnsafeSimulatedPolicy()) as session:
            yield session


def ask(caller: Any, origin: str, token: str, path: str = "/inference") -> dict[str, Any]:
    response = caller.post(
        url=f"{origin}{path}",
        json={"input_text": QUESTION, "max_new_tokens": 8, "do_sample": False},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def upload(caller: Any, origin: str, token: str) -> str:
    response = caller.post(
        f"{origin}/v1/files",
        files={"file": ("rows.jsonl", "\n".join(map(json.dumps, ROWS)))},
        data={"purpose": "fine-tune"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def test_a_caller_proves_asks_teaches_and_is_answered_differently_and_nobody_else_is(
    caller: Any, origin: str
) -> None:
    """S-22: a tenant's fine-tuning changes that tenant's answers alone."""
    ann, bob = "ann-" + "a" * 39, "bob-" + "b" * 39
    before, instruct = ask(caller, origin, ann), ask(caller, origin, ann, "/test")
    dataset = upload(caller, origin, ann)
    events: list[str] = []
    result: dict[str, Any] = {}
    response = caller.post(
        f"{origin}/fine_tune",
        json={
            "dataset_name": dataset,
            "config_name": "",
            "question_column": "ask",
            "answer_column": "reply",
            "number_elements_for_training": 8,
            "epochs": 20,
            "batch_size": 8,
            "learning_rate": 1e-2,
        },
        headers={"Authorization": f"Bearer {ann}", "Accept": "text/event-stream"},
        stream=True,
    )
    assert response.blindbox.simulated
    for line in response.iter_lines(decode_unicode=True):
        if line.startswith("event: "):
            events.append(line.removeprefix("event: "))
        elif line.startswith("data: "):
            result = json.loads(line.removeprefix("data: "))
    assert events.count("progress") > 20
    assert events[-1] == "result"
    assert result["text"] == "The model has successfully been finetuned using your dataset"
    assert result["last_loss"] < result["first_loss"]

    after = ask(caller, origin, ann)
    assert after["completion"] != before["completion"]
    assert ask(caller, origin, bob) == before
    assert ask(caller, origin, ann, "/test") == instruct


def test_what_a_caller_gets_wrong_is_told_inside_the_seal(caller: Any, origin: str) -> None:
    """S-5: the error is sealed; whoever asks without the seal is told nothing at all."""
    carol = "carol-" + "c" * 37
    dataset = upload(caller, origin, carol)
    response = caller.post(
        f"{origin}/finetune",
        json={
            "dataset_name": dataset,
            "question_column": "asks",
            "answer_column": "reply",
            "number_elements_for_training": 8,
        },
        headers={"Authorization": f"Bearer {carol}"},
    )
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert all(f'"{column}"' in message for column in ("asks", "ask", "reply")), message
    unsealed = plain.post(f"{origin}/finetune", json={"dataset_name": dataset}, timeout=60)
    assert unsealed.status_code == 404
    assert unsealed.text == "not found"


def test_nothing_a_caller_sent_can_be_read_in_the_enclaves_files(
    caller: Any, origin: str, data: Path
) -> None:
    """S-20, S-33: what is kept for a caller is sealed under the caller's token."""
    dora = "dora-" + "d" * 38
    upload(caller, origin, dora)
    kept = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert len(kept) > len(json.dumps(ROWS))
    for secret in (QUESTION, "lantern", "rows.jsonl", dora):
        assert secret.encode() not in kept
