"""A child's program: what the OpenMP library that comes with torch made of the environment."""

from __future__ import annotations

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path


def library() -> Path | None:
    """Where it is, if this torch brings one; torch itself is not loaded for that."""
    torch = find_spec("torch")
    folders = [] if torch is None else torch.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder, "lib").glob("libgomp.so*")]
    return found[0] if found else None


def main() -> None:
    """Load it: it tells on standard error, where it is asked to (OMP_DISPLAY_ENV)."""
    os.dup2(1, 2)
    ctypes.CDLL(str(library()))
