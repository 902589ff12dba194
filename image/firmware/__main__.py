"""
`python -m image.firmware COMMAND`: build the firmware, or pin what it is made of and with.

Exit status: 0 done, 1 not done (the reason is the last thing printed), 2 the command makes no sense.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from image.vm.errors import VmError
from image.vm.packages import Apt

from . import build, source, tools

_EPILOG = """\
examples:
  python -m image.firmware build              both, to dist/firmware (root, apt; four minutes, then a second)
  python -m image.firmware build tdx --out /srv/firmware
What is done to the source, and why: image/firmware/README.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m image.firmware",
        description="Builds of OVMF for confidential machines, out of Debian's source.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    building = commands.add_parser(
        "build",
        help="Debian's source → dist/firmware",
        description="Build OVMF for SEV-SNP and TDX, or take it from the cache.",
    )
    build.add_arguments(building)
    building.set_defaults(run=build.main)
    pinning = commands.add_parser(
        "lock",
        help="pin the newest source and tools in source.lock and packages.lock",
        description="Pin the newest source and tools. This gives a new measurement.",
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
    with Apt(tools.PART, sources=True) as apt:
        for one in source.write_lock(apt):
            print(one.name)
        for package in tools.write_lock(apt):
            print(package.name, package.version)


if __name__ == "__main__":
    sys.exit(main())
