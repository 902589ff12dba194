"""The cases of AWS Nitro enclaves: a document, its chain of five, and the registers in it."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA512

from blindbox_attestation import cbor
from tests.kit import NOON
from tests.kit.aws import INSTANCE, PCRS, ROLE, FakeAws, ec_key, pcr
from tests.kit.corpus import SECOND, Draft, Machine, flipped, hexes, named

NONCE = bytes(range(32))
AWS = FakeAws()
OTHER = FakeAws("theirs")
STRANGER = ec_key("a stranger")
ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)


def document(**changes: Any) -> bytes:
    return AWS.document(**{"nonce": NONCE, **changes})


def payload(**changes: Any) -> bytes:
    return cbor.encode(AWS.told(**{"nonce": NONCE, **changes}))


def with_certificate(what: str, **changes: Any) -> bytes:
    """A document whose chain has one certificate made otherwise."""
    made = AWS.certificate(what, **changes)
    return document(certificate=made) if what == "leaf" else document(cabundle=AWS.bundle(**{what: made}))


def cases() -> Iterator[Draft]:
    """All of them."""
    machine = Machine(
        platform="nitro",
        key="nitro",
        suffix="cbor",
        evidence=document(),
        policy={"version": 1, "nitro": {"pcrs": {"0": hexes(PCRS[0])}}},
        roots={"nitro": named(AWS.roots)},
        nonce=NONCE,
    )
    yield from _honest(machine)
    yield from _reading(machine)
    yield from _certificates(machine)
    yield from _times(machine)
    yield from _signature(machine)
    yield from _policy(machine)


def _honest(machine: Machine) -> Iterator[Draft]:
    yield machine.accepted("honest", "An honest document.")
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked.", nonce=None)
    yield machine.accepted("tagged", "Tag 18 before it.", evidence=AWS.sign(payload(), tagged=True))
    body = payload()
    yield machine.accepted(
        "payload-with-an-end-mark",
        "As AWS writes it since 2025.",
        evidence=AWS.sign(b"\xbf" + body[1:] + b"\xff"),
    )
    for name in ("public_key", "user_data"):
        word = name.replace("_", "-")
        yield machine.accepted(f"without-{word}", "Absent.", evidence=document(leave_out=(name,)))
        yield machine.accepted(
            f"with-{word}", "What the enclave gave.", evidence=document(**{name: b"\x01" * 64})
        )
    for name, wish in {
        "signer-alone": {"pcrs": {"8": hexes(PCRS[8])}},
        "three-registers": {"pcrs": {str(one): hexes(PCRS[one]) for one in (0, 1, 2)}},
        "one-of-two-images": {"pcrs": {"0": hexes(PCRS[0], b"\x01" * 48)}},
        "instance": {"instance_ids": [INSTANCE]},
        "role": {"iam_roles": [ROLE, "arn:aws:iam::1:role/another"]},
        "registers-of-the-machine": {"pcrs": {"0": hexes(PCRS[0]), "3": hexes(PCRS[3]), "4": hexes(PCRS[4])}},
    }.items():
        yield machine.accepted(f"policy-{name}", "C-51: met.", wish=wish)
    for length in (None,):
        yield machine.accepted(
            f"regional-path-length-{length}",
            "Long enough.",
            evidence=with_certificate("regional", path_length=length),
        )
    honest = machine.evidence
    s = int.from_bytes(honest[-48:], "big")
    mirrored = honest[:-48] + (ORDER - s).to_bytes(48, "big")
    yield machine.accepted("other-half-of-the-signature", "C-17: n − s is as valid as s.", evidence=mirrored)


def _reading(machine: Machine) -> Iterator[Draft]:
    """Step 3."""
    honest, body = machine.evidence, payload()

    def bad(name: str, about: str, evidence: bytes, code: str = "malformed-cose") -> Draft:
        return machine.refused(name, about, code, 3, evidence=evidence)

    for name, data in {
        "empty": b"",
        "one-byte-short": honest[:-1],
        "one-byte-long": honest + b"\x00",
        "without-its-signature": honest[:-98],
        "in-its-header": honest[:4],
        "tagged-twice": b"\xd2\xd2" + honest,
        "no-array": cbor.encode({"a": 1}),
        "of-three": b"\x83" + honest[1:-98],
    }.items():
        yield bad(f"document-{name}", "C-17, C-19.", data)
    for name, sent in {
        "payload-with-a-byte-more": body + b"\x00",
        "payload-length-not-shortest": b"\xb9\x00\x09" + body[1:],
        "payload-with-a-key-twice": b"\xaa" + body[1:] + cbor.encode("digest") + cbor.encode("SHA384"),
        "payload-no-map": cbor.encode("text"),
    }.items():
        yield bad(name, "C-17: also when well signed.", AWS.sign(sent))
    for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
        yield bad(
            f"without-{name.replace('_', '-')}",
            "C-17: nothing stands in for it.",
            document(leave_out=(name,)),
        )
    for name, changes in {
        "with-a-key-more": {"more": 1},
        "register-32": {"pcrs": {**PCRS, 32: pcr("x")}},
        "register-of-sha256": {"pcrs": {**PCRS, 5: bytes(32)}},
        "without-register-1": {"pcrs": {0: PCRS[0], 2: PCRS[2]}},
        "digest-sha256": {"digest": "SHA256"},
        "bundle-empty": {"cabundle": []},
    }.items():
        yield bad(f"payload-{name}", "C-17, C-18: well signed, in another form.", document(**changes))
    yield bad(
        "unprotected-header", "C-14: nothing is read from there.", AWS.sign(body, unprotected={4: b"kid"})
    )
    for name, header in {
        "es256": {1: -7}, "es512": {1: -36},
        "missing": {}, "with-a-key-id": {1: -35, 4: b"kid"},
    }.items():  # fmt: skip
        data = AWS.sign(body, protected=cbor.encode(header))
        yield bad(f"algorithm-{name}", "C-14: fixed.", data, "unsupported-signature-algorithm")
    for name, protected in {
        "not-shortest": b"\xa1\x01\x39\x00\x22",
        "with-an-end-mark": b"\xbf\x01\x38\x22\xff",
    }.items():
        yield bad(f"header-{name}", "C-17: one spelling.", AWS.sign(body, protected=protected))


def _certificates(machine: Machine) -> Iterator[Draft]:
    """Step 4."""

    def bad(name: str, about: str, code: str, evidence: bytes, **changes: Any) -> Draft:
        return machine.refused(name, about, code, 4, evidence=evidence, **changes)

    bundle = AWS.bundle()
    theirs = OTHER.document(nonce=NONCE)
    yield bad("whole-other-cloud", "C-13: well made, and nobody's root.", "unpinned-root", theirs)
    yield bad("real-root-does-not-know-the-fake", "C-13.", "unpinned-root", machine.evidence, roots={})
    for name, code, sent in (
        ("root-last", "unpinned-root", bundle[::-1]),
        ("without-root", "unpinned-root", bundle[1:]),
        ("root-with-a-byte-more", "unpinned-root", [bundle[0] + b"\x00", *bundle[1:]]),
        ("two-exchanged", "wrong-issuer", [bundle[one] for one in (0, 2, 1, 3)]),
        ("without-regional", "wrong-issuer", [bundle[0], *bundle[2:]]),
        ("root-only", "wrong-issuer", bundle[:1]),
        ("with-the-leaf", "wrong-certificate-kind", [*bundle, AWS.certificate("leaf")]),
        ("of-others-below-our-root", "bad-certificate-signature", [bundle[0], *OTHER.bundle()[1:]]),
        ("with-garbage", "malformed-certificate", [*bundle[:3], b"garbage"]),
    ):
        yield bad(
            f"bundle-{name}",
            "C-13: the root first, then each issued by the one before.",
            code,
            document(cabundle=sent),
        )
    for what in ("regional", "zonal", "instance", "leaf"):
        yield bad(
            f"{what}-signed-by-a-stranger",
            "C-13.",
            "bad-certificate-signature",
            with_certificate(what, signer=STRANGER),
        )
        yield bad(
            f"{what}-of-another-issuer",
            "C-13.",
            "wrong-issuer",
            with_certificate(what, issuer="somebody else"),
        )
        if what in ("zonal", "leaf"):
            yield bad(
                f"{what}-over-sha256",
                "C-14.",
                "bad-certificate-signature",
                with_certificate(what, hash_algorithm=SHA256()),
            )
            critical = with_certificate(what, critical=True)
            yield bad(
                f"{what}-with-an-unknown-critical-extension", "C-17.", "malformed-certificate", critical
            )
        if what != "leaf":
            yield bad(
                f"{what}-no-authority",
                "C-13.",
                "wrong-certificate-kind",
                with_certificate(what, authority=False),
            )
            if what == "zonal":
                yield bad(
                    f"{what}-may-not-sign",
                    "C-13.",
                    "wrong-certificate-kind",
                    with_certificate(what, cert_sign=False),
                )
    yield bad(
        "regional-path-too-short",
        "C-13.",
        "wrong-certificate-kind",
        with_certificate("regional", path_length=1),
    )
    yield bad(
        "zonal-path-too-short", "C-13.", "wrong-certificate-kind", with_certificate("zonal", path_length=0)
    )
    yield bad(
        "leaf-an-authority", "C-13.", "wrong-certificate-kind", with_certificate("leaf", authority=True)
    )
    yield bad(
        "leaf-may-not-sign-data",
        "C-13.",
        "wrong-certificate-kind",
        with_certificate("leaf", digital_signature=False),
    )
    small = ec_key("small", ec.SECP256R1)
    leaf = AWS.certificate("leaf", public_key=small.public_key())
    yield bad(
        "leaf-with-a-p256-key",
        "C-14: its signature is valid.",
        "wrong-certificate-kind",
        AWS.sign(payload(certificate=leaf), key=small),
    )
    for name, data in {
        "cut-short": AWS.certificate("leaf")[:-1],
        "with-a-byte-more": AWS.certificate("leaf") + b"\x00",
        "empty-sequence": b"\x30\x00",
    }.items():
        yield bad(f"leaf-{name}", "C-17, C-19.", "malformed-certificate", document(certificate=data))


def _times(machine: Machine) -> Iterator[Draft]:
    """Steps 4 and 6."""
    for what in ("regional", "zonal", "instance", "leaf"):
        for name, changes, good in (
            ("expired-a-second-ago", {"not_before": NOON - timedelta(hours=9), "not_after": NOON - SECOND}, False),
            ("ends-now", {"not_before": NOON - timedelta(hours=9), "not_after": NOON}, True),
            ("begins-beyond-the-skew", {"not_before": NOON + 61 * SECOND, "not_after": NOON + timedelta(hours=9)}, False),
        ):  # fmt: skip
            evidence = with_certificate(what, **changes)
            about = "C-11, C-24: with the caller's clock."
            if good:
                yield machine.accepted(f"{what}-{name}", about, evidence=evidence)
            else:
                yield machine.refused(
                    f"{what}-{name}", about, "certificate-not-valid-now", 4, evidence=evidence
                )
    for name, now, code, step in (
        ("60-seconds-before", NOON - 60 * SECOND, "", 0),
        ("61-seconds-before", NOON - 61 * SECOND, "outside-validity", 6),
        ("300-seconds-after", NOON + 300 * SECOND, "", 0),
        ("301-seconds-after", NOON + 301 * SECOND, "outside-validity", 6),
        ("three-hours-after", NOON + timedelta(hours=3), "outside-validity", 6),
        ("leaf-over", NOON + timedelta(hours=3) + SECOND, "certificate-not-valid-now", 4),
        ("leaf-not-begun", NOON - 65 * SECOND, "certificate-not-valid-now", 4),
    ):
        about = "C-1, C-11, C-24: a second to either side of each bound."
        if code:
            yield machine.refused(f"judged-{name}", about, code, step, now=now)
        else:
            yield machine.accepted(f"judged-{name}", about, now=now)
    patient = {"max_age_seconds": 3 * 60 * 60, "clock_skew_seconds": 0}
    yield machine.accepted("age-is-the-policys", "C-24.", now=NOON + timedelta(hours=3), wish=patient)
    yield machine.refused(
        "no-skew-no-future", "C-24.", "outside-validity", 6, now=NOON - SECOND, wish=patient
    )


def _signature(machine: Machine) -> Iterator[Draft]:
    """Steps 7 and 8."""
    honest, body = machine.evidence, payload()

    def bad(name: str, about: str, evidence: bytes, code: str = "bad-signature") -> Draft:
        return machine.refused(name, about, code, 7, evidence=evidence)

    yield bad("signed-by-a-stranger", "C-15.", AWS.sign(body, key=STRANGER))
    yield bad(
        "signed-by-the-instance", "C-15: by the certificate above.", AWS.sign(body, key=AWS.key("instance"))
    )
    yield bad(
        "signed-for-another-purpose", "C-15: COSE names its structure.", AWS.sign(body, context="Signature")
    )
    for name, algorithm in {"sha256": SHA256(), "sha512": SHA512()}.items():
        yield bad(f"signed-over-{name}", "C-14.", AWS.sign(body, hash_algorithm=algorithm))
    other = document(user_data=b"another")
    yield bad("signature-of-another-document", "C-15: spliced.", honest[:-96] + other[-96:])
    yield bad("last-bit-of-the-signature", "C-15.", flipped(honest, -1))
    at = honest.index(PCRS[0])
    yield bad("bit-of-pcr0", "C-15.", flipped(honest, at))
    yield bad("bit-of-the-nonce", "C-15.", flipped(honest, honest.index(NONCE)))
    for name, r, s in (
        ("r-zero", 0, 1),
        ("s-zero", 1, 0),
        ("r-is-the-order", ORDER, 1),
        ("s-is-the-order", 1, ORDER),
    ):
        data = honest[:-96] + r.to_bytes(48, "big") + s.to_bytes(48, "big")
        yield bad(f"signature-{name}", "C-17: 1 to n − 1.", data, "malformed-signature")
    for name, nonce in {
        "of-another-question": bytes(32), "one-bit-otherwise": flipped(NONCE, 31), "longer": NONCE + b"\x00", "shorter": NONCE[:31],
    }.items():  # fmt: skip
        yield machine.refused(f"nonce-{name}", "C-1, C-5.", "wrong-nonce", 8, nonce=nonce)
    yield machine.refused("document-without-a-nonce", "C-1.", "wrong-nonce", 8, evidence=document(nonce=None))


def _policy(machine: Machine) -> Iterator[Draft]:
    """Steps 10 to 13."""
    for number in (0, 1, 2):
        debug = document(pcrs={**PCRS, number: bytes(48)})
        yield machine.refused(
            f"debug-pcr{number}-zero",
            "C-7: its parent reads its console.",
            "debug-allowed",
            10,
            evidence=debug,
        )
    debug = document(pcrs={**PCRS, 0: bytes(48), 1: bytes(48), 2: bytes(48)})
    yield machine.refused(
        "debug-judged-by-its-signer",
        "C-7.",
        "debug-allowed",
        10,
        evidence=debug,
        wish={"pcrs": {"8": hexes(PCRS[8])}},
    )
    other = hexes(b"\x01" * 48)
    yield machine.refused(
        "another-image", "C-6.", "measurement-mismatch", 12, evidence=document(pcrs={**PCRS, 0: b"\x01" * 48})
    )
    yield machine.refused(
        "image-one-bit-otherwise",
        "C-6.",
        "measurement-mismatch",
        12,
        evidence=document(pcrs={**PCRS, 0: flipped(PCRS[0], 47)}),
    )
    for number in (1, 2, 8, 15):
        wish = {"pcrs": {"0": hexes(PCRS[0]), str(number): other}}
        yield machine.refused(f"register-{number}-otherwise", "C-6.", "pcr-mismatch", 12, wish=wish)
    yield machine.refused(
        "signer-of-another",
        "C-6: the image alone is not asked.",
        "pcr-mismatch",
        12,
        wish={"pcrs": {"8": other}},
    )
    yield machine.refused(
        "register-not-in-the-document",
        "C-6.",
        "pcr-mismatch",
        12,
        wish={"pcrs": {"0": hexes(PCRS[0]), "31": other}},
    )
    yield machine.refused(
        "unsigned-image",
        "C-6: PCR8 is zero.",
        "pcr-mismatch",
        12,
        evidence=document(pcrs={**PCRS, 8: bytes(48)}),
        wish={"pcrs": {"8": hexes(PCRS[8])}},
    )
    for name, wish in {
        "instance": {"instance_ids": ["i-0123456789abcdef1"]},
        "role": {"iam_roles": ["arn:aws:iam::123456789012:role/another"]},
        "pcr3": {"pcrs": {"0": hexes(PCRS[0]), "3": other}},
        "pcr4": {"pcrs": {"0": hexes(PCRS[0]), "4": other}},
    }.items():
        yield machine.refused(f"{name}-not-listed", "C-51.", "instance-not-listed", 13, wish=wish)
    bare = document(pcrs={number: PCRS[number] for number in (0, 1, 2)})
    yield machine.refused(
        "no-pcr4-and-an-instance-named",
        "C-51.",
        "instance-not-listed",
        13,
        evidence=bare,
        wish={"instance_ids": [INSTANCE]},
    )
