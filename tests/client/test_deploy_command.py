"""
`blindbox deploy`: shows commands, refuses values that are none, asks, and runs.

The clouds' own programs are stood in for by a shell script that writes down the words it was given: what is
looked at is what reaches a program, by each of the ways in which the same commands are told.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blindbox import cli
from blindbox.cli import DONE, USAGE
from blindbox.commands.deploy_steps import Value, quoted
from blindbox.commands.deploy_targets import TARGETS

WAYS = [(target, hardware) for target, about in TARGETS.items() for hardware in about.plans]
VALUES = {
    (target, value.name): value
    for target, hardware in WAYS
    for value in TARGETS[target].plans[hardware].values
}
UNKNOWN = {
    "PROJECT": "some-project",
    "PARAVISOR": "ab" * 48,
    "MRTD": "cd" * 48,
    "TCB_EVALUATION": "18",
    "AK_KEY": "ef" * 32,
}

# What each program of a cloud says when it is asked for an id or an address.
_STAND_IN = r"""#!/bin/sh
printf '%s\0' "${0##*/}" "$@" >> "$RECORD"
printf '\n\0' >> "$RECORD"
case "${0##*/} $*" in
*"$FAILING"*) echo "the quota is used up" >&2; exit 7 ;;
*"group exists"*) echo "${GROUP_EXISTS:-false}" ;;
*"tags.blindbox"*) echo deployed ;;
*"storage account show"*) echo /subscriptions/1/storage ;;
*"sig image-version create"*) echo /subscriptions/1/image ;;
*publicIps* | *natIP* | *PublicIpAddress*) echo "${SAID:-192.0.2.7}" ;;
*coldsnap* | *describe-snapshots*) echo snap-0123456789abcdef0 ;;
*register-image* | *describe-images*) echo ami-0123456789abcdef0 ;;
*create-security-group*) echo sg-0123456789abcdef0 ;;
*run-instances* | *describe-instances*) echo i-0123456789abcdef0 ;;
esac
"""


def options(target: str, hardware: str) -> list[str]:
    """The target, and what nobody else can know of it."""
    plan = TARGETS[target].plans[hardware]
    said = [[value.option, UNKNOWN[value.name]] for value in plan.values if value.default is None]
    chosen = ["--hardware", hardware] if hardware else []
    return ["--target", target, *chosen, *itertools.chain.from_iterable(said)]


def run(*arguments: str) -> int:
    return cli.main(["deploy", *arguments])


class Programs:
    """Stand-ins on the PATH, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"

    def called(self) -> list[list[str]]:
        """The commands since the last look, word by word."""
        told = self.record.read_bytes().decode() if self.record.exists() else ""
        self.record.unlink(missing_ok=True)
        return [command.split("\0")[:-1] for command in told.split("\n\0")[:-1]]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("az", "gcloud", "aws", "coldsnap", "qemu-system-x86_64", "pkill"):
        (folder / name).write_text(_STAND_IN)
        (folder / name).chmod(0o755)
    found = Programs(tmp_path)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(found.record))
    monkeypatch.setenv("FAILING", "nothing fails")
    monkeypatch.chdir(tmp_path)
    for value in VALUES.values():
        monkeypatch.delenv(value.name, raising=False)
        if value.file and value.default is not None:
            Path(value.default).parent.mkdir(parents=True, exist_ok=True)
            Path(value.default).write_bytes(b"a file")
    return found


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("target", "hardware"), WAYS)
def test_a_dry_run_shows_the_way_in_and_out_and_runs_nothing(
    programs: Programs, capsys: pytest.CaptureFixture[str], target: str, hardware: str
) -> None:
    assert run(*options(target, hardware), "--dry-run") == DONE
    told = capsys.readouterr().out
    assert re.findall(r"^# ── (.*)$", told, re.MULTILINE) == [
        "deploy",
        "see that it is the right one",
        "remove",
    ]
    for needed in ("blindbox policy from-measurements", "blindbox verify http", "blindbox trust"):
        assert needed in told.replace('"', "")
    assert programs.called() == []


def test_what_was_not_said_is_named_by_a_dry_run_and_its_place_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--target", "azure", "--dry-run") == DONE
    told = capsys.readouterr().out
    assert "# PARAVISOR: measurement of Microsoft's firmware" in told
    assert '--paravisor "$PARAVISOR"' in told


@pytest.mark.parametrize(("target", "hardware"), WAYS)
def test_the_script_the_dry_run_and_the_command_run_the_same(
    programs: Programs, capsys: pytest.CaptureFixture[str], target: str, hardware: str
) -> None:
    """What is typed from the dry run, what the script runs, and what the command runs: word for word."""
    for more in ([], ["--remove"]):
        assert run(*options(target, hardware), *more, "--yes") == DONE
        capsys.readouterr()
        by_command = programs.called()
        assert len(by_command) == len(
            [
                step
                for step in getattr(TARGETS[target].plans[hardware], "remove" if more else "deploy")
                if step.words[0] != "rm"
            ]
        )
        assert run(*options(target, hardware), *more, "--script") == DONE
        bash(capsys.readouterr().out)
        assert programs.called() == by_command
        assert run(*options(target, hardware), "--dry-run") == DONE
        parts = re.split(r"# ── .*\n", capsys.readouterr().out)
        bash(parts[3 if more else 1])
        assert programs.called() == by_command


def bash(text: str) -> None:
    subprocess.run(["bash", "-c", text], check=True, capture_output=True)


def test_values_stand_in_the_commands_and_a_space_does_not_part_them(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Path("my disks/disk of today.vhd")
    disk.parent.mkdir()
    disk.write_bytes(b"a disk")
    said = ["--target", "azure", "--disk", str(disk), "--region", "northeurope", "--name", "second"]
    assert run(*said, "--yes") == DONE
    uploads = [command for command in programs.called() if "upload" in command]
    assert len(uploads) == 1
    assert uploads[0][uploads[0].index("--file") + 1] == str(disk)
    assert uploads[0][uploads[0].index("--name") + 1] == "second.vhd"
    told = capsys.readouterr().out
    assert "--location northeurope" in told
    assert "blindbox verify http://192.0.2.7:80 --policy policy.json" in told


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────

HOSTILE = [
    "",
    "a b; rm -rf /",
    "$(id)",
    "`id`",
    "-x",
    "--help",
    "a\nb",
    "a\n",
    "a'b",
    'a"b',
    "a,file=/etc/passwd",
    "a=b",
    "@/etc/passwd",
    "a\0b",
    "ä",
    "x" * 2000,
]


@pytest.mark.parametrize("value", VALUES.values(), ids=lambda value: f"{value.name}-{value.default}")
def test_no_value_takes_what_means_something_to_a_shell_or_to_a_program(value: Value) -> None:
    for text in HOSTILE:
        with pytest.raises(ValueError, match=re.escape(value.option)):
            value.read(text)
    if value.default is not None:
        assert value.read(value.default) == value.default


def test_a_hostile_value_ends_the_command_before_anything_is_shown_or_run(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--target", "gcp", "--project", "a;id", "--yes") == USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert "--project 'a;id': wanted 6 to 30 lower-case letters" in told.err
    assert programs.called() == []


@pytest.mark.parametrize("text", ["$(touch stolen)", "x; touch stolen", "-x", "a\nb"])
def test_a_script_refuses_a_hostile_variable_too(
    programs: Programs, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert run("--target", "azure", "--script") == DONE
    script = capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "REGION": text},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "REGION is" in done.stderr
    assert programs.called() == []
    assert not Path("stolen").exists()


def test_a_value_of_another_target_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target", "qemu-snp", "--bucket", "mine", "--dry-run") == USAGE
    assert "--bucket: not for qemu-snp, which has --name, --processor" in capsys.readouterr().err


def test_hardware_that_a_target_has_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target", "qemu-snp", "--hardware", "tdx", "--dry-run") == USAGE
    assert "qemu-snp has snp" in capsys.readouterr().err


# ── what is asked and missed before anything is run ──────────────────────────────────────────────────


def test_nothing_is_run_where_nobody_can_be_asked(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--target", "azure") == USAGE
    assert "--yes runs these commands, --dry-run shows them" in capsys.readouterr().err
    assert programs.called() == []


@pytest.mark.parametrize(
    ("answer", "runs"), [("y", True), ("yes", True), ("", False), ("no", False), ("x", False)]
)
def test_only_a_yes_runs_it(programs: Programs, answer: str, runs: bool) -> None:
    """At a terminal, as a person has one."""
    done = at_a_terminal([sys.executable, "-m", "blindbox.cli", "deploy", "--target", "azure"], f"{answer}\n")
    assert ("az group create" in done) is True, "the plan is shown before it is asked"
    assert bool(programs.called()) is runs


def at_a_terminal(command: list[str], typed: str) -> str:
    import pty

    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.write(ours, typed.encode())
        return process.communicate(timeout=120)[0].decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_value_that_only_a_person_knows_is_asked_for(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--target", "gcp", "--yes") == USAGE
    assert "say --project: id of the project" in capsys.readouterr().err
    assert programs.called() == []


def test_a_disk_that_is_not_there_is_told_before_anything_is_made(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--target", "azure", "--disk", "elsewhere.vhd", "--yes") == USAGE
    assert "--disk: there is no file elsewhere.vhd" in capsys.readouterr().err
    assert programs.called() == []


@pytest.mark.parametrize(("target", "package"), [("azure", "azure-cli"), ("qemu-snp", "qemu-system-x86")])
def test_a_program_that_is_missing_is_named_with_where_to_have_it(
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    package: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert run("--target", target, "--yes") == USAGE
    assert package in capsys.readouterr().err


# ── what goes wrong half-way ─────────────────────────────────────────────────────────────────────────


def test_a_resource_group_of_somebody_elses_is_left_alone(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Removing removes all that is in it."""
    monkeypatch.setenv("GROUP_EXISTS", "true")
    assert run("--target", "azure", "--yes") == USAGE
    told = capsys.readouterr().err
    assert "the resource group blindbox is there already" in told
    assert "--remove" not in told
    assert len(programs.called()) == 1


def test_a_command_that_fails_ends_it_and_what_stays_is_told(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILING", "sig create")
    assert run("--target", "azure", "--yes") == USAGE
    told = capsys.readouterr().err
    assert "az ended with 7" in told
    assert "what was made so far stays, and may cost: --remove removes it" in told
    assert programs.called()[-1][1:3] == ["sig", "create"]


@pytest.mark.parametrize("said", ["None", "192.0.2.7; id", "192.0.2.7\n192.0.2.8", "2001:db8::1"])
def test_an_answer_that_is_no_address_is_not_gone_on_with(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    monkeypatch.setenv("SAID", said)
    assert run("--target", "azure", "--yes") == USAGE
    told = capsys.readouterr()
    assert "az printed" in told.err
    assert "blindbox verify" not in told.out


def test_removing_goes_on_where_something_was_never_made(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILING", "describe-instances")
    assert run("--target", "aws", "--remove", "--yes") == USAGE
    assert "INSTANCE is not known" in capsys.readouterr().err
    tried = [command[2] for command in programs.called()]
    assert "terminate-instances" not in tried
    assert {"deregister-image", "delete-snapshot", "delete-security-group"} <= set(tried)


# ── quoting ──────────────────────────────────────────────────────────────────────────────────────────


def words() -> Iterator[tuple[str, dict[str, str]]]:
    yield 'a "$NAME" b', {}
    yield "{$NAME}'s \\ `id` $lower", {}
    yield "$NAME_AND", {}
    yield "x$NAME", {"NAME": "it's $(id)"}
    yield "$NAME-$OTHER", {"NAME": '"`\\'}


@pytest.mark.parametrize(("word", "known"), list(words()))
def test_a_word_reaches_its_program_as_it_was_meant(word: str, known: dict[str, str]) -> None:
    told = {"NAME": "one two", "OTHER": "*", "NAME_AND": "and"}
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{json.dumps(sys.executable)} -c 'import sys; print(sys.argv[1:])' {quoted(word, known)}",
        ],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=True,
    )
    every = {**told, **known}
    meant = re.sub(r"\$([A-Z][A-Z_]*)", lambda name: every[name[1]], word)
    assert done.stdout.strip() == str([meant])
