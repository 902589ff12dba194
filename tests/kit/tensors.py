"""Safetensors written by hand: honest ones, and such whose header lies."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from typing import Any

from enclave_app.engines.adapter import PREFIX, A, B


def written(header: Any, data: bytes) -> bytes:
    """A file of this header, whatever it says."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def floats(tensors: Mapping[str, tuple[int, ...]], seed: int = 0) -> bytes:
    """Random float32 tensors of these shapes."""
    header, data, dice = {}, b"", random.Random(seed)
    for name, shape in tensors.items():
        numbers = [dice.uniform(-1, 1) for _ in range(math.prod(shape))]
        raw = struct.pack(f"<{len(numbers)}f", *numbers)
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return written(header, data)


def lora(module: str = "model.layers.0.self_attn.q_proj", rank: int = 4, seed: int = 0) -> bytes:
    """A pair of matrices for one layer of 6 by 5."""
    return floats({PREFIX + module + A: (rank, 5), PREFIX + module + B: (6, rank)}, seed)
