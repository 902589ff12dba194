"""
The first sealed call, whole: a machine that proves itself, and `requests` as people know it.

    python client_sdk/examples/first_call.py http://203.0.113.7:80 release-1.0.json "Why is the sky blue?"
"""

from __future__ import annotations

import sys
from typing import Any

import blindbox.requests as requests


def main(origin: str, policy: Any, prompt: str) -> int:
    """Ask once, and tell who answered."""
    try:
        response = requests.post(url=f"{origin}/test", json={"input_text": prompt}, policy=policy)
    except requests.AttestationError as error:
        print(f"Nothing was sent: {error}", file=sys.stderr)
        return 1
    response.raise_for_status()
    print(response.json()["text"])
    print(response.blindbox, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
