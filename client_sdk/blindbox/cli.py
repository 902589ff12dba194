"""
The command `blindbox`: say whom you trust, and see what a machine can prove.

Here is its grammar, and `blindbox trust`; the other commands are in `commands/`. What the command ends with
is in `commands/status.py`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .commands import data as data_command
from .commands import finetune as finetune_command
from .commands import jobs as jobs_command
from .commands import policy as policy_command
from .commands import proxy as proxy_command
from .commands import receipt as receipt_command
from .commands import top as top_command
from .commands import ui as ui_command
from .commands import verify as verify_command
from .commands.status import DONE, NOT_PROVED, UNREACHABLE, USAGE, complain, status_of

if TYPE_CHECKING:
    from blindbox_attestation.policy import AnyKind

__all__ = ["DONE", "NOT_PROVED", "UNREACHABLE", "USAGE", "main", "parser"]

_EPILOG = """\
exit status:
  0  done, or proved
  1  the machine did not prove itself
  2  wrong usage, or no policy, or an invalid one, or a proof file that cannot be read;
     or a data set that cannot be used
  3  the machine could not be reached
  4  a fine-tuning job ended without a model

examples:
  blindbox policy explain release-1.0.json
  blindbox trust http://203.0.113.7:80 --policy release-1.0.json
  blindbox verify http://203.0.113.7:80
  blindbox proxy http://203.0.113.7:80
  blindbox ui http://203.0.113.7:80
  blindbox top http://203.0.113.7:80
  blindbox data check handbook.csv
  blindbox finetune http://203.0.113.7:80 handbook.csv
  blindbox jobs http://203.0.113.7:80
  blindbox receipt verify receipt.json --policy release-1.0.json
"""


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    top = argparse.ArgumentParser(
        prog="blindbox",
        description="Attested, sealed calls to machines you do not own.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    trust = commands.add_parser(
        "trust",
        help="say what an origin must prove, list what you said, or forget it",
        description="Store the policy of an origin. Calls to it with blindbox.requests then need no policy=. "
        "A policy comes from whoever built or audited the release, never from the machine itself.",
    )
    trust.add_argument("origin", nargs="?", metavar="ORIGIN", help="for example http://203.0.113.7:80")
    trust.add_argument("--policy", metavar="FILE", help="the policy, as JSON")
    trust.add_argument("--list", action="store_true", help="show every stored policy")
    trust.add_argument("--forget", metavar="ORIGIN", help="remove the policy of an origin")
    trust.set_defaults(run=_trust)

    verify_command.add(commands)
    policy_command.add(commands)
    proxy_command.add(commands)
    ui_command.add(commands)
    top_command.add(commands)
    data_command.add(commands)
    finetune_command.add(commands)
    jobs_command.add(commands)
    receipt_command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no ✔ is told its number; it is no reason to say nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on, as with `| head`. What is still buffered must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except Exception as error:  # noqa: BLE001 - whatever is none of ours is raised again there
        status, why = status_of(error)
        return complain(why, status)
    return status


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a line for people, who do not care which line of ours gave it."""
    complain(f"warning: {message}", DONE)


def _trust(options: argparse.Namespace) -> int:
    from .errors import InvalidPolicy
    from .origin import origin_of
    from .trust import STORE, read_policy

    wanted = [bool(options.origin), options.list, bool(options.forget)]
    if sum(wanted) != 1 or bool(options.origin) != bool(options.policy):
        raise InvalidPolicy("give one of: ORIGIN --policy FILE, --list, --forget ORIGIN")
    if options.list:
        return _list()
    if options.forget:
        if not STORE.forget(options.forget):
            return complain(f"there is no policy for {origin_of(options.forget)}", USAGE)
        print(f"forgotten: {origin_of(options.forget)}")
        return DONE
    policy = read_policy(options.policy)
    origin = STORE.set(options.origin, policy)
    print(f"{origin} must now prove:")
    for line in _describe(policy):
        print(f"    {line}")
    print(f"Check it with: blindbox verify {origin}")
    return DONE


def _list() -> int:
    """Every stored policy; a file that cannot be read is told of, and does not hide the others."""
    from .errors import InvalidPolicy
    from .trust import STORE

    stored = list(STORE.each())
    if not stored:
        return complain("no policy is stored; say one with: blindbox trust ORIGIN --policy FILE", DONE)
    status = DONE
    for path, held in stored:
        if isinstance(held, InvalidPolicy):
            status = complain(f"{path.name}: {held}", USAGE)
            continue
        for origin, policy in held.items():
            print(origin)
            for line in _describe(policy):
                print(f"    {line}")
    return status


def _describe(policy: AnyKind) -> list[str]:
    from .policy_told import measurements, told

    lines = []
    for heading, words in told(policy):
        lines += [heading, *(f"    {sentence}" for sentence in words.checks)]
        lines += [f"    left open: {sentence}" for sentence in words.unchecked]
    lines += measurements(policy)
    lines.append(
        f"again after {policy.max_age}" + (", cached evidence accepted" if policy.accept_cached else "")
    )
    return lines


def _version() -> str:
    from . import __version__

    return f"blindbox {__version__}"


if __name__ == "__main__":
    sys.exit(main())
