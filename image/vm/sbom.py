"""
The list of everything in an image or a machine: Debian's packages and Python's, and what boots it.

Format: CycloneDX 1.6 (ECMA-424), JSON; packages are named by package URL. It holds no time, and its number
follows from what it lists, so that the same bytes have the same list.
"""

from __future__ import annotations

import email.message
import email.parser
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from .container import Image
from .packages import Package
from .verity import Volume

Component = dict[str, Any]

_NAMES: Final = uuid.UUID(
    "f0c7a6a4-2e0b-5d0c-9a67-6f1f8a4f5e19"
)  # of the serial numbers made here, chosen once

_SHORT: Final = 100  # characters of what is a licence's name and not its text


def of_root(root: Path) -> list[Component]:
    """What a root file system says that it is made of: dpkg's list, the metadata beside Python packages."""
    return sorted([*_debian(root), *_python(root)], key=lambda one: str(one["bom-ref"]))


def document(
    *,
    release: str,
    image: Image,
    root: Volume,
    models: Volume | None,
    in_root: Sequence[Component],
    packages: Iterable[Package],
) -> str:
    """The list of a machine, as text."""
    pinned = list(packages)
    components = {
        str(one["bom-ref"]): one for one in [*map(_boots, [p for p in pinned if p.inside]), *in_root]
    }
    if models is not None:
        components["models"] = {
            "type": "data",
            "bom-ref": "models",
            "name": "models",
            "hashes": [{"alg": "SHA-256", "content": models.root_hash}],
            "description": "a volume of models; the hash is the root of its dm-verity tree",
        }
    machine = {
        "type": "operating-system",
        "bom-ref": "blindbox",
        "name": "blindbox",
        "version": release,
        "properties": [
            {"name": "blindbox:image", "value": image.digest},
            {"name": "blindbox:root", "value": root.root_hash},
        ],
    }
    tools = [_boots(package) for package in pinned if not package.inside]
    return listing(machine, components.values(), tools)


def of_image(*, release: str, image: Image, in_root: Sequence[Component], base: Iterable[Package]) -> str:
    """The list of a container image, as text. What came from `base` is known by the hash of its file."""
    hashes = {(one.name, one.version): one.sha256 for one in base}
    components = []
    for one in in_root:
        sha256 = hashes.get((one["name"], one["version"])) if one["purl"].startswith("pkg:deb/") else None
        known = {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}
        components.append({**one, **known})
    subject = {
        "type": "container",
        "bom-ref": "blindbox",
        "name": "blindbox",
        "version": release,
        "properties": [{"name": "blindbox:image", "value": image.digest}],
    }
    return listing(subject, components)


def listing(subject: Component, components: Iterable[Component], tools: Sequence[Component] = ()) -> str:
    """What the subject is made of, and with, as CycloneDX."""
    named = {str(one["bom-ref"]): one for one in components}
    about: Component = {"component": subject}
    if tools:
        about["tools"] = {"components": tools}
    listed = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": about,
        "components": [named[name] for name in sorted(named)],
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": sorted(named)}],
    }
    number = uuid.uuid5(_NAMES, json.dumps(listed, sort_keys=True))
    return json.dumps({"serialNumber": f"urn:uuid:{number}", **listed}, indent=1, sort_keys=True) + "\n"


def _boots(package: Package) -> Component:
    """A pinned package: known by the hash of its file."""
    return {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
    }


def _debian(root: Path) -> Iterable[Component]:
    release = _os_release(root)
    distro = f"&distro={quote(release)}" if release else ""
    for file in (root / "var/lib/dpkg/status", *sorted((root / "var/lib/dpkg/status.d").glob("*"))):
        for stanza in _text(file).split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
            # Images without dpkg keep stanzas of what they hold in status.d, and say nothing of a status.
            if "Package" not in fields or not fields.get("Status", "install ok installed").endswith(
                " installed"
            ):
                continue
            name, version = quote(fields["Package"], safe=""), quote(fields["Version"], safe="")
            purl = f"pkg:deb/debian/{name}@{version}?arch={fields.get('Architecture', 'all')}{distro}"
            found = _component(fields["Package"], fields["Version"], purl)
            licenses = _debian_licenses(root / "usr/share/doc" / name / "copyright")
            yield {**found, "licenses": licenses} if licenses else found


def _python(root: Path) -> Iterable[Component]:
    for file in sorted(root.glob("**/*.dist-info/METADATA")):
        about = email.parser.HeaderParser().parsestr(_text(file))
        if about["Name"] and about["Version"]:
            name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
            purl = f"pkg:pypi/{quote(name, safe='')}@{quote(about['Version'], safe='')}"
            found = _component(name, about["Version"], purl)
            licenses = _python_licenses(about)
            yield {**found, "licenses": licenses} if licenses else found


def _debian_licenses(file: Path) -> list[Component]:
    """The short names in a copyright file that a machine can read: Debian's copyright-format 1.0."""
    if file.parent.is_symlink() and "/" not in (beside := str(file.parent.readlink())):
        file = file.parent.with_name(beside) / file.name  # of another package of the same source
    text = _text(file) if not file.parent.is_symlink() else ""
    if "copyright-format/1.0" not in text.partition("\n")[0]:
        return []
    return _names(re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))


def _python_licenses(about: email.message.Message) -> list[Component]:
    """An expression where there is one (PEP 639), a short text, or the classifiers."""
    if about["License-Expression"]:
        return [{"expression": about["License-Expression"]}]
    said = str(about["License"] or "").strip()
    if said and len(said.splitlines()) == 1 and len(said) <= _SHORT:
        return _names([said])
    classifiers = [str(one).split(" :: ") for one in about.get_all("Classifier", [])]
    return _names([parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 1])


def _names(names: Iterable[str]) -> list[Component]:
    return [{"license": {"name": name}} for name in sorted({one.strip() for one in names})]


def _component(name: str, version: str, purl: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _os_release(root: Path) -> str:
    """debian-12, say; "" where the image does not tell."""
    said: Mapping[str, str] = dict(
        re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', _text(root / "usr/lib/os-release"), re.M)
    )
    return f"{said['ID']}-{said['VERSION_ID']}" if {"ID", "VERSION_ID"} <= said.keys() else ""


def _text(file: Path) -> str:
    """A file of the image; "" where there is none, or a link that might lead out of it."""
    try:
        return "" if file.is_symlink() else file.read_text("utf-8", "replace")
    except OSError:
        return ""
