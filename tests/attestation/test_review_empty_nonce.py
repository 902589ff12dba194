"""Evidence that was made for no question is not taken for an answer to an empty one."""

from __future__ import annotations

import pytest

from blindbox_attestation.policy import Policy
from blindbox_attestation.verify import appraise
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.aws import FakeAws
from tests.kit.google import FakeGoogle

AMD, AWS, GOOGLE = FakeAmd(), FakeAws(), FakeGoogle()


@pytest.mark.parametrize("platform", ["sev-snp", "nitro", "gcp-confidential-space"])
def test_an_empty_nonce_is_a_mistake_of_the_caller(platform: str) -> None:
    """C-1: evidence made for nobody would be "made for this nonce", whenever it was made."""
    evidence, endorsements, policy = {
        "sev-snp": (AMD.report(bytes(64)), AMD.endorsements(), AMD.policy()),
        "nitro": (AWS.document(), {}, Policy(nitro=AWS.policy())),
        "gcp-confidential-space": (GOOGLE.token(eat_nonce=""), {}, Policy(gcp=GOOGLE.policy())),
    }[platform]
    assert appraise(platform, evidence, endorsements, policy, nonce=None, now=NOON)
    with pytest.raises(ValueError, match="an empty nonce"):
        appraise(platform, evidence, endorsements, policy, nonce=b"", now=NOON)
