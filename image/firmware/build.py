"""
The steps: pinned source and tools → `dist/firmware`.

    amdsev.fd       OVMF for SEV-SNP: the hash of the kernel that QEMU hands over is in the launch digest
    tdx.fd          OVMF for TDX
    firmware.json   what was made out of what; firmware.cdx.json is the same as a list of parts

The same locks, patches and code give the same bytes, whoever builds, wherever and whenever; so what was built
once is taken from the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from image.vm.packages import Package, SourceFile

from . import room, sbom, source, store, tools
from .errors import NotReproducible

REPOSITORY: Final = Path(__file__).resolve().parents[2]
OUT: Final = REPOSITORY / "dist" / "firmware"
ABOUT: Final = "firmware.json"
LISTED: Final = "firmware.cdx.json"
VERSION: Final = 1

FILES: Final = {"snp": "amdsev.fd", "tdx": "tdx.fd"}
"""Which firmware → its file, as `blindbox deploy` looks for it."""

_COMPILED: Final = "Building ... "
_NEWS: Final = 50  # parts between two lines of progress


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build."""

    which: tuple[str, ...] = tuple(FILES)
    out: Path = OUT
    fresh: bool = False  # build, whatever is in the cache, and compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `python -m image.firmware build`."""
    parser.add_argument(
        "which", nargs="*", type=_which, metavar="|".join(FILES), help="for which hardware (without it: both)"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="(%(default)s)")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="build, whatever is in the cache; other bytes than there are an error",
    )


def main(chosen: argparse.Namespace) -> None:
    """`python -m image.firmware build`."""
    which = tuple(dict.fromkeys(chosen.which)) or tuple(FILES)
    build(Wanted(which, chosen.out, chosen.fresh))


def build(wanted: Wanted) -> None:
    """
    Write the firmware and what it is made of. Raises `VmError`.

    1. the place for it can be written to, and the locks can be read
    2. what of it is in the cache?
    3. furnish a room: tools, source; build what is not in the cache, and keep it there
    4. copy, and say what it is
    """
    began = time.monotonic()
    pinned, made_with = source.read(), tools.read()  # 1
    store.deliver(b"", wanted.out / f".{ABOUT}.try")
    (wanted.out / f".{ABOUT}.try").unlink()
    recipe = store.recipe()
    with store.alone():
        kept = {name: store.found(FILES[name], recipe) for name in wanted.which}  # 2
        missing = [name for name in wanted.which if wanted.fresh or kept[name] is None]
        if missing:
            room.check()
            built = _built(missing, recipe, kept)  # 3
            kept.update(built)
    files = {}
    for name in wanted.which:  # 4
        file = kept[name]
        assert file is not None
        data = file.read_bytes()
        store.deliver(data, wanted.out / FILES[name])
        files[FILES[name]] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        print(f"  {files[FILES[name]]['sha256']}  {wanted.out / FILES[name]}")
    _mind_the_others(wanted, recipe, files)
    hashes = {name: str(one["sha256"]) for name, one in files.items()}
    listed = sbom.document(pinned, made_with, [one.name for one in source.patches()], hashes)
    store.deliver(listed.encode(), wanted.out / LISTED)
    about = _about(recipe, pinned, made_with, files)
    store.deliver((json.dumps(about, indent=1, sort_keys=True) + "\n").encode(), wanted.out / ABOUT)
    print(f"  {'all':<12} {time.monotonic() - began:6.1f} s  → {wanted.out}", flush=True)


def _built(names: Sequence[str], recipe: str, kept: dict[str, Path | None]) -> dict[str, Path]:
    """Build and keep. Raises `NotReproducible` if the cache has other bytes; they stay there."""
    found = {}
    with store.new_room() as root:
        with _step("packages"):
            room.furnish(root)
        with _step("source"):
            room.run(root, "source")
        with _step("tools"):
            room.run(root, "tools")
        for name in names:
            with _step(name):
                room.run(root, name, _news(name))
            built, before = root / "build" / f"{name}.fd", kept[name]
            if before is not None and before.read_bytes() != built.read_bytes():
                raise NotReproducible(
                    f"{FILES[name]} came out with SHA-256 {_sha256(built)}, and in the cache {before} of the "
                    f"same recipe has {_sha256(before)}: one of the two builds is not to be trusted"
                )
            found[name] = store.keep(FILES[name], recipe, built)
    return found


def _mind_the_others(wanted: Wanted, recipe: str, files: dict[str, dict[str, Any]]) -> None:
    """What lies in the folder already is told of if it is of the same recipe, and left as it is if not."""
    for name in FILES.keys() - set(wanted.which):
        there, kept = wanted.out / FILES[name], store.found(FILES[name], recipe)
        if not there.is_file():
            continue
        if kept is not None and there.read_bytes() == kept.read_bytes():
            files[FILES[name]] = {"size": there.stat().st_size, "sha256": _sha256(there)}
        else:
            print(f"  {there} is of another build: python -m image.firmware build {name} makes it anew")


def _about(
    recipe: str,
    pinned: Sequence[SourceFile],
    made_with: Sequence[Package],
    files: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "recipe": recipe,
        "source": {
            "package": pinned[0].package,
            "version": pinned[0].version,
            "files": {one.name: one.sha256 for one in pinned},
            "patches": {one.name: _sha256(one) for one in source.patches()},
        },
        "packages": [asdict(one) for one in made_with],
        "files": files,
    }


def _which(word: str) -> str:
    if word not in FILES:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(FILES)}")
    return word


def _news(name: str) -> Any:
    """Tells from time to time how far the compiler is."""
    parts = 0

    def heard(line: str) -> None:
        nonlocal parts
        if line.startswith(_COMPILED):
            parts += 1
            if parts % _NEWS == 0:
                print(f"  {name:<12} {parts} parts …", flush=True)

    return heard


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Prints what takes how long."""
    print(f"  {name:<12} …", flush=True)
    began = time.monotonic()
    yield
    print(f"  {name:<12} {time.monotonic() - began:6.1f} s", flush=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
