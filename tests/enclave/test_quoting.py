"""
How the enclave asks the kernel: configfs-tsm on a fake one, for AMD and for Intel; how the right quoter is
found; and the simulated quoter that refuses real hardware.
"""

from __future__ import annotations

import base64
import errno
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation import UnsafeSimulatedPolicy, UnsafeSimulationWarning, verify
from blindbox_attestation.binding import Bound, report_data
from blindbox_attestation.errors import PlatformNotAccepted
from blindbox_attestation.policy import Policy
from enclave_app.quoting import QUOTERS, QuoterName, QuoteUnavailable, find_quoter
from enclave_app.quoting.configfs import (
    ATTEMPTS,
    LAID_READY,
    ConfigfsQuoter,
    provider,
    read_certificate_table,
)
from enclave_app.quoting.endorsements import MAX_EVENT_LOG, read_endorsements, read_event_log, together
from enclave_app.quoting.simulated import SimulatedQuoter
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.configfs import FakeConfigfs, certificate_table
from tests.kit.enclave import make_identity, simulated_quoter
from tests.kit.machine import bare_machine

BOUND = Bound(digest=bytes(range(48)), nonce=b"n" * 32, key_config=b"keys")
QUESTION = report_data(BOUND.digest)
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


def asking(root: Path, kernel: FakeConfigfs, *more: Any, **options: Any) -> ConfigfsQuoter:
    """A quoter that asks this kernel, and does not wait between its attempts."""
    return ConfigfsQuoter(root, *more, tree=kernel, **({"sleep": lambda _: None} | options))


def test_a_report_and_the_hosts_certificates_come_from_configfs(root: Path, amd: FakeAmd) -> None:
    kernel = FakeConfigfs(root, amd.report, table=certificate_table(from_host(amd)))
    quote = asking(root, kernel).quote(BOUND)
    assert quote.evidence[0x50:0x90] == QUESTION
    assert dict(quote.endorsements) == from_host(amd)
    assert list(root.iterdir()) == []  # the entry was removed


def test_what_the_quoter_brings_is_what_the_client_accepts(root: Path, tmp_path: Path, amd: FakeAmd) -> None:
    """The whole way: fake kernel, identity, document, and the real verification under the fake AMD's root."""
    laid_ready = tmp_path / "endorsements"
    laid_ready.mkdir()
    (laid_ready / "crl.der").write_bytes(amd.endorsements()["crl"])
    kernel = FakeConfigfs(root, amd.report, table=certificate_table(from_host(amd)))
    identity = make_identity(asking(root, kernel, laid_ready), clock=NOON.timestamp)
    verified = verify(identity.document(NONCE), amd.policy(), nonce=NONCE, now=NOON)
    assert verified.platform == "sev-snp"
    assert verified.key_config == identity.key_config
    assert verified.boot_id == identity.boot_id
    assert not verified.simulated


def test_a_tdx_guest_is_asked_the_same_way_and_brings_its_boot_log(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "CCEL"
    log.write_bytes(b"the boot" + b"\xff" * 1000)
    kernel = FakeConfigfs(root, lambda data: b"quote over " + data, provider="tdx_guest")
    (tmp_path / "vcek.der").write_bytes(b"")
    (tmp_path / "collateral.json").write_bytes(b"{}")
    quoter = asking(root, kernel, tmp_path, platform="tdx", event_log=log)
    quoter.check()
    quote = quoter.quote(BOUND)
    assert quoter.platform == "tdx"
    assert quote.evidence == b"quote over " + QUESTION
    assert quote.endorsements["event_log"] == b"the boot" + b"\xff" * 16
    assert quote.endorsements["collateral"] == b"{}"
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("little_endian", [False, True])
def test_the_table_is_read_in_both_byte_orders(amd: FakeAmd, little_endian: bool) -> None:
    table = certificate_table(from_host(amd), little_endian=little_endian)
    assert read_certificate_table(table + bytes(100)) == from_host(amd)


def test_an_operators_file_wins_over_the_hosts_table(root: Path, tmp_path: Path) -> None:
    for name in ("ask", "crl", "unknown"):
        (tmp_path / f"{name}.der").write_bytes(name.encode())
    table = certificate_table({"vcek": b"leaf", "ask": b"the host's"})
    kernel = FakeConfigfs(root, bytes, table=table)
    quote = asking(root, kernel, tmp_path).quote(BOUND)
    assert quote.endorsements == {"vcek": b"leaf", "ask": b"ask", "crl": b"crl"}


def test_an_operators_files_are_bounded_each_and_together(tmp_path: Path) -> None:
    (tmp_path / "crl.der").write_bytes(bytes(64 * 1024 + 1))
    with pytest.raises(QuoteUnavailable, match="larger than 65536"):
        read_endorsements(tmp_path)
    with pytest.raises(QuoteUnavailable, match="vcek 100000, event_log 50000"):
        together({"vcek": bytes(100_000)}, {"event_log": bytes(50_000)})


def test_the_issuer_of_a_leased_key_is_found_under_the_guid_it_is_filed_under(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes, table=certificate_table({"vlek": b"leased", "ask": b"issuer"}))
    quote = asking(root, kernel).quote(BOUND)
    assert quote.endorsements["asvk"] == b"issuer"


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_a_certificate_in_pem_becomes_der(root: Path, tmp_path: Path) -> None:
    assert read_certificate_table(certificate_table({"vcek": pem(b"der bytes" * 20)})) == {
        "vcek": b"der bytes" * 20
    }
    (tmp_path / "ak_chain.der").write_bytes(pem(b"leaf") + pem(b"root"))
    assert read_endorsements(tmp_path) == {"ak_chain": b"leafroot"}
    for broken in (b"-----BEGIN CERTIFICATE-----\n!\n-----END", pem(b"whole").replace(b"=", b"")):
        with pytest.raises(QuoteUnavailable, match="PEM"):
            read_certificate_table(certificate_table({"vcek": broken}))


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


def test_what_a_table_names_beyond_our_certificates_is_passed_over(amd: FakeAmd) -> None:
    """An entry of a GUID that nobody knows, and one of ours that is empty."""
    known = certificate_table({"vcek": b""})[:16]
    entries = struct.pack("<16sII", b"?" * 16, 72, 4) + struct.pack("<16sII", known, 72, 0) + bytes(24)
    assert read_certificate_table(entries + b"more") == {}


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(16384)])
def test_a_host_that_lays_nothing_ready_is_no_error(table: bytes) -> None:
    assert read_certificate_table(table) == {}


@pytest.mark.parametrize(
    ("log", "kept"),
    [
        (None, {}),
        (b"", {}),
        (b"\xff" * 64, {}),
        (b"log", {"event_log": b"log"}),
        (b"log" + b"\xff" * 64, {"event_log": b"log" + b"\xff" * 16}),
        (b"x" * MAX_EVENT_LOG, {"event_log": b"x" * MAX_EVENT_LOG}),
        (b"x" * (MAX_EVENT_LOG + 1), {}),
    ],
)
def test_a_boot_log_is_carried_if_there_is_one_and_room_for_it(
    tmp_path: Path, log: bytes | None, kept: dict[str, bytes]
) -> None:
    path = tmp_path / "log"
    if log is not None:
        path.write_bytes(log)
    assert read_event_log(path) == kept


def test_a_genuine_boot_log_loses_nothing_but_its_padding(vectors: Path, tmp_path: Path) -> None:
    """A Google TDX machine's CCEL, in an area as large as ACPI keeps for it; another one's TPM log."""
    log = (vectors / "tdx" / "v4_gcp_cos113_ccel.bin").read_bytes()
    (tmp_path / "CCEL").write_bytes(log.ljust(1 << 16, b"\xff"))
    assert read_event_log(tmp_path / "CCEL") == {"event_log": log}
    measured = vectors / "vtpm" / "eventlog_cos-101-amd-sev.bin"
    assert read_event_log(measured) == {"event_log": measured.read_bytes()}


def test_a_racing_writer_is_noticed_and_the_question_asked_again(root: Path, amd: FakeAmd) -> None:
    kernel = FakeConfigfs(root, amd.report, races=2)
    quote = asking(root, kernel).quote(BOUND)
    assert quote.evidence[0x50:0x90] == QUESTION
    assert len(set(kernel.entries_made)) == 3
    assert list(root.iterdir()) == []


def test_a_writer_that_always_races_is_not_raced_for_ever(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes, races=100)
    with pytest.raises(QuoteUnavailable, match="another process"):
        asking(root, kernel).quote(BOUND)
    assert len(kernel.entries_made) == ATTEMPTS
    assert list(root.iterdir()) == []


def test_a_busy_quoting_service_is_waited_for(root: Path) -> None:
    """S-14: with longer and longer pauses, and not for ever."""
    kernel = FakeConfigfs(root, bytes, provider="tdx_guest", failures=[errno.EBUSY] * 3)
    pauses: list[float] = []
    asking(root, kernel, platform="tdx", sleep=pauses.append).quote(BOUND)
    assert pauses == [0.1, 0.2, 0.4]
    impatient = FakeConfigfs(root, bytes, provider="tdx_guest", failures=[errno.EBUSY] * 3)
    with pytest.raises(QuoteUnavailable, match="busy"):
        asking(root, impatient, platform="tdx", patience=0.15, sleep=pauses.append).quote(BOUND)
    assert len(impatient.entries_made) <= 2
    assert list(root.iterdir()) == []


def test_a_host_without_a_quoting_service_is_told_from_a_broken_kernel(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes, provider="tdx_guest", failures=[errno.ETIMEDOUT])
    with pytest.raises(QuoteUnavailable, match="quoting service"):
        asking(root, kernel, platform="tdx").quote(BOUND)
    broken = FakeConfigfs(root, bytes, failures=[errno.EIO])
    with pytest.raises(QuoteUnavailable, match=r"Input/output error$"):
        asking(root, broken).quote(BOUND)
    assert list(root.iterdir()) == []


def test_the_level_is_written_only_when_it_is_asked_for(root: Path) -> None:
    kernel = FakeConfigfs(root, bytes)
    asking(root, kernel).quote(BOUND)
    assert kernel.levels == []
    asking(root, kernel, privlevel=2).quote(BOUND)
    assert kernel.levels == [b"2"]


@pytest.mark.parametrize(
    ("platform", "provider", "said"),
    [
        ("sev-snp", "tdx_guest", "'tdx_guest', and not by 'sev_guest' as sev-snp needs"),
        ("tdx", "sev_guest", "'sev_guest', and not by 'tdx_guest' as tdx needs"),
        ("sev-snp", "arm_cca_guest", "arm_cca_guest"),
        ("sev-snp", None, "no attestation provider"),
        ("tdx", None, "tdx-guest module"),
    ],
)
def test_another_machine_than_was_asked_for_is_refused_by_name(
    root: Path, platform: str, provider: str | None, said: str
) -> None:
    quoter = asking(root, FakeConfigfs(root, bytes, provider=provider), platform=platform)
    with pytest.raises(QuoteUnavailable, match=said):
        quoter.check()
    with pytest.raises(QuoteUnavailable):
        quoter.quote(BOUND)


def test_an_interface_that_breaks_is_no_provider(root: Path) -> None:
    class Broken(FakeConfigfs):
        def read(self, attribute: Path) -> bytes:
            raise OSError(errno.EIO, "broken")

    assert provider(root, Broken(root, bytes)) is None
    assert list(root.iterdir()) == []


# --- which quoter ---


@pytest.mark.parametrize("device", ["sev-guest", "tdx_guest", "tdx-guest"])
def test_a_machine_with_real_hardware_makes_no_simulated_evidence(tmp_path: Path, device: str) -> None:
    """C-21: whatever the settings say."""
    present = tmp_path / device
    present.touch()
    machine = bare_machine(tee_devices=(tmp_path / "absent", present))
    with pytest.raises(QuoteUnavailable, match="sev-snp" if device == "sev-guest" else "tdx"):
        SimulatedQuoter(machine)
    with pytest.raises(QuoteUnavailable, match=r"6\.7"):  # and auto says what is missing
        find_quoter("auto", machine=machine)


@pytest.mark.parametrize(
    ("provider", "platform"), [("sev_guest", "sev-snp"), ("tdx_guest", "tdx"), ("arm_cca_guest", "sev-snp")]
)
def test_a_provider_in_configfs_is_real_hardware_too(root: Path, provider: str, platform: str) -> None:
    """C-21: also where the device is hidden, and where it is another vendor's."""
    kernel = FakeConfigfs(root, bytes, provider=provider)
    machine = bare_machine(tsm_reports=root, tree=kernel)
    assert machine.platform() == platform
    for name in ("simulated", "auto") if provider == "arm_cca_guest" else ("simulated",):
        with pytest.raises(QuoteUnavailable):
            find_quoter(name, machine=machine)
    kernel.provider = None
    assert machine.platform() is None


@pytest.mark.parametrize(("door", "platform"), [("nsm", "nitro"), ("launcher", "gcp-confidential-space")])
def test_a_clouds_own_door_is_real_hardware_too(tmp_path: Path, door: str, platform: str) -> None:
    """C-21."""
    (tmp_path / door).touch()
    machine = bare_machine(**{door: tmp_path / door})
    assert machine.platform() == platform
    with pytest.raises(QuoteUnavailable, match=platform):
        SimulatedQuoter(machine)


def test_the_kernels_interface_comes_before_every_other_door(root: Path, tmp_path: Path) -> None:
    (tmp_path / "door").touch()
    others = {"nsm": tmp_path / "door", "launcher": tmp_path / "door"}
    kernel = FakeConfigfs(root, bytes, provider="tdx_guest")
    found = find_quoter("auto", machine=bare_machine(tsm_reports=root, tree=kernel, **others))
    assert found.platform == "tdx"


@pytest.mark.parametrize("name", [name for name in QUOTERS if name not in ("auto", "simulated")])
def test_a_quoter_that_is_asked_for_by_name_is_refused_where_nothing_answers(name: QuoterName) -> None:
    with pytest.raises(QuoteUnavailable):
        find_quoter(name, machine=bare_machine())


def test_a_machine_without_hardware_runs_simulated() -> None:
    assert find_quoter("auto", machine=bare_machine()).platform == "simulated"
    assert find_quoter("simulated", machine=bare_machine()).platform == "simulated"
    with pytest.raises(ValueError, match="sgx"):
        find_quoter("sgx", machine=bare_machine())  # type: ignore[arg-type]


def test_simulated_evidence_is_accepted_by_nothing_but_an_unsafe_policy(amd: FakeAmd) -> None:
    document = make_identity(simulated_quoter(), clock=NOON.timestamp).document(NONCE)
    with warnings.catch_warnings(action="ignore", category=UnsafeSimulationWarning):
        policy = UnsafeSimulatedPolicy()
        assert verify(document, policy, nonce=NONCE, now=NOON).simulated
    refusing: Policy = amd.policy()
    with pytest.raises(PlatformNotAccepted):
        verify(document, refusing, nonce=NONCE, now=NOON)


def test_an_entry_that_root_laid_ready_is_used_and_stays(root: Path, amd: FakeAmd) -> None:
    """An ordinary user can make an entry and not write to it: the virtual machine's init lays one ready."""
    kernel = FakeConfigfs(root, amd.report)
    kernel.make(root / LAID_READY)
    quoter = asking(root, kernel)
    assert provider(root, kernel) == "sev_guest"
    for _ in range(2):
        assert quoter.quote(BOUND).evidence[0x50:0x90] == QUESTION
    assert kernel.entries_made == [LAID_READY]
    assert [path.name for path in root.iterdir()] == [LAID_READY]
