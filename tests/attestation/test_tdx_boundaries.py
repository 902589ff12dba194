"""
What our own code refuses of TDX evidence, step by step, without asking `dcap-qvl`.

The two agree on most lies, so that a whole judgement does not tell which of them refused. Here each of our
checks stands alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from blindbox_attestation import tdx
from blindbox_attestation.errors import AttestationError, DebugAllowed, InvalidPolicy, MalformedEvidence
from blindbox_attestation.roots import INTEL_ROOTS
from blindbox_attestation.tdx import attributes, chain
from blindbox_attestation.tdx.collateral import Collateral, QeIdentity, TcbInfo
from blindbox_attestation.tdx.policy import TdxPolicy
from blindbox_attestation.tdx.quote import Quote
from blindbox_attestation.walk import Finding
from tests.kit import NOON
from tests.kit.intel import EVALUATION, MRTD, PCE_ID, FakeIntel, entry, p256_key, pem, tlv, zulu
from tests.kit.names import shown
from tests.kit.verdict import verdict

INTEL = FakeIntel()
OTHER = FakeIntel("Another Intel Corporation")
SECOND = timedelta(seconds=1)
P384 = ec.generate_private_key(ec.SECP384R1()).public_key()
RSA = rsa.generate_private_key(65537, 2048).public_key()


def traced(quote_chain: str | None = None, now: datetime = NOON, **collateral: str) -> chain.Chains:
    """Steps 4 to 6, as far as they are ours; whatever root is in the quote counts as pinned."""
    quote = Quote.parse(INTEL.quote(chain=quote_chain))
    told = Collateral.parse(INTEL.collateral(**collateral))
    root = chain.pinned_root(quote, Everything(), Finding())
    chains = chain.trace(quote, told, root, now=now, finding=Finding())
    chain.check_revocation(chains, told, now=now, finding=Finding())
    chain.check_collateral(chains, told, now=now, finding=Finding())
    return chains


class Everything(frozenset[bytes]):
    """A set of roots that has every one."""

    def __contains__(self, one: object) -> bool:
        return True


def code(quote_chain: str | None = None, now: datetime = NOON, **collateral: str) -> str:
    return verdict(lambda: traced(quote_chain, now, **collateral))


def test_every_certificate_stands_in_its_place() -> None:
    chains = traced()
    assert str(chains) == "Intel SGX Root CA → Intel SGX PCK Platform CA → Intel SGX PCK Certificate"
    assert [one.common_name for one in (chains.tcb_signer, chains.identity_signer)] == [chain.TCB_SIGNING] * 2
    assert chains.listing_authority.common_name == "Intel SGX PCK Platform CA"
    assert (chains.machine.fmspc, chains.machine.ppid) == (INTEL.fmspc, INTEL.ppid)
    assert len(chains.distinct) == 4


def in_quote(who: str, **changes: Any) -> str:
    names = ("pck", "platform", "root")
    return pem(*(INTEL.certificate(one, **changes) if one == who else INTEL.standard(one) for one in names))


IN_QUOTE: list[tuple[str, dict[str, Any], str]] = [
    ("pck", {"common_name": "Intel SGX PCK"}, "wrong-certificate-kind"),
    ("pck", {"authority": True}, "wrong-certificate-kind"),
    ("pck", {"public_key": P384}, "wrong-certificate-kind"),
    ("pck", {"public_key": RSA}, "wrong-certificate-kind"),
    ("pck", {"issuer": "Intel SGX PCK Processor CA"}, "wrong-issuer"),
    ("pck", {"signer": "root"}, "bad-certificate-signature"),
    ("pck", {"extension": b""}, "malformed-extension"),
    ("platform", {"common_name": "Intel SGX PCK"}, "wrong-certificate-kind"),
    ("platform", {"authority": False}, "wrong-certificate-kind"),
    ("platform", {"public_key": P384}, "wrong-certificate-kind"),
    ("platform", {"issuer": "Intel SGX TCB Signing"}, "wrong-issuer"),
    ("platform", {"signer": "tcb"}, "bad-certificate-signature"),
    ("platform", {"cert_sign": False}, "wrong-issuer"),
    ("platform", {"crl_sign": False}, "crl-bad-signature"),
    ("root", {"common_name": "Another Root", "issuer": "Another Root"}, "wrong-certificate-kind"),
    ("root", {"authority": False}, "wrong-certificate-kind"),
    ("root", {"issuer": "Another Root"}, "wrong-issuer"),
    ("root", {"signer": "tcb"}, "bad-certificate-signature"),
    ("root", {"cert_sign": False}, "wrong-issuer"),
]


@pytest.mark.parametrize(
    ("who", "changes", "wanted"), IN_QUOTE, ids=[f"{w}-{shown(c)}" for w, c, _ in IN_QUOTE]
)
def test_each_certificate_of_the_quote_is_of_its_kind_and_signed_by_the_next(
    who: str, changes: dict[str, Any], wanted: str
) -> None:
    """C-13: by our own reading."""
    assert code(in_quote(who, **changes)) == wanted


@pytest.mark.parametrize("count", [1, 2])
def test_a_chain_that_is_too_short_or_has_none_is_refused(count: int) -> None:
    ders = [INTEL.standard(one) for one in ("pck", "platform", "root")]
    assert code(pem(*ders[-count:])) == "wrong-certificate-kind"
    assert code(pem(*ders, ders[-1])) == "malformed-certificate"
    assert code("") == "malformed-certificate"


def test_a_chain_in_another_spelling_of_pem_is_refused() -> None:
    """C-16: what is under no signature has one form."""
    text = INTEL.chain
    for wrong in (
        "x" + text,
        text.replace("-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----\n\n", 1),
        text.replace("\n", "\r\n"),
        text.replace("MII", "MI\nI", 1),
        text.replace("MII", "=MII", 1),
        text + "x",
        "\N{NO-BREAK SPACE}" + text,
    ):
        assert code(wrong) == "malformed-certificate"
    assert code(text.rstrip("\n") + "\n\x00") == "accepted"


SIGNERS = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")


@pytest.mark.parametrize("what", SIGNERS)
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"common_name": "Intel SGX PCK Platform CA"}, "wrong-certificate-kind"),
        ({"authority": True}, "wrong-certificate-kind"),
        ({"public_key": P384}, "wrong-certificate-kind"),
        ({"issuer": "Another Root"}, "wrong-issuer"),
        ({"signer": "platform"}, "bad-certificate-signature"),
    ],
)
def test_each_signer_of_the_collateral_is_of_its_kind_and_signed_by_the_root(
    what: str, changes: dict[str, Any], wanted: str
) -> None:
    """C-13."""
    signers = pem(INTEL.certificate("tcb", **changes), INTEL.standard("root"))
    assert code(**{what: signers}) == wanted


def test_the_collateral_s_own_roots_are_roots_and_the_same_as_the_quote_s() -> None:
    """C-13."""
    named = INTEL.certificate("root", common_name="Another Root", issuer="Another Root")
    for what in (*SIGNERS, "pck_crl_issuer_chain"):
        first = INTEL.standard("platform" if what.startswith("pck") else "tcb")
        assert code(**{what: pem(first, named)}) == "wrong-certificate-kind"
        assert (
            code(**{what: pem(first, INTEL.certificate("root", signer="tcb"))}) == "bad-certificate-signature"
        )
        assert code(**{what: pem(first, INTEL.certificate("root", serial=9))}) == "unpinned-root"
        assert code(**{what: pem(first)}) == "wrong-certificate-kind"
        assert code(**{what: pem(first, first, INTEL.standard("root"))}) == "wrong-certificate-kind"


LATER = NOON + timedelta(seconds=1000)


@pytest.mark.parametrize("who", ["pck", "platform", "tcb"])
def test_a_certificate_counts_from_its_first_second_to_its_last(who: str) -> None:
    """C-24: both ends belong to it."""
    changed = INTEL.certificate(who, not_before=NOON, not_after=LATER)
    if who == "tcb":
        changes = dict.fromkeys(SIGNERS, pem(changed, INTEL.standard("root")))
        judge: Callable[[datetime], str] = lambda now: code(now=now, **changes)  # noqa: E731
    else:
        text = in_quote(who, not_before=NOON, not_after=LATER)
        judge = lambda now: code(text, now)  # noqa: E731
    assert [judge(now) for now in (NOON, LATER)] == ["accepted"] * 2
    for now in (NOON - SECOND, LATER + SECOND):
        assert judge(now) == "certificate-not-valid-now"


@pytest.mark.parametrize(("what", "who"), [("root_ca_crl", "root"), ("pck_crl", "platform")])
def test_a_revocation_list_is_its_issuer_s_and_current(what: str, who: str) -> None:
    """C-9."""
    other = {"root": "platform", "platform": "root"}[who]
    assert code(**{what: INTEL.crl(who, issuer="Somebody")}) == "crl-bad-signature"
    assert code(**{what: INTEL.crl(who, signer=other)}) == "crl-bad-signature"
    assert code(**{what: INTEL.crl(other)}) == "crl-bad-signature"
    assert code(**{what: "00"}) == "crl-bad-signature"
    current = INTEL.crl(who, this_update=NOON, next_update=LATER)
    assert [code(now=now, **{what: current}) for now in (NOON, LATER)] == ["accepted"] * 2
    for now in (NOON - SECOND, LATER + SECOND):
        assert code(now=now, **{what: current}) == "crl-not-valid-now"


def test_each_list_speaks_about_what_its_issuer_has_issued() -> None:
    """C-9: every certificate that is relied on, by the list of the one that made it."""
    chains = traced()
    for one in chains.distinct:
        by_root = code(root_ca_crl=INTEL.crl("root", revoked=[one.serial]))
        by_authority = code(pck_crl=INTEL.crl("platform", revoked=[one.serial]))
        if one is chains.pck:
            assert (by_root, by_authority) == ("accepted", "revoked")
        else:
            assert (by_root, by_authority) == ("revoked", "accepted")


def test_a_refusal_names_the_certificates_that_are_gone() -> None:
    with pytest.raises(AttestationError, match=r"^'?Intel SGX PCK Platform CA'? with serial .* revoked"):
        traced(root_ca_crl=INTEL.crl("root", revoked=[traced().authority.serial]))
    finding = Finding()
    told = Collateral.parse(INTEL.collateral())
    chain.check_revocation(traced(), told, now=NOON, finding=finding)
    assert [check.found for check in finding.checks if check.name.startswith("nothing in")] == [
        "Intel SGX Root CA, Intel SGX PCK Platform CA, Intel SGX TCB Signing: not listed",
        "Intel SGX PCK Certificate: not listed",
    ]


# --- what the PCK certificate says ---


@pytest.mark.parametrize(
    "extension",
    [
        INTEL.sgx_extension(ppid=None),
        INTEL.sgx_extension(pce_id=None),
        INTEL.sgx_extension(fmspc=None),
        INTEL.sgx_extension(fmspc=tlv(0x04, bytes(5))),
        INTEL.sgx_extension(ppid=tlv(0x04, bytes(17))),
        INTEL.sgx_extension(instance=tlv(0x04, bytes(15))),
        INTEL.sgx_extension(fmspc=tlv(0x04, INTEL.fmspc) + b"\x05\x00"),
        INTEL.sgx_extension(fmspc=tlv(0x02, INTEL.fmspc)),
        INTEL.sgx_extension() + b"\x00",
        tlv(0x30, INTEL.sgx_extension()[4:] + entry("4", tlv(0x04, INTEL.fmspc))),
        b"\x30\x03",
        b"\x04\x00",
    ],
)
def test_a_machine_is_told_once_in_full_and_with_nothing_after_it(extension: bytes) -> None:
    """C-13: two kinds of machine in one certificate would be a choice for the host."""
    assert code(in_quote("pck", extension=extension)) == "malformed-extension"


# --- what Intel states ---


def stated(what: str, text: str) -> dict[str, str]:
    return {what: text, f"{what}_signature": INTEL.sign(text)}


@pytest.mark.parametrize("what", ["tcb_info", "qe_identity"])
def test_a_statement_is_signed_by_its_signer_over_its_exact_bytes(what: str) -> None:
    text = json.loads(INTEL.collateral())[what]
    assert code(**stated(what, text)) == "accepted"
    assert code(**{what: text, f"{what}_signature": INTEL.sign(text, "pck")}) == "collateral-bad-signature"
    assert code(**{what: text.replace(",", ", ", 1), f"{what}_signature": INTEL.sign(text)}) == (
        "collateral-bad-signature"
    )
    assert code(**{f"{what}_signature": "00" * 64}) == "collateral-bad-signature"


def test_a_signature_that_is_not_is_told_as_no() -> None:
    told = Collateral.parse(INTEL.collateral(tcb_info_signature="11" * 64))
    finding = Finding()
    with pytest.raises(AttestationError):
        chain.check_collateral(traced(), told, now=NOON, finding=finding)
    assert (finding.checks[-1].found, finding.checks[-1].outcome) == ("no", "failed")


@pytest.mark.parametrize("key", [P384, RSA, p256_key("nobody").public_key()])
def test_only_the_right_key_on_the_right_curve_has_signed_anything(key: Any) -> None:
    from cryptography.exceptions import InvalidSignature

    private = p256_key("somebody")
    signature = private.sign(b"content", ec.ECDSA(chain.ECDSA_WITH_SHA256.algorithm))
    assert chain._p256_sha256(private.public_key(), signature, b"content") is True
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        with pytest.raises(InvalidSignature):
            chain._p256_sha256(key, signature, b"content")
    else:
        assert chain._p256_sha256(key, signature, b"content") is False


@pytest.mark.parametrize(("what", "make"), [("tcb_info", INTEL.tcb_info), ("qe_identity", INTEL.qe_identity)])
def test_a_statement_counts_from_its_first_second_to_its_last(what: str, make: Callable[..., str]) -> None:
    """C-12."""
    text = make(issueDate=zulu(NOON), nextUpdate=zulu(LATER))
    assert [code(now=now, **stated(what, text)) for now in (NOON, LATER)] == ["accepted"] * 2
    for now in (NOON - SECOND, LATER + SECOND):
        assert code(now=now, **stated(what, text)) == "collateral-not-valid-now"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"id": "SGX"}, "collateral-mismatch"),
        ({"version": 2}, "collateral-mismatch"),
        ({"version": 4}, "collateral-mismatch"),
        ({"fmspc": "00" * 6}, "collateral-mismatch"),
        ({"pceId": "0001" if PCE_ID != b"\x00\x01" else "0002"}, "collateral-mismatch"),
        ({"fmspc": "00" * 5}, "malformed-collateral"),
        ({"fmspc": "zz" * 6}, "malformed-collateral"),
        ({"fmspc": 6}, "malformed-collateral"),
        ({"fmspc": ["0"] * 12}, "malformed-collateral"),
        ({"fmspc": None}, "malformed-collateral"),
        ({"version": -1}, "malformed-collateral"),
        ({"version": 256}, "malformed-collateral"),
        ({"version": "3"}, "malformed-collateral"),
        ({"tcbEvaluationDataNumber": -1}, "malformed-collateral"),
        ({"tcbEvaluationDataNumber": None}, "malformed-collateral"),
        ({"issueDate": None}, "malformed-collateral"),
        ({"issueDate": 20260101}, "malformed-collateral"),
        ({"issueDate": "yesterday"}, "malformed-collateral"),
        ({"issueDate": "2026-01-31"}, "malformed-collateral"),
        ({"issueDate": "2026-01-31T12:00:00+00:00"}, "malformed-collateral"),
        ({"issueDate": "2026-01-31T12:00:00.000Z"}, "malformed-collateral"),
        ({"issueDate": "2026-01-31 12:00:00Z"}, "malformed-collateral"),
        ({"issueDate": "20260131T120000Z"}, "malformed-collateral"),
        ({"issueDate": "0001-01-01T00:00:00+23:59"}, "malformed-collateral"),
    ],
)
def test_tcb_info_is_about_this_kind_of_machine_and_readable(changes: dict[str, Any], wanted: str) -> None:
    """C-12: other machines' statements are as well signed."""
    assert code(**stated("tcb_info", INTEL.tcb_info(**changes))) == wanted


def test_the_edges_of_a_statement_are_read() -> None:
    for version in (0, 255):
        assert TcbInfo.parse(INTEL.tcb_info(version=version)).statement.version == version
    assert TcbInfo.parse(INTEL.tcb_info(tcbEvaluationDataNumber=0)).statement.evaluation == 0


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"id": "QE"}, "qe-identity-mismatch"),
        ({"tcbLevels": None}, "malformed-collateral"),
        ({"tcbLevels": {}}, "malformed-collateral"),
        ({"tcbLevels": "UpToDate"}, "malformed-collateral"),
        ({"tcbLevels": ["UpToDate"]}, "malformed-collateral"),
        ({"tcbLevels": [{}]}, "malformed-collateral"),
        ({"status": "ConfigurationNeeded"}, "malformed-collateral"),
        ({"status": None}, "malformed-collateral"),
    ],
)
def test_the_identity_is_that_of_a_tdx_quoting_enclave(changes: dict[str, Any], wanted: str) -> None:
    assert code(**stated("qe_identity", INTEL.qe_identity(**changes))) == wanted


@pytest.mark.parametrize("status", ["UpToDate", "OutOfDate", "Revoked"])
def test_the_three_states_of_a_quoting_enclave_are_read(status: str) -> None:
    assert QeIdentity.parse(INTEL.qe_identity(status=status)).statement.kind == "TD_QE"


# --- the quote ---

# Offsets in a quote of version 4: SPEC §4.3.
AT_KIND, AT_SIZE, AT_AUTHENTICATION, AT_CERTIFICATES = 764, 766, 1218, 1252


@pytest.mark.parametrize(
    ("at", "size", "change", "match"),
    [
        (AT_KIND, 2, 1, "certified by data of type 7"),
        (AT_KIND, 2, -1, "certified by data of type 5"),
        (AT_SIZE, 4, 1, "certified by"),
        (AT_SIZE, 4, -1, "certified by"),
        (AT_AUTHENTICATION, 2, 1, "authentication data has 33 bytes"),
        (AT_AUTHENTICATION, 2, -1, "authentication data has 31 bytes"),
        (AT_CERTIFICATES, 2, 1, "data of type 6"),
        (AT_CERTIFICATES, 2, -1, "data of type 4"),
        (AT_CERTIFICATES + 2, 4, 1, "certificates are data"),
        (AT_CERTIFICATES + 2, 4, -1, "certificates are data"),
    ],
)
def test_each_part_of_a_quote_is_of_its_kind_and_ends_where_the_whole_ends(
    at: int, size: int, change: int, match: str
) -> None:
    """C-19."""
    data = bytearray(INTEL.quote())
    number = int.from_bytes(data[at : at + size], "little") + change
    data[at : at + size] = number.to_bytes(size, "little")
    with pytest.raises(MalformedEvidence, match=match) as refused:
        Quote.parse(bytes(data))
    assert refused.value.code == "malformed-quote"


def test_a_quote_may_end_with_its_last_field() -> None:
    assert Quote.parse(INTEL.quote(chain="", padding=0)).pck_chain == b""
    quote = INTEL.quote(padding=0)
    assert Quote.parse(quote).data == Quote.parse(quote + bytes(70)).data == quote


@pytest.mark.parametrize(("tee", "words"), [(0, "an SGX enclave"), (0x82, "TEE type 0x82")])
def test_a_quote_about_something_else_is_called_by_its_name(tee: int, words: str) -> None:
    with pytest.raises(MalformedEvidence, match=words) as refused:
        Quote.parse(INTEL.quote(header={"tee": tee}))
    assert refused.value.code == "wrong-tee-type"


# --- what the host can see ---

GOOD = attributes.SEPT_VE_DISABLE


def attributes_code(
    td: int = GOOD, xfam: int = 3, service: bytes | None = None, allowed: int | None = 3
) -> str:
    return verdict(lambda: attributes.check(td, xfam, service, allowed, Finding()))


def test_attributes_that_are_known_to_be_harmless_are_accepted() -> None:
    for more in (0, attributes.PKS, attributes.KEY_LOCKER, attributes.PKS | attributes.KEY_LOCKER):
        assert attributes_code(GOOD | more) == "accepted"
    assert attributes_code(service=bytes(48)) == "accepted"
    assert attributes_code(xfam=0xFFFF, allowed=None) == "accepted"
    assert attributes_code(xfam=1) == "accepted"


def test_every_other_attribute_is_refused() -> None:
    """C-11: all 64 bits, each alone beside the one that has to be there."""
    harmless = GOOD | attributes.PKS | attributes.KEY_LOCKER
    for bit in range(64):
        one = 1 << bit
        if one & harmless:
            continue
        wanted = "td-attributes"
        if one & attributes.UNDER_DEBUG:
            wanted = DebugAllowed("").code
        elif one & attributes.MIGRATABLE:
            wanted = "migration-allowed"
        assert attributes_code(GOOD | one) == wanted, bit
    assert attributes_code(0) == attributes_code(attributes.PKS) == "td-attributes"
    assert attributes_code(xfam=4) == attributes_code(xfam=7) == "td-attributes"
    assert attributes_code(service=b"\x01" + bytes(47)) == attributes_code(service=bytes(47) + b"\x01")
    assert attributes_code(service=b"\x01" + bytes(47)) == "service-td"


def test_what_the_host_can_see_is_told_bit_by_bit() -> None:
    finding = Finding()
    attributes.check(GOOD, 3, None, None, finding)
    assert [(check.outcome, check.found) for check in finding.checks] == [
        ("passed", "0x0"),
        ("passed", "no"),
        ("not applicable", "a quote with a TD 1.0 body does not tell"),
        ("passed", "yes"),
        ("passed", "0x0"),
        ("not asked", "0x3"),
    ]


def claims(**changes: Any) -> tdx.TdxClaims:
    return replace(tdx.appraise(INTEL.quote(), INTEL.endorsements(), INTEL.tdx_policy(), now=NOON), **changes)


@pytest.mark.parametrize(
    "changes", [{"seam_attributes": 1}, {"seam_attributes": 1 << 63}, {"mrsignerseam": bytes(47) + b"\x01"}]
)
def test_a_module_that_is_not_intel_s_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AttestationError) as refused:
        INTEL.tdx_policy().check_module(claims(**changes), Finding())
    assert refused.value.code == "seam-mismatch"


# --- made in code ---

LEAST: dict[str, Any] = {"mrtd": {MRTD}, "minimum_tcb_evaluation": EVALUATION}


@pytest.mark.parametrize(
    "wish",
    [
        {"mrtd": None},
        {"mrtd": set()},
        {"mrtd": {MRTD[1:]}},
        {"mrseam": set()},
        {"ppids": [bytes(15)]},
        {"statuses": set()},
        {"statuses": "UpToDate"},
        {"statuses": {"Revoked"}},
        {"statuses": {"UpToDate", "OutOfDate", "Whatever"}},
        {"accepted_advisories": {"x" * 65}},
        {"accepted_advisories": set()},
        {"minimum_tcb_evaluation": -1},
        {"minimum_tcb_evaluation": True},
        {"minimum_tcb_evaluation": None},
        {"xfam_allowed": 1 << 63},
        {"xfam_allowed": -1},
        {"event_log": "maybe"},
        {"event_log": None},
        {"rtmrs": {}},
        {"rtmrs": []},
        {"rtmrs": [(0, {bytes(48)})]},
        {"rtmrs": {4: {bytes(48)}}},
        {"rtmrs": {-1: {bytes(48)}}},
        {"rtmrs": {True: {bytes(48)}}},
        {"rtmrs": {"0": {bytes(48)}}},
        {"rtmrs": {1.0: {bytes(48)}}},
        {"rtmrs": {0}},
        {"rtmrs": {0: {bytes(47)}}},
        {"rtmrs": {0: set()}},
        {"roots": {}},
        {"roots": list(INTEL_ROOTS)},
        {"roots": {bytes(31): "x"}},
        {"mr_config_id": bytes(47)},
        {"minimum_tee_tcb_svn": bytes(17)},
    ],
    ids=shown,
)
def test_a_field_that_means_nothing_is_an_error_when_the_policy_is_made(wish: dict[str, Any]) -> None:
    """C-22."""
    with pytest.raises(InvalidPolicy):
        TdxPolicy(**{**LEAST, **wish})


def test_the_largest_values_of_a_policy_are_accepted() -> None:
    policy = TdxPolicy(**LEAST, accepted_advisories={"x" * 64}, xfam_allowed=(1 << 63) - 1)
    assert (policy.accepted_advisories, policy.xfam_allowed) == ({"x" * 64}, (1 << 63) - 1)
    assert TdxPolicy(**{**LEAST, "minimum_tcb_evaluation": 0}).minimum_tcb_evaluation == 0


def test_a_policy_stays_as_it_was_made() -> None:
    statuses, roots = {"UpToDate"}, {hashlib.sha256(b"root").digest(): "x"}
    policy = TdxPolicy(**LEAST, statuses=statuses, roots=roots)
    statuses.add("OutOfDate")
    roots.clear()
    assert policy.statuses == frozenset({"UpToDate"})
    assert isinstance(policy.statuses, frozenset)
    assert list(policy.roots.values()) == ["x"]


@pytest.mark.parametrize(
    "wish", ["mr_config_id", "mr_owner", "mr_owner_config", "ppids", "platform_instance_ids"]
)
def test_a_machine_that_was_named_is_told_as_passed_and_no_other(wish: str) -> None:
    value: Any = {"ppids": {INTEL.ppid}, "platform_instance_ids": {INTEL.instance}}.get(wish, bytes(48))
    finding = Finding()
    INTEL.tdx_policy(**{wish: value}).check_machine(claims(), finding)
    assert finding.outcome == "passed"
    plain = Finding()
    INTEL.tdx_policy().check_machine(claims(), plain)
    assert plain.outcome == "not asked"
    assert {check.outcome for check in plain.checks} == {"not asked"}


# --- in words ---


def test_every_wish_is_told_as_checked_or_as_unchecked() -> None:
    """C-46: whoever signs a policy off reads what it does not ask, too."""
    plain = TdxPolicy(**LEAST).in_words()
    asked = TdxPolicy(
        **LEAST,
        accepted_advisories={"INTEL-SA-2", "INTEL-SA-1"},
        rtmrs={1: {bytes(48)}, 2: {bytes(48)}},
        event_log="required",
        events={0: {bytes(48)}},
        ppids={INTEL.ppid},
    ).in_words()
    assert not any("Accepted although open" in one for one in plain.checks)
    assert "Which of Intel's TDX modules it is." in plain.unchecked
    assert "Accepted although open: INTEL-SA-1, INTEL-SA-2." in asked.checks
    assert "What was started since has one of the values named, in RTMR1 and RTMR2." in asked.checks
    assert not any("What was started since" in one for one in plain.checks)
    assert "The log of the boot is there and gives the same RTMR0, RTMR1 and RTMR2." in asked.checks
    assert not any("log of the boot is there" in one for one in plain.checks)
    assert "Nothing was measured into RTMR0 but 1 named digests." in asked.checks
    assert len(plain.unchecked) > len(asked.unchecked)
    for wish in (
        {"ppids": {INTEL.ppid}},
        {"mr_config_id": bytes(48)},
        {"platform_instance_ids": {INTEL.instance}},
    ):
        assert set(plain.unchecked) - set(TdxPolicy(**LEAST, **wish).in_words().unchecked)


def test_the_floor_of_the_tdx_module_is_compared_byte_by_byte() -> None:
    """C-12: a high byte beside it does not make up for a low one."""
    svn = claims().tee_tcb_svn
    INTEL.tdx_policy(minimum_tee_tcb_svn=svn).check_tcb(claims(), Finding())
    for at in (0, 15):
        floor = bytearray(svn)
        floor[at] += 1
        with pytest.raises(AttestationError) as refused:
            INTEL.tdx_policy(minimum_tee_tcb_svn=bytes(floor)).check_tcb(claims(), Finding())
        assert refused.value.code == "tcb-too-old"


def test_a_platform_without_an_instance_is_told_as_none() -> None:
    finding = Finding()
    INTEL.tdx_policy().check_machine(claims(platform_instance_id=None), finding)
    assert [check.found for check in finding.checks if check.name == "platform instance id"] == ["none"]
    named = INTEL.tdx_policy(platform_instance_ids={INTEL.instance})
    with pytest.raises(AttestationError) as refused:
        named.check_machine(claims(platform_instance_id=None), Finding())
    assert refused.value.code == "platform-not-listed"
