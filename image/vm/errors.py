"""
What can go wrong when a machine is built, as a tree:

VmError
├── MissingProgram     a program is not installed; the message names its Debian package
├── FailedProgram      a program ended with an error; the message holds what it said
├── BadPackage         a pinned package is not to be had, or its bytes are not the pinned ones
├── UnusableImage      the container image is not there, or cannot be the root of a machine
├── UnusableModels     the folder of models cannot be a volume
├── UnusableKernel     the kernel lacks a module that the machine needs
├── NotBooted          a machine that was switched on did not come to answer
│   └── Starved            … because the host had no time for its clock
└── UnusableOutput     what would be written does not fit its format, or would overwrite something else
"""

from __future__ import annotations


class VmError(Exception):
    """A machine cannot be built; the message says what was found, what was wanted and what to try."""


class MissingProgram(VmError):
    """A program is not installed."""


class FailedProgram(VmError):
    """A program ended with an error."""


class BadPackage(VmError):
    """A pinned package is not to be had, or its bytes are not the pinned ones."""


class UnusableImage(VmError):
    """The container image is not there, or cannot be the root of a machine."""


class UnusableModels(VmError):
    """The folder of models cannot be a volume."""


class UnusableKernel(VmError):
    """The kernel lacks a module that the machine needs."""


class NotBooted(VmError):
    """A machine that was switched on did not come to answer."""


class Starved(NotBooted):
    """
    The host had no time for the machine's clock.

    It says nothing of what was booted: the same bytes may be tried again.
    """


class UnusableOutput(VmError):
    """What would be written does not fit its format, or would overwrite something else."""
