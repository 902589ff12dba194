"""What is written beside an image: licences as packages state them, hashes of what was pinned, or nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image import listing
from image.vm import sbom
from image.vm.container import Image
from image.vm.packages import Package
from tests.kit.vm import buildah, small_image

AN_IMAGE = Image("name", "sha256:0", (), ("/bin/it",), "/")
FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


def debian(root: Path, name: str, version: str = "1") -> Path:
    """A package that dpkg names; gives the folder of its documents, which is not there yet."""
    status = root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    with status.open("a") as file:
        file.write(
            f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n\n"
        )
    documents = root / "usr/share/doc" / name
    documents.parent.mkdir(parents=True, exist_ok=True)
    return documents


def python(root: Path, name: str, *lines: str) -> None:
    about = root / f"opt/{name}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1", *lines, ""])
    )


def licenses(root: Path, name: str) -> Any:
    (found,) = (one for one in sbom.of_root(root) if one["name"] == name)
    return found.get("licenses")


def test_licences_of_debian_packages_are_those_of_their_copyright_files(tmp_path: Path) -> None:
    documents = debian(tmp_path, "a")
    documents.mkdir()
    (documents / "copyright").write_text(
        FORMAT + "Files: *\nLicense: MIT\n\nFiles: x\nLicense:  GPL-2+\n text\n"
    )
    debian(tmp_path, "b").symlink_to("a")
    expected = [{"license": {"name": "GPL-2+"}}, {"license": {"name": "MIT"}}]
    assert licenses(tmp_path, "a") == expected
    assert licenses(tmp_path, "b") == expected


@pytest.mark.parametrize("text", ["License: MIT\n", "", "Copyright: me\nLicense: x\n"])
def test_a_copyright_file_for_people_names_no_licence(tmp_path: Path, text: str) -> None:
    documents = debian(tmp_path, "a")
    documents.mkdir()
    (documents / "copyright").write_text(text)
    assert licenses(tmp_path, "a") is None


@pytest.mark.parametrize("link", ["../../../../outside", "/outside", ".."])
def test_a_link_in_an_image_leads_the_list_nowhere(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "copyright").write_text(FORMAT + "License: stolen\n")
    debian(root, "a").symlink_to(str(outside) if link.startswith("/") else link)
    assert licenses(root, "a") is None
    documents = debian(root, "b")
    documents.mkdir()
    (documents / "copyright").symlink_to(outside / "copyright")
    assert licenses(root, "b") is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("License-Expression: MIT OR Apache-2.0", "License: x"), [{"expression": "MIT OR Apache-2.0"}]),
        (("License: BSD",), [{"license": {"name": "BSD"}}]),
        (
            ("License: " + "long " * 30, "Classifier: License :: OSI Approved :: MIT License"),
            [{"license": {"name": "MIT License"}}],
        ),
        (("Classifier: Topic :: Security",), None),
    ],
)
def test_licences_of_python_packages_are_what_their_metadata_say(
    tmp_path: Path, lines: tuple[str, ...], expected: Any
) -> None:
    python(tmp_path, "a", *lines)
    assert licenses(tmp_path, "a") == expected


def test_only_what_was_pinned_has_the_hash_of_its_file(tmp_path: Path) -> None:
    debian(tmp_path, "a")
    debian(tmp_path, "b", "2")
    python(tmp_path, "a")
    base = [Package("a", "1", "0" * 64), Package("b", "1", "1" * 64)]
    said = sbom.of_image(release="1", image=AN_IMAGE, in_root=sbom.of_root(tmp_path), base=base)
    hashes = {one["purl"]: one.get("hashes") for one in json.loads(said)["components"]}
    assert hashes == {
        "pkg:deb/debian/a@1?arch=amd64": [{"alg": "SHA-256", "content": "0" * 64}],
        "pkg:deb/debian/b@2?arch=amd64": None,
        "pkg:pypi/a@1": None,
    }


# ── of an image that is there ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("mounting an image's files takes root")
    name = small_image(f"localhost/blindbox-listing-test:{os.getpid()}", tmp_path_factory.mktemp("image"))
    yield name
    buildah("rmi", "-f", name)


def test_both_files_are_for_everybody_and_replace_older_ones(name: str, tmp_path: Path) -> None:
    out = tmp_path / "dist" / "image"
    mask = os.umask(0o077)
    try:
        assert listing.main([name, "--out", str(out)]) == 0
    finally:
        os.umask(mask)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert before.keys() == {"image.json", "sbom.cdx.json"}
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}
    assert json.loads(before["image.json"])["base"] == {"name": "", "lock": None}
    (out / "image.json").write_text("old")
    assert listing.main([name, "--out", str(out)]) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_what_cannot_be_written_is_told_in_a_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert listing.main([name, "--out", str(tmp_path / "file")]) == 1
    assert re.fullmatch(r"not done: \S+/file cannot be written to: File exists\n", capsys.readouterr().err)
    (tmp_path / "out" / "image.json").mkdir(parents=True)
    assert listing.main([name, "--out", str(tmp_path / "out")]) == 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"image.json", "sbom.cdx.json"}


def test_an_image_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert listing.main([f"{name}-not", "--out", str(tmp_path)]) == 1
    assert f"buildah shows no image {name}-not" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
