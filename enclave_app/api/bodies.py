"""
How a body is read, and what the house API's bodies hold, field by field.

Unknown fields are refused by name: they are most likely misspelt. A refusal names the field, however deep it
lies (`messages[3].role`), and what it may be; it never repeats what was in it. The bodies of the other APIs
stand beside their routes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from ..refusals import Refusal, TooLarge, listed, nearest

MOST_BYTES: Final = 8 << 20
MOST_FIELDS: Final = 4096
"""Of one object, known or not: each unknown one is a fault, and a million faults are gigabytes."""
_LARGE: Final = 64 << 10  # read on a thread: others are served meanwhile
COLDEST: Final = 1e-3
"""Below this temperature the likeliest token is taken: to divide by less would leave what floats can hold."""

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


class _FailFast(FailFast):
    def __hash__(self) -> int:  # pydantic's has none, and unions of types need one
        return hash(_FailFast)


Several = Annotated[list[T], _FailFast()]
"""A list of which the first fault is told: to collect all those of a long one would take minutes."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Column = Annotated[str, Field(min_length=1, max_length=500)]


class Body(BaseModel):
    """A JSON object with these fields and no others, each of exactly its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Question(Body):
    """`POST /test` and `POST /inference`."""

    input_text: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # 128, or what fits
    do_sample: bool = True
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Seed | None = None


class Lesson(Body):
    """`POST /finetune`."""

    dataset_name: Annotated[str, Field(min_length=1, max_length=200)]
    config_name: Annotated[str, Field(max_length=200)] | None = ""
    question_column: Column
    answer_column: Column
    number_elements_for_training: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)] | None = None  # these three: what suits so many rows
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
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
        if len(data) < _LARGE:
            return _as(model, bytes(data), request.headers)
        return await asyncio.to_thread(_as, model, bytes(data), request.headers)

    return read


def _as(model: type[B], data: bytes, headers: Mapping[str, str]) -> B:
    try:
        json.loads(data, object_pairs_hook=_look_over)  # first: pydantic would tell of all faults there are
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error, model, headers) from None
    except json.JSONDecodeError as error:
        where = f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno} column {error.colno}"
        raise _not_json(where, model, headers) from None
    except (ValueError, RecursionError):
        where = "it is no UTF-8, or has a number too long or a nesting too deep to be read"
        raise _not_json(where, model, headers) from None


def _look_over(pairs: list[tuple[str, Any]]) -> None:
    """
    Refuse a field that is there twice, and more fields than anybody needs.

    Of one that is there twice, two readers could take two values (RFC 8259 §4).
    """
    if len(pairs) > MOST_FIELDS:
        raise Refusal(f"An object may have up to {MOST_FIELDS} fields.", code="too_many_fields")
    if len(dict(pairs)) == len(pairs):
        return
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise Refusal(f'The field "{name[:80]}" is there twice.', code="duplicate_field", param=name[:80])


def _not_json(where: str, model: type[BaseModel], headers: Mapping[str, str]) -> Refusal:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if "content-encoding" in headers:
        where = "it is encoded, and is read as it comes"
    elif kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        where = f"it is {kind} (requests: json={{…}}, not data= or files=)"
    names = listed(model.model_fields)
    return Refusal(f"The body is not a JSON object: {where}. Its fields are: {names}.", code="invalid_json")


def _refusal(error: ValidationError, model: type[BaseModel], headers: Mapping[str, str]) -> Refusal:
    found = error.errors(include_input=False, include_context=False, include_url=False)
    if not found[0]["loc"]:  # nothing of it could be read
        where = found[0]["msg"] if found[0]["type"] == "json_invalid" else "it is not an object"
        return _not_json(where, model, headers)
    # A misspelt name makes two faults; the misspelling is the one to mend.
    found.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    del found[_FAULTS:]
    paths = [_path(fault["loc"]) for fault in found]
    told: dict[str, list[str]] = {}
    for path, fault in zip(paths, found, strict=True):
        # Where one of several types was tried and fitted further in, that it is not the others says nothing.
        if not any(deeper.startswith((f"{path}.", f"{path}[")) for deeper in paths):
            told.setdefault(path, []).append(_told(fault["type"], fault["loc"], fault["msg"], model))
    code = {"extra_forbidden": "unknown_field", "missing": "missing_field"}.get(
        found[0]["type"], "invalid_value"
    )
    words = [f"{'; or '.join(dict.fromkeys(each))}." for each in told.values()]
    return Refusal(" ".join(words), code=code, param=next(iter(told)))


def _told(kind: str, where: tuple[int | str, ...], message: str, model: type[BaseModel]) -> str:
    field = _path(where)
    if kind == "extra_forbidden":
        known = _fields(model, where[:-1])
        return f'There is no field "{field}".{nearest(str(where[-1]), known)} The fields are: {listed(known)}'
    if kind == "missing":
        return f'The field "{field}" is needed'
    return f'"{field}": {message[:1].lower()}{message[1:]}'


def _path(where: tuple[int | str, ...]) -> str:
    """`messages[3].role`. pydantic adds the names of a union's types, which are no part of the way."""
    path = ""
    for at, step in enumerate(where):
        if isinstance(step, int):
            path += f"[{step}]"
        elif at == 0 or not _OF_A_UNION.fullmatch(step):
            path += f".{step}" if path else step
    return path[:120]


_FAULTS: Final = 10
_OF_A_UNION = re.compile(
    r"str|int|float|bool|none|dict|literal|(?:list|dict|literal|function|constrained)[\[-].*|[A-Z]\w*"
)


def _fields(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The names of the fields at this place of a body."""
    here = [model]
    for step in where:
        fields = [each.model_fields[str(step)] for each in here if str(step) in each.model_fields]
        here = [made for field in fields for made in _models(field.annotation)] or here
    return [name for each in here for name in each.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [made for part in get_args(annotation) for made in _models(part)]
