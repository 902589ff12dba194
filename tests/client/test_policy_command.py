"""`blindbox policy`: in words, as a schema, from what a build printed, and the dated table of firmware."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blindbox import cli
from blindbox.cli import DONE, USAGE
from blindbox.commands.release_measurements import PLATFORMS
from blindbox_attestation.policy import PARTS, Policy, read
from blindbox_attestation.policy_schema import schema
from blindbox_attestation.snp import minimum_tcb
from tests.kit.json_schema import fits
from tests.kit.policies import LEAST, policy

GENOA_4, GENOA_8, MILAN_4, TURIN_4 = (f"{number}{number}" * 48 for number in (1, 2, 3, 4))
MRTD, RTMR1, RTMR2 = (f"{number}{number}" * 48 for number in (5, 6, 7))

BUILT: dict[str, Any] = {
    "uki_sha256": "aa" * 32,
    "image_digest": f"sha256:{'bb' * 32}",
    "snp_launch_digest": {
        "firmware_sha256": "cc" * 32,
        "by_vcpus": {
            "EPYC-Genoa x4": GENOA_4,
            "EPYC-Genoa x8": GENOA_8,
            "EPYC-Milan x4": MILAN_4,
            "EPYC-Turin x4": TURIN_4,
        },
    },
    "tdx": {"firmware_sha256": "dd" * 32, "mrtd": MRTD, "rtmr": {"1": RTMR1, "2": RTMR2}},
    "nitro": {"pcr": {"0": "88" * 48, "1": "99" * 48}},
    "pcr": {"sha256": {"4": "aa" * 32, "11": "bb" * 32, "12": "cc" * 32}, "sha384": {"4": "aa" * 48}},
}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps(BUILT))
    return path


def run(*arguments: str) -> int:
    return cli.main(["policy", *arguments])


def made(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> Policy:
    """The policy that is printed."""
    assert run("from-measurements", str(path), *arguments) == DONE
    told = capsys.readouterr().out
    assert fits(json.loads(told), schema())
    found = read(told)
    assert isinstance(found, Policy)
    return found


def complaint(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    assert run("from-measurements", str(path), *arguments) == USAGE
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def without(path: Path, *names: str) -> Path:
    """The same file, with one value left out."""
    value = json.loads(json.dumps(BUILT))
    inner = value
    for name in names[:-1]:
        inner = inner[name]
    del inner[names[-1]]
    path.write_text(json.dumps(value))
    return path


# --- from-measurements ---


def test_an_snp_policy_names_the_build_on_the_processors_that_are_asked_for(
    capsys: pytest.CaptureFixture[str], built: Path
) -> None:
    """C-22: Milan has to be asked for, and each floor is one that somebody published."""
    found = made(capsys, built, "--platform", "snp").snp
    assert found is not None
    assert found.measurements == {bytes.fromhex(one) for one in (GENOA_4, GENOA_8, TURIN_4)}
    assert set(found.minimum_tcb) == {"Genoa/11/1", "Genoa/11/2", "Genoa/a0/2", "Turin/02/1"}
    assert all(floor == minimum_tcb.floors()[name] for name, floor in found.minimum_tcb.items())
    assert found.revocation == "required"
    exact = made(capsys, built, "--platform", "snp", "--processor", "Genoa", "--vcpus", "8").snp
    assert exact is not None
    assert exact.measurements == {bytes.fromhex(GENOA_8)}


@pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")
def test_a_policy_for_milan_is_made_for_whoever_says_so(
    capsys: pytest.CaptureFixture[str], built: Path
) -> None:
    found = made(capsys, built, "--platform", "snp", "--processor", "Milan").snp
    assert found is not None
    assert found.measurements == {bytes.fromhex(MILAN_4)}
    assert set(found.minimum_tcb) == {"Milan/01/1", "Milan/01/2"}


def test_one_policy_may_name_several_platforms(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    wishes = ("--tcb-evaluation", "18", "--audience", "https://us.example", "--hardware", "GCP_INTEL_TDX")
    names = [word for key in ("snp", "tdx", "gcp", "nitro", "snp") for word in ("--platform", key)]
    found = made(capsys, built, *names, *wishes)
    assert found.keys == ("snp", "tdx", "gcp", "nitro")
    assert found.tdx is not None
    assert found.tdx.mrtd == {bytes.fromhex(MRTD)}
    assert found.tdx.rtmrs == {1: {bytes.fromhex(RTMR1)}, 2: {bytes.fromhex(RTMR2)}}
    assert found.tdx.minimum_tcb_evaluation == 18
    assert found.gcp is not None
    assert found.gcp.image_digests == {BUILT["image_digest"]}
    assert found.nitro is not None
    assert found.nitro.pcrs[0] == {bytes.fromhex("88" * 48)}


def test_secure_boot_is_asked_about_on_demand_since_the_program_is_named_by_its_hash(
    capsys: pytest.CaptureFixture[str], built: Path
) -> None:
    asked = ("--platform", "tpm", "--platform", "azure_snp", "--ak-key", "ff" * 32, "--paravisor", "ee" * 48)
    for word, options in (("unchecked", ()), ("required", ("--secure-boot", "required"))):
        found = made(capsys, built, *asked, *options)
        assert found.tpm is not None
        assert found.azure_snp is not None
        assert {
            found.tpm.boot.secure_boot,
            found.azure_snp.boot.secure_boot,
            found.azure_snp.secure_boot,
        } == {word}


def test_the_settings_that_are_accepted_can_be_named(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    """S-31: by their digest, or as those that the image has of its own."""
    assert made(capsys, built, "--platform", "snp").config_digests is None
    told = json.loads(built.read_text())
    built.write_text(json.dumps({**told, "settings": {"config_digest": "0a" * 48}}))
    found = made(
        capsys, built, "--platform", "snp", "--config-digest", "default", "--config-digest", "0b" * 48
    )
    assert found.config_digests == {b"\x0a" * 48, b"\x0b" * 48}
    built.write_text(json.dumps(told))
    assert "settings.config_digest" in complaint(
        capsys, built, "--platform", "snp", "--config-digest", "default"
    )
    assert "--config-digest" in complaint(capsys, built, "--platform", "snp", "--config-digest", "0b")


def test_where_a_tpm_measures_the_program_its_registers_are_named(
    capsys: pytest.CaptureFixture[str], built: Path
) -> None:
    """And on Azure the firmware that is launched before it, which is Microsoft's."""
    wishes = ("--tcb-evaluation", "18", "--paravisor", "ee" * 48, "--project", "ours", "--ak-key", "ff" * 32)
    names = [word for key in ("azure_snp", "azure_tdx", "tpm") for word in ("--platform", key)]
    found = made(capsys, built, *names, *wishes)
    assert found.azure_snp is not None
    assert found.azure_tdx is not None
    assert found.tpm is not None
    for part in (found.azure_snp, found.azure_tdx, found.tpm):
        assert dict(part.boot.pcrs) == {
            int(register): {bytes.fromhex(value)} for register, value in BUILT["pcr"]["sha256"].items()
        }
    assert found.azure_snp.snp.measurements == found.azure_tdx.tdx.mrtd == {b"\xee" * 48}
    assert set(found.azure_snp.snp.minimum_tcb) == {"Genoa/11/1", "Genoa/11/2", "Genoa/a0/2", "Turin/02/1"}
    assert found.azure_tdx.tdx.minimum_tcb_evaluation == 18
    assert (found.tpm.projects, found.tpm.ak_keys) == ({"ours"}, {b"\xff" * 32})


def test_a_clouds_firmware_takes_the_place_of_the_builds_own(
    capsys: pytest.CaptureFixture[str], built: Path
) -> None:
    asked = ("--platform", "tdx", "--tcb-evaluation", "18", "--mrtd", "ab" * 48, "--mrtd", "cd" * 48)
    for file in (built, without(built, "tdx", "mrtd")):
        found = made(capsys, file, *asked)
        assert found.tdx is not None
        assert found.tdx.mrtd == {b"\xab" * 48, b"\xcd" * 48}
        assert found.tdx.rtmrs
    assert "mrtd" in complaint(capsys, built, *asked[:4], "--mrtd", "ab")


def test_a_policy_can_be_made_for_every_platform_there_is() -> None:
    assert set(PLATFORMS) == set(PARTS)


@pytest.mark.parametrize(
    ("names", "arguments", "missing"),
    [
        (("snp_launch_digest",), ("snp",), "snp_launch_digest.by_vcpus"),
        (("snp_launch_digest", "by_vcpus"), ("snp",), "snp_launch_digest.by_vcpus"),
        (("tdx",), ("tdx", "--tcb-evaluation", "18"), "tdx.rtmr"),
        (("tdx", "rtmr"), ("tdx", "--tcb-evaluation", "18"), "tdx.rtmr"),
        (("tdx", "rtmr", "2"), ("tdx", "--tcb-evaluation", "18"), "tdx.rtmr"),
        (("tdx", "mrtd"), ("tdx", "--tcb-evaluation", "18"), "tdx.mrtd"),
        (("uki_sha256",), ("tdx",), "--tcb-evaluation"),
        (("image_digest",), ("gcp", "--audience", "us", "--hardware", "GCP_INTEL_TDX"), "image_digest"),
        (("uki_sha256",), ("gcp", "--hardware", "GCP_INTEL_TDX"), "--audience"),
        (("uki_sha256",), ("gcp", "--audience", "us"), "--hardware"),
        (("nitro",), ("nitro",), "nitro.pcr"),
        (("nitro", "pcr", "0"), ("nitro",), "nitro.pcr.0"),
        (("uki_sha256",), ("azure_snp",), "--paravisor"),
        (("uki_sha256",), ("azure_tdx", "--tcb-evaluation", "18"), "--paravisor"),
        (("uki_sha256",), ("azure_tdx", "--paravisor", "ee" * 48), "--tcb-evaluation"),
        (("pcr", "sha256"), ("azure_snp", "--paravisor", "ee" * 48), "pcr.sha256"),
        (("pcr", "sha256", "4"), ("azure_snp", "--paravisor", "ee" * 48), "pcr.sha256.4"),
        (("pcr",), ("tpm", "--project", "ours"), "pcr.sha256"),
        (("uki_sha256",), ("tpm",), "--ak-key"),
    ],
)
def test_what_a_build_or_a_person_has_not_said_is_named_and_not_filled_in(
    capsys: pytest.CaptureFixture[str],
    built: Path,
    names: tuple[str, ...],
    arguments: tuple[str, ...],
    missing: str,
) -> None:
    """C-22: a policy that pins the firmware, and leaves the program open, is not made."""
    assert missing in complaint(capsys, without(built, *names), "--platform", *arguments)


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("", ("snp",), "not JSON"),
        ("[]", ("snp",), "not a JSON object"),
        (json.dumps(BUILT)[:-9], ("snp",), "cut short, after"),
        (json.dumps({**BUILT, "version": 2}), ("snp",), "of version '2', and version 1 is read here"),
        (json.dumps({**BUILT, "version": True}), ("snp",), "of version 'True'"),
        (json.dumps({**BUILT, "version": [{}] * 99}), ("snp",), "of version '[{}, "),
        (json.dumps({"version": 1, **LEAST}), ("snp",), "this is a policy already"),
        ('{"version": 1, "any_of": []}', ("snp",), "this is a policy already"),
        ("{}", ("rome",), "can be made for"),
        ('{"snp_launch_digest": {"by_vcpus": {"four": "00"}}}', ("snp",), "expected names as"),
        ('{"snp_launch_digest": {"by_vcpus": {"EPYC-Genoa x4": "00"}}}', ("snp",), "48 bytes"),
        ('{"snp_launch_digest": {"by_vcpus": {"EPYC-Genoa x4": 1}}}', ("snp",), "by_vcpus"),
        (
            '{"snp_launch_digest": {"by_vcpus": {"EPYC-Milan x4": "00"}}}',
            ("snp",),
            "nothing for Genoa or Turin",
        ),
        (json.dumps(BUILT), ("snp", "--vcpus", "3"), "with 3 vCPUs"),
        (json.dumps(BUILT), ("gcp", "--audience", "us", "--hardware", "NONE"), "hardware"),
        (json.dumps(BUILT), ("tdx", "--tcb-evaluation", "-1"), "minimum_tcb_evaluation"),
        ("x" * (5 << 20), ("snp",), "larger than"),
    ],
)
def test_measurements_that_make_no_sense_are_told_in_a_line(
    capsys: pytest.CaptureFixture[str], built: Path, text: str, arguments: tuple[str, ...], told: str
) -> None:
    built.write_text(text)
    said = complaint(capsys, built, "--platform", *arguments)
    assert told in said
    assert said.count("\n") == 1


def test_a_file_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nothing.json" in complaint(capsys, tmp_path / "nothing.json", "--platform", "snp")


# --- explain, schema, minimum-tcb ---


def test_a_policy_is_explained_with_what_it_leaves_open(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**policy("snp"), "accept_cached": True}))
    assert run("explain", str(path)) == DONE
    told = capsys.readouterr().out
    for words in (
        "AMD SEV-SNP",
        "trusts\n    AMD, who makes the processor",
        "checks\n    The program is one of 1 measured images.",
        "A Genoa has at least bootloader 10, snp 25, microcode 84.",
        "does not check\n    Sibling threads may run",
        "Any genuine processor passes",
        "again after 0:10:00 (evidence the machine made for others is taken too)",
        "A platform that is not named here is not accepted.",
    ):
        assert words in told


def test_several_policies_in_one_are_explained_each(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"version": 1, "any_of": [{"snp": LEAST["snp"]}, {"tdx": LEAST["tdx"]}]}))
    assert run("explain", str(path)) == DONE
    told = capsys.readouterr().out
    assert "AnyOf 1 of 2: AMD SEV-SNP" in told
    assert "AnyOf 2 of 2: Intel TDX" in told
    assert "accepted if one of these 2 policies accepts it" in told
    assert "by our own nonce" in told


def test_every_launch_that_is_accepted_is_named_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    parts = {
        "snp": {**LEAST["snp"], "measurements": [GENOA_4]},
        "azure_tdx": {**LEAST["azure_tdx"], "tdx": {**LEAST["tdx"], "mrtd": [MRTD]}},
    }
    path.write_text(json.dumps({"version": 1, "all_of": [parts, parts]}))
    assert run("explain", str(path)) == DONE
    told = capsys.readouterr().out
    assert f"Launches that are accepted\n  MRTD {MRTD}\n  measurement {GENOA_4}\n" in told
    assert "accepted if every one of these 2 policies accepts it" in told


def test_a_heading_begins_with_a_capital(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy("tpm")))
    assert run("explain", str(path)) == DONE
    assert capsys.readouterr().out.startswith("The TPM of an ordinary machine")


@pytest.mark.filterwarnings("default::blindbox_attestation.MilanWarning")
def test_a_warning_is_one_line_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy("snp", minimum_tcb={"Milan": LEAST["snp"]["minimum_tcb"]["Genoa"]})))
    assert run("explain", str(path)) == DONE
    told = capsys.readouterr().err
    assert told.startswith("blindbox: warning: this policy accepts EPYC Milan")
    assert told.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_to_tell_of() -> None:
    """As with `| head`; the schema is more than a pipe holds."""
    with subprocess.Popen(
        [sys.executable, "-m", "blindbox.cli", "policy", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.read(1)
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == USAGE


def test_a_file_that_is_no_policy_is_not_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy("snp", measurement=[])))
    assert run("explain", str(path)) == USAGE
    assert "unknown key 'measurement'" in capsys.readouterr().err


def test_the_schema_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == DONE
    assert json.loads(capsys.readouterr().out) == schema()


def test_the_table_of_firmware_is_printed_with_dates_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("minimum-tcb") == DONE
    told = capsys.readouterr().out
    for bulletin in minimum_tcb.BULLETINS:
        assert f"{bulletin.name} ({bulletin.published})" in told
        assert bulletin.quoted_in in told
    assert all(name in told for name in minimum_tcb.WITHOUT_A_NUMBER)
    assert minimum_tcb.COLLECTED in told


def test_the_floors_are_printed_as_a_policy_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("minimum-tcb", "--json") == DONE
    floors = json.loads(capsys.readouterr().out)
    genoa = {name: floor for name, floor in floors.items() if name.startswith("Genoa")}
    assert genoa
    found = read(json.dumps(policy("snp", minimum_tcb=genoa)))
    assert isinstance(found, Policy)
    assert found.snp is not None
    assert all(floor == minimum_tcb.floors()[name] for name, floor in found.snp.minimum_tcb.items())


@pytest.mark.parametrize("arguments", [(), ("explain",), ("from-measurements", "x"), ("invent",)])
def test_half_a_command_is_an_error_with_its_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == USAGE
    assert "usage: blindbox policy" in capsys.readouterr().err
