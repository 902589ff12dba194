"""
Training faster on a processor: the same sums as transformers and peft, fewer of them, and less kept.

`install` gives one model's own layers shorter ways for training; `mean_loss` is what a trainer's
`compute_loss` returns then. It is trl's trainer still, and peft's model: nothing is replaced but the
`forward` of instances, and only while `mean_loss` runs. What is shorter:

- rows:        padding is not computed, nor what follows a row's last learned token
- lora:        one function a layer, in the base's dtype over float32 adapters; it keeps x and x·A, no more
- attention:   blocks of queries, each with the keys before it; keys are not repeated for grouped queries
- norm, mlp:   keep their inputs only
- loss:        the head is applied to learned positions, a piece at a time; the gradient comes with the loss

Losses and gradients are those of the plain path but for rounding. Kinds of models that are not known here are
left as they are, and `Installed.because` says so. How much it brings: docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import Function
from transformers.activations import SiLUActivation

from ..prompts import IGNORED
from .int8 import Int8Linear, plain

QUERIES: Final = 128  # of one block of attention
KEPT_UP_TO: Final = 1024  # tokens of a row; of longer ones, attention is made again on the way back
HEAD_BYTES: Final = 64 << 20  # of scores that exist at once
ROUND_TO: Final = 32  # tokens of a step in bfloat16, where each new number costs the math library a set-up

_LLAMAS: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
_FALCONS: Final = frozenset({"FalconForCausalLM"})


@dataclass(frozen=True, slots=True)
class Installed:
    """What was made shorter, and why not all of it was (empty when all was). Nothing: use trl's own loss."""

    applied: tuple[str, ...]
    because: str = ""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A batch without its padding: rows one after another, and where each begins and ends."""

    ids: Tensor  # [1, tokens]
    positions: Tensor  # [1, tokens]
    wanted: Tensor  # [tokens], what each position should say next, or IGNORED
    bounds: tuple[tuple[int, int], ...]


_now: ContextVar[_Rows | None] = ContextVar("rows that are being learned", default=None)


def install(model: Any, *, compiled: bool = False) -> Installed:
    """
    Give a model its shorter ways: a `PeftModel`, or the model itself where all weights are trained.

    With `compiled`, what is done number by number goes through torch.compile, which needs a C++ compiler.
    Call it after the trainer was made, since trl replaces the model's `forward` as well.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    why_not = _unknown(inner)
    if why_not:
        return Installed((), why_not)
    kernels = _compiled() if compiled else _KERNELS
    applied = ["rows", "loss", "attention"]
    done, left = _install_lora(model)
    applied += ["lora"] if done else []
    falcon = type(inner).__name__ in _FALCONS
    norms, gated = 0, 0
    for module in inner.modules():
        kind = type(module).__name__
        if kind == "FalconAttention" or (kind.endswith("Attention") and hasattr(module, "o_proj")):
            _replace(module, _falcon_attention if falcon else _llama_attention, kernels)
        elif kind.endswith("RMSNorm") and not module.weight.requires_grad:
            _replace(module, _rms_norm, kernels)
            norms += 1
        elif kind.endswith("MLP") and isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation):
            _replace(module, _gated_mlp, kernels)
            gated += 1
    applied += [name for name, count in (("norm", norms), ("mlp", gated)) if count]
    _replace(inner, _loss_of_rows, kernels)
    because = (
        f"{left} layers stay as peft has them (dropout, or other weights than plain ones)" if left else ""
    )
    return Installed(tuple(applied), because)


def mean_loss(model: Any, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Tensor:
    """
    The sum of cross entropies of a right-padded batch, by `num_items` (none: its learned tokens).

    `model` is what `install` was given, as it is or wrapped for several processes: it is called as ever, so
    that what wraps it sees its forward. Where several processes share `num_items`, the caller multiplies by
    their number, as trl does.
    """
    rows = _rows(inputs, ROUND_TO if _dtype(model) == torch.bfloat16 else 1)
    token = _now.set(rows)
    try:
        # A mask of four dimensions is passed on as it is: nobody builds one of tokens by tokens.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.ids.device)
        told = model(input_ids=rows.ids, attention_mask=mask, position_ids=rows.positions, use_cache=False)
    finally:
        _now.reset(token)
    count = (rows.wanted != IGNORED).sum() if num_items is None else num_items
    loss: Tensor = told["loss"] / torch.as_tensor(count, device=rows.ids.device).clamp(min=1)
    return loss


# Rows


def _rows(inputs: Mapping[str, Any], round_to: int) -> _Rows:
    ids, labels = inputs["input_ids"], inputs["labels"]
    mask = inputs.get("attention_mask")
    lengths = mask.sum(1) if mask is not None else torch.full((len(ids),), ids.shape[1])
    places = torch.arange(ids.shape[1], device=ids.device)
    if mask is not None and not torch.equal(mask.bool(), places < lengths[:, None]):
        raise ValueError("the fast path takes rows that are padded on the right")
    wanted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    wanted = wanted.masked_fill(places >= lengths[:, None] - 1, IGNORED)
    # Nothing that comes after the last learned token has a say in it.
    ends = ((wanted != IGNORED) * (places + 1)).amax(1)
    if not bool(ends.any()):
        ends = torch.ones_like(ends)  # a batch without anything to learn is a loss of 0, not an error
    used = places < ends[:, None]
    flat, said = ids[used], wanted[used]
    positions = places.expand_as(ids)[used]
    bounds, at = [], 0
    for length in ends.tolist():
        if length:
            bounds.append((at, at + length))
            at += length
    missing = -at % round_to
    if missing:
        flat = nn.functional.pad(flat, (0, missing))
        said = nn.functional.pad(said, (0, missing), value=IGNORED)
        positions = torch.cat([positions, torch.arange(missing, device=ids.device)])
        bounds.append((at, at + missing))
    return _Rows(flat[None], positions[None], said, tuple(bounds))


# The model, its attention, norms and feed-forward: `forward` while rows are being learned


def _loss_of_rows(module: Any, kernels: _Kernels, *_: Any, **__: Any) -> dict[str, Tensor]:
    rows = _learning()
    told = module.base_model(
        input_ids=rows.ids,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.ids.device),
        position_ids=rows.positions,
        use_cache=False,
    )
    learned = rows.wanted != IGNORED
    states, wanted = told.last_hidden_state[0][learned], rows.wanted[learned]
    head = module.get_output_embeddings()
    piece = max(32, HEAD_BYTES // (4 * head.weight.shape[0]))
    return {"loss": _by(_Loss, states, head.weight, head.bias, wanted, piece, kernels)}


def _llama_attention(
    module: Any,
    kernels: _Kernels,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    *_: Any,
    **__: Any,
) -> tuple[Tensor, None]:
    heads = (hidden_states.shape[1], -1, module.head_dim)
    q = module.q_proj(hidden_states).view(heads)
    k = module.k_proj(hidden_states).view(heads)
    v = module.v_proj(hidden_states).view(heads)
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    cos, sin = (angle[0, :, None] for angle in position_embeddings)
    q, k = (_by(_Rotary, each, cos, sin, kernels) for each in (q, k))
    seen = _by(_Attention, q, k, v, _learning().bounds, module.scaling)
    return module.o_proj(seen.view(1, len(seen), -1)), None


def _falcon_attention(
    module: Any,
    kernels: _Kernels,
    hidden_states: Tensor,
    alibi: None,
    attention_mask: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    fused, width = module.query_key_value(hidden_states)[0], module.head_dim
    if module.new_decoder_architecture:  # each group of queries, its key, its value, the next group …
        groups = fused.view(len(fused), module.num_kv_heads, -1, width)
        q, k, v = groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]
    elif module.multi_query:
        heads = fused.view(len(fused), -1, width)
        q, k, v = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]
    else:
        q, k, v = fused.view(len(fused), module.num_heads, 3, width).unbind(2)
    cos, sin = (angle[0, :, None] for angle in position_embeddings)
    q, k = (_by(_Rotary, each, cos, sin, kernels) for each in (q, k))
    seen = _by(_Attention, q, k, v, _learning().bounds, width**-0.5)
    return module.dense(seen.view(1, len(seen), -1)), None


def _rms_norm(module: Any, kernels: _Kernels, hidden_states: Tensor) -> Tensor:
    normed: Tensor = _by(_RmsNorm, hidden_states, module.weight, module.variance_epsilon, kernels)
    return normed


def _gated_mlp(module: Any, kernels: _Kernels, x: Tensor) -> Tensor:
    told: Tensor = module.down_proj(_by(_SwiGlu, module.gate_proj(x), module.up_proj(x), kernels))
    return told


def _by(function: type[Function], *given: Any) -> Any:
    return function.apply(*given)  # type: ignore[no-untyped-call]


# What each of them does


class _Lora(Function):
    """x·W' + b + s·(x·A')·B', with W and b frozen. W may be in 8 bits, with a scale a row (`int8.py`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        of_rows: Tensor | None,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = x @ a.t()
        ctx.save_for_backward(x, low, weight, of_rows, a, b)
        ctx.scale = scale
        return nn.functional.linear(x, _whole(weight, of_rows), bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, low, weight, of_rows, a, b = ctx.saved_tensors
        low_grad = grad @ b
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ _whole(weight, of_rows)).addmm_(low_grad, a, alpha=ctx.scale)
        a_grad = (low_grad.t() @ x).float().mul_(ctx.scale)
        b_grad = (grad.t() @ low).float().mul_(ctx.scale)
        return x_grad, None, None, None, a_grad, b_grad, None


def _whole(weight: Tensor, of_rows: Tensor | None) -> Tensor:
    return weight if of_rows is None else plain(weight, of_rows)


class _Attention(Function):
    """Causal attention of each row with itself: [tokens, heads, width] each; k and v may have fewer heads."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: tuple[tuple[int, int], ...], scale: float
    ) -> Tensor:
        told = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        kept = []
        for begin, end in bounds:
            keys, values = _by_head(k[begin:end]), _by_head(v[begin:end])
            for first in range(begin, end, QUERIES):
                last = min(first + QUERIES, end)
                queries = _by_group(q[first:last], keys.shape[0])
                share = _shares(queries, keys, first - begin, last - begin, scale)
                seen = torch.bmm(share, values[:, : last - begin])
                _put(told[first:last], seen)
                if end - begin <= KEPT_UP_TO and any(ctx.needs_input_grad):
                    kept.append(share)
        ctx.save_for_backward(q, k, v, told, *kept)
        ctx.bounds, ctx.scale = bounds, scale
        return told

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, told, *kept = ctx.saved_tensors
        left = iter(kept)
        q_grad = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k_grad, v_grad = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
        along = (grad * told).sum(-1, keepdim=True, dtype=torch.float32).to(grad.dtype)
        for begin, end in ctx.bounds:
            keys, values = _by_head(k[begin:end]), _by_head(v[begin:end])
            key_sum, value_sum = (
                torch.zeros(keys.shape, dtype=torch.float32, device=k.device) for _ in range(2)
            )
            for first in range(begin, end, QUERIES):
                last = min(first + QUERIES, end)
                length = last - begin
                queries = _by_group(q[first:last], keys.shape[0])
                if end - begin <= KEPT_UP_TO:
                    share = next(left)
                else:
                    share = _shares(queries, keys, first - begin, length, ctx.scale)
                seen_grad = _by_group(grad[first:last], keys.shape[0])
                value_sum[:, :length] += torch.bmm(share.transpose(1, 2), seen_grad)
                inner = torch.bmm(seen_grad, values[:, :length].transpose(1, 2))
                inner.sub_(_by_group(along[first:last], keys.shape[0])).mul_(share)
                _put(q_grad[first:last], torch.bmm(inner, keys[:, :length]).mul_(ctx.scale))
                key_sum[:, :length] += torch.bmm(inner.transpose(1, 2), queries)
            k_grad[begin:end] = key_sum.mul_(ctx.scale).transpose(0, 1)
            v_grad[begin:end] = value_sum.transpose(0, 1)
        return q_grad, k_grad, v_grad, None, None


def _by_head(x: Tensor) -> Tensor:
    """[tokens, heads, width] → [heads, tokens, width]"""
    return x.transpose(0, 1).contiguous()


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[tokens, heads, width] → [groups, heads of one · tokens, width]"""
    return x.reshape(x.shape[0], groups, -1, x.shape[2]).permute(1, 2, 0, 3).reshape(groups, -1, x.shape[2])


def _put(into: Tensor, x: Tensor) -> None:
    """The other way round, into [tokens, heads, width]."""
    tokens, _, width = into.shape
    into.view(tokens, len(x), -1, width).copy_(x.view(len(x), -1, tokens, width).permute(2, 0, 1, 3))


def _shares(queries: Tensor, keys: Tensor, first: int, last: int, scale: float) -> Tensor:
    """What part of its attention each query gives each key that is not after it."""
    scores = torch.bmm(queries, keys[:, :last].transpose(1, 2)).mul_(scale)
    block = last - first
    later = torch.ones(block, block, dtype=torch.bool, device=scores.device).triu_(1)
    scores.view(len(keys), -1, block, last)[..., first:].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, -1)


class _Loss(Function):
    """
    The sum of cross entropies of states·W' + b, W and b frozen.

    The scores of a piece become their own gradient in place, so that only the states' gradient is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        wanted: Tensor,
        piece: int,
        kernels: _Kernels,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for at in range(0, len(wanted), piece):
            part = states[at : at + piece]
            loss, scores, scale = kernels.cross_entropy(
                nn.functional.linear(part, weight, bias), wanted[at : at + piece]
            )
            total += loss
            if grads is not None:
                torch.mul(scores.to(part.dtype) @ weight, scale, out=grads[at : at + piece])
        if grads is not None:
            ctx.save_for_backward(grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        (grads,) = ctx.saved_tensors
        return grads * grad.to(grads.dtype), None, None, None, None, None


class _RmsNorm(Function):
    """x / rms(x) · w, with w frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kernels: _Kernels) -> Tensor:
        told, scale = kernels.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        ctx.kernels = kernels
        return told

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return ctx.kernels.rms_norm_back(grad, *ctx.saved_tensors), None, None, None


class _SwiGlu(Function):
    """silu(gate) · up"""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: _Kernels) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        told: Tensor = kernels.swiglu(gate, up)
        return told

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        return *ctx.kernels.swiglu_back(grad, *ctx.saved_tensors), None


class _Rotary(Function):
    """Each head turned by the angles of its position; the way back turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, kernels: _Kernels) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return kernels.rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        cos, sin = ctx.saved_tensors
        return ctx.kernels.rotary(grad, cos, -sin), None, None, None


# What is done number by number


@dataclass(frozen=True, slots=True)
class _Kernels:
    cross_entropy: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rms_norm_back: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    swiglu_back: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]


def _cross_entropy(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and the scores' gradient but for a factor a row: cheaper on what it is multiplied with."""
    scores, wanted = scores.float(), wanted[:, None]
    scores.sub_(scores.amax(1, keepdim=True))
    own = scores.gather(1, wanted)
    whole = scores.exp_().sum(1, keepdim=True)
    scores.scatter_add_(1, wanted, -whole)
    return (whole.log() - own).sum(), scores, whole.reciprocal()


def _rms_norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    numbers = x.float()
    scale = numbers.square().mean(-1, keepdim=True).add(epsilon).rsqrt()
    return (numbers * scale).to(x.dtype) * weight, scale


def _rms_norm_back(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    normed, grads = x.float() * scale, (grad * weight).float()
    along = (grads * normed).mean(-1, keepdim=True)
    return grads.sub_(normed.mul_(along)).mul_(scale).to(x.dtype)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate).mul_(up)


def _swiglu_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    up_grad = nn.functional.silu(gate).mul_(grad)
    return torch.ops.aten.silu_backward(grad * up, gate), up_grad


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    told = x * cos
    told[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    told[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return told


_KERNELS: Final = _Kernels(_cross_entropy, _rms_norm_forward, _rms_norm_back, _swiglu, _swiglu_back, _rotary)


def _compiled() -> _Kernels:
    """The same by torch.compile, whatever the number of tokens."""

    def one(what: Callable[..., Any]) -> Callable[..., Any]:
        made: Callable[..., Any] = torch.compile(what, dynamic=True)
        return made

    return _Kernels(
        one(_cross_entropy),
        one(_rms_norm_forward),
        one(_rms_norm_back),
        one(_swiglu),
        one(_swiglu_back),
        one(_rotary),
    )


# Whether, and where


def _unknown(model: Any) -> str:
    """Why this model is left as it is; nothing where it is known."""
    kind, config = type(model).__name__, model.config
    if kind not in _LLAMAS | _FALCONS:
        return f"{kind} is not a kind of model that is known here"
    if model.device.type != "cpu":
        return f"it is for processors, and this model is on {model.device.type}"
    if getattr(config, "alibi", False):
        return "alibi is not known here"
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "hidden_dropout", 0.0):
        return "the model's own dropout is not 0"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "attention within a sliding window is not known here"
    if kind == "MistralForCausalLM" and config.sliding_window is not None:
        return "attention within a sliding window is not known here"
    if model.is_gradient_checkpointing:
        return "gradient checkpointing is on"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return "the head is trained, or no plain layer"
    return ""


def _install_lora(model: Any) -> tuple[int, int]:
    """The layers of peft whose sums are known; the others stay peft's. How many of each."""
    done, left = 0, 0
    for module in model.modules():
        if isinstance(module, LoraLinear):
            if _plain_lora(module):
                _replace_lora(module)
                done += 1
            else:
                left += 1
    return done, left


def _plain_lora(module: LoraLinear) -> bool:
    base: Any = module.base_layer
    if len(module.active_adapters) != 1 or module.active_adapters[0] not in module.lora_A:
        return False
    adapter = module.active_adapters[0]
    return (
        type(base).__name__ in ("Linear", "FalconLinear", "Int8Linear")
        and isinstance(base, nn.Linear | Int8Linear)
        and not base.weight.requires_grad
        and not (base.bias is not None and base.bias.requires_grad)
        and adapter not in module.lora_variant
        and not module.lora_bias[adapter]
        and isinstance(module.lora_dropout[adapter], nn.Identity)
    )


def _replace_lora(module: Any) -> None:
    before, adapter = module.forward, module.active_adapters[0]

    def forward(_: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        base = module.base_layer
        of_rows = base.scale if isinstance(base, Int8Linear) else None
        kind = (base.weight if of_rows is None else of_rows).dtype
        if _now.get() is None or module.disable_adapters or module.merged or x.dtype != kind:
            return before(x, *rest, **named)
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        flat = x.reshape(-1, x.shape[-1])  # here, so that the answer may be added to in place, as Falcon does
        told = _by(_Lora, flat, base.weight, of_rows, base.bias, a, b, module.scaling[adapter])
        return told.view(*x.shape[:-1], -1)

    module.forward = MethodType(forward, module)


def _replace(module: Any, shorter: Callable[..., Any], kernels: _Kernels) -> None:
    """The shorter way while rows are being learned, the module's own at all other times."""
    before = module.forward

    def forward(_: Any, *rest: Any, **named: Any) -> Any:
        if _now.get() is None:
            return before(*rest, **named)
        return shorter(module, kernels, *rest, **named)

    module.forward = MethodType(forward, module)


def _learning() -> _Rows:
    rows = _now.get()
    assert rows is not None
    return rows


def _dtype(model: Any) -> torch.dtype:
    frozen = (parameter.dtype for parameter in model.parameters() if not parameter.requires_grad)
    return next(iter(frozen), torch.float32)
