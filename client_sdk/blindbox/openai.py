"""
The `openai` package's own clients, over attested and sealed calls.

    client = blindbox.OpenAI("http://203.0.113.7:80", policy="release-1.0.json")
    client.chat.completions.create(model=…, messages=[…])

What comes back is that package's client; only its way to the network is ours (`httpx_transport.py`). The
package is loaded when a client is made: `pip install "blindbox[openai]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import tenant
from .adapter import AnyPolicyOrFile, SealedAdapter
from .collateral import SHARED, Collateral
from .origin import origin_of

if TYPE_CHECKING:
    import httpx2
    import openai


def OpenAI(  # noqa: N802 - the name people look for
    origin: str,
    *,
    policy: AnyPolicyOrFile | None = None,
    api_key: str | None = None,
    collateral: Collateral | None = SHARED,
    adapter: SealedAdapter | None = None,
    **options: Any,
) -> openai.OpenAI:
    """
    An `openai.OpenAI` that speaks to `origin`, and to nothing that has not proved itself.

    `policy` says what it must prove; without it, the policy stored for the origin does. `api_key` is your
    tenant token for the origin unless given; OPENAI_API_KEY and OPENAI_BASE_URL are not looked at. `options`
    are those of `openai.OpenAI`: timeout, max_retries, default_headers and so on.

    A call that may have run is not sent again by `max_retries`, unless it is idempotent or carries an
    Idempotency-Key of yours.
    """
    _needed()
    import openai

    from .httpx_transport import STREAMED, SealedTransport

    class Client(openai.DefaultHttpxClient):
        """Tells the transport whether an answer will be read piece by piece."""

        def send(self, request: httpx2.Request, *, stream: bool = False, **more: Any) -> httpx2.Response:
            request.extensions = {**request.extensions, STREAMED: stream}
            return super().send(request, stream=stream, **more)

    door = adapter or SealedAdapter(policy, origin=origin, collateral=collateral)
    transport = SealedTransport(door, unrepeatable=_unrepeatable)
    return openai.OpenAI(
        api_key=api_key or tenant.STORE.token(origin),
        base_url=f"{origin_of(origin)}/v1",
        http_client=Client(transport=transport, trust_env=False),
        **options,
    )


def AsyncOpenAI(  # noqa: N802 - the name people look for
    origin: str,
    *,
    policy: AnyPolicyOrFile | None = None,
    api_key: str | None = None,
    collateral: Collateral | None = SHARED,
    adapter: SealedAdapter | None = None,
    **options: Any,
) -> openai.AsyncOpenAI:
    """An `openai.AsyncOpenAI`, as `OpenAI` is an `openai.OpenAI`."""
    _needed()
    import openai

    from .httpx_transport import STREAMED, AsyncSealedTransport

    class Client(openai.DefaultAsyncHttpxClient):
        """Tells the transport whether an answer will be read piece by piece."""

        async def send(
            self, request: httpx2.Request, *, stream: bool = False, **more: Any
        ) -> httpx2.Response:
            request.extensions = {**request.extensions, STREAMED: stream}
            return await super().send(request, stream=stream, **more)

    door = adapter or SealedAdapter(policy, origin=origin, collateral=collateral)
    transport = AsyncSealedTransport(door, unrepeatable=_unrepeatable)
    return openai.AsyncOpenAI(
        api_key=api_key or tenant.STORE.token(origin),
        base_url=f"{origin_of(origin)}/v1",
        http_client=Client(transport=transport, trust_env=False),
        **options,
    )


def _needed() -> None:
    try:
        import httpx2  # noqa: F401 - what the versions that are meant stand on
        import openai  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'blindbox.OpenAI needs the openai package, version 3: pip install "blindbox[openai]"'
        ) from error


def _unrepeatable(request: httpx2.Request, error: Exception) -> Exception:
    """
    That package sends again after every error of the network that it does not know as its own.

    So what must not be sent again is told in its own words.
    """
    import httpx2
    import openai

    if isinstance(error, httpx2.TimeoutException):
        return openai.APITimeoutError(request=request)
    return openai.APIConnectionError(message=str(error), request=request)
