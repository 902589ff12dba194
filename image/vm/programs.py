"""
Running other programs: those of this machine, and the pinned ones, which bring their own libraries.

A pinned program runs through its own loader, so that neither this machine's C library nor its zlib has a say
in the bytes that come out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from .errors import FailedProgram, MissingProgram

EPOCH: Final = 1767225600  # 1 January 2026, as in image/build.sh: the time of everything that has one

FROM_PACKAGE: Final[Mapping[str, str]] = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "buildah": "buildah",
    "dpkg-deb": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
}
"""The programs of this machine that a build calls, and the Debian package each comes in."""

_CLEAN: Final[Mapping[str, str]] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_SAID: Final = 4000  # characters of what a failed program said that an error repeats


def find(program: str) -> str:
    """Where a program of this machine lies. Raises `MissingProgram`."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        raise MissingProgram(
            f"{program} is not installed here (Debian: apt-get install {FROM_PACKAGE[program]})"
        )
    return path


def ours(program: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """Run a program of this machine in its own environment, and give what it prints."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return run(program, [find(program), *arguments], environment, folder=folder).decode("utf-8", "replace")


def pinned(
    name: str,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> bytes:
    """Run a pinned program in an environment that is the same everywhere."""
    return run(name, command, {**_CLEAN, **(environment or {})}, stdin=stdin, stdout=stdout)


def run(
    name: str,
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> bytes:
    """What the command prints. Raises `FailedProgram` with its name and what it said."""
    done = subprocess.run(  # noqa: S603 - a list, never a shell
        [str(word) for word in command],
        env=dict(environment),
        cwd=folder,
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = ((done.stderr or b"") + (done.stdout or b"")).decode("utf-8", "replace").strip()
        raise FailedProgram(f"{name} ended with {done.returncode}: {said[-_SAID:]}")
    return done.stdout or b""
