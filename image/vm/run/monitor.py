"""
QEMU's monitor: the buttons of a machine that runs.

Protocol: QEMU's docs/interop/qmp-spec.rst, a JSON object a line. What can be asked: qapi/*.json.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from ..errors import FailedProgram

_PATIENCE: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Monitor:
    """Where QEMU listens. It takes one caller at a time."""

    path: Path

    def ask(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns. Raises `FailedProgram` if that is an error, `OSError` if QEMU is gone."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(str(self.path))
            with connection.makefile("rb") as lines:
                _line(lines)  # the greeting
                _asked(connection, lines, "qmp_capabilities", {})
                return _asked(connection, lines, command, arguments)


def _asked(connection: socket.socket, lines: IO[bytes], command: str, arguments: dict[str, Any]) -> Any:
    connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    while True:
        answer = _line(lines)
        if "error" in answer:
            raise FailedProgram(f"QEMU does not {command}: {answer['error'].get('desc')}")
        if "return" in answer:  # what else comes tells of events
            return answer["return"]


def _line(lines: IO[bytes]) -> dict[str, Any]:
    line = lines.readline()
    if not line:
        raise ConnectionError("QEMU is gone")
    found: dict[str, Any] = json.loads(line)
    return found
