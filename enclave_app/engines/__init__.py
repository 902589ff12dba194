"""
What continues prompts: the `Engine` protocol and the values that pass through it.

An engine holds one model and continues many sequences at once, a token each per step. It runs alone on one
thread of a process of its own (`worker.py`), knows nothing of HTTP, of text or of who is waiting: token ids
go in, token ids come out. `desk.py` decides who is served when and turns tokens into text.

`openvino.py` is the fast one on CPUs; `torch.py` (with `past.py`, `choice.py`, `beams.py`) runs what it
cannot, and is the reference; `echo.py` needs no model. They alone import anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from ..refusals import Refusal
from .adapter import Adapter

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """
    The answer must be JSON of this schema; an engine that cannot see to it refuses.

    With `begin`, the answer is free text until the model itself writes `begin`; then comes JSON of the
    schema, then `end`. (That is how models call tools.)
    """

    schema: str  # a JSON Schema (2020-12), as JSON
    begin: str = ""
    end: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are those of the house API."""

    max_new_tokens: int = 128
    do_sample: bool = True  # False = always the likeliest token
    temperature: float = 1.0
    top_k: int = 10  # 0 = all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # -2 to 2, subtracted from the logit of a token that was generated
    frequency_penalty: float = 0.0  # … for each time it was
    repetition_penalty: float = 1.0  # divides the logit of what prompt or answer hold; 1 = none
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, added to its logit
    seed: int | None = None
    logprobs: int | None = None  # None = none; 0 = of the chosen token; n = and of the n likeliest
    num_beams: int = 1  # more than 1: beam search, no sampling, all tokens come at the end
    ignore_end: bool = False  # go on at an end token: for measuring
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence to be continued."""

    ids: tuple[int, ...]  # the prompt; not empty
    sampling: Sampling
    tuning: str = ""  # the version of a loaded adapter; "" = the base model
    owner: str = ""  # whose it is: a prefix is reused only for the same owner


class Token(NamedTuple):
    """One token of an answer. `logprob` and `top` (the likeliest, with theirs) only where asked for."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Update(NamedTuple):
    """What a step did for one sequence. `finish` comes with the last; the end token itself is not told."""

    key: int
    tokens: tuple[Token, ...]
    finish: Finish | None = None


class Refused(NamedTuple):
    """A sequence that a step had to give up (there was no memory for it, say); the others go on."""

    key: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Card:
    """What an engine can do with its model."""

    context: int | None  # tokens of prompt and answer together; None = no limit known
    room: int  # tokens of all sequences together that its KV cache holds
    most_sequences: int  # continued at once; more wait
    kv_bytes: int = 0  # of one token in the KV cache
    block: int = 1  # tokens that a sequence is given at once in the KV cache
    abilities: frozenset[str] = frozenset()
    """Of `logit_bias`, `beams`, `schema`, `triggered_schema`, `prefix_cache`; a request for another is
    refused."""
    most_logprobs: int = 0  # alternatives that can be told beside the chosen token
    tunes: Literal["within", "apart", "no"] = "no"
    """`within`: adapters are loaded beside the model. `apart`: a tuned model is another worker."""
    details: tuple[tuple[str, str], ...] = ()  # for people: weights, arithmetic, threads


class Engine(Protocol):
    """
    One model that continues many sequences at once.

    Every method is called on one thread. `Refusal` says what cannot be served; any other exception is the
    end of the engine and of its process.
    """

    def card(self) -> Card:
        """What it can do; the model is warm by then, so that the first caller waits no longer than others."""
        ...

    def start(self, key: int, work: Work) -> None:
        """Take a sequence in; raises `Refusal`. It is continued by the steps from now on."""
        ...

    def step(self) -> Sequence[Update | Refused]:
        """Continue the sequences, or read more of their prompts. Empty if there was nothing new to tell."""
        ...

    def busy(self) -> bool:
        """Is there any sequence to continue?"""
        ...

    def cancel(self, key: int) -> None:
        """Forget a sequence and free what it held; one that is not there is no error."""
        ...

    def load(self, version: str, adapter: Adapter) -> None:
        """Make a tuned model ready under `version` (only if `card().tunes` is "within")."""
        ...

    def unload(self, version: str) -> None:
        """Forget it. Nobody uses it any more."""
        ...

    def gauges(self) -> dict[str, float]:
        """Figures of the moment, by name: `kv_used_tokens`, `sequences`, …"""
        ...


Spec = dict[str, Any]
"""What a worker process builds its engine from: `engine`, `folder` and that engine's own options, as JSON."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tenant's adapter: `version` tells whether the one in memory is still it, `load` fetches it if not."""

    version: str
    load: Callable[[], Adapter]
    owner: str = ""  # whose it is: a new version of theirs takes the place of the old
