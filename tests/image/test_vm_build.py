"""The whole build, of an image that is made in a moment: the same bytes twice, all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image.vm import container, packages
from image.vm.build import Wanted, build
from image.vm.container import Image
from image.vm.errors import MissingProgram, UnusableImage, UnusableModels, UnusableOutput
from tests.kit.debian import need
from tests.kit.vm import buildah, pinned_tree, small_image

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).resolve().parents[2]
NAME = f"localhost/blindbox-vm-test:{os.getpid()}"
FILES = {"blindbox.efi", "root.img", "vmlinuz", "initrd", "disk.raw", "sbom.cdx.json", "build.json"}


@pytest.fixture(scope="module", autouse=True)
def root_rights() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting an image's files takes root")


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield small_image(NAME, tmp_path_factory.mktemp("image"))
    buildah("rmi", "-f", NAME)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "a-model").mkdir()
    (folder / "a-model" / "weights").write_bytes(b"w" * 70_000)
    (folder / "a-link").symlink_to("a-model")
    return folder


@pytest.fixture(scope="module")
def built(name: str, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with models and another form of the disk."""
    pinned_tree()
    out = tmp_path_factory.mktemp("built") / "vm"
    build(Wanted(image=name, models=models, forms=("vhd",), out=out, fresh=True))
    return out


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in folder.iterdir():
        with file.open("rb") as data:
            found[file.name] = hashlib.file_digest(data, "sha256").hexdigest()
    return found


def said(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "build.json").read_text())
    return document


def test_two_builds_are_bit_for_bit_the_same(built: Path, name: str, models: Path, tmp_path: Path) -> None:
    """S-35: by another process, with another umask, hash seed, folder, language and zone, at another time."""
    other = tmp_path / "elsewhere"
    shutil.copytree(models, other / "models", symlinks=True)
    for path in (other / "models", *(other / "models").rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
    command = [sys.executable, "-m", "image.vm", "build", "--fresh", "--image", name, "--forms", "vhd"]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, "--models", "models", "--out", "out"],
        cwd=other,
        env=environment,
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert digests(other / "out") == digests(built)
    assert "disk.vhd" in done.stdout, "the time of each step is printed"


def test_from_the_cache_comes_the_same_as_anew(built: Path, name: str, models: Path, tmp_path: Path) -> None:
    build(Wanted(image=name, models=models, out=tmp_path / "vm"))
    ours, theirs = digests(tmp_path / "vm"), digests(built)
    ours.pop("build.json")
    assert ours == {file: theirs[file] for file in ours}


def test_a_build_says_what_it_is_made_of(built: Path, name: str) -> None:
    document = said(built)
    assert {*document["files"], "build.json"} == FILES | {"models.img", "disk.vhd"}
    for file, about in document["files"].items():
        assert about["size"] == (built / file).stat().st_size
        assert about["sha256"] == digests(built)[file]
    assert document["image"]["command"] == ["/bin/it", "it's", "$HOME"]
    assert "A=b c" in document["image"]["environment"]
    stored = buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", name)
    assert document["image"]["digest"] == stored
    line = document["command_line"]
    for volume in ("root", "models"):
        about = document[volume]
        assert f"blindbox.{volume}={about['hash']},{about['salt']},{about['blocks']}" in line.split()
    assert line.encode() in (built / "blindbox.efi").read_bytes()
    assert document["kernel"] in {one["name"].removeprefix("linux-image-") for one in document["packages"]}


def test_veritysetup_accepts_the_volumes_of_a_build(built: Path) -> None:
    need("veritysetup", "cryptsetup-bin")
    for name in ("root", "models"):
        about, file = said(built)[name], built / f"{name}.img"
        command = [
            "veritysetup",
            "verify",
            file,
            file,
            about["hash"],
            f"--hash-offset={about['blocks'] * 4096}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_root_has_what_a_machine_needs(built: Path) -> None:
    command = [*pinned_tree().program("usr/bin/unsquashfs"), "-lln", built / "root.img"]
    listed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    for line in (
        r"drwxrwxrwt 0/0 .* squashfs-root/tmp",
        r"drwx------ 0/0 .* squashfs-root/var/lib/blindbox",
        r"drwxr-xr-x 0/0 .* squashfs-root/models",
        r"dr-xr-xr-x 0/0 .* squashfs-root/proc",
        r"lrwxrwxrwx 0/0 .* squashfs-root/etc/resolv.conf -> /run/resolv.conf",
        r"-rw-r--r-- 0/0 .* squashfs-root/etc/hosts",
    ):
        assert re.search(f"^{line}$", listed, re.MULTILINE), (line, listed)


def test_the_list_of_parts_names_the_images_and_the_machines(built: Path) -> None:
    listed = json.loads((built / "sbom.cdx.json").read_text())
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    assert uuid.UUID(listed["serialNumber"].removeprefix("urn:uuid:"))
    components = {one["bom-ref"]: one for one in listed["components"]}
    assert "pkg:deb/debian/nothing@1%3A2.0%2Bb1?arch=amd64" in components
    assert components["pkg:pypi/some-thing@3"]["licenses"] == [{"expression": "MIT"}]
    for package in packages.read():
        assert (package.purl in components) == package.inside
    tools = {one["bom-ref"] for one in listed["metadata"]["tools"]["components"]}
    assert tools == {package.purl for package in packages.read() if not package.inside}
    assert components["models"]["hashes"][0]["content"] == said(built)["models"]["hash"]
    assert listed["dependencies"] == [{"ref": "blindbox", "dependsOn": sorted(components)}]


def test_another_image_is_another_root(built: Path, tmp_path: Path) -> None:
    """One byte of one file: the root's hash, and with it the measured program, are others."""
    other = small_image(f"{NAME}-other", tmp_path / "image", marker="x")
    try:
        build(Wanted(image=other, out=tmp_path / "vm", fresh=True))
    finally:
        buildah("rmi", "-f", other)
    assert said(tmp_path / "vm")["root"]["hash"] != said(built)["root"]["hash"]
    assert said(tmp_path / "vm")["image"]["digest"] != said(built)["image"]["digest"]
    assert digests(tmp_path / "vm")["blindbox.efi"] != digests(built)["blindbox.efi"]
    assert said(tmp_path / "vm")["models"] is None
    assert "blindbox.models" not in said(tmp_path / "vm")["command_line"]


# ── what is refused, and what is left then ──────────────────────────────────────────────────────────


def test_a_build_that_fails_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    pinned_tree()
    out = tmp_path / "vm"
    build(Wanted(image=name, out=out))
    before = digests(out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnusableModels, match="holds no file"):
        build(Wanted(image=name, models=tmp_path / "empty", out=out))
    assert digests(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vm.lock", "empty", "vm"]


def test_a_folder_that_is_no_build_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "thesis.txt").write_text("years of work")
    with pytest.raises(UnusableOutput, match="not the folder of a build"):
        build(Wanted(image=name, out=tmp_path / "vm"))
    assert (tmp_path / "vm" / "thesis.txt").read_text() == "years of work"


def test_models_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    pinned_tree()
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "weights").symlink_to("/etc/passwd")
    with pytest.raises(UnusableModels, match="leads out of"):
        build(Wanted(image=name, models=folder, out=tmp_path / "vm"))
    (folder / "weights").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnusableModels, match="neither a file nor a folder"):
        build(Wanted(image=name, models=folder, out=tmp_path / "vm"))
    with pytest.raises(UnusableModels, match="is not a folder"):
        build(Wanted(image=name, models=folder / "pipe", out=tmp_path / "vm"))
    assert not (tmp_path / "vm").exists()


def test_an_unknown_image_or_form_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned_tree()
    from image.vm.__main__ import main

    out = str(tmp_path / "vm")
    assert main(["build", "--image", "localhost/there-is-no-such:image", "--out", out]) == 1
    assert "localhost/there-is-no-such:image" in capsys.readouterr().err
    assert main(["build", "--forms", "vhd,vmdk", "--out", out]) == 1
    assert "vmdk is no form of a disk; there are vhd, tar.gz" in capsys.readouterr().err


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(
        MissingProgram, match=r"buildah is not installed here \(Debian: apt-get install buildah\)"
    ):
        container.inspect("localhost/blindbox:latest")


def inspected(**changes: Any) -> str:
    """What buildah says of an image, with a change."""
    config = {"User": "65532", "Cmd": ["/bin/it"], "Env": ["A=b"], "WorkingDir": "/opt"}
    about = {"os": "linux", "architecture": "amd64", "config": config}
    config.update(changes.pop("config", {}))
    about.update(changes.pop("about", {}))
    return json.dumps({"Manifest": "{}", "OCIv1": about, **changes})


def test_an_images_word_about_itself_is_read() -> None:
    found = container.read("name", inspected(config={"Entrypoint": ["/bin/sh", "-c"]}))
    digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}"
    assert found == Image("name", digest, ("A=b",), ("/bin/sh", "-c", "/bin/it"), "/opt")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        (inspected(OCIv1=None), "cannot be read"),
        (inspected(config={"Cmd": "/bin/it"}), "cannot be read"),
        (inspected(config={"Env": [1]}), "cannot be read"),
        (inspected(Manifest=""), "no manifest"),
        (inspected(about={"architecture": "arm64"}), "linux/arm64; the machine is linux/amd64"),
        (inspected(config={"User": ""}), "runs as user ''"),
        (inspected(config={"User": "0"}), "runs as user '0'"),
        (inspected(config={"Cmd": None}), "no command"),
        (inspected(config={"WorkingDir": "../.."}), "not the plain path"),
        (inspected(config={"WorkingDir": "/opt/../etc"}), "not the plain path"),
    ],
)
def test_an_image_that_cannot_be_a_machine_is_refused(said: str, why: str) -> None:
    with pytest.raises(UnusableImage, match=re.escape(why)):
        container.read("name", said)


@pytest.mark.parametrize("name", ["--help", "", "a b", "../x", "a" * 300])
def test_a_name_that_no_image_has_is_not_handed_on(name: str) -> None:
    with pytest.raises(UnusableImage, match="not an image's name"):
        container.inspect(name)


def bootable(root: Path) -> None:
    for program in ("usr/bin/env", "usr/bin/setpriv"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).touch(mode=0o755)


AN_IMAGE = Image("name", "sha256:0", (), ("/bin/it",), "/")


@pytest.mark.parametrize("path", ["etc", "var", "tmp", "proc", "var/lib", "var/lib/blindbox"])
def test_a_link_in_the_image_leads_no_build_out_of_it(tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    bootable(root)
    outside.mkdir()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(outside)
    with pytest.raises(UnusableImage, match=f"/{path} of name is not a folder"):
        container.make_bootable(root, AN_IMAGE, ("usr/bin/env",))
    assert not any(outside.iterdir())


def test_a_link_in_place_of_a_file_that_is_written_is_replaced_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    bootable(root)
    outside.write_text("untouched")
    (root / "etc").mkdir()
    for file in ("hosts", "resolv.conf"):
        (root / "etc" / file).symlink_to(outside)
    container.make_bootable(root, AN_IMAGE, ("usr/bin/env",))
    assert outside.read_text() == "untouched"
    assert (root / "etc/hosts").read_text() == container.HOSTS
    assert (root / "etc/resolv.conf").readlink() == Path("/run/resolv.conf")


def test_an_image_without_what_starts_its_command_is_refused(tmp_path: Path) -> None:
    bootable(tmp_path)
    (tmp_path / "usr/bin/setpriv").chmod(0o644)
    with pytest.raises(UnusableImage, match="no program /usr/bin/setpriv"):
        container.make_bootable(tmp_path, AN_IMAGE, ("usr/bin/env", "usr/bin/setpriv"))
    (tmp_path / "usr/bin/setpriv").unlink()
    (tmp_path / "usr/bin/setpriv").symlink_to("env")
    with pytest.raises(UnusableImage, match="reached by a link"):
        container.make_bootable(tmp_path, AN_IMAGE, ("usr/bin/env", "usr/bin/setpriv"))
