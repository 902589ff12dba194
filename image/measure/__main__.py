"""`python -m image.measure predict|compare|log`: exit status 0 if all is as told, 1 if not, 2."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.event_log import MAX_LOG, EventLog

from . import document, log, tdx
from .build import Build, measured
from .errors import MeasureError

SAME, DIFFERS, UNREADABLE = 0, 1, 2

_EPILOG = """\
examples:
  python -m image.measure predict --vm dist/vm --firmware-snp AMDSEV.fd --firmware-tdx TDX.fd --out m.json
  python -m image.measure compare measurements.json m.json
  python -m image.measure log --event-log binary_bios_measurements --vm dist/vm
What each value is: docs/measurements.md.
"""


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    options = _grammar().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (MeasureError, OSError) as error:
        print(f"image.measure: {error}", file=sys.stderr)
        return UNREADABLE
    return status


def _grammar() -> argparse.ArgumentParser:
    grammar = argparse.ArgumentParser(
        prog="python -m image.measure",
        description="What the hardware will measure of a build, worked out from its files alone.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = grammar.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="measure a build, and write or print measurements.json")
    predict.add_argument(
        "--vm", type=Path, required=True, metavar="FOLDER", help="what `make vm` made: dist/vm"
    )
    predict.add_argument(
        "--firmware-snp", type=Path, metavar="FILE", help="OVMF, its AmdSev build, for SEV-SNP"
    )
    predict.add_argument(
        "--firmware-tdx", type=Path, metavar="FILE", help="OVMF, its IntelTdx build, for TDX"
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="where to; without it, it is printed")
    predict.set_defaults(run=_predict)

    compare = commands.add_parser("compare", help="tell in words what differs between two measurements.json")
    compare.add_argument("published", type=Path, metavar="PUBLISHED", help="what the release says")
    compare.add_argument("here", type=Path, metavar="HERE", help="what was measured here")
    compare.set_defaults(run=_compare)

    read = commands.add_parser(
        "log", help="the registers that the log of a boot adds up to, and what differs"
    )
    read.add_argument(
        "--event-log",
        type=Path,
        required=True,
        metavar="FILE",
        help="of a machine with a TPM: /sys/kernel/security/tpm0/binary_bios_measurements",
    )
    read.add_argument(
        "--vm", type=Path, metavar="FOLDER", help="the build to compare it with, event by event"
    )
    read.set_defaults(run=_log)
    return grammar


def _predict(options: argparse.Namespace) -> int:
    found = measured(
        Build.read(options.vm), firmware_snp=options.firmware_snp, firmware_tdx=options.firmware_tdx
    )
    if options.firmware_snp is None:
        print("left out: snp_launch_digest, for want of --firmware-snp", file=sys.stderr)
    if options.firmware_tdx is None:
        print("left out: tdx.mrtd, for want of --firmware-tdx", file=sys.stderr)
    if options.out is None:
        print(document.written(found).decode("ascii"), end="")
    else:
        document.write(options.out, found)
    return SAME


def _compare(options: argparse.Namespace) -> int:
    published, here = document.read(options.published), document.read(options.here)
    differences = list(document.compared(published, here))
    if not differences:
        print(f"release {published['release']}: {options.published} and {options.here} agree in every value")
        return SAME
    print(f"{options.published} (published) and {options.here} (here) differ:\n")
    print("\n\n".join(differences))
    return DIFFERS


def _log(options: argparse.Namespace) -> int:
    with options.event_log.open("rb") as file:
        data = file.read(MAX_LOG + 1)
    try:
        found = EventLog.parse(data)
    except MalformedEvidence as error:
        raise MeasureError(f"{options.event_log}: {error}") from error
    told = {
        "pcr": {
            bank: {str(register): value.hex() for register, value in values.items()}
            for bank, values in log.registers(found).items()
        },
        "tdx": {"rtmr": {str(rtmr): value.hex() for rtmr, value in tdx.of_tpm_log(found).items()}},
    }
    print(json.dumps(told, indent=2))
    if options.vm is None:
        return SAME
    differences = list(log.differences(found, Build.read(options.vm).boot))
    print("\n".join(differences) or "every event is as predicted", file=sys.stderr)
    return DIFFERS if differences else SAME


if __name__ == "__main__":
    sys.exit(main())
