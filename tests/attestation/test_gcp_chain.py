"""From a token back to Google: one honest token, then one change at a time, each for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from blindbox_attestation.certificate_path import _signed
from blindbox_attestation.errors import UnboundKey, UntrustedEvidence
from blindbox_attestation.gcp import GcpPolicy, appraise
from blindbox_attestation.roots import CONFIDENTIAL_SPACE_ROOTS
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.aws import ec_key
from tests.kit.google import FakeGoogle, dumped, rsa_key
from tests.kit.verdict import verdict

GOOGLE = FakeGoogle()
OTHER = FakeGoogle("theirs")
SECOND = timedelta(seconds=1)
STRANGER = rsa_key("stranger")
PSS = padding.PSS(padding.MGF1(SHA256()), 32)
START = int(NOON.timestamp())


def code_of(data: bytes, policy: GcpPolicy | None = None, now: datetime = NOON) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(data, {}, policy or GOOGLE.policy(), now=now))


def with_certificate(what: str, **changes: Any) -> bytes:
    """A token whose chain has one certificate made otherwise."""
    return GOOGLE.token(GOOGLE.chain(**{what: GOOGLE.certificate(what, **changes)}))


def signed(**how: Any) -> bytes:
    return GOOGLE.sign(dumped(GOOGLE.header()), dumped(GOOGLE.told()), **how)


def test_an_honest_token_passes_every_step() -> None:
    walk = Walk()
    claims = appraise(GOOGLE.token(), {}, GOOGLE.policy(), now=NOON, walk=walk)
    assert claims.measurement.hex() == claims.image_digest.removeprefix("sha256:")
    assert [step.number for step in walk.steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert {step.number for step in walk.steps if step.outcome == "not asked"} == {5, 13}
    assert "not by the hardware" in walk.steps[4].detail
    names = [check.name for check in walk.steps[1].checks]
    assert sum(name.endswith("signed by its issuer") for name in names) == 2
    assert sum(name.endswith(": valid") for name in names) == 6  # now, and when the token was issued


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: GOOGLE.token(GOOGLE.chain()[::-1]), "unpinned-root"),
        (lambda: GOOGLE.token([GOOGLE.chain()[i] for i in (1, 0, 2)]), "wrong-certificate-kind"),
        (lambda: GOOGLE.token([GOOGLE.chain()[0], GOOGLE.chain()[2], GOOGLE.chain()[2]]), "wrong-issuer"),
        (
            lambda: GOOGLE.token([GOOGLE.chain()[1], GOOGLE.chain()[2], GOOGLE.chain()[2]]),
            "wrong-certificate-kind",
        ),
        (lambda: OTHER.token(), "unpinned-root"),
        (lambda: OTHER.token([*OTHER.chain()[:2], GOOGLE.chain()[2]]), "bad-certificate-signature"),
        (lambda: OTHER.token([OTHER.chain()[0], *GOOGLE.chain()[1:]]), "bad-certificate-signature"),
        (lambda: OTHER.token(GOOGLE.chain()), "bad-signature"),
        (lambda: GOOGLE.token([*GOOGLE.chain()[:2], GOOGLE.chain()[2] + b"\x00"]), "unpinned-root"),
        (lambda: with_certificate("root", not_after=NOON + timedelta(days=99)), "unpinned-root"),
        (lambda: with_certificate("intermediate", signer=STRANGER), "bad-certificate-signature"),
        (lambda: with_certificate("leaf", signer=STRANGER), "bad-certificate-signature"),
        (lambda: with_certificate("leaf", issuer="stranger"), "wrong-issuer"),
        (lambda: with_certificate("intermediate", issuer="stranger"), "wrong-issuer"),
        (lambda: with_certificate("intermediate", authority=False), "wrong-certificate-kind"),
        (lambda: with_certificate("intermediate", cert_sign=False), "wrong-certificate-kind"),
        (lambda: with_certificate("leaf", authority=True), "wrong-certificate-kind"),
        (lambda: with_certificate("leaf", critical=True), "malformed-certificate"),
        (lambda: with_certificate("leaf", hash_algorithm=SHA384()), "bad-certificate-signature"),
        (lambda: with_certificate("leaf", pad=PSS), "bad-certificate-signature"),
        (lambda: with_certificate("intermediate", pad=PSS), "bad-certificate-signature"),
        (lambda: GOOGLE.token([GOOGLE.chain()[0] + b"\x00", *GOOGLE.chain()[1:]]), "malformed-certificate"),
        (lambda: GOOGLE.token([b"garbage", *GOOGLE.chain()[1:]]), "malformed-certificate"),
    ],
)
def test_a_chain_with_one_thing_otherwise_is_refused_for_that_reason(
    make: Callable[[], bytes], code: str
) -> None:
    """C-13: the root is pinned by its bytes; that it came with the token says nothing."""
    assert code_of(make()) == code


def test_a_key_of_another_kind_or_too_short_is_refused() -> None:
    """C-14: the slots of this chain hold RSA keys of 2048 bits and more."""
    short = rsa_key("short", 1024)
    small = GOOGLE.chain(leaf=GOOGLE.certificate("leaf", public_key=short.public_key()))
    told = dumped(GOOGLE.told())
    assert code_of(GOOGLE.sign(dumped(GOOGLE.header(small)), told, key=short)) == "bad-signature"
    curved = GOOGLE.certificate("leaf", public_key=ec_key("leaf").public_key())
    assert code_of(GOOGLE.token(GOOGLE.chain(leaf=curved))) == "bad-signature"
    short_issuer = GOOGLE.chain(
        intermediate=GOOGLE.certificate("intermediate", public_key=short.public_key()),
        leaf=GOOGLE.certificate("leaf", signer=short),
    )
    assert code_of(GOOGLE.token(short_issuer)) == "bad-certificate-signature"


@pytest.mark.parametrize("how", [{"hash_algorithm": SHA384()}, {"pad": PSS}, {"key": STRANGER}])
def test_a_signature_of_another_kind_or_key_is_refused(how: dict[str, Any]) -> None:
    """C-14: valid, and not RS256 by the leaf."""
    assert code_of(signed()) == "accepted"
    assert code_of(signed(**how)) == "bad-signature"


def test_a_token_spliced_from_two_is_refused() -> None:
    """C-15: header, payload and signature belong together."""
    one, other = GOOGLE.token().split(b"."), GOOGLE.token(eat_nonce="another one").split(b".")
    assert code_of(b".".join((one[0], other[1], one[2]))) == "bad-signature"
    header = dumped(GOOGLE.header(kid="another")).rstrip()
    respelt = GOOGLE.sign(header, b"{}").split(b".")[0]
    assert code_of(b".".join((respelt, one[1], one[2]))) == "bad-signature"


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (NOON - 60 * SECOND, "accepted"),
        (NOON - 61 * SECOND, "token-not-valid-now"),
        (NOON + 3659 * SECOND, "accepted"),
        (NOON + 3660 * SECOND, "token-not-valid-now"),
    ],
)
def test_a_token_counts_from_its_beginning_to_its_end_give_or_take_a_minute(now: datetime, code: str) -> None:
    """C-1, C-11, C-24: a second to either side of each bound."""
    assert code_of(GOOGLE.token(), now=now) == code


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"nbf": START + 1}, "token-not-valid-now"),
        ({"iat": START + 1}, "token-not-valid-now"),
        ({"exp": START}, "token-not-valid-now"),
        ({"exp": START + 1}, "accepted"),
        ({"exp": START - 10, "nbf": START}, "token-not-valid-now"),
        ({"exp": 253402300799}, "accepted"),
        ({"nbf": 0, "iat": 0}, "certificate-not-valid-now"),
        ({"nbf": 253402300799, "exp": 253402300799}, "token-not-valid-now"),
    ],
)
def test_each_of_the_three_times_is_looked_at(claims: dict[str, int], code: str) -> None:
    """C-11, C-24: with no skew, to the second."""
    assert code_of(GOOGLE.token(**claims), GOOGLE.policy(clock_skew_seconds=0)) == code


@pytest.mark.parametrize("what", ["intermediate", "leaf"])
def test_every_certificate_is_valid_now_and_when_the_token_was_issued(what: str) -> None:
    """C-11: a second to either side; the clock is the caller's."""
    later = NOON + 600 * SECOND
    over = with_certificate(what, not_after=later)
    assert code_of(over, now=later) == "accepted"
    assert code_of(over, now=later + SECOND) == "certificate-not-valid-now"
    begun = with_certificate(what, not_before=NOON)
    assert code_of(begun) == "accepted"
    unborn = with_certificate(what, not_before=NOON + SECOND)
    assert code_of(unborn, now=later) == "certificate-not-valid-now"  # now it is, but not at iat


def test_the_last_second_there_is_is_a_time_like_others() -> None:
    """C-11: no sum with it leaves the calendar."""
    assert code_of(GOOGLE.token(exp=253402300799)) == "accepted"
    assert code_of(GOOGLE.token(exp=0)) == "token-not-valid-now"


def test_an_old_token_is_an_old_answer_and_not_a_forgery() -> None:
    """C-1: the caller can tell the two apart by type."""
    with pytest.raises(UnboundKey, match="old one") as caught:
        appraise(GOOGLE.token(), {}, GOOGLE.policy(), now=NOON + timedelta(hours=2))
    assert caught.value.steps[-1].number == 6
    with pytest.raises(UntrustedEvidence, match="none of the pinned roots") as forged:
        appraise(OTHER.token(), {}, GOOGLE.policy(), now=NOON)
    assert forged.value.steps[-1].number == 4


def test_the_fake_cloud_is_nobody_to_the_pinned_root() -> None:
    """C-13: only tests pass roots of their own."""
    real = GOOGLE.policy(roots=CONFIDENTIAL_SPACE_ROOTS)
    assert code_of(GOOGLE.token(), real) == "unpinned-root"
    plain = GcpPolicy(audiences={"a"}, image_digests=real.image_digests, hardware=real.hardware)
    assert dict(plain.roots) == dict(CONFIDENTIAL_SPACE_ROOTS)


def test_signatures_of_certificates_are_remembered_and_times_are_not() -> None:
    """C-11."""
    data = GOOGLE.token()
    assert code_of(data) == "accepted"
    before = _signed.cache_info().hits
    assert code_of(data) == "accepted"
    assert _signed.cache_info().hits == before + 2
    assert code_of(data, now=NOON + timedelta(days=31)) == "certificate-not-valid-now"
