"""
How the enclave asks the machine: configfs-tsm on a fake kernel, and the simulated quoter that refuses real
ones.
"""

from __future__ import annotations

import base64
import errno
import os
import struct
import warnings
from pathlib import Path

import pytest

from blindbox_attestation import UnsafeSimulatedPolicy, UnsafeSimulationWarning, verify
from blindbox_attestation.errors import PlatformNotAccepted
from blindbox_attestation.policy import Policy
from enclave_app.quoting import QuoteUnavailable, find_quoter
from enclave_app.quoting.configfs import ATTEMPTS, ConfigfsQuoter, read_certificate_table
from enclave_app.quoting.simulated import SimulatedQuoter, hardware
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.configfs import FakeConfigfs, certificate_table
from tests.kit.enclave import make_identity, simulated_quoter

QUESTION = bytes(range(64))
NONCE = b"n" * 32


@pytest.fixture
def amd() -> FakeAmd:
    return FakeAmd()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    folder.mkdir()
    return folder


def from_host(amd: FakeAmd) -> dict[str, bytes]:
    """What hosts usually provision: no revocation list among it."""
    return {name: der for name, der in amd.endorsements().items() if name in ("vcek", "ask", "ark")}


def test_a_report_and_the_hosts_certificates_come_from_configfs(root: Path, amd: FakeAmd) -> None:
    kernel = FakeConfigfs(root, amd.report, table=certificate_table(from_host(amd)))
    quote = ConfigfsQuoter(root, tree=kernel).quote(QUESTION)
    assert quote.evidence[0x50:0x90] == QUESTION
    assert dict(quote.endorsements) == from_host(amd)
    assert list(root.iterdir()) == []  # the entry was removed


def test_what_the_quoter_brings_is_what_the_client_accepts(root: Path, tmp_path: Path, amd: FakeAmd) -> None:
    """The whole way: fake kernel, identity, document, and the real verification under the fake AMD's root."""
    laid_ready = tmp_path / "endorsements"
    laid_ready.mkdir()
    (laid_ready / "crl.der").write_bytes(amd.endorsements()["crl"])
    kernel = FakeConfigfs(root, amd.report, table=certificate_table(from_host(amd)))
    quoter = ConfigfsQuoter(root, laid_ready, tree=kernel)
    identity = make_identity(quoter, clock=NOON.timestamp)
    verified = verify(identity.document(NONCE), amd.policy(), nonce=NONCE, now=NOON)
    assert verified.platform == "sev-snp"
    assert verified.key_config == identity.key_config
    assert verified.boot_id == identity.boot_id
    assert not verified.simulated


@pytest.mark.parametrize("little_endian", [False, True])
def test_the_table_is_read_in_both_byte_orders(amd: FakeAmd, little_endian: bool) -> None:
    table = certificate_table(from_host(amd), little_endian=little_endian)
    assert read_certificate_table(table + bytes(100)) == from_host(amd)


def test_an_operators_file_wins_over_the_hosts_table(root: Path, tmp_path: Path) -> None:
    for name in ("ask", "crl", "unknown"):
        (tmp_path / f"{name}.der").write_bytes(name.encode())
    table = certificate_table({"vcek": b"leaf", "ask": b"the host's"})
    kernel = FakeConfigfs(root, bytes, table=table)
    quote = ConfigfsQuoter(root, tmp_path, tree=kernel).quote(QUESTION)
    assert quote.endorsements == {"vcek": b"leaf", "ask": b"ask", "crl": b"crl"}


def test_the_issuer_of_a_leased_key_is_found_under_the_guid_it_is_filed_under(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes, table=certificate_table({"vlek": b"leased", "ask": b"issuer"}))
    quote = ConfigfsQuoter(root, tree=kernel).quote(QUESTION)
    assert quote.endorsements["asvk"] == b"issuer"


def test_a_certificate_in_pem_becomes_der(root: Path) -> None:
    pem = (
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(b"der bytes" * 20)
        + b"-----END CERTIFICATE-----\n"
    )
    assert read_certificate_table(certificate_table({"vcek": pem})) == {"vcek": b"der bytes" * 20}
    with pytest.raises(QuoteUnavailable, match="PEM"):
        read_certificate_table(certificate_table({"vcek": b"-----BEGIN CERTIFICATE-----\n!\n-----END"}))


@pytest.mark.parametrize(
    "table",
    [
        struct.pack("<16sII", b"x" * 16, 4000, 8) + bytes(24),
        struct.pack("<16sII", b"x" * 16, 8, 0xFFFFFFFF) + bytes(24),
        struct.pack("<16sII", b"x" * 16, 0, 0),
    ],
)
def test_a_table_that_points_outside_itself_or_has_no_end_is_refused(table: bytes) -> None:
    with pytest.raises(QuoteUnavailable, match="table"):
        read_certificate_table(table)


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(16384)])
def test_a_host_that_lays_nothing_ready_is_no_error(table: bytes) -> None:
    assert read_certificate_table(table) == {}


def test_a_racing_writer_is_noticed_and_the_question_asked_again(root: Path, amd: FakeAmd) -> None:
    kernel = FakeConfigfs(root, amd.report, races=2)
    quote = ConfigfsQuoter(root, tree=kernel).quote(QUESTION)
    assert quote.evidence[0x50:0x90] == QUESTION
    assert len(set(kernel.entries_made)) == 3
    assert list(root.iterdir()) == []


def test_a_writer_that_always_races_is_not_raced_for_ever(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes, races=100)
    with pytest.raises(QuoteUnavailable, match="another process"):
        ConfigfsQuoter(root, tree=kernel).quote(QUESTION)
    assert len(kernel.entries_made) == ATTEMPTS
    assert list(root.iterdir()) == []


def test_an_error_of_the_kernel_is_told_and_leaves_nothing_behind(root: Path) -> None:
    def broken(_: bytes) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(QuoteUnavailable, match="Input/output error"):
        ConfigfsQuoter(root, tree=FakeConfigfs(root, broken)).quote(QUESTION)
    assert list(root.iterdir()) == []


def test_the_level_is_written_only_when_it_is_asked_for(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes)
    ConfigfsQuoter(root, tree=kernel).quote(QUESTION)
    assert kernel.levels == []
    ConfigfsQuoter(root, privlevel=2, tree=kernel).quote(QUESTION)
    assert kernel.levels == [b"2"]


@pytest.mark.parametrize(
    ("provider", "said"), [("tdx_guest", "tdx_guest"), (None, "no attestation provider")]
)
def test_another_machine_than_amds_is_refused_by_name(root: Path, provider: str | None, said: str) -> None:
    quoter = ConfigfsQuoter(root, tree=FakeConfigfs(root, bytes, provider=provider))
    with pytest.raises(QuoteUnavailable, match=said):
        quoter.check()
    with pytest.raises(QuoteUnavailable):
        quoter.quote(QUESTION)


def test_a_question_has_64_bytes(root: Path) -> None:
    with pytest.raises(ValueError, match="63"):
        ConfigfsQuoter(root, tree=FakeConfigfs(root, bytes)).quote(bytes(63))


@pytest.mark.parametrize("device", ["sev-guest", "tdx_guest", "tdx-guest"])
def test_a_machine_with_real_hardware_makes_no_simulated_evidence(tmp_path: Path, device: str) -> None:
    """C-15: whatever the settings say."""
    present = tmp_path / device
    present.touch()
    with pytest.raises(QuoteUnavailable, match=device):
        SimulatedQuoter(devices=[tmp_path / "absent", present], tsm_reports=tmp_path / "none")


def test_a_provider_in_configfs_is_real_hardware_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-15: also where the device is hidden."""
    kernel = FakeConfigfs(root, bytes)
    monkeypatch.setattr("enclave_app.quoting.configfs.Tree", lambda: kernel)
    assert hardware([], root) == f"{root} has the provider 'sev_guest'"
    with pytest.raises(QuoteUnavailable, match="sev_guest"):
        SimulatedQuoter(devices=[], tsm_reports=root)
    kernel.provider = None
    assert hardware([], root) is None


def test_simulated_evidence_is_accepted_by_nothing_but_an_unsafe_policy(amd: FakeAmd) -> None:
    document = make_identity(simulated_quoter(), clock=NOON.timestamp).document(NONCE)
    with warnings.catch_warnings(action="ignore", category=UnsafeSimulationWarning):
        policy = UnsafeSimulatedPolicy()
        assert verify(document, policy, nonce=NONCE, now=NOON).simulated
    refusing: Policy = amd.policy()
    with pytest.raises(PlatformNotAccepted):
        verify(document, refusing, nonce=NONCE, now=NOON)


def test_a_quoter_is_found_by_name() -> None:
    if hardware():
        pytest.skip("this machine has real hardware")
    assert find_quoter("auto").platform == find_quoter("simulated").platform == "simulated"
    with pytest.raises(QuoteUnavailable, match=r"6\.7"):
        find_quoter("sev-snp")
    with pytest.raises(ValueError, match="nitro"):
        find_quoter("nitro")  # type: ignore[arg-type]
