"""A taste of `make soak-training`: a few deaths, and a disk that is full at every 64 KiB."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit.models import tiny_llama

from .training import disk_apart, kills

pytest.importorskip("torch")


@pytest.mark.slow
def test_jobs_that_are_killed_go_on_and_make_the_same_adapter(tmp_path: Path) -> None:
    """S-26, S-27, G-20: the server and the training's process, at moments drawn by chance."""
    for figure in kills(4, 1, tmp_path, tiny_llama()):
        assert figure.held, figure


def mounts() -> bool:
    """Whether a user may have mounts of their own here."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not mounts(), reason="takes a mount of its own")
def test_a_full_disk_ends_a_job_in_words_and_damages_nothing(tmp_path: Path) -> None:
    """S-28, G-21: full after 64 KiB, after 128 KiB, and so on until the job fits."""
    for figure in disk_apart(tiny_llama(), tmp_path):
        assert figure.held, figure
