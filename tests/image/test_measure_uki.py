"""A unified kernel image: its measured parts, and what its stub makes of command line and initrd."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given

from image.measure.errors import UnreadableProgram
from image.measure.uki import MEASURED, Uki
from tests.kit.debian import need
from tests.kit.garbling import Edit, edits, garbled
from tests.kit.uefi import COMMAND_LINE, KERNEL, PARTS, program, uki

HONEST = uki()


def test_the_measured_sections_come_in_the_stubs_order_whatever_their_order_in_the_file() -> None:
    found = Uki.parse(HONEST)
    names = [name for name, _ in found.sections]
    assert names == [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"]
    assert names == [name for name in MEASURED if name in PARTS]
    assert all(data == PARTS[name] for name, data in found.sections)
    assert found.kernel.data == KERNEL


@pytest.mark.parametrize(
    "content", [COMMAND_LINE.encode(), f" {COMMAND_LINE}\n".encode(), COMMAND_LINE.encode() + b"\0"]
)
def test_the_kernel_gets_the_command_line_without_what_surrounds_it(content: bytes) -> None:
    found = Uki.parse(uki(cmdline=content))
    assert found.command_line == COMMAND_LINE
    assert found.load_options.decode("utf-16-le") == COMMAND_LINE + "\0"


def test_the_kernel_gets_the_initrd_with_the_os_release_behind_it(tmp_path: Path) -> None:
    """GNU cpio reads the archive that the stub is said to write."""
    need("cpio")
    initrd = Uki.parse(HONEST).initrd
    own = PARTS[".initrd"]
    assert initrd.startswith(own + bytes(-len(own) % 4))
    archive = initrd[len(own) + -len(own) % 4 :]
    listed = subprocess.run(
        [
            "cpio",
            "--extract",
            "--make-directories",
            "--preserve-modification-time",
            "--no-absolute-filenames",
            "--verbose",
        ],
        input=archive,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert listed.stderr.decode().split()[:2] == [".extra", ".extra/os-release"]
    file = tmp_path / ".extra" / "os-release"
    assert file.read_bytes() == PARTS[".osrel"]
    assert file.stat().st_mode & 0o7777 == 0o444
    assert file.stat().st_mtime == 0
    assert (tmp_path / ".extra").stat().st_mode & 0o7777 == 0o555


def test_microcode_comes_before_the_initrd() -> None:
    assert Uki.parse(uki(ucode=b"microcode")).initrd.startswith(b"microcode\0\0\0" + PARTS[".initrd"])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (KERNEL, "it has no .linux"),
        (uki(cmdline=None), "it has no .cmdline"),
        (uki(initrd=b""), "it has no .initrd"),
        (uki(osrel=None), "it has no .osrel"),
        (uki(profile=b"ID=debug\n"), "a section .profile"),
        (uki(dtb=b"\xd0\x0d\xfe\xed"), "a section .dtb"),
        (uki(pcrsig=b"{}"), "a section .pcrsig"),
        (uki(linux=b"no kernel"), "the kernel in it cannot be read"),
        (uki(cmdline=b" \n"), "command line is 0 bytes"),
        (uki(cmdline=b"a" * 2048), "command line is 2048 bytes"),
        (uki(cmdline="größer".encode()), "printable"),
        (uki(cmdline=b"console=ttyS0\ninit=/bin/sh"), "printable"),
        (HONEST.replace(b".uname\0\0", b".sbat\0\0\0"), ".sbat twice"),
        (HONEST[: len(HONEST) // 2], "cut short"),
        (program({}), "it has no .linux"),
    ],
)
def test_what_our_build_would_not_write_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(UnreadableProgram) as refused:
        Uki.parse(data)
    assert told in str(refused.value)


@given(edits())
def test_whatever_a_file_holds_it_is_read_or_refused(wishes: list[Edit]) -> None:
    try:
        found = Uki.parse(garbled(HONEST, wishes))
    except UnreadableProgram:
        return
    assert len(found.initrd) % 4 == 0
    assert found.command_line.isascii()
