"""`/v1/fine_tuning`: shapes, wishes, refusals, pages, streams; and everything of a tenant at once."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from starlette.testclient import TestClient

from blindbox_attestation.receipt import ReceiptFile
from enclave_app.api import Rooms
from enclave_app.main import Enclave
from enclave_app.training.counting import CountingTrainer
from tests.kit.app import echo_gateway
from tests.kit.jobs import ANN, FILE, put_rows
from tests.kit.jobs import over as jobs_over
from tests.kit.peer import call, seal
from tests.kit.rooms import BOB, client_of, error_of, rooms_in

ROWS = [{"question": f"q {n}", "answer": f"a {n}"} for n in range(20)]
JSONL = "\n".join(json.dumps(row) for row in ROWS).encode()
JOBS = "/v1/fine_tuning/jobs"


def upload(client: Any, data: bytes = JSONL, **more: Any) -> str:
    files = {"file": ("rows.jsonl", data)}
    response = client.post("/v1/files", files=files, data={"purpose": "fine-tune"}, **more)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def wish(file: str, **more: Any) -> dict[str, Any]:
    return {"model": "org/echo", "training_file": file, **more}


def over(client: Any, job: str, **more: Any) -> dict[str, Any]:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        told: dict[str, Any] = client.get(f"{JOBS}/{job}", **more).json()
        if told["status"] not in ("validating_files", "queued", "running"):
            return told
        time.sleep(0.01)
    raise AssertionError(told)


def done(client: Any, file: str, **more: Any) -> dict[str, Any]:
    response = client.post(JOBS, json=wish(file, **more))
    assert response.status_code == 200, response.text
    told = over(client, response.json()["id"])
    assert told["status"] == "succeeded", told
    return told


# --- shapes -----------------------------------------------------------------------------------


def test_a_job_is_what_the_openai_package_expects_from_its_first_word_to_its_last(client: TestClient) -> None:
    file = upload(client)
    first = client.post(
        JOBS,
        json=wish(
            file,
            suffix="mine",
            seed=7,
            metadata={"a": "b"},
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1}
                },
            },
        ),
    ).json()
    assert first["status"] == "validating_files"
    FineTuningJob.model_validate(first, strict=True)
    told = over(client, first["id"])
    FineTuningJob.model_validate(told, strict=True)
    assert told["fine_tuned_model"].startswith("ft:org/echo:mine:")
    assert (told["seed"], told["metadata"], told["user_provided_suffix"]) == (7, {"a": "b"}, "mine")
    assert told["hyperparameters"] == {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0}
    own = told["blindbox"]
    assert (own["phase"], own["progress"]["step"], own["progress"]["percent"]) == ("done", 6, 100.0)
    assert own["recipe"]["epochs"] == 2
    assert own["data"]["rows_used"] == 20
    assert own["serving"]["equal"] == own["serving"]["tokens"] > 0
    assert told["trained_tokens"] > 0
    answer = client.post("/v1/completions", json={"model": told["fine_tuned_model"], "prompt": "x"})
    assert answer.json()["choices"][0]["text"].startswith("[")
    events = client.get(f"{JOBS}/{told['id']}/events").json()
    for event in events["data"]:
        FineTuningJobEvent.model_validate(event, strict=True)
    kept = client.get(f"{JOBS}/{told['id']}/checkpoints").json()["data"]
    assert [each["step_number"] for each in kept] == [6, 3]
    for each in kept:
        FineTuningJobCheckpoint.model_validate(each, strict=True)
    assert kept[1]["fine_tuned_model_checkpoint"] == f"{told['fine_tuned_model']}:ckpt-step-3"


@pytest.mark.parametrize("said", [None, "auto"])
def test_what_is_left_open_is_auto_until_the_rows_are_read_and_told_from_then_on(
    client: TestClient, said: str | None
) -> None:
    three = ("n_epochs", "batch_size", "learning_rate_multiplier")
    file = upload(client)
    body = wish(file, **({} if said is None else {"hyperparameters": dict.fromkeys(three, said)}))
    first = client.post(JOBS, json=body).json()
    FineTuningJob.model_validate(first, strict=True)
    assert first["hyperparameters"] == dict.fromkeys(three, "auto")
    recipe = first["blindbox"]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (None, None, None)
    assert (recipe["rank"], recipe["most_tokens"]) == (16, 512)

    told = over(client, first["id"])
    FineTuningJob.model_validate(told, strict=True)
    decided = {"n_epochs": 9, "batch_size": 2, "learning_rate_multiplier": 5.0}
    assert told["hyperparameters"] == told["method"]["supervised"]["hyperparameters"] == decided
    recipe = told["blindbox"]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (9, 2, 1e-3)
    assert told["blindbox"]["progress"]["total_steps"] == 90
    events = client.get(f"{JOBS}/{told['id']}/events", params={"stream": "true"}).text
    words = "20 rows are ready, to be read 9 times, 2 at a time, at a learning rate of 0.001."
    assert words in events
    assert client.post("/v1/fine_tuning/preview", json=body).json()["recipe"] == recipe


def test_what_is_held_back_does_not_count_among_the_rows_that_decide(client: TestClient) -> None:
    told = done(client, upload(client), blindbox={"validation_split": 0.5})
    assert told["blindbox"]["data"]["rows_used"] == 10
    assert told["hyperparameters"] == {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 5.0}


def test_what_the_operator_allows_and_the_caller_asks_for_bound_what_is_left_open(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, max_epochs=4)) as client:
        file = upload(client)
        for own, epochs, steps in (({}, 4, 40), ({"steps": 15}, 2, 15), ({"steps": 99}, 4, 40)):
            told = done(client, file, blindbox=own)["blindbox"]
            assert (told["recipe"]["epochs"], told["progress"]["total_steps"]) == (epochs, steps)
            preview = client.post("/v1/fine_tuning/preview", json=wish(file, blindbox=own)).json()
            assert preview["recipe"] == told["recipe"]


def test_metrics_are_the_curve(client: TestClient) -> None:
    told = done(client, upload(client), blindbox={"validation_split": 0.2, "epochs": 4, "batch_size": 8})
    metrics = client.get(f"{JOBS}/{told['id']}/metrics").json()
    assert metrics["object"] == "list"
    assert [row["step"] for row in metrics["data"]] == list(range(1, 9))
    names = {"step", "loss", "validation_loss", "learning_rate", "tokens_per_second", "epoch", "time"}
    assert all(set(row) == names for row in metrics["data"])
    assert [row["step"] for row in metrics["data"] if row["validation_loss"] is not None] == [2, 4, 6, 8]


def test_events_are_listed_newest_first_and_streamed_oldest_first(client: TestClient) -> None:
    told = done(client, upload(client))
    path = f"{JOBS}/{told['id']}/events"
    found: list[Any] = []
    after = None
    while True:
        page = client.get(path, params={"limit": 4} | ({"after": after} if after else {})).json()
        found += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert found[0]["message"] == "The job succeeded."
    streamed = [line for line in client.get(f"{path}?stream=true").text.split("\n\n") if line]
    assert streamed[-1] == "data: [DONE]"
    assert [json.loads(line[6:]) for line in streamed[:-1]] == found[::-1]
    rest = client.get(path, params={"stream": "true", "after": found[2]["id"]}).text
    assert [json.loads(line[6:])["id"] for line in rest.split("\n\n")[:2]] == [found[1]["id"], found[0]["id"]]


def test_a_stream_tells_events_as_they_come(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, trainer=CountingTrainer(0.02))) as client:
        body = wish(upload(client), blindbox={"epochs": 3, "batch_size": 8})
        job = client.post(JOBS, json=body).json()["id"]
        streamed = client.get(f"{JOBS}/{job}/events?stream=true").text
        messages = [json.loads(line[6:])["message"] for line in streamed.split("\n\n") if "{" in line]
    assert messages[0].startswith("The job was created")
    assert messages[-1] == "The job succeeded."
    assert sum(message.startswith("Step ") for message in messages) == 9


def test_jobs_come_in_pages_and_by_their_metadata(client: TestClient) -> None:
    file = upload(client)
    ids = [done(client, file, metadata={"n": str(n % 2)})["id"] for n in range(5)]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:2:-1], True)
    second = client.get(JOBS, params={"limit": 3, "after": first["last_id"]}).json()
    assert ([job["id"] for job in second["data"]], second["has_more"]) == (ids[2::-1], False)
    some = client.get(JOBS, params={"metadata[n]": "1"}).json()["data"]
    assert [job["id"] for job in some] == [ids[3], ids[1]]
    assert client.get(JOBS, headers=BOB).json()["data"] == []
    error_of(client.get(JOBS, params={"after": "ftjob-x"}), 404, "not_found", "after")
    for params, param in (({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"limit": "999"}, "limit")):
        error_of(client.get(JOBS, params=params), 400, "invalid_value", param)
    error_of(client.get(JOBS, params={"limt": "1"}), 400, "unknown_field", "limt")
    error_of(client.get(f"{JOBS}/{ids[0]}/events", params={"stream": "maybe"}), 400, "invalid_value")


def test_a_preview_tells_of_the_rows_and_starts_nothing(client: TestClient) -> None:
    body = wish(upload(client), blindbox={"number_elements_for_training": 5})
    told = client.post("/v1/fine_tuning/preview", json=body).json()
    assert told["object"] == "fine_tuning.preview"
    assert told["data"]["rows_used"] == 5
    assert len(told["data"]["samples"]) == 3
    assert told["recipe"]["method"] == "lora"
    assert client.get(JOBS).json()["data"] == []


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "status", "code", "param", "words"),
    [
        ({"modle": "x"}, 400, "unknown_field", "modle", 'Did you mean "model"'),
        ({"model": "org/ecko"}, 404, "model_not_found", "model", 'Did you mean "org/echo"'),
        ({"model": "ft:org/echo:x:0123456789ab"}, 404, "model_not_found", "model", ""),
        ({"training_file": "file-none"}, 404, "file_not_found", "training_file", "POST /v1/files"),
        ({"training_file": "../etc/passwd"}, 404, "file_not_found", "training_file", ""),
        ({"validation_file": "file-none"}, 404, "file_not_found", "validation_file", ""),
        ({"integrations": [{"type": "wandb"}]}, 400, "unsupported_field", "integrations", "nothing leaves"),
        ({"method": {"type": "dpo"}}, 400, "unsupported_value", "method.type", "supervised"),
        ({"suffix": "a:b"}, 400, "invalid_value", "suffix", "letters"),
        ({"suffix": "a" * 65}, 400, "invalid_value", "suffix", ""),
        ({"seed": -1}, 400, "invalid_value", "seed", ""),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "invalid_value", "metadata", "16 pairs"),
        ({"metadata": {"a" * 65: "b"}}, 400, "invalid_value", "metadata", "64"),
        ({"metadata": {"a": "b" * 513}}, 400, "invalid_value", "metadata", "512"),
        ({"metadata": {"a": 1}}, 400, "invalid_value", None, ""),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "invalid_value", None, ""),
        ({"hyperparameters": {"n_epochs": 10**6}}, 400, "invalid_value", "hyperparameters.n_epochs", "1 to"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e9}},
            400,
            "invalid_value",
            "hyperparameters.learning_rate_multiplier",
            "up to 1",
        ),
        ({"blindbox": {"lerning_rate": 1}}, 400, "unknown_field", None, 'Did you mean "learning_rate"'),
        ({"blindbox": {"learning_rate": 10}}, 400, "invalid_value", "blindbox.learning_rate", "try 0.0002"),
        ({"blindbox": {"learning_rate": 0}}, 400, "invalid_value", "blindbox.learning_rate", "is 0"),
        ({"blindbox": {"max_length": 7}}, 400, "invalid_value", "blindbox.max_length", "8 to 512"),
        ({"blindbox": {"batch_size": 1000}}, 400, "invalid_value", "blindbox.batch_size", "1 to 256"),
        ({"blindbox": {"method": "qlra"}}, 400, "invalid_value", None, ""),
        ({"blindbox": {"lora": {"rank": 4}}}, 400, "unknown_field", None, "r"),
        (
            {"blindbox": {"lora": {"target_modules": ["../x"]}}},
            400,
            "invalid_value",
            "blindbox.lora.target_modules",
            "names of layers",
        ),
        ({"blindbox": {"method": "full", "lora": {}}}, 400, "invalid_value", "blindbox.lora", ""),
        ({"blindbox": {"config_name": "de"}}, 400, "unknown_config", "blindbox.config_name", ""),
        (
            {"blindbox": {"from_adapter": "ft:org/echo:x:0123456789ab"}},
            404,
            "model_not_found",
            "blindbox.from_adapter",
            "",
        ),
        (
            {"blindbox": {"early_stopping": 2, "validation_split": 0}},
            400,
            "invalid_value",
            "blindbox.early_stopping",
            "validation loss",
        ),
    ],
)
def test_bad_wishes_are_refused_by_name_and_make_nothing(
    rooms: Rooms,
    client: TestClient,
    more: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    words: str,
) -> None:
    """S-17: also names that lead out of the tenant's folder."""
    body = wish(upload(client)) | more
    for path in (JOBS, "/v1/fine_tuning/preview"):
        assert words in error_of(client.post(path, json=body), status, code, param)
    assert client.get(JOBS).json()["data"] == []
    assert list(rooms.store.root.glob("*/jobs/*")) == []


@pytest.mark.parametrize(
    ("own", "code", "param", "words"),
    [
        ({"question_column": "quesiton"}, "missing_column", "blindbox.question_column", 'mean "question"'),
        ({"question_column": "question", "answer_column": "anwser"}, "missing_column", None, '"answer"'),
        ({"number_elements_for_training": 21}, "too_few_examples", None, "20"),
    ],
)
def test_what_is_wrong_with_the_rows_fails_the_job_and_the_preview(
    client: TestClient, own: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    own = {"answer_column": "answer"} | own if "question_column" in own else own
    body = wish(upload(client), blindbox=own)
    assert words in error_of(client.post("/v1/fine_tuning/preview", json=body), 400, code, param)
    told = over(client, client.post(JOBS, json=body).json()["id"])
    assert told["status"] == "failed"
    assert told["error"]["code"] == code
    assert words in told["error"]["message"]
    assert told["fine_tuned_model"] is None
    assert client.get(f"{JOBS}/{told['id']}/events").json()["data"][0]["level"] == "error"


def test_somebody_elses_file_model_or_job_is_not_there(client: TestClient) -> None:
    """S-22: the same words as for what nobody has."""
    file = upload(client)
    told = done(client, file)
    assert client.post(JOBS, json=wish(file), headers=BOB).json() == (
        client.post(JOBS, json=wish("file-none"), headers=BOB).json()
    )
    bobs = upload(client, headers=BOB)
    body = wish(bobs, blindbox={"from_adapter": told["fine_tuned_model"]})
    error_of(client.post(JOBS, json=body, headers=BOB), 404, "model_not_found")
    nobodys = "ftjob-" + "0" * 32
    for method, end in (
        *(
            ("GET", end)
            for end in ("", "/events", "/events?stream=true", "/checkpoints", "/metrics", "/receipt")
        ),
        *(("POST", end) for end in ("/cancel", "/pause", "/resume")),
        ("DELETE", ""),
    ):
        theirs = client.request(method, f"{JOBS}/{told['id']}{end}", headers=BOB)
        error_of(theirs, 404, "job_not_found")
        assert theirs.json() == client.request(method, f"{JOBS}/{nobodys}{end}", headers=BOB).json()


# --- keys, stops, ends ------------------------------------------------------------------------


def test_a_repeated_create_with_a_key_is_one_job_even_when_its_file_is_gone(client: TestClient) -> None:
    """S-1: a client that did not hear the answer sends it again."""
    file = upload(client)
    key = {"idempotency-key": "one and the same".replace(" ", "-")}
    made = [client.post(JOBS, json=wish(file), headers=key).json()["id"] for _ in range(3)]
    over(client, made[0])
    client.delete(f"/v1/files/{file}")
    made.append(client.post(JOBS, json=wish(file), headers=key).json()["id"])
    assert len(set(made)) == 1
    other = client.post(JOBS, json=wish(file, seed=1), headers=key)
    error_of(other, 409, "idempotency_key_reused", "Idempotency-Key")
    assert other.headers["x-should-retry"] == "false"
    error_of(client.post(JOBS, json=wish(file), headers={"idempotency-key": "a b"}), 400, "invalid_value")


def test_a_sealed_create_that_is_replayed_makes_one_job_without_any_key(tmp_path: Path) -> None:
    """S-1: the captured request is sent 30 times at once; the enclave opens it once."""
    gateway = echo_gateway(tmp_path, max_jobs_each=50)
    assert isinstance(gateway, Enclave)
    put_rows(gateway._rooms.store)
    body = json.dumps({"model": "echo", "training_file": FILE}).encode()
    fields = ((b"authorization", b"Bearer ann-ann-ann-ann-ann"), (b"content-type", b"application/json"))

    async def replay() -> None:
        sealed = seal(gateway.identity, b"POST", JOBS.encode(), body, fields)
        outers = await asyncio.gather(*(call(gateway, sealed.body) for _ in range(30)))
        assert Counter(outer.status for outer in outers) == {200: 1, 400: 29}
        answer = sealed.open(next(outer.body for outer in outers if outer.status == 200))
        assert answer.json["object"] == "fine_tuning.job", answer.json
        foreman = gateway._rooms.foreman
        (job,) = (await foreman.list(ANN)).jobs
        assert job.id == answer.json["id"]
        job = await jobs_over(foreman, ANN, job.id)
        assert (job.status, job.receipt) == ("succeeded", True)
        signed = ReceiptFile.parse(await foreman.receipt(ANN, job.id)).receipt.recipe
        # Of 40 rows; what was left open is in it as it was decided.
        assert (signed["epochs"], signed["batch_size"], signed["learning_rate"]) == (9, 4, "0.001")
        gateway.desk.close()
        await asyncio.sleep(0.02)

    asyncio.run(replay())


def test_pause_resume_cancel_and_delete_answer_with_the_job(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, trainer=CountingTrainer(0.2))) as client:
        file = upload(client)
        job = client.post(JOBS, json=wish(file, blindbox={"epochs": 100})).json()["id"]
        while client.get(f"{JOBS}/{job}").json()["blindbox"]["progress"]["step"] in (None, 0):
            time.sleep(0.01)
        told = client.get(f"{JOBS}/{job}").json()
        assert told["status"] == "running"
        assert told["estimated_finish"] >= told["created_at"]
        error_of(client.delete(f"{JOBS}/{job}"), 409, "job_in_progress")
        paused = client.post(f"{JOBS}/{job}/pause").json()
        assert (paused["status"], paused["blindbox"]["phase"]) == ("paused", "paused")
        assert client.post(f"{JOBS}/{job}/resume").json()["status"] == "queued"
        error_of(client.post(f"{JOBS}/{job}/resume"), 400, "wrong_status")
        assert client.post(f"{JOBS}/{job}/cancel").json()["status"] == "cancelled"
        error_of(client.post(f"{JOBS}/{job}/cancel"), 400, "wrong_status")
        error_of(client.get(f"{JOBS}/{job}/receipt"), 404, "receipt_not_found")
        gone = client.delete(f"{JOBS}/{job}").json()
        assert (gone["id"], gone["object"], gone["deleted"]) == (job, "fine_tuning.job", True)
        assert gone["blindbox"]["removed"]["jobs"] == 1
        error_of(client.get(f"{JOBS}/{job}"), 404, "job_not_found")


def test_a_job_may_go_on_from_a_model_or_a_checkpoint_of_the_callers(client: TestClient) -> None:
    file = upload(client)
    first = done(client, file)
    kept = client.get(f"{JOBS}/{first['id']}/checkpoints").json()["data"][-1]["fine_tuned_model_checkpoint"]
    fresh = first["blindbox"]["adapter"]
    seen = {fresh}
    for more in (
        {"model": first["fine_tuned_model"]},
        {"blindbox": {"from_adapter": kept}},
    ):
        told = over(client, client.post(JOBS, json=wish(file) | more).json()["id"])
        assert told["status"] == "succeeded", told["error"]
        seen.add(told["blindbox"]["adapter"])
    assert len(seen) == 3


def test_everything_of_the_caller_goes_at_once_and_they_are_told_what_it_was(
    rooms: Rooms, client: TestClient
) -> None:
    told = done(client, upload(client), blindbox={"epochs": 3})
    bobs = upload(client, headers=BOB)
    removed = client.delete("/v1/blindbox/tenant").json()
    assert (removed["object"], removed["deleted"]) == ("blindbox.tenant", True)
    counts = removed["removed"]
    assert (counts["jobs"], counts["models"], counts["files"], counts["checkpoints"]) == (1, 1, 2, 3)
    error_of(client.get(f"{JOBS}/{told['id']}"), 404, "job_not_found")
    error_of(client.get(f"/v1/models/{told['fine_tuned_model']}"), 404, "model_not_found")
    assert client.post("/inference", json={"input_text": "x"}).json()["completion"] == "x"
    assert {path.name for path in rooms.store.root.rglob("*") if path.is_file()} == {bobs}
    assert done(client, upload(client))["status"] == "succeeded"


def test_no_word_of_a_job_is_logged_or_lies_readable_on_the_disk(
    rooms: Rooms, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """S-20, S-21: rows, names and metadata, over a job that succeeds and one that fails."""
    canary = "canary-0451"
    rows = "\n".join(json.dumps({f"{canary}-q": f"{canary} {n}", "answer": canary}) for n in range(9))
    with caplog.at_level(logging.DEBUG):
        file = upload(client, rows.encode())
        own = {"question_column": f"{canary}-q", "answer_column": "answer"}
        done(client, file, suffix=canary, metadata={canary: canary}, blindbox=own)
        body = wish(file, blindbox=own | {"answer_column": canary})
        assert over(client, client.post(JOBS, json=body).json()["id"])["status"] == "failed"
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert canary not in "\n".join(lines)
    for path in rooms.store.root.rglob("*"):
        assert canary not in str(path)
        assert not path.is_file() or canary.encode() not in path.read_bytes()
