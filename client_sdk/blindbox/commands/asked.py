"""
Whom a command asks, and what must be proved: ORIGIN and --policy, alike in every command that has them.

A command that judges says so here, once; `cli.main` then knows where its `otherwise` may stand in.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blindbox_attestation.verify import AnyPolicy


def add_origin(parser: Any, **more: Any) -> None:
    """The argument ORIGIN."""
    parser.add_argument("origin", metavar="ORIGIN", help="for example http://203.0.113.7:80", **more)


def add_policy(parser: Any, said: str = "a policy, instead of the stored one") -> None:
    """The option --policy, of a command that judges by it."""
    parser.add_argument("--policy", metavar="FILE", help=said)
    parser.set_defaults(judges=True)


def named_policy(options: argparse.Namespace) -> AnyPolicy | None:
    """The policy that is to be judged by; None if nobody named one. Raises `InvalidPolicy`."""
    from ..adapter import policy_of

    return policy_of(options.policy)


def fall_back(options: argparse.Namespace, otherwise: AnyPolicy) -> bool:
    """
    Let `otherwise` be asked where nobody has said what must be proved: no --policy, and none that is stored.

    Returns whether it is. What a person has said of an origin is never undercut by it.
    """
    from ..trust import STORE

    if not getattr(options, "judges", False) or options.policy is not None:
        return False
    if options.origin is not None and STORE.get(options.origin) is not None:
        return False
    options.policy = otherwise
    return True
