"""
How an answer's text is read where it may hold calls of tools: text outside the tags, calls between them.

What is certain is handed on as it comes, in OpenAI's `delta`s; what may be the beginning of a tag is held
back until it is known not to be. That calls are well-formed JSON is the engine's work (`tools.py` asks for
it); a text that is not is shown as text and breaks nothing.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Final

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"

Delta = dict[str, Any]
"""What an answer grew by, as OpenAI's `delta`: `{"content": …}` or `{"tool_calls": [{…}]}`."""


class Reader:
    """Reads one answer as it comes: text outside the tags, calls between them."""

    def __init__(self, *, calling: bool = False, tools: bool = True) -> None:
        self.called = 0
        self._tools = tools
        self._call = _Call(0) if calling else None
        self._held = ""

    @classmethod
    def plain(cls) -> Reader:
        """For an answer that is text whatever it holds."""
        return cls(tools=False)

    def read(self, text: str) -> Iterator[Delta]:
        """The deltas that became certain by this text."""
        if not self._tools:
            if text:
                yield {"content": text}
            return
        self._held += text
        while self._held:
            if self._call is None:
                before, tag, after = self._held.partition(BEGIN)
                if not tag:
                    certain = _certain(before, BEGIN)
                    self._held = before[certain:]
                    if certain:
                        yield {"content": before[:certain]}
                    return
                if before.strip():
                    yield {"content": before.rstrip()}
                self._call, self._held = _Call(self.called), after
            else:
                inside, tag, after = self._held.partition(END)
                certain = len(inside) if tag else _certain(inside, END)
                yield from self._call.read(inside[:certain])
                if not tag:
                    self._held = inside[certain:]
                    return
                yield from self._ended(whole=True)
                self._held = after.lstrip()

    def end(self, *, whole: bool) -> Iterator[Delta]:
        """What was held back; `whole` says that the answer came to its own end."""
        held, self._held = self._held, ""
        if self._call is not None:
            yield from self._call.read(held)
            yield from self._ended(whole=whole)
        elif held and not (self.called and not held.strip()):
            yield {"content": held}

    def _ended(self, *, whole: bool) -> Iterator[Delta]:
        if self._call is not None:
            yield from self._call.end(whole=whole)
            self.called += self._call.begun
            self._call = None


def _certain(text: str, tag: str) -> int:
    """How much of the text is neither the beginning of the tag nor the white space before it."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-size:]):
            text = text[:-size]
            break
    return len(text.rstrip())


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')


class _Call:
    """One call, from `{"name": …` to its last brace: the arguments go on as they come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._text = ""
        self.begun = False

    def read(self, text: str) -> Iterator[Delta]:
        self._text += text
        if not self.begun:
            head = _HEAD.match(self._text)
            if head is None:
                return
            self.begun = True
            self._text = self._text[head.end() :]
            function = {"name": json.loads(head[1]), "arguments": ""}
            yield self._delta({"id": f"call_{secrets.token_hex(12)}", "type": "function"}, function)
        # The braces at the end may be the arguments' own or the call's; which, the next text tells.
        at = len(self._text.rstrip("} \t\r\n"))
        if at:
            yield self._delta({}, {"arguments": self._text[:at]})
        self._text = self._text[at:]

    def end(self, *, whole: bool) -> Iterator[Delta]:
        rest = self._text.rstrip()
        if whole and rest.endswith("}"):
            rest = rest[:-1].rstrip()  # the call's own brace
        if self.begun and rest:
            yield self._delta({}, {"arguments": rest})
        elif not self.begun and self._text.strip():
            yield {"content": self._text}

    def _delta(self, more: dict[str, Any], function: dict[str, Any]) -> Delta:
        return {"tool_calls": [{"index": self._index, **more, "function": function}]}
