"""
What a training takes of memory, told before it starts: a job that cannot fit is refused with the numbers.

The parts are those of the trainer (`../training/`): the model, what is learned with its gradients and its
optimizer, what each layer keeps for the way back, the head's scores, copies for snapshots, the process
itself. Kinds of models that `fast.py` knows keep less than others do. An estimate is of the largest batch
there could be: as many of the longest row as a step takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..refusals import Refusal
from ..training import Method, Recipe

PROCESS: Final = 640 << 20  # the interpreter with torch, transformers, peft and trl, before it holds a model
QUERIES: Final = 128  # as in ../training/fast.py, which this module must not import: it is heavy
KEPT_UP_TO: Final = 1024  # likewise
HEAD_BYTES: Final = 64 << 20  # likewise
_LENGTHS: Final = 16  # what lengths are told in

_LESS: Final[Mapping[Method, str]] = {
    "full": "method lora or qlora, or",
    "lora": "method qlora, a smaller r, or",
    "qlora": "a smaller r, or",
}

_LLAMAS: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_GATED: Final = _LLAMAS | {"gemma", "gemma2", "gemma3_text", "phi3", "cohere", "olmo2"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by what they are for, of all processes together."""

    parts: Mapping[str, int]
    batch_size: int
    longest: int
    method: Method
    again: Callable[[int, int], int] = field(repr=False, compare=False)  # total at (batch size, longest row)

    @property
    def total(self) -> int:
        """All of it, at the worst moment."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class _Shape:
    """A decoder, as far as memory is concerned."""

    kind: str
    layers: int
    width: int
    heads: int
    groups: int  # of heads that share keys and values
    head: int  # width of one
    inner: int
    words: int
    tied: bool
    linear: tuple[tuple[str, int, int], ...]  # of one layer: name, numbers in, numbers out

    @property
    def known(self) -> bool:
        return self.kind in _LLAMAS or self.kind == "falcon"

    def weights(self) -> int:
        """Parameters: the layers', and the embeddings', once or twice."""
        one = sum(into * out for _, into, out in self.linear) + 2 * self.width
        return self.layers * one + self.words * self.width * (1 if self.tied else 2)

    def learned(self, targets: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
        return tuple(each for each in self.linear if not targets or each[0] in targets)


def estimate(
    config: Mapping[str, Any],
    recipe: Recipe,
    longest: int,
    learned_share: float,
    *,
    processes: int = 1,
    checkpointing: bool = False,
    number: int | None = None,
) -> Estimate:
    """
    What `recipe` takes on a model with this config.json, on rows of at most `longest` tokens.

    `learned_share` is how many of the tokens are learned, `number` the bytes of one number in the base's
    arithmetic (none: what this processor is best at). With `checkpointing`, layers keep their input only.
    """
    shape = _shape(config)
    number = number or (2 if _has_bfloat16() else 4)

    def parts(batch_size: int, longest: int) -> dict[str, int]:
        tokens = -(-batch_size // processes) * longest
        each = _learning(shape, recipe, number)
        each["activations"] = _activations(shape, recipe, tokens, checkpointing) * (
            4 if recipe.method == "full" else number
        )
        each["attention"] = _attention(shape, tokens, longest, checkpointing) * number
        each["scores"] = _scores(shape, tokens, learned_share)
        each["process"] = PROCESS
        return {name: size * processes for name, size in each.items()}

    return Estimate(
        parts(recipe.batch_size, longest),
        recipe.batch_size,
        longest,
        recipe.method,
        lambda batch_size, longest: sum(parts(batch_size, longest).values()),
    )


def admit(estimate: Estimate, free: int | None) -> None:
    """Raise `Refusal`, with the numbers and what would fit, unless there is room (`free` None: not known)."""
    if free is None or estimate.total <= free:
        return
    told = ", ".join(f"{name} {_mib(size)}" for name, size in estimate.parts.items())
    raise Refusal(
        f"This training needs about {_mib(estimate.total)} MiB of memory, and {_mib(free)} MiB are free. "
        f"In MiB: {told}. {_smaller(estimate, free)}",
        code="no_memory",
        param="batch_size" if estimate.batch_size > 1 else "max_length",
    )


def _smaller(estimate: Estimate, free: int) -> str:
    """The largest batch that fits, else the longest row of a batch of one."""
    batch_size = _most(lambda size: estimate.again(size, estimate.longest) <= free, estimate.batch_size)
    if batch_size:
        return f"What would fit: batch_size {batch_size} with rows of {estimate.longest} tokens."
    steps = _most(lambda count: estimate.again(1, count * _LENGTHS) <= free, estimate.longest // _LENGTHS)
    if steps:
        return f"What would fit: batch_size 1 with max_length {steps * _LENGTHS}."
    return f"No batch_size and max_length would fit: use {_LESS[estimate.method]} a smaller base model."


def _most(fits: Callable[[int], bool], below: int) -> int:
    """The largest number up to `below` that fits, 0 if none does; what is larger takes more."""
    least, most = 0, below
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


# The parts


def _learning(shape: _Shape, recipe: Recipe, number: int) -> dict[str, int]:
    """The model, and what is learned: its weights, gradients, two moments of each, and a copy to keep."""
    all_of_it = shape.weights()
    linear = shape.layers * sum(into * out for _, into, out in shape.linear)
    learned = shape.learned(recipe.targets)
    if recipe.method == "full":
        count = shape.layers * sum(into * out for _, into, out in learned)
        model = 4 * all_of_it
    else:
        count = shape.layers * recipe.rank * sum(into + out for _, into, out in learned)
        model = number * all_of_it + 4 * count
        if recipe.method == "qlora":
            # Read in 16 bits, then a byte a weight; the plain ones exist for one layer at a time.
            largest = max(into * out for _, into, out in shape.linear)
            model = max(2 * all_of_it, linear + number * (all_of_it - linear + largest)) + 4 * count
    return {"model": model, "gradients": 4 * count, "optimizer": 8 * count, "snapshot": 2 * 12 * count}


def _activations(shape: _Shape, recipe: Recipe, tokens: int, checkpointing: bool) -> int:
    """Numbers that layers keep for the way back, and what a step writes beside them."""
    attention = (shape.heads + 2 * shape.groups) * shape.head
    if shape.kind == "falcon":  # one norm, all heads in one piece and again turned, both sides of the gelu
        one = 4 * shape.width + 2 * attention + 2 * shape.inner
    else:  # two norms with what goes in and out, the heads, and gate, up and their product
        one = 5 * shape.width + attention + 3 * shape.inner
    if recipe.method != "full":
        one += recipe.rank * len(shape.learned(recipe.targets))
    if not shape.known:  # plain transformers keeps steps between, and peft another copy of what goes in
        one = 3 * one
    passing = 6 * max(shape.inner, shape.width) * tokens
    if checkpointing:
        return tokens * (shape.layers * shape.width + one) + passing
    return tokens * shape.layers * one + passing


def _attention(shape: _Shape, tokens: int, longest: int, checkpointing: bool) -> int:
    """Numbers: which share of its attention each token gives each earlier one, where that is kept."""
    if not shape.known:
        return 0
    block = min(QUERIES, longest)
    if longest > KEPT_UP_TO:
        return 4 * shape.heads * block * longest
    kept = shape.heads * tokens * (longest + block) // 2
    return kept * (1 if checkpointing else shape.layers)


def _scores(shape: _Shape, tokens: int, learned_share: float) -> int:
    """Bytes: the head's scores of a piece, the exponents beside them, and the states' gradient."""
    learned = max(1, round(tokens * min(1.0, learned_share)))
    piece = min(learned, max(32, HEAD_BYTES // (4 * shape.words)))
    if not shape.known:
        piece = min(tokens, 1024)
    return 4 * (3 * piece * shape.words + 3 * learned * shape.width)


# The shape


def _shape(config: Mapping[str, Any]) -> _Shape:
    """From a config.json; what it leaves out is as transformers has it."""

    def one(*names: str, default: int) -> int:
        found = next((config[name] for name in names if isinstance(config.get(name), int)), default)
        return max(1, int(found))

    kind = str(config.get("model_type", ""))
    width = one("hidden_size", "n_embd", "d_model", default=4096)
    heads = one("num_attention_heads", "n_head", default=max(1, width // 64))
    inner = one("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * width)
    head = one("head_dim", default=width // heads)
    groups = one("num_key_value_heads", "num_kv_heads", default=heads)
    linear: tuple[tuple[str, int, int], ...]
    if kind == "falcon":
        if not config.get("new_decoder_architecture"):
            groups = 1 if config.get("multi_query", True) else heads
        fused = (heads + 2 * groups) * head
        linear = (
            ("query_key_value", width, fused),
            ("dense", heads * head, width),
            ("dense_h_to_4h", width, inner),
            ("dense_4h_to_h", inner, width),
        )
    else:
        linear = (
            ("q_proj", width, heads * head),
            ("k_proj", width, groups * head),
            ("v_proj", width, groups * head),
            ("o_proj", heads * head, width),
            ("up_proj", width, inner),
            ("down_proj", inner, width),
        )
        if kind in _GATED:
            linear += (("gate_proj", width, inner),)
    tied = bool(config.get("tie_word_embeddings", kind not in _LLAMAS))
    return _Shape(
        kind,
        one("num_hidden_layers", "n_layer", default=32),
        width,
        heads,
        groups,
        head,
        inner,
        one("vocab_size", default=50_000),
        tied,
        linear,
    )


def _has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16, and training therefore computes in it."""
    try:
        words = cpuinfo.read_text("ascii", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in words or "amx_tile" in words


def _mib(size: int) -> int:
    return -(-size // 2**20)
