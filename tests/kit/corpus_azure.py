"""The cases of Azure's machines: processor, paravisor and TPM, each of which can lie on its own."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256

from blindbox_attestation import strict_json
from blindbox_attestation.azure.hcl import Hcl
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.azure import PCRS, VM_ID, FakeAzure, ak_of, attest_of, td_report_of
from tests.kit.corpus import SECOND, Draft, Machine, flipped, hexes, merged, named, put
from tests.kit.corpus_snp import floor_of
from tests.kit.intel import EVALUATION, MRTD, SEPT_VE_DISABLE, FakeIntel
from tests.kit.tpm import BOOT, log_of, registers_of, secure_boot

NONCE = bytes(range(48))
QUOTED = {number: PCRS[number] for number in (0, 4, 7, 11)}
"""The registers of these quotes; fewer than a machine has, to keep the files small."""
BOOTED = {str(number): hexes(PCRS[number]) for number in (4, 7, 11)}
OTHER = FakeAzure(FakeAmd(), name="another machine")


class World:
    """One kind of machine, with the evidence and the policy that are changed."""

    def __init__(self, azure: FakeAzure) -> None:
        self.azure = azure
        self.on_snp = isinstance(azure.processor, FakeAmd)
        self.key = "azure_snp" if self.on_snp else "azure_tdx"
        self.inner = "snp" if self.on_snp else "tdx"
        if isinstance(azure.processor, FakeAmd):
            floor = {azure.processor.family: floor_of(azure.processor.family, azure.processor.tcb)}
            self.below: dict[str, Any] = {"measurements": hexes(MEASUREMENT), "minimum_tcb": floor}
        else:
            self.below = {"mrtd": hexes(MRTD), "minimum_tcb_evaluation": EVALUATION}
        boot = {"pcrs": BOOTED, "secure_boot": "unchecked", "event_log": "unused"}
        self.boot = boot
        self.machine = Machine(
            platform=azure.platform,
            key=self.key,
            suffix="json",
            evidence=self.evidence(),
            endorsements=azure.endorsements(),
            policy={"version": 1, self.key: {self.inner: self.below, "boot": boot}},
            roots={self.key: named(azure.processor.roots)},
            nonce=NONCE,
        )

    def evidence(self, **changes: Any) -> bytes:
        if not self.on_snp and "td_quote" not in changes:
            changes.setdefault("padding", 0)
        return self.azure.evidence(changes.pop("extra_data", NONCE), **{"pcrs": QUOTED, **changes})

    def wish(self, **changes: Any) -> dict[str, Any]:
        """A wish about the processor."""
        return {self.inner: merged(self.below, changes)}

    def booted(self, **changes: Any) -> dict[str, Any]:
        """A wish about the boot."""
        return {"boot": merged(self.boot, changes)}

    def retold(self, evidence: bytes | None = None, **changes: Any) -> bytes:
        """The same evidence with other members; None leaves one out."""
        return json.dumps(merged(json.loads(evidence or self.machine.evidence), changes)).encode("ascii")

    def hcl(self, evidence: bytes | None = None) -> Hcl:
        told = json.loads(evidence or self.machine.evidence)
        return Hcl.parse(strict_json.from_base64(told["hcl"], "hcl"))

    def with_blob(self, blob: bytes) -> bytes:
        return self.retold(hcl=strict_json.to_base64(blob))

    def told(self, **vm: Any) -> bytes:
        """Evidence in which the paravisor says something else about the machine; the processor knows."""
        return self.evidence(runtime=self.azure.runtime(vm=vm))


_ON_TDX = (
    "honest", "quote-v5", "no-nonce", "blob-of-the-other", "without-td-quote", "tdreport", "another-key", "hash-of",
    "report-data-with", "bit-of-the-quote", "td-quote", "collateral", "real-roots", "pck", "firmware", "debug", "service",
    "module", "another-paravisor", "ppid", "evaluation", "quote-of-another-tpm", "nonce-of", "certificate-missing", "two-lies",
    "another-boot", "boot-not", "vm-not-listed",
)  # fmt: skip
"""How the names of cases begin that are told on TDX too; of the others the same lines read them there."""


def cases() -> Iterator[Draft]:
    """All of them; on TDX, whose evidence is twice as large, only what could come out otherwise there."""
    for world in (World(FakeAzure(FakeAmd("Genoa"))), World(FakeAzure(FakeIntel()))):
        for table in (_honest, _reading, _runtime, _processor, _tpm, _certified, _policy):
            for draft in table(world):
                if world.on_snp or draft.name.startswith(_ON_TDX):
                    yield replace(draft, name=f"{world.inner}-{draft.name}")


def _honest(world: World) -> Iterator[Draft]:
    machine = world.machine
    yield machine.accepted("honest", "An honest machine.")
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked.", nonce=None)
    for hash_type, name in ((3, "sha512"),):
        yield machine.accepted(
            f"runtime-hashed-with-{name}",
            "The paravisor says which.",
            evidence=world.evidence(hash_type=hash_type),
        )
    yield machine.accepted("all-registers", "24 of them.", evidence=world.evidence(pcrs=PCRS))
    yield machine.accepted("vm-as-named", "C-51: in either case.", wish={"vm_ids": [VM_ID.upper()]})
    yield machine.accepted(
        "console-off",
        "As the policy asks.",
        evidence=world.told(**{"console-enabled": False}),
        wish={"console": "off"},
    )
    yield machine.accepted(
        "secure-boot-not-asked",
        "The policy says so.",
        evidence=world.told(**{"secure-boot": False}),
        wish={"secure_boot": "unchecked"},
    )
    yield machine.accepted(
        "configuration-of-tomorrow", "A newer paravisor tells more.", evidence=world.told(new={"a": 1})
    )
    if world.on_snp:
        data = bytes(range(32))
        yield machine.accepted(
            "host-data-as-named",
            "C-51.",
            evidence=world.evidence(host_data=data),
            wish=world.wish(host_data=data.hex()),
        )
    else:
        yield machine.accepted("quote-v5", "A quote of version 5.", evidence=world.evidence(version=5))


def _reading(world: World) -> Iterator[Draft]:
    """Step 3."""
    machine = world.machine
    honest = machine.evidence
    blob = world.hcl().encode()

    def bad(name: str, about: str, evidence: bytes, code: str = "malformed-quote") -> Draft:
        return machine.refused(name, about, code, 3, evidence=evidence)

    for name, data in {
        "empty": b"", "one-byte-short": honest[:-1], "with-a-byte-more": honest + b"}", "with-a-key-twice": honest[:-1] + b',"version":1}',
    }.items():  # fmt: skip
        yield bad(f"evidence-{name}", "C-17, C-19.", data)
    for name in ("hcl",):
        yield bad(f"without-{name}", "C-17.", world.retold(**{name: None}))
    for name, changes in {
        "with-a-key-more": {"more": 1}, "register-24": {"pcrs": {"24": "00" * 32}},
        "blob-unpadded-base64": {"hcl": "SENMQQ"},
    }.items():  # fmt: skip
        yield bad(f"evidence-{name}", "C-17, C-20.", world.retold(**changes))
    if world.on_snp:
        yield bad("with-a-td-quote", "C-13.", world.retold(td_quote="AAAA"))
        yield machine.refused(
            "platform-not-named", "C-22.", "platform-not-accepted", 2, platform="az-tdx-vtpm"
        )
    else:
        yield bad("without-td-quote", "C-13.", world.retold(td_quote=None))
    header, data_at = 32, 1216
    for name, edited in {
        "one-byte-short": blob[:-1], "one-byte-long": blob + b"\x00", "of-another-magic": put(blob, 0, b"HCLB"),
        "version-3": put(blob, 4, b"\x03"), "with-a-status": put(blob, 16, b"\x01"),
        "report-type-3": put(blob, data_at + 8, b"\x03"),
        "json-too-long": put(blob, data_at + 16, b"\xff\xff"),
        "padding-not-zero": put(blob, len(blob) - 1, b"\x01"),
    }.items():  # fmt: skip
        yield bad(f"blob-{name}", "C-17: each field has one value.", world.with_blob(edited), "malformed-hcl")
    other = 4 if world.on_snp else 2
    room = put(put(blob, data_at + 8, bytes((other,))), header + 1024, bytes(160))
    yield bad("blob-of-the-other-processor", "C-13.", world.with_blob(room), "wrong-tee-type")
    if not world.on_snp:
        report = world.hcl().report
        for name, code, changed in (
            ("of-another-type", "malformed-hcl", put(report, 0, b"\x00")),
            ("reserved", "reserved-bits", put(report, 5, b"\x01")),
            ("against-its-own-hashes", "malformed-hcl", flipped(report, 700)),
        ):
            yield bad(f"tdreport-{name}", "C-15, C-17.", world.evidence(report=changed), code)
    attest = attest_of(NONCE, QUOTED)
    for name, code, changed in (
        ("of-another-magic", "malformed-quote", attest_of(NONCE, QUOTED, magic=0xFF544348)),
        ("of-another-kind", "malformed-quote", attest_of(NONCE, QUOTED, kind=0x8017)),
        ("cut-short", "malformed-quote", attest[:-1]),
        ("with-a-byte-more", "trailing-bytes", attest + b"\x00"),
    ):
        yield bad(f"quote-{name}", "C-14, C-19.", world.evidence(attest=changed), code)
    logged = world.booted(event_log=None)
    yield machine.refused(
        "log-no-log",
        "C-19: the policy reads it.",
        "malformed-event-log",
        3,
        endorsements={"event_log": b"no log"},
        wish=logged,
    )


def _runtime(world: World) -> Iterator[Draft]:
    """Step 6: the paravisor's words, and the key in them."""
    machine, azure = world.machine, world.azure
    honest = world.hcl()

    def bad(name: str, about: str, evidence: bytes, code: str = "runtime-data-mismatch") -> Draft:
        return machine.refused(name, about, code, 6, evidence=evidence)

    theirs = azure.runtime(keys=[OTHER.jwk()])
    yield bad(
        "another-key-under-a-genuine-report",
        "C-2, C-3.",
        world.with_blob(replace(honest, runtime=theirs).encode()),
    )
    edited = replace(
        honest, runtime=honest.runtime.replace(b'"console-enabled":true', b'"console-enabled":null')
    ).encode()
    yield bad("words-edited", "C-15.", world.with_blob(edited))
    yield bad(
        "words-padded", "C-17.", world.with_blob(replace(honest, runtime=honest.runtime + b" ").encode())
    )
    yield bad(
        "hash-of-another-kind-said", "C-5, C-14.", world.with_blob(replace(honest, hash_type=2).encode())
    )
    runtime = azure.runtime()
    digest = hashlib.sha256(runtime).digest()
    for name, data in {
        "with-a-bit-at-its-end": digest + bytes(31) + b"\x01", "shortened": digest[:31] + bytes(33),
    }.items():  # fmt: skip
        if isinstance(azure.processor, FakeAmd):
            evidence = world.evidence(runtime=runtime, report=azure.processor.report(data))
        else:
            quote = azure.processor.quote(data, padding=0)
            evidence = world.evidence(runtime=runtime, report=td_report_of(quote), td_quote=quote)
        yield bad(f"report-data-{name}", "C-5: all 64 bytes.", evidence)
    for name, keys in {
        "two": [azure.jwk(), OTHER.jwk()],
        "none": [],
        "of-another-name": [azure.jwk("HCLEkPub")],
    }.items():
        yield bad(
            f"keys-{name}",
            "C-17: which would another reader take?",
            world.evidence(runtime=azure.runtime(keys=keys)),
            "missing-ak",
        )
    for name, changes in {
        "that-encrypts": {"key_ops": ["encrypt"]}, "with-another-exponent": {"e": "Aw"},
        "too-short": {"n": azure.jwk()["n"][:84]},
    }.items():  # fmt: skip
        yield bad(
            f"key-{name}",
            "C-14.",
            world.evidence(runtime=azure.runtime(keys=[azure.jwk(**changes)])),
            "ak-attributes",
        )
    for name, text in {
        "with-a-byte-after-it": runtime + b"\x00", "with-a-key-more": azure.runtime(more=1),
        "without-keys": b'{"vm-configuration":{}}', "with-a-key-twice": b'{"keys":[],"keys":[],"vm-configuration":{}}',
    }.items():  # fmt: skip
        yield bad(
            f"words-{name}", "C-17: although vouched for.", world.evidence(runtime=text), "malformed-hcl"
        )
    if isinstance(azure.processor, FakeIntel):
        other = td_report_of(azure.processor.quote(bytes(64)))
        yield bad("tdreport-about-something-else", "C-2.", world.evidence(report=other))
        for name, value in (
            ("mrtd", NONCE),
            ("td_attributes", SEPT_VE_DISABLE | 1 << 30),
            ("mrconfigid", NONCE),
        ):
            report, _ = azure.vouched(runtime, **{name: value})
            yield bad(
                f"tdreport-with-another-{name.replace('_', '-')}",
                "C-2, C-15.",
                world.evidence(runtime=runtime, report=report),
                "td-report-mismatch",
            )


def _processor(world: World) -> Iterator[Draft]:
    """The layer below, in its own words."""
    machine, azure = world.machine, world.azure
    processor = azure.processor
    said = partial(_said, world)
    runtime = azure.runtime()
    for name in azure.endorsements():
        code, step = ("crl-missing", 5) if name == "crl" else ("missing-endorsement", 4)
        yield machine.refused(f"{name}-missing", "C-23.", code, step, endorsements={name: None})
    yield machine.refused("real-roots-do-not-know-the-fake", "C-13.", "unpinned-root", 4, roots={})
    theirs = FakeAzure(
        FakeAmd(name="Evil Devices") if world.on_snp else FakeIntel("Another Intel Corporation")
    )
    yield machine.refused(
        "whole-chain-of-another-vendor",
        "C-13.",
        "unpinned-root",
        4,
        evidence=World(theirs).machine.evidence,
        endorsements=theirs.endorsements(),
    )
    if isinstance(processor, FakeAmd):
        report, _ = azure.vouched(runtime)
        yield machine.refused(
            "bit-of-the-report",
            "C-15: the hash still fits.",
            "bad-signature",
            7,
            evidence=world.evidence(runtime=runtime, report=flipped(report, 0xC0)),
        )
        yield machine.refused(
            "ask-revoked", "C-10.", "revoked", 5, endorsements={"crl": processor.crl(revoked=[0x20002])}
        )
        yield machine.refused(
            "crl-expired",
            "C-10.",
            "crl-not-valid-now",
            5,
            endorsements={"crl": processor.crl(next_update=NOON - SECOND)},
        )
        yield machine.refused(
            "vcek-expired",
            "C-11.",
            "certificate-not-valid-now",
            4,
            endorsements={"vcek": processor.certificate("vcek", not_after=NOON - SECOND)},
        )
        yield said("debug", "C-7: the TPM's key can be read.", "debug-allowed", 10, policy=0xB0000)
        yield said("migration", "C-7.", "migration-allowed", 10, policy=0x70000)
        yield said("report-version-9", "C-20.", "unsupported-report-version", 3, version=9)
        yield said("chip-of-another", "C-9.", "chip-id-mismatch", 6, chip_id=b"\x01" * 64)
        for level in (2,):
            yield said(
                f"asked-at-vmpl-{level}", "C-7: the guest itself may have asked.", "vmpl", 11, vmpl=level
            )
        yield said("another-paravisor", "C-6.", "measurement-mismatch", 12, measurement=bytes(48))
        yield said("host-data-of-another", "C-51.", "host-data", 13, world.wish(host_data="11" * 32))
        yield said("chip-not-listed", "C-51.", "chip-not-listed", 13, world.wish(chip_ids=["01" * 64]))
        above = {"Genoa": {**floor_of("Genoa", processor.tcb), "microcode": 255}}
        yield said("firmware-too-old", "C-8.", "tcb-too-old", 9, world.wish(minimum_tcb=above))
    else:
        _, quote = azure.vouched(runtime, padding=0)
        assert quote is not None
        spoilt = flipped(quote, 48 + 184)
        evidence = world.evidence(runtime=runtime, report=td_report_of(spoilt), td_quote=spoilt)
        yield machine.refused(
            "bit-of-the-quote", "C-15: the TDREPORT agrees.", "bad-signature", 7, evidence=evidence
        )
        yield machine.refused(
            "td-quote-cut-short",
            "C-19.",
            "malformed-quote",
            3,
            evidence=world.retold(td_quote=strict_json.to_base64(quote[:-1])),
        )
        yield machine.refused(
            "pck-revoked",
            "C-10.",
            "revoked",
            5,
            endorsements={
                "collateral": processor.collateral(pck_crl=processor.crl("platform", revoked=[0x1004]))
            },
        )
        yield machine.refused(
            "firmware-out-of-date",
            "C-12.",
            "tcb-status",
            9,
            endorsements={
                "collateral": processor.collateral(tcb_info=processor.tcb_info(status="OutOfDate"))
            },
        )
        yield said("debug", "C-7.", "debug-allowed", 10, td_attributes=SEPT_VE_DISABLE | 1)
        yield said("migration", "C-7.", "migration-allowed", 10, td_attributes=SEPT_VE_DISABLE | 1 << 29)
        yield said("service-machine", "C-7.", "service-td", 10, version=5, mrservicetd=NONCE)
        yield said("module-of-another-signer", "C-13.", "seam-mismatch", 11, mrsignerseam=NONCE)
        yield said("another-paravisor", "C-6.", "measurement-mismatch", 12, mrtd=bytes(48))
        yield said("ppid-not-listed", "C-51.", "platform-not-listed", 13, world.wish(ppids=["00" * 16]))
        yield said(
            "evaluation-too-old",
            "C-12.",
            "tcb-evaluation-too-old",
            9,
            world.wish(minimum_tcb_evaluation=EVALUATION + 1),
        )


def _said(
    world: World,
    name: str,
    about: str,
    code: str,
    step: int,
    wish: dict[str, Any] | None = None,
    **changes: Any,
) -> Draft:
    """A machine whose processor says this, well signed, with all that is above it."""
    evidence = world.evidence(**changes) if changes else world.machine.evidence
    return world.machine.refused(name, about, code, step, evidence=evidence, wish=wish or {})


def _tpm(world: World) -> Iterator[Draft]:
    """Steps 7 and 8: the TPM's quote."""
    machine = world.machine

    def bad(name: str, about: str, code: str, evidence: bytes) -> Draft:
        return machine.refused(name, about, code, 7, evidence=evidence)

    yield bad(
        "quote-of-another-tpm",
        "C-1, C-2: an old report, replayed.",
        "bad-signature",
        world.evidence(signer=OTHER.ak),
    )
    signature = strict_json.from_base64(json.loads(machine.evidence)["signature"], "")
    yield bad(
        "bit-of-the-signature",
        "C-15.",
        "bad-signature",
        world.retold(signature=strict_json.to_base64(flipped(signature, -1))),
    )
    for name, head in {"pss": "0016000b", "sha384": "0014000c"}.items():
        sent = strict_json.to_base64(bytes.fromhex(head) + signature[4:])
        yield bad(
            f"signed-with-{name}",
            "C-14: RSASSA with SHA-256 only.",
            "unsupported-signature-algorithm",
            world.retold(signature=sent),
        )
    few = {number: QUOTED[number] for number in (0, 7)}
    yield bad(
        "register-not-the-signed-one",
        "C-6, C-15.",
        "pcr-digest-mismatch",
        world.evidence(told_pcrs={**QUOTED, 4: bytes(32)}),
    )
    yield bad("selection-without-what-is-asked", "C-6.", "pcr-selection", world.evidence(pcrs=few))
    yield bad(
        "selection-fewer-than-told", "C-6.", "pcr-selection", world.evidence(pcrs=few, told_pcrs=QUOTED)
    )
    yield bad("selection-empty", "C-6.", "pcr-selection", world.evidence(pcrs={}))
    yield bad(
        "selection-of-sha1",
        "C-14.",
        "pcr-selection",
        world.evidence(attest=attest_of(NONCE, QUOTED, bank=0x0004)),
    )
    for name, nonce in {
        "of-another-question": bytes(48),
        "shorter": NONCE[:32],
        "longer": NONCE + bytes(16),
    }.items():
        yield machine.refused(f"nonce-{name}", "C-1, C-5: extraData, whole.", "wrong-nonce", 8, nonce=nonce)
    yield machine.refused(
        "two-lies-and-the-first-counts",
        "The TPM is looked at before the policy.",
        "bad-signature",
        7,
        evidence=world.evidence(
            signer=OTHER.ak,
            **({"policy": 0xB0000} if world.on_snp else {"td_attributes": SEPT_VE_DISABLE | 1}),
        ),
    )


def _certified(world: World) -> Iterator[Draft]:
    """Step 4 and 6: Azure's own certificates, for a policy that wants them."""
    azure = world.azure
    required = world.machine.with_wish({"ak_certificate": "required"})
    machine = replace(required, roots={**required.roots, f"{world.key}.ak": named(azure.roots)})
    whole = azure.ak_chain()

    def bad(name: str, about: str, code: str, chain: bytes | None, step: int = 4) -> Draft:
        return machine.refused(name, about, code, step, endorsements={"ak_chain": chain})

    if not world.on_snp:  # the same code on either; once is enough for what is about certificates only
        yield machine.accepted("certified", "Azure knows this TPM.", endorsements={"ak_chain": whole})
        yield bad("certificate-missing", "C-23.", "missing-endorsement", None)
        return
    yield machine.accepted("certified", "Azure knows this TPM.", endorsements={"ak_chain": whole})
    yield machine.accepted(
        "certified-with-padding",
        "As it lies in the TPM: zeros follow.",
        endorsements={"ak_chain": whole + bytes(50)},
    )
    yield bad("certificate-missing", "C-23.", "missing-endorsement", None)
    yield required.refused(
        "certificate-below-the-fake-root",
        "C-13: the real root is pinned.",
        "unpinned-root",
        4,
        endorsements={"ak_chain": whole},
    )
    for name, code, changes in (
        ("signed-by-a-stranger", "bad-certificate-signature", {"signer": "stranger"}),
        ("of-another-issuer", "wrong-issuer", {"issuer": "stranger"}),
        ("over-sha256", "bad-certificate-signature", {"hash_algorithm": SHA256()}),
        ("expired-a-second-ago", "certificate-not-valid-now", {"not_after": NOON - SECOND}),
        ("valid-in-a-second", "certificate-not-valid-now", {"not_before": NOON + SECOND}),
    ):
        for who in ("ak", "authority"):
            yield bad(
                f"certificate-of-{who}-{name}",
                "C-11, C-13, C-14.",
                code,
                azure.ak_chain(**{who: azure.certificate(who, **changes)}),
            )
    yield bad(
        "certificate-of-ak-an-authority",
        "C-13.",
        "wrong-certificate-kind",
        azure.ak_chain(ak=azure.certificate("ak", authority=True)),
    )
    yield bad(
        "certificate-of-authority-none",
        "C-13.",
        "wrong-certificate-kind",
        azure.ak_chain(authority=azure.certificate("authority", authority=False)),
    )
    yield bad("certificate-cut-short", "C-19.", "malformed-certificate", whole[:-1])
    yield bad("certificate-with-a-byte-more", "C-17.", "malformed-certificate", whole + b"\x01")
    other = azure.certificate("ak", public_key=ak_of("another machine").public_key())
    yield bad(
        "certificate-of-another-machine",
        "C-2: genuine, for somebody else's TPM.",
        "wrong-attestation-key",
        azure.ak_chain(ak=other),
        6,
    )


def _policy(world: World) -> Iterator[Draft]:
    """Steps 10, 12 and 13."""
    machine = world.machine
    said = partial(_said, world)
    for name, value in {"off": False, "not-told": None}.items():
        yield said(
            f"secure-boot-{name}",
            "C-7.",
            "secure-boot-off",
            10,
            runtime=world.azure.runtime(vm={"secure-boot": value}),
        )
        yield said(
            f"tpm-{name}",
            "C-7: whose quote is it?",
            "vtpm-off",
            10,
            runtime=world.azure.runtime(vm={"tpm-enabled": value}),
        )
    yield said("console-on", "C-7: the host types there.", "console-enabled", 10, {"console": "off"})
    yield said(
        "console-not-told",
        "C-7.",
        "console-enabled",
        10,
        {"console": "off"},
        runtime=world.azure.runtime(vm={"console-enabled": None}),
    )
    yield said("another-boot", "C-6.", "pcr-mismatch", 12, pcrs={**QUOTED, 11: bytes(32)})
    yield said("boot-not-named", "C-6.", "pcr-mismatch", 12, world.booted(pcrs={"4": ["00" * 32]}))
    yield said("log-missing", "C-6.", "event-log-missing", 12, world.booted(event_log=None))
    yield said(
        "log-missing-for-secure-boot",
        "C-7.",
        "event-log-missing",
        10,
        world.booted(event_log=None, secure_boot=None),
    )
    yield said(
        "vm-not-listed",
        "C-51.",
        "instance-not-listed",
        13,
        {"vm_ids": ["3c18c97a-0d2a-4565-969d-166cdcef26a3"]},
    )
    yield said(
        "vm-not-told",
        "C-51.",
        "instance-not-listed",
        13,
        {"vm_ids": [VM_ID]},
        runtime=world.azure.runtime(vm={"vmUniqueId": None}),
    )
    registers = {number: registers_of()[number] for number in (0, 4, 5, 7, 8)}
    logged = {"boot": {"pcrs": {"4": hexes(registers[4])}}}
    evidence = world.evidence(pcrs=registers)
    sent = {"event_log": log_of()}
    yield machine.accepted("log-explains-the-boot", "C-6.", evidence=evidence, endorsements=sent, wish=logged)
    yield machine.refused(
        "log-of-another-boot",
        "C-15.",
        "event-log-mismatch",
        10,
        endorsements=sent,
        wish={"boot": {"pcrs": BOOTED}},
    )
    off = (BOOT[0], secure_boot(b"\x00"), *BOOT[2:])
    found = {number: registers_of(off)[number] for number in (0, 4, 5, 7, 8)}
    yield machine.refused(
        "log-with-secure-boot-off",
        "C-7: whatever the paravisor says.",
        "secure-boot-off",
        10,
        evidence=world.evidence(pcrs=found),
        endorsements={"event_log": log_of(off)},
        wish=logged,
    )
    events = {"boot": {"pcrs": {"4": hexes(registers[4])}, "events": [{"register": 8, "only": ["00" * 32]}]}}
    yield machine.refused(
        "log-with-another-command-line",
        "C-6.",
        "event-mismatch",
        12,
        evidence=evidence,
        endorsements=sent,
        wish=events,
    )
