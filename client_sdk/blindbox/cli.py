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
from typing import TYPE_CHECKING, Any, Final

from .commands import data as data_command
from .commands import deploy as deploy_command
from .commands import finetune as finetune_command
from .commands import jobs as jobs_command
from .commands import policy as policy_command
from .commands import proxy as proxy_command
from .commands import receipt as receipt_command
from .commands import top as top_command
from .commands import ui as ui_command
from .commands import verify as verify_command
from .commands.asked import fall_back
from .commands.status import DONE, INTERRUPTED, NOT_PROVED, UNREACHABLE, USAGE, complain, status_of

if TYPE_CHECKING:
    from blindbox_attestation.policy import AnyKind
    from blindbox_attestation.verify import AnyPolicy

__all__ = ["DONE", "INTERRUPTED", "NOT_PROVED", "UNREACHABLE", "USAGE", "main", "parser"]

_COMMANDS: Final = {
    "whom you accept": {
        "policy": "explain a policy, make one from a build's measurements, show its schema",
        "trust": "say what an origin must prove, list what you said, or forget it",
        "verify": "have a machine prove itself, and show each step",
    },
    "talk to a machine that proved itself": {
        "ui": "open a page for talking to it",
        "proxy": "give the programs of this computer a plain local endpoint that proves and seals",
        "top": "show where your own requests stand there, live",
    },
    "teach it": {
        "data": "check a data set before it is sent",
        "finetune": "fine-tune a model on a file of yours",
        "jobs": "list your fine-tuning jobs, watch and steer one, ask and take what came of it",
        "receipt": "judge a training receipt: which machine made what of which data",
    },
    "have one of your own": {
        "deploy": "show what is typed to run it at a cloud or on your host, and run that",
    },
}
"""What there is, as the help tells it."""

_DESCRIPTION: Final = """\
Attested, sealed calls to machines you do not own: nothing leaves before the machine has proved what runs in
it, and then only that program can read it.
"""
_EPILOG: Final = """\
first:
  blindbox trust http://203.0.113.7:80 --policy release-1.0.json
  blindbox verify http://203.0.113.7:80
then:
  blindbox ui http://203.0.113.7:80
  blindbox finetune http://203.0.113.7:80 handbook.csv

blindbox COMMAND --help explains a command, with examples.

exit status:
  0  done, or proved
  1  the machine did not prove itself
  2  wrong usage, or no policy, or an invalid one, or a proof file that cannot be read;
     or a data set that cannot be used
  3  the machine could not be reached
  4  a fine-tuning job ended without a model
  130  stopped by Ctrl-C
"""


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    told = "\n".join(
        f"{title}:\n" + "".join(f"  {name:<10}{about}\n" for name, about in group.items())
        for title, group in _COMMANDS.items()
    )
    top = argparse.ArgumentParser(
        prog="blindbox",
        usage="blindbox COMMAND …",
        description=f"{_DESCRIPTION}\n{told}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", prog="blindbox", metavar="COMMAND", help=argparse.SUPPRESS)

    trust = commands.add_parser(
        "trust",
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
    deploy_command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None, *, otherwise: AnyPolicy | None = None) -> int:
    """
    Run the command; returns the exit status.

    `otherwise` is what a machine must prove where neither --policy nor `blindbox trust` has said it: an
    object, for programs that call this. No argument, file or variable becomes one
    (docs/decisions/0005-simulated-evidence.md).
    """
    grammar = parser()
    options = grammar.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no ✔ is told its number; it is no reason to say nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    if options.command is None:
        grammar.print_help()
        return USAGE
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            if otherwise is not None and fall_back(options, otherwise):
                _speak_up(otherwise)
            status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on, as with `| head`. What is still buffered must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except KeyboardInterrupt:
        return complain("stopped", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - whatever is none of ours is raised again there
        status, why = status_of(error, getattr(options, "origin", None))
        return complain(why, status)
    return status


def _speak_up(policy: AnyPolicy) -> None:
    """Whoever accepts simulated machines hears it from every command, once."""
    from blindbox_attestation.simulated import UnsafeSimulationWarning

    from .adapter import is_simulated

    if is_simulated(policy):
        complain(
            "SIMULATED: machines are accepted here that prove nothing; whoever runs them can read all that "
            "is sent. For trying things out, never for secrets.",
            DONE,
        )
        warnings.simplefilter("ignore", UnsafeSimulationWarning)


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
