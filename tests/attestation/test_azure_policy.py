"""Azure policies: what cannot be meant, their JSON, and how a whole document fares under them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation.azure import AzureSnpPolicy, AzureTdxPolicy
from blindbox_attestation.errors import InvalidPolicy
from blindbox_attestation.policy import Policy
from blindbox_attestation.snp.policy import SnpPolicy
from blindbox_attestation.snp.tcb import Tcb
from blindbox_attestation.tdx.policy import TdxPolicy
from blindbox_attestation.verify import verify
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.azure import PCRS, FakeAzure, boot_of
from tests.kit.intel import FakeIntel
from tests.kit.verdict import verdict

NONCE = bytes(range(32))
BOOT = boot_of({4: {bytes(32)}})
SNP = SnpPolicy(measurements={bytes(48)}, minimum_tcb={"Genoa": Tcb(bootloader=1, snp=1, microcode=1)})
TDX = TdxPolicy(mrtd={bytes(48)}, minimum_tcb_evaluation=18)


@pytest.fixture(params=["snp", "tdx"])
def azure(request: pytest.FixtureRequest) -> FakeAzure:
    return FakeAzure(FakeAmd() if request.param == "snp" else FakeIntel())


def code_of(azure: FakeAzure, document: bytes, policy: Any = None, nonce: bytes = NONCE) -> str:
    """The code that a verification ends with, or "accepted"."""
    return verdict(lambda: verify(document, policy or azure.policy(), nonce=nonce, now=NOON))


# --- documents ----------------------------------------------------------------------------------------------


def test_a_document_of_an_honest_machine_is_accepted(azure: FakeAzure) -> None:
    proved = verify(azure.document(nonce=NONCE), azure.policy(), nonce=NONCE, now=NOON)
    assert proved.platform == azure.platform
    assert proved.key_config == KEY_CONFIG
    assert [step.number for step in proved.steps] == list(range(1, 14))
    assert any("Microsoft" in name for name in proved.trusts)


def test_an_older_quote_is_refused(azure: FakeAzure) -> None:
    """C-1: recorded, and played again to a new question."""
    assert code_of(azure, azure.document(nonce=bytes(32))) == "wrong-nonce"


def test_another_key_under_a_genuine_quote_is_refused(azure: FakeAzure) -> None:
    """C-2."""
    told = json.loads(azure.document(nonce=NONCE))
    told["transcript"]["key_config"] = "AAAA"
    assert code_of(azure, json.dumps(told).encode()) == "unbound-key"


@pytest.mark.parametrize("change", ["pad", "cut", "zeros", "none"])
def test_extra_data_that_is_not_exactly_the_binding_is_refused(azure: FakeAzure, change: str) -> None:
    """C-5: nothing before it, nothing after it, no prefix of it."""
    change_to = {
        "pad": lambda bound: bound + bytes(16),
        "cut": lambda bound: bound[:32],
        "zeros": lambda bound: bytes(48),
        "none": lambda bound: b"",
    }[change]

    class Liar(FakeAzure):
        def evidence(self, extra_data: bytes = bytes(48), **changes: Any) -> bytes:
            return super().evidence(change_to(extra_data), **changes)

    assert code_of(azure, Liar(azure.processor).document(nonce=NONCE)) == "unbound-key"


def test_the_binding_in_the_processors_report_is_none(azure: FakeAzure) -> None:
    """C-4: the other platform's place for it. On Azure the report is the paravisor's, and from the boot."""
    plain = azure.processor.document(nonce=NONCE)
    told = json.loads(plain)
    told["platform"] = azure.platform
    assert code_of(azure, json.dumps(told).encode()) == "malformed-quote"


def test_a_policy_for_the_bare_processor_does_not_accept_the_cloud(azure: FakeAzure) -> None:
    """C-13: and the other way round."""
    bare = azure.processor.policy() if isinstance(azure.processor, FakeAmd) else None
    policy = bare or Policy(tdx=azure.processor.tdx_policy())  # type: ignore[union-attr]
    assert code_of(azure, azure.document(nonce=NONCE), policy) == "platform-not-accepted"
    assert code_of(azure, azure.processor.document(nonce=NONCE)) == "platform-not-accepted"


def test_cce_policy_reaches_the_processors_policy() -> None:
    """C-51: blindbox 0.2.1's `cce_policy` is HOST_DATA."""
    azure = FakeAzure(FakeAmd())
    asked = azure.policy().with_host_data(bytes(31) + b"\x01")
    assert code_of(azure, azure.document(nonce=NONCE, host_data=bytes(31) + b"\x01"), asked) == "accepted"
    assert code_of(azure, azure.document(nonce=NONCE), asked) == "host-data"


def test_the_floor_of_collateral_reaches_the_processors_policy() -> None:
    """C-12."""
    azure = FakeAzure(FakeIntel())
    asked = azure.policy().with_tcb_evaluation_floor(10_000)
    assert code_of(azure, azure.document(nonce=NONCE), asked) == "tcb-evaluation-too-old"


# --- policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: AzureSnpPolicy(snp=TDX, boot=BOOT), "no SnpPolicy"),
        (lambda: AzureSnpPolicy(snp=None, boot=BOOT), "no SnpPolicy"),
        (lambda: AzureTdxPolicy(tdx=SNP, boot=BOOT), "no TdxPolicy"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=None), "no MeasuredBoot"),
        (lambda: AzureSnpPolicy(snp=SNP, boot={4: {bytes(32)}}), "no MeasuredBoot"),
        (lambda: AzureSnpPolicy(snp=replace(SNP, vmpl=2), boot=BOOT), "VMPL 0"),
        (lambda: AzureTdxPolicy(tdx=replace(TDX, event_log="required"), boot=BOOT), "ask for it in boot"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, secure_boot="off"), "secure_boot"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, console=False), "console"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, ak_certificate=True), "ak_certificate"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, vm_ids=set()), "vm_ids"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, vm_ids="02fe12ec"), "vm_ids"),
        (lambda: AzureSnpPolicy(snp=SNP, boot=BOOT, vm_ids={"x" * 65}), "vm_ids"),
        (lambda: AzureTdxPolicy(tdx=TDX, boot=BOOT, roots={}), "roots"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(make: Any, why: str) -> None:
    """C-22."""
    with pytest.raises(InvalidPolicy, match=why):
        make()


FULL: dict[str, Any] = {
    "secure_boot": "unchecked",
    "console": "off",
    "vm_ids": {"02FE12EC-5B74-4a1b-b261-8ea46fe9af36"},
    "ak_certificate": "required",
}


@pytest.mark.parametrize("wishes", [{}, FULL])
@pytest.mark.parametrize("key", ["azure_snp", "azure_tdx"])
def test_a_policy_is_the_same_after_a_journey_through_json(key: str, wishes: dict[str, Any]) -> None:
    made: Any = (
        AzureSnpPolicy(snp=SNP, boot=BOOT, **wishes)
        if key == "azure_snp"
        else AzureTdxPolicy(tdx=TDX, boot=BOOT, **wishes)
    )
    policy = Policy(**{key: made})
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.digest == policy.digest
    assert getattr(again, key) == made
    assert hash(getattr(again, key)) == hash(made)
    assert hash(made) != hash(replace(made, vm_ids={"another"}))


@pytest.mark.parametrize("key", ["azure_snp", "azure_tdx"])
def test_every_wish_changes_the_name_of_a_policy(key: str) -> None:
    base: Any = {"boot": BOOT, **({"snp": SNP} if key == "azure_snp" else {"tdx": TDX})}
    kind: Any = AzureSnpPolicy if key == "azure_snp" else AzureTdxPolicy
    digests = {Policy(**{key: kind(**base, **{name: wish})}).digest for name, wish in FULL.items()}
    assert len(digests | {Policy(**{key: kind(**base)}).digest}) == len(FULL) + 1


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"boot": None}, {"snp": None}, {"roots": {}}, {"vm_ids": []}]
)
def test_a_misspelt_wish_in_json_is_an_error(change: dict[str, Any]) -> None:
    """C-17, C-22."""
    told = json.loads(Policy(azure_snp=AzureSnpPolicy(snp=SNP, boot=BOOT)).to_json())
    told["azure_snp"] |= change
    told["azure_snp"] = {name: value for name, value in told["azure_snp"].items() if value is not None}
    with pytest.raises(InvalidPolicy):
        Policy.from_json(json.dumps(told))


def test_a_policy_with_roots_of_its_own_has_no_json() -> None:
    azure = FakeAzure(FakeAmd())
    with pytest.raises(InvalidPolicy, match="roots"):
        azure.policy().to_json()
    with pytest.raises(InvalidPolicy, match="roots"):
        Policy(azure_snp=AzureSnpPolicy(snp=SNP, boot=BOOT, roots=azure.roots)).to_json()


def test_a_policy_in_words_names_whom_it_trusts_and_what_it_leaves_open() -> None:
    words = AzureSnpPolicy(snp=SNP, boot=BOOT).in_words()
    assert any("Microsoft" in one for one in words.trusts)
    assert any("AMD" in one for one in words.trusts)
    assert "Secure boot is on." in words.checks
    assert any("serial console" in one for one in words.unchecked)
    assert any("Of which boot the processor's report is" in one for one in words.unchecked)
    strict = AzureTdxPolicy(tdx=TDX, boot=BOOT, **FULL).in_words()
    assert any("Intel" in one for one in strict.trusts)
    assert "There is no serial console." in strict.checks
    assert "Whether secure boot is on." in strict.unchecked
    assert any("Azure's certificates" in one for one in strict.checks)
    by_id = "The machine's id, which the host tells, is one of those named."
    any_id = "Which of Azure's machines it is, by the id that the host gives it."
    assert [by_id in one.checks for one in (words, strict)] == [False, True]
    assert [any_id in one.unchecked for one in (words, strict)] == [True, False]


def test_the_processors_and_the_boots_words_are_there_too() -> None:
    policy = FakeAzure(FakeIntel()).azure_policy()
    words = policy.in_words()
    assert {*policy.tdx.in_words().checks, *policy.boot.in_words().checks} <= set(words.checks)
    assert {*policy.tdx.in_words().unchecked, *policy.boot.in_words().unchecked} <= set(words.unchecked)
    assert len(PCRS) == 24
