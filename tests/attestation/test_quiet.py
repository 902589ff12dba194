"""The verifier only computes: whatever the bytes, it opens no file and no socket, and starts nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.kit.specimens import NAMES

CODE = """
import random, sys
from tests.kit.specimens import specimen

one = specimen(sys.argv[1])
one.judge()  # what is loaded when it is needed is loaded now
seen = []

def watch(event, arguments):
    if watching and event.partition(".")[0] in {"open", "socket", "os", "subprocess", "ctypes"}:
        seen.append((event, repr(arguments)[:200]))

watching = False
sys.addaudithook(watch)
open("/dev/null").close()
dice = random.Random(1)
watching = True
for round in range(300):
    file = dice.choice(sorted(one.files))
    data = bytearray(one.files[file])
    for _ in range(dice.randrange(4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    one.code({file: bytes(data)})
assert not seen, seen[:3]
open("/dev/null").close()
assert seen, "the watch was asleep"
"""


@pytest.mark.parametrize("name", NAMES)
def test_no_input_makes_the_verifier_open_a_file_or_a_socket(name: str) -> None:
    """C-23: nothing is fetched in the middle of a judgement."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, name],
        cwd=REPOSITORY,
        env={"PYTHONPATH": ":".join((".", "client_sdk", "attestation")), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
