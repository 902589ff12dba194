"""
The enclave's words in the reader's: its messages name the fields of its API, and people have options.

`as_keywords` turns them into the keywords of `blindbox.finetune`, `as_options` into the options of the
command `blindbox`; the same for the field at fault. What is not known here stays as it was said.
"""

from __future__ import annotations

import re
from typing import Final

_RENAMED: Final = {  # a field that is spelled otherwise here → its keyword
    "dataset_name": "data",
    "file": "data",
    "n_epochs": "epochs",
    "suffix": "name",
    "training_file": "data",
    "validation_file": "validation",
}
_KEYWORDS: Final = frozenset(
    {
        *("model", "name", "data", "validation", "question_column", "answer_column"),
        *("number_elements_for_training", "on_invalid", "dedup", "method", "epochs", "steps", "batch_size"),
        *("max_length", "learning_rate", "learning_rate_multiplier", "warmup", "r", "alpha", "dropout"),
        *("target_modules", "validation_split", "answer_only", "from_adapter", "early_stopping"),
        *("checkpoint_steps", "evaluate_steps", "memorisation", "seed", "metadata"),
    }
)
_OPTIONS: Final = {  # a keyword whose option is spelled otherwise
    "answer_only": "--all-tokens",
    "data": "FILE",
    "number_elements_for_training": "--number",
}
_NO_OPTION: Final = frozenset({"learning_rate_multiplier", "metadata"})

_PREFIX: Final = r"(?:blindbox\.(?:lora\.)?|(?:method\.supervised\.)?hyperparameters\.)"
_LORA: Final = "r, alpha, dropout or target_modules"
_TO_KEYWORDS: Final = (
    (r'send "on_invalid": "skip"', 'say on_invalid="skip"'),
    (r"Delete it and upload it again", "Delete it, and send it again"),
    (r" and upload it again", ""),
    (r"; upload the file", "; take the file"),
    (r"\bor upload more rows", "or give more rows"),
    (r"\bor upload JSON Lines", "or take JSON Lines"),
    (r"\bor upload a chat", "or give a chat"),
    (r"\bsend rows to validate with", "give rows to validate with (validation)"),
    (r"; send one of them", "; give one of them"),
    (r"GET /v1/files lists yours; POST /v1/files uploads one\.", "The path of a file has it sent."),
    (r"\bGET /v1/fine_tuning/jobs lists yours\.", "blindbox.jobs(origin) lists yours."),
    (r"\bblindbox\.lora(?= is\b)", _LORA),
    (rf"\b{_PREFIX}(?=({'|'.join(sorted(_KEYWORDS | set(_RENAMED)))})\b)", ""),
    (r"\b(n_epochs|suffix|training_file|validation_file)\b", lambda found: _RENAMED[found[1]]),
)
_TO_OPTIONS: Final = (
    (r'\bon_invalid="skip"', "--on-invalid skip"),
    (re.escape(_LORA), "--r, --alpha, --dropout or --target-modules"),
    (r"\bmethod (?=qlora\b|lora\b|full\b)", "--method "),
    (r"\ba smaller r\b", "a smaller --r"),
    (r"\(validation\)", "(--validation FILE)"),
    (r"\bno validation(?=;)", "no --validation"),
    (r"\bwait\(\) waits for it", "--watch waits for it"),
    (
        rf"(?<![-\w])({'|'.join(sorted(one for one in _KEYWORDS - _NO_OPTION if '_' in one))})\b",
        lambda found: option_of(found[1]),
    ),
)


def as_keywords(message: str) -> str:
    """A message of the enclave, or about data, as Python's callers read it."""
    for found, put in _TO_KEYWORDS:
        message = re.sub(found, put, message)
    return message


def keyword_of(field: str) -> str:
    """The keyword of `blindbox.finetune` for a field of the API."""
    name = re.sub(f"^{_PREFIX}", "", field)
    name = "r" if name == "lora" else name
    return _RENAMED.get(name, name)


def as_options(message: str, field: str | None = None, origin: str | None = None) -> str:
    """The same on the command line; `field` is the one at fault, `origin` whom the command asked."""
    message = as_keywords(message)
    if field is not None:
        name = keyword_of(field)
        # Short names are words of the language too: only where the sentence is about it, it is it.
        message = re.sub(rf"^{re.escape(name)}(?= (?:is|may|has|needs)\b)", option_of(name), message)
    for found, put in _TO_OPTIONS:
        message = re.sub(found, put, message)
    return message.replace("blindbox.jobs(origin) lists", f"blindbox jobs {origin or 'ORIGIN'} lists")


def option_of(field: str) -> str:
    """The option of `blindbox finetune` for a field or a keyword."""
    name = keyword_of(field)
    if name not in _KEYWORDS or name in _NO_OPTION:
        return field
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")
