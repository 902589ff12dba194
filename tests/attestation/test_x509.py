"""Certificates and revocation lists, one element of an honest one otherwise; and how each vendor signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blindbox_attestation.der import NotDer
from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.x509 import (
    P384_SHA384,
    RSA_4096_PSS_SHA384,
    RSA_PKCS1_SHA256,
    Certificate,
    RevocationList,
    Scheme,
    Signed,
)
from tests.kit.amd import FakeAmd
from tests.kit.aws import FakeAws, ec_key
from tests.kit.der_tree import Node, tree
from tests.kit.google import FakeGoogle, rsa_key

NOTHING = Node(0x05)
AUTHORITY = FakeAws().bundle()[1]  # with a length of path and a use of its key
LIST = FakeAmd().endorsements()["crl"]
BASIC_CONSTRAINTS = bytes.fromhex("551d13")
KEY_USAGE = bytes.fromhex("551d0f")

Change = Callable[[Node], object]


def changed(der: bytes, change: Change) -> bytes:
    whole = tree(der)
    change(whole)
    return whole.encode()


def more(*path: int) -> Change:
    """Something at the end of the element there, where nothing belongs."""

    def change(whole: Node) -> None:
        node = whole
        for at in path:
            node = node[at]
        node.inside.append(NOTHING)

    return change


def extensions(whole: Node) -> list[Node]:
    return whole[0][7][0].inside


def extension(name: bytes, whole: Node) -> Node:
    return next(one for one in extensions(whole) if one[0].content == name)


def in_extension(name: bytes, content: bytes) -> Change:
    def change(whole: Node) -> None:
        extension(name, whole)[-1].content = content

    return change


def set_content(content: bytes, *path: int) -> Change:
    def change(whole: Node) -> None:
        node = whole
        for at in path:
            node = node[at]
        node.content, node.inside = content, []

    return change


def test_what_is_changed_below_is_read_before_it_is_changed() -> None:
    assert tree(AUTHORITY).encode() == AUTHORITY
    assert tree(LIST).encode() == LIST
    found = Certificate.parse(AUTHORITY, "honest")
    assert (found.is_authority, found.may_sign_certificates, found.may_sign_data) == (True, True, True)
    assert found.common_name.endswith("eu-nowhere-1.aws.nitro-enclaves")
    assert RevocationList.parse(LIST).issuer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (more(), "after the end"),  # of the certificate
        (more(0, 0), "after the end"),  # of the version
        (more(0, 4), "after the end"),  # of the time it is valid
        (more(0, 7), "after the end"),  # of the extensions' wrapper
        (more(0), "after the end"),  # of what is signed
        (lambda one: extension(BASIC_CONSTRAINTS, one).inside.append(NOTHING), "after the end"),
        (in_extension(BASIC_CONSTRAINTS, b"\x30\x03\x01\x01\xff\x05\x00"), "after the end"),
        (in_extension(BASIC_CONSTRAINTS, b"\x30\x08\x01\x01\xff\x02\x01\x00\x05\x00"), "after the end"),
        (in_extension(KEY_USAGE, b"\x03\x02\x01\x06\x05\x00"), "after the end"),
        (lambda one: one[0][5][0][0].inside.append(NOTHING), "after the end"),  # of part of a name
        (lambda one: one[0][5][0].inside.append(NOTHING), "after the end"),
        (lambda one: one[0][5].inside.append(one[0][5][-1]), "2 common names"),
        (lambda one: one[0][5].inside.pop(), "0 common names"),
        (set_content(b"\x01", 0, 0, 0), "version 3"),
        (set_content(b"\x03", 0, 0, 0), "version 3"),
        (set_content(b"\x03\x55\x04", 1, 0), "two different signature algorithms"),
        (lambda one: extensions(one).append(extensions(one)[0]), "two extensions of one kind"),
        (
            lambda one: extensions(one).append(
                Node(0x30, inside=[Node(6, b"\x2a\x03"), Node(1, b"\xff"), Node(4, b"")])
            ),
            "critical extension that is not understood: 1.2.3",
        ),
    ],
)
def test_a_certificate_with_one_element_otherwise_is_refused(change: Change, why: str) -> None:
    """C-17: whether or not somebody has signed it."""
    with pytest.raises(MalformedEvidence, match=why) as caught:
        Certificate.parse(changed(AUTHORITY, change), "changed")
    assert caught.value.code == "malformed-certificate"


def test_nothing_follows_a_certificate_or_a_list() -> None:
    """C-17."""
    with pytest.raises(MalformedEvidence, match="1 bytes after the end") as caught:
        Certificate.parse(AUTHORITY + b"\x00", "longer")
    assert caught.value.code == "malformed-certificate"
    with pytest.raises(NotDer, match="1 bytes after the end"):
        RevocationList.parse(LIST + b"\x00")


def test_what_was_signed_can_be_told_without_reading_it() -> None:
    assert Signed.of(LIST) == RevocationList.parse(LIST).signed
    assert Signed.of(AUTHORITY) == Certificate.parse(AUTHORITY, "honest").signed


def test_an_extension_that_is_not_critical_is_handed_on() -> None:
    def add(whole: Node) -> None:
        extensions(whole).append(Node(0x30, inside=[Node(6, b"\x2a\x03"), Node(4, b"told")]))
        extensions(whole).append(
            Node(0x30, inside=[Node(6, b"\x2a\x04"), Node(1, b"\x00"), Node(4, b"told")])
        )

    found = Certificate.parse(changed(AUTHORITY, add), "changed").extensions
    assert found["1.2.3"] == found["1.2.4"] == b"told"


@pytest.mark.parametrize(
    ("usage", "certificates", "lists", "data"),
    [
        (b"\x03\x02\x07\x80", False, False, True),
        (b"\x03\x02\x02\x04", True, False, False),
        (b"\x03\x02\x01\x02", False, True, False),
        (b"\x03\x02\x00\x79", False, False, False),
        (b"\x03\x03\x07\x00\x80", False, False, False),
    ],
)
def test_a_key_may_do_what_its_certificate_says(
    usage: bytes, certificates: bool, lists: bool, data: bool
) -> None:
    """RFC 5280 §4.2.1.3."""
    found = Certificate.parse(changed(AUTHORITY, in_extension(KEY_USAGE, usage)), "changed")
    told = (found.may_sign_certificates, found.may_sign_crls, found.may_sign_data)
    assert told == (certificates, lists, data)


def test_a_certificate_that_says_nothing_of_its_key_may_sign_data_and_nothing_else() -> None:
    def leave_out(whole: Node) -> None:
        whole[0].inside.pop(7)

    found = Certificate.parse(changed(AUTHORITY, leave_out), "changed")
    assert (found.is_authority, found.path_length) == (False, None)
    assert (found.may_sign_certificates, found.may_sign_crls, found.may_sign_data) == (False, False, True)


def test_a_certificate_that_does_not_say_that_it_is_an_authority_is_none() -> None:
    """RFC 5280 §4.2.1.9: left out, it is false."""
    for told in (b"\x30\x00", b"\x30\x03\x02\x01\x00"):
        found = Certificate.parse(changed(AUTHORITY, in_extension(BASIC_CONSTRAINTS, told)), "changed")
        assert found.is_authority is False


def test_a_key_of_another_kind_is_refused() -> None:
    """C-14."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    spki = tree(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(MalformedEvidence, match="neither an RSA nor") as caught:
        Certificate.parse(changed(AUTHORITY, lambda one: one[0].inside.__setitem__(6, spki)), "changed")
    assert caught.value.code == "malformed-certificate"


def revoke(*serials: int, rest: Node | None = None) -> Change:
    """Withdraw these, each at the time of the list; with something more in each entry."""

    def change(whole: Node) -> None:
        entries = [
            Node(0x30, inside=[Node(2, bytes((serial,))), whole[0][3], *([rest] if rest else [])])
            for serial in serials
        ]
        at = 5 if len(whole[0].inside) == 6 else 6
        whole[0].inside[5:at] = [Node(0x30, inside=entries)]

    return change


def reason(*, critical: bool = False) -> Node:
    """An entry's extensions: why it was withdrawn."""
    told = [Node(6, bytes.fromhex("551d15")), *([Node(1, b"\xff")] if critical else [])]
    return Node(0x30, inside=[Node(0x30, inside=[*told, Node(4, b"\x0a\x01\x01")])])


def test_a_list_withdraws_what_it_names() -> None:
    assert RevocationList.parse(changed(LIST, revoke(5, 7))).revoked == {5, 7}
    assert RevocationList.parse(changed(LIST, revoke(5, 7, rest=reason()))).revoked == {5, 7}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (more(), "after the end"),
        (more(0), "after the end"),
        (more(0, -1), "after the end"),  # of the extensions' wrapper
        (set_content(b"\x00", 0, 0), "not of version 2"),
        (set_content(b"\x02", 0, 0), "not of version 2"),
        (set_content(b"\x03\x55\x04", 1, 0), "two different signature algorithms"),
        (revoke(5, rest=NOTHING), "tag 05 where 30"),
        (revoke(5, rest=reason(critical=True)), "critical extension that is not understood"),
    ],
)
def test_a_list_with_one_element_otherwise_is_refused(change: Change, why: str) -> None:
    """C-17: an unknown critical extension would say that it is a part of a list only."""
    with pytest.raises(NotDer, match=why):
        RevocationList.parse(changed(LIST, change))


def test_an_entry_of_a_list_ends_with_its_extensions() -> None:
    def change(whole: Node) -> None:
        revoke(5, rest=reason())(whole)
        whole[0][5][0].inside.append(NOTHING)

    with pytest.raises(NotDer, match="after the end"):
        RevocationList.parse(changed(LIST, change))


def test_a_list_says_critically_nothing_that_is_not_understood() -> None:
    """RFC 5280 §5.2.4, §5.2.5: a delta list, or one of some reasons only."""

    def change(whole: Node) -> None:
        told = [Node(6, bytes.fromhex("551d1b")), Node(1, b"\xff"), Node(4, b"\x02\x01\x01")]
        whole[0][-1][0].inside.append(Node(0x30, inside=told))

    with pytest.raises(NotDer, match=r"critical extension that is not understood: 2\.5\.29\.27"):
        RevocationList.parse(changed(LIST, change))


# --- how each vendor signs ---

CONTENT = b"what was signed"
P384 = ec_key("any")
P256 = ec_key("any", ec.SECP256R1)
RSA_4096 = rsa_key("any", 4096)
RSA_2048 = rsa_key("any", 2048)
RSA_1024 = rsa_key("any", 1024)


def pss(key: Any, salt: int = 48, hash_algorithm: Any = None) -> bytes:
    algorithm = hash_algorithm or SHA384()
    return bytes(key.sign(CONTENT, padding.PSS(padding.MGF1(algorithm), salt), algorithm))


@pytest.mark.parametrize(
    ("scheme", "key", "signature", "good"),
    [
        (RSA_4096_PSS_SHA384, RSA_4096, pss(RSA_4096), True),
        (RSA_4096_PSS_SHA384, RSA_4096, pss(RSA_4096, salt=32), False),
        (RSA_4096_PSS_SHA384, RSA_4096, pss(RSA_4096, hash_algorithm=SHA256()), False),
        (RSA_4096_PSS_SHA384, RSA_2048, pss(RSA_2048), False),
        (RSA_4096_PSS_SHA384, P384, P384.sign(CONTENT, ec.ECDSA(SHA384())), False),
        (P384_SHA384, P384, P384.sign(CONTENT, ec.ECDSA(SHA384())), True),
        (P384_SHA384, P384, P384.sign(CONTENT, ec.ECDSA(SHA256())), False),
        (P384_SHA384, P256, P256.sign(CONTENT, ec.ECDSA(SHA384())), False),
        (P384_SHA384, RSA_4096, pss(RSA_4096), False),
        (RSA_PKCS1_SHA256, RSA_2048, RSA_2048.sign(CONTENT, padding.PKCS1v15(), SHA256()), True),
        (RSA_PKCS1_SHA256, RSA_4096, RSA_4096.sign(CONTENT, padding.PKCS1v15(), SHA256()), True),
        (RSA_PKCS1_SHA256, RSA_2048, RSA_2048.sign(CONTENT, padding.PKCS1v15(), SHA384()), False),
        (RSA_PKCS1_SHA256, RSA_1024, RSA_1024.sign(CONTENT, padding.PKCS1v15(), SHA256()), False),
        (RSA_PKCS1_SHA256, P384, P384.sign(CONTENT, ec.ECDSA(SHA256())), False),
    ],
    ids=[str(number) for number in range(14)],
)
def test_a_vendor_signs_in_one_way_and_in_no_other(
    scheme: Scheme, key: Any, signature: bytes, good: bool
) -> None:
    """C-14: kind and size of the key, padding and hash are fixed beforehand."""
    for spelling in scheme.spellings:
        signed = Signed(CONTENT, spelling, signature)
        assert signed.is_signed_by(key.public_key(), scheme) is good
        assert Signed(CONTENT + b"!", spelling, signature).is_signed_by(key.public_key(), scheme) is False


@pytest.mark.parametrize("scheme", [RSA_4096_PSS_SHA384, P384_SHA384, RSA_PKCS1_SHA256])
def test_what_says_that_it_was_signed_in_another_way_is_not_believed(scheme: Scheme) -> None:
    """C-14: also when the signature would be good."""
    key: Any = P384 if scheme is P384_SHA384 else RSA_4096
    signature = {
        RSA_4096_PSS_SHA384.name: lambda: pss(RSA_4096),
        P384_SHA384.name: lambda: P384.sign(CONTENT, ec.ECDSA(SHA384())),
        RSA_PKCS1_SHA256.name: lambda: RSA_4096.sign(CONTENT, padding.PKCS1v15(), SHA256()),
    }[scheme.name]()
    (own, *_) = scheme.spellings
    assert Signed(CONTENT, own, signature).is_signed_by(key.public_key(), scheme) is True
    others = {RSA_4096_PSS_SHA384, P384_SHA384, RSA_PKCS1_SHA256} - {scheme}
    for spelling in (b"", own[:-1], own + b"\x00", *(one for other in others for one in other.spellings)):
        assert Signed(CONTENT, spelling, signature).is_signed_by(key.public_key(), scheme) is False


def test_google_s_and_amazon_s_certificates_are_signed_in_their_way() -> None:
    """The fake vendors', as the real ones'."""
    for chain, scheme in ((FakeAws().bundle(), P384_SHA384), (FakeGoogle().chain()[::-1], RSA_PKCS1_SHA256)):
        root, below = (Certificate.parse(der, "honest") for der in chain[:2])
        assert below.signed.is_signed_by(root.public_key, scheme) is True
