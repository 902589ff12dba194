"""
The initrd: what runs before the container's own file system does, and beside it.

busybox, dmsetup, mke2fs and their libraries, the kernel's modules, the scripts `init` and `lease`, and
`application`, which is made of the image's own configuration. Nothing else: it is all part of the measured
program, and all of it that anybody has to read.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Final

from . import cpio, modules, programs
from .container import Image
from .errors import UnusableImage
from .packages import Tree

USER: Final = 65532
APPLETS: Final = (
    *("[", "cat", "chmod", "chown", "chroot", "cp", "env", "false", "grep", "head", "hexdump", "hostname"),
    *("insmod", "ip", "ln", "mkdir", "mount", "mv", "poweroff", "rm", "rmdir", "sh", "sleep", "tr", "udhcpc"),
)
"""Of busybox, what `init`, `lease` and `application` call."""

PROGRAMS: Final = ("usr/sbin/dmsetup", "usr/sbin/mke2fs")
LIBRARIES: Final = (
    *(
        "libblkid.so.1",
        "libc.so.6",
        "libcap.so.2",
        "libcom_err.so.2",
        "libdevmapper.so.1.02.1",
        "libe2p.so.2",
    ),
    *("libext2fs.so.2", "libm.so.6", "libpcre2-8.so.0", "libselinux.so.1", "libudev.so.1", "libuuid.so.1"),
)
"""What the two need, and what that needs; a test compares the list with what they say themselves."""

LOADER: Final = "lib64/ld-linux-x86-64.so.2"  # the path that programs name
_LIBRARY_FOLDER: Final = "usr/lib/x86_64-linux-gnu"
_FOLDERS: Final = (
    *("bin", "dev", "lib64", "modules", "proc", "run", "sys", "sysroot"),
    *("usr", "usr/lib", _LIBRARY_FOLDER),
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# What the image's command is started with: nothing of root's is left, and nothing can be had back.
UNPRIVILEGED: Final = (
    *("/usr/bin/setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--"),
)
FROM_IMAGE: Final = ("usr/bin/env", "usr/bin/setpriv")
"""What must be in the image, since it runs there (Debian: coreutils, util-linux; both are essential)."""


def make(tree: Tree, image: Image) -> bytes:
    """The initrd for this image, compressed."""
    archive = cpio.archive(entries(tree, image))
    with tempfile.TemporaryFile() as unpacked:
        unpacked.write(archive)
        unpacked.seek(0)
        command = [*tree.program("usr/bin/zstd"), "-12", "-T1", "-q", "-c"]
        return programs.pinned("zstd", command, stdin=unpacked)


def entries(tree: Tree, image: Image) -> list[cpio.Entry]:
    """Everything that stands in it."""
    scripts = Path(__file__).parent
    found = [cpio.folder(path) for path in _FOLDERS]
    found.append(cpio.file("init", (scripts / "init").read_bytes(), 0o755))
    found.append(cpio.file("bin/lease", (scripts / "lease").read_bytes(), 0o755))
    found.append(cpio.file("bin/application", application(image).encode(), 0o755))
    found.append(cpio.file("bin/busybox", tree.file("usr/bin/busybox").read_bytes(), 0o755))
    found += [cpio.link(f"bin/{applet}", "busybox") for applet in APPLETS]
    found.append(cpio.file(LOADER, tree.file(f"usr/{LOADER}").read_bytes(), 0o755))
    for program in PROGRAMS:
        found.append(cpio.file(f"bin/{Path(program).name}", tree.file(program).read_bytes(), 0o755))
    for library in LIBRARIES:
        path = f"{_LIBRARY_FOLDER}/{library}"
        found.append(cpio.file(path, tree.file(path).read_bytes()))
    for number, module in enumerate(modules.in_order(tree.file(f"usr/lib/modules/{tree.kernel}"))):
        found.append(cpio.file(f"modules/{number:03}-{module.name}.ko", module.content))
    return found


def application(image: Image) -> str:
    """
    The script that becomes the image's command: its environment, its folder, its words and nothing else.

    `env -i` begins with an empty environment: what the kernel hands to init (every word of the command line
    that it does not know becomes a variable) stays outside.
    """
    words = ["chroot", "/sysroot", "/usr/bin/env", "-i", "-C", image.folder]
    for variable in image.environment:
        name, equals, value = variable.partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            raise UnusableImage(f"{image.name} sets a variable that no shell can: {variable[:80]!r}")
        words.append(variable)
    words += [*UNPRIVILEGED, *image.command]
    if any("\0" in word for word in words):
        raise UnusableImage(f"{image.name} has a NUL in its command")
    return f"#!/bin/busybox sh\nexec {shlex.join(words)}\n"
