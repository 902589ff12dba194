"""Confidential Space tokens as bytes: what is read, and that everything else is refused where it is found."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.gcp import Token, appraise
from blindbox_attestation.gcp.token import MAX_TOKEN, from_base64url, to_base64url
from tests.kit import NOON
from tests.kit.google import ACCOUNT, AUDIENCE, IMAGE, FakeGoogle, dumped
from tests.kit.verdict import verdict

GOOGLE = FakeGoogle()
GOOD = GOOGLE.token()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(b".")


def code_of(data: bytes) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: appraise(data, {}, GOOGLE.policy(), now=NOON))


def with_header(**changes: Any) -> bytes:
    return GOOGLE.sign(dumped(GOOGLE.header(**changes)), dumped(GOOGLE.told()))


def with_payload(payload: bytes) -> bytes:
    return GOOGLE.sign(dumped(GOOGLE.header()), payload)


def x5c(*certificates: bytes) -> list[str]:
    return [base64.b64encode(one).decode("ascii") for one in certificates]


def test_a_token_is_read() -> None:
    token = Token.parse(GOOD)
    assert (token.audience, token.image_digest, token.nonces) == (AUDIENCE, IMAGE, ("0123456789abcdef",))
    assert (token.issued_at, token.software_version) == (NOON, 260400)
    assert token.service_accounts == {ACCOUNT}
    assert token.support_attributes == {"LATEST", "STABLE", "USABLE"}
    assert list(token.certificates) == GOOGLE.chain()
    assert token.signed == HEADER + b"." + PAYLOAD
    assert code_of(GOOD) == "accepted"


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "HS256", "RS384", "PS256", "ES256", "rs256", "", None, 256]
)
def test_another_algorithm_is_refused_before_anything_is_done_with_it(algorithm: object) -> None:
    """C-14: the algorithm is fixed; what the header says is only compared with it."""
    header = {**GOOGLE.header(), "alg": algorithm}
    if algorithm is None:
        del header["alg"]
    assert code_of(GOOGLE.sign(dumped(header), dumped(GOOGLE.told()))) == "unsupported-signature-algorithm"


def test_a_token_without_a_signature_is_refused() -> None:
    """C-14: alg none, as text and as an empty third part."""
    unsigned = to_base64url(dumped(GOOGLE.header(alg="none"))) + b"." + PAYLOAD + b"."
    assert code_of(unsigned) == "unsupported-signature-algorithm"
    assert code_of(HEADER + b"." + PAYLOAD + b".") == "bad-signature"


def test_a_public_certificate_is_no_shared_secret() -> None:
    """C-14: HS256 with what everybody has as the key."""
    content = to_base64url(dumped(GOOGLE.header(alg="HS256"))) + b"." + PAYLOAD
    for secret in (*GOOGLE.chain(), b""):
        mac = hmac.digest(secret, content, hashlib.sha256)
        assert code_of(content + b"." + to_base64url(mac)) == "unsupported-signature-algorithm"
        mac = hmac.digest(secret, HEADER + b"." + PAYLOAD, hashlib.sha256)
        assert code_of(HEADER + b"." + PAYLOAD + b"." + to_base64url(mac)) == "bad-signature"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: b"", "1 parts"),
        (lambda: b"..", "cannot be read"),
        (lambda: HEADER + b"." + PAYLOAD, "2 parts"),
        (lambda: GOOD + b".", "4 parts"),
        (lambda: GOOD + b"\n", "base64url"),
        (lambda: b" " + GOOD, "base64url"),
        (lambda: b"Bearer " + GOOD, "base64url"),
        (lambda: GOOD + b"==", "canonical"),
        (lambda: GOOD.replace(b"_", b"/").replace(b"-", b"+") + b"+", "base64url"),
        (lambda: HEADER + b"." + PAYLOAD[:8] + b"!!!!" + PAYLOAD[8:] + b"." + SIGNATURE, "canonical"),
        (lambda: bytes(MAX_TOKEN + 1), "at most 32768"),
        (lambda: GOOGLE.sign(b"[]", dumped(GOOGLE.told())), "cannot be read"),
        (lambda: GOOGLE.sign(b"\xff", dumped(GOOGLE.told())), "UTF-8"),
        (lambda: with_header(jku="https://nobody.example/keys"), "unknown key 'jku'"),
        (lambda: with_header(jwk={"kty": "RSA"}), "unknown key 'jwk'"),
        (lambda: with_header(x5u="https://nobody.example/chain"), "unknown key 'x5u'"),
        (lambda: with_header(crit=["exp"]), "unknown key 'crit'"),
        (lambda: with_header(b64=False), "unknown key 'b64'"),
        (lambda: with_header(typ="JOSE"), "another type"),
        (lambda: with_header(kid=7), "kid is not a string"),
        (lambda: with_header(x5c=None), "no certificates"),
        (lambda: with_header(x5c=[]), "0 certificates"),
        (lambda: with_header(x5c=x5c(*GOOGLE.chain()[:2])), "2 certificates"),
        (lambda: with_header(x5c=x5c(*GOOGLE.chain(), GOOGLE.chain()[2])), "4 certificates"),
        (lambda: with_header(x5c="abcd"), "not a list"),
        (lambda: with_header(x5c=[1, 2, 3]), "not base64"),
        (lambda: with_header(x5c=[*x5c(*GOOGLE.chain()[:2]), ""]), "or of none"),
        (lambda: with_header(x5c=[*x5c(*GOOGLE.chain()[:2]), "AA\n=="]), "not base64"),
        (lambda: with_header(x5c=[*x5c(*GOOGLE.chain()[:2]), "AB=="]), "canonical"),
        (lambda: with_header(x5c=x5c(*GOOGLE.chain()[:2], bytes(4097))), "more than 4096 bytes"),
        (lambda: GOOGLE.sign(b'{"alg":"RS256","alg":"RS256"}', b"{}"), "twice"),
        (lambda: with_payload(b""), "not JSON"),
        (lambda: with_payload(b"[]"), "not a JSON object"),
        (lambda: with_payload(b"{}{}"), "not JSON"),
        (lambda: with_payload(dumped(GOOGLE.told())[:-1] + b',"dbgstat":"disabled-since-boot"}'), "twice"),
        (lambda: with_payload(b'{"aud":{"a":{"b":1,"b":1}}}'), "twice"),
        (lambda: with_payload(b'{"x":' + b"[" * 9 + b"]" * 9 + b"}"), "deeper"),
        (lambda: with_payload(b'{"exp":1e9}'), "not an integer"),
        (lambda: with_payload(b'{"exp":NaN}'), "NaN"),
        (lambda: with_payload(b'{"exp":10000000000000000000000}'), "digits"),
        (lambda: GOOGLE.token(exp=None), "no exp"),
        (lambda: GOOGLE.token(nbf=None), "no nbf"),
        (lambda: GOOGLE.token(iat=None), "no iat"),
        (lambda: GOOGLE.token(exp="1"), "exp is not an integer"),
        (lambda: GOOGLE.token(exp=True), "exp is not an integer"),
        (lambda: GOOGLE.token(exp=-1), "exp is -1"),
        (lambda: GOOGLE.token(exp=253402300800), "exp is 253402300800"),
        (lambda: GOOGLE.token(aud=[AUDIENCE]), "aud is not a string"),
        (lambda: GOOGLE.token(iss=1), "iss is not a string"),
        (lambda: GOOGLE.token(secboot="true"), "secboot is neither"),
        (lambda: GOOGLE.token(secboot=1), "secboot is neither"),
        (lambda: GOOGLE.token(dbgstat=False), "dbgstat is not a string"),
        (lambda: GOOGLE.token(eat_nonce=7), "eat_nonce is not a list"),
        (lambda: GOOGLE.token(eat_nonce=[7]), "eat_nonce is not a string"),
        (lambda: GOOGLE.token(eat_nonce=["x"] * 17), "17 nonces"),
        (lambda: GOOGLE.token(eat_nonce="x" * 129), "eat_nonce is not a string"),
        (lambda: GOOGLE.token(eat_nonce="ä"), "eat_nonce is not a string"),
        (lambda: GOOGLE.token(swversion=["a"]), "swversion"),
        (lambda: GOOGLE.token(swversion=["1", "2"]), "swversion"),
        (lambda: GOOGLE.token(swversion=["1" * 20]), "swversion"),
        (lambda: GOOGLE.token(swversion="260400"), "swversion is not a list"),
        (lambda: GOOGLE.token(submods=[1]), "submods that is no object"),
        (lambda: GOOGLE.token(submods={"gce": [1]}), "gce that is no object"),
        (lambda: GOOGLE.token(submods={"container": {"image_digest": "sha256:00"}}), "image_digest"),
        (lambda: GOOGLE.token(submods={"container": {"image_digest": IMAGE.upper()}}), "image_digest"),
        (lambda: GOOGLE.token(submods={"container": {"image_digest": IMAGE + "\n"}}), "image_digest"),
        (lambda: GOOGLE.token(submods={"container": {"env_override": ["A"]}}), "env_override that is no"),
        (lambda: GOOGLE.token(submods={"container": {"cmd_override": "sh"}}), "cmd_override is not a list"),
        (lambda: GOOGLE.token(google_service_accounts=["a"] * 65), "65 values"),
        (lambda: GOOGLE.token(tdx=[1]), "tdx that is no object"),
    ],
)
def test_another_spelling_or_type_is_refused(make: Callable[[], bytes], why: str) -> None:
    """C-17, C-18: duplicate keys, keys from elsewhere, padding, other types; also when well signed."""
    with pytest.raises(MalformedEvidence, match=why) as caught:
        Token.parse(make())
    assert caught.value.code == "malformed-token"


def test_a_token_may_be_as_long_as_its_bound() -> None:
    """C-18: a longer one is refused for its size alone, before anything else."""
    with pytest.raises(MalformedEvidence, match="1 parts"):
        Token.parse(bytes(MAX_TOKEN))


def test_as_many_as_may_be_are_read() -> None:
    """C-18: the bounds themselves belong to what is read; and no type has to be named."""
    token = GOOGLE.token(
        eat_nonce=["x" * 128] * 16,
        google_service_accounts=[f"a{at}" for at in range(64)],
        swversion=["9" * 19],
    )
    read = Token.parse(token)
    assert (len(read.nonces), len(read.service_accounts)) == (16, 64)
    assert read.software_version == int("9" * 19)
    for size in (1, 4096):
        certificates = [bytes(size)] * 3
        assert Token.parse(with_header(x5c=x5c(*certificates))).certificates == tuple(certificates)
    header = {name: value for name, value in GOOGLE.header().items() if name != "typ"}
    assert code_of(GOOGLE.sign(dumped(header), dumped(GOOGLE.told()))) == "accepted"


def test_claims_that_google_adds_are_left_alone() -> None:
    assert (
        code_of(GOOGLE.token(something_new={"a": [1, {"b": None}]}, submods={"nvidia_gpu": {}})) == "accepted"
    )


def test_every_truncation_is_refused() -> None:
    """C-19: at every length."""
    codes = {code_of(GOOD[:size]) for size in range(len(GOOD))}
    assert codes <= {"malformed-token", "bad-signature"}


def test_a_flipped_bit_in_any_byte_is_refused() -> None:
    """C-15: every character of a token is read or signed."""
    accepted = [
        at
        for at in range(len(GOOD))
        if code_of(GOOD[:at] + bytes((GOOD[at] ^ 1 << at % 8,)) + GOOD[at + 1 :]) == "accepted"
    ]
    assert accepted == []


@given(st.binary(max_size=100))
def test_base64url_has_one_spelling(data: bytes) -> None:
    """C-17: without padding, and with unused bits zero."""
    text = to_base64url(data)
    assert from_base64url(text) == data
    for other in (text + b"=", text + b"\n", text + b"A", b"\xff" + text):
        with contextlib.suppress(MalformedEvidence):
            assert to_base64url(from_base64url(other)) == other


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.sampled_from(sorted(GOOGLE.told())), JSON)
def test_any_value_of_any_claim_ends_in_a_typed_error_or_a_verdict(name: str, value: Any) -> None:
    """C-17: well signed, whatever it is."""
    code_of(with_payload(json.dumps({**GOOGLE.told(), name: value}).encode()))


@settings(max_examples=500)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_end_in_a_typed_error(header: bytes, payload: bytes) -> None:
    assert code_of(header) != "accepted"
    assert code_of(GOOGLE.sign(header, payload)) != "accepted"
    assert code_of(with_payload(payload)) == "malformed-token"
