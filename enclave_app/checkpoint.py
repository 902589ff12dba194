"""
A point of a training as it lies in the sealed store: what a trainer goes on from, and a model to be asked.

    bytes = "blindbox-checkpoint/1\\n" ‖ u32 length ‖ JSON head ‖ Snapshot.state
    name  = JOB-STEP, the step in eight digits

The state is one safetensors file that holds more than the adapter (`training.Snapshot`). The adapter's own
tensors are taken out of it where somebody asks for the model of that step.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from .engines.adapter import PREFIX, A, Adapter, Kind, MalformedAdapter, Manifest
from .engines.tensors import MalformedTensors, Tensor, layout
from .prompts import Template

CHECKPOINTS: Final = "checkpoints"
MAGIC: Final = b"blindbox-checkpoint/1\n"
_START: Final = len(MAGIC) + 4
_LONGEST: Final = 64 << 10  # bytes of a head: it has to be in the first piece of a sealed file
_ADAPTER: Final = "adapter."


class MalformedCheckpoint(Exception):
    """The bytes are not a checkpoint of ours."""


def name_in_store(job: str, step: int) -> str:
    """What a job's checkpoint of this step is called in the store."""
    return f"{job}-{step:08d}"


def job_of(name: str) -> str:
    """The job that a checkpoint of this name belongs to."""
    return name.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training stood, and what must be known to serve what it had learned by then."""

    job: str
    step: int
    total_steps: int
    created_at: int  # Unix seconds
    suffix: str  # of the model's name
    loss: float | None
    validation_loss: float | None
    model: str  # fingerprint of the base model
    template: str
    template_digest: str
    method: str  # lora, qlora or full
    rank: int
    alpha: int
    state: bytes = field(repr=False, default=b"")

    @property
    def name(self) -> str:
        """Its name in the store."""
        return name_in_store(self.job, self.step)

    def encode(self) -> bytes:
        """For the sealed store."""
        told = {name: value for name, value in asdict(self).items() if name not in ("job", "state")}
        head = json.dumps(told, sort_keys=True).encode("ascii")
        if len(head) > _LONGEST:
            raise ValueError("a checkpoint's head is too long")
        return MAGIC + struct.pack(">I", len(head)) + head + self.state

    @classmethod
    def parse(cls, name: str, data: bytes) -> Checkpoint:
        """What `encode` wrote under this name in the store; raises `MalformedCheckpoint`."""
        return replace(cls.head(name, data), state=data[_START + _length(data) :])

    @classmethod
    def head(cls, name: str, beginning: bytes) -> Checkpoint:
        """All but the state, from the first piece of the file; raises `MalformedCheckpoint`."""
        try:
            told = json.loads(beginning[_START : _START + _length(beginning)])
            made = cls(job=job_of(name), **{key: told[key] for key in _HEAD})
            Template(made.template)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MalformedCheckpoint("its head cannot be read") from error
        texts = (made.suffix, made.model, made.template, made.template_digest, made.method)
        sizes = (made.step, made.total_steps, made.created_at, made.rank, made.alpha)
        if not all(isinstance(text, str) for text in texts):
            raise MalformedCheckpoint("a text of its head is none")
        if not all(type(size) is int and size >= 0 for size in sizes) or made.name != name:
            raise MalformedCheckpoint("its head is that of something else")
        return made

    def adapter(self) -> Adapter:
        """The model of this step; raises `MalformedAdapter`."""
        try:
            tensors = layout(self.state)
        except MalformedTensors as error:
            raise MalformedAdapter(f"the checkpoint cannot be read: {error}") from error
        own = {
            name.removeprefix(_ADAPTER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_ADAPTER)
        }
        kind: Kind = "full" if self.method == "full" else "lora"
        end = A if kind == "lora" else ".weight"
        modules = [name.removeprefix(PREFIX).removesuffix(end) for name in own if name.endswith(end)]
        weights = _safetensors(own, self.state)
        manifest = Manifest(
            model=self.model,
            template=self.template,
            template_digest=self.template_digest,
            rank=self.rank if kind == "lora" else 0,
            alpha=self.alpha if kind == "lora" else 0,
            targets=tuple(sorted({module.rpartition(".")[2] for module in modules})),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            kind=kind,
        )
        return Adapter(manifest, weights)


_HEAD: Final = tuple(each.name for each in fields(Checkpoint) if each.name not in ("job", "state"))


def _safetensors(tensors: dict[str, Tensor], data: bytes) -> bytes:
    """Some tensors of a file as a file of their own."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.end - tensor.begin
        header[name] = {
            "dtype": tensor.kind.upper(),
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # as the library does it: the data begins at a multiple of 8
    pieces = [data[tensor.begin : tensor.end] for tensor in tensors.values()]
    return b"".join([struct.pack("<Q", len(head)), head, *pieces])


def _length(data: bytes) -> int:
    if not data.startswith(MAGIC) or len(data) < _START:
        raise MalformedCheckpoint("it does not begin as a checkpoint")
    (length,) = struct.unpack(">I", data[len(MAGIC) : _START])
    if length > min(_LONGEST, len(data) - _START):
        raise MalformedCheckpoint("its head is longer than it may be")
    return int(length)
