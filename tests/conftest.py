"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of real evidence and published crypto vectors; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BLINDBOX_VECTORS", REPOSITORY.parent / "shared" / "vectors"))
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip(f"no attestation vectors in {folder} (set BLINDBOX_VECTORS)")
    return folder
