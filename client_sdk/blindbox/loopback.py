"""
Who may use a port on this machine: programs of whoever sits here, and no page that a browser has open.

A browser lets any page send requests to 127.0.0.1, and a name of the page's own may be made to point there
(DNS rebinding). So the name asked for must be a loopback name, and a request that a browser sends for another
origin is refused by what browsers say of their own accord (Fetch Metadata, Origin). Nothing here answers with
CORS headers. Other users of this machine reach its loopback too: a token keeps them out.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from email.message import Message


class Refused(Exception):
    """Whoever asks may not; `status` is what it is answered with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listening:
        """`127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`; a port alone is one of 127.0.0.1."""
        host, colon, port = text.rpartition(":")
        if not colon:
            host = "127.0.0.1"
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host or "127.0.0.1"
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{text!a} is no address like 127.0.0.1:8080 (port 0 takes a free one)")
        if ":" in host and f"[{host}]" not in text:
            raise ValueError(f"{text!a}: an IPv6 address is written in brackets, like [::1]:8080")
        return cls(host.lower(), int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Doorkeeper:
    """Looks at a request's head before anything is done for it."""

    def __init__(self, at: Listening, token: str | None = None) -> None:
        names = {"127.0.0.1", "localhost", "[::1]", at.url.removeprefix("http://").rpartition(":")[0]}
        self._hosts = {f"{name}:{at.port}" for name in names} | (names if at.port == 80 else set())
        self._origins = {f"http://{host}" for host in self._hosts}
        # Beyond loopback this machine has names that nobody here knows; a token is asked for there.
        self._any_host = not at.loopback
        self._token = token
        if self._any_host and token is None:
            raise ValueError("beyond loopback a token must be asked for")

    def look(self, headers: Message, *, open_to_all: bool = False) -> None:
        """
        Raise `Refused` if this request is not to be served.

        What is open to all is nobody's: a browser may load it from anywhere, and before it has a token.
        """
        hosts = [each.strip().lower() for each in headers.get_all("host", [])]
        if len(hosts) != 1 or not (self._any_host or hosts[0] in self._hosts):
            raise Refused(
                421, "wrong-host", "this is not the host's name here; ask for 127.0.0.1 and the port"
            )
        if open_to_all:
            return
        origins = {f"http://{hosts[0]}"} if self._any_host else self._origins
        if any(each.strip().lower() not in origins for each in headers.get_all("origin", [])):
            raise Refused(403, "foreign-origin", "pages from elsewhere may not use this port")
        sites = {each.strip().lower() for each in headers.get_all("sec-fetch-site", [])}
        if not sites <= {"same-origin", "none"}:
            raise Refused(403, "foreign-origin", "pages from elsewhere may not use this port")
        if self._token is not None and not self._shown(headers):
            raise Refused(
                401,
                "wrong-token",
                "this proxy asks for the token that it printed when it started, as "
                "Authorization: Bearer TOKEN (for most programs: set OPENAI_API_KEY)",
            )

    def _shown(self, headers: Message) -> bool:
        assert self._token is not None
        given = headers.get_all("authorization", [])
        kind, _, word = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
        return kind.lower() == "bearer" and hmac.compare_digest(
            word.strip().encode("utf-8", "replace"), self._token.encode()
        )
