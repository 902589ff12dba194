"""
`python -m image.vm run`: boot what was built, say how to prove it, stay until Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Final

from ..build import OUT
from ..errors import Starved
from . import qemu

STATE: Final = OUT.parent / "vm-state"
ATTEMPTS: Final = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `python -m image.vm run`."""
    parser.add_argument("--vm", type=Path, default=OUT, metavar="FOLDER", help="what was built (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8080, help="on loopback, for the guest's port 80 (%(default)s)"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="lines of BLINDBOX_NAME=value")
    parser.add_argument(
        "--drive", type=Path, action="append", default=[], help="a further disk, raw; repeatable"
    )
    parser.add_argument("--memory", type=int, default=qemu.MEMORY, metavar="MiB", help="(%(default)s)")
    parser.add_argument("--cpus", type=int, default=qemu.PROCESSORS, help="(%(default)s)")
    parser.add_argument("--kvm", action="store_true", help="run on the processor itself, where that works")
    parser.add_argument(
        "--patience", type=float, default=qemu.PATIENCE, metavar="SECONDS", help="(%(default)s)"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=STATE,
        metavar="FOLDER",
        help="of the TPM and the console's log (%(default)s)",
    )


def main(arguments: argparse.Namespace) -> None:
    """`python -m image.vm run`"""
    wanted = qemu.Wanted(
        disk=arguments.vm / "disk.raw",
        state=arguments.state,
        port=arguments.port,
        settings=arguments.settings,
        drives=tuple(arguments.drive),
        memory=arguments.memory,
        processors=arguments.cpus,
        kvm=arguments.kvm,
    )
    # A closed terminal is no reason to leave a machine behind.
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    for left in reversed(range(ATTEMPTS)):
        try:
            _boot(wanted, arguments.patience)
        except KeyboardInterrupt:  # before there was a machine, or again
            return
        except Starved as starved:
            if not left:
                raise
            print(f"{starved}\nthis host had no time for its clock: once more", flush=True)
        else:
            return


def _boot(wanted: qemu.Wanted, patience: float) -> None:
    """Until Ctrl-C, or until it ends by itself, which is an error unless the application ended well."""
    with qemu.running(wanted) as machine:
        try:
            print(f"switched on; its console is {machine.console}", flush=True)
            seconds = machine.wait(patience, watch=_Console(machine).tell)
            key = wanted.state / qemu.AK_KEY
            how = _HOW.format(seconds=seconds, origin=machine.origin, key=_shown(key))
            print(how, flush=True)
            machine.process.wait()
        except KeyboardInterrupt:
            print("\nswitching off …", flush=True)
            machine.switch_off()
            return
        if not machine.ended_in_order():
            raise machine.stopped()
        print("it switched itself off")


_HOW: Final = """\
{origin} answers after {seconds:.0f} s. To prove it against what the build predicted:

  blindbox policy from-measurements dist/measurements.json --platform tpm \\
      --ak-key "$(cat {key})" > policy.json
  blindbox verify {origin} --policy policy.json

Its TPM is software on this host, which proves the way and not the machine. Ctrl-C switches it off."""


def _shown(path: Path) -> str:
    """From here, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


class _Console:
    """Shows what `init` and the application say, as they say it."""

    def __init__(self, machine: qemu.Machine) -> None:
        self._machine = machine
        self._shown = 0

    def tell(self) -> None:
        """Whole lines that have not been shown yet."""
        lines = self._machine.said().split("\n")[:-1]
        for line in lines[self._shown :]:
            if (
                line.startswith("blindbox ")
                or "not started" in line
                or "panic" in line
                or "corrupted" in line
            ):
                print(f"  {line.strip()}", file=sys.stderr, flush=True)
        self._shown = len(lines)
