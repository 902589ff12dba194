"""
Kernel, initrd and command line → one EFI program, which firmware loads, measures and starts as a whole.

Made by systemd's ukify out of systemd's stub: UAPI group, "Unified Kernel Image" specification;
systemd-stub(7). What the stub measures of it is told in `image/measure`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from . import programs
from .packages import Tree

STUB = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"


def make(tree: Tree, initrd: Path, command_line: str, release: str, file: Path) -> None:
    """The program, written to `file`."""
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "os-release"
        about.write_text(
            f'ID=blindbox\nNAME="BlindBox"\nVERSION_ID="{release}"\nPRETTY_NAME="BlindBox {release}"\n'
        )
        programs.pinned(
            "ukify",
            [
                *(sys.executable, tree.file("usr/lib/systemd/ukify"), "build"),
                *("--stub", tree.file(STUB), "--linux", kernel(tree), "--initrd", initrd),
                *("--cmdline", command_line, "--os-release", f"@{about}", "--uname", tree.kernel),
                *("--output", file),
            ],
            environment={
                "PYTHONPATH": str(tree.file("usr/lib/python3/dist-packages")),  # pefile
                "SOURCE_DATE_EPOCH": str(programs.EPOCH),
            },
        )


def kernel(tree: Tree) -> Path:
    """The kernel's file."""
    return tree.file(f"boot/vmlinuz-{tree.kernel}")
