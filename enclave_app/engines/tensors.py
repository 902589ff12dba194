"""
Safetensors, read strictly: what a file's header says of its tensors has to be the whole truth.

    file = u64 length (little-endian) ‖ JSON header ‖ data
    header = {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}

(https://github.com/huggingface/safetensors#format.) A tensor that reaches beyond the file, lies over another,
leaves a hole or is of another size than its shape is refused before anything is read (threats.md S-29).
Nothing heavy is imported; whether the numbers are numbers is seen by whoever reads them.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final, NamedTuple

_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_LONGEST_HEADER: Final = 100_000_000  # bytes; the library's own limit
_LONGEST_NAME: Final = 512
_MOST_AXES: Final = 8


class MalformedTensors(Exception):
    """The bytes are not safetensors; the message says why, and nothing of what is in them."""


class Tensor(NamedTuple):
    """Where a tensor lies in its file, and as what."""

    kind: str  # f32, f16, bf16, …
    shape: tuple[int, ...]
    begin: int
    end: int


def layout(data: Any) -> dict[str, Tensor]:
    """
    The tensors of a whole file, by name; `data` is anything that gives bytes when it is sliced.

    1. the header is inside the file, and is JSON that says everything once
    2. every tensor is as large as its shape and type make it
    3. together they are the rest of the file: no hole, no overlap, nothing behind them

    Raises `MalformedTensors`.
    """
    size = len(data)
    if size < 8:
        raise MalformedTensors("it is too short")
    (length,) = struct.unpack("<Q", bytes(data[:8]))
    if length > min(size - 8, _LONGEST_HEADER):
        raise MalformedTensors("its header is longer than it may be")
    start = 8 + length
    try:
        header = json.loads(bytes(data[8:start]).decode("utf-8"), object_pairs_hook=_once)  # 1
    except (ValueError, RecursionError):
        raise MalformedTensors("its header is no JSON that says everything once") from None
    if not isinstance(header, dict):
        raise MalformedTensors("its header is no JSON object")
    header.pop("__metadata__", None)
    found = {name: _tensor(name, about, start) for name, about in header.items()}  # 2
    at = start
    for tensor in sorted(found.values(), key=lambda each: (each.begin, each.end)):  # 3
        if tensor.begin != at:
            raise MalformedTensors("its tensors overlap, or leave a hole")
        at = tensor.end
    if at != size:
        raise MalformedTensors("its tensors are not as long as the file")
    return found


def _tensor(name: str, about: Any, start: int) -> Tensor:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise MalformedTensors("a tensor has no printable name")
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise MalformedTensors("a tensor is not described by type, shape and place")
    kind, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(kind, str) or kind not in _BYTES:
        raise MalformedTensors("a tensor is of a type that is not known")
    if not (_numbers(shape) and len(shape) <= _MOST_AXES and _numbers(offsets) and len(offsets) == 2):
        raise MalformedTensors("a tensor's shape or place is no list of numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * _BYTES[kind]:
        raise MalformedTensors("a tensor is not as large as its shape")
    return Tensor(kind.lower(), tuple(shape), start + begin, start + end)


def _numbers(told: Any) -> bool:
    return isinstance(told, list) and all(type(each) is int and each >= 0 for each in told)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found
