"""What we write, read by the tools that everybody reads it with: cpio, FAT32, GPT, VHD, tar, dm-verity."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from image.vm import cpio, disk, fat, verity
from image.vm.errors import UnusableOutput
from tests.kit.debian import need
from tests.kit.vm import pinned_tree


def run(*command: str | Path, stdin: bytes = b"") -> str:
    """A tool's standard output; an error shows what it said."""
    done = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.decode()


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# ── cpio ────────────────────────────────────────────────────────────────────────────────────────────

ENTRIES = [
    cpio.folder("bin"),
    cpio.file("bin/tool", b"x" * 4097, 0o755),
    cpio.link("bin/other", "tool"),
    cpio.file("bin/empty", b""),
    cpio.file("init", b"#!", 0o755),
]


def test_cpio_reads_our_archive(tmp_path: Path) -> None:
    need("cpio")
    (tmp_path / "archive").write_bytes(cpio.archive(ENTRIES))
    with (tmp_path / "archive").open("rb") as archive:
        subprocess.run(["cpio", "-i", "--quiet"], stdin=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"x" * 4097
    assert (tmp_path / "bin/other").readlink() == Path("tool")
    assert stat.S_IMODE((tmp_path / "init").stat().st_mode) == 0o755
    assert (tmp_path / "bin/empty").stat().st_size == 0


def test_the_order_in_which_entries_are_named_changes_no_byte() -> None:
    assert cpio.archive(ENTRIES) == cpio.archive(reversed(ENTRIES))


@pytest.mark.parametrize(
    "entries",
    [
        [cpio.file("bin/tool", b"")],  # no folder for it
        [cpio.file("bin", b""), cpio.file("bin/tool", b"")],  # a file is no folder
        [cpio.file("a", b""), cpio.file("a", b"")],
        [cpio.folder("a"), cpio.file("a", b"")],
        [cpio.file("", b"")],
        [cpio.file("/a", b"")],
        [cpio.folder("a"), cpio.file("a/..", b"")],
        [cpio.file("a\0b", b"")],
    ],
)
def test_an_archive_that_would_unpack_otherwise_is_not_written(entries: list[cpio.Entry]) -> None:
    with pytest.raises(UnusableOutput):
        cpio.archive(entries)


# ── dm-verity ───────────────────────────────────────────────────────────────────────────────────────


def veritysetup(volume: verity.Volume) -> subprocess.CompletedProcess[str]:
    offset = f"--hash-offset={volume.data_blocks * verity.BLOCK}"
    command = ["veritysetup", "verify", volume.file, volume.file, volume.root_hash, offset]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [1, 4096, 4097, 128 * 4096, 129 * 4096, (128 * 128 + 1) * 4096])
def test_veritysetup_agrees_with_our_tree(tmp_path: Path, size: int) -> None:
    need("veritysetup", "cryptsetup-bin")
    file = tmp_path / "volume"
    file.write_bytes(noise(size))
    volume = verity.protect(file, "root")
    assert volume.data_blocks == -(-size // 4096)
    done = veritysetup(volume)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("at", [0, 5000, 200 * 4096 - 1])
def test_veritysetup_refuses_a_volume_with_one_bit_changed(tmp_path: Path, at: int) -> None:
    need("veritysetup", "cryptsetup-bin")
    file = tmp_path / "volume"
    file.write_bytes(noise(200 * 4096))
    volume = verity.protect(file, "root")
    changed = bytearray(file.read_bytes())
    changed[at] ^= 1
    file.write_bytes(changed)
    done = veritysetup(volume)
    assert done.returncode != 0
    assert "failed" in done.stderr


def test_veritysetup_reads_our_superblock(tmp_path: Path) -> None:
    need("veritysetup", "cryptsetup-bin")
    file = tmp_path / "volume"
    file.write_bytes(noise(3 * 4096))
    volume = verity.protect(file, "models")
    said = run("veritysetup", "dump", file, f"--hash-offset={3 * 4096}")
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())
    }
    assert fields["Salt"] == volume.salt == hashlib.sha256(b"blindbox-models").hexdigest()
    assert fields["Data blocks"] == "3"
    assert fields["Hash algorithm"] == "sha256"


def test_an_empty_volume_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volume").touch()
    with pytest.raises(UnusableOutput, match="empty"):
        verity.protect(tmp_path / "volume", "root")


@pytest.mark.parametrize("options", [verity.SYSTEM, verity.WEIGHTS])
def test_the_same_folder_gives_the_same_volume_whatever_its_times(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    tree, made = pinned_tree(), []
    for number in (1, 2):
        folder = tmp_path / str(number) / "folder"
        (folder / "below").mkdir(parents=True)
        # Written in another order, too: folders list their names as they please.
        for name in ("b", "a", "below/c")[:: 1 if number == 1 else -1]:
            (folder / name).write_bytes(noise(300_000, seed=len(name)))
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (number * 10**8, number * 10**8))
        made.append(verity.make(tree, folder, tmp_path / f"{number}.img", name="x", options=options))
    assert made[0].root_hash == made[1].root_hash
    assert made[0].file.read_bytes() == made[1].file.read_bytes()
    assert veritysetup(made[0]).returncode == 0


def test_a_volume_of_models_can_be_read_by_everybody_whoever_made_the_folder(tmp_path: Path) -> None:
    tree, made = pinned_tree(), []
    for number, mode in ((1, 0o600), (2, 0o664)):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o700 if number == 1 else 0o775)
        (folder / "weights").write_bytes(b"w" * 5000)
        (folder / "weights").chmod(mode)
        made.append(
            verity.make(tree, folder, tmp_path / f"{number}.img", name="models", options=verity.WEIGHTS)
        )
    assert made[0].root_hash == made[1].root_hash
    listed = run(*tree.program("usr/bin/unsquashfs"), "-lln", made[0].file)
    assert "drwxr-xr-x 0/0" in listed or "dr-xr-xr-x 0/0" in listed, listed
    assert "-r--r--r-- 0/0" in listed, listed


# ── FAT32 ───────────────────────────────────────────────────────────────────────────────────────────


def system(files: dict[str, bytes], size: int = fat.LEAST) -> bytes:
    return fat.image(files, size, label="BLINDBOX", serial=0x12345678, hidden=2048)


def test_dosfstools_and_mtools_read_our_file_system(tmp_path: Path) -> None:
    need("fsck.vfat", "dosfstools")
    need("mcopy", "mtools")
    files = {
        "EFI/BOOT/BOOTX64.EFI": noise(1_000_001),
        "EFI/BOOT/A.TXT": b"a",
        "EMPTY": b"",
        "B.BIN": noise(512),
    }
    for size in (fat.LEAST, 64 << 20, (100 << 20) + 512):
        image = tmp_path / str(size)
        image.write_bytes(system(files, size))
        assert image.stat().st_size == size
        said = run("fsck.vfat", "-n", "-v", image)
        assert "32 bits/entry" in said or "FAT32" in said or "bytes per FAT (= " in said
        for path, content in files.items():
            out = tmp_path / "out"
            run("mcopy", "-n", "-o", "-i", image, f"::/{path}", out)
            assert out.read_bytes() == content
        assert "BLINDBOX" in run("mdir", "-i", image, "::/")


@pytest.mark.parametrize(
    "files",
    [
        {"lower": b""},
        {"TOO.LONG": b""},
        {"A": b"", "A/B": b""},
        {"A/B": b"", "A/B/C": b""},
        {"../A": b""},
        {"A": bytes(35 << 20)},
    ],
)
def test_what_the_file_system_cannot_hold_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(UnusableOutput):
        system(files)


def test_a_file_system_too_small_to_be_fat32_is_refused() -> None:
    with pytest.raises(UnusableOutput, match="FAT32"):
        system({}, fat.LEAST - 512)


# ── the disk and its forms ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a program and two volumes of noise."""
    folder = tmp_path_factory.mktemp("disk")
    for number, name in enumerate(("program", "root", "models")):
        (folder / name).write_bytes(noise(3_000_000 + number, seed=number))
    disk.make(folder / "program", folder / "root", folder / "models", folder / "disk.raw")
    return folder / "disk.raw"


def test_partition_tools_find_nothing_wrong_with_the_disk(raw: Path) -> None:
    need("sgdisk", "gdisk")
    need("sfdisk", "fdisk")
    assert "No problems found" in run("sgdisk", "--verify", raw)
    table = json.loads(run("sfdisk", "--json", raw))["partitiontable"]
    assert table["label"] == "gpt"
    found = [(one["name"], one["start"], one["type"]) for one in table["partitions"]]
    linux = str(disk.LINUX_DATA).upper()
    assert found == [
        ("blindbox-esp", 2048, str(disk.EFI_SYSTEM).upper()),
        ("blindbox-root", 2048 * 65, linux),
        ("blindbox-models", 2048 * 68, linux),
        ("blindbox-settings", 2048 * 71, linux),
    ]
    assert raw.stat().st_size == 1 << 30
    assert raw.stat().st_blocks * 512 < 90 << 20, "what is not used is no hole"


def test_each_partition_holds_its_volume(raw: Path) -> None:
    need("mcopy", "mtools")
    with raw.open("rb") as data:
        for name, first in (("root", 65), ("models", 68)):
            data.seek(first << 20)
            content = (raw.parent / name).read_bytes()
            assert data.read(len(content)) == content
            assert not any(data.read((3 << 20) - len(content)))
        data.seek(71 << 20)
        assert not any(data.read(1 << 20))
    program = raw.parent / "copied"
    run("mcopy", "-n", "-o", "-i", f"{raw}@@1M", "::/EFI/BOOT/BOOTX64.EFI", program)
    assert program.read_bytes() == (raw.parent / "program").read_bytes()


def test_a_program_larger_than_usual_gets_a_larger_partition(tmp_path: Path) -> None:
    need("mcopy", "mtools")
    (tmp_path / "program").write_bytes(noise(1 << 20) * 70)
    (tmp_path / "root").write_bytes(b"r")
    disk.make(tmp_path / "program", tmp_path / "root", None, tmp_path / "disk.raw")
    run("mcopy", "-n", "-i", f"{tmp_path / 'disk.raw'}@@1M", "::/EFI/BOOT/BOOTX64.EFI", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "program").read_bytes()


def test_a_volume_larger_than_its_partition_or_a_name_twice_is_refused(tmp_path: Path) -> None:
    one = disk.Partition("one", disk.LINUX_DATA, 10, b"12345678901")
    with pytest.raises(UnusableOutput, match="10 bytes for 11"):
        disk.write([one], tmp_path / "disk")
    twice = disk.Partition("two", disk.LINUX_DATA, 10)
    with pytest.raises(UnusableOutput, match="a name of its own"):
        disk.write([twice, twice], tmp_path / "disk")


def test_the_vhd_is_the_disk_to_who_reads_it(raw: Path, tmp_path: Path) -> None:
    need("qemu-img", "qemu-utils")
    disk.vhd(raw, tmp_path / "disk.vhd")
    about = json.loads(run("qemu-img", "info", "--output=json", "-f", "vpc", tmp_path / "disk.vhd"))
    assert about["virtual-size"] == raw.stat().st_size
    run("qemu-img", "compare", "-f", "vpc", "-F", "raw", tmp_path / "disk.vhd", raw)


def test_the_vhd_footer_is_the_specifications() -> None:
    """Field by field, for a disk of 1 GiB: what Azure looks at."""
    footer = disk.vhd_footer(1 << 30, b"i" * 16)
    assert len(footer) == 512
    assert footer[:8] == b"conectix"
    assert struct.unpack(">II", footer[8:16]) == (2, 0x10000)
    assert footer[16:24] == b"\xff" * 8
    assert struct.unpack(">QQ", footer[40:56]) == (1 << 30, 1 << 30)
    assert struct.unpack(">I", footer[60:64]) == (2,)  # fixed
    (checksum,) = struct.unpack(">I", footer[64:68])
    assert checksum == ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
    assert footer[68:84] == b"i" * 16


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        # Worked out by hand from the appendix of the specification.
        (40 << 20, (963, 5, 17)),
        (1 << 30, (2080, 16, 63)),
        (127 << 30, (65278, 16, 255)),
        (4 << 40, (65535, 16, 255)),
    ],
)
def test_the_geometry_is_the_specifications(size: int, geometry: tuple[int, int, int]) -> None:
    assert disk.vhd_geometry(size) == geometry


def test_the_archive_holds_the_disk_and_is_the_same_twice(raw: Path, tmp_path: Path) -> None:
    tree = pinned_tree()
    for name in ("1.tar.gz", "2.tar.gz"):
        disk.archive(tree, raw, tmp_path / name)
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.tar.gz", "2.tar.gz"]
    with tarfile.open(tmp_path / "1.tar.gz") as archive, raw.open("rb") as disk_itself:
        (member,) = archive.getmembers()
        assert (member.name, member.size) == ("disk.raw", raw.stat().st_size)
        inside = archive.extractfile(member)
        assert inside is not None
        assert (
            hashlib.file_digest(inside, "sha256").digest()
            == hashlib.file_digest(disk_itself, "sha256").digest()
        )
    assert "disk.raw" in run("tar", "-tzf", tmp_path / "1.tar.gz")


def test_a_copy_keeps_holes_and_bytes(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as source:
        for at in (3 << 20, 20 << 20):
            source.seek(at)
            source.write(noise(5000))
        source.truncate(40 << 20)
    for begin in (0, 4096):
        with (tmp_path / "holes").open("rb") as source, (tmp_path / f"copy{begin}").open("wb") as to:
            to.seek(begin)
            disk.copy(source, to)
            assert to.tell() == begin + (40 << 20)
            to.truncate()
        copied = tmp_path / f"copy{begin}"
        assert copied.read_bytes()[begin:] == (tmp_path / "holes").read_bytes()
        assert copied.stat().st_blocks <= (tmp_path / "holes").stat().st_blocks + 16
