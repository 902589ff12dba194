"""
The run-time registers of a TDX guest, replayed from its logs.

The CCEL is the firmware's log of RTMR0 to RTMR2 (UEFI 2.10, §38 "Confidential Computing"), in the form of
`event_log.py`: register n of the log is RTMR n − 1, register 0 is MRTD. RTMR3 is extended by the running
system, which writes no CCEL entry, so the CCEL is never asked about it.

A replay proves that these digests are what the register was made of, and nothing about the words beside a
digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from .. import event_log
from ..errors import MeasurementMismatch, PolicyRefused
from ..event_log import EventLog
from ..walk import Finding

BANK: Final = "sha384"
IN_CCEL: Final = range(3)
_ZERO: Final = bytes(event_log.BANK_SIZES[BANK])


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """One thing that a running system measured into RTMR3, in the form of dstack."""

    kind: int
    name: str
    payload: bytes

    @property
    def digest(self) -> bytes:
        """Worked out from what the event says, so that its words cannot be exchanged."""
        named = b":".join((self.kind.to_bytes(4, "little"), self.name.encode("utf-8"), self.payload))
        return hashlib.sha384(named).digest()


def replay_runtime_events(events: Iterable[RuntimeEvent]) -> bytes:
    """The value that RTMR3 has after these events, and no others."""
    register = _ZERO
    for event in events:
        register = hashlib.sha384(register + event.digest).digest()
    return register


def replay(log: EventLog) -> tuple[bytes, ...]:
    """The values that RTMR0, RTMR1 and RTMR2 have after this log. Raises `MalformedEvidence`."""
    registers = event_log.replay(log, BANK)
    return tuple(registers.get(number + 1, _ZERO) for number in IN_CCEL)


def check(
    log: EventLog | None, rtmrs: Sequence[bytes], only: Mapping[int, Set[bytes]], finding: Finding
) -> None:
    """
    See that the CCEL gives the values of RTMR0, RTMR1 and RTMR2, and what it says of the registers in `only`.

    Something was measured into those, and nothing but these digests. Its words are not asked: they are not
    signed.
    """
    if log is None:
        raise PolicyRefused(
            "the event log was not sent, and the policy requires one", code="event-log-missing"
        )
    for number, value in enumerate(replay(log)):
        finding.expect(
            value == rtmrs[number],
            f"event log gives RTMR{number}",
            found=value,
            wanted=rtmrs[number],
            source="event log",
            error=MeasurementMismatch,
            code="event-log-mismatch",
            message=f"the event log gives RTMR{number} as {value.hex()}, "
            f"and the quote says {rtmrs[number].hex()}",
        )
    for number, allowed in only.items():
        digests = [event.digests[BANK] for event in log.of(number + 1)]
        others = [digest for digest in digests if digest not in allowed]
        finding.expect(
            bool(digests) and not others,
            f"events of RTMR{number}",
            found=f"also {others[0].hex()}" if others else f"{len(digests)} events",
            wanted=allowed,
            source="event log",
            error=MeasurementMismatch,
            code="event-mismatch",
        )
