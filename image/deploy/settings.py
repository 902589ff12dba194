"""
Writes an operator's settings to a copy of the machine's disk, and tells what the enclave will attest of them.

    python -m image.deploy.settings SETTINGS --vm dist/vm --out mine.raw      (or mine.vhd, mine.tar.gz)

They go to the beginning of the partition `blindbox-settings` (image/vm/README.md); nothing else of the disk
changes, and no measurement does: what firmware measures of a disk is its partition table. The digest that is
printed is what a policy's `config_digests` pins.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from enclave_app import settings_file
from enclave_app.settings import InvalidSettings
from image.measure import gpt
from image.measure.build import DISK, Build, config_digest
from image.measure.errors import MeasureError, UnreadableDisk
from image.vm import disk as forms
from image.vm import packages
from image.vm.errors import UnusableOutput, VmError

_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_BEFORE: Final = 100  # the header, 92 bytes, and the number of entries, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 not done; the reason is the last thing printed."""
    parser = argparse.ArgumentParser(
        prog="python -m image.deploy.settings",
        description="Write settings to a copy of the machine's disk, and tell their digest.",
    )
    parser.add_argument("settings", type=Path, metavar="SETTINGS", help="lines of BLINDBOX_NAME=value")
    parser.add_argument("--vm", type=Path, default=Path("dist/vm"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the disk: .raw, .vhd (Azure), .tar.gz (Google)",
    )
    chosen = parser.parse_args(arguments)
    try:
        digest = written(chosen.settings, chosen.vm, chosen.out)
    except (MeasureError, VmError, InvalidSettings) as error:
        print(f"not done: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"not done: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: config_digest {digest}")
    return 0


def written(settings: Path, vm: Path, out: Path) -> str:
    """Write the disk; the digest of the settings. It appears whole under its name or not at all."""
    form = next((one for one in ("raw", *forms.FORMS) if out.name.endswith(f".{one}")), None)
    if form is None:
        raise UnusableOutput(f"{out} is to end with .raw, .vhd or .tar.gz")
    if out.exists():
        raise UnusableOutput(f"{out} is there already: name another file, or remove it")
    with settings.open("rb") as file:
        data = file.read(settings_file.MAX_SIZE + 1)
    build = Build.read(vm)
    digest = config_digest({**build.environment, **settings_file.read(data)})
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        raw, made = Path(folder, "disk.raw"), Path(folder, f"made.{form}")
        with (vm / DISK).open("rb") as disk, raw.open("xb") as copy:
            first, size = place(disk)
            disk.seek(0)
            forms.copy(disk, copy)
            copy.truncate()
            copy.seek(first)
            copy.write(data.ljust(min(settings_file.MAX_SIZE, size), b"\0"))
            copy.flush()
            os.fsync(copy.fileno())
        if form == "vhd":
            forms.vhd(raw, made)
        elif form == "tar.gz":
            forms.archive(packages.unpacked(), raw, made)
        else:
            made = raw
        made.rename(out)
    return digest


def place(disk: BinaryIO) -> tuple[int, int]:
    """Where on a disk settings lie, and how many bytes have room there. Raises `UnreadableDisk`."""
    table = gpt.event_data(disk)[_BEFORE:]
    for at in range(0, len(table), _ENTRY.size):
        _, _, first, last, _, name = _ENTRY.unpack_from(table, at)
        if name.decode("utf-16-le", "replace").rstrip("\0") == forms.SETTINGS:
            size = (last + 1 - first) * gpt.SECTOR
            if size < settings_file.MAX_SIZE or first * gpt.SECTOR + size > disk.seek(0, os.SEEK_END):
                raise UnreadableDisk(
                    f"its partition {forms.SETTINGS} has {size} bytes from sector {first} on"
                )
            return first * gpt.SECTOR, size
    raise UnreadableDisk(f"it has no partition {forms.SETTINGS}: build the machine again")


if __name__ == "__main__":
    sys.exit(main())
