"""
`blindbox proxy`: a plain endpoint on this machine that proves and seals, for programs that do neither.

The endpoint is in `proxy.py`; this module reads the command line, says what to set, and ends cleanly.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .asked import add_origin, add_policy
from .status import DONE

if TYPE_CHECKING:
    from ..proof import Proof
    from ..proxy import Proxy

_EPILOG = """\
examples:
  blindbox proxy http://203.0.113.7:80 --policy release-1.0.json
  blindbox proxy http://203.0.113.7:80 --listen 127.0.0.1:0 --require-token
then, for a program that speaks OpenAI's API:
  export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=unused
and for any other:
  curl http://127.0.0.1:8080/v1/models
  curl http://127.0.0.1:8080/blindbox/proof > proof.json

It listens once the machine has proved itself, and never sends a call that is not sealed. Every answer has a
header blindbox-evidence-id: the evidence it stands on. Calls are made with your tenant token for the origin;
an Authorization that a program sends is not passed on unless --forward-authorization is given.

exit status: as of blindbox verify; 0 when it is told to stop
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    proxy = commands.add_parser(
        "proxy",
        description="Have an origin prove itself, then listen here and pass every request on to it, sealed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_endpoint(proxy)
    proxy.add_argument("-v", "--verbose", action="store_true", help="one line about each request, on stderr")
    proxy.set_defaults(run=run, grammar=proxy)


def add_endpoint(parser: Any) -> None:
    """The arguments that say whom to prove and where to listen."""
    add_origin(parser)
    add_policy(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="where (default: 127.0.0.1:8080)"
    )
    parser.add_argument("--port", metavar="N", help="another port of that host; 0 takes a free one")
    parser.add_argument(
        "--require-token",
        action="store_true",
        help="make a token, print it, and serve only programs that show it: for a machine with other users",
    )
    parser.add_argument(
        "--listen-anywhere",
        action="store_true",
        help="allow --listen an address that other machines reach; they need the token that is printed, and "
        "what they send travels unsealed as far as here",
    )
    parser.add_argument(
        "--forward-authorization",
        action="store_true",
        help="pass a program's Authorization on, inside the seal: each key is a tenant of its own",
    )


def run(options: argparse.Namespace) -> int:
    """Prove, listen, serve until told to stop."""
    with made(options, log=_log if options.verbose else None) as proxy, stopped(proxy):
        for line in _told(proxy):
            print(line, flush=True)
        proxy.serve()
    return DONE


@contextlib.contextmanager
def made(options: argparse.Namespace, **more: Any) -> Iterator[Proxy]:
    """The proxy that the arguments ask for; it does not serve yet. Closed when the block ends."""
    from ..proxy import Proxy

    listen = options.listen
    if options.port is not None:
        listen = f"{listen.rpartition(':')[0] or '127.0.0.1'}:{options.port}"
    proxy = Proxy(
        options.origin,
        policy=options.policy,
        listen=listen,
        anywhere=options.listen_anywhere,
        token=options.require_token,
        forward_authorization=options.forward_authorization,
        **more,
    )
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """Within the block, SIGTERM and Ctrl-C end `proxy.serve`."""

    def stop(*_: Any) -> None:
        # Serving is under way in this very thread, and `stop` waits for its end.
        threading.Thread(target=proxy.stop, daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def summary(proof: Proof) -> str:
    """The proof in one line."""
    nothing = "SIMULATED, which proves nothing" if proof.simulated else "proved"
    return (
        f"{nothing}: {proof.title}, measurement {proof.measurement}, evidence {proof.evidence_id}, "
        f"if you trust {', '.join(proof.trusts) or 'nobody'}"
    )


def _told(proxy: Proxy) -> Iterator[str]:
    yield summary(proxy.proof)
    yield f"{proxy.url} speaks for {proxy.origin}. Programs of this machine use it with:"
    yield f"    export OPENAI_BASE_URL={proxy.url}/v1"
    yield f"    export OPENAI_API_KEY={proxy.token or 'unused'}"
    if not proxy.token:
        yield "Every user of this machine can use it, in your name; --require-token keeps others out."


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
