"""
A policy for every platform, as it stands in a file: the least that is accepted, and more for every field.

A test asks that these tables name exactly the fields that exist, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from typing import Any, Final

DIGEST: Final = "11" * 48
OTHER: Final = "22" * 48

PCR: Final = "77" * 32
OTHER_PCR: Final = "88" * 32

_TCB: Final = {"bootloader": 10, "tee": 0, "snp": 25, "microcode": 84}

_SNP: Final = {"measurements": [DIGEST], "minimum_tcb": {"Genoa": _TCB}}
_TDX: Final = {"mrtd": [DIGEST], "minimum_tcb_evaluation": 18}
_BOOT: Final = {"pcrs": {"4": [PCR], "11": [PCR]}}
_EVENTS: Final = [
    {"register": 12, "only": [PCR]},
    {"register": 7, "variable": "db", "sha256_of_data": [PCR]},
]

_AZURE: Final = {
    "boot": {"pcrs": {"4": [OTHER_PCR]}, "events": _EVENTS},
    "secure_boot": "unchecked",
    "console": "off",
    "vm_ids": ["0b0b0b0b-0000-4000-8000-000000000001"],
    "ak_certificate": "required",
}

LEAST: Final[dict[str, dict[str, Any]]] = {
    "snp": _SNP,
    "tdx": _TDX,
    "azure_snp": {"snp": _SNP, "boot": _BOOT},
    "azure_tdx": {"tdx": _TDX, "boot": _BOOT},
    "gcp": {
        "audiences": ["https://blindbox.example"],
        "image_digests": [f"sha256:{'11' * 32}"],
        "hardware": ["GCP_INTEL_TDX"],
    },
    "nitro": {"pcrs": {"0": [DIGEST]}},
    "tpm": {"boot": _BOOT},
}
"""Key of a policy → what must be said about that platform."""

CHANGED: Final[dict[str, dict[str, Any]]] = {
    "snp": {
        "measurements": [OTHER],
        "minimum_tcb": {"Genoa": {**_TCB, "snp": 26}},
        "vmpl": 1,
        "signing_keys": ["vcek", "vlek"],
        "chip_ids": ["33" * 64],
        "csp_ids": ["CN=cc-us-east-2.amazonaws.com"],
        "id_key_digests": [OTHER],
        "author_key_digests": [OTHER],
        "host_data": "44" * 32,
        "minimum_guest_svn": 1,
        "allow_smt": False,
        "allow_masked_chip_id": True,
        "platform_info_required": 32,
        "platform_info_forbidden": 1,
        "revocation": "unchecked",
    },
    "tdx": {
        "mrtd": [OTHER],
        "minimum_tcb_evaluation": 19,
        "rtmrs": {"1": [DIGEST]},
        "statuses": ["UpToDate", "SWHardeningNeeded"],
        "accepted_advisories": ["INTEL-SA-00615"],
        "mrseam": [OTHER],
        "minimum_tee_tcb_svn": "03" * 16,
        "xfam_allowed": 0xE7,
        "mr_config_id": OTHER,
        "mr_owner": OTHER,
        "mr_owner_config": OTHER,
        "ppids": ["55" * 16],
        "platform_instance_ids": ["66" * 16],
        "fmspcs": ["00806f050000"],
        "event_log": "required",
        "events": {"1": [DIGEST]},
    },
    "gcp": {
        "audiences": ["https://other.example"],
        "image_digests": [f"sha256:{'22' * 32}"],
        "hardware": ["GCP_AMD_SEV_SNP"],
        "support_attributes": ["STABLE", "LATEST"],
        "minimum_version": 250800,
        "tcb_statuses": ["UpToDate"],
        "environment_overrides": ["MODEL"],
        "allow_command_override": True,
        "project_ids": ["ours"],
        "instance_ids": ["123"],
        "service_accounts": ["us@ours.example"],
        "clock_skew_seconds": 61,
    },
    "nitro": {
        "pcrs": {"0": [OTHER]},
        "instance_ids": ["i-0123456789abcdef0"],
        "iam_roles": ["arn:aws:iam::123456789012:role/ours"],
        "max_age_seconds": 301,
        "clock_skew_seconds": 61,
    },
    "azure_snp": {"snp": {**_SNP, "measurements": [OTHER]}, **_AZURE},
    "azure_tdx": {"tdx": {**_TDX, "mrtd": [OTHER]}, **_AZURE},
    "tpm": {
        "boot": {"pcrs": {"4": [OTHER_PCR]}, "events": _EVENTS},
        "ak_keys": [OTHER_PCR],
        "projects": ["ours"],
        "instances": [123],
        "zones": ["europe-west4-a"],
    },
}
"""Key of a policy → for each field, something else than the least policy has there."""

_NEEDS: Final[dict[tuple[str, str], dict[str, Any]]] = {("tdx", "events"): {"event_log": "required"}}
"""A wish that makes no sense without another."""

POLICY_FIELDS: Final[dict[str, Any]] = {
    "accept_cached": True,
    "max_age_seconds": 61,
    "clock_skew_seconds": 61,
    "config_digests": ["ab" * 48],
}


def policy(key: str, **changes: Any) -> dict[str, Any]:
    """A whole policy for one platform, with some of its fields otherwise."""
    needed = {name: value for field in changes for name, value in _NEEDS.get((key, field), {}).items()}
    return {"version": 1, key: {**LEAST[key], **needed, **changes}}


EVERY: Final = [(key, name) for key, fields in CHANGED.items() for name in fields]
"""Each field of each platform."""
