"""The wheel, alone in a new environment: what is in it, what comes with it, how quickly it is imported."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "blindbox": ROOT / "client_sdk" / "blindbox",
    "blindbox_attestation": ROOT / "attestation" / "blindbox_attestation",
    "blindbox_data": ROOT / "data" / "blindbox_data",
}
SOURCES = [
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "attestation",
    "client_sdk",
    "data",
    "enclave_app",
    "tests",
]
DATA = {".json", ".pem", ".crt", ".der", ".html", ".js", ".css", ".svg"}

# requests, cryptography and what these two ask for, and the judge of TDX quotes; nothing else is a client's
# business.
COMES_WITH_IT = {
    "blindbox",
    "requests",
    "certifi",
    "charset-normalizer",
    "idna",
    "urllib3",
    "cryptography",
    "dcap-qvl",
    "cffi",
    "pycparser",
}
HEAVY = ("torch", "transformers", "numpy", "fastapi", "starlette", "uvicorn", "pydantic", "enclave_app")
IMPORT_SECONDS = 1.0  # three tenths on a quick machine, at most


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command outside this checkout, so that nothing is imported from it by chance."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as anyone would build it, without a network: the backend is among the locked requirements."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy, because setuptools leaves build/ and *.egg-info beside what it builds.
    for name in SOURCES:
        run("cp", "-R", ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment in which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    # The versions that were locked, so that this test says the same today and in a year.
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in locked().items()))
    install = ["install", "--quiet", "--disable-pip-version-check", "--constraint", constraints]
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder)
    return python


def locked() -> dict[str, str]:
    """Name → version out of requirements/enclave.txt."""
    lines = (ROOT / "requirements" / "enclave.txt").read_text().splitlines()
    pins = (line.removesuffix(" \\").split("==") for line in lines if line[:1].isalnum())
    return {name: version for name, version in pins if name != "torch"}


def ask(python: Path, code: str, *options: str) -> Any:
    """What the code prints, as JSON."""
    return json.loads(run(python, *options, "-c", code, cwd=python.parent))


def modules_on_disk() -> set[str]:
    """Every file of the packages that belongs in the wheel, as the wheel would name it."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in ROOMS.items()
        for path in folder.rglob("*")
        if path.suffix in {".py", *DATA} or path.name == "py.typed"
    }


def test_the_wheel_holds_every_file_of_its_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == modules_on_disk()


def test_the_wheel_marks_its_packages_as_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"{name}/py.typed" for name in ROOMS} <= set(names)


def test_the_wheel_asks_for_requests_cryptography_and_dcap_qvl_only(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    asked = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    assert sorted(line.split("<")[0].split(">")[0].strip() for line in asked if "extra ==" not in line) == [
        "cryptography",
        "dcap-qvl",
        "requests",
    ]


def test_nothing_comes_with_the_wheel_but_what_it_asks_for_and_theirs(alone: Path) -> None:
    names = ask(
        alone,
        "import json; from importlib.metadata import distributions\n"
        "print(json.dumps([one.metadata['Name'].lower() for one in distributions()]))",
    )
    assert {"blindbox", "requests", "cryptography", "dcap-qvl"} <= set(names)
    assert set(names) - {"pip", "setuptools"} <= COMES_WITH_IT


@pytest.mark.parametrize("name", ["blindbox", "blindbox.requests"])
def test_importing_it_loads_nothing_heavy(alone: Path, name: str) -> None:
    loaded = ask(alone, f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))")
    assert name in loaded
    assert not [module for module in loaded if module.split(".")[0] in HEAVY]


def test_importing_it_is_quick(alone: Path) -> None:
    """The best of seven, by the processor's time: what a busy machine adds is not the package's doing."""
    seconds = [import_seconds(alone, "blindbox") for _ in range(7)]
    assert min(seconds) < IMPORT_SECONDS, f"import blindbox took {sorted(seconds)} s"


def import_seconds(python: Path, name: str) -> float:
    """Measured inside a new process, as `-X importtime` does: the interpreter's own start does not count."""
    code = f"import time; t = time.process_time(); import {name}; print(time.process_time() - t)"
    return float(ask(python, code, "-I"))


def commands() -> Sequence[Sequence[str]]:
    """The ways to the command line."""
    return [["blindbox"], ["python", "-m", "blindbox.cli"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_command_line_answers_for_help(alone: Path, command: Sequence[str]) -> None:
    shown = run(alone.parent / command[0], *command[1:], "--help", cwd=alone.parent)
    assert "usage: blindbox" in shown
    assert "verify" in shown
    assert "trust" in shown


def test_the_drop_in_makes_a_session_and_refuses_to_call_an_unproven_machine(alone: Path) -> None:
    refused = ask(
        alone,
        "import json, blindbox.requests as requests\n"
        "try: requests.get('http://127.0.0.1:9/')\n"
        "except Exception as error: print(json.dumps([type(error).__name__, str(error)]))",
    )
    assert refused[0] == "NoPolicy"
    assert "blindbox trust" in refused[1]
