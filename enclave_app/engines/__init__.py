"""
What turns a prompt into text: the `Engine` protocol and the values that pass through it.

An engine is an iterator: whoever stops listening stops the work. It knows nothing of HTTP, of tenants or of
where adapters are kept; it is handed a way to read one. `echo.py` needs nothing and is for trying the app;
`torch.py` runs Hugging Face models and is the only module here that imports anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from .adapter import Adapter

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are those of the house API."""

    max_new_tokens: int = 128
    do_sample: bool = True
    top_k: int = 10  # 0 = all
    top_p: float = 1.0
    temperature: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tenant's adapter: `version` tells whether the one in memory is still it, `load` fetches it if not."""

    version: str
    load: Callable[[], Adapter]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and with whose tuning."""

    text: str
    tuning: Tuning | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text. The last piece says why it is the last; `joint` stands between prompt and answer."""

    text: str
    finish: Finish | None = None
    joint: str = ""


class Engine(Protocol):
    """
    Turns a prompt into text, piece by piece.

    `generate` runs on one thread at a time. It raises `Refusal` before its first piece where the prompt
    cannot be served. Without `prompt.tuning` the answer is the base model's, whatever was asked before.
    """

    def generate(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]: ...
