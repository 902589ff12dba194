"""Data sets by their name on a hub: only where the operator allows it, only plain names, never scripts."""

from __future__ import annotations

import pytest

from enclave_app.hub import HuggingFaceHub, NoHub, check_repository
from enclave_app.refusals import Refusal


def test_without_leave_nothing_is_fetched_from_a_hub() -> None:
    """S-19: the refusal comes from a function that opens no socket, and says what to do instead."""
    with pytest.raises(Refusal, match="POST /v1/files"):
        list(NoHub().rows("org/name", None, 1))


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "a/b/c",
        "../x",
        "a/..",
        "http://evil/x",
        "http:\\\\evil",
        "//evil/x",
        "/etc/passwd",
        "a/b@c",
        "org/na me",
    ],
)
def test_only_plain_names_ever_reach_the_hub(name: str) -> None:
    """S-19: neither addresses nor paths."""
    with pytest.raises(Refusal, match="ORG/NAME"):
        list(HuggingFaceHub().rows(name, None, 1))


def test_a_hub_repository_with_a_script_is_refused() -> None:
    """S-18: whatever else is in it."""
    check_repository(["README.md", "data/train.parquet"])
    with pytest.raises(Refusal, match="scripts are never run"):
        check_repository(["data/train.parquet", "squad.py"])
    with pytest.raises(Refusal, match="no Parquet"):
        check_repository(["README.md", "data.tar.gz"])
