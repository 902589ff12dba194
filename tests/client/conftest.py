"""A running enclave with an application of ours in it, and a user who trusts it."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import hashlib
import ipaddress
import socket
import ssl
import threading
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import blindbox.requests as requests
from blindbox import UnsafeSimulatedPolicy
from blindbox_attestation import simulated
from tests.kit.amd import FakeAmd
from tests.kit.enclave import RunningEnclave, running
from tests.kit.kds import KeyService
from tests.kit.own_home import moved_to
from tests.kit.relay import Relay
from tests.kit.simulated import unsafe

warnings.filterwarnings("ignore", category=simulated.UnsafeSimulationWarning)

VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class App:
    """What runs inside: it tells back what it was asked, and counts."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.asgi = Starlette(
            routes=[
                Route("/echo", self.echo, methods=VERBS),
                Route("/echo/{rest:path}", self.echo, methods=VERBS),
                Route("/run/{name}", self.run, methods=VERBS),
                Route("/cookies/set", self.set_cookie),
                Route("/go", self.go, methods=VERBS),
                Route("/gzip", self.gzip),
                Route("/events", self.events),
                Route("/big", self.big),
                Route("/slow", self.slow, methods=VERBS),
                Route("/status/{status:int}", self.status, methods=VERBS),
                Route("/digest", self.digest, methods=["POST"]),
            ]
        )

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        return JSONResponse(
            {
                "method": request.method,
                "path": request.url.path,
                "query": request.url.query,
                "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in request.headers.raw],
                "body": b64encode(body).decode(),
            }
        )

    async def digest(self, request: Request) -> Response:
        told, size = hashlib.sha256(), 0
        async for piece in request.stream():
            told.update(piece)
            size += len(piece)
        return JSONResponse({"sha256": told.hexdigest(), "size": size})

    async def run(self, request: Request) -> Response:
        await request.body()
        with self.lock:
            self.runs[request.path_params["name"]] += 1
        return JSONResponse({"runs": self.runs[request.path_params["name"]]})

    async def set_cookie(self, request: Request) -> Response:
        response = PlainTextResponse("set")
        for name, value in request.query_params.items():
            response.set_cookie(name, value)
        return response

    async def go(self, request: Request) -> Response:
        to = request.query_params["to"].replace("AUTHORITY", request.headers.get("host", ""))
        return Response(status_code=int(request.query_params.get("status", "302")), headers={"location": to})

    async def gzip(self, request: Request) -> Response:
        return Response(gzip.compress(b"squeezed " * 1000), headers={"content-encoding": "gzip"})

    async def events(self, request: Request) -> Response:
        count = int(request.query_params.get("n", "5"))
        gap = float(request.query_params.get("gap", "0.1"))

        async def produce() -> AsyncIterator[str]:
            for number in range(count):
                yield f"data: {number}\n\n"
                await asyncio.sleep(gap)

        return StreamingResponse(produce(), media_type="text/event-stream")

    async def big(self, request: Request) -> Response:
        size = int(request.query_params["n"])

        async def produce() -> AsyncIterator[bytes]:
            for start in range(0, size, 65536):
                yield bytes([start // 65536 % 251]) * min(65536, size - start)

        return StreamingResponse(produce(), media_type="application/octet-stream")

    async def slow(self, request: Request) -> Response:
        await asyncio.sleep(float(request.query_params.get("s", "1")))
        return PlainTextResponse("at last")

    async def status(self, request: Request) -> Response:
        return PlainTextResponse(f"sealed {request.path_params['status']}", request.path_params["status"])


@pytest.fixture(scope="session")
def app() -> App:
    return App()


@pytest.fixture(scope="session")
def enclave(app: App) -> Iterator[RunningEnclave]:
    with running(app.asgi) as one:
        yield one


@pytest.fixture(scope="session")
def simulated_policy() -> UnsafeSimulatedPolicy:
    return unsafe()


@pytest.fixture
def policy(simulated_policy: UnsafeSimulatedPolicy) -> Any:
    return simulated_policy


@pytest.fixture
def session(policy: Any) -> Iterator[requests.Session]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = requests.Session(policy=policy)
    with one:
        yield one


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return moved_to(tmp_path / "home", monkeypatch)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def relay(enclave: RunningEnclave) -> Iterator[Relay]:
    with Relay(enclave.origin) as one:
        yield one


@pytest.fixture
def kds(amd: FakeAmd) -> Iterator[KeyService]:
    """The server on which this vendor publishes."""
    with KeyService(amd) as one:
        yield one


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's side of TLS on loopback, and the file of its certificate, which nobody trusts by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, str(folder / "cert.pem")
