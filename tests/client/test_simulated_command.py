"""Simulated machines and the command: an object of a program's own lets it take them, and no string does."""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import blindbox
import blindbox_attestation
import blindbox_data
from blindbox import cli, places
from blindbox.trust import STORE
from tests.conftest import REPOSITORY
from tests.kit.amd import FakeAmd
from tests.kit.app import whole_app
from tests.kit.pinned_amd import accepting
from tests.kit.relay import Relay
from tests.kit.simulated import unsafe

EXAMPLE = REPOSITORY / "client_sdk" / "examples" / "simulated.py"
LOUD = "SIMULATED: machines are accepted here that prove nothing"
FLAGS = [
    [],
    *([f"--{word}"] for word in ("simulated", "unsafe", "insecure", "judges", "otherwise")),
    *(["--otherwise", word] for word in ("simulated", "UnsafeSimulatedPolicy()")),
    *([f"--policy={word}"] for word in ("", "simulated", "UnsafeSimulatedPolicy", "UnsafeSimulatedPolicy()")),
    ["--policy", '{"version": 1, "simulated": {}}'],
    ["--policy", str(EXAMPLE)],
]
NAMES = ["OTHERWISE", "SIMULATED", "UNSAFE", "ALLOW_SIMULATED", "POLICY", "INSECURE", "QUOTER", "DEBUG"]


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with whole_app(name="org/echo") as enclave:
        yield enclave.origin


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,b\nc,d\ne,f\n")
    return str(path)


def ended(arguments: list[str]) -> int:
    """The exit status, also where the grammar ends it."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_example_runs_every_command_and_each_speaks_up(
    origin: str,
    rows: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The journey of docs/fine-tuning.md is in tests/together; here are the commands that it leaves out."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main(["verify", origin, "--save", "proof.json"]) == cli.NOT_PROVED
    told = capsys.readouterr()
    assert LOUD in told.err
    assert "SIMULATED: nothing was proved" in told.out
    assert main(["verify", "--offline", "proof.json"]) == cli.NOT_PROVED
    assert "judged again" in capsys.readouterr().out
    assert main(["top", origin, "--once"]) == cli.DONE
    assert "SIMULATED" in capsys.readouterr().out
    assert main(["jobs", origin]) == cli.DONE
    assert capsys.readouterr().err.count("SIMULATED") == 1
    assert main(["data", "check", rows]) == cli.DONE  # which trusts nobody
    assert "SIMULATED" not in capsys.readouterr().err


def test_what_a_person_has_said_of_an_origin_is_never_undercut(
    origin: str, amd: FakeAmd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(accepting(amd).to_json())
    assert cli.main(["jobs", origin, "--policy", str(path)], otherwise=unsafe()) == cli.NOT_PROVED
    assert cli.main(["jobs", origin], otherwise=unsafe()) == cli.DONE
    STORE.set(origin, accepting(amd))
    for command in (["jobs", origin], ["verify", origin], ["finetune", origin, str(path)]):
        capsys.readouterr()
        assert cli.main(command, otherwise=unsafe()) != cli.DONE
        assert LOUD not in capsys.readouterr().err


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_no_flag_environment_or_file_reaches_it(
    flags: list[str], origin: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-21: whatever strings the command is given, not one sealed byte goes to a simulated machine."""
    for name in NAMES:
        monkeypatch.setenv(f"BLINDBOX_{name}", "1")
        monkeypatch.setenv(name, "simulated")
    monkeypatch.chdir(tmp_path)
    for name in ("simulated", "UnsafeSimulatedPolicy", "UnsafeSimulatedPolicy()"):
        Path(name).write_text('{"version": 1, "simulated": {}}')
    with Relay(origin) as relay:
        for command in (
            ["verify", relay.origin],
            ["jobs", relay.origin],
            ["finetune", relay.origin, rows],
            ["top", relay.origin, "--once"],
            ["proxy", relay.origin, "--port", "0"],
            ["receipt", "verify", rows],
            ["receipt", "verify", rows, "--origin", relay.origin],
        ):
            assert ended([*command, *flags]) not in (cli.DONE, cli.UNREACHABLE), command
        assert relay.sealed() == []


def test_no_stored_file_reaches_it(origin: str, own_home: Path) -> None:
    """C-21: not even one that is put into the store by hand."""
    with Relay(origin) as relay:
        path = places.file_for(STORE.folder, relay.origin, ".json")
        path.parent.mkdir(parents=True, mode=0o700)
        for policy in ({"version": 1, "simulated": {}}, "UnsafeSimulatedPolicy", None, {"otherwise": True}):
            path.write_text(json.dumps({"version": 1, "origin": relay.origin, "policy": policy}))
            path.chmod(0o600)
            assert ended(["jobs", relay.origin]) == cli.USAGE
        assert relay.sealed() == []


def test_nothing_that_is_installed_makes_such_a_policy_or_hands_one_over() -> None:
    """C-21: only a program beside the package does; and the installed command is called with nothing."""
    called: list[str] = []
    for package in (blindbox, blindbox_attestation, blindbox_data):
        assert not EXAMPLE.is_relative_to(package.__path__[0])
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
                    handed = {word.arg for word in node.keywords}
                    if name == "UnsafeSimulatedPolicy" or "otherwise" in handed:
                        called.append(f"{path.name}:{node.lineno}")
    assert called == []
    parameter = inspect.signature(cli.main).parameters["otherwise"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, None)
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    assert config["options.entry_points"]["console_scripts"].split() == ["blindbox", "=", "blindbox.cli:main"]
    assert "otherwise" not in vars(cli.parser().parse_args(["jobs", "http://h"]))
