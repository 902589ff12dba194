"""
Any bytes at all: each reader answers garbled input with an error of ours, soon, and without taking much
memory.

Every reader gets 20 000 inputs from a fuzzer that sees what they reach; `make fuzz` gives them ten
minutes each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import REPOSITORY
from tests.fuzz.readers import READERS, TYPED
from tests.kit.garbling import Edit, edits, garbled
from tests.kit.meaningless import means_the_same
from tests.kit.specimens import NAMES, specimen

INPUTS = 20_000
MUCH = 256 << 10  # more than any document is
MOST_SECONDS = 0.25


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_any_bytes_at_all(name: str, tmp_path: Path) -> None:
    """C-17, C-18, C-19: only errors of ours, within 50 ms and 64 MiB each."""
    pytest.importorskip("atheris", reason="the fuzzer is there for Linux only")
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--inputs", str(INPUTS), "--crashes", str(tmp_path)],
        cwd=REPOSITORY,
        env={"PYTHONPATH": ":".join((".", "client_sdk", "attestation")), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_no_garbled_file_proves_a_machine_or_ends_the_verifier(name: str) -> None:
    """C-15, C-19: what still proves the machine are the same bytes as before."""
    one = specimen(name)
    names = sorted(one.files)

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edits())
    def run(wishes: list[Edit]) -> None:
        file = names[wishes[0][1] % len(names)]
        changed = garbled(one.files[file], wishes)
        if one.code({file: changed}) == "accepted":
            assert means_the_same(one.platform, file, changed, one.files[file])

    run()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "filler", [b"\x00", b"\xff", b"[", b"{", b'"', b"\x30\x84", b"\x9f", b"\x81", b"a.", b"\xa1\x00"]
)
def test_much_nonsense_is_refused_at_once(name: str, filler: bytes) -> None:
    """C-18: size is looked at first, and depth before it hurts."""
    nonsense = (filler * MUCH)[:MUCH]
    began = time.thread_time()
    with pytest.raises(TYPED):
        READERS[name][0](nonsense)
    assert time.thread_time() - began < MOST_SECONDS
