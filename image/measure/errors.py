"""
What can go wrong when a build is measured, as a tree:

MeasureError
├── UnreadableBuild            a file is missing, or two files of the build tell different stories
├── UnreadableProgram          an EFI program (the unified kernel image, the kernel in it) breaks its format
├── UnreadableDisk             the disk has no partition table that firmware would measure
├── UnreadableFirmware         the firmware lacks what SEV-SNP or TDX start from, or breaks its format
├── UnreadableLog              the log of a boot lacks what is asked of it
└── UnreadableMeasurements     not what a build measured: cut short, of another version, something else
"""

from __future__ import annotations


class MeasureError(Exception):
    """A build, or what was told about it, cannot be measured; the message says what was found and wanted."""


class UnreadableBuild(MeasureError):
    """A file is missing, or two files of the build tell different stories."""


class UnreadableProgram(MeasureError):
    """An EFI program breaks its format."""


class UnreadableDisk(MeasureError):
    """The disk has no partition table that firmware would measure."""


class UnreadableFirmware(MeasureError):
    """The firmware lacks what SEV-SNP or TDX start from, or breaks its format."""


class UnreadableLog(MeasureError):
    """The log of a boot lacks what is asked of it."""


class UnreadableMeasurements(MeasureError):
    """Not the measurements of a build: cut short, of another version, or something else."""
