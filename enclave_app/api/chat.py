"""
`POST /v1/chat/completions`: a conversation goes in, the next message comes out, whole or as it is written.

The objects are OpenAI's `chat.completion` and `chat.completion.chunk`. What a field may hold stands in
`wishes.py`, `messages.py`, `tools.py` and `schemas.py`; this module puts them together and shapes answers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from ..catalogue import Served
from ..engines import Token
from ..engines.answer import Piece
from ..prompts import Template
from ..refusals import Refusal
from ..tenants import Tenant
from . import tools
from .answers import Event, Events, EventStream, unless_gone
from .asking import PromptReader
from .bodies import Several, body
from .calls import Delta, Reader
from .choices import Wanted, asked, pieces
from .messages import Message, conversation
from .rooms import Asking, Rooms
from .schemas import ResponseFormat, constraint_of
from .tools import Tool, Toolbox, ToolChoice
from .wishes import DEFAULT_NEW_TOKENS, Count, Wishes, alternatives, choices, new_tokens, sampling, stops

MOST_MESSAGES = 1 << 16  # read at all; how many are taken is a setting


class Chat(Wishes):
    """The body of a request."""

    messages: Annotated[Several[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Several[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Several[Literal["text"]] | None = None
    # Hints, taken and forgotten.
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None
    # Refused by name unless they are null: the answer would not be what was asked for.
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    moderation: Any = None


_INSTEAD = {
    "audio": "The models here write text only.",
    "functions": "Send tools.",
    "function_call": "Send tool_choice.",
    "web_search_options": "Nothing here can reach the web.",
    "moderation": "Nothing here moderates.",
}


def router(rooms: Rooms) -> APIRouter:
    """The route, over these rooms."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(request: Request, asking: Asking, wish: Annotated[Chat, Depends(body(Chat))]) -> Response:
        talk = await unless_gone(request, _talk(rooms, asking, wish))
        if wish.stream:
            return EventStream(_streamed(rooms, asking, talk))
        return JSONResponse(await unless_gone(request, _whole(rooms, asking, talk)))

    return routes


@dataclass(frozen=True, slots=True)
class _Talk:
    """A request that was understood."""

    wanted: Wanted
    toolbox: Toolbox | None
    usage_wanted: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def reader(self) -> Reader:
        return Reader.plain() if self.toolbox is None else self.toolbox.reader()

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of this answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.wanted.served.name,
            "system_fingerprint": fingerprint(self.wanted.served),
        }


def fingerprint(served: Served) -> str | None:
    """Names the weights that answered; a seed gives the same answer again under the same name only."""
    return f"fp_{served.fingerprint[:16]}" if served.fingerprint else None


async def _talk(rooms: Rooms, asking: Tenant, wish: Chat) -> _Talk:
    """Understand a request, or refuse it by the field at fault."""
    settings = rooms.settings
    for name, instead in _INSTEAD.items():
        if getattr(wish, name) is not None:
            raise Refusal(f"{name} is not served. {instead}", code="unsupported_parameter", param=name)
    if len(wish.messages) > settings.max_messages:
        raise Refusal(
            f"messages may be 1 to {settings.max_messages}.", code="invalid_value", param="messages"
        )
    n, ends = choices(wish, settings), stops(wish, settings)
    await rooms.catalogue.open()
    served = await model(rooms, asking, wish.model)
    card = rooms.catalogue.card(served)
    if wish.top_logprobs and not wish.logprobs:
        raise Refusal("top_logprobs needs logprobs: true.", code="invalid_value", param="top_logprobs")
    logprobs = alternatives(card, wish.top_logprobs or 0, "top_logprobs") if wish.logprobs else None
    box = tools.toolbox(
        wish.tools, wish.tool_choice, one=wish.parallel_tool_calls is False, card=card, settings=settings
    )
    constraint = constraint_of(wish.response_format, card, settings)
    if box is not None:
        if constraint is not None:
            raise Refusal(
                "response_format and tools that may be called cannot be asked for together.",
                code="invalid_value",
                param="response_format",
            )
        constraint, ends = box.constraint, (*ends, *box.stops)
    reader = PromptReader(served, card, "messages")
    ids = await asyncio.to_thread(_rendered, served, wish.messages, box, reader)
    asked_for = {"max_completion_tokens": wish.max_completion_tokens, "max_tokens": wish.max_tokens}
    length = new_tokens(asked_for, settings, card, len(ids), otherwise=DEFAULT_NEW_TOKENS)
    how = sampling(wish, served, card, new_tokens=length, logprobs=logprobs, constraint=constraint)
    return _Talk(Wanted(served, [ids], how, n, ends), box, wish.usage_wanted)


async def model(rooms: Rooms, asking: Tenant, name: str | None) -> Served:
    """The model of that name; nobody's name is the instruct model."""
    if name is None:
        return rooms.catalogue.untuned(rooms.catalogue.instruct)
    return await rooms.catalogue.find(asking, name)


def _rendered(served: Served, messages: list[Message], box: Toolbox | None, words: PromptReader) -> list[int]:
    """The tokens of the conversation, with the tools told of."""
    knows = tools.known(served)
    told = conversation(messages, knows_tools=knows)
    declared = None
    if box is not None:
        if knows:
            declared = tools.declared(box.told)
        else:
            told = tools.introduced(box.told, told)
    template = served.template
    if template is Template.QUESTION and len(told) > 1:
        template = Template.TEXT  # the question's frame holds one question only
    return template.conversation(words, told, declared)


async def _whole(rooms: Rooms, asking: Tenant, talk: _Talk) -> dict[str, Any]:
    written = [_Written(talk.reader()) for _ in range(talk.wanted.n)]
    async with asked(rooms, asking, talk.wanted) as answers, aclosing(pieces(answers)) as coming:
        async for index, piece in coming:
            written[index].take(piece)
        usage = talk.wanted.usage(answers)
    return talk.head("chat.completion") | {
        "choices": [each.choice(index, talk.wanted) for index, each in enumerate(written)],
        "usage": usage,
    }


class _Written:
    """One choice, as it is put together."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[Token] = []
        self._finish = "stop"

    def take(self, piece: Piece) -> None:
        """Some more of it."""
        self._tokens += piece.tokens
        for delta in deltas(self._reader, piece):
            if "content" in delta:
                self._content.append(delta["content"])
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    self._calls.append({"id": call["id"], "type": "function", "function": call["function"]})
                else:
                    self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        if piece.finish is not None:
            self._finish = finish_of(self._reader, piece)

    def choice(self, index: int, wanted: Wanted) -> dict[str, Any]:
        """OpenAI's `choices[…]`."""
        content = "".join(self._content)
        calls = {"tool_calls": self._calls} if self._calls else {}
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": None if self._calls and not content else content,
                "refusal": None,
                "annotations": [],
                **calls,
            },
            "logprobs": _logprobs(wanted, self._tokens),
            "finish_reason": self._finish,
        }


async def _streamed(rooms: Rooms, asking: Tenant, talk: _Talk) -> Events:
    """
    The chunks. The first comes with the first tokens, not before: until then a refusal is still a status.
    """
    head = talk.head("chat.completion.chunk")
    usage: dict[str, Any] = {"usage": None} if talk.usage_wanted else {}
    readers = [talk.reader() for _ in range(talk.wanted.n)]
    begun: set[int] = set()

    def chunk(index: int, delta: Delta, logprobs: Any = None, finish: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return "", head | {"choices": [choice]} | usage

    async with asked(rooms, asking, talk.wanted) as answers, aclosing(pieces(answers)) as coming:
        async for index, piece in coming:
            logprobs = _logprobs(talk.wanted, piece.tokens)
            grown = list(deltas(readers[index], piece))
            if not grown and piece.tokens and logprobs is not None:
                grown = [{"content": ""}]  # their text is held back still; they are told of now
            if not grown and piece.finish is None:
                continue
            together = []
            if index not in begun:
                begun.add(index)
                together.append(chunk(index, {"role": "assistant", "content": "", "refusal": None}))
            for delta in grown:
                together.append(chunk(index, delta, logprobs))
                logprobs = None
            if piece.finish is not None:
                together.append(chunk(index, {}, None, finish_of(readers[index], piece)))
            yield together
        if talk.usage_wanted:
            yield "", head | {"choices": [], "usage": talk.wanted.usage(answers)}
    yield "", "[DONE]"


def deltas(reader: Reader, piece: Piece) -> Iterable[Delta]:
    """What the piece adds to the message."""
    yield from reader.read(piece.text)
    if piece.finish is not None:
        yield from reader.end(whole=piece.finish == "stop")


def finish_of(reader: Reader, piece: Piece) -> str:
    """Why it ended, in OpenAI's words."""
    return "tool_calls" if reader.called and piece.finish == "stop" else str(piece.finish)


def _logprobs(wanted: Wanted, tokens: Iterable[Token]) -> dict[str, Any] | None:
    if wanted.sampling.logprobs is None:
        return None
    words = wanted.served.tokenizer
    return {
        "content": [
            {
                **_weighed(words.text(token.id), token.logprob),
                "top_logprobs": [_weighed(words.text(each), logprob) for each, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _weighed(text: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, and which bytes it was is not known here.
    known = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "bytes": known, "logprob": max(logprob, -9999.0)}
