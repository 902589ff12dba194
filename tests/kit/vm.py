"""What tests of the virtual machine start from: the pinned packages, and an image made in a moment."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from image.vm.errors import FailedProgram, VmError
from image.vm.packages import LOCK, Tree, unpacked
from tests.kit.debian import need


def pinned_tree(lock: Path = LOCK) -> Tree:
    """
    The packages of the lock, unpacked in the cache: fetched where they are not there yet.

    Skips the test where no archive in reach has them. One that has other bytes is an error.
    """
    found = _fetched(lock)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def _fetched(lock: Path) -> Tree | str:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"no {program} here: the pinned packages are Debian's"
    try:
        return unpacked(lock)
    except VmError as error:
        if isinstance(error, FailedProgram) or isinstance(error.__cause__, FailedProgram):
            return f"the pinned packages are not to be had here: {str(error)[:300]}"
        raise


def buildah(*arguments: str | Path) -> str:
    """Its standard output; an error shows what it said."""
    done = subprocess.run(["buildah", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"buildah {arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def small_image(name: str, work: Path, *, user: str = "65532:65532", marker: str = "") -> str:
    """An image of a few files that can become a machine's root, though nothing in it runs."""
    need("buildah")
    files = work / "files"
    for program in ("usr/bin/env", "usr/bin/setpriv"):
        (files / program).parent.mkdir(parents=True, exist_ok=True)
        (files / program).write_text("#!/bin/sh\n")
        (files / program).chmod(0o755)
    status = "Package: nothing\nStatus: install ok installed\nVersion: 1:2.0+b1\nArchitecture: amd64\n"
    (files / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
    (files / "var/lib/dpkg/status").write_text(status)
    about = files / "opt/site-packages/Some_Thing-3.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: Some_Thing\nVersion: 3\nLicense-Expression: MIT\n"
    )
    (files / "marker").write_text(marker)
    container = buildah("from", "scratch")
    buildah("add", "-q", container, files, "/")
    command = json.dumps(["/bin/it", "it's", "$HOME"])
    buildah("config", "--user", user, "--env", "A=b c", "--cmd", command, "--workingdir", "/opt", container)
    buildah("commit", "-q", "--rm", "--timestamp", "1767225600", container, name)
    return name
