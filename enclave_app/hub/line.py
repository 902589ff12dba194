"""
The way to the hub, and to nowhere else.

Every address is looked at before it is asked, those that the hub sends us on to as well: it is the hub's own
origin or, where that is HTTPS, HTTPS at a name of its stores. No proxy, no cookie, no token; nothing that
comes is unpacked on its way; and it all has a limit in bytes and in time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..refusals import Failed, Refusal

if TYPE_CHECKING:
    import httpx

STORES: Final = (".huggingface.co", ".hf.co")
"""How the names end of the places that the hub keeps large files in."""
_PLAIN: Final = re.compile(r"[a-z0-9.-]+")
"""A host that every reader of addresses reads alike; of others some make two."""
_MOST_MOVES: Final = 5
_CONNECT: Final = 10.0
_SILENCE: Final = 30.0  # seconds from one piece to the next
_ALL: Final = 3600.0  # seconds of one file
_TOLD: Final = 60.0  # seconds of what is told of a data set
_MOVED: Final = (301, 302, 303, 307, 308)
_UPLOAD: Final = "Upload its rows as a file instead."


class Unwanted(Exception):
    """Nobody wants the file any more."""


class Line:
    """Asks one hub."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def read(self, path: str, most: int) -> bytes:
        """What is at this path, if it is not larger."""
        read = bytearray()
        with self.pieces(path, never, _TOLD) as pieces:
            for piece in pieces:
                read += piece
                if len(read) > most:
                    raise Refusal(
                        f"What the hub tells about this data set is larger than {most} bytes. {_UPLOAD}",
                        code="unsafe_dataset",
                        param="dataset_name",
                    )
        return bytes(read)

    @contextmanager
    def pieces(
        self, path: str, stopped: Callable[[], bool], seconds: float = _ALL
    ) -> Iterator[Iterator[bytes]]:
        """What is at this path, as it comes; raises `Refusal`, or `Unwanted` once `stopped` says so."""
        import httpx

        until = time.monotonic() + seconds
        try:
            with httpx.Client(
                timeout=httpx.Timeout(_SILENCE, connect=_CONNECT),
                headers={"User-Agent": "blindbox", "Accept-Encoding": "identity"},
                trust_env=False,
                follow_redirects=False,
            ) as client:
                response = self._arrived(client, httpx.URL(self._endpoint + path))
                try:
                    yield _until(response, until, stopped)
                finally:
                    response.close()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise Failed(
                f"The hub cannot be reached ({type(error).__name__}); try again later.",
                code="hub_unreachable",
                status=503,
            ) from None

    def _arrived(self, client: httpx.Client, url: httpx.URL) -> httpx.Response:
        """The answer, from wherever the hub keeps it."""
        for _ in range(_MOST_MOVES):
            self._check(url)
            response = client.send(client.build_request("GET", url), stream=True)
            if response.status_code in _MOVED and "location" in response.headers:
                response.close()
                url = url.join(response.headers["location"])
                continue
            encoding = response.headers.get("content-encoding", "identity")
            if response.status_code != 200 or encoding != "identity":
                response.close()
                raise _refusal(response.status_code, response.headers.get("x-error-code", ""))
            return response
        raise _refusal(508, "")

    def _check(self, url: httpx.URL) -> None:
        """The same parsed address is looked at here and asked afterwards."""
        import httpx

        own = httpx.URL(self._endpoint)
        if not url.userinfo and _PLAIN.fullmatch(url.host):
            if (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port):
                return
            if (url.scheme, own.scheme, url.port) == ("https", "https", None) and url.host.endswith(STORES):
                return
        raise Failed(
            f"The hub sends us on to an address that is not its own, and that is not asked. {_UPLOAD}",
            code="hub_unreachable",
            status=503,
        )


def never() -> bool:
    """It is always wanted."""
    return False


def _until(response: httpx.Response, until: float, stopped: Callable[[], bool]) -> Iterator[bytes]:
    for piece in response.iter_raw():
        if stopped():
            raise Unwanted
        if time.monotonic() > until:
            raise _refusal(504, "")
        yield piece


def _refusal(status: int, word: str) -> Refusal:
    """What the hub's answer means for the caller."""
    if status == 403 or word == "GatedRepo":
        return Refusal(
            "The hub gives this data set only to those it knows (it is gated or private), and nobody is "
            f"known there from here. {_UPLOAD}",
            code="gated_dataset",
            param="dataset_name",
        )
    if status in (401, 404, 410):
        return Refusal(
            f"The hub has no public data set of this name. {_UPLOAD}",
            code="dataset_not_found",
            param="dataset_name",
        )
    return Failed(
        f"The hub did not answer as it should (status {status}); try again later.",
        code="hub_unreachable",
        status=503,
    )
