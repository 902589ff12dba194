"""
Everything, in steps: container image → `dist/vm`.

    blindbox.efi    kernel, initrd and command line: what firmware starts and measures
    root.img        the image's files behind dm-verity; models.img the same for a folder of models
    vmlinuz, initrd the parts of blindbox.efi, for who wants to look at them
    disk.raw        all of it, to boot from; disk.vhd and disk.tar.gz where they were asked for
    sbom.cdx.json   what it is made of
    build.json      what was made out of what: read by `python -m image.measure`

The folder appears whole or not at all. The same image and the same `packages.lock` give the same bytes,
whoever builds, wherever and whenever.
"""

from __future__ import annotations

import argparse
import configparser
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import command_line, container, disk, initrd, packages, sbom, uki, verity
from .container import Image
from .errors import UnusableModels, UnusableOutput
from .packages import Tree
from .verity import Volume

REPOSITORY: Final = Path(__file__).resolve().parents[2]
IMAGE: Final = "localhost/blindbox:latest"
OUT: Final = REPOSITORY / "dist" / "vm"
ABOUT: Final = "build.json"
VERSION: Final = 1
KEPT: Final = 3  # root volumes that stay in the cache

_SHAPES_THE_ROOT: Final = ("container.py", "programs.py", "sbom.py", "verity.py")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build, and out of what."""

    image: str = IMAGE
    models: Path | None = None
    forms: tuple[str, ...] = ()
    out: Path = OUT
    fresh: bool = False  # make the root anew, whatever is in the cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `python -m image.vm build`."""
    parser.add_argument(
        "--image", default=IMAGE, help="the container image, as buildah knows it (%(default)s)"
    )
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help="a folder that becomes the volume /models"
    )
    parser.add_argument("--forms", default="", metavar="FORM,…", help="of the disk beside raw: vhd, tar.gz")
    parser.add_argument("--out", type=Path, default=OUT, help="(%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="take no root volume from the cache")


def main(arguments: argparse.Namespace) -> None:
    """`python -m image.vm build`"""
    forms = (
        tuple(dict.fromkeys(re.split(r"[\s,]+", arguments.forms.strip()))) if arguments.forms.strip() else ()
    )
    unknown = set(forms) - set(disk.FORMS)
    if unknown:
        raise UnusableOutput(
            f"{', '.join(sorted(unknown))} is no form of a disk; there are {', '.join(disk.FORMS)}"
        )
    build(Wanted(arguments.image, arguments.models, forms, arguments.out, arguments.fresh))


def build(wanted: Wanted) -> None:
    """
    Build it all.

    1. the pinned packages                          fetched and unpacked once
    2. what the image says of itself
    3. the root: its files behind dm-verity         or from the cache, where all that shapes it is the same
    4. the models, if any, behind dm-verity
    5. the initrd
    6. the program out of kernel, initrd and command line
    7. the disk, and its other forms
    8. the list of what it is made of, and of what was made
    """
    clock = _Clock()
    with _staged(wanted.out) as folder:
        with clock.step("packages"):
            tree = packages.unpacked()  # 1
        with clock.step("image"):
            image = container.inspect(wanted.image)  # 2
        with clock.step("root"):
            root, in_root = _root(tree, image, folder / "root.img", fresh=wanted.fresh)  # 3
        models = None
        if wanted.models is not None:
            with clock.step("models"):
                models = _models(tree, wanted.models, folder / "models.img")  # 4
        release = version()
        line = command_line.line(root, models)
        with clock.step("initrd"):
            (folder / "initrd").write_bytes(initrd.make(tree, image))  # 5
            shutil.copyfile(uki.kernel(tree), folder / "vmlinuz")
        with clock.step("program"):
            uki.make(tree, folder / "initrd", line, release, folder / "blindbox.efi")  # 6
        with clock.step("disk"):
            volume = models.file if models else None
            disk.make(folder / "blindbox.efi", root.file, volume, folder / "disk.raw")  # 7
        if "vhd" in wanted.forms:
            with clock.step("disk.vhd"):
                disk.vhd(folder / "disk.raw", folder / "disk.vhd")
        if "tar.gz" in wanted.forms:
            with clock.step("disk.tar.gz"):
                disk.archive(tree, folder / "disk.raw", folder / "disk.tar.gz")
        with clock.step("lists"):  # 8
            listed = sbom.document(
                release=release,
                image=image,
                root=root,
                models=models,
                in_root=in_root,
                packages=tree.packages,
            )
            (folder / "sbom.cdx.json").write_text(listed, "utf-8")
            about = _about(release, image, root, models, line, tree, folder)
            (folder / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", "utf-8")
    clock.total(wanted.out)


def version() -> str:
    """This project's version."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(REPOSITORY / "setup.cfg", "utf-8")
    return config["metadata"]["version"]


def _root(tree: Tree, image: Image, file: Path, *, fresh: bool) -> tuple[Volume, list[sbom.Component]]:
    """The image's files as a volume, and what they say that they are."""
    kept = packages.cache() / "roots"
    kept.mkdir(exist_ok=True)
    said = kept / f"{_recipe(tree, image)}.json"
    if not fresh and said.is_file():
        found = json.loads(said.read_text("utf-8"))
        with said.with_suffix(".img").open("rb") as source, file.open("xb") as to:
            disk.copy(source, to)
        os.utime(said)
        return Volume(file, **found["volume"]), found["components"]
    with container.mounted(image) as files:
        container.make_bootable(files, image, initrd.FROM_IMAGE)
        components = sbom.of_root(files)
        volume = verity.make(tree, files, file, name="root", options=verity.SYSTEM)
    beside = Path(tempfile.mkdtemp(prefix="new.", dir=kept))
    try:
        shutil.copyfile(file, beside / "img")
        known = {name: value for name, value in asdict(volume).items() if name != "file"}
        (beside / "json").write_text(json.dumps({"volume": known, "components": components}), "utf-8")
        (beside / "img").replace(said.with_suffix(".img"))
        (beside / "json").replace(said)  # the last: what it tells of is there
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in sorted(kept.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".img").unlink(missing_ok=True)
    return volume, components


def _recipe(tree: Tree, image: Image) -> str:
    """All that the root's bytes follow from: the image, the programs and this code."""
    code = [(Path(__file__).with_name(name)).read_bytes() for name in _SHAPES_THE_ROOT]
    parts = [image.digest.encode(), tree.root.name.encode(), *code]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _models(tree: Tree, folder: Path, file: Path) -> Volume:
    """A folder of models as a volume. Raises `UnusableModels`."""
    if not folder.is_dir():
        raise UnusableModels(f"{folder} is not a folder")
    some = False
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(folder.resolve()):
                raise UnusableModels(f"{path} leads out of {folder}, and would lead nowhere on a volume")
            if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise UnusableModels(f"{path} is neither a file nor a folder")
            some = some or stat.S_ISREG(mode)
    if not some:
        raise UnusableModels(f"{folder} holds no file")
    return verity.make(tree, folder, file, name="models", options=verity.WEIGHTS)


def _about(
    release: str, image: Image, root: Volume, models: Volume | None, line: str, tree: Tree, folder: Path
) -> dict[str, Any]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {
        "version": VERSION,
        "release": release,
        "image": {
            "name": image.name,
            "digest": image.digest,
            "environment": list(image.environment),
            "command": list(image.command),
        },
        "root": _said(root),
        "models": _said(models) if models is not None else None,
        "command_line": line,
        "kernel": tree.kernel,
        "packages": [asdict(one) for one in tree.packages],
        "files": {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files},
    }


def _said(volume: Volume) -> dict[str, Any]:
    return {"hash": volume.root_hash, "salt": volume.salt, "blocks": volume.data_blocks}


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """
    A folder beside `out` that takes its place when all has gone well, and is gone otherwise.

    Raises `UnusableOutput` if what is there is not a build, or if another build is under way.
    """
    if out.exists() and not _replaceable(out):
        raise UnusableOutput(f"{out} is there and is not the folder of a build: name another, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnusableOutput(f"another build is writing {out}") from error
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield folder
            _settle(folder)
            old = folder.with_name(f"{folder.name}.old")
            if out.exists():
                out.rename(old)
            folder.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _replaceable(out: Path) -> bool:
    return out.is_dir() and ((out / ABOUT).is_file() or not any(out.iterdir()))


def _settle(folder: Path) -> None:
    """Readable by everybody, whatever the umask; on the disk before it gets its name."""
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as written:
            os.fsync(written.fileno())
    folder.chmod(0o755)


class _Clock:
    """Prints what takes how long."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        print(f"  {name:<12} {time.monotonic() - began:6.1f} s", flush=True)

    def total(self, out: Path) -> None:
        print(f"  {'all':<12} {time.monotonic() - self._began:6.1f} s  → {out}", flush=True)
