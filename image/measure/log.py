"""
The log of a real boot beside what was predicted of it, event by event.

The registers say whether something else was started; a log, once its replay gives the registers, says what.
Not one event more or less is let pass in the registers that are predicted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Final

from blindbox_attestation.event_log import BANK_SIZES, SEPARATOR, Event, EventLog, replay

from .errors import UnreadableLog
from .events import Measured
from .pcr import BANKS, REGISTERS

COMPARED: Final = (4, 5, 9, 11, 12)


def registers(log: EventLog) -> dict[str, dict[int, bytes]]:
    """Bank → register → what the log adds up to, for the registers and banks that are predicted."""
    banks = [bank for bank in BANKS if bank in log.banks]
    if not banks:
        raise UnreadableLog(f"it has no digests of {' or '.join(BANKS)}, only of {', '.join(log.banks)}")
    return {
        bank: {register: found.get(register, bytes(BANK_SIZES[bank])) for register in REGISTERS}
        for bank in banks
        for found in (replay(log, bank),)
    }


def differences(log: EventLog, boot: Iterable[Measured]) -> Iterator[str]:
    """A line for each event that is not as predicted, with its register and what it should have been."""
    events = tuple(boot)
    for bank in registers(log):
        for register in COMPARED:
            expected = [event for event in events if event.register == register]
            found = [event for event in log.of(register) if not _set_aside(event, bank)]
            for number, (wanted, seen) in enumerate(zip_longest(expected, found), start=1):
                told = None if wanted is None else wanted.digest(bank)
                said = None if seen is None else seen.digests[bank]
                if told != said:
                    what = "nothing more" if wanted is None else wanted.what
                    yield (
                        f"PCR {register} ({bank}), event {number}: wanted {what} {_hex(told)}, "
                        f"the log has {_hex(said)}"
                    )


def _set_aside(event: Event, bank: str) -> bool:
    """The separator is predicted where it counts, in register 4; in register 5 there is one too."""
    return event.register != 4 and event.kind == SEPARATOR and event.is_separator(bank)


def _hex(digest: bytes | None) -> str:
    return "nothing" if digest is None else f"({digest.hex()[:16]}…)"
