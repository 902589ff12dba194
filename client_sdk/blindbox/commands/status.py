"""What the command `blindbox` ends with: its exit status, and one line about why."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..printable import plain
from ..wording import as_options, option_of

if TYPE_CHECKING:
    from ..errors import JobFailed, Refused

DONE: Final = 0
NOT_PROVED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
FAILED: Final = 4
INTERRUPTED: Final = 130


def status_of(error: Exception, origin: str | None = None) -> tuple[int, str]:
    """
    The exit status for an error, and what is said about it. Raises it again if it is none of ours.

    `origin` is whom the command asked.
    """
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
        return USAGE, f"refused: {_told(error, origin)}"
    if isinstance(error, JobFailed):
        return FAILED, _told(error, origin)
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


def _told(error: Refused | JobFailed, origin: str | None) -> str:
    """What the enclave said, in the command line's words, and the words for programs."""
    about = [word for word in (error.param and option_of(error.param), error.code) if word]
    return plain(as_options(error.message, error.param, origin)) + (f" [{', '.join(about)}]" if about else "")


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
