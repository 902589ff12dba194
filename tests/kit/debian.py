"""Programs of Debian's that tests run: installed when they are first needed; who may not skips the test."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def need(program: str, package: str | None = None) -> None:
    """Have the program, or skip the test by its name."""
    if shutil.which(program) is not None:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"no {program} here, and no apt-get as root to install it with")
    # RUNLEVEL: a package that starts its service at once would take port 80.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["install", "-y", "-qq", "--no-install-recommends", package or program]
    for command in (["update", "-qq"], install):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no {program} here, and it cannot be installed")
