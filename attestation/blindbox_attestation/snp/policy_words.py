"""An `SnpPolicy` in plain sentences: who is trusted, what is looked at, what is left open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..policy_words import Words
from .tcb import MILAN, PARTS, Tcb, family_named

if TYPE_CHECKING:
    from .policy import SnpPolicy

ALIAS_CHECK: Final = 1 << 5  # ALIAS_CHECK_COMPLETE of PLATFORM_INFO (AMD 56860)


def in_words(policy: SnpPolicy) -> Words:
    trusts = ["AMD, who makes the processor, its firmware and the key that signs."]
    if MILAN in map(family_named, policy.minimum_tcb):
        trusts.append("EPYC Milan, whose attestation keys have been extracted in software: no floor helps.")
    if "vlek" in policy.signing_keys:
        trusts.append("The cloud that holds the keys of its machines (VLEK), in place of each chip's own.")
    checks = [
        f"The program is one of {len(policy.measurements)} measured images.",
        *(f"A {name} has at least {_parts(floor)}." for name, floor in _floors(policy) if _parts(floor)),
        "The host may neither debug the guest nor move it.",
        f"The report was asked for at VMPL {policy.vmpl}.",
    ]
    unchecked = [f"Any firmware of a {name} passes." for name, floor in _floors(policy) if not _parts(floor)]
    for wish, yes, no in (
        (
            policy.revocation == "required",
            "AMD has not revoked a certificate, by a list that is current.",
            "Whether AMD has revoked a certificate is not asked.",
        ),
        (
            not policy.allow_smt,
            "No sibling thread runs on the same core.",
            "Sibling threads may run on the same core, as StackWarp (CVE-2025-29943) needs.",
        ),
        (
            bool(policy.platform_info_required & ALIAS_CHECK),
            "Memory was checked for aliases at boot (BadRAM, CVE-2024-21944).",
            "Memory need not have been checked for aliases at boot (BadRAM, CVE-2024-21944).",
        ),
        (
            policy.host_data is not None,
            "The host gave exactly the configuration that is named at launch (HOST_DATA).",
            "The host may have given any configuration at launch (HOST_DATA).",
        ),
        (
            policy.chip_ids is not None,
            f"The processor is one of {len(policy.chip_ids or ())} that are named.",
            "Any genuine processor passes, also one in somebody else's house.",
        ),
        (
            policy.csp_ids is not None,
            f"A key that a cloud holds for its machines is of {' or '.join(sorted(policy.csp_ids or ()))}.",
            "Which cloud holds such a key is not asked."
            if "vlek" in policy.signing_keys
            else "Which cloud runs the processor is not told by its certificate.",
        ),
        (
            policy.id_key_digests is not None or policy.author_key_digests is not None,
            "The ID block is signed by a key that is named.",
            "Who signed the ID block is not asked.",
        ),
        (
            policy.minimum_guest_svn > 0,
            f"The ID block says version {policy.minimum_guest_svn} or later.",
            "The version in the ID block is not asked.",
        ),
    ):
        (checks if wish else unchecked).append(yes if wish else no)
    unchecked.append("Physical attacks on the memory bus leave no trace in a report.")
    return Words(tuple(trusts), tuple(checks), tuple(unchecked))


def _floors(policy: SnpPolicy) -> list[tuple[str, Tcb]]:
    return sorted(policy.minimum_tcb.items())


def _parts(floor: Tcb) -> str:
    return ", ".join(f"{part} {getattr(floor, part)}" for part in PARTS if getattr(floor, part))
