"""A child that says what nobody can make anything of, in frames that are well made."""

from __future__ import annotations

import sys

from enclave_app import pipe


def main() -> None:
    """Say it."""
    pipe.receive(sys.stdin.buffer)
    pipe.send(sys.stdout.buffer, b'[[1, [["question", ["decimal", "much"]], ["answer", "x"]]]]')
    pipe.receive(sys.stdin.buffer)
