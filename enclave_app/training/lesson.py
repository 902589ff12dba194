"""
One lesson: rows become tokens, tokens become an adapter.

Rows become tokens by the same `Template` that serving uses; only the answer and the end token are learned.
trl's SFTTrainer drives; the model's head is applied to the learned positions alone, which for short answers
saves a good part of the work. Heavy imports live here, in the training's own process (`sft_child.py`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..engines.torch import device_named, dtype_for, silence
from ..prompts import IGNORED, Example, Template
from . import Unlearnable

PAD_TO = 16  # each new length costs the math library a set-up
BLOCK = 512  # positions whose scores exist at once

Say = Callable[..., None]


def train(job: Mapping[str, Any], say: Say) -> tuple[dict[str, Any], bytes]:
    """
    Train as the job says; return what there is to tell, and the adapter as safetensors.

    1. the model and its tokenizer, from safetensors
    2. rows → tokens and labels
    3. LoRA on all linear layers, by trl's SFTTrainer
    4. the adapter's weights, checked to have moved and to be numbers
    """
    silence()
    recipe = job["recipe"]
    set_seed(_seed(recipe))
    device = device_named(job["device"])
    tokenizer, model = _base(job["folder"], device)  # 1
    template = Template.for_tuning(tokenizer, plain_text=job["plain_text"])
    window = getattr(model.config, "max_position_embeddings", None) or recipe["most_tokens"]
    most = min(recipe["most_tokens"], window)
    end = _end(model, tokenizer)
    examples = [  # 2
        template.example(tokenizer, asked, said, end=end, most=most) for asked, said in job["rows"]
    ]
    usable = [example for example in examples if example.learned]
    if not usable:
        raise Unlearnable(
            f"No row has a token to learn within {most} tokens: the questions alone are longer."
        )
    listener = Listener(say)
    trainer = _trainer(model, tokenizer, usable, recipe["rank"], listener, _arguments(job, device, most))
    began = time.monotonic()
    trainer.train()  # 3
    seconds = time.monotonic() - began
    encoded = _weights(trainer.model)  # 4
    config = trainer.model.peft_config["default"]
    return {
        "template": template.value,
        "template_digest": template.digest(tokenizer),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted(config.target_modules),
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
        "report": {
            "rows_used": len(usable),
            "rows_too_long": len(examples) - len(usable),
            "rows_cut": sum(example.cut for example in usable),
            "tokens_learned": sum(example.learned for example in usable),
            "steps": trainer.state.global_step,
            "first_loss": round(listener.losses[0], 4),
            "last_loss": round(listener.losses[-1], 4),
            "training_seconds": round(seconds, 3),
        },
    }, encoded


class Listener(TrainerCallback):  # type: ignore[misc]
    """Tells where the training stands after each step, and ends it when the loss is no number."""

    def __init__(self, say: Say) -> None:
        self.losses: list[float] = []
        self._say = say
        self._began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.monotonic()
        self._say(phase="training", step=0, total_steps=state.max_steps, loss=None, eta_seconds=None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise Unlearnable(
                f"The loss became {loss} at step {state.global_step}. Use a smaller learning_rate."
            )
        left = (time.monotonic() - self._began) / state.global_step * (state.max_steps - state.global_step)
        self._say(
            phase="training",
            step=state.global_step,
            total_steps=state.max_steps,
            loss=round(loss, 4),
            eta_seconds=round(left, 1),
        )


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer, with the head applied to the learned positions only."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inner = self.accelerator.unwrap_model(model).get_base_model()
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORED
        states = inner.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state[:, :-1][learned]
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for part, wanted in zip(states.split(BLOCK), labels[learned].split(BLOCK), strict=True):
            scores = inner.get_output_embeddings()(part).float()
            total = total + torch.nn.functional.cross_entropy(scores, wanted, reduction="sum")
        return total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)

    def log(self, logs: Any, start_time: Any = None) -> None:
        self._metrics["train"].clear()
        super().log(logs, start_time)


def _base(folder: str, device: torch.device) -> tuple[Any, Any]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype_for(device),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    return tokenizer, model


def _arguments(job: Mapping[str, Any], device: torch.device, most: int) -> SFTConfig:
    recipe = job["recipe"]
    return SFTConfig(
        output_dir=job["scratch"],
        use_cpu=device.type == "cpu",
        bf16=False,  # the weights are bfloat16 already where that is fast; autocasting again only costs
        fp16=False,
        num_train_epochs=recipe["epochs"],
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0.1,  # a share of all steps
        per_device_train_batch_size=recipe["batch_size"],
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_length=most,
        packing=False,
        pad_to_multiple_of=PAD_TO,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_strategy="steps",
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        seed=_seed(recipe),
    )


def _trainer(
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    rank: int,
    listener: Listener,
    arguments: SFTConfig,
) -> Any:
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"input_ids": list(example.ids), "labels": list(example.labels)} for example in examples]
        ),
        processing_class=tokenizer,
        callbacks=[listener],
        peft_config=LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _weights(model: Any) -> bytes:
    """The adapter as safetensors in float32; raises if it is no adapter."""
    weights = {
        name: tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Unlearnable("The training diverged: some weights are no numbers. Use a smaller learning_rate.")
    if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name):
        raise Unlearnable(
            "The training changed nothing. Use more rows, more epochs or a larger learning_rate."
        )
    encoded: bytes = safetensors.torch.save(weights)
    return encoded


def _end(model: Any, tokenizer: Any) -> int | None:
    """The end token that is learned: the model's first, or the tokenizer's."""
    named = model.generation_config.eos_token_id
    if isinstance(named, list):
        named = named[0] if named else None
    return tokenizer.eos_token_id if named is None else int(named)


def _seed(recipe: Mapping[str, Any]) -> int:
    return int(recipe["seed"] % (1 << 32))
