"""What every test may ask for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.amd import FakeAmd
from tests.kit.pinned_amd import pinned

REPOSITORY = Path(__file__).resolve().parent.parent

# How long an example takes says how busy the machine is.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of real evidence and published crypto vectors; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BLINDBOX_VECTORS", REPOSITORY.parent / "shared" / "vectors"))
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip(f"no attestation vectors in {folder} (set BLINDBOX_VECTORS)")
    return folder


@pytest.fixture(scope="module")
def amd() -> Iterator[FakeAmd]:
    """A vendor whose root is among the pinned ones while the tests of a module run."""
    with pinned(FakeAmd()) as vendor:
        yield vendor


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_libc = ctypes.CDLL(None)


@pytest.fixture(scope="session")
def first_signal_stack() -> _SignalStack:
    """Where this thread's signals are handled when the first test begins (sigaltstack(2))."""
    stack = _SignalStack()
    _libc.sigaltstack(None, ctypes.byref(stack))
    return stack


@pytest.fixture(autouse=True)
def signal_stack(first_signal_stack: _SignalStack) -> None:
    """
    Give this thread back the stack for signals that it had.

    OpenVINO's processor plugin brings one of its own and, where several engines were open in one process, may
    leave behind one that it has freed. The next signal, a test's Ctrl-C much later, would end the process.
    """
    _libc.sigaltstack(ctypes.byref(first_signal_stack), None)
