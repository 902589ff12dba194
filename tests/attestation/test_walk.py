"""What a walk writes down: four outcomes that never look alike, and values as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from blindbox_attestation.errors import MeasurementMismatch, PolicyRefused, UntrustedEvidence
from blindbox_attestation.steps import NAMES, Check, Step
from blindbox_attestation.walk import Finding, Walk, day, moment, told


def expect(finding: Finding, true: bool, message: str = "") -> None:
    finding.expect(true, "colour", found=b"\xab", wanted={b"\xcd"}, source="here", code="c", message=message)


def pass_and_then_fail(finding: Finding) -> None:
    expect(finding, True)
    expect(finding, False)


def pass_and_then_raise(finding: Finding) -> None:
    expect(finding, True)
    raise UntrustedEvidence("not signed", code="bad-signature")


def test_a_check_is_written_down_whether_it_passes_or_fails() -> None:
    finding = Finding()
    expect(finding, True)
    with pytest.raises(PolicyRefused) as refused:
        expect(finding, False)
    assert finding.checks == [
        Check("colour", "passed", "ab", "cd", "here"),
        Check("colour", "failed", "ab", "cd", "here"),
    ]
    assert (refused.value.code, str(refused.value)) == ("c", "colour is ab, expected cd")
    with pytest.raises(PolicyRefused, match=r"^another colour$"):
        expect(finding, False, "another colour")


def test_a_check_raises_the_error_it_was_given() -> None:
    with pytest.raises(MeasurementMismatch):
        Finding().expect(False, "m", found=1, wanted=2, source="", error=MeasurementMismatch)


def test_what_was_not_asked_or_does_not_apply_is_told_as_that() -> None:
    finding = Finding()
    finding.not_asked("owner", found=b"\x01", source="report")
    finding.not_applicable("owner", "there is none")
    assert finding.checks == [
        Check("owner", "not asked", "01", "", "report"),
        Check("owner", "not applicable", "there is none", "", ""),
    ]
    walk = Walk()
    with walk.step(12) as passed:
        passed.passed("well")
    with walk.step(13) as asked:
        asked.was_not_asked("no wish")
    with walk.step(5) as applies:
        applies.does_not_apply("no list")
    assert walk.steps == (
        Step(12, NAMES[12], "passed", "well", ()),
        Step(13, NAMES[13], "not asked", "no wish", ()),
        Step(5, NAMES[5], "not applicable", "no list", ()),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("as it is", "as it is"),
        (b"\x00\xff", "00ff"),
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (None, "None"),
        ({3, 1, 2}, "1 or 2 or 3"),
        ([b"\x02", b"\x01"], "01 or 02"),
        (("b", "a", "d", "c"), "a or b or c or d"),
        (frozenset(range(5)), "one of 5"),
        ({}.keys(), ""),
    ],
)
def test_values_are_told_as_a_person_reads_them(value: object, words: str) -> None:
    assert told(value) == words


def test_times_are_told_to_the_second() -> None:
    time = datetime(2026, 1, 31, 23, 59, 58, 999999, UTC)
    assert (moment(time), day(time)) == ("2026-01-31 23:59:58 UTC", "2026-01-31")


def test_the_step_that_fails_ends_with_exactly_one_failed_check() -> None:
    """An error raised without a check becomes one; a check that failed is not told twice."""
    walk = Walk()
    with pytest.raises(UntrustedEvidence) as bare, walk.step(4):
        raise UntrustedEvidence("nobody vouches", code="unpinned-root")
    told_once = (Check("unpinned root", "failed", "nobody vouches", "", ""),)
    assert bare.value.steps == walk.steps == (Step(4, NAMES[4], "failed", "nobody vouches", told_once),)
    walk = Walk()
    with pytest.raises(PolicyRefused), walk.step(12) as finding:
        pass_and_then_fail(finding)
    assert [check.outcome for check in walk.steps[0].checks] == ["passed", "failed"]
    walk = Walk()
    with pytest.raises(UntrustedEvidence), walk.step(7) as finding:
        pass_and_then_raise(finding)
    assert [(check.name, check.outcome) for check in walk.steps[0].checks] == [
        ("colour", "passed"),
        ("bad signature", "failed"),
    ]
