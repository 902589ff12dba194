"""Whether a TDX quote is genuine: a fake Intel signs every lie well, but for the one link under test."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA384

from blindbox_attestation import tdx
from blindbox_attestation.errors import (
    AttestationError,
    MalformedEvidence,
    PolicyRefused,
    RevokedEvidence,
    UntrustedEvidence,
)
from blindbox_attestation.roots import INTEL_ROOTS
from blindbox_attestation.tdx import dcap
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.intel import (
    CPU_SVN,
    EVALUATION,
    PCE_SVN,
    TEE_TCB_SVN,
    FakeIntel,
    entry,
    p256_key,
    pem,
    raw_point,
    tlv,
    zulu,
)

INTEL = FakeIntel()
OTHER = FakeIntel("Another Intel Corporation")
SECOND = timedelta(seconds=1)


def appraise(quote: bytes | None = None, collateral: bytes | None = None, **wishes: Any) -> tdx.TdxClaims:
    now = wishes.pop("now", NOON)
    endorsements = INTEL.endorsements() if collateral is None else {"collateral": collateral}
    policy = INTEL.tdx_policy(**wishes)
    return tdx.appraise(INTEL.quote() if quote is None else quote, endorsements, policy, now=now)


def refused(
    quote: bytes | None = None, collateral: bytes | None = None, **wishes: Any
) -> tuple[type[AttestationError], str, int]:
    """Type, code and step of the refusal."""
    with pytest.raises(AttestationError) as caught:
        appraise(quote, collateral, **wishes)
    error = caught.value
    numbers = [step.number for step in error.steps]
    assert numbers == sorted(set(numbers))
    assert {step.outcome for step in error.steps[:-1]} <= {"passed"}
    assert error.steps[-1].outcome == "failed"
    return type(error), error.code, numbers[-1]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("authority", ["platform", "processor"])
def test_an_honest_machine_is_accepted(version: int, authority: str) -> None:
    intel = FakeIntel(authority=authority)
    walk = Walk()
    claims = tdx.appraise(
        intel.quote(version=version), intel.endorsements(), intel.tdx_policy(), now=NOON, walk=walk
    )
    assert (claims.status, claims.advisories, claims.tcb_evaluation) == ("UpToDate", frozenset(), EVALUATION)
    assert (claims.fmspc, claims.ppid) == (intel.fmspc, intel.ppid)
    assert claims.platform_instance_id == (intel.instance if authority == "platform" else None)
    assert [step.number for step in walk.steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]


def test_intels_root_is_pinned() -> None:
    """C-13."""
    assert [one.hex()[:16] for one in INTEL_ROOTS] == ["44a0196b2b99f889"]
    assert refused(roots=INTEL_ROOTS) == (UntrustedEvidence, "unpinned-root", 4)


def test_a_whole_other_vendor_is_refused() -> None:
    """C-13: every signature is right, and the root is not ours."""
    assert refused(OTHER.quote(), OTHER.collateral()) == (UntrustedEvidence, "unpinned-root", 4)


def test_our_root_cannot_be_put_above_another_vendors_chain() -> None:
    """C-13: the pinned certificate itself, and below it what it has not signed."""
    chain = pem(OTHER.standard("pck"), OTHER.standard("platform"), INTEL.standard("root"))
    assert refused(OTHER.quote(chain=chain)) == (UntrustedEvidence, "wrong-issuer", 4)


def test_the_collateral_cannot_lead_to_another_root() -> None:
    for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        who = "platform" if name.startswith("pck") else "tcb"
        foreign = pem(OTHER.standard(who), OTHER.standard("root"))
        assert refused(None, INTEL.collateral(**{name: foreign})) == (UntrustedEvidence, "unpinned-root", 4)


def test_without_collateral_nothing_is_believed() -> None:
    """C-23."""
    walk = Walk()
    with pytest.raises(UntrustedEvidence) as caught:
        tdx.appraise(INTEL.quote(), {}, INTEL.tdx_policy(), now=NOON, walk=walk)
    assert caught.value.code == "missing-endorsement"


# --- step 4 ---


def chain(pck: bytes | None = None, authority: bytes | None = None, root: bytes | None = None) -> str:
    return pem(
        pck or INTEL.standard("pck"), authority or INTEL.standard("platform"), root or INTEL.standard("root")
    )


P384 = ec.derive_private_key(7, ec.SECP384R1()).public_key()
RSA = rsa.generate_private_key(65537, 2048).public_key()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (chain(INTEL.certificate("pck", signer="root")), "bad-certificate-signature"),
        (chain(INTEL.certificate("pck", signer="pck")), "bad-certificate-signature"),
        (chain(INTEL.certificate("pck", issuer="Intel SGX Root CA", signer="root")), "wrong-issuer"),
        (chain(INTEL.certificate("pck", issuer="Intel SGX PCK Processor CA")), "wrong-issuer"),
        (chain(authority=INTEL.standard("processor")), "wrong-issuer"),
        (chain(authority=INTEL.certificate("platform", signer="platform")), "bad-certificate-signature"),
        (chain(authority=INTEL.certificate("platform", cert_sign=False)), "wrong-issuer"),
        (chain(authority=INTEL.certificate("platform", authority=False)), "wrong-certificate-kind"),
        (chain(authority=INTEL.standard("tcb")), "wrong-certificate-kind"),
        (
            chain(authority=INTEL.certificate("platform", common_name="Intel SGX CA")),
            "wrong-certificate-kind",
        ),
        (chain(INTEL.standard("tcb")), "wrong-certificate-kind"),
        (chain(INTEL.standard("platform")), "wrong-certificate-kind"),
        (chain(INTEL.certificate("pck", authority=True)), "wrong-certificate-kind"),
        (chain(INTEL.certificate("pck", common_name="Intel SGX TCB Signing")), "wrong-certificate-kind"),
        (chain(INTEL.certificate("pck", public_key=P384)), "wrong-certificate-kind"),
        (chain(INTEL.certificate("pck", public_key=RSA)), "wrong-certificate-kind"),
        (chain(authority=INTEL.certificate("platform", public_key=P384)), "wrong-certificate-kind"),
        (chain(INTEL.certificate("pck", hash_algorithm=SHA384())), "bad-certificate-signature"),
        (pem(INTEL.standard("root")), "wrong-certificate-kind"),
        (pem(INTEL.standard("pck"), INTEL.standard("root")), "wrong-certificate-kind"),
    ],
)
def test_a_chain_that_is_not_intels_three_links_is_refused(sent: str, code: str) -> None:
    """C-13, C-14: crossed authorities, wrong kinds, wrong curves and hashes."""
    assert refused(INTEL.quote(chain=sent)) == (UntrustedEvidence, code, 4)


def test_the_order_of_the_certificates_is_fixed() -> None:
    root, authority, pck = (INTEL.standard(who) for who in ("root", "platform", "pck"))
    assert refused(INTEL.quote(chain=pem(root, authority, pck)))[1] == "unpinned-root"
    assert refused(INTEL.quote(chain=pem(authority, pck, root)))[1] == "wrong-certificate-kind"
    assert refused(INTEL.quote(chain=pem(pck, authority, authority, root)))[1] == "malformed-certificate"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "x" + text,
        lambda text: text + "x",
        lambda text: text.replace(
            "-----END CERTIFICATE-----\n-----BEGIN", "-----END CERTIFICATE-----\n\n-----BEGIN", 1
        ),
        lambda text: text[:60] + "\n" + text[60:],
        lambda text: text.replace("MII", "MI\u00ef", 1),
        lambda text: text[:100] + "=" + text[101:],
    ],
)
def test_certificates_in_another_spelling_are_refused(change: Any) -> None:
    """C-17."""
    assert refused(INTEL.quote(chain=change(INTEL.chain))) == (MalformedEvidence, "malformed-certificate", 4)


def test_a_zero_byte_at_the_end_of_the_certificates_is_genuine() -> None:
    assert appraise(INTEL.quote(chain=INTEL.chain + "\x00")).status == "UpToDate"


@pytest.mark.parametrize("who", ["root", "platform", "pck", "tcb"])
def test_a_certificate_counts_from_its_first_second_to_its_last(who: str) -> None:
    """C-11, C-24: one second on either side of both ends."""
    start, end = NOON - timedelta(hours=1), NOON + timedelta(hours=1)
    changed = INTEL.certificate(who, not_before=start, not_after=end)
    wishes: dict[str, Any] = {}
    quote, collateral = INTEL.quote(), INTEL.collateral()
    if who == "tcb":
        signers = pem(changed, INTEL.standard("root"))
        collateral = INTEL.collateral(tcb_info_issuer_chain=signers)
    elif who == "root":
        intel = FakeIntel()
        quote = INTEL.quote(chain=chain(root=changed))
        signers, authority = pem(INTEL.standard("tcb"), changed), pem(INTEL.standard("platform"), changed)
        collateral = intel.collateral(
            tcb_info_issuer_chain=signers, qe_identity_issuer_chain=signers, pck_crl_issuer_chain=authority
        )
        wishes["roots"] = {hashlib.sha256(changed).digest(): "ours"}
    else:
        quote = INTEL.quote(chain=chain(**{"pck": changed} if who == "pck" else {"authority": changed}))
    for moment in (start, end):
        assert appraise(quote, collateral, now=moment, **wishes).status == "UpToDate"
    for moment in (start - SECOND, end + SECOND):
        assert refused(quote, collateral, now=moment, **wishes) == (
            UntrustedEvidence,
            "certificate-not-valid-now",
            4,
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"fmspc": None},
        {"ppid": None},
        {"pce_id": None},
        {"fmspc": tlv(0x04, bytes(5))},
        {"ppid": tlv(0x04, bytes(17))},
        {"instance": tlv(0x04, bytes(15))},
        {"fmspc": tlv(0x02, b"\x01")},
    ],
)
def test_a_machine_whose_extension_is_not_whole_is_refused(changes: dict[str, bytes | None]) -> None:
    extension = INTEL.sgx_extension(**changes)
    quote = INTEL.quote(chain=chain(INTEL.certificate("pck", extension=extension)))
    assert refused(quote) == (MalformedEvidence, "malformed-extension", 4)


def test_a_machine_without_an_extension_or_with_a_doubled_field_is_refused() -> None:
    for extension in (
        b"",
        b"\x30\x00",
        INTEL.sgx_extension() + b"\x00",
        tlv(0x30, entry("4", tlv(0x04, bytes(6))) * 2),
    ):
        quote = INTEL.quote(chain=chain(INTEL.certificate("pck", extension=extension)))
        assert refused(quote) == (MalformedEvidence, "malformed-extension", 4)


# --- step 5 ---


@pytest.mark.parametrize(
    ("name", "who", "serial"),
    [
        ("pck_crl", "platform", 0x1004),  # the machine
        ("root_ca_crl", "root", 0x1002),  # the authority above it
        ("root_ca_crl", "root", 0x1005),  # who signs TCB info
        ("root_ca_crl", "root", 0x1001),  # the root itself
    ],
)
def test_a_revoked_certificate_is_refused(name: str, who: str, serial: int) -> None:
    """C-10."""
    collateral = INTEL.collateral(**{name: INTEL.crl(who, revoked=[1, serial])})
    assert refused(None, collateral) == (RevokedEvidence, "revoked", 5)


def test_a_list_that_revokes_others_is_accepted() -> None:
    collateral = INTEL.collateral(
        pck_crl=INTEL.crl("platform", revoked=[5, 6]), root_ca_crl=INTEL.crl("root", revoked=[7])
    )
    assert appraise(None, collateral).status == "UpToDate"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pck_crl", INTEL.crl("platform", signer="root")),
        ("pck_crl", INTEL.crl("processor")),
        ("pck_crl", INTEL.crl("platform", issuer="Intel SGX PCK Processor CA")),
        ("pck_crl", INTEL.crl("root")),
        ("root_ca_crl", INTEL.crl("root", signer="platform")),
        ("root_ca_crl", INTEL.crl("platform")),
        ("root_ca_crl", OTHER.crl("root")),
        ("pck_crl", "00"),
        ("root_ca_crl", "30"),
        ("root_ca_crl", INTEL.crl("root") + "00"),
    ],
)
def test_a_list_that_is_not_the_issuers_is_refused(name: str, value: str) -> None:
    """C-10: the processor authority's list says nothing about a platform's machine."""
    assert refused(None, INTEL.collateral(**{name: value})) == (RevokedEvidence, "crl-bad-signature", 5)


@pytest.mark.parametrize(("name", "who"), [("root_ca_crl", "root"), ("pck_crl", "platform")])
def test_a_list_counts_from_its_first_second_to_its_last(name: str, who: str) -> None:
    """C-10, C-24: an old list is a failure, not a pass."""
    start, end = NOON - timedelta(hours=1), NOON + timedelta(hours=1)
    collateral = INTEL.collateral(**{name: INTEL.crl(who, this_update=start, next_update=end)})
    for moment in (start, end - SECOND):
        assert appraise(None, collateral, now=moment).status == "UpToDate"
    for moment in (start - SECOND, end + SECOND):
        assert refused(None, collateral, now=moment) == (RevokedEvidence, "crl-not-valid-now", 5)


# --- step 6 ---

MODULE = json.loads(INTEL.tcb_info())["tdxModuleIdentities"][0]
LEVEL_7 = {"tcb": {"isvsvn": 7}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": "UpToDate"}


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_a_statement_that_intel_did_not_sign_is_refused(name: str) -> None:
    """CVE-2026-22696: with an identity of one's own, one's own quoting enclave vouches for anything."""
    text = INTEL.tcb_info() if name == "tcb_info" else INTEL.qe_identity()
    for signature in (
        INTEL.sign(text, signer="pck"),
        INTEL.sign(text, signer="root"),
        OTHER.sign(text),
        INTEL.sign(text + " "),
        "00" * 64,
        "ff" * 64,
    ):
        collateral = INTEL.collateral(**{name: text, f"{name}_signature": signature})
        assert refused(None, collateral) == (UntrustedEvidence, "collateral-bad-signature", 6)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_the_signature_is_over_the_exact_bytes(name: str) -> None:
    """The same JSON with a blank in it is another text."""
    text = INTEL.tcb_info() if name == "tcb_info" else INTEL.qe_identity()
    told = json.loads(INTEL.collateral(**{name: text}))
    told[name] = json.dumps(json.loads(text))
    assert refused(None, json.dumps(told).encode()) == (UntrustedEvidence, "collateral-bad-signature", 6)


def test_only_the_tcb_signing_certificate_signs_collateral() -> None:
    """C-13: the machine's own certificate is one of Intel's too."""
    text = INTEL.tcb_info(status="UpToDate")
    own = pem(INTEL.standard("pck"), INTEL.standard("root"))
    collateral = INTEL.collateral(
        tcb_info=text, tcb_info_signature=INTEL.sign(text, signer="pck"), tcb_info_issuer_chain=own
    )
    assert refused(None, collateral) == (UntrustedEvidence, "wrong-certificate-kind", 4)
    assert refused(None, INTEL.collateral(qe_identity_issuer_chain=INTEL.chain))[1:] == (
        "wrong-certificate-kind",
        4,
    )


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_a_statement_counts_from_its_first_second_to_its_last(name: str) -> None:
    """C-11, C-24."""
    start, end = NOON - timedelta(hours=1), NOON + timedelta(hours=1)
    make = INTEL.tcb_info if name == "tcb_info" else INTEL.qe_identity
    collateral = INTEL.collateral(**{name: make(issueDate=zulu(start), nextUpdate=zulu(end))})
    for moment in (start, end):
        assert appraise(None, collateral, now=moment).status == "UpToDate"
    for moment in (start - SECOND, end + SECOND):
        assert refused(None, collateral, now=moment) == (UntrustedEvidence, "collateral-not-valid-now", 6)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fmspc": "00806F050000"}, "collateral-mismatch"),
        ({"pceId": "0001"}, "collateral-mismatch"),
        ({"id": "SGX"}, "collateral-mismatch"),
        ({"version": 2}, "collateral-mismatch"),
        ({"version": 4}, "collateral-mismatch"),
        ({"fmspc": 7}, "malformed-collateral"),
        ({"fmspc": "B0C06F0000"}, "malformed-collateral"),
        ({"pceId": None}, "malformed-collateral"),
        ({"id": None}, "malformed-collateral"),
        ({"version": "3"}, "malformed-collateral"),
        ({"tcbEvaluationDataNumber": -1}, "malformed-collateral"),
        ({"tcbEvaluationDataNumber": True}, "malformed-collateral"),
        ({"issueDate": "2026-06-01"}, "malformed-collateral"),
        ({"nextUpdate": "2026-7-01T00:00:00Z"}, "malformed-collateral"),
        ({"nextUpdate": "2026-02-30T00:00:00Z"}, "malformed-collateral"),
        ({"nextUpdate": 5}, "malformed-collateral"),
        ({"levels": [INTEL.level(sgx=CPU_SVN[:15])]}, "malformed-collateral"),
        ({"levels": [INTEL.level(tdx=TEE_TCB_SVN[:15])]}, "malformed-collateral"),
        ({"levels": [INTEL.level(sgx=[])]}, "malformed-collateral"),
        ({"levels": [{"tcb": 1}]}, "malformed-collateral"),
        ({"levels": [INTEL.level(sgx=(4, *CPU_SVN[1:]))]}, "tcb-level-unknown"),
        ({"levels": [INTEL.level(sgx=(*CPU_SVN[:15], 1))]}, "tcb-level-unknown"),
        ({"levels": [INTEL.level(tdx=(*TEE_TCB_SVN[:2], 4, *TEE_TCB_SVN[3:]))]}, "tcb-level-unknown"),
        ({"levels": [INTEL.level(pce=PCE_SVN + 1)]}, "tcb-level-unknown"),
        ({"tdxModuleIdentities": [{**MODULE, "id": "TDX_03"}]}, "tcb-level-unknown"),
        ({"tdxModuleIdentities": [{**MODULE, "tcbLevels": [LEVEL_7]}]}, "tcb-level-unknown"),
        ({"tdxModuleIdentities": []}, "tcb-level-unknown"),
        ({"tdxModule": None}, "malformed-collateral"),
    ],
)
def test_tcb_info_about_another_machine_or_in_another_form_is_refused(
    changes: dict[str, Any], code: str
) -> None:
    """C-13: all well signed. Short component lists too: they were once compared only as far as they went."""
    kind = MalformedEvidence if code == "malformed-collateral" else UntrustedEvidence
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(**changes))
    assert refused(None, collateral) == (kind, code, 6)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": "QE"}, "qe-identity-mismatch"),
        ({"version": 1}, "qe-identity-mismatch"),
        ({"mrsigner": "00" * 32}, "qe-identity-mismatch"),
        ({"isvprodid": 1}, "qe-identity-mismatch"),
        ({"miscselect": "00000001"}, "qe-identity-mismatch"),
        ({"attributes": "13" + "00" * 15}, "qe-identity-mismatch"),
        ({"tcbLevels": []}, "tcb-level-unknown"),
        ({"tcbLevels": [LEVEL_7]}, "tcb-level-unknown"),
        ({"mrsigner": "00"}, "malformed-collateral"),
        ({"tcbEvaluationDataNumber": None}, "malformed-collateral"),
    ],
)
def test_an_identity_that_is_not_this_quoting_enclaves_is_refused(changes: dict[str, Any], code: str) -> None:
    """C-13, C-16: well signed; an SGX quoting enclave, another signer, another product."""
    kind = MalformedEvidence if code == "malformed-collateral" else UntrustedEvidence
    collateral = INTEL.collateral(qe_identity=INTEL.qe_identity(**changes))
    assert refused(None, collateral) == (kind, code, 6)


@pytest.mark.parametrize(
    ("qe", "code"),
    [
        ({"mrsigner": bytes(32)}, "qe-identity-mismatch"),
        ({"isv_prod_id": 1}, "qe-identity-mismatch"),
        ({"misc_select": b"\x01" + bytes(3)}, "qe-identity-mismatch"),
        ({"attributes": b"\x13" + bytes(15)}, "qe-identity-mismatch"),  # debug
        ({"attributes": b"\x31" + bytes(15)}, "qe-identity-mismatch"),
        ({"isv_svn": 3}, "tcb-level-unknown"),
    ],
)
def test_a_quoting_enclave_that_is_not_intels_is_refused(qe: dict[str, Any], code: str) -> None:
    """C-16: its report is signed by the machine's true key, as any enclave's on that machine could be."""
    assert refused(INTEL.quote(qe=qe)) == (UntrustedEvidence, code, 6)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"id": "TDX", "id": "TDX"}', '{"a": 1.5}', '{"a":' + "[" * 99]
)
def test_a_statement_that_is_no_strict_json_is_refused_although_well_signed(name: str, text: str) -> None:
    """C-17."""
    collateral = INTEL.collateral(**{name: text})
    assert refused(None, collateral) == (MalformedEvidence, "malformed-collateral", 6)


# --- step 7: each nested signature alone ---


OWN = p256_key("somebody's own")


def test_a_quoting_enclave_that_the_machine_did_not_sign_for_is_refused() -> None:
    """C-16: everything else is right."""
    for signer in (OWN, INTEL.key("attestation"), INTEL.key("platform")):
        assert refused(INTEL.quote(qe_signer=signer)) == (UntrustedEvidence, "bad-qe-signature", 7)


def test_an_attestation_key_that_the_quoting_enclave_does_not_vouch_for_is_refused() -> None:
    """C-16: the quote is signed with a key of one's own, and the genuine report is of another key."""
    genuine = hashlib.sha256(raw_point(INTEL.key("attestation")) + bytes(range(32))).digest() + bytes(32)
    quote = INTEL.quote(signer=OWN, attestation_key=raw_point(OWN), vouched=genuine)
    assert refused(quote) == (UntrustedEvidence, "wrong-attestation-key", 7)


def test_all_64_bytes_of_what_the_quoting_enclave_vouches_for_are_compared() -> None:
    """C-5: `dcap-qvl` compares the first half."""
    point = raw_point(INTEL.key("attestation"))
    vouched = hashlib.sha256(point + bytes(range(32))).digest() + bytes(31) + b"\x01"
    assert refused(INTEL.quote(vouched=vouched)) == (UntrustedEvidence, "wrong-attestation-key", 7)


def test_a_quote_that_the_attestation_key_did_not_sign_is_refused() -> None:
    """C-16."""
    for signer in (OWN, INTEL.key("pck")):
        assert refused(INTEL.quote(signer=signer)) == (UntrustedEvidence, "bad-signature", 7)


def test_an_attestation_key_that_is_no_point_is_refused() -> None:
    """C-14."""
    assert refused(INTEL.quote(attestation_key=bytes(64))) == (UntrustedEvidence, "bad-signature", 7)


# --- what `dcap-qvl` refuses although it is genuine ---


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"td_attributes": 1}, 10),
        ({"td_attributes": 0}, 10),
        ({"version": 5, "mrservicetd": b"\x01" * 48}, 10),
        ({"mrsignerseam": b"\x01" * 48}, 11),
        ({"seam_attributes": 1}, 11),
    ],
)
def test_a_lie_about_the_guest_does_not_hide_one_about_the_signature(
    changes: dict[str, Any], step: int
) -> None:
    """Only what is signed is looked at that late: without a signature it is already refused in step 7."""
    assert refused(INTEL.quote(**changes))[2] == step
    for lie, code in (({"signer": OWN}, "bad-signature"), ({"qe_signer": OWN}, "bad-qe-signature")):
        assert refused(INTEL.quote(**changes, **lie))[1:] == (code, 7)


def test_a_revoked_level_is_never_accepted() -> None:
    """C-12: no policy can name it."""
    for collateral in (
        INTEL.collateral(tcb_info=INTEL.tcb_info(status="Revoked")),
        INTEL.collateral(tcb_info=INTEL.tcb_info(module_status="Revoked")),
        INTEL.collateral(qe_identity=INTEL.qe_identity(status="Revoked")),
    ):
        assert refused(None, collateral) == (PolicyRefused, "tcb-status", 9)


def test_a_no_that_is_not_in_the_table_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the package may find other words."""
    monkeypatch.setattr(dcap, "_REFUSALS", ())
    assert refused(INTEL.quote(signer=OWN)) == (UntrustedEvidence, "dcap-refused", 7)
    assert appraise().status == "UpToDate"


def test_a_panic_in_the_package_is_a_no_and_an_interruption_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicException(BaseException):
        """As PyO3 makes it of an assertion in Rust."""

    def fails(error: BaseException) -> None:
        def verify(*_: object) -> None:
            raise error

        monkeypatch.setattr("dcap_qvl.verify_with_root_ca", verify)

    fails(PanicException("index out of bounds"))
    assert refused() == (UntrustedEvidence, "dcap-refused", 7)
    fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        appraise()


def test_what_the_package_says_is_told_in_one_line_that_no_terminal_obeys() -> None:
    text = INTEL.tcb_info(status="\x1b[2J\n" + "x" * 5000)
    with pytest.raises(MalformedEvidence) as caught:
        appraise(None, INTEL.collateral(tcb_info=text))
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_yes_about_other_values_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers of one format must not disagree about what was signed."""
    read = dcap._read
    monkeypatch.setattr(dcap, "_read", lambda report, body: read(report, body)[:-2] + "00")
    assert refused(INTEL.quote(b"\x01" * 64)) == (UntrustedEvidence, "dcap-refused", 7)
    monkeypatch.setattr(dcap, "_read", lambda report, body: read({}, body))
    assert refused() == (UntrustedEvidence, "dcap-refused", 7)
