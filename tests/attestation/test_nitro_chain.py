"""From a Nitro document back to AWS: an honest document, then one change at a time, with the code of each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA512

from blindbox_attestation import cbor
from blindbox_attestation.certificate_path import _read, _signed
from blindbox_attestation.errors import UnboundKey, UntrustedEvidence
from blindbox_attestation.nitro import NitroPolicy, appraise
from blindbox_attestation.nitro.chain import P384_ORDER
from blindbox_attestation.roots import AWS_ROOTS
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.aws import PCRS, FakeAws, ec_key
from tests.kit.google import rsa_key
from tests.kit.verdict import verdict

AWS = FakeAws()
OTHER = FakeAws("theirs")
SECOND = timedelta(seconds=1)
OTHER_P384 = ec_key("nobody's")


def code_of(data: bytes, policy: NitroPolicy | None = None, now: datetime = NOON) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(data, {}, policy or AWS.policy(), now=now))


def with_certificate(what: str, **changes: Any) -> bytes:
    """A document whose chain has one certificate made otherwise."""
    made = AWS.certificate(what, **changes)
    return (
        AWS.document(certificate=made)
        if what == "leaf"
        else AWS.document(cabundle=AWS.bundle(**{what: made}))
    )


def test_an_honest_document_passes_every_step() -> None:
    walk = Walk()
    claims = appraise(AWS.document(), {}, AWS.policy(), now=NOON, walk=walk)
    assert claims.measurement == PCRS[0]
    assert [step.number for step in walk.steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert {step.number for step in walk.steps if step.outcome == "not asked"} == {5, 13}
    assert {step.number for step in walk.steps if step.outcome == "not applicable"} == {9, 11}
    names = [check.name for check in walk.steps[1].checks]
    assert names.count("the root is pinned") == 1
    assert sum(name.endswith("signed by its issuer") for name in names) == 4
    assert sum(name.endswith(": valid") for name in names) == 5


def test_what_comes_beside_a_document_is_not_looked_at() -> None:
    assert appraise(AWS.document(), {"ark": b"x", "crl": b"y"}, AWS.policy(), now=NOON).measurement == PCRS[0]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        # order and number
        (lambda: AWS.document(cabundle=AWS.bundle()[::-1]), "unpinned-root"),
        (lambda: AWS.document(cabundle=AWS.bundle()[1:]), "unpinned-root"),
        (lambda: AWS.document(cabundle=[AWS.bundle()[i] for i in (0, 2, 1, 3)]), "wrong-issuer"),
        (lambda: AWS.document(cabundle=AWS.bundle()[:3]), "wrong-issuer"),
        (lambda: AWS.document(cabundle=[AWS.bundle()[0], *AWS.bundle()[2:]]), "wrong-issuer"),
        (lambda: AWS.document(cabundle=AWS.bundle()[:1]), "wrong-issuer"),
        (lambda: AWS.document(cabundle=[*AWS.bundle(), AWS.certificate("leaf")]), "wrong-certificate-kind"),
        # roots of one's own
        (lambda: OTHER.document(), "unpinned-root"),
        (
            lambda: OTHER.document(cabundle=[AWS.bundle()[0], *OTHER.bundle()[1:]]),
            "bad-certificate-signature",
        ),
        (lambda: OTHER.document(cabundle=AWS.bundle()), "bad-certificate-signature"),
        (lambda: AWS.document(cabundle=[AWS.bundle()[0] + b"\x00", *AWS.bundle()[1:]]), "unpinned-root"),
        (lambda: with_certificate("root", not_after=NOON + timedelta(days=9999)), "unpinned-root"),
        # links
        (lambda: with_certificate("regional", signer=OTHER_P384), "bad-certificate-signature"),
        (lambda: with_certificate("zonal", signer=OTHER_P384), "bad-certificate-signature"),
        (lambda: with_certificate("instance", signer=OTHER_P384), "bad-certificate-signature"),
        (lambda: with_certificate("leaf", signer=OTHER_P384), "bad-certificate-signature"),
        (lambda: with_certificate("leaf", issuer="somebody else"), "wrong-issuer"),
        (lambda: with_certificate("zonal", issuer="somebody else"), "wrong-issuer"),
        # what a certificate may do
        (lambda: with_certificate("instance", authority=False), "wrong-certificate-kind"),
        (lambda: with_certificate("instance", cert_sign=False), "wrong-certificate-kind"),
        (lambda: with_certificate("zonal", cert_sign=False), "wrong-certificate-kind"),
        (lambda: with_certificate("zonal", authority=False, cert_sign=True), "wrong-certificate-kind"),
        (lambda: with_certificate("regional", path_length=1), "wrong-certificate-kind"),
        (lambda: with_certificate("zonal", path_length=0), "wrong-certificate-kind"),
        (lambda: with_certificate("regional", path_length=2), "accepted"),
        (lambda: with_certificate("regional", path_length=None), "accepted"),
        (lambda: with_certificate("leaf", authority=True), "wrong-certificate-kind"),
        (lambda: with_certificate("leaf", digital_signature=False), "wrong-certificate-kind"),
        (lambda: with_certificate("leaf", critical=True), "malformed-certificate"),
        (lambda: with_certificate("zonal", critical=True), "malformed-certificate"),
        # algorithms
        (lambda: with_certificate("leaf", hash_algorithm=SHA256()), "bad-certificate-signature"),
        (lambda: with_certificate("zonal", hash_algorithm=SHA512()), "bad-certificate-signature"),
        # bytes
        (lambda: AWS.document(certificate=AWS.certificate("leaf") + b"\x00"), "malformed-certificate"),
        (lambda: AWS.document(certificate=AWS.certificate("leaf")[:-1]), "malformed-certificate"),
        (lambda: AWS.document(certificate=b"\x30\x00"), "malformed-certificate"),
        (lambda: AWS.document(cabundle=[*AWS.bundle()[:3], b"garbage"]), "malformed-certificate"),
    ],
)
def test_a_chain_with_one_thing_otherwise_is_refused_for_that_reason(
    make: Callable[[], bytes], code: str
) -> None:
    """C-13: the root is first and pinned by its bytes, and each certificate may do what it does."""
    assert code_of(make()) == code


@pytest.mark.parametrize("what", ["regional", "zonal", "instance"])
def test_a_p_256_authority_is_refused(what: str) -> None:
    """C-14: its signature on the next certificate is valid, and of the wrong kind."""
    small = ec_key("small", ec.SECP256R1)
    below = {"regional": "zonal", "zonal": "instance", "instance": "leaf"}[what]
    made = {
        what: AWS.certificate(what, public_key=small.public_key()),
        below: AWS.certificate(below, signer=small),
    }
    leaf = made.pop("leaf", AWS.certificate("leaf"))
    assert code_of(AWS.document(cabundle=AWS.bundle(**made), certificate=leaf)) == "bad-certificate-signature"


def test_an_rsa_leaf_is_refused() -> None:
    """C-14."""
    leaf = AWS.certificate("leaf", public_key=rsa_key("leaf").public_key())
    assert code_of(AWS.document(certificate=leaf)) == "wrong-certificate-kind"


def test_an_error_says_which_certificate_it_is_about() -> None:
    made = AWS.bundle(regional=AWS.certificate("regional", signer=OTHER_P384))
    with pytest.raises(UntrustedEvidence, match="certificate 2 of 4 in the cabundle"):
        appraise(AWS.document(cabundle=made), {}, AWS.policy(), now=NOON)


def test_a_p_256_leaf_is_refused() -> None:
    """C-14: its signature on the document is valid, with r and s written in 48 bytes each."""
    small = ec_key("small", ec.SECP256R1)
    leaf = AWS.certificate("leaf", public_key=small.public_key())
    data = AWS.sign(cbor.encode(AWS.told(certificate=leaf)), key=small)
    assert code_of(data) == "wrong-certificate-kind"


@pytest.mark.parametrize("hash_algorithm", [SHA256(), SHA512()])
def test_a_signature_over_another_hash_is_refused(hash_algorithm: Any) -> None:
    """C-14: by the right key."""
    assert code_of(AWS.sign(cbor.encode(AWS.told()), hash_algorithm=hash_algorithm)) == "bad-signature"


def test_a_signature_of_another_key_or_for_another_purpose_is_refused() -> None:
    """C-15: COSE signs the name of its structure too."""
    payload = cbor.encode(AWS.told())
    assert code_of(AWS.sign(payload, key=OTHER_P384)) == "bad-signature"
    assert code_of(AWS.sign(payload, key=AWS.key("instance"))) == "bad-signature"
    assert code_of(AWS.sign(payload, context="Signature")) == "bad-signature"
    assert code_of(AWS.sign(payload, context="CounterSignature")) == "bad-signature"


def with_signature(r: int, s: int) -> bytes:
    return AWS.document()[:-96] + r.to_bytes(48, "big") + s.to_bytes(48, "big")


@pytest.mark.parametrize("value", [0, P384_ORDER, P384_ORDER + 1, (1 << 384) - 1])
def test_a_signature_out_of_range_is_refused(value: int) -> None:
    """C-17: r and s are 1 to n − 1."""
    assert code_of(with_signature(value, 1)) == "malformed-signature"
    assert code_of(with_signature(1, value)) == "malformed-signature"
    assert code_of(with_signature(1, 1)) == "bad-signature"
    assert code_of(with_signature(P384_ORDER - 1, P384_ORDER - 1)) == "bad-signature"


def test_the_other_half_of_a_signature_is_as_good() -> None:
    """C-17: n − s is valid wherever s is; so a signature names nothing, and nothing here relies on that."""
    data = AWS.document()
    r, s = (int.from_bytes(data[at : at + 48], "big") for at in (len(data) - 96, len(data) - 48))
    mirrored = data[:-96] + r.to_bytes(48, "big") + (P384_ORDER - s).to_bytes(48, "big")
    assert mirrored != data
    assert code_of(mirrored) == "accepted"
    assert appraise(mirrored, {}, AWS.policy(), now=NOON) == appraise(data, {}, AWS.policy(), now=NOON)


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (NOON - 60 * SECOND, "accepted"),
        (NOON - 61 * SECOND, "outside-validity"),
        (NOON + 300 * SECOND, "accepted"),
        (NOON + 301 * SECOND, "outside-validity"),
        (NOON + timedelta(hours=3), "outside-validity"),
        (NOON + timedelta(hours=3) + SECOND, "certificate-not-valid-now"),
        (NOON - 64 * SECOND, "outside-validity"),
        (NOON - 65 * SECOND, "certificate-not-valid-now"),
    ],
)
def test_a_document_counts_for_five_minutes_and_a_slow_clock_may_lag_one(now: datetime, code: str) -> None:
    """C-1, C-11, C-24: a second to either side of each bound; the leaf began four seconds before."""
    assert code_of(AWS.document(), now=now) == code


def test_the_age_is_the_policy_s_to_say() -> None:
    """C-24: and the end of the certificates is not."""
    data = AWS.document()
    patient = AWS.policy(max_age_seconds=3 * 60 * 60, clock_skew_seconds=0)
    assert code_of(data, patient, NOON + timedelta(hours=3)) == "accepted"
    assert code_of(data, patient, NOON + timedelta(hours=3) + SECOND) == "certificate-not-valid-now"
    assert code_of(data, patient, NOON - SECOND) == "outside-validity"
    hasty = AWS.policy(max_age_seconds=0, clock_skew_seconds=0)
    assert code_of(data, hasty) == "accepted"
    assert code_of(data, hasty, NOON + timedelta(microseconds=1)) == "outside-validity"


@pytest.mark.parametrize("what", ["regional", "zonal", "instance", "leaf"])
def test_the_time_of_every_certificate_is_looked_at_with_the_callers_clock(what: str) -> None:
    """C-11: never with a time out of the document."""
    over = with_certificate(what, not_before=NOON - timedelta(hours=9), not_after=NOON - SECOND)
    assert code_of(over) == "certificate-not-valid-now"
    ending = with_certificate(what, not_before=NOON - timedelta(hours=9), not_after=NOON)
    assert code_of(ending) == "accepted"
    future = with_certificate(what, not_before=NOON + 61 * SECOND, not_after=NOON + timedelta(hours=9))
    assert code_of(future) == "certificate-not-valid-now"
    nearly = with_certificate(what, not_before=NOON + 60 * SECOND, not_after=NOON + timedelta(hours=9))
    assert code_of(nearly) == "accepted"


def test_the_first_and_the_last_moment_there_is_are_times_like_others() -> None:
    """C-11: no sum with them leaves the calendar."""
    last = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp() * 1000) + 999
    assert code_of(AWS.document(timestamp=last)) == "outside-validity"
    assert code_of(AWS.document(timestamp=1)) == "outside-validity"
    eternal = AWS.certificate(
        "leaf", not_before=datetime(2049, 1, 1, tzinfo=UTC), not_after=NOON.replace(year=2050)
    )
    old, new = (
        b"\x17\x0d490101000000Z\x18\x0f20500601120000Z",
        b"\x18\x0f00010101000000Z\x17\x0d490601120000Z",
    )
    assert eternal.count(old) == 1
    assert code_of(AWS.document(certificate=eternal.replace(old, new))) == "bad-certificate-signature"


def test_an_old_document_is_an_old_answer_and_not_a_forgery() -> None:
    """C-1: the caller can tell the two apart by type."""
    with pytest.raises(UnboundKey, match="old one") as caught:
        appraise(AWS.document(), {}, AWS.policy(), now=NOON + timedelta(hours=1))
    assert caught.value.steps[-1].number == 6
    with pytest.raises(UntrustedEvidence, match="none of the pinned roots") as forged:
        appraise(OTHER.document(), {}, AWS.policy(), now=NOON)
    assert forged.value.steps[-1].number == 4


def test_the_fake_cloud_is_nobody_to_the_pinned_root() -> None:
    """C-13: only tests pass roots of their own."""
    assert code_of(AWS.document(), NitroPolicy(pcrs={0: {PCRS[0]}})) == "unpinned-root"
    assert NitroPolicy(pcrs={0: {PCRS[0]}}).roots is not AWS.policy().roots
    assert dict(NitroPolicy(pcrs={0: {PCRS[0]}}).roots) == dict(AWS_ROOTS)


def test_signatures_of_certificates_are_remembered_and_times_are_not() -> None:
    """C-11: a chain that was valid a moment ago is looked at again."""
    data = AWS.document()
    assert code_of(data) == "accepted"
    before = _signed.cache_info().hits
    assert code_of(data) == "accepted"
    assert _signed.cache_info().hits == before + 4
    patient = AWS.policy(max_age_seconds=3 * 60 * 60)
    assert code_of(data, patient, NOON + timedelta(hours=4)) == "certificate-not-valid-now"


def test_what_is_remembered_is_bounded() -> None:
    for number in range(300):
        code_of(AWS.document(certificate=b"\x30\x82" + number.to_bytes(2, "big")))
    assert _read.cache_info().maxsize == _signed.cache_info().maxsize == 256
