"""
`/v1/fine_tuning`: jobs in the shapes the `openai` package expects, and a preview that starts nothing.

What is asked for is read here into an `Order`, with every choice made; the rest is `../jobs/foreman.py`.
BlindBox's own wishes stand under `blindbox` in the body (`extra_body` of the package), and what it has to
tell beside OpenAI's fields stands under `blindbox` in the answer.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from blindbox_attestation.receipt import MEDIA_TYPE

from ..catalogue import checkpoint_name
from ..checkpoint import Checkpoint
from ..jobs import Event, Job, Order, Source, hyperparameters_of, recipe_told, results_of
from ..jobs.foreman import Key
from ..models_book import SUFFIX
from ..refusals import Busy, NotFound, Refusal, nearest
from ..tenants import Tenant
from ..training import Method, Recipe
from ..training.defaults import Choice
from .answers import KEEP_ALIVE_SECONDS, EventStream, unless_gone
from .bodies import Body, Column, Several, body
from .files import described
from .lists import Page
from .rooms import Asking, Rooms

CANARIES: Final = 16  # of `"memorisation": true`
MOST_CANARIES: Final = 256
HOTTEST: Final = 1.0  # learning rate: whatever is above it has never learned anything
MOST_LISTED: Final = 100
_KEY = re.compile(r"[!-~]{1,255}")
_TARGET = re.compile(r"[A-Za-z0-9_]{1,64}")

Auto = Literal["auto"]
FileId = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[int, Field(ge=1, le=1 << 40)]


class Hyperparameters(Body):
    """`hyperparameters`, and the same under `method.supervised`."""

    batch_size: Auto | Number | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] | None = None
    n_epochs: Auto | Number | None = None


class Supervised(Body):
    """`method.supervised`."""

    hyperparameters: Hyperparameters | None = None


class MethodBody(Body):
    """`method`."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Any = None
    reinforcement: Any = None


class Lora(Body):
    """`blindbox.lora`."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1, le=8192)] | None = None  # twice r
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Several[str] | None = None  # all linear layers


class Own(Body):
    """`blindbox`: what OpenAI has no words for."""

    question_column: Column | None = None
    answer_column: Column | None = None
    config_name: Annotated[str, Field(max_length=200)] | None = None
    number_elements_for_training: Number | None = None
    on_invalid: Literal["error", "skip"] = "error"
    dedup: bool = False
    method: Method = "lora"
    lora: Lora | None = None
    epochs: Number | None = None
    steps: Number | None = None
    batch_size: Number | None = None
    max_length: Number | None = None
    learning_rate: float | None = None
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    validation_split: Annotated[float, Field(ge=0, le=0.5)] | None = None  # a tenth of many rows
    answer_only: bool = True
    from_adapter: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    early_stopping: Annotated[int, Field(ge=0, le=1000)] = 0
    checkpoint_steps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    evaluate_steps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    memorisation: bool | Annotated[int, Field(ge=0, le=MOST_CANARIES)] = False


class JobBody(Body):
    """`POST /v1/fine_tuning/jobs` and `POST /v1/fine_tuning/preview`."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    training_file: FileId
    validation_file: FileId | None = None
    hyperparameters: Hyperparameters | None = None
    method: MethodBody | None = None
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=4096)] | None = None
    integrations: Any = None
    blindbox: Own = Own()


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter(prefix="/v1/fine_tuning")
    foreman = rooms.foreman

    @routes.post("/jobs")
    async def create(
        asking: Asking,
        wanted: Annotated[JobBody, Depends(body(JobBody))],
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> Any:
        if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
            message = "Idempotency-Key may be 1 to 255 visible ASCII characters."
            raise Refusal(message, code="invalid_value", param="Idempotency-Key")
        key = None if idempotency_key is None else Key.of(idempotency_key, wanted.model_dump_json())
        # Before anything is looked up: that the file is gone by now changes nothing of what was done.
        made = None if key is None else await foreman.made(asking, key)
        if made is None:
            order = await asyncio.to_thread(order_of, rooms, asking, wanted)
            made = await foreman.create(asking, order, key=key)
        return told(made)

    looking = threading.Lock()

    @routes.post("/preview")
    async def preview(
        request: Request, asking: Asking, wanted: Annotated[JobBody, Depends(body(JobBody))]
    ) -> Any:
        gone = threading.Event()

        def look() -> dict[str, Any]:
            # It reads as much as a job does: one at a time, and no longer than somebody waits for it.
            if not looking.acquire(blocking=False):
                raise Busy("Another preview is being made.", code="preview_busy", retry_after=5)
            try:
                return seen()
            finally:
                looking.release()

        def seen() -> dict[str, Any]:
            order = order_of(rooms, asking, wanted)
            reading = foreman.rows.read(asking, order, gone.is_set)
            order = foreman.rows.settle(order, reading)
            return {
                "object": "fine_tuning.preview",
                "data": reading.report,
                "estimate": foreman.rows.admit(order, reading, alone=foreman.idle),
                "recipe": recipe_told(order),
            }

        try:
            return await unless_gone(request, asyncio.to_thread(look))
        finally:
            gone.set()

    @routes.get("/jobs")
    async def jobs(request: Request, asking: Asking) -> Any:
        metadata, rest = _pairs(request.query_params)
        page = Page.of(rest, most=MOST_LISTED, default=20)
        found = await foreman.list(asking)
        wanted = [job for job in found.jobs if _has(job, metadata)]
        part = page.told([told(job) for job in wanted])
        return part | {"damaged": list(found.damaged)} if found.damaged else part

    @routes.get("/jobs/{job_id}")
    async def job(job_id: str, asking: Asking) -> Any:
        return told(await foreman.find(asking, job_id))

    @routes.delete("/jobs/{job_id}")
    async def delete(job_id: str, asking: Asking) -> Any:
        removed = await foreman.delete(asking, job_id)
        counts = {kind.replace("-", "_"): count for kind, count in sorted(removed.items())}
        return {
            "id": job_id,
            "object": "fine_tuning.job",
            "deleted": True,
            "blindbox": {"removed": counts},
        }

    @routes.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str, asking: Asking) -> Any:
        return told(await foreman.cancel(asking, job_id))

    @routes.post("/jobs/{job_id}/pause")
    async def pause(job_id: str, asking: Asking) -> Any:
        return told(await foreman.pause(asking, job_id))

    @routes.post("/jobs/{job_id}/resume")
    async def resume(job_id: str, asking: Asking) -> Any:
        return told(await foreman.resume(asking, job_id))

    @routes.get("/jobs/{job_id}/events")
    async def events(job_id: str, request: Request, asking: Asking) -> Response:
        streamed = _streamed(request)
        page = Page.of(request.query_params, most=MOST_LISTED, default=20, also=("stream",))
        if streamed:
            job = await foreman.find(asking, job_id)
            if page.after is not None and not page.after.startswith(Event(job.id, 0, 0, "").id[:-8]):
                raise NotFound("This job has no event of this id.", code="not_found", param="after")
            events = _events(rooms, asking, job_id, page.after)
            return EventStream(events, keep_alive=KEEP_ALIVE_SECONDS)
        kept = await foreman.events(asking, job_id)

        def part() -> JSONResponse:
            return JSONResponse(page.told([event.told() for event in reversed(kept)]))

        return await asyncio.to_thread(part)

    @routes.get("/jobs/{job_id}/checkpoints")
    async def checkpoints(job_id: str, request: Request, asking: Asking) -> Any:
        page = Page.of(request.query_params, most=MOST_LISTED, default=10)
        job = await foreman.find(asking, job_id)
        found = await foreman.checkpoints(asking, job_id)
        return page.told([_checkpoint(job, each) for each in found])

    @routes.get("/jobs/{job_id}/metrics")
    async def metrics(job_id: str, asking: Asking) -> Any:
        found = await foreman.metrics(asking, job_id)
        # Thousands of rows: made into JSON where nobody's answer waits for it.
        return await asyncio.to_thread(JSONResponse, {"object": "list", "data": found})

    @routes.get("/jobs/{job_id}/receipt")
    async def receipt(job_id: str, asking: Asking) -> Response:
        return Response(await foreman.receipt(asking, job_id), media_type=MEDIA_TYPE)

    return routes


# --- what is asked for ------------------------------------------------------------------------


def order_of(rooms: Rooms, tenant: Tenant, wanted: JobBody) -> Order:
    """
    The order that a body means, with every choice made that does not wait for the rows.

    1. what would send data out, or is not done here, is refused by name
    2. the model is the one that is trained on, or one of the caller's own made from it
    3. the files are the caller's
    4. the recipe is within the limits
    """
    if wanted.integrations:  # 1
        raise Refusal(
            "integrations would send what is trained on to somebody else, and nothing leaves the enclave. "
            "Leave it out; GET …/metrics tells the figures.",
            code="unsupported_field",
            param="integrations",
        )
    _metadata(wanted.metadata)
    if wanted.method is not None and wanted.method.type != "supervised":
        message = f'method.type "{wanted.method.type}" is not done here; there is "supervised".'
        raise Refusal(message, code="unsupported_value", param="method.type")
    own, suffix = wanted.blindbox, wanted.suffix or ""
    if (own.config_name or "").strip():
        message = "An uploaded file has no configurations; leave blindbox.config_name out."
        raise Refusal(message, code="unknown_config", param="blindbox.config_name")
    if not SUFFIX.fullmatch(suffix):
        message = "suffix may have up to 64 letters, digits, dots, hyphens and underscores."
        raise Refusal(message, code="invalid_value", param="suffix")
    start = _start(rooms, tenant, wanted)  # 2
    training = _source(rooms, tenant, wanted.training_file, "training_file")  # 3
    validation = None
    if wanted.validation_file is not None:
        validation = _source(rooms, tenant, wanted.validation_file, "validation_file")
        if own.validation_split:
            message = "blindbox.validation_split is for where there is no validation_file; send one of them."
            raise Refusal(message, code="invalid_value", param="blindbox.validation_split")
    recipe, left_open = _recipe(rooms, wanted)  # 4
    if recipe.patience and validation is None and own.validation_split == 0:
        message = "blindbox.early_stopping watches the validation loss; send rows to validate with."
        raise Refusal(message, code="invalid_value", param="blindbox.early_stopping")
    split = own.validation_split
    return Order(
        model=rooms.catalogue.base.name,
        training=training,
        recipe=recipe,
        validation=validation,
        validation_split=0.0 if validation is not None else split,
        question_column=own.question_column,
        answer_column=own.answer_column,
        number=own.number_elements_for_training,
        on_invalid=own.on_invalid,
        dedup=own.dedup,
        suffix=suffix,
        from_adapter=start,
        metadata=wanted.metadata,
        hyperparameters=hyperparameters_of(recipe, left_open),
        left_open=left_open,
    )


def _metadata(metadata: dict[str, str] | None) -> None:
    for name, value in (metadata or {}).items():
        if len(metadata or {}) > 16 or not 1 <= len(name) <= 64 or len(value) > 512:
            raise Refusal(
                "metadata may have up to 16 pairs: names of up to 64 characters, values of up to 512.",
                code="invalid_value",
                param="metadata",
            )


def _start(rooms: Rooms, tenant: Tenant, wanted: JobBody) -> str | None:
    """The model to go on from, if there is one: named as `model`, as OpenAI does it, or as `from_adapter`."""
    base = rooms.catalogue.base.name
    start, param = wanted.blindbox.from_adapter, "blindbox.from_adapter"
    if wanted.model.startswith("ft:") and start is None:
        start, param = wanted.model, "model"
    elif wanted.model != base:
        raise Refusal(
            f'This enclave fine-tunes "{base}".{nearest(wanted.model, [base])} A model of yours that was '
            "made of it may be named as well.",
            code="model_not_found",
            param="model",
            status=404,
        )
    if start is None:
        return None
    try:
        rooms.catalogue.check_own(tenant, start)
    except Refusal as refusal:
        raise _about(refusal, param) from None
    return start


def _source(rooms: Rooms, tenant: Tenant, name: str, param: str) -> Source:
    file = described(rooms.store, tenant, name, param=param)
    return Source(name, file.form.value, file.sha256)


def _about(refusal: Refusal, param: str) -> Refusal:
    told = type(refusal)(refusal.message, code=refusal.code, param=param)
    told.status = refusal.status
    return told


def _recipe(rooms: Rooms, wanted: JobBody) -> tuple[Recipe, tuple[Choice, ...]]:
    """Everything a trainer has to know, and what of it is decided once the rows are known."""
    settings, own, usual = rooms.settings, wanted.blindbox, Recipe()
    old, new = wanted.hyperparameters, None
    if wanted.method is not None and wanted.method.supervised is not None:
        new = wanted.method.supervised.hyperparameters
    where = "method.supervised.hyperparameters" if new is not None else "hyperparameters"
    given = new or old or Hyperparameters()
    left_open: list[Choice] = []

    def number(name: str, mine: Choice, value: int | None, usual: int, most: int) -> int:
        theirs = getattr(given, name)
        chosen, param = (value, f"blindbox.{mine}") if value is not None else (theirs, f"{where}.{name}")
        if chosen in (None, "auto"):
            left_open.append(mine)
            return usual
        if not 1 <= chosen <= most:
            raise _beyond(param, chosen, f"1 to {most}")
        return int(chosen)

    epochs = number(
        "n_epochs", "epochs", own.epochs, min(usual.epochs, settings.max_epochs), settings.max_epochs
    )
    batch = number("batch_size", "batch_size", own.batch_size, usual.batch_size, 256)
    multiplier = given.learning_rate_multiplier
    rate, param = own.learning_rate, "blindbox.learning_rate"
    if rate is None and multiplier is not None and multiplier != "auto":
        rate, param = usual.learning_rate * multiplier, f"{where}.learning_rate_multiplier"
    elif rate is None:
        left_open.append("learning_rate")
        rate = usual.learning_rate
    if not 0 < rate <= HOTTEST:
        raise _beyond(
            param, rate, f"a learning rate above 0 and up to {HOTTEST:g}; try {usual.learning_rate:g}"
        )
    most = settings.max_training_tokens
    length = most if own.max_length is None else own.max_length
    if not 8 <= length <= most:
        raise _beyond("blindbox.max_length", length, f"8 to {most}")
    rows = own.number_elements_for_training
    if rows is not None and rows > settings.max_training_rows:
        param = "blindbox.number_elements_for_training"
        raise _beyond(param, rows, f"1 to {settings.max_training_rows}")
    lora = own.lora or Lora()
    targets = tuple(dict.fromkeys(lora.target_modules or ()))
    if len(targets) > 64 or not all(_TARGET.fullmatch(target) for target in targets):
        message = "blindbox.lora.target_modules may be up to 64 names of layers, as q_proj."
        raise Refusal(message, code="invalid_value", param="blindbox.lora.target_modules")
    if own.method == "full" and own.lora is not None:
        message = 'blindbox.lora is for the methods "lora" and "qlora"; "full" trains the weights themselves.'
        raise Refusal(message, code="invalid_value", param="blindbox.lora")
    recipe = Recipe(
        method=own.method,
        epochs=epochs,
        most_steps=own.steps,
        learning_rate=rate,
        warmup=own.warmup,
        batch_size=batch,
        seed=wanted.seed or 0,
        rank=lora.r,
        alpha=2 * lora.r if lora.alpha is None else lora.alpha,
        dropout=lora.dropout,
        targets=targets,
        most_tokens=length,
        answer_only=own.answer_only,
        checkpoint_steps=own.checkpoint_steps,
        evaluate_steps=own.evaluate_steps,
        patience=own.early_stopping,
        canaries=CANARIES if own.memorisation is True else int(own.memorisation),
    )
    return recipe, tuple(left_open)


def _beyond(param: str, found: float, wanted: str) -> Refusal:
    return Refusal(f"{param} is {found:g}; it may be {wanted}.", code="invalid_value", param=param)


# --- what is told -----------------------------------------------------------------------------


def told(job: Job) -> dict[str, Any]:
    """OpenAI's job object, and under `blindbox` what it has no fields for."""
    order, at = job.order, job.progress
    eta = at.get("eta_seconds")
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": order.model,
        "status": job.status,
        "training_file": order.training.name,
        "validation_file": None if order.validation is None else order.validation.name,
        "hyperparameters": order.hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": order.hyperparameters}},
        "user_provided_suffix": order.suffix or None,
        "seed": order.recipe.seed,
        "metadata": order.metadata,
        "fine_tuned_model": job.fine_tuned_model if job.status == "succeeded" else None,
        "trained_tokens": job.report.get("tokens_learned") if job.over else None,
        "estimated_finish": job.now() + round(eta) if job.status == "running" and eta is not None else None,
        "result_files": [results_of(job.id)] if job.results else [],
        "organization_id": "",
        "integrations": [],
        "error": None
        if job.error is None
        else {"code": job.error.code, "message": job.error.message, "param": job.error.param},
        "blindbox": {
            "phase": job.phase,
            "recipe": recipe_told(order),
            "progress": {name: at.get(name) for name in _PROGRESS},
            "data": job.data,
            "estimate": job.estimate,
            "report": job.report,
            "serving": job.serving,
            "adapter": job.adapter,
            "receipt": job.receipt,
            "resumed": job.resumed,
            "resumed_from": job.resumed_from,
            "memorisation": job.report.get("memorisation"),
            "from_adapter": order.from_adapter,
            "seconds": round(job.ran_seconds, 3),
        },
    }


_PROGRESS: Final = (
    *("step", "total_steps", "percent", "loss", "validation_loss", "tokens_per_second", "eta_seconds"),
    *("learning_rate", "epoch"),
)


def _checkpoint(job: Job, kept: Checkpoint) -> dict[str, Any]:
    """OpenAI's checkpoint object."""
    return {
        "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{kept.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": kept.created_at,
        "fine_tuned_model_checkpoint": checkpoint_name(job.order.model, job.order.suffix, job.id, kept.step),
        "fine_tuning_job_id": job.id,
        "step_number": kept.step,
        "metrics": {
            "step": kept.step,
            "train_loss": kept.loss,
            "train_mean_token_accuracy": None,
            "valid_loss": kept.validation_loss,
            "valid_mean_token_accuracy": None,
            "full_valid_loss": kept.validation_loss,
            "full_valid_mean_token_accuracy": None,
        },
    }


async def _events(
    rooms: Rooms, tenant: Tenant, job_id: str, after: str | None
) -> AsyncGenerator[tuple[str, Any], None]:
    """The oldest first, each as it comes; the end is marked as OpenAI's streams mark it."""
    async with aclosing(rooms.foreman.follow(tenant, job_id)) as events:
        async for event in events:
            if after is None or event.id > after:  # they sort as they came
                yield "", event.told()
    yield "", "[DONE]"


# --- lists ------------------------------------------------------------------------------------


def _streamed(request: Request) -> bool:
    wanted = request.query_params.get("stream", "false").lower()
    if wanted not in ("true", "false", "1", "0"):
        raise Refusal('stream may be "true" or "false".', code="invalid_value", param="stream")
    return wanted in ("true", "1")


def _pairs(query: Mapping[str, str]) -> tuple[dict[str, str] | None, dict[str, str]]:
    """The pairs that listed jobs must have (`metadata[name]=value`), and the other parameters."""
    of_pairs = [name for name in query if name.startswith("metadata[") and name.endswith("]")]
    rest = {name: query[name] for name in query if name not in of_pairs and name != "metadata"}
    return {name[len("metadata[") : -1]: query[name] for name in of_pairs} or None, rest


def _has(job: Job, metadata: dict[str, str] | None) -> bool:
    return metadata is None or metadata.items() <= (job.order.metadata or {}).items()
