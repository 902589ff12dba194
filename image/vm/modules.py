"""
The kernel's modules that a machine needs, in an order in which they can be loaded.

Each module says in its own `.modinfo` section what it depends on: the index that `depmod` would make on an
installed system is not needed. Formats: ELF-64 (System V gABI, "Sections"); Linux include/linux/moduleinfo.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import UnusableKernel

WANTED: Final[Mapping[str, str]] = {
    # what volumes are read with; hashes and ciphers first, so that dm-verity and dm-crypt find the fast ones
    "sha256_ssse3": "SHA-256 with the processor's instructions",
    "aesni_intel": "AES with the processor's instructions",
    "xts": "of the data disk",
    "crc32c_generic": "of the data disk's file system",
    "dm_verity": "the volumes",
    "dm_crypt": "the data disk",
    "squashfs": "the volumes",
    "ext4": "the data disk",
    # disks
    "virtio_pci": "QEMU, Google",
    "virtio_blk": "QEMU",
    "virtio_scsi": "Google, QEMU",
    "nvme": "AWS, Azure, Google",
    "sd_mod": "Azure, Google",
    "hv_storvsc": "Azure",
    # networks
    "af_packet": "DHCP",
    "virtio_net": "QEMU, Google",
    "hv_netvsc": "Azure",
    "ena": "AWS",
    "gve": "Google",
    # evidence and settings
    "sev_guest": "reports of AMD SEV-SNP",
    "tdx_guest": "reports of Intel TDX",
    "qemu_fw_cfg": "settings from QEMU",
    # the host's request to end in good order
    "button": "ACPI's power button",
    "evdev": "how it is heard of",
}
"""Not among them: virtio_rng, whose entropy comes from the host."""

_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its name with underscores, and its file's bytes, signature included."""

    name: str
    content: bytes


def in_order(folder: Path) -> list[Module]:
    """
    The wanted modules of the kernel in `folder` (lib/modules/RELEASE), each after those it depends on.

    What is built into the kernel is left out. Raises `UnusableKernel` for what is neither.
    """
    files = {_name(file): file for file in sorted(folder.glob("kernel/**/*.ko*"))}
    try:
        built_in = {_name(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()}
    except OSError as error:
        raise UnusableKernel(f"{folder} has no list of built-in modules: {error.strerror}") from error
    found: dict[str, Module] = {}

    def add(name: str, below: tuple[str, ...] = ()) -> None:
        if name in found or name in built_in:
            return
        if name not in files:
            needed_by = f", which {below[-1]} needs" if below else ""
            raise UnusableKernel(f"the kernel in {folder} has no module {name}{needed_by}")
        if name in below:
            raise UnusableKernel(f"the modules {', '.join(below)} depend on one another")
        module = _read(files[name], name)
        for other in depends(module):
            add(other, (*below, name))
        found[name] = module

    for name in WANTED:
        add(name)
    return list(found.values())


def depends(module: Module) -> list[str]:
    """What must be loaded before it, by the module's own word."""
    for field in _modinfo(module).split(b"\0"):
        key, _, value = field.partition(b"=")
        if key == b"depends":
            return [name.replace("-", "_") for name in value.decode("ascii", "replace").split(",") if name]
    return []


def _modinfo(module: Module) -> bytes:
    elf = module.content
    try:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise UnusableKernel(f"module {module.name} is not an ELF file of 64 bits")
        (table,) = struct.unpack_from("<Q", elf, 0x28)
        size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
        if size != _SECTION.size:
            raise UnusableKernel(
                f"module {module.name} has section headers of {size} bytes, wanted {_SECTION.size}"
            )
        sections = [_SECTION.unpack_from(elf, table + size * number) for number in range(count)]
        strings = sections[names][4]
        for section in sections:
            if elf.startswith(b".modinfo\0", strings + section[0]):
                return elf[section[4] : section[4] + section[5]]
    except (struct.error, IndexError) as error:
        raise UnusableKernel(f"module {module.name} is cut short") from error
    raise UnusableKernel(f"module {module.name} has no section .modinfo")


def _read(file: Path, name: str) -> Module:
    content = file.read_bytes()
    if file.suffix == ".xz":
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise UnusableKernel(f"module {name} cannot be unpacked: {error}") from error
    elif file.suffix != ".ko":
        raise UnusableKernel(f"module {name} is packed as {file.suffix}; .ko and .ko.xz are read")
    return Module(name, content)


def _name(file: Path) -> str:
    """The kernel takes - and _ for the same in a module's name."""
    return file.name.partition(".ko")[0].replace("-", "_")
