"""What firmware is made of and with: the locks, and the patches that fit the pinned source."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from image.firmware import source, store, tools
from image.vm.errors import BadPackage, FailedProgram, VmError
from image.vm.packages import SourceFile
from tests.kit.debian import need


def test_the_tools_lock_pins_what_is_asked_for_and_more() -> None:
    names = [one.name for one in tools.read()]
    assert names == sorted(names)
    assert set(tools.WANTED) < set(names)


def test_the_source_lock_pins_two_tarballs_of_one_version() -> None:
    pinned = source.read()
    assert {one.package for one in pinned} == {"edk2"}
    assert len({one.version for one in pinned}) == 1
    assert [one.name for one in pinned] == [
        f"edk2_{pinned[0].version.rpartition('-')[0]}.orig.tar.xz",
        f"edk2_{pinned[0].version}.debian.tar.xz",
    ]


@pytest.mark.parametrize("lock", [tools.LOCK, source.LOCK], ids=lambda lock: lock.name)
def test_the_locks_name_no_place(lock: Path) -> None:
    assert not re.search(r"https?:|\.(org|com|net)\b", lock.read_text())


ORIG = f"edk2 1-1 edk2_1.orig.tar.xz {'0' * 64}\n"
DEBIAN = f"edk2 1-1 edk2_1-1.debian.tar.xz {'1' * 64}\n"


def test_a_source_lock_is_read(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(f"# a comment\n\n{ORIG}{DEBIAN}")
    assert source.read(tmp_path / "lock") == (
        SourceFile("edk2", "1-1", "edk2_1.orig.tar.xz", "0" * 64),
        SourceFile("edk2", "1-1", "edk2_1-1.debian.tar.xz", "1" * 64),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is to pin the .orig.tar and the .debian.tar"),
        (ORIG, "is to pin the .orig.tar and the .debian.tar"),
        (ORIG + ORIG, "is to pin the .orig.tar and the .debian.tar"),
        (ORIG + DEBIAN + DEBIAN, "is to pin the .orig.tar and the .debian.tar"),
        (ORIG + DEBIAN.replace(" 1-1 ", " 1-2 "), "of one version"),
        (ORIG.replace("edk2_1", "../edk2_1") + DEBIAN, "line 1"),
        (ORIG.replace("edk2_1", "/edk2_1") + DEBIAN, "line 1"),
        (ORIG + DEBIAN.replace("1" * 64, "1" * 63), "line 2"),
        (ORIG + DEBIAN.replace(".tar.xz", ".dsc"), "line 2"),
        (ORIG + DEBIAN.replace("1-1 ", "1-1\t", 1), "line 2"),
    ],
)
def test_a_source_lock_that_is_none_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "lock").write_text(text)
    with pytest.raises(BadPackage, match=re.escape(why)):
        source.read(tmp_path / "lock")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_source_lock_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "lock").write_bytes(content)
    with pytest.raises(BadPackage, match="cannot be read"):
        source.read(tmp_path / "lock")


def test_another_lock_another_patch_or_other_code_is_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {store.recipe()}
    (tmp_path / "packages.lock").write_bytes(tools.LOCK.read_bytes() + b"\n")
    (tmp_path / "source.lock").write_bytes(source.LOCK.read_bytes() + b"\n")
    (tmp_path / "patches").mkdir()
    (tmp_path / "inside.sh").write_text("exit 0\n")
    with monkeypatch.context() as changed:
        changed.setattr(tools, "LOCK", tmp_path / "packages.lock")
        recipes.add(store.recipe())
    with monkeypatch.context() as changed:
        changed.setattr(source, "LOCK", tmp_path / "source.lock")
        recipes.add(store.recipe())
    with monkeypatch.context() as changed:
        changed.setattr(source, "PATCHES", tmp_path / "patches")
        recipes.add(store.recipe())
        for patch in ("a.patch", "b.patch"):  # the order counts, and so the names do
            (tmp_path / "patches" / patch).write_text("--- a\n")
            recipes.add(store.recipe())
    with monkeypatch.context() as changed:
        changed.setattr(store, "CODE", (tmp_path / "inside.sh",))
        recipes.add(store.recipe())
    assert len(recipes) == 7
    assert store.recipe() in recipes


def _tarballs() -> tuple[Path, Path]:
    """The pinned source, fetched where it is not there yet; skips where no archive in reach has it."""
    pinned = source.read()
    for program in ("apt-get", "patch"):
        need(program)
    try:
        folder = source.fetched(pinned)
    except VmError as error:
        if isinstance(error, FailedProgram) or isinstance(error.__cause__, FailedProgram):
            pytest.skip(f"the pinned source is not to be had here: {str(error)[:300]}")
        raise
    orig, debian = pinned
    return folder / orig.sha256, folder / debian.sha256


def test_debians_patches_and_then_ours_fit_the_pinned_source(tmp_path: Path) -> None:
    orig, debian = _tarballs()
    with tarfile.open(debian) as packed:
        series = _text(packed, "debian/patches/series").decode().split("\n")
        patches = [_text(packed, f"debian/patches/{name}") for name in series if name and name[0] != "#"]
    theirs = len(patches)
    patches += [one.read_bytes() for one in source.patches()]
    assert theirs
    assert len(patches) == theirs + 3
    touched = {
        name.decode() for patch in patches for name in re.findall(rb"^(?:---|\+\+\+) [ab]/(\S+)", patch, re.M)
    }
    with tarfile.open(orig, "r|xz") as packed:
        for member in packed:
            name = member.name.partition("/")[2]
            if name in touched and (content := packed.extractfile(member)) is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(content.read())
    words = ["patch", "--batch", "--fuzz=0", "--forward", "--strip=1", "--unified", "--remove-empty-files"]
    for patch in patches:
        done = subprocess.run(words, cwd=tmp_path, input=patch, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode() + patch[:200].decode()
    assert b"Grub" not in (tmp_path / "OvmfPkg/AmdSev/AmdSevX64.fdf").read_bytes()


def _text(packed: tarfile.TarFile, name: str) -> bytes:
    content = packed.extractfile(name)
    assert isinstance(content, io.BufferedReader)
    return content.read()
