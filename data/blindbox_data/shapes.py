"""
Which columns of a row are meant, and how the row becomes an example, or what is wrong with it.

A caller names the columns, or names none; then the first row tells its shape. A row that cannot be used has a
`Fault`; it is counted and told by its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal

from .errors import DataError, listed, near, nearest, shown
from .values import Conversation, Example, Message, Pair, Text

MOST_IN_A_CELL: Final = 1 << 20
"""Characters of one text that is to be learned."""
MOST_MESSAGES: Final = 1024

Kind = Literal["messages", "sharegpt", "prompt", "alpaca", "question", "text"]

KNOWN: Final = (
    '"messages" (chat); "prompt" and "completion"; "instruction", "output" and maybe "input" (Alpaca); '
    '"question" and "answer"; "text"'
)


class Fault(Enum):
    """Why a row cannot be used: in a word, and in words that follow `3 are …`."""

    MISSING = ("missing_column", "without one of the columns")
    NULL = ("null_value", "null")
    EMPTY = ("empty_text", "empty or blank")
    TYPE = ("wrong_type", "neither text nor a number")
    LONG = ("too_many_tokens", f"longer than {MOST_IN_A_CELL} characters")
    UNICODE = ("invalid_encoding", "not valid Unicode")
    NO_MESSAGES = ("missing_messages_list", "without a list of messages")
    NO_OBJECT = ("data_type", "with a message that is no object")
    NO_ROLE = ("message_missing_key", "with a message without a role or a content")
    UNKNOWN_KEY = ("message_unrecognized_key", "with a message that has a field nobody knows")
    UNKNOWN_ROLE = ("unrecognized_role", "with a role that is not system, user, assistant or tool")
    NO_CONTENT = ("missing_content", "with a message whose content is no text, or empty")
    NO_ANSWER = (
        "example_missing_assistant_message",
        "without an assistant's message that may be learned",
    )
    BAD_WEIGHT = ("invalid_weight", "with a weight that is not 0 or 1")
    BAD_CALLS = ("invalid_tool_calls", "with tools, or calls of tools, that are not as OpenAI writes them")
    MANY_MESSAGES = ("too_many_messages", f"with more than {MOST_MESSAGES} messages")

    @property
    def code(self) -> str:
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Shape:
    """
    How rows become examples, by the names of their columns in this file.

    `question` is the prompt, instruction, text or list of messages; `answer` is empty where there is none;
    `more` is Alpaca's input, or the tools of a conversation.
    """

    kind: Kind
    question: str
    answer: str = ""
    more: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All that is read."""
        return tuple(dict.fromkeys(name for name in (self.question, self.answer, self.more) if name))

    @property
    def nested(self) -> tuple[str, ...]:
        """Those that may hold lists and objects."""
        if self.kind not in ("messages", "sharegpt"):
            return ()
        return tuple(name for name in (self.question, self.more) if name)

    def example(self, row: Mapping[str, Any]) -> Example | Fault:
        """A row as an example, or why it is none."""
        if self.nested:
            return _conversation(row, self)
        question = _cell(row, self.question)
        if isinstance(question, Fault):
            return question
        if not self.answer:
            return Text(question)
        answer = _cell(row, self.answer)
        if isinstance(answer, Fault):
            return answer
        if not self.more:
            return Pair(question, answer)
        context = _cell(row, self.more)
        if context in (Fault.EMPTY, Fault.NULL, Fault.MISSING):
            context = ""
        return context if isinstance(context, Fault) else Pair(question, answer, context)

    @classmethod
    def of(cls, columns: Iterable[str], question: str | None, answer: str | None) -> Shape:
        """The shape that is asked for, or the one that these columns have; raises `DataError`."""
        names = list(columns)
        if question is None and answer is None:
            return _recognised(names)
        if question is None or answer is None:
            param = "question_column" if question is None else "answer_column"
            raise DataError(
                f"{param} is not said, but the other column is. Name both (the same twice for plain text), "
                "or neither, and the columns are found by their names.",
                code="missing_field",
                param=param,
            )
        for param, name in (("question_column", question), ("answer_column", answer)):
            if name not in names:
                raise DataError(
                    f'There is no column "{shown(name)}".{nearest(name, names)} The columns are: '
                    f"{listed(names)}.",
                    code="missing_column",
                    param=param,
                )
        if question == answer:
            # The list of messages of a chat is no text, whatever it is called; but it is all of the row.
            return cls("messages", question) if question == "messages" else cls("text", question)
        return cls("question", question, answer)


_PAIRS: Final[tuple[tuple[Kind, str, str, str], ...]] = (
    ("prompt", "prompt", "completion", ""),
    ("alpaca", "instruction", "output", "input"),
    ("question", "question", "answer", ""),
)


def _recognised(names: list[str]) -> Shape:
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(name.casefold().strip(), name)
    for kind, column in (("messages", "messages"), ("sharegpt", "conversations")):
        if column in by_name:
            found: Kind = "messages" if kind == "messages" else "sharegpt"
            return Shape(found, by_name[column], more=by_name.get("tools", ""))
    for kind, question, answer, more in _PAIRS:
        if question in by_name and answer in by_name:
            return Shape(kind, by_name[question], by_name[answer], by_name.get(more, "") if more else "")
    if "chosen" in by_name and "rejected" in by_name:
        why = (
            "Rows of preferences (chosen, rejected) are not trained on here; name the columns of a question "
        )
        why += "and of the answer that is to be learned with question_column and answer_column."
    elif "text" in by_name:
        return Shape("text", by_name["text"])
    else:
        why = f"{_nearest_shape(names)}Say which columns are meant with question_column and answer_column "
        why += f"(the same one for plain text), or name them as one of the known shapes has them: {KNOWN}."
    there = f" The columns are: {listed(names)}." if names else " The first row has none."
    raise DataError(
        f"The columns do not say what is question and what is answer.{there} {why}",
        code="missing_column",
        param="question_column",
    )


_NEEDED: Final = (
    *((question, answer) for _, question, answer, _ in _PAIRS),
    *(("messages",), ("conversations",), ("text",)),
)
"""The columns that each known shape needs."""
_ALIKE: Final = 0.8
"""So much alike is a slip of the pen; "context" is not "text"."""


def _nearest_shape(names: list[str]) -> str:
    """Which known shape was perhaps meant, and what keeps these columns from having it; "" where none was."""
    known = {wanted: near(wanted, names, _ALIKE) for needed in _NEEDED for wanted in needed}
    # The most columns of it that are there or nearly; of two, the one that lacks fewer.
    meant = max(_NEEDED, key=lambda needed: (sum(known[each] is not None for each in needed), -len(needed)))
    slips, there, missing = [], [], []
    for wanted in meant:
        found = known[wanted]
        if found is None:
            missing.append(f'"{wanted}"')
        elif found.casefold().strip() == wanted:
            there.append(f'"{shown(found)}"')
        else:
            slips.append(f'"{wanted}" by "{shown(found)}"')
    if slips:
        then = f" Then {missing[0]} is missing." if missing else ""
        return f"Did you mean {' and '.join(slips)}?{then} "
    return f"With {there[0]}, {missing[0]} is missing. " if there and missing else ""


# --- cells ------------------------------------------------------------------------------------


def _cell(row: Mapping[str, Any], column: str) -> str | Fault:
    if column not in row:
        return Fault.MISSING
    value = row[column]
    if value is None or value != value:  # Parquet writes a missing number as NaN
        return Fault.NULL
    if isinstance(value, int | float):
        value = json.dumps(value)
    elif isinstance(value, Decimal):
        value = str(value)
    if not isinstance(value, str):
        return Fault.TYPE
    return _text(value)


def _text(value: str, *, blank: bool = False) -> str | Fault:
    if len(value) > MOST_IN_A_CELL:
        return Fault.LONG
    if not blank and not value.strip():
        return Fault.EMPTY
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return Fault.UNICODE
    return value


# --- conversations ----------------------------------------------------------------------------

_FIELDS: Final = {
    "role",
    "content",
    "weight",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "refusal",
}
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SHAREGPT: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class _Unusable(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.code)
        self.fault = fault


def _conversation(row: Mapping[str, Any], shape: Shape) -> Conversation | Fault:
    try:
        listed = _list(row.get(shape.question), Fault.NO_MESSAGES)
        if not listed:
            return Fault.NO_MESSAGES
        if len(listed) > MOST_MESSAGES:
            return Fault.MANY_MESSAGES
        read = _message if shape.kind == "messages" else _turn
        messages = tuple(read(each) for each in listed)
        tools = _tools(row.get(shape.more or "tools"))  # the first row may have none, and a later one some
    except _Unusable as unusable:
        return unusable.fault
    # What follows the last turn that is learned would only be read.
    last = max((at for at, each in enumerate(messages) if each.learned), default=None)
    if last is None:
        return Fault.NO_ANSWER
    if sum(len(each.content) for each in messages) > MOST_IN_A_CELL:
        return Fault.LONG
    return Conversation(messages[: last + 1], tools)


def _list(value: Any, fault: Fault) -> list[Any]:
    if isinstance(value, str):  # as CSV and many a Parquet file write it
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _Unusable(fault) from None
    if not isinstance(value, list):
        raise _Unusable(fault)
    return value


def _message(given: Any) -> Message:
    if not isinstance(given, Mapping):
        raise _Unusable(Fault.NO_OBJECT)
    # Parquet gives every message the fields that any of them has.
    message = {name: value for name, value in given.items() if value is not None or name == "content"}
    if "role" not in message or ("content" not in message and "tool_calls" not in message):
        raise _Unusable(Fault.NO_ROLE)
    if not _FIELDS.issuperset(message):
        raise _Unusable(Fault.UNKNOWN_KEY)
    role = _ROLES.get(message["role"]) if isinstance(message["role"], str) else None
    if role is None:
        raise _Unusable(Fault.UNKNOWN_ROLE)
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _Unusable(Fault.BAD_WEIGHT)
    calls = _calls(message) if role == "assistant" else ()
    content = _content(message.get("content"), blank=bool(calls) or role == "tool")
    name = message.get("name")
    if name is not None and (not isinstance(name, str) or isinstance(_text(name), Fault)):
        raise _Unusable(Fault.NO_CONTENT)
    return Message(role, content, role == "assistant" and weight == 1, calls, name)


def _turn(given: Any) -> Message:
    """As ShareGPT writes it."""
    if not isinstance(given, Mapping):
        raise _Unusable(Fault.NO_OBJECT)
    if "from" not in given or "value" not in given:
        raise _Unusable(Fault.NO_ROLE)
    role = _SHAREGPT.get(given["from"]) if isinstance(given["from"], str) else None
    if role is None:
        raise _Unusable(Fault.UNKNOWN_ROLE)
    return Message(role, _content(given["value"], blank=False), role == "assistant")


def _content(content: Any, *, blank: bool) -> str:
    if content is None and blank:
        return ""
    if isinstance(content, list):  # of parts, of which only text can be read
        texts = [each.get("text") if isinstance(each, Mapping) else None for each in content]
        if not all(isinstance(text, str) for text in texts):
            raise _Unusable(Fault.NO_CONTENT)
        content = "\n".join(map(str, texts))
    if not isinstance(content, str):
        raise _Unusable(Fault.NO_CONTENT)
    text = _text(content, blank=blank)
    if isinstance(text, Fault):
        raise _Unusable(Fault.NO_CONTENT if text is Fault.EMPTY else text)
    return text


def _calls(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    given = message.get("tool_calls")
    if given is None and "function_call" in message:
        given = [{"function": message["function_call"]}]
    calls = []
    for each in _list([] if given is None else given, Fault.BAD_CALLS):
        function = each.get("function") if isinstance(each, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _Unusable(Fault.BAD_CALLS)
        calls.append({"name": function["name"], "arguments": _arguments(function.get("arguments"))})
    _writable(calls)
    return tuple(calls)


def _arguments(given: Any) -> Any:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise _Unusable(Fault.BAD_CALLS) from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _Unusable(Fault.BAD_CALLS)
    return given


def _tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    if given is None or given == "":
        return ()
    tools = _list(given, Fault.BAD_CALLS)
    if not all(isinstance(each, Mapping) for each in tools):
        raise _Unusable(Fault.BAD_CALLS)
    _writable(tools)
    return tuple(tools)


def _writable(value: Any) -> None:
    """Refuse what a template could not write into a prompt."""
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        raise _Unusable(Fault.BAD_CALLS) from None
    text = _text(written, blank=True)
    if isinstance(text, Fault):
        raise _Unusable(text)
