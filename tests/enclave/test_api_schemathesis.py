"""
Anything a generator can think of, sent to every route of the inner application.

The application serves no description of itself; one is made here, from the bodies it reads. Half of what is
sent fits it, half does not. Promised: no 5xx, and of every refusal the one shape, naming the field at fault.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import BaseModel
from schemathesis.generation import GenerationMode
from starlette.testclient import TestClient

from enclave_app.api.alpaca import Generate
from enclave_app.api.bodies import Lesson, Question
from enclave_app.api.chat import Chat
from enclave_app.api.completions import Text
from tests.kit import openai_shapes
from tests.kit.rooms import client_of, events_of, rooms_in
from tests.kit.saying import SayingEngine

BODIES: dict[str, type[BaseModel]] = {
    "/test": Question,
    "/inference": Question,
    "/finetune": Lesson,
    "/generate": Generate,
    "/v1/chat/completions": Chat,
    "/v1/completions": Text,
}
NAMED = ["/v1/models/{name}", "/v1/files/{name}"]
ABOUT_NO_FIELD = {"invalid_json", "not_found", "method_not_allowed", "body_too_large", "file_not_found"}


NARROWED: dict[
    str, dict[str, Any] | None
] = {  # by this enclave's settings, which a body's type does not know
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "best_of": None,
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 64},
    "max_new_tokens": {"type": "integer", "minimum": 1, "maximum": 64},
    "max_completion_tokens": None,
    "frequence_penalty": None,
    "logit_bias": {
        "type": "object",
        "properties": {"65": {"type": "number", "minimum": -100, "maximum": 100}},
    },
    "content": {"type": "string", "minLength": 1},
    "stop": {"type": ["string", "null"], "maxLength": 8},
    "top_logprobs": None,
    "model": {"const": "org/echo"},
    "suffix": None,
    "response_format": {"enum": [{"type": "text"}, {"type": "json_object"}, None]},
    "tool_choice": {"enum": ["none", "auto", None]},
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    **dict.fromkeys(("audio", "functions", "function_call", "web_search_options", "moderation")),
}


def narrowed(schema: Any) -> Any:
    """The schema without the fields that are always refused, and with the bounds that settings set."""
    if isinstance(schema, list):
        return [narrowed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: narrowed(each) for name, each in schema.items()}
    properties = made.get("properties")
    if isinstance(properties, dict):
        kept = {name: each for name, each in properties.items() if NARROWED.get(name, each) is not None}
        made["properties"] = kept | {name: NARROWED[name] for name in NARROWED.keys() & kept.keys()}
        made["required"] = [*made.get("required", ()), *({"content"} & kept.keys())]
    return made


def described() -> dict[str, Any]:
    """The inner application as an OpenAPI document."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    answer = {"default": {"description": "whatever it is"}}
    for path, body in BODIES.items():
        made = narrowed(body.model_json_schema(ref_template="#/components/schemas/{model}"))
        schemas |= made.pop("$defs", {}) | {body.__name__: made}
        wanted = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        paths[path] = {"post": {"requestBody": {"required": True, "content": wanted}, "responses": answer}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for path in NAMED:
        paths[path] = {"get": {"parameters": [name], "responses": answer}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "inner", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


SCHEMA = schemathesis.openapi.from_dict(described())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with tempfile.TemporaryDirectory(prefix="blindbox-") as folder:
        rooms = rooms_in(Path(folder), engine=SayingEngine(context=5000))
        with client_of(rooms) as made:
            yield made


def examine(client: TestClient, path: str, mode: GenerationMode, examples: int) -> None:
    method = "GET" if path in NAMED else "POST"
    statuses = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 1000,  # the short form is the same every time, the long one is not
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=SCHEMA[path][method].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        wanted = case.as_transport_kwargs(base_url="http://testserver")
        sent = {name: wanted[name] for name in ("method", "url", "json", "headers") if name in wanted}
        if wanted.get("data") is not None:
            sent["content"] = wanted["data"]
        sent["headers"] = {
            name: value
            for name, value in (wanted.get("headers") or {}).items()
            if name.lower() != "authorization"
        }
        response = client.request(**sent)
        statuses.add(response.status_code)
        judge(path, response)

    send()
    assert statuses, "nothing was sent"
    if method == "POST" and path != "/finetune":
        # What fits is answered now and then, and what does not never is.
        assert mode is not GenerationMode.POSITIVE or 200 in statuses, statuses
        assert mode is not GenerationMode.NEGATIVE or statuses & {400, 404}


def judge(path: str, response: Any) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["param"] is not None or error["code"] in ABOUT_NO_FIELD, error
    elif response.headers["content-type"].startswith("text/event-stream"):
        shapes = openai_shapes.chunks if path == "/v1/chat/completions" else openai_shapes.texts
        shapes(events_of(response.text))
    elif path == "/v1/chat/completions":
        openai_shapes.chat(response.json())
    elif path == "/v1/completions":
        openai_shapes.text(response.json())


CASES = [
    *((path, mode) for path in BODIES for mode in GenerationMode),
    *((path, GenerationMode.POSITIVE) for path in NAMED),  # everything is a name
]


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_whatever_is_sent_nothing_breaks_and_every_refusal_names_its_field(
    client: TestClient, path: str, mode: GenerationMode
) -> None:
    """S-24: fields of every kind and size, on every route."""
    examine(client, path, mode, 25)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "mode"), CASES)
def test_whatever_is_sent_for_long_nothing_breaks(
    client: TestClient, path: str, mode: GenerationMode
) -> None:
    """S-24: the long form."""
    examine(client, path, mode, 1000)
