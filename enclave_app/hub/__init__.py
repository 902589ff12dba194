"""
Data sets that nobody uploaded: fetched from the hub where the operator allows it, else refused.

Only files of data are ever fetched, never a data set's script, and all of them from one commit. They are held
in memory, one at a time, and read as an upload is (`jobs/reading.py`). Which files they are is decided in
`layout.py`; how the hub is reached, and that nothing else is, in `line.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import quote

from blindbox_data import BEGINNING, Form

from ..figures import free_bytes
from ..refusals import Busy, Failed, NotFound, Refusal, TooLarge
from ..settings import Settings
from .layout import CARD, checked, chosen
from .line import Line, never

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MOST_LISTED: Final = 32 << 20  # bytes of a listing
_MOST_OF_A_CARD: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of a data set, in memory."""

    path: str
    form: Form
    file: BinaryIO = field(repr=False)


class DataSet(Protocol):
    """A data set of a hub, at one commit."""

    def files(self, stopped: Callable[[], bool] | None = None) -> Iterator[Fetched]:
        """Those to be trained on, in their order; each is fetched when it is asked for."""
        ...

    def told(self) -> dict[str, Any]:
        """
        For the report: the commit, what was fetched so far, and the digest of that.

        The digest is SHA-256 over the SHA-256 of each file, in their order.
        """
        ...


class Hub(Protocol):
    """Where data sets that nobody uploaded come from."""

    def find(self, name: str, config: str | None, revision: str = "") -> DataSet:
        """The data set of this name; at this commit, or at the newest. Raises `Refusal`."""
        ...


class NoHub:
    """The rule: what is trained on is uploaded, so that no third party learns of it."""

    def find(self, name: str, config: str | None, revision: str = "") -> DataSet:
        raise NotFound(
            "There is no uploaded data set of this name, and this enclave fetches nothing from outside. "
            'Upload a file with POST /v1/files (purpose "fine-tune") and send its id as dataset_name.',
            code="dataset_not_found",
            param="dataset_name",
            status=400,
        )


class HuggingFaceHub:
    """The hub at `endpoint`, or one that speaks as it does; fetches at most so many bytes of a data set."""

    def __init__(self, endpoint: str, most_bytes: int) -> None:
        self._endpoint = endpoint
        self._most_bytes = most_bytes

    def find(self, name: str, config: str | None, revision: str = "") -> DataSet:
        if not _NAME.fullmatch(name) or ".." in name:
            raise Refusal(
                'dataset_name is neither the id of an uploaded file ("file-…") nor a name like "ORG/NAME".',
                code="dataset_not_found",
                param="dataset_name",
            )
        line = Line(self._endpoint)
        at = f"/revision/{revision}" if revision else ""
        listing = line.read(f"/api/datasets/{name}{at}?blobs=true", _MOST_LISTED)
        commit, listed = _listed(listing)
        if revision and commit != revision:
            raise _not_understood()
        checked(list(listed))
        card = line.read(_place(name, commit, CARD), _MOST_OF_A_CARD) if CARD in listed else b""
        paths = chosen(sorted(listed), card, config)
        return _Found(line, name, commit, {path: listed[path] for path in paths}, self._most_bytes)


def hub_of(settings: Settings) -> Hub:
    """The hub that the operator allows, which is none if nothing is said."""
    if not settings.allow_outbound:
        return NoHub()
    return HuggingFaceHub(settings.hub_endpoint, settings.max_upload_bytes)


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the hub says of a file."""

    size: int | None
    sha256: str | None  # of large files alone


class _Found:
    """A data set that is there."""

    def __init__(
        self, line: Line, name: str, revision: str, listed: Mapping[str, _Listed], most_bytes: int
    ) -> None:
        self._line = line
        self._name = name
        self._revision = revision
        self._listed = listed
        self._most_bytes = most_bytes
        self._fetched: list[tuple[str, int, bytes]] = []

    def files(self, stopped: Callable[[], bool] | None = None) -> Iterator[Fetched]:
        self._fetched = []
        left = self._most_bytes
        for path, listed in self._listed.items():
            if (listed.size or 0) > left:
                raise self._too_large()
            free = free_bytes()
            if free is not None and (listed.size or 0) > free // 2:
                raise Busy(
                    f"A file of the data set is {listed.size} bytes, and there is no memory to hold it now. "
                    "Try again later, or upload its rows as a file.",
                    code="no_memory",
                    param="dataset_name",
                )
            held = io.BytesIO()
            digest = hashlib.sha256()
            with self._line.pieces(_place(self._name, self._revision, path), stopped or never) as pieces:
                for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        raise self._too_large()
                    digest.update(piece)
                    held.write(piece)
            size = held.tell()
            if listed.size not in (None, size) or listed.sha256 not in (None, digest.hexdigest()):
                raise Failed(
                    "The hub sent another file than the one it lists; try again later.",
                    code="hub_unreachable",
                    status=503,
                )
            self._fetched.append((path, size, digest.digest()))
            held.seek(0)
            yield Fetched(path, Form.of(path, bytes(held.getbuffer()[:BEGINNING])), held)

    def told(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "revision": self._revision,
            "sha256": hashlib.sha256(b"".join(digest for _, _, digest in self._fetched)).hexdigest(),
            "files": [
                {"path": path, "bytes": size, "sha256": digest.hex()} for path, size, digest in self._fetched
            ],
        }

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The data set is larger than the {self._most_bytes} bytes that are fetched here. Say with "
            "number_elements_for_training how many of its first rows are needed, or upload those as a file.",
            code="file_too_large",
            param="dataset_name",
        )


def _place(name: str, revision: str, path: str) -> str:
    return f"/datasets/{name}/resolve/{revision}/{quote(path)}"


def _listed(listing: bytes) -> tuple[str, dict[str, _Listed]]:
    """The commit, and its files."""
    try:
        told = json.loads(listing)
        commit = told["sha"]
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise _not_understood()
        files = {}
        for each in told["siblings"]:
            large = each.get("lfs") or {}
            size, sha256 = each.get("size"), large.get("sha256")
            files[str(each["rfilename"])] = _Listed(
                size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None
            )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _not_understood() from None
    return commit, files


def _not_understood() -> Failed:
    return Failed(
        "The hub's answer cannot be understood; try again later.", code="hub_unreachable", status=503
    )
