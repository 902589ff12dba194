"""
Tiny models made ready for OpenVINO: all that are asked for at once, by one process.

They are kept in the checkout's cache under the digest that the product gives them, apart for each state of
the code that writes them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from enclave_app.engines import export_child
from enclave_app.engines.export import Job, Weights, export
from enclave_app.models import Model

CHECKOUT = Path(__file__).resolve().parents[2]


@cache
def exports_dir() -> Path:
    """What BLINDBOX_EXPORTS_DIR may be in a test; `ready` fills it."""
    state = hashlib.sha256(Path(export_child.__file__).read_bytes()).hexdigest()
    return CHECKOUT / ".cache" / "tests" / f"exports-{state[:12]}"


def ready(folders: Sequence[Path], weights: Weights = "bf16") -> list[Path]:
    """The IR's folder of each model's folder."""
    asked = json.dumps([str(exports_dir()), weights, [str(folder) for folder in folders]])
    process = subprocess.run(
        [sys.executable, "-m", "tests.kit.exports", asked],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return [Path(line) for line in process.stdout.splitlines()[-len(folders) :]]


def _write(job: Job) -> None:
    """In this process, which imports what it needs once for all jobs."""
    export_child.write(job.folder, job.destination, job.weights, lambda _: None)


def _main() -> None:
    place, weights, folders = json.loads(sys.argv[1])
    made = [export(Model.at(Path(folder)), weights, [Path(place)], _write) for folder in folders]
    print(*made, sep="\n")


if __name__ == "__main__":
    _main()
