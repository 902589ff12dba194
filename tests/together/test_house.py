"""The house keeps its own rules: who imports whom, what is public, what the pages say."""

from __future__ import annotations

import configparser
import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import blindbox
import blindbox_attestation
import blindbox_attestation.channel
import blindbox_data
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    "package", [blindbox, blindbox_attestation, blindbox_attestation.channel, blindbox_data]
)
def test_what_a_package_lists_as_public_is_there(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(package, name)] == []


def test_every_subpackage_on_disk_is_in_the_explicit_package_list() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {"blindbox", "blindbox_attestation", "blindbox_data"}
    for package in (blindbox, blindbox_attestation, blindbox_data):
        walk = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        found |= {module.name for module in walk if module.ispkg}
    assert found == listed


def test_the_shared_room_needs_nothing_but_cryptography() -> None:
    """Imported alone, in a process that could import anything."""
    code = (
        "import sys, blindbox_attestation\n"
        "heavy = {'requests', 'urllib3', 'fastapi', 'torch', 'numpy', 'blindbox', 'enclave_app'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "attestation"), "PATH": ""},
    )
    assert run.stdout.strip() == "[]"


def test_the_data_room_needs_nothing_but_the_standard_library() -> None:
    """Imported alone, in a process that could import anything; and it reads every form but Parquet so."""
    code = (
        "import io, sys\n"
        "from blindbox_data import Form, Wanted, open_rows, select\n"
        'files = {Form.JSONL: b\'{"text": "t"}\', Form.JSON: b\'[{"text": "t"}]\', Form.CSV: b\'text\\nt\'}\n'
        "for form, data in files.items():\n"
        "    select(open_rows(io.BytesIO(data), form), Wanted())\n"
        "ours = {'__main__', 'blindbox_data', *sys.stdlib_module_names}\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] not in ours))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "data"), "PATH": ""},
    )
    assert run.stdout.strip() == "[]"


def test_the_codes_in_the_specification_and_in_the_source_are_the_same() -> None:
    specification = (REPOSITORY / "attestation" / "SPEC.md").read_text(encoding="utf-8")
    section = specification.split("## 4. Verification")[1].split("## 5.")[0]
    section += specification.split("## 8. The training receipt")[1]
    lists = "\n".join(re.findall(r"^(?:\| \d+ \||Before step 1|\*\*Codes\*\*).*$", section, re.MULTILINE))
    documented = set(re.findall(r"`([a-z]+(?:-[a-z0-9]+)+|vmpl|revoked|owner)`", lists))
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for room in ("attestation/blindbox_attestation", "client_sdk/blindbox")
        for path in (REPOSITORY / room).rglob("*.py")
    )
    assert sorted(code for code in documented if f'"{code}"' not in source) == []
    assert sorted(set(re.findall(r'\bcode="([a-z-]+)"', source)) - documented) == []


def test_links_between_the_pages_lead_somewhere() -> None:
    broken = []
    for page in [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("attestation/*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name} → {target}")
    assert broken == []


def test_every_module_introduces_itself() -> None:
    silent = []
    for package in ("blindbox", "blindbox_attestation", "blindbox_data", "enclave_app"):
        root = importlib.import_module(package)
        for folder in root.__path__:
            for path in sorted(__import__("pathlib").Path(folder).rglob("*.py")):
                source = path.read_text(encoding="utf-8").lstrip()
                if source and not source.startswith(('"""', 'r"""')):
                    silent.append(str(path.relative_to(REPOSITORY)))
    assert silent == []
