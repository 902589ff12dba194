"""
The enclave's own API as calls: JSON goes in, JSON comes out, a refusal is raised as `Refused`.

Here is what all of them share, and what may be sent twice: a call that changes nothing when it is repeated,
or that carries a key by which the enclave knows it again. What is asked is in `job_handle.py` and
`finetuning.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from requests import RequestException, Response

from .adapter import AnyPolicyOrFile
from .errors import Refused
from .origin import origin_of
from .printable import plain
from .proof import Proof
from .requests import Session
from .timeouts import DEFAULT
from .wording import as_keywords, keyword_of

TRIES: Final = 6
UNREADABLE: Final = "unreadable_answer"
_LATER: Final = frozenset({429, 503})  # the enclave did nothing, and says so under the seal
_LONGEST_WAIT: Final = 60.0  # seconds between two tries


class Api:
    """One origin, one session, one tenant."""

    def __init__(
        self,
        origin: str,
        policy: AnyPolicyOrFile | None = None,
        *,
        session: Session | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.origin = origin_of(origin)
        self.policy = policy
        self.session = session if session is not None else Session(policy, origin=self.origin)
        self._own = session is None
        self._sleep = sleep

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        params: Mapping[str, Any] | None = None,
        tries: int = TRIES,
    ) -> dict[str, Any]:
        """The answer to one call. With `key`, the call is one call however often it has to be sent."""
        with self.open(method, path, body, key=key, params=params, tries=tries) as response:
            return _object(response.content, path)

    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        params: Mapping[str, Any] | None = None,
        stream: bool = False,
        timeout: Any = DEFAULT,
        tries: int = TRIES,
    ) -> Response:
        """The whole response of one call, or the beginning of a stream; close it. Raises `Refused`."""
        again = key is not None or method in {"GET", "HEAD", "DELETE", "PUT"}
        headers = {} if key is None else {"Idempotency-Key": key}
        for attempt in range(1, tries + 1):
            pause = min(0.25 * 2**attempt, _LONGEST_WAIT)
            try:
                response = self.session.request(
                    method,
                    self.origin + path,
                    json=body,
                    params=params,
                    headers=headers,
                    stream=stream,
                    timeout=timeout,
                    allow_redirects=False,
                )
            except RequestException as error:
                # A wrong address is none that gets better; a seal that was tampered with is no hiccup.
                if not again or attempt == tries or isinstance(error, ValueError):
                    raise
            else:
                if response.status_code < 300:
                    return response
                refused = refusal(response, path)
                if refused.status not in _LATER or attempt == tries:
                    raise refused
                pause = min(max(pause, refused.retry_after or 0.0), _LONGEST_WAIT)
            self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    def events(self, response: Response) -> Iterator[dict[str, Any]]:
        """Server-sent events (WHATWG HTML §9.2) of a stream, as JSON, until its end."""
        name = "message"
        for line in response.iter_lines(chunk_size=None):
            if line.startswith(b"event:"):
                name = line.removeprefix(b"event:").strip().decode("utf-8", "replace")
            elif line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                told = _object(data, "a stream")
                if name == "error":
                    raise _told_refusal(told, 500, None)
                yield told
                name = "message"

    def proof(self) -> Proof:
        """What the origin proved last, and against which policy."""
        return self.session.proofs.get(self.origin) or self.session.prove(self.origin)

    def pause(self, seconds: float) -> None:
        """Wait between two tries."""
        self._sleep(seconds)

    def close(self) -> None:
        if self._own:
            self.session.close()


def passing(error: Exception) -> bool:
    """Whether a call that failed so may go well another time: the network, or a busy enclave."""
    if isinstance(error, Refused):
        return error.code != UNREADABLE and error.status in _LATER | {500, 502, 504}
    return isinstance(error, RequestException) and not isinstance(error, ValueError)


def _object(data: bytes, path: str) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Refused(
            f"the enclave's answer to {path} cannot be read; is it a release that this program knows?",
            status=500,
            code=UNREADABLE,
        )
    return told


def refusal(response: Response, path: str) -> Refused:
    """What the enclave said no with, read from its answer; in the words of those who call this in Python."""
    with response:
        try:
            told = json.loads(response.content)
        except (ValueError, RecursionError):
            told = None
        after = _seconds(response.headers.get("Retry-After"))
        status = response.status_code
    if not isinstance(told, dict) or not isinstance(told.get("error"), dict):
        older = "; does this enclave run an older release?" if status in {404, 405} else ""
        return Refused(f"{path} was answered with HTTP {status}{older}", status=status, retry_after=after)
    return _told_refusal(told, status, after)


def _told_refusal(told: dict[str, Any], status: int, after: float | None) -> Refused:
    error = told.get("error")
    fields = error if isinstance(error, dict) else {}

    def word(name: str) -> str | None:
        value = fields.get(name)
        return plain(value) if isinstance(value, str) else None

    param = word("param")
    return Refused(
        as_keywords(word("message") or f"the enclave refused with HTTP {status}"),
        status=status,
        code=word("code"),
        param=param and keyword_of(param),
        retry_after=after,
    )


def _seconds(told: str | None) -> float | None:
    try:
        seconds = float(told or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
