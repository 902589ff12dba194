"""The suite of `requests` itself, over the seal: what fails is what is meant to, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import REPOSITORY

REQUESTS = "2.34.2"
BESIDE_IT = ["pytest-httpbin==2.1.0", "httpbin==0.10.4", "pytest-mock", "trustme", "PySocks", "a2wsgi"]
BY_DESIGN = Path(__file__).with_name("upstream_by_design.txt")
# They need an address beyond this machine that never answers.
NOT_RUN = [
    f"tests/test_requests.py::TestTimeout::{name}"
    for name in ("test_connect_timeout", "test_total_timeout_connect")
]


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    wanted = ["--no-deps", "--no-binary", "requests", f"requests=={REQUESTS}"]
    if run(sys.executable, "-m", "pip", "download", "--dest", folder, *wanted).returncode:
        pytest.skip(f"the source of requests {REQUESTS} cannot be downloaded here")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"requests-{REQUESTS}"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees this one's packages and this repository, and has the suite's own besides."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (own,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")]
    seen += [str(REPOSITORY / room) for room in ("client_sdk", "attestation", ".")]
    (own / "seen.pth").write_text("\n".join(seen) + "\n")
    interpreter = folder / "bin" / "python"
    if run(interpreter, "-m", "pip", "install", *BESIDE_IT).returncode:
        pytest.skip("what the suite of requests needs cannot be downloaded here")
    return interpreter


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_suite_of_requests_fails_over_the_seal_only_where_it_is_meant_to(
    suite: Path, python: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told.xml"
    # -P keeps the suite's `tests` off the path until the plugin has been read from ours.
    plugins = ["-p", "tests.kit.sealed_suite", "-p", "no:httpbin", "-p", "no:cacheprovider"]
    options: list[str | Path] = [
        "-c",
        os.devnull,
        "--rootdir",
        suite,
        "--timeout",
        "60",
        f"--junitxml={told}",
        "--tb=short",
    ]
    left_out = [part for name in NOT_RUN for part in ("--deselect", name)]
    done = run(python, "-P", "-m", "pytest", *plugins, *options, *left_out, suite / "tests", cwd=suite)
    assert told.exists(), done.stdout + done.stderr
    cases = {
        f"{case.get('classname')}::{case.get('name')}": case
        for case in ElementTree.parse(told).iter("testcase")
    }
    failed = {
        name
        for name, case in cases.items()
        if case.find("failure") is not None or case.find("error") is not None
    }
    lines = BY_DESIGN.read_text(encoding="utf-8").splitlines()
    by_design = {line for line in lines if line and not line.startswith("#")}
    assert failed == by_design, done.stdout[-20_000:]
    assert len(by_design) <= 40
    assert len(cases) - len(failed) > 580
