"""
`blindbox verify`: have a machine prove itself, or judge a saved proof again, and tell what came of it.

What is told, and how a saved proof is judged, is in `report/`; this module asks, and hands on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from .asked import add_origin, add_policy, named_policy
from .status import DONE, NOT_PROVED, USAGE, complain, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindbox_attestation.verify import AnyPolicy

    from ..collateral import Collateral
    from ..report import Report

_CLOCKS_APART: Final = timedelta(hours=1)
"""More than two honest clocks are."""

_EPILOG = """\
examples:
  blindbox verify http://203.0.113.7:80 --save proof.json --html proof.html
  blindbox verify --offline proof.json --policy release-1.0.json
  blindbox verify --offline proof.json --policy release-1.0.json --at now

A saved proof is judged as of the time it was made unless --at says otherwise, and the network is not used.

exit status:
  0  proved
  1  the machine did not prove itself; a simulated one never does
  2  wrong usage, or no policy, or an invalid one, or a proof file that cannot be read or judged;
     or proved, and a file that was asked for could not be written
  3  the machine could not be reached
--json prints a report also where there was nothing to judge. Its "verdict" is "accepted" for a machine that
was proved, and for no other.
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    verify = commands.add_parser(
        "verify",
        description="Ask an origin for fresh evidence and check it, step by step; nothing else is sent. "
        "Or judge again what was saved.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_origin(verify, nargs="?")
    add_policy(verify)
    verify.add_argument(
        "--cce-policy", metavar="FILE", help="an Azure container policy it must have been launched with"
    )
    verify.add_argument(
        "--no-collateral", action="store_true", help="ask no vendor for what the machine did not send"
    )
    verify.add_argument("--pccs", metavar="URL", help="ask this server instead of Intel's, for TDX")
    verify.add_argument(
        "--json", action="store_true", help="the whole report, for programs, on standard output"
    )
    verify.add_argument("--html", metavar="FILE", help="write the report as one page for people")
    verify.add_argument(
        "--save", metavar="FILE", help="save the proof, evidence and all, whatever the verdict"
    )
    verify.add_argument("-v", "--verbose", action="store_true", help="show every check of every step")
    verify.add_argument("--offline", metavar="FILE", help="judge a saved proof again, without any network")
    verify.add_argument(
        "--at",
        metavar="TIME",
        type=_time,
        help="for --offline: as of this time, like 2026-11-21T12:00:00Z, or now (default: when it was made)",
    )
    verify.set_defaults(run=run, grammar=verify)


def run(options: argparse.Namespace) -> int:
    """Judge, tell, and return the exit status."""
    if bool(options.origin) == bool(options.offline):
        options.grammar.error("give an ORIGIN to ask, or --offline FILE to judge again")
    if options.offline and (options.save or options.cce_policy or options.no_collateral or options.pccs):
        options.grammar.error(
            "--save, --cce-policy, --no-collateral and --pccs are not for --offline: no machine is asked"
        )
    if options.no_collateral and options.pccs:
        options.grammar.error("--no-collateral asks nobody, --pccs asks a server: give one of them")
    if options.at and not options.offline:
        options.grammar.error("--at is for --offline: a machine that is asked is judged as of now")
    report = _again(options) if options.offline else _ask(options)
    if options.json:
        print(report.to_json(), end="")
    elif report.verdict != "not judged":
        from ..report.text import show

        show(report, sys.stdout, verbose=options.verbose)
    status = NOT_PROVED if report.verdict == "simulated" else DONE
    for path, text in _files(options, report):
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:  # the other file and the verdict are told all the same
            status = complain(f"{path} cannot be written: {error.strerror}", USAGE)
    if report.error is not None:
        status, why = status_of(report.error)
        if options.json or report.verdict == "not judged":
            complain(why, status)
    if report.again is not None and report.again.own_policy:
        complain(
            "warning: you are trusting the policy in this file, which whoever wrote the file has chosen; "
            "judge by your own with --policy FILE",
            status,
        )
    if report.again is not None and options.at is None and report.at > datetime.now(UTC) + _CLOCKS_APART:
        from ..report import spoken

        complain(
            f"warning: the file says that it was made at {spoken(report.at)}, which is still to come; "
            "judge it as of now with --at now",
            status,
        )
    return status


def _ask(options: argparse.Namespace) -> Report:
    """Ask the machine now. What went wrong is in the report."""
    from requests import RequestException
    from requests.utils import get_environ_proxies

    from ..adapter import Route, SealedAdapter
    from ..errors import AttestationError, SealingError
    from ..origin import origin_of
    from ..proof import Proof
    from ..report import Report
    from ..session_key import prove

    report = Report(options.origin, datetime.now(UTC))
    door = SealedAdapter()
    try:
        origin = origin_of(options.origin)
        report = replace(report, origin=origin)
        policy = door.policy_for(origin, options.policy, options.cce_policy)
        report = replace(report, policy=policy)
        route = Route(origin, proxies=get_environ_proxies(origin, no_proxy=None))

        def fetch(nonce: bytes) -> bytes:
            nonlocal report
            document = door.fetch_evidence(route, nonce)
            report = replace(report, nonce=nonce, document=document)
            return document

        def watch(by: AnyPolicy, fetched: Mapping[str, bytes]) -> None:
            nonlocal report
            report = replace(report, policy=by, collateral=dict(fetched))

        key = prove(
            origin, policy, fetch, now=report.at, tick=0, collateral=_collateral(options), watch=watch
        )
    except SealingError:
        return report.judged()
    except (AttestationError, RequestException, ValueError, OSError) as error:
        return report.ended(error, status_of(error)[1] if isinstance(error, OSError) else "")
    finally:
        door.close()
    return Report.of(Proof.of(key))


def _again(options: argparse.Namespace) -> Report:
    """Judge a saved proof. What went wrong is in the report."""
    from ..errors import InvalidPolicy, UnreadableProof
    from ..report import Report, SavedProof

    try:
        policy = named_policy(options)
        return SavedProof.load(options.offline).judge(at=options.at, policy=policy)
    except (InvalidPolicy, UnreadableProof) as error:
        return Report("", options.at or datetime.now(UTC)).ended(error)


def _collateral(options: argparse.Namespace) -> Collateral | None:
    """Who is asked for what the machine's vendor publishes."""
    from ..collateral import SHARED, Collateral

    if options.no_collateral:
        return None
    return Collateral(intel=options.pccs) if options.pccs else SHARED


def _files(options: argparse.Namespace, report: Report) -> list[tuple[str, str]]:
    files = []
    if options.save:
        files.append((options.save, report.to_json()))
    if options.html:
        from ..report.page import page

        files.append((options.html, page(report)))
    return files


def _time(text: str) -> datetime:
    from ..report import time_of

    if text == "now":
        return datetime.now(UTC)
    found = time_of(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!a} is no time like 2026-11-21T12:00:00Z, with its zone, nor now"
        )
    return found
