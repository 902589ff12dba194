"""Reading TDX quotes: what is in which field, and that nothing else is taken for one."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindbox_attestation.errors import AttestationError, MalformedEvidence
from blindbox_attestation.tdx import Quote, appraise
from blindbox_attestation.tdx.collateral import MAX_COLLATERAL, Collateral
from blindbox_attestation.tdx.quote import MAX_QUOTE
from tests.kit import NOON
from tests.kit.intel import MRSEAM, MRTD, RTMRS, TEE_TCB_SVN, FakeIntel, raw_point

INTEL = FakeIntel()
BODY = {4: 48, 5: 54}  # where it begins
DATA = hashlib.sha512(b"somebody's question").digest()


@pytest.mark.parametrize("version", [4, 5])
def test_every_field_is_where_the_format_puts_it(version: int) -> None:
    changes = {"mrconfigid": b"\x01" * 48, "mrowner": b"\x02" * 48, "mrownerconfig": b"\x03" * 48}
    quote = Quote.parse(INTEL.quote(DATA, version=version, xfam=0xE7, seam_attributes=9, **changes))
    assert quote.version == version
    assert quote.tee_tcb_svn == TEE_TCB_SVN
    assert (quote.mrseam, quote.mrsignerseam, quote.mrtd, quote.rtmrs) == (MRSEAM, bytes(48), MRTD, RTMRS)
    assert (quote.mrconfigid, quote.mrowner, quote.mrownerconfig) == tuple(changes.values())
    assert (quote.seam_attributes, quote.td_attributes, quote.xfam) == (9, 1 << 28, 0xE7)
    assert quote.report_data == DATA
    assert quote.mrservicetd == (None if version == 4 else bytes(48))
    assert quote.attestation_key == raw_point(INTEL.key("attestation"))
    assert quote.pck_chain == INTEL.chain.encode()


def test_a_body_of_the_older_kind_in_version_5_is_read() -> None:
    quote = Quote.parse(INTEL.quote(DATA, version=5, body_type=2))
    assert (quote.report_data, quote.mrservicetd) == (DATA, None)


@pytest.mark.parametrize("version", [4, 5])
def test_a_quote_cut_anywhere_is_refused(version: int) -> None:
    """C-19."""
    whole = INTEL.quote(DATA, version=version, padding=0)
    for length in range(len(whole)):
        with pytest.raises(MalformedEvidence) as caught:
            Quote.parse(whole[:length])
        assert caught.value.code == "malformed-quote"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"version": 3}, "unsupported-quote-version"),
        ({"version": 6}, "unsupported-quote-version"),
        ({"tee": 0}, "wrong-tee-type"),
        ({"tee": 0x82}, "wrong-tee-type"),
        ({"tee": 0, "version": 3}, "wrong-tee-type"),
        ({"key_type": 3}, "unsupported-signature-algorithm"),
        ({"reserved": b"\x00\x00\x01\x00"}, "reserved-bits"),
        ({"vendor": bytes(16)}, "malformed-quote"),
    ],
)
def test_another_header_is_refused_although_well_signed(header: dict[str, object], code: str) -> None:
    """C-13, C-14, C-20: an SGX quote, P-384, other versions."""
    with pytest.raises(MalformedEvidence) as caught:
        appraise(INTEL.quote(header=header), INTEL.endorsements(), INTEL.tdx_policy(), now=NOON)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (48, b"\x01\x00", "unsupported-quote-version"),  # an SGX body
        (48, b"\x04\x00", "unsupported-quote-version"),  # TD 1.5ex
        (48, b"\x02\x00", "malformed-quote"),  # the older body, and the newer one's size
        (50, b"\x89\x02\x00\x00", "malformed-quote"),
        (50, b"\xff\xff\xff\xff", "malformed-quote"),
    ],
)
def test_another_kind_or_size_of_body_is_refused(at: int, value: bytes, code: str) -> None:
    """C-16: header size fields."""
    data = INTEL.quote(DATA, version=5)
    with pytest.raises(MalformedEvidence) as caught:
        Quote.parse(data[:at] + value + data[at + len(value) :])
    assert caught.value.code == code


SIGNATURE = 48 + 584  # where the length of the signature data is, in version 4
QE = SIGNATURE + 4 + 128  # type and size of what certifies the key
AUTHENTICATION = QE + 6 + 384 + 64
CERTIFICATES = AUTHENTICATION + 2 + 32


@pytest.mark.parametrize(
    ("at", "size"),
    [(SIGNATURE, 4), (QE + 2, 4), (AUTHENTICATION, 2), (CERTIFICATES + 2, 4)],
    ids=["signature data", "certification data", "authentication data", "certificates"],
)
@pytest.mark.parametrize("step", [-1, 1, 1 << 14])
def test_a_size_that_is_not_the_true_one_is_refused(at: int, size: int, step: int) -> None:
    """C-16: every size in the quote stands in one relation to the others."""
    data = INTEL.quote(DATA)
    told = int.from_bytes(data[at : at + size], "little")
    with pytest.raises(MalformedEvidence) as caught:
        Quote.parse(data[:at] + (told + step).to_bytes(size, "little") + data[at + size :])
    assert caught.value.code == "malformed-quote"


@pytest.mark.parametrize(("at", "kind"), [(QE, 5), (QE, 1), (CERTIFICATES, 6), (CERTIFICATES, 3)])
def test_another_kind_of_certification_is_refused(at: int, kind: int) -> None:
    data = INTEL.quote(DATA)
    with pytest.raises(MalformedEvidence) as caught:
        Quote.parse(data[:at] + kind.to_bytes(2, "little") + data[at + 2 :])
    assert caught.value.code == "malformed-quote"


def test_zeros_after_a_quote_are_cut_and_anything_else_is_refused() -> None:
    """C-17: what the host's buffer holds after the quote is under no signature."""
    data = INTEL.quote(DATA, padding=0)
    assert Quote.parse(data).data == Quote.parse(data + bytes(3000)).data == data
    for tail in (b"\x01", bytes(2999) + b"\x01", data):
        with pytest.raises(MalformedEvidence) as caught:
            Quote.parse(data + tail)
        assert caught.value.code == "trailing-bytes"


def test_a_quote_larger_than_any_genuine_one_is_not_read() -> None:
    """C-18."""
    data = INTEL.quote(DATA, padding=0)
    Quote.parse(data.ljust(MAX_QUOTE, b"\x00"))
    with pytest.raises(MalformedEvidence) as caught:
        Quote.parse(data.ljust(MAX_QUOTE + 1, b"\x00"))
    assert caught.value.code == "malformed-quote"


@given(st.binary(max_size=2000), st.integers(0, 1300))
def test_any_bytes_at_all_are_a_quote_or_malformed(data: bytes, at: int) -> None:
    """C-17: nothing but our own error comes out, whatever goes in."""
    good = INTEL.quote(DATA)
    for attempt in (data, good[:at] + data + good[at + len(data) :]):
        try:
            Quote.parse(attempt)
        except MalformedEvidence:
            continue


def test_a_flipped_bit_anywhere_is_refused() -> None:
    """C-15: a sample of all of them, here; every bit of the quote is signed, or has one right value."""
    data = INTEL.quote(DATA, padding=4)
    endorsements, policy = INTEL.endorsements(), INTEL.tdx_policy()
    chance = random.Random(15)
    for bit in chance.sample(range(8 * len(data)), 600):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AttestationError):
            appraise(bytes(changed), endorsements, policy, now=NOON)


# --- collateral ---


def test_collateral_has_exactly_nine_strings() -> None:
    """C-17."""
    told = json.loads(INTEL.collateral())
    assert len(told) == 9
    Collateral.parse(json.dumps(told).encode())
    bad: list[bytes] = [b"", b"[]", b"{}", b"\xff", json.dumps(told).encode() + b" x"]
    for name in told:
        rest = {key: value for key, value in told.items() if key != name}
        bad.append(json.dumps(rest).encode())
        bad.append(json.dumps({**told, name: 7}).encode())
        bad.append(json.dumps({**told, name: told[name] + "é"}).encode())
        bad.append(json.dumps(rest)[:-1].encode() + f', "{name}": "", "{name}": ""}}'.encode())
    bad.append(json.dumps({**told, "pck_certificate_chain": told["pck_crl_issuer_chain"]}).encode())
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
        bad.append(json.dumps({**told, name: told[name].upper()}).encode())
        bad.append(json.dumps({**told, name: told[name][:-1]}).encode())
        bad.append(json.dumps({**told, name: ""}).encode())
    bad.append(json.dumps({**told, "tcb_info_signature": told["tcb_info_signature"] + "00"}).encode())
    for data in bad:
        with pytest.raises(MalformedEvidence) as caught:
            Collateral.parse(data)
        assert caught.value.code == "malformed-collateral"


def test_collateral_larger_than_all_endorsements_may_be_is_not_read() -> None:
    """C-18."""
    data = INTEL.collateral()
    Collateral.parse(data.ljust(MAX_COLLATERAL))
    with pytest.raises(MalformedEvidence) as caught:
        Collateral.parse(data.ljust(MAX_COLLATERAL + 1))
    assert caught.value.code == "malformed-collateral"
