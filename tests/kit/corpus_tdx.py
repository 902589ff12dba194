"""The cases of Intel TDX: one honest machine, and each link from Intel's root to the guest that can lie alone."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA384

from tests.kit import NOON
from tests.kit.corpus import SECOND, Draft, Machine, fingerprint, flipped, hexes, named, put
from tests.kit.intel import (
    CPU_SVN,
    EVALUATION,
    FMSPC,
    MRSEAM,
    MRTD,
    PCE_SVN,
    RTMRS,
    SEPT_VE_DISABLE,
    TEE_TCB_SVN,
    FakeIntel,
    p256_key,
    pem,
    raw_point,
    tlv,
    zulu,
)

NONCE = bytes(range(48))
USER_DATA = NONCE.ljust(64, b"\x00")
OTHER = bytes(range(48, 96))
STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
HOUR = timedelta(hours=1)

INTEL = FakeIntel()
STRANGER = FakeIntel("Another Intel Corporation")
OWN = p256_key("somebody's own")


def quote(intel: FakeIntel = INTEL, **changes: Any) -> bytes:
    """A quote without padding, which is what the cases need least."""
    return intel.quote(changes.pop("user_data", USER_DATA), **{"padding": 0, **changes})


def machine_of(intel: FakeIntel, **changes: Any) -> Machine:
    """A machine of this vendor's, with the policy that accepts it; `changes` are those of a quote."""
    policy = {
        "mrtd": hexes(MRTD),
        "minimum_tcb_evaluation": EVALUATION,
        "rtmrs": {str(number): hexes(value) for number, value in enumerate(RTMRS)},
    }
    return Machine(
        platform="tdx",
        key="tdx",
        evidence=quote(intel, **changes),
        endorsements=intel.endorsements(),
        policy={"version": 1, "tdx": policy},
        roots={"tdx": named(intel.roots)},
        nonce=NONCE,
    )


def chain(pck: bytes | None = None, authority: bytes | None = None, root: bytes | None = None) -> str:
    return pem(
        pck or INTEL.standard("pck"), authority or INTEL.standard("platform"), root or INTEL.standard("root")
    )


def collateral(**changes: str) -> dict[str, bytes]:
    return {"collateral": INTEL.collateral(**changes)}


def tcb_info(**changes: Any) -> dict[str, bytes]:
    return collateral(tcb_info=INTEL.tcb_info(**changes))


def identity(**changes: Any) -> dict[str, bytes]:
    return collateral(qe_identity=INTEL.qe_identity(**changes))


def cases() -> Iterator[Draft]:
    """All of them."""
    machine = machine_of(INTEL)
    yield from _honest(machine)
    yield from _reading(machine)
    yield from _certificates(machine)
    yield from _revocation(machine)
    yield from _collateral(machine)
    yield from _signatures(machine)
    yield from _levels(machine)
    yield from _guest(machine)
    yield from _log()


def _honest(machine: Machine) -> Iterator[Draft]:
    yield machine.accepted("honest-v4", "A quote of version 4.")
    yield machine_of(INTEL, version=5).accepted("honest-v5", "A quote of version 5 with a TD 1.5 body.")
    yield machine_of(INTEL, version=5, body_type=2).accepted(
        "honest-v5-td10", "A quote of version 5 with a TD 1.0 body."
    )
    yield machine_of(FakeIntel(authority="processor")).accepted(
        "honest-processor-ca", "A machine certified by the Processor CA."
    )
    yield machine_of(INTEL, padding=70).accepted(
        "honest-padded", "The host's buffer was larger: zeros follow."
    )
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked: old evidence would do.", nonce=None)
    ending = INTEL.chain + "\x00"
    yield machine.accepted(
        "certificates-end-in-zero", "As some quoting enclaves write them.", evidence=quote(chain=ending)
    )
    for name, wish in {
        "mrseam": {"mrseam": hexes(MRSEAM)},
        "tee-tcb-svn": {"minimum_tee_tcb_svn": TEE_TCB_SVN.hex()},
        "xfam": {"xfam_allowed": 0x602E7},
        "ppid": {"ppids": hexes(INTEL.ppid)},
        "instance": {"platform_instance_ids": hexes(INTEL.instance)},
        "fmspc": {"fmspcs": hexes(FMSPC)},
        "no-rtmrs": {"rtmrs": None},
    }.items():
        yield machine.accepted(f"policy-{name}", "C-51: met to the letter.", wish=wish)
    for field, key in (
        ("mrconfigid", "mr_config_id"),
        ("mrowner", "mr_owner"),
        ("mrownerconfig", "mr_owner_config"),
    ):
        yield machine.accepted(
            f"policy-{field}", "C-51: what the host gave is what the policy names.",
            evidence=quote(**{field: OTHER}), wish={key: OTHER.hex()},
        )  # fmt: skip
    yield machine.accepted(
        "attributes-free-bits", "PKS and key locker are harmless.",
        evidence=quote(td_attributes=SEPT_VE_DISABLE | 3 << 30),
    )  # fmt: skip


def _reading(machine: Machine) -> Iterator[Draft]:
    """Step 3."""
    honest = machine.evidence
    five = quote(version=5)

    def bad(name: str, about: str, code: str, evidence: bytes) -> Draft:
        return machine.refused(name, about, code, 3, evidence=evidence)

    end = 48 + 584
    for name, size in {
        "empty": 0, "in-its-header": 47, "after-its-header": 48, "in-its-body": 400, "after-its-body": end,
        "after-its-length": end + 4, "after-its-signature": end + 68, "after-its-key": end + 132,
        "in-the-qe-report": end + 300, "one-byte-short": len(honest) - 1,
    }.items():  # fmt: skip
        yield bad(f"quote-cut-{name}", "C-19: at the borders of its parts.", "malformed-quote", honest[:size])
    yield bad("quote-with-a-byte-more", "C-17: not a zero.", "trailing-bytes", honest + b"\x01")
    for version in (3, 6):
        yield bad(
            f"quote-version-{version}",
            "C-20.",
            "unsupported-quote-version",
            quote(header={"version": version}),
        )
    yield bad("quote-of-sgx", "C-13: an enclave is no guest.", "wrong-tee-type", quote(header={"tee": 0}))
    yield bad("key-type-p384", "C-14.", "unsupported-signature-algorithm", quote(header={"key_type": 3}))
    yield bad("header-reserved", "C-17.", "reserved-bits", quote(header={"reserved": b"\x00\x00\x01\x00"}))
    for kind in (1, 4):
        yield bad(
            f"body-type-{kind}",
            "C-13, C-20.",
            "unsupported-quote-version",
            put(five, 48, struct.pack("<H", kind)),
        )
    yield bad(
        "body-of-another-size",
        "C-17: type and size disagree.",
        "malformed-quote",
        put(five, 50, struct.pack("<I", 584)),
    )
    at = end + 4 + 128
    yield bad("certified-by-another-kind", "C-17.", "malformed-quote", put(honest, at, b"\x05\x00"))
    authentication = at + 6 + 384 + 64
    yield bad(
        "authentication-of-another-size", "C-17.", "malformed-quote", put(honest, authentication, b"\x1f\x00")
    )
    yield bad(
        "certificates-of-another-kind",
        "C-17.",
        "malformed-quote",
        put(honest, authentication + 2 + 32, b"\x04\x00"),
    )
    told = json.loads(INTEL.collateral())

    def spoiled(name: str, about: str, data: bytes) -> Draft:
        return machine.refused(name, about, "malformed-collateral", 3, endorsements={"collateral": data})

    for name in ("qe_identity_signature",):
        less = {key: value for key, value in told.items() if key != name}
        yield spoiled(
            f"collateral-without-{name.replace('_', '-')}", "C-17: nine strings.", json.dumps(less).encode()
        )
    for name, data in {
        "empty": b"",
        "not-json": b"no json",
        "in-upper-case-hex": json.dumps({**told, "root_ca_crl": told["root_ca_crl"].upper()}).encode(),
    }.items():
        yield spoiled(f"collateral-{name}", "C-17.", data)


def _certificates(machine: Machine) -> Iterator[Draft]:
    """Step 4."""

    def bad(name: str, about: str, code: str, evidence: bytes | None = None, **changes: Any) -> Draft:
        return machine.refused(name, about, code, 4, evidence=evidence or machine.evidence, **changes)

    yield bad(
        "collateral-missing",
        "C-23: nobody speaks for the machine.",
        "missing-endorsement",
        endorsements={"collateral": None},
    )
    yield bad(
        "whole-other-vendor", "C-13: every signature is right.", "unpinned-root", quote(STRANGER),
        endorsements=STRANGER.endorsements(),
    )  # fmt: skip
    yield bad("intels-own-pin-does-not-know-the-fake", "C-13.", "unpinned-root", roots={})
    under = pem(STRANGER.standard("pck"), STRANGER.standard("platform"), INTEL.standard("root"))
    yield bad("our-root-above-anothers-chain", "C-13.", "wrong-issuer", quote(STRANGER, chain=under))
    for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        who = "platform" if name.startswith("pck") else "tcb"
        foreign = pem(STRANGER.standard(who), STRANGER.standard("root"))
        word = name.replace("_", "-")
        if who == "platform":
            spoilt = collateral(**{name: "no PEM"})
            yield bad(f"{word}-no-pem", "C-17.", "malformed-certificate", endorsements=spoilt)
        yield bad(
            f"{word}-to-another-root", "C-13.", "unpinned-root", endorsements=collateral(**{name: foreign})
        )
        if who == "tcb":
            own = collateral(**{name: pem(INTEL.standard("platform"), INTEL.standard("root"))})
            yield bad(
                f"{word}-of-the-pck-ca",
                "C-13: an authority signs no statements.",
                "wrong-certificate-kind",
                endorsements=own,
            )
    for name, code, sent in (
        ("pck-signed-by-the-root", "bad-certificate-signature", chain(INTEL.certificate("pck", signer="root"))),
        ("pck-issued-by-the-root", "wrong-issuer", chain(INTEL.certificate("pck", issuer="Intel SGX Root CA", signer="root"))),
        ("pck-issued-by-the-processor-ca", "wrong-issuer", chain(INTEL.certificate("pck", issuer="Intel SGX PCK Processor CA"))),
        ("processor-ca-for-a-platform", "wrong-issuer", chain(authority=INTEL.standard("processor"))),
        ("authority-may-not-sign", "wrong-issuer", chain(authority=INTEL.certificate("platform", cert_sign=False))),
        ("authority-is-none", "wrong-certificate-kind", chain(authority=INTEL.certificate("platform", authority=False))),
        ("pck-is-tcb-signing", "wrong-certificate-kind", chain(INTEL.standard("tcb"))),
        ("pck-an-authority", "wrong-certificate-kind", chain(INTEL.certificate("pck", authority=True))),
        ("pck-signed-over-sha384", "bad-certificate-signature", chain(INTEL.certificate("pck", hash_algorithm=SHA384()))),
        ("root-alone", "wrong-certificate-kind", pem(INTEL.standard("root"))),
        ("none", "malformed-certificate", ""),
        ("in-windows-lines", "malformed-certificate", INTEL.chain.replace("\n", "\r\n")),
        ("with-a-word-before", "malformed-certificate", "x" + INTEL.chain),
    ):  # fmt: skip
        yield bad(f"chain-{name}", "C-13, C-14: not Intel's three links.", code, quote(chain=sent))
    for name, changes in {
        "without-fmspc": {"fmspc": None},
        "with-a-short-fmspc": {"fmspc": tlv(0x04, bytes(5))},
    }.items():
        extension = INTEL.sgx_extension(**changes)
        sent = chain(INTEL.certificate("pck", extension=extension))
        yield bad(f"pck-extension-{name}", "C-9: which machine?", "malformed-extension", quote(chain=sent))
    for name, extension in {
        "missing": b"", "empty": b"\x30\x00", "with-a-byte-more": INTEL.sgx_extension() + b"\x00"
    }.items():  # fmt: skip
        sent = chain(INTEL.certificate("pck", extension=extension))
        yield bad(f"pck-extension-{name}", "C-9.", "malformed-extension", quote(chain=sent))
    for who in ("root", "platform", "pck", "tcb"):
        for word, times in {
            "expired-a-second-ago": {"not_after": NOON - SECOND},
            "valid-in-a-second": {"not_before": NOON + SECOND},
        }.items():
            changed = INTEL.certificate(who, **times)
            yield bad(
                f"{who}-{word}", "C-11, C-24.", "certificate-not-valid-now", **_with(who, changed, machine)
            )
    for word, times in {"ends-now": {"not_after": NOON}, "begins-now": {"not_before": NOON}}.items():
        changed = INTEL.certificate("pck", **times)
        yield machine.accepted(
            f"pck-{word}", "C-24: the bound itself counts.", evidence=quote(chain=chain(changed))
        )


def _with(who: str, changed: bytes, machine: Machine) -> dict[str, Any]:
    """The case with this certificate everywhere in place of the honest one."""
    if who == "tcb":
        return {"endorsements": collateral(tcb_info_issuer_chain=pem(changed, INTEL.standard("root")))}
    if who == "platform":
        return {"evidence": quote(chain=chain(authority=changed))}
    if who == "pck":
        return {"evidence": quote(chain=chain(changed))}
    signers, authority = pem(INTEL.standard("tcb"), changed), pem(INTEL.standard("platform"), changed)
    return {
        "evidence": quote(chain=chain(root=changed)),
        "endorsements": collateral(
            tcb_info_issuer_chain=signers, qe_identity_issuer_chain=signers, pck_crl_issuer_chain=authority
        ),
        "roots": {"tdx": {fingerprint(changed).hex(): "ours"}},
    }


def _revocation(machine: Machine) -> Iterator[Draft]:
    """Step 5."""
    for name, key, who, serial in (
        ("machine", "pck_crl", "platform", 0x1004),
        ("authority", "root_ca_crl", "root", 0x1002),
    ):
        yield machine.refused(
            f"{name}-revoked",
            "C-10.",
            "revoked",
            5,
            endorsements=collateral(**{key: INTEL.crl(who, revoked=[1, serial])}),
        )
    lists = collateral(
        pck_crl=INTEL.crl("platform", revoked=[5, 6]), root_ca_crl=INTEL.crl("root", revoked=[7])
    )
    yield machine.accepted("others-revoked", "Somebody else.", endorsements=lists)
    for name, key, crl in (
        ("pck-crl-signed-by-the-root", "pck_crl", INTEL.crl("platform", signer="root")),
        ("root-crl-of-another-vendor", "root_ca_crl", STRANGER.crl("root")),
        ("root-crl-cut-short", "root_ca_crl", INTEL.crl("root")[:-2]),
    ):
        yield machine.refused(
            name,
            "C-10: not its issuer's list.",
            "crl-bad-signature",
            5,
            endorsements=collateral(**{key: crl}),
        )
    for key, who in (("root_ca_crl", "root"), ("pck_crl", "platform")):
        word = key.replace("_", "-")
        for name, times in {
            "expired-a-second-ago": {"next_update": NOON - SECOND},
            "valid-in-a-second": {"this_update": NOON + SECOND},
        }.items():
            yield machine.refused(
                f"{word}-{name}", "C-10, C-11.", "crl-not-valid-now", 5,
                endorsements=collateral(**{key: INTEL.crl(who, **times)}),
            )  # fmt: skip
        if who == "root":
            begins = collateral(**{key: INTEL.crl(who, this_update=NOON)})
            yield machine.accepted(f"{word}-begins-now", "C-24.", endorsements=begins)


def _collateral(machine: Machine) -> Iterator[Draft]:
    """Step 6."""

    def bad(name: str, about: str, code: str, beside: dict[str, bytes], **changes: Any) -> Draft:
        return machine.refused(name, about, code, 6, endorsements=beside, **changes)

    for name, text in (("tcb_info", INTEL.tcb_info()), ("qe_identity", INTEL.qe_identity())):
        word = name.replace("_", "-")
        for how, signature in {
            "signed-by-another-vendor": STRANGER.sign(text),
            "signature-of-other-text": INTEL.sign(text + " "),
        }.items():
            beside = collateral(**{name: text, f"{name}_signature": signature})
            yield bad(
                f"{word}-{how}",
                "CVE-2026-22696: one's own quoting enclave.",
                "collateral-bad-signature",
                beside,
            )
        respelt = json.loads(INTEL.collateral(**{name: text}))
        respelt[name] = json.dumps(json.loads(text))
        yield bad(
            f"{word}-spelt-again",
            "The signature is over the bytes.",
            "collateral-bad-signature",
            {"collateral": json.dumps(respelt).encode()},
        )
        make = INTEL.tcb_info if name == "tcb_info" else INTEL.qe_identity
        for how, times, good in (
            ("expired-a-second-ago", {"nextUpdate": zulu(NOON - SECOND)}, False),
            ("issued-in-a-second", {"issueDate": zulu(NOON + SECOND)}, False),
        ):
            beside = collateral(**{name: make(**times)})
            if good:
                yield machine.accepted(f"{word}-{how}", "C-24: the bound itself counts.", endorsements=beside)
            else:
                yield bad(f"{word}-{how}", "C-11.", "collateral-not-valid-now", beside)
        double = collateral(**{name: '{"id":"TDX","id":"TDX"}'})
        yield bad(f"{word}-with-a-key-twice", "C-17: although well signed.", "malformed-collateral", double)
    module = json.loads(INTEL.tcb_info())["tdxModuleIdentities"][0]
    seven = {"tcb": {"isvsvn": 7}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": "UpToDate"}
    for name, code, changes in (
        ("fmspc-of-another-machine", "collateral-mismatch", {"fmspc": "00806F050000"}),
        ("pce-id-of-another-machine", "collateral-mismatch", {"pceId": "0001"}),
        ("of-sgx", "collateral-mismatch", {"id": "SGX"}),
        ("without-a-module", "malformed-collateral", {"tdxModule": None}),
        ("status-unknown", "malformed-collateral", {"status": "Splendid"}),
        ("module-level-too-high", "tcb-level-unknown", {"tdxModuleIdentities": [{**module, "tcbLevels": [seven]}]}),
    ):  # fmt: skip
        yield bad(
            f"tcb-info-{name}", "C-12, C-13: well signed, about something else.", code, tcb_info(**changes)
        )
    for at in (0, 15):
        higher = bytearray(CPU_SVN)
        higher[at] += 1
        yield bad(
            f"no-level-for-sgx-component-{at + 1:02}",
            "C-12: each of the sixteen counts, also behind zeros.",
            "tcb-level-unknown",
            tcb_info(levels=[INTEL.level(sgx=higher)]),
        )
    module_only = tcb_info(levels=[INTEL.level(tdx=(9, 0, *TEE_TCB_SVN[2:]))])
    yield machine.accepted(
        "tdx-component-01-is-the-modules", "Intel: from module 1.x on, its own identity judges the first two.",
        endorsements=module_only,
    )  # fmt: skip
    for at in (2,):
        higher = bytearray(TEE_TCB_SVN)
        higher[at] += 1
        yield bad(
            f"no-level-for-tdx-component-{at + 1:02}",
            "C-12.",
            "tcb-level-unknown",
            tcb_info(levels=[INTEL.level(tdx=higher)]),
        )
    for name, code, changes in (
        ("of-sgx", "qe-identity-mismatch", {"id": "QE"}),
        ("of-another-signer", "qe-identity-mismatch", {"mrsigner": "00" * 32}),
        ("level-too-high", "tcb-level-unknown", {"tcbLevels": [seven]}),
        ("status-unknown", "malformed-collateral", {"status": "ConfigurationNeeded"}),
    ):
        yield bad(
            f"qe-identity-{name}", "C-16: well signed, about something else.", code, identity(**changes)
        )
    for name, code, qe in (
        ("of-another-signer", "qe-identity-mismatch", {"mrsigner": bytes(32)}),
        ("under-debug", "qe-identity-mismatch", {"attributes": b"\x13" + bytes(15)}),
        ("too-old", "tcb-level-unknown", {"isv_svn": 3}),
    ):
        yield machine.refused(
            f"quoting-enclave-{name}",
            "C-16: signed by the machine's own key.",
            code,
            6,
            evidence=quote(qe=qe),
        )
    other = FakeIntel(fmspc=bytes.fromhex("00806f050000"))
    yield machine.refused(
        "machine-of-another-kind",
        "C-13: genuine, and the collateral is not its own.",
        "collateral-mismatch",
        6,
        evidence=quote(other),
    )


def _signatures(machine: Machine) -> Iterator[Draft]:
    """Steps 7 and 8: each nested signature alone."""

    def bad(name: str, about: str, code: str, evidence: bytes) -> Draft:
        return machine.refused(name, about, code, 7, evidence=evidence)

    for name, signer in {"ones-own": OWN, "the-authority": INTEL.key("platform")}.items():
        yield bad(
            f"qe-report-signed-by-{name}",
            "C-16: not by the PCK.",
            "bad-qe-signature",
            quote(qe_signer=signer),
        )
    point = raw_point(INTEL.key("attestation"))
    genuine = hashlib.sha256(point + bytes(range(32))).digest()
    own = quote(signer=OWN, attestation_key=raw_point(OWN), vouched=genuine + bytes(32))
    yield bad("attestation-key-of-ones-own", "C-16: nobody vouches for it.", "wrong-attestation-key", own)
    yield bad(
        "vouched-for-in-the-second-half-too",
        "C-5: all 64 bytes.",
        "wrong-attestation-key",
        quote(vouched=genuine + bytes(31) + b"\x01"),
    )
    for name, signer in {"ones-own": OWN, "the-pck": INTEL.key("pck")}.items():
        yield bad(f"quote-signed-by-{name}", "C-16.", "bad-signature", quote(signer=signer))
    yield bad("attestation-key-no-point", "C-14.", "bad-signature", quote(attestation_key=bytes(64)))
    honest = machine.evidence
    for name, at in {
        "tee-tcb-svn": 48, "td-attributes": 48 + 120, "mrtd": 48 + 136, "rtmr3": 48 + 472, "report-data": 48 + 520,
    }.items():  # fmt: skip
        yield bad(f"bit-of-{name}", "C-15: every signed byte counts.", "bad-signature", flipped(honest, at))
    yield bad("bit-of-the-signature", "C-15.", "bad-signature", flipped(honest, 48 + 584 + 4))
    yield bad(
        "bit-of-the-qe-report",
        "C-15: its reserved bytes too.",
        "bad-qe-signature",
        flipped(honest, 48 + 584 + 4 + 128 + 6 + 200),
    )
    five = quote(version=5)
    yield bad("bit-of-mrservicetd-unsigned", "C-15.", "bad-signature", flipped(five, 54 + 600))
    yield bad(
        "signature-of-another-quote",
        "C-15: spliced.",
        "bad-signature",
        quote(mrtd=OTHER)[: 48 + 584] + honest[48 + 584 :],
    )
    for name, nonce in {
        "of-another-question": bytes(48), "one-bit-otherwise": flipped(NONCE, 0), "longer": NONCE + b"\x01", "shorter": NONCE[:47],
    }.items():  # fmt: skip
        yield machine.refused(f"nonce-{name}", "C-1, C-5: all 64 bytes.", "wrong-nonce", 8, nonce=nonce)


def _levels(machine: Machine) -> Iterator[Draft]:
    """Step 9."""
    advisories = ["INTEL-SA-00001", "INTEL-SA-00002"]
    for status in STATUSES:
        word = {"SW": "sw"}.get(status, status).lower()
        told = tcb_info(status=status, advisories=advisories)
        wish = {"statuses": ["UpToDate", status], "accepted_advisories": advisories}
        yield machine.accepted(
            f"status-{word}-named", "C-12: with all its advisories.", endorsements=told, wish=wish
        )
        yield machine.refused(
            f"status-{word}", "C-12: only what is named.", "tcb-status", 9, endorsements=told
        )
        yield machine.refused(
            f"status-{word}-with-an-advisory-more", "C-12.", "advisory-not-accepted", 9, endorsements=told,
            wish={**wish, "accepted_advisories": advisories[:1]},
        )  # fmt: skip
    out = {"statuses": ["UpToDate", "OutOfDate"]}
    yield machine.refused(
        "advisories-none-accepted",
        "C-12.",
        "advisory-not-accepted",
        9,
        endorsements=tcb_info(status="OutOfDate", advisories=advisories),
        wish=out,
    )
    yield machine.accepted(
        "status-out-of-date-without-advisories",
        "C-12: named, and nothing is open.",
        endorsements=tcb_info(status="OutOfDate"),
        wish=out,
    )
    yield machine.accepted(
        "advisories-of-an-up-to-date-machine",
        "C-12: they are closed.",
        endorsements=tcb_info(advisories=advisories),
    )
    yield machine.refused(
        "up-to-date-not-named",
        "C-12: the policy wants an old one.",
        "tcb-status",
        9,
        wish={"statuses": ["OutOfDate"]},
    )
    every = {"statuses": ["UpToDate", *STATUSES], "accepted_advisories": advisories}
    for name, beside in {
        "platform": tcb_info(status="Revoked"),
        "module": tcb_info(module_status="Revoked"),
        "quoting-enclave": identity(status="Revoked"),
    }.items():
        yield machine.refused(
            f"{name}-level-revoked",
            "C-12: never, whatever the policy names.",
            "tcb-status",
            9,
            endorsements=beside,
            wish=every,
        )
    for name, beside in {
        "module": tcb_info(module_status="OutOfDate"),
        "quoting-enclave": identity(status="OutOfDate"),
    }.items():
        yield machine.refused(
            f"{name}-out-of-date",
            "C-12: the worst of the three counts.",
            "tcb-status",
            9,
            endorsements=beside,
        )
        yield machine.accepted(f"{name}-out-of-date-named", "C-12.", endorsements=beside, wish=out)
    levels = [INTEL.level("UpToDate", pce=PCE_SVN + 1), INTEL.level("OutOfDate")]
    yield machine.refused(
        "second-level-is-the-machines",
        "C-12: the first that fits.",
        "tcb-status",
        9,
        endorsements=tcb_info(levels=levels),
    )
    for name, beside in {
        "tcb-info": tcb_info(tcbEvaluationDataNumber=EVALUATION - 1),
        "qe-identity": identity(tcbEvaluationDataNumber=EVALUATION - 1),
    }.items():
        yield machine.refused(
            f"evaluation-of-{name}-too-old",
            "C-12: the lower of the two.",
            "tcb-evaluation-too-old",
            9,
            endorsements=beside,
        )
        yield machine.accepted(
            f"evaluation-of-{name}-at-the-floor",
            "C-12.",
            endorsements=beside,
            wish={"minimum_tcb_evaluation": EVALUATION - 1},
        )
    yield machine.refused(
        "evaluation-floor-raised",
        "C-12.",
        "tcb-evaluation-too-old",
        9,
        wish={"minimum_tcb_evaluation": EVALUATION + 1},
    )
    for at in (0, 1, 2, 15):
        floor = bytearray(TEE_TCB_SVN)
        floor[at] += 1
        yield machine.refused(
            f"tee-tcb-svn-byte-{at}-below",
            "C-8: byte by byte.",
            "tcb-too-old",
            9,
            wish={"minimum_tee_tcb_svn": bytes(floor).hex()},
        )


def _guest(machine: Machine) -> Iterator[Draft]:
    """Steps 10 to 13."""

    def said(name: str, about: str, code: str, step: int, **changes: Any) -> Draft:
        return machine.refused(name, about, code, step, evidence=quote(**changes))

    for bit in (0, 7):
        yield said(
            f"attribute-{bit:02}-debug",
            "C-7: its host can look inside.",
            "debug-allowed",
            10,
            td_attributes=SEPT_VE_DISABLE | 1 << bit,
        )
    for bit in (8, 63):
        yield said(
            f"attribute-{bit:02}-unknown",
            "C-7: PERFMON, or nobody knows.",
            "td-attributes",
            10,
            td_attributes=SEPT_VE_DISABLE | 1 << bit,
        )
    yield said(
        "attribute-29-migratable", "C-7.", "migration-allowed", 10, td_attributes=SEPT_VE_DISABLE | 1 << 29
    )
    yield said("attribute-28-missing", "C-7: pages may vanish.", "td-attributes", 10, td_attributes=0)
    yield said("service-machine-bound", "C-7.", "service-td", 10, version=5, mrservicetd=OTHER)
    yield machine.refused("xfam-bit-not-allowed", "C-7.", "td-attributes", 10, wish={"xfam_allowed": 0x602E6})
    yield said("module-of-another-signer", "C-13.", "seam-mismatch", 11, mrsignerseam=OTHER)
    yield said("module-with-attributes", "C-7: a debug module.", "seam-mismatch", 11, seam_attributes=1)
    yield machine.refused("module-not-named", "C-6.", "seam-mismatch", 11, wish={"mrseam": hexes(OTHER)})
    yield said("another-firmware", "C-6.", "measurement-mismatch", 12, mrtd=OTHER)
    yield said("firmware-one-bit-otherwise", "C-6.", "measurement-mismatch", 12, mrtd=flipped(MRTD, 47))
    for number in range(4):
        changed = tuple(OTHER if one == number else value for one, value in enumerate(RTMRS))
        yield said(f"rtmr{number}-otherwise", "C-6.", "rtmr-mismatch", 12, rtmrs=changed)
        others = {"rtmrs": {str(number): hexes(RTMRS[number - 1])}}
        yield machine.refused(f"rtmr{number}-of-another-register", "C-6.", "rtmr-mismatch", 12, wish=others)
    for field, key, code in (
        ("mrconfigid", "mr_config_id", "config-id"),
        ("mrowner", "mr_owner", "owner"),
        ("mrownerconfig", "mr_owner_config", "owner"),
    ):
        yield machine.refused(f"{field}-missing", "C-51.", code, 13, wish={key: OTHER.hex()})
        if field == "mrconfigid":
            theirs = quote(**{field: OTHER[::-1]})
            yield machine.refused(
                f"{field}-of-another", "C-51.", code, 13, evidence=theirs, wish={key: OTHER.hex()}
            )
    for name, wish in {
        "ppid": {"ppids": hexes(bytes(16))},
        "instance": {"platform_instance_ids": hexes(bytes(16))},
        "fmspc": {"fmspcs": hexes(bytes(6))},
    }.items():
        yield machine.refused(f"{name}-not-listed", "C-51.", "platform-not-listed", 13, wish=wish)
    single = machine_of(FakeIntel(authority="processor"))
    yield single.refused(
        "instance-of-a-machine-without-one",
        "C-51.",
        "platform-not-listed",
        13,
        wish={"platform_instance_ids": hexes(INTEL.instance)},
    )


# --- the log of the boot (CCEL) ---

_ABOUT = struct.pack("<16sIBBBBIHHB", b"Spec ID Event03\x00", 0, 0, 2, 0, 2, 1, 12, 48, 0)
_HEAD = struct.pack("<II20sI", 1, 3, bytes(20), len(_ABOUT)) + _ABOUT


def _line(register: int, what: bytes, kind: int = 13) -> bytes:
    return struct.pack("<IIIH48sI", register, kind, 1, 12, hashlib.sha384(what).digest(), len(what)) + what


def _extended(*whats: bytes) -> bytes:
    value = bytes(48)
    for what in whats:
        value = hashlib.sha384(value + hashlib.sha384(what).digest()).digest()
    return value


def _log() -> Iterator[Draft]:
    lines = (
        _line(1, b"a setting"),
        _line(1, bytes(4), 4),
        _line(2, b"the kernel"),
        _line(3, b"the command line"),
    )
    log = _HEAD + b"".join(lines)
    rtmrs = (
        _extended(b"a setting", bytes(4)),
        _extended(b"the kernel"),
        _extended(b"the command line"),
        RTMRS[3],
    )
    machine = machine_of(INTEL, rtmrs=rtmrs).with_wish({"event_log": "required", "rtmrs": None})
    logged = {"event_log": log}
    kernel = hashlib.sha384(b"the kernel").hexdigest()

    def bad(
        name: str, about: str, code: str, step: int, data: bytes | None, wish: dict[str, Any] | None = None
    ) -> Draft:
        return machine.refused(name, about, code, step, endorsements={"event_log": data}, wish=wish or {})

    yield machine.accepted("log-gives-the-registers", "RTMR3 is not asked of it.", endorsements=logged)
    yield machine.accepted(
        "log-padded", "FF after the last event.", endorsements={"event_log": log + b"\xff" * 40}
    )
    yield machine.accepted(
        "log-with-named-events", "C-6.", endorsements=logged, wish={"events": {"1": [kernel]}}
    )
    yield bad("log-missing", "C-6: the policy reads it.", "event-log-missing", 12, None)
    yield bad("log-with-an-event-more", "C-15: not measured.", "event-log-mismatch", 12, log + lines[0])
    yield bad(
        "log-without-the-kernel", "C-15.", "event-log-mismatch", 12, _HEAD + b"".join((*lines[:2], lines[3]))
    )
    yield bad(
        "log-in-another-order",
        "C-15.",
        "event-log-mismatch",
        12,
        _HEAD + b"".join((lines[1], lines[0], *lines[2:])),
    )
    yield bad(
        "log-with-other-digests",
        "C-15.",
        "event-log-mismatch",
        12,
        _HEAD + b"".join((*lines[:2], _line(2, b"another"), lines[3])),
    )
    yield bad("log-cut-short", "C-19.", "malformed-event-log", 3, log[:-1])
    yield bad("log-with-bytes-after-it", "C-17.", "malformed-event-log", 3, log + b"\x01\x02")
    yield bad("log-empty", "C-19.", "malformed-event-log", 3, b"")
    yield bad(
        "log-with-an-event-that-is-not-named", "C-6.", "event-mismatch", 12, log, {"events": {"0": [kernel]}}
    )
    yield bad(
        "log-with-another-event-than-named", "C-6.", "event-mismatch", 12, log, {"events": {"1": ["00" * 48]}}
    )
    silent = machine_of(INTEL, rtmrs=(bytes(48),) * 4).with_wish({"event_log": "required", "rtmrs": None})
    yield silent.refused(
        "log-that-says-nothing", "C-6: an empty register names no program.", "event-mismatch", 12,
        endorsements={"event_log": _HEAD}, wish={"events": {"1": [kernel]}},
    )  # fmt: skip
    plain = machine_of(INTEL)
    yield plain.accepted("log-that-nobody-asks-for", "It is not read.", endorsements={"event_log": b"no log"})
