"""
A tuned model as its owner takes it home: the tensors, what the peft library has to know, a card for people.

The card says what was trained and how to load it. It holds no text of the data: names of models and layers,
digests and numbers are all there is.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

from .engines.adapter import Adapter
from .models_book import Record
from .prompts import Template

LORA: Final = "adapter_model.safetensors"
FULL: Final = "tuned_weights.safetensors"
CONFIG: Final = "adapter_config.json"
CARD: Final = "README.md"

_ASKED: Final = {
    Template.CHAT: "with the base model's own chat template: `tokenizer.apply_chat_template("
    "[{'role': 'user', 'content': question}], add_generation_prompt=True)`",
    Template.QUESTION: "as `### Question: ` + question + `\\n ### Answer:`, and answers with a space first",
    Template.TEXT: "with the text itself, which it continues",
    Template.ALPACA: "in Stanford Alpaca's form, `### Instruction:`, perhaps `### Input:`, `### Response:`",
    Template.DIALOGUE: "as `User: ` + question + `\\nAssistant:`, turn below turn",
}

_WITH_PEFT: Final = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "{base}"  # or the folder of this very model
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "FOLDER OF THIS FILE")
```"""

_WITHOUT: Final = """\
`{file}` holds new weights of the layers below, under the base model's own names.

```python
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "{base}"  # or the folder of this very model
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
left = model.load_state_dict(load_file("{file}"), strict=False)
assert not left.unexpected_keys
```"""


def files(record: Record, adapter: Adapter) -> dict[str, bytes]:
    """The files by their names; the tensors are those of the store, byte for byte."""
    card = _card(record).encode()
    if record.manifest.kind == "full":
        return {FULL: adapter.weights, CARD: card}
    return {LORA: adapter.weights, CONFIG: _config(record), CARD: card}


def _config(record: Record) -> bytes:
    """What `LoraConfig.save_pretrained` of peft would write, where it is not the default."""
    manifest = record.manifest
    told = {
        "base_model_name_or_path": record.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": manifest.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": manifest.rank,
        "target_modules": list(manifest.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(told, indent=2) + "\n").encode()


def _card(record: Record) -> str:
    manifest = record.manifest
    lora = manifest.kind == "lora"
    how = (_WITH_PEFT if lora else _WITHOUT).format(base=record.base, file=FULL)
    made = datetime.fromtimestamp(record.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    told = {
        "base model": f"`{record.base}`",
        "base model's fingerprint": f"`{manifest.model or 'none'}`",
        "method": f"LoRA, r = {manifest.rank}, alpha = {manifest.alpha}"
        if lora
        else "whole weights of layers",
        "layers": ", ".join(f"`{name}`" for name in manifest.targets) or "none",
        "template": f"`{manifest.template}`, digest `{manifest.template_digest}`",
        "SHA-256 of the tensors": f"`{manifest.weights_sha256}`",
        "made": made,
        **{name.replace("_", " "): f"{value:g}" for name, value in sorted(record.figures.items())},
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in told.items())
    head = f"---\nbase_model: {json.dumps(record.base)}\n"
    head += 'library_name: peft\npipeline_tag: text-generation\ntags: ["lora"]\n---\n' if lora else "---\n"
    return (
        f"{head}\n# {record.name}\n\n"
        f"Fine-tuned by job `{record.job}` inside a confidential machine. This card holds nothing of its "
        "data; what the tensors have kept of it, whoever has them may find out.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n## How to load it\n\n{how}\n\n"
        f"## How it was taught to be asked\n\nIt is asked {_asked(manifest.template)}. "
        "Asked otherwise it answers badly, and may not stop.\n"
    )


def _asked(template: str) -> str:
    known = {each.value: text for each, text in _ASKED.items()}
    return known.get(template, f"with the template `{template}`")
