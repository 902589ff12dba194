"""A disk's partition table, as firmware measures it."""

from __future__ import annotations

import io
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given

from image.measure.errors import UnreadableDisk
from image.measure.gpt import event_data
from tests.kit.garbling import Edit, edits, garbled
from tests.kit.uefi import ESP, LINUX, SECTOR, disk

HONEST = disk(b"an ESP")


def measured(data: bytes) -> bytes:
    return event_data(io.BytesIO(data))


def test_the_header_the_number_of_partitions_and_their_entries_are_measured() -> None:
    """UEFI_GPT_DATA, TCG PC Client Platform Firmware Profile §10.2.5."""
    entries = HONEST[2 * SECTOR : 2 * SECTOR + 2 * 128]
    assert measured(HONEST) == HONEST[SECTOR : SECTOR + 92] + struct.pack("<Q", 2) + entries


def test_what_the_partitions_hold_is_not_measured() -> None:
    """So the settings' partition can be written after the build; what is in it is bound by config_digest."""
    assert measured(disk(b"an EXP")) == measured(HONEST)


def test_another_partition_another_name_or_another_place_is_another_measurement() -> None:
    two = ((ESP, "blindbox-esp"), (LINUX, "blindbox-root"))
    found = {
        measured(disk(b"an ESP", partitions=partitions))
        for partitions in (two, two[:1], (two[1], two[0]), (two[0], (LINUX, "blindbox-data")))
    }
    found.add(measured(disk(bytes(5000))))
    assert len(found) == 5


def test_entries_in_between_that_are_empty_are_passed_over() -> None:
    three = ((ESP, "blindbox-esp"), (uuid.UUID(int=0), ""), (LINUX, "blindbox-root"))
    data = disk(partitions=three)
    entries = data[2 * SECTOR : 2 * SECTOR + 3 * 128]
    assert measured(data)[92:] == struct.pack("<Q", 2) + entries[:128] + entries[256:]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"signature": b"EFI PORT"}, "no GPT header"),
        ({"revision": 0x00020000}, "no GPT header"),
        ({"size": 96}, "no GPT header"),
        ({"place": 7}, "no GPT header"),
        ({"crc": 1}, "checksum of its GPT header"),
        ({"entries_crc": 1}, "checksum of its partition table"),
        ({"entry": 256}, "entries of 256 bytes"),
        ({"count": 0}, "has 0 entries"),
        ({"count": 0xFFFFFFFF}, "4294967295 entries"),
        ({"table": 1}, "from sector 1"),
        ({"table": 1 << 40}, "cut short"),
        ({"table": (1 << 64) - 1}, "from sector 18446744073709551615"),
    ],
)
def test_a_table_that_firmware_would_not_take_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UnreadableDisk) as refused:
        measured(disk(b"an ESP", **changes))
    assert told in str(refused.value)


@pytest.mark.parametrize("size", [0, 511, 512, 603, 1024, 2 * SECTOR + 127, len(HONEST) - 1])
def test_a_disk_that_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(UnreadableDisk, match="cut short"):
        measured(HONEST[:size])


@given(edits())
def test_whatever_a_disk_holds_it_is_read_or_refused(wishes: list[Edit]) -> None:
    try:
        found = measured(garbled(HONEST, wishes))
    except UnreadableDisk:
        return
    assert len(found) == 100 + 128 * struct.unpack_from("<Q", found, 92)[0]
