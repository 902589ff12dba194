"""
`import blindbox.requests as requests`: the shape people know, to machines that have proved themselves.

Every name of `requests` is here. The verbs and `Session` are sealed; `Response`, `Request`, the exceptions,
`codes`, `auth` and so on are the very objects of `requests`, which is imported and not patched. Nothing here
lets a call leave unsealed: `blindbox.requests.sessions.Session` and `blindbox.requests.api.get` are the
sealed ones too.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, Final, NoReturn
from urllib.parse import urljoin, urlsplit

import requests as _requests
from requests import (
    ConnectionError,
    ConnectTimeout,
    HTTPError,
    JSONDecodeError,
    PreparedRequest,
    ReadTimeout,
    Request,
    RequestException,
    Response,
    Timeout,
    TooManyRedirects,
    URLRequired,
    adapters,
    auth,
    certs,
    codes,
    compat,
    cookies,
    exceptions,
    hooks,
    models,
    packages,
    status_codes,
    structures,
    utils,
)
from requests.adapters import BaseAdapter
from requests.exceptions import FileModeWarning

from blindbox_attestation.simulated import UnsafeSimulationWarning

from . import tenant, trust
from .adapter import AnyPolicyOrFile, SealedAdapter, is_simulated, narrowed
from .collateral import SHARED, Collateral
from .errors import (
    AttestationError,
    AttestationException,
    BlindBoxError,
    DebugMode,
    FalseAttestationReport,
    ForeignRedirect,
    InvalidEnclaveCode,
    InvalidPolicy,
    NoEvidence,
    NonCompliantUvm,
    NoPolicy,
    NotAnEnclaveError,
    OutcomeUnknown,
    ResponseTooLarge,
    SealingError,
    StalledResponse,
    TruncatedResponse,
    UnsealedAnswer,
    WrongAttester,
)
from .origin import authority_of, origin_of
from .proof import Proof
from .timeouts import DEFAULT, Timeouts


class Session(_requests.Session):
    """
    A `requests.Session` whose every call goes, sealed, to a machine that has proved itself.

    `policy` says what a machine must prove; without it, the policy stored for an origin does (`blindbox
    trust`). With `origin`, `policy` is meant for that origin alone. A call may bring its own `policy=` and
    `cce_policy=`. What a machine's vendor publishes about it, and the machine did not send, is fetched by
    `collateral`: from AMD and Intel, from mirrors (`blindbox.Collateral`), or, with None, not at all.

    Differences to `requests`: redirects stay within the origin, `verify=` and `cert=` speak of TLS around
    the sealed messages, there are finite default timeouts, and a session can be neither copied nor pickled.
    """

    def __init__(
        self,
        policy: AnyPolicyOrFile | None = None,
        *,
        origin: str | None = None,
        cce_policy: str | os.PathLike[str] | None = None,
        max_response_bytes: int | None = 1 << 30,
        adapter: SealedAdapter | None = None,
        collateral: Collateral | None = SHARED,
    ) -> None:
        self._door = adapter or SealedAdapter(
            policy, origin=origin, max_response_bytes=max_response_bytes, collateral=collateral
        )
        self._own_door = adapter is None
        self._cce_policy = cce_policy
        super().__init__()
        # Compressing before sealing would let the length of a message tell about its content.
        self.headers["Accept-Encoding"] = "identity"
        if is_simulated(self._door.policy):
            warnings.warn(
                "this session accepts SIMULATED evidence, which proves nothing",
                UnsafeSimulationWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        bound = f" to {self._door.origin}" if self._door.origin else ""
        nothing = " SIMULATED" if is_simulated(self._door.policy) else ""
        return f"<blindbox {type(self).__name__}{bound}{nothing}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a blindbox {type(self).__name__} holds proven keys: it cannot be copied or pickled")

    def request(
        self,
        method: str | bytes,
        url: str | bytes,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        cookies: Any = None,
        files: Any = None,
        auth: Any = None,
        timeout: Any = DEFAULT,
        allow_redirects: bool = True,
        proxies: Any = None,
        hooks: Any = None,
        stream: bool | None = None,
        verify: bool | str | None = None,
        cert: Any = None,
        json: Any = None,
        *,
        policy: AnyPolicyOrFile | None = None,
        cce_policy: str | os.PathLike[str] | None = None,
    ) -> Response:
        """
        As `requests.Session.request`, with two more keywords.

        `policy` is what the origin must prove for this call; `cce_policy` the file of an Azure container
        policy that it must, besides, have been launched with. `timeout=None` waits without limit; left out,
        there are limits.
        """
        if isinstance(method, bytes):
            method = method.decode("ascii")
        if isinstance(url, bytes):
            url = url.decode("utf-8")
        prepared = self.prepare_request(
            Request(
                method=method.upper(),
                url=url,
                headers=headers,
                files=files,
                data=data or {},
                json=json,
                params=params or self.params or "",  # to merge and encode empty ones takes `requests` long
                auth=auth,
                cookies=cookies,
                hooks=hooks,
            )
        )
        settings = self.merge_environment_settings(prepared.url or "", proxies or {}, stream, verify, cert)
        return self.send(
            prepared,
            timeout=timeout,
            allow_redirects=allow_redirects,
            policy=policy,
            cce_policy=cce_policy,
            **settings,
        )

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:
        """Send a prepared request, and follow where it is redirected within its origin."""
        kwargs.setdefault("timeout", DEFAULT)
        if kwargs.get("cce_policy") is None:
            kwargs["cce_policy"] = self._cce_policy
        return super().send(request, **kwargs)

    def prove(self, url: str, policy: AnyPolicyOrFile | None = None) -> Proof:
        """Have the URL's origin prove itself now, rather than at the first call."""
        way: Any = self.merge_environment_settings(url, {}, None, None, None)
        return self._door.prove(
            url,
            policy,
            self._cce_policy,
            verify=way["verify"],
            cert=way["cert"],
            proxies=way["proxies"],
        )

    @property
    def proofs(self) -> dict[str, Proof]:
        """What each origin proved last to this session's adapters; by origin, the newest last."""
        doors = {door for door in self.adapters.values() if isinstance(door, SealedAdapter)}
        keys = [key for door in doors for key in door.keys.latest().values()]
        keys.sort(key=lambda key: key.verified.verified_at)
        newest = {key.origin: key for key in keys}
        return {key.origin: Proof.of(key) for key in keys if newest[key.origin] is key}

    @property
    def proof(self) -> Proof | None:
        """The newest of `proofs`; None before any origin has proved itself."""
        return next(reversed(self.proofs.values()), None)

    # ── redirects ─────────────────────────────────────────────────────────────────────────────────────────

    def get_redirect_target(self, resp: Response) -> str | None:
        """
        Where a sealed redirect leads: within the attested origin, or `ForeignRedirect`.

        Inside the seal the enclave is called by its boot id, so an absolute Location may hold that.
        """
        location = super().get_redirect_target(resp)
        if not location:  # an empty one leads nowhere, as in `requests`
            return location
        proof: Proof | None = getattr(resp, "blindbox", None)
        try:
            told = urljoin(resp.url, location)
            # `requests` quotes before it asks, and a backslash that ended the host is then part of a user
            # name: a location must name the same host in both spellings.
            target = _requests.utils.requote_uri(told)
            if authority_of(target) != authority_of(told):
                raise ValueError("a location with two readings")
            if proof is not None and authority_of(target) == proof.boot_id:
                parts = urlsplit(target)
                target = proof.origin + (parts.path or "/")
                target += (f"?{parts.query}" if parts.query else "") + (
                    f"#{parts.fragment}" if parts.fragment else ""
                )
            same = origin_of(target) == origin_of(resp.url)
        except (RequestException, ValueError):
            same, target = False, ""
        if not same:
            raise ForeignRedirect(
                "the enclave redirects to another origin, which has proved nothing; not followed "
                "(allow_redirects=False returns the redirect itself)",
                response=resp,
            )
        return target

    def resolve_redirects(
        self, resp: Response, req: PreparedRequest, *args: Any, **kwargs: Any
    ) -> Generator[Any, None, None]:
        try:
            yield from super().resolve_redirects(resp, req, *args, **kwargs)
        except ForeignRedirect:
            # Asked only where a redirect would lead (`Response.next`): there is no such place for us.
            if not kwargs.get("yield_requests"):
                raise

    # ── adapters ──────────────────────────────────────────────────────────────────────────────────────────

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        """As in `requests`; over http:// and https:// only a `SealedAdapter` can be mounted."""
        if isinstance(prefix, bytes):
            prefix = prefix.decode("ascii")
        if _covers_http(prefix) and not isinstance(adapter, SealedAdapter):
            if prefix in {"http://", "https://"} and prefix not in self.adapters:
                adapter = self._door  # the constructor of requests.Session mounts its own
            else:
                raise SealingError(
                    f"mounting {type(adapter).__name__} on {prefix!r} would let calls leave unsealed; "
                    "mount a blindbox.SealedAdapter (it takes max_retries= and the pool sizes of HTTPAdapter)"
                )
        super().mount(prefix, adapter)

    def get_adapter(self, url: str) -> BaseAdapter:
        adapter = super().get_adapter(url)
        if url.lower().startswith(("http:", "https:")) and not isinstance(adapter, SealedAdapter):
            raise SealingError(f"{type(adapter).__name__} would let this call leave unsealed")
        return adapter

    def close(self) -> None:
        for adapter in set(self.adapters.values()):  # one door is mounted twice
            if adapter is not self._door or self._own_door:
                adapter.close()


def _covers_http(prefix: str) -> bool:
    low = prefix.lower()
    return low.startswith(("http://", "https://")) or "http://".startswith(low) or "https://".startswith(low)


class SecureSession(Session):
    """
    A session with one origin, as in blindbox 0.2.1: the machine proves itself at once, and calls name only a
    path.

    `cce_file` is the file of an Azure container policy, in base64. It narrows `policy`, or the policy stored
    for the origin; a measurement must be known, for a container policy alone does not say what runs beneath
    it.
    """

    def __init__(
        self,
        addr: str,
        cce_file: str | os.PathLike[str] | None = None,
        attestation_endpoint: str | None = None,
        debug_mode: bool = False,
        *,
        policy: AnyPolicyOrFile | None = None,
    ) -> None:
        if not addr:
            raise exceptions.MissingSchema("Missing URL for the Secure Session instance")
        if debug_mode:
            raise InvalidPolicy(
                "debug_mode=True turned attestation off, which is no longer possible; "
                "to try things out, use policy=UnsafeSimulatedPolicy() with a simulated enclave"
            )
        if attestation_endpoint is not None:
            warnings.warn(
                "attestation_endpoint is not used: evidence is verified here, by no service", stacklevel=2
            )
        self.base_url = addr if "://" in addr else f"http://{addr}"
        super().__init__(policy, origin=self.base_url, cce_policy=cce_file)
        self._first = self.prove(self.base_url)

    @property
    def proof(self) -> Proof:
        """What the machine proved last."""
        return super().proof or self._first

    def request(self, method: str | bytes, endpoint: str | bytes = "", *args: Any, **kwargs: Any) -> Response:  # type: ignore[override]
        if isinstance(endpoint, bytes):
            endpoint = endpoint.decode("utf-8")
        return super().request(method, urljoin(self.base_url, endpoint), *args, **kwargs)

    def get(self, endpoint: str | bytes = "", **kwargs: Any) -> Response:  # type: ignore[override]
        kwargs.setdefault("allow_redirects", True)
        return self.request("GET", endpoint, **kwargs)

    def options(self, endpoint: str | bytes = "", **kwargs: Any) -> Response:  # type: ignore[override]
        kwargs.setdefault("allow_redirects", True)
        return self.request("OPTIONS", endpoint, **kwargs)

    def head(self, endpoint: str | bytes = "", **kwargs: Any) -> Response:  # type: ignore[override]
        kwargs.setdefault("allow_redirects", False)
        return self.request("HEAD", endpoint, **kwargs)

    def post(self, endpoint: str | bytes = "", data: Any = None, json: Any = None, **kwargs: Any) -> Response:  # type: ignore[override]
        return self.request("POST", endpoint, data=data, json=json, **kwargs)

    def put(self, endpoint: str | bytes = "", data: Any = None, **kwargs: Any) -> Response:  # type: ignore[override]
        return self.request("PUT", endpoint, data=data, **kwargs)

    def patch(self, endpoint: str | bytes = "", data: Any = None, **kwargs: Any) -> Response:  # type: ignore[override]
        return self.request("PATCH", endpoint, data=data, **kwargs)

    def delete(self, endpoint: str | bytes = "", **kwargs: Any) -> Response:  # type: ignore[override]
        return self.request("DELETE", endpoint, **kwargs)


SecuredSession = SecureSession  # an earlier name


def connect(addr: str, cce_file: str | os.PathLike[str] | None = None, **kwargs: Any) -> SecureSession:
    """As in blindbox 0.2.1: a `SecureSession`."""
    return SecureSession(addr, cce_file, **kwargs)


def session() -> Session:
    """A `Session`, as `requests.session()`."""
    return Session()


# ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────

# One door for all calls without a session: proven keys and connections are shared; cookies are not.
_DOOR: Final = SealedAdapter()


def request(method: str | bytes, url: str | bytes, **kwargs: Any) -> Response:
    """
    As `requests.request`, sealed; also takes `policy=` and `cce_policy=`.

    Calls without a session share one proof for each origin and policy, and its connections.
    """
    with Session(adapter=_DOOR) as one:
        return one.request(method, url, **kwargs)


def get(url: str | bytes, params: Any = None, **kwargs: Any) -> Response:
    """As `requests.get`, sealed."""
    return request("get", url, params=params, **kwargs)


def options(url: str | bytes, **kwargs: Any) -> Response:
    """As `requests.options`, sealed."""
    return request("options", url, **kwargs)


def head(url: str | bytes, **kwargs: Any) -> Response:
    """As `requests.head`, sealed."""
    kwargs.setdefault("allow_redirects", False)
    return request("head", url, **kwargs)


def post(url: str | bytes, data: Any = None, json: Any = None, **kwargs: Any) -> Response:
    """As `requests.post`, sealed."""
    return request("post", url, data=data, json=json, **kwargs)


def put(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """As `requests.put`, sealed."""
    return request("put", url, data=data, **kwargs)


def patch(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """As `requests.patch`, sealed."""
    return request("patch", url, data=data, **kwargs)


def delete(url: str | bytes, **kwargs: Any) -> Response:
    """As `requests.delete`, sealed."""
    return request("delete", url, **kwargs)


# ── the modules beneath `requests` ────────────────────────────────────────────────────────────────────────


def _sealed_copy(original: ModuleType, **ours: Any) -> ModuleType:
    """A module of `requests` in which what would send is ours."""
    module = ModuleType(f"{__name__}.{original.__name__.rpartition('.')[2]}", original.__doc__)
    module.__dict__.update(
        {name: value for name, value in vars(original).items() if not name.startswith("__")}
    )
    module.__dict__.update(ours)
    return module


_verbs: dict[str, Callable[..., Response]] = {
    verb.__name__: verb for verb in (request, get, options, head, post, put, patch, delete)
}
sessions: Final = _sealed_copy(_requests.sessions, Session=Session, session=session)
api: Final = _sealed_copy(_requests.api, sessions=sessions, **_verbs)

# So that `from blindbox.requests.exceptions import Timeout` works although this is one file.
sys.modules.update(
    {
        f"{__name__}.{name}": module
        for name, module in {
            "adapters": adapters,
            "api": api,
            "auth": auth,
            "certs": certs,
            "compat": compat,
            "cookies": cookies,
            "exceptions": exceptions,
            "hooks": hooks,
            "models": models,
            "packages": packages,
            "sessions": sessions,
            "status_codes": status_codes,
            "structures": structures,
            "utils": utils,
        }.items()
    }
)

__title__ = "blindbox.requests"

__all__ = [
    "AttestationError",
    "AttestationException",
    "BlindBoxError",
    "ConnectTimeout",
    "ConnectionError",
    "DebugMode",
    "FalseAttestationReport",
    "FileModeWarning",
    "ForeignRedirect",
    "HTTPError",
    "InvalidEnclaveCode",
    "InvalidPolicy",
    "JSONDecodeError",
    "NoEvidence",
    "NoPolicy",
    "NonCompliantUvm",
    "NotAnEnclaveError",
    "OutcomeUnknown",
    "PreparedRequest",
    "Proof",
    "ReadTimeout",
    "Request",
    "RequestException",
    "Response",
    "ResponseTooLarge",
    "SealedAdapter",
    "SealingError",
    "SecureSession",
    "SecuredSession",
    "Session",
    "StalledResponse",
    "Timeout",
    "Timeouts",
    "TooManyRedirects",
    "TruncatedResponse",
    "URLRequired",
    "UnsealedAnswer",
    "WrongAttester",
    "adapters",
    "api",
    "auth",
    "certs",
    "codes",
    "compat",
    "connect",
    "cookies",
    "delete",
    "exceptions",
    "get",
    "head",
    "hooks",
    "models",
    "narrowed",
    "options",
    "packages",
    "patch",
    "post",
    "put",
    "request",
    "session",
    "sessions",
    "status_codes",
    "structures",
    "tenant",
    "trust",
    "utils",
]
