"""
Data sets that nobody uploaded: fetched from the public hub where the operator allows it, else refused.

Only files of data are ever read, never a data set's script. Rows leave here as they stand; they are judged
where all rows are (`blindbox_data`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from .refusals import Failed, NotFound, Refusal

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Hub(Protocol):
    """Where data sets that nobody uploaded come from."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]: ...


class NoHub:
    """The rule: what is trained on is uploaded, so that no third party learns of it."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]:
        raise NotFound(
            "There is no uploaded data set of this name, and this enclave fetches nothing from outside. "
            'Upload a file with POST /v1/files (purpose "fine-tune") and send its id as dataset_name.',
            code="dataset_not_found",
            param="dataset_name",
            status=400,
        )


class HuggingFaceHub:
    """Public data sets, where the operator allows outbound traffic: data files only, never scripts."""

    def rows(self, name: str, config: str | None, number: int) -> Iterator[Mapping[str, Any]]:
        if not _HUB_NAME.fullmatch(name) or ".." in name:
            raise Refusal(
                'dataset_name is neither the id of an uploaded file ("file-…") nor a name like "ORG/NAME".',
                code="dataset_not_found",
                param="dataset_name",
            )
        from datasets import load_dataset
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            check_repository(HfApi().list_repo_files(name, repo_type="dataset"))
            rows = load_dataset(name, config, split="train", streaming=True)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403, 404):
                message = "The hub has no public data set of this name."
                raise Refusal(message, code="dataset_not_found", param="dataset_name") from None
            raise Failed(
                "The hub did not answer; try again later.", code="hub_unreachable", status=503
            ) from None
        except (ValueError, FileNotFoundError):
            message = "The data set has no such config_name, or no train split."
            raise Refusal(message, code="unknown_config", param="config_name") from None
        except OSError:
            raise Failed(
                "The hub cannot be reached; try again later.", code="hub_unreachable", status=503
            ) from None
        yield from islice(rows, number)


def check_repository(files: list[str]) -> None:
    """Refuse a repository that carries code, or nothing that could be read as data (threats.md S-18)."""
    if any(name.endswith(".py") for name in files):
        raise Refusal(
            "This data set is made by a script, and scripts are never run here. Upload its rows as a file.",
            code="unsafe_dataset",
            param="dataset_name",
        )
    if not any(name.endswith((".parquet", ".jsonl", ".json", ".csv")) for name in files):
        message = "This data set has no Parquet, JSON or CSV files."
        raise Refusal(message, code="invalid_file_format", param="dataset_name")


def numbered(rows: Iterator[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers, for sources that do not count."""
    return iter(enumerate(rows, start=1))
