"""The Alpaca REST API: its templates to the letter, its fields all optional but the instruction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.engines import Sampling
from tests.kit.rooms import client_of, error_of, rooms_in
from tests.kit.saying import SayingEngine

SHORT = "### Instruction:\nName a river.\n\n"
ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n" + SHORT + "### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    + SHORT
    + "### Input:\nIn Wend, {instruction}\n\n### Response:\n"
)


@pytest.fixture
def engine() -> SayingEngine:
    return SayingEngine(" The Wend.\n")


def test_the_guides_request_gets_the_text_after_the_response_marker(
    client: TestClient, engine: SayingEngine
) -> None:
    """contracts.md §3, with every field; `num_beams` of more than one where the engine has beams."""
    body = {
        "generation_config": {"temperature": 0.5, "top_p": 0.5, "top_k": 20, "num_beams": 4},
        "prompt_config": {"instruction": "Name a river.", "input": "In Wend, {instruction}"},
    }
    response = client.post("/generate", json=body)
    assert response.json() == {"output": "The Wend."}
    assert engine.prompt == WITH_INPUT
    sampling = engine.last.sampling
    assert sampling == Sampling(128, False, 0.5, 20, 0.5, num_beams=4)


def test_everything_but_the_instruction_may_be_left_out(client: TestClient, engine: SayingEngine) -> None:
    """The guide's server needed all fields, and had a type for the default of one."""
    for config in ({}, None, {"num_beams": None}):
        for given in (None, ""):
            body = {
                "prompt_config": {"instruction": "Name a river.", "input": given},
                "generation_config": config,
            }
            assert client.post("/generate", json=body).json() == {"output": "The Wend."}
            assert engine.prompt == ALONE
    assert client.post("/generate", json={"prompt_config": {"instruction": "x"}}).status_code == 200
    assert engine.last.sampling == Sampling(128, True, 0.1, 40, 0.75)


def test_the_other_templates_are_asked_for_by_name(client: TestClient, engine: SayingEngine) -> None:
    asked = {"instruction": "Name a river."}
    for template, alone, with_input in (
        ("alpaca", ALONE, WITH_INPUT),
        ("alpaca_short", SHORT + "### Response:\n", WITH_INPUT[WITH_INPUT.index("###") :]),
        ("none", "Name a river.", "Name a river.\nIn Wend, {instruction}"),
    ):
        client.post("/generate", json={"prompt_config": asked | {"template": template}})
        assert engine.prompt == alone
        more = {"template": template, "input": "In Wend, {instruction}"}
        client.post("/generate", json={"prompt_config": asked | more})
        assert engine.prompt == with_input


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt_config", "is needed"),
        ({"prompt_config": {}}, "prompt_config.instruction", "is needed"),
        ({"prompt_config": {"instruction": ""}}, "prompt_config.instruction", "at least 1"),
        ({"prompt_config": {"instruction": "x", "imput": "y"}}, "prompt_config.imput", 'mean "input"'),
        ({"prompt_config": {"instruction": "x", "template": "vicuna"}}, "prompt_config.template", "'alpaca'"),
        ({"generation_config": {"num_beams": 9}}, "generation_config.num_beams", "equal to 8"),
        ({"generation_config": {"temperature": -1}}, "generation_config.temperature", "equal to 0"),
        ({"generation_config": {"max_new_tokens": 5000}}, "generation_config.max_new_tokens", "1 to 4096"),
        ({"generation_config": {"top_k": 1.5}}, "generation_config.top_k", "valid integer"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str, words: str) -> None:
    if "generation_config" in body:
        body = body | {"prompt_config": {"instruction": "x"}}
    response = client.post("/generate", json=body)
    assert words in error_of(response, 400, response.json()["error"]["code"], param)


def test_beams_are_refused_by_name_where_the_engine_has_none(tmp_path: Path) -> None:
    body: dict[str, Any] = {"prompt_config": {"instruction": "x"}, "generation_config": {"num_beams": 4}}
    with client_of(rooms_in(tmp_path)) as client:
        response = client.post("/generate", json=body)
        error_of(response, 400, "unsupported_parameter", "generation_config.num_beams")
        body["generation_config"]["num_beams"] = 1
        assert client.post("/generate", json=body).status_code == 200
