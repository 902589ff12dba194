"""
A streamed chat with the openai package's own client, sealed to a machine that has proved itself.

    blindbox trust http://HOST:80 --policy release.json
    python client_sdk/examples/chat_with_openai.py http://HOST:80 "Why is the sky blue?"
"""

from __future__ import annotations

import sys
from typing import Any

import blindbox


def main(origin: str, question: str, policy: Any = None) -> int:
    """Print the answer as it comes; without `policy`, the one stored for the origin is asked for."""
    with blindbox.OpenAI(origin, policy=policy) as client:
        try:
            model = next(iter(client.models.list())).id
            chat = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], stream=True
            )
        except blindbox.AttestationError as error:
            print(f"nothing was asked: {error}", file=sys.stderr)
            return 1
        for chunk in chat:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
