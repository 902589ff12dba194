"""Tiny tokenizers of the kinds that models bring: byte-level, byte fallback as in Llama, as in Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

WORDS: Final = [
    "What is the name of the river? The river is called Wend.",
    "Où est le moulin ? Das Wehr, 水車, мельница. 0123456789",
    "def mill(stream):\n    return stream * 2\n",
]
KINDS: Final = ("byte-level", "llama", "gemma")


@cache
def _backend(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "byte-level":
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        special, alphabet = ["<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    else:
        words = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        space = normalizers.Replace(" ", "▁")
        words.normalizer = (
            normalizers.Sequence([normalizers.Prepend("▁"), space]) if kind == "llama" else space
        )
        ends = [decoders.Strip(" ", 1, 0)] if kind == "llama" else []
        words.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
        )
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(WORDS * 4, trainer)
    return words


def save(folder: Path, kind: str, *, bos: bool = False, **config: Any) -> Any:
    """Write a tokenizer as transformers writes it; what transformers reads from there comes back."""
    import json

    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    written: Mapping[str, Any] = json.loads(_backend(kind).to_str())
    # The trainer marks the bytes as special tokens, which they are not: decoding would drop them.
    plain = [token for token in written["added_tokens"] if not token["content"].startswith("<0x")]
    words = Tokenizer.from_str(json.dumps({**written, "added_tokens": plain}))
    if bos:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", words.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", **config)
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
