"""
Hugging Face models on PyTorch, with a tenant's adapter switched on per request.

The base weights are loaded once and never change; adapters are small matrices beside them (peft), read from
safetensors bytes in memory, kept for the tenants seen last, and active only while their tenant is answered.
This module generates by its own loop, so that it can stop between any two tokens.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import safetensors.torch
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..models import Model
from ..prompts import Template
from ..refusals import Conflict, Failed, Refusal
from . import Piece, Prompt, Sampling, Tuning
from .adapter import Adapter

ADAPTERS_KEPT: Final = 8
COLDEST: Final = 1e-6
_CONTEXT: Final = (
    6  # tokens of the prompt that are decoded with the answer, as a word's space depends on them
)


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32."""
    if device.type != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def silence() -> None:
    """What these libraries have to say may hold what they process (threats.md S-20)."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    for name in ("transformers", "peft", "torch", "accelerate", "datasets", "huggingface_hub"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False


class TorchEngine:
    """One model and its tokenizer; not safe in two threads at once (see `desk.py`)."""

    def __init__(self, model: Model, device: str = "auto", dtype: torch.dtype | None = None) -> None:
        silence()
        self.model = model
        self._device = device_named(device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            model.folder, trust_remote_code=False, local_files_only=True
        )
        self._net: Any = AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=dtype or dtype_for(self._device),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        self._net.to(self._device).requires_grad_(False).eval()
        self._ends = _end_tokens(self._net, self._tokenizer)
        self._room: int | None = getattr(self._net.config, "max_position_embeddings", None)
        self._peft: Any = None  # a PeftModel around `_net`, from the first adapter on
        self._names: OrderedDict[str, tuple[str, Adapter]] = OrderedDict()
        self._counter = 0

    def generate(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """
        Answer a prompt, a token at a time.

        1. the adapter, if there is one, and the template it was trained with
        2. the prompt as tokens, if they fit
        3. tokens until the model's end token or the limit, decoded as they become whole characters
        """
        with torch.inference_mode(), self._tuned(prompt.tuning) as template:
            ids = template.prompt(self._tokenizer, prompt.text)
            self._check_room(len(ids), sampling.max_new_tokens)
            yield Piece("", joint=template.joint)
            text = _Decoder(self._tokenizer, ids)
            finish = "length"
            tokens = self._tokens(ids, sampling)
            for token in tokens:
                if token in self._ends:
                    finish = "stop"
                    break
                new = text.add(token)
                if new:
                    yield Piece(new)
            yield Piece(text.rest(), finish="stop" if finish == "stop" else "length")

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        warpers = LogitsProcessorList()
        if sampling.do_sample and sampling.temperature != 1.0:
            # Colder than this only the likeliest is left, and the division would leave the numbers' range.
            warpers.append(TemperatureLogitsWarper(max(sampling.temperature, COLDEST)))
        if sampling.do_sample and sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.do_sample and sampling.top_p < 1.0:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        chance = torch.Generator(device=self._device)
        chance.seed() if sampling.seed is None else chance.manual_seed(sampling.seed)
        read = torch.tensor([ids], device=self._device)
        cache = None
        for _ in range(sampling.max_new_tokens):
            out = self._net(input_ids=read, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            scores = out.logits[:, -1, :].float()
            if sampling.do_sample:
                likely = torch.softmax(warpers(read, scores), dim=-1)
                read = torch.multinomial(likely, 1, generator=chance)
            else:
                read = scores.argmax(dim=-1, keepdim=True)
            yield int(read)

    def _check_room(self, prompt: int, wanted: int) -> None:
        if prompt == 0:
            raise Refusal("input_text has no tokens.", code="invalid_value", param="input_text")
        if self._room is not None and prompt >= self._room:
            raise Refusal(
                f"The prompt has {prompt} tokens; the model takes {self._room}, the answer's included. "
                "Shorten the prompt.",
                code="context_length_exceeded",
                param="input_text",
            )
        if self._room is not None and prompt + wanted > self._room:
            raise Refusal(
                f"The prompt has {prompt} tokens and max_new_tokens is {wanted}; together the model takes "
                f"{self._room}. Shorten the prompt, or ask for fewer new tokens (at most "
                f"{self._room - prompt}).",
                code="context_length_exceeded",
                param="max_new_tokens",
            )

    # --- adapters -----------------------------------------------------------------------------

    @contextmanager
    def _tuned(self, tuning: Tuning | None) -> Iterator[Template]:
        if tuning is None:
            with self._untuned():
                yield Template.for_base(self._tokenizer)
            return
        try:
            yield Template(self._activated(tuning).manifest.template)
        finally:
            if self._peft is not None:
                self._peft.base_model.disable_adapter_layers()

    @contextmanager
    def _untuned(self) -> Iterator[None]:
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
        yield

    def _activated(self, tuning: Tuning) -> Adapter:
        """Switch the adapter of this version on; load it if it is not among those seen last."""
        if tuning.version not in self._names:
            adapter = tuning.load()
            self._check_fits(adapter)
            self._counter += 1
            self._load(f"a{self._counter}", adapter)
            # The weights live in the model now; keeping the bytes too would double them.
            self._names[tuning.version] = (f"a{self._counter}", Adapter(adapter.manifest, b""))
        self._names.move_to_end(tuning.version)
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(self._names[tuning.version][0])
        while len(self._names) > ADAPTERS_KEPT:
            _, (old, _) = self._names.popitem(last=False)
            self._peft.delete_adapter(old)
        return self._names[tuning.version][1]

    def _check_fits(self, adapter: Adapter) -> None:
        manifest = adapter.manifest
        digest = Template(manifest.template).digest(self._tokenizer)
        if manifest.model != self.model.fingerprint or manifest.template_digest != digest:
            raise Conflict(
                "Your tuned model was made for another base model or prompt template. Fine-tune again.",
                code="adapter_mismatch",
            )

    def _load(self, name: str, adapter: Adapter) -> None:
        manifest = adapter.manifest
        config = LoraConfig(
            r=manifest.rank,
            lora_alpha=manifest.alpha,
            target_modules=list(manifest.targets),
            task_type="CAUSAL_LM",
            inference_mode=True,
            init_lora_weights=False,
        )
        try:
            weights = safetensors.torch.load(adapter.weights)
            if self._peft is None:
                self._peft = get_peft_model(
                    self._net, config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
            result = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        except Exception as error:
            self._forget(name)
            raise _damaged() from error
        if result.unexpected_keys or any(f".{name}." in key for key in result.missing_keys):
            self._forget(name)
            raise _damaged()
        self._peft.to(self._device).requires_grad_(False).eval()

    def _forget(self, name: str) -> None:
        if self._peft is not None and name in self._peft.peft_config:
            if len(self._peft.peft_config) > 1:
                self._peft.delete_adapter(name)
            self._peft.base_model.disable_adapter_layers()


class _Decoder:
    """Tokens → text, holding back what is not a whole character yet."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = prompt[-_CONTEXT:]
        self._told = len(self._text())

    def add(self, token: int) -> str:
        """The text that became certain by this token."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        new, self._told = text[self._told :], len(text)
        return new

    def rest(self) -> str:
        """What was held back to the end."""
        return self._text()[self._told :]

    def _text(self) -> str:
        text: str = self._tokenizer.decode(
            self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _end_tokens(net: Any, tokenizer: Any) -> frozenset[int]:
    """The model's own end tokens: one, several, or (where it names none) the tokenizer's."""
    named = net.generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    if named is None:
        return frozenset()
    return frozenset(named) if isinstance(named, list | tuple) else frozenset([int(named)])


def _damaged() -> Failed:
    return Failed(
        "The stored adapter does not fit the model. Fine-tune again to replace it.", code="damaged_adapter"
    )
