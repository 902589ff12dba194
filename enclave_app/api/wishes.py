"""
What chat and completions have in common: how the next token is wished to be chosen, and where an answer ends.

Names are OpenAI's; `frequence_penalty` is the Prem guide's spelling. A field that would change the answer and
is not served is refused; a field that changes nothing here (who is asking, how it is billed or stored) is
taken and forgotten.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from ..catalogue import Served
from ..engines import Card, Constraint, Sampling
from ..refusals import Refusal
from ..settings import Settings
from .bodies import COLDEST, Body, Several

DEFAULT_NEW_TOKENS: Final = 1024
MOST_BIASED: Final = 1024

Count = Annotated[int, Field(ge=1, le=1 << 31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # the seal around the stream pads it, always


class Wishes(Body):
    """The fields of `/v1/chat/completions` and `/v1/completions` alike."""

    model: Annotated[str, Field(max_length=500)] | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    frequence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MOST_BIASED)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | Several[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Not OpenAI's, but known to the clients of other servers.
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    ignore_eos: bool | None = None
    # Taken and forgotten.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None

    @property
    def usage_wanted(self) -> bool:
        """Is a chunk with the counted tokens wanted at the end of a stream?"""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def stops(wishes: Wishes, settings: Settings) -> tuple[str, ...]:
    """The stop strings, each once; raises `Refusal` where there are too many or one is too long."""
    given = [wishes.stop] if isinstance(wishes.stop, str) else wishes.stop or []
    if len(given) > settings.max_stops or any(len(stop) > settings.max_stop_chars for stop in given):
        raise Refusal(
            f"stop may be up to {settings.max_stops} strings of up to {settings.max_stop_chars} characters.",
            code="invalid_value",
            param="stop",
        )
    return tuple(dict.fromkeys(stop for stop in given if stop))


def choices(wishes: Wishes, settings: Settings) -> int:
    """How many answers are wanted."""
    return within("n", wishes.n or 1, settings.max_choices)


def new_tokens(
    asked: dict[str, int | None], settings: Settings, card: Card, prompt: int, *, otherwise: int
) -> int:
    """
    How long an answer may become: what was `asked` under one of these names, or what fits.

    `otherwise` is for nobody having said; it is made smaller where the model's context or memory is.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if len(set(given.values())) > 1:
        names = " and ".join(given)
        raise Refusal(
            f"{names} are two names of one thing, and are not the same.",
            code="invalid_value",
            param=next(iter(given)),
        )
    for name, value in given.items():
        return within(name, value, settings.max_new_tokens)
    bounds = [otherwise, settings.max_new_tokens, card.room - prompt]
    if card.context is not None:
        bounds.append(card.context - prompt)
    return max(1, min(bounds))


def within(name: str, value: int, most: int) -> int:
    """The value, if it is no more than this enclave's setting allows."""
    if value > most:
        raise Refusal(f"{name} may be 1 to {most}.", code="invalid_value", param=name)
    return value


def sampling(
    wishes: Wishes,
    served: Served,
    card: Card,
    *,
    new_tokens: int,
    logprobs: int | None = None,
    constraint: Constraint | None = None,
) -> Sampling:
    """What the engine is asked for; raises `Refusal` for what it cannot do."""
    if wishes.ignore_eos and constraint is not None:
        # The engine would go on behind the end of the JSON, with whatever it likes.
        raise Refusal(
            "ignore_eos and an answer that follows a schema cannot be asked for together.",
            code="invalid_value",
            param="ignore_eos",
        )
    temperature = 1.0 if wishes.temperature is None else wishes.temperature
    top_p = 1.0 if wishes.top_p is None else wishes.top_p
    return Sampling(
        max_new_tokens=new_tokens,
        do_sample=temperature >= COLDEST and top_p > 0,
        temperature=max(temperature, COLDEST),
        top_k=max(0, wishes.top_k or 0),
        top_p=top_p or 1.0,
        min_p=wishes.min_p or 0.0,
        presence_penalty=wishes.presence_penalty or 0.0,
        frequency_penalty=_frequency_penalty(wishes),
        repetition_penalty=wishes.repetition_penalty or 1.0,
        logit_bias=_logit_bias(wishes, served, card),
        seed=None if wishes.seed is None else wishes.seed % (1 << 63),
        logprobs=logprobs,
        ignore_end=bool(wishes.ignore_eos),
        constraint=constraint,
    )


def _frequency_penalty(wishes: Wishes) -> float:
    given = {wishes.frequency_penalty, wishes.frequence_penalty} - {None}
    if len(given) > 1:
        raise Refusal(
            "frequence_penalty is another spelling of frequency_penalty, and they are not the same.",
            code="invalid_value",
            param="frequence_penalty",
        )
    return next((value for value in given if value is not None), 0.0)


def _logit_bias(wishes: Wishes, served: Served, card: Card) -> tuple[tuple[int, float], ...]:
    bias = wishes.logit_bias
    if not bias:
        return ()
    able(card, "logit_bias", "logit_bias")
    size = served.tokenizer.size
    if not all(
        token.isascii() and token.isdigit() and len(token) < 10 and int(token) < size for token in bias
    ):
        raise Refusal(
            f"logit_bias names tokens of this model by their number, 0 to {size - 1}.",
            code="invalid_value",
            param="logit_bias",
        )
    return tuple((int(token), value) for token, value in bias.items())


def able(card: Card, ability: str, param: str, instead: str = "") -> None:
    """Refuse a wish that this model's engine has no means for."""
    if ability not in card.abilities:
        raise Refusal(
            f"The engine that runs this model here has no {param}.{instead and ' ' + instead}",
            code="unsupported_parameter",
            param=param,
        )


def alternatives(card: Card, wanted: int, param: str) -> int:
    """How many log probabilities are told beside that of the chosen token."""
    if wanted > card.most_logprobs:
        raise Refusal(
            f"The engine that runs this model here tells up to {card.most_logprobs} alternatives of a token "
            f"({param}), and with 0 the chosen token's log probability alone.",
            code="unsupported_parameter",
            param=param,
        )
    return wanted
