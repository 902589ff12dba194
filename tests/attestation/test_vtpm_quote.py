"""Quotes of a fake TPM: one good case of each kind of key, then one change at a time."""

from __future__ import annotations

import hashlib
import struct
import timeit
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import UntrustedEvidence
from blindbox_attestation.evidence import TPM
from blindbox_attestation.platforms import PLATFORMS
from blindbox_attestation.steps import NAMES
from blindbox_attestation.vtpm import TpmPolicy, appraise
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.google import rsa_key
from tests.kit.tpm import (
    ECDSA,
    RESTRICTED_SIGNING_KEY,
    RSAPSS,
    RSASSA,
    FakeTpm,
    area,
    attest,
    ec_key,
    instance_info,
    registers_of,
    selection,
    sign,
    spki,
)
from tests.kit.verdict import verdict

KINDS = ["ecc", "ecc384", "rsa"]
NONCE = bytes(range(48))
OURS = FakeTpm()


def code_of(
    evidence: bytes, policy: TpmPolicy | None = None, tpm: FakeTpm = OURS, **endorsements: bytes
) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(
        lambda: appraise(evidence, tpm.endorsements(**endorsements), policy or tpm.tpm_policy(), now=NOON)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_quote_passes_every_step(kind: str) -> None:
    tpm = FakeTpm(kind)
    walk = Walk()
    claims = appraise(tpm.evidence(NONCE), tpm.endorsements(), tpm.tpm_policy(), now=NOON, walk=walk)
    assert [step.number for step in walk.steps] == [one for one in NAMES if one not in (1, 2, 8)]
    assert "failed" not in {step.outcome for step in walk.steps}
    assert claims.carries(NONCE)
    assert not claims.carries(NONCE[:-1])
    assert claims.speaks_for(Bound(NONCE, bytes(32), b"keys"))
    assert not claims.speaks_for(Bound(NONCE[::-1], bytes(32), b"keys"))
    assert claims.ak_sha256 == tpm.pin
    assert (claims.clock, claims.reset_count, claims.restart_count) == (123_456, 7, 1)
    assert claims.clock_is_safe
    assert claims.firmware_version == 0x2019_1023_0016_3636
    assert claims.instance is not None
    assert claims.instance.project_id == "our-project"


def test_a_tpm_is_no_confidential_machine_and_its_operator_is_trusted() -> None:
    platform = PLATFORMS[TPM]
    assert not platform.tee
    assert any("hypervisor" in one for one in platform.trusts)
    assert any("hypervisor" in one for one in OURS.tpm_policy().in_words().trusts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pinned_key_needs_no_certificate(kind: str) -> None:
    tpm = FakeTpm(kind)
    asked = tpm.tpm_policy(ak_keys={tpm.pin})
    endorsements = tpm.endorsements()
    del endorsements["ak_chain"]
    claims = appraise(tpm.evidence(NONCE), endorsements, asked, now=NOON)
    assert claims.instance is None


def test_a_key_that_came_along_proves_nothing() -> None:
    """C-2: signed well, by a key that is in the evidence and that nobody vouches for."""
    stranger = FakeTpm(name="a stranger's")
    evidence = stranger.evidence(NONCE)
    assert code_of(evidence, OURS.tpm_policy(ak_keys={OURS.pin})) == "unpinned-ak"
    assert code_of(evidence) == "wrong-attestation-key"
    assert code_of(evidence, ak_chain=b"") == "missing-endorsement"
    assert code_of(evidence, ak_chain=b"".join(stranger.chain())) == "unpinned-root"


CHAINS: list[tuple[dict[str, Any], str]] = [
    ({"what": "leaf", "signer": rsa_key("another")}, "bad-certificate-signature"),
    ({"what": "leaf", "issuer": "root"}, "wrong-issuer"),
    ({"what": "leaf", "not_after": NOON - timedelta(seconds=1)}, "certificate-not-valid-now"),
    ({"what": "leaf", "not_before": NOON + timedelta(seconds=1)}, "certificate-not-valid-now"),
    ({"what": "leaf", "authority": True}, "wrong-certificate-kind"),
    ({"what": "leaf", "digital_signature": False}, "wrong-certificate-kind"),
    ({"what": "leaf", "hash_algorithm": SHA384()}, "bad-certificate-signature"),
    ({"what": "leaf", "pad": padding.PSS(padding.MGF1(SHA256()), 32)}, "bad-certificate-signature"),
    ({"what": "leaf", "public_key": ec_key("another").public_key()}, "wrong-attestation-key"),
    ({"what": "leaf", "critical": True}, "malformed-certificate"),
    ({"what": "leaf", "info": b"\x30\x00"}, "malformed-certificate"),
    ({"what": "leaf", "info": instance_info() + b"\x00"}, "malformed-certificate"),
    ({"what": "intermediate", "authority": False}, "wrong-certificate-kind"),
    ({"what": "intermediate", "not_after": NOON - timedelta(seconds=1)}, "certificate-not-valid-now"),
    ({"what": "intermediate", "signer": rsa_key("another")}, "bad-certificate-signature"),
    ({"what": "root", "path_length": 0}, "unpinned-root"),
]


@pytest.mark.parametrize(("change", "code"), CHAINS)
def test_a_chain_with_one_thing_otherwise_is_refused_for_that_reason(
    change: dict[str, Any], code: str
) -> None:
    """C-13, C-14, C-11: each certificate, each in its place, at the caller's time."""
    what = change["what"]
    chain = b"".join(OURS.chain(**{what: OURS.certificate(**change)}))
    assert code_of(OURS.evidence(NONCE), ak_chain=chain) == code


def test_a_certificate_of_no_machine_is_good_until_a_machine_is_asked_for() -> None:
    chain = b"".join(OURS.chain(leaf=OURS.certificate("leaf", info=None)))
    assert code_of(OURS.evidence(NONCE), ak_chain=chain) == "accepted"
    asked = OURS.tpm_policy(projects={"our-project"})
    assert code_of(OURS.evidence(NONCE), asked, ak_chain=chain) == "instance-not-listed"


def test_a_chain_cut_short_anywhere_is_refused() -> None:
    """C-19: at every length."""
    evidence, chain = OURS.evidence(NONCE), b"".join(OURS.chain())
    codes = {code_of(evidence, ak_chain=chain[:length]) for length in range(0, len(chain), 7)}
    assert codes == {"missing-endorsement", "malformed-certificate"}
    assert code_of(evidence, ak_chain=b"".join(OURS.chain()[:2])) == "unpinned-root"
    assert code_of(evidence, ak_chain=chain + b"\x00") == "malformed-certificate"
    assert code_of(evidence, ak_chain=chain * 3) == "malformed-certificate"
    assert code_of(evidence, ak_chain=b"\x30\x00" * 9000) == "malformed-certificate"


HONEST = registers_of()
P256, P384, RSA = FakeTpm(), FakeTpm("ecc384"), FakeTpm("rsa")
SMALL = rsa_key("small", 1024)

QUOTES: list[tuple[dict[str, Any], str]] = [
    ({"magic": 0xFF544348}, "malformed-quote"),
    ({"kind": 0x8017}, "malformed-quote"),
    ({"safe": 2}, "malformed-quote"),
    ({"signer": bytes(69)}, "malformed-quote"),
    ({"selections": [(0x000B, b"\xff" * 4)]}, "malformed-quote"),
    ({"selections": [selection([4])] * 17}, "malformed-quote"),
    ({"selections": []}, "pcr-selection"),
    ({"selections": [selection([])], "registers": {}}, "pcr-selection"),
    ({"selections": [selection([4]), selection([7])]}, "pcr-selection"),
    ({"selections": [selection(sorted(HONEST), "sha1")], "leave_out": ("pcrs",)}, "malformed-quote"),
    ({"selections": [selection([4])]}, "pcr-selection"),
    ({"registers": {one: value for one, value in HONEST.items() if one != 4}}, "pcr-selection"),
    ({"registers": {one: value for one, value in HONEST.items() if one != 7}}, "pcr-selection"),
    ({"registers": {**HONEST, 7: bytes(32)}, "digest": bytes(32)}, "pcr-digest-mismatch"),
    ({"digest": b""}, "pcr-digest-mismatch"),
    ({"signing_key": ec_key("another")}, "bad-signature"),
    ({"scheme": 0x0005}, "unsupported-signature-algorithm"),
    ({"pcrs": {}}, "pcr-selection"),
    ({"pcrs": {"00": bytes(32).hex()}}, "malformed-quote"),
    ({"pcrs": {"24": bytes(32).hex()}}, "malformed-quote"),
    ({"pcrs": {"4": bytes(48).hex()}}, "malformed-quote"),
    ({"version": 2}, "malformed-quote"),
    ({"ak_public": b"\x30\x00"}, "malformed-quote"),
    ({"ak_public": spki(ec_key("another"))}, "wrong-attestation-key"),
    ({"ak_area": area(ec_key("another"))}, "wrong-attestation-key"),
    ({"ak_area": area(P256.key, scheme=RSASSA)}, "unsupported-signature-algorithm"),
    ({"ak_area": area(P256.key, hash_algorithm=0x000C)}, "unsupported-signature-algorithm"),
    ({"ak_area": area(P256.key, symmetric=0x0006)}, "malformed-quote"),
    ({"ak_area": area(P256.key, kind=0x0008)}, "malformed-quote"),
    ({"ak_area": area(P256.key) + b"\x00"}, "trailing-bytes"),
    ({"leave_out": ("attest",)}, "malformed-quote"),
    ({"leave_out": ("signature",)}, "malformed-quote"),
    ({"leave_out": ("ak_public",)}, "malformed-quote"),
    ({"leave_out": ("ak_area",)}, "accepted"),
    ({"safe": 0}, "accepted"),
]


@pytest.mark.parametrize(("change", "code"), QUOTES)
def test_a_quote_with_one_thing_otherwise_is_refused_for_that_reason(
    change: dict[str, Any], code: str
) -> None:
    """C-15: well signed where it can be; an empty selection is that of CVE-2022-0317."""
    assert code_of(OURS.evidence(NONCE, **change)) == code


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 18])
def test_a_key_without_one_of_the_attributes_is_refused(bit: int) -> None:
    evidence = OURS.evidence(NONCE, ak_area=area(OURS.key, attributes=RESTRICTED_SIGNING_KEY & ~(1 << bit)))
    assert code_of(evidence) == "ak-attributes"


def test_a_key_that_decrypts_is_refused() -> None:
    evidence = OURS.evidence(NONCE, ak_area=area(OURS.key, attributes=RESTRICTED_SIGNING_KEY | 1 << 17))
    assert code_of(evidence) == "ak-attributes"


ALGORITHMS: list[tuple[FakeTpm, dict[str, Any], str]] = [
    (P256, {"hash_algorithm": SHA384()}, "unsupported-signature-algorithm"),
    (P384, {"hash_algorithm": SHA256()}, "unsupported-signature-algorithm"),
    (P384, {"signing_key": P256.key}, "unsupported-signature-algorithm"),
    (P256, {"signing_key": P384.key}, "unsupported-signature-algorithm"),
    (P256, {"signing_key": RSA.key}, "unsupported-signature-algorithm"),
    (RSA, {"signing_key": P256.key}, "unsupported-signature-algorithm"),
    (RSA, {"hash_algorithm": SHA384()}, "accepted"),
    (RSA, {"scheme": RSAPSS}, "accepted"),
    (RSA, {"signing_key": rsa_key("another")}, "bad-signature"),
]


@pytest.mark.parametrize(("tpm", "change", "code"), ALGORITHMS)
def test_the_key_says_how_it_signs_and_not_the_signature(
    tpm: FakeTpm, change: dict[str, Any], code: str
) -> None:
    """C-14: one hash for each curve, RSA for RSA."""
    evidence = tpm.evidence(NONCE, leave_out=("ak_area",), **change)
    assert code_of(evidence, tpm=tpm) == code


@pytest.mark.parametrize(("made", "told"), [(RSASSA, RSAPSS), (RSAPSS, RSASSA)])
def test_one_padding_is_not_taken_for_the_other(made: int, told: int) -> None:
    """C-14."""
    pcrs = registers_of()
    honest = strict_json.parse(RSA.evidence(NONCE, registers=pcrs))
    whole = strict_json.from_base64(honest["attest"], "")
    signature = struct.pack(">H", told) + sign(RSA.key, whole, scheme=made)[2:]
    evidence = RSA.evidence(NONCE, attest=whole, signature=signature, leave_out=("ak_area",))
    assert code_of(evidence, tpm=RSA) == "bad-signature"


def test_a_small_rsa_key_is_refused_even_if_it_is_pinned() -> None:
    """C-14."""
    evidence = RSA.evidence(NONCE, signing_key=SMALL, ak_public=spki(SMALL), leave_out=("ak_area",))
    pin = {hashlib.sha256(spki(SMALL)).digest()}
    assert code_of(evidence, RSA.tpm_policy(ak_keys=pin), RSA) == "unsupported-signature-algorithm"


def test_a_curve_of_another_family_is_refused_even_if_it_is_pinned() -> None:
    """C-14."""
    key = ec.derive_private_key(7, ec.SECP256K1())
    evidence = OURS.evidence(NONCE, signing_key=key, ak_public=spki(key), leave_out=("ak_area",))
    pin = {hashlib.sha256(spki(key)).digest()}
    assert code_of(evidence, OURS.tpm_policy(ak_keys=pin)) == "unsupported-signature-algorithm"


@pytest.mark.parametrize("kind", KINDS)
def test_a_quote_or_a_signature_cut_short_anywhere_is_refused(kind: str) -> None:
    """C-19: at every length, and one byte too long."""
    tpm = FakeTpm(kind)
    told = strict_json.parse(tpm.evidence(NONCE))
    for name in ("attest", "signature", "ak_area"):
        whole = strict_json.from_base64(told[name], "")
        codes = {
            code_of(strict_json.dump({**told, name: strict_json.to_base64(whole[:length])}), tpm=tpm)
            for length in range(len(whole))
        }
        assert codes <= {"malformed-quote", "malformed-signature", "unsupported-signature-algorithm"}
        longer = strict_json.to_base64(whole + b"\x00")
        assert code_of(strict_json.dump({**told, name: longer}), tpm=tpm) == "trailing-bytes"


def test_evidence_cut_short_anywhere_is_refused() -> None:
    """C-19, C-17."""
    whole = OURS.evidence(NONCE)
    assert {code_of(whole[:length]) for length in range(len(whole))} == {"malformed-quote"}
    for broken in (whole + b"\x00", whole[:-1] + b',"x":1}', whole[:-1] + b',"version":1}', bytes(20_000)):
        assert code_of(broken) == "malformed-quote"


def test_too_large_parts_are_refused_before_they_are_read() -> None:
    """C-18."""
    assert code_of(OURS.evidence(NONCE, attest=bytes(1025))) == "malformed-quote"
    assert code_of(OURS.evidence(NONCE, signature=bytes(1025))) == "malformed-signature"
    assert code_of(OURS.evidence(bytes(65))) == "malformed-quote"


def test_the_same_walk_ends_at_the_same_step() -> None:
    with pytest.raises(UntrustedEvidence) as caught:
        appraise(OURS.evidence(NONCE, digest=bytes(32)), OURS.endorsements(), OURS.tpm_policy(), now=NOON)
    assert caught.value.steps[-1].number == 7
    assert caught.value.steps[-1].checks[-1].name == "digest over the registers"


def test_a_quote_over_a_sha384_bank_is_judged_in_that_bank() -> None:
    evidence = OURS.evidence(NONCE, bank="sha384")
    assert code_of(evidence) == "pcr-selection"
    value = registers_of(bank="sha384")[4]
    asked = OURS.tpm_policy(boot=OURS.measured_boot(bank="sha384", pcrs={4: {value}}))
    assert code_of(evidence, asked) == "accepted"
    assert code_of(OURS.evidence(NONCE), asked) == "pcr-selection"


def test_attest_is_written_as_it_is_read() -> None:
    whole = attest(NONCE, [selection([0, 8, 23])], bytes(32))
    assert code_of(OURS.evidence(NONCE, attest=whole)) == "pcr-selection"
    assert ECDSA == 0x0018


def test_a_verification_takes_less_than_it_would_be_noticed() -> None:
    """Generous, so that a busy machine passes: what is meant is not to parse a certificate twice."""
    evidence, endorsements, asked = OURS.evidence(NONCE), OURS.endorsements(), OURS.tpm_policy()
    run = timeit.repeat(lambda: appraise(evidence, endorsements, asked, now=NOON), number=5, repeat=5)
    assert min(run) / 5 < 0.01
