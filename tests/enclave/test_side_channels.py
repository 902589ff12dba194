"""
What sizes tell: a listener on the wire records sealed answers and tries to say what they were about.

Two families of prompts are echoed a word a token: short words, and long ones. Everything else about them is
alike: how many words, how fast. The listener sees ciphertext alone, and learns from answers whose family it
knows; how well it then guesses is the area under its ROC curve, 0.5 being a coin. (S-23, C-43, figure G-24)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blindbox_attestation.channel import varint
from enclave_app.catalogue import Source
from enclave_app.engines.echo import EchoEngine
from enclave_app.engines.worker import Worker, in_thread
from enclave_app.hub import NoHub
from enclave_app.main import create_app
from enclave_app.settings import Settings
from enclave_app.store import Store
from enclave_app.training.counting import CountingTrainer
from tests.kit.enclave import serving, simulated_quoter
from tests.soak.caller import Proven, Sealed

STEPS = 120.0  # tokens a second of each stream: with a tick of 20 ms as dense as 48 a second with 50 ms
TICK = 0.02

# Every event of a stream names the model. With a name as long as this one two events are about 500 bytes,
# and steps of 512 told the families apart with an area of 0.97: decision 0013.
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

SHORT = ("a", "by", "do", "go", "he", "in", "it", "me", "no", "of", "so", "the", "to", "up", "us", "we")
LONG = ("administer", "background", "collective", "discovered", "everything", "foundation", "government",
        "historical", "industrial", "journalist", "laboratory", "management", "particular", "technology",
        "understand", "vegetation")  # fmt: skip
FAMILIES = (SHORT, LONG)


class Words:
    """A tokenizer whose tokens are words."""

    chat_template = None
    every = (*SHORT, *LONG)
    size = len(every)
    longest = max(map(len, every))
    ends: frozenset[int] = frozenset()

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [self.every.index(word) for word in text.split()]}

    def text(self, token: int) -> str:
        return f" {self.every[token]}"

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self.text, ids))

    def decoder(self, prompt: Sequence[int]) -> Callable[[int], str | None]:
        return self.text


class Tap:
    """Stands between callers and the enclave; keeps what the enclave sent on each connection."""

    def __init__(self, onward: int) -> None:
        self._onward = onward
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        self.heard: dict[int, bytearray] = {}  # by the port that the caller came from
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, (_, came_from) = self._listening.accept()
                enclave = socket.create_connection(("127.0.0.1", self._onward))
                heard = self.heard[came_from] = bytearray()
                for pair in ((caller, enclave, None), (enclave, caller, heard)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, heard: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if heard is not None:
                    heard += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def tapped(tick: float) -> Iterator[Tap]:
    async def make() -> Worker:
        return await in_thread(EchoEngine(rate=STEPS))

    source = Source(MODEL, make, Words())
    with tempfile.TemporaryDirectory() as folder:
        gateway = create_app(
            Settings(engine="echo"),
            base=source,
            instruct=source,
            trainer=CountingTrainer(),
            quoter=simulated_quoter(),
            store=Store(Path(folder)),
            hub=NoHub(),
        )
        gateway._limits = replace(gateway._limits, tick_seconds=tick)  # no setting of an enclave reaches it
        with serving(gateway) as port:
            tap = Tap(port)
            try:
                yield tap
            finally:
                tap.close()


def sizes_of(heard: bytes) -> list[int]:
    """The sealed chunks of the one answer on a connection, in order."""
    head, _, rest = heard.partition(b"\r\n\r\n")
    sealed = b""
    if b"transfer-encoding: chunked" not in head:
        return []  # the machine was so busy that all came in one breath: no stream, but a whole answer
    while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
        start = rest.index(b"\r\n") + 2
        sealed += rest[start : start + size]
        rest = rest[start + size + 2 :]
    sizes, at = [], 32
    while (found := varint.read(sealed, at)) is not None and found[0]:
        sizes.append(found[0])
        at = found[1] + found[0]
    return [*sizes, len(sealed) - at - 1]


def overheard(many: int, *, at_once: int, padded: bool) -> tuple[list[list[int]], list[int]]:
    """The chunk sizes of so many answers, and the family of each."""
    rng = random.Random(7)
    families = [number % 2 for number in range(many)]
    rng.shuffle(families)
    prompts = [" ".join(rng.choices(FAMILIES[family], k=rng.randint(16, 32))) for family in families]

    async def one(proven: Proven, prompt: str) -> int:
        caller = Sealed(proven, framed=padded)
        await caller.line.open()
        came_from = caller.line.local_port
        question = {"model": MODEL, "prompt": prompt, "max_tokens": 64, "stream": True}
        text = [event["choices"][0]["text"] async for event in caller.stream("/v1/completions", question)]
        assert "".join(text).split() == prompt.split()
        caller.line.close()
        return came_from

    async def all_of(port: int) -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proven = await Proven.of(port)
        ports: list[int] = []
        for at in range(0, many, at_once):
            ports += await asyncio.gather(*(one(proven, prompt) for prompt in prompts[at : at + at_once]))
        return ports

    with tapped(TICK if padded else 0.0) as tap:
        ports = asyncio.run(all_of(tap.port))
        answers = [sizes_of(bytes(tap.heard[port])) for port in ports]
    streamed = [number for number, sizes in enumerate(answers) if sizes]
    assert len(streamed) >= 0.8 * many
    return [answers[number] for number in streamed], [families[number] for number in streamed]


def guessed(answers: list[list[int]], families: list[int]) -> float:
    """The area under the ROC curve of a listener who has learned from other answers of the same kind."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.array([features_of(sizes) for sizes in answers])
    listener: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    told = cross_val_predict(listener, features, families, cv=5, method="decision_function")
    return float(roc_auc_score(families, told))


def features_of(sizes: list[int]) -> list[float]:
    """All of them together, how they are spread, and the first ones each by itself."""
    spread = np.quantile(sizes, [0.0, 0.25, 0.5, 0.75, 1.0])
    first = [*sizes[:12], *[0] * (12 - len(sizes))]
    return [len(sizes), sum(sizes), float(np.mean(sizes)), float(np.std(sizes)), *spread, *first]


def test_padded_streams_do_not_tell_short_words_from_long_ones() -> None:
    """S-23, C-43: G-24, with padding on: the listener's area is at most 0.6."""
    answers, families = overheard(600, at_once=25, padded=True)
    assert guessed(answers, families) <= 0.6


def test_the_listener_tells_them_apart_where_nothing_is_padded() -> None:
    """S-23, C-43: G-24, with padding off: the same listener's area is at least 0.8, so that it has power."""
    answers, families = overheard(160, at_once=8, padded=False)
    assert guessed(answers, families) >= 0.8
