"""
A fake AMD that everybody believes for the time of a test: its root stands among the pinned ones.

Policies for it then have a JSON form, which those with roots of their own have not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

from blindbox_attestation import Policy, SnpPolicy
from blindbox_attestation.binding import Bound, report_data
from blindbox_attestation.evidence import SEV_SNP
from blindbox_attestation.roots import AMD_ROOTS
from enclave_app.quoting import Quote
from tests.kit.amd import MEASUREMENT, FakeAmd


@contextmanager
def pinned(amd: FakeAmd) -> Iterator[FakeAmd]:
    roots = {**AMD_ROOTS, **amd.roots}
    with (
        patch("blindbox_attestation.snp.policy.AMD_ROOTS", roots),
        patch("blindbox.collateral.AMD_ROOTS", roots),
    ):
        yield amd


def accepting(amd: FakeAmd, **changes: Any) -> Policy:
    """As a person would have it in a file: what an honest machine of this vendor's fulfils."""
    wishes = {"measurements": {MEASUREMENT}, "minimum_tcb": {amd.family: amd.tcb}, **changes}
    return Policy(snp=SnpPolicy(**wishes))


def refusing(amd: FakeAmd) -> Policy:
    """One that it does not fulfil: for another build."""
    return accepting(amd, measurements={bytes(48)})


def current_list(amd: FakeAmd) -> bytes:
    """A revocation list of yesterday."""
    now = datetime.now(UTC)
    return amd.crl(this_update=now - timedelta(days=1), next_update=now + timedelta(days=30))


class FakeAmdQuoter:
    """A guest on a machine of this vendor's, today."""

    platform = SEV_SNP

    def __init__(self, amd: FakeAmd, **changes: Any) -> None:
        self._amd, self._changes = amd, changes
        self.endorsements = amd.endorsements(crl=current_list(amd))

    def quote(self, bound: Bound) -> Quote:
        return Quote(self._amd.report(report_data(bound.digest), **self._changes), self.endorsements)
