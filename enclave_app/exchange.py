"""
One sealed request and its one sealed answer, each as the half of ASGI that the application sees.

`SealedRequest` turns outer body pieces into `http.request` events as they are opened; `SealedAnswer` turns
the application's events into sealed, padded chunks. Which exchanges are let in, and what the network sees of
those that are not, is decided in `gateway.py`. SPEC §5.2 to §5.6.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from blindbox_attestation.channel import bhttp
from blindbox_attestation.channel.hpke import TAG_SIZE, PrivateKey
from blindbox_attestation.channel.ohttp import (
    CHUNKED_RESPONSE,
    MAX_CHUNK,
    RESPONSE,
    RequestOpener,
    ResponseSealer,
)
from blindbox_attestation.errors import SealingError

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Fields = tuple[tuple[bytes, bytes], ...]

STEP: Final = 2048  # a sealed chunk of a streamed answer is a multiple of this: SPEC §5.5
LEAST: Final = 512  # of a whole answer
LARGEST: Final = MAX_CHUNK // STEP * STEP - TAG_SIZE  # plaintext of the largest chunk that is one
WHOLE_PIECE: Final = 16 * MAX_CHUNK  # a long whole answer goes out in pieces, as the client takes them

_CONTENT_HEAD = 2  # the length of a content chunk of 64 to 16383 bytes (RFC 9000 §16)
_FRAME_HEAD = 4  # SPEC §5.5
_END = bhttp.end()
_FRAMED = (b"blindbox-padding", b"1")
_PAD = b"blindbox-pad"

DROPPED = frozenset(
    # Of a connection, not of a message (RFC 9110 §7.6.1). The inner message has no connection.
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)


class NotOpened(Exception):
    """The message was not opened. The network is told nothing more: SPEC §1."""


class ClientGone(Exception):
    """The connection is lost; there is nobody to answer."""


class TooLarge(Exception):
    """More bytes came than the limits allow."""


class TooSlow(Exception):
    """The receipt deadline passed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the gateway's own, inside the seal: SPEC §5.6."""

    status: int
    code: str
    message: str
    fields: Fields = ()

    def encode(self) -> bytes:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


MALFORMED = Refusal(400, "malformed-request", "the sealed bytes are no Binary HTTP request (RFC 9292)")
TRUNCATED = Refusal(
    400, "truncated-request", "the request ended before its authenticated end, or was altered"
)
LARGE = Refusal(413, "request-too-large", "the request is larger than this enclave accepts")
SLOW = Refusal(408, "request-too-slow", "the request took longer to arrive than this enclave waits")
FAILED = Refusal(500, "internal-error", "the application failed; nothing about the request was logged")
UNFINISHED = Refusal(500, "internal-error", "the application ended without an answer")


class SealedRequest:
    """
    Takes outer body events in, gives the inner request out, piece by piece.

    Nothing is read ahead of the application, so what it does not take stays with the sender. `failure` says
    what went wrong after the message had been opened; the application then sees `http.disconnect` and never a
    complete body.
    """

    def __init__(
        self,
        outer: Receive,
        keys: Mapping[int, PrivateKey],
        admit: Callable[[int, bytes], None],
        *,
        chunked: bool,
        limit: int,
        seconds: float,
        rate: float,
    ) -> None:
        self._outer = outer
        self._admit = admit
        self._opener = RequestOpener(keys, chunked=chunked, admit=self._let_in)
        self._limit = limit
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + seconds
        self._rate = rate
        self._parser = bhttp.RequestParser()
        self._head: bhttp.RequestHead | None = None
        self._pieces: list[bytes] = []
        self._ended = False  # the inner message is complete and authenticated
        self._given = False  # … and the application has been told so
        self._gone = False
        self._received = 0
        self.key_id = 0  # of the key that opened it
        self.opened = False
        self.arrived = False  # the outer request has come to its end
        self.failure: Refusal | None = None

    async def head(self) -> bhttp.RequestHead | None:
        """
        Read until the inner head is known, or something failed after opening (see `failure`).

        Whatever keeps a message from being opened, the rest of it is read before `NotOpened` is raised: the
        answer does not tell at which byte or at which check it failed. `TooLarge`, `TooSlow` and `ClientGone`
        are about no content.
        """
        while self._head is None and self.failure is None and not self.arrived:
            try:
                await self._take()
            except SealingError as error:
                if not self.opened:
                    await self.discard()
                    raise NotOpened from error
                self.failure = MALFORMED if self._head is None else TRUNCATED
            except (TooLarge, TooSlow) as error:
                if not self.opened:
                    raise
                self.failure = LARGE if isinstance(error, TooLarge) else SLOW
        if not self.opened:
            raise NotOpened
        return self._head

    @property
    def gone(self) -> bool:
        """Whether the application has been told that the client left."""
        return self._gone

    def sealer(self) -> ResponseSealer:
        """What seals the one answer to this request."""
        return self._opener.response_sealer()

    async def receive(self) -> Event:
        """The application's `receive`."""
        while not (self._pieces or self._given or self._gone or self.failure is not None or self._ended):
            try:
                await self._take()
            except SealingError:
                self.failure = TRUNCATED
            except TooLarge:
                self.failure = LARGE
            except TooSlow:
                self.failure = SLOW
            except ClientGone:
                self._gone = True
        if self._gone or self.failure is not None:
            return {"type": "http.disconnect"}
        if self._given:
            # The request is complete: what else comes from outside is that the client leaves.
            while (await self._outer())["type"] != "http.disconnect":
                pass
            self._gone = True
            return {"type": "http.disconnect"}
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._given = self._ended
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    async def discard(self) -> None:
        """Read the outer request to its end, within the same limits, and keep nothing."""
        while not self.arrived:
            await self._next()

    def _let_in(self, key_id: int, replay_id: bytes) -> None:
        self._admit(key_id, replay_id)
        self.key_id = key_id
        self.opened = True

    async def _take(self) -> None:
        data = await self._next()
        for piece in self._opener.feed(data):
            self._keep(self._parser.feed(piece))
        if self.arrived:
            for piece in self._opener.close():
                self._keep(self._parser.feed(piece))
            self._keep(self._parser.close())
            self._ended = True

    def _keep(self, events: Iterable[bhttp.RequestEvent]) -> None:
        for event in events:
            if isinstance(event, bytes):
                self._pieces.append(event)
            elif isinstance(event, bhttp.RequestHead):
                self._head = event

    async def _next(self) -> bytes:
        """One outer event, before the deadline; each byte that came in time moves it by 1 / rate."""
        left = self._deadline + self._received / self._rate - self._clock()
        if left <= 0:
            raise TooSlow
        try:
            async with asyncio.timeout(left):
                event = await self._outer()
        except TimeoutError as error:
            raise TooSlow from error
        if event["type"] != "http.request":
            raise ClientGone
        body: bytes = event.get("body", b"")
        self._received += len(body)
        self.arrived = not event.get("more_body", False)
        if self._received > self._limit:
            raise TooLarge
        return body


class SealedAnswer:
    """
    Takes the application's answer in, gives sealed chunks out.

    Whole at once: a known-length message, padded at its end. Streamed: a piece leaves at once if none left
    within the last `tick` seconds, else it is gathered with what else comes until then; each sealed chunk is
    a multiple of `STEP` (by padding frames, if the client asked for them). A head waits so long for its
    first piece. Until the application begins, and while a framed stream is silent, a padded sign of life goes
    out every `heartbeat` seconds.
    """

    def __init__(
        self,
        outer: Send,
        sealer: ResponseSealer,
        request: SealedRequest,
        *,
        chunked: bool,
        framed: bool,
        bodyless: bool,
        fields: Fields,
        tick: float,
        heartbeat: float,
        limit: int,
    ) -> None:
        self._outer = outer
        self._sealer = sealer
        self._request = request
        self._chunked = chunked
        self._framed = framed and chunked
        self._bodyless = bodyless
        self._own_fields = fields
        self._tick = tick
        self._heartbeat = heartbeat
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()  # chunks leave in the order in which they were sealed
        self._head: bhttp.ResponseHead | None = None
        self._buffer = bytearray()
        self._streaming = False  # something has been sent, in the framing of a stream
        self._head_sent = False
        self._flushing: asyncio.Handle | None = None
        self._content_waits = False  # `_flushing` is for content, not for the head alone
        self._earliest = 0.0  # when content may leave again: one tick after it last did
        self._beating: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_sent = self._loop.time()
        self._stopped = False
        self.done = False

    @property
    def status(self) -> int:
        """The inner status, once it is known; else 0."""
        return self._head.status if self._head is not None else 0

    async def send(self, event: Event) -> None:
        """The application's `send`."""
        if self._request.failure is not None:
            # As ASGI 2.4 tells an application that its client is gone.
            raise OSError("the request was cut short")
        kind = event["type"]
        if kind == "http.response.start":
            if self._head is not None:
                raise RuntimeError("the answer was started twice")
            fields = ((name.lower(), value) for name, value in event.get("headers", ()))
            self._begin(event["status"], tuple(field for field in fields if field[0] not in DROPPED))
        elif kind == "http.response.body":
            if self._head is None or self.done:
                raise RuntimeError("a piece of an answer came before its start or after its end")
            await self._body(event.get("body", b""), event.get("more_body", False))
        else:
            raise RuntimeError(f"an answer has no {kind!r}")

    async def refuse(self, refusal: Refusal) -> bool:
        """Answer in the gateway's own words; False if the application's answer is already on its way."""
        if self._head_sent or self.done:
            return False
        self._buffer.clear()
        body = refusal.encode()
        length = str(len(body)).encode()
        self._begin(
            refusal.status,
            ((b"content-type", b"application/json"), (b"content-length", length), *refusal.fields),
        )
        await self._body(body, more=False)
        return True

    def watch(self) -> None:
        """Give signs of life from now on, until `stop`."""
        if self._chunked:
            self._beating = self._loop.call_later(self._heartbeat, self._due_beat)

    def stop(self) -> None:
        """Nothing goes out any more but what the caller sends."""
        # Tasks end by themselves: to cancel one while it sends would take a sealed chunk out of its order.
        self._stopped = True
        for timer in (self._flushing, self._beating):
            if timer is not None:
                timer.cancel()
        self._flushing = self._beating = None

    def _begin(self, status: int, fields: Fields) -> None:
        self._head = bhttp.ResponseHead(status, (*self._own_fields, *fields))
        if self._chunked:
            self._flushing = self._loop.call_later(self._tick, self._due_flush)

    def _gather(self) -> None:
        """Have what is there leave, in its time. Content does not wait for the end of a head's wait."""
        if self._content_waits:
            return
        self._content_waits = True
        if self._flushing is not None:
            self._flushing.cancel()
        if self._earliest <= self._loop.time():
            # What the application says in one breath leaves together.
            self._flushing = self._loop.call_soon(self._due_flush)
        else:
            self._flushing = self._loop.call_at(self._earliest, self._due_flush)

    async def _body(self, body: bytes, more: bool) -> None:
        if not self._bodyless:
            self._buffer += body
        if more and not self._chunked:
            if len(self._buffer) > self._limit:
                raise ValueError(
                    "the answer is too large to be sealed in one piece; use message/ohttp-chunked-req"
                )
        elif more:
            if len(self._buffer) >= LARGEST:
                async with self._turn:
                    await self._flush()
                await asyncio.sleep(0)  # others have their turn, and whether the client left is heard
            else:
                self._gather()
        else:
            async with self._turn:
                self.stop()
                if self._streaming:
                    await self._flush(last=True)
                else:
                    await self._whole()

    async def _whole(self) -> None:
        assert self._head is not None
        message = bhttp.encode_response(self._head, self._buffer)  # raises if an answer may not say this
        self.done = True
        self._buffer.clear()
        message += bytes(bhttp.padding_for(len(message), least=LEAST))
        if not self._chunked or len(message) <= WHOLE_PIECE:
            sealed = self._sealer.seal(message, final=True)
            await self._start(len(sealed))
            await self._outer({"type": "http.response.body", "body": sealed})
            return
        await self._start(None)
        for at in range(0, len(message), WHOLE_PIECE):
            last = at + WHOLE_PIECE >= len(message)
            sealed = self._sealer.seal(message[at : at + WHOLE_PIECE], final=last)
            await self._outer({"type": "http.response.body", "body": sealed, "more_body": not last})
            await asyncio.sleep(0)

    async def _start(self, length: int | None) -> None:
        media = CHUNKED_RESPONSE if self._chunked else RESPONSE
        headers = [(b"content-type", media.encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._outer({"type": "http.response.start", "status": 200, "headers": headers})

    async def _flush(self, *, last: bool = False) -> None:
        """Seal and send all there is. The caller has the turn."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._buffer:
            self._earliest = self._loop.time() + self._tick
        self._content_waits = False
        head = self._first_bytes()  # raises if an answer may not say this; nothing has been sealed then
        self.done = last
        chunks = b"".join(self._sealer.seal(chunk, final=final) for chunk, final in self._chunks(head))
        await self._stream(chunks)

    async def _stream(self, sealed: bytes) -> None:
        self._last_sent = self._loop.time()
        if not self._streaming:
            self._streaming = True
            await self._start(None)
        await self._outer({"type": "http.response.body", "body": sealed, "more_body": not self.done})

    def _chunks(self, head: bytes) -> Iterator[tuple[bytes, bool]]:
        """The plaintext of each chunk to be sealed now, and whether it is the last of all."""
        while len(head) > LARGEST - 128:  # many fields; what remains leaves room for the least frame
            size = LARGEST if len(head) >= LARGEST else LARGEST - STEP
            yield head[:size], False
            head = head[size:]
        room = LARGEST - _CONTENT_HEAD - _FRAME_HEAD - len(_END)
        while True:
            data = bytes(self._buffer[: room - len(head)])
            del self._buffer[: room - len(head)]
            if self.done and not self._buffer:
                last = head + bhttp.content(self._frame(data, 0) if data else b"") + _END
                yield last + bytes(_short_of_step(len(last))), True
                return
            if self._framed:
                # At least 64 bytes of content, so that its length always takes two bytes.
                pad = max(0, 64 - _FRAME_HEAD - len(data))
                pad += _short_of_step(len(head) + _CONTENT_HEAD + _FRAME_HEAD + len(data) + pad)
                yield head + bhttp.content(self._frame(data, pad)), False
            elif head or data:
                yield head + bhttp.content(data), False
            if not self._buffer:
                return
            head = b""

    def _first_bytes(self) -> bytes:
        """The head of a streamed answer, the first time."""
        if self._head_sent:
            return b""
        assert self._head is not None
        head = self._head
        if self._framed:
            head = bhttp.ResponseHead(head.status, (*head.fields, _FRAMED))
        start = bhttp.response_start(head, first=not self._streaming)
        self._head_sent = True
        return start

    def _frame(self, data: bytes, pad: int) -> bytes:
        return bhttp.frame(data, pad) if self._framed else data

    def _due_flush(self) -> None:
        self._flushing = None
        self._spawn(self._flush_if_waiting())

    async def _flush_if_waiting(self) -> None:
        async with self._turn:
            if not self._stopped and (self._buffer or not self._head_sent):
                await self._flush()

    def _due_beat(self) -> None:
        self._beating = self._loop.call_later(self._heartbeat, self._due_beat)
        if self._loop.time() - self._last_sent >= self._heartbeat / 2:
            self._spawn(self._beat())

    async def _beat(self) -> None:
        async with self._turn:
            if self._stopped:
                return
            if self._head is None:
                await self._stream(self._sealer.seal(_sign_of_life(first=not self._streaming)))
            elif self._framed:
                await self._flush()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.stop()  # the answer cannot be written; the application meets the same at its next piece


def _sign_of_life(*, first: bool) -> bytes:
    """A padded 102 (RFC 9292 §3.5.1), one chunk of `STEP` bytes when sealed."""
    short = _short_of_step(len(bhttp.informational(102, [(_PAD, b"0" * 64)], first=first)))
    return bhttp.informational(102, [(_PAD, b"0" * (64 + short))], first=first)


def _short_of_step(size: int) -> int:
    """How many bytes a plaintext of `size` lacks so that, sealed, it is a multiple of `STEP`."""
    return -(size + TAG_SIZE) % STEP
