"""
Tools: how a model is told of them, and what holds its calls to their schemas. `calls.py` reads the calls.

A call is written `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the form that Hermes, Qwen and many
others were taught. A model whose chat template speaks of `tools` and of `<tool_call>` is told of them by its
template; any other, by a system message (`INTRODUCTION`). Where a call is demanded, the whole answer is the
JSON between the tags.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ..catalogue import Served
from ..engines import Card, Constraint
from ..prompts import Template
from ..refusals import Refusal, listed
from ..settings import Settings
from .bodies import Body, Several
from .calls import BEGIN, END, Reader
from .schemas import bounded
from .wishes import able

INTRODUCTION: Final = """\
You may call these functions, each described by a JSON object on a line of its own:
{functions}
To call one, write {begin}{{"name": NAME, "arguments": {{…}}}}{end} and nothing after it. \
What it returned comes in the next message, as <tool_response>…</tool_response>."""
MOST_TOOLS: Final = 128

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class Function(Body):
    """A function that a model may call."""

    name: Name
    description: Annotated[str, Field(max_length=16 << 10)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """`tools[…]`."""

    type: Literal["function"]
    function: Function


class Named(Body):
    """A function by its name."""

    name: Name


class Allowed(Body):
    """A tool by its name."""

    type: Literal["function"] = "function"
    function: Named


class AllowedTools(Body):
    """`tool_choice.allowed_tools`."""

    mode: Literal["auto", "required"]
    tools: Annotated[Several[Allowed], Field(min_length=1, max_length=MOST_TOOLS)]


class ToolChoice(Body):
    """`tool_choice`, where it is more than a word."""

    type: Literal["function", "allowed_tools"]
    function: Named | None = None
    allowed_tools: AllowedTools | None = None


class Toolbox:
    """The tools that may, or must, be called in one answer."""

    def __init__(self, told: list[Function], callable_: list[Function], *, demanded: bool, one: bool) -> None:
        self.told = told  # all that the model hears of
        self.callable = callable_  # those that it may call
        self.demanded = demanded  # the answer has to be a call
        self.one = one  # … and there may be one only

    @property
    def constraint(self) -> Constraint:
        """What the answer has to be, in the engine's words."""
        defs: dict[str, Any] = {}
        calls = []
        for at, function in enumerate(self.callable):
            arguments = _hoisted(function.parameters or {"type": "object"}, f"t{at}", defs)
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": function.name}, "arguments": arguments},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
        text = json.dumps({**schema, "$defs": defs} if defs else schema, ensure_ascii=False)
        return Constraint(text) if self.demanded else Constraint(text, BEGIN, END)

    def reader(self) -> Reader:
        """Reads one answer."""
        return Reader(calling=self.demanded)

    @property
    def stops(self) -> tuple[str, ...]:
        """Where an answer ends that may hold one call only."""
        return (END,) if self.one and not self.demanded else ()


def toolbox(
    tools: list[Tool] | None,
    choice: str | ToolChoice | None,
    *,
    one: bool,
    card: Card,
    settings: Settings,
) -> Toolbox | None:
    """The tools of a request, checked against each other and against what the engine can do."""
    functions = {tool.function.name: tool.function for tool in tools or ()}
    if tools is not None and (len(tools) > MOST_TOOLS or len(functions) != len(tools)):
        raise Refusal(
            f"tools may be up to {MOST_TOOLS}, each with a name of its own.",
            code="invalid_value",
            param="tools",
        )
    if not functions:
        if choice not in (None, "none", "auto"):
            raise Refusal(
                "tool_choice asks for a call, and there are no tools.",
                code="invalid_value",
                param="tool_choice",
            )
        return None
    for at, tool in enumerate(tools or ()):
        bounded(tool.function.parameters or {}, settings, f"tools[{at}].function.parameters")
    names, demanded = _chosen(choice, list(functions))
    unknown = [name for name in names if name not in functions]
    if unknown:
        raise Refusal(
            f"tool_choice names {listed(unknown)}; the tools are {listed(functions)}.",
            code="invalid_value",
            param="tool_choice",
        )
    if not names:
        return None
    able(card, "schema" if demanded else "triggered_schema", "tools", 'Send tool_choice "none", or none.')
    told = list(functions.values())
    made = Toolbox(told, [functions[name] for name in names], demanded=demanded, one=one or demanded)
    if len(made.constraint.schema) > settings.max_schema_bytes:
        raise Refusal(
            f"The schemas of all tools may have {settings.max_schema_bytes} bytes together.",
            code="invalid_value",
            param="tools",
        )
    return made


def _chosen(choice: str | ToolChoice | None, all_names: list[str]) -> tuple[list[str], bool]:
    """Which tools may be called, and whether one must be."""
    if choice is None or isinstance(choice, str):
        return ([] if choice == "none" else all_names), choice == "required"
    if choice.type == "function" and choice.function is not None:
        return [choice.function.name], True
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        allowed = choice.allowed_tools
        return list(dict.fromkeys(tool.function.name for tool in allowed.tools)), allowed.mode == "required"
    param = f"tool_choice.{choice.type}"
    raise Refusal(f'The field "{param}" is needed.', code="missing_field", param=param)


def known(served: Served) -> bool:
    """Does the model's own template tell of tools, and in our form?"""
    text = str(served.tokenizer.chat_template)
    return served.template is Template.CHAT and "tools" in text and BEGIN in text


def declared(functions: list[Function]) -> list[dict[str, Any]]:
    """The tools as a chat template takes them."""
    return [
        {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
        for function in functions
    ]


def introduced(functions: list[Function], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a system message that tells of the tools; one that is there already is continued."""
    lines = [json.dumps(each["function"], ensure_ascii=False) for each in declared(functions)]
    told = INTRODUCTION.format(functions="\n".join(lines), begin=BEGIN, end=END)
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _hoisted(schema: dict[str, Any], prefix: str, defs: dict[str, Any]) -> dict[str, Any]:
    """
    The schema as a part of a larger one: its definitions move to the top, under names of their own.

    A reference is counted from the top of the document, so those to definitions are rewritten; others would
    point elsewhere now.
    """
    names = {
        f"#/{place}/{name}": f"{prefix}_{name}"
        for place in ("$defs", "definitions")
        for name in _at(schema, place)
    }

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if isinstance(part.get("$ref"), str) and part["$ref"] not in names:
            raise Refusal(
                "A tool's schema may refer ($ref) to its own $defs only.",
                code="invalid_value",
                param="tools",
            )
        return {
            key: f"#/$defs/{names[each]}" if key == "$ref" and isinstance(each, str) else moved(each)
            for key, each in part.items()
        }

    for place in ("$defs", "definitions"):
        for name, part in _at(schema, place).items():
            defs[f"{prefix}_{name}"] = moved(part)
    own = {key: each for key, each in schema.items() if key not in ("$defs", "definitions")}
    whole: dict[str, Any] = moved(own)
    return whole


def _at(schema: dict[str, Any], place: str) -> dict[str, Any]:
    found = schema.get(place)
    return found if isinstance(found, dict) else {}
