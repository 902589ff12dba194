"""DER: each value in its one spelling; a tag, a length or a content of another form is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindbox_attestation.der import INTEGER, OCTET_STRING, SEQUENCE, NotDer, Reader


def refused(read: Callable[[], object]) -> str:
    """Why these bytes are not read."""
    with pytest.raises(NotDer) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8180"),
        (255, "81ff"),
        (256, "820100"),
        (65535, "82ffff"),
        (65536, "83010000"),
    ],
)
def test_a_length_is_written_in_the_fewest_bytes(size: int, length: str) -> None:
    """C-17: X.690 §10.1; taken whole or without its head it is the same element."""
    whole = b"\x04" + bytes.fromhex(length) + b"x" * size
    assert Reader(whole).take(OCTET_STRING) == b"x" * size
    assert Reader(whole).whole(OCTET_STRING) == whole
    reader = Reader(whole + b"\x02\x01\x07")
    assert (reader.take(OCTET_STRING), reader.integer(), reader.more) == (b"x" * size, 7, False)
    for cut in {0, 1, len(whole) - 1, *range(2, 5)} - {len(whole)}:
        if cut < len(whole):
            assert refused(lambda cut=cut: Reader(whole[:cut]).take(OCTET_STRING))  # type: ignore[misc]
            assert refused(lambda cut=cut: Reader(whole[:cut]).whole(OCTET_STRING))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ("80", 128),  # indefinite
        ("8100", 0),
        ("817f", 127),
        ("820080", 128),
        ("8200ff", 255),
        ("83000100", 256),
        ("8300ffff", 65535),
        ("8400010000", 65536),
        ("ff", 127),
    ],
)
@pytest.mark.parametrize("how", ["take", "whole"])
def test_a_length_in_a_longer_form_is_refused(head: str, size: int, how: str) -> None:
    """C-17."""
    data = b"\x04" + bytes.fromhex(head) + bytes(size)
    assert refused(lambda: getattr(Reader(data), how)(OCTET_STRING))


@pytest.mark.parametrize("how", ["take", "whole", "inside"])
def test_an_element_has_the_tag_that_is_asked_for(how: str) -> None:
    """C-17: whatever its length."""
    for data in (b"\x04\x01\x00", b"\x04\x81\x80" + bytes(128), b"\x24\x01\x00"):
        assert "expected" in refused(lambda data=data: getattr(Reader(data), how)(SEQUENCE))  # type: ignore[misc]


def test_nothing_may_follow_where_something_ends() -> None:
    reader = Reader(b"\x02\x01\x07\x00")
    assert reader.integer() == 7
    assert reader.more
    assert refused(reader.end) == "1 bytes after the end"
    assert not Reader(b"").more
    assert not Reader(b"").next_is(INTEGER)


@given(st.integers(-(1 << 200), 1 << 200))
def test_an_integer_is_read_in_its_shortest_form(value: int) -> None:
    """C-17: X.690 §8.3.2; one byte more, of zeros or of ones, is another spelling."""
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    content = value.to_bytes(size, "big", signed=True)
    assert Reader(bytes((2, size)) + content).integer() == value
    longer = (b"\xff" if value < 0 else b"\x00") + content
    assert "shortest" in refused(lambda: Reader(bytes((2, size + 1)) + longer).integer())


def test_an_integer_has_at_least_one_byte() -> None:
    assert "empty" in refused(Reader(b"\x02\x00").integer)
    for longer in ("02020000", "0202007f", "0202ff80", "0202ffff", "0203000001"):
        assert "shortest" in refused(Reader(bytes.fromhex(longer)).integer)
    for data, value in (("020100", 0), ("0201ff", -1), ("02020080", 128), ("0202ff7f", -129)):
        assert Reader(bytes.fromhex(data)).integer() == value


def test_a_boolean_is_all_ones_or_all_zeros() -> None:
    """C-17: X.690 §11.1."""
    assert Reader(b"\x01\x01\xff").boolean() is True
    assert Reader(b"\x01\x01\x00").boolean() is False
    for data in (b"\x01\x01\x01", b"\x01\x01\xfe", b"\x01\x00", b"\x01\x02\xff\xff", b"\x01\x02\x00\x00"):
        assert refused(Reader(data).boolean)


def test_bits_are_whole_bytes() -> None:
    assert Reader(b"\x03\x03\x00ab").bits() == b"ab"
    assert Reader(b"\x03\x01\x00").bits() == b""
    for data in (b"\x03\x00", b"\x03\x02\x01\x00", b"\x03\x02\xff\x00"):
        assert refused(Reader(data).bits)


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        ("03020780", 0x8000),  # the first
        ("03020186", 0x8600),
        ("03020001", 0x0100),
        ("0303070080", 0x0080),  # the ninth
        ("0303000001", 0x0001),
    ],
)
def test_flags_are_counted_from_the_front(data: str, flags: int) -> None:
    assert Reader(bytes.fromhex(data)).flags() == flags


@pytest.mark.parametrize(
    "data",
    [
        "0300",
        "030100",
        "03020880",
        "03020800",
        "03020781",
        "030207c0",
        "030201ff",
        "0304000000ff",
        "03050000",
    ],
)
def test_flags_have_no_bits_that_are_not_used(data: str) -> None:
    """C-17: X.690 §11.2.1."""
    assert refused(Reader(bytes.fromhex(data)).flags)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("06032a8648", "1.2.840"),
        ("0603550403", "2.5.4.3"),
        ("060100", "0.0"),
        ("060127", "0.39"),
        ("060128", "1.0"),
        ("06014f", "1.39"),
        ("060150", "2.0"),
        ("06028837", "2.999"),
        ("06052b818148 01", "1.3.16584.1"),
        ("06042b818000", "1.3.16384"),
        ("060178", "2.40"),
    ],
)
def test_a_name_is_told_in_dotted_numbers(data: str, name: str) -> None:
    assert Reader(bytes.fromhex(data)).oid() == name


@pytest.mark.parametrize(
    "data", ["0600", "060180", "06022a80", "06022a81", "06032a8001", "0603800101", "0621" + "2a" * 33]
)
def test_a_name_has_one_spelling_and_an_end(data: str) -> None:
    """C-17, C-18: X.690 §8.19.2; and no more bytes than any that is used."""
    assert refused(Reader(bytes.fromhex(data)).oid)


def test_the_longest_name_is_read() -> None:
    assert Reader(bytes.fromhex("0620" + "2a" * 32)).oid() == "1.2" + ".42" * 31


def test_a_text_is_of_a_kind_that_names_are_made_of() -> None:
    assert Reader(b"\x0c\x02\xc3\xa4").text() == "ä"
    assert Reader(b"\x13\x01a").text() == Reader(b"\x16\x01a").text() == "a"
    assert "not utf-8" in refused(Reader(b"\x0c\x01\xff").text)
    assert "not ascii" in refused(Reader(b"\x13\x02\xc3\xa4").text)
    for data in (b"\x14\x01a", b"\x1e\x02\x00a", b"\x04\x01a", b""):
        assert "no string" in refused(Reader(data).text)


@pytest.mark.parametrize(
    ("tag", "text", "year"),
    [
        (0x17, "500102030405Z", 1950),
        (0x17, "990102030405Z", 1999),
        (0x17, "000102030405Z", 2000),
        (0x17, "490102030405Z", 2049),
        (0x18, "20500102030405Z", 2050),
        (0x18, "99990102030405Z", 9999),
    ],
)
def test_a_time_is_told_to_the_second(tag: int, text: str, year: int) -> None:
    data = bytes((tag, len(text))) + text.encode()
    assert Reader(data).time() == datetime(year, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (0x17, "2601020304Z"),
        (0x17, "260102030405"),
        (0x17, "260102030405z"),
        (0x17, "260102030405+0000"),
        (0x17, "20260102030405Z"),
        (0x17, "2601020304 5Z"),
        (0x17, "261302030405Z"),
        (0x17, "260230030405Z"),
        (0x17, "260102240405Z"),
        (0x17, "260102036005Z"),
        (0x17, "260102030460Z"),
        (0x18, "260102030405Z"),
        (0x18, "20260102030405.0Z"),
        (0x18, "00000102030405Z"),
        (0x18, "20260102030405"),
        (0x04, "260102030405Z"),
    ],
)
def test_a_time_in_another_form_is_refused(tag: int, text: str) -> None:
    """C-17: RFC 5280 §4.1.2.5."""
    assert refused(Reader(bytes((tag, len(text))) + text.encode()).time)
