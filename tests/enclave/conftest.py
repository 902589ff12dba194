"""The inner application, over an engine and in rooms that a module may choose; and a caller from outside."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import blindbox.requests as requests
from blindbox import UnsafeSimulationWarning
from enclave_app.api import Rooms
from enclave_app.engines import Engine
from enclave_app.engines.echo import EchoEngine
from tests.kit.rooms import client_of, rooms_in
from tests.kit.simulated import unsafe


@pytest.fixture
def engine() -> Engine:
    return EchoEngine()


@pytest.fixture
def rooms(tmp_path: Path, engine: Engine) -> Rooms:
    return rooms_in(tmp_path / "data", engine=engine)


@pytest.fixture
def client(rooms: Rooms) -> Iterator[TestClient]:
    with client_of(rooms) as made:
        yield made


@pytest.fixture
def caller() -> Iterator[requests.Session]:
    """Somebody who takes a simulated machine."""
    with (
        warnings.catch_warnings(action="ignore", category=UnsafeSimulationWarning),
        requests.Session(policy=unsafe()) as session,
    ):
        yield session
