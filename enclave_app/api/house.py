"""
The house API: `/test`, `/inference`, `/finetune` (also `/fine_tune` and `/finetuning`).

`/test` is the instruct model, `/inference` the caller's newest tuned model, or the base model before that.
`/finetune` is a job (`jobs.py`) whose caller waits: it answers when done, tells its progress on the way where
`Accept: text/event-stream` asks for it, and is cancelled when the caller hangs up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from ..catalogue import Served
from ..engines import Sampling
from ..jobs import Job, Order, Source, hyperparameters_of
from ..jobs.ears import Ear
from ..refusals import Busy, Conflict, Failed, NotFound, Refusal
from ..tenants import Tenant
from ..training import Progress, Recipe
from ..training.defaults import CHOICES
from .answers import KEEP_ALIVE_SECONDS, EventStream, unless_gone
from .asking import PromptReader, ask
from .bodies import COLDEST, Lesson, Question, body
from .files import described
from .rooms import Asking, Rooms
from .wishes import new_tokens

NEW_TOKENS: Final = 128
DONE: Final = "The model has successfully been finetuned using your dataset"


def router(rooms: Rooms) -> APIRouter:
    """The routes, over these rooms."""
    routes = APIRouter()

    @routes.get("/")
    async def alive() -> Any:
        return {"status": "alive"}

    @routes.post("/test")
    async def test(
        request: Request, asking: Asking, question: Annotated[Question, Depends(body(Question))]
    ) -> Any:
        await rooms.catalogue.open()
        served = rooms.catalogue.untuned(rooms.catalogue.instruct)
        return await unless_gone(request, _answer(rooms, asking, served, question))

    @routes.post("/inference")
    async def inference(
        request: Request, asking: Asking, question: Annotated[Question, Depends(body(Question))]
    ) -> Any:
        await rooms.catalogue.open()
        served = await rooms.catalogue.mine(asking) or rooms.catalogue.untuned(rooms.catalogue.base)
        return await unless_gone(request, _answer(rooms, asking, served, question))

    @routes.post("/finetune")
    @routes.post("/fine_tune")
    @routes.post("/finetuning")
    async def finetune(
        request: Request, asking: Asking, lesson: Annotated[Lesson, Depends(body(Lesson))]
    ) -> Response:
        order = await asyncio.to_thread(_order, rooms, asking, lesson)
        ear = Ear()
        job = await rooms.foreman.create(asking, order, alone=True, ear=ear)
        # Whoever hangs up cancels it, also before the first word of the answer.
        held = rooms.foreman.held(job)
        events = _told(rooms, asking, job, ear)
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStream(events, held, keep_alive=KEEP_ALIVE_SECONDS)
        with held:
            return JSONResponse(await unless_gone(request, _finished(events)))

    return routes


async def _answer(rooms: Rooms, asking: Tenant, served: Served, question: Question) -> dict[str, str]:
    if not question.input_text.strip():
        raise Refusal("input_text is blank.", code="invalid_value", param="input_text")
    words = PromptReader(served, rooms.catalogue.card(served), "input_text")
    ids = await asyncio.to_thread(served.template.prompt, words, question.input_text)
    length = new_tokens(
        {"max_new_tokens": question.max_new_tokens},
        rooms.settings,
        rooms.catalogue.card(served),
        len(ids),
        otherwise=NEW_TOKENS,
    )
    sampling = _sampling(question, length)
    text, finish = [], "length"
    async with await ask(rooms, asking, served, ids, sampling, param="input_text") as answer:
        async for piece in answer:
            text.append(piece.text)
            finish = piece.finish or finish
    completion = "".join(text)
    return {
        "text": question.input_text + served.template.joint + completion,
        "completion": completion,
        "finish_reason": finish,
    }


def _sampling(question: Question, new_tokens: int) -> Sampling:
    temperature = 1.0 if question.temperature is None else question.temperature
    return Sampling(
        max_new_tokens=new_tokens,
        do_sample=question.do_sample and temperature >= COLDEST,
        top_k=question.top_k,
        top_p=1.0 if question.top_p is None else question.top_p,
        temperature=max(temperature, COLDEST),
        seed=question.seed,
    )


def _order(rooms: Rooms, tenant: Tenant, lesson: Lesson) -> Order:
    settings, name = rooms.settings, lesson.dataset_name
    if lesson.epochs is not None and lesson.epochs > settings.max_epochs:
        raise Refusal(f"epochs may be 1 to {settings.max_epochs}.", code="invalid_value", param="epochs")
    if lesson.number_elements_for_training > settings.max_training_rows:
        raise Refusal(
            f"number_elements_for_training may be 1 to {settings.max_training_rows}.",
            code="invalid_value",
            param="number_elements_for_training",
        )
    config = (lesson.config_name or "").strip() or None
    if not name.startswith("file-"):
        training = Source(name, config=config, hub=True)
    elif config is not None:
        raise Refusal(
            'An uploaded file has no configurations; send config_name as "".',
            code="unknown_config",
            param="config_name",
        )
    else:
        file = described(rooms.store, tenant, name, param="dataset_name")
        training = Source(name, file.form.value, file.sha256)
    chosen = {name: getattr(lesson, name) for name in CHOICES}
    said: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    recipe = Recipe(seed=lesson.seed, most_tokens=settings.max_training_tokens, **said)
    left_open = tuple(name for name in chosen if name not in said)
    return Order(
        model=rooms.catalogue.base.name,
        training=training,
        recipe=recipe,
        question_column=lesson.question_column,
        answer_column=lesson.answer_column,
        number=lesson.number_elements_for_training,
        on_invalid=lesson.on_invalid,
        hyperparameters=hyperparameters_of(recipe, left_open),
        of_house=True,
        left_open=left_open,
    )


async def _finished(events: AsyncGenerator[tuple[str, Any], None]) -> dict[str, Any]:
    """The result alone."""
    async with aclosing(events):
        async for name, event in events:
            if name == "result":
                result: dict[str, Any] = event
                return result
    raise AssertionError("a training ends with a result or an error")


async def _told(rooms: Rooms, tenant: Tenant, job: Job, ear: Ear) -> AsyncGenerator[tuple[str, Any], None]:
    """Progress as it comes, then the result. The model is published before the result is told."""
    began, ready = time.monotonic(), False
    async with aclosing(ear.items()) as items:
        async for item in items:
            if isinstance(item, Progress):
                if not ready:  # not before: what is wrong with the rows is told by a status
                    ready = True
                    yield "progress", _progress(Progress("reading"))
                if item.phase != "reading":
                    yield "progress", _progress(item)
    job = await rooms.foreman.find(tenant, job.id)
    if job.status != "succeeded":
        raise _why(job)
    yield "result", _result(job, time.monotonic() - began)


def _progress(at: Progress) -> dict[str, Any]:
    return {name: getattr(at, name) for name in ("phase", "step", "total_steps", "loss", "eta_seconds")}


def _why(job: Job) -> Refusal:
    """Why there is no result."""
    if job.live:
        return Busy(
            f"The enclave is stopping. The job {job.id} goes on once it is back and you ask for it.",
            code="stopping",
            retry_after=30,
        )
    if job.error is None:
        return Conflict(
            f"The fine-tuning is {job.status}: it was stopped by its job.", code="training_stopped"
        )
    kind = NotFound if job.error.status == 404 else Failed if job.error.status >= 500 else Refusal
    # The job's own words, for the house API's names of the fields.
    param = "dataset_name" if job.error.param == "training_file" else job.error.param
    return kind(job.error.message, code=job.error.code, param=param, status=job.error.status)


def _result(job: Job, seconds: float) -> dict[str, Any]:
    data = job.data or {}
    dropped = [row for rows in data.get("dropped", {}).values() for row in rows["rows"]]
    return {
        "text": DONE,
        "rows_used": data.get("rows_used"),
        **job.report,
        "rows_skipped": data.get("rows_dropped", 0),
        "skipped_rows": sorted(dropped)[:100],
        "adapter": job.adapter,
        "seconds": round(seconds, 3),
        "job": job.id,
        "model": job.fine_tuned_model,
    }
