"""
An engine that answers with the prompt: for trying the app where no model is, for measuring all but a model.

Its tokens are bytes of UTF-8 where it is asked in bytes (`ByteTokenizer`), or whatever ids it is given. A
tuned model answers with the first letters of its weights' digest before the prompt, so that a test can see
whose adapter answered.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from ..refusals import Conflict
from . import Card, Token, Update, Work
from .adapter import Adapter

END: Final = 256


class EchoEngine:
    """
    Says what was said, a token a step.

    `rate` holds it to so many steps a second (0 = as fast as it can); `room`, `most_sequences` and `tunes`
    are those of a card, for trying what happens when they are used up. Made with an `adapter`, it is that
    tuned model and no other.
    """

    def __init__(
        self,
        *,
        rate: float = 0.0,
        room: int = 1 << 20,
        most_sequences: int = 256,
        tunes: Literal["within", "apart", "no"] = "within",
        adapter: Adapter | None = None,
    ) -> None:
        self._pause = 1 / rate if rate else 0.0
        self._room = room
        self._most = most_sequences
        self._open: OrderedDict[int, tuple[tuple[int, ...], int, Work]] = OrderedDict()
        self._tunes: Literal["within", "apart", "no"] = tunes
        self._tuned: dict[str, bytes] = {}
        if adapter is not None:
            self.load("", adapter)
        self._next = 0.0

    def card(self) -> Card:
        return Card(
            context=None,
            room=self._room,
            most_sequences=self._most,
            kv_bytes=1,
            abilities=frozenset(),
            most_logprobs=20,
            tunes=self._tunes,
            details=(("model", "echo"),),
        )

    def start(self, key: int, work: Work) -> None:
        said = work.ids
        if work.tuning and work.tuning not in self._tuned:
            raise Conflict("This tuned model is not loaded.", code="not_loaded")
        said = (*self._tuned.get(work.tuning, b""), *said)
        self._open[key] = (said, 0, work)

    def step(self) -> list[Update]:
        if self._pause:
            now = time.monotonic()
            if now < self._next:
                time.sleep(self._next - now)
            self._next = max(self._next, now) + self._pause
        updates = []
        for key, (said, at, work) in list(self._open.items()):
            sampling = work.sampling
            tokens: tuple[Token, ...] = ()
            finish: Any = None
            if at < len(said) and at < sampling.max_new_tokens:
                told = sampling.logprobs is not None
                top = tuple((said[at], -0.125) for _ in range(min(1, sampling.logprobs or 0)))
                tokens = (Token(said[at], -0.125 if told else 0.0, top),)
                at += 1
            if at >= len(said):
                finish = "stop"
            elif at >= sampling.max_new_tokens:
                finish = "length"
            updates.append(Update(key, tokens, finish))
            if finish is None:
                self._open[key] = (said, at, work)
            else:
                del self._open[key]
        return updates

    def busy(self) -> bool:
        return bool(self._open)

    def cancel(self, key: int) -> None:
        self._open.pop(key, None)

    def load(self, version: str, adapter: Adapter) -> None:
        self._tuned[version] = f"[{adapter.manifest.weights_sha256[:16]}] ".encode()

    def unload(self, version: str) -> None:
        self._tuned.pop(version, None)

    def gauges(self) -> dict[str, float]:
        return {
            "sequences": float(len(self._open)),
            "kv_used_tokens": float(sum(len(work.ids) + at for _, at, work in self._open.values())),
        }


class ByteTokenizer:
    """A token is a byte; there is no chat template, so that a conversation is its last message."""

    chat_template = None
    size = 257
    longest = 1  # characters of a token
    ends = frozenset([END])

    def __init__(self, folder: Path | None = None) -> None:
        """Needs no folder."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("utf-8", "replace"))}

    def text(self, token: int) -> str:
        return bytes([token]).decode("utf-8", "replace") if token < END else ""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(each for each in ids if each < END).decode("utf-8", "replace")

    def decoder(self, prompt: Sequence[int]) -> Callable[[int], str | None]:
        import codecs

        whole = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: whole.decode(bytes([token])) or None if token < END else None

    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        raise AssertionError("it has none")
