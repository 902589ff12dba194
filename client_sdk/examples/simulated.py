"""
The command `blindbox` on a computer without confidential hardware, against a simulated enclave.

    python client_sdk/examples/simulated.py finetune http://127.0.0.1:8090 handbook.csv

Every command is as it is elsewhere, but that it accepts, where you have said nothing else of an origin, a
machine that proves nothing, and says so each time. That is decided here, in code: no option, variable or
file makes the installed command do it (docs/decisions/0005-simulated-evidence.md). How to run such an enclave
is in docs/running.md.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import blindbox
from blindbox import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindbox.UnsafeSimulationWarning)  # the command says it itself
        policy = blindbox.UnsafeSimulatedPolicy()
    return cli.main(arguments, otherwise=policy)


if __name__ == "__main__":
    sys.exit(main())
