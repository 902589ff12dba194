"""Real reports of real chips, and the verdict that each must get."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blindbox_attestation.snp import Report, SnpPolicy, Tcb, appraise
from blindbox_attestation.walk import Walk
from tests.kit.verdict import verdict

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

NOW = datetime(2026, 7, 1, tzinfo=UTC)
IN_2025 = datetime(2025, 6, 1, tzinfo=UTC)

FLOORS = {
    "Milan": Tcb(bootloader=2, snp=5, microcode=0x44),
    "Genoa": Tcb(bootloader=10, snp=0x1B, microcode=0x1B),
    "Turin": Tcb(fmc=0, bootloader=1, snp=2, microcode=0x47),
}


class Vectors:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "snp"

    def der(self, name: str) -> bytes:
        data = (self.folder / name).read_bytes()
        if not data.startswith(b"-----"):
            return data
        text = data.decode("ascii").replace("X509 CRL", "CERTIFICATE")
        return ssl.PEM_cert_to_DER_cert(text.strip())

    def report(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def endorsements(self, family: str, leaf: str, *, kind: str = "vcek") -> dict[str, bytes]:
        family = family.lower()
        asvk = f"roots_{family}_asvk.der"
        above = {"vcek": ("ask", f"roots_{family}_ask.pem"), "vlek": ("asvk", asvk)}[kind]
        return {
            "ark": self.der(f"roots_{family}_ark.pem"),
            above[0]: self.der(above[1]),
            kind: self.der(leaf),
        }


@pytest.fixture(scope="module")
def real(vectors: Path) -> Vectors:
    return Vectors(vectors)


def policy_for(report: bytes) -> SnpPolicy:
    return SnpPolicy(
        measurements={Report.parse(report).measurement}, minimum_tcb=FLOORS, revocation="unchecked"
    )


def code_of(report: bytes, endorsements: dict[str, bytes], policy: SnpPolicy, now: datetime = NOW) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(report, endorsements, policy, now=now))


GENUINE = [
    ("milan_v2_vcek_report.bin", "milan_v2_vcek.der", "Milan", 2),
    ("milan_v3_report.bin", "milan_v3_vcek.pem", "Milan", 3),
    ("genoa_v5_report.bin", "genoa_v5_vcek.der", "Genoa", 5),
    ("turin_v5_report.bin", "turin_v5_vcek.der", "Turin", 5),
]


@pytest.mark.parametrize(("report", "vcek", "family", "version"), GENUINE)
def test_a_genuine_report_is_accepted_with_its_chip_s_certificate(
    real: Vectors, report: str, vcek: str, family: str, version: int
) -> None:
    data = real.report(report)
    walk = Walk()
    claims = appraise(data, real.endorsements(family, vcek), policy_for(data), now=NOW, walk=walk)
    assert (claims.family, claims.report_version, claims.signing_key) == (family, version, "vcek")
    assert claims.measurement == data[0x90:0xC0]
    assert [step.number for step in walk.steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert {step.number for step in walk.steps if step.outcome == "not asked"} == {5, 13}


@pytest.mark.parametrize(("report", "vcek", "family", "version"), GENUINE)
def test_the_parser_gives_back_every_byte_of_a_real_report(
    real: Vectors, report: str, vcek: str, family: str, version: int
) -> None:
    data = real.report(report)
    assert Report.parse(data).encode() == data


@pytest.mark.parametrize(
    ("report", "code"),
    [
        ("genoa_v5_report_tampered_rd.bin", "bad-signature"),
        ("genoa_v5_report_tampered_tcb.bin", "certificate-tcb-mismatch"),
        ("genoa_v5_report_sig_highpad.bin", "malformed-signature"),
    ],
)
def test_a_tampered_report_is_refused_for_its_own_reason(real: Vectors, report: str, code: str) -> None:
    data = real.report(report)
    assert code_of(data, real.endorsements("Genoa", "genoa_v5_vcek.der"), policy_for(data)) == code


def test_a_real_report_of_a_debug_guest_is_refused(real: Vectors) -> None:
    """C-7: its signature is valid, its host can read its memory."""
    data = real.report("milan_v2_debug_report.bin")
    assert (
        code_of(data, real.endorsements("Milan", "milan_v2_debug_vcek.der"), policy_for(data))
        == "debug-allowed"
    )


def test_a_certificate_that_amd_did_not_issue_is_refused(real: Vectors) -> None:
    """C-13: it is VCEK-shaped, and names the right issuer."""
    data = real.report("milan_v2_vcek_report.bin")
    endorsements = real.endorsements("Milan", "milan_vcek_invalid_legacy.der")
    assert code_of(data, endorsements, policy_for(data)) == "bad-certificate-signature"


def test_a_vlek_report_is_accepted_where_its_policy_says_so_and_nowhere_else(real: Vectors) -> None:
    """C-13: a cloud's key is another kind than a chip's, and their certificates are not the same."""
    data = real.report("aws_milan_v3_vlek_report.bin")
    vlek = real.endorsements("Milan", "aws_milan_vlek.der", kind="vlek")
    good = replace(policy_for(data), signing_keys={"vlek"}, vmpl=1)
    claims = appraise(data, vlek, good, now=IN_2025)
    assert claims.csp_id == "CN=cc-us-east-2.amazonaws.com"
    assert claims.chip_id is None
    assert code_of(data, vlek, good, NOW) == "certificate-not-valid-now"
    assert code_of(data, vlek, replace(good, vmpl=0), IN_2025) == "vmpl"
    assert code_of(data, vlek, replace(good, signing_keys={"vcek"}), IN_2025) == "signing-key-kind"
    assert code_of(data, vlek, replace(good, chip_ids={b"\x01" * 64}), IN_2025) == "chip-not-listed"
    ask = real.der("roots_milan_ask.pem")
    assert code_of(data, {**vlek, "asvk": ask}, good, IN_2025) == "wrong-certificate-kind"
    as_vcek = {"ark": vlek["ark"], "ask": ask, "vcek": vlek["vlek"]}
    assert code_of(data, as_vcek, good, IN_2025) == "missing-endorsement"


@pytest.mark.parametrize("root", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("intermediate", ["milan_ask.pem", "genoa_ask.pem", "turin_ask.pem", "milan_asvk.der",
                                          "genoa_asvk.der", "turin_asvk.der", "milan_ark.pem"])  # fmt: skip
@pytest.mark.parametrize(("report", "vcek", "family", "version"), GENUINE)
def test_only_the_right_chain_of_all_real_ones_carries_a_real_report(
    real: Vectors, root: str, intermediate: str, report: str, vcek: str, family: str, version: int
) -> None:
    """C-13: every root with every intermediate with every chip."""
    data = real.report(report)
    endorsements = {
        "ark": real.der(f"roots_{root.lower()}_ark.pem"),
        "ask": real.der(f"roots_{intermediate}"),
        "vcek": real.der(vcek),
    }
    code = code_of(data, endorsements, policy_for(data))
    if root == family and intermediate == f"{family.lower()}_ask.pem":
        assert code == "accepted"
    elif not intermediate.endswith("ask.pem"):
        assert code == "wrong-certificate-kind"
    else:
        assert code == "wrong-issuer"


def test_the_certificate_of_another_chip_does_not_carry_a_report(real: Vectors) -> None:
    """C-9: same family, same root, another chip."""
    data = real.report("milan_v3_report.bin")
    endorsements = real.endorsements("Milan", "milan_v2_vcek.der")
    assert code_of(data, endorsements, policy_for(data)) == "chip-id-mismatch"


def test_a_family_without_a_floor_is_not_accepted(real: Vectors) -> None:
    data = real.report("milan_v3_report.bin")
    policy = replace(policy_for(data), minimum_tcb={"Genoa": FLOORS["Genoa"]})
    assert code_of(data, real.endorsements("Milan", "milan_v3_vcek.pem"), policy) == "platform-not-accepted"


def test_real_revocation_lists_are_read_and_judged_at_the_time_that_is_given(real: Vectors) -> None:
    """A list counts from its first day to its last, for its own family."""
    data = real.report("milan_v2_vcek_report.bin")
    policy = replace(policy_for(data), revocation="required")
    chain = real.endorsements("Milan", "milan_v2_vcek.der")
    milan = {**chain, "crl": real.der("crl_milan.pem")}
    assert code_of(data, milan, policy, datetime(2025, 12, 1, tzinfo=UTC)) == "accepted"
    assert code_of(data, milan, policy, datetime(2025, 5, 1, tzinfo=UTC)) == "crl-not-valid-now"
    assert code_of(data, milan, policy, datetime(2026, 5, 13, tzinfo=UTC)) == "crl-not-valid-now"
    genoa = {**chain, "crl": real.der("crl_genoa.pem")}
    assert code_of(data, genoa, policy, datetime(2025, 6, 1, tzinfo=UTC)) == "crl-bad-signature"
    assert code_of(data, chain, policy, datetime(2025, 12, 1, tzinfo=UTC)) == "crl-missing"


def test_the_genoa_list_names_the_first_intermediate_and_not_the_current_one(real: Vectors) -> None:
    from blindbox_attestation.x509 import Certificate, RevocationList

    listed = RevocationList.parse(real.der("crl_genoa.pem"))
    root = Certificate.parse(real.der("roots_genoa_ark.pem"), "ark")
    current = Certificate.parse(real.der("roots_genoa_ask.pem"), "ask")
    assert listed.signed.is_signed_by(root.public_key)
    assert listed.revoked == {0x20001}
    assert current.serial == 0x20002
    assert (listed.this_update, listed.next_update) == (
        datetime(2024, 10, 23, 4, 36, 24, tzinfo=UTC),
        datetime(2025, 11, 3, 1, 0, 0, tzinfo=UTC),
    )
