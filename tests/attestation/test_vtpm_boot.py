"""What a policy may ask of a measured boot and of its machine, and what cannot be a policy at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation.errors import AttestationError, InvalidPolicy, MeasurementMismatch
from blindbox_attestation.policy_form import read_fields
from blindbox_attestation.strict_json import JsonRefused
from blindbox_attestation.vtpm import EventRule, MeasuredBoot, TpmPolicy, appraise, policy_json
from tests.kit import NOON
from tests.kit.tpm import (
    BOOT,
    DB,
    PROGRAM,
    FakeTpm,
    Measurement,
    header,
    log_of,
    registers_of,
    secure_boot,
    separator,
    variable,
)
from tests.kit.verdict import verdict

NONCE = bytes(range(48))
OURS = FakeTpm()
HONEST = registers_of()
OTHER = bytes(range(32))
OFF = (BOOT[0], secure_boot(b"\x00"), *BOOT[2:])


def boot(**changes: Any) -> MeasuredBoot:
    return OURS.measured_boot(**changes)


def code_of(
    asked: MeasuredBoot | None = None,
    happened: Sequence[Measurement] = BOOT,
    told: Sequence[Measurement] | None = None,
    *,
    log: bytes | None = None,
    **policy: Any,
) -> str:
    """The code for a machine where `happened` was measured, and whose log tells `told`, or "accepted"."""
    tpm = FakeTpm(boot=happened)
    asked = asked or boot(pcrs={4: {registers_of(happened)[4]}})
    endorsements = tpm.endorsements(
        event_log=log_of(happened if told is None else told) if log is None else log
    )
    return verdict(
        lambda: appraise(tpm.evidence(NONCE), endorsements, tpm.tpm_policy(boot=asked, **policy), now=NOON)
    )


def rule(**what: Any) -> MeasuredBoot:
    return boot(events=[EventRule(**what)])


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_another_program_is_refused_with_what_was_found() -> None:
    """C-6."""
    changed = (*BOOT[:-3], replace(PROGRAM, digest_of=b"another program"), *BOOT[-2:])
    tpm = FakeTpm(boot=changed)
    with pytest.raises(MeasurementMismatch, match=registers_of(changed)[4].hex()) as caught:
        appraise(tpm.evidence(NONCE), tpm.endorsements(), tpm.tpm_policy(boot=boot()), now=NOON)
    assert caught.value.code == "pcr-mismatch"
    assert caught.value.steps[-1].number == 12


@pytest.mark.parametrize("register", [0, 4, 9, 14])
def test_each_named_register_must_hold_a_named_value(register: int) -> None:
    """C-6: and one that is not named may hold anything."""
    assert code_of(boot(pcrs={register: {HONEST[register], OTHER}})) == "accepted"
    assert code_of(boot(pcrs={4: {HONEST[4]}, register: {OTHER}})) == "pcr-mismatch"


def test_a_register_that_is_relied_on_must_be_in_the_quote() -> None:
    assert code_of(boot(pcrs={17: {OTHER}})) == "pcr-selection"
    assert code_of(rule(register=10, only={OTHER})) == "pcr-selection"


def test_secure_boot_must_be_on_unless_the_policy_says_that_it_does_not_ask() -> None:
    assert code_of(happened=OFF) == "secure-boot-off"
    off = boot(secure_boot="unchecked")
    assert code_of(off, OFF) == "accepted"
    assert code_of(boot(secure_boot="unchecked", event_log="unused"), OFF, log=b"not looked at") == "accepted"


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (BOOT, "event-log-mismatch"),  # the log of another boot
        # one digest, other words: trustee and safeboot both believed them once
        ((OFF[0], replace(secure_boot(), digest_of=OFF[1].data), *OFF[2:]), "secure-boot-off"),
        ((OFF[0], replace(OFF[1], kind=0xD), *OFF[2:]), "secure-boot-off"),
    ],
)
def test_a_log_cannot_talk_secure_boot_on(told: Sequence[Measurement], code: str) -> None:
    """C-15: what is not under a digest is not believed."""
    assert code_of(happened=OFF, told=told) == code


@pytest.mark.parametrize(
    "happened",
    [
        (*OFF, secure_boot()),  # extended by a running system
        (OFF[0], OFF[1], secure_boot(), *OFF[2:]),  # twice
        (BOOT[0], Measurement(7, 0x80000001, variable("SecureBoot", b"\x01", vendor=bytes(16))), *BOOT[2:]),
        (BOOT[0], Measurement(7, 0x80000001, variable("SecureBoop", b"\x01")), *BOOT[2:]),
        (BOOT[0], secure_boot(b"\x01\x00"), *BOOT[2:]),
        (BOOT[0], BOOT[1]),  # and nothing ends it
        BOOT[8:],
    ],
)
def test_secure_boot_is_what_the_firmware_measured_first(happened: Sequence[Measurement]) -> None:
    assert code_of(boot(pcrs={9: {bytes(32)}}), happened) == "secure-boot-off"


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"data": b"nothing to see here", "digest_of": secure_boot(b"\x00").data},
        {"kind": 0x80000007},
    ],
)
def test_secure_boot_that_the_setup_turned_off_again_is_off(told: dict[str, Any]) -> None:
    """C-7, C-15: firmware measures a changed variable again, and a log may give that another name."""
    off = secure_boot(b"\x00")
    happened = (*BOOT[:4], off, *BOOT[4:])
    assert code_of(happened=happened, told=(*BOOT[:4], replace(off, **told), *BOOT[4:])) == "secure-boot-off"


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"data": b"nothing to see here", "digest_of": variable("db", b"another vendor's")},
        {"kind": 0x80000007},
    ],
)
def test_a_log_cannot_hide_that_a_variable_was_measured_again(told: dict[str, Any]) -> None:
    """C-15: neither the type nor the data of an event is under its digest."""
    again = Measurement(7, 0x80000001, variable("db", b"another vendor's"))
    happened = (*BOOT[:4], again, *BOOT[4:])
    asked = rule(register=7, variable="db", sha256_of_data={sha256(b"the vendor's certificate")})
    asked = replace(asked, secure_boot="unchecked")
    assert code_of(asked) == "accepted"
    assert code_of(asked, happened, (*BOOT[:4], replace(again, **told), *BOOT[4:])) == "event-mismatch"


def test_what_is_measured_beside_the_variables_is_not_minded_if_it_is_known_by_its_data() -> None:
    happened = (*BOOT[:4], Measurement(7, 0x80000007, b"DMA Protection Disabled"), *BOOT[4:])
    asked = rule(register=7, variable="db", sha256_of_data={sha256(b"the vendor's certificate")})
    assert code_of(asked, happened) == "accepted"


def test_the_log_must_be_there_if_the_policy_reads_it() -> None:
    endorsements = OURS.endorsements()
    del endorsements["event_log"]
    for asked in (boot(), boot(secure_boot="unchecked")):
        with pytest.raises(AttestationError) as caught:
            appraise(OURS.evidence(NONCE), endorsements, OURS.tpm_policy(boot=asked), now=NOON)
        assert caught.value.code == "event-log-missing"


def test_a_log_that_cannot_be_read_is_refused() -> None:
    assert code_of(log=b"") == "malformed-event-log"
    assert code_of(log=log_of()[:-1]) == "malformed-event-log"
    assert code_of(log=log_of(banks=("sha1", "sha384"))) == "malformed-event-log"
    broken = Measurement(7, 0x80000001, b"no variable")
    assert code_of(boot(pcrs={9: {bytes(32)}}), (broken, separator(7))) == "secure-boot-off"


@pytest.mark.parametrize("register", range(8))
def test_the_log_must_add_up_in_every_register_of_the_firmware(register: int) -> None:
    """C-15."""
    told = (*BOOT, Measurement(register, 5, b"not measured"))
    assert code_of(boot(pcrs={9: {bytes(32)}}), told=told) == "event-log-mismatch"


def test_what_a_running_system_measures_need_not_be_in_the_log() -> None:
    assert code_of(happened=(*BOOT, Measurement(15, 5, b"machine")), told=BOOT) == "accepted"
    assert code_of(log=header()) == "event-log-mismatch"


def test_a_register_has_one_separator() -> None:
    twice = (*BOOT, separator(3))
    assert code_of(happened=twice) == "event-mismatch"
    assert code_of(happened=(*OFF, secure_boot(), separator(7))) == "event-mismatch"
    hidden = (*BOOT, Measurement(3, 0xD, b"no separator at all", bytes(4)))
    assert code_of(happened=hidden) == "event-mismatch"


def test_nothing_else_may_have_been_measured_into_a_register() -> None:
    """The kernel's command line, as GRUB measures it: the words before it are not under the digest."""
    line = sha256(b"/vmlinuz ro")
    assert code_of(rule(register=8, only={line})) == "accepted"
    assert code_of(rule(register=8, only={line, OTHER})) == "accepted"
    assert code_of(rule(register=8, only={OTHER})) == "event-mismatch"
    assert code_of(rule(register=9, only={OTHER})) == "event-mismatch"  # nothing at all was measured
    more = (*BOOT, Measurement(8, 0xD, b"grub_cmd: insmod evil\x00", b"insmod evil"))
    assert code_of(rule(register=8, only={line}), more) == "event-mismatch"
    renamed = (*BOOT[:-2], replace(BOOT[-2], data=b"words"), BOOT[-1])
    assert code_of(rule(register=8, only={line}), told=renamed) == "accepted"
    assert code_of(rule(register=8, only={line}), told=(*BOOT[:-2], BOOT[-1])) == "event-log-mismatch"


def test_a_variable_of_the_firmware_may_be_asked_for() -> None:
    value = sha256(b"the vendor's certificate")
    asked = rule(register=7, variable="db", sha256_of_data={value, OTHER})
    assert code_of(asked) == "accepted"
    assert code_of(rule(register=7, variable="db", sha256_of_data={OTHER})) == "event-mismatch"
    assert code_of(rule(register=7, variable="dbx", sha256_of_data={value})) == "event-mismatch"
    assert code_of(rule(register=1, variable="db", sha256_of_data={value})) == "event-mismatch"
    twice = (*BOOT[:3], DB, *BOOT[3:])
    assert code_of(asked, twice) == "event-mismatch"
    late = (*BOOT[:3], *BOOT[4:], DB)
    assert code_of(asked, late) == "event-mismatch"


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"projects": {"our-project", "another"}}, "accepted"),
        ({"projects": {"another"}}, "instance-not-listed"),
        ({"zones": {"nowhere1-a"}}, "accepted"),
        ({"zones": {"nowhere1-b"}}, "instance-not-listed"),
        ({"instances": {8033817256003918212}}, "accepted"),
        ({"instances": {1}}, "instance-not-listed"),
        ({"projects": {"our-project"}, "instances": {1}}, "instance-not-listed"),
        ({"projects": {"our-project"}, "ak_keys": {OURS.pin}}, "accepted"),
        ({"projects": {"another"}, "ak_keys": {OURS.pin}}, "instance-not-listed"),
    ],
)
def test_a_policy_may_name_the_machine(wish: dict[str, Any], code: str) -> None:
    """C-51: the same boot in another project is another machine."""
    assert code_of(**wish) == code


BOOTS: list[dict[str, Any]] = [
    {"pcrs": {}},
    {"pcrs": {}, "events": []},
    {"pcrs": {4: set()}},
    {"pcrs": {4: {bytes(20)}}},
    {"pcrs": {4: {bytes(48)}}},
    {"pcrs": {4: {bytes(32)}}, "bank": "sha384"},
    {"pcrs": {4: {bytes(20)}}, "bank": "sha1"},
    *({"pcrs": {register: {bytes(32)}}} for register in (16, 20, 21, 22, 23)),
    {"pcrs": {24: {bytes(32)}}},
    {"pcrs": {True: {bytes(32)}}},
    {"pcrs": [4]},
    {"secure_boot": "off"},
    {"event_log": "maybe"},
    {"event_log": "unused"},
    {"event_log": "unused", "secure_boot": "unchecked", "events": [EventRule(register=8, only={OTHER})]},
    {"events": [EventRule(register=8, only={bytes(48)})]},
    {"events": [EventRule(register=8, only={OTHER}), EventRule(register=8, only={bytes(32)})]},
    {"events": [{"register": 8}]},
    {"events": "none"},
]


@pytest.mark.parametrize("changes", BOOTS)
def test_a_boot_that_could_not_mean_what_it_says_is_no_policy(changes: dict[str, Any]) -> None:
    """C-22: also one that relies on a register which any program can reset."""
    with pytest.raises(InvalidPolicy):
        boot(**changes)


@pytest.mark.parametrize(
    "what",
    [
        {"register": 8},
        {"register": 16, "only": {OTHER}},
        {"register": 8, "only": set()},
        {"register": 8, "only": {OTHER, bytes(48)}},
        {"register": 8, "only": {"text"}},
        {"register": 7, "variable": "db"},
        {"register": 7, "sha256_of_data": {OTHER}},
        {"register": 7, "variable": "db", "sha256_of_data": {bytes(48)}},
        {"register": 7, "variable": "", "sha256_of_data": {OTHER}},
        {"register": 7, "variable": "db", "sha256_of_data": {OTHER}, "only": {OTHER}},
    ],
)
def test_a_rule_is_of_one_kind_and_names_something(what: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        EventRule(**what)


@pytest.mark.parametrize(
    "changes",
    [
        {"boot": {"pcrs": {}}},
        {"ak_keys": set()},
        {"ak_keys": {bytes(48)}},
        {"projects": set()},
        {"zones": {""}},
        {"instances": {-1}},
        {"instances": {True}},
        {"instances": set()},
        {"roots": {}},
        {"roots": {b"short": "x"}},
    ],
)
def test_a_policy_that_names_nobody_is_no_policy(changes: dict[str, Any]) -> None:
    """C-22."""
    with pytest.raises(InvalidPolicy):
        OURS.tpm_policy(**changes)


FULL = TpmPolicy(
    boot=boot(
        events=(
            EventRule(register=8, only={OTHER}),
            EventRule(register=7, variable="db", sha256_of_data={OTHER}),
        )
    ),
    ak_keys={OURS.pin},
    projects={"our-project"},
    zones={"nowhere1-a"},
    instances={1, 2},
)


@pytest.mark.parametrize("policy", [FULL, TpmPolicy(boot=boot()), TpmPolicy(boot=FULL.boot)])
def test_a_policy_survives_its_json(policy: TpmPolicy) -> None:
    assert policy_json.read(policy_json.write(policy), "tpm") == policy
    assert hash(policy) == hash(policy_json.read(policy_json.write(policy), "tpm"))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"boot": {"pcrs": {"4": ["00" * 32]}}, "roots": {}},
        {"boot": {"pcrs": {"4": ["00" * 32], "16": ["00" * 32]}}},
        {"boot": {"pcrs": {"4": ["00" * 32, "00" * 32]}}},
        {"boot": {"pcrs": {"4": ["00" * 20]}}},
        {"boot": {"pcrs": {"4": ["00" * 32]}, "secureboot": "required"}},
        {"boot": {"pcrs": {"4": ["00" * 32]}, "events": [{"register": 8, "never": []}]}},
        {"boot": {"pcrs": {"4": ["00" * 32]}}, "instances": [1, 1]},
    ],
)
def test_json_with_an_unknown_or_doubled_wish_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(JsonRefused):
        read_fields(wrong, "tpm", policy_json.FORMS)


def test_a_policy_says_in_words_what_it_leaves_open() -> None:
    open_words = TpmPolicy(boot=boot(secure_boot="unchecked", event_log="unused")).in_words()
    assert any("any of this cloud" in one for one in open_words.unchecked)
    assert any("Secure Boot" in one for one in open_words.unchecked)
    assert any("event" in one or "log" in one for one in open_words.unchecked)
    assert not any("PCR4" in one for one in open_words.unchecked)
    later = TpmPolicy(boot=boot(pcrs={11: {OTHER}})).in_words()
    assert any("Which program the firmware started (PCR4)" in one for one in later.unchecked)
    words = FULL.in_words()
    assert any("our-project" in one for one in words.checks)
    assert any("variable db" in one for one in words.checks)
    assert any("Secure Boot is on" in one for one in words.checks)
    assert any("host" in one for one in words.unchecked)
