"""What a training takes of memory: estimated near to what it is, and refused with what would fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enclave_app.figures import free_bytes
from enclave_app.jobs import budget
from enclave_app.jobs.budget import admit, estimate
from enclave_app.refusals import Refusal
from enclave_app.settings import MALLOC_TUNABLES
from enclave_app.training import Recipe
from tests.kit.models import tiny

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = CHECKOUT / ".cache" / "models" / "smollm2-135m-instruct"

MEASURE = """
import json, resource, sys
folder, batch, length, method = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
import datasets, torch, trl.trainer.sft_trainer
from pathlib import Path
from enclave_app.training import Recipe, fast
from enclave_app.training.learner import learner
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
model = learner(folder, torch.device("cpu"), Recipe(method=method)).model
told = fast.install(model)
weights = [weight for weight in model.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=1e-4)
for _ in range(2):
    ids = torch.randint(3, model.config.vocab_size, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    loss = fast.mean_loss(model, inputs, None) if told.applied else model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
kept = [{**optimizer.state[weight], "weight": weight.detach().clone()} for weight in weights]
torch.save(kept, Path(sys.argv[5]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps([start, peak]))
"""


def measured(folder: Path, recipe: Recipe, length: int, scratch: Path) -> tuple[int, int]:
    """Resident bytes of a real training in a process of its own: before it has a model, and at its peak."""
    rooms = os.pathsep.join(str(CHECKOUT / room) for room in ("", "attestation", "data"))
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURE,
            str(folder),
            str(recipe.batch_size),
            str(length),
            recipe.method,
            str(scratch / "kept"),
        ],
        env={
            "PATH": os.defpath,
            "PYTHONPATH": rooms,
            "GLIBC_TUNABLES": MALLOC_TUNABLES,
            "HOME": str(scratch),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    start, peak = json.loads(told.stdout.splitlines()[-1])
    return start, peak


def config(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return read


def small(**named: Any) -> budget.Estimate:
    """A llama of the demo's size."""
    shape = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    recipe = Recipe(**{"batch_size": 8, **named})
    return estimate(shape, recipe, 512, 0.5, number=4)


def test_it_knows_the_constants_of_the_fast_path() -> None:
    fast = pytest.importorskip("enclave_app.training.fast")
    assert (budget.QUERIES, budget.KEPT_UP_TO, budget.HEAD_BYTES) == (
        fast.QUERIES,
        fast.KEPT_UP_TO,
        fast.HEAD_BYTES,
    )


@pytest.mark.parametrize(
    "family",
    ["llama", pytest.param("falcon", marks=pytest.mark.slow), pytest.param("gemma", marks=pytest.mark.slow)],
)
def test_a_tiny_training_takes_what_was_estimated(family: str, tmp_path: Path) -> None:
    """Within 0.7 and 1.5 of the truth, measured in a process of its own."""
    pytest.importorskip("torch")
    folder, recipe = tiny(family), Recipe(batch_size=128)
    _, peak = measured(folder, recipe, 256, tmp_path)
    assert 0.7 <= estimate(config(folder), recipe, 256, 1.0).total / peak <= 1.5


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.exists(), reason="the demo's model is not there: make demo")
@pytest.mark.parametrize(
    ("method", "batch_size", "length"),
    [("lora", 4, 512), ("lora", 8, 64), ("lora", 1, 1536), ("qlora", 4, 256), ("full", 2, 256)],
)
def test_a_training_of_the_demo_model_takes_what_was_estimated(
    method: Any, batch_size: int, length: int, tmp_path: Path
) -> None:
    recipe = Recipe(method=method, batch_size=batch_size)
    _, peak = measured(DEMO, recipe, length, tmp_path)
    assert 0.7 <= estimate(config(DEMO), recipe, length, 1.0).total / peak <= 1.5


def test_more_of_anything_takes_more() -> None:
    """Rows, ranks, layers that learn; and less with less."""
    assert small(batch_size=16).total > small().total > small(batch_size=4).total
    assert small(rank=64).total > small().total > small(targets=("q_proj",)).total
    assert small(method="full").total > small().total > small(method="qlora").total
    assert set(small().parts) == {
        "model",
        "gradients",
        "optimizer",
        "snapshot",
        "activations",
        "attention",
        "scores",
        "process",
    }


def test_several_processes_share_a_batch_and_each_holds_the_model() -> None:
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    alone, both = (estimate(shape, Recipe(), 128, 1.0, processes=count, number=4).parts for count in (1, 2))
    assert both["model"] == 2 * alone["model"]
    assert both["activations"] == alone["activations"]


def test_what_fits_is_admitted_and_so_is_what_nobody_can_tell() -> None:
    admit(small(), small().total)
    admit(small(), None)


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_would() -> None:
    """The batch that is named fits, and one row more would not."""
    free = small(batch_size=5).total + 1000
    with pytest.raises(Refusal) as refused:
        admit(small(), free)
    assert (refused.value.code, refused.value.param, refused.value.status) == ("no_memory", "batch_size", 400)
    assert f"needs about {-(-small().total // 2**20)} MiB" in refused.value.message
    assert f"{-(-free // 2**20)} MiB are free" in refused.value.message
    assert "activations" in refused.value.message
    assert "What would fit: batch_size 5 with rows of 512 tokens." in refused.value.message


def test_where_no_batch_fits_a_shorter_row_is_named() -> None:
    one = small(batch_size=1)
    free = one.again(1, 320)
    with pytest.raises(Refusal, match="What would fit: batch_size 1 with max_length 320"):
        admit(one, free)


@pytest.mark.parametrize(
    ("method", "less"),
    [
        ("full", "use method lora or qlora, or a"),
        ("lora", "use method qlora, a smaller r, or a"),
        ("qlora", "use a smaller r, or a"),
    ],
)
def test_where_nothing_fits_that_is_said_and_what_takes_less(method: str, less: str) -> None:
    with pytest.raises(Refusal, match=f"{less} smaller base model"):
        admit(small(method=method), 100 << 20)


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"hidden_size": 0, "num_attention_heads": 0},
        {"model_type": 7, "vocab_size": None, "num_hidden_layers": "many"},
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12},
    ],
)
def test_any_config_gives_a_number(strange: dict[str, Any]) -> None:
    assert estimate(strange, Recipe(), 1, 0.0).total > 0


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "ascii")
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "proc/self/cgroup": "0::/\n"}


def group(name: str, most: str, taken: int, files: int = 0) -> dict[str, str]:
    place = f"sys/fs/cgroup/{name}"
    return {
        f"{place}memory.max": f"{most}\n",
        f"{place}memory.current": f"{taken}\n",
        f"{place}memory.stat": f"anon 5\ninactive_file {files}\nactive_file 7\n",
    }


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MACHINE, 8000 << 10),
        (MACHINE | group("", "max", 5), 8000 << 10),
        (MACHINE | group("", "3000000", 1_000_000), 2_000_000),
        # Files that were read once are no reason to refuse.
        (MACHINE | group("", "3000000", 1_000_000, files=900_000), 2_900_000),
        (MACHINE | group("", "3000000", 4_000_000), 0),
        # A service of a machine: its own group, and those around it.
        (
            MACHINE
            | {"proc/self/cgroup": "0::/box.slice/one.service\n"}
            | group("box.slice/", "700000", 100_000)
            | group("box.slice/one.service/", "max", 90_000),
            600_000,
        ),
        # An older kernel's form of it.
        (
            MACHINE
            | {"proc/self/cgroup": "9:memory:/one\n1:cpu:/\n"}
            | {
                "sys/fs/cgroup/memory/one/memory.limit_in_bytes": "500000\n",
                "sys/fs/cgroup/memory/one/memory.usage_in_bytes": "200000\n",
                "sys/fs/cgroup/memory/one/memory.stat": "cache 0\ninactive_file 0\n",
            },
            300_000,
        ),
    ],
)
def test_free_memory_is_the_machines_and_within_the_containers_limit(
    files: dict[str, str], free: int | None, tmp_path: Path
) -> None:
    assert free_bytes(tree(tmp_path, files)) == free
