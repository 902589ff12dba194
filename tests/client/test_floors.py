"""Intel's evaluation data number never goes down for a user, whatever happens to processes and files."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from blindbox.collateral.floors import Floors
from blindbox_attestation.errors import InvalidPolicy

ONE = "90C06F000000"
OTHER = "B0C06F000000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "floors.json"


def floors(path: Path) -> Floors:
    return Floors(lambda: path)


def test_a_floor_is_the_highest_number_that_was_shown(path: Path) -> None:
    """C-12"""
    assert floors(path).of(ONE) == 0
    for shown, floor in ((17, 17), (18, 18), (16, 18), (18, 18)):
        floors(path).lift(ONE, shown)
        assert floors(path).of(ONE) == floor
    assert floors(path).of(OTHER) == 0


def test_every_kind_of_platform_has_its_own(path: Path) -> None:
    floors(path).lift(ONE, 18)
    floors(path).lift(OTHER, 17)
    assert json.loads(path.read_bytes()) == {"version": 1, "tcb_evaluation": {ONE: 18, OTHER: 17}}


def test_the_file_belongs_to_the_user_alone(path: Path) -> None:
    floors(path).lift(ONE, 18)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("fmspc", "number"), [("90c06f000000", 1), ("", 1), ("../x", 1), (ONE, -1), (ONE, 1 << 32)]
)
def test_nothing_else_is_written(path: Path, fmspc: str, number: int) -> None:
    with pytest.raises(ValueError, match="no floor is kept"):
        floors(path).lift(fmspc, number)
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version":2,"tcb_evaluation":{}}',
        b'{"version":1}',
        b'{"version":1,"tcb_evaluation":[]}',
        b'{"version":1,"tcb_evaluation":{"90C06F000000":"18"}}',
        b'{"version":1,"tcb_evaluation":{"90C06F000000":true}}',
        b'{"version":1,"tcb_evaluation":{"90C06F000000":-1}}',
        b'{"version":1,"tcb_evaluation":{"X":1}}',
        b"[" * 100000,
        b"\xff\xfe",
    ],
)
def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(path: Path, content: bytes) -> None:
    """Going on without it would lower every floor."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InvalidPolicy, match="Removing it accepts any evaluation again"):
        floors(path).of(ONE)
    with pytest.raises(InvalidPolicy):
        floors(path).lift(ONE, 18)
    assert path.read_bytes() == content


def test_a_file_that_others_may_write_is_not_used(path: Path) -> None:
    floors(path).lift(ONE, 18)
    path.chmod(0o666)
    with pytest.raises(InvalidPolicy, match="must belong to you alone"):
        floors(path).of(ONE)


def test_where_nothing_can_be_written_the_floor_holds_for_this_process(tmp_path: Path) -> None:
    (tmp_path / "store").touch()  # a file where a folder would have to be
    path = tmp_path / "elsewhere" / "floors.json"
    path.parent.mkdir()
    path.with_suffix(".lock").mkdir()  # so that it cannot be locked, whoever runs this test
    one = floors(path)
    one.lift(ONE, 18)
    assert one.of(ONE) == 18
    assert not path.exists()
    assert floors(path).of(ONE) == 0


def test_without_a_home_the_floor_holds_for_this_process() -> None:
    def nowhere() -> Path:
        raise RuntimeError("the user's home folder is unknown")

    one = Floors(nowhere)
    one.lift(ONE, 18)
    assert one.of(ONE) == 18


def _lift(path: Path, first: int) -> None:
    for step in range(20):
        floors(path).lift(f"{first:012X}", step)
        floors(path).lift(ONE, first * 100 + step)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_processes_at_once_no_one_s_number_is_lost(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_lift, args=(path, first)) for first in range(1, 5)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    assert [one.exitcode for one in several] == [0] * 4
    assert floors(path).of(ONE) == 419
    assert [floors(path).of(f"{first:012X}") for first in range(1, 5)] == [19] * 4
