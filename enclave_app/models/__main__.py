"""
Models as folders, as a command: the demo's is made, others are brought from the hub or made ready.

    python -m enclave_app.models prepare-demo FOLDER
    python -m enclave_app.models fetch ORG/NAME FOLDER --revision COMMIT
    python -m enclave_app.models export FOLDER EXPORTS_DIR --weights int8
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from ..engines.export import export
from ..offline import quiet
from . import Model, UnusableModel, fetch, prepare_demo

_COMMIT = re.compile(r"[0-9a-f]{40}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m enclave_app.models", description="models as folders")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("prepare-demo", help="make the demo's model")
    demo.add_argument("folder", type=Path)
    bring = commands.add_parser("fetch", help="bring a model from the Hugging Face hub, without its code")
    bring.add_argument("name")
    bring.add_argument("folder", type=Path)
    bring.add_argument("--revision", required=True, help="a commit: 40 hexadecimal digits")
    ready = commands.add_parser("export", help="make a model ready for OpenVINO, as a start would do it")
    ready.add_argument("folder", type=Path)
    ready.add_argument("exports_dir", type=Path, help="where exports lie: BLINDBOX_EXPORTS_DIR")
    ready.add_argument("--weights", choices=("int8", "bf16", "int4"), default="int8")
    chosen = parser.parse_args(arguments)
    quiet(os.environ)
    try:
        if chosen.command == "prepare-demo":
            folder = prepare_demo(chosen.folder, lambda text: print(text, flush=True)).folder
        elif chosen.command == "export":
            model = Model.at(chosen.folder.resolve())  # the work is done by a process that stands elsewhere
            folder = export(model, chosen.weights, [chosen.exports_dir.resolve()])
        else:
            if not _COMMIT.fullmatch(chosen.revision):
                parser.error(
                    "--revision must be a commit (40 hexadecimal digits): a branch may change under you"
                )
            folder = fetch(chosen.name, chosen.folder, revision=chosen.revision).folder
    except UnusableModel as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder} is ready.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
