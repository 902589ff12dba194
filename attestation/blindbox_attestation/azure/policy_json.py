"""
The JSON form of the two Azure policies: the processor's and the boot's forms, and a table of what is
Azure's own.

What the values mean is checked in `policy.py`, where the objects are made. Roots have no form here: a file
cannot bring one along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import policy_form, strict_json
from ..policy_form import Form
from ..snp import policy_json as snp_json
from ..tdx import policy_json as tdx_json
from ..vtpm import boot_json
from .policy import CHOICES, AzureSnpPolicy, AzureTdxPolicy

_MACHINE: Final[Mapping[str, Form]] = {
    "boot": boot_json.FORM,
    "secure_boot": policy_form.choice(CHOICES["secure_boot"], about="Whether secure boot must be on."),
    "console": policy_form.choice(CHOICES["console"], about="Whether the serial console must be off."),
    "vm_ids": policy_form.texts(about="The machines' ids (vmUniqueId), as the host tells them.", most=64),
    "ak_certificate": policy_form.choice(
        CHOICES["ak_certificate"], about="Whether Azure's certificates must vouch for the TPM's key too."
    ),
}

SNP_FORMS: Final[Mapping[str, Form]] = {
    "snp": policy_form.nested(snp_json.read, snp_json.write, snp_json.SCHEMA, required=True),
    **_MACHINE,
}
TDX_FORMS: Final[Mapping[str, Form]] = {
    "tdx": policy_form.nested(tdx_json.read, tdx_json.write, tdx_json.SCHEMA, required=True),
    **_MACHINE,
}

SNP_SCHEMA: Final = policy_form.object_schema(SNP_FORMS, "An Azure confidential machine on AMD SEV-SNP.")
TDX_SCHEMA: Final = policy_form.object_schema(TDX_FORMS, "An Azure confidential machine on Intel TDX.")


def read_snp(value: object, where: str) -> AzureSnpPolicy:
    return AzureSnpPolicy(**policy_form.read_fields(value, where, SNP_FORMS))


def read_tdx(value: object, where: str) -> AzureTdxPolicy:
    return AzureTdxPolicy(**policy_form.read_fields(value, where, TDX_FORMS))


def write_snp(policy: AzureSnpPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, SNP_FORMS)


def write_tdx(policy: AzureTdxPolicy) -> strict_json.Object:
    return policy_form.write_fields(policy, TDX_FORMS)
