"""
One sequence's text as it comes: between the engine's updates and the route that reads them.

What has come since the reader last looked is one piece, however many steps it took: a slow reader gets fewer
and longer ones. Whose turn it is, and what a sequence holds, is the business of `turns.py` and `station.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..refusals import Refusal
from . import Finish, Token, Update, Work
from .text import Writer, Written


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of an answer: text that may be shown, and the tokens that begin in it."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None  # with the last piece, and only there


class Answer:
    """
    One sequence's text: `async with desk.ask(…) as answer: async for piece in answer: …`.

    Leaving the block gives back what the sequence holds, finished or not. `tokens` counts what was
    generated, also what a stop string cut off.
    """

    def __init__(
        self, key: int, work: Work, writer: Writer, leave: Callable[[Answer], None], *, block: int = 1
    ) -> None:
        sampling = work.sampling
        self.key = key
        self.work = work
        self.owner = work.owner
        self.width = max(1, sampling.num_beams)
        longest = len(work.ids) + sampling.max_new_tokens * self.width
        self.reserved = -(-longest // block) * block  # tokens in the KV cache, at most
        self.tokens = 0
        self.finished = False  # there is nothing more to read than what has come
        self.over = False  # the engine is done with it
        self.asked = time.monotonic()
        self.started: float | None = None  # when the engine got it
        self.first: float | None = None  # when its first token came
        self.last: float | None = None  # … and its latest
        self._writer = writer
        self._leave = leave
        self._text: list[str] = []
        self._tokens: list[Token] = []
        self._finish: Finish | None = None
        self._failure: Refusal | None = None
        self._read = False  # to its end
        self._news = asyncio.Event()

    @property
    def used(self) -> int:
        """Tokens read and written for it so far."""
        return 0 if self.started is None else len(self.work.ids) + self.tokens

    @property
    def remaining(self) -> int:
        """How many more steps it takes at most."""
        return max(0, self.work.sampling.max_new_tokens - self.tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Piece]:
        while not self._read:
            await self._news.wait()
            self._news.clear()
            if self._text or self._tokens or self._finish is not None:
                piece = Piece("".join(self._text), tuple(self._tokens), self._finish)
                self._text.clear()
                self._tokens.clear()
                self._read = self._finish is not None
                yield piece
            if self._failure is not None:
                self._read = True
                raise self._failure

    def hear(self, update: Update) -> None:
        """Take in what a step brought; `finished` tells whether it was the last, for us or for the engine."""
        self.over = update.finish is not None
        if self.finished:
            return
        if update.tokens:
            self.last = time.monotonic()
            self.first = self.first or self.last
        for token in update.tokens:
            self.tokens += 1
            self._take(self._writer.write(token))
            if self._writer.stopped:
                self._end("stop")
                return
        if update.finish is not None:
            self._take(self._writer.rest())
            self._end(update.finish)
        elif self._text or self._tokens:
            self._news.set()

    def fail(self, refusal: Refusal) -> None:
        """It ends without an answer; what was written is still read before that is told."""
        if self.finished:
            return
        self._failure = refusal
        self.finished = True
        self._news.set()

    def _take(self, written: Written) -> None:
        if written.text:
            self._text.append(written.text)
        self._tokens.extend(written.tokens)

    def _end(self, finish: Finish) -> None:
        self._finish = finish
        self.finished = True
        self._news.set()
