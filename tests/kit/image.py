"""The container image that tests run and boot: built from this checkout, whichever test comes first."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.debian import install_if_asked
from tests.kit.vm import buildah

ROOT = Path(__file__).resolve().parents[2]
DEMO = "localhost/blindbox:test"

HEAVY = (
    *("numpy", "numpy.libs", "openvino", "openvino_genai", "pandas", "pyarrow", "scipy", "scipy.libs"),
    *("sklearn", "sympy", "torch", "transformers"),
)
"""What engines and training need, and the rest of the app does not: nine tenths of the image."""


@contextmanager
def _alone() -> Iterator[None]:
    """Test modules run side by side; the second one finds every layer of the image made."""
    with (Path(tempfile.gettempdir()) / "blindbox-tests-image.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def build_sh(*options: str) -> subprocess.CompletedProcess[str]:
    """`image/build.sh` with these options; the test is skipped where it cannot build at all."""
    if os.geteuid() != 0:
        pytest.skip("building without a daemon needs root here")
    programs = ("buildah",) if "BASE" in os.environ else ("buildah", "mmdebstrap")
    missing = [program for program in programs if shutil.which(program) is None]
    install_if_asked(missing, "--no-install-recommends", *programs)
    command = ["sh", str(ROOT / "image" / "build.sh"), *options]
    environment = {**os.environ, "PYTHON": sys.executable}
    with _alone():
        return subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@functools.cache
def container_image() -> str:
    """The demo's image, its model inside."""
    done = build_sh("--tag", DEMO, "--build-arg", "DEMO=1")
    assert done.returncode == 0, done.stdout[-8000:]
    return DEMO


def light_image(name: str) -> str:
    """The same image without models and what runs them; its engine repeats what it is told."""
    container = buildah("from", "--pull-never", container_image())
    try:
        files = Path(buildah("mount", container))
        (packages,) = files.glob("opt/blindbox/lib/python3*/site-packages")
        for package in filter(Path.is_dir, map(packages.joinpath, HEAVY)):
            shutil.rmtree(package)
        for model in (files / "models").iterdir():
            shutil.rmtree(model)
        buildah("config", "--env", "BLINDBOX_ENGINE=echo", container)
        buildah("commit", "-q", "--timestamp", "1767225600", container, name)
    finally:
        buildah("rm", container)
    return name
