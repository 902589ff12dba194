"""
A file on its way to the enclave: in one call where it is small, in parts where it is not.

When the line breaks, the enclave is asked what it has, and only what is missing is sent again; the same goes
for a program that was stopped and runs anew. What the enclave has in the end is compared, by digest, with
what was read here. Nothing is held in memory but the piece that is being sealed.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, TypeAlias

from .api import TRIES, Api, passing, refusal
from .errors import Refused

OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes on their way so far, and all there are."""

FILES: Final = "/v1/files"
UPLOADS: Final = "/v1/uploads"
WHOLE: Final = 32 << 20
"""A file up to this size is sent in one call; a larger one in parts, and a broken line costs one part."""
PART: Final = 8 << 20
_MOST_PARTS: Final = 1000
_READ: Final = 1 << 20
# The upload is no more, or a part of it was spoilt where it lay: what is missing is sent anew.
_BEGIN_AGAIN: Final = frozenset({"upload_not_found", "upload_expired", "upload_cancelled", "damaged_upload"})
_SEND_AGAIN: Final = frozenset({"part_not_found", "damaged_part"})


def upload(
    api: Api,
    file: IO[bytes],
    filename: str,
    *,
    purpose: str = "fine-tune",
    expires_after: int | None = None,
    on_progress: OnProgress | None = None,
) -> str:
    """
    Send a file that can be sought in; returns its id in the enclave, which has it whole and unaltered.

    `expires_after` removes it after so many seconds (an hour to 30 days). Raises `Refused` in the enclave's
    words, and the errors of `requests` when the network does not come back.
    """
    return _Sending(api, file, filename, purpose, expires_after, on_progress or _nobody).id()


class _Sending:
    """One file, and where it stands."""

    def __init__(
        self,
        api: Api,
        file: IO[bytes],
        filename: str,
        purpose: str,
        expires_after: int | None,
        on_progress: OnProgress,
    ) -> None:
        self._api = api
        self._file = file
        self._name = filename
        self._purpose = purpose
        self._seconds = expires_after
        self._on_progress = on_progress
        self._size, self._sha256 = _measured(file)

    def id(self) -> str:
        told = self._whole() if self._size <= WHOLE else self._in_parts()
        if (told.get("sha256"), told.get("bytes")) != (self._sha256, self._size):
            raise Refused(
                "the enclave does not have what was sent: its digest of the file is another one. Did the "
                "file change while it was read?",
                status=500,
                code="digest_mismatch",
            )
        self._on_progress(self._size, self._size)
        return str(told["id"])

    # ── in one call ───────────────────────────────────────────────────────────────────────────────────────

    def _whole(self) -> dict[str, Any]:
        fields = {"purpose": self._purpose}
        if self._seconds is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(self._seconds)}
        body = Form(fields, "file", self._name, self._file, 0, self._size, self._told)
        return self._until_there(lambda: self._post(FILES, body), self._as_a_file)

    def _as_a_file(self) -> dict[str, Any] | None:
        """The file as the enclave has it, if the answer alone was lost."""
        listed = self._api.ask("GET", FILES, params={"purpose": self._purpose, "limit": 100})
        for each in _objects(listed.get("data")):
            same = (each.get("sha256"), each.get("bytes")) == (self._sha256, self._size)
            if same and ("expires_at" in each) is (self._seconds is not None):
                return each
        return None

    # ── in parts ──────────────────────────────────────────────────────────────────────────────────────────

    def _in_parts(self) -> dict[str, Any]:
        """
        Find an upload of this file that was not finished, or begin one, and bring it to its end.

        1. what is there is known by its digest, whoever sent it and when
        2. what is missing is sent, each part until the enclave says that it has it
        3. completing says what all of it must be; it may be asked again and again
        """
        for last in (False, False, True):
            try:
                record = self._begun()
                path = f"{UPLOADS}/{record['id']}"
                there = _parts(self._api.ask("GET", path))  # 1
                ids = [self._part(path, there, start, size) for start, size in self._cuts()]  # 2
                wish = {"part_ids": ids, "sha256": self._sha256}
                done = self._api.ask("POST", f"{path}/complete", wish, key=secrets.token_hex(16))  # 3
                file = done.get("file")
                return file if isinstance(file, dict) else {}
            except Refused as refused:
                if last or refused.code not in _BEGIN_AGAIN | _SEND_AGAIN:
                    raise
        raise AssertionError("the last round returns or raises")

    def _begun(self) -> dict[str, Any]:
        listed = self._api.ask("GET", UPLOADS, params={"purpose": self._purpose, "limit": 100})
        for each in _objects(listed.get("data")):
            told = (each.get("status"), each.get("filename"), each.get("bytes"))
            # How long the file is to be kept cannot be seen of one that was begun before.
            if told == ("pending", self._name, self._size) and self._seconds is None:
                return each
        wish: dict[str, Any] = {
            "bytes": self._size,
            "filename": self._name,
            "purpose": self._purpose,
            "mime_type": "",
        }
        if self._seconds is not None:
            wish["expires_after"] = {"anchor": "created_at", "seconds": self._seconds}
        # A second one, where the answer to the first was lost, ends by itself after an hour.
        return self._api.ask("POST", UPLOADS, wish, key=secrets.token_hex(16))

    def _cuts(self) -> Iterator[tuple[int, int]]:
        step = max(PART, -(-self._size // _MOST_PARTS))
        for start in range(0, self._size, step):
            yield start, min(step, self._size - start)

    def _part(self, path: str, there: dict[str, str], start: int, size: int) -> str:
        """The id of one part, which is there when this returns."""
        digest = _digest(self._file, start, size)
        if digest not in there:

            def found() -> dict[str, Any] | None:
                there.update(_parts(self._api.ask("GET", path)))
                return {"id": there[digest]} if digest in there else None

            body = Form({"sha256": digest}, "data", "part", self._file, start, size, self._told)
            sent = self._until_there(lambda: self._post(f"{path}/parts", body), found)
            there[digest] = str(sent["id"])
        self._told(start + size)
        return there[digest]

    # ── what both stand on ────────────────────────────────────────────────────────────────────────────────

    def _until_there(
        self, send: Callable[[], dict[str, Any]], found: Callable[[], dict[str, Any] | None]
    ) -> dict[str, Any]:
        """Send, and where that fails look whether it arrived all the same, before it is sent again."""
        for attempt in range(1, TRIES + 1):
            try:
                return send()
            except Exception as error:
                if not passing(error) or attempt == TRIES:
                    raise
                wait = getattr(error, "retry_after", None) or 0.25 * 2**attempt
                self._api.pause(min(wait, 60.0))
            there = found()
            if there is not None:
                return there
        raise AssertionError("the last attempt returns or raises")

    def _post(self, path: str, body: Form) -> dict[str, Any]:
        body.seek(0)
        response = self._api.session.request(
            "POST",
            self._api.origin + path,
            data=body,
            headers={"Content-Type": body.content_type},
            allow_redirects=False,
        )
        if response.status_code >= 300:
            raise refusal(response, path)
        told = response.json()
        return told if isinstance(told, dict) else {}

    def _told(self, sent: int) -> None:
        self._on_progress(sent, self._size)


class Form(io.RawIOBase):
    """
    multipart/form-data (RFC 7578) of a few short fields and a stretch of a file, which is read as it is sent.

    It can be sought in, so that it can be sent a second time.
    """

    def __init__(
        self,
        fields: dict[str, str],
        name: str,
        filename: str,
        file: IO[bytes],
        start: int,
        size: int,
        on_read: Callable[[int], None],
    ) -> None:
        super().__init__()
        boundary = f"blindbox-{secrets.token_hex(16)}"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        disposition = "Content-Disposition: form-data"
        parts = [
            f"--{boundary}\r\n{disposition}; name={_quoted(key)}\r\n\r\n{fields[key]}\r\n" for key in fields
        ]
        parts += [
            f"--{boundary}\r\n{disposition}; name={_quoted(name)}; filename={_quoted(filename)}\r\n",
            "Content-Type: application/octet-stream\r\n\r\n",
        ]
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self._start = start
        self._size = size
        self._on_read = on_read
        self._at = 0

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        inside = self._at - len(self._head)
        if inside < 0:
            data = self._head[self._at : self._at + len(view)]
        elif inside < self._size:
            self._file.seek(self._start + inside)
            data = self._file.read(min(len(view), self._size - inside))
            if not data:
                raise OSError("the file became shorter while it was sent")
            self._on_read(self._start + inside + len(data))
        else:
            data = self._tail[inside - self._size :][: len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _quoted(name: str) -> str:
    """As browsers write it into a form (WHATWG HTML, multipart/form-data)."""
    told = name.encode("utf-8", "replace").decode()
    return f'"{told.replace(chr(13), "%0D").replace(chr(10), "%0A").replace(chr(34), "%22")}"'


def _measured(file: IO[bytes]) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = file.seek(0)
    while data := file.read(_READ):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def _digest(file: IO[bytes], start: int, size: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while size and (data := file.read(min(_READ, size))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def _parts(record: dict[str, Any]) -> dict[str, str]:
    """Digest → id of the parts that are there."""
    parts = _objects(record.get("parts"))
    return {str(each["sha256"]): str(each["id"]) for each in parts if "sha256" in each and "id" in each}


def _objects(told: Any) -> list[dict[str, Any]]:
    return [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []


def _nobody(_: int, __: int) -> None:
    """Nobody watches."""
