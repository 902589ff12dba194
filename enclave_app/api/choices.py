"""
Several answers to one request, written at once: all are held together, and given up together.

Which prompts and how they are sampled is decided by the routes; how an answer is queued, in `asking.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..catalogue import Served
from ..engines import Sampling
from ..engines.answer import Answer, Piece
from ..refusals import Refusal
from ..tenants import Tenant
from .asking import ask
from .rooms import Rooms


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a model: `n` answers to each prompt."""

    served: Served
    prompts: Sequence[list[int]]
    sampling: Sampling
    n: int = 1
    stops: tuple[str, ...] = ()
    param: str = "messages"  # the field that the prompts came in

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Counted tokens: a prompt once, however many answers it has; of an answer all that were made."""
        prompt = sum(len(ids) for ids in self.prompts)
        completion = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


@asynccontextmanager
async def asked(rooms: Rooms, tenant: Tenant, wanted: Wanted) -> AsyncIterator[list[Answer]]:
    """Queue all answers, first those to the first prompt; leaving the block cancels what is not finished."""
    async with AsyncExitStack() as held:
        held.push(_about(wanted.param))
        answers = []
        for ids in wanted.prompts:
            for choice in range(wanted.n):
                answer = await ask(
                    rooms,
                    tenant,
                    wanted.served,
                    ids,
                    seeded(wanted.sampling, choice),
                    stops=wanted.stops,
                    param=wanted.param,
                )
                answers.append(await held.enter_async_context(answer))
        yield answers


def _about(param: str) -> Callable[..., None]:
    """An engine knows tokens and no fields: what it refuses of them is a refusal of this one."""

    def name(_: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Refusal) and error.status == 400 and error.param is None:
            error.param = param

    return name


def seeded(sampling: Sampling, choice: int) -> Sampling:
    """The choices of one request differ, and each is the same again under the same seed."""
    if sampling.seed is None or not choice:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % (1 << 63))


async def pieces(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Piece]]:
    """The answers' pieces as they come, each with the number of its answer."""
    if len(answers) == 1:
        async for piece in answers[0]:
            yield 0, piece
        return
    texts = [aiter(answer) for answer in answers]
    coming = {asyncio.ensure_future(_next(text)): index for index, text in enumerate(texts)}
    try:
        while coming:
            there, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(there, key=coming.__getitem__):
                index, piece = coming.pop(task), task.result()
                yield index, piece
                if piece.finish is None:
                    coming[asyncio.ensure_future(_next(texts[index]))] = index
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)


async def _next(text: AsyncIterator[Piece]) -> Piece:
    return await anext(text)
