"""
From the folder that a build left behind, and firmware beside it, to everything that will be measured.

The unified kernel image is what is believed: the command line, and the root hashes on it, are read from
there, and `build.json`, which was written beside it, has to agree. Of `build.json` alone come the container
image's digest and its environment.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blindbox_attestation import strict_json
from enclave_app.settings import InvalidSettings, Settings
from image.start import clean
from image.vm.build import ABOUT
from image.vm.build import VERSION as ABOUT_VERSION
from image.vm.command_line import MODELS, ROOT

from . import events, gpt, pcr, snp, tdx
from .document import VERSION, Document
from .errors import MeasureError, UnreadableBuild
from .events import Measured
from .ovmf import MAX_SIZE, Firmware
from .uki import Uki

UKI: Final = "blindbox.efi"
DISK: Final = "disk.raw"
MAX_UKI: Final = 1 << 30
_BEFORE_UKI: Final = 64 << 20
"""More than there is on the disk before the program: it lies in the first partition, behind its tables."""
_MAX_ABOUT: Final = 16 << 20

_VOLUME: Final = re.compile(r"([0-9a-f]{64}),([0-9a-f]{64}),([1-9][0-9]{0,11})")


@dataclass(frozen=True, slots=True)
class Build:
    """What a build left behind, read."""

    folder: Path
    uki: Uki
    boot: tuple[Measured, ...]
    release: str
    image_digest: str
    environment: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Build:
        """Raises `MeasureError`, which names the file."""
        about = _about(folder / ABOUT)
        with _named(folder / UKI):
            data = _bytes(folder / UKI, MAX_UKI)
            uki = Uki.parse(data)
        told = about.get("command_line")
        if told != uki.command_line:
            raise UnreadableBuild(
                f"{folder / ABOUT} tells of the command line {told!a}, and {UKI} has {uki.command_line!a}: "
                "these are two builds; build again"
            )
        with _named(folder / DISK), (folder / DISK).open("rb") as disk:
            partition_table = gpt.event_data(disk)
            with mmap.mmap(disk.fileno(), 0, prot=mmap.PROT_READ) as whole:
                if whole.find(data, 0, len(data) + _BEFORE_UKI) < 0:
                    raise UnreadableBuild(
                        f"{UKI} is not on it in one piece: is it of another build? Build again"
                    )
        return cls(
            folder,
            uki,
            events.of_boot(uki, partition_table),
            about["release"],
            about["image"]["digest"],
            dict(line.split("=", 1) for line in about["image"]["environment"]),
        )


def measured(build: Build, *, firmware_snp: Path | None = None, firmware_tdx: Path | None = None) -> Document:
    """The document, without the parts whose firmware is not given. Raises `MeasureError`."""
    document: Document = {
        "version": VERSION,
        "release": build.release,
        "image_digest": build.image_digest,
        "root": volume(build.uki.command_line, ROOT),
        "models": volume(build.uki.command_line, MODELS),
        "command_line": build.uki.command_line,
        "uki": {name: hashlib.new(name, build.uki.program.data).hexdigest() for name in pcr.BANKS},
        "disk": {"sha256": _sha256(build.folder / DISK)},
        "pcr": {bank: _hex(pcr.predicted(build.boot, bank)) for bank in pcr.BANKS},
    }
    if firmware_snp is not None:
        with _named(firmware_snp):
            document["snp_launch_digest"] = {
                "firmware_sha256": hashlib.sha256(_bytes(firmware_snp, MAX_SIZE)).hexdigest(),
                "by_vcpus": _hex(snp.launch_digests(firmware_snp, build.folder / UKI)),
            }
    started = {"rtmr": _hex(tdx.predicted(build.boot))}
    if firmware_tdx is None:
        document["tdx"] = started
    else:
        with _named(firmware_tdx):
            data = _bytes(firmware_tdx, MAX_SIZE)
            document["tdx"] = {
                "firmware_sha256": hashlib.sha256(data).hexdigest(),
                "mrtd": tdx.mrtd(Firmware.parse(data)).hex(),
                **started,
            }
    document["settings"] = {"config_digest": config_digest(build.environment)}
    return document


def volume(command_line: str, word: str) -> dict[str, Any] | None:
    """What a word of the command line says of a volume; nothing if it is not there and need not be."""
    found = [one.removeprefix(f"{word}=") for one in command_line.split() if one.startswith(f"{word}=")]
    if not found and word != ROOT:
        return None
    told = _VOLUME.fullmatch(found[0]) if len(found) == 1 else None
    if told is None:
        raise UnreadableBuild(
            f"the command line in {UKI} has {' and '.join(found) or 'nothing'} for {word}, wanted one "
            "HASH,SALT,BLOCKS: was it made by image/vm?"
        )
    return {"hash": told[1], "salt": told[2], "blocks": int(told[3])}


def config_digest(environment: Mapping[str, str]) -> str:
    """What the enclave attests of its settings if nobody gives it a settings file."""
    try:
        return Settings.from_environ(clean(environment)).digest().hex()
    except InvalidSettings as error:
        raise UnreadableBuild(f"the container image's own environment is refused: {error}") from error


def _about(path: Path) -> dict[str, Any]:
    """What is asked of build.json is there; the rest of it is for people."""
    with _named(path):
        try:
            found = strict_json.parse(_bytes(path, _MAX_ABOUT))
            if found.get("version") != ABOUT_VERSION:
                told = str(found.get("version"))[:32]
                raise UnreadableBuild(f"it is of version {told!a}, wanted {ABOUT_VERSION}; build again")
            strict_json.text(found.get("release"), "release")
            image = found.get("image")
            if not isinstance(image, dict):
                raise UnreadableBuild("it does not tell of the container image; build again")
            strict_json.text(image.get("digest"), "image.digest", 71)
            for line in strict_json.items(image.get("environment"), "image.environment"):
                if not isinstance(line, str) or "=" not in line:
                    raise UnreadableBuild("image.environment is not a list of NAME=VALUE")
        except strict_json.JsonRefused as error:
            raise UnreadableBuild(f"{error}; build again") from error
    return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors inside name the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableBuild(f"{path}: there is no such file; `make vm` makes a build") from error
    except OSError as error:
        raise UnreadableBuild(f"{path}: {error.strerror}") from error
    except MeasureError as error:
        raise type(error)(f"{path}: {error}") from error


def _bytes(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnreadableBuild(f"larger than {most} bytes")
    return data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hex(values: Mapping[Any, bytes]) -> dict[str, str]:
    return {str(name): value.hex() for name, value in values.items()}
