"""
`blindbox deploy`: what is typed to have a machine of ours somewhere; shown, or run after asking.

What is run is in `deploy_targets.py`; this module reads the command line, shows, asks and runs. No shell is
started. It knows no credentials: the cloud's own program, with its own login, is what is called.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..printable import plain
from .status import DONE, USAGE, complain

if TYPE_CHECKING:
    from .deploy_steps import Plan, Step, Value

_EPILOG: Final = """\
examples:
  blindbox deploy --target qemu-snp --dry-run
  blindbox deploy --target azure --resource-group demo --storage demodisks7 --dry-run
  blindbox deploy --target gcp --project my-project --bucket my-project-disks
  blindbox deploy --target gcp --project my-project --bucket my-project-disks --remove

The disk is built first (make image vm), and what a client pins is predicted from it (make measurements).
What each target proves, and who has to be honest for it: docs/deploy/ of the source.

exit status: 0 done; 2 not done, or not all of it: the reason is the last thing printed
"""

_FROM: Final = {
    "az": "Azure's command line; Debian has it as azure-cli",
    "gcloud": "Google's command line, from Google's own archive: google-cloud-cli",
    "aws": "AWS's command line; Debian has it as awscli",
    "coldsnap": "AWS Labs' program for snapshots: cargo install --locked coldsnap",
    "qemu-system-x86_64": "Debian has it as qemu-system-x86",
    "pkill": "Debian has it as procps",
}


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    from .deploy_targets import TARGETS

    deploy = commands.add_parser(
        "deploy",
        description="Show what is typed to have a machine of ours somewhere, and run it if you say so.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    deploy.add_argument(
        "--target",
        required=True,
        choices=TARGETS,
        help="; ".join(f"{name}: {target.about}" for name, target in TARGETS.items()),
    )
    deploy.add_argument("--hardware", choices=("snp", "tdx"), help="azure (snp unless said), gcp (tdx)")
    deploy.add_argument("--dry-run", action="store_true", help="show the commands, and run nothing")
    deploy.add_argument("--remove", action="store_true", help="remove what was made")
    deploy.add_argument(
        "--script", action="store_true", help="print it as a script for bash, and run nothing"
    )
    deploy.add_argument("--yes", action="store_true", help="run without asking")
    given = deploy.add_argument_group("values, each for the targets that have it")
    for option, values in _options().items():
        targets = ", ".join(dict.fromkeys(target for target, _ in values))
        defaults = ", ".join(dict.fromkeys(one.default for _, one in values if one.default)) or "none"
        about = " / ".join(dict.fromkeys(one.about for _, one in values))
        given.add_argument(option, metavar="VALUE", help=f"{about} ({targets}; default {defaults})")
    deploy.set_defaults(run=run)


def _options() -> dict[str, list[tuple[str, Value]]]:
    """Every option of every target, with the targets that have it."""
    from .deploy_targets import TARGETS

    found: dict[str, list[tuple[str, Value]]] = {}
    for name, target in TARGETS.items():
        for plan in target.plans.values():
            for value in plan.values:
                found.setdefault(value.option, []).append((name, value))
    return found


def run(options: argparse.Namespace) -> int:
    """Show, or ask and run."""
    from .deploy_steps import listed, script

    plan = plan_for(options.target, options.hardware)
    known = values_of(plan, options)
    steps = plan.remove if options.remove else plan.deploy
    if options.script:
        print(script(plan, steps, known, _head(options), on=options.remove), end="")
        return DONE
    if options.dry_run:
        print(shown(plan, known))
        return DONE
    _see_what_is_there(plan, steps, known)
    print(listed(steps, known))
    if not options.yes and not _agreed(len(steps)):
        return complain("nothing was run", USAGE)
    status = _run(steps, known, on=options.remove)
    if status == DONE and not options.remove:
        print(f"\nTo see that it is the right one:\n\n{_unsaid(plan, known)}{listed(plan.check, known)}")
        print(f"\nTo remove it: blindbox deploy {_same(options)} --remove")
    return status


def plan_for(target: str, hardware: str | None) -> Plan:
    """What is typed there. Raises `ValueError`."""
    from .deploy_targets import TARGETS

    plans = TARGETS[target].plans
    chosen = next(iter(plans)) if hardware is None else hardware
    if chosen not in plans:
        there = " or ".join(filter(None, plans)) or "no choice of it"
        raise ValueError(f"--hardware {chosen}: {target} has {there}")
    return plans[chosen]


def values_of(plan: Plan, options: argparse.Namespace) -> dict[str, str]:
    """What is known: what was said, else the defaults. Raises `ValueError`."""
    said = {
        option: text
        for option in _options()
        if (text := getattr(options, option[2:].replace("-", "_"))) is not None
    }
    strange = said.keys() - {value.option for value in plan.values}
    if strange:
        has = ", ".join(value.option for value in plan.values)
        raise ValueError(f"{', '.join(sorted(strange))}: not for {options.target}, which has {has}")
    given = {value.name: said.get(value.option, value.default) for value in plan.values}
    return {value.name: value.read(text) for value in plan.values if (text := given[value.name]) is not None}


def shown(plan: Plan, known: dict[str, str]) -> str:
    """All that is typed, from the first command to the removal."""
    from .deploy_steps import listed

    return "\n\n".join(
        [
            f"# ── deploy\n\n{listed(plan.deploy, known)}",
            f"# ── see that it is the right one\n\n{_unsaid(plan, known)}{listed(plan.check, known)}",
            f"# ── remove\n\n{listed(plan.remove, known)}",
        ]
    )


def _unsaid(plan: Plan, known: dict[str, str]) -> str:
    """What the client's own commands still need."""
    named = plan.named(plan.check)
    missing = [value for value in plan.values if value.name in named and value.name not in known]
    lines = [f"# {value.name}: {value.about}, {value.says} ({value.option})" for value in missing]
    return "# say before:\n" + "\n".join(lines) + "\n\n" if lines else ""


def _see_what_is_there(plan: Plan, steps: tuple[Step, ...], known: dict[str, str]) -> None:
    """Raises `ValueError` if something is missing that would be missed half-way."""
    named = plan.named(steps)
    for value in plan.values:
        if value.name not in named:
            continue
        if value.name not in known:
            raise ValueError(f"say {value.option}: {value.about}")
        if value.file and not Path(known[value.name]).is_file():
            raise ValueError(f"{value.option}: there is no file {known[value.name]}: {value.about}")
    for program in plan.programs(steps):
        if shutil.which(program) is None:
            raise ValueError(f"{program} is not installed here ({_FROM.get(program, program)})")


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here: --yes runs these commands, --dry-run shows them")
    return input(f"\nRun {'these commands' if count > 1 else 'this command'}? [y/N] ").strip().lower() in (
        "y",
        "yes",
    )


def _run(steps: tuple[Step, ...], known: dict[str, str], *, on: bool) -> int:
    """Run one after another; with `on`, a failure does not keep the next from being tried."""
    from .deploy_steps import told

    status = DONE
    for number, step in enumerate(steps, 1):
        print(f"{number}/{len(steps)} {told(step.about, known)}", flush=True)
        try:
            why = _run_one(step, known)
        except KeyError as name:  # of something that an earlier step did not find
            why = f"{name.args[0]} is not known"
        if why is None:
            continue
        status = complain(f"step {number}: {why}", USAGE)
        if not on or (step.prints is not None and step.keeps is None):
            if number > 1 and not on:
                complain("what was made so far stays, and may cost: --remove removes it", USAGE)
            return status
    return status


def _run_one(step: Step, known: dict[str, str]) -> str | None:
    """Run it; why it failed, if it did. What it keeps is known from then on."""
    from .deploy_steps import filled, words

    command = words(step, known)
    read = step.keeps is not None or step.prints is not None
    try:
        done = subprocess.run(  # noqa: S603 - a list, never a shell; each word was judged
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if read else None, check=False
        )
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror or error}"
    if done.returncode:
        return f"{command[0]} ended with {done.returncode}"
    if not read:
        return None
    text = done.stdout.decode("utf-8", "replace").strip()
    if step.prints is not None and not re.fullmatch(step.prints, text):
        return filled(step.or_else, known) if step.or_else else f"{command[0]} printed {plain(text[:200])!r}"
    if step.keeps is not None:
        known[step.keeps] = text
    return None


def _same(options: argparse.Namespace) -> str:
    """The options by which the same machine is meant."""
    words = ["--target", options.target]
    if options.hardware is not None:
        words += ["--hardware", options.hardware]
    for option in _options():
        text = getattr(options, option[2:].replace("-", "_"))
        if text is not None:
            words += [option, text]
    return shlex.join(words)


def _head(options: argparse.Namespace) -> str:
    page = f"docs/deploy/{_page(options.target)}"
    what = "Removes what was made" if options.remove else "Starts a machine"
    same = f"blindbox deploy {_same(options)}" + (" --remove" if options.remove else "")
    return f"{what}: {page}. Printed by\n    {same} --script"


def _page(target: str) -> str:
    from .deploy_targets import TARGETS

    return TARGETS[target].page
