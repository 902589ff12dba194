"""
What `verify.py` measures: one machine of each kind, with everything that proves it.

Real machines, where the folder of vectors is there (BLINDBOX_VECTORS, or shared/vectors beside the
checkout); machines of the tests' fake vendors elsewhere. The TPM is a fake one in both: no published quote
comes with the log of 116 events that a real firmware wrote.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blindbox_attestation.azure import AzureSnpPolicy, AzureTdxPolicy
from blindbox_attestation.azure.hcl import Hcl
from blindbox_attestation.gcp import GcpPolicy
from blindbox_attestation.nitro import Document, NitroPolicy
from blindbox_attestation.policy import Policy
from blindbox_attestation.snp import Report, SnpPolicy, Tcb
from blindbox_attestation.tdx import Quote, TdxPolicy
from blindbox_attestation.vtpm import MeasuredBoot
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.aws import FakeAws
from tests.kit.azure import FakeAzure, Foreign, from_foreign
from tests.kit.google import FakeGoogle
from tests.kit.intel import FakeIntel
from tests.kit.tpm import FakeTpm

REPOSITORY = Path(__file__).resolve().parent.parent
USER_DATA = bytes(range(48)).ljust(64, b"\x00")
LOG = "eventlog_ubuntu-2404-amd-sevsnp"  # 116 events
FLOORS = {
    "Milan": Tcb(bootloader=2, snp=5, microcode=0x44),
    "Genoa": Tcb(bootloader=10, snp=0x1B, microcode=0x1B),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One machine, and a policy that accepts it."""

    name: str
    about: str
    platform: str
    evidence: bytes
    endorsements: Mapping[str, bytes]
    policy: Policy
    now: datetime
    peers: tuple[str, ...] = ()  # who else can judge it: `peers.py`
    most: float | None = None  # ms, cold


def vectors() -> Path | None:
    folder = Path(os.environ.get("BLINDBOX_VECTORS", REPOSITORY.parent / "shared" / "vectors"))
    return folder if (folder / "MANIFEST.md").is_file() else None


def cases(folder: Path | None) -> list[Case]:
    return [*(_fakes() if folder is None else _real(folder)), _tpm(folder)]


def der(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(b"-----"):
        return data
    return ssl.PEM_cert_to_DER_cert(data.decode("ascii").replace("X509 CRL", "CERTIFICATE").strip())


# --- real machines ------------------------------------------------------------------------------------------


def _real(folder: Path) -> Iterator[Case]:
    yield _snp(folder, "Milan", "milan_v2_vcek", crl=True, peers=("dk-tee-attestation",))
    yield _snp(folder, "Genoa", "genoa_v5", crl=False, peers=("tinfoil", "dk-tee-attestation"))
    yield _tdx(folder, "v4", "v4_uptodate_quote.bin", "v4_uptodate_collateral.json", 1750414563)
    yield _tdx(folder, "v5", "v5_td15_uptodate_quote.bin", "fmspc_90c06f_2026-02_collateral.json", 1771498731)
    yield _nitro(folder)
    yield _gcp(folder)
    yield _azure_snp(folder)
    yield _azure_tdx(folder)


def _snp(folder: Path, family: str, name: str, *, crl: bool, peers: tuple[str, ...]) -> Case:
    snp = folder / "snp"
    short = name.removesuffix("_vcek")
    report = (snp / f"{name}_report.bin").read_bytes()
    endorsements = {
        "ark": der(snp / f"roots_{family.lower()}_ark.pem"),
        "ask": der(snp / f"roots_{family.lower()}_ask.pem"),
        "vcek": der(snp / f"{short}_vcek.der"),
    }
    if crl:
        endorsements["crl"] = der(snp / f"crl_{family.lower()}.pem")
    policy = SnpPolicy(
        measurements={Report.parse(report).measurement},
        minimum_tcb={family: FLOORS[family]},
        revocation="required" if crl else "unchecked",
    )
    return Case(
        f"sev-snp {family}",
        "three certificates, report, and AMD's revocation list" if crl else "three certificates and report",
        "sev-snp",
        report,
        endorsements,
        Policy(snp=policy),
        datetime(2026, 5, 1, tzinfo=UTC),
        peers,
        most=0.7,
    )


def _tdx(folder: Path, version: str, quote_name: str, collateral: str, at: int) -> Case:
    quote = (folder / "tdx" / quote_name).read_bytes()
    return Case(
        f"tdx {version}",
        "quote, and Intel's collateral",
        "tdx",
        quote,
        {"collateral": (folder / "tdx" / collateral).read_bytes()},
        Policy(tdx=TdxPolicy(mrtd={Quote.parse(quote).mrtd}, minimum_tcb_evaluation=17)),
        datetime.fromtimestamp(at, UTC),
        ("dcap-qvl", "dcap-qvl + JSON", "dk-tee-attestation"),
    )


def _nitro(folder: Path) -> Case:
    data = (folder / "nitro" / "valid_2025-12.cbor").read_bytes()
    document = Document.parse(data)
    policy = NitroPolicy(pcrs={0: {document.pcrs[0]}})
    return Case(
        "nitro",
        "five certificates in the document",
        "nitro",
        data,
        {},
        Policy(nitro=policy),
        document.timestamp,
    )


def _gcp(folder: Path) -> Case:
    policy = GcpPolicy(
        audiences={"z08381475938604996746"},
        image_digests={"sha256:e2e5e3672f416ac9ca71aa639abf86db0b713729a48c125a925af6c808b20b5d"},
        hardware={"GCP_INTEL_TDX"},
        minimum_version=250800,
        tcb_statuses={"UpToDate"},
    )
    return Case(
        "gcp-confidential-space",
        "three certificates in the token",
        "gcp-confidential-space",
        (folder / "gcp" / "confidential_space_token.jwt").read_bytes(),
        {},
        Policy(gcp=policy),
        datetime(2025, 9, 5, 8, 20, tzinfo=UTC),
    )


def _boot_of(machine: Foreign) -> MeasuredBoot:
    pcrs = {number: {bytes.fromhex(machine.pcrs[str(number)])} for number in (0, 4, 7)}
    return MeasuredBoot(pcrs=pcrs, secure_boot="unchecked", event_log="unused")


def _azure_snp(folder: Path) -> Case:
    machine = from_foreign(folder / "azure" / "snp_milan_evidence.json")
    measurement = Report.parse(Hcl.parse(machine.hcl).report).measurement
    snp = SnpPolicy(measurements={measurement}, minimum_tcb={"Milan": FLOORS["Milan"]})
    return Case(
        "az-snp-vtpm",
        "SNP report with revocation list, quote of the paravisor's TPM",
        "az-snp-vtpm",
        machine.evidence,
        {
            **machine.endorsements,
            "ask": der(folder / "azure" / "imds-chain-0.der"),
            "ark": der(folder / "azure" / "imds-chain-1.der"),
            "crl": der(folder / "snp" / "crl_milan.pem"),
        },
        Policy(azure_snp=AzureSnpPolicy(snp=snp, boot=_boot_of(machine))),
        datetime(2026, 5, 1, tzinfo=UTC),
    )


def _azure_tdx(folder: Path) -> Case:
    machine = from_foreign(folder / "azure" / "tdx_evidence.json")
    assert machine.td_quote is not None
    tdx = TdxPolicy(mrtd={Quote.parse(machine.td_quote).mrtd}, minimum_tcb_evaluation=18)
    return Case(
        "az-tdx-vtpm",
        "TDX quote with collateral, quote of the paravisor's TPM",
        "az-tdx-vtpm",
        machine.evidence,
        {
            **machine.endorsements,
            "collateral": (folder / "azure" / "tdx_collateral_2026-03.json").read_bytes(),
        },
        Policy(azure_tdx=AzureTdxPolicy(tdx=tdx, boot=_boot_of(machine))),
        datetime(2026, 3, 20, tzinfo=UTC),
    )


# --- machines of the fake vendors ---------------------------------------------------------------------------


def _fakes() -> Iterator[Case]:
    amd, intel, aws, google = FakeAmd("Genoa"), FakeIntel(), FakeAws(), FakeGoogle()

    def case(name: str, about: str, evidence: bytes, endorsements: Mapping[str, bytes], **more: Any) -> Case:
        platform = name.split(" ")[0]
        return Case(name, about, platform, evidence, endorsements, **{"now": NOON, **more})

    yield case(
        "sev-snp Genoa",
        "fake AMD; three certificates, report, and revocation list",
        amd.report(USER_DATA),
        amd.endorsements(),
        policy=amd.policy(),
        most=0.7,
    )
    for version in (4, 5):
        yield case(
            f"tdx v{version}",
            "fake Intel; quote and collateral",
            intel.quote(USER_DATA, version=version),
            intel.endorsements(),
            policy=Policy(tdx=intel.tdx_policy()),
        )
    yield case("nitro", "fake AWS", aws.document(nonce=USER_DATA), {}, policy=Policy(nitro=aws.policy()))
    yield case(
        "gcp-confidential-space", "fake Google", google.token(), {}, policy=Policy(gcp=google.policy())
    )
    for machine in (FakeAzure(amd), FakeAzure(intel)):
        yield case(
            machine.platform,
            "fake Azure",
            machine.evidence(USER_DATA),
            machine.endorsements(),
            policy=machine.policy(),
        )


def _tpm(folder: Path | None) -> Case:
    """Google's pinned kind of key (ECDSA P-256, certificates of RSA-2048), and the log of a real boot."""
    tpm = FakeTpm("ecc")
    if folder is None:
        evidence, endorsements, boot = tpm.evidence(USER_DATA), tpm.endorsements(), tpm.measured_boot()
        about = "fake TPM; a short log"
    else:
        told = json.loads((folder / "vtpm" / f"{LOG}.pcrs.json").read_bytes())["banks"]["sha256"]
        registers = {int(name): bytes.fromhex(value) for name, value in told.items()}
        registers |= {number: bytes(32) for number in range(10) if number not in registers}
        evidence = tpm.evidence(USER_DATA, registers=registers)
        log = (folder / "vtpm" / f"{LOG}.bin").read_bytes()
        endorsements = tpm.endorsements(event_log=log)
        boot = MeasuredBoot(
            pcrs={number: {registers[number]} for number in (0, 4, 7)}, secure_boot="unchecked"
        )
        about = "fake TPM; the real log of a boot with 116 events"
    policy = Policy(tpm=tpm.tpm_policy(boot=boot))
    return Case("tpm", about, "tpm", evidence, endorsements, policy, NOON, most=0.5)
