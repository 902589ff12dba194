"""A whole policy in plain sentences: a heading for each platform, and what `in_words` of that part says."""

from __future__ import annotations

from collections.abc import Iterator

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
            yield f"{under}{KEYS[key].title}", part.in_words()
    else:
        every = len(policy.policies)
        for number, one in enumerate(policy.policies, start=1):
            yield from told(one, f"{under}{type(policy).__name__} {number} of {every}: ")
