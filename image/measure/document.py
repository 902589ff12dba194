"""
`measurements.json`: what a release says it will measure, for a client to pin and for anybody to check.

Both ends of the format, `written` and `read`; and `compared`, which tells two of them apart in words. What
each value is and who measures it: docs/measurements.md. Hashes are in lower-case hex; what depends on a
firmware that was not at hand when it was written is left out.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blindbox_attestation import strict_json
from blindbox_attestation.strict_json import JsonRefused, fields, from_hex, integer, text

from .errors import UnreadableMeasurements
from .pcr import BANKS, REGISTERS
from .snp import MOST_VCPUS, PROCESSORS
from .tdx import REGISTERS as RTMRS

VERSION: Final = 1
MAX_FILE: Final = 1 << 20

Document = dict[str, Any]

_SIZES: Final = {"sha256": 32, "sha384": 48}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SHAPE: Final = re.compile(rf"(?:{'|'.join(PROCESSORS)}) x([1-9][0-9]?)")
_MOST_BLOCKS: Final = 1 << 40
_NEEDED: Final = (
    *("version", "release", "image_digest", "root", "models", "command_line"),
    *("uki", "disk", "pcr", "tdx", "settings"),
)
_POLICY: Final = frozenset({"snp", "azure_snp", "azure_tdx", "gcp", "tpm", "any_of", "all_of"})


def written(document: Document) -> bytes:
    """The file's bytes, the same for the same values."""
    return (json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def write(path: Path, document: Document) -> None:
    """Under its name only once it is whole and on the disk."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(written(document))
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> Document:
    """Raises `UnreadableMeasurements`, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        return parse(data)
    except OSError as error:
        raise UnreadableMeasurements(f"{path}: {error.strerror}") from error
    except UnreadableMeasurements as error:
        raise UnreadableMeasurements(f"{path}: {error}") from error


def parse(data: bytes) -> Document:
    """The whole form is checked. Raises `UnreadableMeasurements`."""
    if len(data) > MAX_FILE:
        raise UnreadableMeasurements(f"larger than {MAX_FILE} bytes: no build writes that")
    try:
        found = strict_json.parse(data)
        _version(found)
        _check(found)
    except JsonRefused as error:
        if error.code == "malformed-json" and (not data or data.count(b"{") > data.count(b"}")):
            raise UnreadableMeasurements(f"cut short, after {len(data)} bytes") from error
        raise UnreadableMeasurements(f"these are not the measurements of a build: {error}") from error
    return found


def _version(found: Document) -> None:
    """Told first: a file of another version may have any other fault too."""
    if _POLICY & set(found):
        raise UnreadableMeasurements(
            "this is a policy, not what a build measured; `blindbox policy explain` reads it"
        )
    if "version" not in found:
        raise UnreadableMeasurements("it has no version: these are not the measurements of a build")
    if found["version"] != VERSION or isinstance(found["version"], bool):
        raise UnreadableMeasurements(
            f"it is of version {str(found['version'])[:32]!a}, this release reads version {VERSION}: "
            "take the BlindBox of the release that wrote it"
        )


def _check(found: Document) -> None:
    fields(found, "the file", _NEEDED, ("snp_launch_digest",))
    text(found["release"], "release")
    if not _DIGEST.fullmatch(text(found["image_digest"], "image_digest", 71)):
        raise JsonRefused("image_digest is not sha256: and 64 hex digits", "wrong-type")
    _volume(found["root"], "root")
    if found["models"] is not None:
        _volume(found["models"], "models")
    text(found["command_line"], "command_line", 2047)
    _hashes(found["uki"], "uki", _SIZES)
    _hashes(found["disk"], "disk", {"sha256": 32})
    pcr = fields(found["pcr"], "pcr", BANKS)
    for bank in BANKS:
        _hashes(pcr[bank], f"pcr.{bank}", {str(register): _SIZES[bank] for register in REGISTERS})
    if "snp_launch_digest" in found:
        _launches(found["snp_launch_digest"])
    tdx = fields(found["tdx"], "tdx", ("rtmr",), ("firmware_sha256", "mrtd"))
    _hashes(tdx["rtmr"], "tdx.rtmr", {str(number): 48 for number in RTMRS})
    if ("mrtd" in tdx) != ("firmware_sha256" in tdx):
        raise JsonRefused("tdx has one of mrtd and firmware_sha256 without the other", "missing-key")
    if "mrtd" in tdx:
        from_hex(tdx["firmware_sha256"], "tdx.firmware_sha256", (32,))
        from_hex(tdx["mrtd"], "tdx.mrtd", (48,))
    _hashes(found["settings"], "settings", {"config_digest": 48})


def _volume(value: object, where: str) -> None:
    volume = fields(value, where, ("hash", "salt", "blocks"))
    from_hex(volume["hash"], f"{where}.hash", (32,))
    from_hex(volume["salt"], f"{where}.salt", (32,))
    integer(volume["blocks"], f"{where}.blocks", 1, _MOST_BLOCKS)


def _hashes(value: object, where: str, sizes: dict[str, int]) -> None:
    found = fields(value, where, sizes)
    for name, size in sizes.items():
        from_hex(found[name], f"{where}.{name}", (size,))


def _launches(value: object) -> None:
    where = "snp_launch_digest"
    found = fields(value, where, ("firmware_sha256", "by_vcpus"))
    from_hex(found["firmware_sha256"], f"{where}.firmware_sha256", (32,))
    launches = found["by_vcpus"]
    if not isinstance(launches, dict) or not launches:
        raise JsonRefused(f"{where}.by_vcpus is not an object with digests", "wrong-type")
    for name, digest in launches.items():
        shape = _SHAPE.fullmatch(name)
        if shape is None or int(shape[1]) > MOST_VCPUS:
            raise JsonRefused(
                f"{where}.by_vcpus has {name[:64]!a}, wanted names as 'EPYC-Genoa x4'", "unknown-key"
            )
        from_hex(digest, f"{where}.by_vcpus.{name}", (48,))


_WITH_FIRMWARE: Final = ("snp_launch_digest", "tdx")
_MISSING: Final = ": published, and missing here"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the file: what it is, of which others it is made, and where to look if those agree."""

    key: str
    what: str
    made_of: tuple[str, ...]
    look: str


PARTS: Final = (
    Part("release", "the release's name", (), "check out the tag of the release you compare with"),
    Part(
        "image_digest",
        "the container image",
        (),
        "another base, package or source file went into it; compare the two lists sbom.cdx.json",
    ),
    Part(
        "root",
        "the root file system",
        ("image_digest",),
        "one image gave two file systems: the tools that pack it, or image/vm/verity.py, are others",
    ),
    Part("models", "the volume of the models", (), "other weights, or another commit of the model"),
    Part(
        "command_line",
        "the kernel's command line",
        ("root", "models"),
        "its other words come from image/vm/command_line.py",
    ),
    Part(
        "uki",
        "the unified kernel image",
        ("command_line",),
        "another kernel, initrd or stub; image/vm/packages.lock pins their packages",
    ),
    Part("disk", "the disk image", ("uki", "root", "models"), "image/vm/disk.py lays it out"),
    Part("pcr", "the registers of a TPM", ("uki",), "image/measure predicts them otherwise"),
    Part(
        "snp_launch_digest",
        "the launch digests of SEV-SNP",
        ("uki",),
        "another firmware, or image/measure predicts them otherwise",
    ),
    Part(
        "tdx",
        "the registers of TDX",
        ("uki", "disk"),
        "another firmware, or image/measure predicts them otherwise",
    ),
    Part(
        "settings",
        "the settings without a settings file",
        ("image_digest",),
        "enclave_app/settings.py has other fields or defaults",
    ),
)


def compared(published: Document, here: Document) -> Iterator[str]:
    """A paragraph for each part that differs, causes before what follows from them; nothing if all agree."""
    differing: set[str] = set()
    for part in PARTS:
        lines = list(_differences(part.key, published.get(part.key), here.get(part.key)))
        if not lines:
            continue
        causes = [one.what for one in PARTS if one.key in part.made_of and one.key in differing]
        differing.add(part.key)
        why = f"it follows from {' and '.join(causes)}" if causes else part.look
        if part.key in _WITH_FIRMWARE and any(line.endswith(_MISSING) for line in lines):
            why = "no firmware was given where it was measured here"
        yield "\n".join((f"{part.what} ({part.key}): {why}", *(f"  {line}" for line in lines)))


def _differences(path: str, published: object, here: object) -> Iterator[str]:
    if published == here:
        return
    if path == "snp_launch_digest.by_vcpus" and isinstance(published, dict) and isinstance(here, dict):
        yield from _launch_differences(published, here)
    elif isinstance(published, dict) and isinstance(here, dict):
        for name in (*published, *(name for name in here if name not in published)):
            yield from _differences(f"{path}.{name}", published.get(name), here.get(name))
    elif here is None:
        yield f"{path}{_MISSING}"
    elif published is None:
        yield f"{path}: here, and not published"
    else:
        yield f"{path}"
        yield f"  published  {published}"
        yield f"  here       {here}"


def _launch_differences(published: dict[str, str], here: dict[str, str]) -> Iterator[str]:
    """In one line: there are three times sixty-four."""
    names = {**published, **here}
    others = [name for name in names if published.get(name) != here.get(name)]
    first = others[0]
    yield f"snp_launch_digest.by_vcpus: {len(others)} of {len(names)} differ, such as {first}"
    yield f"  published  {published.get(first, 'not there')}"
    yield f"  here       {here.get(first, 'not there')}"
