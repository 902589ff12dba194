"""
What a policy asks of a measured boot: registers, and events of its log. Steps 10 and 12 of SPEC §4.

Used by every policy whose machine has a TPM: an ordinary one (`policy.py`), and Azure's, which the paravisor
runs. Who vouches for the quoted registers is said there. Nothing here believes the words of a log: an event
counts by its digest and its place, once the log has replayed to the quoted registers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from .. import policy_values
from ..errors import (
    InvalidPolicy,
    MalformedEvidence,
    MeasurementMismatch,
    PolicyRefused,
    UntrustedEvidence,
)
from ..event_log import BANK_SIZES, EFI_GLOBAL, EventLog, Variable, replay
from ..policy_words import Words
from ..walk import Finding
from .quote import BANKS_READ, PCRS, Attest

Bank = Literal["sha256", "sha384"]
SecureBoot = Literal["required", "unchecked"]
Log = Literal["required", "unused"]

RESETTABLE: Final = (16, 20, 21, 22, 23)
"""
TCG PC Client Platform TPM Profile, table of PCR attributes: programs may set these back to zero, 20 to 22
only a kernel, which has locality 2.
"""
FIRMWARE: Final = range(8)  # registers that only the firmware extends, and tells in its log
LOGGED: Final = range(16)
BOOT_PROGRAM: Final = 4
SECURE_BOOT: Final = 7
MAX_RULES: Final = 64
SHA256_SIZE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRule:
    """
    What the log must say of one register; one of two kinds.

    `only`: everything measured into it has one of these digests, of the policy's bank. `variable`: the
    firmware measured this variable before it began to boot, once, and the SHA-256 of its value is named.
    """

    register: int
    only: Set[bytes] | None = None
    variable: str | None = None
    sha256_of_data: Set[bytes] | None = None

    def __post_init__(self) -> None:
        policy_values.integer("events: register", self.register, LOGGED[-1])
        if self.only is not None and (self.variable, self.sha256_of_data) == (None, None):
            sizes = [len(one) for one in policy_values.several("only", self.only) if isinstance(one, bytes)]
            size = sizes[0] if sizes else 0
            object.__setattr__(self, "only", policy_values.digests("only", self.only, size))
        elif self.only is None and self.variable is not None and self.sha256_of_data is not None:
            policy_values.words("variable", [self.variable], 64)
            digests = policy_values.digests("sha256_of_data", self.sha256_of_data, SHA256_SIZE)
            object.__setattr__(self, "sha256_of_data", digests)
        else:
            raise InvalidPolicy("an event rule has either `only`, or `variable` and `sha256_of_data`")

    def __str__(self) -> str:
        if self.variable is not None:
            return f"PCR{self.register}: variable {self.variable}"
        return f"PCR{self.register}: nothing else was measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """The registers of a quote, and the log that came with it."""

    bank: str
    pcrs: Mapping[int, bytes]
    log: EventLog | None
    replayed: Mapping[int, bytes]  # what the log adds up to

    @classmethod
    def read(cls, bank: str, pcrs: Mapping[int, bytes], log: bytes | None) -> Measured:
        """Raises `MalformedEvidence` for a log that cannot be read, or not for this bank."""
        parsed = None if log is None else EventLog.parse(log)
        replayed = {} if parsed is None or bank not in BANKS_READ else replay(parsed, bank)
        return cls(bank, MappingProxyType(dict(pcrs)), parsed, MappingProxyType(replayed))


@dataclass(frozen=True, slots=True)
class MeasuredBoot:
    """
    What must be true of a machine's boot: at least one register or one event is named.

    `secure_boot="required"` (and `events`) are read from the event log. Software may reset PCR16 and PCR20 to
    PCR23 at any time, so that nothing can be asked of them.
    """

    pcrs: Mapping[int, Set[bytes]] = field(default_factory=lambda: MappingProxyType({}))
    events: Sequence[EventRule] = ()
    bank: Bank = "sha256"
    secure_boot: SecureBoot = "required"
    event_log: Log = "required"

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        for name, choices in (
            ("bank", BANKS_READ),
            ("secure_boot", ("required", "unchecked")),
            ("event_log", ("required", "unused")),
        ):
            if getattr(self, name) not in choices:
                raise InvalidPolicy(f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}")
        freeze(self, "pcrs", _registers(self.pcrs, BANK_SIZES[self.bank]))
        freeze(self, "events", _rules(self.events, BANK_SIZES[self.bank]))
        if not self.pcrs and not self.events:
            raise InvalidPolicy("a boot that names no register and no event would accept any program")
        if self.event_log == "unused" and (self.events or self.secure_boot == "required"):
            raise InvalidPolicy(
                "events and secure_boot are read from the event log: "
                "event_log cannot be 'unused' beside them (secure_boot='unchecked' asks nothing)"
            )

    def __hash__(self) -> int:
        return hash((frozenset(self.pcrs.items()), len(self.events), self.bank))

    @property
    def relied_on(self) -> frozenset[int]:
        """The registers that must be in the quote."""
        named = {*self.pcrs, *(rule.register for rule in self.events)}
        return frozenset(named | {SECURE_BOOT} if self.secure_boot == "required" else named)

    def log_of(self, endorsements: Mapping[str, bytes]) -> bytes | None:
        """The event log, if the policy looks at one."""
        return endorsements.get("event_log") if self.event_log == "required" else None

    def check_selection(self, attest: Attest, finding: Finding) -> None:
        """Step 7: the quote is of the bank and of the registers that this policy relies on."""
        finding.expect(
            attest.bank == self.bank,
            "bank of registers",
            found=attest.bank,
            wanted=self.bank,
            source="quote",
            error=UntrustedEvidence,
            code="pcr-selection",
        )
        absent = sorted(self.relied_on - set(attest.registers))
        finding.expect(
            not absent,
            "registers that are relied on",
            found=" ".join(map(str, attest.registers)),
            wanted=" ".join(map(str, sorted(self.relied_on))),
            source="quote",
            error=UntrustedEvidence,
            code="pcr-selection",
            message=f"the quote does not cover PCR {', '.join(map(str, absent))}, which the policy relies on",
        )

    def check_secure_boot(self, measured: Measured, finding: Finding) -> None:
        """
        Step 10: what the firmware measured first into PCR7 says that Secure Boot is on (PFP §3.3.4.8), and
        nothing that it measured there before it began to boot says otherwise.
        """
        if self.secure_boot == "unchecked":
            finding.not_asked("Secure Boot")
            return
        log = _log(measured, finding)
        _check_replay(measured, SECURE_BOOT, finding)
        measured_first = _variables(log, SECURE_BOOT, self.bank) or [None]
        told = [
            one.value if one is not None and (one.vendor, one.name) == (EFI_GLOBAL, "SecureBoot") else None
            for one in measured_first
        ]
        values = [value for value in told if value is not None]
        words = {b"\x00": "off", b"\x01": "on"}
        finding.expect(
            told[0] == b"\x01" and len(values) == 1,  # a second one is what the setup changed it to
            "Secure Boot",
            found=", then ".join(words.get(value, value[:8].hex()) for value in values) or "not told",
            wanted="on",
            source="event log, PCR7 up to its separator",
            code="secure-boot-off",
        )

    def check_launch(self, measured: Measured, finding: Finding) -> None:
        """Step 12: the registers, and what the log says of them."""
        for register in sorted(measured.pcrs.keys() | self.pcrs.keys()):
            self._check_register(register, measured, finding)
        if self.event_log == "unused":
            finding.not_asked("event log")
            return
        log = _log(measured, finding)
        for register in sorted({*FIRMWARE} & measured.pcrs.keys() | {rule.register for rule in self.events}):
            _check_replay(measured, register, finding)
        for rule in self.events:
            self._check_event(rule, log, finding)

    def _check_register(self, register: int, measured: Measured, finding: Finding) -> None:
        allowed, value = self.pcrs.get(register), measured.pcrs.get(register)
        found = "not in the quote" if value is None else value.hex()
        if allowed is None:
            finding.not_asked(f"PCR{register}", found=found, source="pcrs")
            return
        finding.expect(
            value in allowed,
            f"PCR{register}",
            found=found,
            wanted=allowed,
            source="pcrs",
            error=MeasurementMismatch,
            code="pcr-mismatch",
            message=f"PCR{register} is {found}, which is none of the {len(allowed)} that the policy names",
        )

    def _check_event(self, rule: EventRule, log: EventLog, finding: Finding) -> None:
        if rule.only is not None:
            digests = [event.digests[self.bank] for event in log.of(rule.register)]
            others = [digest for digest in digests if digest not in rule.only]
            good = bool(digests) and not others
            found = f"{len(digests)} events" if not others else f"also {others[0].hex()}"
            wanted: object = rule.only
        else:
            values = self._values(rule, log)
            told = [hashlib.sha256(value).digest() for value in values]
            good = len(told) == 1 and told[0] in (rule.sha256_of_data or ())
            found = told[0].hex() if len(told) == 1 else f"there {len(told)} times"
            wanted = rule.sha256_of_data
        finding.expect(
            good,
            str(rule),
            found=found,
            wanted=wanted,
            source="event log",
            error=MeasurementMismatch,
            code="event-mismatch",
        )

    def _values(self, rule: EventRule, log: EventLog) -> list[bytes]:
        """The values under which the firmware measured a variable before it began to boot."""
        variables = _variables(log, rule.register, self.bank)
        return [one.value for one in variables if one is not None and one.name == rule.variable]

    def in_words(self) -> Words:
        checks = [
            f"PCR{register} ({self.bank}) is {' or '.join(sorted(f'{one.hex()[:16]}…' for one in values))}."
            for register, values in sorted(self.pcrs.items())
        ]
        for rule in self.events:
            if rule.only is not None:
                checks.append(
                    f"Nothing was measured into PCR{rule.register} but {len(rule.only)} named digests."
                )
            else:
                checks.append(
                    f"The firmware's variable {rule.variable} in PCR{rule.register} is a named one."
                )
        unchecked: list[str] = []
        if BOOT_PROGRAM not in self.relied_on:
            unchecked.append(
                "Which program the firmware started (PCR4). Any that it may start can extend a register "
                "above 7 to whatever value is named."
            )
        if self.event_log == "required":
            checks.append("The log of the boot adds up to the quoted registers of the firmware.")
        else:
            unchecked.append("The log of the boot is not looked at.")
        if self.secure_boot == "required":
            checks.append("Secure Boot is on.")
        else:
            unchecked.append("Whether Secure Boot is on.")
        return Words(trusts=(), checks=tuple(checks), unchecked=tuple(unchecked))


def _log(measured: Measured, finding: Finding) -> EventLog:
    finding.expect(
        measured.log is not None,
        "event log",
        found="there" if measured.log is not None else "not sent",
        wanted="there",
        source="event_log",
        error=PolicyRefused,
        code="event-log-missing",
        message="the event log was not sent, and the policy reads from it; does the machine have "
        "/sys/kernel/security/tpm0/binary_bios_measurements?",
    )
    assert measured.log is not None
    return measured.log


def _variables(log: EventLog, register: int, bank: str) -> list[Variable | None]:
    """
    What the firmware measured into a register before it began to boot; None for what is no variable.

    Whoever hands over the log may call an event by another type and give it other data. So the type is not
    asked; and where the digest of one event is not that of its data, nothing is told at all, for that event
    may be the one which takes back another.
    """
    events = log.before_separator(register, bank)
    if not all(event.data_is_measured(bank) for event in events):
        return []
    return [_variable(event.data) for event in events]


def _variable(data: bytes) -> Variable | None:
    try:
        return Variable.parse(data)
    except MalformedEvidence:
        return None


def _check_replay(measured: Measured, register: int, finding: Finding) -> None:
    """The log adds up to the quoted register, and the firmware has not begun to boot twice in it."""
    told = measured.replayed.get(register, bytes(BANK_SIZES[measured.bank]))
    value = measured.pcrs.get(register)
    finding.expect(
        told == value,
        f"PCR{register} from the log",
        found=told,
        wanted="in the quote" if value is None else value,
        source="event log",
        error=MeasurementMismatch,
        code="event-log-mismatch",
        message=f"the event log adds up to {told.hex()} in PCR{register}, and the TPM says "
        f"{'nothing' if value is None else value.hex()}",
    )
    if register in FIRMWARE and measured.log is not None:
        separators = sum(event.is_separator(measured.bank) for event in measured.log.of(register))
        finding.expect(
            separators <= 1,
            f"separators in PCR{register}",
            found=separators,
            wanted="at most 1",
            source="event log",
            error=MeasurementMismatch,
            code="event-mismatch",
        )


def _registers(values: object, size: int) -> Mapping[int, frozenset[bytes]]:
    if not isinstance(values, Mapping):
        raise InvalidPolicy(f"pcrs is {values!r}, expected register → values")
    found: dict[int, frozenset[bytes]] = {}
    for register, allowed in values.items():
        if not isinstance(register, int) or isinstance(register, bool) or register not in PCRS:
            raise InvalidPolicy(f"pcrs: {register!r} is no register, expected 0 to {PCRS[-1]}")
        if register in RESETTABLE:
            raise InvalidPolicy(f"pcrs: any program can reset PCR{register}, so its value proves nothing")
        found[register] = policy_values.digests(f"PCR{register}", allowed, size)
    return MappingProxyType(found)


def _rules(values: object, size: int) -> tuple[EventRule, ...]:
    if not isinstance(values, list | tuple) or len(values) > MAX_RULES:
        raise InvalidPolicy(f"events: expected a list of at most {MAX_RULES} rules")
    for rule in values:
        if not isinstance(rule, EventRule):
            raise InvalidPolicy(f"events: {rule!r} is no EventRule")
        if rule.only is not None:
            policy_values.digests(f"events: PCR{rule.register}", rule.only, size)
    if len({(rule.register, rule.variable) for rule in values}) != len(values):
        raise InvalidPolicy("events: a register or a variable has two rules; write them as one")
    return tuple(values)
