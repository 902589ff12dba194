"""
A tuned model as the enclave hands it out (a zip of a few files, stored and not compressed) into a folder.

It comes from a machine that has proved itself, and is read as if it came from anybody: names are those of
plain files, nothing is larger than it says, and a file appears in the folder whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Final

from requests import Response

from .api import UNREADABLE
from .errors import Refused

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MOST_FILES: Final = 16
_PIECE: Final = 1 << 20


def unpack(response: Response, folder: Path, sha256: str | None) -> Path:
    """Write the files of the answer into `folder`; `sha256` is what the weights must have, in hexadecimal."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".blindbox-", dir=folder) as draft:
        drafts = Path(draft)
        with open(drafts / "archive", "w+b") as archive:
            for piece in response.iter_content(_PIECE):
                archive.write(piece)
            names = _taken_out(archive, drafts)
        if CONFIG not in names or not any(name.endswith(".safetensors") for name in names):
            raise _strange("has no adapter in it")
        if sha256 is not None and WEIGHTS in names and _digest(drafts / f"file-{WEIGHTS}") != sha256:
            raise _strange("has other weights in it than the job says")
        for name in names:
            os.replace(drafts / f"file-{name}", folder / name)
    return folder


def _taken_out(archive: IO[bytes], drafts: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as files:
            entries = files.infolist()
            if len(entries) > _MOST_FILES:
                raise _strange("holds too many files")
            for entry in entries:
                if not _NAME.fullmatch(entry.filename) or entry.compress_type != zipfile.ZIP_STORED:
                    raise _strange("holds what an adapter does not have")
                with files.open(entry) as source, open(drafts / f"file-{entry.filename}", "xb") as file:
                    shutil.copyfileobj(source, file, _PIECE)
    except (zipfile.BadZipFile, FileExistsError, EOFError, NotImplementedError) as error:
        raise _strange(f"cannot be read ({type(error).__name__})") from error
    return [entry.filename for entry in entries]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strange(what: str) -> Refused:
    return Refused(f"the model's archive {what}; nothing was kept", status=500, code=UNREADABLE)
