"""Answers held against the types of the `openai` package: every field that must be there, and no other."""

from __future__ import annotations

from typing import Any, TypeVar

from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def exactly(kind: type[M], data: Any) -> M:
    """The data as this type, with nothing in it that the type does not know."""
    made = kind.model_validate(data, strict=True)
    _nothing_more(made, kind.__name__)
    return made


def chat(data: Any) -> ChatCompletion:
    """A `chat.completion`."""
    return exactly(ChatCompletion, data)


def chunks(events: list[tuple[str, Any]]) -> list[ChatCompletionChunk]:
    """The events of a stream that ends as it should: unnamed, one id and time, then `[DONE]`."""
    assert events[-1] == ("", "[DONE]")
    assert {name for name, _ in events} == {""}
    made = [exactly(ChatCompletionChunk, data) for _, data in events[:-1]]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in made}) == 1
    return made


def text(data: Any) -> Completion:
    """A `text_completion`."""
    return exactly(Completion, data)


def texts(events: list[tuple[str, Any]]) -> list[Completion]:
    """The events of a completion's stream. OpenAI's say null until there is a reason; its type does not."""
    assert events[-1] == ("", "[DONE]")
    assert {name for name, _ in events} == {""}
    for _, data in events[:-1]:
        for choice in data["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "content_filter"
    return [text(data) for _, data in events[:-1]]


def model(data: Any) -> Model:
    """A `model`; servers tell more of one than OpenAI does, and clients pass over it."""
    return Model.model_validate(data, strict=True)


def _nothing_more(made: Any, where: str) -> None:
    if isinstance(made, list):
        for each in made:
            _nothing_more(each, where)
    if isinstance(made, BaseModel):
        assert not made.model_extra, f"{where} has {set(made.model_extra or ())} besides"
        for name in type(made).model_fields:
            _nothing_more(getattr(made, name), f"{where}.{name}")
