"""
The Alpaca REST API: `POST /generate` takes an instruction, with an input or without; it answers `{"output"}`.

The templates are those of Stanford Alpaca and alpaca-lora (`templates/alpaca.json`, `alpaca_short.json`), to
the letter: models were tuned on them. What answers is the caller's tuned model, or the base model before any
tuning. Sampling defaults are alpaca-lora's, one beam instead of four.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from ..engines import Sampling
from ..prompts import ALPACA, ALPACA_WITH_INPUT, Template
from ..tenants import Tenant
from .answers import unless_gone
from .asking import PromptReader, ask
from .bodies import COLDEST, Body, Seed, body
from .rooms import Asking, Rooms
from .wishes import able, new_tokens

NEW_TOKENS: Final = 128
MOST_BEAMS: Final = 8
_SHORT: Final = ALPACA[ALPACA.index("###") :]
_SHORT_WITH_INPUT: Final = ALPACA_WITH_INPUT[ALPACA_WITH_INPUT.index("###") :]
TEMPLATES: Final = {  # without an input, with one
    "alpaca": (ALPACA, ALPACA_WITH_INPUT),
    "alpaca_short": (_SHORT, _SHORT_WITH_INPUT),
    "none": ("{instruction}", "{instruction}\n{input}"),
}

Words = Annotated[str, Field(max_length=1 << 20)]


class GenerationConfig(Body):
    """How the answer is chosen."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MOST_BEAMS)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = None


class PromptConfig(Body):
    """What is asked."""

    instruction: Annotated[Words, Field(min_length=1)]
    input: Words | None = None
    template: Literal["alpaca", "alpaca_short", "none"] | None = None


class Generate(Body):
    """`POST /generate`."""

    prompt_config: PromptConfig
    generation_config: GenerationConfig | None = None


def router(rooms: Rooms) -> APIRouter:
    """The route, over these rooms."""
    routes = APIRouter()

    @routes.post("/generate")
    async def generate(
        request: Request, asking: Asking, wish: Annotated[Generate, Depends(body(Generate))]
    ) -> Any:
        return await unless_gone(request, _output(rooms, asking, wish))

    return routes


async def _output(rooms: Rooms, asking: Tenant, wish: Generate) -> dict[str, str]:
    config = wish.generation_config or GenerationConfig()
    asked_for = {"generation_config.max_new_tokens": config.max_new_tokens}
    await rooms.catalogue.open()
    served = await rooms.catalogue.mine(asking) or rooms.catalogue.untuned(rooms.catalogue.base)
    card = rooms.catalogue.card(served)
    beams = config.num_beams or 1
    if beams > 1:
        able(card, "beams", "generation_config.num_beams", "Send 1.")
    words = PromptReader(served, card, "prompt_config")
    ids = await asyncio.to_thread(Template.TEXT.prompt, words, prompt_of(wish.prompt_config))
    length = new_tokens(asked_for, rooms.settings, card, len(ids), otherwise=NEW_TOKENS)
    temperature = 0.1 if config.temperature is None else config.temperature
    top_p = 0.75 if config.top_p is None else config.top_p
    sampling = Sampling(
        max_new_tokens=length,
        do_sample=beams == 1 and temperature >= COLDEST and top_p > 0,
        temperature=max(temperature, COLDEST),
        top_k=40 if config.top_k is None else config.top_k,
        top_p=top_p or 1.0,
        seed=config.seed,
        num_beams=beams,
    )
    text = []
    async with await ask(rooms, asking, served, ids, sampling, param="prompt_config") as answer:
        async for piece in answer:
            text.append(piece.text)
    return {"output": "".join(text).strip()}


def prompt_of(config: PromptConfig) -> str:
    """The prompt, up to where the response begins."""
    alone, with_input = TEMPLATES[config.template or "alpaca"]
    # Filled in by replacing, in this order: neither text is read as a template itself.
    if not config.input:
        return alone.replace("{instruction}", config.instruction)
    before, after = with_input.split("{input}")
    return before.replace("{instruction}", config.instruction) + config.input + after
