"""
A conversation as clients send it, and as a chat template reads it.

Content may be a text or a list of text parts; `developer` is today's word for `system`. Calls of tools that
were made before, and what came of them, are written for models whose template knows them, and otherwise as
text in the form of `calls.py`. Pictures and sound are refused: no model here sees or hears.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import from_json

from ..refusals import Refusal
from .bodies import Body, Several
from .calls import BEGIN, END

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Part(Body):
    """A part of a content; what else OpenAI has is taken in, to be refused by name."""

    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    prompt_cache_breakpoint: Any = None


class Called(Body):
    """The function of an earlier call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class Call(Body):
    """An earlier call of a tool, as an answer told it."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: Called
    index: int | None = None  # left there by clients that joined a stream


class Message(Body):
    """One message; the fields after `tool_call_id` come back from answers and say nothing to the model."""

    role: Role
    content: str | Several[Part] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Several[Call] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    function_call: Called | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


def conversation(messages: list[Message], *, knows_tools: bool) -> list[dict[str, Any]]:
    """The messages as a template takes them; `knows_tools` says whether it can write calls and results."""
    written: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        text = _text(message, f"messages[{at}]")
        if message.role in ("tool", "function"):
            _answered(written, message, text, knows_tools)
        elif message.role == "assistant":
            written.append(_assistant(message, text, knows_tools))
        else:
            role = "system" if message.role == "developer" else message.role
            written.append({"role": role, "content": text})
    return written


def _text(message: Message, where: str) -> str:
    content = message.content
    if content is None:
        called = message.tool_calls or message.function_call or message.refusal
        if message.role != "assistant" or not called:
            raise Refusal(
                f'The field "{where}.content" is needed.', code="missing_field", param=f"{where}.content"
            )
        return message.refusal or ""
    if isinstance(content, str):
        return content
    texts = []
    for at, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if part.type not in ("text", "refusal"):
            raise Refusal(
                f'{where}.content[{at}] is of the type "{part.type}"; the models here read text only.',
                code="unsupported_content",
                param=f"{where}.content[{at}].type",
            )
        if text is None:
            param = f"{where}.content[{at}].{part.type}"
            raise Refusal(f'The field "{param}" is needed.', code="missing_field", param=param)
        texts.append(text)
    return "\n".join(texts)


def _assistant(message: Message, text: str, knows_tools: bool) -> dict[str, Any]:
    calls = [call.function for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append(message.function_call)
    if not calls:
        return {"role": "assistant", "content": text}
    told = [{"name": call.name, "arguments": _read(call.arguments)} for call in calls]
    if knows_tools:
        functions = [{"type": "function", "function": call} for call in told]
        return {"role": "assistant", "content": text, "tool_calls": functions}
    lines = [f"{BEGIN}{json.dumps(call, ensure_ascii=False)}{END}" for call in told]
    return {"role": "assistant", "content": "\n".join([text, *lines] if text else lines)}


def _answered(written: list[dict[str, Any]], message: Message, text: str, knows_tools: bool) -> None:
    if knows_tools:
        named = {"name": message.name} if message.name else {}
        written.append({"role": "tool", "content": text, **named})
        return
    told = f"<tool_response>{text}</tool_response>"
    last = written[-1] if written else None
    # Results of calls that were made together are one turn: many templates want the roles to take turns.
    if last is not None and last["role"] == "user" and last["content"].endswith("</tool_response>"):
        last["content"] += f"\n{told}"
    else:
        written.append({"role": "user", "content": told})


def _read(arguments: str) -> Any:
    """Templates want the arguments as they are, not as text; what is no JSON stays text."""
    try:
        # Not json.loads: this one refuses lone surrogates, and what is nested too deeply to be written again.
        return from_json(arguments, allow_inf_nan=False)
    except ValueError:
        return arguments
