"""
The list of parts: CycloneDX 1.6 (ECMA-424), JSON, as `image/vm/sbom.py` writes it for the machine.

It holds no time, and its number follows from what it lists.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from image.vm.packages import RELEASE, Package, SourceFile

_NAMES: Final = uuid.UUID(
    "5d1b9e7c-7f0e-5b7e-8e0a-5e6c2f1d9a34"
)  # of the serial numbers made here, chosen once


def document(
    pinned: Sequence[SourceFile],
    made_with: Sequence[Package],
    patches: Sequence[str],
    files: Mapping[str, str],
) -> str:
    """The list, as text; `files` is a name → its SHA-256."""
    package, version = pinned[0].package, pinned[0].version
    source = (
        f"pkg:deb/debian/{quote(package, safe='')}@{quote(version, safe='')}?arch=source&distro={RELEASE}"
    )
    listed: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "firmware",
                "bom-ref": "firmware",
                "name": "blindbox-firmware",
                "version": version,
            },
            "tools": {"components": [_component("application", one) for one in made_with]},
        },
        "components": [
            {
                "type": "library",
                "bom-ref": source,
                "name": package,
                "version": version,
                "purl": source,
                "pedigree": {
                    "patches": [{"type": "unofficial"} for _ in patches],
                    "notes": ", ".join(patches),
                },
                "properties": [{"name": f"blindbox:{one.name}", "value": one.sha256} for one in pinned],
            },
            *(
                {
                    "type": "firmware",
                    "bom-ref": name,
                    "name": name,
                    "version": version,
                    "hashes": [{"alg": "SHA-256", "content": files[name]}],
                }
                for name in sorted(files)
            ),
        ],
        "dependencies": [
            {"ref": "firmware", "dependsOn": sorted(files)},
            *({"ref": name, "dependsOn": [source]} for name in sorted(files)),
        ],
    }
    number = uuid.uuid5(_NAMES, json.dumps(listed, sort_keys=True))
    return json.dumps({"serialNumber": f"urn:uuid:{number}", **listed}, indent=1, sort_keys=True) + "\n"


def _component(kind: str, package: Package) -> dict[str, Any]:
    return {
        "type": kind,
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
    }
