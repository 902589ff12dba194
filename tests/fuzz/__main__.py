"""
`python -m tests.fuzz READER [--inputs N] [--seconds S] [--crashes DIR]`: feed one reader until it breaks
its promise.

The promise: an error of ours, within 50 ms of CPU time and 64 MiB of memory, whatever the bytes. Exit
status 0: kept.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
from pathlib import Path

import atheris

MOST_SECONDS = 0.05
MOST_MEMORY = 64 << 20
MOST_BYTES = 40_000  # of one input; sizes beyond are in test_garbled_input.py

with atheris.instrument_imports(include=["blindbox_attestation", "blindbox.report"]):
    from .readers import READERS, TYPED


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=0, help="0: until the inputs are used up")
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    reader, honest = READERS[options.reader]
    before = 0

    def one_input(data: bytes) -> None:
        nonlocal before
        for attempt in range(2):
            began = time.thread_time()
            try:
                reader(data)
            except TYPED as error:
                str(error)
            took = time.thread_time() - began
            if took <= MOST_SECONDS:
                break
            if attempt:
                raise AssertionError(f"{len(data)} bytes took {took:.3f} s")
            gc.collect()  # the first try may have paid for garbage of others
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        before = before or now
        if now - before > MOST_MEMORY:
            raise AssertionError(f"{len(data)} bytes took {now - before} bytes of memory")

    with tempfile.TemporaryDirectory() as folder:
        seed = honest()
        reader(seed)
        (Path(folder) / "honest").write_bytes(seed)
        atheris.Setup(
            [
                sys.argv[0],
                folder,
                f"-runs={options.inputs}",
                f"-max_total_time={options.seconds}",
                f"-max_len={max(MOST_BYTES, 2 * len(seed))}",
                f"-artifact_prefix={options.crashes}/{options.reader}-",
                "-len_control=0",
                "-rss_limit_mb=0",
                "-verbosity=0",
                "-print_final_stats=0",
            ],
            one_input,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
