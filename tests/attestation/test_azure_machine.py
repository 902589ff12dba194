"""A fake Azure on both processors: one honest machine, then one lie at a time, each in one layer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation import snp, strict_json, tdx
from blindbox_attestation.azure import appraise_snp, appraise_tdx
from blindbox_attestation.azure.evidence import MAX_EVIDENCE, AzureEvidence
from blindbox_attestation.azure.hcl import SNP, Hcl
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.vtpm.boot import MeasuredBoot
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.azure import PCRS, VM_ID, FakeAzure, attest_of, td_report_of
from tests.kit.intel import FakeIntel
from tests.kit.verdict import verdict

OTHER = FakeAzure(FakeAmd(), name="another machine")
B = bytes(range(48))


@pytest.fixture(params=["snp", "tdx"])
def azure(request: pytest.FixtureRequest) -> FakeAzure:
    return FakeAzure(FakeAmd() if request.param == "snp" else FakeIntel())


@pytest.fixture
def on_snp() -> FakeAzure:
    return FakeAzure(FakeAmd())


@pytest.fixture
def on_tdx() -> FakeAzure:
    return FakeAzure(FakeIntel())


def code_of(azure: FakeAzure, evidence: bytes, policy: Any = None, **endorsements: bytes | None) -> str:
    """The code that an appraisal ends with, or "accepted"."""
    return verdict(lambda: azure.appraise(evidence, policy, **endorsements))


def retold(evidence: bytes, **changes: Any) -> bytes:
    """The same evidence with other members; None leaves one out."""
    told = {**json.loads(evidence), **changes}
    return json.dumps({name: value for name, value in told.items() if value is not None}).encode()


# --- an honest machine --------------------------------------------------------------------------------------


def test_an_honest_machine_is_accepted_and_says_three_things(azure: FakeAzure) -> None:
    claims = azure.appraise(azure.evidence(B))
    assert claims.measurement == claims.hardware.measurement
    assert claims.vm.unique_id == VM_ID
    assert claims.tpm.measured.pcrs == PCRS
    assert claims.carries(B)
    assert not claims.carries(B + bytes(16))
    assert not claims.carries(B[:32])


@pytest.mark.parametrize("hash_type", [1, 2, 3])
def test_each_hash_that_the_paravisor_may_use_is_understood(azure: FakeAzure, hash_type: int) -> None:
    assert code_of(azure, azure.evidence(hash_type=hash_type)) == "accepted"


@pytest.mark.parametrize("version", [4, 5])
def test_a_quote_of_either_version_is_understood(on_tdx: FakeAzure, version: int) -> None:
    assert code_of(on_tdx, on_tdx.evidence(version=version)) == "accepted"


def test_every_step_is_walked_once_and_in_order(azure: FakeAzure) -> None:
    walk = Walk()
    judge = appraise_snp if azure.kind == SNP else appraise_tdx
    judge(azure.evidence(), azure.endorsements(), azure.azure_policy(), now=NOON, walk=walk)
    assert [step.number for step in walk.steps] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    checks = {check.name for step in walk.steps for check in step.checks}
    assert {"hash of the runtime data", "secure boot", "VM id"} <= checks
    told = {check.name: check.found for step in walk.steps for check in step.checks}
    assert (told["VM id"], told["secure boot"], told["serial console"]) == (VM_ID, "on", "on")
    assert all(step.detail for step in walk.steps)


def test_each_step_tells_what_the_processor_s_own_walk_would(azure: FakeAzure) -> None:
    """C-51: nothing that was checked below is missing above, nor checked in another step."""
    above, below = Walk(), Walk()
    policy, evidence = azure.azure_policy(), azure.evidence()
    judge = appraise_snp if azure.kind == SNP else appraise_tdx
    judge(evidence, azure.endorsements(), policy, now=NOON, walk=above)
    told = AzureEvidence.parse(evidence, azure.kind)
    report = told.td_quote or told.hcl.report
    platform = snp if azure.kind == SNP else tdx
    platform.appraise(report, azure.endorsements(), policy.processor, now=NOON, walk=below)
    for one, other in zip(above.steps, below.steps, strict=True):
        names = [check.name for check in other.checks]
        assert (one.number, [check.name for check in one.checks][: len(names)]) == (other.number, names)
        assert one.number not in (3, 4, 6, 7) or other.detail in one.detail
    assert any(step.checks for step in below.steps)


def test_a_refusal_tells_how_far_it_came(azure: FakeAzure) -> None:
    lies: list[tuple[Any, Any, list[int]]] = [
        (azure.evidence(runtime=azure.runtime(keys=[])), None, [3, 4, 5, 6]),
        (azure.evidence(signer=OTHER.ak), None, [3, 4, 5, 6, 7]),
        (azure.evidence(), azure.azure_policy(console="off"), [3, 4, 5, 6, 7, 9, 10]),
        (azure.evidence(), azure.azure_policy(vm_ids={"another"}), [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]),
    ]
    for evidence, policy, numbers in lies:
        with pytest.raises(AttestationError) as refused:
            azure.appraise(evidence, policy)
        steps = refused.value.steps
        assert [step.number for step in steps] == numbers
        assert [step.outcome for step in steps].count("failed") == 1
        assert steps[-1].outcome == "failed"
        assert steps[-1].checks[-1].outcome == "failed"


def test_what_the_processors_library_refuses_early_is_told_after_step_7(on_tdx: FakeAzure) -> None:
    """C-7: `dcap-qvl` refuses a debuggable guest at once; the TPM's part is checked all the same."""
    lie = {"td_attributes": 1 << 28 | 1}
    with pytest.raises(AttestationError) as refused:
        on_tdx.appraise(on_tdx.evidence(**lie))
    steps = refused.value.steps
    assert [step.number for step in steps] == [3, 4, 5, 6, 7, 10]
    assert "digest over the registers" in {check.name for check in steps[4].checks}
    assert code_of(on_tdx, on_tdx.evidence(signer=OTHER.ak, **lie)) == "bad-signature"


# --- which machine: the key in the paravisor's words (step 6) -----------------------------------------------


def in_place_of(azure: FakeAzure, runtime: bytes) -> bytes:
    """Honest evidence, with other words of the paravisor put in place of those that were hashed."""
    evidence = azure.evidence()
    hcl = replace(Hcl.parse(json_base64(evidence, "hcl")), runtime=runtime)
    return retold(evidence, hcl=strict_json.to_base64(hcl.encode()))


def json_base64(evidence: bytes, name: str) -> bytes:
    return strict_json.from_base64(json.loads(evidence)[name], name)


def test_another_key_in_the_paravisors_words_is_refused(azure: FakeAzure) -> None:
    """C-2, C-3: the attacker's own TPM key, and quotes by it, under a genuine report."""
    theirs = azure.runtime(keys=[OTHER.jwk()])
    assert code_of(azure, in_place_of(azure, theirs)) == "runtime-data-mismatch"


def test_a_boot_report_that_is_replayed_with_another_tpm_is_refused(azure: FakeAzure) -> None:
    """C-1, C-2: report and words are genuine and a year old; the quote is fresh, and somebody else's."""
    assert code_of(azure, azure.evidence(signer=OTHER.ak)) == "bad-signature"


def test_two_keys_in_the_paravisors_words_are_refused(azure: FakeAzure) -> None:
    """C-17: which of the two would another reader take?"""
    for keys in ([azure.jwk(), OTHER.jwk()], [azure.jwk(), azure.jwk()], []):
        assert code_of(azure, azure.evidence(runtime=azure.runtime(keys=keys))) == "missing-ak"


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b'"secure-boot":false', b'"secure-boot":true '),
        (b'"secure-boot":false', b'"secure-boot": true'),
        (b'"kid":"HCLEkPub"', b'"kid":"HCLAkPub"'),
    ],
)
def test_words_that_were_edited_are_refused(azure: FakeAzure, was: bytes, becomes: bytes) -> None:
    """C-15."""
    evidence = azure.evidence(runtime=azure.runtime(vm={"secure-boot": False}))
    hcl = Hcl.parse(json_base64(evidence, "hcl"))
    assert was in hcl.runtime
    edited = replace(hcl, runtime=hcl.runtime.replace(was, becomes)).encode()
    assert code_of(azure, retold(evidence, hcl=strict_json.to_base64(edited))) == "runtime-data-mismatch"


def test_json_that_is_padded_is_refused(azure: FakeAzure) -> None:
    """C-17: what follows the object is other bytes, and so another hash; hashed as well, it is no JSON."""
    for padding in (b" ", b"\n", b"\x00"):
        assert code_of(azure, in_place_of(azure, azure.runtime() + padding)) == "runtime-data-mismatch"
    assert code_of(azure, azure.evidence(runtime=azure.runtime() + b"\x00")) == "malformed-hcl"


@pytest.mark.parametrize("said", [1, 2, 3])
@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_lie_about_the_hash_is_refused(azure: FakeAzure, said: int, used: int) -> None:
    """C-5, C-14: the longer hash is never compared as the shorter one's prefix."""
    evidence = azure.evidence(hash_type=used)
    hcl = replace(Hcl.parse(json_base64(evidence, "hcl")), hash_type=said).encode()
    code = code_of(azure, retold(evidence, hcl=strict_json.to_base64(hcl)))
    assert code == ("accepted" if said == used else "runtime-data-mismatch")


@pytest.mark.parametrize("change", ["tail", "head", "short"])
def test_report_data_that_is_not_the_hash_and_zeros_is_refused(azure: FakeAzure, change: str) -> None:
    """C-5: all 64 bytes count."""
    runtime = azure.runtime()
    digest = hashlib.sha256(runtime).digest()
    data = {
        "tail": digest + bytes(31) + b"\x01",
        "head": bytes(32) + digest,
        "short": digest[:31] + bytes(33),
    }[change]
    made = (
        azure.processor.report(data) if isinstance(azure.processor, FakeAmd) else azure.processor.quote(data)
    )
    report, quote = (made, None) if azure.kind == SNP else (td_report_of(made), made)
    evidence = azure.evidence(runtime=runtime, report=report, td_quote=quote)
    assert code_of(azure, evidence) == "runtime-data-mismatch"


def test_a_tdreport_with_other_report_data_than_its_quote_is_refused(on_tdx: FakeAzure) -> None:
    """C-2: the quote is honest, the TDREPORT beside it is about something else."""
    other = td_report_of(on_tdx.processor.quote(bytes(64)))
    assert code_of(on_tdx, on_tdx.evidence(report=other)) == "runtime-data-mismatch"


@pytest.mark.parametrize("changed", ["mrtd", "td_attributes", "xfam", "tee_tcb_svn", "mrconfigid"])
def test_a_tdreport_that_was_not_quoted_is_refused(on_tdx: FakeAzure, changed: str) -> None:
    """C-2, C-15: one field differs, hashes and all made anew."""
    value: Any = {
        "td_attributes": 1 << 28 | 1 << 30,
        "xfam": 3,
        "tee_tcb_svn": bytes((9, 1)) + bytes(14),
    }.get(changed, bytes(range(48)))
    runtime = on_tdx.runtime()
    other, _ = on_tdx.vouched(runtime, **{changed: value})
    assert code_of(on_tdx, on_tdx.evidence(runtime=runtime, report=other)) == "td-report-mismatch"


def test_a_tdreport_that_disagrees_with_itself_is_refused(on_tdx: FakeAzure) -> None:
    """C-15."""
    report = bytearray(on_tdx.vouched(on_tdx.runtime())[0])
    report[700] ^= 1
    assert code_of(on_tdx, on_tdx.evidence(report=bytes(report))) == "malformed-hcl"


# --- which processor (steps 3 to 7, the layer below) --------------------------------------------------------


def test_an_snp_machine_in_the_tdx_platform_is_refused(on_snp: FakeAzure, on_tdx: FakeAzure) -> None:
    """C-13: both ways."""
    quote = on_tdx.processor.quote()
    as_tdx = retold(on_snp.evidence(), td_quote=strict_json.to_base64(quote))
    assert code_of(on_tdx, as_tdx) == "wrong-tee-type"
    assert code_of(on_snp, retold(on_tdx.evidence(), td_quote=None)) == "wrong-tee-type"
    assert code_of(on_tdx, on_snp.evidence()) == "malformed-quote"
    assert code_of(on_snp, on_tdx.evidence()) == "malformed-quote"


def test_a_report_of_an_unknown_vendor_is_refused(azure: FakeAzure) -> None:
    """C-13: a whole chain, well signed, by nobody that the policy trusts."""
    theirs = FakeAmd(name="Other Devices") if azure.kind == SNP else FakeIntel("Other Corporation")
    other = FakeAzure(theirs)
    assert code_of(other, other.evidence(), azure.azure_policy()) == "unpinned-root"


def test_a_flipped_bit_under_the_processors_signature_is_refused(azure: FakeAzure) -> None:
    """C-15: with a hash that still fits."""
    runtime = azure.runtime()
    report, quote = azure.vouched(runtime)
    if quote is None:
        evidence = azure.evidence(runtime=runtime, report=flipped(report, 0x0C0))
    else:
        bad = flipped(quote, 48 + 184)
        evidence = azure.evidence(runtime=runtime, report=td_report_of(bad), td_quote=bad)
    assert code_of(azure, evidence) == "bad-signature"


def test_missing_endorsements_are_refused(azure: FakeAzure) -> None:
    for name in azure.endorsements():
        code = "crl-missing" if name == "crl" else "missing-endorsement"
        assert code_of(azure, azure.evidence(), **{name: None}) == code


def test_a_debuggable_guest_is_refused(azure: FakeAzure) -> None:
    """C-7: the paravisor's memory can be read, and so can the key of its TPM."""
    lie = {"policy": 0xB0000} if azure.kind == SNP else {"td_attributes": 1 << 28 | 1}
    assert code_of(azure, azure.evidence(**lie)) == "debug-allowed"


def test_a_guest_that_may_migrate_is_refused(azure: FakeAzure) -> None:
    """C-7."""
    lie = {"policy": 0x70000} if azure.kind == SNP else {"td_attributes": 1 << 28 | 1 << 29}
    assert code_of(azure, azure.evidence(**lie)) == "migration-allowed"


def test_a_guest_with_a_service_machine_bound_to_it_is_refused(on_tdx: FakeAzure) -> None:
    """C-7: the TDREPORT is of version 1 then, and still the one that was quoted."""
    assert code_of(on_tdx, on_tdx.evidence(version=5, mrservicetd=bytes(range(48)))) == "service-td"
    runtime = on_tdx.runtime()
    _, quote = on_tdx.vouched(runtime, version=5, mrservicetd=bytes(range(48)))
    report, _ = on_tdx.vouched(runtime, version=5)
    evidence = on_tdx.evidence(runtime=runtime, report=report, td_quote=quote)
    assert code_of(on_tdx, evidence) == "td-report-mismatch"


def test_another_paravisor_is_refused(azure: FakeAzure) -> None:
    """C-6."""
    lie = {"measurement" if azure.kind == SNP else "mrtd": bytes(48)}
    assert code_of(azure, azure.evidence(**lie)) == "measurement-mismatch"


def test_old_firmware_is_refused(on_snp: FakeAzure) -> None:
    """C-8."""
    newer = {name: replace(tcb, microcode=0xFF) for name, tcb in {"Genoa": on_snp.processor.tcb}.items()}
    policy = on_snp.azure_policy(processor={"minimum_tcb": newer})
    assert code_of(on_snp, on_snp.evidence(), policy) == "tcb-too-old"


def test_a_lower_privilege_level_that_asked_is_refused(on_snp: FakeAzure) -> None:
    """C-7: at VMPL 2 it was the guest who asked, and may have written any words below its report."""
    assert code_of(on_snp, on_snp.evidence(vmpl=2)) == "vmpl"


# --- what the TPM says (steps 3 and 7) ----------------------------------------------------------------------


@pytest.mark.parametrize("register", [0, 4, 23])
def test_a_register_that_was_not_signed_is_refused(azure: FakeAzure, register: int) -> None:
    """C-6, C-15."""
    evidence = azure.evidence(told_pcrs={**PCRS, register: bytes(32)})
    assert code_of(azure, evidence) == "pcr-digest-mismatch"


def test_registers_that_were_not_quoted_are_refused(azure: FakeAzure) -> None:
    """C-6: fewer, more, or none at all."""
    few = {number: PCRS[number] for number in (0, 7)}
    assert code_of(azure, azure.evidence(pcrs=few)) == "pcr-selection"
    assert code_of(azure, azure.evidence(pcrs=few, told_pcrs=PCRS)) == "pcr-selection"
    assert code_of(azure, azure.evidence(told_pcrs=few)) == "pcr-selection"
    assert code_of(azure, azure.evidence(pcrs={})) == "pcr-selection"


def test_a_quote_that_is_something_else_is_refused(azure: FakeAzure) -> None:
    """C-14, C-19."""
    for changes in ({"magic": 0xFF544348}, {"kind": 0x8017}):
        assert code_of(azure, azure.evidence(attest=attest_of(B, PCRS, **changes))) == "malformed-quote"
    assert code_of(azure, azure.evidence(attest=attest_of(B, PCRS) + b"\x00")) == "trailing-bytes"
    assert code_of(azure, azure.evidence(attest=attest_of(B, PCRS, bank=0x0004))) == "pcr-selection"


@pytest.mark.parametrize("head", ["0016000b", "0014000c", "0014000d", "0018000b"])
def test_another_way_of_signing_is_refused(azure: FakeAzure, head: str) -> None:
    """C-14: the paravisor's TPM signs with RSASSA and SHA-256, whatever a signature says of itself."""
    evidence = azure.evidence()
    signature = bytes.fromhex(head) + json_base64(evidence, "signature")[4:]
    code = code_of(azure, retold(evidence, signature=strict_json.to_base64(signature)))
    assert code in ("unsupported-signature-algorithm", "malformed-signature")


# --- what the policy asks of the machine (steps 10, 12, 13) -------------------------------------------------


@pytest.mark.parametrize("said", [False, None])
def test_a_machine_without_secure_boot_is_refused(azure: FakeAzure, said: bool | None) -> None:
    """C-7."""
    evidence = azure.evidence(runtime=azure.runtime(vm={"secure-boot": said}))
    assert code_of(azure, evidence) == "secure-boot-off"
    assert code_of(azure, evidence, azure.azure_policy(secure_boot="unchecked")) == "accepted"


@pytest.mark.parametrize("said", [False, None])
def test_a_machine_without_a_tpm_is_refused(azure: FakeAzure, said: bool | None) -> None:
    """C-7."""
    assert code_of(azure, azure.evidence(runtime=azure.runtime(vm={"tpm-enabled": said}))) == "vtpm-off"


@pytest.mark.parametrize("said", [True, None])
def test_a_console_is_refused_if_the_policy_says_so(azure: FakeAzure, said: bool | None) -> None:
    evidence = azure.evidence(runtime=azure.runtime(vm={"console-enabled": said}))
    assert code_of(azure, evidence) == "accepted"
    assert code_of(azure, evidence, azure.azure_policy(console="off")) == "console-enabled"


def test_a_machine_without_a_console_passes_a_policy_that_forbids_it(azure: FakeAzure) -> None:
    evidence = azure.evidence(runtime=azure.runtime(vm={"console-enabled": False}))
    assert code_of(azure, evidence, azure.azure_policy(console="off")) == "accepted"


def test_another_boot_is_refused(azure: FakeAzure) -> None:
    """C-6: well signed, but not what the policy names."""
    other = {**PCRS, 11: bytes(32)}
    assert code_of(azure, azure.evidence(pcrs=other)) == "pcr-mismatch"


def test_a_log_that_is_asked_for_and_not_sent_is_refused(azure: FakeAzure) -> None:
    boot = MeasuredBoot(pcrs={4: {PCRS[4]}}, secure_boot="unchecked")
    assert code_of(azure, azure.evidence(), azure.azure_policy(boot=boot)) == "event-log-missing"
    both = MeasuredBoot(pcrs={4: {PCRS[4]}})
    assert code_of(azure, azure.evidence(), azure.azure_policy(boot=both)) == "event-log-missing"


def test_a_log_that_cannot_be_read_is_refused(azure: FakeAzure) -> None:
    """C-19."""
    boot = MeasuredBoot(pcrs={4: {PCRS[4]}}, secure_boot="unchecked")
    policy = azure.azure_policy(boot=boot)
    assert code_of(azure, azure.evidence(), policy, event_log=b"no log") == "malformed-event-log"


def test_another_machine_of_the_cloud_is_refused_if_ids_are_named(azure: FakeAzure) -> None:
    """C-51."""
    assert code_of(azure, azure.evidence(), azure.azure_policy(vm_ids={VM_ID.upper()})) == "accepted"
    other = azure.azure_policy(vm_ids={"3c18c97a-0d2a-4565-969d-166cdcef26a3"})
    assert code_of(azure, azure.evidence(), other) == "instance-not-listed"
    nameless = azure.evidence(runtime=azure.runtime(vm={"vmUniqueId": None}))
    assert code_of(azure, nameless, other) == "instance-not-listed"


def test_another_confidential_container_policy_is_refused(on_snp: FakeAzure) -> None:
    """C-51: HOST_DATA is the SHA-256 of the policy that the machine was launched with."""
    asked = hashlib.sha256(b"package policy").digest()
    policy = on_snp.azure_policy().with_host_data(asked)
    assert code_of(on_snp, on_snp.evidence(host_data=asked), policy) == "accepted"
    assert code_of(on_snp, on_snp.evidence(), policy) == "host-data"


def test_pins_of_the_processor_hold_here_too(azure: FakeAzure) -> None:
    """C-51."""
    pin = {"chip_ids": {bytes(63) + b"\x01"}} if azure.kind == SNP else {"ppids": {bytes(16)}}
    code = "chip-not-listed" if azure.kind == SNP else "platform-not-listed"
    assert code_of(azure, azure.evidence(), azure.azure_policy(processor=pin)) == code


# --- the evidence as a text (step 3) ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["version", "hcl", "attest", "signature", "pcrs"])
def test_a_missing_member_is_refused(azure: FakeAzure, name: str) -> None:
    """C-17."""
    assert code_of(azure, retold(azure.evidence(), **{name: None})) == "malformed-quote"


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"ak_public": ""},
        {"version": 2},
        {"version": True},
        {"version": "1"},
        {"hcl": []},
        {"hcl": "SENMQQ"},
        {"pcrs": {"24": "00" * 32}},
        {"pcrs": {"00": "00" * 32}},
        {"pcrs": {"0": "AA" * 32}},
        {"pcrs": []},
    ],
)
def test_a_second_spelling_of_the_evidence_is_refused(azure: FakeAzure, change: dict[str, Any]) -> None:
    """C-17, C-20."""
    assert code_of(azure, retold(azure.evidence(), **change)) == "malformed-quote"


def test_text_around_the_object_is_refused(azure: FakeAzure) -> None:
    """C-17."""
    evidence = azure.evidence()
    assert code_of(azure, evidence + b"{}") == "malformed-quote"
    assert code_of(azure, evidence[:-1] + b',"version":1}') == "malformed-quote"
    assert code_of(azure, b"[" + evidence + b"]") == "malformed-quote"


def test_evidence_that_is_too_large_is_refused_unread(azure: FakeAzure) -> None:
    """C-18."""
    assert code_of(azure, azure.evidence().ljust(MAX_EVIDENCE)) == "accepted"
    assert code_of(azure, azure.evidence().ljust(MAX_EVIDENCE + 1)) == "document-too-large"


def test_every_truncation_is_refused(azure: FakeAzure) -> None:
    """C-19."""
    evidence = azure.evidence()
    policy = azure.azure_policy()
    codes = {code_of(azure, evidence[:size], policy) for size in range(0, len(evidence), 97)}
    assert codes == {"malformed-quote"}


def test_the_parts_cut_short_are_refused(azure: FakeAzure) -> None:
    """C-19."""
    evidence = azure.evidence()
    for name, code in (
        ("hcl", "malformed-hcl"),
        ("attest", "malformed-quote"),
        ("signature", "malformed-signature"),
    ):
        whole = json_base64(evidence, name)
        for size in range(0, len(whole), max(1, len(whole) // 23)):
            cut = retold(evidence, **{name: strict_json.to_base64(whole[:size])})
            assert code_of(azure, cut) == code, (name, size)


def test_every_flipped_bit_of_the_paravisors_words_is_refused(azure: FakeAzure) -> None:
    """C-15: one bit of each byte."""
    evidence = azure.evidence()
    policy = azure.azure_policy()
    hcl = Hcl.parse(json_base64(evidence, "hcl"))
    for at in range(0, len(hcl.runtime), 11):
        bad = replace(hcl, runtime=flipped(hcl.runtime, at)).encode()
        assert (
            code_of(azure, retold(evidence, hcl=strict_json.to_base64(bad)), policy)
            == "runtime-data-mismatch"
        )


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]


# --- the log of the boot, which is the TPM's ----------------------------------------------------------------


def logged(folder: Path, name: str) -> tuple[bytes, dict[int, bytes]]:
    """A real log, and the registers that it adds up to."""
    told = json.loads((folder / "vtpm" / f"{name}.pcrs.json").read_bytes())["banks"]["sha256"]
    pcrs = {number: bytes(32) for number in range(24)}
    pcrs |= {int(number): bytes.fromhex(value) for number, value in told.items()}
    return (folder / "vtpm" / f"{name}.bin").read_bytes(), pcrs


def test_a_boot_that_its_log_explains_is_accepted(azure: FakeAzure, vectors: Path) -> None:
    log, pcrs = logged(vectors, "eventlog_cos-101-amd-sev")
    policy = azure.azure_policy(boot=MeasuredBoot(pcrs={4: {pcrs[4]}}))
    evidence = azure.evidence(pcrs=pcrs)
    assert code_of(azure, evidence, policy, event_log=log) == "accepted"
    other = MeasuredBoot(pcrs={4: {pcrs[5]}})
    assert code_of(azure, evidence, azure.azure_policy(boot=other), event_log=log) == "pcr-mismatch"


def test_a_log_of_another_boot_is_refused(azure: FakeAzure, vectors: Path) -> None:
    """C-6, C-15: every digest of the log adds up to what the TPM signed, or it is nobody's log."""
    log, pcrs = logged(vectors, "eventlog_ubuntu-2404-amd-sevsnp")
    boot = MeasuredBoot(pcrs={4: {PCRS[4]}}, secure_boot="unchecked")
    assert code_of(azure, azure.evidence(), azure.azure_policy(boot=boot), event_log=log) == (
        "event-log-mismatch"
    )
    assert pcrs != PCRS


def test_a_log_without_secure_boot_is_refused_whatever_the_paravisor_says(
    azure: FakeAzure, vectors: Path
) -> None:
    """C-7."""
    log, pcrs = logged(vectors, "eventlog_ubuntu-2104-no-secure-boot")
    policy = azure.azure_policy(boot=MeasuredBoot(pcrs={4: {pcrs[4]}}))
    assert code_of(azure, azure.evidence(pcrs=pcrs), policy, event_log=log) == "secure-boot-off"
    unchecked = azure.azure_policy(boot=MeasuredBoot(pcrs={4: {pcrs[4]}}, secure_boot="unchecked"))
    assert code_of(azure, azure.evidence(pcrs=pcrs), unchecked, event_log=log) == "accepted"
