"""
What an image is and what it is made of, written beside it: `image.json` and `sbom.cdx.json`.

    python -m image.listing NAME --out FOLDER [--base NAME]

The same image gives the same two files. Each appears whole or not at all, `image.json` last: it names the
other by its hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from . import base
from .vm import build, container, packages, sbom
from .vm.errors import UnusableOutput, VmError

VERSION: Final = 1
ABOUT: Final = "image.json"
PARTS: Final = "sbom.cdx.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m image.listing", description="Tell what an image is.")
    parser.add_argument("name", help="of the image, as buildah knows it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--base", default="", metavar="NAME", help="what it was built on")
    chosen = parser.parse_args(arguments)
    try:
        write(chosen.name, chosen.base, chosen.out)
    except VmError as error:
        print(f"not done: {error}", file=sys.stderr)
        return 1
    return 0


def write(name: str, on: str, out: Path) -> None:
    """Ask buildah about the image and write what it says. Raises `VmError`."""
    ours = on.startswith(f"{base.NAME}:")
    pinned = packages.read(base.LOCK) if ours else ()
    image = container.inspect(name)
    with container.mounted(image) as files:
        in_root = sbom.of_root(files)
    parts = sbom.of_image(release=build.version(), image=image, in_root=in_root, base=pinned)
    about = {
        "version": VERSION,
        "release": build.version(),
        "name": image.name,
        "digest": image.digest,
        "config": image.config,
        "layers": list(image.layers),
        "size": image.size,
        "base": {"name": on, "lock": _sha256(base.LOCK.read_bytes()) if ours else None},
        "sbom": _sha256(parts.encode()),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        _put(out / PARTS, parts)
        _put(out / ABOUT, json.dumps(about, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UnusableOutput(f"{out} cannot be written to: {error.strerror}") from error


def _put(file: Path, text: str) -> None:
    """Write beside the final name, then rename; readable by everybody, whatever the umask."""
    handle, beside = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(handle)
        Path(beside).chmod(0o644)
        Path(beside).replace(file)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
