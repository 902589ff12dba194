"""What a hostile sender does to honest bytes: a few small edits, as a Hypothesis strategy."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

INTERESTING = (0x00, 0x01, 0x02, 0x22, 0x2C, 0x30, 0x5F, 0x7B, 0x7F, 0x80, 0x82, 0x84, 0x9F, 0xFE, 0xFF)

Edit = tuple[int, int, int, bytes]


def edits() -> st.SearchStrategy[list[Edit]]:
    """What to do, where (a fraction of the length, in 1/65536), how far, and with which bytes."""
    return st.lists(
        st.tuples(
            st.integers(0, 6), st.integers(0, 65535), st.integers(0, 255), st.binary(min_size=1, max_size=9)
        ),
        min_size=1,
        max_size=5,
    )


def garbled(data: bytes, wishes: Sequence[Edit]) -> bytes:
    """The bytes after these edits."""
    found = bytearray(data)
    for what, where, far, value in wishes:
        at = where * len(found) >> 16
        match what:
            case 0:
                found[at : at + len(value)] = value
            case 1:
                found[at:at] = value * (1 + far % 5)
            case 2:
                del found[at : at + 1 + far]
            case 3:
                found[at : at + 1] = bytes((INTERESTING[far % len(INTERESTING)],))
            case 4:  # a copy of one part in another place
                found[at:at] = found[at // 2 : at // 2 + far]
            case 5:
                del found[at:]
            case _:  # a number of four bytes that says much more or much less
                number = int.from_bytes(found[at : at + 4], "big") + (far - 128) * (1 << (8 * (far % 4)))
                found[at : at + 4] = (number % (1 << 32)).to_bytes(4, "big")
    return bytes(found)
