"""
`blindbox top`: where the caller's own requests stand at a machine, live.

It asks the machine, sealed, and shows the figures; what may be told of others is decided inside the enclave,
in quarters only. A terminal gets a screen that is redrawn, and is left as it was found; anything else gets
plain lines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ..printable import plain
from .asked import add_origin, add_policy
from .status import DONE, UNREACHABLE, complain, status_of

if TYPE_CHECKING:
    from ..proof import Proof
    from ..requests import Session

_PATH: Final = "/v1/blindbox/status"
_MOST_BYTES: Final = 1 << 20
_BRIEF: Final = 10.0  # seconds: figures that come later are of no use
_SCREEN, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"  # another screen and no cursor; and back
_HOME, _REST = "\033[H", "\033[J"
_LOUD, _BOLD, _DIM, _OFF = "\033[1;7m", "\033[1m", "\033[2m", "\033[0m"

_EPILOG = """\
examples:
  blindbox top http://203.0.113.7:80
  blindbox top http://203.0.113.7:80 --once
  blindbox top http://203.0.113.7:80 --json --interval 10 >> figures.jsonl

Memory is counted in tokens: what an answer may become is kept for it from its beginning. Of other callers
the machine tells only how full it is, in quarters.

exit status: as of blindbox verify; 0 when it is told to stop
"""


class NotTold(Exception):
    """The machine answered, but with no figures; `later` if it may have some another time."""

    def __init__(self, message: str, *, later: bool = False) -> None:
        self.later = later
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Running:
    """One answer that is being written."""

    prompt_tokens: int
    generated_tokens: int
    most_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """How full one engine is, by all callers together: upper bounds, in quarters."""

    name: str
    sequences: float
    kv: float
    waiting: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What the machine told, once."""

    waiting: int
    running: int
    tokens_per_second: float
    kv_tokens: int
    kv_room: int
    answers: tuple[Running, ...]
    load: tuple[Load, ...]

    @classmethod
    def parse(cls, body: bytes) -> Standing:
        """Read the machine's answer; raises `NotTold`. What a later release adds is passed by."""
        try:
            told = json.loads(body)
            return cls(
                waiting=_count(told["waiting"]),
                running=_count(told["running"]),
                tokens_per_second=_figure(told["tokens_per_second"]),
                kv_tokens=_count(told["kv_tokens"]),
                kv_room=_count(told["kv_room"]),
                answers=tuple(
                    Running(
                        _count(one["prompt_tokens"]),
                        _count(one["generated_tokens"]),
                        _count(one["most_tokens"]),
                        _figure(one["seconds"]),
                    )
                    for one in told["answers"]
                ),
                load=tuple(
                    Load(plain(name), *(_figure(one[each]) for each in ("sequences", "kv", "waiting")))
                    for name, one in told["load"].items()
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise NotTold(
                f"the machine's answer to {_PATH} cannot be read ({type(error).__name__}); "
                "is it a release that this program knows?"
            ) from error


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    top = commands.add_parser(
        "top",
        description="Show the queue, the tokens a second and the memory of your own requests at an origin.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_origin(top)
    add_policy(top)
    top.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="between two looks (default: 1)"
    )
    top.add_argument("--once", action="store_true", help="look once, print, and end")
    top.add_argument("--json", action="store_true", help="an object a line, for programs")
    top.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, show, and look again until told to stop."""
    from ..requests import Session

    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not (options.json or options.once)
    try:
        with Session(policy=options.policy, origin=options.origin) as session:
            session.prove(options.origin)
            if options.once:
                print(_look(session, options, live=False))
                return DONE
            with _stoppable(), _screen(live):
                while True:
                    _show(_look_if_possible(session, options, live=live), live=live)
                    time.sleep(options.interval)
    except NotTold as error:
        return complain(str(error), UNREACHABLE)
    except KeyboardInterrupt:
        return DONE


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────


def _look_if_possible(session: Session, options: argparse.Namespace, *, live: bool) -> str:
    """The figures; or why there are none just now. What will not pass is raised."""
    from requests import RequestException

    try:
        return _look(session, options, live=live)
    except (RequestException, NotTold) as error:
        if isinstance(error, ValueError) or (isinstance(error, NotTold) and not error.later):
            raise  # the address is none, or the machine will never tell
        why = f"{error if isinstance(error, NotTold) else status_of(error)[1]}; trying again"
    if live:
        return "\n".join([*_head(session.proof, live), "", why])
    complain(why, UNREACHABLE)
    return ""


def _look(session: Session, options: argparse.Namespace, *, live: bool) -> str:
    """What the machine tells now, as it is shown."""
    url = options.origin.rstrip("/") + _PATH
    with session.get(url, timeout=_BRIEF, stream=True, allow_redirects=False) as response:
        body = response.raw.read(_MOST_BYTES + 1)
        status = response.status_code
    if status != 200:
        raise NotTold(
            f"{_PATH} was answered with HTTP {status}"
            + ("; does this enclave run an older release?" if status == 404 else ""),
            later=status == 429 or status >= 500,
        )
    if len(body) > _MOST_BYTES:
        raise NotTold(f"the machine's answer to {_PATH} is larger than {_MOST_BYTES} bytes")
    standing = Standing.parse(body)
    if options.json:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = asdict(standing)
        told["load"] = {one.pop("name"): one for one in told["load"]}  # as the machine tells it
        return json.dumps({"at": now, **told})
    return "\n".join([*_head(session.proof, live), *_figures(standing, live)])


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError
    return value


def _figure(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError  # also what is no number at all: NaN is not at least 0
    return float(value)


# ── showing ───────────────────────────────────────────────────────────────────────────────────────────────


def _head(proof: Proof | None, live: bool) -> Iterator[str]:
    assert proof is not None
    bold, dim, loud, off = (_BOLD, _DIM, _LOUD, _OFF) if live else ("",) * 4
    if proof.simulated:
        yield f"{loud}SIMULATED EVIDENCE, WHICH PROVES NOTHING{off}"
    proved = "" if proof.simulated else f"proved: {proof.title}, "
    about = f"{proved}evidence {proof.evidence_id[:16]}…, {datetime.now().astimezone():%H:%M:%S}"
    yield f"{bold}{proof.origin}{off} {dim}{about}{off}"


def _figures(standing: Standing, live: bool) -> Iterator[str]:
    bold, dim, off = (_BOLD, _DIM, _OFF) if live else ("",) * 3
    part = 100 * standing.kv_tokens / standing.kv_room if standing.kv_room else 0.0
    yield ""
    yield (
        f"yours    {bold}{standing.running}{off} running, {bold}{standing.waiting}{off} waiting, "
        f"{bold}{standing.tokens_per_second:.1f}{off} tokens/s"
    )
    yield f"memory   {standing.kv_tokens:,} of {standing.kv_room:,} tokens ({part:.1f} %) are kept for you"
    for load in standing.load:
        full = [("places", load.sequences), ("memory", load.kv), ("queue", load.waiting)]
        told = ", ".join(f"{name} {_quarters(how)}" for name, how in full)
        yield f"{dim}all      {load.name}: {told}{off}"
    if standing.answers:
        yield ""
        yield f"{bold}{'prompt':>8} {'written':>8} {'of most':>8} {'tokens/s':>9} {'for':>8}{off}"
    for one in standing.answers:
        rate = one.generated_tokens / one.seconds if one.seconds else 0.0
        yield (
            f"{one.prompt_tokens:>8} {one.generated_tokens:>8} {one.most_tokens:>8} {rate:>9.1f} "
            f"{one.seconds:>6.1f} s"
        )


def _quarters(part: float) -> str:
    """A bar of four, and what it means."""
    steps = min(4, math.ceil(4 * part))
    return f"{'▮' * steps}{'▯' * (4 - steps)} " + (f"≤ {25 * steps} %" if steps else "free")


def _show(frame: str, *, live: bool) -> None:
    if not live:
        if frame:
            print(frame, flush=True)
        return
    size = shutil.get_terminal_size()
    lines = [_cut(line, size.columns) for line in frame.split("\n")[: size.lines - 1]]
    sys.stdout.write(_HOME + "".join(f"{line}\033[K\r\n" for line in lines) + _REST)
    sys.stdout.flush()


def _cut(line: str, columns: int) -> str:
    """So much of a line as fits; what only changes its looks takes no room."""
    parts = re.split(r"(\033\[[0-9;]*m)", line)
    for at in range(0, len(parts), 2):
        parts[at] = parts[at][: max(0, columns)]
        columns -= len(parts[at])
    return "".join(parts)


@contextlib.contextmanager
def _screen(live: bool) -> Iterator[None]:
    """A screen of its own, if there is one; the terminal is left as it was found, whatever happens."""
    if not live:
        yield
        return
    sys.stdout.write(_SCREEN)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!a} is no number of seconds from 0.1 to 3600")
    return seconds
