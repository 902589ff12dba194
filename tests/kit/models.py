"""Tiny models with random weights and real shapes, and a tiny tokenizer, all made here and now."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "What is the name of the river? The river is called Wend.",
    "### Question: Where does the mill stand?\n ### Answer: The mill stands at the upper weir.",
    "user assistant question answer éàü 0123456789",
]


def tokenizer(*, chat: bool) -> Any:
    """A byte-level BPE of about 400 words, with an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(WORDS * 4, trainer)
    end = "<|im_end|>" if chat else "<|end|>"
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT if chat else None
    return made


def _shape(words: Any) -> dict[str, Any]:
    """What all tiny models have in common."""
    return {
        "vocab_size": len(words),
        "hidden_size": 64,
        "initializer_range": 0.2,  # large enough for a sharp answer to be learned by adapters alone
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": None,
    }


_FALCON: Final[dict[str, Any]] = {"parallel_attn": True, "alibi": False, "bias": False}
_LLAMA: Final[dict[str, Any]] = {"intermediate_size": 128, "num_key_value_heads": 2}
_GEMMA: Final[dict[str, Any]] = _LLAMA | {"head_dim": 16}

FAMILIES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    # falcon-7b: multi-query, parallel attention, rotary
    "falcon": ("Falcon", _FALCON | {"multi_query": True, "new_decoder_architecture": False}),
    # falcon-40b
    "falcon-new": ("Falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "llama": ("Llama", _LLAMA),
    "smollm": (
        "Llama",
        _LLAMA
        | {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 48,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": ("Qwen2", _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 32}),
    "gemma": ("Gemma", _GEMMA | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2", _GEMMA | {"sliding_window": 32, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3Text", _GEMMA | {"sliding_window": 32, "query_pre_attn_scalar": 16}),
}
"""Families that are served: transformers' name of the class, and how a tiny one differs from `_shape`."""


@cache
def tiny(family: str, *, chat: bool = True, seed: int = 0) -> Path:
    """A model of this family, stored in 16 bits as released ones are."""
    import torch
    import transformers

    kind, details = FAMILIES[family]
    words = tokenizer(chat=chat)
    config_kind = f"{kind}Config" if kind != "Gemma3Text" else "Gemma3TextConfig"
    model_kind = f"{kind.removesuffix('Text')}ForCausalLM"
    details = {"tie_word_embeddings": False, **details}
    config = getattr(transformers, config_kind)(**_shape(words) | details)
    return _saved(getattr(transformers, model_kind), config, words, seed, torch.bfloat16)


@cache
def tiny_llama(*, chat: bool = True, seed: int = 0) -> Path:
    """A LlamaForCausalLM of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(chat=chat)
    return _saved(LlamaForCausalLM, LlamaConfig(**(_shape(words) | _LLAMA)), words, seed)


@cache
def tiny_falcon(seed: int = 0) -> Path:
    """A FalconForCausalLM in the layout of falcon-7b: multi-query, parallel attention, rotary."""
    from transformers import FalconConfig, FalconForCausalLM

    words = tokenizer(chat=False)
    details: dict[str, Any] = {**_shape(words), **FAMILIES["falcon"][1], "bos_token_id": words.eos_token_id}
    config = FalconConfig(**details)
    return _saved(FalconForCausalLM, config, words, seed)


def _saved(kind: Any, config: Any, words: Any, seed: int, dtype: Any = None) -> Path:
    import torch

    place = Path(tempfile.mkdtemp(prefix="blindbox-tiny-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = place / f"tiny-{config.model_type}"
    torch.manual_seed(seed)
    kind(config).to(dtype or torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
