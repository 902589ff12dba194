"""
What a machine did not send is fetched from its vendor: what exactly, from whom, and what is made of bad
answers.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blindbox import Collateral, CollateralUnavailable
from blindbox.collateral import download
from blindbox_attestation import snp
from blindbox_attestation.azure.hcl import Hcl
from blindbox_attestation.errors import AttestationError, MalformedEvidence, RevokedEvidence
from blindbox_attestation.evidence import SEV_SNP, AttestationDocument
from blindbox_attestation.policy import AllOf, AnyOf, Policy
from blindbox_attestation.roots import AMD_ROOTS
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.azure import from_foreign
from tests.kit.kds import KeyService, busy, dripping, head, pem
from tests.kit.relay import Asked, Reply, http_reply

NONCE = bytes(32)
CHAIN = "/vcek/v1/Genoa/cert_chain"
CRL = "/vcek/v1/Genoa/crl"


@pytest.fixture
def amd() -> FakeAmd:
    return FakeAmd()


@pytest.fixture
def collateral(kds: KeyService) -> Collateral:
    return Collateral(amd=kds.origin, deadline=5.0)


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.02))


def without(amd: FakeAmd, *names: str, **changes: Any) -> bytes:
    """A document of an honest machine that did not send some of its endorsements."""
    return amd.document(endorsements=amd.endorsements(**dict.fromkeys(names)), **changes)


def prove(collateral: Collateral, document: bytes, policy: Any, now: datetime = NOON) -> dict[str, bytes]:
    _, fetched = collateral.verify(document, policy, nonce=NONCE, now=now)
    return dict(fetched)


def refusal(collateral: Collateral, document: bytes, policy: Any, now: datetime = NOON) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        prove(collateral, document, policy, now)
    return caught.value


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_is_asked_if_the_machine_sent_everything(
    amd: FakeAmd, kds: KeyService, collateral: Collateral, own_home: Path
) -> None:
    assert prove(collateral, amd.document(), amd.policy()) == {}
    assert kds.asked == []
    assert not own_home.exists()


@pytest.mark.parametrize("family", ["Milan", "Genoa", "Turin"])
def test_all_of_a_chips_endorsements_can_be_fetched(family: str) -> None:
    amd = FakeAmd(family)
    with KeyService(amd) as kds:
        fetched = prove(Collateral(amd=kds.origin), amd.document(endorsements={}), amd.policy())
        assert fetched.keys() == {"ark", "ask", "vcek", "crl"}
        chip = f"/vcek/v1/{family}/{amd.hwid.hex()}?"
        assert [path.split("?")[0] + "?" * ("?" in path) for path in kds.paths] == [
            f"/vcek/v1/{family}/cert_chain",
            chip,
            f"/vcek/v1/{family}/crl",
        ]


@pytest.mark.parametrize("missing", ["crl", "vcek", "ark", "ask"])
def test_only_what_is_missing_is_fetched(
    amd: FakeAmd, kds: KeyService, collateral: Collateral, missing: str
) -> None:
    assert prove(collateral, without(amd, missing), amd.policy()).keys() == {missing}
    assert len(kds.asked) == 1


def test_the_revocation_list_is_fetched_only_if_the_policy_wants_one(
    amd: FakeAmd, kds: KeyService, collateral: Collateral
) -> None:
    assert prove(collateral, without(amd, "crl"), amd.policy(revocation="unchecked")) == {}
    assert kds.asked == []


def test_of_several_policies_one_that_asks_for_the_list_is_enough(
    amd: FakeAmd, kds: KeyService, collateral: Collateral
) -> None:
    wants, does_not = amd.policy(), amd.policy(revocation="unchecked")
    assert prove(collateral, without(amd, "crl"), AnyOf([wants, does_not])) == {}
    assert prove(collateral, without(amd, "crl"), AllOf([does_not, wants])).keys() == {"crl"}
    assert prove(collateral, without(amd, "crl"), AnyOf([AllOf([wants]), wants])).keys() == {"crl"}


def test_a_cloud_s_key_has_its_own_chain_and_list() -> None:
    amd = FakeAmd("Milan", signing_key="vlek")
    with KeyService(amd) as kds:
        fetched = prove(Collateral(amd=kds.origin), without(amd, "asvk", "ark", "crl"), amd.policy())
        assert fetched.keys() == {"asvk", "ark", "crl"}
        assert kds.paths == ["/vlek/v1/Milan/cert_chain", "/vlek/v1/Milan/crl"]
        error = refusal(Collateral(amd=kds.origin), without(amd, "vlek"), amd.policy())
    assert error.code == "missing-endorsement"
    assert "AMD publishes no VLEK" in str(error)


def test_a_version_2_report_is_of_the_family_that_its_certificates_or_the_policy_name(
    amd: FakeAmd, kds: KeyService, collateral: Collateral
) -> None:
    old = {"version": 2, "cpuid": bytes(3)}
    assert prove(collateral, without(amd, "crl", **old), amd.policy()).keys() == {"crl"}
    assert prove(collateral, amd.document(endorsements={}, **old), amd.policy()).keys() >= {"vcek", "ark"}
    asked = len(kds.asked)
    floors = {"Genoa": amd.tcb, "Milan": FakeAmd("Milan").tcb}
    error = refusal(collateral, amd.document(endorsements={}, **old), amd.policy(minimum_tcb=floors))
    assert error.code == "missing-endorsement"
    assert "names the processor family" in str(error)
    assert len(kds.asked) == asked


def test_the_request_says_nothing_about_who_asks(
    amd: FakeAmd, kds: KeyService, collateral: Collateral
) -> None:
    prove(collateral, without(amd, "crl"), amd.policy())
    names = [name.lower() for name, _ in kds.asked[0].headers]
    assert sorted(names) == ["accept", "accept-encoding", "connection", "host", "user-agent"]
    assert kds.asked[0].header("user-agent") == "blindbox"


@pytest.mark.filterwarnings("ignore::blindbox_attestation.snp.policy.MilanWarning")
def test_what_amd_really_publishes_passes_and_proves_a_real_report(vectors: Path) -> None:
    """The report, the chip's certificate, the chain and the list are AMD's; only the server is ours."""
    machine = from_foreign(vectors / "azure" / "snp_milan_evidence.json")
    chain = pem(*((vectors / "azure" / f"imds-chain-{number}.der").read_bytes() for number in (0, 1)))
    listed = x509.load_pem_x509_crl((vectors / "snp" / "crl_milan.pem").read_bytes())
    evidence = Hcl.parse(machine.hcl).report
    report = snp.Report.parse(evidence)
    answers = {
        "cert_chain": chain,
        "crl": listed.public_bytes(Encoding.DER),
        report.chip_id.hex(): machine.endorsements["vcek"],
    }
    floor = snp.Tcb.parse(report.reported_tcb, "Milan")
    wish = snp.SnpPolicy(measurements={report.measurement}, minimum_tcb={"Milan": floor})
    assert wish.roots == AMD_ROOTS
    now = datetime(2026, 4, 1, tzinfo=UTC)
    document = AttestationDocument(SEV_SNP, FakeAmd().transcript(), evidence, {}).encode()
    with KeyService(
        instead=lambda asked: http_reply(200, "x/y", answers[urlsplit(asked.target).path.split("/")[-1]])
    ) as kds:
        fetched = Collateral(amd=kds.origin).complete(document, Policy(snp=wish), now=now)
    assert fetched.failures == []
    assert fetched.keys() == {"ark", "ask", "vcek", "crl"}
    claims = snp.appraise(evidence, fetched, replace(wish, vmpl=report.vmpl), now=now)
    assert claims.family == "Milan"


# ── who is asked ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_with_roots_of_its_own_has_no_vendor_to_ask(
    amd: FakeAmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "get", lambda *_, **__: pytest.fail("somebody was asked"))
    error = refusal(Collateral(), without(amd, "crl"), amd.policy())
    assert error.code == "crl-missing"
    assert type(error) is RevokedEvidence


def test_a_policy_with_amd_s_roots_is_asked_of_amd(amd: FakeAmd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(url: str, **_: Any) -> Any:
        asked.append(url)
        raise download.Unavailable("this is a test")

    monkeypatch.setattr(download, "get", get)
    error = refusal(Collateral(), amd.document(endorsements={}), amd.policy(roots=AMD_ROOTS))
    assert asked == ["https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain"]
    assert isinstance(error, CollateralUnavailable)
    assert error.code == "missing-endorsement"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "kds.example",
        "ftp://kds.example",
        "https://",
        "https://a@kds.example",
        "https://kds.example/?x=1",
        "https://k/#f",
    ],
)
def test_a_mirror_is_an_address_and_nothing_more(address: str) -> None:
    with pytest.raises(ValueError, match="a mirror is given as"):
        Collateral(amd=address)
    with pytest.raises(ValueError, match="a mirror is given as"):
        Collateral(intel=address)


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"chip_id": b"\xff" * 64, "cpuid": b"\x19\x11\x01"}, "a chip AMD does not know"),
        ({"cpuid": b"\x19\x50\x01"}, "a family nobody knows"),
        ({"chip_id": bytes(64)}, "a chip that hides"),
        ({"cpuid": b"\x1a\x02\x01"}, "an id that is too long for its family"),
        ({"reported_tcb": b"\x01\x02\x03\x04\x05\x06\x07\x08"}, "reserved bytes in its level"),
        ({"flags": 7 << 2}, "no signing key"),
        ({"version": 9}, "an unknown version"),
    ],
)
def test_what_the_machine_says_does_not_lead_the_request_elsewhere(
    amd: FakeAmd, kds: KeyService, collateral: Collateral, changes: dict[str, Any], about: str
) -> None:
    """C-23: only validated numbers of the evidence become part of an address; each of these is refused."""
    document = amd.document(evidence=raw_report(amd, **changes), endorsements={})
    error = refusal(collateral, document, amd.policy())
    assert error.code in {
        "missing-endorsement",
        "unsupported-report-version",
        "wrong-certificate-kind",
        "reserved-bits",
    }, about
    assert error.code != "missing-endorsement" or isinstance(error, CollateralUnavailable)
    known = {
        f"{path}{what}" for path in ("/vcek/v1/Genoa", "/vcek/v1/Turin") for what in ("/cert_chain", "/crl")
    }
    strange = [path for path in kds.paths if path not in known]
    assert all(path.startswith(f"/vcek/v1/Genoa/{'ff' * 64}?blSPL=10&") for path in strange)


def raw_report(amd: FakeAmd, **changes: Any) -> bytes:
    return amd.unsigned(bytes(64), **changes).encode()


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff" * 300, b'{"version":1}', b"[" * 5000])
def test_a_document_that_cannot_be_read_asks_nobody(
    amd: FakeAmd, kds: KeyService, collateral: Collateral, junk: bytes
) -> None:
    assert collateral.complete(junk, amd.policy(), now=NOON) == {}
    with pytest.raises(MalformedEvidence):
        prove(collateral, junk, amd.policy())
    assert kds.asked == []


@pytest.mark.parametrize("name", ["ark", "ask"])
def test_certificates_that_were_sent_and_are_not_pinned_ask_nobody(
    amd: FakeAmd, kds: KeyService, collateral: Collateral, name: str
) -> None:
    """C-13: a chain of somebody else's does not make us ask for the rest of it."""
    theirs = FakeAmd(name="Somebody Else")
    sent = {"ark": theirs.endorsements()["ark"], "ask": theirs.endorsements()["ask"]}
    error = refusal(collateral, amd.document(endorsements=sent), amd.policy())
    assert error.code == "unpinned-root"
    assert kds.asked == []


# ── bad answers ───────────────────────────────────────────────────────────────────────────────────────────


def instead(path: str, reply: Reply | list[Reply]) -> Any:
    """This answer at this path; of a list, one after the other, and then the usual one."""
    replies = iter(reply) if isinstance(reply, list) else None

    def answer(asked: Asked) -> Reply | None:
        if not asked.target.startswith(path):
            return None
        return next(replies, None) if replies is not None else reply  # type: ignore[return-value]

    return answer


def other_family() -> bytes:
    return FakeAmd("Turin").endorsements()["crl"]


BAD_LISTS: dict[str, tuple[Any, str]] = {
    "html": (
        lambda _: http_reply(200, "text/html", b"<html>welcome to our hotel</html>"),
        "sent something else",
    ),
    "nothing": (lambda _: http_reply(200, "application/pkix-crl", b""), "sent something else"),
    "another family's": (lambda _: http_reply(200, "x/y", other_family()), "not a list of 'ARK-Genoa'"),
    "another vendor's": (
        lambda _: http_reply(200, "x/y", FakeAmd(name="Somebody Else").endorsements()["crl"]),
        "not a list of 'ARK-Genoa'",
    ),
    "of the right name, signed by another": (
        lambda amd: http_reply(200, "x/y", amd.crl(signer="ask")),
        "not a list of 'ARK-Genoa'",
    ),
    "expired": (
        lambda amd: http_reply(200, "x/y", amd.crl(next_update=NOON - timedelta(days=1))),
        "is valid from",
    ),
    "of tomorrow": (
        lambda amd: http_reply(200, "x/y", amd.crl(this_update=NOON + timedelta(days=1))),
        "is valid from",
    ),
    "one bit flipped": (
        lambda amd: http_reply(200, "x/y", amd.crl()[:-1] + bytes([amd.crl()[-1] ^ 1])),
        "not a list of",
    ),
    "cut": (lambda amd: Reply([head(900), amd.crl()[:300]]), "broke off"),
    "cut cleanly": (lambda amd: Reply([head(300), amd.crl()[:300]]), "sent something else"),
    "compressed": (
        lambda amd: http_reply(200, "x/y", amd.crl(), more="Content-Encoding: gzip\r\n"),
        "compressed, which was not asked for",
    ),
    "too large": (lambda _: Reply([head(1 << 40)]), "more than 262144 bytes"),
    "too large, of no said size": (
        lambda _: Reply([head(None), *[bytes(65536)] * 64]),
        "more than 262144 bytes",
    ),
    "a redirect": (
        lambda _: http_reply(302, "x/y", b"", more="Location: http://169.254.169.254/latest\r\n"),
        "redirect (302), which is not followed",
    ),
    "404": (lambda _: http_reply(404, "x/y", b"no"), "status 404"),
    "500": (lambda _: http_reply(500, "x/y", b"no"), "status 500"),
    "no http": (lambda _: Reply([b"SSH-2.0-OpenSSH_9.9\r\n"]), "cannot be reached"),
    "hangs up": (lambda _: Reply([]), "cannot be reached"),
}


@pytest.mark.parametrize("bad", BAD_LISTS)
def test_a_bad_answer_is_neither_trusted_nor_kept(
    amd: FakeAmd, kds: KeyService, own_home: Path, bad: str
) -> None:
    """C-23, C-10, C-11: a refusal that says who was asked, and why the answer will not do."""
    make, why = BAD_LISTS[bad]
    kds.instead = instead(CRL, make(amd))
    collateral = Collateral(amd=kds.origin, deadline=5.0)
    error = refusal(collateral, without(amd, "crl"), amd.policy())
    assert isinstance(error, CollateralUnavailable)
    assert isinstance(error.__cause__, RevokedEvidence)
    assert error.code == "crl-missing"
    assert error.steps
    assert error.steps[-1].number == 5
    assert why in str(error), str(error)
    assert kds.origin in str(error)
    assert len(kds.asked) == 1
    assert not list(own_home.rglob("*.json"))
    kds.instead = None
    assert prove(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy()).keys() == {"crl"}


def test_a_list_that_names_the_issuer_is_kept_and_refuses_the_machine(
    amd: FakeAmd, kds: KeyService, collateral: Collateral
) -> None:
    """C-10: a fetched list revokes as one that was sent would."""
    kds.lists["Genoa"] = amd.crl(revoked=[0x20002])
    for _ in range(2):
        error = refusal(collateral, without(amd, "crl"), amd.policy())
        assert error.code == "revoked"
        assert isinstance(error, RevokedEvidence)
    assert len(kds.asked) == 1


BAD_CHAINS = {
    "another vendor's": lambda amd: pem(
        *(FakeAmd(name="Somebody Else").endorsements()[n] for n in ("ask", "ark"))
    ),
    "in the wrong order": lambda amd: pem(amd.endorsements()["ark"], amd.endorsements()["ask"]),
    "only one": lambda amd: pem(amd.endorsements()["ark"]),
    "DER": lambda amd: amd.endorsements()["ask"],
    "an intermediate of another": lambda amd: pem(
        amd.certificate("ask", signer="ask"), amd.endorsements()["ark"]
    ),
    "an expired intermediate": lambda amd: pem(
        amd.certificate("ask", not_after=NOON - timedelta(days=1)), amd.endorsements()["ark"]
    ),
    "text between": lambda amd: b"hello\n" + pem(amd.endorsements()["ask"], amd.endorsements()["ark"]),
}


@pytest.mark.parametrize("bad", BAD_CHAINS)
def test_a_chain_that_leads_nowhere_is_not_kept(
    amd: FakeAmd, kds: KeyService, own_home: Path, bad: str
) -> None:
    """C-13, C-11: issuers that no pinned root vouches for are not used to fetch anything else."""
    kds.instead = instead(CHAIN, http_reply(200, "x/y", BAD_CHAINS[bad](amd)))
    error = refusal(Collateral(amd=kds.origin), amd.document(endorsements={}), amd.policy())
    assert isinstance(error, CollateralUnavailable)
    assert error.code == "missing-endorsement"
    assert len(kds.asked) == 1
    assert not list(own_home.rglob("*.json"))


@pytest.mark.parametrize("bad", ["another chip", "another level", "another's signature"])
def test_a_certificate_of_something_else_is_not_kept(
    amd: FakeAmd, kds: KeyService, own_home: Path, bad: str
) -> None:
    """C-9: the chip's certificate is compared with the report before it is kept."""
    vcek = {
        "another chip": amd.certificate("vcek", extensions={"4": bytes(64)}),
        "another level": amd.certificate("vcek", extensions={"3.8": b"\x02\x01\x01"}),
        "another's signature": amd.certificate("vcek", signer="ark"),
    }[bad]
    kds.instead = instead(f"/vcek/v1/Genoa/{amd.hwid.hex()}", http_reply(200, "x/y", vcek))
    error = refusal(Collateral(amd=kds.origin), without(amd, "vcek"), amd.policy())
    assert isinstance(error, CollateralUnavailable)
    assert error.code == "missing-endorsement"
    assert not list(own_home.rglob("*.json"))


# ── busy and slow ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reply", [busy(), busy("0"), busy(status=503), busy("0", status=503)])
def test_a_busy_server_is_asked_again_twice_at_most(amd: FakeAmd, kds: KeyService, reply: Reply) -> None:
    kds.instead = instead(CRL, [reply, reply])
    collateral = Collateral(amd=kds.origin)
    assert prove(collateral, without(amd, "crl"), amd.policy()).keys() == {"crl"}
    assert len(kds.asked) == 3


def test_a_server_that_stays_busy_is_given_up(amd: FakeAmd, kds: KeyService) -> None:
    kds.instead = instead(CRL, busy("0"))
    error = refusal(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy())
    assert error.code == "crl-missing"
    assert "too busy (status 429)" in str(error)
    assert len(kds.asked) == 3


def test_a_server_that_says_when_is_waited_for(amd: FakeAmd, kds: KeyService) -> None:
    kds.instead = instead(CRL, [busy("1")])
    before = time.monotonic()
    prove(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy())
    assert 1.0 <= time.monotonic() - before < 60.0


@pytest.mark.parametrize("retry_after", ["3600", "999999"])
def test_a_server_that_says_much_later_is_not_waited_for(
    amd: FakeAmd, kds: KeyService, retry_after: str
) -> None:
    kds.instead = instead(CRL, busy(retry_after))
    before = time.monotonic()
    error = refusal(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy())
    assert time.monotonic() - before < 60.0
    assert error.code == "crl-missing"
    assert len(kds.asked) == 1


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1e3", "soon", ""])
def test_what_is_no_number_of_seconds_is_no_answer_to_when(
    amd: FakeAmd, kds: KeyService, retry_after: str
) -> None:
    kds.instead = instead(CRL, [busy(retry_after)])
    assert prove(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy()).keys() == {"crl"}
    assert len(kds.asked) == 2


def silence() -> Iterator[bytes]:
    time.sleep(300)
    yield b""


SLOW: dict[str, Any] = {
    "silent": lambda: Reply(silence()),
    "silent after its head": lambda: Reply(piece for part in ([head(900)], silence()) for piece in part),
    "dripping its head": lambda: dripping([b"HTTP/1.1 200 OK\r\n", *[b"x-a: b\r\n"] * 300]),
    "dripping one line": lambda: dripping([b"HTTP/1.1 200 OK\r\nx-a: ", *[b"b"] * 300]),
    "dripping its body": lambda: dripping([head(100000), *[b"x" * 10] * 300]),
    "dripping chunks": lambda: dripping(
        [head(None, "Transfer-Encoding: chunked\r\n"), *[b"1\r\nx\r\n"] * 300]
    ),
}


@pytest.mark.parametrize("slow", SLOW)
def test_a_slow_server_costs_the_deadline_and_no_more(amd: FakeAmd, kds: KeyService, slow: str) -> None:
    """C-23: a server that hangs or drips is given up in time."""
    kds.instead = instead(CRL, SLOW[slow]())
    before = time.monotonic()
    error = refusal(Collateral(amd=kds.origin, deadline=0.6), without(amd, "crl"), amd.policy())
    assert time.monotonic() - before < 20.0  # and not the half minute that all of it would take, or more
    assert error.code == "crl-missing"
    assert "did not answer in time" in str(error)
    for one in threading.enumerate():  # and no thread of ours is left behind
        if one.name == "blindbox-download":
            one.join(60)
            assert not one.is_alive()


def test_the_deadline_is_for_everything_together(amd: FakeAmd, kds: KeyService) -> None:
    def answer(asked: Asked) -> Reply | None:
        time.sleep(0.5)
        return None

    kds.instead = answer
    before = time.monotonic()
    error = refusal(Collateral(amd=kds.origin, deadline=0.8), amd.document(endorsements={}), amd.policy())
    assert time.monotonic() - before < 60.0
    assert error.code == "missing-endorsement"


def test_nobody_there_is_a_refusal_at_once(amd: FakeAmd) -> None:
    """C-23: a dead server."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    before = time.monotonic()
    error = refusal(Collateral(amd=f"http://127.0.0.1:{port}"), without(amd, "crl"), amd.policy())
    assert time.monotonic() - before < 60.0
    assert error.code == "crl-missing"
    assert "cannot be reached (ConnectionRefusedError)" in str(error)


def test_a_dead_server_is_not_asked_in_every_call(
    amd: FakeAmd, kds: KeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    kds.instead = instead(CRL, http_reply(500, "x/y", b""))
    collateral = Collateral(amd=kds.origin)
    errors = [str(refusal(collateral, without(amd, "crl"), amd.policy())) for _ in range(5)]
    assert len(set(errors)) == 1
    assert len(kds.asked) == 1
    kds.instead = None
    later = time.monotonic() + 31
    monkeypatch.setattr("blindbox.collateral.cache.time.monotonic", lambda: later)
    assert prove(collateral, without(amd, "crl"), amd.policy()).keys() == {"crl"}


def test_a_server_that_was_given_no_time_is_not_blamed(amd: FakeAmd, kds: KeyService) -> None:
    collateral = Collateral(amd=kds.origin, deadline=0.5)
    kds.instead = instead(CRL, [Reply(silence())])
    assert refusal(collateral, without(amd, "crl"), amd.policy()).code == "crl-missing"
    collateral._deadline = 60.0  # enough also for a busy machine
    assert prove(collateral, without(amd, "crl"), amd.policy()).keys() == {"crl"}


def test_threads_that_want_the_same_ask_once(amd: FakeAmd, kds: KeyService) -> None:
    def answer(asked: Asked) -> Reply | None:
        time.sleep(0.2)
        return None

    kds.instead = answer
    collateral, document, policy = Collateral(amd=kds.origin), without(amd, "crl"), amd.policy()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: prove(collateral, document, policy).keys(), range(16)))
    assert found == [{"crl"}] * 16
    assert len(kds.asked) == 1


def test_what_cannot_be_had_and_is_not_missed_is_only_noted(amd: FakeAmd, kds: KeyService) -> None:
    kds.instead = instead(CRL, http_reply(500, "x/y", b""))
    policy = AnyOf([amd.policy(), amd.policy(revocation="unchecked", measurements={bytes(48)})])
    error = refusal(Collateral(amd=kds.origin), without(amd, "crl"), policy)
    assert error.code == "measurement-mismatch"
    assert "revocation list" in error.__notes__[0]


def test_proxies_of_the_environment_are_used_and_nothing_else_of_it(
    amd: FakeAmd, kds: KeyService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C-40: no login of a .netrc goes to a vendor."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    prove(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy())
    monkeypatch.setenv("HTTP_PROXY", kds.origin)
    with KeyService(amd) as another:
        prove(Collateral(amd="http://kds.example", folder=tmp_path / "b"), without(amd, "crl"), amd.policy())
        assert another.asked == []
    assert kds.paths == [CRL, f"http://kds.example{CRL}"] or b"kds.example" in kds.asked[1].raw
    assert b"authorization" not in kds.heard.lower()


def test_tls_around_a_mirror_is_checked_and_says_nothing_about_what_is_in_it(
    amd: FakeAmd, tls: tuple[ssl.SSLContext, str]
) -> None:
    """C-41: `tls=` is about the way there; what is fetched is verified all the same."""
    context, certificate = tls
    with KeyService(amd, tls=context) as kds:
        error = refusal(Collateral(amd=kds.origin), without(amd, "crl"), amd.policy())
        assert error.code == "crl-missing"
        assert "TLS certificate is not accepted" in str(error)
        assert kds.asked == []
        kds.instead = instead(CRL, [http_reply(200, "x/y", other_family())])
        checked, unchecked = (
            Collateral(amd=kds.origin, tls=certificate),
            Collateral(amd=kds.origin, tls=False),
        )
        assert "not a list of" in str(refusal(checked, without(amd, "crl"), amd.policy()))
        assert prove(unchecked, without(amd, "crl"), amd.policy()).keys() == {"crl"}
