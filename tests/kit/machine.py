"""A machine without any hardware of its own, and one with the doors that a test gives it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from enclave_app.quoting.machine import Machine
from enclave_app.quoting.tpm_commands import Transport

NOWHERE = Path("/nonexistent")


def no_tpm() -> Transport:
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def bare_machine(**doors: Any) -> Machine:
    """No hardware but these doors, whatever the tests run on."""
    nowhere: dict[str, Any] = {
        "tsm_reports": NOWHERE,
        "ccel": NOWHERE,
        "tee_devices": (),
        "open_tpm": no_tpm,
        "tpm_event_log": NOWHERE,
        "metadata": "http://127.0.0.1:9",
        "nsm": NOWHERE,
        "launcher": NOWHERE,
        "command_line": NOWHERE,
    }
    return Machine(**(nowhere | doors))
