"""The page of a report: it holds everything, loads nothing, and obeys nothing that the other side wrote."""

from __future__ import annotations

import hashlib
import re
import shlex
from base64 import b64encode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

import blindbox.requests as requests
from blindbox import cli
from blindbox.errors import PolicyRefused
from blindbox.printable import plain
from blindbox.report import Report, SavedProof
from blindbox.report.page import NOT_PROVED, page
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.steps import NAMES, Check, Step
from enclave_app.identity import Identity
from tests.kit import NOON
from tests.kit.amd import MEASUREMENT, FakeAmd, ia5
from tests.kit.enclave import RunningEnclave, simulated_quoter
from tests.kit.pinned_amd import accepting

ORIGIN = "http://203.0.113.7:80"
NONCE = bytes(range(32))
KEY_CONFIG = Identity(simulated_quoter(), config_digest=bytes(48)).key_config
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e&amp;<!--\n'


TAGS = """
    html head meta title style body header main footer section article p h1 h2 h3 h4 span b code pre ul ol li
    dl dt dd div table thead tbody tr th td details summary
"""


class Reader(HTMLParser):
    """Every tag, every attribute, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def accepted(amd: FakeAmd) -> Report:
    document = amd.document(KEY_CONFIG, NONCE, endorsements=amd.endorsements(crl=None))
    crl = amd.endorsements()["crl"]
    return Report(ORIGIN, NOON, accepting(amd), NONCE, document, {"crl": crl}).judged()


@pytest.fixture
def refused(amd: FakeAmd) -> Report:
    document = amd.document(KEY_CONFIG, NONCE, policy=0xB0000)
    return Report(ORIGIN, NOON, accepting(amd), NONCE, document).judged()


@pytest.fixture
def simulated(enclave: RunningEnclave, session: requests.Session) -> Report:
    session.get(enclave.origin + "/echo")
    assert session.proof is not None
    return session.proof.report


@pytest.fixture(params=["accepted", "refused", "simulated"])
def report(request: pytest.FixtureRequest) -> Report:
    one: Report = request.getfixturevalue(request.param)
    return one


def test_a_page_loads_nothing_runs_nothing_and_leads_nowhere(report: Report) -> None:
    text = page(report)
    reader = Reader(text)
    assert reader.open == []
    assert {tag for tag, _ in reader.tags} <= set(TAGS.split())
    named = {name for _, attributes in reader.tags for name in attributes}
    assert named <= {"lang", "charset", "http-equiv", "content", "name", "class", "role", "data-label"}
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    digest = b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    (policy,) = (a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_an_accepted_page_says_who_has_to_be_honest_and_what_is_not_proved(accepted: Report) -> None:
    reader = Reader(page(accepted))
    assert "✔ Accepted" in reader.text
    assert "Who has to be honest" in reader.text
    assert "AMD" in reader.text
    assert MEASUREMENT.hex() in reader.text
    assert "SIMULATED" not in reader.text
    for name, why in NOT_PROVED:
        assert f"{name} {why}" in reader.text
    assert [tag for tag, _ in reader.tags].count("article") == len(NAMES) == 13
    for step in accepted.steps:
        for check in step.checks:
            for told in (check.name, check.found, check.wanted, check.source):
                assert told in reader.text
    assert "Any genuine processor" in reader.text  # what the policy leaves open, in its own words


def test_a_refused_page_shows_what_was_found_and_wanted_and_what_was_not_reached(refused: Report) -> None:
    text = page(refused)
    reader = Reader(text)
    assert "✘ Refused" in reader.text
    assert "Refused at step 10" in reader.text
    assert "debug-allowed" in reader.text
    assert reader.text.count("not reached") == 3
    (row,) = re.findall(r'<tr class="bad">(.*?)</tr>', text)
    cells = [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
    assert cells == ["✘ failed", "debugging", "allowed", "forbidden", "report, POLICY bit 19"]
    assert "Who has to be honest" not in reader.text
    assert "this was not proved" in reader.text


def test_a_simulated_page_says_before_anything_else_that_it_proves_nothing(simulated: Report) -> None:
    """C-21: nobody takes it for an accepted one."""
    text = page(simulated)
    reader = Reader(text)
    body = text.split("<body>")[1]
    assert body.lstrip().startswith('<p class="band" role="alert">SIMULATED EVIDENCE · PROVES NOTHING')
    assert "Accepted" not in reader.text
    assert "✔ Accepted" not in text
    assert "Who has to be honest" not in reader.text
    assert '<header class="bad">' in text


def test_a_refused_simulated_machine_has_the_band_too(amd: FakeAmd, simulated: Report) -> None:
    """C-21."""
    again = replace(simulated, policy=accepting(amd), verified=None).judged()
    assert again.problem is not None
    assert again.problem.code == "simulated-evidence"
    assert "SIMULATED EVIDENCE" in page(again)


# ── hostile strings ───────────────────────────────────────────────────────────────────────────────────────


def test_markup_in_any_string_is_shown_and_not_obeyed(accepted: Report) -> None:
    """Whatever evidence can put into a report: names, values, sources, messages."""
    check = Check(HOSTILE, "failed", HOSTILE, HOSTILE, HOSTILE)
    steps = (Step(9, HOSTILE, "failed", HOSTILE, (check,)),)
    assert accepted.verified is not None
    verified = replace(accepted.verified, title=HOSTILE, platform=HOSTILE, trusts=(HOSTILE,))
    for report in (
        replace(accepted, origin=HOSTILE, steps=steps, verified=verified, collateral={HOSTILE: b"x"}),
        replace(accepted, origin=HOSTILE, steps=steps).ended(PolicyRefused(HOSTILE, code=HOSTILE)),
    ):
        text = page(report)
        reader = Reader(text)
        assert reader.open == []
        assert not {"script", "img"} & {tag for tag, _ in reader.tags}
        assert not {name for _, attributes in reader.tags for name in attributes} & {"src", "onerror"}
        assert "<script" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert plain(HOSTILE).strip() in reader.text


def test_markup_signed_by_a_vendor_is_shown_and_not_obeyed(amd: FakeAmd) -> None:
    """A provider's name in a genuine certificate, and a platform's in a document."""
    markup = "<script>alert(1)</script>"
    cloud = FakeAmd(signing_key="vlek")
    vlek = cloud.certificate("vlek", extensions={"5": ia5(markup)})
    document = cloud.document(KEY_CONFIG, NONCE, endorsements=cloud.endorsements(vlek=vlek))
    policy = accepting(amd, signing_keys={"vlek"}, roots=cloud.roots)
    report = Report(ORIGIN, NOON, policy, NONCE, document).judged()
    assert report.verdict == "accepted"
    assert "<script" not in page(report)
    parsed = AttestationDocument.parse(document)
    report = Report(ORIGIN, NOON, policy, NONCE, replace(parsed, platform=markup).encode()).judged()
    assert report.verdict == "refused"
    text = page(report)
    assert markup in Reader(text).text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ✔ …", "plain – ✔ …"),
        ("a\nb\tc\r\n", "a b c  "),
        ("\x00\x1b[31m\x7f", "\\u{0}\\u{1b}[31m\\u{7f}"),
        ("\u202eevil\u2066\ufeff", "\\u{202e}evil\\u{2066}\\u{feff}"),
        ("\ud800", "\\u{d800}"),
    ],
)
def test_what_acts_on_a_terminal_is_told_by_its_number(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(shown) == shown


def test_a_string_without_end_has_one() -> None:
    for text in ("x" * 10**6, "\x00" * 10**6):
        assert len(plain(text)) <= 16 * 1024
        assert plain(plain(text)) == plain(text)


# ── judged again ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_on_the_page_is_enough_to_judge_again(
    report: Report, amd: FakeAmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied from the page: the proof, and the command."""
    text = page(report)
    blocks = [unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
    (command,) = (block for block in blocks if block.startswith("blindbox verify --offline"))
    proof = blocks[-1]
    saved = SavedProof.parse(proof.encode())
    assert saved.document == report.document
    (tmp_path / "proof.json").write_text(proof)
    (tmp_path / "policy.json").write_text(accepting(amd).to_json())
    monkeypatch.chdir(tmp_path)
    expected = cli.DONE if report.verdict == "accepted" else cli.NOT_PROVED
    assert cli.main(shlex.split(command)[1:]) == expected


def test_every_piece_of_evidence_is_there_with_its_size_and_digest(accepted: Report) -> None:
    reader = Reader(page(accepted))
    for held in (accepted.document, accepted.collateral["crl"]):
        assert f"{len(held):,} bytes" in reader.text
        assert hashlib.sha256(held).hexdigest() in reader.text
        assert b64encode(held).decode() in reader.text
    assert NONCE.hex() in reader.text


def test_a_page_of_a_file_that_lies_says_so(accepted: Report) -> None:
    lie = accepted.to_json().replace(
        f'"measurement": "{MEASUREMENT.hex()}"', '"measurement": "' + "00" * 48 + '"'
    )
    text = Reader(page(SavedProof.parse(lie.encode()).judge())).text
    assert "it differs in: machine" in text
    assert "whoever wrote the file chose it" in text


def test_a_machine_that_was_not_reached_has_a_page_as_well(amd: FakeAmd) -> None:
    report = Report(ORIGIN, NOON, accepting(amd)).ended(ConnectionError("nobody is there"))
    assert report.verdict == "not judged"
    reader = Reader(page(report))
    assert reader.open == []
    assert "nobody is there" in reader.text
    assert "– Not judged" in reader.text
