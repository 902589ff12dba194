"""
Beam search over one prompt: which beginnings of an answer are worth going on with, and which answer is best.

Its rules are those of transformers' `generate(num_beams=…)` with its defaults (no length penalty beyond the
mean, no early stopping), a step at a time so that others can be served in between. What a step of the model
is, `torch.py` knows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from . import Sampling
from .choice import Chooser


@dataclass(frozen=True, slots=True)
class _Ended:
    score: float  # mean log probability of its tokens
    tokens: tuple[int, ...]


class Beams:
    """The beams of one answer. `best` is the answer once `take` has said that it is over."""

    def __init__(self, sampling: Sampling, chooser: Chooser, ends: frozenset[int]) -> None:
        self.width = sampling.num_beams
        self.running: list[tuple[int, ...]] = [()]
        self._scores = torch.zeros(1)
        self._most = sampling.max_new_tokens
        self._ends = frozenset() if sampling.ignore_end else ends
        self._chooser = chooser
        self._ended: list[_Ended] = []

    def take(self, scores: torch.Tensor) -> list[int] | None:
        """
        Go on by the model's scores for each running beam (one, at first).

        Returns for each of the beams that run now which of those before it continues, and None at the end.
        """
        logprobs = torch.log_softmax(scores.float().cpu(), dim=-1)
        changed = [
            self._chooser.changed(row, Counter(said))
            for row, said in zip(logprobs, self.running, strict=True)
        ]
        total = torch.stack(changed) + self._scores[:, None]
        # So many that enough are left if each of the best ends, by whichever end token.
        most = min(max(2, 1 + len(self._ends)) * self.width, total.numel())
        best = total.flatten().topk(most)
        length = len(self.running[0]) + 1
        going: list[tuple[float, int, tuple[int, ...]]] = []
        for rank, (score, at) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(at, total.shape[-1])
            said = (*self.running[beam], token)
            if token not in self._ends and length < self._most:
                going.append((score, beam, said))
            elif rank < self.width:
                self._ended.append(_Ended(score / length, said))
        self._ended = sorted(self._ended, key=lambda each: -each.score)[: self.width]
        going = going[: self.width]
        if not going or self._settled(going[0][0] / length):
            return None
        self.running = [said for _, _, said in going]
        self._scores = torch.tensor([score for score, _, _ in going])
        return [beam for _, beam, _ in going]

    def _settled(self, best: float) -> bool:
        return len(self._ended) == self.width and best <= self._ended[-1].score

    @property
    def best(self) -> tuple[tuple[int, ...], bool]:
        """The tokens without the end token, and whether there was one."""
        tokens = self._ended[0].tokens
        return (tokens[:-1], True) if tokens[-1] in self._ends else (tokens, False)
