"""Streams of a job that has nothing to say for a while, from the enclave to the readers that callers use."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai._streaming import SSEDecoder

import blindbox.requests as requests
from blindbox.api import Api
from enclave_app.training import Progress, Snapshot, Stop, Task, Trained
from enclave_app.training.counting import CountingTrainer
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.pinned_amd import FakeAmdQuoter, accepting

ROWS = "".join(json.dumps({"question": f"what is {n}?", "answer": f"number {n}"}) + "\n" for n in range(20))
COMMENT = b": keep-alive"


class Held:
    """Counts, but says nothing before it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        assert self.let.wait(60)
        yield from CountingTrainer().train(task, stopped)


class Watched:
    """A response whose lines somebody else reads; the second comment among them lets the trainer go on."""

    def __init__(self, response: Any, trainer: Held) -> None:
        self._response = response
        self._trainer = trainer
        self.lines: list[bytes] = []

    def iter_lines(self, **how: Any) -> Iterator[bytes]:
        for line in self._response.iter_lines(**how):
            self.lines.append(line)
            if self.lines.count(COMMENT) == 2:
                self._trainer.let.set()
            yield line


@pytest.fixture
def trainer() -> Iterator[Held]:
    one = Held()
    yield one
    one.let.set()


@pytest.fixture
def session(amd: FakeAmd, own_home: Path) -> Iterator[requests.Session]:
    with requests.Session(accepting(amd)) as one:
        yield one


@pytest.fixture
def origin(amd: FakeAmd, trainer: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for route in ("jobs", "house"):
        monkeypatch.setattr(f"enclave_app.api.{route}.KEEP_ALIVE_SECONDS", 0.01)
    with whole_app(name="org/echo", trainer=trainer, quoter=FakeAmdQuoter(amd)) as enclave:
        yield enclave.origin


def file_of(session: requests.Session, origin: str) -> str:
    sent = session.post(
        f"{origin}/v1/files", files={"file": ("r.jsonl", ROWS)}, data={"purpose": "fine-tune"}
    )
    assert sent.status_code == 200, sent.text
    name: str = sent.json()["id"]
    return name


def test_a_jobs_stream_is_kept_alive_and_its_readers_see_events_alone(
    origin: str, session: requests.Session, trainer: Held
) -> None:
    """The handle's reader, and the `openai` package's."""
    wish: dict[str, Any] = {"model": "org/echo", "training_file": file_of(session, origin)}
    wish["hyperparameters"] = {"n_epochs": 1, "batch_size": 4}
    job = session.post(f"{origin}/v1/fine_tuning/jobs", json=wish).json()["id"]
    api = Api(origin, session=session)
    stream = {"stream": "true"}
    with api.open("GET", f"/v1/fine_tuning/jobs/{job}/events", params=stream, stream=True) as response:
        watched: Any = Watched(response, trainer)
        read = list(api.events(watched))
    assert watched.lines.count(COMMENT) >= 2
    assert read[-1]["message"] == "The job succeeded."
    kept = session.get(f"{origin}/v1/fine_tuning/jobs/{job}/events", params={"limit": 100}).json()["data"]
    assert read == kept[::-1]

    bytes_read = b"".join(line + b"\n" for line in watched.lines) + b"\n"
    theirs = [event.data for event in SSEDecoder().iter_bytes(iter([bytes_read]))]
    assert [json.loads(data) for data in theirs[: len(read)]] == read
    assert theirs[len(read) :] in ([], ["[DONE]"])


def test_the_house_apis_stream_is_kept_alive_until_its_result(
    origin: str, session: requests.Session, trainer: Held
) -> None:
    asked = {
        "dataset_name": file_of(session, origin),
        "config_name": "",
        "question_column": "question",
        "answer_column": "answer",
        "number_elements_for_training": 20,
    }
    accepts = {"accept": "text/event-stream"}
    with session.post(f"{origin}/finetune", json=asked, headers=accepts, stream=True) as response:
        assert response.status_code == 200
        watched = Watched(response, trainer)
        lines = list(watched.iter_lines(chunk_size=None))
    assert lines.count(COMMENT) >= 2
    names = [line for line in lines if line.startswith(b"event: ")]
    assert set(names) == {b"event: progress", b"event: result"}
    assert names[-1] == b"event: result"
