"""Booting a machine: its TPM's key is known beforehand, and what QEMU is told to show it is little."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_app.quoting.tpm import attestation_key
from enclave_app.quoting.tpm_commands import Tpm
from image.vm import packages, programs
from image.vm.errors import BadPackage, FailedProgram, MissingProgram, NotBooted, Starved, UnusableOutput
from image.vm.run import emulator, qemu, tpm
from image.vm.run.monitor import Monitor
from tests.kit.process import children, free_port, gone
from tests.kit.swtpm import need_swtpm
from tests.kit.vm import pinned_tree

ROOT = Path(__file__).resolve().parents[2]


def wanted(folder: Path, **changes: object) -> qemu.Wanted:
    (folder / "disk.raw").write_bytes(b"")
    told = {"disk": folder / "disk.raw", "state": folder / "state", "port": 8099, **changes}
    return qemu.Wanted(**told)  # type: ignore[arg-type]


def test_the_key_of_a_tpm_is_the_same_each_time_it_is_switched_on(tmp_path: Path) -> None:
    need_swtpm()
    tpm.manufacture(tmp_path / "one")
    key = tpm.key_digest(tmp_path / "one")
    tpm.manufacture(tmp_path / "one")  # what is there stays
    assert tpm.key_digest(tmp_path / "one") == key
    assert len(key) == hashlib.sha256().digest_size
    tpm.manufacture(tmp_path / "other")
    assert tpm.key_digest(tmp_path / "other") != key
    assert tpm.key_digest(tmp_path / "one", "rsa") != key


def test_a_machine_sees_its_disk_its_tpm_and_one_closed_network(tmp_path: Path) -> None:
    settings, data = tmp_path / "settings", tmp_path / "data.raw"
    told = wanted(tmp_path, settings=settings, drives=(data,))
    words = list(qemu.options(told, Path("/c"), Path("/v"), Path("/log"), Path("/t"), Path("/m")))
    said = " ".join(words)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert "restrict=on,hostfwd=tcp:127.0.0.1:8099-:80" in said
    assert said.count("virtio-blk-pci") == 2
    assert f"readonly=on,file={told.disk}" not in said
    assert "snapshot=on" in said.split(str(told.disk))[0]  # what was built stays as it was built
    assert f"name=opt/blindbox/settings,file={settings}" in said
    assert "tpm-crb" in said
    assert "kvm" not in said


def test_the_lock_pins_the_emulator_and_its_libraries() -> None:
    names = [one.name for one in emulator.read()]
    assert names == sorted({*emulator.WANTED, *emulator.LIBRARIES})
    assert not re.search(r"https?:|\.(org|com|net)\b", emulator.LOCK.read_text())


def test_the_emulator_loads_every_library_that_is_pinned_and_no_other() -> None:
    """Of the host nothing but its kernel has a say in how a machine runs."""
    tree = pinned_tree(emulator.LOCK)
    loader, *rest = tree.program(emulator.PROGRAM)
    words = [str(word) for word in (loader, "--list", *rest)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    loaded = [Path(path) for path in re.findall(r"=> (\S+)", listed)]
    assert all(path.is_relative_to(tree.root) for path in loaded), listed
    files = packages.fetched(emulator.read())
    for one in emulator.read():
        if one.name in emulator.LIBRARIES:
            content = programs.ours("dpkg-deb", "--contents", files / f"{one.sha256}.deb")
            assert any(f"/{path.name}" in content for path in loaded), f"nobody loads {one.name}"


def test_an_emulator_that_is_not_to_be_had_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is pinned and gone: no other takes its place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(emulator, "LOCK", tmp_path / "lock")
    emulator.LOCK.write_text(f"qemu-system-x86 0-0 {'0' * 64}\n")
    try:
        with pytest.raises(BadPackage, match=r"image\.vm lock` pins the newest .*DEBIAN_ARCHIVE=URL"):
            emulator.qemu()
    except (FailedProgram, MissingProgram) as failure:
        pytest.skip(f"no archive in reach: {str(failure)[:300]}")
    assert not list((tmp_path / "blindbox" / "vm" / "debs").iterdir())


def test_without_a_disk_nothing_is_started(tmp_path: Path) -> None:
    told = wanted(tmp_path)
    told.disk.unlink()
    with pytest.raises(UnusableOutput, match="make vm"), qemu.running(told):
        pass
    assert not told.state.exists()


@pytest.fixture
def ended(tmp_path: Path) -> qemu.Machine:
    """A machine that is not there any more, but for what it said."""
    process = subprocess.Popen(["true"])
    process.wait()
    return qemu.Machine(process, tmp_path / "console.log", "http://127.0.0.1:9", b"", Monitor(tmp_path / "m"))


NO_TICK = "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\n"


def test_why_a_machine_stopped_is_read_from_its_console(ended: qemu.Machine) -> None:
    """In the words of the kernel and of `init`: not every silence is tampering that was caught."""
    ended.console.write_text(
        "blindbox 9.1: root from /dev/vda2\n[ 9.2] device-mapper: verity: 254:2: data block 3 is corrupted\n"
        "[ 9.2] Kernel panic - not syncing: dm-verity device corrupted\n"
    )
    assert ended.why() == [
        "data block 3 is corrupted",
        "Kernel panic - not syncing: dm-verity device corrupted",
    ]
    with pytest.raises(NotBooted, match="data block 3 is corrupted") as stopped:
        ended.wait(1)
    assert not isinstance(stopped.value, Starved)
    ended.console.write_text("nothing\nof note\n")
    assert ended.why() == ["nothing", "of note"]


@pytest.mark.parametrize(
    ("said", "again"),
    [
        (NO_TICK, True),
        ("traps: PANIC: double fault, error_code: 0x0\nKernel panic - not syncing: Fatal exception\n", False),
        ("Kernel panic - not syncing: Attempted to kill init!\n", False),
        ("device-mapper: verity: 254:2: data block 3 is corrupted\n", False),
        ("blindbox 9.1: not started: no /dev\n", False),
        ("blindbox 9.1: the application ended with 139\n", False),
        ("", False),
    ],
)
def test_only_a_clock_that_had_no_time_may_be_tried_again(
    ended: qemu.Machine, said: str, again: bool
) -> None:
    """Nothing of what was booted is to blame for it; for all else something of it may be."""
    ended.console.write_text(said)
    assert isinstance(ended.stopped(), Starved) is again


@pytest.mark.parametrize(
    ("said", "well"),
    [
        ("blindbox 99.1: the application ended with 0\r\n[ 99.2] reboot: Power down\r\n", True),
        ("blindbox 99.1: the application ended with 0", True),
        ("blindbox 99.1: the application ended with 78\r\n", False),
        ("blindbox 99.1: the application ended with 07\r\n", False),
        ("", False),
    ],
)
def test_a_machine_has_ended_well_if_its_application_has(ended: qemu.Machine, said: str, well: bool) -> None:
    ended.console.write_text(said)
    assert ended.ended_in_order() is well


def test_the_monitor_answers_and_tells_of_faults(tmp_path: Path) -> None:
    """QEMU itself, without a machine to speak of."""
    pinned_tree(emulator.LOCK)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        path = Path(folder) / "m"
        words = [*emulator.qemu(), "-M", "none", "-display", "none", "-nodefaults"]
        process = subprocess.Popen([*words, "-qmp", f"unix:{path},server=on,wait=off"])
        try:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.01)
            monitor = Monitor(path)
            assert monitor.ask("query-status")["running"] is True
            with pytest.raises(FailedProgram, match="does not fly: The command fly has not been found"):
                monitor.ask("fly")
            assert monitor.ask("quit") == {}
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    with pytest.raises(OSError, match="No such file"):
        monitor.ask("query-status")


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m image.vm run` of a disk on which there is nothing to start."""
    need_swtpm()
    pinned_tree()
    pinned_tree(emulator.LOCK)
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    options = ("--vm", tmp_path, "--state", tmp_path / "state", "--port", free_port(), "--memory", 256)
    # As from a terminal: where these tests run in the background, a Ctrl-C is ignored and stays so.
    words = ["env", "--default-signal=INT", sys.executable, "-m", "image.vm", "run", *map(str, options)]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert "switched on" in process.stdout.readline()
        yield process
    finally:
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_nothing_behind(command: subprocess.Popen[str], tmp_path: Path) -> None:
    started = children(command.pid)
    assert len(started) == 2  # QEMU, swtpm
    assert re.fullmatch(r"[0-9a-f]{64}\n", (tmp_path / "state" / "ak-key").read_text()), "for a policy"
    os.killpg(command.pid, signal.SIGINT)
    said, _ = command.communicate(timeout=120)
    assert (command.returncode, said) == (0, "\nswitching off …\n")
    assert all(map(gone, started))


def test_a_machine_that_ends_by_itself_is_an_error(command: subprocess.Popen[str]) -> None:
    qemus = [
        pid for pid in children(command.pid) if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(qemus) == 1
    os.kill(qemus[0], signal.SIGKILL)
    said, _ = command.communicate(timeout=120)
    assert command.returncode == 1
    assert said.splitlines()[-1].startswith("not done: the machine stopped: ")


def test_a_tpm_answers_commands_before_the_machine_boots(tmp_path: Path) -> None:
    """What `key_digest` asks is the quoter's own question."""
    need_swtpm()
    tpm.manufacture(tmp_path)
    with tpm.switched_on(tmp_path) as transport:
        key = attestation_key(Tpm(transport), "ecc")
    assert hashlib.sha256(key.public_bytes()).digest() == tpm.key_digest(tmp_path)
