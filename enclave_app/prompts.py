"""
How a question and an answer become tokens: one object for training and for serving.

A model that was tuned under one template and asked under another answers badly and never stops; so the
template is chosen once, its digest travels in the adapter, and serving uses the adapter's. The mask of what
is learned is a number of tokens, never the result of a text search. Nothing heavy is imported: a tokenizer is
whatever has the few methods named in `Tokenizer`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

IGNORED = -100
"""The label of a token that is read but not learned (PyTorch's `ignore_index`)."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **more: Any
    ) -> Any: ...


class Template(Enum):
    """The shapes a prompt can have."""

    CHAT = "chat"  # the tokenizer's own chat template, one user turn
    QUESTION = "question"  # ### Question: … ### Answer: …
    TEXT = "text"  # the text itself, nothing around it

    @classmethod
    def for_tuning(cls, tokenizer: Tokenizer, *, plain_text: bool) -> Template:
        """What to train with: one column is text, two are a dialogue in the model's own form."""
        if plain_text:
            return cls.TEXT
        return cls.CHAT if tokenizer.chat_template else cls.QUESTION

    @classmethod
    def for_base(cls, tokenizer: Tokenizer) -> Template:
        """What to ask an untuned model with."""
        return cls.CHAT if tokenizer.chat_template else cls.TEXT

    @property
    def joint(self) -> str:
        """What stands between prompt and answer where both are shown as one text."""
        return "" if self is Template.TEXT else "\n"

    def digest(self, tokenizer: Tokenizer) -> str:
        """Names the template exactly; two tokenizers with other chat templates give another digest."""
        shape = str(tokenizer.chat_template) if self is Template.CHAT else _render(self, "{question}")
        return hashlib.sha256(f"blindbox/template/v1\n{self.value}\n{shape}".encode()).hexdigest()

    def prompt(self, tokenizer: Tokenizer, question: str) -> list[int]:
        """The tokens up to where the answer begins."""
        if self is Template.CHAT:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            # The template has written the special tokens already.
            return _ids(tokenizer(rendered, add_special_tokens=False))
        return _ids(tokenizer(_render(self, question), add_special_tokens=True))

    def conversation(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """
        The tokens of a conversation, up to where the next answer begins.

        A model without a chat template reads the messages one below the other, each after its role; a single
        one is asked as `prompt` asks it.
        """
        if self is Template.CHAT:
            more = {"tools": tools} if tools else {}
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **more
            )
            return _ids(tokenizer(rendered, add_special_tokens=False))
        if len(messages) == 1:
            return self.prompt(tokenizer, messages[0]["content"])
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return _ids(tokenizer("\n".join([*lines, "Assistant:"]), add_special_tokens=True))

    def example(
        self, tokenizer: Tokenizer, question: str, answer: str, *, end: int | None, most: int
    ) -> Example:
        """
        A row as it is learned: the prompt is read, the answer and the end token are learned.

        Prompt and answer are tokenized apart, exactly as they meet in serving. A row longer than `most`
        loses the end of its answer, and then the end token too: nothing ends there.
        """
        if self is Template.TEXT:
            prompt: list[int] = []
            learned = _ids(tokenizer(question, add_special_tokens=True))
        else:
            prompt = self.prompt(tokenizer, question)
            text = answer if self is Template.CHAT else f" {answer}"
            learned = _ids(tokenizer(text, add_special_tokens=False))
        if end is not None and (not learned or learned[-1] != end):
            learned.append(end)
        ids, labels = prompt + learned, [IGNORED] * len(prompt) + learned
        return Example(tuple(ids[:most]), tuple(labels[:most]), cut=len(ids) > most)


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens; `labels` has the same length, with `IGNORED` where nothing is learned."""

    ids: Sequence[int]
    labels: Sequence[int]
    cut: bool

    @property
    def learned(self) -> int:
        """How many tokens of it are learned; the first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def _render(template: Template, question: str) -> str:
    # The answer's leading space belongs to the answer, as tokenizers join it to the word.
    return f"### Question: {question}\n ### Answer:" if template is Template.QUESTION else question


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]
