"""Whatever bytes a server sends, a check says `WrongContent`, or how long something genuine may be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blindbox.collateral import amd_kds, intel_pcs
from blindbox.collateral.cache import Published, Validity, WrongContent
from blindbox.collateral.download import Answer
from blindbox_attestation.snp.report import Report
from blindbox_attestation.x509 import Certificate
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.intel import FakeIntel
from tests.kit.kds import pem

HERE = "https://mirror.example"


@cache
def amd() -> FakeAmd:
    return FakeAmd()


@cache
def genuine() -> dict[str, tuple[Published, Answer]]:
    """Each thing that is published, and the answer that has it."""
    one, told = amd(), amd().endorsements()
    intel = FakeIntel()
    has = json.loads(intel.collateral())
    issuers = {"ask": told["ask"], "ark": told["ark"]}
    pck = Answer(
        bytes.fromhex(has["pck_crl"]), {"SGX-PCK-CRL-Issuer-Chain": quote(has["pck_crl_issuer_chain"])}
    )

    def signed(key: str, name: str, header: str) -> Answer:
        body = f'{{"{key}":{has[name]},"signature":"{has[f"{name}_signature"]}"}}'
        return Answer(body.encode(), {header: quote(has[f"{name}_issuer_chain"])})

    return {
        "issuers": (
            amd_kds.issuers(HERE, "vcek", "Genoa", one.roots),
            Answer(pem(told["ask"], told["ark"]), {}),
        ),
        "chip": (
            amd_kds.chip_certificate(HERE, "Genoa", Report.parse(one.report()), issuers, one.roots),
            Answer(told["vcek"], {}),
        ),
        "list": (
            amd_kds.revocation_list(HERE, "vcek", "Genoa", Certificate.parse(told["ark"], "ark")),
            Answer(told["crl"], {}),
        ),
        "tcb": (
            intel_pcs.tcb_info(HERE, intel.fmspc.hex().upper(), intel.roots),
            signed("tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain"),
        ),
        "qe": (
            intel_pcs.qe_identity(HERE, intel.roots),
            signed("enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain"),
        ),
        "pck": (intel_pcs.pck_list(HERE, "platform", intel.roots), pck),
        "root": (intel_pcs.root_list(HERE, pck), Answer(bytes.fromhex(has["root_ca_crl"]), {})),
    }


def outcome(item: Published, answer: Answer) -> Validity | None:
    try:
        return item.check(answer, NOON)
    except WrongContent:
        return None


KINDS = ["issuers", "chip", "list", "tcb", "qe", "pck", "root"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_genuine_may_be_used_now(kind: str) -> None:
    item, answer = genuine()[kind]
    assert item.check(answer, NOON).holds(NOON)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=3000), header=st.text(max_size=200))
def test_junk_is_wrong_content(kind: str, body: bytes, header: str) -> None:
    """C-18, C-23: no other exception, whatever comes."""
    item, _ = genuine()[kind]
    assert outcome(item, Answer(body, {item.header: header})) is None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_answer_is_wrong_content_or_means_the_same(kind: str, data: st.DataObject) -> None:
    """C-15: one byte of a genuine answer changed, in its body or its issuer chain; a cut one."""
    item, answer = genuine()[kind]
    expected = item.check(answer, NOON)
    changes: list[Callable[[bytes], bytes]] = [
        lambda one: _other(one, data.draw(st.integers(0, len(one) - 1)), data.draw(st.integers(1, 255))),
        lambda one: one[: data.draw(st.integers(0, len(one) - 1))],
    ]
    change = data.draw(st.sampled_from(changes))
    if item.header and data.draw(st.booleans()):
        text = answer.headers[item.header].encode()
        changed = Answer(answer.body, {item.header: change(text).decode("latin-1")})
    else:
        changed = Answer(change(answer.body), answer.headers)
    assert outcome(item, changed) in (None, expected)


def _other(one: bytes, at: int, by: int) -> bytes:
    return one[:at] + bytes([one[at] ^ by]) + one[at + 1 :]
