"""
What a training measured, step by step: as rows, and as what other tools read.

pandas is used where it is installed and asked for. A TensorBoard log needs nothing: its format (TFRecord with
`Event` messages) is a few lines, and only looking at it takes TensorBoard.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .curve import Curve, finite

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_MOST_FLOAT: Final = 3.4e38  # of 32 bits, as TensorBoard has them
COLUMNS: Final = (
    "step",
    "epoch",
    "loss",
    "validation_loss",
    "learning_rate",
    "tokens_per_second",
    "time",
)


class Metrics(Sequence[dict[str, Any]]):
    """One row a step that was measured; a figure that is not known there is None."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], title: str = "") -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self.title = title

    @property
    def columns(self) -> list[str]:
        """The names of the figures; first those that every release tells."""
        further = {name for row in self.rows for name in row} - set(COLUMNS)
        return [*COLUMNS, *sorted(further)]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as CSV; also written to a file if one is named."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(["" if row.get(name) is None else row[name] for name in self.columns])
        if path is not None:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text.getvalue())
        return text.getvalue()

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_pandas() needs pandas: pip install pandas (rows and to_csv() need nothing)"
            ) from error
        return pd.DataFrame(self.rows, columns=self.columns)

    def to_tensorboard(self, folder: str | os.PathLike[str]) -> Path:
        """Write a log for `tensorboard --logdir FOLDER`, and return its file."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.blindbox.{secrets.token_hex(4)}"
        path = Path(folder) / name
        with open(path, "xb") as file:
            for record in self._records():
                file.write(_record(record))
        return path

    def curve(self) -> Curve:
        """The loss by steps."""
        return Curve(self.rows, self.title)

    def _records(self) -> Iterator[bytes]:
        times = [float(row["time"]) for row in self.rows if finite(row.get("time"))]
        yield _double(1, times[0] if times else time.time()) + _bytes(3, b"brain.Event:2")
        for row in self.rows:
            step, moment = row.get("step"), row.get("time")
            if not finite(step) or not 0 <= step < 1 << 53:
                continue
            values = b"".join(
                _bytes(1, _bytes(1, f"train/{name}".encode()) + _float(2, float(row[name])))
                for name in self.columns
                if name not in {"step", "time"} and finite(row.get(name)) and abs(row[name]) < _MOST_FLOAT
            )
            at = _double(1, float(moment) if finite(moment) else 0.0)
            yield at + _varint(2 << 3) + _varint(int(step)) + _bytes(5, values)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Metrics of {len(self.rows)} steps, {self.curve().text()}>"


# ── a TensorBoard log: protocol buffers in TFRecords ──────────────────────────────────────────────────────


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    """CRC-32C, turned and shifted, as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC: Final = _table()


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
