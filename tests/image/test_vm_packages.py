"""The pinned packages: what the lock may say, and that nothing else gets in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from image.vm import initrd, modules, packages
from image.vm.errors import BadPackage, FailedProgram, MissingProgram, UnusableKernel
from image.vm.modules import Module
from tests.kit.vm import pinned_tree

ROOT = Path(__file__).resolve().parents[2]


def test_the_lock_pins_exactly_the_packages_that_are_explained() -> None:
    names = [one.name for one in packages.read()]
    assert names == sorted(names)
    explained = {*packages.INSIDE, *packages.OUTSIDE}
    assert {packages.KERNEL if packages.is_kernel(name) else name for name in names} == explained
    assert not set(packages.INSIDE) & set(packages.OUTSIDE)


def test_the_lock_names_no_place() -> None:
    text = packages.LOCK.read_text()
    assert not re.search(r"https?:|\.(org|com|net)\b", text)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("busybox-static 1.0", "NAME VERSION SHA256"),
        ("busybox-static 1.0 " + "0" * 63, "NAME VERSION SHA256"),
        ("busybox-static 1.0 " + "0" * 64 + " more", "NAME VERSION SHA256"),
        ("../busybox 1.0 " + "0" * 64, "NAME VERSION SHA256"),
        ("busybox-static 1/0 " + "0" * 64, "NAME VERSION SHA256"),
        ("a-b 1 " + "0" * 64 + "\na-b 2 " + "1" * 64, "line 2: a-b was pinned before"),
    ],
)
def test_a_lock_that_is_none_is_refused(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "lock").write_text(line + "\n")
    with pytest.raises(BadPackage, match=re.escape(why)):
        packages.read(tmp_path / "lock")


def test_a_missing_lock_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="cannot be read"):
        packages.read(tmp_path / "lock")


def test_an_archive_that_is_no_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for text in ("not a url", "https://a [trusted=yes] b", "https://x\ndeb file:/evil ./"):
        monkeypatch.setenv("DEBIAN_ARCHIVE", text)
        with pytest.raises(BadPackage, match="not the URL of an archive"), packages.Apt():
            pass
    assert not list((tmp_path / "blindbox" / "vm").iterdir()), "apt's state stays behind"


def test_package_urls_are_spelled_as_the_specification_wants() -> None:
    package = packages.Package("libext2fs2t64", "1:1.47.2-3+b3~x", "0" * 64)
    assert package.purl == "pkg:deb/debian/libext2fs2t64@1%3A1.47.2-3%2Bb3~x?arch=amd64&distro=debian-13"


def test_a_pinned_program_runs_with_its_own_libraries() -> None:
    tree = pinned_tree()
    program = tree.program("usr/bin/mksquashfs")
    listed = subprocess.run(
        [str(word) for word in (program[0], "--list", *program[1:])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.findall(r"=> (\S+)", listed)
    assert len(found) >= 5
    assert all(Path(path).is_relative_to(tree.root) for path in found), listed


def test_a_file_that_no_package_has_is_named() -> None:
    with pytest.raises(BadPackage, match="usr/bin/nothing"):
        pinned_tree().file("usr/bin/nothing")


def test_a_source_of_other_bytes_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: the pinned packages are Debian's")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    into = tmp_path / "into"
    into.mkdir()
    try:
        with packages.Apt("test", sources=True) as apt:
            tarball = next(one for one in apt.newest_source("edk2") if ".debian.tar." in one.name)
            apt.fetch_source([tarball], into)
            assert [one.name for one in into.iterdir()] == [tarball.sha256]
            with pytest.raises(BadPackage, match=f"it has SHA-256 {tarball.sha256}, pinned is {'0' * 64}"):
                apt.fetch_source([replace(tarball, sha256="0" * 64)], into)
            assert [one.name for one in into.iterdir()] == [tarball.sha256]
            with pytest.raises(BadPackage, match=re.escape("`python -m image.test lock`")):
                apt.fetch_source([replace(tarball, version="0-0")], into)
    except (BadPackage, FailedProgram) as error:
        if not isinstance(error, FailedProgram) and not isinstance(error.__cause__, FailedProgram):
            raise
        pytest.skip(f"no archive with this source in reach: {str(error)[:300]}")
    assert not list((tmp_path / "blindbox" / "test").iterdir()), "apt's state stays behind"


def test_other_suites_and_what_packages_need_are_asked_of_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        with packages.Apt("test", suite="bookworm") as apt:
            names = apt.with_what_they_need(["dmsetup"])
            versions = {one.name: one.version for one in apt.newest(names)}
    except (FailedProgram, MissingProgram) as failure:
        pytest.skip(f"no archive in reach: {str(failure)[:300]}")
    assert {"dmsetup", "libdevmapper1.02.1", "libc6"} <= versions.keys()
    assert versions["libc6"].startswith("2.36-"), "bookworm's"


# ── what goes into the initrd ───────────────────────────────────────────────────────────────────────


def test_the_initrd_has_every_library_that_its_programs_load_and_no_other() -> None:
    tree = pinned_tree()
    needed = set()
    for path in initrd.PROGRAMS:
        program = tree.program(path)
        listed = subprocess.run(
            [str(word) for word in (program[0], "--list", *program[1:])],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        needed |= set(re.findall(r"^\s*(\S+) => ", listed, re.MULTILINE))
    assert needed - {"ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"} == set(initrd.LIBRARIES)


def test_busybox_has_every_applet_that_the_scripts_call() -> None:
    listed = subprocess.run(
        [str(pinned_tree().file("usr/bin/busybox")), "--list"], capture_output=True, text=True, check=True
    ).stdout
    assert set(initrd.APPLETS) <= set(listed.split())


def test_modules_come_after_what_they_depend_on() -> None:
    tree = pinned_tree()
    found = modules.in_order(tree.file(f"usr/lib/modules/{tree.kernel}"))
    names = [one.name for one in found]
    assert {"dm_verity", "squashfs", "sev_guest", "tdx_guest", "tsm", "virtio_net"} <= set(names)
    assert len(names) == len(set(names))
    built_in = (tree.file(f"usr/lib/modules/{tree.kernel}") / "modules.builtin").read_text().replace("-", "_")
    for number, module in enumerate(found):
        for other in modules.depends(module):
            assert other in names[:number] or f"/{other}.ko" in built_in, (module.name, other)
        assert module.content.endswith(b"~Module signature appended~\n"), f"{module.name} is not signed"


def test_no_module_lets_the_host_vouch_for_randomness() -> None:
    tree = pinned_tree()
    names = {one.name for one in modules.in_order(tree.file(f"usr/lib/modules/{tree.kernel}"))}
    assert "virtio_rng" not in names


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + bytes(100)]
)
def test_what_is_no_module_is_refused(content: bytes) -> None:
    with pytest.raises(UnusableKernel, match="module x"):
        modules.depends(Module("x", content))


def test_a_kernel_without_a_wanted_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableKernel, match="no list of built-in modules"):
        modules.in_order(tmp_path)
    (tmp_path / "modules.builtin").write_text("kernel/x.ko\n")
    with pytest.raises(UnusableKernel, match=f"no module {next(iter(modules.WANTED))}"):
        modules.in_order(tmp_path)


@pytest.mark.parametrize("module", ["image.vm", "image.base", "image.firmware", "image.listing"])
def test_who_builds_needs_nothing_installed_but_python(module: str, tmp_path: Path) -> None:
    """`make image vm firmware` comes before any virtual environment."""
    command = [sys.executable, "-S", "-P", "-m", module, "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
