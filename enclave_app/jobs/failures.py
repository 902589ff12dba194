"""
Why a job failed: from an exception to what its owner is told.

The words of an unexpected error could hold a row: they go nowhere, and the log has its type and its place.
"""

from __future__ import annotations

import errno
import logging

from ..refusals import Refusal
from ..training import TrainingFailed, Unlearnable
from . import Failure

log = logging.getLogger("enclave_app")


def failure_of(error: BaseException) -> Failure:
    """What the owner of the job is told of it."""
    if isinstance(error, Refusal):
        return Failure(error.message, error.code, error.param, error.status)
    if isinstance(error, Unlearnable):
        return Failure(str(error), error.code)
    if isinstance(error, TrainingFailed):
        return Failure(str(error), error.code, status=500)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(
            "The enclave's disk is full; delete what you no longer need, or try again later.",
            "no_space",
            status=507,
        )
    if isinstance(error, MemoryError):
        return Failure("The enclave ran out of memory. Use fewer or shorter rows.", "no_memory", status=503)
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    log.error("unexpected %s at %s", type(error).__name__, place)
    return Failure(
        "Something failed inside the enclave; nothing of yours was lost. Trying again may help.",
        "internal_error",
        status=500,
    )
