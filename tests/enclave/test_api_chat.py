"""`/v1/chat/completions` over the echo engine: OpenAI's objects whole and streamed, every field, refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.api import build_api
from enclave_app.engines import Update
from enclave_app.refusals import Busy, Refusal
from enclave_app.tokenizer import FolderTokenizer
from tests.kit import openai_shapes
from tests.kit.rooms import ALICE, BOB, client_of, error_of, events_of, rooms_in
from tests.kit.saying import SayingEngine
from tests.kit.words import CHAT, words_in

PATH = "/v1/chat/completions"


@pytest.fixture
def engine() -> SayingEngine:
    return SayingEngine()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def streamed(client: TestClient, body: dict[str, Any]) -> list[Any]:
    response = client.post(PATH, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return openai_shapes.chunks(events_of(response.text))


def told(chunks: list[Any], index: int = 0) -> str:
    """The text of one choice of a stream."""
    return "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index
    )


# --- whole ------------------------------------------------------------------------------------


def test_an_answer_is_openais_object_with_counted_tokens(client: TestClient) -> None:
    response = client.post(PATH, json=said("héllo", model="org/echo"))
    made = openai_shapes.chat(response.json())
    assert made.model == "org/echo"
    (choice,) = made.choices
    assert (choice.message.content, choice.finish_reason) == ("héllo", "stop")
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (6, 6, 12)
    again = openai_shapes.chat(client.post(PATH, json=said("héllo")).json())
    assert again.id != made.id
    assert response.headers["x-request-id"].startswith("req-")


def test_an_answer_that_is_cut_says_length(client: TestClient) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        made = openai_shapes.chat(client.post(PATH, json=said("hello", **{name: 2})).json())
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("he", "length")


def test_every_message_is_read_and_not_the_last_alone(client: TestClient, engine: SayingEngine) -> None:
    """The Prem guide's server read the last message only."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "well", "refusal": None, "annotations": [], "audio": None},
        {"role": "user", "content": "three", "name": "ann"},
    ]
    client.post(PATH, json={"messages": messages})
    assert engine.prompt == "System: be brief\nUser: one\ntwo\nAssistant: well\nUser: three\nAssistant:"


def test_a_model_with_a_chat_template_is_asked_in_it(tmp_path: Path) -> None:
    words, engine = FolderTokenizer(words_in(tmp_path / "words", CHAT)), SayingEngine()
    with client_of(rooms_in(tmp_path / "data", engine=engine, tokenizer=words)) as client:
        response = client.post(PATH, json=said("What is the river?", logprobs=True, top_logprobs=1))
    written = "".join(words.text(each) for each in engine.last.ids)
    assert written == "<|im_start|>user\nWhat is the river?<|im_end|>\n<|im_start|>assistant\n"
    made = openai_shapes.chat(response.json())
    assert made.usage is not None
    assert made.usage.prompt_tokens == len(engine.last.ids)


def test_n_answers_are_made_each_with_a_seed_of_its_own(client: TestClient, engine: SayingEngine) -> None:
    made = openai_shapes.chat(client.post(PATH, json=said("abc", n=3, seed=7)).json())
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert [choice.message.content for choice in made.choices] == ["abc"] * 3
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (3, 9)
    assert sorted(work.sampling.seed or 0 for work in engine.asked) == [7, 8, 9]


def test_stop_strings_end_the_answer_and_are_never_shown(client: TestClient) -> None:
    for stop, left in ((" end", "to the"), (["xx", "the"], "to "), ([], "to the end"), ("no", "to the end")):
        made = openai_shapes.chat(client.post(PATH, json=said("to the end", stop=stop)).json())
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == (left, "stop")
        assert told(streamed(client, said("to the end", stop=stop))) == left


def test_log_probabilities_come_with_each_token_and_its_bytes(client: TestClient) -> None:
    made = openai_shapes.chat(client.post(PATH, json=said("hé", logprobs=True, top_logprobs=1)).json())
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [(each.token, each.bytes, each.logprob) for each in logprobs.content] == [
        ("h", [104], -0.125),
        ("\ufffd", None, -0.125),  # half a character has no text, and its bytes are not known here
        ("\ufffd", None, -0.125),
    ]
    assert [len(each.top_logprobs) for each in logprobs.content] == [1, 1, 1]
    without = openai_shapes.chat(client.post(PATH, json=said("hé", logprobs=True)).json()).choices[0].logprobs
    assert without is not None
    assert without.content is not None
    assert [each.top_logprobs for each in without.content] == [[], [], []]
    assert openai_shapes.chat(client.post(PATH, json=said("h")).json()).choices[0].logprobs is None


def test_every_wish_reaches_the_engine(client: TestClient, engine: SayingEngine) -> None:
    body = said(
        "x",
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"65": -100, "66": 1.5},
        seed=-1,
        max_completion_tokens=9,
        top_k=5,
        min_p=0.05,
        repetition_penalty=1.1,
        ignore_eos=True,
    )
    assert client.post(PATH, json=body).status_code == 200
    got = engine.last.sampling
    assert (got.do_sample, got.temperature, got.top_p, got.top_k, got.min_p) == (True, 0.5, 0.9, 5, 0.05)
    assert (got.presence_penalty, got.frequency_penalty, got.repetition_penalty) == (0.25, -0.5, 1.1)
    assert got.logit_bias == ((65, -100.0), (66, 1.5))
    assert (got.seed, got.max_new_tokens, got.ignore_end) == ((1 << 63) - 1, 9, True)


def test_what_is_not_said_is_openais_default_and_null_is_not_said(
    client: TestClient, engine: SayingEngine
) -> None:
    body = said("x")
    assert client.post(PATH, json=body).status_code == 200
    nulls = ["temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "max_tokens", "tools"]
    nulls += ["tool_choice", "response_format", "logit_bias", "logprobs", "user", "audio", "modalities"]
    assert client.post(PATH, json=body | dict.fromkeys(nulls)).status_code == 200
    first, second = (work.sampling for work in engine.asked)
    assert first == second
    assert (first.do_sample, first.temperature, first.top_p, first.top_k) == (True, 1.0, 1.0, 0)
    assert (first.max_new_tokens, first.seed, first.logprobs, first.constraint) == (1024, None, None, None)


@pytest.mark.parametrize("cold", [{"temperature": 0}, {"temperature": 1e-300}, {"top_p": 0}])
def test_the_coldest_answers_are_the_likeliest_tokens(
    client: TestClient, engine: SayingEngine, cold: dict[str, Any]
) -> None:
    client.post(PATH, json=said("x", **cold))
    assert not engine.last.sampling.do_sample
    assert engine.last.sampling.temperature >= 0.001  # nothing is divided by next to nothing
    assert engine.last.sampling.top_p > 0


def test_a_request_of_the_prem_guide_works_as_it_stands(client: TestClient, engine: SayingEngine) -> None:
    """contracts.md §2: all its fields with its defaults, and its spelling."""
    body = {
        "model": "org/echo",
        "messages": [{"role": "user", "content": "hello User: bye"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "n": 1,
        "stream": False,
        "stop": ["User:"],
        "max_tokens": 64,
        "presence_penalty": 0,
        "frequence_penalty": 0,
        "logit_bias": {},
        "user": "",
    }
    made = openai_shapes.chat(client.post(PATH, json=body).json())
    assert made.choices[0].message.content == "hello "
    assert engine.last.sampling.max_new_tokens == 64
    client.post(PATH, json=body | {"frequence_penalty": 1.5})
    assert engine.last.sampling.frequency_penalty == 1.5
    assert told(streamed(client, body)) == "hello "


def test_fields_that_say_nothing_to_a_model_are_taken_and_forgotten(client: TestClient) -> None:
    ignored = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "stream_options": {"include_usage": True, "include_obfuscation": True},
    }
    headers = {"idempotency-key": "stainless-python-retry-1", "x-stainless-retry-count": "1"}
    response = client.post(PATH, json=said("x", **ignored), headers=headers)
    assert openai_shapes.chat(response.json()).choices[0].message.content == "x"


# --- streamed ---------------------------------------------------------------------------------


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    chunks = streamed(client, said("héllo wörld"))
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert told(chunks) == "héllo wörld"
    assert all(chunk.usage is None for chunk in chunks)


def test_without_usage_asked_for_the_word_is_not_there_and_with_it_the_others_say_null(
    client: TestClient,
) -> None:
    plain = client.post(PATH, json=said("abc", stream=True)).text
    assert '"usage"' not in plain
    body = said("abc", n=2, stream=True, stream_options={"include_usage": True})
    events = events_of(client.post(PATH, json=body).text)
    openai_shapes.chunks(events)
    assert all(data["usage"] is None for _, data in events[:-2])
    last = events[-2][1]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def test_the_choices_of_a_stream_come_side_by_side_each_with_its_index(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, engine=SayingEngine(rate=200))) as client:
        chunks = streamed(client, said("abcdefgh", n=3))
    for index in range(3):
        assert told(chunks, index) == "abcdefgh"
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in own[-2:]] == [None, "stop"]
    order = [chunk.choices[0].index for chunk in chunks]
    assert order != sorted(order)  # interleaved


def test_log_probabilities_are_streamed_with_their_tokens(client: TestClient) -> None:
    chunks = streamed(client, said("héy", logprobs=True))
    tokens = [
        each.token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for each in chunk.choices[0].logprobs.content or ()
    ]
    assert len(tokens) == 4
    assert tokens[0] == "h"
    assert tokens[-1] == "y"


def test_a_tool_call_or_tag_in_an_answer_without_tools_is_text(tmp_path: Path) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    with client_of(rooms_in(tmp_path, engine=SayingEngine(text))) as client:
        assert client.post(PATH, json=said("x")).json()["choices"][0]["message"]["content"] == text


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": None}, "messages", "valid array"),
        ({"messages": "x"}, "messages", "valid array"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": ["canary"], "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is needed"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is needed"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "is needed"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "no tokens"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "valid string"),
        ({"messages": [{"role": "user", "contet": "x"}]}, "messages[0].contet", 'mean "content"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "c"}}]}]},
            "messages[0].content[0].type",
            "read text only",
        ),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
        ({"presence_penalty": 3}, "presence_penalty", "equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "equal to -2"),
        ({"frequency_penalty": 1, "frequence_penalty": 2}, "frequence_penalty", "another spelling"),
        ({"logit_bias": {"dog": 1}}, "logit_bias", "by their number"),
        ({"logit_bias": {"257": 1}}, "logit_bias", "0 to 256"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "equal to 100"),
        ({"n": 0}, "n", "equal to 1"),
        ({"n": 9}, "n", "1 to 8"),
        ({"n": 10**30}, "n", ""),
        ({"max_tokens": 0}, "max_tokens", "equal to 1"),
        ({"max_tokens": 5000}, "max_tokens", "1 to 4096"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "1 to 4096"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "two names"),
        ({"stop": ["x"] * 10_000}, "stop", "up to 16 strings"),
        ({"stop": "x" * 257}, "stop", "256 characters"),
        ({"stop": [1]}, "stop[0]", "valid string"),
        ({"stop": {"a": 1}}, "stop", "valid string"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"seed": 2**63}, "seed", ""),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge", 'mean "include_usage"'),
        ({"top_logprobs": 1}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "equal to 20"),
        ({"logprobs": 5}, "logprobs", "valid boolean"),
        ({"audio": {"voice": "alloy"}}, "audio", "text only"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "'text'"),
        ({"functions": [{"name": "f"}]}, "functions", "Send tools"),
        ({"function_call": "auto"}, "function_call", "Send tool_choice"),
        ({"web_search_options": {}}, "web_search_options", "reach the web"),
        ({"moderation": {"model": "m"}}, "moderation", "Nothing here moderates"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_object'"),
        ({"response_format": "json"}, "response_format", ""),
        ({"temprature": 1}, "temprature", 'Did you mean "temperature"'),
    ],
)
def test_a_wrong_field_is_named_and_told_what_it_may_be(
    client: TestClient, changes: dict[str, Any], param: str, words: str
) -> None:
    for stream in (False, True):
        response = client.post(PATH, json=said("secret-canary", stream=stream) | changes)
        code = response.json()["error"]["code"]
        assert words in error_of(response, 400, code, param)
        assert "canary" not in response.text
        assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + b"[" * 5000,
        b'{"messages":' * 50_000,
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1, "n": 2}',
        b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}',
    ],
)
def test_a_body_that_cannot_mean_one_thing_gets_400(client: TestClient, data: bytes) -> None:
    response = client.post(PATH, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_more_messages_than_the_setting_are_refused(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path, max_messages=3)) as client:
        messages = said("x")["messages"]
        assert client.post(PATH, json={"messages": messages * 3}).status_code == 200
        for many in (4, 70_000):
            response = client.post(PATH, json={"messages": messages * many})
            error_of(response, 400, "invalid_value", "messages")


def test_a_model_of_another_name_is_404_and_none_is_the_instruct_model(client: TestClient) -> None:
    message = error_of(client.post(PATH, json=said("x", model="org/ecko")), 404, "model_not_found", "model")
    assert 'Did you mean "org/echo"' in message
    assert client.post(PATH, json=said("x")).json()["model"] == "org/echo"


def test_what_the_engine_cannot_do_is_refused_by_the_name_of_the_field(tmp_path: Path) -> None:
    engine = SayingEngine(abilities=frozenset(), most_logprobs=0)
    tool = {"type": "function", "function": {"name": "f"}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with client_of(rooms_in(tmp_path, engine=engine)) as client:
        for param, changes in (
            ("logit_bias", {"logit_bias": {"1": 1}}),
            ("top_logprobs", {"logprobs": True, "top_logprobs": 1}),
            ("response_format", {"response_format": {"type": "json_object"}}),
            ("response_format", {"response_format": schema}),
            ("tools", {"tools": [tool]}),
            ("tools", {"tools": [tool], "tool_choice": "required"}),
        ):
            error_of(client.post(PATH, json=said("x", **changes)), 400, "unsupported_parameter", param)
        fine: dict[str, Any]
        for fine in (
            {"logit_bias": {}},
            {"logprobs": True, "top_logprobs": 0},
            {"response_format": {"type": "text"}},
            {"tools": [tool], "tool_choice": "none"},
            {"tools": []},
        ):
            assert client.post(PATH, json=said("x", **fine)).status_code == 200
    assert engine.asked


def test_a_prompt_beyond_the_context_is_refused_and_the_default_length_fits_it(tmp_path: Path) -> None:
    engine = SayingEngine(context=20)
    with client_of(rooms_in(tmp_path, engine=engine)) as client:
        assert client.post(PATH, json=said("x" * 15)).status_code == 200
        assert engine.last.sampling.max_new_tokens == 5
        for body in (said("x" * 20), said("x" * 15, max_tokens=6)):
            message = error_of(client.post(PATH, json=body), 400, "context_length_exceeded", "messages")
            assert "20" in message


def test_a_response_format_becomes_the_engines_constraint(client: TestClient, engine: SayingEngine) -> None:
    schema = {"type": "object", "properties": {"ä": {"type": "string"}}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert client.post(PATH, json=said("x", response_format=wanted)).status_code == 200
    constraint = engine.last.sampling.constraint
    assert constraint is not None
    assert (json.loads(constraint.schema), constraint.begin, constraint.end) == (schema, "", "")
    client.post(PATH, json=said("x", response_format={"type": "json_object"}))
    constraint = engine.last.sampling.constraint
    assert constraint is not None
    assert json.loads(constraint.schema) == {"type": "object"}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        made = {"type": "object", "properties": {"a": made}}
    return made


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": ["x" * 100] * 400}, "bytes; it may have 32768"),
        (nested(17), "nested deeper"),
        ({"type": "array", "items": {}, "minItems": 10**9}, "minItems"),
        ({"type": "string", "maxLength": 1e300}, "maxLength"),
        ({"type": "string", "pattern": "(a|b)" * 100}, "pattern"),
        ({"$ref": "https://example.com/schema.json"}, "another document"),
        ({"allOf": [{} for _ in range(3000)]}, "more than 2000 parts"),
    ],
)
def test_a_schema_that_would_explode_is_refused_before_any_engine_sees_it(
    client: TestClient, engine: SayingEngine, schema: dict[str, Any], words: str
) -> None:
    """S-24: a guided grammar has bounds."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    param = "response_format.json_schema.schema"
    assert words in error_of(
        client.post(PATH, json=said("x", response_format=wanted)), 400, "invalid_value", param
    )
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    assert words in error_of(client.post(PATH, json=said("x", tools=tools)), 400, "invalid_value")
    assert engine.asked == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_before_the_first_token_is_a_status_and_says_when_to_come_again(
    tmp_path: Path, stream: bool
) -> None:
    class Refusing(SayingEngine):
        def start(self, key: int, work: Any) -> None:
            raise Busy("No room.", code="overloaded", retry_after=5)

    with client_of(rooms_in(tmp_path, engine=Refusing())) as client:
        response = client.post(PATH, json=said("x", stream=stream, n=2))
    error_of(response, 503, "overloaded")
    assert response.headers["retry-after"] == "5"


def test_what_an_engine_refuses_of_the_tokens_is_about_the_field_they_came_in(tmp_path: Path) -> None:
    class Refusing(SayingEngine):
        def start(self, key: int, work: Any) -> None:
            raise Refusal("Too long for me.", code="context_length_exceeded")

    with client_of(rooms_in(tmp_path, engine=Refusing())) as client:
        error_of(client.post(PATH, json=said("x")), 400, "context_length_exceeded", "messages")
        response = client.post("/v1/completions", json={"prompt": "x", "stream": True})
        error_of(response, 400, "context_length_exceeded", "prompt")


@pytest.mark.parametrize("n", [1, 2])
def test_a_caller_who_hangs_up_in_the_middle_of_a_stream_frees_the_engine(tmp_path: Path, n: int) -> None:
    """S-11: the engine stops, and what it held is free."""
    engine = SayingEngine(rate=10)
    rooms = rooms_in(tmp_path, engine=engine)
    app = build_api(rooms)
    body = json.dumps(said("x" * 1000, stream=True, n=n, max_tokens=1000)).encode()

    async def hang_up() -> list[bytes]:
        begun, asked, sent = asyncio.Event(), False, list[bytes]()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.append(message["body"])
                if len(sent) == 3:
                    begun.set()

        await asyncio.wait_for(app(post_scope(PATH), receive, send), 60)
        for _ in range(3000):
            if not engine.busy():
                break
            await asyncio.sleep(0.01)
        rooms.desk.close()
        return sent

    sent = asyncio.run(hang_up())
    assert len(sent) < 100
    assert not engine.busy()
    # The role does not go ahead alone: what is sent first leaves the enclave at once, what follows on a tick.
    assert b'"role":"assistant"' in sent[0]
    assert b'"delta":{"content":"x' in sent[0]


def post_scope(path: str) -> dict[str, Any]:
    """A POST as a server would hand it to an application."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in ALICE.items()],
        "client": None,
        "server": ("enclave", 80),
    }


def test_an_error_after_the_first_token_is_the_streams_last_event(tmp_path: Path) -> None:
    class Breaking(SayingEngine):
        def step(self) -> list[Update]:
            updates = super().step()
            if any(at > 3 for _, at, _ in self._open.values()):
                raise RuntimeError("canary")
            return updates

    with client_of(rooms_in(tmp_path, engine=Breaking(rate=50))) as client:
        response = client.post(PATH, json=said("abcdefgh", stream=True))
        assert client.get("/v1/models").status_code == 200
    assert response.status_code == 200
    events = events_of(response.text)
    name, data = events[-1]
    assert name == "error"
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert data["error"]["type"] == "server_error"
    assert "canary" not in response.text


def test_another_tenant_cannot_name_my_tuned_model(tmp_path: Path) -> None:
    """S-22: not even whether it exists."""
    rows = "\n".join(json.dumps({"q": str(n), "a": "x"}) for n in range(3))
    lesson = {"question_column": "q", "answer_column": "a", "number_elements_for_training": 3}
    with client_of(rooms_in(tmp_path)) as client:
        upload = client.post("/v1/files", files={"file": ("r.jsonl", rows)}).json()
        assert client.post("/finetune", json=lesson | {"dataset_name": upload["id"]}).status_code == 200
        listed = client.get("/v1/models").json()["data"]
        mine = next(each["id"] for each in listed if each["owned_by"] == "you")
        assert mine.startswith("ft:org/echo::")
        answer = client.post(PATH, json=said("x", model=mine)).json()
        assert answer["model"] == mine
        assert answer["choices"][0]["message"]["content"].startswith("[")
        theirs = client.post(PATH, json=said("x", model=mine), headers=BOB)
        unknown = client.post(PATH, json=said("x", model="ft:org/echo::00000000"), headers=BOB)
        error_of(theirs, 404, "model_not_found", "model")
        assert theirs.json() == unknown.json()
        assert [each["owned_by"] for each in client.get("/v1/models", headers=BOB).json()["data"]] == [
            "blindbox"
        ]
