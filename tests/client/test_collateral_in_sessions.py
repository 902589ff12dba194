"""Collateral on the road of a call: sessions fetch what a machine did not send, and tell what they did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox import Collateral, CollateralUnavailable, SealedAdapter
from blindbox.collateral import SHARED
from blindbox_attestation.binding import Bound, report_data
from blindbox_attestation.errors import AttestationError, RevokedEvidence
from enclave_app.quoting import Quote
from tests.client.conftest import App
from tests.kit.amd import FakeAmd
from tests.kit.enclave import RunningEnclave, running
from tests.kit.kds import KeyService
from tests.kit.relay import http_reply


class ForgetfulQuoter:
    """A genuine machine of our fake AMD's, whose host hands over everything but the revocation list."""

    platform = "sev-snp"

    def __init__(self, amd: FakeAmd) -> None:
        self.amd = amd

    def quote(self, bound: Bound) -> Quote:
        return Quote(self.amd.report(report_data(bound.digest)), self.amd.endorsements(crl=None))


@pytest.fixture(scope="module")
def amd() -> FakeAmd:
    return FakeAmd()


@pytest.fixture(scope="module")
def machine(amd: FakeAmd, app: App) -> Iterator[RunningEnclave]:
    with running(app.asgi, quoter=ForgetfulQuoter(amd)) as one:
        yield one


@pytest.fixture
def kds(amd: FakeAmd) -> Iterator[KeyService]:
    now = datetime.now(UTC)
    with KeyService(amd) as one:
        one.lists["Genoa"] = amd.crl(this_update=now - timedelta(days=1), next_update=now + timedelta(days=9))
        yield one


def test_a_session_fetches_what_the_machine_did_not_send(
    amd: FakeAmd, machine: RunningEnclave, kds: KeyService
) -> None:
    with requests.Session(policy=amd.policy(), collateral=Collateral(amd=kds.origin)) as session:
        for _ in range(3):
            response = session.get(f"{machine.origin}/echo")
            assert response.status_code == 200
        assert response.blindbox.collateral == {"crl": kds.lists["Genoa"]}  # type: ignore[attr-defined]
        assert len(kds.asked) == 1
        assert machine.origin not in kds.heard.decode("latin-1")


def test_an_adapter_takes_it_too(amd: FakeAmd, machine: RunningEnclave, kds: KeyService) -> None:
    adapter = SealedAdapter(amd.policy(), collateral=Collateral(amd=kds.origin))
    with requests.Session(adapter=adapter) as session:
        assert session.prove(machine.origin).collateral.keys() == {"crl"}


def test_a_session_that_may_ask_nobody_refuses(amd: FakeAmd, machine: RunningEnclave, app: App) -> None:
    before = sum(app.runs.values())
    with (
        requests.Session(policy=amd.policy(), collateral=None) as session,
        pytest.raises(RevokedEvidence) as caught,
    ):
        session.post(f"{machine.origin}/run/unproven", data=b"secret")
    assert caught.value.code == "crl-missing"
    assert sum(app.runs.values()) == before


def test_nothing_is_sent_to_a_machine_whose_collateral_cannot_be_had(
    amd: FakeAmd, machine: RunningEnclave, kds: KeyService, app: App
) -> None:
    """C-23: fail closed; and the failure is no network hiccup that a retry loop would swallow."""
    kds.instead = lambda _: http_reply(503, "text/plain", b"", more="Retry-After: 600\r\n")
    before = sum(app.runs.values())
    with (
        requests.Session(policy=amd.policy(), collateral=Collateral(amd=kds.origin)) as session,
        pytest.raises(CollateralUnavailable) as caught,
    ):
        session.post(f"{machine.origin}/run/unproven", data=b"secret")
    assert isinstance(caught.value, AttestationError)
    assert not isinstance(caught.value, requests.RequestException)
    assert caught.value.code == "crl-missing"
    assert sum(app.runs.values()) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: SealedAdapter(),
        lambda: requests.Session()._door,
        lambda: requests._DOOR,
    ],
)
def test_everybody_shares_one_who_asks_the_vendors_themselves(make: Any) -> None:
    assert make().collateral is SHARED
    assert repr(SHARED) == "Collateral()"


def test_what_makes_requests_of_its_own_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, blindbox.requests\n"
        "print(sorted({'blindbox.collateral.intel_pcs', 'dcap_qvl'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert run.stdout.strip() == "[]"
