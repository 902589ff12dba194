"""Programs of Debian's that tests run: installed when they are first needed; who may not skips the test."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def alone_with_apt() -> Iterator[None]:
    """Tests run side by side, and apt refuses a second one of its kind: each waits for its turn."""
    with (Path(tempfile.gettempdir()) / "blindbox-tests-apt.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`apt-get` without a question, and without starting the services that it brings."""
    # RUNLEVEL: a package that starts its service at once would take port 80.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    words = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    with alone_with_apt():
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def need(program: str, package: str | None = None) -> None:
    """Have the program, or skip the test by its name."""
    if shutil.which(program) is not None:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"no {program} here, and no apt-get as root to install it with")
    install = ("install", "-y", "-qq", "--no-install-recommends", package or program)
    for command in (("update", "-qq"), install):
        if apt_get(*command).returncode:
            pytest.skip(f"no {program} here, and it cannot be installed")


def install_if_asked(missing: Sequence[str], *options_and_packages: str) -> None:
    """
    Have the programs, which are many megabytes: installed if that was asked for (`CI=true` or
    `BLINDBOX_INSTALL=1`), and otherwise the test is skipped and says why. Nothing is done if none is missing.
    """
    if not missing:
        return
    named = ", ".join(missing)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"no {named} here, and no apt-get as root to install with")
    if os.environ.get("CI") != "true" and os.environ.get("BLINDBOX_INSTALL") != "1":
        pytest.skip(f"no {named} here (BLINDBOX_INSTALL=1 lets this test install)")
    for command in (("update",), ("install", "-y", *options_and_packages)):
        done = apt_get(*command)
        assert done.returncode == 0, done.stderr
