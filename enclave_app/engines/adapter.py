"""
A tuned adapter as one value: what was trained, on top of what, asked how, and the weights.

    bytes = "blindbox-adapter/1\\n" ‖ u32 length ‖ JSON manifest ‖ safetensors

The manifest carries the SHA-256 of the weights, so that the trainer's word and the served bytes are the same.
The weights are safetensors: reading them runs nothing. They are one of two kinds:

    lora   pairs of small matrices, named as peft names them: base_model.model.MODULE.lora_A.weight, …lora_B…
    full   new weights of linear layers, under the base model's own names: MODULE.weight
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ..prompts import Template
from .tensors import MalformedTensors, Tensor, layout

MAGIC: Final = b"blindbox-adapter/1\n"
PREFIX: Final = "base_model.model."  # peft's, before the module's own name
A, B = ".lora_A.weight", ".lora_B.weight"
FLOATS: Final = ("f32", "f16", "bf16")
_MODULE: Final = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST: Final = 1 << 20  # of rank and alpha

Kind = Literal["lora", "full"]


class MalformedAdapter(Exception):
    """The bytes are not an adapter of ours."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must be known to serve the weights as they were trained."""

    model: str  # fingerprint of the base model (models.py)
    template: str  # a `Template` value
    template_digest: str  # and exactly how the tokenizer writes it
    rank: int  # of LoRA; 0 where the weights are whole
    alpha: int
    targets: tuple[str, ...]  # names of the modules that were adapted
    weights_sha256: str
    kind: Kind = "lora"

    @classmethod
    def of(cls, fields: Any) -> Manifest:
        """What JSON tells; raises `ValueError`, `TypeError` or `KeyError`."""
        made = cls(**{**fields, "targets": tuple(fields["targets"])})
        Template(made.template)
        texts = (made.model, made.template_digest, made.weights_sha256, *made.targets)
        if not all(isinstance(text, str) for text in texts) or not _DIGEST.fullmatch(made.weights_sha256):
            raise ValueError("a text of the manifest is none")
        if made.kind not in ("lora", "full"):
            raise ValueError("there is no such kind of adapter")
        least = 1 if made.kind == "lora" else 0
        if not all(type(each) is int and least <= each <= _LARGEST for each in (made.rank, made.alpha)):
            raise ValueError("rank and alpha are no sizes")
        return made


@dataclass(frozen=True, slots=True)
class Adapter:
    """The manifest and the safetensors bytes it speaks of."""

    manifest: Manifest
    weights: bytes

    def encode(self) -> bytes:
        """For the sealed store."""
        head = json.dumps(asdict(self.manifest), sort_keys=True).encode("ascii")
        return MAGIC + struct.pack(">I", len(head)) + head + self.weights

    @classmethod
    def parse(cls, data: bytes) -> Adapter:
        """The inverse of `encode`; raises `MalformedAdapter`."""
        start = len(MAGIC) + 4
        if not data.startswith(MAGIC) or len(data) < start:
            raise MalformedAdapter("it does not begin as an adapter")
        (length,) = struct.unpack(">I", data[len(MAGIC) : start])
        try:
            manifest = Manifest.of(json.loads(data[start : start + length]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MalformedAdapter("its manifest cannot be read") from error
        weights = data[start + length :]
        if hashlib.sha256(weights).hexdigest() != manifest.weights_sha256:
            raise MalformedAdapter("its weights are not those of its manifest")
        return cls(manifest, weights)

    def modules(self) -> dict[str, tuple[Tensor, ...]]:
        """
        The tensors of each module that was adapted, A and B or the whole weight, seen to belong together.

        Raises `MalformedAdapter`. Names, shapes and types are looked at here, the numbers by who reads them.
        """
        try:
            tensors = layout(self.weights)
        except MalformedTensors as error:
            raise MalformedAdapter(f"its weights cannot be read: {error}") from error
        lora = self.manifest.kind == "lora"
        before, ends = (PREFIX, (A, B)) if lora else ("", (".weight",))
        names = {
            name.removeprefix(before).removesuffix(ends[0])
            for name in tensors
            if name.startswith(before) and name.endswith(ends[0])
        }
        if not names or {before + name + end for name in names for end in ends} != set(tensors):
            raise MalformedAdapter(
                f"it holds something else than {'pairs' if lora else 'weights'} of modules"
            )
        if not all(map(_MODULE.fullmatch, names)):
            raise MalformedAdapter("a module's name is none")
        found = {name: tuple(tensors[before + name + end] for end in ends) for name in sorted(names)}
        for parts in found.values():
            if any(part.kind not in FLOATS or len(part.shape) != 2 for part in parts):
                raise MalformedAdapter("a weight is no matrix of floats")
            if lora and not parts[0].shape[0] == parts[1].shape[1] == self.manifest.rank:
                raise MalformedAdapter("its matrices are not of its rank")
        return found
