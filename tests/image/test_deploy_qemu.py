"""
What is typed for a host of one's own, on one without the technology: the rest of it, with a real QEMU.

The processor's part of the command is left out (confidential memory, its firmware, KVM), and the machine is
stopped before its first instruction. So what is seen is that QEMU takes the devices, the disk, the port and
the console as they are written, and that what removes the machine finds it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from blindbox.commands.deploy_steps import words
from blindbox.commands.deploy_targets import TARGETS
from tests.kit.debian import need

OTHERWISE = {"-accel": "tcg", "-cpu": "max", "-machine": "q35"}
LEFT_OUT = {"-object", "-bios"}


def ordinary(command: list[str]) -> list[str]:
    """The command without what needs the technology: options with a value each."""
    found = [command[0], "-S"]
    rest = iter(command[1:])
    for word in rest:
        if word in LEFT_OUT:
            next(rest)
        elif word in OTHERWISE:
            next(rest)
            found += [word, OTHERWISE[word]]
        else:
            found.append(word)
    return found


@pytest.mark.parametrize("target", ["qemu-snp", "qemu-tdx"])
def test_qemu_takes_the_machine_and_removing_it_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    need("qemu-system-x86_64", "qemu-system-x86")
    need("pkill", "procps")
    monkeypatch.chdir(tmp_path)
    (plan,) = TARGETS[target].plans.values()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    disk = tmp_path / "a disk.raw"
    disk.write_bytes(bytes(1 << 20))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"MZ".ljust(0x2000, b"\0"))
    known = {value.name: value.default for value in plan.values if value.default is not None}
    known |= {"NAME": "one-of-a-test", "DISK": "a disk.raw", "KERNEL": "kernel"}
    known |= {"PORT": port, "MEMORY": "64M", "CPUS": "2"}
    (start,) = plan.deploy
    done = subprocess.run(
        ordinary(words(start, known)), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    number = int(Path("one-of-a-test.pid").read_text())
    try:
        assert runs(number)
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10):
            pass
        assert Path("one-of-a-test.console.log").exists()
        for step in plan.remove:
            subprocess.run(words(step, known), check=True)
        assert not Path("one-of-a-test.console.log").exists()
        while runs(number):  # a machine that was not found is ended by the test's own limit
            time.sleep(0.05)
    finally:
        if runs(number):
            os.kill(number, signal.SIGKILL)


def runs(number: int) -> bool:
    """Whether there is such a process; one that has ended, and that nobody has asked for yet, is none."""
    try:
        return Path("/proc", str(number), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
