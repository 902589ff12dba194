"""
The house API: `/test`, `/inference`, `/finetune` (also `/fine_tune` and `/finetuning`).

`/test` is the instruct model, `/inference` the caller's tuned model (the base model before any tuning).
`/finetune` answers when done; with `Accept: text/event-stream` it tells its progress on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from ..catalogue import ADAPTERS, CURRENT, Served
from ..datasets import Pairs, Wanted, numbered, read, select
from ..engines import Sampling
from ..refusals import Refusal
from ..tenants import Tenant
from ..training import Progress, Recipe, Trained
from ..training.workshop import Place
from .answers import EventStream, unless_gone
from .asking import PromptReader, ask
from .bodies import COLDEST, Lesson, Question, body
from .files import described, unsealed
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
        recipe = _recipe(rooms, lesson)
        with rooms.workshop.enter(asking.id) as place:
            data = await _data(rooms, asking, lesson)
            if "text/event-stream" not in request.headers.get("accept", ""):
                return JSONResponse(await unless_gone(request, _finished(rooms, asking, place, data, recipe)))
        # Taken again without an await between: nobody can have come in.
        place = rooms.workshop.enter(asking.id)
        return EventStream(_told(rooms, asking, place, data, recipe), place)

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


def _recipe(rooms: Rooms, lesson: Lesson) -> Recipe:
    settings = rooms.settings
    if lesson.epochs > settings.max_epochs:
        raise Refusal(f"epochs may be 1 to {settings.max_epochs}.", code="invalid_value", param="epochs")
    if lesson.number_elements_for_training > settings.max_training_rows:
        raise Refusal(
            f"number_elements_for_training may be 1 to {settings.max_training_rows}.",
            code="invalid_value",
            param="number_elements_for_training",
        )
    return Recipe(
        epochs=lesson.epochs,
        learning_rate=lesson.learning_rate,
        batch_size=lesson.batch_size,
        seed=lesson.seed,
        most_tokens=settings.max_training_tokens,
    )


async def _data(rooms: Rooms, tenant: Tenant, lesson: Lesson) -> Pairs:
    wanted = Wanted(
        lesson.question_column, lesson.answer_column, lesson.number_elements_for_training, lesson.on_invalid
    )
    config = (lesson.config_name or "").strip() or None

    def read_and_select() -> Pairs:
        name = lesson.dataset_name
        if not name.startswith("file-"):
            return select(numbered(rooms.hub.rows(name, config, wanted.number)), wanted)
        if config is not None:
            raise Refusal(
                'An uploaded file has no configurations; send config_name as "".',
                code="unknown_config",
                param="config_name",
            )
        file = described(rooms.store, tenant, name, param="dataset_name")
        with unsealed("file", "Delete it and upload it again."):
            data = rooms.store.read(tenant, "files", name)
        return select(read(data, file.form), wanted)

    return await asyncio.to_thread(read_and_select)


async def _finished(
    rooms: Rooms, tenant: Tenant, place: Place, data: Pairs, recipe: Recipe
) -> dict[str, Any]:
    """The result alone."""
    async with aclosing(_told(rooms, tenant, place, data, recipe)) as events:
        async for name, event in events:
            if name == "result":
                result: dict[str, Any] = event
                return result
    raise AssertionError("a training ends with a result or an error")


async def _told(
    rooms: Rooms, tenant: Tenant, place: Place, data: Pairs, recipe: Recipe
) -> AsyncGenerator[tuple[str, Any], None]:
    """Progress as it comes, then the result. The adapter is published before the result is told."""
    began = time.monotonic()
    at = Progress("reading")
    yield "progress", asdict(at)
    async with aclosing(place.train(data, recipe)) as items:
        async for item in items:
            if isinstance(item, Progress):
                at = item
                yield "progress", asdict(at)
            else:
                yield "progress", asdict(replace(at, phase="publishing", eta_seconds=0.0))
                await asyncio.to_thread(rooms.store.write, tenant, ADAPTERS, CURRENT, item.adapter.encode())
                yield "result", _result(item, data, time.monotonic() - began)


def _result(trained: Trained, data: Pairs, seconds: float) -> dict[str, Any]:
    return {
        "text": DONE,
        **trained.report,
        "rows_skipped": len(data.skipped),
        "skipped_rows": list(data.skipped[:100]),
        "adapter": trained.adapter.manifest.weights_sha256,
        "seconds": round(seconds, 3),
    }
