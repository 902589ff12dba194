"""
`blindbox ui`: a page in the browser for talking to a machine that proved itself.

The page and its server are in `ui/`; this module reads the command line, opens the page, and waits.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import webbrowser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .asked import add_origin, add_policy
from .status import DONE, NOT_PROVED, complain, status_of

if TYPE_CHECKING:
    from ..ui import LocalPage

_EPILOG = """\
examples:
  blindbox ui http://203.0.113.7:80 --policy release-1.0.json
  blindbox ui http://203.0.113.7:80 --no-browser --port 8090

The page is served on 127.0.0.1 only, to whoever has its whole address: what follows the # is made anew at
each start. Nothing that is said on the page is written anywhere; it is gone when the page is closed.

exit status: as of blindbox verify; 0 when it is told to stop, 1 if the machine was refused
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    ui = commands.add_parser(
        "ui",
        description="Have an origin prove itself, show the proof on a local page, and talk to it there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_origin(ui)
    add_policy(ui)
    ui.add_argument("--port", metavar="N", type=_port, default=0, help="of 127.0.0.1 (default: a free one)")
    ui.add_argument("--no-browser", action="store_true", help="print the page's address, and open nothing")
    ui.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prove, open the page, and serve it until told to stop."""
    from ..ui import LocalPage

    with LocalPage(options.origin, policy=options.policy, port=options.port) as page:
        status = DONE
        if page.report.error is not None:
            status = complain(status_of(page.report.error)[1], NOT_PROVED)
        print(_told(page), flush=True)
        with _told_to_stop() as stop:
            if not options.no_browser and not webbrowser.open(page.url):
                complain("no browser could be started; open the address yourself", status)
            stop.wait()
    return status


def _told(page: LocalPage) -> str:
    seen = "What it showed is on this page" if page.report.error else "Talk to it on this page"
    return f"{page.report.summary}\n{seen} (Ctrl-C ends it):\n    {page.url}"


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C and by SIGTERM, as long as the block lasts."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: stop.set()) for each in signals]
    try:
        yield stop
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!a} is no port; it may be 1 to 65535, or 0 for a free one")
    return int(text)
