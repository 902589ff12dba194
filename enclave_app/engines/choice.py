"""
From a model's scores to the next token: all that `Sampling` may ask for, one sequence at a time.

Used by `torch.py`. A sequence's chance is its own generator, seeded by its own request: who else is answered
meanwhile does not change what it draws.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch

from ..refusals import Refusal
from . import Sampling, Token

COLDEST: Final = 1e-6
"""Colder than this only the likeliest is left, and the division would leave the numbers' range."""


class Chooser:
    """Chooses the tokens of one answer; told what was said so far by being the one who says it."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocabulary: int) -> None:
        """Raises `Refusal` where a biased token is not one of the model's."""
        for token, _ in sampling.logit_bias:
            if not 0 <= token < vocabulary:
                raise Refusal(
                    f"logit_bias names the token {token}; this model's are 0 to {vocabulary - 1}.",
                    code="invalid_value",
                    param="logit_bias",
                )
        self._sampling = sampling
        self._biased = torch.tensor([token for token, _ in sampling.logit_bias], dtype=torch.long)
        self._biases = torch.tensor([bias for _, bias in sampling.logit_bias], dtype=torch.float32)
        self._read = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._said: Counter[int] = Counter()
        # By its text: as a number, -1 and 1 would be the same seed.
        self._chance = random.Random(None if sampling.seed is None else str(sampling.seed))  # noqa: S311
        self._greedy = not sampling.do_sample or sampling.temperature == 0 or sampling.top_k == 1
        penalised = sampling.presence_penalty or sampling.frequency_penalty
        self._changes = bool(penalised or sampling.repetition_penalty != 1.0 or sampling.logit_bias)
        self.plain = self._greedy and not self._changes and sampling.logprobs is None
        """Whether it is the likeliest token, and nothing else is asked for."""

    def choose(self, scores: torch.Tensor) -> Token:
        """The next token, by the model's scores (float32) of all tokens."""
        changed = self.changed(scores, self._said)
        chosen = int(changed.argmax()) if self._greedy else self._drawn(changed)
        self._said[chosen] += 1
        wanted = self._sampling.logprobs
        if wanted is None:
            return Token(chosen)
        # Of the model itself, before anything that was asked for changed them.
        logprobs = torch.log_softmax(scores, dim=-1)
        best = logprobs.topk(min(wanted, len(logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)

    def changed(self, scores: torch.Tensor, said: Counter[int]) -> torch.Tensor:
        """The scores after penalties and biases, where `said` are the tokens of the answer so far."""
        if not self._changes:
            return scores
        sampling = self._sampling
        scores = scores.clone()
        if sampling.repetition_penalty != 1.0 and (seen := self._read | said.keys()):
            where = torch.tensor(sorted(seen), device=scores.device)
            there = scores[where]
            factor = sampling.repetition_penalty
            scores[where] = torch.where(there < 0, there * factor, there / factor)
        if said and (sampling.presence_penalty or sampling.frequency_penalty):
            where = torch.tensor(list(said.keys()), device=scores.device)
            times = torch.tensor(list(said.values()), dtype=scores.dtype, device=scores.device)
            scores[where] -= sampling.presence_penalty + sampling.frequency_penalty * times
        if len(self._biased):
            scores[self._biased.to(scores.device)] += self._biases.to(scores.device)
        return scores

    def _drawn(self, scores: torch.Tensor) -> int:
        """
        One token by chance.

        The likeliest stand first, so that cutting is taking the first few, and so that rounding (which
        depends on who else is in the batch) moves borders as little as it can.
        """
        sampling = self._sampling
        scores = scores / max(sampling.temperature, COLDEST)
        tokens = None
        if 0 < sampling.top_k < len(scores):
            scores, tokens = scores.topk(sampling.top_k)
        elif sampling.top_p < 1.0 or sampling.min_p > 0.0:
            scores, tokens = scores.sort(descending=True, stable=True)
        likely = torch.softmax(scores.double(), dim=-1)
        kept = len(likely)
        if sampling.top_p < 1.0:  # until they make up top_p together
            before = likely.cumsum(0) - likely
            kept = max(1, int((before < sampling.top_p).sum()))
        if sampling.min_p > 0.0:
            kept = max(1, min(kept, int((likely >= sampling.min_p * likely[0]).sum())))
        up_to = likely[:kept].cumsum(0)
        point = up_to[-1] * self._chance.random()
        at = min(int(torch.searchsorted(up_to, point, right=True)), kept - 1)
        return at if tokens is None else int(tokens[at])
