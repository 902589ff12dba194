"""
`python -m image.vm COMMAND`: build the virtual machine, boot it, or pin what it is made of.

Exit status: 0 done, 1 not done (the reason is the last thing printed), 2 the command makes no sense.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from . import build, packages
from .errors import VmError
from .run import command as running
from .run import emulator


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m image.vm", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    building = commands.add_parser(
        "build", help="container image → dist/vm", description="Build the virtual machine."
    )
    build.add_arguments(building)
    building.set_defaults(run=build.main)
    booting = commands.add_parser(
        "run",
        help="boot dist/vm in QEMU",
        description="Boot what was built in QEMU, and say how to prove it.",
    )
    running.add_arguments(booting)
    booting.set_defaults(run=running.main)
    pinning = commands.add_parser(
        "lock",
        help="pin the newest Debian packages in packages.lock, and the newest QEMU in run/packages.lock",
        description="Pin the newest version of each Debian package. This gives a new measurement.",
    )
    pinning.set_defaults(run=_lock)
    chosen = parser.parse_args(arguments)
    # Told to stop, it cleans up behind itself and ends its children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        chosen.run(chosen)
    except VmError as error:
        print(f"not done: {error}", file=sys.stderr)
        return 1
    return 0


def _lock(_: argparse.Namespace) -> None:
    for package in (*packages.write_lock(), *emulator.write_lock()):
        print(package.name, package.version)


if __name__ == "__main__":
    sys.exit(main())
