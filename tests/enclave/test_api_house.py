"""The house API's routes over the echo engine and the counting trainer: shapes, defaults, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from enclave_app.api import Rooms, build_api
from enclave_app.engines import Sampling, Update, Work
from enclave_app.engines.echo import EchoEngine
from enclave_app.prompts import Template
from enclave_app.training import Progress, Snapshot, Task, Trained, TrainingFailed, Unlearnable
from enclave_app.training.counting import CountingTrainer
from tests.kit.rooms import ALICE, BOB, client_of, error_of, events_of, rooms_in

ROWS = [{"question": f"q {n}", "answer": f"a {n}"} for n in range(10)]
JSONL = "\n".join(json.dumps(row) for row in ROWS).encode()
DONE = "The model has successfully been finetuned using your dataset"


def upload(client: Any, data: bytes = JSONL, name: str = "rows.jsonl", **more: Any) -> str:
    response = client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "fine-tune"}, **more)
    assert response.status_code == 200, response.text
    identity: str = response.json()["id"]
    return identity


def lesson(dataset: str, **changes: Any) -> dict[str, Any]:
    return {
        "dataset_name": dataset,
        "config_name": " ",
        "question_column": "question",
        "answer_column": "answer",
        "number_elements_for_training": 10,
        **changes,
    }


# --- questions --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/test", "/inference"])
def test_an_answer_holds_prompt_and_answer_and_the_new_text_alone(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"input_text": "one two three"}).json()
    assert answer == {
        "text": "one two threeone two three",
        "completion": "one two three",
        "finish_reason": "stop",
    }


def test_max_new_tokens_bounds_the_answer(client: TestClient) -> None:
    answer = client.post("/test", json={"input_text": "one two three", "max_new_tokens": 5}).json()
    assert answer["completion"] == "one t"
    assert answer["finish_reason"] == "length"


class Listening(EchoEngine):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Sampling] = []

    def start(self, key: int, work: Work) -> None:
        self.seen.append(work.sampling)
        super().start(key, work)


def test_sampling_is_the_house_apis_by_default_and_can_be_overridden(tmp_path: Path) -> None:
    engine = Listening()
    with client_of(rooms_in(tmp_path, engine=engine)) as client:
        client.post("/test", json={"input_text": "x"})
        client.post(
            "/test",
            json={
                "input_text": "x",
                "do_sample": True,
                "top_k": 3,
                "top_p": 0.5,
                "temperature": 0.7,
                "seed": 4,
            },
        )
        client.post("/test", json={"input_text": "x", "temperature": 0})
        client.post("/test", json={"input_text": "x", "temperature": 1e-300})
    assert engine.seen[0] == Sampling(max_new_tokens=128, do_sample=True, top_k=10)
    assert engine.seen[1] == Sampling(128, True, 0.7, 3, 0.5, seed=4)
    assert not engine.seen[2].do_sample
    assert not engine.seen[3].do_sample


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, "missing_field", '"input_text" is needed'),
        ({"inptu_text": "secret-canary"}, "unknown_field", 'Did you mean "input_text"'),
        ({"input_text": ""}, "invalid_value", '"input_text"'),
        ({"input_text": "  \n "}, "invalid_value", "blank"),
        ({"input_text": None}, "invalid_value", '"input_text"'),
        ({"input_text": ["secret-canary"]}, "invalid_value", "valid string"),
        ({"input_text": "x", "max_new_tokens": 0}, "invalid_value", "greater than or equal to 1"),
        ({"input_text": "x", "max_new_tokens": -5}, "invalid_value", '"max_new_tokens"'),
        ({"input_text": "x", "max_new_tokens": 10**9}, "invalid_value", "1 to 4096"),
        ({"input_text": "x", "max_new_tokens": 10**30}, "invalid_value", "1 to 4096"),
        ({"input_text": "x", "max_new_tokens": "128"}, "invalid_value", "valid integer"),
        ({"input_text": "x", "max_new_tokens": 1.5}, "invalid_value", "valid integer"),
        ({"input_text": "x", "max_new_tokens": True}, "invalid_value", "valid integer"),
        ({"input_text": "x", "temperature": -1}, "invalid_value", '"temperature"'),
        ({"input_text": "x", "top_p": 0}, "invalid_value", '"top_p"'),
        ({"input_text": "x", "top_k": -1}, "invalid_value", '"top_k"'),
        ({"input_text": "x", "seed": 2**70}, "invalid_value", '"seed"'),
        ({"input_text": "x", "stream": True, "n": 2}, "unknown_field", "The fields are"),
        (["secret-canary"], "invalid_json", "not an object"),
        ("secret-canary", "invalid_json", "not an object"),
    ],
)
def test_bad_questions_get_400_and_words_that_help(
    client: TestClient, body: Any, code: str, words: str
) -> None:
    """S-20: and the words never repeat what was sent."""
    for path in ("/test", "/inference"):
        response = client.post(path, json=body)
        assert words in error_of(response, 400, code)
        assert "secret-canary" not in response.text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"input_text": "\xff"}',
        b'{"input_text": "\\ud800"}',
        b'{"input_text": "x", "temperature": NaN}',
        b'{"input_text": "x", "temperature": 1e999}',
        b"[" * 100_000,
        b'{"input_text":' * 50_000,
    ],
)
def test_bodies_that_are_no_json_get_400(client: TestClient, data: bytes) -> None:
    response = client.post("/test", content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "headers", "words"),
    [
        (b"input_text=x", {"content-type": "application/x-www-form-urlencoded"}, "json={…}"),
        (b"--x--", {"content-type": "multipart/form-data; boundary=x"}, "json={…}"),
        (b"\x1f\x8bcanary", {"content-encoding": "gzip"}, "encoded"),
    ],
)
def test_a_body_in_another_dress_is_told_what_to_wear(
    client: TestClient, data: bytes, headers: dict[str, str], words: str
) -> None:
    assert words in error_of(client.post("/test", content=data, headers=headers), 400, "invalid_json")


def test_a_field_that_is_there_twice_is_refused_and_not_chosen_from(client: TestClient) -> None:
    data = b'{"input_text": "x", "max_new_tokens": 1, "max_new_tokens": 1000}'
    message = error_of(client.post("/test", content=data), 400, "duplicate_field")
    assert '"max_new_tokens" is there twice' in message


def test_a_body_beyond_the_limit_gets_413(client: TestClient) -> None:
    error_of(client.post("/test", content=b" " * (9 << 20)), 413, "body_too_large")


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer short", "Basic YWxpY2U6YWxpY2U6YWxpY2U=", "Bearer é"]
)
def test_without_a_token_there_is_401_that_tells_what_to_send(
    rooms: Rooms, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    with client_of(rooms, {}) as client:
        for method, path in (
            ("POST", "/test"),
            ("GET", "/v1/files"),
            ("POST", "/v1/files"),
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/generate"),
        ):
            response = client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert "Bearer TOKEN" in error_of(response, 401, response.json()["error"]["code"])
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/").json() == {"status": "alive"}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/nothing", "/test/", "/v1/chat"])
def test_other_routes_get_404_in_the_same_shape(client: TestClient, path: str) -> None:
    error_of(client.get(path), 404, "not_found")
    assert "It takes POST." in error_of(client.delete("/test"), 405, "method_not_allowed")


# --- files ------------------------------------------------------------------------------------


def test_a_file_goes_up_is_listed_described_and_gone(client: TestClient) -> None:
    made = client.post(
        "/v1/files", files={"file": ("rows.jsonl", JSONL)}, data={"purpose": "fine-tune"}
    ).json()
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": len(JSONL),
        "created_at": made["created_at"],
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "sha256": hashlib.sha256(JSONL).hexdigest(),
    }
    assert abs(made["created_at"] - time.time()) < 60
    assert client.get("/v1/files").json()["data"] == [made]
    assert client.get(f"/v1/files/{made['id']}").json() == made
    assert client.delete(f"/v1/files/{made['id']}").json() == {
        "id": made["id"],
        "object": "file",
        "deleted": True,
        "blindbox": {"removed": {"files": 1, "bytes": len(JSONL)}},
    }
    assert client.get("/v1/files").json()["data"] == []
    error_of(client.get(f"/v1/files/{made['id']}"), 404, "file_not_found")
    error_of(client.delete(f"/v1/files/{made['id']}"), 404, "file_not_found")


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "file-\0",
        "file-%00",
        "/etc/passwd",
        "file-é",
        "file-．．／etc",
        "current",
        "..",
        "file-" + "a" * 500,
        "FILE-ABC",
        "file-../adapters/current",
    ],
)
def test_no_name_leads_out_of_the_tenants_folder(client: TestClient, name: str) -> None:
    """S-17: not as a file's id, not as dataset_name, in any spelling."""
    path = "/v1/files/" + name.replace("\0", "%00")
    for method in ("GET", "DELETE"):
        response = client.request(method, path)
        assert response.status_code in (404, 405), response.text
    response = client.post("/finetune", json=lesson(name))
    assert 400 <= response.status_code < 500, response.text
    assert "root:" not in response.text


def test_a_file_name_from_outside_is_a_label_and_never_a_path(rooms: Rooms, client: TestClient) -> None:
    """S-17: the client's file name reaches no file system."""
    made = upload(client, name="../../x\u202etxt.jsonl")
    assert client.get(f"/v1/files/{made}").json()["filename"] == ".._.._x_txt.jsonl"
    names = {path.name for path in rooms.store.root.rglob("*") if path.is_file()}
    assert names == {made}


def test_another_tenants_file_and_adapter_do_not_exist_for_me(client: TestClient) -> None:
    """S-22: same ids, another token: not found, and the base model answers."""
    mine = upload(client)
    assert client.post("/finetune", json=lesson(mine)).status_code == 200
    assert client.post("/inference", json={"input_text": "x"}).json()["completion"].startswith("[")
    for response in (
        client.get(f"/v1/files/{mine}", headers=BOB),
        client.delete(f"/v1/files/{mine}", headers=BOB),
        client.post("/finetune", json=lesson(mine), headers=BOB),
    ):
        error_of(response, 404, "file_not_found")
    assert client.get("/v1/files", headers=BOB).json()["data"] == []
    assert client.post("/inference", json={"input_text": "x"}, headers=BOB).json()["completion"] == "x"
    assert client.get(f"/v1/files/{mine}").status_code == 200


def test_an_adapter_kept_in_memory_answers_its_own_tenant_alone(rooms: Rooms, client: TestClient) -> None:
    """S-22: whoever holds the disk puts one tenant's file, or its salt, in another's place; neither opens."""
    assert client.post("/finetune", json=lesson(upload(client))).status_code == 200
    (hers,) = rooms.store.root.glob("*/adapters/*")
    bobs_rows = upload(client, JSONL.replace(b'"q ', b'"x '), headers=BOB)
    assert client.post("/finetune", json=lesson(bobs_rows), headers=BOB).status_code == 200
    (his,) = set(rooms.store.root.glob("*/adapters/*")) - {hers}
    own = his.read_bytes()
    question = {"input_text": "x"}
    answered = client.post("/inference", json=question).json()["completion"]
    assert answered.startswith("[")
    his_own = client.post("/inference", json=question, headers=BOB).json()["completion"]
    for planted in (hers.read_bytes(), hers.read_bytes()[:48] + own[48:], own):
        his.write_bytes(planted)
        # Before and after a restart, which has nothing in memory.
        assert client.post("/inference", json=question, headers=BOB).json()["completion"] == his_own
        with client_of(rooms_in(rooms.store.root), BOB) as again:
            if planted is own:
                assert again.post("/inference", json=question).json()["completion"] == his_own
            else:
                error_of(again.post("/inference", json=question), 500, "damaged_adapter")
    assert his_own not in ("x", answered)


def test_what_is_stored_cannot_be_read_at_rest(rooms: Rooms, client: TestClient) -> None:
    secret = b"canary-0451-canary"
    made = upload(
        client,
        b'{"question": "' + secret * 10 + b'", "answer": "' + secret + b'"}',
        secret.decode() + ".jsonl",
    )
    client.post("/finetune", json=lesson(made, number_elements_for_training=1))
    files = [path for path in rooms.store.root.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {
        *("files", "file-descriptions", "jobs", "job-events", "checkpoints", "adapters", "models"),
    }
    for path in files:
        assert secret not in path.read_bytes()
        assert secret.decode() not in str(path)
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("files", "data", "code"),
    [
        ({"file": ("rows.jsonl", b"")}, {}, "invalid_file_format"),
        ({"file": ("rows.jsonl", b"\x80\x04canary")}, {}, "invalid_file_format"),
        ({"file": ("rows.zip", b"PK\x03\x04canary")}, {}, "invalid_file_format"),
        ({"file": ("rows.parquet", JSONL)}, {}, "invalid_file_format"),
        ({"file": ("rows.csv", "q,a\n".encode("utf-16"))}, {}, "invalid_encoding"),
        ({"file": ("rows.jsonl", JSONL)}, {"purpose": "world-domination"}, "invalid_value"),
        ({"file": ("rows.jsonl", JSONL)}, {"porpose": "fine-tune"}, "unknown_field"),
        ({"data": ("rows.jsonl", JSONL)}, {}, "unknown_field"),
    ],
)
def test_bad_uploads_get_400_and_leave_nothing(
    rooms: Rooms, client: TestClient, files: Any, data: Any, code: str
) -> None:
    error_of(client.post("/v1/files", files=files, data=data), 400, code)
    assert [path for path in rooms.store.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"garbage"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\r\n1,2',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n"),
    ],
)
def test_uploads_that_are_not_whole_multipart_get_400(
    rooms: Rooms, client: TestClient, kind: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """S-20: and what is wrong with them is not logged."""
    with caplog.at_level(logging.INFO):
        response = client.post("/v1/files", content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert "multipart" not in caplog.text  # the parser would name the byte that it did not expect
    assert [path for path in rooms.store.root.rglob("*") if path.is_file()] == []


def test_too_large_and_too_many_files_are_refused(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, max_upload_bytes=1000, max_files=2)) as client:
        upload(client, JSONL[:400].rsplit(b"\n", 1)[0])
        error_of(client.post("/v1/files", files={"file": ("a.csv", b"x" * 1001)}), 413, "file_too_large")
        upload(client, b'{"a": 1}')
        assert "delete one" in error_of(
            client.post("/v1/files", files={"file": ("a.csv", b"x")}), 400, "too_many_files"
        )


def test_a_large_upload_is_stored_whole(rooms: Rooms, client: TestClient) -> None:
    rows = b"".join(
        b'{"question": "%d", "answer": "%s"}\n' % (n, os.urandom(2000).hex().encode()) for n in range(300)
    )
    made = upload(client, rows)
    assert client.get(f"/v1/files/{made}").json()["bytes"] == len(rows)
    result = client.post("/finetune", json=lesson(made, number_elements_for_training=300)).json()
    assert result["rows_used"] == 300


# --- lessons ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/finetune", "/fine_tune", "/finetuning"])
@pytest.mark.parametrize("config", ["", " ", None])
def test_a_fine_tuning_answers_as_the_house_api_does_and_then_inference_differs(
    client: TestClient, path: str, config: str | None
) -> None:
    before = client.post("/inference", json={"input_text": "x"}).json()["completion"]
    response = client.post(path, json=lesson(upload(client), config_name=config, epochs=2, batch_size=8))
    assert response.status_code == 200
    result = response.json()
    assert result["text"] == DONE
    assert result["rows_used"] == 10
    assert result["rows_skipped"] == 0
    assert result["steps"] == 4
    after = client.post("/inference", json={"input_text": "x"}).json()["completion"]
    assert after != before
    assert client.post("/test", json={"input_text": "x"}).json()["completion"] == "x"


def test_asked_for_events_it_tells_its_progress_and_ends_with_the_result(client: TestClient) -> None:
    made = upload(client)
    body = lesson(made, epochs=3, batch_size=8)
    response = client.post("/finetune", json=body, headers={"accept": "text/event-stream"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [name for name, _ in events][-1] == "result"
    assert events[-1][1]["text"] == DONE
    steps = [data for name, data in events if name == "progress" and data["phase"] == "training"]
    assert [data["step"] for data in steps] == list(range(7))
    assert {data["total_steps"] for data in steps} == {6}
    assert set(steps[0]) == {"phase", "step", "total_steps", "loss", "eta_seconds"}


def test_what_a_lesson_leaves_open_suits_so_few_rows(client: TestClient) -> None:
    result = client.post("/finetune", json=lesson(upload(client))).json()
    assert (result["rows_used"], result["steps"]) == (10, 90)
    told = client.get(f"/v1/fine_tuning/jobs/{result['job']}").json()
    recipe = told["blindbox"]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (9, 1, 1e-3)
    assert told["hyperparameters"] == {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 5.0}
    said = {"epochs": 2, "batch_size": 5, "learning_rate": 2e-4}
    result = client.post("/finetune", json=lesson(upload(client), **said)).json()
    recipe = client.get(f"/v1/fine_tuning/jobs/{result['job']}").json()["blindbox"]["recipe"]
    assert {name: recipe[name] for name in said} == said
    assert result["steps"] == 4


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"question_column": "quesiton"},
            "missing_column",
            'Did you mean "question"? The columns are: "question", "answer"',
        ),
        ({"answer_column": "Answer"}, "missing_column", 'Did you mean "answer"'),
        ({"number_elements_for_training": 11}, "too_few_examples", "has 10 rows. Ask for at most 10"),
        ({"number_elements_for_training": 0}, "invalid_value", "greater than or equal to 1"),
        ({"number_elements_for_training": "10"}, "invalid_value", "valid integer"),
        ({"number_elements_for_training": 10**9}, "invalid_value", "1 to 100000"),
        ({"config_name": "wikitext"}, "unknown_config", 'send config_name as ""'),
        ({"epochs": 0}, "invalid_value", '"epochs"'),
        ({"epochs": 10**6}, "invalid_value", "1 to 100"),
        ({"learning_rate": 0}, "invalid_value", '"learning_rate"'),
        ({"learning_rate": 5}, "invalid_value", '"learning_rate"'),
        ({"dataset_nmae": "x"}, "unknown_field", 'Did you mean "dataset_name"'),
        ({"dataset_name": "org/secret"}, "dataset_not_found", "POST /v1/files"),
        ({"dataset_name": "http://127.0.0.1:1/x"}, "dataset_not_found", "fetches nothing from outside"),
        ({"dataset_name": ""}, "invalid_value", '"dataset_name"'),
        ({"question_column": ""}, "invalid_value", '"question_column"'),
    ],
)
def test_bad_lessons_get_400_and_the_previous_adapter_still_answers(
    client: TestClient, changes: dict[str, Any], code: str, words: str
) -> None:
    made = upload(client)
    client.post("/finetune", json=lesson(made))
    before = client.post("/inference", json={"input_text": "x"}).json()
    for headers in ({}, {"accept": "text/event-stream"}):
        response = client.post("/finetune", json=lesson(made) | changes, headers=headers)
        assert words in error_of(response, 400, code)
    assert client.post("/inference", json={"input_text": "x"}).json() == before


def test_a_missing_field_of_a_lesson_is_named(client: TestClient) -> None:
    body = lesson("file-x")
    del body["answer_column"]
    assert '"answer_column" is needed' in error_of(client.post("/finetune", json=body), 400, "missing_field")


def test_null_and_empty_rows_are_counted_and_named_or_skipped_on_request(client: TestClient) -> None:
    rows = [
        *ROWS,
        {"question": None, "answer": "a"},
        {"question": "canary", "answer": " "},
        {"question": "q", "answer": ""},
    ]
    made = upload(client, "\n".join(json.dumps(row) for row in rows).encode())
    body = lesson(made, number_elements_for_training=13)
    response = client.post("/finetune", json=body)
    message = error_of(response, 400, "null_value")
    assert "1 is null (row 11)" in message
    assert "2 are empty or blank (rows 12, 13)" in message
    assert "canary" not in response.text
    result = client.post("/finetune", json=body | {"on_invalid": "skip"}).json()
    assert (result["rows_used"], result["rows_skipped"], result["skipped_rows"]) == (10, 3, [11, 12, 13])


def test_one_column_for_both_is_plain_text(client: TestClient, rooms: Rooms) -> None:
    seen: list[Task] = []

    class Listening(CountingTrainer):
        def train(self, task: Task, stopped: Any) -> Iterator[Progress | Snapshot | Trained]:
            seen.append(task)
            return super().train(task, stopped)

    rooms.foreman.bench.trainer = Listening()
    assert client.post("/finetune", json=lesson(upload(client), answer_column="question")).status_code == 200
    assert seen[0].template == "text"
    assert bytes(list(seen[0].examples[3].ids)[:-1]) == b"q 3"
    assert list(seen[0].examples[3].labels) == list(seen[0].examples[3].ids)


class Slow(CountingTrainer):
    """Trains until it is let go, and says what became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.running = threading.Semaphore(0), threading.Event()
        self.go, self.stopped = threading.Event(), threading.Event()

    def train(self, task: Task, stopped: Any) -> Iterator[Progress | Snapshot | Trained]:
        self.begun.release()
        self.running.set()
        yield Progress("training", 0, 1)
        while not self.go.wait(0.01):
            if stopped():
                self.stopped.set()
                return
        yield from super().train(task, stopped)


@contextmanager
def training(
    client: TestClient, body: dict[str, Any], headers: dict[str, str] = ALICE
) -> Iterator[list[Any]]:
    """A fine-tuning that is going on in another thread."""
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(client.post("/finetune", json=body, headers=headers))
    )
    thread.start()
    try:
        yield answers
    finally:
        thread.join(120)


def test_two_fine_tunings_of_one_tenant_at_once_get_409_and_others_wait_their_turn(tmp_path: Path) -> None:
    """S-25: one wins, the second is told what to do, the first is not harmed; other tenants queue."""
    slow = Slow()
    rooms = rooms_in(tmp_path, trainer=slow, max_jobs_waiting=1)
    with client_of(rooms) as client:
        mine, bobs = upload(client), upload(client, headers=BOB)
        carol = {"authorization": "Bearer carol-carol-carol-carol"}
        carols = upload(client, headers=carol)
        with training(client, lesson(mine)) as first:
            assert slow.begun.acquire(timeout=60)
            for headers in ({}, {"accept": "text/event-stream"}):
                response = client.post("/finetune", json=lesson(mine), headers=headers)
                assert "Wait until it has answered" in error_of(response, 409, "training_in_progress")
                assert response.headers["x-should-retry"] == "false"
            with training(client, lesson(bobs), BOB) as second:
                deadline = time.monotonic() + 60
                while len(rooms.foreman.line.live) < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
                full = client.post("/finetune", json=lesson(carols), headers=carol)
                error_of(full, 503, "training_queue_full")
                assert int(full.headers["retry-after"]) > 0
                assert client.get("/").json() == {"status": "alive"}
                assert client.post("/inference", json={"input_text": "x"}).json()["completion"] == "x"
                slow.go.set()
        assert [answer.status_code for answer in first + second] == [200, 200]
        assert client.post("/finetune", json=lesson(carols), headers=carol).status_code == 200


class Failing(CountingTrainer):
    """Fails in the given way after two steps."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def train(self, task: Task, stopped: Any) -> Iterator[Progress | Snapshot | Trained]:
        yield Progress("training", 1, 9)
        yield Progress("training", 2, 9)
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unlearnable("Use a smaller learning_rate."), 400, "training_failed"),
        (TrainingFailed("Use fewer rows."), 500, "training_failed"),
        (ValueError("row-canary"), 500, "internal_error"),
    ],
)
def test_a_failed_training_leaves_the_previous_adapter_answering(
    rooms: Rooms,
    client: TestClient,
    error: BaseException,
    status: int,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """S-20: also, what the failure says of the rows is told to nobody."""
    made = upload(client)
    client.post("/finetune", json=lesson(made))
    before = client.post("/inference", json={"input_text": "x"}).json()
    rooms.foreman.bench.trainer = Failing(error)
    with caplog.at_level(logging.DEBUG):
        plain = client.post("/finetune", json=lesson(made))
        streamed = client.post("/finetune", json=lesson(made), headers={"accept": "text/event-stream"})
    error_of(plain, status, code)
    name, data = events_of(streamed.text)[-1]
    assert (name, data["error"]["code"]) == ("error", code)
    assert "canary" not in plain.text + streamed.text + caplog.text
    assert client.post("/inference", json={"input_text": "x"}).json() == before
    rooms.foreman.bench.trainer = CountingTrainer()
    assert client.post("/finetune", json=lesson(made, epochs=4)).status_code == 200
    assert client.post("/inference", json={"input_text": "x"}).json() != before


def scope_of(path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()]
        + [(b"content-type", b"application/json")],
        "client": None,
        "server": ("enclave", 80),
    }


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_caller_who_hangs_up_cancels_the_training_and_may_begin_anew(tmp_path: Path, accept: str) -> None:
    slow = Slow()
    rooms = rooms_in(tmp_path, trainer=slow)
    app = build_api(rooms)
    made = upload(TestClient(app, headers=ALICE))
    body = json.dumps(lesson(made)).encode()

    async def hang_up_in_the_middle() -> None:
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.to_thread(slow.running.wait, 60)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        await asyncio.wait_for(
            app(scope_of("/finetune", body, ALICE | {"accept": accept}), receive, send), 120
        )

    asyncio.run(hang_up_in_the_middle())
    assert slow.stopped.wait(60)
    with client_of(rooms) as client:
        assert client.post("/inference", json={"input_text": "x"}).json()["completion"] == "x"
        slow.go.set()
        assert client.post("/finetune", json=lesson(made)).status_code == 200


# --- the loop, the log, the rest --------------------------------------------------------------


class Thinking(EchoEngine):
    """Thinks until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    def step(self) -> list[Update]:
        self.begun.set()
        return super().step() if self.go.wait(0.01) else []

    def cancel(self, key: int) -> None:
        super().cancel(key)
        self.cancelled.set()


def test_alive_is_answered_while_a_model_generates_and_waiting_has_a_limit(tmp_path: Path) -> None:
    engine = Thinking()
    rooms = rooms_in(tmp_path, engine=engine, max_waiting=1, max_waiting_each=1)
    app = build_api(rooms)

    async def walk() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://enclave", headers=ALICE) as client:
            asked = [asyncio.create_task(client.post("/test", json={"input_text": "x"})) for _ in range(2)]
            assert await asyncio.to_thread(engine.begun.wait, 60)
            assert (await client.get("/")).json() == {"status": "alive"}
            assert not any(task.done() for task in asked)
            engine.go.set()
            assert [(await task).status_code for task in asked] == [200, 200]
        rooms.desk.close()

    asyncio.run(walk())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/test", {"input_text": "x"}),
        ("/generate", {"prompt_config": {"instruction": "x"}}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True, "n": 2}),
    ],
)
def test_a_caller_who_hangs_up_stops_the_model(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """S-11: before the first token, on every route that asks a model."""
    engine = Thinking()
    rooms = rooms_in(tmp_path, engine=engine)
    app = build_api(rooms)

    async def hang_up() -> None:
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
            await asyncio.to_thread(engine.begun.wait, 10)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            raise AssertionError("nobody is there to be answered")

        await asyncio.wait_for(app(scope_of(path, b"", ALICE), receive, send), 120)
        assert await asyncio.to_thread(engine.cancelled.wait, 10)
        rooms.desk.close()

    asyncio.run(hang_up())


class Broken(EchoEngine):
    """Raises an error whose text quotes the prompt."""

    def start(self, key: int, work: Work) -> None:
        raise RuntimeError(f"cannot process {bytes(work.ids).decode()}")


def test_a_broken_engine_is_a_constant_500_that_quotes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """S-20: neither the answer nor the log repeats the prompt that broke the engine."""
    with client_of(rooms_in(tmp_path, engine=Broken())) as client, caplog.at_level(logging.DEBUG):
        response = client.post("/test", json={"input_text": "canary-7"})
    assert response.status_code in (500, 503)
    assert response.json()["error"]["type"] == "server_error"
    printed = capfd.readouterr()
    assert "canary" not in response.text + caplog.text + printed.out + printed.err


def test_an_unexpected_error_is_a_constant_500_that_quotes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """S-20: of an error that nobody foresaw, its type and place are logged, and its words nowhere."""

    def fails(self: Template, tokenizer: Any, question: str) -> list[int]:
        raise RuntimeError(f"cannot process {question}")

    monkeypatch.setattr(Template, "prompt", fails)
    with client_of(rooms_in(tmp_path)) as client, caplog.at_level(logging.DEBUG):
        response = client.post("/test", json={"input_text": "canary-7"})
    error_of(response, 500, "internal_error")
    assert response.json()["error"]["type"] == "server_error"
    assert "RuntimeError at test_api_house.py:" in caplog.text  # where it was raised
    printed = capfd.readouterr()
    assert "canary" not in response.text + caplog.text + printed.out + printed.err


def test_no_prompt_answer_row_name_or_token_is_logged_over_all_routes_and_errors(
    client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """S-20: canaries in every place a caller can write to."""
    canary = "canary-0451"
    token = {"authorization": f"Bearer {canary}-token-token"}
    with caplog.at_level(logging.DEBUG):
        rows = json.dumps({f"{canary}-q": canary, "answer": canary}).encode() + b"\n"
        made = upload(client, rows, f"{canary}.jsonl", headers=token)
        good = lesson(made, number_elements_for_training=1, question_column=f"{canary}-q")
        for body in (
            good,
            good | {"question_column": canary},
            good | {canary: canary},
            good | {"dataset_name": canary},
        ):
            for accept in ("application/json", "text/event-stream"):
                client.post("/finetune", json=body, headers=token | {"accept": accept})
        questions: list[Any] = [{"input_text": canary}, {canary: canary}, {"input_text": [canary]}, [canary]]
        for path in ("/test", "/inference"):
            for question in questions:
                client.post(path, json=question, headers=token)
        said = {"messages": [{"role": "user", "content": canary, "name": canary}], "user": canary}
        for more in (
            {},
            {"stream": True},
            {"model": canary},
            {"stop": [canary]},
            {canary: 1},
            {"seed": canary},
        ):
            client.post("/v1/chat/completions", json=said | more, headers=token)
            client.post("/v1/completions", json={"prompt": canary, "user": canary} | more, headers=token)
        client.post("/generate", json={"prompt_config": {"instruction": canary}}, headers=token)
        client.post("/generate", json={"prompt_config": {canary: canary}}, headers=token)
        client.get(f"/v1/models/{canary}", headers=token)
        client.post("/test", content=canary.encode(), headers=token)
        client.post(
            "/v1/files", files={"file": (f"{canary}.zip", b"PK\x03\x04" + canary.encode())}, headers=token
        )
        client.get(f"/{canary}", headers=token)
        client.get(f"/v1/files/{canary}", headers=token)
        client.delete(f"/v1/files/{made}", headers=token)
    printed = capfd.readouterr()
    # httpx is the client of this test; its lines name the routes it asked for
    logged = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("httpx")
    )
    assert canary not in logged + printed.out + printed.err


def test_telemetry_cannot_be_switched_on_by_the_environment(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-20: FastAPI's OpenTelemetry hooks stay off, with a provider in place and the switch thrown."""
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, TracerProvider

    begun: list[str] = []

    class Spying(Tracer):
        def start_span(self, name: str, *args: Any, **kwargs: Any) -> Any:
            begun.append(name)
            return NonRecordingSpan(SpanContext(1, 1, False, TraceFlags(1)))

        def start_as_current_span(self, name: str, *args: Any, **kwargs: Any) -> Any:
            begun.append(name)
            return trace.use_span(NonRecordingSpan(SpanContext(1, 1, False, TraceFlags(1))))

    class Provider(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
            return Spying()

    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    monkeypatch.setattr(trace, "get_tracer", lambda *args, **kwargs: Spying())

    from fastapi import FastAPI

    loud = FastAPI()
    TestClient(loud).get("/nothing")
    assert begun, "the spy saw nothing of an app whose telemetry is on: it proves nothing"
    begun.clear()

    app = build_api(rooms)
    assert not app._native_telemetry.enabled()
    with TestClient(app, headers=ALICE) as client:
        client.post("/test", json={"input_text": "x"})
        client.post("/test", json={"nothing": "x"})
    assert begun == []


def test_settings_bound_what_a_caller_may_ask_for(tmp_path: Path) -> None:
    rooms = rooms_in(tmp_path, max_new_tokens=5, max_epochs=2)
    with client_of(rooms) as client:
        too_many = client.post("/test", json={"input_text": "x", "max_new_tokens": 6})
        assert "1 to 5" in error_of(too_many, 400, "invalid_value", "max_new_tokens")
        assert client.post("/test", json={"input_text": "x", "max_new_tokens": 5}).status_code == 200
        unsaid = client.post("/test", json={"input_text": "abcdefgh"}).json()
        assert (unsaid["completion"], unsaid["finish_reason"]) == ("abcde", "length")
        assert "1 to 2" in error_of(
            client.post("/finetune", json=lesson("file-x", epochs=3)), 400, "invalid_value"
        )


def test_the_adapters_bytes_on_disk_may_rot_and_the_answer_says_what_to_do(
    rooms: Rooms, client: TestClient
) -> None:
    made = upload(client)
    client.post("/finetune", json=lesson(made))
    (adapter,) = rooms.store.root.glob("*/adapters/*")
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    with client_of(rooms_in(rooms.store.root)) as again:  # what is in memory is not read again
        message = error_of(again.post("/inference", json={"input_text": "x"}), 500, "damaged_adapter")
        assert "then fine-tune again" in message
        assert again.post("/finetune", json=lesson(made)).status_code == 200
        assert again.post("/inference", json={"input_text": "x"}).status_code == 200


def test_fields_in_parquet_and_csv_serve_as_well(client: TestClient) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    csv = b"question,answer\n" + b"".join(b'"q, %d",a\n' % n for n in range(10))
    for name, data in (
        ("rows.parquet", sink.getvalue()),
        ("rows.csv", csv),
        ("rows.json", json.dumps(ROWS).encode()),
    ):
        assert client.post("/finetune", json=lesson(upload(client, data, name))).json()["rows_used"] == 10
