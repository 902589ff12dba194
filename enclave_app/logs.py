"""
What is logged: JSON, a line each, with the fields named here and no others (threats.md S-20).

The text of a line is told only where the app itself wrote it. What libraries log may quote what they were
given (asyncio prints exceptions, with their text), so of theirs remain the level, the name and the place in
the code. An exception is told by its type: its text and its frames may hold what was being processed.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Final

OURS: Final = ("enclave_app", "blindbox")
"""Loggers whose words are constants of this program, and what is named in `FIELDS`."""

FIELDS: Final = ("status", "milliseconds", "route", "code", "engine", "restarts", "error", "seconds")
FIELDS_OF_STARTING: Final = ("host", "port", "proved_by")
_PLAIN = re.compile(r"[ -~]{0,200}")


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "event", …}`."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name.partition(".")[0] in OURS:
            told["event"] = record.getMessage().partition("\n")[0]
            for name in (*FIELDS, *FIELDS_OF_STARTING):
                value = getattr(record, name, None)
                if isinstance(value, int | float) or (isinstance(value, str) and _PLAIN.fullmatch(value)):
                    told[name] = value
        else:
            told["at"] = f"{record.filename}:{record.lineno}"
        kind = record.exc_info[0] if record.exc_info else None
        if kind is not None:
            told["error"] = kind.__name__
        return json.dumps(told, ensure_ascii=True)


def to_stderr() -> None:
    """Log this way, from here on: ours from `info`, others' from `warning`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
