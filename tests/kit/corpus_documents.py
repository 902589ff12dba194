"""The cases of whole documents (SPEC §2): what ties evidence of every platform to a key, a question and a time."""

# ruff: noqa: E501
# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound, binding, transcript_bytes
from blindbox_attestation.evidence import NITRO, SEV_SNP, AttestationDocument
from tests.kit import NOON, corpus_azure, corpus_gcp, corpus_nitro, corpus_snp, corpus_tdx, corpus_tpm
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.aws import FakeAws
from tests.kit.azure import FakeAzure
from tests.kit.corpus import SECOND, Draft, Json, Machine, hexes
from tests.kit.google import FakeGoogle
from tests.kit.intel import FakeIntel

NONCE = bytes(range(32))
OTHER_KEYS = b"\x00\x29" + bytes(range(100, 141))
START = int(NOON.timestamp()) - 60
AMD = corpus_snp.amd_of("Genoa")


def whole(**changes: Any) -> bytes:
    """An honest document, its certificates beside it; `changes` are made before the report is signed."""
    return AMD.document(**{"nonce": NONCE, "endorsements": {}, **changes})


def retold(document: bytes, transcript: Json | None = None, **changes: Any) -> bytes:
    """The same document with other members, after the hardware has signed; None leaves one out."""
    told = {**json.loads(document), **changes}
    told["transcript"] = {**told["transcript"], **(transcript or {})}
    kept = {name: value for name, value in told.items() if value is not None}
    kept["transcript"] = {name: value for name, value in kept["transcript"].items() if value is not None}
    return json.dumps(kept, separators=(",", ":")).encode("ascii")


def b64(data: bytes) -> str:
    return strict_json.to_base64(data)


def around(machine: Machine, document: bytes, **changes: Any) -> Machine:
    """The case's machine, for a whole document."""
    return replace(
        machine, platform="", evidence=document, nonce=NONCE, nonce_text=None, suffix="json", **changes
    )


def cases() -> Iterator[Draft]:
    """All of them."""
    machine = around(corpus_snp.machine_of(AMD), whole())
    yield from _reading(machine)
    yield from _binding(machine)
    yield from receipt_keys(machine)
    yield from _time(machine)
    yield from _forms(machine)
    yield from _settings(machine)
    yield from _several(machine)
    yield from _platforms()


def _reading(machine: Machine) -> Iterator[Draft]:
    """Steps 1 and 2."""
    honest = machine.evidence
    yield machine.accepted("honest", "A fresh document, its certificates beside it.")
    inside = AMD.document(nonce=NONCE)
    yield machine.accepted(
        "honest-with-certificates-inside", "What was sent is preferred to what was fetched.", evidence=inside,
        endorsements=dict.fromkeys(machine.endorsements),
    )  # fmt: skip
    yield machine.accepted("honest-with-a-tls-key", "C-4.", evidence=whole(tls_spki_sha256=b"\x01" * 32))
    poor = AMD.document(nonce=NONCE, endorsements={"vcek": b"garbage"})
    yield machine.refused(
        "sent-garbage-is-not-replaced",
        "C-23: what was sent counts.",
        "malformed-certificate",
        4,
        evidence=poor,
    )
    yield machine.refused(
        "certificates-nowhere",
        "C-23.",
        "missing-endorsement",
        4,
        endorsements=dict.fromkeys(machine.endorsements),
    )
    for name, code, data in (
        ("empty", "malformed-json", b""),
        ("no-json", "malformed-json", b"<html>"),
        ("cut-short", "malformed-json", honest[:-1]),
        ("with-bytes-after-it", "malformed-json", honest + b"{}"),
        ("with-a-key-twice", "malformed-json", honest[:-1] + b',"version":1}'),
        ("nested-too-deep", "malformed-json", b'{"version":' + b"[" * 9 + b"]" * 9 + b"}"),
        ("not-utf-8", "malformed-json", b'{"version":"\xff"}'),
        ("a-list", "wrong-type", b"[" + honest + b"]"),
        ("with-a-key-more", "unknown-key", retold(honest, more=1)),
        ("with-a-field-more", "unknown-key", retold(honest, {"more": 1})),
        ("with-an-unknown-endorsement", "unknown-key", retold(honest, endorsements={"passport": "AAAA"})),
        ("without-evidence", "missing-key", retold(honest, evidence=None)),
        ("without-transcript-field", "missing-key", retold(honest, {"boot_id": None})),
        ("version-2", "unsupported-version", retold(honest, version=2)),
        ("profile-2", "unsupported-version", retold(honest, {"profile": "blindbox/2"})),
        ("version-in-text", "wrong-type", retold(honest, version="1")),
        ("version-true", "wrong-type", retold(honest, version=True)),
        ("form-3", "wrong-type", retold(honest, {"form": 3})),
        ("form-2-with-a-nonce", "wrong-type", retold(honest, {"form": 2})),
        ("nonce-of-31-bytes", "wrong-type", retold(honest, {"nonce": b64(NONCE[:31])})),
        ("nonce-empty-in-form-1", "wrong-type", retold(honest, {"nonce": ""})),
        ("key-empty", "wrong-type", retold(honest, {"key_config": ""})),
        ("boot-id-too-short", "wrong-type", retold(honest, {"boot_id": b64(bytes(15))})),
        ("time-with-a-point", "wrong-type", honest.replace(b'"not_before":', b'"not_before":1.0e9,"x":')),
        ("time-negative", "wrong-type", retold(honest, {"not_before": -1})),
        ("time-after-9999", "wrong-type", retold(honest, {"not_after": 253402300800})),
        (
            "base64-without-padding",
            "wrong-type",
            retold(honest, {"boot_id": b64(bytes(range(16))).rstrip("=")}),
        ),
        ("base64-of-the-other-alphabet", "wrong-type", retold(honest, {"key_config": "_-__"})),
        ("evidence-a-number", "wrong-type", retold(honest, evidence=7)),
    ):
        yield machine.refused(f"document-{name}", "C-17, C-18, C-20: one spelling.", code, 1, evidence=data)
    yield machine.refused(
        "platform-called-simulated",
        "C-35.",
        "simulated-evidence",
        2,
        evidence=retold(honest, platform="simulated"),
    )
    yield machine.refused(
        "platform-called-tdx",
        "C-13, C-22.",
        "platform-not-accepted",
        2,
        evidence=retold(honest, platform="tdx"),
    )
    yield machine.refused(
        "platform-nobody-knows",
        "C-20.",
        "platform-not-accepted",
        2,
        evidence=retold(honest, platform="riscv-cove"),
    )


def _binding(machine: Machine) -> Iterator[Draft]:
    """Step 8, first half: all of T is under the signature."""
    honest = machine.evidence
    told = json.loads(honest)["transcript"]
    for name, changes in {
        "key-of-somebody-else": {"key_config": b64(OTHER_KEYS)},
        "key-with-a-suite-more": {"key_config": b64(KEY_CONFIG + OTHER_KEYS)},
        "key-cut-short": {"key_config": b64(KEY_CONFIG[:-1])},
        "nonce-of-somebody-else": {"nonce": b64(bytes(32))},
        "begins-earlier": {"not_before": told["not_before"] - 1},
        "ends-later": {"not_after": told["not_after"] + 1},
        "another-boot": {"boot_id": b64(bytes(16))},
        "other-settings": {"config_digest": b64(bytes(48))},
        "a-tls-key-added": {"tls_spki_sha256": b64(bytes(32))},
    }.items():
        yield machine.refused(
            f"bound-{name}",
            "C-2, C-3, C-4: changed after the report was made.",
            "unbound-key",
            8,
            evidence=retold(honest, changes),
        )
    bound = binding(transcript_bytes(SEV_SNP, AMD.transcript(nonce=NONCE)))
    for name, data in {
        "with-bytes-after-it": bound + bytes(15) + b"\x01",
        "shifted": bytes(16) + bound,
        "cut-to-32-bytes": bound[:32] + bytes(32),
        "of-another-platform": binding(transcript_bytes("tdx", AMD.transcript(nonce=NONCE))).ljust(
            64, b"\x00"
        ),
        "missing": bytes(64),
        "of-the-nonce-alone": NONCE.ljust(64, b"\x00"),
    }.items():
        yield machine.refused(
            f"report-data-{name}",
            "C-5: all 64 bytes, and T whole.",
            "unbound-key",
            8,
            evidence=whole(report_data=data),
        )
    theirs = whole(key_config=OTHER_KEYS)
    evidence = json.loads(theirs)["evidence"]
    yield machine.refused(
        "evidence-of-another-machine",
        "C-2: genuine, about another key.",
        "unbound-key",
        8,
        evidence=retold(honest, evidence=evidence),
    )
    for name, nonce in {"of-somebody-else": bytes(32), "one-bit-otherwise": bytes((1, *NONCE[1:]))}.items():
        yield machine.refused(f"question-{name}", "C-1: an old answer.", "wrong-nonce", 8, nonce=nonce)


def receipt_keys(machine: Machine) -> Iterator[Draft]:
    """Steps 1 and 8: the last field of T, which not every machine has."""
    beside: dict[str, Any] = {"endorsements": dict.fromkeys(machine.endorsements)}
    key = bytes(range(32))
    honest = AMD.document(nonce=NONCE)
    having = AMD.document(nonce=NONCE, receipt_key=key)
    yield machine.accepted(
        "honest-with-a-receipt-key", "SPEC §8: its machine signs receipts.", evidence=having, **beside
    )
    about = "C-4: changed after the report was made."
    for name, document in {
        "a-receipt-key-added": retold(honest, {"receipt_key": b64(key)}),
        "a-receipt-key-left-out": retold(having, {"receipt_key": None}),
        "another-receipt-key": retold(having, {"receipt_key": b64(key[::-1])}),
        # Both are 32 bytes, and each has its place.
        "a-receipt-key-for-a-tls-key": retold(having, {"receipt_key": None, "tls_spki_sha256": b64(key)}),
    }.items():
        yield machine.refused(f"bound-{name}", about, "unbound-key", 8, evidence=document, **beside)
    for name, value in {"empty": "", "of-31-bytes": b64(key[:31]), "a-number": 7}.items():
        yield machine.refused(
            f"document-receipt-key-{name}",
            "C-17: one spelling; a machine without one leaves it out.",
            "wrong-type",
            1,
            evidence=retold(having, {"receipt_key": value}),
            **beside,
        )


def _time(machine: Machine) -> Iterator[Draft]:
    """Step 8, second half: the window of the key, give or take the policy's skew."""
    fresh = 86400
    start, end = NOON - timedelta(seconds=60), NOON + timedelta(seconds=fresh - 60)
    skew = timedelta(seconds=300)
    exact = {**machine.policy, "clock_skew_seconds": 0}
    for name, now, policy, good in (
        ("at-the-skew-before", start - skew, None, True),
        ("a-second-before-that", start - skew - SECOND, None, False),
        ("at-the-skew-after", end + skew, None, True),
        ("a-second-after-that", end + skew + SECOND, None, False),
        ("at-its-first-second", start, exact, True),
        ("a-second-early", start - SECOND, exact, False),
        ("at-its-last-second", end, exact, True),
        ("a-second-late", end + SECOND, exact, False),
    ):
        changes: dict[str, Any] = {"now": now, "policy": policy or machine.policy}
        about = "C-24: a second to either side of each bound."
        if good:
            yield machine.accepted(f"judged-{name}", about, **changes)
        else:
            yield machine.refused(f"judged-{name}", about, "outside-validity", 8, **changes)
    two_days = 48 * 3600
    yield machine.accepted(
        "key-for-48-hours", "C-24.", evidence=whole(not_before=START, not_after=START + two_days)
    )
    yield machine.refused(
        "key-for-a-second-more",
        "C-24: keys are short-lived.",
        "window-too-long",
        8,
        evidence=whole(not_before=START, not_after=START + two_days + 1),
    )
    yield machine.refused(
        "key-that-ends-before-it-begins",
        "C-24.",
        "outside-validity",
        8,
        evidence=whole(not_before=START, not_after=START - 1),
    )
    yield machine.refused(
        "key-for-no-time", "C-24.", "outside-validity", 8, evidence=whole(not_before=START, not_after=START)
    )


def _forms(machine: Machine) -> Iterator[Draft]:
    """Step 8: fresh and cached."""
    cached = whole(nonce=b"")
    taking = replace(machine, policy={**machine.policy, "accept_cached": True})
    yield taking.accepted("cached-accepted", "The policy takes the cached form.", evidence=cached, nonce=None)
    yield machine.refused("cached-not-accepted", "C-1.", "form-not-accepted", 8, evidence=cached, nonce=None)
    yield machine.refused("cached-for-a-fresh-question", "C-1.", "form-not-accepted", 8, evidence=cached)
    yield taking.refused(
        "cached-for-a-fresh-question-although-accepted",
        "C-1: it was asked for another.",
        "form-not-accepted",
        8,
        evidence=cached,
    )
    yield taking.refused(
        "fresh-for-a-cached-question", "C-1: somebody else's answer.", "form-not-accepted", 8, nonce=None
    )
    hour = 3600
    yield taking.accepted(
        "cached-for-an-hour",
        "C-24.",
        evidence=whole(nonce=b"", not_before=START, not_after=START + hour),
        nonce=None,
    )
    yield taking.refused(
        "cached-for-a-second-more",
        "C-24.",
        "window-too-long",
        8,
        evidence=whole(nonce=b"", not_before=START, not_after=START + hour + 1),
        nonce=None,
    )
    late = NOON + timedelta(seconds=hour - 60 + 300)
    yield taking.accepted("cached-at-the-skew-after", "C-24.", evidence=cached, nonce=None, now=late)
    yield taking.refused(
        "cached-a-second-after-that",
        "C-24.",
        "outside-validity",
        8,
        evidence=cached,
        nonce=None,
        now=late + SECOND,
    )


def _settings(machine: Machine) -> Iterator[Draft]:
    """Step 8: how the machine was told to run."""
    told, others = AMD.transcript(nonce=NONCE).config_digest.hex(), "0f" * 48

    def named(*digests: str) -> Json:
        return {**machine.policy, "config_digests": list(digests)}

    yield machine.accepted("settings-named", "S-31.", policy=named(told))
    yield machine.accepted("settings-among-those-named", "S-31.", policy=named(others, told))
    yield machine.refused(
        "settings-not-named",
        "S-31: somebody told it to run otherwise.",
        "settings-not-listed",
        8,
        policy=named(others),
    )
    yield machine.refused(
        "settings-changed-on-the-way",
        "S-31: the evidence vouches for others.",
        "unbound-key",
        8,
        evidence=retold(machine.evidence, {"config_digest": b64(bytes.fromhex(others))}),
        policy=named(others),
    )


def _several(machine: Machine) -> Iterator[Draft]:
    """AnyOf and AllOf."""
    good = {"snp": machine.policy["snp"]}
    another = {"snp": {**machine.policy["snp"], "measurements": hexes(bytes(48))}}
    higher = {
        "snp": {
            **machine.policy["snp"],
            "minimum_tcb": {"Genoa": dict.fromkeys(("bootloader", "tee", "snp", "microcode"), 255)},
        }
    }
    picky = {"snp": {**machine.policy["snp"], "host_data": "11" * 32}}

    def asked(word: str, *parts: Json) -> Json:
        return {"version": 1, word: list(parts)}

    yield machine.accepted("any-of-the-second-accepts", "C-22.", policy=asked("any_of", another, good))
    yield machine.accepted(
        "all-of-both-accept", "C-22.", policy=asked("all_of", good, {**good, "max_age_seconds": 60})
    )
    yield machine.accepted(
        "any-of-an-all-of", "C-22.", policy=asked("any_of", {"all_of": [good, picky]}, good)
    )
    yield machine.refused(
        "any-of-none-accepts",
        "C-22: the refusal of the one that came furthest.",
        "measurement-mismatch",
        12,
        policy=asked("any_of", higher, another),
    )
    yield machine.refused("any-of-one-not-current", "C-22.", "tcb-too-old", 9, policy=asked("any_of", higher))
    yield machine.refused(
        "all-of-the-second-refuses", "C-22.", "host-data", 13, policy=asked("all_of", good, picky)
    )
    yield machine.refused(
        "all-of-the-first-refuses", "C-22.", "measurement-mismatch", 12, policy=asked("all_of", another, good)
    )
    yield machine.refused(
        "all-of-an-any-of-refuses",
        "C-22.",
        "host-data",
        13,
        policy=asked("all_of", good, {"any_of": [another, picky]}),
    )
    cached = whole(nonce=b"")
    mixed = asked("all_of", {**good, "accept_cached": True}, good)
    yield machine.refused(
        "all-of-one-takes-no-cached",
        "C-1, C-22.",
        "form-not-accepted",
        8,
        evidence=cached,
        nonce=None,
        policy=mixed,
    )
    taking = {**good, "accept_cached": True}
    yield machine.refused(
        "any-of-one-takes-cached",
        "C-1, C-22: several are as strict as the strictest of them.",
        "form-not-accepted",
        8,
        evidence=cached,
        nonce=None,
        policy=asked("any_of", good, taking),
    )
    both = asked("any_of", {**another, "accept_cached": True}, taking)
    yield machine.accepted("any-of-both-take-cached", "C-22.", evidence=cached, nonce=None, policy=both)


def _platforms() -> Iterator[Draft]:
    """One whole document of every platform, and its key exchanged."""
    transcript = AMD.transcript(nonce=NONCE)
    intel, aws, google, tpm = FakeIntel(), FakeAws(), FakeGoogle(), corpus_tpm.OURS
    worlds = {
        "azure-snp": corpus_azure.World(FakeAzure(FakeAmd("Genoa"))),
        "azure-tdx": corpus_azure.World(FakeAzure(FakeIntel())),
    }
    nitro = next(corpus_nitro.cases())
    gcp = next(corpus_gcp.cases())

    def like(draft: Draft, key: str, document: bytes) -> Machine:
        return Machine("", key, document, draft.policy, draft.roots, suffix="json", nonce=NONCE)

    machines = {
        "tdx": around(corpus_tdx.machine_of(intel), intel.document(nonce=NONCE, endorsements={}, padding=0)),
        "nitro": like(nitro, "nitro", aws.whole(transcript)),
        "gcp": like(gcp, "gcp", google.whole(transcript)),
        "tpm": around(corpus_tpm.machine_of(tpm), tpm.whole(transcript), endorsements={}),
        **{
            name: around(
                world.machine, world.azure.document(nonce=NONCE, pcrs=corpus_azure.QUOTED), endorsements={}
            )
            for name, world in worlds.items()
        },
    }
    for name, machine in machines.items():
        yield machine.accepted(f"{name}-honest", "A whole document of this platform.")
        swapped = retold(machine.evidence, {"key_config": b64(OTHER_KEYS)})
        yield machine.refused(f"{name}-key-of-somebody-else", "C-2, C-3.", "unbound-key", 8, evidence=swapped)
        yield machine.refused(f"{name}-question-of-somebody-else", "C-1.", "wrong-nonce", 8, nonce=bytes(32))
    bound = Bound.of(transcript_bytes(NITRO, transcript), transcript)
    for name, changes in {
        "without-user-data": {"user_data": None},
        "without-nonce": {"nonce": None},
        "without-public-key": {"public_key": None},
        "user-data-of-32-bytes": {"user_data": bound.digest[:32]},
        "public-key-itself": {"public_key": KEY_CONFIG},
        "nonce-in-the-place-of-user-data": {"user_data": NONCE, "nonce": bound.digest},
    }.items():
        sent = AttestationDocument(NITRO, transcript, aws.answer(bound, **changes), {}).encode()
        yield machines["nitro"].refused(
            f"nitro-{name}", "C-5: each value in its own place.", "unbound-key", 8, evidence=sent
        )
