"""A whole fake world: vendors that sign, enclaves that run on loopback, boxes in the middle that lie."""

from datetime import UTC, datetime

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
"""The time at which unit tests happen."""
