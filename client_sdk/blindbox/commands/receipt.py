"""
`blindbox receipt`: judge a training receipt, and compare it with the files at hand. The network is not used.

What is proved and how it is told is in `report/receipt.py`; this module reads what was asked, and hands on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from .asked import add_policy, named_policy
from .status import DONE, NOT_PROVED, USAGE, complain, status_of

if TYPE_CHECKING:
    from blindbox_attestation.verify import AnyPolicy

    from ..report.receipt import ReceiptReport

_CLOCKS_APART: Final = timedelta(hours=1)
"""More than two honest clocks are."""

_EPILOG = """\
examples:
  blindbox receipt verify receipt.json --policy release-1.0.json
  blindbox receipt verify receipt.json --origin http://203.0.113.7:80 --data rows.jsonl
  blindbox receipt verify receipt.json --policy release-1.0.json --adapter model.zip --data rows.jsonl
  blindbox receipt verify receipt.json --policy release-1.0.json --html receipt.html

--origin takes the policy that you stored for an origin. The machine is judged as of the time when the
training ended.

exit status:
  0  proved, and about the files that were given
  1  the machine did not prove itself (a simulated one never does), or did not sign this receipt, or it is
     about other files
  2  wrong usage, or an invalid policy, or a file that cannot be read;
     or proved, and a file that was asked for could not be written
--json prints a report in each of these cases but wrong usage. Its "verdict" is "accepted" for a receipt that
was proved and fits the files that were given, and for no other.
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    receipt = commands.add_parser(
        "receipt",
        description="Work on training receipts. The network is not used.",
    )
    kinds = receipt.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    verify = kinds.add_parser(
        "verify",
        help="see that a machine you accept has signed a receipt, and that it is about these files",
        description="See that a machine you accept has signed a receipt, and that it is about these files. "
        "The network is not used.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument("file", metavar="FILE", help="the receipt, as the machine handed it out")
    add_policy(verify, "whom you accept, as JSON")
    verify.add_argument("--origin", metavar="ORIGIN", help="accept what you have stored for this origin")
    verify.add_argument(
        "--adapter",
        metavar="FILE",
        help="the tuned model: its archive, its folder, or its .safetensors",
    )
    verify.add_argument("--data", metavar="FILE", help="the file that was uploaded to learn from")
    verify.add_argument("--validation", metavar="FILE", help="the file that was uploaded to validate with")
    verify.add_argument(
        "--proof",
        metavar="FILE",
        help="a saved proof of this machine, for what its vendor had published (see blindbox verify --save)",
    )
    verify.add_argument(
        "--json", action="store_true", help="the whole report, for programs, on standard output"
    )
    verify.add_argument("--html", metavar="FILE", help="write the report as one page for people")
    verify.set_defaults(run=run, grammar=verify)


def run(options: argparse.Namespace) -> int:
    """Judge, tell, and return the exit status."""
    if options.policy is None and options.origin is None:
        options.grammar.error("say whom you accept, with --policy FILE or --origin ORIGIN")
    if isinstance(options.policy, str) and options.origin is not None:
        options.grammar.error("--policy FILE and --origin ORIGIN are two answers to one question: give one")
    report = _judged(options)
    if options.json:
        print(report.to_json(), end="")
    elif report.verdict != "not judged":
        from ..report.receipt_text import show

        show(report, sys.stdout)
    status = NOT_PROVED if report.verdict == "simulated" else DONE
    if options.html:
        from ..report.receipt_page import page

        try:
            with open(options.html, "w", encoding="utf-8") as file:
                file.write(page(report))
        except OSError as error:  # the verdict is told all the same
            status = complain(f"{options.html} cannot be written: {error.strerror}", USAGE)
    if report.error is not None:
        status, why = status_of(report.error)
        if options.json or report.verdict == "not judged":
            complain(why, status)
        if getattr(report.error, "code", "") == "missing-endorsement" and not options.proof:
            complain(
                "the machine did not send along all that its vendor publishes; a proof of it that was saved "
                "about then (blindbox verify ORIGIN --save FILE) has it: give it with --proof FILE",
                status,
            )
    if report.proved is not None and report.proved.receipt.finished > datetime.now(UTC) + _CLOCKS_APART:
        complain("warning: by the machine's clock the training ended at a time that is still to come", status)
    return status


def _judged(options: argparse.Namespace) -> ReceiptReport:
    """The receipt, judged. What went wrong is in the report."""
    from ..errors import InvalidPolicy, UnreadableProof
    from ..report.receipt import ReceiptReport, judge

    try:
        return judge(
            options.file,
            _policy(options),
            adapter=options.adapter,
            data=options.data,
            validation=options.validation,
            collateral=_collateral(options.proof),
        )
    except (InvalidPolicy, UnreadableProof, OSError, ValueError) as error:
        return ReceiptReport(options.file, error=error)


def _policy(options: argparse.Namespace) -> AnyPolicy:
    from ..errors import InvalidPolicy
    from ..trust import STORE

    found = named_policy(options)
    if found is None:
        found = STORE.get(options.origin)
    if found is None:
        raise InvalidPolicy(
            f"no policy is stored for {options.origin}; give one with --policy FILE, or store it with "
            "blindbox trust ORIGIN --policy FILE"
        )
    return found


def _collateral(proof: str | None) -> Mapping[str, bytes]:
    from ..report import SavedProof

    return SavedProof.load(proof).collateral if proof is not None else {}
