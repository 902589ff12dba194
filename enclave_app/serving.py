"""
How the process ends: told to stop, it finishes what it has begun and takes nothing new.

    first SIGTERM (or Ctrl-C)   not ready any more; new requests get a sealed 503; what runs and waits may
                                finish, for `drain_seconds`; what is left then ends with a typed error
    second                      everything ends now

Engines end with the server in every case: they are closed here, and die with it when it is killed
(`engines/worker.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from types import FrameType
from typing import Final

import uvicorn

from .edge import server_config
from .engines.worker import UnusableEngine
from .main import Enclave
from .settings import Settings

_log = logging.getLogger("enclave_app")
_LAST_WORDS: Final = 2.0  # seconds to send the end of what was ended
CUT_SHORT: Final = 1
UNUSABLE: Final = 2


def serve(enclave: Enclave, settings: Settings) -> int:
    """Serve until told to stop; what comes back is what the process should end with."""
    _log.info(
        "starting",
        extra={"host": settings.host, "port": settings.port, "proved_by": enclave.identity.platform},
    )
    # log_config=None: the server's own formatter would print an exception's text and frames.
    config = server_config(enclave, host=settings.host, port=settings.port, log_config=None)
    server = Server(config, enclave, drain_seconds=settings.drain_seconds)
    server.run()
    if enclave.failure is not None and not server.told:
        print(f"not started: {_reason(enclave.failure)}", file=sys.stderr)
        return UNUSABLE
    _log.info("stopped")
    return server.exit_code


def _reason(failure: Exception) -> str:
    """What kept the engines or the operator's port from being opened; no caller has been there yet."""
    if isinstance(failure, UnusableEngine):
        return f"an engine cannot be started: {failure}."
    if isinstance(failure, OSError):
        return f"BLINDBOX_OPERATOR_PORT: {failure.strerror}."
    return f"an unexpected {type(failure).__name__} while the engines were being started."


class Server(uvicorn.Server):
    """Serves an enclave until it is told to stop. `exit_code` is what the process should end with."""

    def __init__(self, config: uvicorn.Config, enclave: Enclave, *, drain_seconds: float) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._enclave = enclave
        self._seconds = drain_seconds
        self._told = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def told(self) -> bool:
        """Was it told to stop?"""
        return self._told > 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn serves."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the engines, then listen."""
        try:
            await super().startup(sockets)
        except SystemExit:
            if self._enclave.failure is None:
                raise
            self.should_exit = True  # what failed is told by whoever started this

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. Not kept, as uvicorn would: raised again in the end, it would be the exit code."""
        self._told += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin if self._told == 1 else self._now)

    def _begin(self) -> None:
        if not self.started:
            self._enclave.desk.close()  # the engines are still being started; nothing is lost
            self.should_exit = True
            return
        _log.info("stopping", extra={"seconds": self._seconds})
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        until = time.monotonic() + self._seconds
        await self._enclave.desk.drain(self._seconds)
        # The rest of the time is for whatever else runs: uploads, trainings, the ends of streams.
        self.config.timeout_graceful_shutdown = round(max(_LAST_WORDS, until - time.monotonic()))
        self.should_exit = True
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        self._enclave.desk.close()

    def _now(self) -> None:
        _log.info("stopping at once")
        self.exit_code = CUT_SHORT
        self._enclave.desk.close()
        self.config.timeout_graceful_shutdown = 1
        self.should_exit = self.force_exit = True
        if self._loop is not None:  # whatever a thread may still be waiting for
            self._loop.call_later(_LAST_WORDS, os._exit, CUT_SHORT)
