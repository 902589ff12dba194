"""
`blindbox finetune`: teach an enclave's model from a file, watch it learn, and take what came of it.

This module reads the command line; the work is in `..finetuning` and `..job_handle`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from .asked import add_origin, add_policy
from .status import DONE, INTERRUPTED, USAGE, complain

if TYPE_CHECKING:
    from ..job_handle import Job

_LARGE: Final = 32 << 20
_EPILOG = """\
examples:
  blindbox finetune http://203.0.113.7:80 handbook.csv --policy release-1.0.json
  blindbox finetune http://203.0.113.7:80 rows.jsonl --question-column ask --answer-column reply --epochs 4 \\
      --name handbook --plot loss.svg --download adapter --receipt receipt.json
  blindbox finetune http://203.0.113.7:80 rows.jsonl --detach

The file is checked on this machine first; nothing is sent if it cannot be used. Ctrl-C stops the watching,
not the job: blindbox jobs ORIGIN ID --watch goes on with it. docs/fine-tuning.md explains every option.

exit status: as of blindbox verify; 2 also when the data or an option is refused, 4 when the job ended without
a model
"""


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    finetune = commands.add_parser(
        "finetune",
        description="Check a file, send it sealed to an origin that has proved itself, and fine-tune on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_origin(finetune)
    finetune.add_argument("file", metavar="FILE", help="JSON Lines, JSON, CSV or Parquet; or a file's id")
    add_policy(finetune)
    finetune.add_argument("--name", metavar="NAME", help="becomes part of the tuned model's name")
    finetune.add_argument("--model", metavar="NAME", help="what to teach (default: the enclave's base model)")

    data = finetune.add_argument_group("the data")
    data.add_argument(
        "--question-column", metavar="COLUMN", help="else the shape is found from the first row"
    )
    data.add_argument("--answer-column", metavar="COLUMN", help="the same as the question's: plain text")
    data.add_argument("--number", metavar="N", type=int, help="learn only the first N rows, and no fewer")
    data.add_argument(
        "--on-invalid",
        choices=("error", "skip"),
        help="rows that cannot be used are an error (the default), or are left out",
    )
    data.add_argument("--dedup", action="store_true", help="learn equal rows once")
    data.add_argument("--validation", metavar="FILE", help="rows to measure with, never learned")
    data.add_argument("--validation-split", metavar="SHARE", type=float, help="hold back so many, as 0.1")

    how = finetune.add_argument_group("how to learn (what is left out, the enclave chooses)")
    how.add_argument("--method", choices=("lora", "qlora", "full"))
    how.add_argument("--epochs", metavar="N", type=int, help="times to read the data")
    how.add_argument("--steps", metavar="N", type=int, help="end after so many steps at most")
    how.add_argument("--batch-size", metavar="N", type=int, help="rows a step")
    how.add_argument("--max-length", metavar="N", type=int, help="tokens of one row; the rest is cut")
    how.add_argument("--learning-rate", metavar="X", type=float)
    how.add_argument("--warmup", metavar="SHARE", type=float, help="of the steps, in which the rate rises")
    how.add_argument("--r", metavar="N", type=int, help="rank of LoRA")
    how.add_argument("--alpha", metavar="N", type=int, help="weight of LoRA, over its rank")
    how.add_argument("--dropout", metavar="SHARE", type=float)
    how.add_argument("--target-modules", metavar="NAMES", help="linear layers, as q_proj,v_proj")
    how.add_argument("--all-tokens", action="store_true", help="learn the questions as well as the answers")
    how.add_argument(
        "--from-adapter", metavar="MODEL", help="go on from a tuned model, or a checkpoint of one"
    )
    how.add_argument(
        "--early-stopping", metavar="N", type=int, help="measurements without progress to end at"
    )
    how.add_argument("--checkpoint-steps", metavar="N", type=int, help="keep a state to go on from so often")
    how.add_argument("--evaluate-steps", metavar="N", type=int, help="measure the held-back rows so often")
    how.add_argument("--seed", metavar="N", type=int, help="of the order of rows and of new weights")
    how.add_argument(
        "--memorisation", action="store_true", help="plant rows made by chance, and report how far they show"
    )

    after = finetune.add_argument_group("afterwards")
    look = after.add_mutually_exclusive_group()
    look.add_argument("--watch", action="store_true", help="show how far it is, until its end (the default)")
    look.add_argument("--detach", action="store_true", help="print the job's id, and leave it to itself")
    after.add_argument("--plot", metavar="FILE", help="write the loss curve, as SVG")
    after.add_argument("--metrics", metavar="FILE", help="write every step's figures, as CSV")
    after.add_argument("--download", metavar="DIR", help="write the adapter there, for peft")
    after.add_argument("--receipt", metavar="FILE", help="write the signed receipt, once it is verified")
    finetune.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, send, watch, and take."""
    from blindbox_data import DataError

    from ..finetuning import finetune
    from ..wording import as_options
    from .jobs import take, watch

    wishes = [options.plot, options.metrics, options.download, options.receipt]
    if options.detach and any(wishes):
        return complain("--detach leaves before there is a plot, a download or a receipt", USAGE)
    try:
        job = finetune(
            options.origin,
            options.file,
            policy=options.policy,
            model=options.model,
            name=options.name,
            validation=options.validation,
            question_column=options.question_column,
            answer_column=options.answer_column,
            number_elements_for_training=options.number,
            on_invalid=options.on_invalid,
            dedup=options.dedup or None,
            method=options.method,
            epochs=options.epochs,
            steps=options.steps,
            batch_size=options.batch_size,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            r=options.r,
            alpha=options.alpha,
            dropout=options.dropout,
            target_modules=None if options.target_modules is None else options.target_modules.split(","),
            validation_split=options.validation_split,
            answer_only=False if options.all_tokens else None,
            from_adapter=options.from_adapter,
            early_stopping=options.early_stopping,
            checkpoint_steps=options.checkpoint_steps,
            evaluate_steps=options.evaluate_steps,
            seed=options.seed,
            memorisation=options.memorisation or None,
            on_upload=_Upload(),
        )
    except KeyboardInterrupt:
        return complain(f"stopped; blindbox jobs {options.origin} tells whether a job was made", INTERRUPTED)
    except DataError as error:
        return complain(f"{options.file}: {as_options(error.message)} [{error.code}]", USAGE)
    with job:
        _say(job, options)
        if options.detach:
            return DONE
        status = watch(job, options.origin)
        return take(job, options) if status is None else status


class _Upload:
    """Tells how far a large file is, in tenths; a small one is there before it could be told."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, sent: int, size: int) -> None:
        tenths = 10 * sent // size if size else 10
        if size >= _LARGE and tenths > self._told:
            complain(f"{tenths * 10} % of {size >> 20} MiB sent", DONE)
        self._told = tenths


def _say(job: Job, options: argparse.Namespace) -> None:
    """The job's id on standard output, for scripts; how to find it again for people."""
    print(job.id, flush=True)
    if options.detach:
        complain(f"it goes on by itself; look with: blindbox jobs {options.origin} {job.id} --watch", DONE)
