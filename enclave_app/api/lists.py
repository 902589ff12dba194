"""
Lists as OpenAI gives them: which part is asked for, and that part.

What is in a list, and what else one may ask of it, is known where its route is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusals import NotFound, Refusal, listed, nearest


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    after: str | None
    limit: int
    newest_first: bool = True

    @classmethod
    def of(
        cls, query: Mapping[str, str], *, most: int, default: int | None = None, also: tuple[str, ...] = ()
    ) -> Page:
        """
        Read what lists take; parameters that are neither of them nor in `also` are refused.

        Where no limit is asked for it is `default`, or else `most`. "order" is read where `also` has it.
        """
        known = ("after", "limit", *also)
        for name in query:
            if name not in known:
                message = (
                    f'There is no parameter "{name[:80]}".{nearest(name, known)} There are: {listed(known)}.'
                )
                raise Refusal(message, code="unknown_field", param=name[:80])
        limit = query.get("limit", str(most if default is None else default))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= most):
            message = f"limit may be a whole number from 1 to {most}."
            raise Refusal(message, code="invalid_value", param="limit")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Refusal('order may be "asc" or "desc".', code="invalid_value", param="order")
        return cls(query.get("after"), int(limit[:9]), order == "desc")

    def told(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """This part of what was found."""
        start = 0
        if self.after is not None:
            start = next((at for at, each in enumerate(found, start=1) if each["id"] == self.after), -1)
            if start < 0:
                message = "There is nothing of this id to go on after; it may have been deleted."
                raise NotFound(message, code="not_found", param="after")
        data = found[start : start + self.limit]
        return {
            "object": "list",
            "data": data,
            "has_more": start + self.limit < len(found),
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
