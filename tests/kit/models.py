"""Tiny models with random weights and real shapes, and a tiny tokenizer, all made here and now."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

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


@cache
def tiny_llama(*, chat: bool = True, seed: int = 0) -> Path:
    """A LlamaForCausalLM of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        initializer_range=0.2,  # large enough for a sharp answer to be learned by adapters alone
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=None,
    )
    return _saved(LlamaForCausalLM, config, words, seed)


@cache
def tiny_falcon(seed: int = 0) -> Path:
    """A FalconForCausalLM in the layout of falcon-7b: multi-query, parallel attention, rotary."""
    from transformers import FalconConfig, FalconForCausalLM

    words = tokenizer(chat=False)
    config = FalconConfig(
        vocab_size=len(words),
        hidden_size=64,
        initializer_range=0.2,  # large enough for a sharp answer to be learned by adapters alone
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        parallel_attn=True,
        new_decoder_architecture=False,
        alibi=False,
        bias=False,
        max_position_embeddings=256,
        bos_token_id=words.eos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return _saved(FalconForCausalLM, config, words, seed)


def _saved(kind: Any, config: Any, words: Any, seed: int) -> Path:
    import torch

    folder = Path(tempfile.mkdtemp(prefix="blindbox-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
