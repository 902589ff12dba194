"""
The container image made twice: the same digests, and where not, the file that differs.

The second build is made anew from the packages on: a copy of the checkout elsewhere, with the modes that
another umask gives; a storage of its own, so that no layer is taken from the first; another umask, zone,
language and hash seed. What runs inside the build (pip, the compiler of Python, the model's export) is shown
another day by libfaketime. buildah is written in Go and reads the machine's clock past every library: for it,
and for mmdebstrap, which gets no environment of ours, the other time is just the later one.

Both are made on the same processor: that another kind exports the same weights is not shown here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image import base, listing
from image.vm import packages
from tests.kit.debian import need
from tests.kit.image import DEMO, container_image
from tests.kit.vm import small_image

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]


@dataclass(frozen=True, slots=True)
class Storage:
    """Where buildah keeps images: this machine's, or another."""

    environment: dict[str, str]

    @classmethod
    def at(cls, folder: Path) -> Storage:
        """One of its own, which knows no layer of any other."""
        settings = folder / "storage.conf"
        places = f'graphroot = "{folder / "images"}"\nrunroot = "{folder / "run"}"\n'
        settings.write_text(f'[storage]\ndriver = "overlay"\n{places}')
        return cls({"CONTAINERS_STORAGE_CONF": str(settings)})

    def buildah(self, *arguments: str) -> str:
        """Its standard output; an error shows what it said."""
        done = subprocess.run(
            ["buildah", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"buildah {arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def files(self, name: str) -> dict[str, str]:
        """Every file of an image: what it is, whose, and the hash of what is in it."""
        container = self.buildah("from", "--pull-never", name)
        try:
            root = Path(self.buildah("mount", container))
            return {str(path.relative_to(root)): described(path) for path in sorted(root.rglob("*"))}
        finally:
            self.buildah("rm", container)


HERE = Storage({})


def described(path: Path) -> str:
    about = path.lstat()
    found = f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid} at {about.st_mtime:.0f}"
    if stat.S_ISLNK(about.st_mode):
        return f"{found} → {path.readlink()}"
    if stat.S_ISREG(about.st_mode):
        with path.open("rb") as data:
            return f"{found} {hashlib.file_digest(data, 'sha256').hexdigest()}"
    return found


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """What is in one and not so in the other, a line each."""
    return [
        f"/{path}: {ours.get(path, 'not there')}, then {theirs.get(path, 'not there')}"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]


@dataclass(frozen=True, slots=True)
class Build:
    """An image, and what was written beside it."""

    storage: Storage
    folder: Path
    cache: Path  # where it kept what it downloaded and made

    def said(self, file: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / file).read_text())
        return document


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The image that other tests use, too."""
    name, out = container_image(), tmp_path_factory.mktemp("first")
    listing.write(name, os.environ.get("BASE") or base.name(), out)
    return Build(HERE, out, packages.cache(base.PART).parent)


@pytest.fixture(scope="module")
def second(first: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """The same, made anew elsewhere."""
    need("faketime")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    work = tmp_path_factory.mktemp("second")
    storage = Storage.at(work)
    checkout, cache = work / "another folder", work / "cache"
    for part in (".dockerignore", "Dockerfile", "setup.cfg"):
        checkout.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / part, checkout / part)
    for part in ("attestation", "data", "enclave_app", "image", "requirements"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(0o700 if path.is_dir() or path.stat().st_mode & 0o100 else 0o600)
    # Only downloads are handed over: they are known by their hashes.
    debs = packages.cache(base.PART) / "debs"
    if debs.is_dir():
        shutil.copytree(debs, cache / "blindbox" / base.PART / "debs")
    mounts = {library: "/usr/lib/faketime.so", work / "preload": "/etc/ld.so.preload"}
    mounts[work / "faketimerc"] = "/etc/faketimerc"
    (work / "preload").write_text("/usr/lib/faketime.so\n")
    (work / "faketimerc").write_text("+31h\n")
    command = ["sh", str(checkout / "image" / "build.sh"), "--tag", DEMO, "--out", str(work / "out")]
    environment = {
        **os.environ,
        **storage.environment,
        "LC_ALL": "C",
        "PYTHON": sys.executable,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Kathmandu",
        "XDG_CACHE_HOME": str(cache),
    }
    try:
        volumes = [f"--volume={here}:{inside}:ro" for here, inside in mounts.items()]
        done = subprocess.run(
            [*command, *volumes, "--build-arg", "DEMO=1"],
            cwd="/",
            env=environment,
            umask=0o077,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        container = storage.buildah("from", "--pull-never", DEMO)
        clock = storage.buildah("run", "--isolation", "chroot", *volumes, container, "date", "+%s")
        assert int(clock) > time.time() + 30 * 3600, "the build was to be another day, inside"
        storage.buildah("rm", container)
        yield Build(storage, work / "out", cache / "blindbox")
    finally:
        storage.buildah("rm", "--all")
        storage.buildah("rmi", "--all", "--force")
        shutil.rmtree(work, ignore_errors=True)


def test_two_builds_have_the_same_digests(first: Build, second: Build) -> None:
    """S-35: of the manifest, the configuration and each layer."""
    if first.said("image.json") != second.said("image.json"):
        differ = differences(first.storage.files(DEMO), second.storage.files(DEMO))
        pytest.fail("\n".join([f"{first.said('image.json')}", f"{second.said('image.json')}", *differ[:200]]))


def test_two_lists_of_parts_are_the_same(first: Build, second: Build) -> None:
    assert (first.folder / "sbom.cdx.json").read_bytes() == (second.folder / "sbom.cdx.json").read_bytes()


def test_what_is_written_beside_an_image_tells_what_it_is(first: Build) -> None:
    about = first.said("image.json")
    stored = HERE.buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", DEMO)
    assert about["digest"] == stored
    manifest = json.loads(HERE.buildah("inspect", "--type", "image", "--format", "{{.Manifest}}", DEMO))
    assert about["config"] == manifest["config"]["digest"]
    assert about["layers"] == [layer["digest"] for layer in manifest["layers"]]
    assert about["size"] == sum(one["size"] for one in (manifest["config"], *manifest["layers"]))
    assert about["sbom"] == hashlib.sha256((first.folder / "sbom.cdx.json").read_bytes()).hexdigest()
    if "BASE" not in os.environ:
        assert about["base"]["lock"] == hashlib.sha256(base.LOCK.read_bytes()).hexdigest()
    assert {path.name for path in first.folder.iterdir()} == {"image.json", "sbom.cdx.json"}


def test_the_list_of_parts_names_debians_and_pythons_with_their_licences(first: Build) -> None:
    components = {one["name"]: one for one in first.said("sbom.cdx.json")["components"]}
    torch = components["torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version'].replace('+', '%2B')}"
    assert {"uvicorn", "openvino", "transformers", "cryptography"} <= components.keys()
    assert all(components[name].get("licenses") for name in ("torch", "uvicorn", "bash", "zlib1g"))
    if "BASE" not in os.environ:
        pinned = {one.name: one for one in packages.read(base.LOCK)}
        for name in ("bash", "libc6", "python3.11"):
            assert components[name]["version"] == pinned[name].version
            assert components[name]["hashes"] == [{"alg": "SHA-256", "content": pinned[name].sha256}]
    assert not {"apt", "dpkg", "perl-base", "python3-pip"} & components.keys(), "they are not in there"


def test_what_the_build_mounts_leaves_nothing_in_the_image(first: Build) -> None:
    """Where this machine's pip looks would otherwise be part of the measurement."""
    found = HERE.files(DEMO)
    assert not found.keys() & {"etc/pip.conf", "etc/ld.so.preload", "etc/resolv.conf", "etc/hosts", "build"}
    assert {path for path in found if path.startswith("opt/") and path.count("/") == 1} == {"opt/blindbox"}


def test_the_base_made_twice_is_the_same(second: Build) -> None:
    """S-35: installed anew, from the same files of packages."""
    if "BASE" in os.environ:
        pytest.skip("another base was asked for")
    ours = base.tar(packages.read(base.LOCK))
    theirs = second.cache / base.PART / ours.name
    sha256 = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (ours, theirs)]
    assert sha256[0] == sha256[1]


def test_two_images_that_differ_are_told_apart_by_the_file(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting an image's files takes root")
    names = [f"localhost/blindbox-twice-test:{os.getpid()}-{marker}" for marker in "ab"]
    for name, marker in zip(names, "ab", strict=True):
        small_image(name, tmp_path / marker, marker=marker)
    try:
        (line,) = differences(HERE.files(names[0]), HERE.files(names[1]))
    finally:
        HERE.buildah("rmi", "-f", *names)
    assert line.startswith("/marker: -rw-")
    assert hashlib.sha256(b"b").hexdigest() in line
