"""CBOR: one spelling for each value, the same values as another reader finds, typed errors for the rest."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation import cbor

INTEGERS = st.integers(-(1 << 64), (1 << 64) - 1)
KEYS = st.one_of(INTEGERS, st.text(max_size=8))
LEAVES = st.one_of(st.none(), INTEGERS, st.binary(max_size=300), st.text(max_size=300))


def values(depth: int) -> st.SearchStrategy[Any]:
    if depth == 0:
        return LEAVES
    inner = values(depth - 1)
    return st.one_of(LEAVES, st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=4))


def plain(value: Any) -> Any:
    """As this room reads it: lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


@given(values(cbor.MAX_DEPTH))
def test_what_is_written_is_read_back(value: Any) -> None:
    assert cbor.parse(cbor.encode(value)) == value


@given(values(cbor.MAX_DEPTH))
def test_another_library_writes_the_same_bytes_and_reads_the_same_value(value: Any) -> None:
    assert cbor2.dumps(value) == cbor.encode(value)
    assert plain(cbor2.loads(cbor.encode(value))) == value


@settings(max_examples=2000)
@given(st.one_of(st.binary(max_size=64), values(2).map(cbor.encode).map(lambda data: data[:-1] + b"\x00")))
def test_any_bytes_are_read_in_their_one_spelling_or_refused(data: bytes) -> None:
    """C-17: what is accepted is exactly what `encode` writes, and another library agrees on its meaning."""
    try:
        value = cbor.parse(data)
    except cbor.NotCbor:
        return
    assert cbor.encode(value) == data
    assert plain(cbor2.loads(data)) == value


@given(values(3))
def test_every_truncation_is_refused(value: Any) -> None:
    """C-19: and so is a byte too many."""
    data = cbor.encode(value)
    for size in range(len(data)):
        with pytest.raises(cbor.NotCbor, match="cut short"):
            cbor.parse(data[:size])
    with pytest.raises(cbor.NotCbor, match="after the end"):
        cbor.parse(data + b"\x00")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("1817", "shortest"),  # 23 in two bytes
        ("1900ff", "shortest"),
        ("1a0000ffff", "shortest"),
        ("1b00000000ffffffff", "shortest"),
        ("3817", "shortest"),
        ("5801aa", "shortest"),
        ("a2016161016162", "twice"),
        ("a2616101616102", "twice"),
        ("5f41aaff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("9f01ff", "indefinite"),
        ("bf0102ff", "indefinite"),
        ("1c", "indefinite or reserved"),
        ("1f", "indefinite or reserved"),
        ("ff", "indefinite or reserved"),
        ("f4", "simple value"),  # false
        ("f5", "simple value"),  # true
        ("f7", "simple value"),  # undefined
        ("f93c00", "float"),
        ("fa3f800000", "float"),
        ("fb3ff0000000000000", "float"),
        ("c101", "tag"),
        ("d201", "tag"),
        ("81d201", "tag"),
        ("a141aa01", "neither an integer nor text"),
        ("a1f601", "neither an integer nor text"),
        ("a18001", "deeper"),
        ("61ff", "UTF-8"),
        ("62c080", "UTF-8"),
        ("8181818181", "deeper"),
        ("9bffffffffffffffff", "cut short"),
        ("bbffffffffffffffff", "cut short"),
        ("5bffffffffffffffff", "cut short"),
        ("8361ff", "cut short"),  # before what is in it is looked at
        ("a261ff0000", "UTF-8"),
        ("a261ff00", "cut short"),
        ("", "cut short"),
    ],
)
def test_a_second_spelling_is_refused(data: str, why: str) -> None:
    """C-17: no indefinite length, no longer form, no key twice, nothing that COSE does not need."""
    with pytest.raises(cbor.NotCbor, match=why):
        cbor.parse(bytes.fromhex(data))


def test_nesting_ends_at_its_bound() -> None:
    assert cbor.parse(b"\x81" * cbor.MAX_DEPTH + b"\x00") == ((((0,),),),)
    with pytest.raises(cbor.NotCbor, match="deeper"):
        cbor.parse(b"\x81" * 100_000)
    for item in (b"\xa1\x00", b"\x81"):
        cbor.parse(item * cbor.MAX_DEPTH + b"\x00")
        cbor.parse(b"\xbf\x00" + item * (cbor.MAX_DEPTH - 1) + b"\x00\xff", open_map=True)
        for data in (
            item * (cbor.MAX_DEPTH + 1) + b"\x00",
            b"\xbf\x00" + item * cbor.MAX_DEPTH + b"\x00\xff",
        ):
            with pytest.raises(cbor.NotCbor, match="deeper"):
                cbor.parse(data, open_map=True)


def test_one_tag_may_stand_in_front_if_it_is_the_one_that_is_asked_for() -> None:
    assert cbor.parse(b"\xd2\x01", tag=18) == cbor.parse(b"\x01", tag=18) == 1
    for data in (b"\xd1\x01", b"\xd8\x3d\x01", b"\xd2\xd2\x01", b"\xd8\x12\x01", b"\xd2"):
        with pytest.raises(cbor.NotCbor):
            cbor.parse(data, tag=18)


def test_the_outermost_map_may_be_of_indefinite_length_if_that_is_asked_for() -> None:
    """And nothing inside it."""
    assert cbor.parse(b"\xbf\x01\x02\x61a\xf6\xff", open_map=True) == {1: 2, "a": None}
    assert cbor.parse(b"\xbf\xff", open_map=True) == {}
    assert cbor.parse(b"\xa1\x01\x02", open_map=True) == {1: 2}
    for data, why in (
        (b"\xbf\x01\x02", "cut short"),
        (b"\xbf\x01\xff", "indefinite"),
        (b"\xbf\x01\x02\xff\xff", "after the end"),
        (b"\xbf\x01\x02\x01\x03\xff", "twice"),
        (b"\xbf\x01\xbf\xff\xff", "indefinite"),
        (b"\xa1\x01\xbf\xff", "indefinite"),
        (b"\x9f\xff", "indefinite"),
    ):
        with pytest.raises(cbor.NotCbor, match=why):
            cbor.parse(data, open_map=True)


def test_a_number_that_does_not_fit_is_not_written() -> None:
    for number in (1 << 64, -(1 << 64) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            cbor.encode(number)


@pytest.mark.parametrize(("number", "spelt"), [(23, "17"), (24, "1818"), (255, "18ff"), (256, "190100")])
def test_a_number_is_written_in_the_fewest_bytes(number: int, spelt: str) -> None:
    assert cbor.encode(number).hex() == spelt
