"""
Schemas as grammars: tried on their own before they reach a pipeline that others are in.

The pipeline compiles a grammar in the middle of a step; what fails there fails everybody. So each is compiled
here first, by a pipeline over a model that computes nothing but shares the tokenizer, and with it the
library's cache: the real one finds it ready made.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as op

from ..refusals import Busy, Refusal
from . import Constraint
from .schema_limits import checked

MOST_KEPT: Final = 256 << 20  # bytes of grammars; the library keeps every one it has ever compiled
_LONGEST_WHY: Final = 200


class Grammars:
    """Of one tokenizer and its `words` (the size of the model's vocabulary)."""

    def __init__(self, tokenizer: Any, words: int, ends: frozenset[int]) -> None:
        self._ends = ends
        self._secret = os.urandom(16)
        self._kept = 0  # bytes that this process grew by while grammars were compiled
        with tempfile.TemporaryDirectory(prefix="blindbox-nothing-") as place:
            xml, weights = Path(place) / "nothing.xml", Path(place) / "nothing.bin"
            ov.serialize(_nothing(words), str(xml), str(weights))
            self._pipeline = genai.LLMPipeline(
                xml.read_text("utf-8"),
                ov.Tensor(np.fromfile(weights, np.uint8)),
                tokenizer,
                "CPU",
                genai.GenerationConfig(),
                ATTENTION_BACKEND="SDPA",
                INFERENCE_NUM_THREADS=1,
            )

    @property
    def full(self) -> bool:
        """Time to make another, and another pipeline: nothing else lets go of what is kept."""
        return self._kept > MOST_KEPT

    def structure(self, constraint: Constraint, owner: str) -> Any:
        """The pipeline's own form of it, known to compile; raises `Refusal`."""
        param = "tools" if constraint.begin else "response_format"
        schema = checked(constraint.schema, param=param)
        if self._kept > 2 * MOST_KEPT:
            raise Busy(
                "Too many schemas have been used since this engine last rested. Try again in a moment, or "
                "without a schema.",
                code="no_memory",
                param=param,
                retry_after=10,
            )
        # A cache that all share would tell by its speed what others have asked for (S-22).
        schema["$comment"] = hashlib.sha256(self._secret + owner.encode()).hexdigest()[:16]
        text = json.dumps(schema)
        structure = genai.StructuredOutputConfig()
        if constraint.begin:
            content = genai.StructuredOutputConfig.JSONSchema(text)
            tag = genai.StructuredOutputConfig.Tag(constraint.begin, content, constraint.end)
            structure.structural_tags_config = genai.StructuredOutputConfig.TriggeredTags(
                triggers=[constraint.begin], tags=[tag]
            )
        else:
            structure.json_schema = text
        config = genai.GenerationConfig()
        config.max_new_tokens = 1
        config.do_sample = False
        config.structured_output_config = structure
        if self._ends:
            config.stop_token_ids = set(self._ends)
            config.eos_token_id = min(self._ends)
        before = _resident()
        try:
            self._pipeline.generate(ov.Tensor(np.zeros((1, 1), np.int64)), config)
        except RuntimeError as error:
            raise Refusal(
                f"The schema cannot be used: {_why(str(error))}", code="invalid_schema", param=param
            ) from None
        finally:
            self._kept += max(0, _resident() - before)
        return structure


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _nothing(words: int) -> Any:
    """A language model that thinks nothing of any word: all scores are zero."""
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    mask = op.parameter([-1, -1], np.int64, name="attention_mask")
    beam = op.parameter([-1], np.int32, name="beam_idx")
    for each in (ids, mask, beam):
        each.output(0).set_names({each.get_friendly_name()})
    shape = op.concat([op.shape_of(ids), op.constant(np.array([words], np.int64))], 0)
    # An input that nothing depends on would be taken out, and the pipeline looks for these by name.
    used = op.add(
        op.convert(op.reduce_sum(mask, op.constant(np.array([0, 1])), False), np.float32),
        op.convert(op.reduce_sum(beam, op.constant(np.array([0])), False), np.float32),
    )
    scores = op.broadcast(op.multiply(used, op.constant(np.float32(0))), shape)
    scores.output(0).set_names({"logits"})
    make: Any = ov.Model
    return make([op.result(scores)], [ids, mask, beam], "nothing")


def _why(error: str) -> str:
    """The library's own words, without its paths and without the schema."""
    tail = error.strip().rpartition(".cc:")[2].partition("\n")[0]
    words = tail.partition(": ")[2].removeprefix("Check failed: ").rpartition(" is false: ")[2]
    said = words.partition(" The JSON string is")[0].partition("{")[0].strip(" .:")
    return f"{said[:_LONGEST_WHY]}." if said else "the grammar library does not take it."
