"""Any bytes at all, in any part of an Azure machine's evidence: only our own errors, and never a yes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation import strict_json
from blindbox_attestation.errors import AttestationError
from tests.kit.amd import FakeAmd
from tests.kit.azure import FakeAzure
from tests.kit.intel import FakeIntel

MACHINES = [FakeAzure(FakeAmd()), FakeAzure(FakeIntel())]
EVIDENCE = [azure.evidence() for azure in MACHINES]
POLICIES = [azure.azure_policy() for azure in MACHINES]


def refused(which: int, evidence: bytes) -> bool:
    try:
        MACHINES[which].appraise(evidence, POLICIES[which])
    except AttestationError as error:
        assert error.code  # noqa: PT017
        return True
    return False


@pytest.mark.parametrize("which", [0, 1])
def test_the_honest_evidence_is_accepted(which: int) -> None:
    assert not refused(which, EVIDENCE[which])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([0, 1]), st.binary(max_size=400))
def test_any_bytes_are_refused(which: int, data: bytes) -> None:
    assert refused(which, data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([0, 1]), st.data())
def test_evidence_with_one_part_overwritten_is_refused(which: int, data: st.DataObject) -> None:
    """C-15."""
    told: dict[str, Any] = json.loads(EVIDENCE[which])
    name = data.draw(st.sampled_from([name for name in told if name not in ("version", "pcrs")]))
    part = strict_json.from_base64(told[name], name)
    at = data.draw(st.integers(0, len(part) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=40))
    changed = part[:at] + patch + part[at + len(patch) :]
    told[name] = strict_json.to_base64(changed)
    assert changed == part or refused(which, json.dumps(told).encode()) or meaningless(name, part, changed)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([0, 1]), st.dictionaries(st.text(max_size=8), st.text(max_size=70), max_size=4))
def test_any_registers_are_refused(which: int, pcrs: dict[str, str]) -> None:
    assert refused(which, json.dumps({**json.loads(EVIDENCE[which]), "pcrs": pcrs}).encode())


def meaningless(name: str, part: bytes, changed: bytes) -> bool:
    """SPEC §4.5, §4.3: version of the blob, CPUSVN and MAC of a TDREPORT, zeros behind a TD quote."""
    if name == "td_quote":
        return part.rstrip(b"\x00") == changed.rstrip(b"\x00")
    free = {4, *range(32 + 16, 32 + 32), *range(32 + 224, 32 + 256)}
    return (
        name == "hcl"
        and len(part) == len(changed)
        and {at for at, (one, other) in enumerate(zip(part, changed, strict=True)) if one != other} <= free
    )
