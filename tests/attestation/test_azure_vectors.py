"""Real machines of Azure's, in the form of SPEC §4.5, and the verdict that each must get."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation.azure import AzureSnpPolicy, AzureTdxPolicy, appraise_snp, appraise_tdx
from blindbox_attestation.azure.hcl import Hcl
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.snp import Report, SnpPolicy, Tcb
from blindbox_attestation.tdx import Quote, TdxPolicy
from blindbox_attestation.vtpm.boot import MeasuredBoot
from tests.kit.azure import Foreign, from_foreign
from tests.kit.verdict import verdict

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

IN_MAY = datetime(2026, 5, 1, tzinfo=UTC)  # AMD's list for Milan is valid until 2026-05-12
IN_MARCH = datetime(2026, 3, 20, tzinfo=UTC)
IN_JUNE = datetime(2026, 6, 9, tzinfo=UTC)
FIXTURE = b"attestation-test-fixture"
FLOOR = Tcb(bootloader=3, snp=8, microcode=0x73)


class Azure:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def machine(self, name: str) -> Foreign:
        return from_foreign(self.folder / "azure" / f"{name}.json")

    def pem(self, name: str) -> bytes:
        text = (self.folder / name).read_text(encoding="ascii").replace("X509 CRL", "CERTIFICATE")
        return ssl.PEM_cert_to_DER_cert(text.strip())

    def of_amd(self, machine: Foreign) -> dict[str, bytes]:
        """The machine's own certificate, and AMD's as Azure's metadata service hands them out."""
        return {
            **machine.endorsements,
            "ask": (self.folder / "azure" / "imds-chain-0.der").read_bytes(),
            "ark": (self.folder / "azure" / "imds-chain-1.der").read_bytes(),
            "crl": self.pem("snp/crl_milan.pem"),
        }

    def of_intel(self, machine: Foreign, collateral: str) -> dict[str, bytes]:
        told = {**machine.endorsements, "collateral": (self.folder / "azure" / collateral).read_bytes()}
        if "ak_chain" in told:
            told["ak_chain"] += self.pem("azure/azure_vtpm_root_2023.pem")
        return told


@pytest.fixture(scope="module")
def real(vectors: Path) -> Azure:
    return Azure(vectors)


def boot_of(machine: Foreign) -> MeasuredBoot:
    return MeasuredBoot(
        pcrs={number: {bytes.fromhex(machine.pcrs[str(number)])} for number in (0, 4, 7)},
        secure_boot="unchecked",
        event_log="unused",
    )


def snp_policy(machine: Foreign, **changes: Any) -> AzureSnpPolicy:
    measurement = Report.parse(Hcl.parse(machine.hcl).report).measurement
    snp = SnpPolicy(measurements={measurement}, minimum_tcb={"Milan": FLOOR})
    return AzureSnpPolicy(**{"snp": snp, "boot": boot_of(machine), **changes})


def tdx_policy(machine: Foreign, **changes: Any) -> AzureTdxPolicy:
    assert machine.td_quote is not None
    tdx = TdxPolicy(mrtd={Quote.parse(machine.td_quote).mrtd}, minimum_tcb_evaluation=18)
    return AzureTdxPolicy(**{"tdx": tdx, "boot": boot_of(machine), **changes})


def code_of_snp(real: Azure, machine: Foreign, policy: AzureSnpPolicy, now: datetime = IN_MAY) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise_snp(machine.evidence, real.of_amd(machine), policy, now=now))


# --- what is genuine is accepted ----------------------------------------------------------------------------


def test_a_milan_machine_is_accepted(real: Azure) -> None:
    machine = real.machine("snp_milan_evidence")
    claims = appraise_snp(machine.evidence, real.of_amd(machine), snp_policy(machine), now=IN_MAY)
    assert claims.carries(FIXTURE)
    assert claims.vm.unique_id == "02fe12ec-5b74-4a1b-b261-8ea46fe9af36"
    assert claims.vm.secure_boot is True
    assert claims.user_data == bytes(64)
    assert claims.hardware.vmpl == 0
    assert not claims.ak_certified


def test_a_milan_machine_in_the_older_container_is_accepted(real: Azure) -> None:
    machine = real.machine("snp_milan_v0_evidence")
    claims = appraise_snp(machine.evidence, real.of_amd(machine), snp_policy(machine), now=IN_MAY)
    assert claims.carries(b"challenge")
    assert claims.hardware.report_version == 3


def test_a_tdx_machine_is_accepted_with_its_collateral(real: Azure) -> None:
    machine = real.machine("tdx_evidence")
    endorsements = real.of_intel(machine, "tdx_collateral_2026-03.json")
    claims = appraise_tdx(machine.evidence, endorsements, tdx_policy(machine), now=IN_MARCH)
    assert claims.carries(FIXTURE)
    assert claims.user_data == FIXTURE.ljust(64, b"\x00")
    assert claims.hardware.status == "UpToDate"
    assert claims.hardware.tcb_evaluation == 18


@pytest.mark.parametrize("asked", ["required", "unused"])
def test_a_tdx_machine_with_azures_certificates_is_accepted(real: Azure, asked: str) -> None:
    machine = real.machine("tdx_ak_chain_2026-06")
    endorsements = real.of_intel(machine, "tdx_ak_chain_2026-06_collateral.json")
    policy = tdx_policy(machine, ak_certificate=asked)
    claims = appraise_tdx(machine.evidence, endorsements, policy, now=IN_JUNE)
    assert claims.carries(bytes(32))
    assert claims.hardware.tcb_evaluation == 19
    assert claims.ak_certified == (asked == "required")


def test_the_certificate_as_it_lies_in_the_tpm_is_accepted_with_its_padding(real: Azure) -> None:
    """NV 0x01C101D0 is 4096 bytes: DER, then zeros."""
    machine = real.machine("tdx_ak_chain_2026-06")
    endorsements = real.of_intel(machine, "tdx_ak_chain_2026-06_collateral.json")
    endorsements["ak_chain"] += bytes(1000)
    policy = tdx_policy(machine, ak_certificate="required")
    assert appraise_tdx(machine.evidence, endorsements, policy, now=IN_JUNE).ak_certified


# --- what is not, is refused --------------------------------------------------------------------------------


def test_a_changed_register_is_refused(real: Azure) -> None:
    """C-6, C-15: PCR 7 was set to zeros, and the TPM has signed something else."""
    machine = real.machine("snp_milan_bad_pcr7")
    assert code_of_snp(real, machine, snp_policy(machine)) == "pcr-digest-mismatch"


def test_changed_words_of_the_paravisor_are_refused(real: Azure) -> None:
    """C-15, C-17: `secure-boot` was changed to null, and the chip has signed the hash of something else."""
    machine = real.machine("snp_milan_bad_runtime")
    assert code_of_snp(real, machine, snp_policy(machine)) == "runtime-data-mismatch"


def test_the_quote_of_another_genuine_machine_is_refused(real: Azure) -> None:
    """C-2: both are genuine, but the one's chip does not vouch for the other's TPM."""
    one, other = real.machine("snp_milan_evidence"), real.machine("snp_milan_v0_evidence")
    mixed = replace(one, attest=other.attest, signature=other.signature, pcrs=other.pcrs)
    assert code_of_snp(real, mixed, snp_policy(mixed)) == "bad-signature"


def test_the_td_quote_of_another_genuine_machine_is_refused(real: Azure) -> None:
    """C-2: a genuine quote of another boot."""
    one, other = real.machine("tdx_evidence"), real.machine("tdx_ak_chain_2026-06")
    mixed = replace(one, td_quote=other.td_quote)
    endorsements = real.of_intel(one, "tdx_ak_chain_2026-06_collateral.json")
    with pytest.raises(AttestationError) as refused:
        appraise_tdx(mixed.evidence, endorsements, tdx_policy(mixed), now=IN_JUNE)
    assert refused.value.code == "runtime-data-mismatch"


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (datetime(2026, 3, 1, tzinfo=UTC), "collateral-not-valid-now"),
        (datetime(2026, 6, 1, tzinfo=UTC), "crl-not-valid-now"),
    ],
)
def test_collateral_outside_of_its_time_is_refused(real: Azure, now: datetime, code: str) -> None:
    """C-11."""
    machine = real.machine("tdx_evidence")
    endorsements = real.of_intel(machine, "tdx_collateral_2026-03.json")
    with pytest.raises(AttestationError) as refused:
        appraise_tdx(machine.evidence, endorsements, tdx_policy(machine), now=now)
    assert refused.value.code == code


def test_an_expired_list_of_amds_is_refused(real: Azure) -> None:
    """C-10."""
    machine = real.machine("snp_milan_evidence")
    assert code_of_snp(real, machine, snp_policy(machine), IN_JUNE) == "crl-not-valid-now"


def test_a_policy_for_genoa_refuses_milan(real: Azure) -> None:
    machine = real.machine("snp_milan_evidence")
    genoa = replace(snp_policy(machine).snp, minimum_tcb={"Genoa": FLOOR})
    assert code_of_snp(real, machine, snp_policy(machine, snp=genoa)) == "platform-not-accepted"


def test_without_azures_certificates_a_policy_that_wants_them_refuses(real: Azure) -> None:
    machine = real.machine("snp_milan_evidence")
    assert code_of_snp(real, machine, snp_policy(machine, ak_certificate="required")) == "missing-endorsement"


def test_each_flipped_bit_of_a_genuine_blob_is_refused(real: Azure) -> None:
    """C-15: one bit in each byte; the report, the header and the JSON are all covered."""
    machine = real.machine("snp_milan_evidence")
    policy = snp_policy(machine)
    end = 1236 + len(Hcl.parse(machine.hcl).runtime)
    accepted = [
        at
        for at in range(0, end, 7)
        if code_of_snp(real, replace(machine, hcl=flipped(machine.hcl, at)), policy) == "accepted"
    ]
    assert accepted == []


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]


def test_foreign_containers_are_not_our_form(vectors: Path) -> None:
    """C-17."""
    for name in ("snp_milan_evidence", "snp_milan_v0_evidence"):
        data = (vectors / "azure" / f"{name}.json").read_bytes()
        machine = from_foreign(vectors / "azure" / f"{name}.json")
        assert isinstance(json.loads(data), dict)
        with pytest.raises(AttestationError) as refused:
            appraise_snp(data, {}, snp_policy(machine), now=IN_MAY)
        assert refused.value.code == "malformed-quote"
