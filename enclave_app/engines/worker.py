"""
An engine in a process of its own: both ends of the conversation on one page.

OpenVINO's step holds Python's lock, PyTorch's takes the memory it can get, and either may be killed for it:
so each model has its process, and the one that answers the network keeps answering. A worker that dies takes
its own sequences with it and nothing else.

Down go JSON messages; what takes bytes is followed by one frame of them:

    {"do": "start", "key", "work"}   {"do": "cancel", "key"}
    {"do": "load", "version"} + adapter   {"do": "unload", "version"}   {"do": "gauges"}

Up come:

    {"say": "ready", "card"}   {"say": "unusable", "message"}
    {"say": "tokens", "of": [[key, [[id, logprob, top] …], finish] …]}   {"say": "step"}: still alive
    {"say": "refused", "key" | "version", "error"}   {"say": "loaded", "version"}   {"say": "gauges", "of"}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from .. import pipe
from ..child import PACKAGES
from ..offline import keep_from_hub
from ..refusals import Failed, Refusal
from . import Card, Constraint, Engine, Refused, Sampling, Spec, Token, Update, Work
from .adapter import Adapter

_HEAD = struct.Struct(">cQ")
_LARGEST: Final = 256 << 20  # bytes that an engine may say at once
_BEAT_SECONDS: Final = 1.0  # how often a worker whose steps bring nothing says that it makes them
_TAKING_SECONDS: Final = 0.1
_START: Final = (
    "import sys; sys.path[:0] = sys.argv[1:]; from enclave_app.engines.worker import child; child()"
)
_log = logging.getLogger("enclave_app")


class WorkerGone(Exception):
    """The worker's process has ended; `args[0]` says how."""


class UnusableEngine(Exception):
    """The engine could not be made; the message is for the operator."""


# --- the worker's side ------------------------------------------------------------------------------


def serve(engine: Engine, wire: socket.socket) -> None:
    """Step the engine while there is work, listen in between; ends when the other side closes."""
    with wire:
        _send_now(wire, {"say": "ready", "card": _told(engine.card())})
        said = time.monotonic()
        incoming = select.poll()
        incoming.register(wire, select.POLLIN)
        while True:
            # Between two steps what has come is taken in: a prompt joins the next step. But not for long: to
            # make a grammar of a schema takes a second, and those who are being answered wait meanwhile.
            taken = 0.0
            while incoming.poll(0 if engine.busy() else None):
                began = time.monotonic()
                try:
                    _obey(engine, wire)
                except pipe.PipeClosed:
                    return
                taken += time.monotonic() - began
                if taken > _TAKING_SECONDS and engine.busy():
                    break
            done = engine.step()
            updates = [each for each in done if isinstance(each, Update)]
            if updates:
                _send_now(wire, {"say": "tokens", "of": updates})
            for each in done:
                if isinstance(each, Refused):
                    _send_now(wire, {"say": "refused", "key": each.key, "error": _error(each.refusal)})
            if not done and time.monotonic() - said > _BEAT_SECONDS:
                _send_now(wire, {"say": "step"})  # a long prompt is being read
            elif not done:
                continue
            said = time.monotonic()


def _obey(engine: Engine, wire: socket.socket) -> None:
    message = _receive_now(wire)
    match message["do"]:
        case "start":
            try:
                engine.start(message["key"], _work(message["work"]))
            except Refusal as refusal:
                _send_now(wire, {"say": "refused", "key": message["key"], "error": _error(refusal)})
        case "cancel":
            engine.cancel(message["key"])
        case "load":
            adapter = Adapter.parse(_receive_now(wire))
            said: dict[str, Any] = {"say": "loaded", "version": message["version"]}
            try:
                engine.load(message["version"], adapter)
            except Refusal as refusal:
                said |= {"say": "refused", "error": _error(refusal)}
            _send_now(wire, said)
        case "unload":
            engine.unload(message["version"])
        case "gauges":
            _send_now(wire, {"say": "gauges", "of": engine.gauges()})


def child() -> None:
    """The process: read a spec, make its engine, serve it. Nothing is printed: it may quote a prompt."""
    _die_with_the_server()
    # A terminal's Ctrl-C and an init system's stop go to every process; what runs is finished first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wire = socket.socket(fileno=os.dup(0))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(quiet, stream)
    spec = _receive_now(wire)
    adapter = Adapter.parse(_receive_now(wire)) if spec.pop("adapter", False) else None
    try:
        engine = build(spec, adapter)
    except MemoryError:
        told = "there is not enough memory for it"
    except Exception as error:  # noqa: BLE001 - libraries raise what they like, and no prompt has been seen yet
        told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    else:
        with contextlib.suppress(pipe.PipeClosed, OSError):
            serve(engine, wire)
        os._exit(0)
    with contextlib.suppress(OSError):
        _send_now(wire, {"say": "unusable", "message": told})
    os._exit(1)


def _die_with_the_server() -> None:
    """Also while a model is being loaded, when nobody listens whether the other side is still there."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another system than Linux: then the wire tells
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, prctl(2)


def build(spec: Spec, adapter: Adapter | None = None) -> Engine:
    """The engine that a spec asks for; imports what it needs and no more."""
    options = {name: value for name, value in spec.items() if name != "engine"}
    match spec["engine"]:
        case "echo":
            from .echo import EchoEngine

            return EchoEngine(**options, adapter=adapter)
        case "openvino":
            from .openvino import OpenVinoEngine

            made: Engine = OpenVinoEngine(**options, adapter=adapter)
            return made
        case "torch":
            from .torch import TorchEngine

            return TorchEngine(**options)
    raise ValueError(f"there is no engine {spec['engine']!r}")


# --- the app's side -----------------------------------------------------------------------------------


class Worker:
    """
    One engine, elsewhere. Made by `in_process` or `in_thread`; lives on one event loop.

    `heard` is called with each `Update`; `refused` where a sequence is not taken; `gone` once, when the other
    side has ended, unless it was closed from here.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        end: Callable[[], None],
        *,
        wait: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._end = end
        self._wait = wait
        self._loads: dict[str, asyncio.Future[None]] = {}
        self._gauging: deque[asyncio.Future[dict[str, float]]] = deque()
        self._listening: asyncio.Task[None] | None = None
        self._closed = False
        self.card: Card = Card(None, 0, 0)
        self.heard: Callable[[Update], None] = lambda _: None
        self.refused: Callable[[int, Refusal], None] = lambda _, __: None
        self.gone: Callable[[], None] = lambda: None
        self.alive = False
        self.last_sign = time.monotonic()  # when it said something, of whatever kind
        self.pid: int | None = None

    @property
    def loading(self) -> bool:
        """Is it to load an adapter?"""
        return bool(self._loads)

    async def ready(self) -> Card:
        """Wait until the engine is warm; raises `UnusableEngine`."""
        try:
            message = await self._receive()
        except (asyncio.IncompleteReadError, OSError, ValueError):
            self.close()
            killed = await self.ended() == -signal.SIGKILL  # nobody but the kernel does that
            why = ", most likely for want of memory" if killed else ""
            raise UnusableEngine(f"its process ended while the model was being loaded{why}") from None
        if message["say"] != "ready":
            self.close()
            raise UnusableEngine(message["message"])
        card = message["card"]
        self.card = Card(
            **card
            | {
                "abilities": frozenset(card["abilities"]),
                "details": tuple((name, text) for name, text in card["details"]),
            }
        )
        self.alive = True
        self._listening = asyncio.create_task(self._listen())
        return self.card

    def start(self, key: int, work: Work) -> None:
        """Hand a sequence over. What becomes of it is told to `heard` or `refused`."""
        self._send({"do": "start", "key": key, "work": _told_work(work)})

    def cancel(self, key: int) -> None:
        """Nobody waits for this sequence any more."""
        self._send({"do": "cancel", "key": key})

    async def load(self, version: str, adapter: Adapter) -> None:
        """Have an adapter loaded; raises `Refusal`."""
        done = self._loads.get(version)
        if done is None:
            done = self._loads[version] = asyncio.get_running_loop().create_future()
            self._send({"do": "load", "version": version})
            self._send(adapter.encode())
        await asyncio.shield(done)

    def unload(self, version: str) -> None:
        """Have it forgotten."""
        self._send({"do": "unload", "version": version})

    async def gauges(self) -> dict[str, float]:
        """The engine's figures, asked for between two steps."""
        asked: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self._gauging.append(asked)
        self._send({"do": "gauges"})
        return await asked

    def kill(self) -> None:
        """End the other side as if it had died: `gone` will be called."""
        self._end()

    def close(self) -> None:
        """End the other side, now; whoever waits for something of it is told."""
        self._closed = True
        self._writer.close()
        self._over()

    async def ended(self) -> int | None:
        """Wait until its process is no more, and its memory free; its exit status, if it had one."""
        return await asyncio.to_thread(self._wait)

    def _send(self, message: dict[str, Any] | bytes) -> None:
        if not self.alive:
            raise WorkerGone("the engine's process has ended")
        self._writer.write(_frame(message))

    def _over(self) -> None:
        self.alive = False
        self._end()
        pending: list[asyncio.Future[Any]] = [*self._loads.values(), *self._gauging]
        self._loads.clear()
        self._gauging.clear()
        for waiting in pending:
            if not waiting.done():
                waiting.set_exception(WorkerGone("the engine's process has ended"))
                waiting.exception()  # perhaps nobody asks any more

    async def _receive(self) -> Any:
        kind, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
        if length > _LARGEST:
            raise ValueError("an engine says too much at once")
        data = await self._reader.readexactly(length)
        return data if kind == b"B" else json.loads(data)

    async def _listen(self) -> None:
        try:
            while True:
                message = await self._receive()
                self.last_sign = time.monotonic()
                self._take(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - what it says makes no sense: it is as good as dead
            _log.error("an engine's process is not understood", extra={"error": type(error).__name__})
        finally:
            self._over()
            self._writer.close()
            if not self._closed:
                self.gone()

    def _take(self, message: dict[str, Any]) -> None:
        match message["say"]:
            case "tokens":
                for key, tokens, finish in message["of"]:
                    self.heard(Update(key, tuple(_token(token) for token in tokens), finish))
            case "refused" if "key" in message:
                self.refused(message["key"], _refusal(message["error"]))
            case "refused" | "loaded":
                waiting = self._loads.pop(message["version"], None)
                if waiting is not None and not waiting.done():
                    if message["say"] == "loaded":
                        waiting.set_result(None)
                    else:
                        waiting.set_exception(_refusal(message["error"]))
            case "gauges":
                asked = self._gauging.popleft()
                if not asked.done():
                    asked.set_result(message["of"])


async def in_thread(engine: Engine) -> Worker:
    """An engine that needs no process, on a thread: for trying things out."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here, limit=1 << 20)
    threading.Thread(target=_serve_quietly, args=(engine, there), name="engine", daemon=True).start()

    def end() -> None:
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)

    return Worker(reader, writer, end)


async def in_process(spec: Spec, adapter: Adapter | None = None) -> Worker:
    """A new process that makes its engine of `spec` (and `adapter`, if it is to serve a tuned model)."""
    here, there = socket.socketpair()
    with there:
        try:
            # Not asyncio's: that one reaps through a watcher of the loop, and this may be ended after it.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own code
                [sys.executable, "-I", "-c", _START, *PACKAGES],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a library's complaint may quote a prompt
                env=environment(os.environ),
                close_fds=True,
            )
        except OSError as error:  # no memory, no processes or no files left
            here.close()
            raise UnusableEngine(f"no process can be started: {error.strerror}") from error

    def end() -> None:
        process.kill()  # one that has been reaped is left alone
        threading.Thread(target=process.wait, name="reaping", daemon=True).start()

    try:
        reader, writer = await asyncio.open_connection(sock=here, limit=1 << 20)
    except BaseException:
        end()
        raise
    writer.write(_frame(spec | ({"adapter": True} if adapter is not None else {})))
    if adapter is not None:
        writer.write(_frame(adapter.encode()))
    worker = Worker(reader, writer, end, wait=process.wait)
    worker.pid = process.pid
    return worker


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """What a child process of ours sees of the environment."""
    # Here, for the child imports this module too and should be quick at it.
    from ..settings import MALLOC_TUNABLES

    kept = {name: outer[name] for name in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS") if name in outer}
    kept |= {"LANG": "C.UTF-8", "GLIBC_TUNABLES": MALLOC_TUNABLES}
    # numpy merges small matrices (patch.py): its threads would wait for each other longer than they compute.
    kept["OPENBLAS_NUM_THREADS"] = "1"
    keep_from_hub(kept)
    return kept


# --- values as JSON -----------------------------------------------------------------------------------


def _told(card: Card) -> dict[str, Any]:
    return asdict(card) | {"abilities": sorted(card.abilities)}


def _told_work(work: Work) -> dict[str, Any]:
    # Not `asdict` as a whole: it would copy the prompt number by number.
    return {
        "ids": work.ids,
        "sampling": asdict(work.sampling),
        "tuning": work.tuning,
        "owner": work.owner,
    }


def _work(told: dict[str, Any]) -> Work:
    sampling = told["sampling"]
    constraint = sampling["constraint"]
    sampling |= {
        "logit_bias": tuple((token, bias) for token, bias in sampling["logit_bias"]),
        "constraint": None if constraint is None else Constraint(**constraint),
    }
    return Work(tuple(told["ids"]), Sampling(**sampling), told["tuning"], told["owner"])


def _token(told: list[Any]) -> Token:
    return Token(told[0], told[1], tuple((token, logprob) for token, logprob in told[2]))


def _error(refusal: Refusal) -> dict[str, Any]:
    return {
        "kind": type(refusal).__name__,
        "message": refusal.message,
        "code": refusal.code,
        "param": refusal.param,
        "status": refusal.status,
        "retry_after": refusal.retry_after,
    }


def _refusal(told: dict[str, Any]) -> Refusal:
    from .. import refusals

    kind = getattr(refusals, told.pop("kind"), Failed)
    message = told.pop("message")
    made: Refusal = kind(message, **told)
    return made


def _frame(message: dict[str, Any] | bytes) -> bytes:
    kind, data = (b"B", message) if isinstance(message, bytes) else (b"J", json.dumps(message).encode())
    return _HEAD.pack(kind, len(data)) + data


def _send_now(wire: socket.socket, message: dict[str, Any] | bytes) -> None:
    wire.sendall(_frame(message))


def _receive_now(wire: socket.socket) -> Any:
    # Never more than a frame: what is read ahead, `select` would no longer tell of.
    kind, length = _HEAD.unpack(_exactly(wire, _HEAD.size))
    data = _exactly(wire, length)
    return data if kind == b"B" else json.loads(data)


def _exactly(wire: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = wire.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise pipe.PipeClosed
        data += piece
    return bytes(data)


def _serve_quietly(engine: Engine, wire: socket.socket) -> None:
    try:
        serve(engine, wire)
    except (pipe.PipeClosed, OSError):
        return
    except Exception as error:  # noqa: BLE001 - told by type alone
        _log.error("an engine's thread ended: %s", type(error).__name__)
