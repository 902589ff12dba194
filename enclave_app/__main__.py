"""
`python -I -m enclave_app`: read the environment, close what must be closed, serve.

Exit code 2 means that the settings, the model or its engine cannot be used; the reason is the last thing
printed. How it ends when it is told to is in `serving.py`, what it logs in `logs.py`.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sys

from .logs import to_stderr
from .settings import InvalidSettings, Settings, forget

_FILES = 1 << 16


def main() -> int:
    """Serve until told to stop."""
    _limits()
    os.umask(0o077)
    try:
        settings = Settings.from_environ(os.environ)
        _try_address(settings.host, settings.port)
    except InvalidSettings as error:
        print(f"not started:\n{error}", file=sys.stderr)
        return 2
    forget(os.environ)
    to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server takes it over
    # After the environment is known to be harmless: these read it.
    from .main import from_settings
    from .models import UnusableModel
    from .quoting import QuoteUnavailable
    from .serving import serve

    try:
        app = from_settings(settings)
    except (InvalidSettings, UnusableModel, QuoteUnavailable) as error:
        print(f"not started: {error}", file=sys.stderr)
        return 2
    return serve(app, settings)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold every key and every prompt
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))  # a connection is a file; 1024 is soon too few


def _try_address(host: str, port: int) -> None:
    """Say at once, and not when the model has been loaded, that there is nothing to be served from."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
    except OSError as error:
        why = {
            errno.EADDRINUSE: f"port {port} is taken there. Free it, or choose another BLINDBOX_PORT",
            errno.EACCES: f"this user may not take port {port}. Choose a BLINDBOX_PORT above 1023",
            errno.EADDRNOTAVAIL: "this machine has no such address. 0.0.0.0 means all it has",
        }.get(error.errno or 0, error.strerror or type(error).__name__)
        raise InvalidSettings(f"BLINDBOX_HOST {host}, BLINDBOX_PORT {port}: {why}.") from error


if __name__ == "__main__":
    sys.exit(main())
