"""Every bit of every file that proves a machine is flipped, and every file is cut at every length."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.kit.meaningless import MEANINGLESS, PADDED, Span, means_the_same
from tests.kit.specimens import NAMES, Specimen, specimen

FILES = [(name, file) for name in NAMES for file in sorted(specimen(name).files)]


def accepted_flips(one: Specimen, file: str, bits: range) -> set[int]:
    """The bits that may be flipped without anybody noticing."""
    data = bytearray(one.files[file])
    found: set[int] = set()
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        if one.code({file: bytes(data)}) == "accepted":
            found.add(bit)
        data[bit // 8] ^= 1 << bit % 8
    return found


def accepted_cuts(one: Specimen, file: str, sizes: Iterable[int]) -> list[int]:
    """The lengths at which nobody notices that something is missing."""
    data = one.files[file]
    return [
        size
        for size in sizes
        if one.code({file: data[:size]}) == "accepted"
        and not means_the_same(one.platform, file, data[:size], data)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_honest_machine_is_accepted(name: str) -> None:
    specimen(name).judge()


def check(name: str, file: str, step: int) -> None:
    one = specimen(name)
    spans: tuple[Span, ...] = MEANINGLESS.get((name, file), ())
    size = len(one.files[file])
    documented = {bit for span in spans for bit in span.bits(one.files[file])}
    assert len(documented) == sum(span.size for span in spans)
    # A step that is odd, and more than 8, meets every place of a bit in a byte.
    unnoticed = accepted_flips(one, file, range(0, 8 * size, step))
    assert unnoticed <= documented, f"{len(unnoticed - documented)} bits of {file} carry no meaning"
    if step == 1:
        assert unnoticed == documented, f"{len(documented - unnoticed)} bits of {file} do carry one"


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_flipped_bit_is_noticed(name: str, file: str) -> None:
    """C-15: one bit in about nine bytes."""
    check(name, file, 73)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_flipped_bit_is_noticed(name: str, file: str) -> None:
    """C-15: all of them."""
    check(name, file, 1)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_cut_short_is_refused(name: str, file: str) -> None:
    """C-19: at some lengths; near both ends at all."""
    one = specimen(name)
    data = one.files[file]
    ends = {*range(min(80, len(data))), *range(max(0, len(data) - 80), len(data)), *range(0, len(data), 97)}
    assert accepted_cuts(one, file, ends) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_cut_at_any_length_is_refused(name: str, file: str) -> None:
    """C-19: at every length."""
    one = specimen(name)
    assert accepted_cuts(one, file, range(len(one.files[file]))) == []


def test_zeros_are_all_that_may_be_missing_and_only_of_some_files() -> None:
    """C-15: the list of bytes without a meaning is as long as this, and no longer."""
    assert set(PADDED) == {
        ("tdx", "evidence"),
        ("az-snp-vtpm", "ak_chain"),
        ("az-tdx-vtpm", "ak_chain"),
    }
    assert {
        name: len(specimen(name).files["evidence"]) - len(specimen(name).files["evidence"].rstrip(b"\x00"))
        for name in NAMES
        if specimen(name).platform == "tdx"
    } == {"tdx-v4": 70, "tdx-v5": 70}


def test_the_bits_without_a_meaning_are_these_and_no_others() -> None:
    """C-15: of what hardware signs there are none; they are beside it, in the sender's own words."""
    assert {place: sum(span.size for span in spans) for place, spans in MEANINGLESS.items()} == {
        ("tpm-ecc", "evidence"): 34,
        ("tpm-rsa", "evidence"): 34,
        ("tpm-ecc", "event_log"): 10_724,
        ("tpm-rsa", "event_log"): 10_724,
        ("az-snp", "event_log"): 10_724,
        ("az-tdx", "evidence"): 319,
    }


@pytest.mark.parametrize(("name", "file"), FILES)
def test_bytes_after_a_file_are_refused(name: str, file: str) -> None:
    """C-17: there is one spelling of each."""
    one = specimen(name)
    assert one.code({file: one.files[file] + b"\x01"}) != "accepted"
