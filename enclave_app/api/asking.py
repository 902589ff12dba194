"""
From a caller's wish to an answer that is being written: the one way from a route to an engine.

A prompt that the model cannot take is refused here, in the words of the field it came in; so is one that
would wait too long, before anything was done for it.
"""

from __future__ import annotations

from typing import Any

from ..catalogue import Served
from ..engines import Card, Sampling, Work
from ..engines.desk import Answer
from ..refusals import Refusal
from ..tenants import Tenant
from .rooms import Rooms


class PromptReader:
    """
    A model's tokenizer as `Template` uses it, which does not begin with what cannot fit into the model.

    To read a megabyte takes it a second and more of one core. Raises `Refusal`.
    """

    def __init__(self, served: Served, card: Card, param: str) -> None:
        self._words = served.tokenizer
        self._tokens = card.room if card.context is None else min(card.context, card.room)
        self._param = param
        self.chat_template = self._words.chat_template

    def apply_chat_template(self, conversation: list[dict[str, Any]], **how: Any) -> Any:
        """As the tokenizer renders it."""
        return self._words.apply_chat_template(conversation, **how)

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        if len(text) > self._tokens * self._words.longest:
            raise Refusal(
                f"The prompt has {len(text)} characters, and the model takes {self._tokens} tokens of up to "
                f"{self._words.longest} characters each. Shorten the prompt.",
                code="context_length_exceeded",
                param=self._param,
            )
        return self._words(text, add_special_tokens=add_special_tokens)


async def ask(
    rooms: Rooms,
    asking: Tenant,
    served: Served,
    ids: list[int],
    sampling: Sampling,
    *,
    stops: tuple[str, ...] = (),
    param: str = "messages",
) -> Answer:
    """
    Queue one sequence; use the answer in an `async with`, which frees what it holds.

    Raises `Refusal`: the prompt (`param`) is empty or too long, or too many are waiting.
    """
    context = rooms.catalogue.card(served).context
    if not ids:
        raise Refusal(f"{param} has no tokens.", code="invalid_value", param=param)
    if context is not None and len(ids) + sampling.max_new_tokens > context:
        room = context - len(ids)
        shorter = f", or ask for fewer new tokens (at most {room})" if room > 0 else ""
        raise Refusal(
            f"The prompt has {len(ids)} tokens and the answer may have {sampling.max_new_tokens}; together "
            f"the model takes {context}. Shorten the prompt{shorter}.",
            code="context_length_exceeded",
            param=param,
        )
    version = ""
    if served.tuning is not None:
        await rooms.desk.tuned(served.source.name, served.tuning)
        version = served.tuning.version
    # No `await` from here on: a tuned model may be taken from memory while nobody asks it.
    work = Work(tuple(ids), sampling, tuning=version, owner=asking.id)
    try:
        return rooms.desk.ask(served.source.name, work, stops=stops)
    except Refusal as refusal:
        if refusal.status == 400 and refusal.param is None:
            refusal.param = param
        raise
