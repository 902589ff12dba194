"""Tools: what a model is told, what holds it to their schemas, and how its calls are read and streamed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_app.api.calls import BEGIN, END, Reader
from enclave_app.tokenizer import FolderTokenizer
from tests.kit import openai_shapes
from tests.kit.rooms import client_of, error_of, events_of, rooms_in
from tests.kit.saying import SayingEngine
from tests.kit.words import CHAT_WITH_TOOLS, words_in

PATH = "/v1/chat/completions"
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "What it is like.", "parameters": PLACE, "strict": True},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASKED = {"messages": [{"role": "user", "content": "How is it in Wend?"}]}
CALL = '{"name": "weather", "arguments": {"place": "Wend"}}'


def answers(folder: Path, says: str, **more: Any) -> tuple[Any, Any, list[Any], SayingEngine]:
    """The choice of a whole answer, that of a stream put together, its chunks, and the engine."""
    engine = SayingEngine(says, rate=2000)
    with client_of(rooms_in(folder, engine=engine)) as client:
        whole = client.post(PATH, json=ASKED | more)
        streamed = client.post(PATH, json=ASKED | more | {"stream": True})
    assert whole.status_code == streamed.status_code == 200, whole.text
    chunks = openai_shapes.chunks(events_of(streamed.text))
    return openai_shapes.chat(whole.json()).choices[0], joined(chunks), chunks, engine


def joined(chunks: list[Any]) -> dict[str, Any]:
    """A stream as a client puts it together."""
    made: dict[str, Any] = {"content": "", "calls": [], "finish": None}
    for chunk in chunks:
        choice = chunk.choices[0]
        made["content"] += choice.delta.content or ""
        made["finish"] = choice.finish_reason or made["finish"]
        for call in choice.delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(made["calls"])
                made["calls"].append([call.function.name, ""])
            made["calls"][call.index][1] += call.function.arguments or ""
    return made


def test_a_demanded_call_is_the_whole_answer(tmp_path: Path) -> None:
    choice, stream, chunks, engine = answers(tmp_path, CALL, tools=[WEATHER], tool_choice="required")
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"place": "Wend"}')
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert stream == {
        "content": "",
        "calls": [["weather", '{"place": "Wend"}']],
        "finish": "tool_calls",
    }
    pieces = [
        each.function.arguments
        for chunk in chunks
        for each in chunk.choices[0].delta.tool_calls or ()
        if each.function.arguments
    ]
    assert len(pieces) > 1  # as they come, not at once
    constraint = engine.last.sampling.constraint
    assert constraint is not None
    assert (constraint.begin, constraint.end) == ("", "")
    assert json.loads(constraint.schema) == {
        "type": "object",
        "properties": {"name": {"const": "weather"}, "arguments": PLACE},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def test_a_model_left_free_may_speak_and_then_call_more_than_once(tmp_path: Path) -> None:
    says = f"Let me see.\n{BEGIN}{CALL}{END}\n{BEGIN}" + '{"name":"clock","arguments":{}}' + END
    choice, stream, _, engine = answers(tmp_path, says, tools=[WEATHER, CLOCK])
    assert [(each.function.name, each.function.arguments) for each in choice.message.tool_calls] == [
        ("weather", '{"place": "Wend"}'),
        ("clock", "{}"),
    ]
    assert len({each.id for each in choice.message.tool_calls}) == 2
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert stream["content"] == "Let me see."
    assert stream["calls"] == [["weather", '{"place": "Wend"}'], ["clock", "{}"]]
    constraint = engine.last.sampling.constraint
    assert constraint is not None
    assert (constraint.begin, constraint.end) == (BEGIN, END)
    assert [each["properties"]["name"]["const"] for each in json.loads(constraint.schema)["anyOf"]] == [
        "weather",
        "clock",
    ]


def test_a_model_left_free_may_also_not_call(tmp_path: Path) -> None:
    choice, stream, _, _ = answers(tmp_path, "It is 3 < 4. ", tools=[WEATHER])
    assert (choice.message.content, choice.message.tool_calls) == ("It is 3 < 4. ", None)
    assert choice.finish_reason == "stop"
    assert stream == {"content": "It is 3 < 4. ", "calls": [], "finish": "stop"}


def test_one_call_at_a_time_ends_the_answer_with_the_first(tmp_path: Path) -> None:
    says = f"{BEGIN}{CALL}{END}{BEGIN}{CALL}{END}"
    choice, stream, _, _ = answers(tmp_path, says, tools=[WEATHER], parallel_tool_calls=False)
    assert len(choice.message.tool_calls) == 1
    assert choice.finish_reason == stream["finish"] == "tool_calls"
    assert stream["calls"] == [["weather", '{"place": "Wend"}']]


def test_a_call_that_is_cut_says_length_and_shows_what_there_is(tmp_path: Path) -> None:
    choice, stream, _, _ = answers(
        tmp_path, CALL, tools=[WEATHER], tool_choice="required", max_tokens=len(CALL) - 1
    )
    assert choice.finish_reason == stream["finish"] == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"place": "Wend"}'
    assert stream["calls"] == [["weather", '{"place": "Wend"}']]


def test_one_tool_may_be_named_and_some_may_be_allowed(tmp_path: Path) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    engine = answers(tmp_path / "a", "{}", tools=[WEATHER, CLOCK], tool_choice=named)[3]
    assert engine.last.sampling.constraint is not None
    assert json.loads(engine.last.sampling.constraint.schema)["properties"]["name"] == {"const": "clock"}
    assert "weather" in engine.prompt  # it hears of all
    for mode, begin in (("auto", BEGIN), ("required", "")):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
        engine = answers(tmp_path / mode, "{}", tools=[WEATHER, CLOCK], tool_choice=allowed)[3]
        assert engine.last.sampling.constraint is not None
        assert engine.last.sampling.constraint.begin == begin
        assert "weather" not in engine.last.sampling.constraint.schema


def test_a_tools_own_definitions_are_still_found_where_its_schema_becomes_a_part(tmp_path: Path) -> None:
    deep = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Point"}},
        "$defs": {"Point": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Point"}}}},
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": deep}} for name in ("a", "b")]
    engine = answers(tmp_path, "{}", tools=tools, tool_choice="required")[3]
    assert engine.last.sampling.constraint is not None
    schema = json.loads(engine.last.sampling.constraint.schema)
    assert set(schema["$defs"]) == {"t0_Point", "t1_Point"}
    second = schema["anyOf"][1]["properties"]["arguments"]
    assert second == {"type": "object", "properties": {"at": {"$ref": "#/$defs/t1_Point"}}}
    assert schema["$defs"]["t1_Point"]["properties"] == {"next": {"$ref": "#/$defs/t1_Point"}}


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    *ASKED["messages"],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"place": "Wend"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
    {"role": "user", "content": "And now?"},
]


def test_a_model_whose_template_knows_no_tools_is_told_by_a_system_message(tmp_path: Path) -> None:
    engine = SayingEngine("x")
    with client_of(rooms_in(tmp_path, engine=engine)) as client:
        response = client.post(PATH, json={"messages": CONVERSATION, "tools": [WEATHER]})
    assert response.status_code == 200, response.text
    described = {key: value for key, value in WEATHER["function"].items() if key != "strict"}  # type: ignore[attr-defined]
    assert engine.prompt == (
        "System: Be brief.\n\n"
        "You may call these functions, each described by a JSON object on a line of its own:\n"
        f"{json.dumps(described)}\n"
        'To call one, write <tool_call>{"name": NAME, "arguments": {…}}</tool_call> and nothing after it. '
        "What it returned comes in the next message, as <tool_response>…</tool_response>.\n"
        "User: How is it in Wend?\n"
        f"Assistant: <tool_call>{CALL}</tool_call>\n"
        "User: <tool_response>rain</tool_response>\n<tool_response>noon</tool_response>\n"
        "User: And now?\n"
        "Assistant:"
    )


def test_a_model_whose_template_knows_tools_is_told_by_its_template(tmp_path: Path) -> None:
    words, engine = FolderTokenizer(words_in(tmp_path / "words", CHAT_WITH_TOOLS)), SayingEngine("x")
    with client_of(rooms_in(tmp_path / "data", engine=engine, tokenizer=words)) as client:
        response = client.post(PATH, json={"messages": CONVERSATION, "tools": [CLOCK]})
    assert response.status_code == 200, response.text
    assert "".join(words.text(each) for each in engine.last.ids) == (
        '<|im_start|>system\nTools: {"type": "function", "function": {"name": "clock"}}<|im_end|>\n'
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow is it in Wend?<|im_end|>\n"
        f"<|im_start|>assistant\n<tool_call>{CALL}</tool_call><|im_end|>\n"
        "<|im_start|>tool\nrain<|im_end|>\n"
        "<|im_start|>tool\nnoon<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "arguments", ["no JSON", "[" * 100_000, '"\\ud800"', "NaN", '{"a":' * 300 + "1" + "}" * 300]
)
def test_arguments_of_earlier_calls_that_are_no_json_are_read_as_text(tmp_path: Path, arguments: str) -> None:
    messages = json.loads(json.dumps(CONVERSATION))
    messages[2]["tool_calls"][0]["function"]["arguments"] = arguments
    with client_of(rooms_in(tmp_path, engine=SayingEngine("x"))) as client:
        assert client.post(PATH, json={"messages": messages}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "a name of its own"),
        ({"tools": [CLOCK] * 129}, "tools", "up to 128"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].custom", "no field"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is needed"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "at least 1"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}]},
            "tools",
            "its own $defs only",
        ),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice", "'required'"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "tool_choice",
            'the tools are "clock"',
        ),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function", "is needed"),
        (
            {"tools": [CLOCK], "response_format": {"type": "json_object"}},
            "response_format",
            "cannot be asked for together",
        ),
    ],
)
def test_wrong_tools_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], param: str, words: str
) -> None:
    with client_of(rooms_in(tmp_path, engine=SayingEngine("x"))) as client:
        response = client.post(PATH, json=ASKED | changes)
    assert words in error_of(response, 400, response.json()["error"]["code"], param)


def test_many_small_tools_together_are_bounded_too(tmp_path: Path) -> None:
    """S-24: each is small enough, all together are not."""
    tools = [
        {
            "type": "function",
            "function": {"name": f"f{at}", "parameters": {"type": "object", "title": "x" * 1000}},
        }
        for at in range(40)
    ]
    with client_of(rooms_in(tmp_path, engine=SayingEngine("x"))) as client:
        response = client.post(PATH, json=ASKED | {"tools": tools})
    assert "32768 bytes together" in error_of(response, 400, "invalid_value", "tools")


# --- the reader, on any text in any pieces ----------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), JSON, max_size=3)


def read(reader: Reader, text: str, cuts: list[int], *, whole: bool = True) -> tuple[str, list[list[str]]]:
    content, calls = "", []
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    deltas = [delta for piece in pieces for delta in reader.read(piece)] + list(reader.end(whole=whole))
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, calls


@given(
    before=st.text(max_size=20),
    calls=st.lists(st.tuples(st.sampled_from(["f", "g"]), ARGUMENTS), max_size=3),
    indent=st.sampled_from([None, 1]),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_calls_are_read_the_same_however_the_text_was_cut(
    before: str, calls: list[tuple[str, Any]], indent: int | None, cuts: list[int]
) -> None:
    text = before + "".join(
        f"{BEGIN}{json.dumps({'name': name, 'arguments': arguments}, indent=indent)}{END}"
        for name, arguments in calls
    )
    content, found = read(Reader(), text, cuts)
    assert content == (before.rstrip() if calls else before)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    content, found = read(Reader.plain(), text, cuts)
    assert (content, found) == (text, [])


@given(text=st.text(alphabet='<tool_ca/>{"name":}argus x\n', max_size=80), cuts=st.lists(st.integers(0, 80)))
def test_no_text_breaks_the_reader_or_is_lost_without_a_call(text: str, cuts: list[int]) -> None:
    content, calls = read(Reader(), text, cuts, whole=False)
    if BEGIN not in text:
        assert (content, calls) == (text, [])
    read(Reader(calling=True), text, cuts)
