"""
The system that the container image begins with: a few of Debian's packages, pinned, installed in a folder.

    python -m image.base lock     pins the newest version of each package in base.lock
    python -m image.base name     makes the base, if it is not there yet, and prints its name for buildah

Each package is checked against its hash before anything of it is run. mmdebstrap then installs exactly these,
from a folder, without another look at an archive. The same lock gives the same bytes.

A new lock is how security fixes come in, and a new measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from .vm import packages, programs
from .vm.errors import BadPackage, FailedProgram, VmError
from .vm.packages import Package

LOCK: Final = Path(__file__).with_name("base.lock")
SUITE: Final = "bookworm"  # the Python that requirements/*.txt are locked for: 3.11
PART: Final = "base"
NAME: Final = "localhost/blindbox-base"
WANTED: Final = (
    # The packages that every Debian has: a pattern of apt's, apt-patterns(7), which counts itself among them.
    "?and(?essential,?not(?exact-name(apt)))",
    "ca-certificates",  # for pip and for models that are fetched
    "libstdc++6",  # for the locked packages of Python's
    "python3",
    "python3-pip",  # installs the locked requirements, and stays out of the finished image
    "python3-venv",
    "usr-is-merged",  # and not usrmerge, which brings all of Perl
)
KEPT: Final = 2  # bases that stay in the cache

_HEADER = f"""\
# The Debian packages of the container image's base, from {SUITE}: name, version, SHA-256 of the .deb file.
# base.py tells what they are for. Written by `python -m image.base lock`. A change is a new measurement.
"""

# What a package's scripts leave that is not the same twice, or that nobody reads. $1 is the new root.
_HOOKS: Final = (
    # As in the images of Python's own: `python` is a program, and pip installs beside the system.
    'ln -s python3 "$1/usr/bin/python"',
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'rm -rf "$1"/var/lib/apt/* "$1"/var/cache/* "$1"/var/log/* "$1/var/lib/dpkg/available"',
    'rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/sources.list"',
    'find "$1/usr" -name __pycache__ -prune -exec rm -rf {} +',
    # Licences stay, manuals go.
    'rm -rf "$1/usr/share/man" "$1/usr/share/info" "$1/usr/share/locale"',
    'find "$1/usr/share/doc" -type f ! -name copyright -delete',
    'find "$1/usr/share/doc" -xtype l -delete',
    'find "$1/usr/share/doc" -type d -empty -delete',
)
# The links that join /bin and /usr/bin have to be there before the first package is unpacked.
_MERGED: Final = 'for one in bin sbin lib lib64; do mkdir -p "$1/usr/$one"; ln -s "usr/$one" "$1/$one"; done'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m image.base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("lock", "name"))
    chosen = parser.parse_args(arguments)
    os.umask(0o022)  # the bytes do not depend on who makes them
    try:
        if chosen.command == "lock":
            for package in write_lock():
                print(package.name, package.version)
        else:
            print(name())
    except VmError as error:
        print(f"not done: {error}", file=sys.stderr)
        return 1
    return 0


def write_lock() -> tuple[Package, ...]:
    """Pin what Debian has today, with everything that it needs."""
    with packages.Apt(PART, suite=SUITE) as apt:
        packages.write(LOCK, _HEADER, apt.newest(apt.with_what_they_need(WANTED)))
    return packages.read(LOCK)


def name() -> str:
    """The base as an image in buildah's storage: put there, if it is not there yet."""
    pinned = packages.read(LOCK)
    named = f"{NAME}:{recipe(pinned)}"
    try:
        programs.ours("buildah", "inspect", "--type", "image", named)
    except FailedProgram:
        made = tar(pinned)
        # Added and committed, not imported: an import writes the present time into the image's history.
        container = programs.ours("buildah", "from", "scratch").strip()
        try:
            programs.ours("buildah", "add", "-q", container, made, "/")
            programs.ours("buildah", "commit", "-q", "--timestamp", str(programs.EPOCH), container, named)
        finally:
            programs.ours("buildah", "rm", container)
    return named


def tar(pinned: Sequence[Package], *, fresh: bool = False) -> Path:
    """
    The base as one archive in the cache.

    1. the pinned packages                      fetched, and right
    2. an archive of just these, in a folder    so that nothing else can be installed
    3. mmdebstrap installs them                 beside the final name
    4. is what was installed what was pinned?
    """
    kept = packages.cache(PART)
    made = kept / f"{recipe(pinned)}.tar"
    if fresh or not made.is_file():
        programs.find("mmdebstrap")
        files = packages.fetched(pinned, PART, suite=SUITE)  # 1
        beside = Path(tempfile.mkdtemp(prefix="new.", dir=kept))
        try:
            archive = beside / "archive"
            archive.mkdir()
            (archive / "Packages").write_text("".join(_index(pinned, files, archive)), "utf-8")  # 2
            _install(pinned, archive, beside / "tar")  # 3
            refuse_others(pinned, beside / "tar")  # 4
            (beside / "tar").replace(made)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        for old in sorted(kept.glob("*.tar"), key=lambda one: one.stat().st_mtime, reverse=True)[KEPT:]:
            old.unlink(missing_ok=True)
    return made


def recipe(pinned: Iterable[Package]) -> str:
    """Names all that the bytes follow from: what is pinned, and this code."""
    pins = "".join(f"{one.name} {one.sha256}\n" for one in pinned)
    return hashlib.sha256(pins.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def _index(pinned: Iterable[Package], files: Path, archive: Path) -> Iterable[str]:
    """The stanzas of the archive's index: deb-control(5) and what apt adds. Each file is put there."""
    for package in pinned:
        file = f"{package.sha256}.deb"
        (archive / file).hardlink_to(files / file)
        yield programs.ours("dpkg-deb", "--field", archive / file).strip()
        yield f"\nFilename: ./{file}\nSize: {(archive / file).stat().st_size}\nSHA256: {package.sha256}\n\n"


def _install(pinned: Sequence[Package], archive: Path, to: Path) -> None:
    hooks = [f"--customize-hook={hook}" for hook in _HOOKS]
    command: list[str] = [
        *("mmdebstrap", "--quiet", "--mode=root", "--format=tar", "--variant=essential"),
        *("--architectures=amd64", "--skip=output/dev", f"--setup-hook={_MERGED}", *hooks),
        f"--include={','.join(one.name for one in pinned)}",
        *("--", "", str(to)),  # no suite: the folder has no release, and all of it is wanted
        # Trusted, since every file has just been compared with its hash.
        f"deb [trusted=yes] copy:{quote(str(archive))} ./",
    ]
    epoch = {"SOURCE_DATE_EPOCH": str(programs.EPOCH)}
    try:
        programs.pinned(command[0], [programs.find(command[0]), *command[1:]], environment=epoch)
    except FailedProgram as failure:
        raise FailedProgram(f"{failure}\nThe base is installed by root: is this root?") from failure


def refuse_others(pinned: Iterable[Package], made: Path) -> None:
    """Raise `BadPackage` unless dpkg says that exactly these packages are installed."""
    with tarfile.open(made) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        said = status.read().decode("utf-8") if status is not None else ""
    field = re.compile(r"^(Package|Status|Version): (.*)$", re.MULTILINE)
    stanzas = [dict(field.findall(stanza)) for stanza in said.strip().split("\n\n")]
    found = {
        (one.get("Package"), one.get("Version"))
        for one in stanzas
        if one.get("Status") == "install ok installed"
    }
    wanted = {(one.name, one.version) for one in pinned}
    if found != wanted:
        raise BadPackage(
            "installed is not what base.lock pins: "
            + "; ".join(sorted(f"{name} {version}" for name, version in found ^ wanted))
        )


if __name__ == "__main__":
    sys.exit(main())
