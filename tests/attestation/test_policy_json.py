"""Policies: in JSON and back, told apart by their digest, and never meaning less than they say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation import InvalidPolicy, Policy, SnpPolicy, Tcb, UnsafeSimulatedPolicy

pytestmark = pytest.mark.filterwarnings(
    "ignore::blindbox_attestation.MilanWarning", "ignore::blindbox_attestation.UnsafeSimulationWarning"
)

MEASUREMENT = b"\x11" * 48
FLOOR = Tcb(bootloader=10, snp=25, microcode=84)
GOOD = Policy(snp=SnpPolicy(measurements={MEASUREMENT}, minimum_tcb={"Genoa": FLOOR}))
LEAST = {
    "version": 1,
    "snp": {
        "measurements": [MEASUREMENT.hex()],
        "minimum_tcb": {"Genoa": {"bootloader": 10, "tee": 0, "snp": 25, "microcode": 84}},
    },
}

digests = st.frozensets(st.binary(min_size=48, max_size=48).filter(any), min_size=1, max_size=3)
parts = st.integers(0, 255)
floors = st.fixed_dictionaries(
    {},
    optional={
        "Milan": st.builds(Tcb, bootloader=parts, tee=parts, snp=parts, microcode=parts),
        "Genoa": st.builds(Tcb, bootloader=parts, tee=parts, snp=parts, microcode=parts),
        "Turin": st.builds(Tcb, fmc=parts, bootloader=parts, tee=parts, snp=parts, microcode=parts),
    },
).filter(bool)
snp_policies = st.builds(
    SnpPolicy,
    measurements=digests,
    minimum_tcb=floors,
    vmpl=st.integers(0, 3),
    signing_keys=st.sampled_from([frozenset({"vcek"}), frozenset({"vlek"}), frozenset({"vcek", "vlek"})]),
    chip_ids=st.none()
    | st.frozensets(st.binary(min_size=64, max_size=64).filter(any), min_size=1, max_size=2),
    host_data=st.none() | st.binary(min_size=32, max_size=32),
    minimum_guest_svn=st.integers(0, 2**32 - 1),
    allow_smt=st.booleans(),
    allow_masked_chip_id=st.booleans(),
    id_key_digests=st.none() | digests,
    author_key_digests=st.none() | digests,
    platform_info_required=st.integers(0, 2**31),
    platform_info_forbidden=st.integers(2**31 + 1, 2**63 - 1).map(lambda bits: bits >> 32 << 32),
    revocation=st.sampled_from(["required", "unchecked"]),
)
policies = st.builds(
    Policy,
    snp=snp_policies,
    accept_cached=st.booleans(),
    max_age=st.integers(0, 86400).map(lambda seconds: timedelta(seconds=seconds)),
    clock_skew=st.integers(0, 3600).map(lambda seconds: timedelta(seconds=seconds)),
)


@given(policies)
@settings(max_examples=150, deadline=None)
def test_a_policy_comes_back_from_json_as_the_same_policy(policy: Policy) -> None:
    text = policy.to_json()
    again = Policy.from_json(text)
    assert again == policy
    assert again.digest == policy.digest
    assert again.to_json() == text
    assert Policy.from_json(text.encode()) == policy


@given(policies, policies)
@settings(max_examples=100, deadline=None)
def test_two_policies_share_a_digest_only_if_they_are_the_same(one: Policy, other: Policy) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_the_shortest_policy_has_the_careful_values_for_all_the_rest() -> None:
    policy = Policy.from_json(json.dumps(LEAST))
    assert policy == GOOD
    assert policy.snp is not None
    assert (policy.accept_cached, policy.max_age, policy.clock_skew) == (
        False,
        timedelta(minutes=10),
        timedelta(minutes=5),
    )
    assert (policy.snp.vmpl, policy.snp.signing_keys, policy.snp.revocation) == (0, {"vcek"}, "required")
    assert not policy.snp.allow_masked_chip_id


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    value = json.loads(json.dumps(LEAST))
    change(value)
    return json.dumps(value)


WRONG: list[Callable[[dict[str, Any]], object]] = [
    lambda p: p.pop("version"),
    lambda p: p.pop("snp"),
    lambda p: p.update(version=2),
    lambda p: p.update(version="1"),
    lambda p: p.update(snp=None),
    lambda p: p.update(snp={}),
    lambda p: p.update(snp=[]),
    lambda p: p.update(max_age=600),
    lambda p: p.update(max_age_seconds=-1),
    lambda p: p.update(max_age_seconds=86401),
    lambda p: p.update(max_age_seconds=1.5),
    lambda p: p.update(max_age_seconds=None),
    lambda p: p.update(clock_skew_seconds=3601),
    lambda p: p.update(accept_cached=1),
    lambda p: p.update(accept_cached="false"),
    lambda p: p["snp"].pop("measurements"),
    lambda p: p["snp"].pop("minimum_tcb"),
    lambda p: p["snp"].update(measurements=[]),
    lambda p: p["snp"].update(measurements=None),
    lambda p: p["snp"].update(measurements=MEASUREMENT.hex()),
    lambda p: p["snp"].update(measurements=["11" * 47]),
    lambda p: p["snp"].update(measurements=["AB" * 48]),
    lambda p: p["snp"].update(measurements=[None]),
    lambda p: p["snp"].update(measurement=[MEASUREMENT.hex()]),
    lambda p: p["snp"].update(minimum_tcb={}),
    lambda p: p["snp"].update(minimum_tcb={"Rome": {}}),
    lambda p: p["snp"].update(minimum_tcb={"Genoa": {}}),
    lambda p: p["snp"]["minimum_tcb"]["Genoa"].pop("tee"),
    lambda p: p["snp"]["minimum_tcb"]["Genoa"].update(fmc=0),
    lambda p: p["snp"]["minimum_tcb"]["Genoa"].update(snp=256),
    lambda p: p["snp"]["minimum_tcb"].update(Turin={"bootloader": 1, "tee": 0, "snp": 2, "microcode": 71}),
    lambda p: p["snp"].update(vmpl=4),
    lambda p: p["snp"].update(signing_keys=[]),
    lambda p: p["snp"].update(signing_keys=["none"]),
    lambda p: p["snp"].update(chip_ids=[]),
    lambda p: p["snp"].update(chip_ids=["00" * 64]),
    lambda p: p["snp"].update(host_data=""),
    lambda p: p["snp"].update(host_data=None),
    lambda p: p["snp"].update(id_key_digests=[]),
    lambda p: p["snp"].update(author_key_digests=[]),
    lambda p: p["snp"].update(allow_smt=0),
    lambda p: p["snp"].update(allow_debug=False),
    lambda p: p["snp"].update(debug=True),
    lambda p: p["snp"].update(revocation="never"),
    lambda p: p["snp"].update(revocation=None),
    lambda p: p["snp"].update(roots={"00" * 32: "Genoa"}),
]


@pytest.mark.parametrize("change", WRONG)
def test_a_policy_file_with_a_wish_that_is_not_understood_is_refused(
    change: Callable[[dict[str, Any]], object],
) -> None:
    """C-22: misspelt, empty, null, out of range; each is an error and not a default."""
    Policy.from_json(edited(lambda p: None))
    with pytest.raises(InvalidPolicy):
        Policy.from_json(edited(change))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "{", b"\xff", '{"version":1,"version":1}', "\ud800", " " * 2_000_000]
)
def test_a_policy_file_that_is_not_one_is_refused(text: str | bytes) -> None:
    """C-17, C-22: nothing is an empty policy."""
    with pytest.raises(InvalidPolicy):
        Policy.from_json(text)


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_policy_or_a_typed_error(text: str | bytes) -> None:
    with pytest.raises(InvalidPolicy):
        Policy.from_json(text)


@pytest.mark.parametrize(
    "wish",
    [
        {"snp": None},
        {"snp": []},
        {"snp": {}},
        {"snp": "any"},
        {"accept_cached": None},
        {"accept_cached": 1},
        {"max_age": 600},
        {"max_age": None},
        {"max_age": timedelta(seconds=-1)},
        {"max_age": timedelta(days=2)},
        {"max_age": timedelta.max},
        {"clock_skew": timedelta(seconds=-1)},
        {"clock_skew": timedelta(hours=2)},
        {"clock_skew": None},
    ],
)
def test_a_policy_that_names_nothing_or_lasts_for_ever_cannot_be_made(wish: dict[str, Any]) -> None:
    """C-22: there is no policy that accepts by default."""
    with pytest.raises(InvalidPolicy):
        Policy(**{"snp": GOOD.snp, **wish})
    with pytest.raises(InvalidPolicy):
        Policy()


def test_a_policy_is_frozen_and_may_be_a_key() -> None:
    with pytest.raises(FrozenInstanceError):
        GOOD.accept_cached = True  # type: ignore[misc]
    assert len({GOOD, Policy.from_json(GOOD.to_json()), replace(GOOD, accept_cached=True)}) == 2


def test_with_host_data_changes_that_and_nothing_else() -> None:
    narrowed = GOOD.with_host_data(b"\x01" * 32)
    assert GOOD.snp is not None
    assert narrowed == replace(GOOD, snp=replace(GOOD.snp, host_data=b"\x01" * 32))
    assert narrowed.digest != GOOD.digest
    with pytest.raises(InvalidPolicy):
        GOOD.with_host_data(b"\x01" * 31)


def test_roots_of_one_s_own_are_in_the_digest_and_never_in_json() -> None:
    """C-21: a file cannot bring a root along."""
    assert GOOD.snp is not None
    own = Policy(snp=replace(GOOD.snp, roots={b"\x01" * 32: "Genoa"}))
    assert own.digest != GOOD.digest
    with pytest.raises(InvalidPolicy):
        own.to_json()
    assert "roots" not in GOOD.to_json()


def test_an_unsafe_policy_never_has_the_digest_of_another() -> None:
    """C-21: a session that was proved under one is not found under the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unsafe = UnsafeSimulatedPolicy()
        assert unsafe.digest == UnsafeSimulatedPolicy().digest
        assert unsafe.digest != UnsafeSimulatedPolicy(accept_cached=True).digest
        assert unsafe.digest != unsafe.with_host_data(bytes(32)).digest
    assert unsafe.digest != GOOD.digest


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, "is no string"),
        ("ab" * 47, "has 47 bytes"),
        ("AB" * 48, "has capital letters"),
        ("0x" + "ab" * 48, "begins with 0x"),
        ("0X" + "ab" * 48, "begins with 0X"),
        ("a" * 95, "odd number of digits"),
        ("zz" * 48, "something that is none"),
    ],
)
def test_a_digest_that_is_written_wrongly_is_told_what_is_wrong_with_it(given: object, told: str) -> None:
    text = json.dumps({"version": 1, "snp": {"measurements": [given], "minimum_tcb": {}}})
    with pytest.raises(InvalidPolicy, match=f"^the policy: snp: measurements is not 48 bytes.*{told}"):
        Policy.from_json(text)
