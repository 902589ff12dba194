"""
Intel's collateral, fetched: from a stand-in of its service that serves real collateral, and a fake Intel's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blindbox import Collateral, CollateralUnavailable, session_key
from blindbox.collateral import _snp_report, download, intel_pcs, intel_platform
from blindbox.collateral.cache import WrongContent
from blindbox_attestation import tdx
from blindbox_attestation.errors import AttestationError, TcbTooOld
from blindbox_attestation.evidence import AZURE_SNP, AZURE_TDX, TDX, AttestationDocument
from blindbox_attestation.policy import AnyOf, Policy
from blindbox_attestation.roots import INTEL_ROOTS
from blindbox_attestation.snp.report import Report
from blindbox_attestation.tdx.policy import TdxPolicy
from enclave_app.identity import Identity
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.azure import from_foreign
from tests.kit.enclave import simulated_quoter
from tests.kit.intel import EVALUATION, FMSPC, FakeIntel, entry, pem, tlv
from tests.kit.pcs import SGX, ProvisioningService
from tests.kit.pcs import TDX as TDX_PATH
from tests.kit.relay import Asked, Reply, http_reply

NONCE = bytes(32)
REAL_NOW = datetime.fromtimestamp(1750414563, UTC)  # when the real collateral was valid


@pytest.fixture
def intel() -> FakeIntel:
    return FakeIntel()


def published(intel: FakeIntel, **changes: str) -> dict[str, str]:
    return dict(json.loads(intel.collateral(**changes)))


@pytest.fixture
def pcs(intel: FakeIntel) -> Iterator[ProvisioningService]:
    with ProvisioningService(published(intel)) as one:
        yield one


@pytest.fixture
def policy(intel: FakeIntel) -> Policy:
    return Policy(tdx=intel.tdx_policy(minimum_tcb_evaluation=1))


def bare(intel: FakeIntel, **changes: Any) -> bytes:
    """A document of an honest machine that sent no collateral."""
    return intel.document(endorsements={}, **changes)


def prove(collateral: Collateral, document: bytes, policy: Any, now: datetime = NOON) -> set[str]:
    return set(collateral.verify(document, policy, nonce=NONCE, now=now)[1])


def refusal(collateral: Collateral, document: bytes, policy: Any, now: datetime = NOON) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        prove(collateral, document, policy, now)
    return caught.value


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("authority", ["platform", "processor"])
def test_the_collateral_of_a_machine_is_fetched_by_its_kind_and_authority(authority: str) -> None:
    intel = FakeIntel(authority=authority)
    with ProvisioningService(published(intel), authority=authority) as pcs:
        collateral = Collateral(intel=pcs.origin)
        assert prove(collateral, bare(intel), Policy(tdx=intel.tdx_policy())) == {"collateral"}
        assert pcs.paths == [
            f"{TDX_PATH}/tcb?fmspc=B0C06F000000&update=standard",
            f"{TDX_PATH}/qe/identity?update=standard",
            f"{SGX}/pckcrl?ca={authority}&encoding=der",
            f"{SGX}/rootcacrl",
        ]
        prove(collateral, bare(intel), Policy(tdx=intel.tdx_policy()))
        assert len(pcs.asked) == 4


def test_nobody_is_asked_if_the_machine_sent_it(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy
) -> None:
    assert prove(Collateral(intel=pcs.origin), intel.document(), policy) == set()
    assert pcs.asked == []


def test_what_is_fetched_is_what_intel_signed_to_the_byte(vectors: Path, pcs: ProvisioningService) -> None:
    """A real quote and its real collateral, taken apart by the stand-in and put together again."""
    pcs.collateral = json.loads((vectors / "tdx" / "v4_uptodate_collateral.json").read_text())
    quote = (vectors / "tdx" / "v4_uptodate_quote.bin").read_bytes()
    document = AttestationDocument(TDX, FakeAmd().transcript(), quote, {}).encode()
    wish = TdxPolicy(mrtd={tdx.Quote.parse(quote).mrtd}, minimum_tcb_evaluation=17)
    assert wish.roots == INTEL_ROOTS
    fetched = Collateral(intel=pcs.origin).complete(document, Policy(tdx=wish), now=REAL_NOW)
    assert fetched.failures == []
    told = json.loads(fetched["collateral"])
    assert {name: value.strip() for name, value in told.items()} == {
        name: value.strip() for name, value in pcs.collateral.items()
    }
    assert tdx.appraise(quote, fetched, wish, now=REAL_NOW).status == "UpToDate"


def test_the_addresses_are_intel_s_own_unless_the_user_gives_one(
    intel: FakeIntel, pcs: ProvisioningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    usual = download.get

    def get(url: str, **options: Any) -> Any:
        asked.append(url)
        path = url.replace("https://api.trustedservices.intel.com", pcs.origin)
        path = path.replace(
            "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
            pcs.origin + SGX + "/rootcacrl",
        )
        return usual(path, **options)

    monkeypatch.setattr(download, "get", get)
    monkeypatch.setattr("blindbox.collateral.INTEL_ROOTS", intel.roots)
    assert prove(Collateral(), bare(intel), Policy(tdx=intel.tdx_policy())) == {"collateral"}
    assert {url.partition("/tdx/")[0].partition("/sgx/")[0] for url in asked} == {
        "https://api.trustedservices.intel.com",
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    }


def test_a_policy_with_roots_of_its_own_has_no_vendor_to_ask(
    intel: FakeIntel, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "get", lambda *_, **__: pytest.fail("somebody was asked"))
    assert refusal(Collateral(), bare(intel), policy).code == "missing-endorsement"


@pytest.mark.parametrize(
    "fmspc",
    [b"", b"\x00" * 5, b"\x00" * 7, b"../../", b"A&x=1#\n", b"\xff" * 6],
    ids=lambda one: one.hex() or "none",
)
def test_what_a_certificate_says_does_not_lead_the_request_elsewhere(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy, fmspc: bytes
) -> None:
    """C-23: an FMSPC becomes twelve hexadecimal digits of an address, or nothing."""
    pck = intel.certificate("pck", extension=tlv(0x30, entry("4", tlv(0x04, fmspc))))
    chain = pem(pck, intel.standard("platform"), intel.standard("root"))
    error = refusal(Collateral(intel=pcs.origin), bare(intel, chain=chain), policy)
    assert error.code == "missing-endorsement"
    asked = [f"{TDX_PATH}/tcb?fmspc={fmspc.hex().upper()}&update=standard"] if len(fmspc) == 6 else []
    assert pcs.paths == asked


@pytest.mark.parametrize(
    "who", ["an unknown authority", "no authority", "no certificates", "no PEM", "no extension"]
)
def test_a_quote_with_odd_certificates_asks_nobody(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy, who: str
) -> None:
    root, platform, pck = (intel.standard(name) for name in ("root", "platform", "pck"))
    chain = {
        "an unknown authority": pem(pck, intel.certificate("platform", common_name="PCK ../ CA"), root),
        "no authority": pem(pck),
        "no certificates": "",
        "no PEM": "\x00\xff certificates",
        "no extension": pem(intel.certificate("pck", extension=b""), platform, root),
    }[who]
    with pytest.raises(AttestationError):
        prove(Collateral(intel=pcs.origin), bare(intel, chain=chain), policy)
    assert pcs.asked == []


def test_a_platform_is_named_by_its_certificates(vectors: Path) -> None:
    for name, fmspc in (
        ("v4_uptodate_quote.bin", "B0C06F000000"),
        ("v5_td15_uptodate_quote.bin", "90C06F000000"),
    ):
        quote = (vectors / "tdx" / name).read_bytes()
        claimed = AttestationDocument(TDX, FakeAmd().transcript(), quote, {})
        assert intel_platform(claimed) == (fmspc, "platform")


def test_azure_s_evidence_holds_what_vendors_are_asked_about(vectors: Path) -> None:
    transcript = FakeAmd().transcript()
    snp = from_foreign(vectors / "azure" / "snp_milan_evidence.json").evidence
    report = Report.parse(_snp_report(AttestationDocument(AZURE_SNP, transcript, snp, {})))
    assert (report.version, report.signing_key, report.family) == (3, 0, "Milan")
    quote = from_foreign(vectors / "azure" / "tdx_evidence.json").evidence
    assert intel_platform(AttestationDocument(AZURE_TDX, transcript, quote, {})) == (
        "90C06F000000",
        "platform",
    )
    for junk in (b"", b"{}", b'{"hcl":7}', b'{"hcl":"AAAA"}', quote[:-5], snp, b"[" * 9999):
        with pytest.raises(AttestationError):
            intel_platform(AttestationDocument(AZURE_TDX, transcript, junk, {}))


# ── bad answers ───────────────────────────────────────────────────────────────────────────────────────────

TCB, QE, PCK_LIST, ROOT_LIST = f"{TDX_PATH}/tcb", f"{TDX_PATH}/qe/", f"{SGX}/pckcrl", f"{SGX}/rootcacrl"


def theirs() -> FakeIntel:
    return FakeIntel("Another Intel")


EARLIER = "2026-05-01T00:00:00Z"

BAD: dict[str, tuple[str, Any]] = {
    "TCB info of another kind of machine": (
        TCB,
        lambda one: {"tcb_info": FakeIntel(fmspc=bytes(6)).tcb_info()},
    ),
    "TCB info of SGX": (TCB, lambda one: {"tcb_info": one.tcb_info(id="SGX")}),
    "TCB info that has ended": (TCB, lambda one: {"tcb_info": one.tcb_info(nextUpdate=EARLIER)}),
    "TCB info of tomorrow": (TCB, lambda one: {"tcb_info": one.tcb_info(issueDate="2026-06-02T00:00:00Z")}),
    "TCB info without an end": (TCB, lambda one: {"tcb_info": one.tcb_info(nextUpdate=None)}),
    "TCB info with another's signature": (
        TCB,
        lambda one: {"tcb_info_signature": theirs().sign(one.tcb_info())},
    ),
    "TCB info of another vendor": (
        TCB,
        lambda _: {
            name: published(theirs())[name]
            for name in ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain")
        },
    ),
    "TCB info signed by the PCK authority": (
        TCB,
        lambda one: {
            "tcb_info_signature": one.sign(one.tcb_info(), "platform"),
            "tcb_info_issuer_chain": pem(one.standard("platform"), one.standard("root")),
        },
    ),
    "TCB info whose signer has ended": (
        TCB,
        lambda one: {
            "tcb_info_issuer_chain": pem(
                one.certificate("tcb", not_after=NOON - timedelta(days=1)), one.standard("root")
            )
        },
    ),
    "TCB info without its chain": (TCB, lambda _: {"tcb_info_issuer_chain": ""}),
    "TCB info with a chain of three": (
        TCB,
        lambda one: {
            "tcb_info_issuer_chain": pem(one.standard("tcb"), one.standard("platform"), one.standard("root"))
        },
    ),
    "a QE identity of SGX": (QE, lambda one: {"qe_identity": one.qe_identity(id="QE")}),
    "a QE identity that has ended": (QE, lambda one: {"qe_identity": one.qe_identity(nextUpdate=EARLIER)}),
    "a QE identity with another's signature": (
        QE,
        lambda one: {"qe_identity_signature": theirs().sign(one.qe_identity())},
    ),
    "a list of the other authority": (
        PCK_LIST,
        lambda one: {
            "pck_crl": one.crl("processor"),
            "pck_crl_issuer_chain": pem(one.standard("processor"), one.standard("root")),
        },
    ),
    "a list signed by another": (PCK_LIST, lambda one: {"pck_crl": one.crl("platform", signer="root")}),
    "a list that has ended": (
        PCK_LIST,
        lambda one: {"pck_crl": one.crl("platform", next_update=NOON - timedelta(days=1))},
    ),
    "a list without its chain": (PCK_LIST, lambda _: {"pck_crl_issuer_chain": ""}),
    "the root's list of another": (ROOT_LIST, lambda _: {"root_ca_crl": theirs().crl("root")}),
    "the root's list that has ended": (
        ROOT_LIST,
        lambda one: {"root_ca_crl": one.crl("root", next_update=NOON - timedelta(days=1))},
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_answer_is_neither_trusted_nor_kept(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy, own_home: Path, bad: str
) -> None:
    """C-10, C-11, C-12, C-13, C-23: a refusal that says what was wrong with the answer."""
    path, changes = BAD[bad]
    told = changes(intel)
    pcs.collateral = published(intel, **told)
    asked = [TCB, QE, PCK_LIST, ROOT_LIST].index(path)
    error = refusal(Collateral(intel=pcs.origin), bare(intel), policy)
    assert isinstance(error, CollateralUnavailable)
    assert error.code == "missing-endorsement"
    assert "sent something else" in str(error)
    assert pcs.paths[-1].startswith(path), str(error)
    assert len(pcs.asked) == asked + 1
    assert len(list(own_home.rglob("*.json"))) == asked, "what was well is kept, and the rest is not"
    pcs.collateral = published(intel)
    assert prove(Collateral(intel=pcs.origin), bare(intel), policy) == {"collateral"}


ENVELOPES: dict[str, Any] = {
    "spaces between": lambda text, sign: f' {{ "tcbInfo" : {text} , "signature" : "{sign}" }}\n',
    "an upper-case signature": lambda text, sign: f'{{"tcbInfo":{text},"signature":"{sign.upper()}"}}',
}
BAD_ENVELOPES: dict[str, Any] = {
    "the other order": lambda text, sign: f'{{"signature":"{sign}","tcbInfo":{text}}}',
    "another key": lambda text, sign: f'{{"enclaveIdentity":{text},"signature":"{sign}"}}',
    "something after it": lambda text, sign: f'{{"tcbInfo":{text},"signature":"{sign}"}}{{}}',
    "something more in it": lambda text, sign: f'{{"tcbInfo":{text},"signature":"{sign}","x":1}}',
    "two of them": lambda text, sign: f'{{"tcbInfo":{text},"tcbInfo":{text},"signature":"{sign}"}}',
    "a short signature": lambda text, sign: f'{{"tcbInfo":{text},"signature":"{sign[:-2]}"}}',
    "no object": lambda text, sign: f'{{"tcbInfo":7,"signature":"{sign}"}}',
    "written anew": lambda text, sign: json.dumps({"tcbInfo": json.loads(text), "signature": sign}),
    "html": lambda *_: "<html></html>",
    "cut": lambda text, sign: f'{{"tcbInfo":{text[:300]}',
    "very deep": lambda *_: '{"tcbInfo":' + "[" * 100000,
    "no text": lambda *_: b"\xff\xfe\x00",
}


def enveloped(intel: FakeIntel, pcs: ProvisioningService, form: Any) -> None:
    body = form(intel.tcb_info(), intel.sign(intel.tcb_info()))
    body = body if isinstance(body, bytes) else body.encode()

    def answer(asked: Asked) -> Reply | None:
        usual = pcs.publish(asked)
        if not asked.target.startswith(TCB) or usual is None:
            return None
        (whole,) = usual.pieces
        head, _, _ = whole.partition(b"\r\n\r\n")
        chain = next(line for line in head.split(b"\r\n") if line.startswith(b"TCB-Info-Issuer-Chain"))
        return http_reply(200, "application/json", body, more=chain.decode() + "\r\n")

    pcs.instead = answer


@pytest.mark.parametrize("form", ENVELOPES)
def test_the_signed_text_is_cut_out_as_it_is(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy, form: str
) -> None:
    enveloped(intel, pcs, ENVELOPES[form])
    assert prove(Collateral(intel=pcs.origin), bare(intel), policy) == {"collateral"}


@pytest.mark.parametrize("form", BAD_ENVELOPES)
def test_an_envelope_with_something_else_is_refused(
    intel: FakeIntel, pcs: ProvisioningService, policy: Policy, form: str
) -> None:
    """C-17: one form of the answer, and a signature over the exact bytes in it."""
    enveloped(intel, pcs, BAD_ENVELOPES[form])
    error = refusal(Collateral(intel=pcs.origin), bare(intel), policy)
    assert error.code == "missing-endorsement"
    assert "sent something else" in str(error)
    assert len(pcs.asked) == 1


def test_nothing_but_digits_and_two_words_becomes_part_of_an_address() -> None:
    for fmspc in ("90c06f000000", "90C06F00000", "90C06F0000000", "../../../../", "90C06F000000\n", ""):
        with pytest.raises(WrongContent):
            intel_pcs.tcb_info("https://pccs.example", fmspc, INTEL_ROOTS)
    for authority in ("", "root", "platform&x=1"):
        with pytest.raises(WrongContent):
            intel_pcs.pck_list("https://pccs.example", authority, INTEL_ROOTS)


# ── floors ────────────────────────────────────────────────────────────────────────────────────────────────


def of_evaluation(intel: FakeIntel, number: int) -> bytes:
    """What Intel published when its evaluation had this number; still inside its validity."""
    return intel.collateral(
        tcb_info=intel.tcb_info(tcbEvaluationDataNumber=number),
        qe_identity=intel.qe_identity(tcbEvaluationDataNumber=number),
    )


def test_an_older_evaluation_than_one_that_was_proved_is_refused(
    intel: FakeIntel, policy: Policy, own_home: Path
) -> None:
    """C-12: the number never goes down, for this user and this kind of machine; sent or fetched alike."""
    older = intel.document(endorsements={"collateral": of_evaluation(intel, EVALUATION - 1)})
    newer = intel.document()
    prove(Collateral(), older, policy)
    prove(Collateral(), newer, policy)
    assert json.loads((own_home / "floors.json").read_bytes())["tcb_evaluation"] == {
        FMSPC.hex().upper(): EVALUATION
    }
    error = refusal(Collateral(), older, policy)
    assert error.code == "tcb-evaluation-too-old"
    assert isinstance(error, TcbTooOld)
    assert error.steps[-1].number == 9
    assert refusal(Collateral(), older, AnyOf([policy, policy])).code == "tcb-evaluation-too-old"
    prove(Collateral(), newer, policy)


def test_who_asks_nobody_is_not_taken_back_to_an_older_evaluation_either(
    intel: FakeIntel, policy: Policy
) -> None:
    """C-12: `collateral=None` says who is asked, and not that what was shown is forgotten."""

    def machine(evaluation: int) -> Callable[[bytes], bytes]:
        sent = {"collateral": of_evaluation(intel, evaluation)}
        return lambda nonce: intel.document(key_config, nonce, endorsements=sent)

    key_config = Identity(simulated_quoter(), config_digest=bytes(48)).key_config
    session_key.prove("http://box:80", policy, machine(EVALUATION), now=NOON, tick=0)
    with pytest.raises(TcbTooOld) as caught:
        session_key.prove("http://box:80", policy, machine(EVALUATION - 1), now=NOON, tick=0)
    assert caught.value.code == "tcb-evaluation-too-old"


def test_a_proof_that_fails_raises_no_floor(intel: FakeIntel, policy: Policy, own_home: Path) -> None:
    """Otherwise anybody could shut out honest machines."""
    newest = of_evaluation(intel, EVALUATION + 5)
    for document, asked in (
        (intel.document(endorsements={"collateral": newest}, mrtd=bytes(48)), policy),
        (FakeIntel("Another Intel").document(endorsements={"collateral": newest}), policy),
        (intel.document(endorsements={"collateral": newest}, nonce=b"\x01" * 32), policy),
    ):
        refusal(Collateral(), document, asked)
    assert not (own_home / "floors.json").exists()
    prove(Collateral(), intel.document(), policy)


def test_another_kind_of_machine_has_a_floor_of_its_own(intel: FakeIntel, policy: Policy) -> None:
    prove(Collateral(), intel.document(), policy)
    other = FakeIntel(fmspc=bytes.fromhex("90c06f000000"))
    older = other.document(endorsements={"collateral": of_evaluation(other, EVALUATION - 1)})
    assert prove(Collateral(), older, policy) == set()
