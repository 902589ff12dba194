"""The `openai` package's files and uploads against the enclave: by the proxy, and as `blindbox.OpenAI`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import openai
import pytest

ROWS = b"".join(
    b'{"prompt": "question %06d", "completion": "%s"}\n' % (n, b"answer " * 9) for n in range(9000)
)


def test_a_file_is_uploaded_in_chunks_by_the_packages_own_hand(client: openai.OpenAI, tmp_path: Path) -> None:
    """`uploads.upload_file_chunked`, from a path and from memory, in parts of 256 KiB."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    md5 = hashlib.md5(ROWS).hexdigest()
    for given in ({"file": path}, {"file": ROWS, "filename": "rows.jsonl", "bytes": len(ROWS)}):
        wish: Any = given | {"mime_type": "text/jsonl", "purpose": "fine-tune", "part_size": 256 << 10}
        done = client.uploads.upload_file_chunked(**wish, md5=md5)
        assert done.status == "completed"
        assert done.file is not None
        assert (done.file.bytes, done.file.filename, done.file.status) == (
            len(ROWS),
            "rows.jsonl",
            "processed",
        )
        assert client.files.content(done.file.id).content == ROWS
        assert client.files.wait_for_processing(done.file.id).id == done.file.id
        assert client.files.delete(done.file.id).deleted


def test_the_steps_of_an_upload_are_typed_as_the_package_has_them(client: openai.OpenAI) -> None:
    begun = client.uploads.create(
        bytes=len(ROWS),
        filename="rows.jsonl",
        mime_type="text/jsonl",
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (begun.object, begun.status, begun.file) == ("upload", "pending", None)
    part = client.uploads.parts.create(begun.id, data=ROWS)
    assert (part.object, part.upload_id) == ("upload.part", begun.id)
    with pytest.raises(openai.BadRequestError) as told:
        client.uploads.complete(begun.id, part_ids=[part.id], md5="0" * 32)
    assert (told.value.code, told.value.param) == ("digest_mismatch", "md5")
    done = client.uploads.complete(begun.id, part_ids=[part.id])
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 3600
    cancelled = client.uploads.create(bytes=9, filename="x.csv", mime_type="", purpose="user_data")
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel("upload-none")
    client.files.delete(done.file.id)


def test_files_are_made_listed_by_pages_read_and_deleted(client: openai.OpenAI) -> None:
    made = [
        client.files.create(
            file=(f"rows-{number}.jsonl", ROWS[: 66 * 10]),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 86_400},
        )
        for number in range(3)
    ]
    assert made[0].expires_at == made[0].created_at + 86_400
    listed = [file.id for file in client.files.list(limit=1, order="asc")]  # the package turns the pages
    assert sorted(listed) == sorted(file.id for file in made)
    assert [file.id for file in client.files.list(purpose="user_data")] == []
    assert (
        client.files.retrieve(made[1].id).to_dict()["sha256"] == hashlib.sha256(ROWS[: 66 * 10]).hexdigest()
    )
    for file in made:
        assert client.files.delete(file.id).deleted
    assert list(client.files.list()) == []


def test_a_full_disk_is_an_error_that_the_package_knows(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-28: 507 with `no_space`, sealed as all answers are; what was there stays."""
    import errno

    from enclave_app import store

    class Full:
        def __getattr__(self, name: str) -> Any:
            return self.write if name == "write" else getattr(os, name)

        @staticmethod
        def write(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "full")

    made = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    with monkeypatch.context() as patched:
        patched.setattr(store, "os", Full())
        with pytest.raises(openai.InternalServerError) as told:
            client.with_options(max_retries=0).files.create(file=("r.jsonl", ROWS), purpose="fine-tune")
        assert (told.value.status_code, told.value.code) == (507, "no_space")
        assert json.loads(told.value.response.content)["error"]["type"] == "server_error"
        assert client.files.content(made.id).content == ROWS
    client.files.delete(made.id)
