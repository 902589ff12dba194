"""A revocation list that its issuer has not signed is refused before any of its entries is read."""

from __future__ import annotations

import pytest

from blindbox_attestation import snp, tdx
from blindbox_attestation.errors import RevokedEvidence
from blindbox_attestation.x509 import RevocationList
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.intel import FakeIntel, tlv

AMD = FakeAmd()
INTEL = FakeIntel()


def hollow(der: bytes) -> bytes:
    """The same outer shape, signature and all, with nothing in it that a list is made of."""
    listed = RevocationList.parse(der)
    return tlv(0x30, tlv(0x30, b"") + listed.signed.algorithm + tlv(0x03, b"\x00" + listed.signed.signature))


def test_amds_list_is_not_read_unless_the_root_signed_it() -> None:
    """C-18: a hostile list of 128 KiB has thousands of entries, and anybody can make one."""
    endorsements = {**AMD.endorsements(), "crl": hollow(AMD.crl())}
    with pytest.raises(RevokedEvidence, match="is not one of 'ARK-Genoa'") as caught:
        snp.appraise(AMD.report(bytes(64)), endorsements, AMD.snp_policy(), now=NOON)
    assert caught.value.code == "crl-bad-signature"
    assert caught.value.steps[-1].number == 5


@pytest.mark.parametrize(("name", "who"), [("root_ca_crl", "root"), ("pck_crl", "platform")])
def test_intels_lists_are_not_read_unless_their_issuers_signed_them(name: str, who: str) -> None:
    """C-18."""
    unsigned = hollow(bytes.fromhex(INTEL.crl(who))).hex()
    with pytest.raises(RevokedEvidence, match=f"{name} is not a list of") as caught:
        tdx.appraise(
            INTEL.quote(),
            {"collateral": INTEL.collateral(**{name: unsigned})},
            INTEL.tdx_policy(),
            now=NOON,
        )
    assert caught.value.code == "crl-bad-signature"
    assert caught.value.steps[-1].number == 5
