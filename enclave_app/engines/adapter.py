"""
A tuned adapter as one value: what was trained, on top of what, asked how, and the weights.

    bytes = "blindbox-adapter/1\\n" ‖ u32 length ‖ JSON manifest ‖ safetensors

The manifest carries the SHA-256 of the weights, so that the trainer's word and the served bytes are the same.
The weights are safetensors: reading them runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Final

from ..prompts import Template

MAGIC: Final = b"blindbox-adapter/1\n"


class MalformedAdapter(Exception):
    """The bytes are not an adapter of ours."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must be known to serve the weights as they were trained."""

    model: str  # fingerprint of the base model (models.py)
    template: str  # a `Template` value
    template_digest: str  # and exactly how the tokenizer writes it
    rank: int
    alpha: int
    targets: tuple[str, ...]  # names of the modules that were adapted
    weights_sha256: str


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
            fields = json.loads(data[start : start + length])
            manifest = Manifest(**{**fields, "targets": tuple(fields["targets"])})
            Template(manifest.template)
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedAdapter("its manifest cannot be read") from error
        weights = data[start + length :]
        if hashlib.sha256(weights).hexdigest() != manifest.weights_sha256:
            raise MalformedAdapter("its weights are not those of its manifest")
        return cls(manifest, weights)
