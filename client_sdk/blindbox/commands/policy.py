"""
`blindbox policy`: what a policy file may hold, what it means, and a first one from what a build printed.

Nothing here asks the network, and nothing is stored; what is printed becomes a policy by `blindbox trust`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .status import DONE

if TYPE_CHECKING:
    from blindbox_attestation.policy import AnyKind

_EPILOG = """\
examples:
  blindbox policy explain release-1.0.json
  blindbox policy from-measurements measurements.json --platform snp > policy.json
  blindbox policy minimum-tcb
  blindbox policy schema > policy.schema.json
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    policy = commands.add_parser(
        "policy",
        description="Work on policy files. The network is not used.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = policy.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")

    explain = kinds.add_parser("explain", help="say in words what a policy trusts, checks, and leaves open")
    explain.add_argument("file", metavar="FILE", help="the policy, as JSON")
    explain.set_defaults(run=_explain)

    schema = kinds.add_parser("schema", help="print the JSON Schema (2020-12) of a policy file")
    schema.set_defaults(run=_schema)

    minimum = kinds.add_parser(
        "minimum-tcb", help="print which AMD firmware fixes what, by date and with its source"
    )
    minimum.add_argument("--json", action="store_true", help="the floors, as a policy has them")
    minimum.set_defaults(run=_minimum_tcb)

    made = kinds.add_parser(
        "from-measurements",
        help="print a policy for what a build has measured",
        description="Print a policy that accepts one build. What a build cannot know has to be said.",
    )
    made.add_argument(
        "file",
        metavar="measurements.json",
        help="what the image's build measured; its form is in docs/policies.md",
    )
    made.add_argument(
        "--platform",
        action="append",
        required=True,
        metavar="KEY",
        help="where it may run: snp, tdx, azure_snp, azure_tdx, gcp, nitro, tpm; may be given several times",
    )
    made.add_argument(
        "--processor",
        action="append",
        metavar="FAMILY",
        help="snp, azure_snp: Genoa, Turin (both unless given), Milan",
    )
    made.add_argument("--vcpus", type=int, metavar="N", help="snp: only the digest for so many vCPUs")
    made.add_argument(
        "--tcb-evaluation", type=int, metavar="N", help="tdx, azure_tdx: Intel's oldest evaluation"
    )
    made.add_argument("--audience", metavar="TEXT", help="gcp: whom tokens are made out to")
    made.add_argument("--hardware", action="append", metavar="MODEL", help="gcp: such as GCP_INTEL_TDX")
    made.add_argument(
        "--paravisor", action="append", metavar="HEX", help="azure_…: measurement of Microsoft's firmware"
    )
    made.add_argument(
        "--mrtd",
        action="append",
        metavar="HEX",
        help="tdx: of a cloud's firmware, in place of the build's own",
    )
    made.add_argument("--ak-key", action="append", metavar="HEX", help="tpm: SHA-256 of a TPM's public key")
    made.add_argument("--project", action="append", metavar="ID", help="tpm: a project of Google's cloud")
    made.add_argument(
        "--secure-boot",
        choices=("unchecked", "required"),
        default="unchecked",
        help="azure_…, tpm: the program is named by its hash, so that it need not be signed (%(default)s)",
    )
    made.add_argument(
        "--config-digest",
        action="append",
        metavar="HEX",
        help="the settings at run time that are accepted; `default`: the image's own; any unless given",
    )
    made.set_defaults(run=_from_measurements)


def _explain(options: argparse.Namespace) -> int:
    from ..trust import read_policy

    print("\n".join(explained(read_policy(options.file))))
    return DONE


def explained(policy: AnyKind) -> Iterator[str]:
    """The policy in words, line by line."""
    from blindbox_attestation.policy import AnyOf, Policy

    from ..policy_told import measurements, told

    if not isinstance(policy, Policy):
        many = "one" if isinstance(policy, AnyOf) else "every one"
        yield f"A machine is accepted if {many} of these {len(policy.policies)} policies accepts it."
        yield ""
    for heading, words in told(policy):
        yield heading
        for title, sentences in (
            ("trusts", words.trusts),
            ("checks", words.checks),
            ("does not check", words.unchecked),
        ):
            if sentences:
                yield f"  {title}"
                yield from (f"    {sentence}" for sentence in sentences)
        yield ""
    if launches := list(measurements(policy)):
        yield "Launches that are accepted"
        yield from (f"  {launch}" for launch in launches)
        yield ""
    asked = (
        "evidence the machine made for others is taken too" if policy.accept_cached else "by our own nonce"
    )
    yield f"A machine proves itself again after {policy.max_age} ({asked})."
    yield f"Its clock and ours may differ by {policy.clock_skew}."
    yield "A platform that is not named here is not accepted."


def _schema(_: argparse.Namespace) -> int:
    from blindbox_attestation.policy_schema import schema

    print(json.dumps(schema(), indent=2))
    return DONE


def _minimum_tcb(options: argparse.Namespace) -> int:
    from blindbox_attestation.snp.minimum_tcb import floors
    from blindbox_attestation.snp.tcb import LAYOUTS, family_named

    parts = {name: LAYOUTS[str(family_named(name))] for name in floors()}
    if options.json:
        told = {
            name: {part: getattr(floor, part) for part in parts[name]} for name, floor in floors().items()
        }
        print(json.dumps(told, indent=2))
        return DONE
    print("\n".join(_bulletins()))
    print("\nTogether, as floors of a policy (0 where no number was found):")
    for name, floor in floors().items():
        print(f"  {name:12}" + ", ".join(f"{part} {getattr(floor, part)}" for part in parts[name]))
    return DONE


def _bulletins() -> Iterator[str]:
    from blindbox_attestation.snp.minimum_tcb import BULLETINS, COLLECTED, WITHOUT_A_NUMBER

    yield f"AMD's bulletins, as collected on {COLLECTED}. Each number is one that a report can show."
    for bulletin in BULLETINS:
        yield ""
        yield f"{bulletin.name} ({bulletin.published})  {bulletin.about}"
        for fix in bulletin.fixes:
            numbers = ", ".join(f"{part} {number} ({number:#x})" for part, number in fix.parts.items())
            yield f"    {fix.processor:12}{numbers}"
        yield f"    quoted in: {bulletin.quoted_in}"
    yield ""
    yield "Without a number:"
    yield from (f"    {name}  {why}" for name, why in WITHOUT_A_NUMBER.items())


def _from_measurements(options: argparse.Namespace) -> int:
    from ..errors import InvalidPolicy
    from .release_measurements import (
        DEFAULT_PROCESSORS,
        MAX_FILE,
        PLATFORMS,
        Measurements,
        Wishes,
        policy_for,
    )

    for key in options.platform:
        if key not in PLATFORMS:
            raise InvalidPolicy(f"--platform {key!a}: a policy can be made for {', '.join(PLATFORMS)}")
    path = Path(options.file)
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidPolicy(f"{path} is larger than {MAX_FILE} bytes")
    wishes = Wishes(
        processors=tuple(options.processor or DEFAULT_PROCESSORS),
        vcpus=options.vcpus,
        tcb_evaluation=options.tcb_evaluation,
        audience=options.audience,
        hardware=tuple(options.hardware or ()),
        paravisors=tuple(options.paravisor or ()),
        mrtds=tuple(options.mrtd or ()),
        ak_keys=tuple(options.ak_key or ()),
        projects=tuple(options.project or ()),
        secure_boot=options.secure_boot,
        config_digests=tuple(options.config_digest or ()),
    )
    policy = policy_for(tuple(dict.fromkeys(options.platform)), Measurements(data), wishes)
    print(json.dumps(json.loads(policy.to_json()), indent=2))
    return DONE
