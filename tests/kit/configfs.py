"""
A kernel behind real files: configfs-tsm as an SEV-SNP or a TDX guest sees it, answered by a fake vendor.

Behaves as Linux's drivers/virt/coco/tsm: an entry's attributes appear with it and vanish with it,
`generation` counts writes, a report is made when it is read, and reading before writing is an error. Only
AMD's provider has levels and a table of certificates.
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from enclave_app.quoting.configfs import CERTIFICATES, Tree

GUIDS = {name: guid for guid, name in CERTIFICATES.items()}


def certificate_table(certificates: Mapping[str, bytes], *, little_endian: bool = False) -> bytes:
    """What a host lays ready for its guests: AMD 56421 §4.1.8.1."""
    entries, data = b"", b""
    start = 24 * (len(certificates) + 1)
    for name, der in certificates.items():
        guid: uuid.UUID = GUIDS[name]
        raw = guid.bytes_le if little_endian else guid.bytes
        entries += struct.pack("<16sII", raw, start + len(data), len(der))
        data += der
    return entries + bytes(24) + data


class FakeConfigfs(Tree):
    """
    `sign` makes the report; `provider=None` is a kernel without hardware; `races` other writers come in
    between; `failures` are what the first reports end with, as error numbers.
    """

    def __init__(
        self,
        root: Path,
        sign: Callable[[bytes], bytes],
        *,
        table: bytes = b"",
        provider: str | None = "sev_guest",
        races: int = 0,
        failures: Iterable[int] = (),
    ) -> None:
        self.root = root
        self.sign = sign
        self.table = table
        self.provider = provider
        self.races = races
        self.failures = list(failures)
        self.entries_made: list[str] = []
        self.levels: list[bytes] = []

    def make(self, entry: Path) -> None:
        if self.provider is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        super().make(entry)
        self.entries_made.append(entry.name)
        (entry / "provider").write_bytes(self.provider.encode() + b"\n")
        (entry / "generation").write_bytes(b"0\n")
        extended = ("auxblob", "privlevel") if self.provider == "sev_guest" else ()
        for name in ("inblob", "outblob", *extended):
            (entry / name).touch()

    def remove(self, entry: Path) -> None:
        for attribute in entry.iterdir():
            attribute.unlink()
        super().remove(entry)

    def write(self, attribute: Path, value: bytes) -> None:
        if attribute.name not in ("inblob", "privlevel") or (attribute.name == "inblob" and len(value) > 64):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().write(attribute, value)
        if attribute.name == "privlevel":
            self.levels.append(value)
        self._advance(attribute.parent)

    def read(self, attribute: Path) -> bytes:
        if attribute.name == "outblob":
            asked = (attribute.parent / "inblob").read_bytes()
            if not asked:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if self.failures:
                code = self.failures.pop(0)
                raise OSError(code, os.strerror(code))
            attribute.write_bytes(self.sign(asked))
            if self.provider == "sev_guest":
                (attribute.parent / "auxblob").write_bytes(self.table)
            if self.races:
                self.races -= 1
                self._advance(attribute.parent)
        return super().read(attribute)

    def _advance(self, entry: Path) -> None:
        generation = entry / "generation"
        generation.write_bytes(b"%d\n" % (int(generation.read_bytes()) + 1))
