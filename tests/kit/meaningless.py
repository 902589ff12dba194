"""
The bytes that carry no meaning: changed, the evidence says the same, and is accepted.

Each has a reason. What is not listed here must be noticed; `test_every_bit.py` looks, and asserts how
many there are.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from blindbox_attestation.event_log import EventLog
from tests.kit.tpm import ALGORITHMS, NO_ACTION, SIZES, VARIABLE


@dataclass(frozen=True)
class Span:
    """Some bits of a file, found by a rule, and why nobody minds them."""

    why: str
    bits: Callable[[bytes], Iterable[int]]
    size: int  # how many bits there are in the specimen


@dataclass(frozen=True)
class Piece:
    """A field of one event of a boot's log, and where it lies in the file."""

    name: str  # "kind", "sha1" and so on for a digest, "data"
    register: int
    kind: int
    begins: int
    ends: int

    def bits(self) -> range:
        return range(8 * self.begins, 8 * self.ends)


def pieces(log: bytes) -> Iterator[Piece]:
    """The fields of every event but the first, which is a header."""
    (size,) = struct.unpack_from("<I", log, 28)
    at = 32 + size
    while at < len(log):
        register, kind, count = struct.unpack_from("<III", log, at)
        yield Piece("kind", register, kind, at + 4, at + 8)
        at += 12
        for _ in range(count):
            (algorithm,) = struct.unpack_from("<H", log, at)
            name = next(name for name, number in ALGORITHMS.items() if number == algorithm)
            yield Piece(name, register, kind, at + 2, at + 2 + SIZES[name])
            at += 2 + SIZES[name]
        (size,) = struct.unpack_from("<I", log, at)
        yield Piece("data", register, kind, at + 4, at + 4 + size)
        at += 4 + size


def of_the_header(log: bytes) -> Iterator[int]:
    """Its register (any of 24), its class of platform, and two numbers about the text it follows."""
    yield from range(5)
    for begins, ends in ((48, 52), (54, 56)):
        yield from range(8 * begins, 8 * ends)


def other_banks(log: bytes) -> Iterator[int]:
    for piece in pieces(log):
        if piece.name in ("sha1", "sha384"):
            yield from piece.bits()


def words_beside(log: bytes) -> Iterator[int]:
    """Types of all events; data of those that nobody looks into: all but the variables in register 7."""
    for piece in pieces(log):
        if piece.name == "kind":
            # An event that says it was not measured at all would be missing from its register.
            yield from (bit for at, bit in enumerate(piece.bits()) if piece.kind ^ 1 << at != NO_ACTION)
        elif piece.name == "data" and (piece.register, piece.kind) != (7, VARIABLE):
            yield from piece.bits()


def unvouched(member: str, mask: bytes) -> Callable[[bytes], Iterator[int]]:
    """Bits of a member in base64 that change it, canonically still, in nothing but what `mask` has."""

    def found(evidence: bytes) -> Iterator[int]:
        text = json.loads(evidence)[member].encode("ascii")
        begins = evidence.index(text)
        value = int.from_bytes(b64decode(text))
        allowed = int.from_bytes(mask.ljust(len(b64decode(text)), b"\x00"))
        for bit in range(8 * len(text)):
            changed = bytearray(text)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                other = b64decode(bytes(changed), validate=True)
            except ValueError:
                continue
            if b64encode(other) == changed and not (int.from_bytes(other) ^ value) & ~allowed:
                yield 8 * begins + bit

    return found


NOBODY_ASKS: Final = b"\x00\x00\xff\xff" + (0xFFFF_FFFF ^ 0x0007_0032).to_bytes(4)
"""
Of a public area: the hash of its name, and attributes other than fixedTPM, fixedParent,
sensitiveDataOrigin, restricted, decrypt and sign.
"""

IN_NO_QUOTE: Final = bytes(32 + 16) + b"\xff" * 16 + bytes(192) + b"\xff" * 32
"""Of a paravisor's blob, in its TDREPORT: CPUSVN, and the MAC that only its own machine can check."""

_LOG: Final = (
    Span("the header tells where the log is from, and nobody asks", of_the_header, 5 + 6 * 8),
    Span("digests of banks that were not quoted", other_banks, 16 * 8 * (20 + 48)),
    Span("no digest covers types, and nobody looks into the data of these events", words_beside, 1_967),
)
_AREA: Final = (
    Span(
        "ak_area is the sender's word, by which only a key that was made wrongly is found: which hash its "
        "name has, and what else it may do",
        unvouched("ak_area", NOBODY_ASKS),
        34,
    ),
)
_TD_REPORT: Final = (
    Span(
        "of the TDREPORT, what only its own machine can check and no quote repeats: CPUSVN and the MAC",
        unvouched("hcl", IN_NO_QUOTE),
        319,
    ),
)

MEANINGLESS: Mapping[tuple[str, str], tuple[Span, ...]] = {
    ("tpm-ecc", "evidence"): _AREA,
    ("tpm-ecc", "event_log"): _LOG,
    ("tpm-rsa", "evidence"): _AREA,
    ("tpm-rsa", "event_log"): _LOG,
    ("az-snp", "event_log"): _LOG,
    ("az-tdx", "evidence"): _TD_REPORT,
}
"""(specimen, file) → the spans in it."""

PADDED: Mapping[tuple[str, str], str] = {
    ("tdx", "evidence"): "the kernel hands out quotes in a buffer that is filled up with zeros",
    ("az-snp-vtpm", "ak_chain"): "the TPM's memory that holds it is filled up with zeros",
    ("az-tdx-vtpm", "ak_chain"): "as on the other processor",
}
"""(platform, file) → why zeros may follow the bytes that mean something, or be missing there."""


def means_the_same(platform: str, file: str, one: bytes, other: bytes) -> bool:
    """Whether two files that are accepted say the same to whoever relies on them, if in other bytes."""
    return one == other or _meaning(platform, file, one) == _meaning(platform, file, other)


def _meaning(platform: str, file: str, data: bytes) -> object:
    if (platform, file) in PADDED:
        data = data.rstrip(b"\x00")
    if file == "event_log":
        return _of_the_log(EventLog.parse(data))
    try:
        told = json.loads(data)  # which has many spellings: nobody signs it, only what is in it
    except ValueError:
        return data
    if not isinstance(told, dict):
        return data
    if "td_quote" in told:
        told["td_quote"] = b64decode(told["td_quote"]).rstrip(b"\x00")
        told["hcl"] = _without(told["hcl"], IN_NO_QUOTE)
    if "ak_area" in told:
        told["ak_area"] = _without(told["ak_area"], NOBODY_ASKS)
    return told


def _of_the_log(log: EventLog) -> object:
    """The digests in each register that a specimen's policy relies on, and the variables."""
    digests = {register: [event.digests["sha256"] for event in log.of(register)] for register in range(9)}
    return digests, log.startup_locality, [event.data for event in log.before_separator(7, "sha256")]


def _without(text: str, mask: bytes) -> int:
    data = b64decode(text)
    return int.from_bytes(data) & ~int.from_bytes(mask.ljust(len(data), b"\x00"))
