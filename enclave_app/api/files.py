"""
`/v1/files`: a tenant's data sets, up, listed and gone, in the shapes the `openai` package expects.

An upload goes from the request straight into a sealed file; nothing readable touches the disk on the way. The
file appears when all of it is there and understood. Its description is written last and deleted first, so
what is listed is always whole.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from ..datasets import Form
from ..engines.adapter import MalformedAdapter
from ..refusals import Failed, NotFound, Refusal
from ..settings import Settings
from ..store import Damaged, Missing, Store, new_id
from ..tenants import Tenant
from .multipart import Upload
from .rooms import Asking, Rooms

FILES, DESCRIPTIONS = "files", "file-descriptions"
PURPOSES = ("fine-tune", "evals", "user_data")


@dataclass(frozen=True, slots=True)
class File:
    """What is told of an uploaded file."""

    id: str
    size: int
    created_at: int
    filename: str
    purpose: str
    form: Form

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
        )

    def told(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/files")
    store = rooms.store

    @routes.post("")
    async def upload(request: Request, asking: Asking) -> Any:
        return (await _received(request, store, asking, rooms.settings)).told()

    @routes.get("")
    async def files(asking: Asking) -> Any:
        return await asyncio.to_thread(_listed, store, asking)

    @routes.get("/{file_id}")
    async def file(file_id: str, asking: Asking) -> Any:
        return (await asyncio.to_thread(described, store, asking, file_id)).told()

    @routes.delete("/{file_id}")
    async def delete(file_id: str, asking: Asking) -> Any:
        await asyncio.to_thread(_deleted, store, asking, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return routes


def described(store: Store, tenant: Tenant, name: str, *, param: str | None = None) -> File:
    """A file's description, or a refusal that does not tell whether another tenant has it."""
    try:
        with unsealed("file", "Delete it and upload it again."):
            return File.parse(store.read(tenant, DESCRIPTIONS, name))
    except Missing:
        raise NotFound(
            "You have no file of this id. GET /v1/files lists yours; POST /v1/files uploads one.",
            code="file_not_found",
            param=param,
        ) from None


@contextmanager
def unsealed(what: str, remedy: str) -> Iterator[None]:
    """Say so where stored bytes are not what was written."""
    try:
        yield
    except (Damaged, MalformedAdapter):
        raise Failed(f"The stored {what} is damaged. {remedy}", code=f"damaged_{what}") from None


async def _received(request: Request, store: Store, tenant: Tenant, settings: Settings) -> File:
    if len(store.names(tenant, DESCRIPTIONS)) >= settings.max_files:
        raise Refusal(
            f"You have {settings.max_files} files, which is the limit; delete one with DELETE /v1/files/ID.",
            code="too_many_files",
        )
    upload = Upload(request.headers.get("content-type", ""), settings.max_upload_bytes)
    name = new_id("file")
    with store.writer(tenant, FILES, name) as writer:
        async for piece in request.stream():
            for data in upload.feed(piece):
                writer.write(data)
        upload.end()
        purpose = upload.fields.get("purpose", "fine-tune")
        if purpose not in PURPOSES:
            message = f"purpose may be {', '.join(PURPOSES)}."
            raise Refusal(message, code="invalid_value", param="purpose")
        form = Form.of(upload.filename, bytes(upload.beginning))
        file = File(name, writer.size, int(time.time()), upload.filename, purpose, form)
    await asyncio.to_thread(store.write, tenant, DESCRIPTIONS, name, file.encode())
    return file


def _listed(store: Store, tenant: Tenant) -> dict[str, Any]:
    found = []
    for name in store.names(tenant, DESCRIPTIONS):
        with suppress(NotFound):  # deleted between the two lines
            found.append(described(store, tenant, name))
    found.sort(key=lambda file: (file.created_at, file.id), reverse=True)
    ids = [file.id for file in found]
    return {
        "object": "list",
        "data": [file.told() for file in found],
        "has_more": False,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def _deleted(store: Store, tenant: Tenant, name: str) -> None:
    described(store, tenant, name)
    with suppress(Missing):
        store.delete(tenant, DESCRIPTIONS, name)
    with suppress(Missing):
        store.delete(tenant, FILES, name)
