"""
Supervised fine-tuning, the side that does the work: a process that reads one job and answers with weights.

Rows become tokens by the same `Template` that serving uses; only the answer and the end token are learned.
trl's SFTTrainer drives; the model's head is applied to the learned positions alone, which for short answers
saves a good part of the work. The process's own output is discarded, and an error is told by its type.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import threading
import time
from typing import Any, BinaryIO

from ..prompts import IGNORED, Template
from . import Unlearnable, pipe

PAD_TO = 16  # each new length costs the math library a set-up
BLOCK = 512  # positions whose scores exist at once


def main() -> None:
    """Read the job from standard input, answer on standard output, leave."""
    down, up = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not get between the frames
    job = pipe.receive(down)
    threading.Thread(target=_die_with_parent, args=(down,), daemon=True).start()
    try:
        message, weights = train(job, lambda **said: pipe.send(up, {"say": "progress", **said}))
        pipe.send(up, {"say": "done", **message})
        pipe.send(up, weights)
    except pipe.PipeClosed:
        pass
    except MemoryError:
        _fail(up, "There is not enough memory. Use fewer or shorter rows, or a smaller batch_size.")
    except Unlearnable as error:
        _fail(up, str(error), "unlearnable")
    except Exception as error:  # noqa: BLE001 - its text may quote a row, its type does not
        _fail(up, f"The training failed ({type(error).__name__}). Your previous model is untouched.")
    os._exit(0)


def train(job: dict[str, Any], say: Any) -> tuple[dict[str, Any], bytes]:
    """
    Train as the job says.

    1. the model and its tokenizer, from safetensors
    2. rows → tokens and labels
    3. LoRA on all linear layers, by trl's SFTTrainer
    4. the adapter's weights, checked to have moved and to be numbers
    """
    import safetensors.torch
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from ..engines.torch import device_named, dtype_for, silence

    silence()
    recipe = job["recipe"]
    set_seed(recipe["seed"] % (1 << 32))
    device = device_named(job["device"])
    said = {"step": 0, "total_steps": 0, "loss": None, "eta_seconds": None}

    tokenizer: Any = AutoTokenizer.from_pretrained(
        job["folder"], trust_remote_code=False, local_files_only=True
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        job["folder"],
        dtype=dtype_for(device),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    end = _end(model, tokenizer)
    template = Template.for_tuning(tokenizer, plain_text=job["plain_text"])
    most = min(
        recipe["most_tokens"], getattr(model.config, "max_position_embeddings", None) or recipe["most_tokens"]
    )
    examples = [
        template.example(tokenizer, question, answer, end=end, most=most) for question, answer in job["rows"]
    ]
    usable = [example for example in examples if example.learned]
    if not usable:
        raise Unlearnable(
            f"No row has a token to learn within {most} tokens: the questions alone are longer."
        )
    rows = Dataset.from_list(
        [{"input_ids": list(example.ids), "labels": list(example.labels)} for example in usable]
    )

    class Listener(TrainerCallback):  # type: ignore[misc]
        """Tells where the training stands after each step."""

        began = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.monotonic()
            say(**{**said, "phase": "training", "total_steps": state.max_steps})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            loss = float(logs["loss"])
            losses.append(loss)
            if not math.isfinite(loss):
                raise Unlearnable(
                    f"The loss became {loss} at step {state.global_step}. Use a smaller learning_rate."
                )
            left = (time.monotonic() - self.began) / state.global_step * (state.max_steps - state.global_step)
            say(
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

    losses: list[float] = []
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    arguments = SFTConfig(
        output_dir=job["scratch"],
        use_cpu=device.type == "cpu",
        bf16=False,  # the weights are bfloat16 already where that is fast; autocasting again only costs
        fp16=False,
        num_train_epochs=recipe["epochs"],
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=min(5, 0.1),
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
        seed=recipe["seed"] % (1 << 32),
    )
    trainer: Any = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Listener()],
        peft_config=LoraConfig(
            r=recipe["rank"],
            lora_alpha=2 * recipe["rank"],
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began

    weights = {
        name: tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        for name, tensor in get_peft_model_state_dict(trainer.model).items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Unlearnable("The training diverged: some weights are no numbers. Use a smaller learning_rate.")
    if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name):
        raise Unlearnable(
            "The training changed nothing. Use more rows, more epochs or a larger learning_rate."
        )
    encoded = safetensors.torch.save(weights)
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
            "first_loss": round(losses[0], 4),
            "last_loss": round(losses[-1], 4),
            "training_seconds": round(seconds, 3),
        },
    }, encoded


def _end(model: Any, tokenizer: Any) -> int | None:
    """The end token that is learned: the model's first, or the tokenizer's."""
    named = model.generation_config.eos_token_id
    if isinstance(named, list):
        named = named[0] if named else None
    return tokenizer.eos_token_id if named is None else int(named)


def _fail(up: BinaryIO, message: str, how: str = "failed") -> None:
    try:
        pipe.send(up, {"say": how, "message": message})
    except pipe.PipeClosed:
        return


def _die_with_parent(down: BinaryIO) -> None:
    down.read(1)  # nothing more is ever sent: the pipe's end means that nobody listens
    os._exit(1)
