"""
An exported model's .xml (OpenVINO's IR): its constants, where they lie in the .bin, and its KV cache.

    <layer name="self.model.layers.0.mlp.up_proj.weight" type="Const">
        <data element_type="u8" shape="1536, 576" offset="42" size="884736"/>

Only what serving and patching have to know is read; the model itself is OpenVINO's to read.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

XML: Final = "openvino_model.xml"
BIN: Final = "openvino_model.bin"
_NAMED: Final = {"u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4"}


class UnusableExport(Exception):
    """The folder does not hold a model that can be served; the message says what is missing."""


class Constant(NamedTuple):
    """A constant, and where its bytes are."""

    offset: int
    size: int
    kind: str  # f32, f16, bf16, u8, i8, u4, i4, …
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Export:
    """What the .xml tells."""

    constants: dict[str, Constant]
    kv_numbers: int  # that one token keeps in the KV cache

    @classmethod
    def at(cls, folder: Path) -> Export:
        """Read it; raises `UnusableExport`."""
        constants: dict[str, Constant] = {}
        numbers = 0
        try:
            # Our own export, digested before it is opened (export.py), never a caller's file.
            for _, layer in ET.iterparse(folder / XML):  # noqa: S314
                if layer.tag != "layer":
                    continue
                data = layer.find("data")
                if data is not None and layer.get("type") == "Const":
                    constants[layer.get("name", "")] = Constant(
                        int(data.get("offset", "0")),
                        int(data.get("size", "0")),
                        data.get("element_type", ""),
                        _numbers(data.get("shape", "")),
                    )
                elif data is not None and layer.get("type") == "ReadValue":
                    # [batch, heads, tokens, size of a head]: two of them are not known beforehand.
                    shape = data.get("variable_shape", "").split(",")
                    known = [int(size) for size in shape if size.strip().isdigit()]
                    if len(shape) == 4 and len(known) == 2:
                        numbers += known[0] * known[1]
                layer.clear()
        except (OSError, ET.ParseError, ValueError) as error:
            raise UnusableExport(f"{folder / XML} cannot be read; export the model again.") from error
        if not numbers:
            raise UnusableExport(f"{folder} has no KV cache that is known here; export the model again.")
        return cls(constants, numbers)

    @property
    def weights(self) -> str:
        """What most of the weights are held in."""
        sizes: dict[str, int] = {}
        for constant in self.constants.values():
            sizes[constant.kind] = sizes.get(constant.kind, 0) + constant.size
        found = max(sizes, key=lambda kind: sizes[kind], default="")
        return _NAMED.get(found, found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())
