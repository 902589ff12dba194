"""The run-time registers: replayed from the firmware's log, and from what a system measured itself."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from blindbox_attestation.errors import AttestationError, MalformedEvidence
from blindbox_attestation.event_log import EventLog
from blindbox_attestation.tdx import Quote, appraise, rtmr
from blindbox_attestation.tdx.rtmr import RuntimeEvent
from tests.kit import NOON
from tests.kit.intel import RTMRS, FakeIntel

INTEL = FakeIntel()
ABOUT = struct.pack("<16sIBBBBIHHB", b"Spec ID Event03\x00", 0, 0, 2, 0, 2, 1, 12, 48, 0)
HEAD = struct.pack("<II20sI", 1, 3, bytes(20), len(ABOUT)) + ABOUT


def line(register: int, kind: int, what: bytes) -> bytes:
    return struct.pack("<IIIH48sI", register, kind, 1, 12, hashlib.sha384(what).digest(), len(what)) + what


LINES = (
    line(0, 9, b"the firmware"),  # MRTD is no register of the log's
    line(1, 3, b"a word about nothing"),
    line(1, 0x80000001, b"a setting"),
    line(2, 0x80000003, b"the kernel"),
    line(3, 13, b"the command line"),
    line(4, 13, b"nobody asks about this one"),
    line(1, 4, bytes(4)),
)
LOG = HEAD + b"".join(LINES)


def extend(*whats: bytes) -> bytes:
    value = bytes(48)
    for what in whats:
        value = hashlib.sha384(value + hashlib.sha384(what).digest()).digest()
    return value


GIVEN = (extend(b"a setting", bytes(4)), extend(b"the kernel"), extend(b"the command line"))


def test_a_log_is_replayed_register_by_register() -> None:
    assert rtmr.replay(EventLog.parse(LOG)) == GIVEN
    assert rtmr.replay(EventLog.parse(HEAD)) == (bytes(48),) * 3


def test_a_log_without_sha384_is_no_ccel() -> None:
    other = struct.pack("<16sIBBBBIHHB", b"Spec ID Event03\x00", 0, 0, 2, 0, 2, 1, 11, 32, 0)
    log = EventLog.parse(struct.pack("<II20sI", 1, 3, bytes(20), len(other)) + other)
    with pytest.raises(MalformedEvidence) as caught:
        rtmr.replay(log)
    assert caught.value.code == "malformed-event-log"


# --- in an appraisal ---


def refused(log: bytes | None, rtmrs: tuple[bytes, ...]) -> str:
    endorsements = INTEL.endorsements(event_log=log)
    policy = INTEL.tdx_policy(event_log="required", rtmrs=None)
    with pytest.raises(AttestationError) as caught:
        appraise(INTEL.quote(rtmrs=rtmrs), endorsements, policy, now=NOON)
    return caught.value.code


def test_a_required_log_has_to_give_the_registers_of_the_quote() -> None:
    """And says nothing about RTMR3, which the running system extends without an entry."""
    policy = INTEL.tdx_policy(event_log="required", rtmrs=None)
    quote = INTEL.quote(rtmrs=(*GIVEN, RTMRS[3]))
    claims = appraise(quote, INTEL.endorsements(event_log=LOG), policy, now=NOON)
    assert claims.event_log == EventLog.parse(LOG)
    assert refused(None, (*GIVEN, RTMRS[3])) == "event-log-missing"
    assert refused(LOG[:-1], (*GIVEN, RTMRS[3])) == "malformed-event-log"
    assert refused(LOG + LINES[2], (*GIVEN, RTMRS[3])) == "event-log-mismatch"
    for number in range(3):
        lie = [*GIVEN, RTMRS[3]]
        lie[number] = RTMRS[number]
        assert refused(LOG, tuple(lie)) == "event-log-mismatch"


def test_nothing_else_was_measured_than_the_digests_that_the_policy_names() -> None:
    setting, end, kernel = (hashlib.sha384(what).digest() for what in (b"a setting", bytes(4), b"the kernel"))
    quote = INTEL.quote(rtmrs=(*GIVEN, RTMRS[3]))

    def judged(events: dict[int, set[bytes]], log: bytes = LOG, quote: bytes = quote) -> str:
        policy = INTEL.tdx_policy(event_log="required", rtmrs=None, events=events)
        try:
            appraise(quote, INTEL.endorsements(event_log=log), policy, now=NOON)
        except AttestationError as error:
            return error.code
        return "accepted"

    assert judged({0: {setting, end}, 1: {kernel, end}}) == "accepted"
    assert judged({0: {setting}}) == "event-mismatch"
    assert judged({1: {setting}}) == "event-mismatch"
    # A register into which nothing was measured says nothing for the program.
    empty = INTEL.quote(rtmrs=(bytes(48),) * 4)
    assert judged({1: {kernel}}, HEAD, empty) == "event-mismatch"


def test_a_log_that_nobody_asks_for_is_not_read() -> None:
    endorsements = INTEL.endorsements(event_log=b"no log")
    assert appraise(INTEL.quote(), endorsements, INTEL.tdx_policy(), now=NOON).event_log is None


# --- genuine logs ---


def test_the_genuine_log_of_a_google_machine_gives_its_registers(vectors: Path) -> None:
    quote = Quote.parse((vectors / "tdx" / "v4_gcp_cos113_quote.bin").read_bytes())
    log = EventLog.parse((vectors / "tdx" / "v4_gcp_cos113_ccel.bin").read_bytes())
    assert rtmr.replay(log) == quote.rtmrs[:3]


def test_the_same_log_with_a_second_separator_does_not(vectors: Path) -> None:
    quote = Quote.parse((vectors / "tdx" / "v4_gcp_cos113_quote.bin").read_bytes())
    given = rtmr.replay(EventLog.parse((vectors / "tdx" / "ccel_cos113_dupe_separator.bin").read_bytes()))
    assert given[0] != quote.rtmrs[0]
    assert given[1] != quote.rtmrs[1]


def test_what_a_genuine_dstack_machine_measured_itself_gives_its_rtmr3(vectors: Path) -> None:
    """The digest is worked out from the words: none of them can be exchanged beside a right digest."""
    told = json.loads((vectors / "tdx" / "v4_dstack_quote_eventlog.json").read_text())
    quote = Quote.parse(bytes.fromhex(told["quote"]))
    log = json.loads(told["event_log"])
    runtime = [
        RuntimeEvent(one["event_type"], one["event"], bytes.fromhex(one["event_payload"]))
        for one in log
        if one["imr"] == 3
    ]
    assert [event.digest.hex() for event in runtime] == [one["digest"] for one in log if one["imr"] == 3]
    assert rtmr.replay_runtime_events(runtime) == quote.rtmrs[3]

    for number, event in enumerate(runtime):
        for lie in (
            replace(event, payload=event.payload + b"x"),
            replace(event, name=event.name + "x"),
            replace(event, kind=event.kind ^ 1),
        ):
            others = [*runtime[:number], lie, *runtime[number + 1 :]]
            assert rtmr.replay_runtime_events(others) != quote.rtmrs[3]
    assert rtmr.replay_runtime_events(runtime[:-1]) != quote.rtmrs[3]
    assert rtmr.replay_runtime_events([*runtime, runtime[-1]]) != quote.rtmrs[3]
