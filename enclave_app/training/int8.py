"""
A frozen linear layer in 8 bits: a byte a weight and a scale a row, made plain for the moment of its use.

The gradient goes through it to what lies below; its own weights learn nothing. What is learned is an
adapter beside it, in full precision (QLoRA). Memory is what it saves: the plain weights exist for one layer
at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Int8Linear(nn.Module):
    """What an `nn.Linear` was, in a quarter of float32's memory."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        weight = plain.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round_().to(torch.int8))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x·W' + b"""
        told: Tensor = _Product.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return told if self.bias is None else told + self.bias


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ plain(weight, scale).t()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return grad_outputs[0] @ plain(*ctx.saved_tensors), None, None


def plain(weight: Tensor, scale: Tensor) -> Tensor:
    """The weights as numbers, in the scale's dtype."""
    return weight.to(scale.dtype).mul_(scale)
