"""A running enclave, simulated or believed, and a user of its own who talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.openai_ways import WAYS
from tests.kit.own_home import moved_to
from tests.kit.pinned_amd import FakeAmdQuoter


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return moved_to(tmp_path / "home", monkeypatch)


@pytest.fixture(scope="module")
def enclave() -> Iterator[RunningEnclave]:
    """The whole enclave, on a simulated machine."""
    with whole_app() as one:
        yield one


@pytest.fixture(scope="module")
def machine(amd: FakeAmd) -> Iterator[RunningEnclave]:
    """The whole enclave, on a machine that proves itself to a pinned root; its engine answers at once."""
    with whole_app(name="org/echo", quoter=FakeAmdQuoter(amd)) as one:
        yield one


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def client(
    request: pytest.FixtureRequest, enclave: RunningEnclave, own_home: Path
) -> Iterator[openai.OpenAI]:
    with request.param(enclave.origin) as one:
        yield one
