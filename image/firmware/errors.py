"""
What can go wrong when firmware is built, beside what `image/vm` knows (`VmError` and below it).

VmError
└── FirmwareError
    ├── CannotBuild        this machine cannot: the message says what it lacks
    └── NotReproducible    a build gave other bytes than an earlier one of the same recipe
"""

from __future__ import annotations

from image.vm.errors import VmError


class FirmwareError(VmError):
    """The firmware cannot be built; the message says what was found, what was wanted and what to try."""


class CannotBuild(FirmwareError):
    """This machine cannot build it."""


class NotReproducible(FirmwareError):
    """The same recipe gave other bytes before."""
