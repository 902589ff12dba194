"""Compiles the packages that a start or a training imports, so that neither waits for it.

Run in the build by the environment's own Python.  A .pyc holds the hash of its source and not its time,
so that two builds agree, and is not checked at run time: the image's files do not change.  Only what is
imported is compiled; the whole of torch and transformers would be three times as much.
"""

from __future__ import annotations

import importlib
import py_compile
import sys
from pathlib import Path

IMPORTED = (
    "fastapi",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.uvloop",
    "uvicorn.lifespan.on",
    "python_multipart",
    "cryptography.x509",
    "jinja2.sandbox",
    "tokenizers",
    "prometheus_client",
    "openvino_genai",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.falcon.modeling_falcon",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "datasets",
    "pyarrow.parquet",
    "peft",
    "trl.trainer.sft_trainer",
)


def main() -> None:
    """Imports, then compiles what came in from this environment."""
    for name in IMPORTED:
        importlib.import_module(name)
    files = {getattr(module, "__file__", None) or "" for module in tuple(sys.modules.values())}
    for file in sorted(files):
        if file.endswith(".py") and Path(file).is_relative_to(sys.prefix):
            unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(file, doraise=True, invalidation_mode=unchecked)


if __name__ == "__main__":
    main()
