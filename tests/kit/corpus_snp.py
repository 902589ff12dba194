"""The cases of AMD SEV-SNP: one honest machine of each family, and what is changed about it."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from blindbox_attestation.snp.tcb import LAYOUTS, PARTS, Tcb
from tests.kit import NOON
from tests.kit.amd import CLOUD, MEASUREMENT, FakeAmd, chip_key, ia5, rsa_key, small_integer
from tests.kit.corpus import SECOND, Draft, Machine, fingerprint, flipped, hexes, named, put

NONCE = bytes(range(48))
P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
SIGNATURE = 0x2A0
"""Where it begins in a report: R and S, 72 bytes each, little endian."""


def floor_of(family: str, tcb: Tcb) -> dict[str, int]:
    """One floor, as a policy writes it."""
    return {part: getattr(tcb, part) for part in LAYOUTS[family]}


@cache
def amd_of(family: str, kind: str = "vcek", cpu: str | None = None) -> FakeAmd:
    return FakeAmd(family, signing_key=kind, cpu=cpu)


def machine_of(amd: FakeAmd, **changes: Any) -> Machine:
    """A machine of this vendor's, with the policy that accepts it; `changes` are fields of the report."""
    policy = {
        "measurements": hexes(MEASUREMENT),
        "minimum_tcb": {amd.family: floor_of(amd.family, amd.tcb)},
        "signing_keys": [amd.signing_key],
    }
    return Machine(
        platform="sev-snp",
        key="snp",
        evidence=amd.report(NONCE.ljust(64, b"\x00"), **changes),
        endorsements=amd.endorsements(),
        policy={"version": 1, "snp": policy},
        roots={"snp": named(amd.roots)},
        nonce=NONCE,
    )


def cases() -> Iterator[Draft]:
    """All of them."""
    genoa = amd_of("Genoa")
    machine = machine_of(genoa)

    def report(**changes: Any) -> bytes:
        return genoa.report(NONCE.ljust(64, b"\x00"), **changes)

    yield from _honest(genoa, machine, report)
    yield from _reading(machine, report)
    yield from _certificates(genoa, machine, report)
    yield from _revocation(genoa, machine)
    yield from _endorsed(genoa, machine, report)
    yield from _signature(machine, report)
    yield from _policy(genoa, machine, report)


def _honest(genoa: FakeAmd, machine: Machine, report: Any) -> Iterator[Draft]:
    for family in ("Milan", "Genoa", "Turin"):
        for kind in ("vcek", "vlek"):
            one = machine_of(amd_of(family, kind))
            yield one.accepted(
                f"honest-{family.lower()}-{kind}", f"An honest {family} machine with a {kind}."
            )
    bergamo = machine_of(amd_of("Genoa", cpu="Bergamo"))
    yield bergamo.accepted("honest-bergamo", "Bergamo belongs to Genoa.")
    for version in (2, 3, 4):
        changes: dict[str, Any] = {"version": version, **({"cpuid": bytes(3)} if version == 2 else {})}
        yield machine.accepted(
            f"honest-report-version-{version}", f"A report of version {version}.", evidence=report(**changes)
        )
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked: old evidence would do.", nonce=None)
    yield machine.accepted(
        "whole-report-data-is-asked", "All 64 bytes given.", nonce=NONCE.ljust(64, b"\x00")
    )
    floor = floor_of("Genoa", genoa.tcb)
    stepping = {"minimum_tcb": {"Genoa/11/1": floor, "Genoa": {**floor, "snp": 0xFF}}}
    yield machine.accepted(
        "floor-by-stepping", "The stepping's floor takes the place of the family's.", wish=stepping
    )
    newer = replace(genoa.tcb, snp=0x1A).encode("Genoa")
    yield machine.accepted(
        "newer-firmware-than-reported", "Current and committed above reported: a provisional update.",
        evidence=report(current_tcb=newer, committed_tcb=newer),
    )  # fmt: skip
    yield machine.accepted(
        "revocation-unchecked", "The policy says in so many words that no list is needed.",
        endorsements={"crl": None}, wish={"revocation": "unchecked"},
    )  # fmt: skip
    yield machine.accepted(
        "two-measurements",
        "One of several measurements.",
        wish={"measurements": hexes(MEASUREMENT, bytes(48))},
    )
    host = bytes(range(32))
    yield machine.accepted(
        "host-data-as-named", "C-51: launched with the host data that the policy names.",
        evidence=report(host_data=host), wish={"host_data": host.hex()},
    )  # fmt: skip
    yield machine.accepted(
        "chip-as-named", "C-51: the chip that the policy names.", wish={"chip_ids": hexes(genoa.chip_id)}
    )
    turin = amd_of("Turin")
    yield machine_of(turin).accepted(
        "chip-of-turin-in-8-bytes", "A Turin names itself in 8 bytes.", wish={"chip_ids": hexes(turin.hwid)}
    )
    yield machine.accepted(
        "masked-chip-allowed", "The chip hides, and the policy lets it.",
        evidence=report(chip_id=bytes(64)), wish={"allow_masked_chip_id": True},
    )  # fmt: skip
    yield machine_of(amd_of("Genoa", "vlek")).accepted(
        "cloud-as-named", "C-51: the cloud whose key signed.", wish={"csp_ids": [CLOUD]}
    )
    yield machine.accepted("guest-svn-at-the-floor", "Exactly the floor.", wish={"minimum_guest_svn": 3})
    yield machine.accepted(
        "without-smt", "No sibling threads, as the policy asks.",
        evidence=report(policy=0x20000, platform_info=0x24), wish={"allow_smt": False},
    )  # fmt: skip
    yield machine.accepted(
        "platform-info-as-asked", "Alias check done, RAPL off.",
        wish={"platform_info_required": 0x24, "platform_info_forbidden": 0x10},
    )  # fmt: skip
    keys = {"id_key_digest": b"\x11" * 48, "author_key_digest": b"\x22" * 48, "flags": 1}
    yield machine.accepted(
        "id-block-as-named", "Signed by the keys that the policy names.", evidence=report(**keys),
        wish={"id_key_digests": hexes(b"\x11" * 48), "author_key_digests": hexes(b"\x22" * 48)},
    )  # fmt: skip
    for level in (1, 3):
        yield machine.accepted(
            f"vmpl-{level}-as-asked", "The level that the policy asks for.",
            evidence=report(vmpl=level), wish={"vmpl": level},
        )  # fmt: skip
    both = {**machine.endorsements, **amd_of("Genoa", "vlek").endorsements()}
    yield machine.accepted(
        "both-kinds-of-certificates-sent", "C-13: the one that the report speaks of counts.",
        endorsements=both, wish={"signing_keys": ["vcek", "vlek"]},
    )  # fmt: skip


def _reading(machine: Machine, report: Any) -> Iterator[Draft]:
    """Step 2 and 3."""
    honest = machine.evidence

    def bad(name: str, about: str, code: str, evidence: bytes) -> Draft:
        return machine.refused(name, about, code, 3, evidence=evidence)

    yield machine.refused(
        "platform-simulated", "C-35: SNP evidence under the name of the simulation.", "simulated-evidence", 2,
        platform="simulated",
    )  # fmt: skip
    yield machine.refused(
        "platform-unknown",
        "C-20: a platform of a later version.",
        "platform-not-accepted",
        2,
        platform="sev-snp2",
    )
    yield machine.refused(
        "platform-not-named", "C-22: the policy names TDX only.", "platform-not-accepted", 2,
        policy={"version": 1, "tdx": {"mrtd": hexes(bytes(48)), "minimum_tcb_evaluation": 18}}, roots={},
    )  # fmt: skip
    for name, data in {
        "empty": b"",
        "one-byte-short": honest[:-1],
        "one-byte-long": honest + b"\x00",
        "without-signature": honest[:SIGNATURE],
        "twice": honest * 2,
        "as-text": honest.hex().encode(),
    }.items():
        yield bad(f"report-{name}", "C-19: 1184 bytes and no others.", "malformed-report", data)
    for version in (0, 1, 6, 0xFFFFFFFF):
        data = put(honest, 0, version.to_bytes(4, "little"))
        yield bad(
            f"report-version-{version}", "C-20: only versions 2 to 5.", "unsupported-report-version", data
        )
    for algorithm in (0, 2):
        yield bad(
            f"signature-algorithm-{algorithm}", "C-14: ECDSA P-384 with SHA-384 only.",
            "unsupported-signature-algorithm", report(signature_algorithm=algorithm),
        )  # fmt: skip
    yield bad("flags-reserved", "C-17: bit 5 of the flags.", "reserved-bits", report(flags=1 << 5))
    yield bad("version-2-with-cpuid", "C-17: version 2 has none.", "reserved-bits", report(version=2))
    for field in ("launch_mitigations", "current_mitigations"):
        yield bad(
            f"version-4-with-{field.replace('_', '-')}", "C-17: only version 5 has them.", "reserved-bits",
            report(version=4, **{field: b"\x01" + bytes(7)}),
        )  # fmt: skip
    for at in (0x04C, 0x18B, 0x1EB, 0x1EF, 0x29F):
        yield bad(
            f"reserved-byte-{at:03x}",
            "C-17: reserved bytes are zero.",
            "reserved-bits",
            put(honest, at, b"\x01"),
        )


def _certificates(amd: FakeAmd, machine: Machine, report: Any) -> Iterator[Draft]:
    """Step 4."""

    def bad(name: str, about: str, code: str, **endorsements: bytes | None) -> Draft:
        return machine.refused(name, about, code, 4, endorsements=endorsements)

    sent = machine.endorsements
    for kind in (2, 6, 7):
        yield machine.refused(
            f"signed-by-key-kind-{kind}", "C-13: neither VCEK nor VLEK.", "wrong-certificate-kind", 4,
            evidence=report(flags=kind << 2),
        )  # fmt: skip
    for what in ("ark", "ask", "vcek"):
        whole = sent[what]
        yield bad(f"{what}-missing", "C-23: nothing stands in for it.", "missing-endorsement", **{what: None})
        yield bad(f"{what}-not-der", "C-19: no certificate.", "malformed-certificate", **{what: b"garbage"})
        yield bad(f"{what}-cut-short", "C-19: one byte less.", "malformed-certificate", **{what: whole[:-1]})
        longer = {what: whole + b"\x00"}
        yield bad(f"{what}-with-a-byte-more", "C-17: nothing may follow.", "malformed-certificate", **longer)
        for word, changes in {
            "expired-a-second-ago": {"not_after": NOON - SECOND},
            "valid-in-a-second": {"not_before": NOON + SECOND},
        }.items():
            der = amd.certificate(what, **changes)
            roots = {"snp": {fingerprint(der).hex(): "Genoa"}} if what == "ark" else machine.roots
            yield machine.refused(
                f"{what}-{word}", "C-11: every certificate is valid now.", "certificate-not-valid-now", 4,
                endorsements={what: der}, roots=roots,
            )  # fmt: skip
    for name, changes in {"ends-now": {"not_after": NOON}, "begins-now": {"not_before": NOON}}.items():
        yield machine.accepted(
            f"vcek-{name}", "C-24: the bound itself still counts.",
            endorsements={"vcek": amd.certificate("vcek", **changes)},
        )  # fmt: skip
    for name, now, good in (
        ("first-second", NOON - timedelta(days=365), True),
        ("second-before-the-first", NOON - timedelta(days=365) - SECOND, False),
        ("last-second", NOON + timedelta(days=3650), True),
        ("second-after-the-last", NOON + timedelta(days=3650) + SECOND, False),
    ):
        about = "C-24: the caller's clock, to the second."
        wish = {"revocation": "unchecked"}
        if good:
            yield machine.accepted(f"chain-in-its-{name}", about, now=now, wish=wish)
        else:
            yield machine.refused(
                f"chain-in-the-{name}", about, "certificate-not-valid-now", 4, now=now, wish=wish
            )
    theirs = FakeAmd(name="Evil Devices")
    yield machine.refused(
        "whole-chain-of-another-vendor", "C-13: well made, and nobody's root.", "unpinned-root", 4,
        evidence=theirs.report(NONCE.ljust(64, b"\x00")), endorsements=theirs.endorsements(),
    )  # fmt: skip
    yield machine.refused(
        "real-roots-do-not-know-the-fake",
        "C-13: AMD's own pins, the fake vendor's chain.",
        "unpinned-root",
        4,
        roots={},
    )
    yield bad(
        "ark-of-the-same-name",
        "C-13: another certificate.",
        "unpinned-root",
        ark=amd.certificate("ark", serial=7),
    )
    yield bad("ask-as-ark", "C-13: an intermediate is no root.", "unpinned-root", ark=sent["ask"])
    for family in ("Milan", "Turin"):
        yield bad(
            f"ark-of-{family.lower()}",
            "C-13: that root is not pinned.",
            "unpinned-root",
            ark=amd_of(family).endorsements()["ark"],
        )
    for name, changes in {
        "signed-by-another": {"signer": "ask"},
        "issued-by-another": {"issuer": "ARK-X"},
        "may-not-sign": {"cert_sign": False},
    }.items():
        der = amd.certificate("ark", **changes)
        yield machine.refused(
            f"pinned-ark-{name}", "C-13: a fingerprint alone does not make a root.",
            "bad-certificate-signature" if "signed" in name else "wrong-issuer", 4,
            endorsements={"ark": der}, roots={"snp": {fingerprint(der).hex(): "Genoa"}},
        )  # fmt: skip
    p256 = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    rsa = rsa_key(amd.keys["ask"]).public_key()
    pss32, pkcs1 = padding.PSS(padding.MGF1(SHA384()), 32), padding.PKCS1v15()
    milan = amd_of("Milan").endorsements()
    for name, code, what, der in (
        ("ask-names-another-issuer", "wrong-issuer", "ask", amd.certificate("ask", issuer="ARK-Milan")),
        ("ask-of-milan", "wrong-issuer", "ask", milan["ask"]),
        ("ask-called-milan", "wrong-issuer", "ask", amd.certificate("ask", common_name="SEV-Milan")),
        ("ask-may-not-sign-certificates", "wrong-issuer", "ask", amd.certificate("ask", cert_sign=False, crl_sign=True)),
        ("vcek-issued-by-the-root", "wrong-issuer", "vcek", amd.certificate("vcek", issuer="ARK-Genoa", signer="ark")),
        ("vcek-issued-by-the-asvk", "wrong-issuer", "vcek", amd.certificate("vcek", issuer="SEV-VLEK-Genoa", signer="asvk")),
        ("vcek-of-milan", "wrong-issuer", "vcek", milan["vcek"]),
        ("vcek-of-another-vendor", "wrong-issuer", "vcek", theirs.endorsements()["vcek"]),
        ("asvk-as-ask", "wrong-certificate-kind", "ask", amd_of("Genoa", "vlek").endorsements()["asvk"]),
        ("ark-as-ask", "wrong-certificate-kind", "ask", sent["ark"]),
        ("ask-no-authority", "wrong-certificate-kind", "ask", amd.certificate("ask", authority=False)),
        ("ask-as-vcek", "wrong-certificate-kind", "vcek", sent["ask"]),
        ("vlek-as-vcek", "wrong-certificate-kind", "vcek", amd_of("Genoa", "vlek").endorsements()["vlek"]),
        ("vcek-an-authority", "wrong-certificate-kind", "vcek", amd.certificate("vcek", authority=True)),
        ("vcek-with-a-p256-key", "wrong-certificate-kind", "vcek", amd.certificate("vcek", public_key=p256)),
        ("vcek-with-an-rsa-key", "wrong-certificate-kind", "vcek", amd.certificate("vcek", public_key=rsa)),
        ("ask-signed-by-the-asvk", "bad-certificate-signature", "ask", amd.certificate("ask", signer="asvk")),
        ("vcek-signed-by-the-root", "bad-certificate-signature", "vcek", amd.certificate("vcek", signer="ark")),
        ("vcek-signed-in-pkcs1", "bad-certificate-signature", "vcek", amd.certificate("vcek", pad=pkcs1)),
        ("vcek-signed-with-short-salt", "bad-certificate-signature", "vcek", amd.certificate("vcek", pad=pss32)),
        ("vcek-signed-over-sha256", "bad-certificate-signature", "vcek", amd.certificate("vcek", hash_algorithm=SHA256())),
        ("ask-signed-in-pkcs1", "bad-certificate-signature", "ask", amd.certificate("ask", pad=pkcs1)),
        ("vcek-last-bit-of-signature", "bad-certificate-signature", "vcek", flipped(sent["vcek"], -1)),
        ("ask-last-bit-of-signature", "bad-certificate-signature", "ask", flipped(sent["ask"], -1)),
        ("vcek-unknown-critical-extension", "malformed-certificate", "vcek", amd.certificate("vcek", critical="4")),
    ):  # fmt: skip
        yield bad(name, "C-13, C-14: one link, otherwise than AMD makes it.", code, **{what: der})
    yield bad(
        "chain-of-milan-below-the-root-of-genoa", "C-13: all links hold; the root has no such intermediate.",
        "wrong-issuer", ask=amd.certificate("ask", common_name="SEV-Milan"), vcek=amd.certificate("vcek", issuer="SEV-Milan"),
    )  # fmt: skip
    vlek = machine_of(amd_of("Genoa", "vlek"))
    yield vlek.refused("vlek-missing", "C-23.", "missing-endorsement", 4, endorsements={"vlek": None})
    yield vlek.refused(
        "asvk-is-an-ask", "C-13: VLEKs come from the ASVK.", "wrong-certificate-kind", 4,
        endorsements={"asvk": sent["ask"]},
    )  # fmt: skip
    yield vlek.refused(
        "vcek-sent-for-a-vlek-report", "C-13: the report says which.", "missing-endorsement", 4,
        endorsements={**dict(sent), "vlek": None, "asvk": None},
    )  # fmt: skip


def _revocation(amd: FakeAmd, machine: Machine) -> Iterator[Draft]:
    """Step 5."""

    def bad(name: str, about: str, code: str, crl: bytes | None) -> Draft:
        return machine.refused(name, f"C-10: {about}", code, 5, endorsements={"crl": crl})

    yield bad("crl-missing", "a list that is not there is a failure.", "crl-missing", None)
    yield bad("crl-of-tomorrow", "not yet in force.", "crl-not-valid-now", amd.crl(this_update=NOON + SECOND))
    yield bad(
        "crl-expired-a-second-ago",
        "no longer in force.",
        "crl-not-valid-now",
        amd.crl(next_update=NOON - SECOND),
    )
    yield bad("ask-revoked", "the intermediate.", "revoked", amd.crl(revoked=[0x20002]))
    yield bad("ask-revoked-among-others", "the last of several.", "revoked", amd.crl(revoked=[1, 5, 0x20002]))
    yield bad("ark-revoked", "the root by itself.", "revoked", amd.crl(revoked=[0x20000]))
    for name, crl in {
        "signed-by-the-ask": amd.crl(signer="ask"),
        "of-another-issuer": amd.crl(issuer="ARK-Milan"),
        "of-another-vendor": FakeAmd(name="Evil Devices").crl(),
        "signed-in-pkcs1": amd.crl(pad=padding.PKCS1v15()),
        "delta": amd.crl(delta=True),
        "cut-short": amd.crl()[:-1],
        "with-a-byte-more": amd.crl() + b"\x00",
        "empty": b"",
        "is-a-certificate": machine.endorsements["ark"],
        "last-bit": flipped(amd.crl(), -1),
    }.items():
        yield bad(f"crl-{name}", "not the root's own whole list.", "crl-bad-signature", crl)
    yield machine.accepted(
        "crl-begins-now", "C-24: its first second.", endorsements={"crl": amd.crl(this_update=NOON)}
    )
    yield machine.accepted(
        "crl-ends-now", "C-24: its last second.", endorsements={"crl": amd.crl(next_update=NOON)}
    )
    yield machine.accepted(
        "crl-names-others",
        "Somebody else was revoked.",
        endorsements={"crl": amd.crl(revoked=[0x20001, 0x20101])},
    )
    vlek = amd_of("Genoa", "vlek")
    yield machine_of(vlek).refused(
        "asvk-revoked",
        "C-10: the other intermediate.",
        "revoked",
        5,
        endorsements={"crl": vlek.crl(revoked=[0x20101])},
    )


def _endorsed(amd: FakeAmd, machine: Machine, report: Any) -> Iterator[Draft]:
    """Step 6."""

    def bad(name: str, about: str, code: str, one: FakeAmd = amd, **changes: Any) -> Draft:
        leaf = one.signing_key
        base = machine if one is amd else machine_of(one)
        der = one.certificate(leaf, extensions=changes)
        return base.refused(name, about, code, 6, endorsements={leaf: der})

    yield bad(
        "vcek-product-milan",
        "C-13: its own word for the product.",
        "product-mismatch",
        **{"2": ia5("Milan-B0")},
    )
    for name, cpuid in {
        "milan": (0x19, 1, 1), "turin": (0x1A, 2, 1), "unknown-model": (0x19, 0x20, 0), "zero": (0, 0, 0)
    }.items():  # fmt: skip
        yield machine.refused(
            f"cpuid-{name}", "C-13: the report says it is another processor.", "product-mismatch", 6,
            evidence=report(cpuid=bytes(cpuid)),
        )  # fmt: skip
    yield machine.refused(
        "chip-id-of-another", "C-9: the certificate is for another chip.", "chip-id-mismatch", 6,
        evidence=report(chip_id=flipped(amd.chip_id, 63)),
    )  # fmt: skip
    yield bad("vcek-of-another-chip", "C-9.", "chip-id-mismatch", **{"4": bytes(63) + b"\x01"})
    turin = amd_of("Turin")
    yield machine_of(turin, chip_id=turin.hwid + b"\x01" + bytes(55)).refused(
        "turin-chip-id-beyond-8-bytes", "C-9: the rest is zero, not free.", "chip-id-mismatch", 6
    )
    yield machine.refused(
        "chip-id-masked",
        "C-9: the policy wants to see it.",
        "chip-id-masked",
        6,
        evidence=report(chip_id=bytes(64)),
    )
    for part, suffix in {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}.items():
        for word, by in {"higher": 1, "lower": -1}.items():
            value = getattr(amd.tcb, part) + by
            if value < 0:
                continue
            yield bad(
                f"vcek-for-{word}-{part}", "C-8: the key of another firmware level.", "certificate-tcb-mismatch",
                **{suffix: small_integer(value)},
            )  # fmt: skip
            yield machine.refused(
                f"reported-{part}-{word}", "C-8: reported is not what the certificate is for.",
                "certificate-tcb-mismatch", 6, evidence=report(reported_tcb=replace(amd.tcb, **{part: value})),
            )  # fmt: skip
    yield bad(
        "turin-vcek-for-other-fmc", "C-8.", "certificate-tcb-mismatch", turin, **{"3.9": small_integer(2)}
    )
    for at in (2, 5):
        yield machine.refused(
            f"reported-tcb-reserved-byte-{at}", "C-17: reserved bytes of a TCB.", "reserved-bits", 6,
            evidence=report(reported_tcb=put(amd.tcb.encode("Genoa"), at, b"\x01")),
        )  # fmt: skip
    for suffix, name in {
        "2": "product", "3.1": "bootloader", "3.2": "tee", "3.3": "snp", "3.8": "microcode", "4": "hwid"
    }.items():  # fmt: skip
        yield bad(
            f"vcek-without-{name}", "C-9: an extension is missing.", "malformed-extension", **{suffix: None}
        )
    yield bad("turin-vcek-without-fmc", "C-9.", "malformed-extension", turin, **{"3.9": None})
    for name, changes in {
        "genoa-vcek-with-fmc": {"3.9": small_integer(0)},
        "vcek-with-csp-id": {"5": ia5("CN=x")},
        "vcek-hwid-too-short": {"4": bytes(63)},
        "vcek-hwid-of-8-bytes": {"4": bytes(8)},
        "vcek-unused-part-in-use": {"3.5": small_integer(1)},
        "vcek-snp-of-two-bytes": {"3.3": b"\x02\x02\x01\x00"},
        "vcek-snp-negative": {"3.3": b"\x02\x01\xff"},
        "vcek-snp-no-integer": {"3.3": b"\x04\x01\x19"},
        "vcek-snp-with-a-byte-more": {"3.3": small_integer(0x19) + b"\x00"},
        "vcek-product-no-text": {"2": b"\x02\x01\x01"},
    }.items():
        yield bad(name, "C-9, C-17: an extension in another form.", "malformed-extension", **changes)
    vlek = amd_of("Genoa", "vlek")
    yield bad("vlek-without-csp-id", "C-9.", "malformed-extension", vlek, **{"5": None})
    yield bad(
        "vlek-with-hwid",
        "C-9: a cloud's key is not one chip's.",
        "malformed-extension",
        vlek,
        **{"4": bytes(64)},
    )


def _signature(machine: Machine, report: Any) -> Iterator[Draft]:
    """Steps 7 and 8."""
    honest = machine.evidence

    def bad(name: str, about: str, evidence: bytes, code: str = "bad-signature") -> Draft:
        return machine.refused(name, about, code, 7, evidence=evidence)

    for name, at in {
        "guest-svn": 0x04, "policy": 0x08, "report-data": 0x50, "measurement": 0x90, "host-data": 0xC0,
        "id-key": 0xE0, "report-id": 0x140, "committed-tcb": 0x1E0, "launch-tcb": 0x1F0,
    }.items():  # fmt: skip
        yield bad(f"bit-of-{name}", "C-15: every signed byte counts.", flipped(honest, at))
    yield bad("signed-by-another-chip", "C-15: somebody else's key.", report(key=chip_key("another")))
    other = report(host_data=b"\x01" * 32)
    yield bad("signature-of-another-report", "C-15: spliced.", honest[:SIGNATURE] + other[SIGNATURE:])
    r, s = honest[SIGNATURE : SIGNATURE + 72], honest[SIGNATURE + 72 : SIGNATURE + 144]
    yield bad("signature-with-r-and-s-exchanged", "C-15.", put(put(honest, SIGNATURE, s), SIGNATURE + 72, r))
    order = P384_ORDER.to_bytes(72, "little")
    for name, at, value in (
        ("r-zero", SIGNATURE, bytes(72)),
        ("s-zero", SIGNATURE + 72, bytes(72)),
        ("r-is-the-order", SIGNATURE, order),
        ("s-is-the-order", SIGNATURE + 72, order),
        ("r-with-high-padding", SIGNATURE + 71, b"\x01"),
        ("s-with-high-padding", SIGNATURE + 143, b"\x01"),
        ("bytes-after-it", SIGNATURE + 144, b"\x01"),
        ("last-byte", 1183, b"\x01"),
    ):
        yield bad(
            f"signature-{name}",
            "C-17: 1 to n − 1, zeros around it.",
            put(honest, at, value),
            "malformed-signature",
        )
    for name, nonce in {
        "of-another-question": bytes(48),
        "one-bit-otherwise": flipped(NONCE, 47),
        "longer": NONCE + b"\x01",
        "shorter": NONCE[:47],
        "with-bits-after-it": NONCE.ljust(63, b"\x00") + b"\x01",
    }.items():
        yield machine.refused(f"nonce-{name}", "C-1, C-5: all 64 bytes.", "wrong-nonce", 8, nonce=nonce)


def _policy(amd: FakeAmd, machine: Machine, report: Any) -> Iterator[Draft]:
    """Steps 9 to 13."""
    floor = floor_of("Genoa", amd.tcb)
    for part in PARTS:
        if part == "fmc":
            continue
        above = {"Genoa": {**floor, part: floor[part] + 1}}
        yield machine.refused(
            f"floor-above-{part}",
            "C-8: compared part by part.",
            "tcb-too-old",
            9,
            wish={"minimum_tcb": above},
        )
        if not floor[part]:
            continue
        lower = replace(amd.tcb, **{part: floor[part] - 1})
        for level in ("committed", "launch"):
            yield machine.refused(
                f"{level}-{part}-below-the-floor", f"C-8: {level} counts too.", "tcb-too-old", 9,
                evidence=report(**{f"{level}_tcb": lower}),
            )  # fmt: skip
        low = {"minimum_tcb": {"Genoa": {**floor, part: floor[part] - 1}}}
        yield machine.refused(
            f"committed-{part}-below-reported", "C-8: it could go back.", "tcb-inconsistent", 9,
            evidence=report(committed_tcb=lower), wish=low,
        )  # fmt: skip
        yield machine.refused(
            f"current-{part}-below-committed", "C-8: it has gone back.", "tcb-inconsistent", 9,
            evidence=report(current_tcb=lower), wish=low,
        )  # fmt: skip
        higher = replace(amd.tcb, **{part: floor[part] + 1})
        yield machine.refused(
            f"launch-{part}-above-current", "C-8: it was newer once.", "tcb-inconsistent", 9,
            evidence=report(launch_tcb=higher),
        )  # fmt: skip
    yield machine_of(amd_of("Turin")).refused(
        "floor-above-fmc", "C-8: only Turin has one.", "tcb-too-old", 9,
        wish={"minimum_tcb": {"Turin": {**floor_of("Turin", amd_of("Turin").tcb), "fmc": 2}}},
    )  # fmt: skip
    yield machine.refused(
        "family-not-named", "C-22: a floor for Turin only.", "platform-not-accepted", 9,
        wish={"minimum_tcb": {"Turin": {"fmc": 0, **floor}}},
    )  # fmt: skip
    yield machine.refused(
        "stepping-not-named", "C-22: another stepping's floor.", "platform-not-accepted", 9,
        wish={"minimum_tcb": {"Genoa/a0/2": floor}},
    )  # fmt: skip
    yield machine.refused(
        "stepping-hidden", "C-8: version 2 does not tell it.", "platform-not-accepted", 9,
        evidence=report(version=2, cpuid=bytes(3)), wish={"minimum_tcb": {"Genoa": floor, "Genoa/11/1": floor}},
    )  # fmt: skip
    yield machine.refused(
        "stepping-floor-above", "C-8: the stepping's own floor.", "tcb-too-old", 9,
        wish={"minimum_tcb": {"Genoa": floor, "Genoa/11/1": {**floor, "microcode": 0xFF}}},
    )  # fmt: skip

    def said(
        name: str, about: str, code: str, step: int, wish: dict[str, Any] | None = None, **changes: Any
    ) -> Draft:
        evidence = report(**changes) if changes else machine.evidence
        return machine.refused(name, about, code, step, evidence=evidence, wish=wish or {})

    yield said("debug-allowed", "C-7: its host can read its memory.", "debug-allowed", 10, policy=0xB0000)
    yield said("migration-allowed", "C-7: it may be moved.", "migration-allowed", 10, policy=0x70000)
    yield said("migration-agent", "C-7: one is bound to it.", "migration-allowed", 10, report_id_ma=bytes(32))
    yield said("policy-bit-17-zero", "C-7: must be one.", "policy-bits", 10, policy=0x10000)
    for bit in (26, 32, 63):
        yield said(
            f"policy-bit-{bit}-set", "C-7: unknown bits.", "policy-bits", 10, policy=0x30000 | 1 << bit
        )
    yield said("smt-allowed", "The policy forbids sibling threads.", "policy-bits", 10, {"allow_smt": False})
    yield said(
        "smt-enabled", "The machine has it on.", "platform-info", 10, {"allow_smt": False}, policy=0x20000
    )
    yield said(
        "platform-info-bit-missing",
        "BadRAM: the alias check.",
        "platform-info",
        10,
        {"platform_info_required": 32},
        platform_info=5,
    )
    yield said(
        "platform-info-bit-forbidden",
        "C-7: ECC, which the policy forbids here.",
        "platform-info",
        10,
        {"platform_info_forbidden": 4},
    )
    for level in (1, 2, 3):
        yield said(f"vmpl-{level}", "C-51: a lower level asked.", "vmpl", 11, vmpl=level)
    yield said(
        "vmpl-0-where-1-is-asked", "C-51: exactly the level that is asked for.", "vmpl", 11, {"vmpl": 1}
    )
    yield said(
        "signed-by-the-wrong-kind",
        "C-13: the policy accepts VLEKs only.",
        "signing-key-kind",
        11,
        {"signing_keys": ["vlek"]},
    )
    yield said("another-program", "C-6.", "measurement-mismatch", 12, measurement=bytes(48))
    yield said(
        "program-one-bit-otherwise",
        "C-6: whole digests.",
        "measurement-mismatch",
        12,
        measurement=flipped(MEASUREMENT, 47),
    )
    yield said(
        "guest-svn-below", "C-8: an old version of the guest.", "guest-svn", 12, {"minimum_guest_svn": 4}
    )
    one, two = "11" * 48, "22" * 48
    yield said(
        "id-key-of-another", "C-51.", "id-block", 12, {"id_key_digests": [one]}, id_key_digest=b"\x22" * 48
    )
    yield said("id-key-of-none", "C-51: no ID block at all.", "id-block", 12, {"id_key_digests": [one]})
    yield said(
        "author-key-of-another",
        "C-51.",
        "id-block",
        12,
        {"author_key_digests": [two]},
        author_key_digest=b"\x11" * 48,
        flags=1,
    )
    yield said(
        "author-key-without-its-flag",
        "C-51: the digest alone is nothing.",
        "id-block",
        12,
        {"author_key_digests": [two]},
        author_key_digest=b"\x22" * 48,
    )
    yield said(
        "host-data-of-another",
        "C-51: another owner's launch.",
        "host-data",
        13,
        {"host_data": "11" * 32},
        host_data=b"\x12" * 32,
    )
    yield said("host-data-missing", "C-51.", "host-data", 13, {"host_data": "11" * 32})
    yield said("chip-not-listed", "C-51.", "chip-not-listed", 13, {"chip_ids": hexes(b"\x01" * 64)})
    yield said(
        "chip-hidden-and-a-list",
        "C-51: a hidden chip is on no list.",
        "chip-not-listed",
        13,
        {"chip_ids": hexes(amd.chip_id), "allow_masked_chip_id": True},
        chip_id=bytes(64),
    )
    yield machine_of(amd_of("Genoa", "vlek")).refused(
        "cloud-of-another", "C-51: another cloud's key.", "cloud-not-listed", 13,
        wish={"csp_ids": ["CN=cc-nowhere.example"]},
    )  # fmt: skip
    yield machine.refused(
        "cloud-not-told", "C-51: a VCEK names no cloud.", "cloud-not-listed", 13, wish={"csp_ids": [CLOUD]}
    )
    yield said(
        "two-lies-and-the-first-counts",
        "The order of the steps is fixed.",
        "debug-allowed",
        10,
        policy=0xB0000,
        measurement=bytes(48),
    )


__all__ = ["amd_of", "cases", "machine_of"]
