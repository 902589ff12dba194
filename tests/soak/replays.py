"""
G-17: what somebody on the way has recorded and sends again and again is done once.

A thousand sealed requests, each of which makes something that can be counted: a file, a fine-tuning job, or a
job with an Idempotency-Key; half of them without the request id that the SDK sends, so that the seal alone
has to tell. Two relays (tests/kit/relay.py) keep their bytes. One passes each on before it is replayed; the
other holds each back, so that its copies race for the first place. Of the copies that are sent at once, every
other one is framed differently.

In a second round the enclave is killed amidst the copies and started again on the same data and port. In the
end all jobs with an Idempotency-Key are wished for again under a new seal, as by a client that got no answer.
What was done is counted where it was done: each request bears a number, and its owner's lists of files and
jobs have to show each number once, and as many models as jobs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from blindbox_attestation.channel import bhttp
from tests.kit.relay import Asked, Relay, http_reply

from .caller import Broken, Line, Proven, Reply, Sealed
from .enclave import served
from .goals import Figure, Pace

EACH: Final = 20  # requests of one owner: twelve files, four jobs, four jobs with a key
ROWS: Final = b"".join(b'{"question": "q %d", "answer": "a"}\n' % n for n in range(4))
ROOM: Final = dict.fromkeys(  # a limit would hide what was done too often
    ("max_files", "max_jobs_each", "max_jobs_waiting", "max_jobs_kept", "max_models_each"), 1_000_000
)
AT_ONCE: Final = 4  # requests whose copies are under way at the same time

Answer = tuple[int, bytes, bytes]  # status, media type, and what can be read of the body
Owners = dict[str, str]  # token → the file that its jobs are trained on


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks for."""

    number: int
    token: str
    rows: str  # a file of the owner's

    @property
    def makes_a_job(self) -> bool:
        return self.number % EACH >= 12

    @property
    def keyed(self) -> bool:
        return self.number % EACH >= 16

    @property
    def held_back(self) -> bool:
        """Whether it reaches the enclave by its copies alone."""
        return bool(self.number // EACH % 2)

    def message(self, proven: Proven) -> bytes:
        """The inner request."""
        named = () if self.number % 2 else ((b"blindbox-request-id", _b64url(secrets.token_bytes(16))),)
        if not self.makes_a_job:
            return _upload(proven, self.token, f"{self.number}.jsonl", *named)
        wanted = {
            "model": "echo",
            "training_file": self.rows,
            "metadata": {"number": str(self.number)},
            "blindbox": {"steps": 1},
        }
        key = ((b"idempotency-key", b"wish-%d" % self.number),) if self.keyed else ()
        media = (b"content-type", b"application/json")
        return _message(
            proven, self.token, b"/v1/fine_tuning/jobs", json.dumps(wanted).encode(), media, *key, *named
        )


def replays(pace: Pace) -> list[Figure]:
    """G-17: 1,000 requests, 20 copies of each at once; and once more across a restart."""
    many, copies = pace.many(1000, 50), pace.many(20, 5)
    with tempfile.TemporaryDirectory(prefix="blindbox-soak-") as folder, ExitStack() as lives:
        return asyncio.run(_replays(many, copies, folder, lives))


async def _replays(many: int, copies: int, folder: str, lives: ExitStack) -> list[Figure]:
    options = {"data_dir": folder, "settings": ROOM}
    enclave = await asyncio.to_thread(lives.enter_context, served(**options))
    port = enclave.port
    owners = await _owners(await Proven.of(port), -(-many // EACH))
    tokens = list(owners)
    wishes = [
        Wish(number, token, owners[token])
        for number, token in ((number, tokens[number // EACH]) for number in range(many))
    ]
    held_back = sum(wish.held_back for wish in wishes)
    captured = await _captured(port, wishes)

    said: Counter[Answer] = Counter()
    await _replayed(port, captured, copies, said)
    at_once = await _done(port, tokens)
    let_in = sum(n for (status, _, _), n in said.items() if status == 200)

    async def restart() -> None:
        def anew() -> None:
            enclave.process.kill()
            enclave.process.wait()
            lives.enter_context(served(port=port, **options))

        await asyncio.to_thread(anew)

    await _replayed(port, captured, copies, said, amidst=restart)
    across = await _done(port, tokens)
    proven = await Proven.of(port)
    keyed = [wish for wish in wishes if wish.keyed]
    answered = await _asked(proven, keyed)
    anew = await _done(port, tokens)
    jobs, models = sum(wish.makes_a_job for wish in wishes), await _models(proven, tokens)

    refusals = {answer: n for answer, n in said.items() if answer[0] != 200}
    let_in_late = said.total() - sum(refusals.values()) - let_in
    return [
        _once(f"{many} requests, {held_back} of them held back, {copies} copies each: done", at_once, many),
        _once(f"… {copies} more of each, and the enclave killed amidst them: done", across, many),
        _once(f"… {len(keyed)} jobs wished for again with their keys, sealed anew: done", anew, many),
        Figure("G-17", "… which were answered with the job that was there", f"{answered} of {len(keyed)}",
               str(len(keyed)), answered == len(keyed)),
        Figure("G-17", "models that came of the jobs", str(models), str(jobs), models == jobs),
        Figure("G-17", f"let in, of {said.total()} copies: as many as were held back",
               f"{let_in}, then {let_in_late}", f"{held_back}, then 0",
               (let_in, let_in_late) == (held_back, 0)),
        Figure("G-17", "different answers to all the others", str(len(refusals)), "1", len(refusals) == 1),
    ]  # fmt: skip


def _once(what: str, done: Counter[int], many: int) -> Figure:
    often = sum(n > 1 for n in done.values())
    never = many - len(done)
    found = f"{done.total()}" + (f" ({often} more than once, {never} never)" if often or never else "")
    return Figure("G-17", what, found, str(many), not often and not never)


async def _owners(proven: Proven, many: int) -> Owners:
    """Tenants with a file each to train on."""
    owners: Owners = {}
    for _ in range(many):
        token = secrets.token_urlsafe(32)
        reply = await _whole(Sealed(proven), _upload(proven, token, "rows.jsonl"))
        owners[token] = reply.json["id"]
    return owners


async def _captured(port: int, wishes: Sequence[Wish]) -> list[Asked]:
    """The sealed requests as they were on the wire; those that are passed on have been answered."""
    nothing = http_reply(503, "text/plain", b"")
    origin = f"http://127.0.0.1:{port}"
    with (
        Relay(origin) as passing,
        Relay(origin, before=lambda asked: nothing if asked.method == "POST" else None) as holding,
    ):
        await _asked(await Proven.of(passing.port), [wish for wish in wishes if not wish.held_back])
        proven = await Proven.of(holding.port)
        caller = Sealed(proven)
        for wish in wishes:
            if wish.held_back and (await caller.ask_with(wish.message(proven))).outer != 503:
                raise Broken("a request was not held back")
        caller.line.close()
        return [asked for relay in (passing, holding) for asked in relay.asked if asked.method == "POST"]


async def _asked(proven: Proven, wishes: Sequence[Wish]) -> int:
    """Ask for each, a few at a time. How many answers are about what was wished for."""
    waiting = iter(wishes)

    async def some() -> int:
        caller, right = Sealed(proven), 0
        for wish in waiting:
            told = (await _whole(caller, wish.message(proven))).json
            right += _number(told) == wish.number
        caller.line.close()
        return right

    return sum(await asyncio.gather(*(some() for _ in range(AT_ONCE))))


async def _replayed(
    port: int,
    captured: Sequence[Asked],
    copies: int,
    said: Counter[Answer],
    amidst: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """
    Send so many copies of each at once, and note the answers. `amidst` happens after a third of them, while
    others are under way; what it keeps from being answered is sent again.
    """
    waiting = iter(enumerate(captured))
    up = asyncio.Event()
    up.set()

    async def row() -> None:
        nonlocal amidst
        lines = [Line(port) for _ in range(copies)]
        for number, asked in waiting:
            if amidst is not None and number >= len(captured) // 3:
                happen, amidst = amidst, None
                up.clear()
                await happen()
                up.set()
            shapes = (asked.raw, _reframed(asked))
            sent = (_answer(line, shapes[at % 2], up) for at, line in enumerate(lines))
            said.update(await asyncio.gather(*sent))
        for line in lines:
            line.close()

    await asyncio.gather(*(row() for _ in range(AT_ONCE)))


async def _answer(line: Line, raw: bytes, up: asyncio.Event) -> Answer:
    for _ in range(3):  # an idle connection is found dead only when it is used
        await up.wait()
        try:
            await line.open()
            _, writer = line.ends
            writer.write(raw)
            await writer.drain()
            status, fields = await line.head()
            body = b"".join([piece async for piece in line.body(fields)])
        except (Broken, OSError):
            line.close()
            continue
        return status, fields.get(b"content-type", b""), b"" if status == 200 else body
    raise Broken("a copy was not answered")


def _reframed(asked: Asked) -> bytes:
    """The same sealed bytes, in three chunks and under another host."""
    third = -(-len(asked.body) // 3)
    pieces = [asked.body[at : at + third] for at in range(0, len(asked.body), third)]
    head = f"{asked.method} {asked.target} HTTP/1.1\r\nHost: another\r\n"
    head += f"Content-Type: {asked.header('content-type')}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


async def _done(port: int, tokens: Sequence[str]) -> Counter[int]:
    """How often each number is among the owners' files and jobs."""
    proven = await Proven.of(port)
    done: Counter[int] = Counter()
    for token in tokens:
        caller = Sealed(proven, token)
        for path in ("/v1/files?limit=10000", "/v1/fine_tuning/jobs?limit=100"):
            after = ""
            while True:
                page = (await caller.ask("GET", path + after)).json
                done.update(number for each in page["data"] if (number := _number(each)) is not None)
                if not page["has_more"]:
                    break
                after = f"&after={page['last_id']}"
        caller.line.close()
    return done


async def _models(proven: Proven, tokens: Sequence[str]) -> int:
    """How many tuned models the owners have, once all their jobs are over."""
    found = 0
    for token in tokens:
        caller = Sealed(proven, token)
        for job in (await caller.ask("GET", "/v1/fine_tuning/jobs?limit=100")).json["data"]:
            if job["finished_at"] is None:  # its stream of events ends with it
                await caller.ask("GET", f"/v1/fine_tuning/jobs/{job['id']}/events?stream=true")
        models = (await caller.ask("GET", "/v1/models")).json["data"]
        found += sum(model["id"].startswith("ft:") for model in models)
        caller.line.close()
    return found


def _number(told: dict[str, Any]) -> int | None:
    """Of the wish that made this file or job; None for an owner's file of rows."""
    if told["object"] == "file":
        name = str(told["filename"]).removesuffix(".jsonl")
        return int(name) if name.isdigit() else None
    return int(told["metadata"]["number"])


async def _whole(caller: Sealed, message: bytes) -> Reply:
    reply = await caller.ask_with(message)
    if reply.status != 200 or reply.outer != 200:
        raise Broken(f"refused: {reply.outer}, {reply.status} {reply.body[:200]!r}")
    return reply


def _upload(proven: Proven, token: str, name: str, *more: tuple[bytes, bytes]) -> bytes:
    parts = (
        b'--mark\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n',
        b'--mark\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n' % name.encode(),
        ROWS,
        b"\r\n--mark--\r\n",
    )
    media = (b"content-type", b"multipart/form-data; boundary=mark")
    return _message(proven, token, b"/v1/files", b"".join(parts), media, *more)


def _message(proven: Proven, token: str, path: bytes, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    fields = (
        (b"blindbox-evidence", proven.evidence),
        (b"authorization", b"Bearer " + token.encode()),
        *more,
    )
    return bhttp.encode_request(bhttp.RequestHead(b"POST", b"https", proven.authority, path, fields), body)


def _b64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
