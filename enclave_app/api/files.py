"""
`/v1/files`: a tenant's data sets, up, listed, down and gone, in the shapes the `openai` package expects.

An upload goes from the request straight into a sealed file; nothing readable touches the disk on the way. The
file appears when all of it is there and understood. Its description is written last and deleted first, so
what is listed is always whole. Uploads in parts, which end in the same files, are `uploads.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from blindbox_data import Form

from ..engines.adapter import MalformedAdapter
from ..jobs import DESCRIPTIONS, FILES, RESULTS
from ..jobs.bench import Keep
from ..refusals import Failed, NotFound, Refusal, nearest
from ..settings import Settings
from ..store import CHUNK, Damaged, Missing, Store, Writer, new_id
from ..tenants import Tenant
from .answers import Gone
from .lists import Page
from .multipart import Upload, least_in
from .rooms import Asking, Rooms

PURPOSES = ("fine-tune", "evals", "user_data")
OF_JOBS = "fine-tune-results"
SHORTEST, LONGEST = 3600, 30 * 86400  # seconds, as OpenAI's `expires_after` may be
TEXTS: Final = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
MOST_LISTED: Final = 10_000
_BATCH = 1 << 20  # bytes of a body that are looked at in one go, on a thread
_DAY = 86400
ARRIVING: Final[set[str]] = set()
"""Files and parts that are being written, and of which nothing tells yet. Others of that sort were left by a
crash."""


@dataclass(frozen=True, slots=True)
class File:
    """What is told of an uploaded file."""

    id: str
    size: int
    created_at: int
    filename: str
    purpose: str
    form: Form
    sha256: str = ""  # of its bytes, in hexadecimal
    expires_at: int | None = None

    def encode(self) -> bytes:
        """For the sealed store."""
        return json.dumps(self.told() | {"form": self.form.value}).encode()

    @classmethod
    def parse(cls, data: bytes) -> File:
        """The inverse of `encode`."""
        fields = json.loads(data)
        return cls(
            id=fields["id"],
            size=fields["bytes"],
            created_at=fields["created_at"],
            filename=fields["filename"],
            purpose=fields["purpose"],
            form=Form(fields["form"]),
            sha256=fields.get("sha256", ""),
            expires_at=fields.get("expires_at"),
        )

    def told(self) -> dict[str, Any]:
        """OpenAI's file object, and the digest."""
        told = {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "sha256": self.sha256,
        }
        return told if self.expires_at is None else told | {"expires_at": self.expires_at}

    def over(self, now: float) -> bool:
        """Whether its time has passed."""
        return self.expires_at is not None and now >= self.expires_at


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/files")
    store = rooms.store

    @routes.post("")
    async def upload(request: Request, asking: Asking) -> Any:
        return (await _received(request, store, asking, rooms.settings)).told()

    @routes.get("")
    async def files(request: Request, asking: Asking) -> Any:
        return await asyncio.to_thread(_listed, store, asking, *part_of(request.query_params))

    @routes.get("/{file_id}")
    async def file(file_id: str, asking: Asking) -> Any:
        return (await asyncio.to_thread(described, store, asking, file_id)).told()

    @routes.get("/{file_id}/content")
    async def content(file_id: str, asking: Asking) -> Any:
        return await asyncio.to_thread(_content, store, asking, file_id)

    @routes.delete("/{file_id}")
    async def delete(file_id: str, asking: Asking) -> Any:
        size = await asyncio.to_thread(_deleted, store, asking, file_id)
        removed = {"files": 1, "bytes": size}
        return {"id": file_id, "object": "file", "deleted": True, "blindbox": {"removed": removed}}

    return routes


def described(store: Store, tenant: Tenant, name: str, *, param: str | None = None) -> File:
    """A file's description, or a refusal that does not tell whether another tenant has it."""
    with suppress(Missing):
        with unsealed("file", "Delete it and upload it again."):
            file = File.parse(store.read(tenant, DESCRIPTIONS, name))
        if not file.over(time.time()):
            return file
        _remove(store, tenant, name)
    raise NotFound(
        "You have no file of this id. GET /v1/files lists yours; POST /v1/files uploads one.",
        code="file_not_found",
        param=param,
    )


def opened(store: Store, tenant: Tenant, name: str) -> io.BufferedReader:
    """The bytes of a file that has been described, to be read and sought in. Reading may raise `Damaged`."""
    try:
        with unsealed("file", "Delete it and upload it again."):
            return store.reader(tenant, FILES, name)
    except Missing:  # deleted since
        raise NotFound("You have no file of this id.", code="file_not_found") from None


@contextmanager
def unsealed(what: str, remedy: str) -> Iterator[None]:
    """Say so where stored bytes are not what was written."""
    try:
        yield
    except (Damaged, MalformedAdapter) as error:
        raise Failed(f"The stored {what} is damaged: {error}. {remedy}", code=f"damaged_{what}") from None


def expire(store: Store, tenant: Tenant, now: float) -> list[str]:
    """
    Remove files whose time has passed, and what a crash left of others; the ids of the former.

    The clock is the host's, who could as well take the disk away; a clock that went back removes nothing.
    """
    gone = []
    for name in store.names(tenant, DESCRIPTIONS):
        with suppress(Missing, Damaged):  # one that cannot be read is listed, and its owner deletes it
            if File.parse(store.read(tenant, DESCRIPTIONS, name)).over(now):
                _remove(store, tenant, name)
                gone.append(name)
    # In this order: what is there and does not arrive any more has been described by the time of the third.
    for name in set(store.names(tenant, FILES)) - ARRIVING - set(store.names(tenant, DESCRIPTIONS)):
        with suppress(Missing):
            store.delete(tenant, FILES, name)
    return gone


# --- what uploads in one piece and in parts have in common ------------------------------------


def check_room(
    store: Store, tenant: Tenant, settings: Settings, size: int, *, param: str | None = None, why: str = ""
) -> None:
    """Refuse where the tenant has as many files as one may have, or no room for so many bytes more."""

    def check() -> None:
        uploaded = sum(not name.startswith(RESULTS) for name in store.names(tenant, DESCRIPTIONS))
        if uploaded >= settings.max_files:
            raise Refusal(
                f"You have {settings.max_files} files, which is the limit; delete one with DELETE "
                "/v1/files/ID.",
                code="too_many_files",
            )
        store.check_room(tenant, FILES, size, param=param, why=why)

    try:
        check()
    except Refusal:
        expire(store, tenant, time.time())
        check()


def purpose_of(given: str) -> str:
    if given not in PURPOSES:
        message = f"purpose may be {', '.join(PURPOSES)}.{nearest(given, PURPOSES)}"
        raise Refusal(message, code="invalid_value", param="purpose")
    return given


def end_of(now: int, seconds: int | None, settings: Settings) -> int | None:
    """When a file of now is removed: as its owner says, and not later than the operator's setting."""
    kept = settings.retention_days * _DAY
    ends = [now + each for each in (seconds, kept) if each]
    return min(ends, default=None)


@asynccontextmanager
async def sealing(store: Store, tenant: Tenant, kind: str, name: str) -> AsyncIterator[Writer]:
    """`store.writer`, begun and ended on a thread: its end waits for the disk."""
    writer = await asyncio.to_thread(store.writer, tenant, kind, name)
    try:
        yield writer
    except BaseException as error:
        writer.__exit__(type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(writer.__exit__, None, None, None)


async def taken(request: Request, upload: Upload, writer: Writer) -> None:
    """Move the file in the request's body into `writer`, as it arrives."""
    waiting: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            waiting.append(piece)
            size += len(piece)
            if size >= _BATCH:
                await asyncio.to_thread(_take, upload, writer, waiting)
                waiting, size = [], 0
    except ClientDisconnect:
        raise Gone from None
    await asyncio.to_thread(_take, upload, writer, waiting)
    upload.end()


def _take(upload: Upload, writer: Writer, pieces: list[bytes]) -> None:
    for piece in pieces:
        for data in upload.feed(piece):
            writer.write(data)


@contextmanager
def arriving(name: str) -> Iterator[None]:
    """This is being written; until the block ends nobody takes it for something that a crash left."""
    ARRIVING.add(name)
    try:
        yield
    finally:
        ARRIVING.discard(name)


def describe(store: Store, tenant: Tenant, file: File) -> None:
    """The last step: from now on the file is there. Without it nothing of the file is left."""
    try:
        store.write(tenant, DESCRIPTIONS, file.id, file.encode())
    except BaseException:
        with suppress(Missing):
            store.delete(tenant, FILES, file.id)
        raise


def keeping(store: Store, settings: Settings) -> Keep:
    """Makes files of what jobs have to show. They count for nobody's limit: they go with their jobs."""

    def keep(tenant: Tenant, name: str, filename: str, data: bytes) -> None:
        now = int(time.time())
        digest = hashlib.sha256(data).hexdigest()
        end = end_of(now, None, settings)
        with arriving(name):
            store.write(tenant, FILES, name, data)
            describe(store, tenant, File(name, len(data), now, filename, OF_JOBS, Form.CSV, digest, end))

    return keep


async def _received(request: Request, store: Store, tenant: Tenant, settings: Settings) -> File:
    upload = Upload(
        request.headers.get("content-type", ""), settings.max_upload_bytes, file="file", texts=TEXTS
    )
    least = least_in(request.headers.get("content-length"))
    await asyncio.to_thread(check_room, store, tenant, settings, least, param="file")
    name = new_id("file")
    with arriving(name):
        async with sealing(store, tenant, FILES, name) as writer:
            await taken(request, upload, writer)
            purpose = purpose_of(upload.fields.get("purpose", "fine-tune"))
            form = Form.of(upload.filename, bytes(upload.beginning))
            now = int(time.time())
            end = end_of(now, _seconds(upload.fields), settings)
        digest = upload.sha256.hexdigest()
        file = File(name, writer.size, now, upload.filename, purpose, form, digest, end)
        await asyncio.to_thread(describe, store, tenant, file)
    return file


def _seconds(fields: Mapping[str, str]) -> int | None:
    """`expires_after` as the package writes it into a form."""
    anchor, seconds = (fields.get(name) for name in TEXTS[1:])
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise Refusal(
            'expires_after[anchor] may be "created_at", and is needed beside expires_after[seconds].',
            code="invalid_value",
            param=TEXTS[1],
        )
    number = int(seconds) if seconds is not None and seconds.isascii() and seconds.isdigit() else 0
    if not SHORTEST <= number <= LONGEST:
        message = f"expires_after[seconds] may be a whole number from {SHORTEST} to {LONGEST}."
        raise Refusal(message, code="invalid_value", param=TEXTS[2])
    return number


# --- telling, and removing --------------------------------------------------------------------


def part_of(query: Mapping[str, str]) -> tuple[Page, str | None]:
    """Which part of a list of files or uploads is asked for, and of which purpose they shall be."""
    page = Page.of(query, most=MOST_LISTED, also=("order", "purpose"))
    purpose = query.get("purpose")
    if purpose is not None and purpose != OF_JOBS:
        purpose_of(purpose)
    return page, purpose


def _listed(store: Store, tenant: Tenant, page: Page, purpose: str | None) -> dict[str, Any]:
    expire(store, tenant, time.time())
    found = []
    for name in store.names(tenant, DESCRIPTIONS):
        try:
            found.append(described(store, tenant, name).told())
        except NotFound:
            continue  # deleted between the two lines
        except Failed as failed:
            found.append(_damaged(name, failed.message))
    if purpose is not None:
        found = [each for each in found if each["purpose"] == purpose]
    found.sort(key=lambda each: (each["created_at"], each["id"]), reverse=page.newest_first)
    return page.told(found)


def _damaged(name: str, why: str) -> dict[str, Any]:
    """A file of which nothing can be told any more, as its owner sees it in a list."""
    nothing = {"bytes": 0, "created_at": 0, "filename": "", "purpose": PURPOSES[0], "sha256": ""}
    return {"id": name, "object": "file", **nothing, "status": "error", "status_details": why}


def _content(store: Store, tenant: Tenant, name: str) -> StreamingResponse:
    file = described(store, tenant, name)
    reader = opened(store, tenant, name)
    headers = {
        "content-length": str(file.size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "cache-control": "no-store",
    }
    if file.sha256:  # RFC 9530
        headers["repr-digest"] = f"sha-256=:{b64encode(bytes.fromhex(file.sha256)).decode()}:"
    return StreamingResponse(_pieces(reader), headers=headers, media_type="application/octet-stream")


def _pieces(reader: io.BufferedReader) -> Iterator[bytes]:
    """Read on threads, one piece after the other, as fast as they are taken."""
    with reader:
        while piece := reader.read(CHUNK):
            yield piece


def _deleted(store: Store, tenant: Tenant, name: str) -> int:
    """Remove a file, also one that cannot be read any more. How many bytes it had."""
    with suppress(Failed):
        described(store, tenant, name)
    return _remove(store, tenant, name)


def _remove(store: Store, tenant: Tenant, name: str) -> int:
    size = 0
    with suppress(Missing):
        store.delete(tenant, DESCRIPTIONS, name)
    with suppress(Missing):
        with suppress(Damaged):
            size = store.size(tenant, FILES, name)
        store.delete(tenant, FILES, name)
    return size
