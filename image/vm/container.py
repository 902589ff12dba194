"""
The container image as buildah keeps it: what it says of itself, and its files.

An image is made by somebody's Dockerfile and is not trusted to be sane: what it says is checked here, and no
link in it leads this module out of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import programs
from .errors import FailedProgram, UnusableImage

RUNS_AS: Final = ("65532", "65532:65532")
MOUNT_POINTS: Final[dict[str, int]] = {
    "dev": 0o755,
    "etc": 0o755,
    "models": 0o755,
    "proc": 0o555,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/lib": 0o755,
    "var/lib/blindbox": 0o700,
    "var/tmp": 0o1777,
}
"""Where `init` mounts something, and the folders on the way there; modes for those that are missing."""

HOSTS: Final = "127.0.0.1\tlocalhost\n"
RESOLVER: Final = "/run/resolv.conf"  # written by `lease`

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]*")


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of itself, checked."""

    name: str
    digest: str  # sha256:… of its manifest, which names every layer by its hash
    environment: tuple[str, ...]  # NAME=value
    command: tuple[str, ...]
    folder: str  # where the command starts
    config: str = ""  # sha256:… of its configuration
    layers: tuple[str, ...] = ()  # sha256:… of each, the lowest first
    size: int = 0  # bytes of configuration and layers


def inspect(name: str) -> Image:
    """Raises `UnusableImage`."""
    if not _NAME.fullmatch(name):
        raise UnusableImage(f"{name[:80]!r} is not an image's name")
    try:
        said = programs.ours("buildah", "inspect", "--type", "image", name)
    except FailedProgram as failure:
        raise UnusableImage(
            f"buildah shows no image {name} ({failure}). `make image` builds one, for the user who runs it"
        ) from failure
    return read(name, said)


def read(name: str, said: str) -> Image:
    """What `buildah inspect --type image` printed, as an image. Raises `UnusableImage`."""
    try:
        document = json.loads(said)
        manifest = str(document["Manifest"])
        about = document["OCIv1"]
        config = about["config"]
        machine = (about["os"], about["architecture"])
        user = str(config.get("User", ""))
        environment = _texts(config.get("Env"))
        command = _texts(config.get("Entrypoint")) + _texts(config.get("Cmd"))
        folder = str(config.get("WorkingDir") or "/")
        blobs = json.loads(manifest or "{}")
        layers = [(str(one["digest"]), int(one["size"])) for one in blobs.get("layers", [])]
        own = blobs.get("config", {"digest": "", "size": 0})
        config_digest, size = str(own["digest"]), int(own["size"]) + sum(size for _, size in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableImage(f"what buildah says of {name} cannot be read: {error!r}") from error
    if not manifest:
        raise UnusableImage(f"{name} has no manifest, so it has no digest to be known by")
    if machine != ("linux", "amd64"):
        raise UnusableImage(f"{name} is for {'/'.join(map(str, machine))}; the machine is linux/amd64")
    if user not in RUNS_AS:
        raise UnusableImage(f"{name} runs as user {user!r}; the machine runs its command as {RUNS_AS[1]}")
    if not command:
        raise UnusableImage(f"{name} has no command (CMD) to run")
    if not _FOLDER.fullmatch(folder) or ".." in folder.split("/"):
        raise UnusableImage(f"{name} starts in {folder[:80]!r}, which is not the plain path of a folder")
    return Image(
        name,
        f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}",
        environment,
        command,
        folder,
        config_digest,
        tuple(digest for digest, _ in layers),
        size,
    )


@contextmanager
def mounted(image: Image) -> Iterator[Path]:
    """The image's files in a folder of their own, which may be changed and is gone afterwards."""
    container = programs.ours("buildah", "from", "--pull-never", image.name).strip()
    try:
        try:
            files = programs.ours("buildah", "mount", container).strip()
        except FailedProgram as failure:
            raise UnusableImage(
                f"the files of {image.name} cannot be reached: {failure}\n"
                "Root may do it, or an ordinary user with `buildah unshare` before the command"
            ) from failure
        yield Path(files)
    finally:
        programs.ours("buildah", "rm", container)


def make_bootable(root: Path, image: Image, wanted: tuple[str, ...]) -> None:
    """
    Give the files what a running machine has to find there: mount points, a resolver, a name for loopback.

    `wanted` are programs that must be there. Raises `UnusableImage` for those, and for a link where a folder
    has to be.
    """
    for path, mode in MOUNT_POINTS.items():
        folder = root / path
        try:
            found = folder.lstat()
        except FileNotFoundError:
            folder.mkdir()
            folder.chmod(mode)
        else:
            if not stat.S_ISDIR(found.st_mode):
                raise UnusableImage(
                    f"/{path} of {image.name} is not a folder, and something is mounted on it"
                )
    for path in wanted:
        _refuse_without(root, path, image)
    resolver, hosts = root / "etc" / "resolv.conf", root / "etc" / "hosts"
    for file in (resolver, hosts):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UnusableImage(
                f"/etc/{file.name} of {image.name} is not a file: {error.strerror}"
            ) from error
    resolver.symlink_to(RESOLVER)
    hosts.write_text(HOSTS)
    hosts.chmod(0o644)


def _refuse_without(root: Path, path: str, image: Image) -> None:
    """Raise `UnusableImage` unless the program is there as a file, without a link on the way."""
    at = root
    for part in path.split("/"):
        at /= part
        if at.is_symlink():
            raise UnusableImage(f"/{path} of {image.name} is reached by a link; wanted is the program itself")
    if not at.is_file() or not at.stat().st_mode & 0o111:
        raise UnusableImage(f"{image.name} has no program /{path}, with which its command is started")


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"a list of texts was expected, not {value!r}")
    return tuple(value)
