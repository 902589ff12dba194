"""
A tuned model out of an exported one: the adapter's matrices are merged into a copy of the weights, in memory.

Every weight of the export is a constant with a place in the .bin (`ir.py`). Of each adapted one
W + alpha/rank · B·A is computed from the base model's own float weights (or, without its folder, from the
export's), or a whole new W is taken from the adapter; it is brought into the constant's type and written over
the copy. numpy does it; no PyTorch.

A tenant's weights never touch a disk (threats.md S-21): the copy is an anonymous file in memory, and what
OpenVINO is given to open is a folder of links to it, which is gone once the model is open.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .adapter import PREFIX, A, Adapter, B, MalformedAdapter
from .ir import BIN, XML, Constant, Export
from .tensors import MalformedTensors, Tensor, layout

Floats = NDArray[np.float32]

_LEAST: Final = np.finfo(np.float32).eps  # of a scale, as nncf has it
_TRANSPOSED: Final = ("gpt2", "openai-gpt")  # their linear layers keep [in, out]
_PIECE: Final = 64 << 20  # bytes of a copy within the kernel


class UnusableAdapter(Exception):
    """The adapter cannot be merged into this export; the message says why, and nothing of its weights."""


@contextmanager
def patched(folder: Path, adapter: Adapter, base_folder: str | None = None) -> Iterator[Path]:
    """
    A folder to open the tuned model from; open it inside the `with`, it may be used on afterwards.

    Raises `UnusableAdapter`.
    """
    copy, xml = _copy(folder, adapter, base_folder)
    try:
        with tempfile.TemporaryDirectory(prefix="blindbox-tuned-") as name:
            place = Path(name)
            for path in folder.iterdir():
                if path.name not in (BIN, XML):
                    (place / path.name).symlink_to(path.resolve())
            (place / BIN).symlink_to(f"/proc/self/fd/{copy}")
            (place / XML).symlink_to((folder / XML).resolve() if xml is None else f"/proc/self/fd/{xml}")
            yield place
    finally:
        os.close(copy)
        if xml is not None:
            os.close(xml)


def _copy(folder: Path, adapter: Adapter, base_folder: str | None) -> tuple[int, int | None]:
    """
    The weights with the adapter in them, and the .xml where it has to differ, as anonymous files.

    1. read what is to be merged, and see that all of it has a place
    2. copy the .bin
    3. merge a matrix, bring it into its constant's type, write it
    4. what shares its bytes with another constant goes to the end, and the .xml says so
    """
    if _config(folder).get("model_type") in _TRANSPOSED:
        raise UnusableAdapter("Tuned models of this architecture are not served by this engine.")
    export = Export.at(folder)
    changes = _changes(adapter)  # 1
    places = {module: _place(export, module) for module in changes}
    base = None if base_folder is None else _Weights.of(Path(base_folder))
    copy = os.memfd_create("blindbox-tuned")
    try:
        with (folder / BIN).open("rb") as source:  # 2
            left = os.fstat(source.fileno()).st_size
            while left > 0:
                done = os.sendfile(copy, source.fileno(), None, min(left, _PIECE))
                if not done:
                    raise UnusableAdapter("The export's weights end before they should.")
                left -= done
        used = Counter(constant.offset for constant in export.constants.values() if constant.size)
        moved: dict[str, int] = {}
        with mmap.mmap(copy, 0) as memory:
            for module, change in changes.items():  # 3
                name = places[module]
                constant = export.constants[name]
                new = change.read()
                if new.shape != constant.shape:
                    raise _strangers(module, constant.shape, new.shape)
                if change.added:
                    old = (
                        _dequantised(export, name, memory) if base is None else base.read(f"{module}.weight")
                    )
                    if old.shape != constant.shape:
                        raise _strangers(module, constant.shape, old.shape)
                    new += old
                if not np.isfinite(new).all():
                    raise UnusableAdapter(f"Some of the numbers for {module} are none.")
                for part, data in _parts(export, name, new):
                    there = export.constants[part]
                    if used[there.offset] > 1:
                        end = os.lseek(copy, 0, os.SEEK_END)
                        moved[part] = end + -end % 64
                        os.pwrite(copy, data, moved[part])
                    else:
                        memory[there.offset : there.offset + there.size] = data
        return copy, _moved(folder, moved) if moved else None  # 4
    except BaseException:
        os.close(copy)
        raise


def _moved(folder: Path, moved: Mapping[str, int]) -> int:
    tree = ET.parse(folder / XML)  # noqa: S314 - our own export
    for layer in tree.iter("layer"):
        data = layer.find("data")
        if data is not None and layer.get("type") == "Const" and layer.get("name") in moved:
            data.set("offset", str(moved[layer.get("name", "")]))
    xml = os.memfd_create("blindbox-tuned-xml")
    with os.fdopen(os.dup(xml), "wb") as file:
        tree.write(file, encoding="utf-8", xml_declaration=True)
    return xml


# --- what is merged -----------------------------------------------------------------------------------


class _Change(NamedTuple):
    """What is done to one weight: B·A is added to it, or another is put in its place."""

    weights: _Weights
    names: tuple[str, ...]  # of A and B, or of the whole weight
    scale: float

    @property
    def added(self) -> bool:
        return len(self.names) == 2

    def read(self) -> Floats:
        """The whole matrix, made now: there is never more than one in memory."""
        parts = [self.weights.read(name) for name in self.names]
        if not self.added:
            return parts[0]
        a, b = parts
        whole: Floats = np.matmul(b * np.float32(self.scale), a, dtype=np.float32)
        return whole


def _changes(adapter: Adapter) -> dict[str, _Change]:
    """What the adapter does, by the name of the module."""
    try:
        modules = adapter.modules()
        weights = _Weights(memoryview(adapter.weights))
    except (MalformedAdapter, MalformedTensors) as error:
        raise UnusableAdapter(f"It cannot be used: {error}.") from error
    if adapter.manifest.kind == "full":
        return {module: _Change(weights, (f"{module}.weight",), 1.0) for module in modules}
    scale = adapter.manifest.alpha / adapter.manifest.rank
    return {module: _Change(weights, (PREFIX + module + A, PREFIX + module + B), scale) for module in modules}


def _strangers(module: str, there: tuple[int, ...], here: tuple[int, ...]) -> UnusableAdapter:
    return UnusableAdapter(
        f"{module} is {there} in the export, and {here} here; they do not belong together."
    )


def _place(export: Export, module: str) -> str:
    """The name of a module's constant: a 16-bit model's is kept under the first of these."""
    for name in (f"self.{module}._openvino_orig_weight", f"self.{module}.weight"):
        constant = export.constants.get(name)
        if constant is None:
            continue
        if constant.kind not in ("f32", "f16", "bf16", "u8"):
            raise UnusableAdapter(
                f"The export holds {module} as {constant.kind}; adapters are merged into int8, bf16, f16 and "
                "f32 weights. Serve tuned models with BLINDBOX_WEIGHTS=int8."
            )
        return name
    raise UnusableAdapter(f"The export has no weight called {module}.")


class _Weights:
    """Safetensors as float32, one tensor at a time: the library gives numpy no bfloat16."""

    def __init__(self, data: Any) -> None:
        self._tensors: dict[str, tuple[Any, Tensor]] = {
            name: (data, tensor) for name, tensor in layout(data).items()
        }

    @classmethod
    def of(cls, folder: Path) -> _Weights:
        """All of a model's files; they are mapped, not read."""
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise UnusableAdapter("The base model's folder has no weights to merge with.")
        try:
            first, *others = (cls(np.memmap(path, mode="r", dtype=np.uint8)) for path in paths)
        except MalformedTensors as error:
            raise UnusableAdapter(f"The base model's weights cannot be read: {error}.") from error
        for other in others:
            first._tensors |= other._tensors
        return first

    def read(self, name: str) -> Floats:
        """One tensor; raises `UnusableAdapter`."""
        try:
            data, tensor = self._tensors[name]
        except KeyError:
            raise UnusableAdapter(f"The base model has no weight called {name}.") from None
        try:
            raw = np.frombuffer(data, np.uint8, count=tensor.end - tensor.begin, offset=tensor.begin)
            return _floats(raw, tensor.kind).reshape(tensor.shape)
        except (ValueError, KeyError) as error:
            raise UnusableAdapter(f"{name} cannot be read.") from error


# --- types --------------------------------------------------------------------------------------------


def _floats(raw: NDArray[np.uint8], kind: str) -> Floats:
    if kind == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"f32": np.float32, "f16": np.float16}[kind]).astype(np.float32)


def _dequantised(export: Export, name: str, memory: mmap.mmap) -> Floats:
    """A weight as the export has it."""

    def raw(constant: Constant) -> NDArray[np.uint8]:
        # A copy: views would keep the map from being closed.
        return np.frombuffer(memory, np.uint8, constant.size, constant.offset).copy()

    constant = export.constants[name]
    if constant.kind != "u8":
        return _floats(raw(constant), constant.kind).reshape(constant.shape)
    zero, scale = export.constants[f"{name}/zero_point"], export.constants[f"{name}/scale"]
    whole = raw(constant).reshape(constant.shape).astype(np.float32)
    whole -= raw(zero).reshape(zero.shape)
    whole *= _floats(raw(scale), scale.kind).reshape(scale.shape)
    return whole


def _parts(export: Export, name: str, weight: Floats) -> Iterator[tuple[str, bytes]]:
    """The constants that hold a weight, each with its bytes."""
    constant = export.constants[name]
    if constant.kind != "u8":
        yield name, _narrowed(weight, constant.kind)
        return
    whole, zero, scale = _int8(weight)
    parts = {name: whole, f"{name}/zero_point": zero}
    yield from ((part, data.tobytes()) for part, data in parts.items())
    yield f"{name}/scale", _narrowed(scale, export.constants[f"{name}/scale"].kind)


def _narrowed(weight: Floats, kind: str) -> bytes:
    if kind == "bf16":  # to the nearest, and from the middle to the even one
        bits = np.ascontiguousarray(weight).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype(np.uint16).tobytes()
    return weight.astype({"f32": np.float32, "f16": np.float16}[kind]).tobytes()


def _int8(weight: Floats) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Floats]:
    """nncf's INT8_ASYM: 256 steps between a row's least and greatest value, one of which is zero."""
    low = np.minimum(weight.min(1, keepdims=True), 0)
    high = np.maximum(weight.max(1, keepdims=True), 0)
    scale = np.maximum((high - low) / np.float32(255), _LEAST).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, 255)
    whole = weight * (np.float32(1) / scale)
    whole += zero
    np.rint(whole, out=whole)
    np.clip(whole, 0, 255, out=whole)
    return whole.astype(np.uint8), zero.astype(np.uint8), scale


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
