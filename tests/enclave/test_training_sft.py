"""Real training with trl and peft, in its own process, of tiny models."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from enclave_app.datasets import Pairs
from enclave_app.engines import Sampling, Update, Work
from enclave_app.models import Model
from enclave_app.prompts import IGNORED, Template
from enclave_app.tokenizer import FolderTokenizer
from enclave_app.training import Progress, Recipe, Trained, TrainingFailed, Unlearnable
from enclave_app.training.sft import SftTrainer
from tests.kit.models import tiny_falcon, tiny_llama, tokenizer

pytest.importorskip("torch")

ROWS = (("Where does the mill stand?", "The upper weir."), ("What is the river called?", "Wend."))


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("make", "template"), [(tiny_llama, Template.CHAT), (tiny_falcon, Template.QUESTION)]
)
def test_a_tiny_model_learns_its_rows_and_serves_them_and_stops(make: Any, template: Template) -> None:
    """Two architectures, one of them Falcon's: train, hand over, ask. The end token is learned too."""
    from enclave_app.engines.torch import TorchEngine

    model = Model.at(make())
    said = list(
        SftTrainer(model, "cpu").train(Pairs(ROWS, False), Recipe(epochs=40, learning_rate=1e-2), never)
    )
    steps = [item for item in said if isinstance(item, Progress) and item.phase == "training"]
    assert [step.step for step in steps[-3:]] == [38, 39, 40]
    assert steps[-1].total_steps == 40
    assert steps[-1].eta_seconds == 0
    trained = said[-1]
    assert isinstance(trained, Trained)
    assert trained.report["rows_used"] == 2
    assert trained.report["last_loss"] < 0.2 < trained.report["first_loss"]
    assert trained.adapter.manifest.template == template.value

    engine = TorchEngine(str(model.folder), device="cpu")
    words = FolderTokenizer(model.folder)
    sampling = Sampling(max_new_tokens=40, do_sample=False)
    engine.load("tuned", trained.adapter)

    def ask(tuning: str) -> list[tuple[str, str | None]]:
        """Both questions, answered together."""
        for key, (question, _) in enumerate(ROWS):
            engine.start(key, Work(tuple(template.prompt(words, question)), sampling, tuning=tuning))
        said: list[list[int]] = [[] for _ in ROWS]
        ends: list[str | None] = [None for _ in ROWS]
        while engine.busy():
            for update in engine.step():
                assert isinstance(update, Update)
                said[update.key] += [token.id for token in update.tokens]
                ends[update.key] = update.finish
        return [(words.decode(each).strip(), end) for each, end in zip(said, ends, strict=True)]

    before = ask("")
    learned = [(answer, "stop") for _, answer in ROWS]
    assert ask("tuned") == learned
    assert ask("") == before != learned


def test_one_column_is_learned_as_plain_text() -> None:
    model = Model.at(tiny_llama())
    text = "The mill stands at the upper weir."
    said = list(SftTrainer(model, "cpu").train(Pairs(((text, text),), True), Recipe(epochs=2), never))
    assert isinstance(said[-1], Trained)
    assert said[-1].adapter.manifest.template == "text"


def test_rows_whose_questions_fill_the_window_are_refused_in_words() -> None:
    rows = Pairs((("mill " * 200, "weir"),), False)
    with pytest.raises(Unlearnable, match="questions alone are longer"):
        list(SftTrainer(Model.at(tiny_llama()), "cpu").train(rows, Recipe(most_tokens=64), never))


def test_a_training_that_diverges_is_refused_in_words() -> None:
    recipe = Recipe(epochs=6, learning_rate=1e30)
    with pytest.raises(Unlearnable, match="smaller learning_rate"):
        list(SftTrainer(Model.at(tiny_llama()), "cpu").train(Pairs(ROWS, False), recipe, never))


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


def test_whoever_stops_listening_stops_the_training_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()
    stopped = False
    said = SftTrainer(Model.at(tiny_llama()), "cpu").train(
        Pairs(ROWS, False), Recipe(epochs=100_000), lambda: stopped
    )
    for item in said:
        assert isinstance(item, Progress)
        if item.step == 3:
            assert children() - before
            stopped = True
    assert children() == before
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_is_told_in_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()

    def run() -> None:
        trainer = SftTrainer(Model.at(tiny_llama()), "cpu")
        for item in trainer.train(Pairs(ROWS, False), Recipe(epochs=100_000), never):
            if isinstance(item, Progress) and item.step == 2:
                for child in children() - before:
                    os.kill(child, signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="memory"):
        run()
    deadline = time.monotonic() + 5
    while children() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == before
    assert list(tmp_path.iterdir()) == []


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
    """S-20: rows are in no output, no log and no error of the training, whatever way it ends."""
    rows = Pairs((("canary-0451 " * 5, "canary-0451"),), False)
    endings = []
    for recipe in (Recipe(epochs=1), Recipe(most_tokens=8), Recipe(epochs=6, learning_rate=1e30)):
        try:
            endings.append(
                repr(list(SftTrainer(Model.at(tiny_llama()), "cpu").train(rows, recipe, never))[:-1])
            )
        except TrainingFailed as error:
            endings.append(str(error))
    printed = capfd.readouterr()
    assert len(set(endings)) == 3
    assert "canary" not in printed.out + printed.err + caplog.text + "".join(endings)
