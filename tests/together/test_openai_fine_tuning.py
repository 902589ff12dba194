"""The `openai` package's files, uploads and fine-tuning jobs against the whole enclave, both ways to it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

import blindbox
from enclave_app.training.counting import CountingTrainer
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.openai_ways import POLICY, WAYS, as_blindbox

ROWS = [{"question": f"What is clause {n}?", "answer": f"Clause {n} is short."} for n in range(24)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CHATS = "".join(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "You know the handbook."},
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
    )
    + "\n"
    for row in ROWS
).encode()

pytestmark = [
    pytest.mark.usefixtures("own_home"),
    pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning"),
]


@pytest.fixture(scope="module")
def slow() -> Iterator[RunningEnclave]:
    with whole_app(trainer=CountingTrainer(0.1)) as one:
        yield one


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def patient(request: pytest.FixtureRequest, slow: RunningEnclave) -> Iterator[openai.OpenAI]:
    with request.param(slow.origin) as one:
        yield one


def uploaded(client: openai.OpenAI, data: bytes = DATA) -> str:
    return client.files.create(file=("rows.jsonl", data), purpose="fine-tune").id


def until(client: openai.OpenAI, job: str, there: Callable[[Any], bool], most: int = 2000) -> Any:
    """Ask where it stands until it stands there; each question takes some milliseconds."""
    for _ in range(most):
        told = client.fine_tuning.jobs.retrieve(job)
        if there(told):
            return told
    raise AssertionError(f"the job is {told.status}")


def over(job: Any) -> bool:
    return job.status in {"succeeded", "failed", "cancelled"}


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_goes_up_is_listed_comes_back_and_goes(client: openai.OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", DATA), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == (
        "file",
        len(DATA),
        "rows.jsonl",
        "fine-tune",
    )
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert [one.id for one in client.files.list(purpose="fine-tune")] == [file.id]
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == DATA
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.retrieve(file.id)
    assert gone.value.code == "file_not_found"


def test_a_file_goes_up_in_parts(client: openai.OpenAI) -> None:
    file = client.uploads.upload_file_chunked(
        file=DATA,
        filename="rows.jsonl",
        bytes=len(DATA),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=500,
    ).file
    assert file is not None
    assert client.files.content(file.id).read() == DATA


def test_an_upload_is_cancelled(client: openai.OpenAI) -> None:
    upload = client.uploads.create(
        bytes=len(DATA), filename="rows.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    client.uploads.parts.create(upload.id, data=io.BytesIO(DATA[:100]))
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[])


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_from_its_creation_to_an_answer(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="echo",
        training_file=uploaded(client, CHATS),
        validation_file=uploaded(client, CHATS[: CHATS.index(b"\n") + 1]),
        suffix="handbook",
        seed=11,
        metadata={"for": "the office"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
            },
        },
    )
    assert job.object == "fine_tuning.job"
    assert job.status in {"validating_files", "queued", "running"}
    done = until(client, job.id, over)
    assert (done.status, done.error) == ("succeeded", None)
    assert (done.seed, done.metadata) == (11, {"for": "the office"})
    assert done.fine_tuned_model.startswith("ft:echo:handbook:")
    assert done.trained_tokens > 0
    assert done.finished_at >= done.created_at
    assert done.method.supervised.hyperparameters.n_epochs == 2
    assert (done.hyperparameters.batch_size, done.hyperparameters.learning_rate_multiplier) == (4, 0.5)
    assert [one.id for one in client.fine_tuning.jobs.list()] == [job.id]

    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    said = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "What is clause 4?"}]
    )
    assert said.model == done.fine_tuned_model
    assert "What is clause 4?" in (said.choices[0].message.content or "")

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))  # page after page, newest first
    assert len({event.id for event in events}) == len(events) > 12
    assert events[0].message == "The job succeeded."
    figures: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert [one["step"] for one in figures] == list(range(12, 0, -1))
    assert figures[0]["train_loss"] == pytest.approx(1 / 13)

    points = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [point.step_number for point in points] == [12, 6]
    assert points[0].fine_tuning_job_id == job.id
    assert points[0].metrics.valid_loss == pytest.approx(1 / 26)
    assert points[0].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-12"

    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(done.fine_tuned_model)


def test_options_of_ours_go_in_extra_body(client: openai.OpenAI) -> None:
    asked = {"question_column": "answer", "answer_column": "question", "lora": {"r": 4}, "steps": 2}
    job = client.fine_tuning.jobs.create(
        model="echo", training_file=uploaded(client), extra_body={"blindbox": asked}
    )
    told: Any = until(client, job.id, over)
    assert told.status == "succeeded"
    assert told.blindbox["recipe"]["rank"] == 4
    assert told.blindbox["progress"]["total_steps"] == 2
    assert told.blindbox["data"]["rows_used"] == len(ROWS)


def test_a_job_is_paused_and_resumed_and_cancelled(patient: openai.OpenAI) -> None:
    jobs = patient.fine_tuning.jobs
    job = jobs.create(
        model="echo", training_file=uploaded(patient), hyperparameters={"n_epochs": 100, "batch_size": 4}
    )
    until(patient, job.id, lambda told: told.status == "running" and told.blindbox["progress"]["step"])
    paused: Any = jobs.pause(job.id)
    assert paused.status == "paused"  # the package's types do not name it, and let it pass
    resumed: Any = jobs.resume(job.id)
    assert resumed.status in {"queued", "running"}
    step = paused.blindbox["progress"]["step"]
    until(patient, job.id, lambda told: told.blindbox["progress"]["step"] > step)
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        jobs.cancel(job.id)
    assert jobs.retrieve(job.id).fine_tuned_model is None


def test_one_key_is_one_job(client: openai.OpenAI) -> None:
    """
    C-34: the package sends a call again when its answer is lost; with a key, that is the same job.

    A 409 comes with its words: the adapter looks into it first, and puts back what it has read.
    """
    asked: Any = {"model": "echo", "training_file": uploaded(client)}
    key = {"Idempotency-Key": "tuesday"}
    first = client.fine_tuning.jobs.create(**asked, extra_headers=key)
    again = client.fine_tuning.jobs.create(**asked, extra_headers=key)
    assert again.id == first.id
    with pytest.raises(openai.ConflictError) as reused:
        client.fine_tuning.jobs.create(**asked, suffix="other", extra_headers=key)
    assert reused.value.code == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "ecko"}, "model"),
        ({"training_file": "file-00000000000000000000000000000000"}, "training_file"),
        ({"training_file": "../files/x"}, "training_file"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 100_000}}, "hyperparameters.n_epochs"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"suffix": "a/b"}, "suffix"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
        ({"extra_body": {"blindbox": {"learning_rate": 10}}}, "blindbox.learning_rate"),
        ({"extra_body": {"blindbox": {"epoch": 1}}}, "blindbox.epoch"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(
    change: dict[str, Any], param: str, enclave: RunningEnclave
) -> None:
    with as_blindbox(enclave.origin) as client:
        asked: Any = {"model": "echo", "training_file": uploaded(client)} | change
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            client.fine_tuning.jobs.create(**asked)
        assert refused.value.param == param, refused.value
        assert list(client.fine_tuning.jobs.list()) == []


def test_rows_that_cannot_be_learned_fail_the_job_with_a_reason(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="echo", training_file=uploaded(client, b'{"question": "a secret", "answer": null}\n' * 4)
    )
    told = until(client, job.id, over)
    assert told.status == "failed"
    assert told.error is not None
    assert told.error.param == "training_file"
    assert "a secret" not in told.error.message


def test_the_async_client_does_the_same(enclave: RunningEnclave) -> None:
    async def main() -> None:
        async with blindbox.AsyncOpenAI(enclave.origin, policy=POLICY) as client:
            file = await client.files.create(file=("rows.jsonl", DATA), purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(model="echo", training_file=file.id)
            while not over(job):
                job = await client.fine_tuning.jobs.retrieve(job.id)
            assert job.status == "succeeded"
            events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
            assert events[0].message == "The job succeeded."

    asyncio.run(main())
