"""
`/v1/uploads`: a file in parts, each with its digest, to be gone on with where the line broke off.

OpenAI's Uploads, as the `openai` package sends them, and three things more: a part may bring its SHA-256,
the same part sent twice is one part, and `GET /v1/uploads/ID` tells which parts are there. Parts are sealed
as they arrive. The finished file is made of them chunk by chunk; it is readable nowhere in between.

An upload's record is the truth about it: a part is there when the record says so. It ends an hour after its
last part, and is kept for a day after that, so that its owner can see what became of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, Literal
from weakref import WeakValueDictionary

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from blindbox_data import Form

from ..jobs import DESCRIPTIONS, FILES
from ..refusals import NotFound, Refusal
from ..settings import Settings
from ..store import Damaged, Missing, Store, new_id
from ..tenants import Tenant
from .bodies import Body, Several, body
from .files import (
    ARRIVING,
    LONGEST,
    SHORTEST,
    File,
    arriving,
    check_room,
    describe,
    described,
    end_of,
    part_of,
    purpose_of,
    sealing,
    taken,
    unsealed,
)
from .lists import Page
from .multipart import BEGINNING, Upload, label, least_in
from .rooms import Asking, Rooms

UPLOADS, PARTS = "uploads", "upload-parts"
LIFE: Final = 3600  # seconds without a new part
KEPT: Final = 86_400  # seconds that the record of one that has ended is kept, …
MOST_KEPT: Final = 50  # … and of how many
MOST_PENDING: Final = 16  # of one tenant
MOST_PARTS: Final = 1024  # of one upload
MOST_IN_A_PART: Final = 64 << 20
MOST_COMPLETING: Final = 2  # at a time, of all tenants: each is seconds of work on a thread
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = "upload-"
_record = threading.Lock()  # held while a record is read, changed and written

Status = Literal["pending", "completed", "cancelled", "expired"]


class ExpiresAfter(Body):
    """When the finished file is removed."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST, le=LONGEST)]


class Begin(Body):
    """`POST /v1/uploads`."""

    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    purpose: Annotated[str, Field(max_length=100)]
    mime_type: Annotated[str, Field(max_length=255)] = ""  # what it is, its first bytes say
    expires_after: ExpiresAfter | None = None


class Finish(Body):
    """`POST /v1/uploads/ID/complete`."""

    part_ids: Annotated[
        Several[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=65_536)
    ]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file that is there, sealed, under its id."""

    id: str
    size: int
    sha256: str
    created_at: int

    def told(self, upload: str) -> dict[str, Any]:
        """OpenAI's part object, its size and its digest."""
        return {
            "id": self.id,
            "object": "upload.part",
            "created_at": self.created_at,
            "upload_id": upload,
            "bytes": self.size,
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an upload."""

    id: str
    size: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    keep_seconds: int | None = None  # the finished file's
    status: Status = "pending"
    parts: tuple[Part, ...] = ()

    @property
    def file_id(self) -> str:
        """Of the file it becomes: known beforehand, so that completing twice makes one file."""
        return f"file-{self.id.removeprefix(_PREFIX)}"

    @property
    def stored(self) -> int:
        return sum(part.size for part in self.parts)

    def encode(self) -> bytes:
        """For the sealed store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """The inverse of `encode`."""
        fields = json.loads(data)
        return cls(**fields | {"parts": tuple(Part(**part) for part in fields["parts"])})

    def told(self, file: File | None = None) -> dict[str, Any]:
        """OpenAI's upload object."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.size,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "file": None if file is None else file.told(),
        }


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/uploads")
    store, settings = rooms.store, rooms.settings
    # One thing at a time happens to an upload; whoever waits for its turn holds no thread.
    turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
    completing = asyncio.Semaphore(MOST_COMPLETING)

    def turn(upload_id: str) -> asyncio.Lock:
        return turns.setdefault(upload_id, asyncio.Lock())

    @routes.post("")
    async def create(asking: Asking, wish: Annotated[Begin, Depends(body(Begin))]) -> Any:
        return (await asyncio.to_thread(_begun, store, asking, settings, wish)).told()

    @routes.get("")
    async def uploads(request: Request, asking: Asking) -> Any:
        return await asyncio.to_thread(_listed, store, asking, *part_of(request.query_params))

    @routes.get("/{upload_id}")
    async def upload(upload_id: str, asking: Asking) -> Any:
        record = await asyncio.to_thread(_found, store, asking, upload_id)
        told = await asyncio.to_thread(_told, store, asking, record)
        return told | {"parts": [part.told(record.id) for part in record.parts]}

    @routes.post("/{upload_id}/parts")
    async def part(request: Request, upload_id: str, asking: Asking) -> Any:
        record = await asyncio.to_thread(_pending, store, asking, upload_id)
        least = least_in(request.headers.get("content-length"))
        await asyncio.to_thread(store.check_room, asking, PARTS, least, param="data")
        most = min(MOST_IN_A_PART, _room_in(record))
        form = Upload(request.headers.get("content-type", ""), most, file="data", texts=("sha256",))
        name = f"part-{record.id.removeprefix(_PREFIX)}-{secrets.token_hex(13)}"
        with arriving(name):
            async with sealing(store, asking, PARTS, name) as writer:
                await taken(request, form, writer)
                digest = form.sha256.hexdigest()
                _check_part(form.fields.get("sha256"), digest, writer.size)
            new = Part(name, writer.size, digest, int(time.time()))
            async with turn(record.id):
                kept = await asyncio.to_thread(_kept, store, asking, record.id, new)
        return kept.told(record.id)

    @routes.post("/{upload_id}/complete")
    async def complete(upload_id: str, asking: Asking, wish: Annotated[Finish, Depends(body(Finish))]) -> Any:
        async with turn(upload_id), completing:
            return await asyncio.to_thread(_completed, store, asking, settings, upload_id, wish)

    @routes.post("/{upload_id}/cancel")
    async def cancel(upload_id: str, asking: Asking) -> Any:
        async with turn(upload_id):
            return (await asyncio.to_thread(_cancelled, store, asking, upload_id)).told()

    return routes


def expire(store: Store, tenant: Tenant, now: float) -> list[str]:
    """End uploads that nobody goes on with, forget old ones, and remove parts that belong to none."""
    ended: list[Record] = []
    over: list[str] = []
    told: set[str] = set()
    # Before the records are read: what has arrived by now is in one of them, if it belongs to any.
    stray = set(store.names(tenant, PARTS)) - ARRIVING
    for name in store.names(tenant, UPLOADS):
        try:
            record = Record.parse(store.read(tenant, UPLOADS, name))
        except Missing:
            continue
        except Damaged:
            _drop(store, tenant, UPLOADS, name)  # its parts belong to none, then
            continue
        if record.status == "pending" and now >= record.expires_at:
            with suppress(Missing, Damaged, Refusal):
                record = _ended(store, tenant, name, "expired")
                over.append(name)
        if record.status != "pending":
            ended.append(record)
        told |= {part.id for part in record.parts}
    ended.sort(key=lambda record: record.created_at, reverse=True)
    for place, record in enumerate(ended):
        if place >= MOST_KEPT or now >= record.expires_at + KEPT:
            _drop(store, tenant, UPLOADS, record.id)
    for name in stray - told:
        _drop(store, tenant, PARTS, name)
    return over


# --- the steps --------------------------------------------------------------------------------


def _begun(store: Store, tenant: Tenant, settings: Settings, wish: Begin) -> Record:
    now = int(time.time())
    expire(store, tenant, now)
    purpose = purpose_of(wish.purpose)
    if wish.bytes > settings.max_upload_bytes:
        raise Refusal(
            f"The file would have {wish.bytes} bytes, and {settings.max_upload_bytes} are the limit here.",
            code="file_too_large",
            param="bytes",
            status=413,
        )
    twice = ": twice its size, until it is complete"
    check_room(store, tenant, settings, 2 * wish.bytes, param="bytes", why=twice)
    pending = [name for name in store.names(tenant, UPLOADS) if _is_pending(store, tenant, name)]
    if len(pending) >= MOST_PENDING:
        raise Refusal(
            f"You have {MOST_PENDING} uploads that are not finished, which is the limit; complete or cancel "
            "one (GET /v1/uploads lists them).",
            code="too_many_uploads",
        )
    seconds = None if wish.expires_after is None else wish.expires_after.seconds
    record = Record(
        new_id("upload"), wish.bytes, now, now + LIFE, label(wish.filename), purpose, keep_seconds=seconds
    )
    store.write(tenant, UPLOADS, record.id, record.encode())
    return record


def _check_part(told: str | None, digest: str, size: int) -> None:
    if told is not None and not _SHA256.fullmatch(told.lower()):
        message = "sha256 is the part's SHA-256 in 64 hexadecimal digits."
        raise Refusal(message, code="invalid_value", param="sha256")
    if told is not None and told.lower() != digest:
        raise Refusal(
            f"The part's SHA-256 is {digest}, and sha256 says otherwise: it was altered on the way, or the "
            "digest is of something else. Nothing was kept; send the part again.",
            code="digest_mismatch",
            param="sha256",
        )
    if not size:
        raise Refusal("The part is empty.", code="invalid_value", param="data")


def _kept(store: Store, tenant: Tenant, upload_id: str, new: Part) -> Part:
    """Write a sealed part into the record; one that is there already stays the only one."""
    there: list[Part] = []

    def add(record: Record) -> Record:
        _check_pending(record)
        there.extend(part for part in record.parts if part.sha256 == new.sha256 and part.size == new.size)
        if there:
            return replace(record, expires_at=new.created_at + LIFE)
        if len(record.parts) >= MOST_PARTS:
            message = (
                f"An upload may have {MOST_PARTS} parts; send larger ones (up to {MOST_IN_A_PART} bytes)."
            )
            raise Refusal(message, code="too_many_parts")
        if new.size > _room_in(record):
            raise _overfull(record)
        return replace(record, parts=(*record.parts, new), expires_at=new.created_at + LIFE)

    try:
        _changed(store, tenant, upload_id, add)
    except BaseException:
        _drop(store, tenant, PARTS, new.id)
        raise
    if there:
        _drop(store, tenant, PARTS, new.id)
        return there[0]
    return new


def _completed(
    store: Store, tenant: Tenant, settings: Settings, upload_id: str, wish: Finish
) -> dict[str, Any]:
    """
    Make the file of the parts.

    1. the parts are of this upload, and together of the size that it named
    2. they are opened, hashed and sealed again, chunk by chunk
    3. the digests are those that were told, and the file can be read as data
    4. the file is described; then the record says so, and the parts go

    Whatever fails before 4 leaves the upload as it was; a crash within it leaves nothing that completing
    again would not put right.
    """
    record = _found(store, tenant, upload_id)
    if record.status == "completed":
        return _told(store, tenant, record)  # asked again, because the answer was lost
    _check_pending(record)
    if record.file_id in store.names(tenant, DESCRIPTIONS):
        # A crash came before the record. The file stays what it is: a job may have read it by now.
        _ended(store, tenant, upload_id, "completed")
        return _told(store, tenant, replace(record, status="completed"))
    parts = _chosen(record, wish)  # 1
    check_room(store, tenant, settings, record.size)
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    beginning = bytearray()
    with arriving(record.file_id):
        with store.writer(tenant, FILES, record.file_id) as writer:  # 2
            for part in parts:
                for piece in _opened(store, tenant, record, part):
                    sha256.update(piece)
                    if wish.md5 is not None:
                        md5.update(piece)
                    beginning += piece[: BEGINNING - len(beginning)]
                    writer.write(piece)
            _check_digest("sha256", wish.sha256, sha256.hexdigest())  # 3
            _check_digest("md5", wish.md5, md5.hexdigest())
            form = Form.of(record.filename, bytes(beginning))
        now = int(time.time())
        end = end_of(now, record.keep_seconds, settings)
        file = File(
            record.file_id, record.size, now, record.filename, record.purpose, form, sha256.hexdigest(), end
        )
        describe(store, tenant, file)  # 4
    return _ended(store, tenant, upload_id, "completed").told(file)


def _cancelled(store: Store, tenant: Tenant, upload_id: str) -> Record:
    record = _found(store, tenant, upload_id)
    if record.status == "cancelled":
        return record
    _check_pending(record)
    return _ended(store, tenant, upload_id, "cancelled")


def _listed(store: Store, tenant: Tenant, page: Page, purpose: str | None) -> dict[str, Any]:
    expire(store, tenant, time.time())
    found = []
    for name in store.names(tenant, UPLOADS):
        with suppress(NotFound):
            record = _found(store, tenant, name)
            if purpose in (None, record.purpose):
                found.append(_told(store, tenant, record))
    found.sort(key=lambda each: (each["created_at"], each["id"]), reverse=page.newest_first)
    return page.told(found)


# --- what they stand on -----------------------------------------------------------------------


def _found(store: Store, tenant: Tenant, upload_id: str) -> Record:
    """An upload as it stands; one whose time has passed is ended first."""
    try:
        with unsealed("upload", "Begin another."):
            record = Record.parse(store.read(tenant, UPLOADS, upload_id))
        if record.status == "pending" and time.time() >= record.expires_at:
            record = _ended(store, tenant, upload_id, "expired")
    except Missing:
        raise _unknown() from None
    return record


def _pending(store: Store, tenant: Tenant, upload_id: str) -> Record:
    record = _found(store, tenant, upload_id)
    _check_pending(record)
    if _room_in(record) <= 0:
        raise _overfull(record)
    return record


def _is_pending(store: Store, tenant: Tenant, upload_id: str) -> bool:
    with suppress(Refusal):
        return _found(store, tenant, upload_id).status == "pending"
    return False


def _check_pending(record: Record) -> None:
    if record.status != "pending":
        raise Refusal(
            f"This upload is {record.status}. POST /v1/uploads begins another.",
            code=f"upload_{record.status}",
        )


def _room_in(record: Record) -> int:
    """How many more bytes an upload takes: a part that was sent by mistake may be sent again, right."""
    return record.size + MOST_IN_A_PART - record.stored


def _chosen(record: Record, wish: Finish) -> list[Part]:
    known = {part.id: part for part in record.parts}
    for place, name in enumerate(wish.part_ids):
        if name not in known:
            raise Refusal(
                f"part_ids[{place}] is no part of this upload. GET /v1/uploads/ID lists its parts.",
                code="part_not_found",
                param="part_ids",
            )
    parts = [known[name] for name in wish.part_ids]
    size = sum(part.size for part in parts)
    if size != record.size:
        raise Refusal(
            f"These parts have {size} bytes together, and the upload was begun for {record.size}. Send what "
            "is missing, or name other parts.",
            code="size_mismatch",
            param="part_ids",
        )
    return parts


def _opened(store: Store, tenant: Tenant, record: Record, part: Part) -> Any:
    try:
        with unsealed("part", "It was taken out of the upload; send it again, and complete with its new id."):
            yield from store.pieces(tenant, PARTS, part.id)
    except Missing:
        raise _unknown() from None
    except Refusal:
        # Or the same part, sent again, would be taken for this one.
        _changed(
            store,
            tenant,
            record.id,
            lambda now: replace(now, parts=tuple(each for each in now.parts if each.id != part.id)),
        )
        _drop(store, tenant, PARTS, part.id)
        raise


def _check_digest(name: str, told: str | None, found: str) -> None:
    if told is not None and told.lower() != found:
        raise Refusal(
            f"The file's {name} is {found}, and {name} says otherwise. Are the parts in their order? Nothing "
            "was made of them, and they are still there.",
            code="digest_mismatch",
            param=name,
        )


def _ended(store: Store, tenant: Tenant, upload_id: str, status: Status) -> Record:
    """Write the end into the record; after that the parts may go."""
    parts: list[Part] = []

    def end(record: Record) -> Record:
        _check_pending(record)
        parts.extend(record.parts)
        return replace(record, status=status, parts=())

    ended = _changed(store, tenant, upload_id, end)
    for part in parts:
        _drop(store, tenant, PARTS, part.id)
    return ended


def _changed(store: Store, tenant: Tenant, upload_id: str, change: Callable[[Record], Record]) -> Record:
    with _record:
        try:
            with unsealed("upload", "Begin another."):
                record = change(Record.parse(store.read(tenant, UPLOADS, upload_id)))
        except Missing:
            raise _unknown() from None
        store.write(tenant, UPLOADS, upload_id, record.encode())
        return record


def _told(store: Store, tenant: Tenant, record: Record) -> dict[str, Any]:
    """With its file, if it has become one that is still there."""
    if record.status == "completed":
        with suppress(Refusal):
            return record.told(described(store, tenant, record.file_id))
    return record.told()


def _drop(store: Store, tenant: Tenant, kind: str, name: str) -> None:
    with suppress(Missing):
        store.delete(tenant, kind, name)


def _unknown() -> NotFound:
    return NotFound(
        "You have no upload of this id; one that has ended is forgotten after a day. POST /v1/uploads begins "
        "another.",
        code="upload_not_found",
    )


def _overfull(record: Record) -> Refusal:
    return Refusal(
        f"The upload was begun for {record.size} bytes, and its parts have {record.stored} already. Complete "
        "it with those that belong to it, or cancel it.",
        code="upload_too_large",
        param="data",
        status=413,
    )
