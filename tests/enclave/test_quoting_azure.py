"""
How the enclave asks on Azure: the paravisor's report, its TPM's quote, and what the metadata service adds.
The TPM is a real one in software, the metadata service really listens on loopback.
"""

from __future__ import annotations

import base64
import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from blindbox_attestation.azure.hcl import NV_SIZE, SNP, TDX, Hcl
from blindbox_attestation.binding import Bound
from enclave_app.quoting import Quote, QuoteUnavailable, find_quoter
from enclave_app.quoting.azure import (
    FRESH_FOR,
    RETRY_AFTER,
    AzureQuoter,
    chip_certificates,
    platform_of,
    td_quote,
    write_user_data,
)
from enclave_app.quoting.simulated import SimulatedQuoter
from enclave_app.quoting.tpm_commands import Tpm
from tests.kit.azure import from_foreign
from tests.kit.local_service import Asked, LocalService, local_service
from tests.kit.machine import NOWHERE, bare_machine, no_tpm
from tests.kit.paravisor import Front, Paravisor, paravisor, runtime_json

BOUND = Bound(digest=bytes(range(48)), nonce=b"n" * 32, key_config=b"keys")
CERTIFICATES = ("GET", "/metadata/THIM/amd/certification")
TD_QUOTE = ("POST", "/acc/tdquote")
TD_REPORT = bytes(range(256)) * 4


def kept(key: RSAPublicKey, kind: int = SNP, report: bytes = b"\x05" * 1184) -> bytes:
    return Hcl(version=1, kind=kind, report=report, hash_type=1, runtime=runtime_json(key)).encode()


@pytest.fixture(scope="module")
def shared() -> Iterator[Paravisor]:
    with paravisor(kept) as machine:
        yield machine


@pytest.fixture
def machine(shared: Paravisor) -> Paravisor:
    shared.report = kept(shared.key)
    return shared


@pytest.fixture
def tdx_machine(shared: Paravisor) -> Paravisor:
    shared.report = kept(shared.key, TDX, TD_REPORT)
    return shared


def pem(der: bytes) -> str:
    return "-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der).decode() + "\n-----END CERTIFICATE-----\n"


def thim(_: Asked) -> bytes:
    """As Azure answers, with fields that mean nothing to us."""
    told = {
        "vcekCert": pem(b"vcek"),
        "tcbm": "DB18000000000004",
        "certificateChain": pem(b"ask") + pem(b"ark"),
        "cacheControl": "86400",
    }
    return json.dumps(told).encode()


def quoting_enclave(asked: Asked) -> bytes:
    report = json.loads(asked.body)["report"]
    made = b"quote of " + base64.urlsafe_b64decode(report + "=" * (-len(report) % 4))
    return json.dumps({"quote": base64.urlsafe_b64encode(made).rstrip(b"=").decode()}).encode()


@pytest.fixture
def host() -> Iterator[LocalService]:
    with local_service({CERTIFICATES: thim, TD_QUOTE: quoting_enclave}) as service:
        yield service


def quoter(
    machine: Paravisor, host: LocalService, platform: str = "az-snp-vtpm", **options: Any
) -> AzureQuoter:
    quiet: dict[str, Any] = {"event_log": NOWHERE, "metadata": str(host.address)}
    return AzureQuoter(platform, machine.open, **(quiet | options))


def told(quote: Quote) -> dict[str, Any]:
    evidence: dict[str, Any] = json.loads(quote.evidence)
    return evidence


def test_the_report_a_quote_over_the_binding_and_the_chips_certificates_come_together(
    machine: Paravisor, host: LocalService
) -> None:
    quote = quoter(machine, host).quote(BOUND)
    evidence = told(quote)
    assert set(evidence) == {"version", "hcl", "attest", "signature", "pcrs"}
    assert evidence["version"] == 1
    assert base64.b64decode(evidence["hcl"]) == machine.report
    assert BOUND.digest in base64.b64decode(evidence["attest"])
    assert quote.endorsements == {"vcek": b"vcek", "ask": b"ask", "ark": b"ark"}
    (asked,) = host.asked
    assert asked.headers["metadata"] == "true"


def test_the_certificate_that_azure_left_for_the_key_travels_with_the_operators_issuers(
    machine: Paravisor, host: LocalService, tmp_path: Path
) -> None:
    """The index is larger than the certificate: 4096 bytes there, as many as swtpm keeps here."""
    certificate = b"\x30\x82\x01\x00" + bytes(range(256))
    tpm = Tpm(machine.open())
    tpm.nv_define(0x01C101D0, 2000)
    tpm.nv_write(0x01C101D0, certificate.ljust(2000, b"\x00"))
    (tmp_path / "ak_chain.der").write_bytes(b"issuers")
    try:
        with_issuers = quoter(machine, host, endorsements_dir=tmp_path).quote(BOUND)
        assert with_issuers.endorsements["ak_chain"] == certificate + b"issuers"
        assert quoter(machine, host).quote(BOUND).endorsements["ak_chain"] == certificate
    finally:
        machine.tpm.tool("tpm2_nvundefine", "-C", "o", "0x01C101D0")


def test_a_tdx_machine_has_its_report_quoted_by_the_host(tdx_machine: Paravisor, host: LocalService) -> None:
    quote = quoter(tdx_machine, host, "az-tdx-vtpm").quote(BOUND)
    assert base64.b64decode(told(quote)["td_quote"]) == b"quote of " + TD_REPORT
    assert quote.endorsements == {}
    (asked,) = host.asked
    assert "=" not in json.loads(asked.body)["report"]


def test_the_host_is_asked_once_for_a_report_and_again_after_an_hour(
    machine: Paravisor, host: LocalService
) -> None:
    """S-14: a question of a stranger is none for the metadata service."""
    now = 0.0
    asked = quoter(machine, host, monotonic=lambda: now)
    for _ in range(3):
        asked.quote(BOUND)
    assert len(host.asked) == 1
    now = FRESH_FOR
    asked.quote(BOUND)
    assert len(host.asked) == 2
    machine.report = kept(machine.key, report=b"\x06" * 1184)  # a new report is a new question
    asked.quote(BOUND)
    assert len(host.asked) == 3


def test_without_the_hosts_certificates_the_evidence_still_comes(
    machine: Paravisor, host: LocalService, tmp_path: Path
) -> None:
    """A client asks AMD for them; the operator may lay them ready, and that wins."""
    (tmp_path / "vcek.der").write_bytes(b"the operator's")
    (tmp_path / "log").write_bytes(b"events")
    options: dict[str, Any] = {"endorsements_dir": tmp_path, "event_log": tmp_path / "log"}
    laid_ready = {"vcek": b"the operator's", "event_log": b"events"}
    assert quoter(machine, host, **options).quote(BOUND).endorsements == {
        "ask": b"ask",
        "ark": b"ark",
        **laid_ready,
    }
    now = 0.0
    with local_service({CERTIFICATES: lambda _: (500, b"later")}) as broken:
        asked = quoter(machine, broken, monotonic=lambda: now, **options)
        for _ in range(3):
            assert asked.quote(BOUND).endorsements == laid_ready
        assert len(broken.asked) == 1
        now = RETRY_AFTER
        asked.quote(BOUND)
        assert len(broken.asked) == 2


def test_without_the_hosts_quote_there_is_no_evidence_on_tdx(tdx_machine: Paravisor) -> None:
    with local_service({TD_QUOTE: lambda _: (429, b"later")}) as broken:
        asked = quoter(tdx_machine, broken, "az-tdx-vtpm")
        with pytest.raises(QuoteUnavailable, match="429"):
            asked.quote(BOUND)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vcekCert":1,"certificateChain":""}',
        json.dumps({"vcekCert": pem(b"vcek"), "certificateChain": pem(b"ask")}).encode(),
        json.dumps({"vcekCert": "none", "certificateChain": pem(b"ask") + pem(b"ark")}).encode(),
        b'{"quote":1}',
        b'{"quote":"!"}',
        '{"quote":"é"}'.encode(),
    ],
)
def test_an_answer_of_the_host_that_is_something_else_is_refused(answer: bytes) -> None:
    with local_service({CERTIFICATES: lambda _: answer, TD_QUOTE: lambda _: answer}) as host:
        with pytest.raises(QuoteUnavailable):
            chip_certificates(str(host.address))
        with pytest.raises(QuoteUnavailable):
            td_quote(TD_REPORT, str(host.address))


@pytest.mark.parametrize("padding", ["", "="])
def test_a_quote_is_read_with_and_without_base64s_padding(padding: str) -> None:
    with local_service({TD_QUOTE: lambda _: b'{"quote":"_-8%s"}' % padding.encode()}) as host:
        assert td_quote(TD_REPORT, str(host.address)) == b"\xff\xef"


# --- which machine ---


def test_azure_is_found_by_the_paravisors_report(machine: Paravisor, host: LocalService) -> None:
    """C-21: and then nothing simulated is made there."""
    found = bare_machine(open_tpm=machine.open, metadata=str(host.address))
    assert find_quoter("auto", machine=found).platform == "az-snp-vtpm"
    with pytest.raises(QuoteUnavailable, match="az-snp-vtpm"):
        SimulatedQuoter(found)
    with pytest.raises(QuoteUnavailable, match="is az-snp-vtpm, and not az-tdx-vtpm"):
        find_quoter("az-tdx-vtpm", machine=found)
    machine.report = kept(machine.key, TDX, TD_REPORT)
    assert find_quoter("auto", machine=found).platform == "az-tdx-vtpm"


class Broken(Front):
    """A TPM that gives no more than so many answers."""

    def __init__(self, port: int, after: int, report: bytes = b"") -> None:
        super().__init__(port, lambda: report)
        self.left = after
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def transmit(self, command: bytes) -> bytes:
        if not self.left:
            raise OSError(errno.EIO, "broken")
        self.left -= 1
        return super().transmit(command)


@pytest.mark.parametrize(
    ("file", "platform"),
    [
        ("snp_milan_evidence.json", "az-snp-vtpm"),
        ("snp_milan_v0_evidence.json", "az-snp-vtpm"),
        ("tdx_evidence.json", "az-tdx-vtpm"),
    ],
)
def test_genuine_reports_are_recognised(vectors: Path, machine: Paravisor, file: str, platform: str) -> None:
    machine.report = from_foreign(vectors / "azure" / file).hcl
    assert platform_of(machine.open) == platform


def test_a_machine_without_a_tpm_or_without_the_report_is_not_azures(machine: Paravisor) -> None:
    assert platform_of(no_tpm) is None
    assert platform_of(machine.tpm.open) is None
    broken = Broken(machine.tpm.port, after=0)
    assert platform_of(lambda: broken) is None
    assert broken.closed
    with pytest.raises(QuoteUnavailable, match="no confidential VM of Azure"):
        AzureQuoter("az-snp-vtpm", machine.tpm.open).check()


def test_azures_machine_whose_report_cannot_be_read_does_not_pass_for_an_ordinary_one(
    machine: Paravisor,
) -> None:
    """C-21: nothing simulated is made there."""
    with pytest.raises(QuoteUnavailable, match="cannot be read"):
        platform_of(lambda: Broken(machine.tpm.port, after=1, report=machine.report))


@pytest.mark.parametrize("report", [bytes(NV_SIZE), b"HCLA" + bytes(100)])
def test_a_report_that_cannot_be_read_stops_the_start(machine: Paravisor, report: bytes) -> None:
    machine.report = report
    with pytest.raises(QuoteUnavailable, match="HCL"):
        find_quoter("auto", machine=bare_machine(open_tpm=machine.open))


def test_user_data_is_written_where_the_paravisor_reads_it(machine: Paravisor) -> None:
    tpm = Tpm(machine.open())
    for value in (bytes(range(64)), bytes(64)):  # the first time, and again
        write_user_data(tpm, value)
        assert tpm.nv_read(0x01400002) == value
    with pytest.raises(ValueError, match="63"):
        write_user_data(tpm, bytes(63))


def test_two_threads_ask_the_host_once(machine: Paravisor, host: LocalService) -> None:
    asked = quoter(machine, host)
    threads = [threading.Thread(target=asked.quote, args=(BOUND,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(host.asked) == 1
