"""From a report to a root: one good case, then one change at a time, each as well signed as it can be."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.errors import (
    AttestationError,
    MalformedEvidence,
    RevokedEvidence,
    UntrustedEvidence,
)
from blindbox_attestation.snp import SnpPolicy, Tcb, appraise
from blindbox_attestation.snp.chain import P384_ORDER
from blindbox_attestation.x509 import PSS_SHA384, Certificate, Signed
from tests.kit import NOON
from tests.kit.amd import FakeAmd, chip_key, ia5, rsa_key, small_integer
from tests.kit.verdict import verdict

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

SECOND = timedelta(seconds=1)
FAMILIES = ("Milan", "Genoa", "Turin")
KINDS = ("vcek", "vlek")


@cache
def amd_of(family: str, kind: str = "vcek", cpu: str | None = None) -> FakeAmd:
    return FakeAmd(family, cpu=cpu, signing_key=kind)


GENOA = amd_of("Genoa")


def appraised(
    amd: FakeAmd,
    *,
    endorsements: Mapping[str, bytes] | None = None,
    policy: SnpPolicy | None = None,
    now: datetime = NOON,
    **report: Any,
) -> str:
    """The code that it ends with, or "accepted"."""
    sent = amd.endorsements() if endorsements is None else endorsements
    return verdict(lambda: appraise(amd.report(**report), sent, policy or amd.snp_policy(), now=now))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_machine_of_each_family_and_kind_is_accepted(family: str, kind: str) -> None:
    assert appraised(amd_of(family, kind)) == "accepted"


def test_bergamo_counts_as_genoa() -> None:
    assert appraised(amd_of("Genoa", cpu="Bergamo")) == "accepted"


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_known_report_version_is_accepted(version: int) -> None:
    changes = {"cpuid": bytes(3)} if version == 2 else {}
    assert appraised(GENOA, version=version, **changes) == "accepted"


@pytest.mark.parametrize(
    ("report", "chain", "pinned"),
    [*itertools.product(itertools.product(FAMILIES, KINDS), itertools.product(FAMILIES, KINDS), FAMILIES)],
)
def test_of_all_crossed_chains_only_the_right_one_is_accepted(
    report: tuple[str, str], chain: tuple[str, str], pinned: str
) -> None:
    """C-13: families and kinds of key, crossed; the vendor uses the same keys for all."""
    honest, sent = amd_of(*report), amd_of(*chain)
    policy = replace(
        honest.snp_policy(signing_keys=set(KINDS)),
        minimum_tcb={family: Tcb(bootloader=0, snp=0, microcode=0) for family in FAMILIES},
        roots=amd_of(pinned).roots,
    )
    code = appraised(honest, endorsements=sent.endorsements(), policy=policy)
    if pinned != chain[0]:
        assert code == "unpinned-root"
    elif report[1] != chain[1]:
        assert code == "missing-endorsement"
    elif report[0] != chain[0]:
        assert code == "product-mismatch"
    else:
        assert code == "accepted"


@pytest.mark.parametrize(
    ("ark", "middle", "leaf"),
    list(itertools.product(FAMILIES, itertools.product(FAMILIES, ("ask", "asvk")), FAMILIES)),
)
def test_certificates_of_different_chains_do_not_make_one(
    ark: str, middle: tuple[str, str], leaf: str
) -> None:
    """C-13: root, intermediate and leaf each from any family; the intermediate of either kind."""
    honest = amd_of(leaf)
    roots = {fingerprint: family for one in FAMILIES for fingerprint, family in amd_of(one).roots.items()}
    other = amd_of(middle[0], "vcek" if middle[1] == "ask" else "vlek")
    sent = {
        "ark": amd_of(ark).endorsements()["ark"],
        "ask": other.endorsements()[middle[1]],
        "vcek": honest.endorsements()["vcek"],
        "crl": amd_of(ark).endorsements()["crl"],
    }
    code = appraised(honest, endorsements=sent, policy=honest.snp_policy(roots=roots))
    if middle[1] == "asvk":
        assert code == "wrong-certificate-kind"
    elif ark == middle[0] == leaf:
        assert code == "accepted"
    else:
        assert code == "wrong-issuer"


def another_root() -> bytes:
    """Named like the pinned one, and signed by itself."""
    return FakeAmd("Genoa", name="Fake Micro Devices").certificate("ark", serial=7)


Change = Callable[[FakeAmd], bytes | None]

CERTIFICATES: list[tuple[str, Change, str]] = [
    ("ark", lambda amd: None, "missing-endorsement"),
    ("ask", lambda amd: None, "missing-endorsement"),
    ("vcek", lambda amd: None, "missing-endorsement"),
    ("ark", lambda amd: b"", "malformed-certificate"),
    ("ark", lambda amd: another_root(), "unpinned-root"),
    ("ark", lambda amd: amd.endorsements()["ask"], "unpinned-root"),
    ("ask", lambda amd: amd.endorsements()["ask"] + b"\x00", "malformed-certificate"),
    ("vcek", lambda amd: b"\x30\x80" + amd.endorsements()["vcek"], "malformed-certificate"),
    # who issued it
    ("ask", lambda amd: amd.certificate("ask", issuer="ARK-Milan"), "wrong-issuer"),
    ("ask", lambda amd: amd.certificate("ask", common_name="SEV-Milan"), "wrong-issuer"),
    ("ask", lambda amd: amd.certificate("ask", cert_sign=False, crl_sign=True), "wrong-issuer"),
    ("vcek", lambda amd: amd.certificate("vcek", issuer="ARK-Genoa", signer="ark"), "wrong-issuer"),
    ("vcek", lambda amd: amd.certificate("vcek", issuer="SEV-VLEK-Genoa", signer="asvk"), "wrong-issuer"),
    ("vcek", lambda amd: FakeAmd("Genoa", name="Other Devices").certificate("vcek"), "wrong-issuer"),
    # what it is
    ("ask", lambda amd: amd.certificate("asvk"), "wrong-certificate-kind"),
    ("ask", lambda amd: amd.endorsements()["ark"], "wrong-certificate-kind"),
    ("ask", lambda amd: amd.certificate("ask", authority=False), "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.endorsements()["ask"], "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.certificate("vcek", common_name="SEV-VLEK"), "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.certificate("vcek", common_name="SEV-Genoa"), "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.certificate("vcek", authority=True), "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.certificate("vcek", public_key=p256()), "wrong-certificate-kind"),
    ("vcek", lambda amd: amd.certificate("vcek", public_key=rsa_public(amd)), "wrong-certificate-kind"),
    # how it is signed
    ("ask", lambda amd: amd.certificate("ask", signer="asvk"), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", signer="ark"), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", pad=padding.PKCS1v15()), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", pad=pss(32)), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", pad=pss(0)), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", hash_algorithm=SHA256()), "bad-certificate-signature"),
    ("vcek", lambda amd: amd.certificate("vcek", hash_algorithm=SHA512()), "bad-certificate-signature"),
    # when it is valid
    ("ask", lambda amd: amd.certificate("ask", not_before=NOON + SECOND), "certificate-not-valid-now"),
    ("ask", lambda amd: amd.certificate("ask", not_after=NOON - SECOND), "certificate-not-valid-now"),
    ("vcek", lambda amd: amd.certificate("vcek", not_before=NOON + SECOND), "certificate-not-valid-now"),
    ("vcek", lambda amd: amd.certificate("vcek", not_after=NOON - SECOND), "certificate-not-valid-now"),
    ("vcek", lambda amd: amd.certificate("vcek", not_after=NOON), "accepted"),
    ("vcek", lambda amd: amd.certificate("vcek", not_before=NOON), "accepted"),
    # what only its issuer could have meant
    ("vcek", lambda amd: amd.certificate("vcek", critical="4"), "malformed-certificate"),
]  # fmt: skip


def p256() -> ec.EllipticCurvePublicKey:
    return ec.derive_private_key(7, ec.SECP256R1()).public_key()


def rsa_public(amd: FakeAmd) -> rsa.RSAPublicKey:
    return rsa_key(amd.keys["ask"]).public_key()


def pss(salt: int) -> padding.PSS:
    return padding.PSS(padding.MGF1(SHA384()), salt)


@pytest.mark.parametrize(("which", "change", "code"), CERTIFICATES)
def test_a_certificate_that_is_changed_is_refused_for_its_own_reason(
    which: str, change: Change, code: str
) -> None:
    """C-13, C-14: not from whom it says, not what it is sent as, not in the one algorithm, or not valid."""
    assert appraised(GENOA, endorsements=GENOA.endorsements(**{which: change(GENOA)})) == code


def test_a_self_signed_root_of_the_right_name_is_nobody() -> None:
    """C-13: a whole well-made chain, under a root that only its name has in common with the pinned one."""
    evil = FakeAmd("Genoa", name="Evil Devices")
    policy = replace(evil.snp_policy(), roots=GENOA.roots)
    assert appraised(evil) == "accepted"
    assert appraised(evil, policy=policy) == "unpinned-root"


@pytest.mark.parametrize("key", [2, 3, 4, 5, 6, 7])
def test_a_report_signed_by_no_kind_of_key_is_refused(key: int) -> None:
    assert appraised(GENOA, flags=key << 2) == "wrong-certificate-kind"


def test_a_report_that_says_vlek_is_not_judged_by_a_vcek() -> None:
    """C-13: which kind of key signed is taken from the signed report, not from what was sent beside it."""
    both = {**GENOA.endorsements(), **amd_of("Genoa", "vlek").endorsements()}
    assert appraised(GENOA, endorsements=both) == "accepted"
    assert appraised(GENOA, endorsements=both, flags=4) == "bad-signature"


def test_a_root_issues_for_its_own_family_only() -> None:
    """C-13: links that all hold, from the root of Genoa to a chip that says it is below SEV-Milan."""
    sent = GENOA.endorsements(
        ask=GENOA.certificate("ask", common_name="SEV-Milan"),
        vcek=GENOA.certificate("vcek", issuer="SEV-Milan"),
    )
    assert appraised(GENOA, endorsements=sent) == "wrong-issuer"


def test_a_pinned_root_is_signed_by_itself() -> None:
    """Defence in depth: a fingerprint alone does not make a certificate a root."""
    for change, code in (
        ({"signer": "ask"}, "bad-certificate-signature"),
        ({"issuer": "ARK-X"}, "wrong-issuer"),
    ):
        root = GENOA.certificate("ark", **change)
        policy = GENOA.snp_policy(roots={hashlib.sha256(root).digest(): "Genoa"})
        assert appraised(GENOA, endorsements=GENOA.endorsements(ark=root), policy=policy) == code


def test_a_signature_of_a_smaller_key_is_none() -> None:
    """C-14: RSA-4096 and nothing else."""
    small = rsa.generate_private_key(65537, 2048)
    algorithm = Certificate.parse(GENOA.endorsements()["ask"], "ask").signed.algorithm
    signed = Signed(b"content", algorithm, small.sign(b"content", pss(48), SHA384()))
    assert not signed.is_signed_by(small.public_key())
    large = rsa_key(GENOA.keys["ark"])
    assert Signed(b"content", algorithm, large.sign(b"content", pss(48), SHA384())).is_signed_by(
        large.public_key()
    )


def test_the_two_copies_of_the_signature_algorithm_are_the_same() -> None:
    """C-14: also where both spellings would be accepted (RFC 5280 §4.1.1.2)."""
    signed = Certificate.parse(GENOA.endorsements()["vcek"], "vcek").signed
    for algorithm in PSS_SHA384:
        body = signed.content + algorithm + b"\x03\x82\x02\x01\x00" + signed.signature
        der = b"\x30\x82" + len(body).to_bytes(2, "big") + body
        if algorithm == signed.algorithm:
            assert der == GENOA.endorsements()["vcek"]
        else:
            with pytest.raises(MalformedEvidence, match="two different"):
                Certificate.parse(der, "vcek")


def test_an_extension_is_there_once() -> None:
    """C-17: of two, nobody could say which one counts."""
    der = GENOA.endorsements()["vcek"]
    arc = bytes.fromhex("2b060104019c780103")
    assert der.count(arc + b"\x05") == der.count(arc + b"\x06") == 1
    with pytest.raises(MalformedEvidence, match="two extensions"):
        Certificate.parse(der.replace(arc + b"\x05", arc + b"\x06"), "vcek")


# --- revocation ---

LISTS: list[tuple[Callable[[FakeAmd], bytes | None], str]] = [
    (lambda amd: amd.crl(), "accepted"),
    (lambda amd: amd.crl(revoked=[0x20001, 0x20101]), "accepted"),
    (lambda amd: amd.crl(this_update=NOON), "accepted"),
    (lambda amd: amd.crl(next_update=NOON), "accepted"),
    (lambda amd: amd.crl(revoked=[0x20002]), "revoked"),
    (lambda amd: amd.crl(revoked=[0x20001, 0x20002]), "revoked"),
    (lambda amd: amd.crl(revoked=[0x20000]), "revoked"),
    (lambda amd: None, "crl-missing"),
    (lambda amd: amd.crl(this_update=NOON + SECOND), "crl-not-valid-now"),
    (lambda amd: amd.crl(next_update=NOON - SECOND), "crl-not-valid-now"),
    (lambda amd: amd.crl(signer="ask"), "crl-bad-signature"),
    (lambda amd: amd.crl(issuer="ARK-Milan"), "crl-bad-signature"),
    (lambda amd: amd.crl(pad=pss(32)), "crl-bad-signature"),
    (lambda amd: amd.crl(pad=padding.PKCS1v15()), "crl-bad-signature"),
    (lambda amd: amd.crl(delta=True), "crl-bad-signature"),
    (lambda amd: amd.crl()[:-1], "crl-bad-signature"),
    (lambda amd: amd.crl() + b"\x00", "crl-bad-signature"),
    (lambda amd: b"", "crl-bad-signature"),
    (lambda amd: amd.endorsements()["ark"], "crl-bad-signature"),
]


@pytest.mark.parametrize(("make", "code"), LISTS)
def test_a_revocation_list_counts_if_it_is_the_root_s_and_current(
    make: Callable[[FakeAmd], bytes | None], code: str
) -> None:
    """C-10: a list that is missing, stale, forged or partial is a failure, not a pass."""
    assert appraised(GENOA, endorsements=GENOA.endorsements(crl=make(GENOA))) == code


def test_a_revoked_vlek_issuer_is_refused() -> None:
    """C-10: the list covers both kinds of intermediate."""
    amd = amd_of("Genoa", "vlek")
    assert appraised(amd, endorsements=amd.endorsements(crl=amd.crl(revoked=[0x20101]))) == "revoked"
    assert appraised(amd, endorsements=amd.endorsements(crl=amd.crl(revoked=[0x20002]))) == "accepted"


def test_only_a_policy_that_says_so_goes_without_a_revocation_list() -> None:
    endorsements = GENOA.endorsements(crl=None)
    assert appraised(GENOA, endorsements=endorsements) == "crl-missing"
    unchecked = GENOA.snp_policy(revocation="unchecked")
    assert appraised(GENOA, endorsements=endorsements, policy=unchecked) == "accepted"


# --- what the chip's certificate endorses ---

EXTENSIONS: list[tuple[str, dict[str, bytes | None], str]] = [
    *[("Genoa", {suffix: None}, "malformed-extension") for suffix in ("2", "3.1", "3.2", "3.3", "3.8", "4")],
    ("Turin", {"3.9": None}, "malformed-extension"),
    ("Genoa", {"3.9": small_integer(0)}, "malformed-extension"),
    ("Genoa", {"1": None}, "accepted"),
    ("Genoa", {"3.4": small_integer(0)}, "accepted"),
    ("Genoa", {"3.4": small_integer(1)}, "malformed-extension"),
    ("Genoa", {"3.7": small_integer(1)}, "malformed-extension"),
    # INTEGERs
    ("Genoa", {"3.1": b""}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x01"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x00"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x01\x0a\x00"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x02\x00\x0a"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x81\x01\x0a"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x02\x01\x0a"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x02\x01\x8a"}, "malformed-extension"),
    ("Genoa", {"3.1": b"\x04\x01\x0a"}, "malformed-extension"),
    # the chip's own number
    ("Genoa", {"4": b"\x04\x40" + GENOA.hwid}, "malformed-extension"),
    ("Genoa", {"4": GENOA.hwid[:-1]}, "malformed-extension"),
    ("Genoa", {"4": GENOA.hwid[:8]}, "malformed-extension"),
    ("Turin", {"4": amd_of("Turin").chip_id}, "malformed-extension"),
    ("Genoa", {"4": b"\x01" * 64}, "chip-id-mismatch"),
    ("Turin", {"4": b"\x01" * 8}, "chip-id-mismatch"),
    ("Genoa", {"5": ia5("CN=cloud")}, "malformed-extension"),
    # the product
    ("Genoa", {"2": ia5("Genoa-B1")}, "accepted"),
    ("Genoa", {"2": ia5("Milan")}, "product-mismatch"),
    ("Genoa", {"2": ia5("Genoa2")}, "product-mismatch"),
    ("Genoa", {"2": ia5("Genoa-B1-")}, "malformed-extension"),
    ("Genoa", {"2": b"Genoa"}, "malformed-extension"),
    ("Genoa", {"2": b"\x16\x01\xff"}, "malformed-extension"),
    # the firmware, part by part
    *[
        ("Genoa", {suffix: small_integer(200)}, "certificate-tcb-mismatch")
        for suffix in ("3.1", "3.2", "3.3", "3.8")
    ],
    *[
        ("Turin", {suffix: small_integer(200)}, "certificate-tcb-mismatch")
        for suffix in ("3.9", "3.1", "3.2", "3.3", "3.8")
    ],
]


@pytest.mark.parametrize(("family", "extensions", "code"), EXTENSIONS)
def test_the_chip_s_certificate_is_about_this_chip_and_this_firmware(
    family: str, extensions: dict[str, bytes | None], code: str
) -> None:
    """C-8, C-9: an extension that is missing, misspelt, or about another chip or firmware is refused."""
    amd = amd_of(family)
    leaf = amd.certificate("vcek", extensions=extensions)
    assert appraised(amd, endorsements=amd.endorsements(vcek=leaf)) == code


def test_a_vlek_names_its_cloud_and_no_chip() -> None:
    amd = amd_of("Milan", "vlek")
    for extensions in ({"5": None}, {"4": bytes(64)}):
        leaf = amd.certificate("vlek", extensions=extensions)
        assert appraised(amd, endorsements=amd.endorsements(vlek=leaf)) == "malformed-extension"


@pytest.mark.parametrize(
    ("family", "changes", "code"),
    [
        ("Genoa", {"chip_id": b"\x01" + GENOA.chip_id[1:]}, "chip-id-mismatch"),
        ("Turin", {"chip_id": amd_of("Turin").chip_id[:-1] + b"\x01"}, "chip-id-mismatch"),
        ("Genoa", {"chip_id": bytes(64)}, "chip-id-masked"),
        ("Genoa", {"reported_tcb": replace(GENOA.tcb, snp=GENOA.tcb.snp + 1)}, "certificate-tcb-mismatch"),
        ("Genoa", {"reported_tcb": replace(GENOA.tcb, snp=GENOA.tcb.snp - 1)}, "certificate-tcb-mismatch"),
        ("Genoa", {"reported_tcb": bytes(2) + b"\x01" + bytes(5)}, "reserved-bits"),
        ("Genoa", {"cpuid": bytes((0x19, 0x01, 1))}, "product-mismatch"),
        ("Genoa", {"cpuid": bytes((0x19, 0x55, 1))}, "product-mismatch"),
        ("Turin", {"cpuid": bytes((0x19, 0x11, 1))}, "product-mismatch"),
    ],
)
def test_a_well_signed_report_of_another_chip_or_firmware_is_refused(
    family: str, changes: dict[str, Any], code: str
) -> None:
    """C-8, C-9: the report is changed and signed again with the chip's own key."""
    assert appraised(amd_of(family), **changes) == code


def test_a_hidden_chip_passes_where_the_policy_allows_it() -> None:
    """C-9: and never where the policy names chips."""
    allowed = GENOA.snp_policy(allow_masked_chip_id=True)
    assert appraised(GENOA, policy=allowed, chip_id=bytes(64)) == "accepted"
    assert appraised(GENOA, policy=allowed, chip_id=b"\x01" * 64) == "chip-id-mismatch"
    named = replace(allowed, chip_ids={GENOA.chip_id})
    assert appraised(GENOA, policy=named, chip_id=bytes(64)) == "chip-not-listed"


# --- the signature ---


def signature(r: int, s: int, tail: bytes = bytes(368)) -> bytes:
    return r.to_bytes(72, "little") + s.to_bytes(72, "little") + tail


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r, s: signature(r, s), "accepted"),
        (
            lambda r, s: signature(r, P384_ORDER - s),
            "accepted",
        ),  # ECDSA's own second spelling: it says the same
        (lambda r, s: signature(s, r), "bad-signature"),
        (lambda r, s: signature(0, s), "malformed-signature"),
        (lambda r, s: signature(r, 0), "malformed-signature"),
        (lambda r, s: signature(0, 0), "malformed-signature"),
        (lambda r, s: signature(P384_ORDER, s), "malformed-signature"),
        (lambda r, s: signature(r, P384_ORDER), "malformed-signature"),
        (lambda r, s: signature(r, 2**384 - 1), "malformed-signature"),
        (lambda r, s: signature(r + (1 << 384), s), "malformed-signature"),
        (lambda r, s: signature(r, s + (1 << 575)), "malformed-signature"),
        (lambda r, s: signature(r, s, bytes(367) + b"\x01"), "malformed-signature"),
        (lambda r, s: signature(r, s, b"\x01" + bytes(367)), "malformed-signature"),
        (lambda r, s: signature(1, 1), "bad-signature"),
    ],
)
def test_a_signature_has_one_form(change: Callable[[int, int], bytes], code: str) -> None:
    """C-15: R and S in range, padded with zeros, and nothing after them."""
    report = GENOA.report()
    r = int.from_bytes(report[0x2A0 : 0x2A0 + 72], "little")
    s = int.from_bytes(report[0x2A0 + 72 : 0x2A0 + 144], "little")
    changed = report[:0x2A0] + change(r, s)
    ended = "accepted"
    try:
        appraise(changed, GENOA.endorsements(), GENOA.snp_policy(), now=NOON)
    except UntrustedEvidence as error:
        ended = error.code
    assert ended == code


def test_another_chip_s_key_does_not_sign_for_this_one() -> None:
    assert appraised(GENOA, key=chip_key("somebody else")) == "bad-signature"


# --- every kind of error has its own type ---


@pytest.mark.parametrize(
    ("endorsements", "expected"),
    [
        ({"vcek": None}, UntrustedEvidence),
        ({"vcek": b"\x30\x00"}, MalformedEvidence),
        ({"crl": None}, RevokedEvidence),
    ],
)
def test_forged_unreadable_and_revoked_are_told_apart_by_type(
    endorsements: dict[str, bytes | None], expected: type[AttestationError]
) -> None:
    with pytest.raises(expected):
        appraise(GENOA.report(), GENOA.endorsements(**endorsements), GENOA.snp_policy(), now=NOON)


@pytest.mark.parametrize("which", ["ark", "ask", "vcek", "crl"])
def test_any_flipped_bit_of_a_certificate_or_list_is_refused(which: str) -> None:
    """C-15: every third byte of each, one bit in turn; and the first 40 bytes in every bit."""
    report, good, policy = GENOA.report(), GENOA.endorsements(), GENOA.snp_policy()
    size = len(good[which])
    places = [(at, bit) for at in range(40) for bit in range(8)] + [
        (at, at // 3 % 8) for at in range(40, size, 3)
    ]
    for at, bit in places:
        data = bytearray(good[which])
        data[at] ^= 1 << bit
        with pytest.raises(AttestationError):
            appraise(report, {**good, which: bytes(data)}, policy, now=NOON)


@pytest.mark.parametrize("which", ["ark", "ask", "vcek", "crl"])
def test_a_certificate_or_list_cut_short_anywhere_is_refused(which: str) -> None:
    """C-19: every prefix."""
    report, good, policy = GENOA.report(), GENOA.endorsements(), GENOA.snp_policy()
    for length in range(len(good[which])):
        with pytest.raises(AttestationError):
            appraise(report, {**good, which: good[which][:length]}, policy, now=NOON)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_sent_as_a_certificate_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        Certificate.parse(data, "any")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_certificate_with_bytes_changed_anywhere_is_read_or_refused_with_a_typed_error(
    data: st.DataObject,
) -> None:
    der = bytearray(GENOA.endorsements()["vcek"])
    for _ in range(data.draw(st.integers(1, 6))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    code = "malformed-certificate"
    try:
        parsed = Certificate.parse(bytes(der), "changed")
    except MalformedEvidence as error:
        code = error.code
    else:
        assert parsed.der == bytes(der)
    assert code == "malformed-certificate"
