"""
Writes the corpus anew: `python -m tests.vectors.make`, or only some of its folders, named behind it.

The tables are in `tests/kit/corpus_*.py`. Keys of RSA and most signatures are random, so that the files come
out with other bytes each time, and with the same meaning. `real/` is written by hand and stays as it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.kit import (
    corpus_azure,
    corpus_documents,
    corpus_gcp,
    corpus_nitro,
    corpus_snp,
    corpus_tdx,
    corpus_tpm,
)
from tests.kit.corpus import Draft, write

FOLDER: Final = Path(__file__).resolve().parent
TABLES: Final[Mapping[str, Callable[[], Iterator[Draft]]]] = {
    "snp": corpus_snp.cases,
    "tdx": corpus_tdx.cases,
    "azure": corpus_azure.cases,
    "gcp": corpus_gcp.cases,
    "nitro": corpus_nitro.cases,
    "tpm": corpus_tpm.cases,
    "documents": corpus_documents.cases,
}
"""Folder of the corpus → what is in it."""


def main(wanted: list[str]) -> None:
    """Make these folders, or all."""
    warnings.simplefilter("ignore")  # policies for Milan warn, and there are many
    for name in wanted or TABLES:
        print(f"{name}: {write(TABLES[name](), FOLDER / name)} cases")


if __name__ == "__main__":
    main(sys.argv[1:])
