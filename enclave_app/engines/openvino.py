"""
The fast engine on CPUs: OpenVINO GenAI's continuous batching over a model exported by `export.py`.

Prompts and answers of all callers share each step of one pipeline. What it cannot do is refused by name, what
would break it (a schema its grammar library does not take, more tokens than its memory holds) is refused
before it gets there: an exception in the middle of a step would cost every caller his answer.

A tuned model is a worker of its own, whose weights `patch.py` writes into a copy of the model in memory.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import openvino as ov
import openvino_genai as genai

from ..figures import free_bytes
from ..refusals import Busy, Refusal
from . import Card, Finish, Refused, Sampling, Token, Update, Work
from .adapter import Adapter
from .grammar import Grammars
from .ir import BIN, Export
from .patch import patched

Precision = Literal["fast", "full"]

BLOCK: Final = 32  # tokens that the plug-in keeps together in its KV cache
MOST_AT_ONCE: Final = 256
"""
Tokens of one step. A long prompt is read in pieces of so many, with a token of everybody else in between.
Larger pieces read a prompt a little sooner and hold up everybody else for longer.
"""
COLDEST: Final = 1e-6
TOKENIZER: Final = "openvino_tokenizer.xml"
LEAST_BLOCKS: Final = 16  # of a KV cache, however small it was asked for
_SPARE: Final = 512 << 20  # bytes that are left to the rest of the machine
_KV_BYTES: Final = {"bf16": 2, "f16": 2, "f32": 4}


class DoesNotFit(Exception):
    """Model and KV cache need more memory than is free; the message is for the operator."""


@dataclass(slots=True)
class _Running:
    handle: Any
    weighed: bool  # log probabilities were asked for


class OpenVinoEngine:
    """
    One exported model.

    `kv_cache_mib` = 0 takes a quarter of the memory that is free. With `precision="full"` everything is
    computed in float32, so that a float export says exactly what PyTorch says; it is for comparing.
    """

    def __init__(
        self,
        folder: str,
        *,
        threads: int = 0,
        kv_cache_mib: int = 0,
        most_sequences: int = 64,
        precision: Precision = "fast",
        adapter: Adapter | None = None,
        base_folder: str | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._most = most_sequences
        self._ends = end_tokens(self._folder)
        self._context = context(self._folder)
        export = Export.at(self._folder)
        kv_type, arithmetic = _arithmetic(precision)
        self._token_bytes = export.kv_numbers * _KV_BYTES[kv_type]
        blocks = self._blocks(kv_cache_mib, copies=1 if adapter is None else 2)
        self._room = BLOCK * blocks
        threads = threads or len(os.sched_getaffinity(0))
        self._details = (
            ("weights", export.weights),
            ("kv_cache", kv_type),
            ("precision", precision),
            ("threads", str(threads)),
        )
        self._scheduler = genai.SchedulerConfig()
        self._scheduler.num_kv_blocks = blocks
        self._scheduler.max_num_seqs = most_sequences
        self._scheduler.max_num_batched_tokens = max(MOST_AT_ONCE, most_sequences)
        self._scheduler.dynamic_split_fuse = True
        # One prefix cache serves the whole pipeline: only where all prompts are one tenant's (S-22).
        self._scheduler.enable_prefix_caching = self._own = adapter is not None
        self._properties = {"INFERENCE_NUM_THREADS": threads, **arithmetic}
        self._adapter = adapter
        self._base_folder = base_folder
        self._grammars: Grammars | None = None
        self._pipeline: Any = None
        self._ids = count(1)
        self._running: dict[int, _Running] = {}
        self._open()

    def _open(self) -> None:
        """Open the pipeline, or open it anew when nothing runs."""
        self._pipeline = self._grammars = None  # first, so that there never are two
        with ExitStack() as opened:
            place = self._folder
            if self._adapter is not None:
                place = opened.enter_context(patched(self._folder, self._adapter, self._base_folder))
            words = _json(self._folder / "config.json").get("vocab_size")
            if (self._folder / TOKENIZER).is_file() and isinstance(words, int):
                tokenizer = genai.Tokenizer(str(self._folder))
                self._grammars = Grammars(tokenizer, words, self._ends)
                self._pipeline = genai.ContinuousBatchingPipeline(
                    str(place), tokenizer, self._scheduler, "CPU", **self._properties
                )
            else:
                self._pipeline = genai.ContinuousBatchingPipeline(
                    str(place), self._scheduler, "CPU", self._properties
                )
        self._warm_up()

    def card(self) -> Card:
        abilities = {"beams"}
        if self._own:
            abilities.add("prefix_cache")
        if self._grammars is not None:
            abilities |= {"schema", "triggered_schema"}
        return Card(
            context=self._context,
            room=self._room,
            most_sequences=self._most,
            kv_bytes=self._token_bytes,
            block=BLOCK,
            abilities=frozenset(abilities),
            most_logprobs=0,
            tunes="apart",
            details=self._details,
        )

    def start(self, key: int, work: Work) -> None:
        wanted = len(work.ids) + work.sampling.max_new_tokens * work.sampling.num_beams
        if wanted > self._room:
            raise Refusal(
                f"Prompt and answer together have {wanted} tokens; this enclave has memory for {self._room}.",
                code="context_length_exceeded",
            )
        if self._grammars is not None and self._grammars.full and not self.busy():
            self._open()
        config = self._config(work)
        ids = ov.Tensor(np.array([work.ids], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(next(self._ids), ids, config)
        except RuntimeError:
            raise Refusal(
                "The model's engine does not take these sampling settings together.",
                code="unsupported_parameter",
            ) from None
        self._running[key] = _Running(handle, work.sampling.logprobs is not None)

    def step(self) -> list[Update | Refused]:
        self._pipeline.step()
        told: list[Update | Refused] = []
        for key, running in list(self._running.items()):
            news = self._read(key, running)
            if news is not None:
                told.append(news)
                if isinstance(news, Refused) or news.finish is not None:
                    del self._running[key]
        return told

    def busy(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def cancel(self, key: int) -> None:
        running = self._running.pop(key, None)
        if running is not None:
            running.handle.cancel()  # its memory is free at the next step

    def load(self, version: str, adapter: Adapter) -> None:
        raise Refusal("This engine serves a tuned model by a worker of its own.", code="no_tuned_models")

    def unload(self, version: str) -> None:
        """There is never anything to forget."""

    def gauges(self) -> dict[str, float]:
        metrics = self._pipeline.get_metrics()
        used = metrics.cache_usage / 100 * metrics.cache_size_in_bytes if self._running else 0.0
        return {
            "sequences": float(len(self._running)),
            "kv_used_tokens": used / self._token_bytes,
            "kv_room_tokens": float(self._room),
            "kv_bytes": float(metrics.cache_size_in_bytes),
        }

    def _read(self, key: int, running: _Running) -> Update | Refused | None:
        ids: list[int] = []
        logprobs: list[float] = []
        finish: Finish | None = None
        while running.handle.can_read():
            outputs = running.handle.read()
            if not outputs:
                continue
            best = max(outputs.values(), key=lambda output: output.score)
            ids += best.generated_ids
            logprobs += best.generated_log_probs
            if best.finish_reason == genai.GenerationFinishReason.STOP:
                finish = "stop"
            elif best.finish_reason == genai.GenerationFinishReason.LENGTH:
                finish = "length"
        if finish is None and running.handle.get_status() == genai.GenerationStatus.IGNORED:
            return Refused(key, _no_memory())
        if finish is None and not ids:
            return None
        if finish == "stop" and ids and ids[-1] in self._ends:
            ids.pop()
        if not running.weighed:  # sampling tells some nevertheless
            logprobs = [0.0] * len(ids)
        return Update(key, tuple(map(Token, ids, logprobs)), finish)

    def _config(self, work: Work) -> Any:
        """The pipeline's own words for it; raises `Refusal` for what it has none for."""
        sampling = work.sampling
        if sampling.logit_bias:
            raise _unsupported("logit_bias", "This model's engine cannot take logit_bias; leave it out.")
        if sampling.logprobs:
            raise _unsupported(
                "top_logprobs",
                "This model's engine tells the log probability of the chosen token only; ask for "
                "top_logprobs 0.",
            )
        config = genai.GenerationConfig()
        config.max_new_tokens = sampling.max_new_tokens
        config.ignore_eos = sampling.ignore_end
        if self._ends:
            config.stop_token_ids = set(self._ends)
            config.eos_token_id = min(self._ends)
        config.logprobs = 0 if sampling.logprobs is None else 1
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.repetition_penalty = sampling.repetition_penalty
        if sampling.num_beams > 1:
            _check_beams(sampling)
            config.do_sample = False
            config.num_beams = sampling.num_beams
            config.num_return_sequences = 1
        elif sampling.do_sample and sampling.temperature > 0:
            config.do_sample = True
            config.temperature = max(sampling.temperature, COLDEST)
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.top_p = max(sampling.top_p, COLDEST)
            config.min_p = min(sampling.min_p, 1 - COLDEST)
            config.rng_seed = _seed(sampling.seed)
        else:
            config.do_sample = False
        if sampling.constraint is not None:
            if self._grammars is None:
                raise _unsupported(
                    "response_format",
                    "This model's export has no tokenizer to hold answers to a schema with.",
                )
            config.structured_output_config = self._grammars.structure(sampling.constraint, work.owner)
        return config

    def _blocks(self, kv_cache_mib: int, *, copies: int) -> int:
        """How many blocks the KV cache has. Memory is taken block by block, as they are used."""
        free = free_bytes()
        block = BLOCK * self._token_bytes
        least = LEAST_BLOCKS * block
        if free is None:
            return max(least, kv_cache_mib << 20 or 1 << 30) // block
        # The plug-in packs the weights anew into memory of its own; the file's pages can be dropped.
        model = (self._folder / BIN).stat().st_size * copies
        left = free - model - _SPARE
        most = self._most * ((self._context or 1 << 17) + BLOCK) * self._token_bytes
        cache = max(least, kv_cache_mib << 20 or min(free // 4, left, most))
        if cache > left:
            raise DoesNotFit(
                f"The model takes about {model >> 20} MiB and its KV cache {cache >> 20} MiB, but only "
                f"{max(0, free - _SPARE) >> 20} MiB of memory can be had. Take a smaller model, int4 "
                "weights, a smaller BLINDBOX_KV_CACHE_MIB, or a larger machine."
            )
        return cache // block

    def _warm_up(self) -> None:
        """Opening is lazy: the first prompt packs the weights and makes the kernels."""
        sampling = Sampling(max_new_tokens=2, do_sample=False, ignore_end=True)
        self.start(-1, Work((1,) * 16, sampling))
        while self.busy():
            self.step()


def end_tokens(folder: Path) -> frozenset[int]:
    """The model's own end tokens, as `tokenizer.py` reads them."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if isinstance(found, int):
            return frozenset([found])
        if isinstance(found, list) and found:
            return frozenset(int(each) for each in found)
    return frozenset()


def context(folder: Path) -> int | None:
    """Tokens that the model was made for; None where its configuration does not say."""
    config = _json(folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            found = part.get(name)
            if isinstance(found, int) and found > 0:
                return found
    return None


@cache
def _core() -> ov.Core:
    # One, for ever: each gives its thread a stack for signals, and an older one's death leaves that dangling.
    return ov.Core()


def _arithmetic(precision: Precision) -> tuple[str, dict[str, str]]:
    if precision == "full":
        return "f32", {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
    # The library's own choice, an 8-bit cache, turns close decisions of small models.
    able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    kv_type = "bf16" if "BF16" in able else "f16"
    return kv_type, {"KV_CACHE_PRECISION": kv_type}


def _check_beams(sampling: Sampling) -> None:
    if sampling.constraint is not None:  # the pipeline would pass over it
        raise _unsupported(
            "num_beams", "With num_beams above 1 an answer cannot be held to a schema; leave one of both out."
        )
    for name, neutral in (("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("repetition_penalty", 1.0)):
        if getattr(sampling, name) != neutral:
            raise _unsupported(
                name, f"With num_beams above 1 this model's engine takes no {name}; leave one of both out."
            )


def _seed(seed: int | None) -> int:
    """The pipeline's generator takes 32 bits; a longer seed is folded, none is drawn."""
    if seed is None:
        return int.from_bytes(os.urandom(4))
    return (seed ^ seed >> 32) & 0xFFFF_FFFF


def _unsupported(param: str, message: str) -> Refusal:
    return Refusal(message, code="unsupported_parameter", param=param)


def _no_memory() -> Busy:
    return Busy(
        "There was no memory left for this answer. Ask for fewer new tokens, or again in a moment.",
        code="no_memory",
        retry_after=5,
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}
