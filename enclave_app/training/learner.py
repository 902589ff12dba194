"""
What of a model learns: LoRA beside its linear layers, LoRA beside layers in 8 bits, or the layers themselves.

The head, the embeddings and the norms never learn. Heavy: only the training's own process imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ..engines.torch import dtype_for
from ..refusals import listed, nearest
from . import Method, Recipe, TrainingFailed, Unlearnable
from .int8 import Int8Linear


@dataclass(frozen=True, slots=True)
class Learner:
    """A model, and what of it learns."""

    model: Any  # what trl drives: peft's model, or the plain one
    targets: tuple[str, ...]
    method: Method

    @property
    def inner(self) -> Any:
        """The language model itself."""
        return self.model if self.method == "full" else self.model.get_base_model()

    def weights(self) -> dict[str, Tensor]:
        """What has been learned, in float32, apart from the model."""
        if self.method == "full":
            learned = {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}
        else:
            learned = get_peft_model_state_dict(self.model)
        return {
            name: tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
            for name, tensor in learned.items()
        }

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Replace what has been learned; raises `TrainingFailed` unless it fits exactly."""
        own = self.weights()
        if {name: tensor.shape for name, tensor in own.items()} != {
            name: tensor.shape for name, tensor in weights.items()
        }:
            raise TrainingFailed("The weights to go on from are of other layers or another rank.")
        if self.method == "full":
            parameters = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, tensor in weights.items():
                    parameters[name].copy_(tensor)
        else:
            set_peft_model_state_dict(self.model, dict(weights))


def learner(folder: str, device: torch.device, recipe: Recipe) -> Learner:
    """The model, from safetensors, with what shall learn according to the recipe."""
    compute = torch.float32 if recipe.method == "full" else dtype_for(device)
    # Layers that will be kept in 8 bits are read in 16: in 32 they would need the most memory of all.
    loaded = torch.bfloat16 if recipe.method == "qlora" else compute
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=loaded, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    model.to(device)
    targets = _targets(model, recipe.targets)
    if recipe.method == "full":
        for name, parameter in model.named_parameters():
            layer, _, kind = name.rpartition(".")
            parameter.requires_grad_(kind == "weight" and layer.rpartition(".")[2] in targets)
        return Learner(model, targets, recipe.method)
    made = get_peft_model(
        model,
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=list(targets),
            task_type="CAUSAL_LM",
        ),
    )
    if recipe.method == "qlora":
        _to_8_bits(model, compute)
    return Learner(made, targets, recipe.method)


def _to_8_bits(model: Any, compute: torch.dtype) -> None:
    """All linear layers but the head and the adapters; what is left computes in `compute`."""
    for name, layer in _linear(model).items():
        if ".lora_" not in name:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Int8Linear(layer, compute))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(compute)


def _linear(model: Any) -> dict[str, nn.Linear]:
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _targets(model: Any, asked: Sequence[str]) -> tuple[str, ...]:
    known = sorted({name.rpartition(".")[2] for name in _linear(model)})
    for name in asked:
        if name not in known:
            raise Unlearnable(
                f"The model has no layer {name[:64]!r} to train.{nearest(name, known)} "
                f"It has {listed(known)}.",
                code="unknown_target_modules",
            )
    return tuple(sorted(set(asked))) if asked else tuple(known)
