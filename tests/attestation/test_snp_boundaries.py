"""Edges of an SEV-SNP judgement: the last value that passes, and the first that does not."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from blindbox_attestation.errors import AttestationError, InvalidPolicy, MalformedEvidence
from blindbox_attestation.roots import AMD_ROOTS
from blindbox_attestation.snp import MilanWarning, SnpPolicy, Tcb, appraise, policy_json
from blindbox_attestation.snp.minimum_tcb import floors
from blindbox_attestation.snp.policy import HOST_DATA_SIZE
from blindbox_attestation.snp.report import Report
from blindbox_attestation.strict_json import JsonRefused
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.amd import CLOUD, MEASUREMENT, FakeAmd, ia5, small_integer
from tests.kit.names import shown
from tests.kit.verdict import verdict

AMD = FakeAmd("Genoa")
VLEK = FakeAmd("Genoa", signing_key="vlek")
SECOND = timedelta(seconds=1)
FLOOR = Tcb(bootloader=0, snp=0, microcode=0)
LEAST: dict[str, Any] = {"measurements": {MEASUREMENT}, "minimum_tcb": {"Genoa": FLOOR}}


def judged(amd: FakeAmd = AMD, policy: SnpPolicy | None = None, *, now: Any = NOON, **report: Any) -> Walk:
    walk = Walk()
    sent = report.pop("endorsements", None) or amd.endorsements()
    appraise(amd.report(**report), sent, policy or amd.snp_policy(), now=now, walk=walk)
    return walk


def code(amd: FakeAmd = AMD, policy: SnpPolicy | None = None, **changes: Any) -> str:
    return verdict(lambda: judged(amd, policy, **changes))


@pytest.mark.parametrize("what", ["ask", "vcek"])
def test_a_certificate_counts_from_its_first_second_to_its_last(what: str) -> None:
    """C-24: both ends belong to it."""
    first, last = NOON, NOON + timedelta(seconds=1000)
    sent = AMD.endorsements(**{what: AMD.certificate(what, not_before=first, not_after=last)})
    for now in (first, last):
        assert code(now=now, endorsements=sent) == "accepted"
    for now in (first - SECOND, last + SECOND):
        assert code(now=now, endorsements=sent) == "certificate-not-valid-now"


def test_a_revocation_list_counts_from_its_first_second_to_its_last() -> None:
    """C-9: both ends belong to it."""
    first, last = NOON, NOON + timedelta(seconds=1000)
    sent = AMD.endorsements(crl=AMD.crl(this_update=first, next_update=last))
    for now in (first, last):
        assert code(now=now, endorsements=sent) == "accepted"
    for now in (first - SECOND, last + SECOND):
        assert code(now=now, endorsements=sent) == "crl-not-valid-now"


def test_a_root_that_may_not_sign_lists_has_none() -> None:
    """C-9: a list under its key is still no list of its."""
    root = AMD.certificate("ark", crl_sign=False)
    policy = AMD.snp_policy(roots={hashlib.sha256(root).digest(): "Genoa"})
    assert code(policy=policy, endorsements=AMD.endorsements(ark=root)) == "crl-bad-signature"
    unasked = replace(policy, revocation="unchecked")
    assert code(policy=unasked, endorsements=AMD.endorsements(ark=root)) == "accepted"


def with_extension(amd: FakeAmd, **extensions: bytes | None) -> dict[str, bytes]:
    named = {name.replace("_", "."): value for name, value in extensions.items()}
    return amd.endorsements(**{amd.signing_key: amd.certificate(amd.signing_key, extensions=named)})


def test_a_number_in_a_certificate_is_0_to_255() -> None:
    top = FakeAmd("Genoa")
    top.tcb = replace(top.tcb, microcode=255)
    sent = top.endorsements(vcek=top.certificate("vcek"))
    assert code(top, endorsements=sent) == "accepted"
    for wrong in (b"\x02\x02\x01\x00", b"\x02\x01\xff", small_integer(7) + b"\x00"):
        assert code(endorsements=with_extension(AMD, **{"3_8": wrong})) == "malformed-extension"


def test_a_name_in_a_certificate_is_followed_by_nothing() -> None:
    for wrong in (ia5(CLOUD) + b"\x00", ia5(CLOUD)[:-1], b"\x0c" + ia5(CLOUD)[1:], b"\x16\x01\xff"):
        assert code(VLEK, endorsements=with_extension(VLEK, **{"5": wrong})) == "malformed-extension"


def test_what_the_chip_did_not_sign_is_told_as_no() -> None:
    with pytest.raises(AttestationError) as refused:
        judged(key=FakeAmd(name="Somebody").chip_key)
    check = refused.value.steps[-1].checks[-1]
    assert (check.found, check.wanted, check.outcome) == ("no", "yes", "failed")


@pytest.mark.parametrize(("version", "family"), [(2, None), (3, "Genoa"), (4, "Genoa"), (5, "Genoa")])
def test_a_report_tells_its_processor_from_version_3_on(version: int, family: str | None) -> None:
    changes: dict[str, Any] = {"version": version} | ({"cpuid": bytes(3)} if version == 2 else {})
    assert Report.parse(AMD.report(**changes)).family == family
    claims = appraise(AMD.report(**changes), AMD.endorsements(), AMD.snp_policy(), now=NOON)
    assert (claims.stepping is None) == (family is None)


@pytest.mark.parametrize("flags", [0x20, 0x40, 1 << 31])
def test_every_reserved_flag_is_refused(flags: int) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(AMD.report(flags=flags))
    assert refused.value.code == "reserved-bits"


def test_a_claim_is_carried_in_all_64_bytes() -> None:
    claims = appraise(AMD.report(b"\x07" * 32 + bytes(32)), AMD.endorsements(), AMD.snp_policy(), now=NOON)
    assert claims.carries(b"\x07" * 32) is True
    assert claims.carries(b"\x07" * 31) is False
    assert claims.carries(b"\x07" * 32 + bytes(32)) is True
    assert claims.carries(b"\x07" * 32 + bytes(33)) is False


def test_the_machine_that_was_named_is_told() -> None:
    named = AMD.snp_policy(chip_ids={AMD.chip_id}, host_data=b"\x09" * 32)
    told = judged(policy=named, host_data=b"\x09" * 32).steps[-1]
    assert told.detail == f"host data {'09' * 32}, chip {AMD.chip_id.hex()[:16]}…"
    assert code(policy=named, host_data=b"\x09" * 32, chip_id=bytes(64)) == "chip-id-masked"


def test_the_cloud_that_was_named_is_told() -> None:
    given = {CLOUD}
    named = VLEK.snp_policy(csp_ids=given)
    given.clear()
    assert isinstance(named.csp_ids, frozenset)
    told = judged(VLEK, named).steps[-1]
    assert told.detail == f"cloud {CLOUD}"
    assert [check.found for check in told.checks if check.name == "cloud"] == [CLOUD]
    unasked = judged(AMD).steps[-1]
    assert [check.found for check in unasked.checks if check.name == "cloud"] == ["not told"]
    for amd in (VLEK, AMD):
        assert code(amd, amd.snp_policy(csp_ids={"Another Cloud"})) == "cloud-not-listed"


def test_the_steps_of_a_report_on_its_own_have_their_numbers() -> None:
    assert [step.number for step in judged().steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]


def test_parts_of_the_firmware_that_no_bulletin_speaks_of_have_no_floor() -> None:
    assert {floor.tee for floor in floors().values()} == {0}
    assert all(floor.fmc == 0 for name, floor in floors().items() if not name.startswith("Turin"))


# --- made in code ---


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("vmpl", 3),
        ("minimum_guest_svn", 0xFFFFFFFF),
        ("platform_info_required", 0x7FFFFFFFFFFFFFFF),
        ("platform_info_forbidden", 0x7FFFFFFFFFFFFFFF),
    ],
)
def test_numbers_of_a_policy_are_within_their_bounds(name: str, most: int) -> None:
    """C-22."""
    for good in (0, most):
        assert getattr(SnpPolicy(**LEAST, **{name: good}), name) == good
    for wrong in (-1, most + 1, True, "1", 1.0, None):
        with pytest.raises(InvalidPolicy, match=name):
            SnpPolicy(**LEAST, **{name: wrong})


@pytest.mark.parametrize(
    "wish",
    [
        {"measurements": {MEASUREMENT: 1}},
        {"measurements": MEASUREMENT},
        {"measurements": iter([MEASUREMENT])},
        {"measurements": ["x" * 48]},
        {"measurements": [MEASUREMENT, bytearray(48)]},
        {"measurements": [MEASUREMENT[1:]]},
        {"signing_keys": {"vcek": 1}},
        {"signing_keys": "vcek"},
        {"signing_keys": ()},
        {"signing_keys": ["vcek", "other"]},
        {"minimum_tcb": [("Genoa", FLOOR)]},
        {"minimum_tcb": {}},
        {"minimum_tcb": {"Genoa": (0, 0, 0)}},
        {"minimum_tcb": {b"Genoa": FLOOR}},
        {"chip_ids": {bytes(8)}},
        {"chip_ids": {bytes(64)}},
        {"host_data": bytes(HOST_DATA_SIZE + 1)},
        {"host_data": "x" * HOST_DATA_SIZE},
        {"roots": {}},
        {"roots": []},
        {"roots": list(AMD_ROOTS)},
        {"roots": {b"\x01" * 31: "Genoa"}},
        {"roots": {"x" * 32: "Genoa"}},
        {"roots": {b"\x01" * 32: "Rome"}},
        {"roots": {**AMD_ROOTS, b"\x01" * 33: "Genoa"}},
    ],
    ids=shown,
)
def test_a_field_that_means_nothing_is_an_error_when_the_policy_is_made(wish: dict[str, Any]) -> None:
    """C-22."""
    with pytest.raises(InvalidPolicy):
        SnpPolicy(**{**LEAST, **wish})


def test_an_error_says_what_it_was_given() -> None:
    with pytest.raises(InvalidPolicy, match="48 bytes, not 47 bytes"):
        SnpPolicy(**{**LEAST, "measurements": [MEASUREMENT[1:]]})
    with pytest.raises(InvalidPolicy, match="48 bytes, not a str"):
        SnpPolicy(**{**LEAST, "measurements": ["x" * 48]})


def test_roots_of_a_policy_stay_as_they_were_given() -> None:
    given = dict(AMD.roots)
    policy = SnpPolicy(**LEAST, roots=given)
    given.clear()
    assert policy.roots == AMD.roots
    assert policy == SnpPolicy(**LEAST, roots=AMD.roots)
    assert hash(policy) == hash(SnpPolicy(**LEAST, roots=AMD.roots))
    assert hash(policy) != hash(policy.with_host_data(b"\x01" * 32))


def test_the_warning_about_milan_points_at_its_writer() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Milan": FLOOR})
    assert [(one.category, one.filename) for one in heard] == [(MilanWarning, __file__)]


def test_a_part_of_the_firmware_is_0_to_255() -> None:
    for part in ("bootloader", "snp", "microcode", "tee", "fmc"):
        assert getattr(replace(FLOOR, **{part: 255}), part) == 255
        for wrong in (-1, 256, True, "1"):
            with pytest.raises(InvalidPolicy, match=part):
                replace(FLOOR, **{part: wrong})


# --- in a file ---


def test_floors_in_a_file_name_known_processors_and_every_part() -> None:
    """C-12: a part that is left out is not a part without a floor."""
    whole = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 255}
    read = policy_json.FORMS["minimum_tcb"].read
    assert read({"Genoa": whole}, "here") == {"Genoa": Tcb(bootloader=0, snp=0, microcode=255)}
    for name in ("genoa", "Rome", "", "Genoa/", "Genoa/zz/1"):
        with pytest.raises(JsonRefused, match="unknown key"):
            read({name: whole}, "here")
    for wrong in ({**whole, "snp": 256}, {**whole, "snp": -1}, {**whole, "fmc": 0}, {"snp": 0}, [], None):
        with pytest.raises(JsonRefused):
            read({"Genoa": wrong}, "here")
    for value in ([], None, "Genoa"):
        with pytest.raises(JsonRefused):
            read(value, "here")


def test_the_schema_of_a_floor_is_as_strict_as_its_reader() -> None:
    part = {"type": "integer", "minimum": 0, "maximum": 255}
    parts = {"bootloader", "tee", "snp", "microcode"}
    told = policy_json._floor_schema("Genoa")
    assert {**told, "required": sorted(told["required"])} == {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(parts),
        "properties": dict.fromkeys(parts, part),
    }


# --- in words ---


def test_every_wish_is_told_as_checked_or_as_unchecked() -> None:
    """C-46: whoever signs a policy off reads what it does not ask, too."""
    plain = SnpPolicy(**LEAST).in_words()
    asked = SnpPolicy(
        measurements={MEASUREMENT},
        minimum_tcb={"Genoa": replace(FLOOR, snp=7, microcode=9)},
        signing_keys={"vlek"},
        csp_ids={"a", "b"},
        chip_ids={AMD.chip_id},
        host_data=b"\x01" * 32,
        allow_smt=False,
        platform_info_required=1 << 5,
        id_key_digests={b"\x01" * 48},
        minimum_guest_svn=1,
        vmpl=2,
    ).in_words()
    assert (len(plain.trusts), len(plain.checks), len(plain.unchecked)) == (1, 4, 9)
    assert (len(asked.trusts), len(asked.checks), len(asked.unchecked)) == (2, 12, 1)
    assert "Any firmware of a Genoa passes." in plain.unchecked
    assert "A Genoa has at least snp 7, microcode 9." in asked.checks
    assert "AMD has not revoked a certificate, by a list that is current." in plain.checks
    assert any("StackWarp" in one for one in plain.unchecked)
    assert any("in somebody else's house" in one for one in plain.unchecked)
    assert any("Which cloud runs" in one for one in plain.unchecked)
    assert plain.unchecked[-1] == asked.unchecked[-1]
    unrevoked = SnpPolicy(**LEAST, revocation="unchecked").in_words()
    assert (len(unrevoked.checks), len(unrevoked.unchecked)) == (3, 10)
    author = SnpPolicy(**LEAST, author_key_digests={b"\x01" * 48}).in_words()
    assert "The ID block is signed by a key that is named." in author.checks
    keyed = SnpPolicy(**LEAST, signing_keys={"vlek"}).in_words()
    assert "Which cloud holds such a key is not asked." in keyed.unchecked
    other_bit = SnpPolicy(**LEAST, platform_info_required=1).in_words()
    assert len(other_bit.checks) == len(plain.checks)


@pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")
def test_milan_is_told_among_those_who_are_trusted() -> None:
    told = SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Milan": FLOOR, "Genoa": FLOOR}).in_words()
    assert [one for one in told.trusts if "Milan" in one]
    assert told.unchecked[:2] == ("Any firmware of a Genoa passes.", "Any firmware of a Milan passes.")
