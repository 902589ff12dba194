"""Variable-length integers: one spelling for each number, and no number is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindbox_attestation.channel import varint
from blindbox_attestation.errors import MalformedMessage

BORDERS = [0, 1, 63, 64, 16383, 16384, 2**30 - 1, 2**30, 2**62 - 1]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
    ],
)
def test_the_examples_of_rfc_9000_are_read_and_written(written: str, value: int) -> None:
    """RFC 9000 appendix A.1."""
    assert varint.read(bytes.fromhex(written)) == (value, len(written) // 2)
    assert varint.encode(value).hex() == written


@given(st.one_of(st.sampled_from(BORDERS), st.integers(0, 2**62 - 1)), st.binary(max_size=4))
def test_every_number_comes_back_wherever_it_stands(value: int, around: bytes) -> None:
    written = varint.encode(value)
    assert varint.read(around + written + around, len(around)) == (value, len(around) + len(written))


@given(st.sampled_from(BORDERS))
def test_a_number_that_is_not_all_there_is_waited_for(value: int) -> None:
    written = varint.encode(value)
    for size in range(len(written)):
        assert varint.read(written[:size]) is None


@pytest.mark.parametrize(("size", "limit"), [(2, 2**6), (4, 2**14), (8, 2**30)])
def test_a_longer_spelling_of_a_number_is_refused(size: int, limit: int) -> None:
    """C-30: zero, and the largest number that would have fitted a shorter form."""
    mark = {2: 1, 4: 2, 8: 3}[size] << (8 * size - 2)
    for value in (0, limit - 1):
        with pytest.raises(MalformedMessage):
            varint.read((mark | value).to_bytes(size, "big"))
    assert varint.read((mark | limit).to_bytes(size, "big")) == (limit, size)


@pytest.mark.parametrize("value", [-1, 2**62])
def test_a_number_that_has_no_spelling_is_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        varint.encode(value)
