"""
How a question and an answer become tokens: one object for training and for serving.

A model that was tuned under one template and asked under another answers badly and never stops; so the
template is chosen once, its digest travels in the adapter, and serving uses the adapter's. The mask of what
is learned is a number of tokens, never the result of a text search. Nothing heavy is imported: a tokenizer is
whatever has the few methods named in `Tokenizer`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

import blindbox_data as data

ALPACA: Final = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Stanford Alpaca's prompts, to the letter: models were tuned on them."""

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
    ALPACA = "alpaca"  # Below is an instruction … ### Response:
    DIALOGUE = "dialogue"  # User: … Assistant: … : a chat, for a model that has no chat template
    TEXT = "text"  # the text itself, nothing around it

    @classmethod
    def for_tuning(cls, tokenizer: Tokenizer, *, plain_text: bool) -> Template:
        """What to train with: one column is text, two are a dialogue in the model's own form."""
        if plain_text:
            return cls.TEXT
        return cls.CHAT if tokenizer.chat_template else cls.QUESTION

    @classmethod
    def for_shape(cls, tokenizer: Tokenizer, shape: data.Shape) -> Template:
        """What to train rows of this shape with."""
        if shape.kind == "alpaca":
            return cls.ALPACA
        if shape.nested:
            return cls.CHAT if tokenizer.chat_template else cls.DIALOGUE
        return cls.for_tuning(tokenizer, plain_text=not shape.answer)

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
        if self is Template.ALPACA:
            shape += _render(self, "{question}", "{context}")
        return hashlib.sha256(f"blindbox/template/v1\n{self.value}\n{shape}".encode()).hexdigest()

    def prompt(self, tokenizer: Tokenizer, question: str, context: str = "") -> list[int]:
        """
        The tokens up to where the answer begins.

        `context` is Alpaca's input; elsewhere it stands below the question.
        """
        # Of a chat, the template has written the special tokens already.
        return _ids(
            tokenizer(
                self.written(tokenizer, question, context), add_special_tokens=self is not Template.CHAT
            )
        )

    def written(self, tokenizer: Tokenizer, question: str, context: str = "") -> str:
        """The text up to where the answer begins."""
        if self is Template.CHAT:
            return _chat(tokenizer, [{"role": "user", "content": _below(question, context)}])
        return _render(self, question, context)

    def conversation(
        self,
        tokenizer: Tokenizer,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """
        The tokens of a conversation, up to where the next answer begins.

        A model without a chat template reads the messages one below the other, each after its role; a single
        one is asked as `prompt` asks it. In Alpaca's form the last message is the instruction, and what came
        before it the input.
        """
        if self is Template.CHAT:
            return _ids(tokenizer(_chat(tokenizer, messages, tools), add_special_tokens=False))
        if len(messages) == 1 and self is not Template.DIALOGUE:
            return self.prompt(tokenizer, messages[0]["content"])
        if self is Template.ALPACA:
            before = "\n".join(map(_line, messages[:-1]))
            return self.prompt(tokenizer, messages[-1]["content"], before)
        return _ids(tokenizer("\n".join([*map(_line, messages), "Assistant:"]), add_special_tokens=True))

    def example(
        self, tokenizer: Tokenizer, question: str, answer: str, *, end: int | None, most: int
    ) -> Example:
        """A question and its answer as they are learned; see `example_of`."""
        pair = data.Text(question) if self is Template.TEXT else data.Pair(question, answer)
        return self.example_of(tokenizer, pair, end=end, most=most)

    def example_of(
        self,
        tokenizer: Tokenizer,
        example: data.Example,
        *,
        end: int | None,
        most: int,
        answer_only: bool = True,
    ) -> Example:
        """
        A row as it is learned: the prompt is read, the answer and the end token are learned.

        Prompt and answer are tokenized apart, exactly as they meet in serving. A row longer than `most`
        loses the end of its answer, and then the end token too: nothing ends there. Without `answer_only`
        prompts are learned as well. Of a conversation each assistant's turn is learned but those of weight 0,
        which stay unlearned in any case; raises `Untold` where the template cannot hold it.
        """
        parts = self._parts(tokenizer, example, end, most)
        ids, labels = array("i"), array("i")  # a list would take nine times the memory
        for part in parts:
            ids.extend(part.ids)
            learned = part.learned or (part.asked and not answer_only)
            labels.extend(part.ids if learned else [IGNORED] * len(part.ids))
        return Example(ids[:most], labels[:most], cut=len(ids) > most, length=len(ids))

    def _parts(self, tokenizer: Tokenizer, example: data.Example, end: int | None, most: int) -> list[_Part]:
        if isinstance(example, data.Conversation):
            return self._turns(tokenizer, example, end, most)
        if isinstance(example, data.Text):
            return [_Part(_ended(_ids(tokenizer(example.text, add_special_tokens=True)), end), learned=True)]
        prompt = self.prompt(tokenizer, example.question, example.context)
        # The answer's leading space belongs to the answer, as tokenizers join it to the word.
        spaced = self in (Template.QUESTION, Template.DIALOGUE)
        text = f" {example.answer}" if spaced else example.answer
        answer = _ended(_ids(tokenizer(text, add_special_tokens=False)), end)
        return [_Part(prompt), _Part(answer, learned=True)]

    def _turns(
        self, tokenizer: Tokenizer, talk: data.Conversation, end: int | None, most: int
    ) -> list[_Part]:
        """
        The conversation cut at the beginnings and ends of the assistant's turns.

        Where a turn lies is seen by writing the conversation up to it, which must be how the whole begins. A
        template that writes earlier turns in another way once they are past has no one text for all of them;
        then the last learned turn alone is learned, as it would be asked.
        """
        messages = [message.told() for message in talk.messages]
        tools = [dict(tool) for tool in talk.tools]
        if self is Template.CHAT:
            if tools and "tools" not in str(tokenizer.chat_template):
                raise Untold("has tools, and the chat template of this model knows none")
            whole = _chat(tokenizer, messages, tools, asking=False)
        elif tools or any(message.calls or message.role == "tool" for message in talk.messages):
            raise Untold("has tools, and this model has no chat template to write them with")
        else:
            whole = "\n".join(map(_line, messages))
        spoken = [at for at, message in enumerate(talk.messages) if message.role == "assistant"]
        parts: list[_Part] = []
        at = count = 0
        for turn in spoken:
            upto, through = self._span(tokenizer, messages, tools, turn)
            if not (whole.startswith(upto) and whole.startswith(through) and through.startswith(upto)):
                upto, through = self._span(tokenizer, messages, tools, spoken[-1])
                if not through.startswith(upto):
                    raise Untold("is written by the chat template so that no turn's beginning is seen")
                return self._turn(tokenizer, "", upto, through, end, last=True)
            learned = talk.messages[turn].learned
            pieces = self._turn(
                tokenizer, whole[:at], upto, through, end, last=turn == spoken[-1], learned=learned
            )
            parts += pieces
            at = len(through)
            count += sum(len(piece.ids) for piece in pieces)
            if count > most:
                break  # what follows would be cut off
        return parts

    def _turn(
        self,
        tokenizer: Tokenizer,
        before: str,
        upto: str,
        through: str,
        end: int | None,
        *,
        last: bool,
        learned: bool = True,
    ) -> list[_Part]:
        """What leads up to a turn, and the turn: the text `through`, of which `before` has been told."""
        # A chat template has written the special tokens already; elsewhere they stand at the very beginning.
        special = self is not Template.CHAT and not before
        asked = _Part(_ids(tokenizer(upto[len(before) :], add_special_tokens=special)))
        answer = _ids(tokenizer(through[len(upto) :], add_special_tokens=False))
        if not learned:
            return [asked, _Part(answer, asked=False)]
        if end is not None and end in answer:
            # What the template writes behind the end token is never asked for.
            ends = len(answer) - answer[::-1].index(end)
            rest = [] if last else [_Part(answer[ends:])]
            return [asked, _Part(answer[:ends], learned=True), *rest]
        return [asked, _Part(_ended(answer, end) if last else answer, learned=True)]

    def _span(
        self, tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]], at: int
    ) -> tuple[str, str]:
        """What is written up to the turn `at`, and up to its end."""
        if self is Template.CHAT:
            return (
                _chat(tokenizer, messages[:at], tools),
                _chat(tokenizer, messages[: at + 1], tools, asking=False),
            )
        lines = [_line(message) for message in messages[: at + 1]]
        return "\n".join([*lines[:-1], "Assistant:"]), "\n".join(lines)


class Untold(Exception):
    """An example that this template cannot write; the message goes on after `row 3 …`."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some tokens of a row: learned, or read; `asked` ones are learned where prompts are."""

    ids: list[int]
    learned: bool = False
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens; `labels` has the same length, with `IGNORED` where nothing is learned."""

    ids: Sequence[int]
    labels: Sequence[int]
    cut: bool
    length: int = 0  # tokens there were before it was cut

    @property
    def learned(self) -> int:
        """How many tokens of it are learned; the first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def end_of(tokenizer: Any) -> int | None:
    """
    The end token that a tuned model learns, out of those that end an answer in serving.

    It is the one that the chat template writes after an answer; without one, the tokenizer's own.
    """
    ends: frozenset[int] = tokenizer.ends
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = _chat(tokenizer, turns, asking=False)
        found = [token for token in _ids(tokenizer(written, add_special_tokens=False)) if token in ends]
        if found:
            return found[-1]
    special: Mapping[str, str] = getattr(tokenizer, "special", {})
    own = _ids(tokenizer(special["eos_token"], add_special_tokens=False)) if "eos_token" in special else []
    return own[0] if len(own) == 1 and own[0] in ends else min(ends, default=None)


def _chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    asking: bool = True,
) -> str:
    more = {"tools": tools} if tools else {}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking, **more))


def _render(template: Template, question: str, context: str = "") -> str:
    if template is Template.ALPACA:
        # Filled in by replacing, in this order: neither text is read as a template itself.
        if not context:
            return ALPACA.replace("{instruction}", question)
        before, after = ALPACA_WITH_INPUT.split("{input}")
        return before.replace("{instruction}", question) + context + after
    question = _below(question, context)
    if template is Template.QUESTION:
        return f"### Question: {question}\n ### Answer:"
    return f"User: {question}\nAssistant:" if template is Template.DIALOGUE else question


def _below(question: str, context: str) -> str:
    return f"{question}\n{context}" if context else question


def _line(message: Mapping[str, Any]) -> str:
    return f"{message['role'].capitalize()}: {message['content']}"


def _ended(ids: list[int], end: int | None) -> list[int]:
    return [*ids, end] if end is not None and (not ids or ids[-1] != end) else ids


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]
