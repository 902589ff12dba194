"""
`blindbox.finetune`: from a file, a list of rows or a DataFrame to a job that learns from it in the enclave.

    job = blindbox.finetune("http://203.0.113.7:80", "handbook.csv", policy="release-1.0.json")
    job.wait()
    job.ask("Who signs engagement letters?")

The data is looked at here before anything is sent, by the very code that the enclave uses; then it is
uploaded under the seal, and the job is made, once, however often that call has to be sent. What a caller
leaves open is left to the enclave, whose defaults are in docs/fine-tuning.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from blindbox_data import BEGINNING, DataError, Form, Wanted, open_rows, select

from .adapter import AnyPolicyOrFile
from .api import Api
from .job_handle import JOBS, Job
from .requests import Session
from .uploading import OnProgress, upload
from .wording import as_keywords, keyword_of

Method: TypeAlias = Literal["lora", "qlora", "full"]
Data: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Any"

_PIECE: Final = 1 << 20
_FILE_ID: Final = re.compile(r"file-[a-z0-9-]{8,59}")


def finetune(
    origin: str,
    data: Data,
    *,
    policy: AnyPolicyOrFile | None = None,
    session: Session | None = None,
    model: str | None = None,
    name: str | None = None,
    validation: Data | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    number_elements_for_training: int | None = None,
    on_invalid: Literal["error", "skip"] | None = None,
    dedup: bool | None = None,
    method: Method | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    learning_rate: float | None = None,
    learning_rate_multiplier: float | None = None,
    warmup: float | None = None,
    r: int | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    target_modules: list[str] | None = None,
    validation_split: float | None = None,
    answer_only: bool | None = None,
    from_adapter: str | None = None,
    early_stopping: int | None = None,
    checkpoint_steps: int | None = None,
    evaluate_steps: int | None = None,
    memorisation: bool | int | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    key: str | None = None,
    check: bool = True,
    on_upload: OnProgress | None = None,
) -> Job:
    """
    Send `data` to an enclave that has proved itself, and begin to fine-tune on it.

    `data` is a path (JSON Lines, JSON, CSV, Parquet), rows (an iterable of mappings, a DataFrame), or the id
    of a file that is there already. Its shape is found from the first row: chat `messages`,
    prompt/completion, instruction/input/output, question/answer, or `text`; `question_column` and
    `answer_column` name other columns, and naming one column twice learns it as plain text.

    The other options are those of docs/fine-tuning.md; None leaves a choice to the enclave. `name` becomes
    part of the tuned model's name. `key` makes two calls with the same key one job. `check=False` sends a
    file unseen. `on_upload` is called with the bytes sent so far, and all there are.

    Raises `DataError` for data that cannot be used, before anything is sent, and `Refused` in the enclave's
    words.
    """
    wanted = Wanted(
        question_column=question_column,
        answer_column=answer_column,
        number=number_elements_for_training,
        on_invalid=on_invalid or "error",
        dedup=bool(dedup),
    )
    lora = _given(r=r, alpha=alpha, dropout=dropout, target_modules=target_modules)
    ours = _given(
        question_column=question_column,
        answer_column=answer_column,
        number_elements_for_training=number_elements_for_training,
        on_invalid=on_invalid,
        dedup=dedup,
        method=method,
        lora=lora or None,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        warmup=warmup,
        validation_split=validation_split,
        answer_only=answer_only,
        from_adapter=from_adapter,
        early_stopping=early_stopping,
        checkpoint_steps=checkpoint_steps,
        evaluate_steps=evaluate_steps,
        memorisation=memorisation,
    )
    multiplier = _given(learning_rate_multiplier=learning_rate_multiplier)
    learned = Material.of(data)
    held_back = None if validation is None else Material.of(validation)
    with learned, held_back or Material(""):
        if check:
            learned.check(wanted)
            if held_back is not None:
                held_back.check(replace(wanted, number=None))
        api = Api(origin, policy, session=session)
        body = _given(
            model=model or _only_base(api),
            training_file=learned.uploaded(api, on_upload),
            validation_file=None if held_back is None else held_back.uploaded(api, on_upload),
            suffix=name,
            seed=seed,
            metadata=None if metadata is None else dict(metadata),
            hyperparameters=multiplier or None,
            blindbox=ours,
        )
    told = api.ask("POST", JOBS, body, key=key or secrets.token_hex(16))
    return Job(api, told, data_sha256=learned.sha256)


@dataclass
class Material:
    """Data on its way: an open file with a name, or the id of a file that the enclave has."""

    filename: str
    file: BinaryIO | None = None
    id: str | None = None
    sha256: bytes | None = None  # of what was sent

    @classmethod
    def of(cls, data: Data) -> Material:
        """What a caller gave; a path is opened."""
        if isinstance(data, str) and _FILE_ID.fullmatch(data) and not os.path.exists(data):
            return cls(data, id=data)
        if isinstance(data, str | os.PathLike):
            path = Path(data)
            return cls(path.name, open(path, "rb"))
        return cls("rows.jsonl", io.BytesIO(_lines(_rows(data))))

    def check(self, wanted: Wanted) -> None:
        """Raise `DataError` where the enclave would; what it has already, it checked."""
        try:
            self._check(wanted)
        except DataError as error:
            raise DataError(
                as_keywords(error.message), code=error.code, param=keyword_of(error.param)
            ) from None

    def _check(self, wanted: Wanted) -> None:
        if self.file is None:
            return
        form = Form.of(self.filename, self.file.read(BEGINNING))
        self.file.seek(0)
        if form is not Form.PARQUET or find_spec("pyarrow") is not None:  # else the enclave alone looks at it
            select(open_rows(self.file, form, wanted), wanted)
            self.file.seek(0)

    def uploaded(self, api: Api, on_progress: OnProgress | None = None) -> str:
        """The id of the file in the enclave."""
        if self.id is None:
            assert self.file is not None
            digest = hashlib.sha256()
            while piece := self.file.read(_PIECE):
                digest.update(piece)
            self.sha256 = digest.digest()
            self.file.seek(0)
            self.id = upload(api, self.file, self.filename, on_progress=on_progress)
        return self.id

    def __enter__(self) -> Material:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def _given(**options: Any) -> dict[str, Any]:
    """Those that were not left open."""
    return {name: value for name, value in options.items() if value is not None}


def _only_base(api: Api) -> str:
    """The model that the enclave teaches: the first that it lists, which is the base model."""
    listed = api.ask("GET", "/v1/models").get("data")
    names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return next((name for name in names if isinstance(name, str)), "")


def _rows(data: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a list, of a DataFrame (pandas, polars), or of anything that gives mappings."""
    if isinstance(data, Mapping):
        raise DataError(
            "data is one mapping; give a list of rows, each a mapping of column names to values.",
            code="wrong_type",
            param="data",
        )
    if hasattr(data, "to_dicts"):
        data = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = data.to_dict(orient="records")
    try:
        rows = iter(data)
    except TypeError:
        raise DataError(
            f"data is a {type(data).__name__}; give a path, a list of rows, a DataFrame, or a file's id.",
            code="wrong_type",
            param="data",
        ) from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"Row {number} is a {type(row).__name__}; a row maps column names to values.",
                code="wrong_type",
                param="data",
            )
        yield row


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON Lines. What is no number (NaN, as pandas has it for nothing) is null."""
    text = io.StringIO()
    for number, row in enumerate(rows, 1):
        cells = {str(name): _plain(value) for name, value in row.items()}
        try:
            text.write(json.dumps(cells, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"Row {number} has a value that JSON cannot say ({type(error).__name__}); "
                "cells are texts, or lists of messages.",
                code="wrong_type",
                param="data",
            ) from None
        text.write("\n")
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError:
        raise DataError(
            "A text has half a character in it (a lone surrogate); was it cut in the middle?",
            code="invalid_encoding",
            param="data",
        ) from None


def _plain(value: Any) -> Any:
    """A cell as JSON knows it: numbers of numpy become Python's, and arrays lists."""
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
