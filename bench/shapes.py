"""
Models of real sizes with random weights, made ready for OpenVINO, to measure speed with.

    python bench/shapes.py llama-1b|falcon-7b [--weights int8] [--cache DIR]

`llama-1b` has TinyLlama's shape (1.1 B parameters), `falcon-7b` Falcon-7B's (6.9 B). A model is written layer
by layer, in bfloat16, and goes through the same exporter as any other. Falcon's takes about 35 GB of disk on
the way; the 14 GB of the model itself may be deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
EXPORTED = ROOT / ".cache" / "exported"  # where bench/serving.py looks
WORDS = ROOT / ".cache" / "models" / "smollm2-135m-instruct"

SHAPES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "llama-1b": (
        "Llama",
        {
            "vocab_size": 49152,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-7b": (
        "Falcon",
        {
            "vocab_size": 65024,
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "alibi": False,
            "bias": False,
            "max_position_embeddings": 2048,
        },
    ),
}
"""transformers' name of the class, and its configuration."""


def model(name: str, cache: Path) -> Path:
    """The folder of a model of this shape; written once, a file for each layer."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder = cache / name
    if (folder / "config.json").is_file():
        return folder
    kind, shape = SHAPES[name]
    config = getattr(transformers, f"{kind}Config")(**shape, bos_token_id=None, eos_token_id=2)
    with torch.device("meta"):
        empty = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    making = folder.with_name(f".{name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    torch.manual_seed(0)
    files: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for place, parameter in empty.named_parameters():  # tied ones come once
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        parts = place.split(".")
        layer = next((part for part in parts if part.isdigit()), "rest")
        files.setdefault(f"model-{layer}.safetensors", {})[place] = parameter
    places: dict[str, str] = {}
    for file, parameters in files.items():
        made = {place: _random(place, parameter) for place, parameter in parameters.items()}
        save_file(made, making / file, metadata={"format": "pt"})
        places |= dict.fromkeys(made, file)
    (making / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.architectures = [f"{kind}ForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(making)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(WORDS / file, making / file)
    making.rename(folder)
    return folder


def _random(place: str, parameter: Any) -> Any:
    import torch

    if parameter.dim() == 1:  # of a norm
        return (torch.zeros if place.endswith("bias") else torch.ones)(parameter.shape, dtype=torch.bfloat16)
    return torch.randn(parameter.shape, dtype=torch.bfloat16) * 0.02


def ready(name: str, weights: Any, cache: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The IR's folder, made if it is not there."""
    from enclave_app.engines.export import export
    from enclave_app.models import Model

    begun = time.perf_counter()
    folder = model(name, cache)
    say(f"{name} is written after {time.perf_counter() - begun:.0f} s.")
    made = export(Model.at(folder), weights, [EXPORTED])
    size = sum(path.stat().st_size for path in made.iterdir())
    say(f"{made} ({size >> 20} MiB) is ready after {time.perf_counter() - begun:.0f} s.")
    return made


def main() -> None:
    """The command line; see the module's first lines."""
    parser = argparse.ArgumentParser(description="models of real sizes with random weights")
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--weights", choices=("int8", "bf16", "int4"), default="int8")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "shapes")
    chosen = parser.parse_args()
    ready(chosen.name, chosen.weights, chosen.cache, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
