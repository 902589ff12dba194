"""
An engine that answers with the prompt, word by word. For trying the app where no model is.

A tuning shows as the version it has, so that a test can see whose adapter answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from . import Piece, Prompt, Sampling


class EchoEngine:
    """Says what was said."""

    def generate(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        text = prompt.text
        if prompt.tuning is not None:
            text = f"[{prompt.tuning.load().manifest.weights_sha256[:16]}] {text}"
        words = re.findall(r"\s*\S+\s*$|\s*\S+", text)
        for word in islice(words, sampling.max_new_tokens):
            yield Piece(word)
        yield Piece("", finish="length" if len(words) > sampling.max_new_tokens else "stop")
