"""On Azure the same is missing as on the processor beneath, and the same vendors are asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blindbox import Collateral
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.evidence import AttestationDocument
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.azure import FakeAzure
from tests.kit.intel import EVALUATION, FakeIntel
from tests.kit.kds import KeyService
from tests.kit.pcs import ProvisioningService

NONCE = bytes(32)


def bare(azure: FakeAzure, **sent: bytes) -> bytes:
    """A document of an honest machine that sent only this beside its evidence."""
    return replace(AttestationDocument.parse(azure.document()), endorsements=sent).encode()


def test_an_snp_machine_s_endorsements_are_fetched() -> None:
    amd = FakeAmd()
    azure = FakeAzure(amd)
    with KeyService(amd) as kds:
        collateral = Collateral(amd=kds.origin)
        _, fetched = collateral.verify(bare(azure), azure.policy(), nonce=NONCE, now=NOON)
        assert fetched.keys() == {"ark", "ask", "vcek", "crl"}
        assert len(kds.asked) == 3
        with pytest.raises(AttestationError) as caught:
            Collateral(intel=kds.origin).verify(bare(azure), azure.policy(), nonce=NONCE, now=NOON)
        assert caught.value.code == "missing-endorsement"
        assert len(kds.asked) == 3


def test_a_tdx_machine_s_collateral_is_fetched_and_its_evaluation_never_goes_down(own_home: Path) -> None:
    """C-12"""
    intel = FakeIntel()
    azure = FakeAzure(intel)
    policy = azure.policy(processor={"minimum_tcb_evaluation": 1})
    with ProvisioningService(json.loads(intel.collateral())) as pcs:
        _, fetched = Collateral(intel=pcs.origin).verify(bare(azure), policy, nonce=NONCE, now=NOON)
        assert fetched.keys() == {"collateral"}
        assert len(pcs.asked) == 4
    older = intel.collateral(
        tcb_info=intel.tcb_info(tcbEvaluationDataNumber=EVALUATION - 1),
        qe_identity=intel.qe_identity(tcbEvaluationDataNumber=EVALUATION - 1),
    )
    with pytest.raises(AttestationError) as caught:
        Collateral().verify(bare(azure, collateral=older), policy, nonce=NONCE, now=NOON)
    assert caught.value.code == "tcb-evaluation-too-old"
    (own_home / "floors.json").unlink()
    Collateral().verify(bare(azure, collateral=older), policy, nonce=NONCE, now=NOON)
