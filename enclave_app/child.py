"""
A process of our own for one piece of heavy work, spoken to through pipes (`pipe.py`).

It sees nothing of this process's environment, prints nowhere, and never outlives whoever started it. Which
program it is and what is said is told in `training/sft.py` and `engines/export.py`. (Engines stay and serve:
`engines/worker.py` starts those.)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import blindbox_data

from .offline import keep_from_hub

PACKAGES: Final = tuple(
    dict.fromkeys(str(Path(each).resolve().parents[1]) for each in (__file__, str(blindbox_data.__file__)))
)
"""The folders in which a new process finds what is imported here; in an image they are one."""


@contextlib.contextmanager
def running(module: str, home: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """
    `main()` of a module, with `home` to write in and `variables` besides what every child sees.

    It is killed when the block ends.
    """
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        # PyTorch's threads wait for each other after every sum, and spin for milliseconds before they sleep:
        # beside other work, for one that is not running. Sums took 3 to 6 times as long by that (see
        # bench/training_threads.py). So many spins are under 0.1 ms.
        "GOMP_SPINCOUNT": "1000",
        **variables,
    }
    keep_from_hub(environment)
    start = f"import sys; sys.path[:0] = sys.argv[1:]; from {module} import main; main()"
    child = subprocess.Popen(  # noqa: S603 - our own interpreter, our own code
        [sys.executable, "-I", "-c", start, *PACKAGES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a library's complaint may quote a row
        env=environment,
        cwd=home,
        close_fds=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for end in (child.stdin, child.stdout):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
