"""Which routes there are, and what none of them does: no documents, no CORS, no belief in a Host field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI

from enclave_app.api import build_api
from tests.kit import openai_shapes
from tests.kit.rooms import client_of, error_of, rooms_in

ROUTES = {
    ("GET", "/"),
    ("POST", "/test"),
    ("POST", "/inference"),
    ("POST", "/finetune"),
    ("POST", "/fine_tune"),
    ("POST", "/finetuning"),
    ("POST", "/generate"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name:path}"),
    ("GET", "/v1/models/{name:path}/content"),
    ("DELETE", "/v1/models/{name:path}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/uploads"),
    ("GET", "/v1/uploads/{upload_id}"),
    ("POST", "/v1/uploads/{upload_id}/parts"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/uploads/{upload_id}/cancel"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    ("DELETE", "/v1/fine_tuning/jobs/{job_id}"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/metrics"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/receipt"),
    ("POST", "/v1/fine_tuning/preview"),
    ("DELETE", "/v1/blindbox/tenant"),
    ("GET", "/v1/blindbox/status"),
}


def every_route(app: FastAPI) -> set[tuple[str, str]]:
    """All of them; the routes of an included router are found behind it, and nothing else is expected."""
    found: set[tuple[str, str]] = set()
    for router in app.routes:
        for route in router.effective_route_contexts():  # type: ignore[attr-defined]
            found |= {(method, route.path) for method in route.methods}
    return found


def test_the_routes_are_these_and_no_others(tmp_path: Path) -> None:
    """S-15: an allow-list; whoever adds a route adds it here, knowingly."""
    assert every_route(build_api(rooms_in(tmp_path))) == ROUTES


NOWHERE = """
    /docs /docs/oauth2-redirect /redoc /openapi.json /metrics /health /debug /config /static/x /.env
    /v1 /v1/ /v1/engines /v1/embeddings /v1/responses /v1/completions/x /test/
"""


@pytest.mark.parametrize("path", NOWHERE.split())
def test_nothing_else_is_there_and_the_answer_names_what_is(tmp_path: Path, path: str) -> None:
    """S-15: no documents, no metrics, no debugging; and nobody is sent elsewhere by a slash."""
    with client_of(rooms_in(tmp_path)) as client:
        for method in ("GET", "POST", "OPTIONS"):
            message = error_of(client.request(method, path, follow_redirects=False), 404, "not_found")
            for _, route in ROUTES - {("GET", "/")}:
                if route not in ("/fine_tune", "/finetuning"):
                    assert route.partition("/{")[0] in message


@pytest.mark.parametrize("origin", [None, "null", "http://127.0.0.1:8080", "https://evil.example", "*"])
@pytest.mark.parametrize("host", ["enclave", "evil.example", "127.0.0.1:80", "[::1]", "a b", "x" * 300, ""])
def test_no_origin_is_let_in_and_no_host_is_believed(tmp_path: Path, origin: str | None, host: str) -> None:
    """S-16: no CORS for anyone, preflight included, and the Host field changes nothing."""
    fields = {"host": host} | ({} if origin is None else {"origin": origin})
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with client_of(rooms_in(tmp_path)) as client:
        answers = [
            client.get("/", headers=fields),
            client.get("/v1/models", headers=fields),
            client.post("/v1/completions", json={"prompt": "x"}, headers=fields),
            client.post("/v1/completions", json={"prompt": "x", "stream": True}, headers=fields),
            client.post("/test", json={}, headers=fields),
            client.options("/v1/chat/completions", headers=fields | preflight),
            client.options("/", headers=fields | preflight),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 400, 405, 405]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "location" not in answer.headers
        if host not in ("enclave", "", "127.0.0.1:80"):
            assert host not in answer.text


def test_models_are_listed_and_found_by_names_with_slashes(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path)) as client:
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        (one,) = [openai_shapes.model(each) for each in listed["data"]]
        assert (one.id, one.owned_by) == ("org/echo", "blindbox")
        assert client.get("/v1/models/org/echo").json() == listed["data"][0]
        assert client.get("/v1/models/org%2Fecho").json() == listed["data"][0]
        for name in ("org", "org/echo/", "echo", "%00", "é"):
            error_of(client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")


def test_a_tuned_model_that_fits_nothing_any_more_hides_no_other(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"q": str(n), "a": "x"}) for n in range(3))
    lesson = {"question_column": "q", "answer_column": "a", "number_elements_for_training": 3}
    rooms = rooms_in(tmp_path)
    with client_of(rooms) as client:
        upload = client.post("/v1/files", files={"file": ("r.jsonl", rows)}).json()
        assert client.post("/finetune", json=lesson | {"dataset_name": upload["id"]}).status_code == 200
        assert len(client.get("/v1/models").json()["data"]) == 2
        (adapter,) = rooms.store.root.glob("*/adapters/*")
        adapter.write_bytes(b"x" * 48 + adapter.read_bytes()[48:])
    with client_of(rooms_in(tmp_path)) as client:  # nothing of it is in memory any more
        assert client.get("/v1/models").json()["data"][0]["id"] == "org/echo"
        assert client.get("/v1/models/org/echo").status_code == 200


def test_every_answer_carries_an_id_of_its_own(tmp_path: Path) -> None:
    with client_of(rooms_in(tmp_path)) as client:
        ids = [client.get(path).headers["x-request-id"] for path in ("/", "/", "/nothing", "/v1/models")]
        assert len(set(ids)) == 4
