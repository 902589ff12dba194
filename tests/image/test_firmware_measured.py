"""The real builds: what hardware will measure of them, by other programs' account, and what they start."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from blindbox.cli import main as blindbox
from image.firmware import build
from image.measure import snp, tdx
from image.measure.errors import UnreadableFirmware
from image.measure.ovmf import PAGE, Firmware
from tests.kit.debian import need
from tests.kit.firmware import built, option_rom, program
from tests.kit.uefi import uki
from tests.kit.vm import pinned_tree

DOCS = Path(__file__).parents[2] / "docs" / "measurements.md"


@pytest.mark.parametrize("processor", snp.PROCESSORS)
def test_the_launch_digests_are_those_of_sev_snp_measure(processor: str, tmp_path: Path) -> None:
    firmware = built("snp")
    (tmp_path / "blindbox.efi").write_bytes(uki())
    kernel = tmp_path / "blindbox.efi"
    found = snp.launch_digests(firmware, kernel, processors=[processor])
    assert len(set(found.values())) == 64
    for number in (1, 2, 4, 8, 16, 33, 64):
        assert found[f"{processor} x{number}"] == guest.calc_launch_digest(
            SevMode.SEV_SNP,
            number,
            vcpu_types.CPU_SIGS[processor],
            str(firmware),
            str(kernel),
            "",
            "",
            0x1,
            "",
            VMMType.QEMU,
        )


def test_mrtd_is_what_a_second_reading_of_the_file_gives() -> None:
    """
    Straight through, with no code of ours: a pointer from the end of the file to the sections (Intel TDX
    Virtual Firmware Design Guide §11); each page is added, and those that are measured are extended.
    """
    data = built("tdx").read_bytes()
    entry = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
    assert data.count(entry) == 1
    (offset,) = struct.unpack_from("<I", data, data.index(entry) - 6)
    at = len(data) - offset
    magic, _, version, count = struct.unpack_from("<4sIII", data, at)
    assert (magic, version) == (b"TDVF", 1)
    mrtd = hashlib.sha384()
    kinds = []
    for number in range(count):
        begins, stored, address, size, kind, attributes = struct.unpack_from(
            "<IIQQII", data, at + 16 + 32 * number
        )
        kinds.append((kind, attributes))
        for page in range(0, size, PAGE):
            mrtd.update(struct.pack("<16sQ104x", b"MEM.PAGE.ADD", address + page))
            if attributes == 1:
                assert stored == size
                for chunk in range(page, page + PAGE, 256):
                    mrtd.update(struct.pack("<16sQ104x", b"MR.EXTEND", address + chunk))
                    mrtd.update(data[begins + chunk : begins + chunk + 256])
    assert (0, 1) in kinds  # the code is measured …
    assert (1, 0) in kinds  # … and the variables are not
    assert tdx.mrtd(Firmware.parse(data)) == mrtd.digest()


def test_the_firmware_for_tdx_is_not_taken_for_sev_snp() -> None:
    with pytest.raises(UnreadableFirmware, match="the AmdSev build of OVMF has it"):
        Firmware.parse(built("tdx").read_bytes()).check_snp()


def test_the_page_names_the_bytes_that_are_built() -> None:
    page = DOCS.read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+\.fd)` \| `([0-9a-f]{64})`", page, re.MULTILINE))
    assert told == {
        file: hashlib.sha256(built(which).read_bytes()).hexdigest() for which, file in build.FILES.items()
    }
    assert f"`{tdx.mrtd(Firmware.parse(built('tdx').read_bytes())).hex()}`" in page


def test_a_policy_comes_out_of_what_was_predicted_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`predict` over dist/vm where it is, then `policy from-measurements` for both."""
    folder = build.REPOSITORY / "dist" / "vm"
    if not (folder / "build.json").is_file():
        pytest.skip("no dist/vm: `make vm` builds it")
    from image.measure.__main__ import main

    firmware = built("snp"), built("tdx")
    words = ["predict", "--vm", str(folder), "--out", str(tmp_path / "m.json")]
    assert main([*words, "--firmware-snp", str(firmware[0]), "--firmware-tdx", str(firmware[1])]) == 0
    told = json.loads((tmp_path / "m.json").read_text())
    capsys.readouterr()
    from_measurements = ["policy", "from-measurements", str(tmp_path / "m.json"), "--platform"]
    assert blindbox([*from_measurements, "snp", "--processor", "Genoa", "--vcpus", "4"]) == 0
    policy = json.loads(capsys.readouterr().out)
    assert policy["snp"]["measurements"] == [told["snp_launch_digest"]["by_vcpus"]["EPYC-Genoa x4"]]
    assert blindbox([*from_measurements, "tdx", "--tcb-evaluation", "18"]) == 0
    policy = json.loads(capsys.readouterr().out)
    assert policy["tdx"]["mrtd"] == [told["tdx"]["mrtd"]]


# --- in QEMU, without the hardware ---

SAYS = "THE HOST'S PROGRAM RAN"
REFUSED = "the kernel was not started, and nothing else is."
MENU = "Press any key to enter the Boot Manager Menu."
PATIENCE = 120.0
RNG = 0x1AF4, 0x1005  # virtio-rng-pci, which takes a ROM like any device


def _said(firmware: Path, words: Sequence[str | Path], until: str, folder: Path) -> str:
    """What stands on the console once it says that."""
    need("qemu-system-x86_64", "qemu-system-x86")
    console = folder / "console"
    console.touch()
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,smm=off", "-accel", "tcg", "-cpu", "max", "-m", "512", "-bios", firmware),
        *("-serial", f"file:{console}", *words),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as machine:
        try:
            began = time.monotonic()
            while until not in console.read_text("utf-8", "replace"):
                assert machine.poll() is None, machine.stderr and machine.stderr.read()
                assert time.monotonic() - began < PATIENCE, console.read_text("utf-8", "replace")
                time.sleep(0.2)
        finally:
            machine.kill()
    return console.read_text("utf-8", "replace")


@pytest.fixture
def disk(tmp_path: Path) -> list[str]:
    """A disk of the host's, with a program where firmware looks for one."""
    found = tmp_path / "disk" / "EFI" / "BOOT" / "BOOTX64.EFI"
    found.parent.mkdir(parents=True)
    found.write_bytes(program(SAYS.encode()))
    drive = f"if=none,id=host,format=raw,readonly=on,file=fat:{tmp_path / 'disk'}"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=host"]


@pytest.fixture
def rom(tmp_path: Path) -> list[str]:
    """A device of the host's, with a program in its ROM."""
    (tmp_path / "rom").write_bytes(option_rom(program(SAYS.encode(), 11), *RNG))
    return ["-device", f"virtio-rng-pci,romfile={tmp_path / 'rom'}"]


def test_the_firmware_for_tdx_starts_what_is_on_the_disk(disk: list[str], tmp_path: Path) -> None:
    """Measured, on a TDX machine; so the disk is one that can be started from."""
    assert SAYS in _said(built("tdx"), disk, SAYS, tmp_path)


def test_the_firmware_for_sev_snp_starts_nothing_from_a_disk(disk: list[str], tmp_path: Path) -> None:
    """S-36: EDK II's BdsDxe would in the end: the launch digest would be that of a kernel that never ran."""
    said = _said(built("snp"), disk, REFUSED, tmp_path)
    assert SAYS not in said
    assert "starting" not in said


def test_the_firmware_for_sev_snp_starts_no_kernel_whose_hash_was_not_measured(
    disk: list[str], tmp_path: Path
) -> None:
    """S-36: there is no page of hashes without SEV-SNP, and so this is what a host sees that brings none."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(program(SAYS.encode()).ljust(0x2000, b"\0"))  # QEMU takes none that is shorter
    assert SAYS not in _said(built("snp"), ["-kernel", kernel, *disk], REFUSED, tmp_path)
    (tmp_path / "console").unlink()
    other = pinned_tree().file("usr/share/ovmf/OVMF.fd")
    assert SAYS in _said(other, ["-kernel", kernel], SAYS, tmp_path), "QEMU hands over nothing that starts"


def test_debians_firmware_runs_a_program_from_a_rom(rom: list[str], tmp_path: Path) -> None:
    """What the next one refuses is a ROM that runs."""
    assert SAYS in _said(pinned_tree().file("usr/share/ovmf/OVMF.fd"), rom, SAYS, tmp_path)


@pytest.mark.parametrize(("which", "end"), [("snp", REFUSED), ("tdx", MENU)])
def test_ours_run_none(which: str, end: str, rom: list[str], tmp_path: Path) -> None:
    """S-36"""
    assert SAYS not in _said(built(which), rom, end, tmp_path)
