"""SNP reports: bytes to values and back, and everything that is refused on the way."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.errors import AttestationError, InvalidPolicy, MalformedEvidence
from blindbox_attestation.snp.report import REPORT_SIZE, Report
from blindbox_attestation.snp.tcb import FAMILIES, LAYOUTS, Tcb
from tests.kit.amd import FakeAmd

GOOD = FakeAmd().unsigned(bytes(64))
SIZES = {field.name: len(getattr(GOOD, field.name)) for field in fields(Report) if field.type == "bytes"}

reports = st.builds(
    Report,
    version=st.just(5),
    guest_svn=st.integers(0, 2**32 - 1),
    policy=st.integers(0, 2**64 - 1),
    vmpl=st.integers(0, 2**32 - 1),
    signature_algorithm=st.just(1),
    platform_info=st.integers(0, 2**64 - 1),
    flags=st.integers(0, 31),
    **{name: st.binary(min_size=size, max_size=size) for name, size in SIZES.items()},
)


@given(reports)
@settings(max_examples=100, deadline=None)
def test_what_is_encoded_is_parsed_back(report: Report) -> None:
    assert Report.parse(report.encode()) == report


@given(st.binary(max_size=2000) | st.binary(min_size=REPORT_SIZE, max_size=REPORT_SIZE))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_report_that_encodes_to_itself_or_a_typed_error(data: bytes) -> None:
    try:
        report = Report.parse(data)
    except MalformedEvidence:
        return
    assert report.encode() == data


def test_a_report_cut_short_anywhere_or_with_a_byte_after_it_is_refused() -> None:
    """C-19: every prefix."""
    data = GOOD.encode()
    for wrong in [*(data[:length] for length in range(len(data))), data + b"\x00", data * 2]:
        with pytest.raises(MalformedEvidence) as refused:
            Report.parse(wrong)
        assert refused.value.code == "malformed-report"


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_an_unknown_report_version_is_refused(version: int) -> None:
    """C-20: neither an older form nor one that this verifier was not written for."""
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(replace(GOOD, version=version).encode())
    assert refused.value.code == "unsupported-report-version"


@pytest.mark.parametrize("algorithm", [0, 2, 2**32 - 1])
def test_another_signature_algorithm_is_refused(algorithm: int) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(replace(GOOD, signature_algorithm=algorithm).encode())
    assert refused.value.code == "unsupported-signature-algorithm"


@pytest.mark.parametrize("at", [0x48 + 1, 0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F])
def test_a_reserved_bit_is_refused(at: int) -> None:
    data = bytearray(GOOD.encode())
    data[at] |= 0x20
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(bytes(data))
    assert refused.value.code == "reserved-bits"


@pytest.mark.parametrize(
    ("version", "changes", "fine"),
    [
        (2, {"cpuid": bytes(3)}, True),
        (2, {}, False),
        (3, {}, True),
        (4, {"current_mitigations": b"\x01" + bytes(7)}, False),
        (5, {"current_mitigations": b"\x01" + bytes(7)}, True),
    ],
)
def test_a_field_that_came_with_a_later_version_is_zero_before_it(
    version: int, changes: dict[str, bytes], fine: bool
) -> None:
    data = replace(GOOD, version=version, **changes).encode()
    if fine:
        assert Report.parse(data).version == version
        return
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(data)
    assert refused.value.code == "reserved-bits"


@pytest.mark.parametrize(
    ("family", "model", "expected"),
    [
        (0x19, 0x00, "Milan"),
        (0x19, 0x0F, "Milan"),
        (0x19, 0x10, "Genoa"),
        (0x19, 0x1F, "Genoa"),
        (0x19, 0x20, "unknown (CPUID 19h/20h)"),
        (0x19, 0x9F, "unknown (CPUID 19h/9fh)"),
        (0x19, 0xA0, "Genoa"),
        (0x19, 0xAF, "Genoa"),
        (0x19, 0xB0, "unknown (CPUID 19h/b0h)"),
        (0x1A, 0x00, "Turin"),
        (0x1A, 0x1F, "Turin"),
        (0x1A, 0x20, "unknown (CPUID 1ah/20h)"),
        (0x17, 0x00, "unknown (CPUID 17h/00h)"),
    ],
)
def test_the_processor_family_is_told_by_cpuid(family: int, model: int, expected: str) -> None:
    assert replace(GOOD, cpuid=bytes((family, model, 0))).family == expected


def test_a_version_2_report_tells_no_family() -> None:
    assert replace(GOOD, version=2, cpuid=bytes(3)).family is None


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_of_a_tcb_is_one_byte_in_its_family_s_layout(family: str) -> None:
    for part, at in LAYOUTS[family].items():
        data = bytes(7 if index == at else 0 for index in range(8))
        tcb = Tcb.parse(data, family)
        assert {name: getattr(tcb, name) for name in LAYOUTS[family]} == {
            name: 7 if name == part else 0 for name in LAYOUTS[family]
        }
        assert tcb.encode(family) == data
    for at in set(range(8)) - set(LAYOUTS[family].values()):
        with pytest.raises(AttestationError) as refused:
            Tcb.parse(bytes(1 if index == at else 0 for index in range(8)), family)
        assert refused.value.code == "reserved-bits"


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_a_high_part_never_hides_a_low_one(a: int, b: int, c: int, d: int) -> None:
    """C-8: TCBs are compared part by part."""
    level, floor = Tcb(bootloader=a, snp=b, microcode=c), Tcb(bootloader=b, snp=c, microcode=d)
    assert (not level.below(floor)) == (a >= b and b >= c and c >= d)


@pytest.mark.parametrize("value", [-1, 256, "4", 4.0, True, None])
def test_a_tcb_part_is_a_byte(value: object) -> None:
    with pytest.raises(InvalidPolicy):
        Tcb(bootloader=value, snp=0, microcode=0)  # type: ignore[arg-type]
