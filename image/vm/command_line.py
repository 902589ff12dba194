"""
The kernel's command line: part of the measured program, so every word of it is what a client has pinned.

`line` makes it; `init` reads the words that begin with `blindbox.`. The others are the kernel's: Linux
Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

from typing import Final

from .verity import Volume

FIXED: Final = (
    "console=ttyS0",  # the one console that QEMU and the clouds all show
    "quiet",  # errors and the panic's reason still appear; each character costs an exit to the hypervisor
    "panic=-1",  # a machine in doubt starts again at once, from the same measured bytes
    "oops=panic",  # a kernel that has tripped over itself serves nobody
    "lockdown=confidentiality",  # nobody, root included, reads or changes the kernel's memory
    "module.sig_enforce=1",  # only modules of this kernel's own build
    "init_on_alloc=1",  # what was in memory before is never seen …
    "init_on_free=1",  # … and does not stay: prompts and keys are gone when they are freed
    "slab_nomerge",
    "page_alloc.shuffle=1",
    "randomize_kstack_offset=on",
    "vsyscall=none",
    "ia32_emulation=0",
    "debugfs=off",
    "proc_mem.force_override=never",
    "random.trust_bootloader=off",  # seeds from the processor count as entropy, seeds from the host do not
    "ipv6.disable=1",
)
ROOT: Final = "blindbox.root"
MODELS: Final = "blindbox.models"


def line(root: Volume, models: Volume | None = None) -> str:
    """The whole command line of a machine with these volumes."""
    volumes = [(ROOT, root)] + ([(MODELS, models)] if models is not None else [])
    return " ".join((*FIXED, *(f"{name}={word(volume)}" for name, volume in volumes)))


def word(volume: Volume) -> str:
    """HASH,SALT,BLOCKS: what dm-verity has to know of a volume, beside where it lies."""
    return f"{volume.root_hash},{volume.salt},{volume.data_blocks}"
