"""
An origin is who a policy, a proof and a token belong to: scheme, host and port in one spelling.

Everything that leaves is addressed with what this module returns, never with the caller's URL, so that no
second parser can read another host out of it.
"""

from __future__ import annotations

from functools import lru_cache

from requests import exceptions
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def origin_of(url: str) -> str:
    """`HTTP://Example.com/a?b` → `http://example.com:80` (RFC 6454 §4, the port always written)."""
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise exceptions.InvalidURL("the URL cannot be read") from error
    scheme = (parsed.scheme or "").lower()
    if scheme not in _PORTS:
        raise exceptions.InvalidSchema(
            f"BlindBox speaks to http:// and https:// origins, not {scheme!r}"
            if scheme
            else "the URL names no scheme; write it whole, for example http://203.0.113.7:80"
        )
    if not parsed.host:
        raise exceptions.InvalidURL("the URL names no host")
    host = parsed.host.lower()
    try:
        host.encode("ascii")
    except UnicodeEncodeError:
        import idna  # a dependency of requests; only for names beyond ASCII

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise exceptions.InvalidURL("the URL's host is not a valid name") from error
    return f"{scheme}://{host}:{parsed.port or _PORTS[scheme]}"


def authority_of(url: str) -> str:
    """The host of a URL and its port if written, in lower case, without any user name."""
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return ""
    host = (parsed.host or "").lower()
    return f"{host}:{parsed.port}" if parsed.port else host
