"""
The room where the build happens: the pinned tools and the source, in a folder that is the root of what runs.

Whoever builds, wherever, sees the same paths, programs, environment and umask; the machine's own are out of
reach. It takes root, for chroot(2) and for /dev/null.
"""

from __future__ import annotations

import collections
import os
import platform
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from image.vm.errors import FailedProgram

from . import source, tools
from .errors import CannotBuild

SCRIPT: Final = Path(__file__).with_name("inside.sh")
LINKS: Final = {"usr/bin/cc": "gcc", "usr/bin/c++": "g++"}
"""What Debian's scripts would have set up, if packages were installed."""

_ENVIRONMENT: Final = {
    "HOME": "/build",
    "LC_ALL": "C",
    "PATH": "/usr/bin",
    "PYTHONHASHSEED": "0",  # the build walks over sets
    "PYTHONUTF8": "1",
    "TZ": "UTC",
}
_LAST_WORDS: Final = 40  # lines of a step that failed


def check() -> None:
    """See that this machine can build. Raises `CannotBuild`."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise CannotBuild(
            f"the pinned tools are for Linux on x86_64; this is {platform.system()} on {platform.machine()}"
        )
    if os.geteuid() != 0:
        raise CannotBuild(
            "the build runs in a root of its own (chroot), and that takes root: sudo make firmware"
        )


def furnish(root: Path) -> None:
    """Fill an empty folder with tools and source, fetched where the cache lacks them. Raises `VmError`."""
    pinned = source.read()
    tools.unpack(tools.read(), root)
    root.chmod(0o755)
    for path, to in LINKS.items():
        (root / path).symlink_to(to)
    (root / "dev" / "shm").mkdir()
    try:
        os.mknod(root / "dev" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError as error:
        raise CannotBuild(
            f"/dev/null cannot be made in {root}: {error.strerror} (mknod needs root)"
        ) from error
    (root / "dev" / "null").chmod(0o666)  # whatever the umask
    work = root / "build"
    work.mkdir()
    files = source.fetched(pinned)
    for one in pinned:
        kind = "debian.tar" if ".debian.tar." in one.name else "orig.tar"
        shutil.copyfile(files / one.sha256, work / kind)
    (work / "patches").mkdir()
    for patch in source.patches():
        shutil.copyfile(patch, work / "patches" / patch.name)
    shutil.copyfile(SCRIPT, work / SCRIPT.name)


def run(root: Path, step: str, heard: Callable[[str], None] = lambda _: None) -> None:
    """Take one step of `inside.sh`; `heard` gets each line it says. Raises `FailedProgram`."""

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    try:
        process = subprocess.Popen(  # noqa: S603 - a list, never a shell
            ["/usr/bin/bash", f"/build/{SCRIPT.name}", step],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=enter,
            start_new_session=True,
            umask=0o022,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuild(
            f"nothing can be run with {root} as its root: {error}. It takes root with CAP_SYS_CHROOT, and a "
            "file system without noexec: XDG_CACHE_HOME=FOLDER names another place"
        ) from error
    last: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            heard(line)
        if process.wait():
            raise FailedProgram(f"the step {step} ended with {process.returncode}: {''.join(last).strip()}")
    finally:
        process.poll()
        if process.returncode is None:  # interrupted: all of it ends, make and compilers too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
