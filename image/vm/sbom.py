"""
The list of everything in a machine: Debian's packages and Python's in the image, and what boots it.

Format: CycloneDX 1.6 (ECMA-424), JSON; packages are named by package URL. It holds no time, and its number
follows from what it lists, so that the same machine has the same list.
"""

from __future__ import annotations

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
    """The list, as text."""
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
    listed = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": machine, "tools": {"components": tools}},
        "components": [components[name] for name in sorted(components)],
        "dependencies": [{"ref": "blindbox", "dependsOn": sorted(components)}],
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
            yield _component(fields["Package"], fields["Version"], purl)


def _python(root: Path) -> Iterable[Component]:
    for file in sorted(root.glob("**/*.dist-info/METADATA")):
        about = email.parser.HeaderParser().parsestr(_text(file))
        if about["Name"] and about["Version"]:
            name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
            purl = f"pkg:pypi/{quote(name, safe='')}@{quote(about['Version'], safe='')}"
            found = _component(name, about["Version"], purl)
            if about["License-Expression"]:
                found["licenses"] = [{"expression": about["License-Expression"]}]
            yield found


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
