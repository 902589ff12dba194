"""Real training with trl and peft, in processes of its own, of tiny models."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_app.checkpoint import Checkpoint
from enclave_app.engines import Sampling, Update, Work
from enclave_app.engines.adapter import Adapter, Kind, Manifest
from enclave_app.models import Model
from enclave_app.prompts import IGNORED, Template
from enclave_app.tokenizer import FolderTokenizer
from enclave_app.training import Progress, Recipe, Snapshot, Stop, Task, Trained, TrainingFailed, Unlearnable
from enclave_app.training.ranks import Ranks
from enclave_app.training.rows import Row
from enclave_app.training.sft import SftTrainer
from tests.kit.lessons import ROWS, Heard, by_chance, never, task_of
from tests.kit.models import tiny_falcon, tiny_llama, tokenizer

pytest.importorskip("torch")

ENDLESS = Recipe(epochs=100_000, checkpoint_steps=2)


def test_a_tiny_model_learns_its_rows_and_serves_them_and_stops(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Train, hand over, ask. The end token is learned too. S-20: and nothing of it is printed."""
    model, template = Model.at(tiny_llama()), Template.CHAT
    words = FolderTokenizer(model.folder)
    probes = [template.prompt(words, question) for question, _ in ROWS]
    recipe = Recipe(epochs=40, learning_rate=1e-2)
    task = task_of(model.folder, recipe=recipe, probes=probes, validation=by_chance(3))
    said = list(SftTrainer(model, "cpu").train(task, never))
    assert next(item.phase for item in said if isinstance(item, Progress)) == "loading"
    steps = [item for item in said if isinstance(item, Progress) and item.phase == "training"]
    assert [step.step for step in steps] == list(range(41))
    assert steps[-1].total_steps == 40
    printed = capfd.readouterr()
    assert "weir" not in printed.out + printed.err + caplog.text
    assert (steps[-1].eta_seconds, steps[-1].epoch) == (0, 40)
    assert steps[-1].validation_loss is not None
    assert all(step.tokens_per_second for step in steps[1:])
    trained = said[-1]
    assert isinstance(trained, Trained)
    report = trained.report
    assert (report["rows_used"], report["steps"], report["processes"]) == (2, 40, 1)
    assert report["last_loss"] < 0.2 < report["first_loss"]
    assert set(report["versions"]) == {"torch", "trl", "peft", "transformers"}
    assert report["fast_path"]
    assert trained.adapter.manifest.template == template.value

    # A snapshot holds the adapter as it was then: the last one, the adapter itself.
    snapshot = [item for item in said if isinstance(item, Snapshot)][-1]
    assert snapshot.step == 40
    manifest = trained.adapter.manifest
    checkpoint = Checkpoint(
        "job", 40, 40, 0, "", None, None, manifest.model, manifest.template, manifest.template_digest,
        "lora", manifest.rank, manifest.alpha, snapshot.state,
    )  # fmt: skip
    assert checkpoint.adapter().modules() == trained.adapter.modules()

    assert served(model, trained.adapter, probes) == [(answer, "stop") for _, answer in ROWS]
    assert [words.decode(list(tokens)).strip() for tokens in trained.continuations] == [
        answer for _, answer in ROWS
    ]


def served(model: Model, adapter: Adapter, probes: list[list[int]]) -> list[tuple[str, str | None]]:
    """What an engine answers to all of them together, with the adapter and otherwise than without."""
    from enclave_app.engines.torch import TorchEngine

    engine, words = TorchEngine(str(model.folder), device="cpu"), FolderTokenizer(model.folder)
    sampling = Sampling(max_new_tokens=40, do_sample=False)
    engine.load("tuned", adapter)

    def ask(tuning: str) -> list[tuple[str, str | None]]:
        for key, prompt in enumerate(probes):
            engine.start(key, Work(tuple(prompt), sampling, tuning=tuning))
        said: list[list[int]] = [[] for _ in probes]
        ends: list[str | None] = [None for _ in probes]
        while engine.busy():
            for update in engine.step():
                assert isinstance(update, Update)
                said[update.key] += [token.id for token in update.tokens]
                ends[update.key] = update.finish
        return [(words.decode(each).strip(), end) for each, end in zip(said, ends, strict=True)]

    before = ask("")
    tuned = ask("tuned")
    assert ask("") == before != tuned
    return tuned


def here(order: Task, folder: Path, scratch: Path, **more: Any) -> Any:
    """The same lesson in this process."""
    from enclave_app.training.lesson import Lesson, learn

    rows = [Row(row.ids, row.labels) for row in order.examples]
    probes = [list(probe) for probe in order.probes]
    lesson = Lesson(str(folder), "cpu", order.recipe, scratch, rows, probes=probes, **more)
    return learn(lesson, Ranks(), Heard())


def adapter_of(model: Model, task: Task, learned: Any) -> Adapter:
    full = task.recipe.method == "full"
    rank, alpha = (0, 0) if full else (task.recipe.rank, task.recipe.alpha)
    sha256 = hashlib.sha256(learned.weights).hexdigest()
    kind: Kind = "full" if full else "lora"
    manifest = Manifest(
        model.fingerprint, task.template, task.template_digest, rank, alpha, learned.targets, sha256, kind
    )
    return Adapter(manifest, learned.weights)


def test_falcon_learns_over_8_bits_and_is_served(tmp_path: Path) -> None:
    """The other architecture, its base in 8 bits: what was learned beside them fits the plain weights."""
    model = Model.at(tiny_falcon())
    words = FolderTokenizer(model.folder)
    probes = [Template.QUESTION.prompt(words, question) for question, _ in ROWS]
    task = task_of(model.folder, recipe=Recipe(method="qlora", epochs=40, learning_rate=1e-2), probes=probes)
    learned = here(task, model.folder, tmp_path)
    assert learned.report["fast_path"]
    answers = [answer for _, answer in ROWS]
    assert [words.decode(tokens).strip() for tokens in learned.continuations] == answers
    assert served(model, adapter_of(model, task, learned), probes) == [(answer, "stop") for answer in answers]


def test_two_processes_learn_what_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The same batches, shared: the losses agree but for rounding, and a third row leaves one idle.

    S-21: and what lies in their folder is where they meet, and how far a resumed training was.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = Model.at(tiny_llama())
    rows = (*ROWS, ("Who?", "Nobody."))
    task = task_of(model.folder, rows, recipe=Recipe(epochs=4, batch_size=2, rank=4, learning_rate=1e-2))
    alone = here(task, model.folder, tmp_path)
    trainer = SftTrainer(model, "cpu", threads=2, processes=2)
    two = list(trainer.train(task, never))
    assert isinstance(two[-1], Trained)
    for name in ("first_loss", "last_loss", "best_loss"):
        assert two[-1].report[name] == pytest.approx(alone.report[name], rel=1e-3)
    assert (two[-1].report["processes"], two[-1].report["steps"]) == (2, 8)
    # And going on from a snapshot of two gives the bits of two.
    middle = next(item for item in two if isinstance(item, Snapshot))
    seen: dict[str, bytes] = {}
    again: Any = None
    for again in trainer.train(replace(task, resume=middle.state), never):
        if isinstance(again, Snapshot):
            seen |= {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert isinstance(again, Trained)
    assert again.adapter == two[-1].adapter
    assert again.report["resumed_at"] == [2]
    assert set(seen) == {"meeting", "trainer_state.json"}
    assert len(seen["trainer_state.json"]) < 2000
    assert len(seen["meeting"]) < 20_000


def test_all_weights_can_be_learned_and_gone_on_from(tmp_path: Path) -> None:
    model = Model.at(tiny_llama())
    task = task_of(model.folder, recipe=Recipe(method="full", epochs=5, learning_rate=1e-3))
    first = here(task, model.folder, tmp_path)
    start = adapter_of(model, task, first)
    assert "model.layers.0.self_attn.q_proj" in start.modules()
    assert not [name for name in start.modules() if "embed" in name or "head" in name]
    (*_, second) = SftTrainer(model, "cpu").train(replace(task, start=start), never)
    assert isinstance(second, Trained)
    assert (second.adapter.manifest.kind, second.adapter.manifest.rank) == ("full", 0)
    assert second.adapter.modules().keys() == start.modules().keys()
    assert second.report["first_loss"] < first.report["last_loss"] < first.report["first_loss"]


def test_an_earlier_adapter_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model = Model.at(tiny_llama())
    task = task_of(model.folder, recipe=Recipe(epochs=1, rank=4, alpha=8))
    start = adapter_of(model, task, here(task, model.folder, tmp_path))
    for other, change, match in (
        (model, {"rank": 8}, "r 4 and alpha 8"),
        (model, {"method": "full"}, "of kind lora"),
        (model, {"targets": ("q_proj",)}, "Leave target_modules out"),
        (Model.at(tiny_falcon()), {}, "another base model"),
    ):
        recipe = replace(task.recipe, **change)
        with pytest.raises(Unlearnable, match=match):
            next(SftTrainer(other, "cpu").train(replace(task, recipe=recipe, start=start), never))


def test_rows_whose_questions_fill_the_window_are_refused_in_words(tmp_path: Path) -> None:
    folder = tiny_llama()
    task = task_of(folder, (("mill " * 200, "weir"),), recipe=Recipe(most_tokens=64))
    with pytest.raises(Unlearnable, match="questions alone are longer"):
        here(task, folder, tmp_path)


def children() -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nPPid:\t{os.getpid()}\n" in text:
            found.add(int(status.parent.name))
    return found


@pytest.mark.parametrize("wish", ["cancel", "pause"])
def test_whoever_stops_it_is_heard_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Stop
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = Model.at(tiny_llama())
    before, wished = children(), list[Stop]([""])
    said = []
    for item in SftTrainer(model, "cpu").train(task_of(model.folder, recipe=ENDLESS), lambda: wished[0]):
        said.append(item)
        assert isinstance(item, Progress | Snapshot)
        if item.step == 3:
            child = next(iter(children() - before))
            assert os.getpriority(os.PRIO_PROCESS, child) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
            wished[0] = wish
    if wish == "pause":
        assert isinstance(said[-1], Snapshot)
        assert said[-1].step == max(item.step for item in said if isinstance(item, Progress | Snapshot))
    assert children() <= before
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_leaves_nothing_and_goes_on_from_its_last_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-26: signal 9 to its process; the end has the bits of a training that was left alone."""
    before, model = children(), Model.at(tiny_llama())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    task = task_of(model.folder, recipe=Recipe(epochs=30, rank=4, dropout=0.1, checkpoint_steps=5))
    snapshots = []

    def run() -> None:
        for item in SftTrainer(model, "cpu").train(task, never):
            if isinstance(item, Snapshot):
                snapshots.append(item)
            elif isinstance(item, Progress) and item.step == 14:
                os.kill(max(children() - before), signal.SIGKILL)

    def trained(order: Task) -> Trained:
        *_, last = SftTrainer(model, "cpu").train(order, never)
        assert isinstance(last, Trained)
        return last

    with pytest.raises(TrainingFailed, match="signal 9") as failed:
        run()
    assert failed.value.code == "training_process_died"
    assert children() <= before
    assert list((tmp_path / "tmp").iterdir()) == []
    last = snapshots[-1]
    assert 10 <= last.step < 30
    resumed = trained(replace(task, resume=last.state))
    assert resumed.report["resumed_at"] == [last.step]
    assert resumed.adapter.weights == trained(task).adapter.weights


@pytest.mark.slow
def test_the_death_of_one_process_is_the_end_of_all() -> None:
    before, model = children(), Model.at(tiny_llama())

    def run() -> None:
        for item in SftTrainer(model, "cpu", processes=2).train(task_of(model.folder, recipe=ENDLESS), never):
            if isinstance(item, Progress) and item.step == 2:
                os.kill(max(children() - before), signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="signal 9"):
        run()
    assert children() <= before


def test_a_kill_for_want_of_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts them: it is no guess where it can be read."""
    from enclave_app.training import sft

    monkeypatch.setattr(sft, "_killed_for_memory", lambda: 8)
    assert sft._epitaph(-9, 7).code == "out_of_memory"
    assert sft._epitaph(-9, 8).code == "training_process_died"
    assert sft._epitaph(-11, 7).code == "training_process_died"
    monkeypatch.setattr(sft, "_killed_for_memory", lambda: None)
    assert sft._epitaph(-9, None).code == "out_of_memory"


@pytest.mark.parametrize("chat", [True, False])
def test_only_the_answer_and_the_end_token_are_learned(chat: bool) -> None:
    words = tokenizer(chat=chat)
    template = Template.for_tuning(words, plain_text=False)
    prompt = template.prompt(words, "Where?")
    example = template.example(words, "Where?", "The weir.", end=words.eos_token_id, most=100)
    assert list(example.ids[: len(prompt)]) == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORED}
    assert list(example.labels[len(prompt) :]) == list(example.ids[len(prompt) :])
    assert example.ids[-1] == words.eos_token_id
    assert words.decode(example.ids[len(prompt) : -1]).strip() == "The weir."
    assert example.learned == len(example.ids) - len(prompt)
    cut = template.example(words, "Where?", "The weir. " * 50, end=words.eos_token_id, most=len(prompt) + 5)
    assert cut.cut
    assert cut.ids[-1] != words.eos_token_id


def test_the_templates_digest_tells_two_chat_templates_apart() -> None:
    one, other = tokenizer(chat=True), tokenizer(chat=True)
    other.chat_template = other.chat_template.replace("assistant", "bot")
    assert Template.CHAT.digest(one) != Template.CHAT.digest(other)
    assert Template.QUESTION.digest(one) == Template.QUESTION.digest(other)


def test_what_the_training_process_prints_goes_nowhere(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """S-20: rows are in no output, no log and no error of a training that fails."""
    model = Model.at(tiny_llama())
    rows = (("canary-0451 " * 5, "canary-0451"),)
    task = task_of(model.folder, rows, recipe=Recipe(epochs=6, learning_rate=1e30))
    with pytest.raises(Unlearnable, match="smaller learning_rate") as failed:
        list(SftTrainer(model, "cpu").train(task, never))
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err + caplog.text + str(failed.value)
