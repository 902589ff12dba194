"""The bounds of what a TPM may say: what lies at one is read, what lies past it is refused for that."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blindbox_attestation import strict_json
from blindbox_attestation.errors import AttestationError, InvalidPolicy, MalformedEvidence
from blindbox_attestation.event_log import MAX_LOG, EventLog, Variable
from blindbox_attestation.vtpm import EventRule, MeasuredBoot, TpmPolicy, appraise
from blindbox_attestation.vtpm.area import Area
from blindbox_attestation.vtpm.boot import MAX_RULES
from blindbox_attestation.vtpm.chain import LONGEST, MAX_CHAIN, split
from blindbox_attestation.vtpm.evidence import MAX_EVIDENCE, read_key
from blindbox_attestation.vtpm.quote import MAX_ATTEST, MAX_SIGNATURE, Attest, Signature, words_of
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.google import rsa_key
from tests.kit.tpm import (
    BOOT,
    NO_ACTION,
    FakeTpm,
    Measurement,
    area,
    attest,
    ec_key,
    header,
    instance_info,
    log_of,
    registers_of,
    secure_boot,
    selection,
    separator,
    sign,
    sized,
    spki,
    variable,
)

NONCE = bytes(range(48))
OURS = FakeTpm()
OTHER = bytes(range(32))


def refusal(
    evidence: bytes | None = None, policy: TpmPolicy | None = None, **endorsements: bytes
) -> AttestationError | None:
    """What an appraisal ends with; None if it is accepted."""
    told = OURS.evidence(NONCE) if evidence is None else evidence
    try:
        appraise(told, OURS.endorsements(**endorsements), policy or OURS.tpm_policy(), now=NOON)
    except AttestationError as error:
        return error
    return None


def code_of(evidence: bytes | None = None, policy: TpmPolicy | None = None, **endorsements: bytes) -> str:
    error = refusal(evidence, policy, **endorsements)
    return "accepted" if error is None else error.code


def malformed(read: Any, data: bytes) -> str:
    """The code that reading these bytes ends with."""
    with pytest.raises(MalformedEvidence) as caught:
        read(data)
    return caught.value.code


# --- the quote ---


def test_a_quote_is_looked_at_only_up_to_a_size() -> None:
    """C-18: what is larger is refused for that."""
    honest = attest(NONCE, [selection([4])], bytes(32))
    assert malformed(Attest.parse, honest.ljust(MAX_ATTEST, b"\x00")) == "trailing-bytes"
    assert malformed(Attest.parse, honest.ljust(MAX_ATTEST + 1, b"\x00")) == "malformed-quote"
    honest = sign(OURS.key, b"")
    assert malformed(Signature.parse, honest.ljust(MAX_SIGNATURE, b"\x00")) == "trailing-bytes"
    assert malformed(Signature.parse, honest.ljust(MAX_SIGNATURE + 1, b"\x00")) == "malformed-signature"


def test_a_quote_has_at_most_16_selections_and_a_digest_of_64_bytes() -> None:
    assert len(Attest.parse(attest(NONCE, [selection([4])] * 16, bytes(64))).selections) == 16
    assert malformed(Attest.parse, attest(NONCE, [selection([4])] * 17, bytes(32))) == "malformed-quote"
    assert malformed(Attest.parse, attest(NONCE, [selection([4])], bytes(65))) == "malformed-quote"


@pytest.mark.parametrize(
    "selections",
    [
        [],
        [selection([])],
        [selection([4], "sha1")],
        [selection([4]), selection([4], "sha384")],
        [selection([4]), selection([4])],
    ],
)
def test_a_quote_is_of_some_registers_of_one_bank_that_is_read(selections: list[tuple[int, bytes]]) -> None:
    """C-6: and refused for that, before its values are looked at."""
    values = {4: registers_of()[4]}
    pcrs = {} if selections in ([], [selection([])]) else {"4": values[4].hex()}
    error = refusal(OURS.evidence(NONCE, selections=selections, registers=values, pcrs=pcrs))
    if selections == [selection([4], "sha1")]:
        assert Attest.parse(attest(NONCE, selections, b"")).bank == ""
    assert error is not None
    assert error.code == "pcr-selection"
    assert error.steps[-1].checks[-1].name == "quoted registers"


def test_the_report_names_the_signature_and_the_key() -> None:
    walk = Walk()
    appraise(OURS.evidence(NONCE), OURS.endorsements(), OURS.tpm_policy(), now=NOON, walk=walk)
    (step,) = (one for one in walk.steps if one.number == 7)
    assert step.detail == "ECDSA with sha256"
    assert any("elliptic curve secp256r1" in str(check.found) for check in step.checks)
    assert words_of(rsa_key("any").public_key()) == "RSA-2048"


# --- the evidence around it, and the key ---


def test_evidence_is_read_up_to_a_size() -> None:
    """C-18."""
    honest = OURS.evidence(NONCE)
    assert code_of(honest.ljust(MAX_EVIDENCE)) == "accepted"
    assert code_of(honest.ljust(MAX_EVIDENCE + 1)) == "malformed-quote"


def test_a_key_of_another_kind_or_in_another_spelling_is_no_key() -> None:
    """C-17: the fingerprint that is pinned is that of the one spelling."""
    honest = spki(OURS.key)
    assert read_key(honest) == OURS.key.public_key()
    point = OURS.key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    stranger = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    for other in (
        compressed,
        honest + b"\x00",
        honest[:-1],
        honest.ljust(2000, b"\x00"),
        stranger.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        assert malformed(read_key, other) == "malformed-quote"
        assert code_of(OURS.evidence(NONCE, ak_public=other)) == "malformed-quote"


def test_a_compressed_key_is_another_spelling_of_a_key_that_would_be_read() -> None:
    """The case above is refused for its spelling, and not because nobody can read it."""
    point = OURS.key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    assert ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point) == OURS.key.public_key()


def rsa_area(bits: int, modulus: bytes) -> bytes:
    """A public area with these two, whether or not they fit."""
    head = area(rsa_key("any"))[: -(2 + 4 + 2 + 256)]
    return head + struct.pack(">HI", bits, 0) + sized(modulus)


def ecc_area(curve: int, kdf: int, x: bytes, y: bytes) -> bytes:
    head = area(ec_key("any"))[: -(2 + 2 + 2 * (2 + 32))]
    return head + struct.pack(">HH", curve, kdf) + sized(x) + sized(y)


def test_a_public_area_holds_a_key_that_fits_what_it_says() -> None:
    """C-17: sizes, curve, point; and no key that is for something else."""
    modulus = rsa_key("any").public_key().public_numbers().n.to_bytes(256)
    point = ec_key("any").public_key().public_numbers()
    x, y = point.x.to_bytes(32), point.y.to_bytes(32)
    assert Area.parse(rsa_area(2048, modulus)).key == rsa_key("any").public_key()
    assert Area.parse(ecc_area(3, 0x10, x, y)).key == ec_key("any").public_key()
    for wrong, why in (
        (rsa_area(2056, modulus), "256 bytes, and says 2056"),
        (rsa_area(2048, modulus[1:]), "255 bytes, and says 2048"),
        (ecc_area(5, 0x10, x, y), "curve that is not read: 0x0005"),
        (ecc_area(3, 0x11, x, y), "derives others"),
        (ecc_area(3, 0x10, b"\x00" + x, y), "33 bytes where at most 32"),
        (ecc_area(3, 0x10, x, x), "holds no key"),
        (area(ec_key("any"), symmetric=6), "key which encrypts"),
        (area(ec_key("any"), kind=0x0008), "kind that is not read: 0x0008"),
    ):
        with pytest.raises(MalformedEvidence, match=why) as caught:
            Area.parse(wrong)
        assert caught.value.code == "malformed-quote"
        assert code_of(OURS.evidence(NONCE, ak_area=wrong)) == "malformed-quote"


# --- certificates ---


def test_a_chain_is_read_up_to_a_size_and_a_length() -> None:
    """C-18."""
    small = b"\x30\x00"
    assert len(split(small * LONGEST)) == LONGEST
    assert malformed(split, small * (LONGEST + 1)) == "malformed-certificate"
    large = b"\x30\x82" + (MAX_CHAIN - 4).to_bytes(2) + bytes(MAX_CHAIN - 4)
    assert split(large) == [large]
    larger = b"\x30\x82" + (MAX_CHAIN - 3).to_bytes(2) + bytes(MAX_CHAIN - 3)
    assert malformed(split, larger) == "malformed-certificate"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (b"\xa0\x00", "accepted"),  # versions and ages of the host's parts
        (b"\xa0\x03\x02\x01\x01", "accepted"),
        (b"\xa1\x00", "malformed-certificate"),
        (b"\xa0\x00\x05\x00", "malformed-certificate"),
    ],
)
def test_what_a_certificate_says_of_its_machine_ends_where_google_ends_it(more: bytes, code: str) -> None:
    """C-17."""
    info = instance_info()
    longer = bytes((0x30, info[1] + len(more))) + info[2:] + more
    chain = b"".join((OURS.certificate("leaf", info=longer), *OURS.chain()[1:]))
    assert code_of(ak_chain=chain) == code


def test_the_report_tells_whose_machine_it_is_as_far_as_anybody_says_so() -> None:
    """C-51: a pinned key is one machine's; a certificate alone is any machine's of that cloud."""

    def steps(**wish: Any) -> list[tuple[str, str]]:
        walk = Walk()
        appraise(OURS.evidence(NONCE), OURS.endorsements(), OURS.tpm_policy(**wish), now=NOON, walk=walk)
        return [(step.outcome, step.detail) for step in walk.steps if step.number in (6, 13)]

    (sixth, last) = steps()
    assert sixth[0] == "passed"
    assert "our-vm" in sixth[1]
    assert last[0] == "not asked"
    (sixth, last) = steps(ak_keys={OURS.pin})
    assert sixth[0] == "not applicable"
    assert last == ("passed", "the machine of a pinned key")
    (sixth, last) = steps(projects={"our-project"})
    assert (sixth[0], last[0]) == ("passed", "passed")
    assert "our-vm" in last[1]


def test_a_policy_says_in_words_by_what_it_knows_the_key() -> None:
    """C-51: and leaves nothing out that is left open."""
    by_chain, by_pin = OURS.tpm_policy().in_words(), OURS.tpm_policy(ak_keys={OURS.pin}).in_words()
    both = OURS.tpm_policy(ak_keys={OURS.pin}, zones={"nowhere1-a"}).in_words()
    pinned = "The quote is signed by one of 1 pinned keys."
    certified = f"The key of the quote is certified under fake TPM vendor, {OURS.name}."
    not_revoked = "Whether the certificate of the key was revoked: no list of them is published."
    anybody = "Whose machine it is: any of this cloud with the same boot passes."
    told = {
        name: (pinned in words.checks, certified in words.checks)
        for name, words in (("chain", by_chain), ("pin", by_pin), ("both", both))
    }
    assert told == {"chain": (False, True), "pin": (True, False), "both": (True, True)}
    assert [not_revoked in words.unchecked for words in (by_chain, by_pin)] == [True, False]
    assert [anybody in words.unchecked for words in (by_chain, by_pin, both)] == [True, False, False]
    assert "The machine's zone is nowhere1-a." in both.checks
    of_zone = OURS.tpm_policy(zones={"nowhere1-a"}).in_words()
    assert anybody not in of_zone.unchecked


# --- the boot ---


def test_a_boot_says_in_words_what_it_asks_of_the_log() -> None:
    rules = (
        EventRule(register=8, only={OTHER}),
        EventRule(register=7, variable="db", sha256_of_data={OTHER}),
    )
    words = MeasuredBoot(pcrs={4: {OTHER}}, events=rules).in_words()
    for sentence in (
        "Nothing was measured into PCR8 but 1 named digests.",
        "The firmware's variable db in PCR7 is a named one.",
        "The log of the boot adds up to the quoted registers of the firmware.",
        "Secure Boot is on.",
    ):
        assert sentence in words.checks
    assert "Whether Secure Boot is on." not in words.unchecked
    assert [str(rule) for rule in rules] == ["PCR8: nothing else was measured", "PCR7: variable db"]


def test_rules_lie_within_their_bounds() -> None:
    """C-22."""
    assert EventRule(register=15, only={OTHER}).register == 15
    assert EventRule(register=7, variable="v" * 64, sha256_of_data={OTHER}).variable == "v" * 64
    with pytest.raises(InvalidPolicy):
        EventRule(register=7, variable="v" * 65, sha256_of_data={OTHER})
    several = [
        EventRule(register=7, variable=f"v{number}", sha256_of_data={OTHER})
        for number in range(MAX_RULES + 1)
    ]
    assert len(MeasuredBoot(events=several[:-1]).events) == MAX_RULES
    for wrong in (several, 5, {"register": 8}, None):
        with pytest.raises(InvalidPolicy, match="a list of at most"):
            MeasuredBoot(pcrs={4: {OTHER}}, events=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidPolicy, match=r"5\.0 is no register"):
        MeasuredBoot(pcrs={4: {OTHER}, 5.0: {OTHER}})  # type: ignore[dict-item]


def test_a_rule_is_not_changed_by_whoever_changes_what_it_was_made_from() -> None:
    digests = {OTHER}
    rules = (
        EventRule(register=8, only=digests),
        EventRule(register=7, variable="db", sha256_of_data=digests),
    )
    digests.add(bytes(32))
    assert (rules[0].only, rules[1].sha256_of_data) == ({OTHER}, {OTHER})


@pytest.mark.parametrize("asked", ["log", "nothing but the registers"])
def test_registers_of_the_firmware_add_up_whether_or_not_a_rule_is_about_them(asked: str) -> None:
    """C-6: a log that was made for another boot is refused, in PCR 2 as in PCR 8."""
    rules = () if asked != "log" else (EventRule(register=8, only={one.digest("sha256") for one in BOOT}),)
    policy = OURS.tpm_policy(boot=OURS.measured_boot(events=rules))
    assert code_of(policy=policy) == "accepted"
    for register, code in ((2, "event-log-mismatch"), (8, "event-log-mismatch" if rules else "accepted")):
        more = Measurement(register, 0xD, b"something else")
        assert code_of(policy=policy, event_log=log_of((*BOOT, more))) == code


def test_the_report_tells_of_every_register_that_was_quoted() -> None:
    """C-51: also of those that the policy does not ask for."""
    walk = Walk()
    appraise(OURS.evidence(NONCE), OURS.endorsements(), OURS.tpm_policy(), now=NOON, walk=walk)
    (step,) = (one for one in walk.steps if one.number == 12)
    told = {check.name: check.outcome for check in step.checks}
    assert {name: told[name] for name in (f"PCR{register}" for register in registers_of())} == {
        f"PCR{register}": "passed" if register == 4 else "not asked" for register in registers_of()
    }


def test_only_the_firmware_s_registers_have_one_separator() -> None:
    """A boot loader may measure four zeros as often as it wants."""
    happened = (*BOOT, separator(8), separator(8))
    tpm = FakeTpm(boot=happened)
    only = {one.digest("sha256") for one in happened if one.register == 8}
    policy = tpm.tpm_policy(boot=tpm.measured_boot(events=(EventRule(register=8, only=only),)))
    appraise(tpm.evidence(NONCE), tpm.endorsements(), policy, now=NOON)


# --- the log ---


def broken(data: bytes) -> str:
    return malformed(EventLog.parse, data)


def test_a_header_is_whole_and_of_a_register_and_has_no_digest() -> None:
    """C-17: any bytes at all end in the same typed error."""
    whole = header()
    short = struct.pack("<II20sI", 0, NO_ACTION, bytes(20), 16) + b"Spec ID Event03\x00"
    for wrong in (
        short,
        whole[:28] + (len(whole) - 31).to_bytes(4, "little") + whole[32:],
        struct.pack("<I", 24) + whole[4:],
        whole[:8] + b"\x01" + whole[9:],
        whole[:32],
        whole[:31],
        whole[:32] + whole[32:60],
        header(signature=b"spec ID Event03\x00"),
    ):
        assert broken(wrong) == "malformed-event-log"
    assert EventLog.parse(struct.pack("<I", 23) + whole[4:]).events == ()


def test_a_log_may_be_as_long_as_its_bound() -> None:
    """C-18."""
    assert EventLog.parse(log_of().ljust(MAX_LOG, b"\x00")).events == EventLog.parse(log_of()).events
    assert broken(log_of().ljust(MAX_LOG + 1, b"\x00")) == "malformed-event-log"


def test_an_event_has_as_many_digests_as_the_header_says() -> None:
    """C-17: and says so."""
    event = separator(0).encode(("sha1", "sha256", "sha384"))
    assert event[8:12] == b"\x03\x00\x00\x00"
    assert len(EventLog.parse(header() + event).events) == 1
    for count in (0, 2, 4):
        assert (
            broken(header() + event[:8] + count.to_bytes(4, "little") + event[12:]) == "malformed-event-log"
        )


def test_a_variable_may_have_a_long_name_or_nothing_at_all() -> None:
    assert Variable.parse(variable("", b"")) == Variable(variable("", b"")[:16], "", b"")
    assert Variable.parse(variable("v" * 128, b"")).name == "v" * 128


def test_a_locality_counts_only_before_anything_was_measured_into_register_0() -> None:
    told = Measurement(0, NO_ACTION, b"StartupLocality\x00\x03")
    zero = Measurement(0, NO_ACTION, b"StartupLocality\x00\x00")
    assert EventLog.parse(log_of((told, secure_boot()))).startup_locality == 3
    for wrong in ((zero, told), (told, zero), (zero, zero), (separator(0), separator(1), told)):
        assert broken(log_of(wrong)) == "malformed-event-log"


def test_evidence_is_one_object_of_version_1() -> None:
    told = strict_json.parse(OURS.evidence(NONCE))
    for version in (0, 2):
        assert code_of(strict_json.dump({**told, "version": version})) == "malformed-quote"
