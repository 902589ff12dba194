"""Pages, scripts and command of a deployment say the same, and what they say is understood where it goes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from blindbox import cli
from blindbox.cli import DONE
from blindbox.commands.deploy_steps import Step, listed, words
from blindbox.commands.deploy_targets import TARGETS
from blindbox_attestation.policy import Policy
from blindbox_attestation.policy import read as read_policy
from tests.conftest import REPOSITORY
from tests.kit.debian import need

WAYS = [(target, hardware) for target, about in TARGETS.items() for hardware in about.plans]
PLATFORM = {
    ("qemu-snp", "snp"): "snp",
    ("qemu-tdx", "tdx"): "tdx",
    ("azure", "snp"): "azure_snp",
    ("azure", "tdx"): "azure_tdx",
    ("gcp", "tdx"): "tdx",
    ("gcp", "snp"): "tpm",
    ("aws", ""): "tpm",
}
FOUND = {
    "SNAPSHOT": "snap-0123456789abcdef0",
    "IMAGE": "ami-0123456789abcdef0",
    "GROUP": "sg-0123456789abcdef0",
    "INSTANCE": "i-0123456789abcdef0",
    "ADDRESS": "192.0.2.7",
}
SAID = {
    "PROJECT": "some-project",
    "PARAVISOR": "ab" * 48,
    "MRTD": "cd" * 48,
    "TCB_EVALUATION": "18",
    "AK_KEY": "ef" * 32,
}
MEASURED = {
    "version": 1,
    "snp_launch_digest": {"by_vcpus": {"EPYC-Genoa x4": "11" * 48, "EPYC-Turin x4": "22" * 48}},
    "tdx": {"mrtd": "33" * 48, "rtmr": {"1": "44" * 48, "2": "55" * 48}},
    "pcr": {"sha256": {"4": "66" * 32, "11": "77" * 32, "12": "00" * 32}},
}


def page(target: str) -> str:
    return (REPOSITORY / "docs" / "deploy" / TARGETS[target].page).read_text(encoding="utf-8")


def defaults(target: str, hardware: str) -> dict[str, str]:
    return {
        value.name: value.default
        for value in TARGETS[target].plans[hardware].values
        if value.default is not None
    }


def of_program(name: str) -> list[tuple[str, Step, dict[str, str]]]:
    """Each command that calls this program, once."""
    found: dict[tuple[str, ...], tuple[str, Step, dict[str, str]]] = {}
    for target, hardware in WAYS:
        plan = TARGETS[target].plans[hardware]
        known = {**FOUND, **SAID, **defaults(target, hardware)}
        for step in (*plan.deploy, *plan.remove):
            if step.words[0] == name:
                found.setdefault(tuple(words(step, known)), (f"{target} {step.about}", step, known))
    return list(found.values())


@pytest.mark.parametrize(("target", "hardware"), WAYS)
def test_the_page_has_the_commands_word_for_word(target: str, hardware: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)\n```", page(target), re.DOTALL)
    plan, known = TARGETS[target].plans[hardware], defaults(target, hardware)
    assert listed(plan.check, known) in blocks
    assert listed(plan.remove, known) in blocks
    if (target, hardware) != ("azure", "tdx"):  # which differs from the other in its size alone
        assert listed(plan.deploy, known) in blocks
        return
    other = {**defaults("azure", "snp"), "SIZE": known["SIZE"]}
    assert listed(plan.deploy, known) == listed(TARGETS["azure"].plans["snp"].deploy, other)


@pytest.mark.parametrize("target", TARGETS)
def test_the_page_tells_whom_to_trust_what_to_pin_how_to_remove_and_what_was_not_tried(target: str) -> None:
    headings = re.findall(r"^## (.*)$", page(target), re.MULTILINE)
    assert headings == [
        "Who has to be honest",
        "What to type",
        "See that it is the right one",
        "Remove it",
        "What was not tried",
    ]


def test_every_target_is_in_the_overview() -> None:
    overview = (REPOSITORY / "docs" / "deploying.md").read_text(encoding="utf-8")
    for target, about in TARGETS.items():
        assert re.search(rf"^\| `{target}`", overview, re.MULTILINE), target
        assert f"(deploy/{about.page})" in overview


def scripts() -> dict[Path, list[str]]:
    """Each script, and the options by which the command prints it."""
    found = {}
    for target, about in TARGETS.items():
        folder = REPOSITORY / "image" / "deploy" / target
        found[folder / "remove.sh"] = ["--target", target, "--remove"]
        for hardware in about.plans:
            if len(about.plans) > 1:
                found[folder / f"deploy-{hardware}.sh"] = ["--target", target, "--hardware", hardware]
            else:
                found[folder / "deploy.sh"] = ["--target", target]
    return found


def test_the_scripts_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    there = set((REPOSITORY / "image" / "deploy").glob("*/*"))
    assert there == set(scripts())
    for path, options in scripts().items():
        assert cli.main(["deploy", *options, "--script"]) == DONE
        assert path.read_text(encoding="utf-8") == capsys.readouterr().out, path
        assert os.access(path, os.X_OK), path


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    need("shellcheck")
    done = subprocess.run(["shellcheck", *scripts()], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize(("target", "hardware"), WAYS)
def test_the_policy_that_is_typed_is_one_and_is_of_the_platform_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, hardware: str
) -> None:
    measured = tmp_path / "measurements.json"
    measured.write_text(json.dumps(MEASURED))
    plan = TARGETS[target].plans[hardware]
    known = {**defaults(target, hardware), **SAID, "MEASUREMENTS": str(measured)}
    typed, judged, stored = plan.check
    assert cli.main(words(typed, known)[1:]) == DONE
    told = capsys.readouterr().out
    policy = read_policy(told)
    assert isinstance(policy, Policy)
    assert [key for key in set(PLATFORM.values()) if getattr(policy, key) is not None] == [
        PLATFORM[target, hardware]
    ]
    if PLATFORM[target, hardware] == "tdx":
        assert policy.tdx is not None
        assert {value.hex() for value in policy.tdx.mrtd} == {("cd" if target == "gcp" else "33") * 48}
    if policy.azure_snp is not None:
        assert policy.azure_snp.secure_boot == policy.azure_snp.boot.secure_boot == "unchecked"
    if policy.tpm is not None:
        assert policy.tpm.boot.secure_boot == "unchecked"
    for step in (judged, stored):
        options = cli.parser().parse_args(words(step, {**known, **FOUND})[1:])
        assert options.policy == typed.into


# ── understood where they go: by the programs themselves, as far as they read without a login ────────


def test_the_aws_command_line_understands_each_command(tmp_path: Path) -> None:
    """It judges the words and all parameters, and makes up an answer; nothing is asked of the network."""
    if shutil.which("aws") is None:
        pytest.skip("no aws here")
    environment = {
        **_offline(),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    for about, step, known in of_program("aws"):
        if step.words[2] == "wait":  # has no such option
            continue
        done = subprocess.run(
            [*words(step, known), "--generate-cli-skeleton", "output"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{about}: {done.stderr}"


def test_the_gcloud_command_line_understands_each_command(tmp_path: Path) -> None:
    """It judges the words and their values before it looks for a login; there is none, so it ends with 1."""
    if shutil.which("gcloud") is None:
        pytest.skip("no gcloud here")
    environment = {
        **_offline(),
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
    }
    for about, step, known in of_program("gcloud"):
        done = subprocess.run(
            words(step, known), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, f"{about}: {done.stderr}"
        assert "active account" in done.stderr, f"{about}: {done.stderr}"


def _offline() -> dict[str, str]:
    """No proxy listens at port 9: whatever would be asked is not."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **nowhere}
