"""
Machines that somebody has changed on the way: each is caught, and for the reason that is stated.

What stops a machine is read from its console, what a policy refuses from the error. The image is the demo's
without its model, so that a boot takes less than a minute of a core; a boot that nobody has changed is in
test_vm_boot.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import blindbox
import blindbox.requests as requests
from blindbox_attestation.event_log import EventLog
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.verify import verify
from image.measure import document, log
from image.measure.build import Build
from image.vm import programs
from image.vm.build import Wanted
from image.vm.run import qemu
from image.vm.run.qemu import Machine
from tests.kit import boots
from tests.kit.debian import need
from tests.kit.image import light_image
from tests.kit.own_home import moved_to
from tests.kit.verdict import verdict
from tests.kit.vm import buildah, pinned_tree

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("mounting an image's files takes root")
    boots.need_qemu()
    pinned_tree()
    name = light_image(f"localhost/blindbox-tampered-test:{os.getpid()}")
    yield name
    buildah("rmi", "-f", name)


@contextmanager
def made(image: str, folder: Path, weights: str) -> Iterator[Path]:
    """A build with a volume of models."""
    (folder / "models" / "a-model").mkdir(parents=True)
    (folder / "models" / "a-model" / "weights").write_text(weights)
    with boots.built(Wanted(image=image, models=folder / "models", out=folder / "vm")) as out:
        yield out


@pytest.fixture(scope="module")
def built(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with made(image, tmp_path_factory.mktemp("built"), "1") as out:
        yield out


@pytest.fixture(scope="module")
def other_models(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same image with another model beside it."""
    with made(image, tmp_path_factory.mktemp("other"), "2") as out:
        yield out


@pytest.fixture(scope="module")
def measured(built: Path) -> Path:
    return boots.measurements(built)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_to(tmp_path / "home", monkeypatch)


def wanted(disk: Path, **more: Any) -> qemu.Wanted:
    return boots.wanted(disk, disk.parent / "machine", **more)


def genuine(machine: Machine, registers: dict[int, set[bytes]]) -> blindbox.Policy:
    """A policy for this TPM, whatever was started but for these registers."""
    boot = blindbox.MeasuredBoot(pcrs=registers, secure_boot="unchecked")
    return blindbox.Policy(tpm=blindbox.TpmPolicy(boot=boot, ak_keys={machine.key_digest}))


def refused(machine: Machine, measured: Path, built: Path) -> tuple[set[int], list[str]]:
    """
    The registers that differ from what was predicted, and the events.

    The machine is a genuine one, its evidence is fresh and verifies; the release's policy refuses it, and so
    nothing is sent to it.
    """
    with requests.Session(policy=boots.policy(measured, machine)) as session:
        with pytest.raises(blindbox.AttestationError, match=r"^PCR4 is \w{64}, which is none") as refusal:
            session.post(f"{machine.origin}/test", json={"input_text": "a secret"})
        assert refusal.value.code == "pcr-mismatch"
        proof = session.prove(machine.origin, genuine(machine, {13: {bytes(32)}}))
    registers = set()
    for register, value in document.read(measured)["pcr"]["sha256"].items():
        policy = genuine(machine, {int(register): {bytes.fromhex(value)}})
        judge = partial(verify, proof.document, policy, nonce=proof.nonce, now=proof.verified_at)
        found = verdict(judge)
        assert found in ("accepted", "pcr-mismatch")
        if found == "pcr-mismatch":
            registers.add(int(register))
    events = EventLog.parse(AttestationDocument.parse(proof.document).endorsements["event_log"])
    return registers, list(log.differences(events, Build.read(built).boot))


# ── machines that do not start, and say why ─────────────────────────────────────────────────────────


def with_one_byte_of_the_root(disk: Path, _: Path) -> dict[str, Any]:
    at = boots.start_of(disk, "blindbox-root") + 2000  # behind the superblock of the squashfs
    with disk.open("rb") as file:
        file.seek(at)
        (byte,) = file.read(1)
    boots.overwrite(disk, at, bytes([byte ^ 1]))
    return {}


def with_other_models(disk: Path, other: Path) -> dict[str, Any]:
    boots.overwrite(disk, boots.start_of(disk, "blindbox-models"), (other / "models.img").read_bytes())
    return {}


def cut_short(disk: Path, _: Path) -> dict[str, Any]:
    os.truncate(disk, boots.start_of(disk, "blindbox-root") + (20 << 20))
    return {}


def with_settings_on_it(disk: Path, _: Path) -> dict[str, Any]:
    boots.overwrite(disk, boots.start_of(disk, "blindbox-settings"), boots.SETTINGS.encode())
    return {}


def with_hostile_settings(disk: Path, _: Path) -> dict[str, Any]:
    settings = "LD_PRELOAD=/var/lib/blindbox/evil.so\nhttps_proxy=http://192.0.2.1\nBLINDBOX_QUOTER=tpm\n"
    boots.overwrite(disk, boots.start_of(disk, "blindbox-settings"), settings.encode())
    return {"settings": None}


Change = Callable[[Path, Path], dict[str, Any]]
"""Changes a disk, and may look at the build with other models; gives what else is told of the machine."""

CHANGES: tuple[Change, ...] = (
    cut_short,
    with_hostile_settings,
    with_one_byte_of_the_root,
    with_other_models,
    with_settings_on_it,
)


@pytest.fixture(scope="module")
def consoles(
    built: Path, other_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Change], str]]:
    """
    What the machine with each of these disks said until it stopped.

    They boot two at a time, while the tests above have theirs: one waits half a minute for its disk.
    """

    def stopped(change: Change, folder: Path) -> str:
        with boots.copied(built, folder) as disk:
            return boots.refusal(wanted(disk, **change(disk, other_models)))

    folders = {change: tmp_path_factory.mktemp(change.__name__) for change in CHANGES}
    with ThreadPoolExecutor(2) as pool:
        under_way = {change: pool.submit(stopped, change, folder) for change, folder in folders.items()}

        def console(change: Change) -> str:
            said = under_way[change].result()
            print(said)  # shown where a test fails
            return said

        yield console


@pytest.fixture(autouse=True)
def all_of_them(consoles: Callable[[Change], str]) -> None:
    """Under way from the first test on."""


# ── machines that start, and are refused ────────────────────────────────────────────────────────────


def test_one_character_of_the_command_line(built: Path, measured: Path, tmp_path: Path) -> None:
    """C-6, S-31: a kernel that leaves prompts in freed memory runs as well, and cannot hide it."""
    line = document.read(measured)["command_line"].encode()
    other = line.replace(b" init_on_free=1 ", b" init_on_free=0 ")
    with boots.copied(built, tmp_path) as disk:
        boots.overwrite(disk, boots.find(disk, line), other)
        with boots.answering(wanted(disk)) as machine:
            registers, events = refused(machine, measured, built)
    assert registers == {4, 11}
    assert [one for one in events if one.startswith("PCR 9 (sha256), event 1: wanted the command line")]
    assert not [one for one in events if one.startswith("PCR 12")]


def test_an_add_on_beside_the_program(built: Path, measured: Path, tmp_path: Path) -> None:
    """C-6, S-31: systemd's stub takes more words for the kernel from the disk, and measures that it did."""
    need("mcopy", "mtools")
    addon, tree = tmp_path / "x.addon.efi", pinned_tree()
    command: list[str | Path] = [
        *(sys.executable, tree.file("usr/lib/systemd/ukify"), "build"),
        *("--stub", tree.file("usr/lib/systemd/boot/efi/addonx64.efi.stub")),
        *("--cmdline", "init_on_free=0", "--output", addon),
    ]
    pefile = str(tree.file("usr/lib/python3/dist-packages"))
    programs.pinned("ukify", command, environment={"PYTHONPATH": pefile})
    folder = "::/EFI/BOOT/BOOTX64.EFI.extra.d"
    with boots.copied(built, tmp_path) as disk:
        system = f"{disk}@@{boots.start_of(disk, 'blindbox-esp')}"
        for words in (("mmd", "-i", system, folder), ("mcopy", "-i", system, str(addon), folder)):
            subprocess.run(words, check=True, capture_output=True)
        with boots.answering(wanted(disk)) as machine:
            registers, events = refused(machine, measured, built)
    assert registers == {4, 12}
    assert [one for one in events if one.startswith("PCR 12 (sha384), event 1: wanted nothing more")]


# ── what the others said ────────────────────────────────────────────────────────────────────────────


def test_one_byte_of_the_root(consoles: Callable[[Change], str]) -> None:
    """S-32: in the content of a file, which is read through dm-verity or not at all."""
    said = consoles(with_one_byte_of_the_root)
    assert "data block 0 is corrupted" in said
    assert "Kernel panic - not syncing: dm-verity device corrupted" in said
    assert "starting the application" not in said


def test_another_volume_of_models(consoles: Callable[[Change], str]) -> None:
    """S-29, S-32: whole in itself, with a tree of its own; the command line names another."""
    said = consoles(with_other_models)
    assert "root from /dev/vda2" in said
    assert "block 0 is corrupted" in said
    assert "Kernel panic - not syncing: dm-verity device corrupted" in said
    assert "starting the application" not in said


def test_a_disk_that_is_cut_short(consoles: Callable[[Change], str]) -> None:
    """S-32: within the root; what is there has the right bytes."""
    assert "not started: no disk has a partition named blindbox-root" in consoles(cut_short)


def test_settings_from_two_places(consoles: Callable[[Change], str]) -> None:
    """S-31: nobody guesses which are meant."""
    said = consoles(with_settings_on_it)
    assert "not started: settings come from two places, /dev/vda4 and /sys/firmware/qemu_fw_cfg/" in said
    assert "starting the application" not in said


def test_settings_that_would_change_what_runs(consoles: Callable[[Change], str]) -> None:
    """S-31: for the loader, and for a proxy."""
    said = consoles(with_hostile_settings)
    assert "the settings: line 1 sets LD_PRELOAD: only names that begin with BLINDBOX_ are settings" in said
    assert "the settings: line 2 sets https_proxy" in said
    assert "evil.so" not in said
    assert "the application ended with 78" in said
    assert '"event": "starting"' not in said


# ── seen without a boot ─────────────────────────────────────────────────────────────────────────────


def test_another_model_is_another_measurement(measured: Path, other_models: Path) -> None:
    """S-29: and every policy for the old one refuses the new one's registers."""
    old, new = document.read(measured), document.read(boots.measurements(other_models))
    told = list(document.compared(old, new))
    assert told[0].startswith("the volume of the models (models)")
    assert {one.partition("(")[2].partition(")")[0] for one in told} == {
        *("models", "command_line", "uki", "disk", "pcr", "tdx"),
    }
    assert old["pcr"]["sha256"]["4"] != new["pcr"]["sha256"]["4"]
    assert old["pcr"]["sha256"]["11"] != new["pcr"]["sha256"]["11"]
