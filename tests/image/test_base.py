"""The container image's base: pinned packages and no other, and what a build says that cannot begin."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from image import base
from image.vm import packages
from image.vm.errors import BadPackage
from image.vm.packages import Package

ROOT = Path(__file__).resolve().parents[2]
BASH = Package("bash", "5.2.15-2+b13", "0" * 64)


def test_the_lock_pins_what_the_base_is_asked_to_hold() -> None:
    names = {one.name for one in packages.read(base.LOCK)}
    assert {name for name in base.WANTED if not name.startswith("?")} <= names
    assert {"base-files", "bash", "coreutils", "libc6", "util-linux"} <= names, "what every Debian has"
    assert not {"apt", "perl", "usrmerge"} & names


def test_the_base_of_another_lock_has_another_name() -> None:
    pinned = packages.read(base.LOCK)
    assert len({base.recipe(pinned), base.recipe(pinned[1:]), base.recipe([*pinned[1:], BASH])}) == 3


def installed(folder: Path, *stanzas: str) -> Path:
    """A base, as far as its list of packages."""
    status = "\n\n".join(stanzas).encode()
    entry = tarfile.TarInfo("./var/lib/dpkg/status")
    entry.size = len(status)
    with tarfile.open(folder / "tar", "w") as archive:
        archive.addfile(entry, io.BytesIO(status))
    return folder / "tar"


SAID = "Package: bash\nEssential: yes\nStatus: {}\nPriority: required\nVersion: {}"


@pytest.mark.parametrize(
    "stanzas",
    [
        (SAID.format("install ok installed", "5.2.15-2+b12"),),
        (SAID.format("install ok unpacked", BASH.version),),
        (
            SAID.format("install ok installed", BASH.version),
            "Package: x\nStatus: install ok installed\nVersion: 1",
        ),
        (),
    ],
    ids=["another version", "not set up", "one more", "none"],
)
def test_a_base_that_holds_anything_but_what_is_pinned_is_refused(
    tmp_path: Path, stanzas: tuple[str, ...]
) -> None:
    good = installed(tmp_path, SAID.format("install ok installed", BASH.version))
    base.refuse_others([BASH], good)
    with pytest.raises(BadPackage, match=r"not what base\.lock pins: "):
        base.refuse_others([BASH], installed(tmp_path, *stanzas))


def build(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`image/build.sh` where only these programs are."""
    return subprocess.run(
        ["/bin/sh", ROOT / "image" / "build.sh", *arguments],
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A machine with a shell and little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("dirname", "flock"):
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    return folder


def test_a_build_without_its_tools_says_in_a_line_what_to_type(bare: Path) -> None:
    done = build(bare)
    assert done.returncode == 69
    install = "apt-get install --no-install-recommends buildah netavark mmdebstrap"
    assert done.stderr == f"not installed: buildah netavark mmdebstrap. Type: {install}\n"
    (bare / "mmdebstrap").symlink_to("/bin/true")
    assert build(bare).stderr.endswith("apt-get install --no-install-recommends buildah netavark\n")


def test_on_another_base_nothing_is_needed_that_makes_ours(bare: Path) -> None:
    for done in (build(bare, "--base", "python@sha256:0"), build(bare, BASE="python@sha256:0")):
        assert done.returncode == 69
        assert done.stderr.startswith("not installed: buildah netavark. ")


def test_a_build_that_may_install_its_tools_does_and_says_what_failed(bare: Path, tmp_path: Path) -> None:
    """CI=true and BLINDBOX_INSTALL=1: with an apt-get that writes down what it is asked, and then fails."""
    asked = tmp_path / "asked"
    (bare / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>"{asked}"\n[ "$1" = update ]\n')
    (bare / "apt-get").chmod(0o755)
    for allowed in ({"CI": "true"}, {"BLINDBOX_INSTALL": "1"}):
        asked.unlink(missing_ok=True)
        done = build(bare, **allowed, TMPDIR=str(tmp_path))
        assert done.returncode == 69
        assert done.stderr.startswith("cannot be installed: buildah netavark mmdebstrap. ")
        update, install = asked.read_text().splitlines()
        assert update.startswith("update ")
        assert install.startswith("install --no-install-recommends buildah netavark mmdebstrap -y ")


def test_an_option_without_its_value_is_named(bare: Path) -> None:
    done = build(bare, "--tag")
    assert (done.returncode, done.stderr) == (64, "--tag wants a value\n")


def test_the_command_says_in_a_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").write_text("bash\n")
    monkeypatch.setattr(base, "LOCK", tmp_path / "lock")
    mask = os.umask(0o022)
    try:
        assert base.main(["name"]) == 1
    finally:
        os.umask(mask)
    assert "lock, line 1: 'bash' is not NAME VERSION SHA256" in capsys.readouterr().err
