"""
`python -I -m enclave_app`: read the environment, close what must be closed, serve.

Exit code 2 means that the settings or the model cannot be used; the reason is the last thing printed.
Logged are starting, stopping, and a status and a duration per request; no route, no prompt, no row.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
import sys

from .settings import InvalidSettings, Settings, forget


class _Terse(logging.Formatter):
    """An exception is told by its type: its text and its frames may hold what was being processed (S-20)."""

    def format(self, record: logging.LogRecord) -> str:
        kind = record.exc_info[0] if record.exc_info else None
        told = f" [{kind.__name__}]" if kind is not None else ""
        first = record.getMessage().partition("\n")[0]
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {first}{told}"


def main() -> int:
    """Serve until told to stop."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold every key and every prompt
    os.umask(0o077)
    try:
        settings = Settings.from_environ(os.environ)
        _try_address(settings.host, settings.port)
    except InvalidSettings as error:
        print(f"not started:\n{error}", file=sys.stderr)
        return 2
    forget(os.environ)
    _log_to_stderr()
    # After the environment is known to be harmless: these read it.
    import uvicorn

    from .edge import server_config
    from .main import from_settings
    from .models import UnusableModel
    from .quoting import QuoteUnavailable

    try:
        app = from_settings(settings)
    except (InvalidSettings, UnusableModel, QuoteUnavailable) as error:
        print(f"not started: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    proved_by = app.identity.platform
    logging.getLogger("enclave_app").info(
        "serving on %s port %d, proved by %s", settings.host, settings.port, proved_by
    )
    # log_config=None: the server's own formatter would print an exception's text and frames.
    uvicorn.Server(server_config(app, host=settings.host, port=settings.port, log_config=None)).run()
    return 0


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


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Terse())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("enclave_app").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
