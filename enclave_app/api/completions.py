"""
`POST /v1/completions`: a text goes in as it is, without any template, and its continuation comes out.

The object is OpenAI's `text_completion`, whole or in pieces. `prompt` may be several texts, or token ids.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from ..catalogue import Served
from ..engines import Token
from ..prompts import Template
from ..refusals import Refusal
from ..tenants import Tenant
from .answers import Events, EventStream, unless_gone
from .asking import PromptReader
from .bodies import Several, body
from .chat import fingerprint
from .choices import Wanted, asked, pieces
from .rooms import Asking, Rooms
from .wishes import Wishes, alternatives, choices, new_tokens, sampling, stops

DEFAULT_NEW_TOKENS: Final = 16  # OpenAI's
MOST_ANSWERS: Final = 32  # to all prompts of one request together
MOST_IDS: Final = 1 << 20

Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[Several[Id], Field(min_length=1, max_length=MOST_IDS)]


class Text(Wishes):
    """The body of a request."""

    prompt: str | Annotated[Several[str | Id | Ids], Field(min_length=1, max_length=MOST_IDS)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: str | None = None


def router(rooms: Rooms) -> APIRouter:
    """The route, over these rooms."""
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def completions(
        request: Request, asking: Asking, wish: Annotated[Text, Depends(body(Text))]
    ) -> Response:
        task = await unless_gone(request, _task(rooms, asking, wish))
        if wish.stream:
            return EventStream(_streamed(rooms, asking, task))
        return JSONResponse(await unless_gone(request, _whole(rooms, asking, task)))

    return routes


@dataclass(frozen=True, slots=True)
class _Task:
    """A request that was understood."""

    wanted: Wanted
    shown: tuple[str, ...]  # before each answer: the prompts where they are to be echoed
    usage_wanted: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def head(self) -> dict[str, Any]:
        """What every object of this answer begins with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.wanted.served.name,
            "system_fingerprint": fingerprint(self.wanted.served),
        }


async def _task(rooms: Rooms, asking: Tenant, wish: Text) -> _Task:
    """Understand a request, or refuse it by the field at fault."""
    settings = rooms.settings
    n, ends = choices(wish, settings), stops(wish, settings)
    if wish.suffix:
        raise Refusal(
            "suffix is not served: the models here write on, they do not fill in.",
            code="unsupported_parameter",
            param="suffix",
        )
    if wish.best_of is not None and wish.best_of != n:
        raise Refusal(
            "best_of is not served: ask for n and choose.", code="unsupported_parameter", param="best_of"
        )
    if wish.echo and wish.logprobs is not None:
        raise Refusal(
            "echo and logprobs cannot be asked for together: a prompt's tokens are not weighed here.",
            code="unsupported_parameter",
            param="logprobs",
        )
    prompts = _prompts(wish.prompt)
    if len(prompts) * n > MOST_ANSWERS:
        raise Refusal(
            f"prompt times n may be up to {MOST_ANSWERS} answers.", code="invalid_value", param="prompt"
        )
    await rooms.catalogue.open()
    if wish.model is None:
        served = rooms.catalogue.untuned(rooms.catalogue.base)
    else:
        served = await rooms.catalogue.find(asking, wish.model)
    card = rooms.catalogue.card(served)
    logprobs = None if wish.logprobs is None else alternatives(card, wish.logprobs, "logprobs")
    reader = PromptReader(served, card, "prompt")
    ids = await asyncio.to_thread(lambda: [_ids(served, prompt, reader) for prompt in prompts])
    longest = max(map(len, ids))
    length = new_tokens(
        {"max_tokens": wish.max_tokens}, settings, card, longest, otherwise=DEFAULT_NEW_TOKENS
    )
    how = sampling(wish, served, card, new_tokens=length, logprobs=logprobs)
    wanted = Wanted(served, ids, how, n, ends, param="prompt")
    shown = [_text(served, prompt) if wish.echo else "" for prompt in prompts]
    return _Task(wanted, tuple(each for each in shown for _ in range(n)), wish.usage_wanted)


def _prompts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One or several, as several; token ids alone are one."""
    if isinstance(given, str):
        return [given]
    ids = [each for each in given if isinstance(each, int)]
    prompts = [each for each in given if not isinstance(each, int)]
    if ids and prompts:
        raise Refusal(
            "prompt may be a text, token ids, or a list of these.", code="invalid_value", param="prompt"
        )
    return prompts or [ids]


def _ids(served: Served, prompt: str | list[int], words: PromptReader) -> list[int]:
    if isinstance(prompt, str):
        return Template.TEXT.prompt(words, prompt)
    size = served.tokenizer.size
    if max(prompt) >= size:
        raise Refusal(
            f"The prompt has token ids that this model does not know; they are 0 to {size - 1}.",
            code="invalid_value",
            param="prompt",
        )
    return prompt


def _text(served: Served, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else str(served.tokenizer.decode(prompt))


async def _whole(rooms: Rooms, asking: Tenant, task: _Task) -> dict[str, Any]:
    texts = [[shown] for shown in task.shown]
    tokens: list[list[Token]] = [[] for _ in task.shown]
    finishes = ["stop" for _ in task.shown]
    async with asked(rooms, asking, task.wanted) as answers, aclosing(pieces(answers)) as coming:
        async for index, piece in coming:
            texts[index].append(piece.text)
            tokens[index] += piece.tokens
            finishes[index] = piece.finish or finishes[index]
        usage = task.wanted.usage(answers)
    return task.head | {
        "choices": [
            {
                "index": index,
                "text": "".join(text),
                "logprobs": _Weighing(task.wanted).of(tokens[index]),
                "finish_reason": finishes[index],
            }
            for index, text in enumerate(texts)
        ],
        "usage": usage,
    }


async def _streamed(rooms: Rooms, asking: Tenant, task: _Task) -> Events:
    """The pieces; the first comes with the first tokens, so that what is refused before is a status."""
    head = task.head
    usage: dict[str, Any] = {"usage": None} if task.usage_wanted else {}
    before = list(task.shown)
    weighing = [_Weighing(task.wanted) for _ in before]
    async with asked(rooms, asking, task.wanted) as answers, aclosing(pieces(answers)) as coming:
        async for index, piece in coming:
            text, before[index] = before[index] + piece.text, ""
            logprobs = weighing[index].of(piece.tokens)
            if not text and piece.finish is None and logprobs is None:
                continue
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}
            yield "", head | {"choices": [choice]} | usage
        if task.usage_wanted:
            yield "", head | {"choices": [], "usage": task.wanted.usage(answers)}
    yield "", "[DONE]"


class _Weighing:
    """Tells the log probabilities of one answer's tokens, and where in its text each begins."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._at = 0

    def of(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """OpenAI's `logprobs` of a completion: four lists, a place of each for every token."""
        asked_for = self._wanted.sampling.logprobs
        if asked_for is None:
            return None
        text = self._wanted.served.tokenizer.text
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(text(token.id))
        return {
            "tokens": [text(token.id) for token in tokens],
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [
                {text(each): max(logprob, -9999.0) for each, logprob in token.top} for token in tokens
            ]
            if asked_for
            else None,
            "text_offset": offsets,
        }
