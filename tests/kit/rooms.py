"""
The inner application without its seal, over the echo engine or any other: for looking at routes alone.

    with client_of(rooms_in(folder, most_choices=2)) as client:
        client.post("/v1/chat/completions", json={...})

The whole enclave, sealed and on a port, is in `app.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from enclave_app.api import Rooms, build_api
from enclave_app.api.files import keeping
from enclave_app.api.tenant import expiring
from enclave_app.catalogue import Catalogue, Source
from enclave_app.engines import Engine
from enclave_app.engines.desk import Desk
from enclave_app.engines.echo import ByteTokenizer, EchoEngine
from enclave_app.engines.worker import Worker, in_thread
from enclave_app.hub import hub_of
from enclave_app.jobs.foreman import Foreman
from enclave_app.jobs.material import Material
from enclave_app.settings import Settings
from enclave_app.store import Store
from enclave_app.training import Trainer
from enclave_app.training.counting import CountingTrainer

ALICE = {"authorization": "Bearer alice-alice-alice-alice"}
BOB = {"authorization": "Bearer bob-bob-bob-bob-bob-bob"}


def source_of(engine: Engine, tokenizer: Any = None, name: str = "org/echo") -> Source:
    """A model of an engine that runs on a thread."""

    async def make() -> Worker:
        return await in_thread(engine)

    return Source(name, make, tokenizer if tokenizer is not None else ByteTokenizer())


def rooms_in(
    folder: Path,
    *,
    engine: Engine | None = None,
    tokenizer: Any = None,
    trainer: Trainer | None = None,
    **settings: Any,
) -> Rooms:
    """Rooms over one engine, which answers as base and as instruct model; files lie in `folder`."""
    settings.setdefault("engine", "echo")
    told = Settings(**settings)
    store = Store(folder, most_bytes=settings.get("max_stored_bytes"))
    source = source_of(engine if engine is not None else EchoEngine(), tokenizer)
    desk = Desk(most_waiting=told.max_waiting, most_of_one=told.max_waiting_each, most_tuned=told.max_tuned)
    catalogue = Catalogue(source, source, desk, store, most_models=told.max_models_each)
    foreman = Foreman(
        told,
        store,
        trainer if trainer is not None else CountingTrainer(),
        Material(told, store, catalogue, hub_of(told)),
        catalogue,
        expire=expiring(store),
        keep=keeping(store, told),
    )
    return Rooms(settings=told, store=store, catalogue=catalogue, desk=desk, foreman=foreman)


@contextmanager
def client_of(rooms: Rooms, headers: dict[str, str] | None = None) -> Iterator[TestClient]:
    """A client of the inner application; the engines run while the block does."""
    with TestClient(build_api(rooms), headers=ALICE if headers is None else headers) as client:
        yield client


def error_of(response: Any, status: int, code: str, param: str | None = None) -> str:
    """The message of a refusal of this status and code, about this field if one is given."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert param is None or error["param"] == param, error
    message: str = error["message"]
    return message


def events_of(text: str) -> list[tuple[str, Any]]:
    """Server-sent events: the name of each ("" = none), and its data as JSON (`[DONE]` as it is)."""
    events = []
    for block in text.strip().split("\n\n"):
        name, _, data = block.rpartition("data: ")
        events.append((name.removeprefix("event: ").strip(), data if data == "[DONE]" else json.loads(data)))
    return events
