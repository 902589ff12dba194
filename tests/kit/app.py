"""
The whole enclave on loopback: the real application and gateway over the echo engine, which answers at once.

    with whole_app() as enclave:
        blindbox.requests.get(f"{enclave.origin}/v1/models", policy=UnsafeSimulatedPolicy())

`echo_gateway` makes it without serving it. A small application to look at what travels, instead of this one,
is in `enclave.py`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enclave_app.catalogue import Source
from enclave_app.engines import Engine
from enclave_app.engines.echo import ByteTokenizer, EchoEngine
from enclave_app.engines.worker import Worker, in_thread
from enclave_app.gateway import Gateway
from enclave_app.main import create_app
from enclave_app.quoting import Quoter
from enclave_app.settings import Settings
from enclave_app.store import Store
from enclave_app.training import Trainer
from enclave_app.training.counting import CountingTrainer
from tests.kit.enclave import RunningEnclave, serving, simulated_quoter


def echo_gateway(
    folder: Path,
    *,
    engine: Engine | None = None,
    name: str = "echo",
    quoter: Quoter | None = None,
    trainer: Trainer | None = None,
    **settings: Any,
) -> Gateway:
    """The sealed application over one engine; its files lie in `folder`."""
    used = engine if engine is not None else EchoEngine()

    async def make() -> Worker:
        return await in_thread(used)

    source = Source(name, make, ByteTokenizer())
    return create_app(
        Settings(**{"engine": "echo", **settings}),
        base=source,
        instruct=source,
        trainer=trainer or CountingTrainer(),
        quoter=quoter or simulated_quoter(),
        store=Store(folder),
    )


@contextmanager
def whole_app(
    *,
    engine: Engine | None = None,
    name: str = "echo",
    quoter: Quoter | None = None,
    trainer: Trainer | None = None,
    port: int = 0,
    **settings: Any,
) -> Iterator[RunningEnclave]:
    """Serve it until the block ends."""
    with tempfile.TemporaryDirectory(prefix="blindbox-") as folder:
        gateway = echo_gateway(
            Path(folder), engine=engine, name=name, quoter=quoter, trainer=trainer, **settings
        )
        with serving(gateway, port=port) as bound:
            yield RunningEnclave(f"http://127.0.0.1:{bound}", bound, gateway, gateway)


def idle(engine: EchoEngine, seconds: float = 60.0) -> bool:
    """Whether it works for nobody any more, at the latest after so many seconds."""
    deadline = time.monotonic() + seconds
    while engine.busy() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not engine.busy()
