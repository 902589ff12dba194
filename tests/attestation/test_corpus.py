"""The corpus of `tests/vectors`: every case comes out as its author said, and it is as broad as it claims."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from blindbox_attestation import event_log
from blindbox_attestation.conformance import Case, as_expected
from blindbox_attestation.evidence import ENDORSEMENTS
from tests.conftest import REPOSITORY
from tests.kit import foreign
from tests.vectors.make import FOLDER, TABLES

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

FAKES: Final = sorted(path for name in TABLES for path in (FOLDER / name).glob("*/case.json"))
REAL: Final = sorted((FOLDER / "real").glob("*/case.json"))
LARGEST: Final = 4_000_000
"""Bytes of the whole folder: it is read by people who clone the repository."""


def name_of(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.parent.name}"


def told(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


@pytest.mark.parametrize("platform", TABLES)
def test_every_case_comes_out_as_its_author_said(platform: str) -> None:
    """C-1 to C-24: in process, which takes milliseconds each; all that differ are told at once."""
    others: list[str] = []
    for path in FAKES:
        if path.parent.parent.name == platform:
            case = Case.load(path)
            assert case.expect is not None
            verdict = case.judge()
            if not as_expected(verdict, case.expect):
                others.append(
                    f"{name_of(path)}: {verdict.word} {verdict.code} {verdict.step}, not {case.expect}"
                )
    assert others == []


def test_there_are_enough_of_them_without_the_real_ones() -> None:
    verdicts = Counter(told(path)["expect"]["verdict"] for path in FAKES)
    assert verdicts["accept"] >= 60
    assert verdicts["refuse"] >= 300
    for platform in TABLES:
        found = Counter(told(one)["expect"]["verdict"] for one in FAKES if one.parent.parent.name == platform)
        assert min(found["accept"], found["refuse"]) >= 10, platform


def test_every_refusal_names_its_code_and_its_step_and_every_case_says_why_it_is_there() -> None:
    for path in FAKES + REAL:
        case = told(path)
        assert case["about"], path
        if case["expect"]["verdict"] == "refuse":
            assert case["expect"].keys() == {"verdict", "code", "step"}, path
        else:
            assert case["expect"] == {"verdict": "accept"}, path


def test_no_two_cases_are_the_same() -> None:
    seen: dict[tuple[object, ...], str] = {}
    for path in FAKES:
        case, written = Case.load(path), told(path)
        key = (
            case.platform,
            case.evidence,
            tuple(sorted(case.endorsements.items())),
            case.nonce,
            case.now,
            case.policy.digest,
            json.dumps(written.get("roots")),
        )
        assert key not in seen, f"{name_of(path)} is {seen[key]}"
        seen[key] = name_of(path)


@pytest.mark.parametrize("platform", ["nitro", "tpm"])
def test_what_lies_there_is_what_the_tables_say(platform: str) -> None:
    """Of those whose keys are quickly made; `python -m tests.vectors.make` brings them together again."""
    drafts = {draft.name: (draft.about, draft.expect) for draft in TABLES[platform]()}
    written = {
        path.parent.name: (told(path)["about"], told(path)["expect"])
        for path in FAKES
        if path.parent.parent.name == platform
    }
    assert drafts == written


NOT_IN_A_CASE: Final = {
    "document-too-large": "more than 256 KiB, or 64 KiB on Azure: test_evidence_document, test_azure_machine",
    "dcap-refused": "a refusal of dcap-qvl that our table does not know; none is known: test_tdx_chain",
    "no-policy": "the client ends with it before there is anything to judge: test_verify_command",
    "no-evidence": "likewise: what answers shows no document",
    "malformed-evidence": "likewise: a document that came compressed",
}
"""Codes of SPEC §4 that no file can cause, or only a very large one: why, and which test sees them."""


def test_every_code_that_evidence_can_cause_is_in_some_case() -> None:
    """So that another verifier meets each of them."""
    text = (REPOSITORY / "attestation" / "SPEC.md").read_text(encoding="utf-8")
    section = text[text.index("\n## 4. ") : text.index("\n### 4.9 ")]
    rows = "\n".join(
        line.rsplit("|", 2)[1]
        for line in section.splitlines()
        if line.startswith("| ") and line.endswith("|")
    )
    listed = set(re.findall(r"`([a-z]+(?:-[a-z0-9]+)+|revoked|vmpl|owner)`", rows)) - set(ENDORSEMENTS)
    assert len(listed) > 60
    found = {told(path)["expect"].get("code") for path in FAKES}
    assert sorted(listed - found - set(NOT_IN_A_CASE)) == []
    assert sorted(set(NOT_IN_A_CASE) & found) == []


def test_nothing_lies_about_that_no_case_needs() -> None:
    """And the whole stays small."""
    needed: set[Path] = set()
    for path in FAKES:
        case = told(path)
        named = [case.get("evidence"), case.get("document"), *case.get("endorsements", {}).values()]
        named += [case["policy"]] if isinstance(case["policy"], str) else []
        needed |= {(path.parent / one).resolve() for one in named if one} | {path.resolve()}
    there = {one.resolve() for name in TABLES for one in (FOLDER / name).rglob("*") if one.is_file()}
    assert sorted(there - needed) == []
    assert sum(one.stat().st_size for one in FOLDER.rglob("*") if one.is_file()) < LARGEST


# --- as a black box -----------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """The tool, in a process of its own, with nothing but the room it needs."""
    done = subprocess.run(
        [sys.executable, "-m", "blindbox_attestation.conformance", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY / "attestation"), "PATH": ""},
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("verdict", ["accept", "refuse"])
def test_the_command_line_says_the_same(verdict: str) -> None:
    """Every twentieth case: exit status 0 if all were accepted, 10 if one was refused."""
    chosen = [path for path in FAKES if told(path)["expect"]["verdict"] == verdict][::20]
    status, lines = run(*chosen)
    assert status == (0 if verdict == "accept" else 10)
    assert [line["verdict"] for line in lines] == [verdict] * len(chosen)
    for path, line in zip(chosen, lines, strict=True):
        assert line["code"] == told(path)["expect"].get("code", "accepted"), path


def test_the_command_line_compares_with_what_a_case_expects(tmp_path: Path) -> None:
    assert run("--expect", *FAKES[::50])[0] == 0
    path = FOLDER / "nitro" / "another-image" / "case.json"
    lie = {**told(path), "expect": {"verdict": "accept"}}
    lie["evidence"] = str(path.parent / lie["evidence"])
    if isinstance(lie["policy"], str):
        lie["policy"] = str(path.parent / lie["policy"])
    (tmp_path / "case.json").write_text(json.dumps(lie))
    assert run("--expect", tmp_path / "case.json")[0] == 1


# --- real machines ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readable(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The shared folder, and beside its files those in containers of other projects, in our form.

    `tests/kit/foreign.py` converts them, into `converted/azure/NAME/` and `converted/vtpm/NAME/`.
    """
    folder = tmp_path_factory.mktemp("vectors")
    foreign.overlay(vectors, folder)
    return folder


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_a_real_file_gets_the_verdict_of_its_manifest(path: Path, readable: Path) -> None:
    """C-1 to C-24: genuine evidence, at the time at which it was genuine, and what was made of it."""
    case = Case.load(path, readable)
    assert case.expect is not None
    verdict = case.judge()
    assert as_expected(verdict, case.expect), (verdict, case.expect)


def test_real_cases_run_on_the_command_line(readable: Path) -> None:
    assert run("--expect", "--vectors", readable, *REAL)[0] == 0


def test_every_file_of_the_manifest_is_in_a_case(vectors: Path) -> None:
    """Of the six folders about platforms; or it is on the list of what is judged elsewhere, with why."""
    rows = dict(_rows((vectors / "MANIFEST.md").read_text(encoding="utf-8")))
    used = {name for path in REAL for name in _files(told(path))}
    assert len(rows) > 80
    assert sorted(set(rows) - used - set(JUDGED_ELSEWHERE)) == []
    assert sorted(set(JUDGED_ELSEWHERE) & used) == []
    assert sorted(set(JUDGED_ELSEWHERE) - set(rows)) == []


def test_what_must_fail_fails_in_some_case(vectors: Path) -> None:
    """A row of the manifest with MUST FAIL is in a case that refuses; a VALID one in one that accepts."""
    refusing: set[str] = set()
    accepting: set[str] = set()
    for path in REAL:
        case = told(path)
        (accepting if case["expect"]["verdict"] == "accept" else refusing).update(_files(case))
    for name, expected in _rows((vectors / "MANIFEST.md").read_text(encoding="utf-8")):
        if name in JUDGED_ELSEWHERE:
            continue
        if "MUST FAIL" in expected:
            assert name in refusing, name
        if expected.startswith("VALID"):
            assert name in accepting, name


JUDGED_ELSEWHERE: Final[dict[str, str]] = {
    "snp/roots_genoa_asvk.der": "no genuine VLEK report of Genoa; test_snp_vectors crosses all chains",
    "snp/roots_turin_asvk.der": "no genuine VLEK report of Turin; test_snp_vectors crosses all chains",
    "tdx/intel_sgx_root_ca.pem": "the root is in every quote; test_tdx_vectors compares it with the pin",
    "tdx/v4_dstack_quote_eventlog.json": "no collateral, and a log of its own form: test_tdx_rtmr replays it",
    "gcp/confidential_space_root.pem": "it is in the token, which is accepted only under the pinned one",
    "nitro/aws_nitro_root_g1.pem": "it is in the documents, accepted only under the pinned one",
    **{
        f"vtpm/eventlog_{name}.{suffix}": "a log without a quote: test_event_log and test_vtpm_boot replay it"
        for name in ("ubuntu-2404-amd-sevsnp", "cos-101-amd-sev", "glinux-alex", "ubuntu-2104-no-secure-boot")
        for suffix in ("bin", "pcrs.json")
    },
    "vtpm/eventlog_ubuntu-2404_tampered.bin": "a log without a quote: test_event_log",
    "vtpm/eventlog_short_no_action.bin": "a log without a quote: test_event_log",
}
"""Files of the manifest that are no evidence by themselves: why, and which test reads them."""


def _rows(manifest: str) -> Iterator[tuple[str, str]]:
    """File and expected verdict, of the six tables about platforms."""
    folder = ""
    for line in manifest.splitlines():
        if line.startswith("## "):
            folder = line[3:].strip()
        elif line.startswith("| ") and folder in ("snp", "tdx", "azure", "vtpm", "nitro", "gcp"):
            name, *_, expected, _size, _hash = (part.strip() for part in line.strip("| ").split(" | "))
            if name not in ("file", "---"):
                yield f"{folder}/{name}", expected


def _files(case: dict[str, Any]) -> Iterator[str]:
    """The files of the shared folder that a case needs, also through their conversion."""
    for name in (case.get("evidence"), *case.get("endorsements", {}).values()):
        _, _, path = str(name).partition("vectors:")
        yield from foreign.sources(path)


def test_the_largest_log_that_is_read_is_larger_than_any_of_these() -> None:
    largest = max(path.stat().st_size for path in FOLDER.rglob("event_log*"))
    assert largest < event_log.MAX_LOG
