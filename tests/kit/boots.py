"""
Machines that boot in tests: QEMU emulates them, a TPM in software measures, and what they say is kept.

    with answering(build / "disk.raw", folder, settings="BLINDBOX_ENGINE=echo\\n") as machine:
        requests.post(f"{machine.origin}/test", …)

A boot takes from twenty seconds to two minutes of one core.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blindbox import Policy, cli
from blindbox_attestation import policy as policies
from image.measure.__main__ import main as measure
from image.vm import disk as disks
from image.vm.build import Wanted, build
from image.vm.errors import NotBooted, Starved
from image.vm.run import emulator, qemu
from tests.kit.process import free_port
from tests.kit.swtpm import need_swtpm
from tests.kit.vm import pinned_tree

PATIENCE = 600.0  # other tests run beside
TRIES = 3
SETTINGS = "# blindbox settings\nBLINDBOX_QUOTER=tpm\n"
SECTOR = 512


def need_qemu() -> None:
    """Skip the test if there is no QEMU, or no TPM for it."""
    need_swtpm()
    pinned_tree(emulator.LOCK)


def wanted(disk: Path, folder: Path, *, settings: str | None = SETTINGS, **more: Any) -> qemu.Wanted:
    """A machine with one processor, for tests run beside it; it is told to use its TPM."""
    folder.mkdir(parents=True, exist_ok=True)
    file = None
    if settings is not None:
        file = folder / "settings"
        file.write_text(settings)
    told: dict[str, Any] = {"processors": 1, "memory": 1024, **more}
    return qemu.Wanted(disk=disk, state=folder, port=free_port(), settings=file, **told)


@contextmanager
def answering(wanted: qemu.Wanted) -> Iterator[qemu.Machine]:
    """
    The machine, once it answers. Where this host had no time for its clock, the same bytes are tried again;
    after any other end they are not.
    """
    need_qemu()
    for left in reversed(range(TRIES)):
        with qemu.running(wanted) as machine:
            try:
                machine.wait(PATIENCE)
                yield machine
            except Starved as starved:
                print(f"{starved}\n{tail(machine)}")
                if not left:
                    raise
            except BaseException:
                print(tail(machine))
                raise
            else:
                return


def refusal(wanted: qemu.Wanted) -> str:
    """What is on the console of a machine that stops before it answers."""
    with pytest.raises(NotBooted, match="the machine stopped"), answering(wanted):
        pass
    return (wanted.state / "console.log").read_text("utf-8", "replace")


def tail(machine: qemu.Machine, lines: int = 40) -> str:
    """For whoever reads of a failure."""
    return "\n".join((f"console: {machine.console}", *machine.said().splitlines()[-lines:]))


@contextmanager
def built(wanted: Wanted) -> Iterator[Path]:
    """A virtual machine, and its two gigabytes for as long as they are needed."""
    pinned_tree()
    try:
        build(wanted)
        yield wanted.out
    finally:
        shutil.rmtree(wanted.out, ignore_errors=True)


# ── what was predicted, and policies made of it ─────────────────────────────────────────────────────


def measurements(build: Path) -> Path:
    """`measurements.json` of a build, beside it."""
    out = build.with_name(f"{build.name}.measurements.json")
    assert measure(["predict", "--vm", str(build), "--out", str(out)]) == 0
    return out


def policy(measured: Path, machine: qemu.Machine, *words: str) -> Policy:
    """What `blindbox policy from-measurements` prints for this TPM's key."""
    key = machine.key_digest.hex()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = cli.main(
            ["policy", "from-measurements", str(measured), "--platform", "tpm", "--ak-key", key, *words]
        )
    assert status == cli.DONE
    found = policies.read(printed.getvalue())
    assert isinstance(found, Policy)
    return found


# ── disks that somebody has changed ─────────────────────────────────────────────────────────────────


@contextmanager
def copied(build: Path, folder: Path) -> Iterator[Path]:
    """The disk of a build, to be changed; its holes stay holes, and it is gone after the block."""
    disk = folder / "disk.raw"
    try:
        with (build / "disk.raw").open("rb") as source, disk.open("xb") as copy:
            disks.copy(source, copy)
        yield disk
    finally:
        disk.unlink(missing_ok=True)


def start_of(disk: Path, name: str) -> int:
    """The byte at which a partition begins: UEFI 2.10, §5.3."""
    with disk.open("rb") as file:
        file.seek(2 * SECTOR)
        table = file.read(128 * 128)
    for entry in struct.iter_unpack("<16s16sQQQ72s", table):
        if entry[5].decode("utf-16-le").rstrip("\0") == name:
            return int(entry[2]) * SECTOR
    raise AssertionError(f"{disk} has no partition {name}")


def overwrite(disk: Path, at: int, content: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(content)


def find(disk: Path, content: bytes, size: int = 80 << 20) -> int:
    """Where this stands, once, at the beginning of the disk."""
    with disk.open("rb") as file:
        data = file.read(size)
    assert data.count(content) == 1
    return data.index(content)
