"""`/v1/completions` over the echo engine: the text as it is, several prompts, pieces, log probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.tokenizer import FolderTokenizer
from tests.kit import openai_shapes
from tests.kit.rooms import client_of, error_of, events_of, rooms_in
from tests.kit.saying import SayingEngine
from tests.kit.words import CHAT, words_in

PATH = "/v1/completions"


@pytest.fixture
def engine() -> SayingEngine:
    return SayingEngine()


def streamed(client: TestClient, **body: Any) -> list[Any]:
    response = client.post(PATH, json=body | {"stream": True})
    return openai_shapes.texts(events_of(response.text))


def test_an_answer_is_openais_object_and_sixteen_tokens_long_unless_said(client: TestClient) -> None:
    made = openai_shapes.text(client.post(PATH, json={"prompt": "abcdefghijklmnopqrst"}).json())
    assert (made.choices[0].text, made.choices[0].finish_reason) == ("abcdefghijklmnop", "length")
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (20, 16)
    made = openai_shapes.text(client.post(PATH, json={"prompt": "abc", "max_tokens": 99}).json())
    assert (made.choices[0].text, made.choices[0].finish_reason) == ("abc", "stop")


def test_a_prompt_goes_in_without_a_template(tmp_path: Path) -> None:
    words, engine = FolderTokenizer(words_in(tmp_path / "words", CHAT)), SayingEngine()
    with client_of(rooms_in(tmp_path / "data", engine=engine, tokenizer=words)) as client:
        client.post(PATH, json={"prompt": "the river"})
        assert words.decode(engine.last.ids) == "the river"
        ids = list(engine.last.ids)
        client.post(PATH, json={"prompt": ids})
        assert list(engine.last.ids) == ids
        made = client.post(PATH, json={"prompt": [ids, ids[:1]], "echo": True, "max_tokens": 1}).json()
    assert made["choices"][0]["text"].startswith("the river")


def test_several_prompts_times_n_are_answered_in_their_order(client: TestClient) -> None:
    body = {"prompt": ["a", "bb", "c"], "n": 2, "best_of": 2, "echo": True}
    made = openai_shapes.text(client.post(PATH, json=body).json())
    assert [(each.index, each.text) for each in made.choices] == list(
        enumerate(["aa", "aa", "bbbb", "bbbb", "cc", "cc"])
    )
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 8)
    texts = [""] * 6
    for chunk in streamed(client, **body):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [each.text for each in made.choices]


def test_a_stream_ends_with_its_reason_and_the_usage_where_asked(client: TestClient) -> None:
    chunks = streamed(client, prompt="hello", stop="l")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "he"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} <= {"content_filter"}  # none yet
    chunks = streamed(client, prompt="hello", stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10


def test_log_probabilities_tell_token_offset_and_alternatives(client: TestClient) -> None:
    logprobs = client.post(PATH, json={"prompt": "hi", "logprobs": 1}).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["h", "i"],
        "token_logprobs": [-0.125, -0.125],
        "top_logprobs": [{"h": -0.125}, {"i": -0.125}],
        "text_offset": [0, 1],
    }
    none = client.post(PATH, json={"prompt": "hi", "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert (none["token_logprobs"], none["top_logprobs"]) == ([-0.125, -0.125], None)
    offsets = [
        at
        for chunk in streamed(client, prompt="hello", logprobs=0)
        if chunk.choices[0].logprobs is not None
        for at in chunk.choices[0].logprobs.text_offset or ()
    ]
    assert offsets == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "is needed"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": [[]]}, "prompt[0]", "at least 1"),
        ({"prompt": [1, "a"]}, "prompt", "or a list of these"),
        ({"prompt": [-1]}, "prompt[0]", ""),
        ({"prompt": [257]}, "prompt", "0 to 256"),
        ({"prompt": ["a"] * 33}, "prompt", "up to 32 answers"),
        ({"prompt": ["a"] * 17, "n": 2}, "prompt", "up to 32 answers"),
        ({"prompt": "a", "n": 9}, "n", "1 to 8"),
        ({"prompt": "a", "best_of": 2}, "best_of", "ask for n"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not served"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "logprobs", "together"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "equal to 20"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "equal to 1"),
        ({"prompt": "a", "messages": []}, "messages", "no field"),
        ({"prompt": "a", "stop": ["x"] * 10_000}, "stop", "up to 16"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str, words: str) -> None:
    response = client.post(PATH, json=body)
    assert words in error_of(response, 400, response.json()["error"]["code"], param)


def test_a_field_that_changes_nothing_may_say_so(client: TestClient) -> None:
    body = {"prompt": "a", "suffix": "", "best_of": 1, "n": 1, "echo": False, "logit_bias": {}, "user": "u"}
    assert client.post(PATH, json=body).status_code == 200
    error_of(client.post(PATH, json={"prompt": "a", "model": "gpt-x"}), 404, "model_not_found", "model")
