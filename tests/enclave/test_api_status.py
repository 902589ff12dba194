"""`/v1/blindbox/status`: a caller's own requests while they wait and run, and of others' only quarters."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.api import Rooms
from enclave_app.engines import Update
from enclave_app.engines.echo import EchoEngine
from tests.kit.rooms import ALICE, BOB, error_of, rooms_in

PATH = "/v1/blindbox/status"
NOBODY = {"waiting": 0, "running": 0, "tokens_per_second": 0.0, "kv_tokens": 0, "answers": []}


class Standing(EchoEngine):
    """Stands still until it is let go; serves two callers at once."""

    def __init__(self) -> None:
        super().__init__(most_sequences=2, room=1000)
        self.go = threading.Event()

    def step(self) -> list[Update]:
        return super().step() if self.go.wait(0.01) else []


@pytest.fixture
def engine() -> Standing:
    return Standing()


@pytest.fixture
def rooms(tmp_path: Path, engine: Standing) -> Rooms:
    return rooms_in(tmp_path, engine=engine, max_waiting=8)


def standing(client: TestClient, headers: dict[str, str]) -> dict[str, Any]:
    response = client.get(PATH, headers=headers)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def test_a_caller_sees_its_own_prompts_wait_run_and_end_and_nobody_elses(
    client: TestClient, engine: Standing
) -> None:
    """S-22: another caller is told how full the machine is, in quarters, and nothing more."""
    body = {"messages": [{"role": "user", "content": "twelve bytes"}], "max_tokens": 20}
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(client.post, "/v1/chat/completions", json=body) for _ in range(3)]
        until = time.monotonic() + 60
        while (seen := standing(client, ALICE))["running"] + seen["waiting"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert (seen["running"], seen["waiting"]) == (2, 1)
        assert seen["kv_tokens"] == 2 * (12 + 20)
        assert seen["kv_room"] == 1000
        for answer in seen["answers"]:
            assert answer["prompt_tokens"] == 12
            assert answer["most_tokens"] == 20
            assert answer["generated_tokens"] == 0
            assert answer["seconds"] >= 0
        others = standing(client, BOB)
        assert others == seen | NOBODY | {"load": others["load"]}
        assert others["load"] == {"org/echo": {"sequences": 1.0, "kv": 0.25, "waiting": 0.25}}
        engine.go.set()
        assert [each.result().status_code for each in asked] == [200] * 3
    after = standing(client, ALICE)
    assert after == after | NOBODY
    assert after["load"] == {"org/echo": {"sequences": 0.0, "kv": 0.0, "waiting": 0.0}}


def test_it_is_not_kept_by_anybody_and_told_to_nobody_without_a_name(client: TestClient) -> None:
    assert client.get(PATH).headers["cache-control"] == "no-store"
    client.headers.clear()
    error_of(client.get(PATH), 401, "missing_token")


def test_it_can_only_be_read(client: TestClient) -> None:
    assert client.post(PATH, json={}).status_code == 405
