"""
A whole policy in plain sentences: a heading for each platform, what `in_words` of that part says, and the
programs that it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from blindbox_attestation.platforms import KEYS
from blindbox_attestation.policy import Policy
from blindbox_attestation.policy_words import Words
from blindbox_attestation.simulated import UnsafeSimulatedPolicy
from blindbox_attestation.verify import AnyPolicy

_SIMULATED = Words(
    trusts=("Anybody: the key that signs simulated evidence is public.",),
    checks=("The machine says that it is simulated.",),
    unchecked=("Everything. This is for trying things out, never for secrets.",),
)


def told(policy: AnyPolicy, under: str = "") -> Iterator[tuple[str, Words]]:
    """Heading and words, for each platform of each policy."""
    if isinstance(policy, UnsafeSimulatedPolicy):
        yield f"{under}Simulated machines", _SIMULATED
    elif isinstance(policy, Policy):
        for key in policy.keys:
            part = policy.part(key)
            assert part is not None
            title = KEYS[key].title
            yield f"{under}{title[0].upper()}{title[1:]}", _with_settings(part.in_words(), policy)
    else:
        every = len(policy.policies)
        for number, one in enumerate(policy.policies, start=1):
            yield from told(one, f"{under}{type(policy).__name__} {number} of {every}: ")


def _with_settings(words: Words, policy: Policy) -> Words:
    if policy.config_digests is None:
        open_too = "How the enclave was told to run: any settings that it takes."
        return replace(words, unchecked=(*words.unchecked, open_too))
    named = " or ".join(sorted(f"{one.hex()[:16]}…" for one in policy.config_digests))
    return replace(words, checks=(*words.checks, f"Its settings at run time have the digest {named}."))


def measurements(policy: AnyPolicy) -> Iterator[str]:
    """The launches that are accepted, each as "measurement …" or "MRTD …", whole, to be compared by eye."""
    if isinstance(policy, UnsafeSimulatedPolicy):
        return
    if isinstance(policy, Policy):
        found = {line for key in policy.keys for line in _launches(policy.part(key))}
    else:
        found = {line for one in policy.policies for line in measurements(one)}
    yield from sorted(found)


def _launches(part: Any) -> Iterator[str]:
    """Those of one platform; on Azure they stand in the processor's part."""
    for processor in (part, getattr(part, "snp", None), getattr(part, "tdx", None)):
        for field, name in (("measurements", "measurement"), ("mrtd", "MRTD")):
            yield from (f"{name} {value.hex()}" for value in getattr(processor, field, None) or ())
