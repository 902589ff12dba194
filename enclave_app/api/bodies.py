"""
What callers may send, field by field. Unknown fields are refused by name: they are most likely misspelt.

Names and defaults are those of the house API. A refusal names the field and what it may be; it never
repeats what was in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..refusals import Refusal, TooLarge, listed, nearest

MOST_BYTES = 8 << 20

B = TypeVar("B", bound=BaseModel)
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Column = Annotated[str, Field(min_length=1, max_length=500)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Question(_Body):
    """`POST /test` and `POST /inference`."""

    input_text: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    do_sample: bool = True
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Seed | None = None


class Lesson(_Body):
    """`POST /finetune`."""

    dataset_name: Annotated[str, Field(min_length=1, max_length=200)]
    config_name: Annotated[str, Field(max_length=200)] | None = ""
    question_column: Column
    answer_column: Column
    number_elements_for_training: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    seed: Seed = 0
    on_invalid: Literal["error", "skip"] = "error"


def body(model: type[B]) -> Callable[[Request], Coroutine[Any, Any, B]]:
    """A dependency that reads the request's JSON as `model`."""

    async def read(request: Request) -> B:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MOST_BYTES:
                raise TooLarge(f"The body is larger than {MOST_BYTES >> 20} MiB.", code="body_too_large")
        try:
            found = model.model_validate_json(bytes(data))
        except ValidationError as error:
            raise _refusal(error, model, request.headers) from None
        _once_each(bytes(data))
        return found

    return read


def _once_each(data: bytes) -> None:
    """Refuse a field that is there twice: two readers could take two values for it (RFC 8259 §4)."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        for name, times in Counter(name for name, _ in pairs).items():
            if times > 1:
                raise Refusal(
                    f'The field "{name[:80]}" is there twice.', code="duplicate_field", param=name[:80]
                )

    json.loads(data, object_pairs_hook=check)


def _refusal(error: ValidationError, model: type[BaseModel], headers: Mapping[str, str]) -> Refusal:
    found = error.errors(include_input=False, include_context=False, include_url=False)
    if found[0]["type"] in ("json_invalid", "model_type"):
        where = found[0]["msg"] if found[0]["type"] == "json_invalid" else "it is not an object"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if "content-encoding" in headers:
            where = "it is encoded, and is read as it comes"
        elif kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
            where = f"it is {kind} (requests: json={{…}}, not data= or files=)"
        names = listed(model.model_fields)
        return Refusal(
            f"The body is not a JSON object: {where}. Its fields are: {names}.", code="invalid_json"
        )
    # A misspelt name makes two faults; the misspelling is the one to mend.
    found.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    told = [_told(fault["type"], str(fault["loc"][0])[:80], fault["msg"], model) for fault in found[:10]]
    code = {"extra_forbidden": "unknown_field", "missing": "missing_field"}.get(
        found[0]["type"], "invalid_value"
    )
    return Refusal(" ".join(told), code=code, param=str(found[0]["loc"][0])[:80])


def _told(kind: str, field: str, message: str, model: type[BaseModel]) -> str:
    if kind == "extra_forbidden":
        known = model.model_fields
        return f'There is no field "{field}".{nearest(field, known)} The fields are: {listed(known)}.'
    if kind == "missing":
        return f'The field "{field}" is needed.'
    return f'"{field}": {message[:1].lower()}{message[1:]}.'
