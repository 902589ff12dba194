"""Booting a machine: its TPM's key is known beforehand, and what QEMU is told to show it is little."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from enclave_app.quoting.tpm import attestation_key
from enclave_app.quoting.tpm_commands import Tpm
from image.vm.errors import NotBooted, UnusableOutput
from image.vm.run import qemu, tpm
from tests.kit.debian import need
from tests.kit.swtpm import need_swtpm


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
    need("qemu-system-x86_64", "qemu-system-x86")
    settings, data = tmp_path / "settings", tmp_path / "data.raw"
    told = wanted(tmp_path, settings=settings, drives=(data,))
    words = list(qemu.command(told, Path("/c"), Path("/v"), Path("/log"), Path("/t")))
    said = " ".join(words)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert "restrict=on,hostfwd=tcp:127.0.0.1:8099-:80" in said
    assert said.count("virtio-blk-pci") == 2
    assert f"readonly=on,file={told.disk}" not in said
    assert "snapshot=on" in said.split(str(told.disk))[0]  # what was built stays as it was built
    assert f"name=opt/blindbox/settings,file={settings}" in said
    assert "tpm-crb" in said
    assert "kvm" not in said


def test_without_a_disk_nothing_is_started(tmp_path: Path) -> None:
    told = wanted(tmp_path)
    told.disk.unlink()
    with pytest.raises(UnusableOutput, match="make vm"), qemu.running(told):
        pass
    assert not told.state.exists()


def test_why_a_machine_stopped_is_read_from_its_console(tmp_path: Path) -> None:
    """In the words of the kernel and of `init`: not every silence is tampering that was caught."""
    console = tmp_path / "console.log"

    class Ended:
        def poll(self) -> int:
            return 0

    machine = qemu.Machine(Ended(), console, "http://127.0.0.1:9", b"")  # type: ignore[arg-type]
    console.write_text(
        "blindbox 9.1: root from /dev/vda2\n[ 9.2] device-mapper: verity: 254:2: data block 3 is corrupted\n"
        "[ 9.2] Kernel panic - not syncing: dm-verity device corrupted\n"
    )
    assert machine.why() == [
        "data block 3 is corrupted",
        "Kernel panic - not syncing: dm-verity device corrupted",
    ]
    with pytest.raises(NotBooted, match="data block 3 is corrupted"):
        machine.wait(1)
    console.write_text("nothing\nof note\n")
    assert machine.why() == ["nothing", "of note"]


def test_a_tpm_answers_commands_before_the_machine_boots(tmp_path: Path) -> None:
    """What `key_digest` asks is the quoter's own question."""
    need_swtpm()
    tpm.manufacture(tmp_path)
    with tpm.switched_on(tmp_path) as transport:
        key = attestation_key(Tpm(transport), "ecc")
    assert hashlib.sha256(key.public_bytes()).digest() == tpm.key_digest(tmp_path)
