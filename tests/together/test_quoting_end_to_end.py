"""
From the machine's own words to a sealed answer, on every platform: the enclave asks its hardware, a real
gateway serves what it says, and a client that was told whom to trust proves it before it speaks.

The hardware is a real TPM in software, or a fake vendor behind the doors that real hardware has. The clocks
of both ends stand at noon, when the fake vendors' certificates are valid; all else is as in production.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from typing import Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

import blindbox.requests as requests
from blindbox import Policy
from blindbox.adapter import SealedAdapter
from blindbox.session_key import SessionKeys
from blindbox_attestation.azure.hcl import Hcl
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.event_log import EventLog
from blindbox_attestation.vtpm import MeasuredBoot, TpmPolicy
from blindbox_attestation.vtpm.area import Area
from enclave_app.quoting import Quote, Quoter, find_quoter
from enclave_app.quoting.tpm_commands import ECC, ENDORSEMENT, SHA256, restricted_signing_key
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.aws import FakeAws
from tests.kit.azure import FakeAzure, td_report_of
from tests.kit.configfs import FakeConfigfs, certificate_table
from tests.kit.enclave import make_echo_app, make_identity, running
from tests.kit.google import AUDIENCE, FakeGoogle
from tests.kit.intel import FakeIntel
from tests.kit.local_service import Asked, local_service
from tests.kit.machine import bare_machine
from tests.kit.nsm import FakeNsm
from tests.kit.paravisor import paravisor, runtime_json
from tests.kit.swtpm import swtpm
from tests.kit.tpm import FakeTpm, log_of

SECRET = "what the host must not read: saffron-7741"
OTHER = b"\x01" * 48


@dataclass(frozen=True, slots=True)
class Box:
    """A machine, whom to trust about it, and a wish that it does not fulfil."""

    quoter: Quoter
    policy: Policy
    another: Policy
    refused_as: str


class Relayed:
    """Genuine quotes of that very machine, about somebody else's keys."""

    def __init__(self, quoter: Quoter) -> None:
        self.platform = quoter.platform
        self._quoter = quoter

    def quote(self, bound: Bound) -> Quote:
        return self._quoter.quote(replace(bound, digest=bound.digest[::-1]))


def session(policy: Policy, keys: SessionKeys | None = None) -> requests.Session:
    """The SDK at noon, which asks nobody but the machine."""
    keys = keys or SessionKeys(now=lambda: NOON)
    return requests.Session(adapter=SealedAdapter(policy, keys=keys, collateral=None))


def see_it_proved(box: Box) -> None:
    """
    A sealed call under the policy is answered. Under another one, or if the machine's words are about other
    keys than the gateway's, it ends before the application is reached.
    """
    app, keys = make_echo_app(), SessionKeys(now=lambda: NOON)
    with running(app, identity=make_identity(box.quoter, clock=NOON.timestamp)) as enclave:
        with session(box.policy, keys) as trusting:
            for _ in range(2):  # the second rests on the first one's proof
                assert trusting.post(f"{enclave.origin}/anything", data=SECRET).status_code == 200
        verified = keys.latest()[enclave.origin].verified
        assert verified.platform == box.quoter.platform
        assert verified.boot_id == enclave.identity.boot_id
        assert verified.key_config == enclave.identity.key_config
        assert not verified.simulated
        refused(box.another, enclave.origin, box.refused_as)
    with running(app, identity=make_identity(Relayed(box.quoter), clock=NOON.timestamp)) as relay:
        refused(box.policy, relay.origin, "unbound-key")
    assert app.state.runs == 0


def refused(policy: Policy, origin: str, code: str) -> None:
    with session(policy) as careful, pytest.raises(AttestationError) as refusal:
        careful.get(f"{origin}/count")
    assert refusal.value.code == code


@pytest.fixture
def tsm(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    folder.mkdir()
    return folder


@pytest.fixture
def laid_ready(tmp_path: Path) -> Path:
    folder = tmp_path / "endorsements"
    folder.mkdir()
    return folder


def test_amd_sev_snp_through_the_kernels_interface(tsm: Path, laid_ready: Path) -> None:
    """C-2, C-6: with the revocation list that its operator lays ready."""
    amd = FakeAmd()
    endorsements = amd.endorsements()
    (laid_ready / "crl.der").write_bytes(endorsements.pop("crl"))
    kernel = FakeConfigfs(tsm, amd.report, table=certificate_table(endorsements))
    machine = bare_machine(tsm_reports=tsm, tree=kernel)
    quoter = find_quoter("auto", endorsements_dir=laid_ready, machine=machine)
    another = amd.policy(measurements={OTHER})
    see_it_proved(Box(quoter, amd.policy(), another, "measurement-mismatch"))


def test_intel_tdx_through_the_kernels_interface(tsm: Path, laid_ready: Path) -> None:
    """C-2, C-6: with the collateral that its operator lays ready."""
    intel = FakeIntel()
    (laid_ready / "collateral.json").write_bytes(intel.endorsements()["collateral"])
    kernel = FakeConfigfs(tsm, intel.quote, provider="tdx_guest")
    machine = bare_machine(tsm_reports=tsm, tree=kernel)
    quoter = find_quoter("auto", endorsements_dir=laid_ready, machine=machine)
    policy, another = (Policy(tdx=intel.tdx_policy(**more)) for more in ({}, {"mrtd": {OTHER}}))
    see_it_proved(Box(quoter, policy, another, "measurement-mismatch"))


def test_a_nitro_enclave_through_its_security_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-2."""
    aws = FakeAws()
    FakeNsm(
        lambda user_data, nonce, key: aws.document(user_data=user_data, nonce=nonce, public_key=key)
    ).behind_the_ioctl(monkeypatch)
    (tmp_path / "nsm").touch()
    quoter = find_quoter("auto", machine=bare_machine(nsm=tmp_path / "nsm"))
    for cached in (False, True):  # in the cached form the document has no nonce
        policy, another = (
            Policy(nitro=aws.policy(**more), accept_cached=cached) for more in ({}, {"pcrs": {0: {OTHER}}})
        )
        see_it_proved(Box(quoter, policy, another, "measurement-mismatch"))


def test_confidential_space_through_its_launcher(tmp_path: Path) -> None:
    """C-2."""
    google = FakeGoogle()

    def launcher(asked: Asked) -> bytes:
        question = json.loads(asked.body)
        assert question["token_type"] == "PKI"
        return google.token(aud=question["audience"], eat_nonce=question["nonces"][0])

    path = tmp_path / "teeserver.sock"
    with local_service({("POST", "/v1/token"): launcher}, socket=path):
        quoter = find_quoter("auto", audience=AUDIENCE, machine=bare_machine(launcher=path))
        policy, another = (Policy(gcp=google.policy(**more)) for more in ({}, {"audiences": {"elsewhere"}}))
        see_it_proved(Box(quoter, policy, another, "wrong-audience"))


# --- a TPM: real, in software ---


def ak_of(quoter: Quoter) -> bytes:
    """What a policy pins, as an operator reads it from a quote on a machine that is known to be good."""
    evidence = json.loads(quoter.quote(Bound(bytes(48), b"", b"")).evidence)
    return hashlib.sha256(base64.b64decode(evidence["ak_public"])).digest()


@pytest.mark.parametrize("ak", ["ecc", "rsa"])
def test_a_tpm_whose_key_is_pinned(ak: str) -> None:
    """C-2: the key is grown in the TPM, the registers are quoted by it, and a client knows both."""
    loader = hashlib.sha256(b"a loader").digest()
    with swtpm() as tpm:
        tpm.extend((4, loader))
        quoter = find_quoter("tpm", tpm_ak=ak, machine=bare_machine(open_tpm=tpm.open))
        value = hashlib.sha256(bytes(32) + loader).digest()
        boot = MeasuredBoot(pcrs={4: {value}}, secure_boot="unchecked", event_log="unused")
        policy = Policy(tpm=TpmPolicy(boot=boot, ak_keys={ak_of(quoter)}))
        another = Policy(tpm=TpmPolicy(boot=boot, ak_keys={bytes(32)}))
        see_it_proved(Box(quoter, policy, another, "unpinned-ak"))
        see_it_proved(Box(quoter, policy, Policy(tpm=TpmPolicy(boot=boot)), "missing-endorsement"))


@dataclass(frozen=True, slots=True)
class Boot:
    """A machine that has booted: its TPM's registers hold what a genuine log tells."""

    quoter: Quoter
    registers: dict[int, bytes]


@contextmanager
def booted(log: Path) -> Iterator[Boot]:
    """The boot of somebody's real machine, measured again into a TPM of our own."""
    told = EventLog.parse(log.read_bytes())
    with swtpm() as tpm:
        tpm.extend(*((event.register, event.digests["sha256"]) for event in told.events))
        machine = bare_machine(open_tpm=tpm.open, tpm_event_log=log)
        registers = tpm.commands.pcr_read(SHA256, range(8))
        yield Boot(find_quoter("tpm", machine=machine), registers)


def test_a_measured_boot_with_secure_boot_and_its_genuine_log(vectors: Path) -> None:
    """C-7: the log of a machine with Secure Boot, in the TPM and beside the quote."""
    with booted(vectors / "vtpm" / "eventlog_cos-101-amd-sev.bin") as boot:

        def policy(loader: bytes) -> Policy:
            asked = MeasuredBoot(pcrs={0: {boot.registers[0]}, 4: {loader}})
            return Policy(tpm=TpmPolicy(boot=asked, ak_keys={ak_of(boot.quoter)}))

        see_it_proved(Box(boot.quoter, policy(boot.registers[4]), policy(bytes(32)), "pcr-mismatch"))


def test_a_measured_boot_without_secure_boot_is_taken_only_if_it_was_not_asked_for(vectors: Path) -> None:
    """C-7."""
    with booted(vectors / "vtpm" / "eventlog_ubuntu-2104-no-secure-boot.bin") as boot:

        def policy(secure_boot: Literal["required", "unchecked"]) -> Policy:
            asked = MeasuredBoot(pcrs={4: {boot.registers[4]}}, secure_boot=secure_boot)
            return Policy(tpm=TpmPolicy(boot=asked, ak_keys={ak_of(boot.quoter)}))

        see_it_proved(Box(boot.quoter, policy("unchecked"), policy("required"), "secure-boot-off"))


def test_a_clouds_tpm_whose_key_the_cloud_has_certified(laid_ready: Path, tmp_path: Path) -> None:
    """As on Google's machines: template and certificate in the TPM, the issuers from the operator."""
    vendor = FakeTpm("ecc")
    log = tmp_path / "log"
    log.write_bytes(log_of(vendor.boot))
    template = restricted_signing_key(ECC)
    with swtpm() as tpm:
        _, area = tpm.commands.create_primary(ENDORSEMENT, template)
        tpm.forget_keys()
        leaf = vendor.certificate("leaf", public_key=Area.parse(area).key)
        for index, value in ((0x01C10003, template), (0x01C10002, leaf + bytes(100))):
            tpm.commands.nv_define(index, len(value))
            tpm.commands.nv_write(index, value)
        (laid_ready / "ak_chain.der").write_bytes(b"".join(vendor.chain()[1:]))
        tpm.extend(*((one.register, one.digest("sha256")) for one in vendor.boot))
        machine = bare_machine(open_tpm=tpm.open, tpm_event_log=log)
        quoter = find_quoter("tpm", endorsements_dir=laid_ready, machine=machine)
        policy, another = (
            Policy(tpm=vendor.tpm_policy(projects={project})) for project in ("our-project", "elsewhere")
        )
        see_it_proved(Box(quoter, policy, another, "instance-not-listed"))


# --- Azure: the paravisor's TPM is that real one ---


@contextmanager
def azure_machine(azure: FakeAzure, laid_ready: Path, log: Path) -> Iterator[tuple[Quoter, dict[int, bytes]]]:
    """A confidential machine that has booted, with what the host's metadata service knows of it."""
    quotes: list[bytes | None] = []

    def kept(key: RSAPublicKey) -> bytes:
        runtime = runtime_json(key)
        report, td_quote = azure.vouched(runtime)
        quotes.append(td_quote)
        return Hcl(2, azure.kind, report, 1, runtime).encode()

    def certificates(_: Asked) -> bytes:
        told = {name: DER_cert_to_PEM_cert(azure.endorsements()[name]) for name in ("vcek", "ask", "ark")}
        return json.dumps({"vcekCert": told["vcek"], "certificateChain": told["ask"] + told["ark"]}).encode()

    def quoting_enclave(asked: Asked) -> bytes:
        (made,) = quotes
        assert made is not None
        report = json.loads(asked.body)["report"]
        assert base64.urlsafe_b64decode(report + "==") == td_report_of(made)
        return json.dumps({"quote": base64.urlsafe_b64encode(made).decode()}).encode()

    services = {
        ("GET", "/metadata/THIM/amd/certification"): certificates,
        ("POST", "/acc/tdquote"): quoting_enclave,
    }
    told = EventLog.parse(log.read_bytes())
    with paravisor(kept) as machine, local_service(services) as host:
        machine.tpm.extend(*((event.register, event.digests["sha256"]) for event in told.events))
        here = bare_machine(open_tpm=machine.open, tpm_event_log=log, metadata=str(host.address))
        quoter = find_quoter("auto", endorsements_dir=laid_ready, machine=here)
        yield quoter, machine.tpm.commands.pcr_read(SHA256, range(8))


@pytest.mark.parametrize("processor", [FakeAmd, FakeIntel])
def test_azure_from_the_processor_to_the_paravisor_to_its_tpm(
    processor: type[FakeAmd | FakeIntel], laid_ready: Path, vectors: Path
) -> None:
    """C-7: the processor, the paravisor's word for Secure Boot, and a real boot's log of it: all proved."""
    azure = FakeAzure(processor())
    for name, file in (("crl", "crl.der"), ("collateral", "collateral.json")):
        if name in azure.endorsements():
            (laid_ready / file).write_bytes(azure.endorsements()[name])
    with azure_machine(azure, laid_ready, vectors / "vtpm" / "eventlog_cos-101-amd-sev.bin") as (
        quoter,
        registers,
    ):
        assert quoter.platform == azure.platform
        boots = (MeasuredBoot(pcrs={4: {value}}) for value in (registers[4], bytes(32)))
        policy, another = (azure.policy(boot=boot) for boot in boots)
        see_it_proved(Box(quoter, policy, another, "pcr-mismatch"))
