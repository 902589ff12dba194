"""
The operator's settings as one file: lines of `BLINDBOX_NAME=value`, from bytes to an environment.

This is how a virtual machine is told how to run: it has no command line that anybody could add to. Names and
values are judged in `settings.py`, like those of an environment; here is only what the file may look like. It
comes from outside the measurement, so nothing in it is guessed: what is not a comment and not one of our
names stops the start.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from .settings import InvalidSettings

PLACE: Final = Path("/run/blindbox/settings")
"""Where the virtual machine's first process leaves it, and where a container may have it mounted."""

MAX_SIZE: Final = 64 << 10
_LINE: Final = re.compile(r"(BLINDBOX_[A-Z0-9_]{1,64})=([ -~]{0,1024})")


def read(data: bytes) -> dict[str, str]:
    """
    The settings by name.

    The file ends at its first zero byte: on a disk it lies at the beginning of a larger place. Empty lines
    and lines that begin with `#` say nothing. Raises `InvalidSettings` naming every fault by its line; values
    are not repeated, for somebody may have pasted a secret.
    """
    text, _, rest = data.partition(b"\0")
    if len(text) > MAX_SIZE:
        raise InvalidSettings(f"the settings are more than {MAX_SIZE} bytes")
    if any(rest):
        raise InvalidSettings("the settings go on behind a zero byte; is this the right disk?")
    found: dict[str, str] = {}
    faults: list[str] = []
    for number, line in enumerate(text.decode("latin-1").split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            faults.append(f"line {number} {_fault(line)}")
        elif match[1] in found:
            faults.append(f"line {number} says {match[1]} again")
        else:
            found[match[1]] = match[2]
    if faults:
        raise InvalidSettings("\n".join(f"the settings: {fault}." for fault in faults))
    return found


def _fault(line: str) -> str:
    name = re.match(r"[A-Za-z0-9_]{1,64}(?==)", line)
    if name is None:
        return "is not NAME=value, without spaces before the equals sign; a comment begins with #"
    if not name[0].startswith("BLINDBOX_"):
        return (
            f"sets {name[0]}: only names that begin with BLINDBOX_ are settings. Anything else would change "
            "what runs without changing what is measured"
        )
    return f"gives {name[0]} a value with other characters than printable ASCII, or more than 1024 of them"
