"""What a field of a policy may hold, and what is refused when the policy is made."""

from __future__ import annotations

from typing import Any

import pytest

from blindbox_attestation import policy_values
from blindbox_attestation.errors import InvalidPolicy
from tests.kit.names import shown

DIGEST = b"\x01" * 32


@pytest.mark.parametrize("kind", [set, frozenset, list, tuple])
def test_a_set_may_be_given_as_any_of_four_and_is_frozen(kind: Any) -> None:
    found = policy_values.several("them", kind([1, 2]))
    assert found == {1, 2}
    assert isinstance(found, frozenset)


@pytest.mark.parametrize(
    "values", [None, "abc", b"abc", 7, {1: 2}, iter([1]), set(), [], (), frozenset(), [[1]], [{}]], ids=shown
)
def test_a_set_that_names_nobody_or_is_none_is_refused(values: object) -> None:
    """C-22: an empty set would accept nobody; a word is not a set of letters."""
    with pytest.raises(InvalidPolicy, match="them"):
        policy_values.several("them", values)


def test_digests_all_have_their_size() -> None:
    assert policy_values.digests("them", [DIGEST, b"\x02" * 32], 32) == {DIGEST, b"\x02" * 32}
    for wrong in (DIGEST[1:], DIGEST + b"\x00", DIGEST.hex(), "1" * 32, bytearray(31), 32, None):
        if wrong.__hash__ is not None:
            for values in ([wrong], [DIGEST, wrong]):
                with pytest.raises(InvalidPolicy, match="them: expected 32 bytes each"):
                    policy_values.digests("them", values, 32)


def test_words_are_short_and_printable() -> None:
    good = ["a", "b" * 10, "~ !"]
    assert policy_values.words("them", good, 10) == set(good)
    assert policy_values.words("them", ["x" * 256]) == {"x" * 256}
    for wrong in ("", "b" * 11, "é", "a\n", "\x7f", b"a", 1, None, ("a",)):
        for values in ([wrong], ["a", wrong]):
            with pytest.raises(InvalidPolicy, match="them: expected printable strings of 1 to 10"):
                policy_values.words("them", values, 10)
    with pytest.raises(InvalidPolicy, match="256"):
        policy_values.words("them", ["x" * 257])


def test_numbers_are_within_their_bounds_and_no_booleans() -> None:
    assert [policy_values.integer("it", value, 7) for value in (0, 1, 7)] == [0, 1, 7]
    for wrong in (-1, 8, True, False, 1.0, "1", None):
        with pytest.raises(InvalidPolicy, match="expected 0 to 7"):
            policy_values.integer("it", wrong, 7)


def test_a_flag_is_one_of_two() -> None:
    assert (policy_values.flag("it", True), policy_values.flag("it", False)) == (True, False)
    for wrong in (0, 1, None, "True", []):
        with pytest.raises(InvalidPolicy, match="expected True or False"):
            policy_values.flag("it", wrong)


def test_roots_are_fingerprints_with_names_and_one_at_least() -> None:
    """C-8: without roots nobody could be believed, which is an error rather than a policy."""
    given = {DIGEST: "ours"}
    found = policy_values.roots(given)
    given[b"\x02" * 32] = "another"
    assert dict(found) == {DIGEST: "ours"}
    with pytest.raises(TypeError):
        found[DIGEST] = "changed"  # type: ignore[index]
    for empty in ({}, None, [], [DIGEST], [(DIGEST, "ours")], {DIGEST}, "x"):
        with pytest.raises(InvalidPolicy, match="nobody could be believed"):
            policy_values.roots(empty)
    for wrong in (
        {DIGEST[1:]: "x"},
        {DIGEST + b"\x00": "x"},
        {"f" * 32: "x"},
        {DIGEST: None},
        {DIGEST: b"x"},
    ):
        for values in (wrong, {b"\x02" * 32: "good", **wrong}):
            with pytest.raises(InvalidPolicy, match="SHA-256 fingerprints"):
                policy_values.roots(values)
