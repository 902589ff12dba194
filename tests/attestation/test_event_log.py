"""Logs of measured boots: what is read, what is refused, and what the registers add up to."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from blindbox_attestation.errors import MalformedEvidence
from blindbox_attestation.event_log import BANKS, MAX_EVENTS, MAX_LOG, EventLog, Variable, replay
from tests.kit.tpm import (
    BOOT,
    NO_ACTION,
    Measurement,
    header,
    log_of,
    registers_of,
    secure_boot,
    separator,
    variable,
)

LOGS = {
    "ubuntu-2404-amd-sevsnp": 116,
    "cos-101-amd-sev": 48,
    "glinux-alex": 27,  # and one event that no register is extended with
    "ubuntu-2104-no-secure-boot": 105,
}


def refused(data: bytes) -> bool:
    try:
        EventLog.parse(data)
    except MalformedEvidence as error:
        return error.code == "malformed-event-log"
    return False


@pytest.mark.parametrize(("name", "events"), LOGS.items())
def test_a_real_log_adds_up_to_the_registers_of_its_machine(vectors: Path, name: str, events: int) -> None:
    log = EventLog.parse((vectors / "vtpm" / f"eventlog_{name}.bin").read_bytes())
    wanted = json.loads((vectors / "vtpm" / f"eventlog_{name}.pcrs.json").read_bytes())
    assert len(log.events) == events
    assert log.startup_locality == wanted["startup_locality"]
    assert set(log.banks) == wanted["banks"].keys()
    for bank, registers in wanted["banks"].items():
        assert {str(one): value.hex() for one, value in replay(log, bank).items()} == registers


def test_a_digest_with_one_bit_turned_changes_one_register(vectors: Path) -> None:
    """C-15: in the bank it is of, and in no other."""
    name = "eventlog_ubuntu-2404"
    honest = EventLog.parse((vectors / "vtpm" / f"{name}-amd-sevsnp.bin").read_bytes())
    turned = EventLog.parse((vectors / "vtpm" / f"{name}_tampered.bin").read_bytes())
    one, other = replay(honest, "sha256"), replay(turned, "sha256")
    assert len([register for register in one if one[register] != other[register]]) == 1
    assert replay(honest, "sha384") == replay(turned, "sha384")


def test_a_log_of_49_bytes_is_refused(vectors: Path) -> None:
    assert refused((vectors / "vtpm" / "eventlog_short_no_action.bin").read_bytes())


def test_the_log_of_a_tdx_guest_has_the_same_form(vectors: Path) -> None:
    log = EventLog.parse((vectors / "tdx" / "v4_gcp_cos113_ccel.bin").read_bytes())
    assert log.banks == ("sha384",)
    assert {1, 2, 3} >= replay(log, "sha384").keys()


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384"])
@pytest.mark.parametrize("locality", [0, 3, 4])
def test_a_log_adds_up_as_the_tpm_would_have_it(bank: str, locality: int) -> None:
    log = EventLog.parse(log_of(locality=locality))
    expected = registers_of(bank=bank, locality=locality)
    found = replay(log, bank)
    assert found == {register: expected[register] for register in found}
    assert {event.register for event in log.events} == found.keys()


@pytest.mark.parametrize("padding", [b"", b"\xff" * 4, b"\xff" * 500, b"\x00" * 12, b"\x00" * 500])
def test_the_padding_of_a_table_is_no_event(padding: bytes) -> None:
    assert EventLog.parse(log_of() + padding) == EventLog.parse(log_of())


@pytest.mark.parametrize(
    "rest", [b"\xff" * 16 + b"\x00", b"\x00" * 16 + b"\x01", b"\x01", b"\xff" * 12 + b"x"]
)
def test_nothing_else_may_follow(rest: bytes) -> None:
    """C-17: a log has one spelling."""
    assert refused(log_of() + rest)


def test_a_log_cut_short_anywhere_is_refused_or_ends_with_an_event() -> None:
    """C-19: at every length."""
    whole = log_of()
    ends = {len(header())}
    for event in BOOT:
        ends.add(max(ends) + len(event.encode(("sha1", "sha256", "sha384"))))
    for length in range(len(whole)):
        if not refused(whole[:length]):
            rest = whole[max(end for end in ends if end <= length) : length]
            assert not any(rest), length  # at the end of an event, or within zeros that look like padding
    assert max(ends) == len(whole)


def test_every_bit_of_a_log_may_be_turned_and_nothing_else_is_raised() -> None:
    whole = log_of(BOOT[:3])
    codes: set[str] = set()
    for bit in range(8 * len(whole)):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        try:
            replay(EventLog.parse(bytes(turned)), "sha256")
        except MalformedEvidence as error:
            codes.add(error.code)
    assert codes == {"malformed-event-log"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(signature=b"Spec ID Event02\x00"),
        header(version=(1, 2)),
        header(version=(0, 3)),
        header(kind=4),
        header(banks=()),
        header(banks=("sha256", "sha256")),
        header()[:-1],
        header()[:-1] + b"\x01",
        header().replace(struct.pack("<HH", 0x000B, 32), struct.pack("<HH", 0x000B, 20)),
        header().replace(struct.pack("<HH", 0x000B, 32), struct.pack("<HH", 0x0012, 32)),
    ],
)
def test_a_header_of_another_form_is_refused(data: bytes) -> None:
    assert refused(data)


def test_a_header_may_name_its_maker() -> None:
    assert not refused(header(vendor=b"someone"))


@pytest.mark.parametrize(
    "event",
    [
        Measurement(24, 4, bytes(4)).encode(("sha1", "sha256", "sha384")),
        Measurement(0, 4, bytes(4)).encode(("sha1", "sha256")),
        Measurement(0, 4, bytes(4)).encode(("sha1", "sha256", "sha256")),
        Measurement(0, 4, bytes(4)).encode(("sha1", "sha384", "sha256")),
        Measurement(0, 4, bytes(4)).encode(("sha1", "sha256", "sha384", "sha384")),
    ],
)
def test_an_event_of_no_register_or_with_other_digests_is_refused(event: bytes) -> None:
    assert refused(log_of() + event)


@pytest.mark.parametrize("locality", [1, 2, 5, 255])
def test_an_unknown_locality_is_refused(locality: int) -> None:
    assert refused(log_of(locality=locality))


def test_a_locality_is_told_once_and_first() -> None:
    told = Measurement(0, NO_ACTION, b"StartupLocality\x00\x03")
    assert refused(log_of((told, told)))
    assert refused(log_of((separator(0), told)))
    assert refused(log_of((Measurement(1, NO_ACTION, told.data),)))
    assert refused(log_of((Measurement(0, NO_ACTION, told.data + b"\x00"),)))
    assert not refused(log_of((separator(1), told)))


def test_sizes_and_counts_are_bounded() -> None:
    """C-18: before anything is worked out."""
    assert refused(bytes(MAX_LOG + 1))
    empty = Measurement(1, 5, b"")
    assert not refused(log_of((empty,) * MAX_EVENTS, banks=("sha1",)))
    assert refused(log_of((empty,) * (MAX_EVENTS + 1), banks=("sha1",)))


def test_a_bank_that_the_log_does_not_have_cannot_be_replayed() -> None:
    with pytest.raises(MalformedEvidence, match="no digests of sha384") as caught:
        replay(EventLog.parse(log_of(banks=("sha256",))), "sha384")
    assert caught.value.code == "malformed-event-log"


def test_data_counts_only_under_its_own_digest() -> None:
    """Data and type of an event are not signed: trustee and safeboot both relied on them once."""
    honest, edited = secure_boot(b"\x01"), secure_boot(b"\x00")
    log = EventLog.parse(log_of((honest, Measurement(7, honest.kind, honest.data, edited.data))))
    assert [event.data_is_measured("sha256") for event in log.events] == [True, False]


def test_a_separator_is_told_by_its_digest_whatever_its_type_says() -> None:
    log = EventLog.parse(
        log_of((secure_boot(), Measurement(7, 0xD, b"no separator", bytes(4)), secure_boot()))
    )
    assert len(log.before_separator(7, "sha256")) == 1
    assert EventLog.parse(log_of((secure_boot(),))).before_separator(7, "sha256") == ()


def test_a_variable_is_read_as_it_was_written() -> None:
    found = Variable.parse(variable("SecureBoot", b"\x01"))
    assert (found.name, found.value) == ("SecureBoot", b"\x01")
    for broken in (
        b"",
        variable("x", b"y")[:-1],
        variable("x", b"y") + b"z",
        variable("x" * 129, b""),
        bytes(16) + struct.pack("<QQ", 1, 0) + b"\x00\xd8",
    ):
        with pytest.raises(MalformedEvidence) as caught:
            Variable.parse(broken)
        assert caught.value.code == "malformed-event-log"


def test_every_bank_is_one_that_can_be_hashed() -> None:
    assert set(BANKS.values()) <= hashlib.algorithms_guaranteed
