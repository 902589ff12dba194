"""
What a model is taught from: the three kinds of examples a row can be, frozen.

Everything in them is text that may be tokenized: not blank where it is to be learned, valid Unicode, no
longer than a cell may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer; `context` is Alpaca's `input`, and empty elsewhere."""

    question: str
    answer: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is learned from its beginning to its end."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. An assistant's turn is learned, unless its weight is 0."""

    role: str  # system, user, assistant or tool
    content: str
    learned: bool = False
    calls: tuple[Mapping[str, Any], ...] = ()  # of tools: {"name", "arguments": object}
    name: str | None = None

    def told(self) -> dict[str, Any]:
        """As a chat template takes it."""
        written: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            written["tool_calls"] = [{"type": "function", "function": dict(call)} for call in self.calls]
        if self.name is not None:
            written["name"] = self.name
        return written


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in their order; at least one of them is learned."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Example = Pair | Text | Conversation
