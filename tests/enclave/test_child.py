"""A process for one piece of heavy work: what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_app.child import running
from tests.kit import openmp


@pytest.mark.skipif(openmp.library() is None, reason="there is no torch here, or it brings no libgomp")
def test_threads_of_a_child_do_not_spin_for_long_while_they_wait(tmp_path: Path) -> None:
    """By the word of the very library: else a training crawls beside other work."""
    with running("tests.kit.openmp", str(tmp_path), OMP_DISPLAY_ENV="verbose") as child:
        told, _ = child.communicate()
    assert b"GOMP_SPINCOUNT = '1000'" in told
