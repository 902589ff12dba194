"""Files of the Debian packages that a machine is built of, where a build has brought them."""

from __future__ import annotations

from pathlib import Path

from image.vm import packages


def pinned(pattern: str) -> list[Path]:
    """The files whose path below / is so, of every tree that lies in the cache."""
    return sorted(packages.cache().glob(f"trees/*/{pattern}"))
