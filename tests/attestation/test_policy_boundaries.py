"""Edges of a policy as a whole: sizes, whole seconds, roots of one's own, and what a digest is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from blindbox_attestation.errors import InvalidPolicy
from blindbox_attestation.policy import (
    LONGEST_AGE,
    LONGEST_SKEW,
    MAX_POLICY,
    MOST,
    PARTS,
    AnyOf,
    Policy,
    read,
)
from blindbox_attestation.policy_digest import digest_of, spelled
from tests.kit.amd import FakeAmd
from tests.kit.policies import policy

SNP = read(json.dumps(policy("snp")))
SECOND = timedelta(seconds=1)


def test_a_policy_of_a_mebibyte_is_read_and_not_a_byte_more() -> None:
    text = SNP.to_json()
    assert read(text + " " * (MAX_POLICY - len(text))) == SNP
    for wrong in (text + " " * (MAX_POLICY - len(text) + 1), (text + " " * MAX_POLICY).encode()):
        with pytest.raises(InvalidPolicy, match=f"at most {MAX_POLICY}"):
            read(wrong)
    with pytest.raises(InvalidPolicy, match="UTF-8"):
        read("\ud800")


@pytest.mark.parametrize("name", ["max_age", "clock_skew"])
def test_seconds_of_zero_and_of_the_most_come_back_and_parts_of_seconds_do_not(name: str) -> None:
    most = {"max_age": LONGEST_AGE, "clock_skew": LONGEST_SKEW}[name]
    for good in (timedelta(0), most):
        wish = replace(SNP, **{name: good})  # type: ignore[arg-type]
        assert read(wish.to_json()) == wish
    with pytest.raises(InvalidPolicy, match="whole seconds"):
        replace(SNP, **{name: timedelta(microseconds=1)}).to_json()  # type: ignore[arg-type]
    for wrong in (-timedelta(microseconds=1), most + timedelta(microseconds=1), 60):
        with pytest.raises(InvalidPolicy, match=name):
            replace(SNP, **{name: wrong})  # type: ignore[arg-type]
    value = json.loads(SNP.to_json())
    for seconds in (-1, int(most.total_seconds()) + 1):
        with pytest.raises(InvalidPolicy):
            read(json.dumps({**value, f"{name}_seconds": seconds}))


@pytest.mark.parametrize("key", PARTS)
def test_a_policy_with_roots_of_its_own_is_not_written_as_if_it_had_ours(key: str) -> None:
    """C-21: what is read back would trust others than what was written."""
    whole = read(json.dumps(policy(key)))
    part = getattr(whole, key)
    assert read(whole.to_json()) == whole
    for changed in with_other_roots(part):
        with pytest.raises(InvalidPolicy, match="roots of its own"):
            replace(whole, **{key: changed}).to_json()  # type: ignore[arg-type]


def with_other_roots(part: Any) -> list[Any]:
    """Each way to give this part, or one within it, another root."""
    other = {b"\x07" * 32: "Genoa"}
    found = [replace(part, roots=other)] if getattr(part, "roots", None) else []
    for name in ("snp", "tdx"):
        if hasattr(getattr(part, name, None), "roots"):
            found.append(replace(part, **{name: replace(getattr(part, name), roots=other)}))
    return found


def test_roots_of_its_own_are_found_within_several_policies_too() -> None:
    with pytest.raises(InvalidPolicy, match="roots of its own"):
        AnyOf([SNP, FakeAmd("Genoa").policy()]).to_json()


def test_as_many_policies_as_are_judged_are_read_from_a_file_and_no_more() -> None:
    one = json.loads(SNP.to_json())
    del one["version"]
    text = json.dumps({"version": 1, "any_of": [one] * MOST})
    assert len(read(text).to_json()) > MOST
    with pytest.raises(InvalidPolicy, match=f"any_of holds {MOST + 1} policies"):
        read(text.replace("[", f"[{json.dumps(one)}, ", 1))


def test_a_digest_is_taken_over_the_label_and_the_one_spelling() -> None:
    assert digest_of(b"label", True) == hashlib.sha256(b"labeltrue").digest()
    assert digest_of(b"label", "é") == hashlib.sha256(b'label"\\u00e9"').digest()
    assert digest_of(b"one", None) != digest_of(b"another", None)


@dataclass
class Named:
    """Two fields that count and one that does not."""

    b: int
    a: bytes
    c: int = field(default=0, compare=False)


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        (None, "null"),
        (7, "7"),
        (b"\x0f", '{"bytes":"0f"}'),
        (timedelta(seconds=1, microseconds=1), '{"microseconds":1000001}'),
        (Named(1, b"", 5), '["Named",{"b":1,"a":{"bytes":""}}]'),
        ({2: "b", 1: "a"}, '{"mapping":[[1,"a"],[2,"b"]]}'),
        ({"b", "a"}, '{"set":["a","b"]}'),
        ([2, 1], "[2,1]"),
        ((2, 1), "[2,1]"),
    ],
)
def test_every_kind_of_value_has_one_spelling(value: object, spelling: str) -> None:
    assert spelled(value) == spelling


@pytest.mark.parametrize("value", [1.5, float("nan"), object(), bytearray(b"x"), {1: [object()]}])
def test_what_has_no_spelling_has_no_place_in_a_policy(value: object) -> None:
    with pytest.raises(TypeError, match="no place in a policy"):
        spelled(value)


def test_a_policy_is_asked_for_its_parts_by_known_names_alone() -> None:
    assert SNP.part("snp") is SNP.snp
    assert SNP.part("tdx") is None
    for unknown in ("digest", "max_age", "", "simulated"):
        assert SNP.part(unknown) is None
    assert isinstance(SNP, Policy)
