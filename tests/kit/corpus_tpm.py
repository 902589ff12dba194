"""The cases of an ordinary machine's TPM: a quote, the certificates of its key, and the log of the boot."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from blindbox_attestation import strict_json
from tests.kit import NOON
from tests.kit.corpus import SECOND, Draft, Machine, flipped, hexes, named
from tests.kit.google import rsa_key
from tests.kit.tpm import (
    BOOT,
    DB,
    PROGRAM,
    RESTRICTED_SIGNING_KEY,
    RSAPSS,
    RSASSA,
    FakeTpm,
    Measurement,
    area,
    ec_key,
    instance_info,
    log_of,
    registers_of,
    secure_boot,
    selection,
    separator,
    sign,
    spki,
    variable,
)

NONCE = bytes(range(48))
QUOTED = (0, 4, 5, 7, 8)
"""The registers of these quotes; fewer than a machine has, to keep the files small."""
OTHER = bytes(range(32))
OFF = (BOOT[0], secure_boot(b"\x00"), *BOOT[2:])
OURS = FakeTpm()


def registers(boot: Sequence[Measurement] = BOOT, bank: str = "sha256") -> dict[int, bytes]:
    found = registers_of(boot, bank)
    return {number: found[number] for number in QUOTED}


HONEST = registers()


def evidence(tpm: FakeTpm = OURS, **changes: Any) -> bytes:
    nonce = changes.pop("extra_data", NONCE)
    told = {"registers": registers(tpm.boot, changes.get("bank", "sha256")), **changes}
    return tpm.evidence(nonce, **told)


def machine_of(tpm: FakeTpm, **changes: Any) -> Machine:
    """A machine of this vendor's, with the policy that accepts it; `changes` are those of `evidence`."""
    return Machine(
        platform="tpm",
        key="tpm",
        suffix="json",
        evidence=evidence(tpm, **changes),
        endorsements=tpm.endorsements(),
        policy={"version": 1, "tpm": {"boot": {"pcrs": {"4": hexes(registers(tpm.boot)[4])}}}},
        roots={"tpm": named(tpm.roots)},
        nonce=NONCE,
    )


def asked(**boot: Any) -> dict[str, Any]:
    """A wish for the boot, besides the program in PCR4."""
    return {"boot": {"pcrs": {"4": hexes(HONEST[4])}, **boot}}


def cases() -> Iterator[Draft]:
    """All of them."""
    machine = machine_of(OURS)
    yield from _honest(machine)
    yield from _reading(machine)
    yield from _certificates(machine)
    yield from _quote(machine)
    yield from _boot(machine)
    yield from _machines(machine)


def _honest(machine: Machine) -> Iterator[Draft]:
    for kind in ("ecc", "ecc384", "rsa"):
        yield machine_of(FakeTpm(kind)).accepted(f"honest-{kind}", f"An honest machine with an {kind} key.")
    rsa = FakeTpm("rsa")
    for name, how in {
        "pss": {"scheme": RSAPSS},
        "sha384": {"hash_algorithm": SHA384(), "leave_out": ("ak_area",)},
    }.items():
        yield machine_of(rsa).accepted(
            f"rsa-{name}", "C-14: RSA, another way.", evidence=evidence(rsa, **how)
        )
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked.", nonce=None)
    yield machine.accepted(
        "without-its-area", "The area is an extra.", evidence=evidence(leave_out=("ak_area",))
    )
    yield machine.accepted("clock-not-safe", "It is told, and not asked.", evidence=evidence(safe=0))
    pinned = {"ak_keys": hexes(OURS.pin)}
    yield machine.accepted(
        "key-pinned", "A pin needs no certificate.", endorsements={"ak_chain": None}, wish=pinned
    )
    bank = {"boot": {"pcrs": {"4": hexes(registers(BOOT, "sha384")[4])}, "bank": "sha384"}}
    yield machine.accepted("bank-sha384", "The other bank.", evidence=evidence(bank="sha384"), wish=bank)
    unread = {"boot": {"pcrs": {"4": hexes(HONEST[4])}, "secure_boot": "unchecked", "event_log": "unused"}}
    yield machine.accepted(
        "log-not-asked", "It is not read.", endorsements={"event_log": b"no log"}, wish=unread
    )


def _reading(machine: Machine) -> Iterator[Draft]:
    """Step 3."""
    honest = machine.evidence
    told = strict_json.parse(honest)

    def bad(name: str, about: str, data: bytes, code: str = "malformed-quote") -> Draft:
        return machine.refused(name, about, code, 3, evidence=data)

    for name, data in {
        "empty": b"", "one-byte-short": honest[:-1], "with-a-byte-more": honest + b"\x00",
        "with-a-key-more": honest[:-1] + b',"x":1}', "with-a-key-twice": honest[:-1] + b',"version":1}',
    }.items():  # fmt: skip
        yield bad(f"evidence-{name}", "C-17, C-19.", data)
    for name in ("attest", "signature", "ak_public", "pcrs", "version"):
        yield bad(f"without-{name.replace('_', '-')}", "C-17.", evidence(leave_out=(name,)))
    for name, changes in {
        "version-2": {"version": 2}, "magic": {"magic": 0xFF544348}, "kind-certify": {"kind": 0x8017},
        "safe-2": {"safe": 2}, "signer-too-long": {"signer": bytes(69)}, "extra-data-too-long": {"extra_data": bytes(65)},
        "bitmap-of-four": {"selections": [(0x000B, b"\xff" * 4)]}, "register-00": {"pcrs": {"00": bytes(32).hex()}},
        "register-24": {"pcrs": {"24": bytes(32).hex()}}, "register-of-sha384": {"pcrs": {"4": bytes(48).hex()}},
        "key-no-key": {"ak_public": b"\x30\x00"}, "area-encrypts": {"ak_area": area(OURS.key, symmetric=0x0006)},
        "area-of-another-kind": {"ak_area": area(OURS.key, kind=0x0008)},
    }.items():  # fmt: skip
        yield bad(f"quote-{name}", "C-17, C-18.", evidence(**changes))
    for name, code in (
        ("attest", "malformed-quote"),
        ("signature", "malformed-signature"),
        ("ak_area", "malformed-quote"),
    ):
        whole = strict_json.from_base64(told[name], "")
        word = name.replace("_", "-")
        shorter, longer = (strict_json.to_base64(one) for one in (whole[:-1], whole + b"\x00"))
        yield bad(f"{word}-cut-short", "C-19.", strict_json.dump({**told, name: shorter}), code)
        yield bad(
            f"{word}-with-a-byte-more", "C-17.", strict_json.dump({**told, name: longer}), "trailing-bytes"
        )
    yield bad("signature-too-large", "C-18.", evidence(signature=bytes(1025)), "malformed-signature")
    for name, scheme in {"hmac": 0x0005, "ecschnorr": 0x001C}.items():
        yield bad(
            f"scheme-{name}",
            "C-14.",
            evidence(scheme=scheme, leave_out=("ak_area",)),
            "unsupported-signature-algorithm",
        )
    logs = {
        "empty": b"", "cut-short": log_of()[:-1], "without-the-bank": log_of(banks=("sha1", "sha384")),
        "of-another-form": b"\x00" * 4 + log_of()[4:20], "with-bytes-after-it": log_of() + b"\x01",
    }  # fmt: skip
    for name, log in logs.items():
        yield machine.refused(
            f"log-{name}",
            "C-19: the policy reads it.",
            "malformed-event-log",
            3,
            endorsements={"event_log": log},
        )


def _certificates(machine: Machine) -> Iterator[Draft]:
    """Step 4."""

    def bad(name: str, about: str, code: str, chain: bytes | None, **changes: Any) -> Draft:
        return machine.refused(name, about, code, 4, endorsements={"ak_chain": chain}, **changes)

    leaf, intermediate, root = OURS.chain()
    whole = leaf + intermediate + root
    stranger = FakeTpm(name="a stranger's")
    yield bad("chain-missing", "C-2: a key that came along proves nothing.", "missing-endorsement", None)
    yield bad("chain-empty", "C-2.", "missing-endorsement", b"")
    yield bad(
        "key-of-a-stranger",
        "C-2: under our certificate.",
        "wrong-attestation-key",
        whole,
        evidence=evidence(stranger),
    )
    yield bad(
        "whole-other-vendor",
        "C-13.",
        "unpinned-root",
        b"".join(stranger.chain()),
        evidence=evidence(stranger),
    )
    yield bad("real-root-does-not-know-the-fake", "C-13.", "unpinned-root", whole, roots={})
    yield bad("key-not-the-pinned-one", "C-2.", "unpinned-ak", None, wish={"ak_keys": hexes(OTHER)})
    for name, code, sent in (
        ("without-its-root", "unpinned-root", leaf + intermediate),
        ("root-first", "unpinned-root", root + intermediate + leaf),
        ("without-the-middle", "wrong-issuer", leaf + root),
        ("root-alone", "wrong-certificate-kind", root),
        ("without-its-leaf", "wrong-certificate-kind", intermediate + root),
        ("cut-short", "malformed-certificate", whole[:-1]),
        ("with-a-byte-more", "malformed-certificate", whole + b"\x00"),
        ("three-times", "malformed-certificate", whole * 3),
        ("garbage", "malformed-certificate", b"garbage"),
    ):
        yield bad(f"chain-{name}", "C-13, C-19.", code, sent)
    for what in ("leaf", "intermediate"):
        for name, code, changes in (
            ("signed-by-a-stranger", "bad-certificate-signature", {"signer": rsa_key("another")}),
            ("over-sha384", "bad-certificate-signature", {"hash_algorithm": SHA384()}),
            ("in-pss", "bad-certificate-signature", {"pad": padding.PSS(padding.MGF1(SHA256()), 32)}),
            ("of-another-issuer", "wrong-issuer", {"issuer": "root" if what == "leaf" else "leaf"}),
            ("of-the-wrong-kind", "wrong-certificate-kind", {"authority": what == "leaf"}),
            ("expired-a-second-ago", "certificate-not-valid-now", {"not_after": NOON - SECOND}),
            ("valid-in-a-second", "certificate-not-valid-now", {"not_before": NOON + SECOND}),
            ("with-an-unknown-critical-extension", "malformed-certificate", {"critical": True}),
        ):
            sent = b"".join(OURS.chain(**{what: OURS.certificate(what, **changes)}))
            yield bad(f"{what}-{name}", "C-11, C-13, C-14.", code, sent)
        sent = b"".join(OURS.chain(**{what: OURS.certificate(what, not_after=NOON)}))
        yield machine.accepted(f"{what}-ends-now", "C-24.", endorsements={"ak_chain": sent})
    for name, code, changes in (
        ("may-not-sign-data", "wrong-certificate-kind", {"digital_signature": False}),
        ("for-another-key", "wrong-attestation-key", {"public_key": ec_key("another").public_key()}),
    ):
        yield bad(
            f"leaf-{name}", "C-2, C-13.", code, b"".join(OURS.chain(leaf=OURS.certificate("leaf", **changes)))
        )
    for name, info in {"empty": b"\x30\x00", "with-a-byte-more": instance_info() + b"\x00"}.items():
        sent = b"".join(OURS.chain(leaf=OURS.certificate("leaf", info=info)))
        yield machine.refused(
            f"machine-{name}-in-the-certificate",
            "C-17.",
            "malformed-certificate",
            6,
            endorsements={"ak_chain": sent},
        )
    yield bad(
        "judged-years-later", "C-11.", "certificate-not-valid-now", whole, now=NOON + timedelta(days=1001)
    )


def _quote(machine: Machine) -> Iterator[Draft]:
    """Steps 7 and 8."""

    def bad(name: str, about: str, code: str, base: Machine = machine, **changes: Any) -> Draft:
        tpm = changes.pop("tpm", OURS)
        return base.refused(name, about, code, 7, evidence=evidence(tpm, **changes))

    yield bad("area-of-another-key", "C-2.", "wrong-attestation-key", ak_area=area(ec_key("another")))
    for name, bit in {
        "fixed-tpm": 1,
        "fixed-parent": 4,
        "sensitive-data-origin": 5,
        "restricted": 16,
        "sign": 18,
    }.items():
        own = area(OURS.key, attributes=RESTRICTED_SIGNING_KEY & ~(1 << bit))
        yield bad(f"key-not-{name}", "C-14: it could sign anything.", "ak-attributes", ak_area=own)
    yield bad(
        "key-decrypts",
        "C-14.",
        "ak-attributes",
        ak_area=area(OURS.key, attributes=RESTRICTED_SIGNING_KEY | 1 << 17),
    )
    yield bad(
        "key-for-another-scheme",
        "C-14.",
        "unsupported-signature-algorithm",
        ak_area=area(OURS.key, scheme=RSASSA),
    )
    yield bad(
        "key-for-another-hash",
        "C-14.",
        "unsupported-signature-algorithm",
        ak_area=area(OURS.key, hash_algorithm=0x000C),
    )
    bare = {"leave_out": ("ak_area",)}
    p384, rsa = FakeTpm("ecc384"), FakeTpm("rsa")
    yield bad("p256-over-sha384", "C-14.", "unsupported-signature-algorithm", hash_algorithm=SHA384(), **bare)
    yield bad(
        "p384-over-sha256",
        "C-14.",
        "unsupported-signature-algorithm",
        machine_of(p384),
        tpm=p384,
        hash_algorithm=SHA256(),
        **bare,
    )
    yield bad(
        "rsa-signature-for-a-p256-key",
        "C-14.",
        "unsupported-signature-algorithm",
        signing_key=rsa.key,
        **bare,
    )
    yield bad(
        "p256-signature-for-an-rsa-key",
        "C-14.",
        "unsupported-signature-algorithm",
        machine_of(rsa),
        tpm=rsa,
        signing_key=OURS.key,
        **bare,
    )
    small = rsa_key("small", 1024)
    pin = {"ak_keys": hexes(hashlib.sha256(spki(small)).digest())}
    yield bad(
        "rsa-1024-although-pinned",
        "C-14.",
        "unsupported-signature-algorithm",
        machine_of(rsa).with_wish(pin),
        tpm=rsa,
        signing_key=small,
        ak_public=spki(small),
        **bare,
    )
    curve = ec.derive_private_key(7, ec.SECP256K1())
    pin = {"ak_keys": hexes(hashlib.sha256(spki(curve)).digest())}
    yield bad(
        "curve-of-another-family-although-pinned",
        "C-14.",
        "unsupported-signature-algorithm",
        machine.with_wish(pin),
        signing_key=curve,
        ak_public=spki(curve),
        **bare,
    )
    yield bad("signed-by-another-key", "C-15.", "bad-signature", signing_key=ec_key("another"))
    yield bad(
        "rsa-signed-by-another-key",
        "C-15.",
        "bad-signature",
        machine_of(rsa),
        tpm=rsa,
        signing_key=rsa_key("another"),
    )
    told = strict_json.parse(machine.evidence)
    attest = strict_json.from_base64(told["attest"], "")
    signature = strict_json.from_base64(told["signature"], "")
    for name, at in {"clock": 96, "extra-data": 50, "digest": -1}.items():
        yield bad(f"bit-of-{name}", "C-15.", "bad-signature", attest=flipped(attest, at), signature=signature)
    yield bad("bit-of-the-signature", "C-15.", "bad-signature", signature=flipped(signature, -1))
    whole = strict_json.from_base64(strict_json.parse(machine_of(rsa).evidence)["attest"], "")
    mixed = struct.pack(">H", RSAPSS) + sign(rsa.key, whole, scheme=RSASSA)[2:]
    yield bad(
        "pkcs1-called-pss",
        "C-14.",
        "bad-signature",
        machine_of(rsa),
        tpm=rsa,
        attest=whole,
        signature=mixed,
        **bare,
    )
    for name, changes in {
        "none": {"selections": []},
        "empty": {"selections": [selection([])], "registers": {}},
        "twice": {"selections": [selection([4]), selection([7])]},
        "fewer-than-told": {"selections": [selection([4])]},
        "without-what-the-policy-names": {
            "registers": {one: value for one, value in HONEST.items() if one != 4}
        },
        "without-secure-boot": {"registers": {one: value for one, value in HONEST.items() if one != 7}},
        "nothing-told": {"pcrs": {}},
        "of-another-bank": {"bank": "sha384"},
    }.items():
        yield bad(f"selection-{name}", "C-15: CVE-2022-0317 and its like.", "pcr-selection", **changes)
    yield bad(
        "register-not-the-quoted-one",
        "C-6, C-15.",
        "pcr-digest-mismatch",
        pcrs={str(one): (bytes(32) if one == 4 else value).hex() for one, value in HONEST.items()},
    )
    yield bad("digest-of-zeros", "C-15.", "pcr-digest-mismatch", digest=bytes(32))
    yield bad("digest-empty", "C-15.", "pcr-digest-mismatch", digest=b"")
    for name, nonce in {
        "of-another-question": bytes(48),
        "shorter": NONCE[:47],
        "longer": NONCE + b"\x00",
    }.items():
        yield machine.refused(f"nonce-{name}", "C-1, C-5.", "wrong-nonce", 8, nonce=nonce)


def _boot(machine: Machine) -> Iterator[Draft]:
    """Steps 10 and 12."""

    def booted(happened: Sequence[Measurement], told: Sequence[Measurement] | None = None) -> Machine:
        tpm = FakeTpm(boot=happened)
        base = machine_of(tpm)
        return replace(
            base, endorsements=tpm.endorsements(event_log=log_of(happened if told is None else told))
        )

    off = booted(OFF)
    yield off.refused("secure-boot-off", "C-7.", "secure-boot-off", 10)
    yield off.accepted(
        "secure-boot-off-and-not-asked",
        "The policy says so.",
        wish={"boot": {"pcrs": {"4": hexes(registers(OFF)[4])}, "secure_boot": "unchecked"}},
    )
    for name, happened in {
        "turned-on-afterwards": (*OFF, secure_boot()),
        "told-twice": (OFF[0], OFF[1], secure_boot(), *OFF[2:]),
        "of-another-vendor": (
            BOOT[0],
            Measurement(7, 0x80000001, variable("SecureBoot", b"\x01", vendor=bytes(16))),
            *BOOT[2:],
        ),
        "of-another-name": (BOOT[0], Measurement(7, 0x80000001, variable("SecureBoop", b"\x01")), *BOOT[2:]),
        "of-two-bytes": (BOOT[0], secure_boot(b"\x01\x00"), *BOOT[2:]),
    }.items():
        yield booted(happened).refused(
            f"secure-boot-{name}", "C-7, C-15: what was measured first.", "secure-boot-off", 10
        )
    yield booted(OFF, (OFF[0], replace(secure_boot(), digest_of=OFF[1].data), *OFF[2:])).refused(
        "secure-boot-by-words-alone", "C-15: the digest is of zero.", "secure-boot-off", 10
    )
    yield booted(OFF, BOOT).refused(
        "secure-boot-by-the-log-of-another-boot", "C-15.", "event-log-mismatch", 10
    )
    yield machine.refused(
        "log-missing", "C-7: the policy reads it.", "event-log-missing", 10, endorsements={"event_log": None}
    )
    yield machine.refused(
        "log-missing-for-the-registers",
        "C-6.",
        "event-log-missing",
        12,
        endorsements={"event_log": None},
        wish=asked(secure_boot="unchecked"),
    )
    changed = tuple(replace(one, digest_of=b"another program") if one is PROGRAM else one for one in BOOT)
    yield replace(booted(changed), policy=machine.policy).refused(
        "another-program", "C-6.", "pcr-mismatch", 12
    )
    for number in (0, 8):
        wish = {"boot": {"pcrs": {str(number): hexes(OTHER)}}}
        yield machine.refused(f"register-{number}-otherwise", "C-6.", "pcr-mismatch", 12, wish=wish)
        yield machine.accepted(
            f"register-{number}-as-named",
            "C-6.",
            wish={"boot": {"pcrs": {str(number): hexes(OTHER, HONEST[number])}}},
        )
    for number in (0, 4, 5):
        more = (*BOOT, Measurement(number, 5, b"not measured"))
        yield booted(BOOT, more).refused(
            f"log-with-an-event-more-in-{number}", "C-15.", "event-log-mismatch", 12
        )
    yield booted((*BOOT, separator(4))).refused(
        "two-separators", "C-15: the firmware begins to boot once.", "event-mismatch", 12
    )
    line = hashlib.sha256(b"/vmlinuz ro").digest()
    value = hashlib.sha256(b"the vendor's certificate").digest()
    only = asked(events=[{"register": 8, "only": hexes(line)}])
    db = asked(events=[{"register": 7, "variable": "db", "sha256_of_data": hexes(value)}])
    yield machine.accepted("command-line-as-named", "C-6: as GRUB measures it.", wish=only)
    yield machine.accepted("variable-as-named", "C-6.", wish=db)
    yield machine.refused(
        "command-line-otherwise",
        "C-6.",
        "event-mismatch",
        12,
        wish=asked(events=[{"register": 8, "only": hexes(OTHER)}]),
    )
    yield machine.refused(
        "variable-otherwise",
        "C-6.",
        "event-mismatch",
        12,
        wish=asked(events=[{"register": 7, "variable": "db", "sha256_of_data": hexes(OTHER)}]),
    )
    yield machine.refused(
        "variable-not-there",
        "C-6.",
        "event-mismatch",
        12,
        wish=asked(events=[{"register": 7, "variable": "dbx", "sha256_of_data": hexes(value)}]),
    )
    evil = booted((*BOOT, Measurement(8, 0xD, b"grub_cmd: insmod evil\x00", b"insmod evil")))
    yield evil.refused("something-else-measured-too", "C-6.", "event-mismatch", 12, wish=only)
    yield booted((*BOOT[:3], DB, *BOOT[3:])).refused(
        "variable-measured-twice", "C-15.", "event-mismatch", 12, wish=db
    )
    yield booted((*BOOT[:3], *BOOT[4:], DB)).refused(
        "variable-measured-too-late", "C-15: after the separator.", "event-mismatch", 12, wish=db
    )


def _machines(machine: Machine) -> Iterator[Draft]:
    """Step 13."""
    for name, good, bad in (
        ("project", {"projects": ["our-project", "another"]}, {"projects": ["another"]}),
        ("zone", {"zones": ["nowhere1-a"]}, {"zones": ["nowhere1-b"]}),
        ("instance", {"instances": [8033817256003918212]}, {"instances": [1]}),
    ):
        yield machine.accepted(f"{name}-as-named", "C-51.", wish=good)
        yield machine.refused(f"{name}-of-another", "C-51.", "instance-not-listed", 13, wish=bad)
    nameless = b"".join(OURS.chain(leaf=OURS.certificate("leaf", info=None)))
    sent = {"ak_chain": nameless}
    yield machine.accepted("certificate-of-no-machine", "No machine is asked for.", endorsements=sent)
    yield machine.refused(
        "certificate-of-no-machine-and-one-named",
        "C-51.",
        "instance-not-listed",
        13,
        endorsements=sent,
        wish={"projects": ["our-project"]},
    )
    yield machine.refused(
        "key-pinned-in-another-project",
        "C-51.",
        "instance-not-listed",
        13,
        wish={"ak_keys": hexes(OURS.pin), "projects": ["another"]},
    )
