"""The two ways of the `openai` package to an enclave: by the proxy, and as `blindbox.OpenAI`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

import blindbox
from blindbox.proxy import Proxy
from tests.kit.simulated import unsafe

POLICY = unsafe()


@contextmanager
def through_the_proxy(origin: str, policy: Any = POLICY, **options: Any) -> Iterator[openai.OpenAI]:
    with (
        Proxy(origin, policy=policy, listen="127.0.0.1:0") as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="anything", **options) as client,
    ):
        yield client


@contextmanager
def as_blindbox(origin: str, policy: Any = POLICY, **options: Any) -> Iterator[openai.OpenAI]:
    with blindbox.OpenAI(origin, policy=policy, **options) as client:
        yield client


WAYS = [through_the_proxy, as_blindbox]
