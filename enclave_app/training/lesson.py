"""
One lesson: rows of tokens become weights, from the beginning or from a snapshot.

trl's SFTTrainer drives; `fast.py` makes its steps shorter where it knows the model. The order of rows and all
chance are functions of the seed and the step (`order.py`), so that a training that goes on from a snapshot
ends with the very bits it would have ended with. Heavy imports live here, in the training's own process.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import safetensors.torch
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback, TrainerState, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..engines.torch import device_named, silence
from ..prompts import IGNORED
from . import Phase, Recipe, TrainingFailed, Unlearnable, canaries, fast, snapshots
from .learner import Learner, learner
from .order import batches, chance_of, steps_an_epoch
from .ranks import Ranks
from .rows import Row
from .snapshots import Position, State

PAD_TO: Final = 16  # each new length costs the math library a set-up


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to learn, as it arrives in this process."""

    folder: str
    device: str
    recipe: Recipe
    scratch: Path  # only for what carries no data
    rows: Sequence[Row]
    validation: Sequence[Row] = ()
    probes: Sequence[Sequence[int]] = ()
    probe_tokens: int = 32
    start: bytes = field(default=b"", repr=False)  # an adapter's weights
    resume: bytes = field(default=b"", repr=False)  # a snapshot
    task: str = ""  # digest of all of it but `resume`


@dataclass(frozen=True, slots=True)
class Learned:
    """What came out."""

    weights: bytes = field(repr=False)
    targets: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    continuations: Sequence[Sequence[int]] = ()


class Listener(Protocol):
    """Who wants to know. `paused` is asked after each step."""

    def progress(self, phase: Phase, **more: Any) -> None: ...

    def snapshot(self, position: Position, state: bytes) -> None: ...

    def paused(self) -> bool: ...


def learn(lesson: Lesson, ranks: Ranks, listener: Listener) -> Learned | None:
    """
    Learn what the lesson says; None if the listener made a pause of it.

    1. the model, and what of it learns
    2. what is known already: an earlier adapter's weights, or a snapshot's state
    3. the steps that are left
    4. the weights, checked to have moved and to be numbers
    5. what the model says now: to the probes, and of the canaries
    """
    silence()
    recipe = replace(lesson.recipe, seed=lesson.recipe.seed % (1 << 32))
    rows = [row for row in lesson.rows if row.learned]
    if not rows:
        raise Unlearnable(
            f"No row has a token to learn within {recipe.most_tokens} tokens: the questions alone are longer."
        )
    planted = canaries.Canaries.made(recipe.canaries, rows, recipe.seed) if recipe.canaries else None
    if planted:
        rows = [*rows, *planted.planted]
    steps = steps_an_epoch(len(rows), recipe.batch_size)
    total = min(steps * recipe.epochs, recipe.most_steps or steps * recipe.epochs)
    set_seed(recipe.seed)
    device = device_named(lesson.device)
    made = learner(lesson.folder, device, recipe)  # 1
    if lesson.start:
        made.take(safetensors.torch.load(lesson.start))  # 2
    began_with = snapshots.digest_of(made.weights())
    school = School(made, rows, lesson, recipe, ranks, listener, Position(lesson.task, total_steps=total))
    if lesson.resume:
        school.go_on_from(snapshots.parse(lesson.resume, lesson.task))
    finished = school.run()  # 3
    if not finished:
        return None
    listener.progress("checking", step=school.position.step, total_steps=total)
    weights = made.weights()
    encoded = _checked(weights, began_with)  # 4
    said = [
        _continued(made.inner, probe, lesson.probe_tokens) for probe in lesson.probes if ranks.rank == 0
    ]  # 5
    report = school.report()
    if planted:
        # Every process measures, so that none has gone while another still needs it.
        report["memorisation"] = planted.told(
            school.unlikeliness(planted.planted), school.unlikeliness(planted.others)
        )
    return Learned(encoded, made.targets, report, said)


class School:
    """A training under way: its trainer, where it stands, and what it has heard so far."""

    def __init__(
        self,
        made: Learner,
        rows: Sequence[Row],
        lesson: Lesson,
        recipe: Recipe,
        ranks: Ranks,
        listener: Listener,
        position: Position,
    ) -> None:
        self.made, self.rows, self.recipe = made, rows, recipe
        self.ranks, self.listener, self.position = ranks, listener, position
        self.validation = [row for row in lesson.validation if row.learned]
        self.order = Order(rows, recipe, ranks)
        self.best: dict[str, Tensor] = {}
        self.paused = False
        self._scratch = lesson.scratch
        self._from: State | None = None
        self._since = time.monotonic()
        self._kept_at = -1
        tokenizer: Any = AutoTokenizer.from_pretrained(
            lesson.folder, trust_remote_code=False, local_files_only=True
        )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self._pad = int(tokenizer.pad_token_id)
        self.trainer: Any = Driver(
            self,
            model=made.model,
            args=_arguments(lesson, recipe, position.total_steps),
            # trl wants a data set of this kind; what is learned is given by `get_train_dataloader`.
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
            processing_class=tokenizer,
            callbacks=[Ear(self)],
        )
        self.trainer.remove_callback(PrinterCallback)  # what there is to tell goes to the listener
        self.installed = fast.install(made.model)

    def go_on_from(self, state: State) -> None:
        """Put the weights into the model, and see that they are the ones the snapshot names."""
        self.made.take(state.weights)
        if snapshots.digest_of(self.made.weights()) != state.position.adapter:
            raise snapshots.unusable("the weights in the model are not the ones it names")
        if state.position.total_steps != self.position.total_steps:
            raise snapshots.unusable("it is of a training with another number of steps")
        self.position = replace(state.position, resumed=(*state.position.resumed, state.position.step))
        self.best = dict(state.best)
        self._from = state

    def run(self) -> bool:
        """Learn what is left; False if it was a pause that ended it."""
        self.say()
        if self.position.step < self.position.total_steps and not self.position.ended:
            place = None
            if self._from is not None:
                place = self._scratch / "position"
                place.mkdir(exist_ok=True)
                TrainerState(
                    global_step=self.position.step,
                    max_steps=self.position.total_steps,
                    train_batch_size=self.recipe.batch_size,
                    logging_steps=1,
                ).save_to_json(str(place / "trainer_state.json"))
            self._since = time.monotonic()
            self.trainer.train(resume_from_checkpoint=None if place is None else str(place))
        if self.paused:
            return False
        if self.position.step < self.position.total_steps and not self.position.ended:
            raise TrainingFailed(
                f"The trainer ended at step {self.position.step} of {self.position.total_steps}."
            )
        if self.best:
            self.made.take(self.best)
        return True

    def restore(self, optimizer: Any, scheduler: Any) -> None:
        """What the optimizer remembered and how far the schedule was."""
        assert self._from is not None
        with torch.no_grad():
            for name, parameter in self.made.model.named_parameters():
                if parameter.requires_grad:
                    kept = self._from.optimizer.get(name)
                    if kept is None:
                        raise snapshots.unusable("the optimizer's memory is of other layers")
                    optimizer.state[parameter] = {
                        what: tensor.to(parameter.device if tensor.dim() else "cpu", copy=True)
                        for what, tensor in kept.items()
                    }
        scheduler.load_state_dict({**scheduler.state_dict(), **self._from.schedule})
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._from = None  # its tensors are in the model now

    def began(self, step: int) -> None:
        """Once the trainer is ready: it has to be where the snapshot was."""
        if step != self.position.step:
            raise snapshots.unusable(f"the trainer would go on from step {step}, not {self.position.step}")
        self._since = time.monotonic()

    def stepped(self, loss: float, rate: float) -> bool:
        """
        After each step; False if it was the last.

        1. the loss is a number
        2. validation, where it is due, and patience
        3. a snapshot, where one is due
        """
        now = time.monotonic()
        here, left = (
            self.position.learned(loss, now - self._since, self.order.tokens(self.position.step)),
            True,
        )
        self._since = now
        if not math.isfinite(loss):  # 1
            raise Unlearnable(f"The loss became {loss} at step {here.step}. Use a smaller learning_rate.")
        self.position = here
        last = here.step == here.total_steps
        ends_epoch = here.step % self.order.steps == 0
        measured: float | None = None
        if self.validation and (last or _due(here.step, self.recipe.evaluate_steps, ends_epoch)):  # 2
            measured = self.validated()
            left = self._hopeful(here.step, measured)
        self.say(loss=loss, rate=rate, measured=measured)
        paused = self.ranks.heard(self.listener.paused())
        if paused or last or not left or _due(here.step, self.recipe.checkpoint_steps, ends_epoch):  # 3
            self.keep()
        self._since += time.monotonic() - now  # neither is time of learning
        self.paused = paused and left and not last
        return left and not self.paused

    def say(
        self, loss: float | None = None, rate: float | None = None, measured: float | None = None
    ) -> None:
        """Tell the listener where it stands."""
        here = self.position
        speed = here.tokens / here.seconds if here.seconds else None
        left = (
            here.seconds / here.step * (here.total_steps - here.step) if here.step and here.seconds else None
        )
        self.listener.progress(
            "training",
            step=here.step,
            total_steps=here.total_steps,
            loss=loss,
            eta_seconds=None if left is None else round(left, 1),
            tokens_per_second=None if speed is None else round(speed, 1),
            learning_rate=rate,
            validation_loss=measured,
            epoch=round(here.step / self.order.steps, 4),
        )

    def keep(self) -> None:
        """Hand out a snapshot of where it stands."""
        if self.ranks.rank or self._kept_at == self.position.step:
            return
        self._kept_at = self.position.step
        weights = self.made.weights()
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        kept = {
            name: dict(optimizer.state[parameter])
            for name, parameter in self.made.model.named_parameters()
            if parameter.requires_grad
        }
        self.position = replace(self.position, adapter=snapshots.digest_of(weights))
        schedule = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
        state = State(self.position, weights, self.best, kept, schedule)
        self.listener.snapshot(self.position, snapshots.encode(state))

    def validated(self) -> float:
        """The mean loss of the rows that are never learned."""
        values = self.unlikeliness(self.validation)
        return sum(values) / sum(row.learned for row in self.validation)

    @torch.no_grad()
    def unlikeliness(self, rows: Sequence[Row]) -> list[float]:
        """Of each row, the sum of the losses of what is learned of it (nats). All processes share this."""
        model = self.made.model
        model.eval()
        found = torch.zeros(len(rows), dtype=torch.float32)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
        size = self.recipe.batch_size
        for at in range(0, len(order), size):
            for_us = self.ranks.share(order[at : at + size])
            if for_us:
                batch = self.trainer._prepare_inputs(self.padded([rows[row] for row in for_us]))
                batch.pop("items")
                told = model(**batch, use_cache=False, fused_lm_head=True)
                found[for_us] = -told.log_probs.sum(-1).float().cpu()
        self.ranks.add([found])
        model.train()
        return [float(value) for value in found]

    def padded(self, rows: Sequence[Row], items: int = 0) -> dict[str, Any]:
        """A batch: padded on the right, with how many tokens all processes learn in this step."""
        width = -(-max((len(row.ids) for row in rows), default=1) // PAD_TO) * PAD_TO
        ids = torch.full((max(1, len(rows)), width), self._pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        mask[:, 0] = 1  # a process without a row of its own reads one pad token, and learns nothing
        for place, row in enumerate(rows):
            length = len(row.ids)
            ids[place, :length] = torch.tensor(list(row.ids))
            labels[place, :length] = torch.tensor(list(row.labels))
            mask[place, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "items": items}

    def report(self) -> dict[str, Any]:
        """What there is to tell, in numbers."""
        here = self.position
        first, last, least = here.losses or (None, None, None)
        return {
            "rows_used": len(self.rows) - self.recipe.canaries,
            "tokens_learned": sum(row.learned for row in self.rows),
            "steps": here.step,
            "tokens": here.tokens,
            "first_loss": _rounded(first),
            "last_loss": _rounded(last),
            "best_loss": _rounded(least),
            "validation_losses": [[step, _rounded(loss)] for step, loss in here.validation],
            "best_step": here.best_step if self.best else here.step,
            "stopped_early": here.ended,
            "training_seconds": round(here.seconds, 3),
            "tokens_per_second": round(here.tokens / here.seconds, 1) if here.seconds else None,
            "resumed_at": list(here.resumed),
            "processes": self.ranks.size,
            "threads": torch.get_num_threads(),
            "fast_path": bool(self.installed.applied),
            "fast_parts": list(self.installed.applied),
            "fast_path_left_out": self.installed.because,
            "versions": {name: version(name) for name in ("torch", "trl", "peft", "transformers")},
        }

    def _hopeful(self, step: int, loss: float) -> bool:
        """Remember a validation loss; False once patience is at an end."""
        before = self.position.validation
        self.position = replace(self.position, validation=(*before, (step, loss)))
        if not self.recipe.patience:
            return True
        if not before or loss < min(value for _, value in before):
            self.position = replace(self.position, best_step=step)
            self.best = self.made.weights()
            return True
        since = sum(at > self.position.best_step for at, _ in self.position.validation)
        self.position = replace(self.position, ended=since >= self.recipe.patience)
        return not self.position.ended


class Order(Sampler[list[int]]):
    """The batches of one epoch, of which this process learns its share."""

    def __init__(self, rows: Sequence[Row], recipe: Recipe, ranks: Ranks) -> None:
        self._lengths = [len(row.ids) for row in rows]
        self._recipe, self._ranks = recipe, ranks
        self.steps = steps_an_epoch(len(rows), recipe.batch_size)
        self.epoch = 0
        self._made: tuple[int, list[list[int]]] = (-1, [])

    def whole(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, undivided."""
        if self._made[0] != epoch:
            self._made = (epoch, batches(self._lengths, self._recipe.batch_size, self._recipe.seed, epoch))
        return self._made[1]

    def tokens(self, step: int) -> int:
        """How many tokens are read in a step, padding not counted."""
        epoch, at = divmod(step, self.steps)
        return sum(self._lengths[row] for row in self.whole(epoch)[at])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.whole(self.epoch))

    def __len__(self) -> int:
        return self.steps


class _Numbered:
    """Rows as a loader asks for them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Row:
        return self._rows[row]


class Driver(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over rows that are tokens already, in an order that is known, with its state kept by us."""

    def __init__(self, school: School, **named: Any) -> None:
        self._school = school
        super().__init__(**named)

    def get_train_dataloader(self) -> Any:
        school = self._school

        def collate(batch: list[Row]) -> dict[str, Any]:
            return school.padded(school.ranks.share(batch), sum(row.learned for row in batch))

        return DataLoader(
            _Numbered(school.rows),  # type: ignore[arg-type]
            batch_sampler=school.order,
            collate_fn=collate,
            generator=torch.Generator(),  # of its own: the global one belongs to the steps
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = inputs.pop("items")
        if self._school.installed.applied:
            return fast.mean_loss(model, inputs, items)
        return super().compute_loss(model, inputs, num_items_in_batch=items)

    def training_step(self, *args: Any, **named: Any) -> Any:
        loss = super().training_step(*args, **named)
        school = self._school
        if school.ranks.size > 1:
            learned = [each for each in school.made.model.parameters() if each.requires_grad]
            for parameter in learned:
                if parameter.grad is None:  # the sum is over the same layout everywhere
                    parameter.grad = torch.zeros_like(parameter)
            school.ranks.add([loss, *(parameter.grad for parameter in learned)])
        return loss

    def log(self, logs: Any, start_time: Any = None) -> None:
        self._metrics["train"].clear()
        super().log(logs, start_time)

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """The weights are in the model already."""

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            optimizer: Any = self.optimizer
            self._school.restore(optimizer.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Each step brings its own."""


class Ear(TrainerCallback):  # type: ignore[misc]
    """Passes on to the school what the trainer says."""

    def __init__(self, school: School) -> None:
        self._school = school

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._school.began(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._school.order.epoch = state.global_step // self._school.order.steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        school = self._school
        torch.manual_seed(chance_of(school.recipe.seed, state.global_step, school.ranks.rank))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs and not self._school.stepped(float(logs["loss"]), logs["learning_rate"]):
            control.should_training_stop = True


def _arguments(lesson: Lesson, recipe: Recipe, total: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(lesson.scratch),
        use_cpu=device_named(lesson.device).type == "cpu",
        bf16=False,  # the weights are bfloat16 already where that is fast; autocasting again only costs
        fp16=False,
        max_steps=total,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(
            recipe.warmup * total
        ),  # none for a few steps: the first one of a warm-up learns nothing
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_length=recipe.most_tokens,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        seed=recipe.seed,
    )


def _due(step: int, every: int, ends_epoch: bool) -> bool:
    return step % every == 0 if every else ends_epoch


def _checked(weights: Mapping[str, Tensor], began_with: str) -> bytes:
    """The weights as safetensors; raises if nothing usable was learned."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Unlearnable("The training diverged: some weights are no numbers. Use a smaller learning_rate.")
    encoded = snapshots.encode_weights(weights)
    if hashlib.sha256(encoded).hexdigest() == began_with:
        raise Unlearnable(
            "The training changed nothing. Use more rows, more epochs or a larger learning_rate."
        )
    return encoded


@torch.no_grad()
def _continued(inner: Any, prompt: Sequence[int], most: int) -> list[int]:
    """The greedy continuation, up to the first end token, which is not part of it."""
    inner.eval()
    named = inner.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    said: list[int] = []
    past, ids = None, list(prompt)
    while len(said) < most:
        told = inner(input_ids=torch.tensor([ids], device=inner.device), past_key_values=past, use_cache=True)
        past, ids = told.past_key_values, [int(told.logits[0, -1].argmax())]
        if ids[0] in ends:
            break
        said += ids
    return said


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
