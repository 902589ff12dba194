"""
What the app refuses, in words meant for the caller: what was found, what was expected, what to do.

A refusal says nothing of prompts, answers or rows; column names and row numbers are as far as it goes.
Its shape on the wire is that of SPEC §5.6. How it becomes a response is decided in `api/answers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blindbox_data.errors import DataError
from blindbox_data.errors import listed as listed
from blindbox_data.errors import nearest as nearest


class Refusal(Exception):
    """A request that cannot be served as it stands: `code` in one stable word, `param` the field at fault."""

    status = 400
    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        status: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = self.status if status is None else status
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error object of SPEC §5.6."""
        about = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": about}


class NotAuthenticated(Refusal):
    """No tenant is named, so there is nobody to answer for."""

    status = 401
    type = "authentication_error"


class NotFound(Refusal):
    """The tenant owns nothing of that name; whether another tenant does is not said."""

    status = 404


class Conflict(Refusal):
    """It cannot be done beside something this tenant is doing already."""

    status = 409
    type = "conflict_error"


class TooLarge(Refusal):
    """More bytes than this enclave takes."""

    status = 413


class RateLimited(Refusal):
    """This tenant has as much waiting or running as one may have; others are served."""

    status = 429
    type = "rate_limit_error"


class Busy(Refusal):
    """Everything works, but too many are waiting already."""

    status = 503
    type = "server_error"


class Failed(Refusal):
    """Our side failed; nothing of the caller's was lost."""

    status = 500
    type = "server_error"


def of_data(error: DataError, names: Mapping[str, str] | None = None) -> Refusal:
    """
    What is wrong with a data set, as a refusal.

    `names` says how this route spells the fields that the house API calls `dataset_name`, `question_column` …
    """
    return Refusal(error.message, code=error.code, param=(names or {}).get(error.param, error.param))
