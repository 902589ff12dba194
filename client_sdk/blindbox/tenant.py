"""
The caller's token for an origin: what makes a person's datasets, jobs and adapters theirs alone (SPEC §6).

256 random bits, made at first use, kept in the user's configuration folder with mode 600. It travels only
inside the seal, and only when the caller gave no Authorization of their own.
"""

from __future__ import annotations

import re
import secrets
import threading
import warnings
from pathlib import Path

from . import places
from .origin import origin_of

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class TokenStore:
    """The tokens of one user, one an origin."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[tuple[Path, str], str] = {}
        self._unsaved = threading.Lock()

    @property
    def folder(self) -> Path:
        return self._folder if self._folder is not None else places.home() / "tokens"

    def token(self, url: str) -> str:
        """The token for the URL's origin; two threads or processes that start at once get the same one."""
        place = (self.folder, origin_of(url))
        if (known := self._known.get(place)) is not None:
            return known
        path = places.file_for(*place, "")
        try:
            token = self._stored(path)
            if token is None:
                places.write_new(path, secrets.token_urlsafe(32).encode())
                token = self._stored(path)
        except PermissionError as error:
            if path.exists():
                raise
            token = self._only_here(place, error)
        except OSError as error:
            token = self._only_here(place, error)
        if token is None:
            raise OSError(f"the token file {path} vanished while it was made")
        return self._known.setdefault(place, token)

    @staticmethod
    def _stored(path: Path) -> str | None:
        data = places.read_own(path, secret=True)
        if data is None:
            return None
        token = data.decode("ascii", "replace").strip()
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"{path} does not hold a token; move it away to have a new one made")
        return token

    def _only_here(self, place: tuple[Path, str], error: OSError) -> str:
        with self._unsaved:
            if place not in self._known:
                warnings.warn(
                    f"the tenant token cannot be kept in {place[0]} ({error.strerror}): it lives "
                    "as long as this process, and what is stored under it cannot be reached afterwards. Set "
                    "BLINDBOX_HOME to a folder that can be written, or pass your own Authorization.",
                    stacklevel=2,
                )
                self._known[place] = secrets.token_urlsafe(32)
            return self._known[place]


STORE = TokenStore()
"""The user's own tokens."""
