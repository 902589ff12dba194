"""
The log of a measured boot: from bytes to events, and the registers that they add up to.

TCG PC Client Platform Firmware Profile 1.06, §10 (crypto-agile log); a TDX guest's CCEL (UEFI 2.10, §38) has
the same form, with registers of its own. This module reads and replays; what a log has to say is in
`vtpm/boot.py` and `tdx/rtmr.py`.

Only the digests of a log are vouched for, and only if its replay gives what the hardware has signed. The
type and the data of an event are words beside them: `Event.data_is_measured` says whether a digest covers the
data, and nothing covers the type. Whoever looks for an event therefore looks for its digest, or its place.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from .errors import MalformedEvidence

MAX_LOG: Final = 256 * 1024
MAX_EVENTS: Final = 4096
MAX_ALGORITHMS: Final = 8

BANKS: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""Algorithm of TPM 2.0 part 2, §6.3 → the bank of registers that has it."""
BANK_SIZES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}

# Types of events: PFP §10.4.1
NO_ACTION: Final = 0x00000003
SEPARATOR: Final = 0x00000004

EFI_GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""EFI_GLOBAL_VARIABLE of UEFI 2.10 §3.3, as it lies in memory."""

_REGISTERS: Final = range(24)
_SIGNATURE: Final = b"Spec ID Event03\x00"
_STARTUP_LOCALITY: Final = b"StartupLocality\x00"
_LOCALITIES: Final = (0, 3, 4)
_LONGEST_NAME: Final = 128  # characters, of a variable

_MAY_BE_PADDING: Final = (0x00, 0xFF)

_FIRST: Final = struct.Struct("<II20sI")
_ABOUT: Final = struct.Struct("<16sIBBBBI")
_HEAD: Final = struct.Struct("<III")
_VARIABLE: Final = struct.Struct("<16sQQ")

_SEPARATOR_DIGESTS: Final = {  # PFP §3.3.2.2: of zero, or of -1
    bank: frozenset(hashlib.new(bank, data).digest() for data in (bytes(4), b"\xff" * 4))
    for bank in BANK_SIZES
}


class Event(NamedTuple):
    """
    Something that was measured into a register. Nothing here has been verified.

    A tuple, because a log has hundreds and a frozen dataclass takes three times as long to make.
    """

    register: int
    kind: int
    digests: Mapping[str, bytes]  # by bank
    data: bytes

    def data_is_measured(self, bank: str) -> bool:
        """Whether the digest is that of the data, so that the data is as vouched for as the digest is."""
        return self.digests[bank] == hashlib.new(bank, self.data).digest()

    def is_separator(self, bank: str) -> bool:
        """Told by its digest: it ends what the firmware measures before it boots, whatever the type says."""
        return self.digests[bank] in _SEPARATOR_DIGESTS[bank]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the firmware, as the data of an event holds it (UEFI_VARIABLE_DATA, PFP §10.2.6)."""

    vendor: bytes  # 16 bytes, a GUID
    name: str
    value: bytes

    @classmethod
    def parse(cls, data: bytes) -> Variable:
        if len(data) < _VARIABLE.size:
            raise _malformed("a variable is cut short")
        vendor, characters, size = _VARIABLE.unpack_from(data)
        begins = _VARIABLE.size + 2 * characters
        if characters > _LONGEST_NAME or len(data) != begins + size:
            raise _malformed("a variable is not as long as it says")
        try:
            name = data[_VARIABLE.size : begins].decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise _malformed("a variable's name is not UTF-16") from error
        return cls(vendor, name, data[begins:])


@dataclass(frozen=True, slots=True)
class EventLog:
    """The events of one boot, in their order; those that no register was extended with are left out."""

    banks: tuple[str, ...]
    startup_locality: int
    events: tuple[Event, ...]

    @classmethod
    def parse(cls, data: bytes) -> EventLog:
        """Everything is read: nothing may follow but the padding of the table that held it."""
        if len(data) > MAX_LOG:
            raise _malformed(f"{len(data)} bytes, at most {MAX_LOG} are read")
        return _log(data)

    def of(self, register: int) -> tuple[Event, ...]:
        return tuple(event for event in self.events if event.register == register)

    def before_separator(self, register: int, bank: str) -> tuple[Event, ...]:
        """What the firmware measured into a register before it began to boot; empty without a separator."""
        found = self.of(register)
        for at, event in enumerate(found):
            if event.is_separator(bank):
                return found[:at]
        return ()


@lru_cache(maxsize=8)  # a machine sends the same log with every quote
def _log(data: bytes) -> EventLog:
    banks, at = _header(data)
    locality: int | None = None
    started = False
    events: list[Event] = []
    for event in _events(data, at, banks):
        if len(events) >= MAX_EVENTS:
            raise _malformed(f"more than {MAX_EVENTS} events")
        if event.kind != NO_ACTION:
            events.append(event)
            started = started or event.register == 0
        elif event.data.startswith(_STARTUP_LOCALITY):
            if locality is not None or started or event.register != 0:
                raise _malformed("a startup locality twice, too late, or of another register than 0")
            locality = _locality(event.data)
    return EventLog(tuple(banks.values()), locality or 0, tuple(events))


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """Register → the value it has after these events and no others; registers without events are left out."""
    if bank not in log.banks:
        raise _malformed(f"it has no digests of {bank}, only of {', '.join(log.banks)}")
    algorithm = getattr(hashlib, bank)
    zero = bytes(BANK_SIZES[bank])
    found = {0: zero[:-1] + bytes((log.startup_locality,))} if log.startup_locality else {}
    for event in log.events:
        register = event.register
        found[register] = algorithm(found.get(register, zero) + event.digests[bank]).digest()
    return found


def _header(data: bytes) -> tuple[dict[int, str], int]:
    """The first event, in the form of TPM 1.2: which algorithms the others have (PFP §10.4.5.1)."""
    if len(data) < _FIRST.size:
        raise _malformed(f"{len(data)} bytes are no log")
    register, kind, digest, size = _FIRST.unpack_from(data)
    at = _FIRST.size + size
    about = data[_FIRST.size : at]
    if kind != NO_ACTION or any(digest) or register not in _REGISTERS or len(about) != size:
        raise _malformed("the first event is not a header")
    if size < _ABOUT.size or not about.startswith(_SIGNATURE):
        raise _malformed("the header does not begin with 'Spec ID Event03': only crypto-agile logs are read")
    _, _, minor, major, _, _, count = _ABOUT.unpack_from(about)
    table = _ABOUT.size + 4 * count
    if (major, minor) != (2, 0) or not 1 <= count <= MAX_ALGORITHMS or len(about) < table + 1:
        raise _malformed(f"a header of version {major}.{minor} with {count} algorithms")
    if len(about) != table + 1 + about[table]:
        raise _malformed("the header is not as long as it says")
    banks: dict[int, str] = {}
    for algorithm, width in struct.iter_unpack("<HH", about[_ABOUT.size : table]):
        bank = BANKS.get(algorithm)
        if bank is None or algorithm in banks or width != BANK_SIZES[bank]:
            raise _malformed(
                f"an algorithm that is unknown, there twice or of a wrong size: {algorithm:#06x}"
            )
        banks[algorithm] = bank
    return banks, at


def _ends(data: bytes, at: int) -> bool:
    """Whether nothing follows, or only the padding of a table that was larger: all FF, or all zero."""
    head = data[at : at + _HEAD.size]
    if not head:
        return True
    for filler in (b"\xff", b"\x00"):
        if not head.strip(filler):
            if data[at:].strip(filler):
                raise _malformed("there is something behind its padding")
            return True
    return False


def _events(data: bytes, at: int, banks: Mapping[int, str]) -> Iterator[Event]:
    """TCG_PCR_EVENT2 (PFP §10.2.2) one after another, up to the padding; one loop, for there are hundreds."""
    algorithms, names, count = tuple(banks), tuple(banks.values()), len(banks)
    digests = "".join(f"H{BANK_SIZES[name]}s" for name in names)
    head = struct.Struct(f"<III{digests}I")  # up to the data; a digest of every algorithm, in their order
    unpack, size, last = head.unpack_from, head.size, len(data)
    while not (at >= last or data[at] in _MAY_BE_PADDING) or not _ends(data, at):
        try:
            told = unpack(data, at)
        except struct.error as error:
            raise _malformed("an event is cut short") from error
        register = told[0]
        if register not in _REGISTERS or told[2] != count or told[3:-1:2] != algorithms:
            raise _malformed(
                "an event of no register, or without a digest of each algorithm of the header in turn"
            )
        begins = at + size
        at = begins + told[-1]
        if at > last:
            raise _malformed("an event is cut short")
        yield Event(register, told[1], dict(zip(names, told[4:-1:2], strict=True)), data[begins:at])


def _locality(data: bytes) -> int:
    """PFP §10.4.5.3: who started the TPM; PCR 0 begins with it."""
    told = data[len(_STARTUP_LOCALITY) :]
    if len(told) != 1 or told[0] not in _LOCALITIES:
        raise _malformed(f"an unknown startup locality: {told.hex()}")
    return told[0]


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the event log cannot be read: {what}", code="malformed-event-log")
