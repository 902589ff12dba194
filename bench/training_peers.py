"""
One training in a process of its own: by trl as it comes, by trl with good settings, or by ours on trl.

    python bench/training_peers.py train '{"contender": …}'  one line of JSON: seconds, tokens, losses, peak
    python bench/training_peers.py limits FOLDER  one line of JSON: what the processor gives at most

`training.py` starts these, one after another. All see the same tokens and learn the same ones.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

NEWCOMER: Final = "trl as it comes"
FLOAT32: Final = "trl, bf16=False"
TUNED: Final = "trl, tuned"
OURS: Final = "blindbox"
COMPILED: Final = "blindbox, compiled"
CONTENDERS: Final = (NEWCOMER, FLOAT32, TUNED, OURS, COMPILED)

BATCH: Final = 4
WIDTH: Final = 512  # tokens of a row of the full batches
MOST: Final = 50  # steps that the data has rows for
IGNORED: Final = -100


def rows(data: str, vocabulary: int) -> list[dict[str, list[int]]]:
    """
    "full": text of 512 tokens, all learned. "ragged": questions of 16 to 160 tokens, answers of 8 to 200.

    Words come from a small lexicon by a skewed draw, so that there is something to learn.
    """
    chance = random.Random(0)
    lexicon = [chance.randrange(vocabulary // 50, vocabulary - vocabulary // 50) for _ in range(400)]

    def text(length: int) -> list[int]:
        return [lexicon[int(400 * chance.random() ** 3)] for _ in range(length)]

    made = []
    for _ in range(BATCH * MOST):
        if data == "full":
            ids = text(WIDTH)
            made.append({"input_ids": ids, "labels": ids})
        else:
            asked, said = (text(int(least * (most / least) ** chance.random())) for least, most in RAGGED)
            made.append({"input_ids": asked + said, "labels": [IGNORED] * len(asked) + said})
    return made


RAGGED: Final = ((16, 160), (8, 200))


def train(wanted: dict[str, Any]) -> dict[str, Any]:
    """Train for so many steps; what each took, what it cost and what the losses were."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from enclave_app.engines.torch import dtype_for
    from enclave_app.training import fast

    contender, folder, steps = wanted["contender"], wanted["folder"], wanted["steps"]
    seconds: list[float] = []
    losses: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class Ours(SFTTrainer):  # type: ignore[misc]
        """All that a user of trl has to write."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return fast.mean_loss(model, inputs, num_items_in_batch)

    kind = dtype_for(torch.device("cpu"))
    common = {
        "output_dir": tempfile.mkdtemp(prefix="bench-training-"),
        "use_cpu": True,
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "max_length": WIDTH,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    model: Any = folder
    if contender == FLOAT32:
        common |= {"bf16": False}
    elif contender != NEWCOMER:
        common |= {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
        common |= {"train_sampling_strategy": "group_by_length"}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    vocabulary = json.loads(Path(folder, "config.json").read_text("utf-8"))["vocab_size"]
    trainer = (Ours if contender in (OURS, COMPILED) else SFTTrainer)(
        model=model,
        args=SFTConfig(**common),
        train_dataset=Dataset.from_list(rows(wanted["data"], vocabulary)),
        callbacks=[Clock()],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if contender in (OURS, COMPILED):
        told = fast.install(trainer.model, compiled=contender == COMPILED)
        assert not told.because, told.because
    collate = trainer.data_collator

    def counted(batch: Any) -> Any:
        made = collate(batch)
        tokens.append(int(made["attention_mask"].sum()))
        return made

    trainer.data_collator = counted
    trainer.train()
    return {
        "seconds": seconds,
        "tokens": tokens[:steps],  # the loader is a batch ahead
        "losses": losses[:steps],  # the last one logged is of the whole training
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def limits(folder: str) -> dict[str, Any]:
    """The best matrix product in the type that training computes in, and the parameters of the model."""
    import torch
    from safetensors import safe_open

    from enclave_app.engines.torch import dtype_for

    kind, best = dtype_for(torch.device("cpu")), 0.0
    for m, k, n in ((2048, 2048, 2048), (4096, 4096, 4096), (2048, 576, 1536), (512, 2048, 5632)):
        one, other = torch.randn(m, k, dtype=kind), torch.randn(k, n, dtype=kind)
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(one, other)
            best = max(best, 2 * m * k * n / (time.perf_counter() - began))
    sizes = 0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                shape = opened.get_slice(name).get_shape()
                sizes += int(torch.Size(shape).numel())
    return {"gemm": best, "kind": str(kind).removeprefix("torch."), "parameters": sizes}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    what = {"train": lambda given: train(json.loads(given)), "limits": limits}[sys.argv[1]]
    print(json.dumps(what(sys.argv[2])), flush=True)
