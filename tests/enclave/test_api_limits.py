"""The boundary of every field that has one: the last value that is taken, and the first that is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_app.api.alpaca import GenerationConfig, PromptConfig
from enclave_app.api.bodies import MOST_BYTES, MOST_FIELDS, Question
from enclave_app.api.chat import Chat
from enclave_app.api.completions import Text
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.settings import Settings
from tests.conftest import REPOSITORY
from tests.kit.rooms import client_of, error_of, rooms_in
from tests.kit.saying import SayingEngine

CHAT, TEXT, ALPACA, HOUSE = "/v1/chat/completions", "/v1/completions", "/generate", "/test"
SMALL: dict[str, Any] = {
    "max_choices": 3,
    "max_new_tokens": 50,
    "max_stops": 4,
    "max_stop_chars": 10,
    "max_messages": 5,
    "max_schema_bytes": 200,
}


def field(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def schema_of(size: int) -> dict[str, Any]:
    """A `response_format` whose schema has so many bytes."""
    made = {"type": "object", "title": ""}
    made["title"] = "x" * (size - len('{"type": "object", "title": ""}'))
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": made}}}


def tools_of(count: int) -> dict[str, Any]:
    return {
        "tools": [{"type": "function", "function": {"name": f"f{at}"}} for at in range(count)],
        "tool_choice": "none",
    }


TABLE: list[tuple[str, str, Callable[[Any], dict[str, Any]], Any, Any]] = [
    # route, the field that is named, how a value is sent, the last that is taken, the first that is not
    (CHAT, "n", field("n"), 3, 4),
    (TEXT, "n", field("n"), 3, 4),
    (CHAT, "max_tokens", field("max_tokens"), 50, 51),
    (CHAT, "max_completion_tokens", field("max_completion_tokens"), 50, 51),
    (TEXT, "max_tokens", field("max_tokens"), 50, 51),
    (HOUSE, "max_new_tokens", field("max_new_tokens"), 50, 51),
    (
        ALPACA,
        "generation_config.max_new_tokens",
        lambda v: {"generation_config": {"max_new_tokens": v}},
        50,
        51,
    ),
    (ALPACA, "generation_config.num_beams", lambda v: {"generation_config": {"num_beams": v}}, 8, 9),
    (CHAT, "stop", field("stop"), ["x"] * 4, ["x"] * 5),
    (CHAT, "stop", field("stop"), "x" * 10, "x" * 11),
    (TEXT, "stop", field("stop"), ["x" * 10] * 4, ["x", "x" * 11]),
    (CHAT, "messages", lambda v: {"messages": [{"role": "user", "content": "x"}] * v}, 5, 6),
    (CHAT, "response_format.json_schema.schema", schema_of, 200, 201),
    (CHAT, "tools", tools_of, 128, 129),
    (CHAT, "logit_bias", lambda v: {"logit_bias": {str(at): 1 for at in range(v)}}, 257, 258),
    (CHAT, "logit_bias", lambda v: {"logit_bias": {f"{at:09}": 1 for at in range(v)}}, 257, 1025),
    (CHAT, "top_logprobs", lambda v: {"logprobs": True, "top_logprobs": v}, 20, 21),
    (TEXT, "logprobs", field("logprobs"), 20, 21),
    (TEXT, "best_of", field("best_of"), 1, 2),
    (TEXT, "prompt", lambda v: {"prompt": ["x"] * v}, 32, 33),
    (TEXT, "prompt", lambda v: {"prompt": ["x"] * v, "n": 2}, 16, 17),
    (TEXT, "prompt", lambda v: {"prompt": [v]}, 256, 257),
    (CHAT, "temperature", field("temperature"), 2, 2.001),
    (CHAT, "top_k", field("top_k"), 1_000_000, 1_000_001),
    (CHAT, "repetition_penalty", field("repetition_penalty"), 10, 10.1),
    (CHAT, "seed", field("seed"), 2**63 - 1, 2**63),
    (CHAT, "seed", field("seed"), -(2**63), -(2**63) - 1),
    (HOUSE, "input_text", lambda v: {"input_text": "x" * v}, 1 << 20, (1 << 20) + 1),
]


@pytest.mark.parametrize(("path", "param", "sent", "last", "first"), TABLE)
def test_the_last_value_is_taken_and_the_next_is_refused_by_name(
    tmp_path: Path, path: str, param: str, sent: Any, last: Any, first: Any
) -> None:
    """S-24: caps of every field; nothing of what is refused reaches an engine."""
    plain = {
        CHAT: {"messages": [{"role": "user", "content": "x"}]},
        TEXT: {"prompt": "x"},
        ALPACA: {"prompt_config": {"instruction": "x"}},
        HOUSE: {"input_text": "x"},
    }[path]
    engine = SayingEngine("x")
    with client_of(rooms_in(tmp_path, engine=engine, **SMALL)) as client:
        response = client.post(path, json=plain | sent(first))
        code = (
            "context_length_exceeded" if response.json()["error"]["code"].startswith("c") else "invalid_value"
        )
        if param == "best_of":
            code = "unsupported_parameter"
        error_of(response, 400, code, param)
        assert engine.asked == []
        taken = client.post(path, json=plain | sent(last))
        if taken.status_code != 200:  # more than fits this engine's memory, and that is said
            error_of(taken, 400, "context_length_exceeded")


def test_a_body_has_a_size(tmp_path: Path) -> None:
    """S-24: whatever the fields say, more bytes than this are not read."""
    shell = b'{"messages": [{"role": "user", "content": "%s"}], "max_tokens": 1, "user": "%s"}'
    with client_of(rooms_in(tmp_path, engine=SayingEngine("x"))) as client:
        padding = b"x" * (MOST_BYTES - len(shell) - 1 + 4)
        assert client.post(CHAT, content=shell % (b"y", padding)).status_code == 200
        error_of(client.post(CHAT, content=shell % (b"y", padding + b"x")), 413, "body_too_large")


def test_every_list_and_text_that_goes_to_an_engine_has_a_bound_in_the_table() -> None:
    """S-24: a field that is added is looked at here: it is in the table, or it cannot grow."""
    bounded = {param.partition(".")[0] for _, param, *_ in TABLE}
    fixed = {  # numbers and words with a range of their own, and what is only read
        *("model", "top_p", "presence_penalty", "frequency_penalty", "frequence_penalty", "min_p"),
        *("ignore_eos", "stream", "stream_options", "logprobs", "tool_choice", "parallel_tool_calls"),
        *("modalities", "echo", "suffix"),
    }
    forgotten = {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prompt_cache_options", "reasoning_effort", "verbosity", "prediction"),
    }
    refused = {"audio", "functions", "function_call", "web_search_options", "moderation"}
    assert set(Chat.model_fields) | set(Text.model_fields) == (
        (bounded - {"max_new_tokens", "generation_config", "input_text"}) | fixed | forgotten | refused
    )


def test_the_default_caps_are_what_the_documents_say() -> None:
    settings = Settings()
    assert (settings.max_choices, settings.max_new_tokens, settings.max_messages) == (8, 4096, 1024)
    assert (settings.max_stops, settings.max_stop_chars, settings.max_schema_bytes) == (16, 256, 32 << 10)


def test_the_page_names_every_field_and_its_examples_are_answered(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    fields = {*Chat.model_fields, *Text.model_fields, *Question.model_fields}
    fields |= {f"generation_config.{name}" for name in GenerationConfig.model_fields}
    fields |= {f"prompt_config.{name}" for name in PromptConfig.model_fields}
    named = set(re.findall(r"`([a-z_.]+)`", page))
    assert fields - named == set()
    calls = re.findall(r"^curl .*?8080(/\S*)(?: --json '(.*)')?$", page, re.MULTILINE)
    assert len(calls) == 6
    with client_of(rooms_in(tmp_path)) as client:
        for path, body in calls:
            answer = client.post(path, json=json.loads(body)) if body else client.get(path)
            assert answer.status_code == 200, answer.text


ASKED = {"messages": [{"role": "user", "content": "x"}]}
LISTS: list[tuple[str, str, dict[str, Any]]] = [
    (CHAT, "stop[0]", ASKED | {"stop": [1] * 9}),
    (CHAT, "tools[0]", ASKED | {"tools": [1] * 9}),
    (CHAT, "modalities[0]", ASKED | {"modalities": [1] * 9}),
    (CHAT, "messages[0]", {"messages": [1] * 9}),
    (CHAT, "messages[0].content[0]", {"messages": [{"role": "user", "content": [1] * 9}]}),
    (CHAT, "messages[0].tool_calls[0]", {"messages": [{"role": "user", "tool_calls": [1] * 9}]}),
    (TEXT, "stop[0]", {"prompt": "x", "stop": [1] * 9}),
    (TEXT, "prompt[0]", {"prompt": [{}] * 9}),
    (TEXT, "prompt[0][0]", {"prompt": [["x"] * 9]}),
]


@pytest.mark.parametrize(("route", "first", "body"), LISTS)
def test_of_a_long_list_of_faults_only_the_first_is_looked_for(
    tmp_path: Path, route: str, first: str, body: dict[str, Any]
) -> None:
    """S-24: four million faults of one body were told apart for 87 s and in 4 GiB; nobody else was served."""
    with client_of(rooms_in(tmp_path)) as client:
        answer = client.post(route, json=body)
        message = error_of(answer, 400, answer.json()["error"]["code"])
    assert f'"{first}"' in message
    assert "[1]" not in message


@pytest.mark.parametrize("within", [{}, {"metadata": None}])
def test_an_object_has_so_many_fields_and_no_more(tmp_path: Path, within: dict[str, Any]) -> None:
    """S-24: each unknown field is a fault that is collected; what they hold does not matter."""
    many = {f"x{at}": 1 for at in range(MOST_FIELDS + 1)}
    body = ASKED | ({"metadata": many} if within else many)
    with client_of(rooms_in(tmp_path)) as client:
        error_of(client.post(CHAT, json=body), 400, "too_many_fields")
        many.popitem()
        client.post(CHAT, json=ASKED | {"metadata": many}).raise_for_status()


class Counting(ByteTokenizer):
    """Counts the characters that it reads."""

    read = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        self.read += len(text)
        return super().__call__(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("route", "param", "body"),
    [
        (CHAT, "messages", lambda text: {"messages": [{"role": "user", "content": text}]}),
        (TEXT, "prompt", lambda text: {"prompt": ["x", text]}),
        (ALPACA, "prompt_config", lambda text: {"prompt_config": {"instruction": text}}),
        (HOUSE, "input_text", lambda text: {"input_text": text}),
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_counted(
    tmp_path: Path, route: str, param: str, body: Callable[[str], dict[str, Any]]
) -> None:
    """S-24: eight megabytes kept a tokenizer busy for 30 s, and six such requests all threads there are."""
    words = Counting()
    rooms = rooms_in(tmp_path, engine=SayingEngine(context=1000), tokenizer=words)
    with client_of(rooms) as client:
        answer = client.post(route, json=body("x" * 2000))
        assert error_of(answer, 400, "context_length_exceeded")
        assert answer.json()["error"]["param"] == param
        assert words.read <= 1


@pytest.mark.parametrize(
    "held",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    ],
)
def test_an_answer_held_to_a_schema_cannot_be_made_to_go_on_behind_its_end(
    tmp_path: Path, held: dict[str, Any]
) -> None:
    """What comes after the JSON's end is held to nothing, so that the whole would be no JSON."""
    with client_of(rooms_in(tmp_path, engine=SayingEngine("{}"))) as client:
        client.post(CHAT, json=ASKED | held).raise_for_status()
        error_of(
            client.post(CHAT, json=ASKED | held | {"ignore_eos": True}), 400, "invalid_value", "ignore_eos"
        )
