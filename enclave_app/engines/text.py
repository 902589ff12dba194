"""
From tokens to text as it may be shown: whole characters only, and never a stop string.

A stop string may begin in one token and end in another; so what could be the beginning of one is held back
until it is known not to be. What is held at the end is shown then, if no stop string was completed. A token
is told together with the text it begins in; those of a stop string are not told.

All stop strings are followed at once (Aho and Corasick, Communications of the ACM 18, 1975): a step for each
character, however many there are and however much they look like what is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from . import Token


class Written(NamedTuple):
    """What became certain: text, and the tokens that begin in it."""

    text: str = ""
    tokens: tuple[Token, ...] = ()


class Writer:
    """Writes one answer. `stopped` is true once a stop string was met; nothing is written after it."""

    def __init__(self, decode: Callable[[int], str | None], stops: Iterable[str] = ()) -> None:
        self._decode = decode
        self._stops = _Stops(stops)
        self._watching = self._stops.any
        self._held = ""
        self._tokens: deque[tuple[Token, int]] = deque()  # and where in `_held` each begins
        self.stopped = False

    def write(self, token: Token) -> Written:
        """Take the next token."""
        if self.stopped:
            return Written()
        new = self._decode(token.id) or ""
        self._tokens.append((token, len(self._held)))
        for at, character in enumerate(new if self._watching else "", len(self._held) + 1):
            found = self._stops.step(character)
            if found:
                self.stopped = True
                self._held += new
                shown = self._show(at - found)
                self._held = ""
                self._tokens.clear()
                return shown
        self._held += new
        return self._show(len(self._held) - self._stops.begun)

    def rest(self) -> Written:
        """What was held back, at the end of the answer."""
        text, tokens = self._held, tuple(token for token, _ in self._tokens)
        self._held = ""
        self._tokens.clear()
        return Written(text, tokens)

    def _show(self, end: int) -> Written:
        text, self._held = self._held[:end], self._held[end:]
        tokens = []
        while self._tokens and self._tokens[0][1] < end:
            tokens.append(self._tokens.popleft()[0])
        self._tokens = deque((token, at - end) for token, at in self._tokens)
        return Written(text, tuple(tokens))


class _Stops:
    """How far into which stop string the text has come."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._ends = [0]  # the length of the longest stop string that ends here; 0 = none
        self._back = [0]
        for stop in stops:
            self._add(stop)
        self._link()
        self._at = 0

    @property
    def any(self) -> bool:
        """Is there anything to watch for?"""
        return len(self._next) > 1

    @property
    def begun(self) -> int:
        """How many characters at the end of the text could be the beginning of a stop string."""
        return self._depth[self._at]

    def step(self, character: str) -> int:
        """The length of the stop string that this character completes; 0 = none."""
        while self._at and character not in self._next[self._at]:
            self._at = self._back[self._at]
        self._at = self._next[self._at].get(character, 0)
        return self._ends[self._at]

    def _add(self, stop: str) -> None:
        at = 0
        for character in stop:
            following = self._next[at].get(character)
            if following is None:
                following = self._next[at][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[at] + 1)
                self._ends.append(0)
                self._back.append(0)
            at = following
        self._ends[at] = self._depth[at]  # an empty one ends at the root, with length 0: it is none

    def _link(self) -> None:
        """Where to go on when the next character does not fit: the longest end that is a beginning too."""
        queue = deque(self._next[0].values())
        while queue:
            at = queue.popleft()
            for character, following in self._next[at].items():
                back = self._back[at]
                while back and character not in self._next[back]:
                    back = self._back[back]
                self._back[following] = self._next[back].get(character, 0)
                self._ends[following] = self._ends[following] or self._ends[self._back[following]]
                queue.append(following)
