"""
The command `blindbox`: say whom you trust, and see what a machine can prove.

Exit status: 0 done, or proved · 1 the machine did not prove itself · 2 wrong usage, or no or an invalid
policy ·
3 the machine could not be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from blindbox_attestation.policy import Policy
    from blindbox_attestation.verify import Step

DONE, NOT_PROVED, USAGE, UNREACHABLE = 0, 1, 2, 3

_EPILOG = """\
exit status:
  0  done, or proved
  1  the machine did not prove itself
  2  wrong usage, or no policy, or an invalid one
  3  the machine could not be reached

examples:
  blindbox trust http://203.0.113.7:80 --policy release-1.0.json
  blindbox verify http://203.0.113.7:80
"""

_MARKS = {"passed": ("✔", "32"), "failed": ("✘", "31"), "not applicable": ("–", "2")}


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

    verify = commands.add_parser(
        "verify",
        help="have a machine prove itself, and show each step",
        description="Ask an origin for fresh evidence and check it, step by step. Nothing else is sent.",
    )
    verify.add_argument("origin", metavar="ORIGIN", help="for example http://203.0.113.7:80")
    verify.add_argument("--policy", metavar="FILE", help="a policy, instead of the stored one")
    verify.add_argument(
        "--cce-policy", metavar="FILE", help="an Azure container policy it must have been launched with"
    )
    verify.add_argument("--json", action="store_true", help="the same, for programs")
    verify.set_defaults(run=_verify, grammar=verify)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from requests import RequestException

    from .errors import AttestationError, InvalidPolicy, NoPolicy, SealingError

    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (NoPolicy, InvalidPolicy) as error:
        return _complain(str(error), USAGE)
    except AttestationError as error:
        return _complain(f"not proved: {error} [{error.code}]", NOT_PROVED)
    except SealingError as error:  # its key configuration, well proved, is none that is spoken here
        return _complain(f"not proved: {error}", NOT_PROVED)
    except ValueError as error:  # the URL; some of them are RequestExceptions too
        return _complain(str(error), USAGE)
    except RequestException as error:
        return _complain(f"not reached: {_brief(error)}", UNREACHABLE)
    except OSError as error:
        return _complain(f"{error.filename or 'file'}: {error.strerror or error}", USAGE)
    return status


def _trust(options: argparse.Namespace) -> int:
    from .errors import InvalidPolicy
    from .origin import origin_of
    from .trust import STORE, read_policy

    wanted = [bool(options.origin), options.list, bool(options.forget)]
    if sum(wanted) != 1 or bool(options.origin) != bool(options.policy):
        raise InvalidPolicy("usage: blindbox trust ORIGIN --policy FILE | --list | --forget ORIGIN")
    if options.list:
        for origin, policy in STORE.all().items():
            print(origin)
            for line in _describe(policy):
                print(f"    {line}")
        return DONE
    if options.forget:
        if not STORE.forget(options.forget):
            return _complain(f"there is no policy for {origin_of(options.forget)}", USAGE)
        print(f"forgotten: {origin_of(options.forget)}")
        return DONE
    policy = read_policy(options.policy)
    origin = STORE.set(options.origin, policy)
    print(f"{origin} must now prove:")
    for line in _describe(policy):
        print(f"    {line}")
    print(f"Check it with: blindbox verify {origin}")
    return DONE


def _describe(policy: Policy) -> list[str]:
    lines = []
    if policy.snp is not None:
        lines += [f"measurement {measurement.hex()}" for measurement in sorted(policy.snp.measurements)]
        lines.append(
            f"AMD SEV-SNP on {', '.join(sorted(policy.snp.minimum_tcb))}, firmware at least as in the policy"
        )
        whose = policy.snp.chip_ids or policy.snp.host_data
        lines.append("on machines the policy names" if whose else "on any genuine machine running it")
    lines.append(
        f"again after {policy.max_age}" + (", cached evidence accepted" if policy.accept_cached else "")
    )
    return lines


def _verify(options: argparse.Namespace) -> int:
    from .adapter import Route, SealedAdapter
    from .errors import AttestationError
    from .origin import origin_of
    from .session_key import prove

    origin = origin_of(options.origin)
    with_door = SealedAdapter()
    policy = with_door.policy_for(origin, options.policy, options.cce_policy)
    from requests.utils import get_environ_proxies

    route = Route(origin, proxies=get_environ_proxies(origin, no_proxy=None))
    report: dict[str, Any] = {"origin": origin, "proved": False}
    steps: Sequence[Step] = ()
    failure: AttestationError | None = None
    try:
        key = prove(
            origin,
            policy,
            lambda nonce: with_door.fetch_evidence(route, nonce),
            now=datetime.now(UTC),
            tick=0,
        )
    except AttestationError as error:
        failure, steps = error, error.steps
        report["error"] = {"type": type(error).__name__, "code": error.code, "message": str(error)}
    else:
        verified = key.verified
        steps = verified.steps
        report |= {
            "proved": True,
            "platform": verified.platform,
            "simulated": verified.simulated,
            "measurement": verified.measurement.hex(),
            "evidence_id": verified.evidence_id.hex(),
            "boot_id": verified.boot_id.hex(),
            "verified_at": verified.verified_at.isoformat(),
            "not_after": verified.not_after.isoformat(),
        }
    finally:
        with_door.close()
    report["steps"] = [
        {"number": step.number, "name": step.name, "outcome": step.outcome, "detail": step.detail}
        for step in steps
    ]
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print_steps(origin, steps, failure, report, sys.stdout)
    return DONE if failure is None else NOT_PROVED


def _print_steps(
    origin: str, steps: Sequence[Step], failure: Exception | None, report: dict[str, Any], out: TextIO
) -> None:
    print(origin, file=out)
    for step in steps:
        mark, colour = _MARKS[step.outcome]
        told = f"{mark} {step.outcome}"
        print(
            f"  {step.number:>2}  {_paint(f'{told:<16}', colour, out)} {step.name}: {step.detail}", file=out
        )
    if failure is None:
        print(f"proved: {report['platform']}, measurement {report['measurement']}", file=out)
        print(f"        until {report['not_after']}", file=out)
    else:
        print(_paint(f"not proved: {failure} [{report['error']['code']}]", "31", out), file=out)


def _paint(text: str, colour: str, out: TextIO) -> str:
    """Colour only for a person who looks."""
    return f"\033[{colour}m{text}\033[0m" if out.isatty() and not os.environ.get("NO_COLOR") else text


def _brief(error: BaseException) -> str:
    """The first sentence of what the network layers tell."""
    from requests.exceptions import SSLError

    if isinstance(error, SSLError) and "WRONG_VERSION_NUMBER" in str(error):
        return "it does not speak TLS at this port; did you mean http://?"
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return str(reason or error).rpartition(": ")[2] or type(error).__name__


def _complain(message: str, status: int) -> int:
    print(f"blindbox: {message}", file=sys.stderr)
    return status


def _version() -> str:
    from . import __version__

    return f"blindbox {__version__}"


if __name__ == "__main__":
    sys.exit(main())
