"""An engine that says what a test tells it to, can do all that an engine can, and remembers its work."""

from __future__ import annotations

from dataclasses import replace

from enclave_app.engines import Card, Work
from enclave_app.engines.echo import EchoEngine

ALL = frozenset({"logit_bias", "beams", "schema", "triggered_schema"})


class SayingEngine(EchoEngine):
    """Answers `says`, whatever was asked; without it, it echoes."""

    def __init__(
        self,
        says: str | None = None,
        *,
        abilities: frozenset[str] = ALL,
        context: int | None = None,
        most_logprobs: int = 20,
        rate: float = 0.0,
    ) -> None:
        super().__init__(rate=rate)
        self.says = says
        self.asked: list[Work] = []
        self._card = replace(
            super().card(), abilities=abilities, context=context, most_logprobs=most_logprobs
        )

    def card(self) -> Card:
        return self._card

    def start(self, key: int, work: Work) -> None:
        self.asked.append(work)
        said = work if self.says is None else replace(work, ids=tuple(self.says.encode()))
        super().start(key, said)

    @property
    def last(self) -> Work:
        """The latest that it was asked."""
        return self.asked[-1]

    @property
    def prompt(self) -> str:
        """… as text."""
        return bytes(self.last.ids).decode()
