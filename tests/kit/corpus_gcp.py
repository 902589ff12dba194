"""The cases of Google Confidential Space: a token, its chain of three, and the claims in it."""

# mypy: disable-error-code="arg-type, assignment, misc"
# pyright: reportArgumentType=false, reportCallIssue=false
# Tables: a case is a line, and its changes are of whatever type is changed.

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from blindbox_attestation.gcp.token import to_base64url
from tests.kit import NOON
from tests.kit.aws import ec_key
from tests.kit.corpus import SECOND, Draft, Machine, named
from tests.kit.google import ACCOUNT, AUDIENCE, IMAGE, INSTANCE, PROJECT, FakeGoogle, dumped, rsa_key

NONCE = "0123456789abcdef"
GOOGLE = FakeGoogle()
OTHER = FakeGoogle("theirs")
STRANGER = rsa_key("a stranger")
START = int(NOON.timestamp())
PSS = padding.PSS(padding.MGF1(SHA256()), 32)


def with_certificate(what: str, **changes: Any) -> bytes:
    """A token whose chain has one certificate made otherwise."""
    return GOOGLE.token(GOOGLE.chain(**{what: GOOGLE.certificate(what, **changes)}))


def with_header(**changes: Any) -> bytes:
    return GOOGLE.sign(dumped(GOOGLE.header(**changes)), dumped(GOOGLE.told()))


def with_payload(payload: bytes) -> bytes:
    return GOOGLE.sign(dumped(GOOGLE.header()), payload)


def cases() -> Iterator[Draft]:
    """All of them."""
    machine = Machine(
        platform="gcp-confidential-space",
        key="gcp",
        suffix="jwt",
        evidence=GOOGLE.token(),
        policy={
            "version": 1,
            "gcp": {"audiences": [AUDIENCE], "image_digests": [IMAGE], "hardware": ["GCP_INTEL_TDX"]},
        },
        roots={"gcp": named(GOOGLE.roots)},
        nonce_text=NONCE,
    )
    yield from _honest(machine)
    yield from _reading(machine)
    yield from _certificates(machine)
    yield from _times(machine)
    yield from _signature(machine)
    yield from _policy(machine)


def _honest(machine: Machine) -> Iterator[Draft]:
    yield machine.accepted("honest", "An honest token.")
    yield machine.accepted("no-nonce-is-asked", "Freshness is not asked.", nonce_text=None)
    several = GOOGLE.token(eat_nonce=["another one here", NONCE])
    yield machine.accepted("one-of-two-nonces", "Ours is among them.", evidence=several)
    yield machine.accepted(
        "claims-of-tomorrow",
        "Google adds claims: others are left alone.",
        evidence=GOOGLE.token(new={"a": [1]}),
    )
    for name, wish in {
        "version": {"minimum_version": 260400},
        "tcb-status": {"tcb_statuses": ["UpToDate"]},
        "support": {"support_attributes": ["STABLE", "LATEST"]},
        "project": {"project_ids": [PROJECT]},
        "instance": {"instance_ids": [INSTANCE]},
        "account": {"service_accounts": [ACCOUNT, "another@example"]},
        "audiences": {"audiences": [AUDIENCE, "another"]},
    }.items():
        yield machine.accepted(f"policy-{name}", "C-51: met.", wish=wish)
    snp = GOOGLE.token(hwmodel="GCP_AMD_SEV_SNP", tdx=None)
    yield machine.accepted("hardware-snp", "Named.", evidence=snp, wish={"hardware": ["GCP_AMD_SEV_SNP"]})
    changed = GOOGLE.token(submods={"container": {"env_override": {"MODEL": "x"}, "cmd_override": ["sh"]}})
    allowed = {"environment_overrides": ["MODEL"], "allow_command_override": True}
    yield machine.accepted(
        "overrides-allowed", "The policy lets the operator.", evidence=changed, wish=allowed
    )


def _reading(machine: Machine) -> Iterator[Draft]:
    """Step 3."""
    honest = machine.evidence
    header, payload, _ = honest.split(b".")

    def bad(name: str, about: str, evidence: bytes, code: str = "malformed-token") -> Draft:
        return machine.refused(name, about, code, 3, evidence=evidence)

    for name, data in {
        "empty": b"", "two-parts": header + b"." + payload, "with-a-line-end": honest + b"\n",
        "with-padding": honest + b"==",
        "header-no-object": GOOGLE.sign(b"[]", b"{}"), "payload-no-object": with_payload(b"[]"),
        "payload-twice": with_payload(b"{}{}"),
    }.items():  # fmt: skip
        yield bad(f"token-{name}", "C-17, C-19: one spelling.", data)
    unsigned = to_base64url(dumped(GOOGLE.header(alg="none"))) + b"." + payload + b"."
    yield bad("algorithm-none-unsigned", "C-14.", unsigned, "unsupported-signature-algorithm")
    for name in ("none", "HS256", "ES256"):
        yield bad(
            f"algorithm-{name.lower()}",
            "C-14: fixed.",
            with_header(alg=name),
            "unsupported-signature-algorithm",
        )
    chain = [base64.b64encode(one).decode("ascii") for one in GOOGLE.chain()]
    for name, changes in {
        "jku": {"jku": "https://nobody.example/keys"},
        "crit": {"crit": ["exp"]},
        "no-certificates": {"x5c": None}, "four-certificates": {"x5c": [*chain, chain[2]]},
    }.items():  # fmt: skip
        yield bad(f"header-{name}", "C-14: no key comes from elsewhere.", with_header(**changes))
    double = dumped(GOOGLE.told())[:-1] + b',"dbgstat":"disabled-since-boot"}'
    yield bad("payload-claim-twice", "C-17.", with_payload(double))
    for name, changes in {
        "without-exp": {"exp": None}, "without-iat": {"iat": None},
        "exp-negative": {"exp": -1}, "audience-a-list": {"aud": [AUDIENCE]},
        "secboot-one": {"secboot": 1},
        "two-versions": {"swversion": ["1", "2"]},
        "image-digest-in-capitals": {"submods": {"container": {"image_digest": IMAGE.upper()}}},
        "environment-a-list": {"submods": {"container": {"env_override": ["A"]}}},
    }.items():  # fmt: skip
        yield bad(f"claim-{name}", "C-17: another type or form.", GOOGLE.token(**changes))


def _certificates(machine: Machine) -> Iterator[Draft]:
    """Step 4."""

    def bad(name: str, about: str, code: str, evidence: bytes, **changes: Any) -> Draft:
        return machine.refused(name, about, code, 4, evidence=evidence, **changes)

    leaf, intermediate, root = GOOGLE.chain()
    yield bad("whole-other-cloud", "C-13: well made, and nobody's root.", "unpinned-root", OTHER.token())
    yield bad("real-root-does-not-know-the-fake", "C-13.", "unpinned-root", machine.evidence, roots={})
    for name, code, chain in (
        ("root-first", "unpinned-root", [root, intermediate, leaf]),
        ("two-exchanged", "wrong-certificate-kind", [intermediate, leaf, root]),
        ("root-with-a-byte-more", "unpinned-root", [leaf, intermediate, root + b"\x00"]),
        ("leaf-with-a-byte-more", "malformed-certificate", [leaf + b"\x00", intermediate, root]),
        ("others-below-our-root", "bad-certificate-signature", [*OTHER.chain()[:2], root]),
    ):
        yield bad(f"chain-{name}", "C-13.", code, GOOGLE.token(chain))
    for what in ("intermediate", "leaf"):
        for name, code, changes in (
            ("signed-by-a-stranger", "bad-certificate-signature", {"signer": STRANGER}),
            ("of-another-issuer", "wrong-issuer", {"issuer": "stranger"}),
            ("unknown-critical-extension", "malformed-certificate", {"critical": True}),
            ("wrong-kind", "wrong-certificate-kind", {"authority": what == "leaf"}),
            ("expired-a-second-ago", "certificate-not-valid-now", {"not_after": NOON - SECOND}),
            ("valid-in-a-second", "certificate-not-valid-now", {"not_before": NOON + SECOND}),
        ):
            yield bad(f"{what}-{name}", "C-11, C-13, C-14.", code, with_certificate(what, **changes))
        yield machine.accepted(f"{what}-ends-now", "C-24.", evidence=with_certificate(what, not_after=NOON))
    yield bad(
        "intermediate-may-not-sign",
        "C-13.",
        "wrong-certificate-kind",
        with_certificate("intermediate", cert_sign=False),
    )
    later = NOON + 600 * SECOND
    unborn = with_certificate("leaf", not_before=NOON + SECOND)
    yield bad("leaf-not-valid-at-issue", "C-11: now it is.", "certificate-not-valid-now", unborn, now=later)
    yield bad(
        "judged-a-month-later",
        "C-1.",
        "certificate-not-valid-now",
        machine.evidence,
        now=NOON + timedelta(days=31),
    )


def _times(machine: Machine) -> Iterator[Draft]:
    """Step 6."""
    for name, now, good in (
        ("60-seconds-before", NOON - 60 * SECOND, True),
        ("61-seconds-before", NOON - 61 * SECOND, False),
        ("3659-seconds-after", NOON + 3659 * SECOND, True),
        ("3660-seconds-after", NOON + 3660 * SECOND, False),
    ):
        about = "C-1, C-11, C-24: a second to either side of each bound."
        if good:
            yield machine.accepted(f"judged-{name}", about, now=now)
        else:
            yield machine.refused(f"judged-{name}", about, "token-not-valid-now", 6, now=now)
    exact = {"clock_skew_seconds": 0}
    for name, claims in {
        "nbf-in-a-second": {"nbf": START + 1},
        "exp-now": {"exp": START},
    }.items():
        yield machine.refused(
            name,
            "C-24: without skew, to the second.",
            "token-not-valid-now",
            6,
            evidence=GOOGLE.token(**claims),
            wish=exact,
        )
    yield machine.accepted("exp-in-a-second", "C-24.", evidence=GOOGLE.token(exp=START + 1), wish=exact)


def _signature(machine: Machine) -> Iterator[Draft]:
    """Steps 7 and 8."""
    honest = machine.evidence
    told = dumped(GOOGLE.told())

    def bad(name: str, about: str, evidence: bytes) -> Draft:
        return machine.refused(name, about, "bad-signature", 7, evidence=evidence)

    header = dumped(GOOGLE.header())
    for name, how in {
        "by-a-stranger": {"key": STRANGER},
        "in-pss": {"pad": PSS},
        "over-sha384": {"hash_algorithm": SHA384()},
    }.items():
        yield bad(f"signed-{name}", "C-14, C-15.", GOOGLE.sign(header, told, **how))
    one, other = honest.split(b"."), GOOGLE.token(eat_nonce="another one").split(b".")
    yield bad("payload-of-another-token", "C-15: spliced.", b".".join((one[0], other[1], one[2])))
    yield bad("signature-of-another-token", "C-15: spliced.", b".".join((one[0], one[1], other[2])))
    yield bad(
        "header-spelt-otherwise",
        "C-15.",
        b".".join((to_base64url(dumped(GOOGLE.header(kid="another"))), *one[1:])),
    )
    debug = to_base64url(dumped(GOOGLE.told(dbgstat="enabled")))
    yield bad("debug-status-edited", "C-7, C-15.", b".".join((one[0], debug, one[2])))
    yield bad("without-a-signature", "C-14.", b".".join((one[0], one[1], b"")))
    yield bad("others-token-under-our-chain", "C-2: somebody else's key.", OTHER.token(GOOGLE.chain()))
    short = rsa_key("short", 1024)
    small = GOOGLE.chain(leaf=GOOGLE.certificate("leaf", public_key=short.public_key()))
    yield bad(
        "leaf-of-1024-bits",
        "C-14: too short a key.",
        GOOGLE.sign(dumped(GOOGLE.header(small)), told, key=short),
    )
    curved = GOOGLE.certificate("leaf", public_key=ec_key("leaf").public_key())
    yield bad("leaf-with-an-elliptic-key", "C-14.", GOOGLE.token(GOOGLE.chain(leaf=curved)))
    for name, nonce in {
        "of-another-question": "another question",
        "shorter": NONCE[:-1],
        "longer": NONCE + "0",
        "in-capitals": NONCE.upper(),
    }.items():
        yield machine.refused(f"nonce-{name}", "C-1, C-5.", "wrong-nonce", 8, nonce_text=nonce)
    yield machine.refused(
        "token-without-a-nonce", "C-1.", "wrong-nonce", 8, evidence=GOOGLE.token(eat_nonce=None)
    )
    yield machine.refused(
        "nonces-of-others",
        "C-1.",
        "wrong-nonce",
        8,
        evidence=GOOGLE.token(eat_nonce=["one of them here", "the other one"]),
    )


def _policy(machine: Machine) -> Iterator[Draft]:
    """Steps 9 to 13."""

    def said(
        name: str, about: str, code: str, step: int, wish: dict[str, Any] | None = None, **claims: Any
    ) -> Draft:
        evidence = GOOGLE.token(**claims) if claims else machine.evidence
        return machine.refused(name, about, code, step, evidence=evidence, wish=wish or {})

    def container(**told: Any) -> dict[str, Any]:
        return {"container": told}

    yield said("version-too-old", "C-8.", "tcb-too-old", 9, {"minimum_version": 260401})
    yield said(
        "tcb-status-not-named",
        "C-12.",
        "tcb-status",
        9,
        {"tcb_statuses": ["UpToDate"]},
        tdx={"gcp_attester_tcb_status": "OutOfDate"},
    )
    for word in ("enabled",):
        yield said(f"debug-{word}", "C-7: the operator can log in.", "debug-allowed", 10, dbgstat=word)
    yield said("debug-not-told", "C-7.", "debug-allowed", 10, dbgstat=None)
    yield said("secure-boot-off", "C-7.", "secure-boot-off", 10, secboot=False)
    yield said(
        "support-not-stable",
        "C-7: a debug image has none.",
        "support-level",
        10,
        submods={"confidential_space": {"support_attributes": ["LATEST"]}},
    )
    yield said(
        "support-asked-for-more", "C-7.", "support-level", 10, {"support_attributes": ["EXPERIMENTAL"]}
    )
    for name, issuer in {
        "of-another": "https://nobody.example",
        "with-a-slash": "https://confidentialcomputing.googleapis.com/",
    }.items():
        yield said(f"issuer-{name}", "C-13.", "wrong-token-issuer", 11, iss=issuer)
    yield said(
        "audience-of-another",
        "C-2: a token for somebody else.",
        "wrong-audience",
        11,
        aud="https://somebody.example",
    )
    yield said(
        "audience-not-named", "C-2.", "wrong-audience", 11, {"audiences": ["https://somebody.example"]}
    )
    yield said("software-of-another-name", "C-13.", "hardware-model", 11, swname="GCE")
    for model in ("GCP_SHIELDED_VM",):
        yield said(
            f"hardware-{model.lower().replace('_', '-')}", "C-13.", "hardware-model", 11, hwmodel=model
        )
    yield said(
        "another-image",
        "C-6.",
        "measurement-mismatch",
        12,
        submods=container(image_digest="sha256:" + "0" * 64),
    )
    yield said(
        "environment-overridden",
        "C-6: by the operator.",
        "override-not-allowed",
        12,
        submods=container(env_override={"LD_PRELOAD": "/evil"}),
    )
    yield said(
        "environment-beyond-what-is-allowed",
        "C-6.",
        "override-not-allowed",
        12,
        {"environment_overrides": ["MODEL"]},
        submods=container(env_override={"MODEL": "x", "OTHER": "y"}),
    )
    yield said(
        "command-overridden", "C-6.", "override-not-allowed", 12, submods=container(cmd_override=["sh"])
    )
    for name, wish in {
        "project": {"project_ids": ["another"]},
        "instance": {"instance_ids": ["1"]},
        "account": {"service_accounts": ["another@example"]},
    }.items():
        yield said(f"{name}-not-listed", "C-51.", "instance-not-listed", 13, wish)
