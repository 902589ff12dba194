"""
A pytest plugin for a suite that was written for `requests`: what it imports under that name is
`blindbox.requests`, and its httpbin runs in an enclave.

`python -P -m pytest -p tests.kit.sealed_suite -p no:httpbin FOLDER`, with this repository last on the path.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import blindbox.requests
from blindbox import UnsafeSimulatedPolicy, adapter, trust
from blindbox.timeouts import Timeouts
from enclave_app.gateway import ASGIApp, Gateway
from tests.kit.enclave import make_identity, running, serving

_HOME = tempfile.TemporaryDirectory()  # nothing is kept
os.environ["BLINDBOX_HOME"] = _HOME.name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _POLICY: Any = UnsafeSimulatedPolicy()


class _TrustsLoopback(trust.TrustStore):
    """Every origin of such a suite is a server of its own, on this machine."""

    def get(self, url: str) -> Any:
        return _POLICY


# A suite's bare sockets never show evidence: it is not waited for as long.
adapter.EVIDENCE_LIMITS = Timeouts(connect=5.0, between_bytes=2.0, in_all=10.0)
trust.STORE = _TrustsLoopback()
blindbox.requests._DOOR._trust = trust.STORE


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """From here on `import requests` means the sealed one, and `tests` the suite's own package."""
    import_module("requests.help")  # to be found although its package is no longer on the path
    sealed = "blindbox.requests"
    for name in [name for name in sys.modules if name == sealed or name.startswith(f"{sealed}.")]:
        sys.modules["requests" + name.removeprefix(sealed)] = sys.modules[name]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def _httpbin() -> ASGIApp:
    middleware: Any = import_module("a2wsgi").WSGIMiddleware
    httpbin: Any = import_module("httpbin").app

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input_terminated"] = True  # or it reads no body whose length it is not told
        environ["REMOTE_ADDR"] = ""  # nobody's inside, and digest authentication wants a string
        return httpbin(environ, start_response)

    app: ASGIApp = middleware(wsgi)
    return app


@dataclass(frozen=True)
class Served:
    """What the suite asks of a fixture of pytest-httpbin."""

    url: str


def _certificates() -> Path:
    return Path(str(import_module("pytest_httpbin.certs").where())).parent


@pytest.fixture(scope="session")
def httpbin() -> Iterator[Served]:
    with running(_httpbin()) as enclave:
        yield Served(enclave.origin)


@pytest.fixture(scope="session")
def httpbin_secure() -> Iterator[Served]:
    """The same behind TLS: the sealed messages travel within it."""
    certificates = _certificates()
    tls: dict[str, Any] = {
        "ssl_certfile": str(certificates / "server.pem"),
        "ssl_keyfile": str(certificates / "server.key"),
    }
    with serving(Gateway(_httpbin(), make_identity()), **tls) as port:
        yield Served(f"https://127.0.0.1:{port}")


@pytest.fixture
def httpbin_ca_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(_certificates() / "client.pem"))
