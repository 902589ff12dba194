"""What the command `blindbox` ends with: its exit status, and one line about why."""

from __future__ import annotations

import re
import sys
from typing import Final
from urllib.parse import urlsplit

from ..printable import plain

DONE: Final = 0
NOT_PROVED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
FAILED: Final = 4
_OPTIONS: Final = {
    "question_column": "--question-column",
    "answer_column": "--answer-column",
    "number_elements_for_training": "--number",
}


def status_of(error: Exception) -> tuple[int, str]:
    """The exit status for an error, and what is said about it. Raises it again if it is none of ours."""
    from requests import RequestException

    from ..errors import (
        AttestationError,
        InvalidPolicy,
        JobFailed,
        NoPolicy,
        ReceiptMismatch,
        ReceiptRefused,
        Refused,
        SealingError,
        UnreadableProof,
        UnreadableReceipt,
    )

    if isinstance(error, NoPolicy):  # which says what to type, in lines of its own
        return USAGE, str(error)
    why = plain(str(error))
    if isinstance(error, InvalidPolicy | UnreadableProof | UnreadableReceipt):
        return USAGE, why
    if isinstance(error, Refused):
        about = [word for word in (error.param, error.code) if word]
        return USAGE, f"refused: {why}" + (f" [{', '.join(about)}]" if about else "")
    if isinstance(error, JobFailed):
        return FAILED, why
    if isinstance(error, ReceiptMismatch):
        return NOT_PROVED, f"does not fit: {why} [{error.code}]"
    if isinstance(error, AttestationError | ReceiptRefused):
        return NOT_PROVED, f"not proved: {why} [{error.code}]"
    if isinstance(error, SealingError):  # its key configuration, well proved, is none that is spoken here
        return NOT_PROVED, f"not proved: {why}"
    if isinstance(error, ValueError):  # the URL; some of them are RequestExceptions too
        return USAGE, why
    if isinstance(error, RequestException):
        return UNREACHABLE, f"not reached: {_asked(error)}{_brief(error)}"
    if isinstance(error, OSError):
        return USAGE, f"{error.filename or 'file'}: {error.strerror or error}"
    raise error


def complain(message: str, status: int) -> int:
    """Say it where errors belong, and return the status."""
    for number, line in enumerate(message.split("\n")):
        print(plain(line if number else f"blindbox: {line}"), file=sys.stderr)
    return status


def as_options(message: str) -> str:
    """A message about data, which is worded for callers of the API, in the command line's words."""
    message = message.replace('send "on_invalid": "skip"', "say --on-invalid skip")
    message = message.replace(" and upload it again", "").replace("; upload the file", "; take the file")
    for field, option in _OPTIONS.items():
        message = re.sub(rf"\b{field}\b", option, message)
    return message


def _asked(error: Exception) -> str:
    """Who was asked: the machine, or a vendor on the way to its proof."""
    asked = urlsplit(getattr(getattr(error, "request", None), "url", None) or "")
    return plain(f"{asked.scheme}://{asked.netloc.rpartition('@')[2]}: ") if asked.netloc else ""


def _brief(error: BaseException) -> str:
    """The first sentence of what the network layers tell."""
    from requests.exceptions import SSLError

    if isinstance(error, SSLError) and "WRONG_VERSION_NUMBER" in str(error):
        return "it does not speak TLS at this port; did you mean http://?"
    reason = getattr(error.args[0], "reason", None) if error.args else None
    why = str(reason or error).rpartition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", why) or type(error).__name__
