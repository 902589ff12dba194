"""`python -m image.measure`: from a build to a file, to a policy, and to a verdict on another file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from blindbox import cli
from blindbox_attestation.policy import Policy
from blindbox_attestation.policy import read as read_policy
from enclave_app.settings import Settings
from image.measure import document
from image.measure.__main__ import DIFFERS, SAME, UNREADABLE, main
from image.measure.build import Build
from tests.kit import tpm
from tests.kit.uefi import COMMAND_LINE, SNP_SECTIONS, disk, ovmf, uki

DIGEST = f"sha256:{'1' * 64}"
ENVIRONMENT = ["PATH=/usr/bin", "BLINDBOX_MODEL=/models/tiny", "BLINDBOX_ENGINE=openvino"]
MODELS = f"blindbox.models={'12' * 32},{'34' * 32},99"


def build(folder: Path, command_line: str = COMMAND_LINE, **about: Any) -> Path:
    """What a build leaves behind, as small as it can be."""
    folder.mkdir(exist_ok=True)
    program = uki(cmdline=command_line.encode())
    (folder / "blindbox.efi").write_bytes(program)
    (folder / "disk.raw").write_bytes(disk(program))
    told = {
        "version": 1,
        "release": "1.2.3",
        "image": {"digest": DIGEST, "environment": ENVIRONMENT, "command": ["run"]},
        "command_line": command_line,
        "anything": [1],
        **about,
    }
    (folder / "build.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    return build(tmp_path / "vm")


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(ovmf())
    return path


def predicted(vm: Path, out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["predict", "--vm", str(vm), "--out", str(out), *arguments]) == SAME
    return document.read(out)


def whole(vm: Path, firmware: Path, out: Path) -> dict[str, Any]:
    return predicted(vm, out, "--firmware-snp", str(firmware), "--firmware-tdx", str(firmware))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == UNREADABLE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_everything_is_measured_from_the_files_of_a_build(vm: Path, firmware: Path, tmp_path: Path) -> None:
    found = whole(vm, firmware, tmp_path / "measurements.json")
    program = (vm / "blindbox.efi").read_bytes()
    assert found["release"] == "1.2.3"
    assert found["image_digest"] == DIGEST
    assert found["root"] == {"hash": "ab" * 32, "salt": "cd" * 32, "blocks": 4321}
    assert found["models"] is None
    assert found["command_line"] == COMMAND_LINE
    assert found["uki"]["sha384"] == hashlib.sha384(program).hexdigest()
    assert found["disk"]["sha256"] == hashlib.sha256((vm / "disk.raw").read_bytes()).hexdigest()
    assert found["pcr"]["sha384"]["12"] == "00" * 48
    assert len(found["snp_launch_digest"]["by_vcpus"]) == 192
    assert set(found["tdx"]) == {"firmware_sha256", "mrtd", "rtmr"}


def test_the_digest_of_the_settings_is_what_the_enclave_attests_of_the_images_own(
    vm: Path, tmp_path: Path
) -> None:
    """S-31: a setting beyond the image's own is another config_digest."""
    own = {"BLINDBOX_MODEL": "/models/tiny", "BLINDBOX_ENGINE": "openvino"}
    found = predicted(vm, tmp_path / "m.json")["settings"]["config_digest"]
    assert found == Settings.from_environ(own).digest().hex()
    assert found != Settings.from_environ({**own, "BLINDBOX_PORT": "8080"}).digest().hex()


def test_a_volume_of_models_shows_in_the_file_and_in_every_register(vm: Path, tmp_path: Path) -> None:
    """S-29: other weights are another measurement."""
    without = predicted(vm, tmp_path / "a.json")
    with_models = predicted(build(tmp_path / "b", f"{COMMAND_LINE} {MODELS}"), tmp_path / "b.json")
    other = predicted(build(tmp_path / "c", f"{COMMAND_LINE} {MODELS[:-2]}98"), tmp_path / "c.json")
    assert with_models["models"] == {"hash": "12" * 32, "salt": "34" * 32, "blocks": 99}
    for register in ("4", "11"):
        assert len({one["pcr"]["sha256"][register] for one in (without, with_models, other)}) == 3


def test_parts_whose_firmware_is_not_given_are_left_out_and_said_so(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(vm, tmp_path / "m.json")
    assert "snp_launch_digest" not in found
    assert set(found["tdx"]) == {"rtmr"}
    assert capsys.readouterr().err.splitlines() == [
        "left out: snp_launch_digest, for want of --firmware-snp",
        "left out: tdx.mrtd, for want of --firmware-tdx",
    ]


def test_without_a_file_to_write_it_is_printed(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--vm", str(vm)]) == SAME
    assert document.parse(capsys.readouterr().out.encode())["image_digest"] == DIGEST


def test_two_builds_of_the_same_bytes_are_the_same_file(vm: Path, firmware: Path, tmp_path: Path) -> None:
    whole(vm, firmware, tmp_path / "a.json")
    whole(build(tmp_path / "another"), firmware, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("platform", "arguments"),
    [
        ("snp", ()),
        ("tdx", ("--tcb-evaluation", "18")),
        ("tpm", ("--ak-key", "ab" * 32)),
        ("azure_snp", ("--paravisor", "cd" * 48)),
        ("gcp", ("--audience", "blindbox", "--hardware", "GCP_INTEL_TDX")),
    ],
)
def test_the_file_becomes_a_policy_for_each_platform(
    vm: Path,
    firmware: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    platform: str,
    arguments: tuple[str, ...],
) -> None:
    """C-6: what a client refuses to do without are the predicted values, and no others."""
    path = tmp_path / "measurements.json"
    found = whole(vm, firmware, path)
    assert cli.main(["policy", "from-measurements", str(path), "--platform", platform, *arguments]) == 0
    policy = read_policy(capsys.readouterr().out)
    assert isinstance(policy, Policy)
    told = policy.to_json()
    launches = found["snp_launch_digest"]["by_vcpus"].items()
    wanted = {
        "snp": {digest for name, digest in launches if not name.startswith("EPYC-Milan")},
        "tdx": {found["tdx"]["mrtd"], *found["tdx"]["rtmr"].values()},
        "tpm": set(found["pcr"]["sha256"].values()),
        "azure_snp": set(found["pcr"]["sha256"].values()),
        "gcp": {found["image_digest"]},
    }
    assert all(value in told for value in wanted[platform])
    assert not any(digest in told for name, digest in launches if name.startswith("EPYC-Milan"))


def test_comparing_says_yes_or_what_differs(
    vm: Path, firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-35: anybody can rebuild and compare."""
    published, here = tmp_path / "published.json", tmp_path / "here.json"
    whole(vm, firmware, published)
    whole(vm, firmware, here)
    assert main(["compare", str(published), str(here)]) == SAME
    assert "agree in every value" in capsys.readouterr().out
    whole(build(tmp_path / "other", COMMAND_LINE.replace("panic=-1", "panic=-2")), firmware, here)
    assert main(["compare", str(published), str(here)]) == DIFFERS
    told = capsys.readouterr().out
    assert "the kernel's command line (command_line): its other words" in told
    assert "the unified kernel image (uki): it follows from the kernel's command line" in told
    assert "192 of 192 differ" in told
    assert "container image" not in told


def test_comparing_with_no_measurements_is_an_error_in_a_line(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here.json"
    predicted(vm, here)
    capsys.readouterr()
    cut = tmp_path / "cut.json"
    cut.write_bytes(here.read_bytes()[:-3])
    assert "cut short" in complaint(capsys, "compare", str(cut), str(here))
    assert "build.json: these are not the measurements" in complaint(
        capsys, "compare", str(vm / "build.json"), str(here)
    )
    assert "nothing.json: No such file" in complaint(
        capsys, "compare", str(here), str(tmp_path / "nothing.json")
    )


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("blindbox.efi", None, "blindbox.efi: there is no such file; `make vm` makes a build"),
        ("disk.raw", None, "disk.raw: there is no such file"),
        ("build.json", None, "build.json: there is no such file"),
        ("blindbox.efi", b"", "blindbox.efi: it begins with b''"),
        ("blindbox.efi", uki()[:-700], "blindbox.efi: its section"),
        ("blindbox.efi", uki(cmdline=b"console=ttyS0"), "these are two builds"),
        ("disk.raw", b"", "disk.raw: it is shorter than two sectors"),
        ("disk.raw", disk(uki(osrel=b"another")), "disk.raw: blindbox.efi is not on it"),
        ("disk.raw", disk(uki())[:9000], "cut short"),
        ("build.json", b"{", "build.json: not JSON"),
        ("build.json", b"{}", "build.json: it is of version 'None', wanted 1"),
        ("build.json", b'{"version": 2, "release": "1"}', "of version '2'"),
        ("build.json", b'{"version": 1}', "release is not a string"),
        ("build.json", b'{"version": 1, "release": "1"}', "does not tell of the container image"),
        (
            "build.json",
            b'{"version": 1, "release": "1", "image": {"digest": 1}}',
            "image.digest is not a string",
        ),
        (
            "build.json",
            b'{"version": 1, "release": "1", "image": {"digest": ""}}',
            "image.environment is not a",
        ),
    ],
)
def test_a_build_that_is_not_whole_is_told_by_its_file_and_nothing_is_written(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, told: str
) -> None:
    (vm / name).unlink()
    if data is not None:
        (vm / name).write_bytes(data)
    out = tmp_path / "out" / "measurements.json"
    out.parent.mkdir()
    assert told in complaint(capsys, "predict", "--vm", str(vm), "--out", str(out))
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("command_line", "told"),
    [
        ("console=ttyS0", "has nothing for blindbox.root"),
        (f"{COMMAND_LINE} {COMMAND_LINE.split()[-1]}", "wanted one HASH,SALT,BLOCKS"),
        ("blindbox.root=abc", "has abc for blindbox.root"),
        (f"{COMMAND_LINE} blindbox.models=", "for blindbox.models"),
        (f"{COMMAND_LINE} {MODELS.replace(',99', ',099')}", "for blindbox.models"),
    ],
)
def test_a_command_line_that_names_no_volume_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command_line: str, told: str
) -> None:
    vm = build(tmp_path / "vm", command_line)
    assert told in complaint(capsys, "predict", "--vm", str(vm))


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (["BLINDBOX_PORT=notaport"], "BLINDBOX_PORT must be"),
        (["BLINDBOX_NEW=1"], "BLINDBOX_NEW is not a setting"),
        (["BLINDBOX_PORT"], "not a list of NAME=VALUE"),
        ("PATH=/", "image.environment is not a list"),
    ],
)
def test_an_image_whose_own_environment_is_refused_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environment: object, told: str
) -> None:
    """S-31: an image that could not start has no measurements."""
    vm = build(tmp_path / "vm", image={"digest": DIGEST, "environment": environment})
    assert main(["predict", "--vm", str(vm)]) == UNREADABLE
    assert told in capsys.readouterr().err


def test_firmware_that_cannot_be_used_is_told_by_its_file(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.fd"
    plain.write_bytes(ovmf(snp=SNP_SECTIONS[:-1], tdx=None))
    for option, why in (("--firmware-snp", "no page for the kernel's hashes"), ("--firmware-tdx", "for TDX")):
        told = complaint(capsys, "predict", "--vm", str(vm), option, str(plain))
        assert told.startswith(f"image.measure: {plain}: ")
        assert why in told


# --- a log ---


def logged(vm: Path) -> bytes:
    """A log of the boot of this build; its events' kinds and words do not matter here."""
    boot = [
        tpm.Measurement(
            one.register,
            tpm.IPL,
            b"",
            one.source if isinstance(one.source, bytes) else b"".join(covered(one.source.data)),
        )
        for one in Build.read(vm).boot
    ]
    return tpm.log_of(boot, banks=("sha256", "sha384"))


def covered(program: bytes) -> tuple[bytes, ...]:
    return program[: 0x98 + 64], program[0x98 + 68 : 0x98 + 144], program[0x98 + 152 :]


def test_a_log_gives_the_predicted_registers_and_says_which_event_is_another(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C-6: what was started instead is named."""
    log = tmp_path / "log"
    log.write_bytes(logged(vm))
    found = predicted(vm, tmp_path / "m.json")
    capsys.readouterr()
    assert main(["log", "--event-log", str(log), "--vm", str(vm)]) == SAME
    told = capsys.readouterr()
    assert json.loads(told.out) == {"pcr": found["pcr"], "tdx": found["tdx"]}
    assert told.err == "every event is as predicted\n"
    other = build(tmp_path / "other", COMMAND_LINE + " quiet")
    assert main(["log", "--event-log", str(log), "--vm", str(other)]) == DIFFERS
    told = capsys.readouterr()
    assert "PCR 9 (sha256), event 1: wanted the command line" in told.err
    assert main(["log", "--event-log", str(log)]) == SAME


def test_a_log_that_cannot_be_read_is_told(
    vm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_bytes(logged(vm)[:-1])
    assert "cut short" in complaint(capsys, "log", "--event-log", str(log))
    assert "No such file" in complaint(capsys, "log", "--event-log", str(tmp_path / "nothing"))
