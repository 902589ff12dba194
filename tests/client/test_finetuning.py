"""`blindbox.finetune` and its handle, against the whole enclave over an engine and a trainer that count."""

from __future__ import annotations

import io
import json
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import blindbox
import blindbox.requests as requests
from blindbox import DataError, JobCancelled, JobFailed, NoPolicy, Refused
from blindbox.api import Api
from blindbox.errors import ReceiptRefused
from blindbox.job_handle import Job
from blindbox.unpacking import unpack
from enclave_app.training import Progress, Task, TrainingFailed
from enclave_app.training.counting import CountingTrainer
from tests.kit.app import echo_gateway, whole_app
from tests.kit.enclave import RunningEnclave, serving
from tests.kit.relay import Passed, Relay, Reply
from tests.kit.simulated import unsafe

ROWS = [{"question": f"What is clause {n}?", "answer": f"Clause {n} is short."} for n in range(24)]
SLOW = 0.05  # seconds a step: a job of 24 rows and 40 epochs takes six

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.simulated.UnsafeSimulationWarning")


POLICY = unsafe()


@pytest.fixture(scope="module")
def enclave() -> Iterator[RunningEnclave]:
    with whole_app() as one:
        yield one


@pytest.fixture(scope="module")
def slow() -> Iterator[RunningEnclave]:
    with whole_app(trainer=CountingTrainer(SLOW)) as one:
        yield one


def tuned(enclave: RunningEnclave, data: Any = ROWS, **options: Any) -> Job:
    usual: dict[str, Any] = {"epochs": 3, "batch_size": 8}  # so many steps, whatever suits so many rows
    return blindbox.finetune(enclave.origin, data, policy=POLICY, **usual | options)


def finished(enclave: RunningEnclave, data: Any = ROWS, **options: Any) -> Job:
    return tuned(enclave, data, **options).wait(progress=False)


# ── from data to a model ──────────────────────────────────────────────────────────────────────────────────


def test_a_list_of_rows_becomes_a_model_that_answers(enclave: RunningEnclave) -> None:
    job = finished(enclave, name="handbook", epochs=2)
    assert job.status == "succeeded"
    assert job.base == "echo"
    assert job.model is not None
    assert job.model.startswith("ft:echo:handbook:")
    assert job.data["rows_used"] == len(ROWS)
    adapter = job.told["blindbox"]["adapter"]
    assert job.ask("What is clause 4?").startswith(f"[{adapter[:16]}] ")  # as the echo engine says it
    assert "".join(job.ask("What is clause 4?", stream=True)) == job.ask("What is clause 4?")
    said = job.chat([{"role": "user", "content": "What is clause 4?"}], max_tokens=5)
    assert said == f"[{adapter[:4]}"
    pieces = job.ask("What is clause 4?", stream=True, max_tokens=5)
    assert pieces.finish_reason is None
    assert ("".join(pieces), pieces.finish_reason) == (said, "length")


def csv_of(folder: Path) -> Path:
    path = folder / "rows.csv"
    lines = ["ask,reply,note", *(f'"{row["question"]}","{row["answer"]}",x' for row in ROWS)]
    path.write_text("\n".join(lines))
    return path


def jsonl_of(folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def frame_of(_: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(ROWS)


def parquet_of(folder: Path) -> Path:
    frame_of(folder).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (csv_of, {"question_column": "ask", "answer_column": "reply"}),
        (jsonl_of, {}),
        (frame_of, {}),
        (parquet_of, {}),
        (lambda _: (row for row in ROWS), {}),
        (jsonl_of, {"question_column": "answer", "answer_column": "answer"}),
    ],
    ids=["csv", "jsonl", "dataframe", "parquet", "generator", "text"],
)
def test_data_may_come_in_many_shapes(
    make: Callable[[Path], Any], columns: dict[str, str], enclave: RunningEnclave, tmp_path: Path
) -> None:
    job = finished(enclave, make(tmp_path), epochs=1, **columns)
    assert job.data["rows_used"] == len(ROWS)


def test_a_file_that_is_there_is_learned_by_its_id(enclave: RunningEnclave) -> None:
    first = finished(enclave, epochs=1)
    again = finished(enclave, first.told["training_file"], epochs=1)
    assert again.id != first.id
    assert again.told["training_file"] == first.told["training_file"]


def test_options_arrive_as_they_were_meant(enclave: RunningEnclave) -> None:
    job = finished(
        enclave,
        validation=ROWS[:3],
        number_elements_for_training=20,
        epochs=2,
        steps=3,
        batch_size=4,
        max_length=64,
        learning_rate=5e-4,
        warmup=0.2,
        r=8,
        alpha=8,
        dropout=0.1,
        target_modules=["q_proj"],
        answer_only=False,
        checkpoint_steps=1,
        evaluate_steps=2,
        early_stopping=5,
        seed=7,
        metadata={"for": "the office"},
    )
    recipe = job.told["blindbox"]["recipe"]
    wanted = {"epochs": 2, "most_steps": 3, "batch_size": 4, "most_tokens": 64, "learning_rate": 5e-4}
    wanted |= {"warmup": 0.2, "rank": 8, "alpha": 8, "dropout": 0.1, "targets": ["q_proj"], "seed": 7}
    wanted |= {"answer_only": False, "checkpoint_steps": 1, "evaluate_steps": 2, "patience": 5}
    assert {name: recipe[name] for name in wanted} == wanted
    assert job.data["rows_used"] == 20
    assert job.told["validation_file"] is not None
    assert job.told["metadata"] == {"for": "the office"}
    assert [row["step"] for row in job.metrics()] == [1, 2, 3]
    assert [point["step_number"] for point in job.checkpoints()] == [3, 2, 1]


# ── what cannot be learned from ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        (ROWS, {"question_column": "qestion", "answer_column": "answer"}, "missing_column"),
        ([{"question": "a secret", "answer": None}, *ROWS], {}, "null_value"),
        ([{"question": "a secret", "answer": float("nan")}, *ROWS], {}, "null_value"),
        ([{"question": "a secret", "answer": " "}, *ROWS], {}, "empty_text"),
        ([{"question": "a secret", "answer": object()}], {}, "wrong_type"),
        ([{"question": "a secret", "answer": "\ud800"}], {}, "invalid_encoding"),
        ([], {}, "invalid_file_format"),
        ({"question": "a secret"}, {}, "wrong_type"),
        (["a secret"], {}, "wrong_type"),
        (17, {}, "wrong_type"),
        (ROWS, {"number_elements_for_training": 25}, "too_few_examples"),
    ],
)
def test_data_that_cannot_be_learned_from_never_leaves_this_machine(
    data: Any, options: dict[str, Any], code: str
) -> None:
    """No enclave is even asked: there is nobody at this address."""
    with pytest.raises(DataError) as refused:
        blindbox.finetune("http://127.0.0.1:9", data, policy=POLICY, **options)
    assert refused.value.code == code
    assert "a secret" not in str(refused.value)


def test_a_page_in_place_of_a_csv_is_named_as_that(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(DataError, match="HTML"):
        blindbox.finetune("http://127.0.0.1:9", path, policy=POLICY)


def test_without_a_policy_nothing_is_sent(enclave: RunningEnclave) -> None:
    with pytest.raises(NoPolicy):
        blindbox.finetune(enclave.origin, ROWS)


def test_what_the_enclave_refuses_is_told_by_the_keyword_at_fault(enclave: RunningEnclave) -> None:
    with pytest.raises(Refused) as refused:
        tuned(enclave, learning_rate=10.0)
    assert (refused.value.status, refused.value.code) == (400, "invalid_value")
    assert refused.value.param == "learning_rate"
    assert str(refused.value).startswith("learning_rate is 10")
    with pytest.raises(Refused, match="fine-tunes") as unknown:
        tuned(enclave, model="ecko")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(Refused) as foreign:
        tuned(enclave, f"file-{'0' * 32}")
    assert (foreign.value.status, foreign.value.param) == (404, "data")


def test_rows_that_the_enclave_finds_wrong_fail_the_job(enclave: RunningEnclave, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a secret", "answer": null}\n')
    job = tuned(enclave, path, check=False)
    with pytest.raises(JobFailed) as failed:
        job.wait(progress=False)
    assert (failed.value.job, failed.value.code) == (job.id, "null_value")
    assert failed.value.param == "data"
    assert "a secret" not in str(failed.value)
    assert job.status == "failed"
    with pytest.raises(JobFailed):
        job.ask("What is clause 4?")


class Failing(CountingTrainer):
    """A trainer that breaks."""

    def train(self, task: Task, stopped: Any) -> Iterator[Any]:
        yield next(iter(super().train(task, stopped)))
        raise TrainingFailed("The losses are no numbers any more.", code="diverged")


def test_a_training_that_breaks_says_why() -> None:
    with whole_app(trainer=Failing()) as enclave:
        job = tuned(enclave)
        with pytest.raises(JobFailed, match="no numbers any more") as failed:
            job.wait(progress=False)
        assert failed.value.code == "diverged"


# ── watching ──────────────────────────────────────────────────────────────────────────────────────────────


class Read(CountingTrainer):
    """Goes on from its second step only when somebody has seen a step on the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def train(self, task: Task, stopped: Any) -> Iterator[Any]:
        for item in super().train(task, stopped):
            yield item
            if isinstance(item, Progress) and item.step == 2:
                assert self.seen.wait(120)


class Screen(io.StringIO):
    """Where progress is written; `seen` is set by the first line that tells of a step."""

    def __init__(self, seen: threading.Event) -> None:
        super().__init__()
        self._seen = seen

    def write(self, text: str) -> int:
        if "training" in text:
            self._seen.set()
        return super().write(text)


def test_waiting_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Read()
    screen = Screen(trainer.seen)
    with whole_app(trainer=trainer) as enclave:
        job = tuned(enclave, name="seen")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            job.wait()
    shown = screen.getvalue()
    assert "training" in shown
    assert "at its end  9/9  loss 0.100" in shown
    assert "succeeded: ft:echo:seen:" in shown


def test_events_come_once_each_and_in_order(enclave: RunningEnclave) -> None:
    job = tuned(enclave, epochs=40)  # more than a page of them
    followed = list(job.events(follow=True))
    assert len(followed) > 100
    assert [event.id for event in followed] == sorted({event.id for event in followed})
    assert [event.id for event in job.events()] == [event.id for event in followed]
    steps = [event.data["step"] for event in followed if event.type == "metrics"]
    assert steps == list(range(1, 121))
    assert followed[-1].message == "The job succeeded."


def test_metrics_have_every_step_and_the_plot_is_a_picture(enclave: RunningEnclave, tmp_path: Path) -> None:
    job = finished(enclave, validation=ROWS[:4])
    rows = job.metrics().rows
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["loss"] for row in rows] == pytest.approx([1 / (step + 1) for step in range(1, 10)])
    assert [row["validation_loss"] for row in rows][2::3] == pytest.approx([1 / 8, 1 / 14, 1 / 20])
    curve = job.plot(tmp_path / "loss.svg")
    assert curve.text().startswith("0.500 █")
    assert (tmp_path / "loss.svg").read_text().startswith("<svg")


def cut_once(when: Callable[[Passed], bool]) -> Callable[[Passed], Reply | None]:
    """Lets the first answer of this sort break off in its middle."""
    done = threading.Event()

    def change(passed: Passed) -> Reply | None:
        if passed.asked.method != "POST" or done.is_set() or not when(passed):
            return None
        done.set()
        return passed.reply(cut=len(passed.body) // 2)

    return change


def test_a_stream_of_events_that_breaks_off_goes_on_where_it_was(enclave: RunningEnclave) -> None:
    with Relay(enclave.origin) as relay:
        job = blindbox.finetune(relay.origin, ROWS, policy=POLICY, epochs=40, batch_size=8)
        relay.change = cut_once(lambda passed: len(passed.body) > 16_384)
        followed = list(job.events(follow=True))
        assert any(passed.reply(cut=1) for passed in relay.sealed())
        relay.change = None
        steps = [event.data["step"] for event in followed if event.type == "metrics"]
        assert steps == list(range(1, 121))


def test_a_job_is_made_once_however_often_the_call_has_to_be_sent(enclave: RunningEnclave) -> None:
    """C-34: its answer is lost on the way, and the same key comes again."""
    with Relay(enclave.origin) as relay, Api(relay.origin, POLICY).session as session:
        made = session.post(
            f"{relay.origin}/v1/files",
            files={"file": ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))},
            data={"purpose": "fine-tune"},
        ).json()["id"]
        sent = len(relay.sealed())
        relay.change = cut_once(lambda _: True)
        job = blindbox.finetune(relay.origin, made, policy=POLICY, model="echo")
        relay.change = None
        assert len(relay.sealed()) == sent + 2
        assert [one.id for one in blindbox.jobs(relay.origin, policy=POLICY)] == [job.id]


def test_two_calls_with_one_key_are_one_job(enclave: RunningEnclave) -> None:
    first = finished(enclave, epochs=1)
    file = first.told["training_file"]
    one = tuned(enclave, file, key="tuesday")
    assert tuned(enclave, file, key="tuesday").id == one.id
    with pytest.raises(Refused) as reused:
        tuned(enclave, file, key="tuesday", epochs=2)
    assert reused.value.code == "idempotency_key_reused"


class Staying(CountingTrainer):
    """Counts to ten, and stays there until it is told to stop."""

    def train(self, task: Task, stopped: Any) -> Iterator[Any]:
        for item in super().train(task, stopped):
            while isinstance(item, Progress) and item.step == 10 and not stopped():
                time.sleep(0.01)
            yield item


def test_a_job_is_waited_for_across_a_restart_of_the_enclave(tmp_path: Path) -> None:
    """S-26: the enclave goes away amid a training and comes back; whoever waits sees every step once."""

    @contextmanager
    def running(trainer: CountingTrainer) -> Iterator[str]:
        with serving(echo_gateway(tmp_path, trainer=trainer)) as port:
            yield f"http://127.0.0.1:{port}"

    seen: list[int] = []
    with Relay("http://127.0.0.1:9") as relay:
        with running(Staying()) as relay.target:
            options = {"epochs": 20, "batch_size": 8, "checkpoint_steps": 5}
            job = blindbox.finetune(relay.origin, ROWS, policy=POLICY, **options)
            while job.refresh().progress.get("step") in (None, *range(8)):
                pass
        with running(CountingTrainer(0.01)) as relay.target:
            seen = [event.data["step"] for event in job.events(follow=True) if event.type == "metrics"]
            assert job.wait(progress=False).status == "succeeded"
            assert job.told["blindbox"]["resumed"] == 1
            assert [row["step"] for row in job.metrics()] == list(range(1, 61))
    assert sorted(set(seen)) == list(range(1, 61))


class Hostile:
    """A session whose enclave, proved or not, answers nonsense."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def request(self, method: str, url: str, **_: Any) -> Any:
        self.asked.append(url)
        answer: Any = requests.Response()
        told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer.status_code, body = told if isinstance(told, tuple) else (200, told)
        answer.raw = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        return answer


def against(*answers: Any) -> Api:
    session: Any = Hostile(*answers)
    return Api("http://127.0.0.1:9", session=session, sleep=lambda _: None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'"x"',
        b"[" * 100_000,
        {"id": 7},
        {},
        (404, b"<html>"),
        (500, {"error": "x"}),
    ],
)
def test_an_answer_that_is_none_is_refused_and_not_shown(answer: Any) -> None:
    api = against(answer)
    with pytest.raises(Refused):
        Job(api, api.ask("GET", "/v1/fine_tuning/jobs/ftjob-1"))


def test_a_job_that_tells_nonsense_is_told_as_well_as_it_can_be() -> None:
    nonsense = {"id": "ftjob-1", "status": "failed", "error": "x", "blindbox": [], "created_at": 1 << 70}
    job = Job(against(nonsense), nonsense)
    assert job.error is not None
    assert (job.progress, job.data, job.model, job.phase) == ({}, {}, None, "failed")
    shouting = {"id": "e", "created_at": 1 << 39, "message": "\033[2J", "level": 3, "data": 4}
    (event,) = Job(against({"data": [shouting, 7]}), nonsense).events()
    assert str(event).isprintable()


def test_a_list_without_end_ends() -> None:
    """The same page for ever, which says each time that there is more."""
    page = {"data": [{"id": f"e{n}", "message": "x"} for n in range(3)], "has_more": True}
    assert len(list(Job(against(page), {"id": "ftjob-1"}).events())) == 3


def test_a_busy_enclave_is_asked_again_and_a_refusal_is_not() -> None:
    busy = (503, {"error": {"message": "later", "code": "overloaded"}})
    assert against(busy, busy, {"id": "ftjob-1"}).ask("POST", "/x") == {"id": "ftjob-1"}
    with pytest.raises(Refused, match="later"):
        against(busy).ask("POST", "/x")
    api = against((400, {"error": {"message": "no", "code": "bad", "param": "p"}}))
    with pytest.raises(Refused) as refused:
        api.ask("GET", "/x")
    session: Any = api.session
    assert (refused.value.param, len(session.asked)) == ("p", 1)


def test_waiting_outlives_calls_that_fail_in_between(capsys: pytest.CaptureFixture[str]) -> None:
    """The stream tells of an event, then nobody answers for a while, then the job has ended."""
    running = {"id": "ftjob-1", "status": "running"}
    ended = {"id": "ftjob-1", "status": "succeeded", "fine_tuned_model": "ft:echo::1"}
    event = {"id": "e1", "created_at": 1, "message": "It runs."}
    down = (502, {"error": {"message": "nobody", "code": "unreachable"}})
    streamed = b"data: " + json.dumps(event).encode() + b"\n\n"
    api = against(running, streamed, down, down, b"", ended, {"data": [event]}, ended)
    assert Job(api, running).wait().model == "ft:echo::1"
    told = capsys.readouterr().err
    assert told.count("It runs.") == 1
    assert told.endswith("succeeded: ft:echo::1\n")


# ── steering ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_is_paused_and_goes_on_and_is_cancelled(slow: RunningEnclave) -> None:
    job = tuned(slow, epochs=100)
    with pytest.raises(Refused, match="no tuned model yet") as early:
        job.ask("What is clause 4?")
    assert early.value.code == "job_not_finished"
    for event in job.events(follow=True):
        if event.type == "metrics":
            break
    assert job.pause().status == "paused"
    assert job.wait(progress=False).status == "paused"  # nothing more happens by itself
    at = job.progress["step"]
    assert job.resume().status in {"queued", "running"}
    for event in job.events(follow=True):
        if event.type == "metrics" and event.data["step"] > at:
            break
    assert job.cancel().status == "cancelled"
    with pytest.raises(JobCancelled):
        job.wait(progress=False)
    with pytest.raises(Refused) as over:
        job.pause()
    assert over.value.status == 400


def test_jobs_are_listed_newest_first_and_found_by_their_id(enclave: RunningEnclave) -> None:
    made = [finished(enclave, epochs=1).id for _ in range(2)]
    found = [job.id for job in blindbox.jobs(enclave.origin, policy=POLICY)]
    assert found == made[::-1]
    again = blindbox.job(enclave.origin, made[0], policy=POLICY)
    assert again.status == "succeeded"
    assert again.ask("What is clause 4?")


def test_nobody_else_sees_a_job_or_its_model(
    enclave: RunningEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-22: another tenant, who has been told every name."""
    job = finished(enclave, epochs=1)
    monkeypatch.setenv("BLINDBOX_HOME", str(tmp_path / "somebody else"))
    assert blindbox.jobs(enclave.origin, policy=POLICY) == []
    with pytest.raises(Refused) as hidden:
        blindbox.job(enclave.origin, job.id, policy=POLICY)
    assert hidden.value.status == 404
    theirs = finished(enclave, epochs=1)
    theirs.told["fine_tuned_model"] = job.model
    with pytest.raises(Refused) as foreign:
        theirs.ask("What is clause 4?")
    assert foreign.value.code == "model_not_found"
    with pytest.raises(Refused):
        theirs.download(tmp_path / "adapter")


# ── what came of it ───────────────────────────────────────────────────────────────────────────────────────


def test_the_adapter_is_downloaded_whole(enclave: RunningEnclave, tmp_path: Path) -> None:
    job = finished(enclave, epochs=1)
    folder = job.download(tmp_path / "adapter")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert sha256(weights).hexdigest() == job.told["blindbox"]["adapter"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    job.told["blindbox"]["adapter"] = "0" * 64
    (folder / "README.md").write_text("mine")
    with pytest.raises(Refused, match="other weights"):
        job.download(folder)
    assert (folder / "README.md").read_text() == "mine"


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


WEIGHTS = struct.pack("<Q", 2) + b"{}"
WHOLE = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": b"{}"}


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"no archive", "cannot be read"),
        (zipped(WHOLE)[:-30], "cannot be read"),
        (zipped({}), "no adapter"),
        (zipped({"adapter_config.json": b"{}"}), "no adapter"),
        (zipped(WHOLE | {"../outside": b""}), "does not have"),
        (zipped(WHOLE | {"/outside": b""}), "does not have"),
        (zipped(WHOLE | {"sub/file": b""}), "does not have"),
        (zipped(WHOLE | {".hidden": b""}), "does not have"),
        (zipped(WHOLE | {"a\\b": b""}), "does not have"),
        (zipped(WHOLE | {"bomb": bytes(1 << 20)}, zipfile.ZIP_DEFLATED), "does not have"),
        (zipped(WHOLE | {f"file-{n}": b"" for n in range(20)}), "too many"),
    ],
)
def test_an_archive_that_is_none_leaves_nothing(archive: bytes, why: str, tmp_path: Path) -> None:
    """S-17: what an enclave hands out is read as if it came from anybody."""
    answer: Any = requests.Response()
    answer.raw = io.BytesIO(archive)
    folder = tmp_path / "adapter"
    with pytest.raises(Refused, match=why):
        unpack(answer, folder, None)
    assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_receipt_is_about_this_job_and_this_data(enclave: RunningEnclave, tmp_path: Path) -> None:
    job = finished(enclave, name="signed")
    verified = job.receipt(tmp_path / "receipt.json")
    assert verified.simulated
    assert verified.receipt.model == job.model
    assert verified.receipt.dataset.rows_used == len(ROWS)
    assert verified.receipt.adapter.hex() == job.told["blindbox"]["adapter"]
    kept = (tmp_path / "receipt.json").read_bytes()
    assert b"clause" not in kept

    other = finished(enclave, epochs=1)
    other.data_sha256 = job.data_sha256 = bytes(32)
    (tmp_path / "receipt.json").unlink()
    with pytest.raises(ReceiptRefused):  # other bytes than were sent from here
        job.receipt(tmp_path / "receipt.json")
    assert not (tmp_path / "receipt.json").exists()


@pytest.mark.parametrize("change", ["job", "model", "adapter"])
def test_a_receipt_about_something_else_is_refused(change: str, enclave: RunningEnclave) -> None:
    job, other = finished(enclave, epochs=1), finished(enclave, epochs=2)
    api = Api(enclave.origin, POLICY)
    told = json.loads(json.dumps(job.told))
    if change == "job":
        told["id"] = other.id
    elif change == "model":
        told["fine_tuned_model"] = other.model
    else:
        told["blindbox"]["adapter"] = other.told["blindbox"]["adapter"]
    with api.open("GET", f"/v1/fine_tuning/jobs/{job.id}/receipt") as answer:
        data = answer.content
    Job(api, job.told)._verified(data)
    with pytest.raises(ReceiptRefused):
        Job(api, told)._verified(data)


def test_what_is_deleted_is_gone(enclave: RunningEnclave) -> None:
    job = finished(enclave, epochs=1)
    file = job.told["training_file"]
    assert job.delete(data=True) == [job.model, job.id, file]
    session = requests.Session(POLICY)
    for path in (f"fine_tuning/jobs/{job.id}", f"models/{job.model}", f"files/{file}"):
        assert session.get(f"{enclave.origin}/v1/{path}").status_code == 404
    with pytest.raises(Refused):
        job.ask("What is clause 4?")


def test_deleting_a_job_that_runs_cancels_it_first_and_keeps_its_data(slow: RunningEnclave) -> None:
    job = tuned(slow, epochs=100)
    assert job.delete() == [job.id]
    left = requests.Session(POLICY).get(f"{slow.origin}/v1/files").json()["data"]
    assert job.told["training_file"] in [file["id"] for file in left]
