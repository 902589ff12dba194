"""
The one door out: attest → seal → send → open.

A `requests` transport adapter. Whatever a session does (redirects, digest authentication, hooks) ends in
`send` here, so nothing reaches the network beside a request for evidence and sealed messages. What may be
tried twice, and what never, is decided in `send` alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import requests
import urllib3
from requests import exceptions as outer
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers, rewind_body
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    LocationValueError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER

from blindbox_attestation.channel import ohttp
from blindbox_attestation.errors import InvalidPolicy, MalformedEvidence
from blindbox_attestation.verify import AnyPolicy

from . import process, question, tenant, trust
from .answer import OpenedBody, SealedAnswer
from .call import Call, carried
from .collateral import SHARED, Collateral
from .errors import NoEvidence, NoPolicy, OutcomeUnknown, UnsealedAnswer
from .origin import origin_of
from .proof import Proof
from .session_key import ProvenKey, SessionKeys
from .timeouts import DEFAULT, Deadline, Timeouts

EVIDENCE_PATH = "/.well-known/blindbox/attestation"  # SPEC §1
GATEWAY_PATH = "/.well-known/ohttp-gateway"  # RFC 9540
EVIDENCE_TYPE = "application/blindbox-attestation+json"
KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key"  # RFC 9458 §5.3
MAX_EVIDENCE = 256 * 1024  # SPEC §2
EVIDENCE_LIMITS = Timeouts(connect=5.0, between_bytes=30.0, in_all=60.0)

AnyPolicyOrFile: TypeAlias = AnyPolicy | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Route:
    """How the bytes travel to an origin. Nothing here has any say in what the machine must prove."""

    origin: str
    timeouts: Timeouts = DEFAULT
    verify: bool | str = True  # outer TLS
    cert: Any = None  # outer TLS
    proxies: Mapping[str, str] | None = None


class SealedAdapter(HTTPAdapter):
    """
    Carries `requests` to machines that have proved themselves, and to no others.

    `policy` is asked for at every origin, or only at `origin` if that is given. Where it does not apply, the
    user's trust store does. With neither, `NoPolicy` is raised before anything is sent.

    `collateral` fetches what vendors publish, where a machine did not send it; with None, nobody is asked.
    `max_retries` counts connections that could not be made. A request that was sent is never repeated by
    urllib3.
    """

    def __init__(
        self,
        policy: AnyPolicyOrFile | None = None,
        *,
        origin: str | None = None,
        max_response_bytes: int | None = 1 << 30,
        pool_connections: int = 10,
        pool_maxsize: int = 64,
        max_retries: int | urllib3.Retry = 0,
        pool_block: bool = False,
        keys: SessionKeys | None = None,
        trust_store: trust.TrustStore | None = None,
        token_store: tenant.TokenStore | None = None,
        collateral: Collateral | None = SHARED,
    ) -> None:
        self.policy = policy_of(policy)
        self.origin = None if origin is None else origin_of(origin)
        self.max_response_bytes = max_response_bytes
        self.keys = keys if keys is not None else SessionKeys()
        self.collateral = collateral
        self._trust = trust_store if trust_store is not None else trust.STORE
        self._tokens = token_store if token_store is not None else tenant.STORE
        self._generation = process.generation()
        self._of_the_parent: list[Any] = []
        self._pools = (pool_connections, pool_maxsize, pool_block)
        connect = _connect_retries(max_retries)
        only_connecting = urllib3.Retry(
            total=connect,
            connect=connect,
            read=False,
            redirect=0,
            status=0,
            other=0,
            backoff_factor=0.1,
            respect_retry_after_header=False,  # or urllib3 reads such an answer to its end, however long
        )
        super().__init__(pool_connections, pool_maxsize, only_connecting, pool_block)

    def __repr__(self) -> str:
        bound = f" to {self.origin}" if self.origin else ""
        return f"<{type(self).__name__}{bound}{' SIMULATED' if is_simulated(self.policy) else ''}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds proven keys: it cannot be copied or pickled, make another one"
        )

    # ── which policy, which key ───────────────────────────────────────────────────────────────────────────

    def policy_for(
        self,
        url: str,
        policy: AnyPolicyOrFile | None = None,
        cce_policy: str | os.PathLike[str] | None = None,
    ) -> AnyPolicy:
        """The policy for the URL's origin: the call's own, this adapter's, the stored one, or `NoPolicy`."""
        origin = origin_of(url)
        chosen = policy_of(policy)
        if chosen is None and self.origin in {None, origin}:
            chosen = self.policy
        if chosen is None:
            chosen = self._trust.get(origin)
        if chosen is None:
            raise NoPolicy(origin)
        return chosen if cce_policy is None else narrowed(chosen, cce_policy)

    def prove(
        self,
        url: str,
        policy: AnyPolicyOrFile | None = None,
        cce_policy: str | os.PathLike[str] | None = None,
        *,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Proof:
        """Have the URL's origin prove itself now, unless it has."""
        self._after_fork()
        route = Route(origin_of(url), verify=verify, cert=cert, proxies=proxies)
        chosen = self.policy_for(url, policy, cce_policy)
        key = self.keys.get(route.origin, chosen, self._fetcher(route), collateral=self.collateral)
        return Proof.of(key)

    def fetch_evidence(self, route: Route, nonce: bytes) -> bytes:
        """The attestation document, at most 256 KiB, as it is served: not decoded, no redirect followed."""
        query = f"?nonce={question.b64url(nonce).decode()}" if nonce else ""
        limits = EVIDENCE_LIMITS
        if route.timeouts.given:
            quiet = min(route.timeouts.between_bytes or math.inf, EVIDENCE_LIMITS.between_bytes or math.inf)
            limits = replace(limits, connect=route.timeouts.connect, between_bytes=quiet)
        deadline = Deadline(limits, time.monotonic)
        network = self._exchange(
            route,
            "GET",
            EVIDENCE_PATH + query,
            {"Accept": EVIDENCE_TYPE, "User-Agent": SKIP_HEADER},
            None,
            limits,
        )
        try:
            if network.status != 200:
                raise NoEvidence(_no_evidence(route.origin, network.status))
            if network.headers.get("content-type", "").lower() != EVIDENCE_TYPE:
                raise NoEvidence(
                    f"{route.origin} answered, but not with an attestation document; is it a BlindBox?"
                )
            if network.headers.get("content-encoding", "identity").lower() != "identity":
                raise MalformedEvidence("the attestation document came compressed, which was not asked for")
            if int(network.length_remaining or 0) > MAX_EVIDENCE:
                raise MalformedEvidence(
                    f"the attestation document is larger than {MAX_EVIDENCE} bytes", code="document-too-large"
                )
            document = bytearray()
            while data := network.read1(MAX_EVIDENCE + 1 - len(document), decode_content=False):
                document += data
                if len(document) > MAX_EVIDENCE:
                    raise MalformedEvidence(
                        f"the attestation document is larger than {MAX_EVIDENCE} bytes",
                        code="document-too-large",
                    )
                if deadline.passed():
                    raise outer.ReadTimeout("the attestation document did not come within the limit")
        except ReadTimeoutError as error:
            network.close()
            raise outer.ReadTimeout("the attestation document did not come within the limit") from error
        except (HTTPError, OSError) as error:
            network.close()
            if isinstance(error, outer.RequestException):
                raise
            raise outer.ConnectionError(
                "the connection broke in the middle of the attestation document"
            ) from error
        except BaseException:
            network.close()
            raise
        return bytes(document)

    def _fetcher(self, route: Route) -> Any:
        return lambda nonce: self.fetch_evidence(route, nonce)

    # ── one call ──────────────────────────────────────────────────────────────────────────────────────────

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = DEFAULT,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
        policy: AnyPolicyOrFile | None = None,
        cce_policy: str | os.PathLike[str] | None = None,
        call: Call | None = None,
    ) -> requests.Response:
        """
        Send a prepared request to its origin, sealed, once that has proved itself.

        1. the policy for this origin, before anything is sent
        2. a proven key                                                        SPEC §4
        3. seal, send, open                                                    SPEC §5
        4. at most once: prove again, and send again only if that cannot run the call twice
             - the enclave says, sealed, that it did not run it (stale evidence)
             - it is the same boot, which refuses an id it has seen, or may have forgotten   SPEC §5.3
             - the method is idempotent, or the caller gave an Idempotency-Key

        `call` tells whether anything of the request was sent, and lets another thread give it up.
        """
        self._after_fork()
        url = request.url or ""
        route = Route(origin_of(url), Timeouts.of(timeout), verify, cert, proxies)
        chosen = self.policy_for(url, policy, cce_policy)  # 1
        fetch = self._fetcher(route)
        key = self.keys.get(route.origin, chosen, fetch, collateral=self.collateral)  # 2
        request_id = question.new_id()
        response = self._ask(route, key, request, request_id, stream, call=call)  # 3
        if isinstance(response, requests.Response) and not _says(response, 421, "stale-evidence"):
            return response
        did_not_run = response is not None
        if did_not_run and call is not None:
            call.sent = False
        before = key
        key = self.keys.get(route.origin, chosen, fetch, instead_of=before, collateral=self.collateral)  # 4
        same_boot = key.verified.boot_id == before.verified.boot_id
        first: ProvenKey | None = before
        if did_not_run or question.may_run_twice(request):
            request_id, first = question.new_id(), None
        elif not same_boot:
            raise OutcomeUnknown(
                "the enclave restarted while the call was under way, and whether it ran is unknown. It was "
                "not sent again; the next call goes to the restarted enclave. An Idempotency-Key header "
                "allows a repetition."
            )
        _rewind(request, did_not_run)
        response = self._ask(route, key, request, request_id, stream, first, call=call)
        if response is None:
            raise UnsealedAnswer(400)
        if _says(response, 409, "already-received"):
            raise OutcomeUnknown(
                "the enclave had already received this call when it was sent again, or no longer remembers "
                "whether it had, and the first answer was lost. It ran once at most; whether it succeeded is "
                "unknown."
            )
        return response

    def _ask(
        self,
        route: Route,
        key: ProvenKey,
        request: requests.PreparedRequest,
        request_id: bytes,
        stream: bool,
        first: ProvenKey | None = None,
        *,
        call: Call | None,
    ) -> requests.Response | None:
        """One sealed exchange. None if the gateway cannot open what this key seals."""
        token = None if "Authorization" in request.headers else self._tokens.token(route.origin)
        inner = question.head(
            request, key, request_id=request_id, token=token, now=datetime.now(UTC), first=first
        )
        sealer = ohttp.RequestSealer(key.config)
        body = question.sealed(sealer, inner, request.body)
        deadline = Deadline(route.timeouts, time.monotonic)
        network = self._exchange(
            route, "POST", GATEWAY_PATH, _outer_headers(body), body, route.timeouts, call
        )
        if network.status != 200 or network.headers.get("content-type", "").lower() != ohttp.CHUNKED_RESPONSE:
            if _is_key_problem(network):
                return None
            network.close()
            raise UnsealedAnswer(network.status, retry_after=_retry_after(network))
        deadline.heard()
        answer = SealedAnswer(network, sealer.response_opener(), request_id=request_id, deadline=deadline)
        try:
            body_limit = None if stream else self.max_response_bytes
            opened = OpenedBody(answer, limit=body_limit)
            response = self._response(request, opened, key)
            if not stream:
                # A caller who does not stream sees all of the answer or none of it, in hooks too.
                _ = response.content
            elif response.status_code in {409, 421} and not opened.headers.get("content-encoding"):
                # Perhaps the gateway's own words, which `send` looks at; a caller reads them all the same.
                opened.put_back(response.content)
        except BaseException:
            answer.close()
            raise
        return response

    def _response(
        self, request: requests.PreparedRequest, raw: OpenedBody, key: ProvenKey
    ) -> requests.Response:
        response = requests.Response()
        response.status_code = raw.status
        response.headers = CaseInsensitiveDict(raw.headers)
        response.encoding = get_encoding_from_headers(response.headers)
        response.raw = raw
        response.reason = raw.reason
        response.url = request.url or ""
        response.request = request
        response.connection = self
        extract_cookies_to_jar(response.cookies, request, raw)  # type: ignore[no-untyped-call]
        response.__dict__["blindbox"] = Proof.of(key)
        return response

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────

    def _exchange(
        self,
        route: Route,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | Iterator[bytes] | None,
        timeouts: Timeouts,
        call: Call | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """
        Send outer bytes and return the outer answer's head.

        Errors become those of `requests`. They carry the outer request, never the caller's.
        """
        shell = requests.PreparedRequest()
        shell.method = method
        shell.url = route.origin + path
        shell.headers = CaseInsensitiveDict()
        proxies = dict(route.proxies or {})
        try:
            pool = self._pool(route, shell, proxies)
        except LocationValueError as error:
            raise outer.InvalidURL(error, request=shell) from error
        self.cert_verify(pool, shell.url, route.verify, route.cert)  # type: ignore[no-untyped-call]
        target: Any = self.request_url(shell, proxies) if proxies else path
        try:
            with carried(call or Call(), pool, timeouts.in_all):
                network: urllib3.BaseHTTPResponse = pool.urlopen(
                    method,
                    target,
                    body=body,
                    headers=headers,
                    retries=self.max_retries,
                    redirect=False,
                    assert_same_host=False,
                    timeout=timeouts.for_urllib3(),
                    preload_content=False,
                    decode_content=False,
                )
        except MaxRetryError as error:
            reason = error.reason
            if isinstance(reason, ConnectTimeoutError) and not isinstance(reason, NewConnectionError):
                raise outer.ConnectTimeout(error, request=shell) from error
            if isinstance(reason, ProxyError):
                raise outer.ProxyError(error, request=shell) from error
            if isinstance(reason, SSLError):
                raise outer.SSLError(error, request=shell) from error
            raise outer.ConnectionError(error, request=shell) from error
        except ReadTimeoutError as error:
            raise outer.ReadTimeout(error, request=shell) from error
        except SSLError as error:
            raise outer.SSLError(error, request=shell) from error
        except ProxyError as error:
            raise outer.ProxyError(error, request=shell) from error
        except InvalidHeader as error:
            raise outer.InvalidHeader(error, request=shell) from error
        except (ProtocolError, HTTPError) as error:
            raise outer.ConnectionError(error, request=shell) from error
        return network

    def _pool(self, route: Route, shell: requests.PreparedRequest, proxies: dict[str, str]) -> Any:
        """The connections to an origin. `requests` looks for them by all that TLS may depend on, and long."""
        as_usual = route.verify is True and route.cert is None and not proxies
        pool = self._usual_pools.get(route.origin) if as_usual else None
        if pool is None:
            pool = self.get_connection_with_tls_context(shell, route.verify, proxies=proxies, cert=route.cert)
            if as_usual:
                self._usual_pools[route.origin] = pool
        return pool

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Called anew in a forked child."""
        super().init_poolmanager(*args, **kwargs)
        # Weak: how many pools there are, and for how long, is the manager's to say.
        self._usual_pools: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def close(self) -> None:
        self._usual_pools.clear()
        super().close()

    def _after_fork(self) -> None:
        """A child has sockets of its own, or two processes would talk over one."""
        if self._generation == process.generation():
            return
        with process.guard():
            if self._generation != process.generation():
                # Kept, not closed: closing takes locks that a thread of the parent may have held.
                self._of_the_parent += [self.poolmanager, self.proxy_manager]
                self.proxy_manager = {}
                self.init_poolmanager(*self._pools)
                self._generation = process.generation()


def _connect_retries(max_retries: int | urllib3.Retry) -> int:
    """How often a connection may be tried again, out of what `HTTPAdapter` takes."""
    if isinstance(max_retries, int):
        return max_retries
    counts = [count for count in (max_retries.connect, max_retries.total) if type(count) is int]
    return min(counts, default=0)


def is_simulated(policy: AnyPolicy | None) -> bool:
    from blindbox_attestation.simulated import UnsafeSimulatedPolicy

    return isinstance(policy, UnsafeSimulatedPolicy)


def narrowed(policy: AnyPolicy, cce_policy: str | os.PathLike[str]) -> AnyPolicy:
    """
    The policy, and besides: launched with exactly this Azure container policy.

    The file holds the policy in base64, as `az confcom` prints it; SNP's HOST_DATA is the SHA-256 of what
    that encodes.
    """
    try:
        with open(cce_policy, "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise InvalidPolicy(
            f"the cce policy {os.fspath(cce_policy)!r} cannot be read: {error.strerror}"
        ) from error
    try:
        decoded = b64decode(b"".join(encoded.split()), validate=True)
    except ValueError as error:
        raise InvalidPolicy(f"the cce policy {os.fspath(cce_policy)!r} is not base64") from error
    if not decoded:
        raise InvalidPolicy(f"the cce policy {os.fspath(cce_policy)!r} is empty")
    return policy.with_host_data(hashlib.sha256(decoded).digest())


def policy_of(policy: AnyPolicyOrFile | None) -> AnyPolicy | None:
    """A policy, or the file of one."""
    if isinstance(policy, str | os.PathLike):
        return trust.read_policy(policy)
    if policy is not None and not hasattr(type(policy), "with_host_data"):
        told = policy.__name__ if isinstance(policy, type) else f"a {type(policy).__name__}"
        raise InvalidPolicy(
            f"policy= is {told}; it takes a Policy (from_json reads one from text), "
            "the path of a policy file, or an UnsafeSimulatedPolicy()"
        )
    return policy


def _outer_headers(body: bytes | Iterator[bytes]) -> dict[str, str]:
    """Constant, and in this order after Host and Accept-Encoding, which http.client writes (SPEC §5.2)."""
    headers = {"Content-Type": ohttp.CHUNKED_REQUEST, "Incremental": "?1", "User-Agent": SKIP_HEADER}
    if isinstance(body, bytes):
        headers["Content-Length"] = str(len(body))
    else:
        headers["Transfer-Encoding"] = "chunked"
    return headers


def _is_key_problem(network: urllib3.BaseHTTPResponse) -> bool:
    """SPEC §1: the one unsealed answer that is acted on. Read to its end, to use the connection again."""
    if network.status != 400 or network.headers.get("content-type", "").lower() != "application/problem+json":
        return False
    deadline = Deadline(EVIDENCE_LIMITS, time.monotonic)
    try:
        body = b""
        while len(body) <= 4096 and (data := network.read1(4097 - len(body), decode_content=False)):
            body += data
            if deadline.passed():
                return False
        problem = json.loads(body) if len(body) <= 4096 else None
    except (HTTPError, OSError, ValueError, RecursionError):
        return False
    return isinstance(problem, dict) and problem.get("type") == KEY_PROBLEM


def _says(response: requests.Response, status: int, code: str) -> bool:
    """Whether this is the gateway's sealed error `code` (SPEC §5.6). The body has been read."""
    if response.status_code != status or response.headers.get("content-encoding"):
        return False  # the gateway compresses nothing
    try:
        error = json.loads(response.content)["error"]
        return bool(error["code"] == code)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _rewind(request: requests.PreparedRequest, did_not_run: bool) -> None:
    body = request.body
    if body is None or isinstance(body, str | bytes | bytearray | memoryview):
        return
    try:
        if getattr(request, "_body_position", None) is None:
            raise outer.UnrewindableBodyError
        rewind_body(request)
    except outer.UnrewindableBodyError as error:
        if did_not_run:
            raise outer.UnrewindableBodyError(
                "the enclave asked for a newer proof before it ran the call, and the body can be read only "
                "once; call again with a new body"
            ) from error
        raise OutcomeUnknown(
            "the enclave could not open the call, or its answer was replaced on the way; the body can be "
            "read only once, so it was not sent again. The next call works."
        ) from error


def _retry_after(network: urllib3.BaseHTTPResponse) -> float | None:
    value = network.headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"[0-9]{1,6}", value) else None


def _no_evidence(origin: str, status: int) -> str:
    if status in {429, 503}:
        return f"{origin} is too busy to prove itself just now (status {status}); try again later"
    if 300 <= status < 400:
        return f"{origin} answers a request for evidence with a redirect ({status}), which is not followed"
    return (
        f"{origin} shows no attestation document (status {status}); is it a BlindBox, and is the port right?"
    )
