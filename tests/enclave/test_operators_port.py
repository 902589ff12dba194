"""
What the operator sees: health, readiness and figures on a port of loopback, and logs. Counts and durations:
nothing that a caller sent appears in any of them.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_app.figures import Figures
from enclave_app.logs import JsonLines
from tests.kit.process import Process, in_its_own_process

CANARY = "canary-4711"


@pytest.fixture(scope="module")
def enclave() -> Iterator[Process]:
    with in_its_own_process(engine={"room": 5000}) as running:
        yield running


def figure(text: str, name: str, **labels: str) -> float:
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    (found,) = re.findall(
        rf"^blindbox_{name}{re.escape('{' + wanted + '}') if wanted else ''} (.+)$", text, re.M
    )
    return float(found)


def metrics(enclave: Process) -> str:
    status, text = enclave.ask_operator("/metrics")
    assert status == 200
    return text


def test_a_request_is_counted_by_its_route_its_status_and_its_tokens(caller: Any, enclave: Process) -> None:
    for _ in range(3):
        answer = caller.post(f"{enclave.origin}/test", json={"input_text": "hello", "max_new_tokens": 4})
        assert answer.status_code == 200
    text = metrics(enclave)
    assert figure(text, "requests_total", route="/test", status="2xx") == 3
    assert figure(text, "request_seconds_count", route="/test") == 3
    assert figure(text, "prompt_tokens_total") == 15
    assert figure(text, "generated_tokens_total") == 12
    assert figure(text, "first_token_seconds_count") == 3
    assert figure(text, "token_seconds_count") == 3
    assert figure(text, "running", engine="echo") == figure(text, "waiting", engine="echo") == 0
    assert figure(text, "kv_room_tokens", engine="echo") == 5000
    assert figure(text, "kv_used_tokens", engine="echo") == 0
    assert figure(text, "engine_resident_bytes", engine="echo") > 1e6
    assert figure(text, "server_resident_bytes", engine="") > 1e6


def test_nothing_a_caller_sends_appears_in_figures_readiness_or_logs(caller: Any) -> None:
    """S-15, S-20: whatever is put where, in good requests and in bad ones."""
    with in_its_own_process(engine={"room": 5000}) as enclave:
        token = {"Authorization": f"Bearer {CANARY}-{'x' * 20}"}
        chat = {"model": CANARY, "messages": [{"role": "user", "content": CANARY}], "user": CANARY}
        for path, body in [
            ("/test", {"input_text": CANARY}),
            ("/test", {"input_text": CANARY, CANARY: 1, "max_new_tokens": "x" + CANARY}),
            (f"/{CANARY}", {"input_text": CANARY}),
            (f"/v1/files/{CANARY}", None),
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", chat | {"model": "echo", "stop": [CANARY]}),
            ("/v1/chat/completions", chat | {"model": "echo", "stream": True}),
            ("/inference", {"input_text": CANARY * 1000, "max_new_tokens": 4000}),
            ("/finetune", {"dataset_name": CANARY, "question_column": CANARY, "answer_column": CANARY}),
        ]:
            caller.request("POST" if body else "GET", f"{enclave.origin}{path}", json=body, headers=token)
        text = metrics(enclave)
        _, ready = enclave.ask_operator("/ready")
        assert figure(text, "requests_total", route="none", status="4xx") == 1
        assert figure(text, "requests_total", route="/v1/files/{file_id}", status="4xx") == 1
        assert figure(text, "refusals_total", code="context_length_exceeded") == 1
        assert figure(text, "refusals_total", code="model_not_found") == 1
        enclave.process.terminate()
        assert enclave.end() == 0
        logged = "\n".join(enclave.said)
        for seen in (text, ready, logged):
            assert "canary" not in seen.lower()
        assert all(json.loads(line) for line in enclave.said)


def test_the_port_answers_three_routes_and_nothing_else(enclave: Process) -> None:
    """S-15: no docs, no debug, no method but GET; it tells nothing of the sealed app's routes."""
    assert enclave.ask_operator("/health") == (200, '{"status":"alive"}\n')
    status, told = enclave.ask_operator("/ready")
    assert (status, json.loads(told)["status"]) == (200, "ready")
    assert json.loads(told)["engines"]["echo"]["state"] == "ready"
    for path in ("/", "/docs", "/openapi.json", "/test", "/metrics/", "/%6detrics", "//metrics"):
        assert enclave.ask_operator(path)[0] == 404


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"404"),
        (b"\xff\xfe\r\n\r\n", b"404"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n", b"400"),
    ],
)
def test_what_is_no_question_to_it_is_refused(enclave: Process, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", enclave.operators_port), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(100).split()[1] == status


def test_it_listens_on_loopback_alone(enclave: Process) -> None:
    """S-15: whoever is not inside the machine does not reach it."""
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if int(port, 16) == enclave.operators_port and line.split()[3] == "0A":
                listening.append(address)
    assert listening == ["0100007F"]


def test_none_of_it_is_on_the_port_that_the_world_sees(caller: Any, enclave: Process) -> None:
    """S-15: neither outside the seal nor inside."""
    for path in ("/metrics", "/health", "/ready"):
        with socket.create_connection(("127.0.0.1", enclave.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert connection.recv(100).split()[1] == b"404"
        assert caller.get(f"{enclave.origin}{path}").status_code == 404


def test_codes_are_few_whatever_happens() -> None:
    figures = Figures()
    for number in range(1000):
        figures.served("/test", 400, 0.1, f"code {number}")
    assert len(re.findall(r"^blindbox_refusals_total", figures.text().decode(), re.M)) == 65
    assert figure(figures.text().decode(), "refusals_total", code="other") == 1000 - 64


# Logs


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers = [handler]
    yield written
    root.handlers = before


def test_a_line_of_ours_has_its_words_and_the_fields_that_are_listed(log: io.StringIO) -> None:
    """S-20: a field that is not on the list is left out, whoever adds it."""
    logging.getLogger("enclave_app").warning(
        "an engine ended", extra={"engine": "org/name", "restarts": 2, "prompt": CANARY, "tenant": CANARY}
    )
    told = json.loads(log.getvalue())
    assert told.pop("time").startswith("20")
    assert told == {
        "level": "warning",
        "logger": "enclave_app",
        "event": "an engine ended",
        "engine": "org/name",
        "restarts": 2,
    }


def test_a_listed_field_that_is_no_plain_word_or_number_is_left_out(log: io.StringIO) -> None:
    logging.getLogger("enclave_app").warning(
        "x", extra={"engine": "a\nb", "code": {"p": CANARY}, "status": []}
    )
    assert set(json.loads(log.getvalue())) == {"time", "level", "logger", "event"}


def test_an_exception_is_told_by_its_type(log: io.StringIO) -> None:
    """S-20: its text and its frames may hold what was being processed."""
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("enclave_app").exception("it failed")
    told = json.loads(log.getvalue())
    assert told["error"] == "ValueError"
    assert CANARY not in log.getvalue()


def test_what_a_library_logs_is_told_by_its_place_alone(log: io.StringIO) -> None:
    """S-20: asyncio prints the exceptions of tasks, with their text."""
    logging.getLogger("asyncio").error("Task exception was never retrieved: ValueError('%s')", CANARY)
    told = json.loads(log.getvalue())
    assert told["logger"] == "asyncio"
    assert told["at"].startswith("test_operators_port.py:")
    assert CANARY not in log.getvalue()
