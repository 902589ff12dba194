"""
A machine in QEMU: firmware, the built disk, a TPM, one network card whose port 80 is published on loopback.

Nothing of the host is shown to the guest but these; it cannot reach the network behind it (`restrict=on`).
Everything is emulated unless `kvm` is asked for: slow, and the same wherever it runs. QEMU's documentation:
qemu-system-x86_64(1), docs/specs/tpm.rst.
"""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from .. import packages
from ..errors import FailedProgram, NotBooted, Starved, UnusableOutput
from . import emulator, tpm
from .monitor import Monitor

CODE: Final = "usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES: Final = "usr/share/OVMF/OVMF_VARS_4M.fd"

MEMORY: Final = 4096  # MiB
PROCESSORS: Final = 2
PATIENCE: Final = 300.0  # seconds until the first answer
AK_KEY: Final = "ak-key"  # in the state: SHA-256 of the TPM's attestation key, for a policy
GRACE: Final = 60.0  # seconds for a machine whose power button was pressed: twice what the enclave takes

PROCESSOR: Final = "max"  # all that QEMU can emulate: the model's programs want x86-64-v2 and more
STARTING: Final = "starting the application"
_ENDED: Final = "the application ended with "

_STOPPED = re.compile(
    r"data block [0-9]+ is corrupted|metadata block [0-9]+ is corrupted|Kernel panic[^\r\n]*"
    r"|not started:[^\r\n]*|the settings: line[^\r\n]*|the application ended with [0-9]+"
)
"""What a machine that does not come up says on its console: the kernel, `init` or the application."""

_NO_TICK: Final = "IO-APIC + timer doesn't work"
"""What the kernel says if its clock did not tick ten times while it looked: the host had no time for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which machine, and what the host brings."""

    disk: Path
    state: Path  # the TPM, the firmware's variables, the console's log; made if it is not there
    port: int  # on loopback; the guest's port 80
    settings: Path | None = None  # QEMU's fw_cfg, opt/blindbox/settings
    drives: tuple[Path, ...] = ()  # further disks, raw
    memory: int = MEMORY
    processors: int = PROCESSORS
    kvm: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that has been switched on."""

    process: subprocess.Popen[bytes]
    console: Path
    origin: str
    key_digest: bytes  # of the TPM's attestation key
    monitor: Monitor

    def said(self) -> str:
        """All that was on its console so far."""
        return self.console.read_bytes().decode("utf-8", "replace")

    def why(self) -> list[str]:
        """What on the console tells why it stopped; the last lines, if nothing does."""
        said = self.said()
        return list(dict.fromkeys(_STOPPED.findall(said))) or said.splitlines()[-5:] or ["without a word"]

    def wait(self, patience: float = PATIENCE, *, watch: Callable[[], None] = lambda: None) -> float:
        """
        Seconds until it answered. Raises `NotBooted` if it stops, or is silent for so long.

        `watch` is called between two looks.
        """
        began = time.monotonic()
        while time.monotonic() - began < patience:
            watch()
            if self.process.poll() is not None:
                raise self.stopped()
            # Before that, nothing listens, and QEMU would keep a caller waiting.
            if STARTING in self.said() and self._answers():
                return time.monotonic() - began
            time.sleep(0.3)
        raise NotBooted(
            f"no answer within {patience:.0f} s: {'; '.join(self.why())}. Console: {self.console}"
        )

    def stopped(self) -> NotBooted:
        """The error that tells why it is not running any more."""
        told = f"the machine stopped: {'; '.join(self.why())}. Its console: {self.console}"
        return Starved(told) if _NO_TICK in self.said() else NotBooted(told)

    def ended_in_order(self) -> bool:
        """Whether the application ended without an error, and the machine with it."""
        return any(line.strip().endswith(f"{_ENDED}0") for line in self.said().splitlines())

    def switch_off(self, grace: float = GRACE) -> None:
        """Press the power button and wait so long, if somebody is there who can hear it; then cut it off."""
        with suppress(OSError, FailedProgram, subprocess.TimeoutExpired):
            if STARTING in self.said():
                self.monitor.ask("system_powerdown")
                self.process.wait(grace)
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        host, _, port = self.origin.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request("GET", "/.well-known/blindbox/attestation")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def running(wanted: Wanted) -> Iterator[Machine]:
    """The machine, switched on; it is switched off with the block."""
    if not wanted.disk.is_file():
        raise UnusableOutput(f"there is no disk {wanted.disk}: make vm builds one")
    tree, program = packages.unpacked(), emulator.qemu()
    wanted.state.mkdir(parents=True, exist_ok=True)
    variables, console = wanted.state / "firmware-variables", wanted.state / "console.log"
    shutil.copyfile(tree.file(VARIABLES), variables)
    tpm.manufacture(wanted.state / "tpm")
    key = tpm.key_digest(wanted.state / "tpm")
    (wanted.state / AK_KEY).write_text(f"{key.hex()}\n")
    console.write_bytes(b"")
    with tpm.for_machine(wanted.state / "tpm") as socket, tempfile.TemporaryFile() as complaints:
        monitor = socket.with_name("monitor")
        process = subprocess.Popen(  # noqa: S603 - a list, never a shell
            [*program, *options(wanted, tree.file(CODE), variables, console, socket, monitor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            process_group=0,  # a Ctrl-C is for whoever runs it, who switches it off
        )
        try:
            _see_it_start(process, complaints)
            origin = f"http://127.0.0.1:{wanted.port}"
            yield Machine(process, console, origin, key, Monitor(monitor))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def options(
    wanted: Wanted, code: Path, variables: Path, console: Path, socket: Path, monitor: Path
) -> Sequence[str]:
    """What QEMU is told."""
    accelerator = ("kvm", "host") if wanted.kvm else ("tcg,thread=multi,tb-size=1024", PROCESSOR)
    words = [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,smm=off", "-accel", accelerator[0], "-cpu", accelerator[1]),
        *("-m", str(wanted.memory), "-smp", str(wanted.processors), "-serial", f"file:{console}"),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
        *_drive("system", wanted.disk, boots=True),
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{wanted.port}-:80"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm,chardev=tpm"),
        *("-device", "tpm-crb,tpmdev=tpm"),
        *("-qmp", f"unix:{monitor},server=on,wait=off"),
    ]
    for number, drive in enumerate(wanted.drives):
        words += _drive(f"drive{number}", drive, writable=True)
    if wanted.settings is not None:
        words += ["-fw_cfg", f"name=opt/blindbox/settings,file={wanted.settings}"]
    return words


def _drive(name: str, file: Path, *, boots: bool = False, writable: bool = False) -> list[str]:
    # snapshot=on: what is written goes to a file without a name, and the disk stays as it was built.
    kept = "" if writable else ",snapshot=on"
    index = ",bootindex=0" if boots else ""
    return [
        *("-drive", f"if=none,id={name},format=raw,cache=unsafe{kept},file={file}"),
        *("-device", f"virtio-blk-pci,drive={name}{index}"),
    ]


def _see_it_start(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
    """QEMU judges its command line, the port and the files at once."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        return
    complaints.seek(0)
    said = complaints.read().decode("utf-8", "replace").strip()
    raise FailedProgram(f"qemu-system-x86_64 ended with {process.returncode}: {said}")
