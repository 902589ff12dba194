"""
The export, the side that does the work: a process that reads a model's folder and writes an IR.

Weights are never held in 32 bits unless the model's own are: they stay mapped from their file, become a
16-bit IR, and that one is mapped in turn while it is compressed. So a model of 14 GB passes through a machine
of 24. What libraries print goes nowhere; `export.py` is the other side.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from .. import pipe

_KEPT: Final = (  # beside the IR, byte for byte as the model brings it
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
IR: Final = "openvino_model.xml"
_NO_MEMORY = re.compile(r"allocate memory|bad_alloc|not enough memory|out of memory", re.IGNORECASE)
_NO_SPACE = re.compile(r"no space left|disk quota", re.IGNORECASE)


def main() -> None:
    """Read the job from standard input, tell of it on standard output, leave."""
    down, up = pipe.ends()
    job = pipe.receive(down)
    threading.Thread(target=_die_with_parent, args=(down,), daemon=True).start()
    try:
        write(
            Path(job["folder"]),
            Path(job["destination"]),
            job["weights"],
            lambda stage: pipe.send(up, {"say": "stage", "stage": stage}),
        )
        pipe.send(up, {"say": "done"})
    except pipe.PipeClosed:
        pass
    except Exception as error:  # noqa: BLE001 - libraries raise what they like
        _fail(up, error)
    os._exit(0)


def _fail(up: BinaryIO, error: Exception) -> None:
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        how = "memory"
    elif (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _NO_SPACE.search(str(error)):
        how = "disk"
    else:
        how = "unusable"
    try:
        pipe.send(up, {"say": how, "message": text})
    except pipe.PipeClosed:
        return


def _die_with_parent(down: BinaryIO) -> None:
    down.read(1)  # nothing more is ever sent: the pipe's end means that nobody waits
    os._exit(1)


def write(folder: Path, destination: Path, weights: str, say: Callable[[str], None]) -> None:
    """Write the IR of a folder's model, and what belongs to it, into an empty folder."""
    say("reading weights")
    model = _loaded(folder, weights)
    say("exporting")
    plain = destination if weights == "bf16" else destination / "plain"
    _to_ir(model, plain)
    del model
    gc.collect()
    if weights != "bf16":
        say("compressing")
        _compress(plain, destination, weights, say)
        shutil.rmtree(plain)
    _write_tokenizer(folder, destination)
    for name in _KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, destination / name)


def _loaded(folder: Path, weights: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # In the type they are stored in, weights stay mapped from their file; only 32 bits are worth a copy.
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=False
    ).eval()
    if weights == "bf16" and model.dtype == torch.float32:
        model = model.to(torch.bfloat16)
    for module in model.modules():
        # Falcon's own linear layer computes what torch's does, but OpenVINO's handling of 16-bit weights goes
        # by the class and would make 32 bits of each. Can go when openvino's patch_model.py asks isinstance.
        if type(module).__name__ == "FalconLinear":
            module.__class__ = torch.nn.Linear
    return model


def _to_ir(model: Any, destination: Path) -> None:
    from optimum.exporters.openvino import export_from_model
    from optimum.exporters.openvino.model_configs import GemmaOpenVINOConfig

    # optimum-intel 2.2 stops at transformers 5.0 for Gemma, Gemma 2 and Gemma 3. What it makes of them with
    # the version installed here is compared with torch, token by token, in tests/enclave/test_export.py.
    setattr(GemmaOpenVINOConfig, "MAX_TRANSFORMERS_VERSION", None)  # noqa: B010 - it is typed as a constant
    export_from_model(
        model, destination, task="text-generation-with-past", stateful=True, patch_16bit_model=True
    )


def _compress(plain: Path, destination: Path, weights: str, say: Callable[[str], None]) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(str(plain / IR))  # maps the weights
    if weights == "int8":
        packed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        packed = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, ratio=1.0
        )
    say("writing")
    openvino.save_model(packed, str(destination / IR), compress_to_fp16=False)


def _write_tokenizer(folder: Path, destination: Path) -> None:
    """As an IR too: the pipeline reads its words from it where an answer has to follow a grammar."""
    from optimum.exporters.openvino.convert import export_tokenizer
    from transformers import AutoTokenizer

    export_tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True), destination)
