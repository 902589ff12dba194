"""
`blindbox jobs`: the fine-tuning jobs one has at an enclave: look at them, steer them, take what they made.

This module reads the command line and prints; the work is in `..job_handle`.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from ..printable import plain, plain_lines
from .asked import add_origin, add_policy
from .status import DONE, USAGE, complain, status_of

if TYPE_CHECKING:
    from ..job_handle import Job

_EPILOG = """\
examples:
  blindbox jobs http://203.0.113.7:80
  blindbox jobs http://203.0.113.7:80 ftjob-… --watch
  blindbox jobs http://203.0.113.7:80 ftjob-… --plot loss.svg --receipt receipt.json --download adapter
  blindbox jobs http://203.0.113.7:80 ftjob-… --ask "Who signs engagement letters?"
  blindbox jobs http://203.0.113.7:80 ftjob-… --delete --data

Ctrl-C ends the watching, or the answer, and not the job.

exit status: as of blindbox verify; 2 also when the enclave refuses, 4 when a job that was watched ended
without a model
"""
_MOVES: Final = ("cancel", "pause", "resume")
_MOST_TOKENS: Final = 256  # a model that has learned little may never come to an end by itself


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    jobs = commands.add_parser(
        "jobs",
        description="List your fine-tuning jobs at an origin; with an ID, look at one or steer it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_origin(jobs)
    jobs.add_argument("id", metavar="ID", nargs="?", help="one job; without it, all of yours are listed")
    add_policy(jobs)
    jobs.add_argument("--json", action="store_true", help="what the enclave tells, an object a line")

    steer = jobs.add_mutually_exclusive_group()
    steer.add_argument("--cancel", action="store_true", help="end it; what was learned is thrown away")
    steer.add_argument("--pause", action="store_true", help="let it stop where it is")
    steer.add_argument("--resume", action="store_true", help="let it go on where it was paused")
    steer.add_argument(
        "--delete", action="store_true", help="remove it, its checkpoints, its receipt and its tuned model"
    )
    jobs.add_argument("--data", action="store_true", help="with --delete: and the files it learned from")
    look = jobs.add_argument_group("looking")
    look.add_argument("--watch", action="store_true", help="show how far it is, until its end")
    look.add_argument("--events", action="store_true", help="print what happened so far")
    look.add_argument("--metrics", metavar="FILE", help="write every step's figures, as CSV")
    look.add_argument("--tensorboard", metavar="DIR", help="write them as a log for TensorBoard")
    look.add_argument("--plot", metavar="FILE", help="write the loss curve, as SVG")
    after = jobs.add_argument_group("what came of it")
    after.add_argument("--ask", metavar="PROMPT", help="print the tuned model's answer, as it comes")
    after.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=_MOST_TOKENS,
        help=f"of that answer (default: {_MOST_TOKENS})",
    )
    after.add_argument("--receipt", metavar="FILE", help="write the signed receipt, once it is verified")
    after.add_argument("--download", metavar="DIR", help="write the adapter there, for peft")
    jobs.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List, or do with one job what was asked for, in the order of the help."""
    from ..job_handle import job, jobs

    if options.data and not options.delete:
        return complain("--data says what --delete removes besides; give both", USAGE)
    if options.id is None:
        if any(_wishes(options)):
            return complain(f"which job? blindbox jobs {options.origin} lists them with their ids", USAGE)
        found = jobs(options.origin, policy=options.policy)
        _list(found, options)
        return DONE
    with job(options.origin, options.id, policy=options.policy) as one:
        for move in _MOVES:
            if getattr(options, move):
                getattr(one, move)()
                print(_line(one))
        if options.pause:
            complain(f"it goes on with: blindbox jobs {options.origin} {one.id} --resume", DONE)
        if options.delete:
            _delete(one, options)
            return DONE
        status = watch(one, options.origin) if options.watch else None
        if options.events:
            _tell(one, options)
        if not any(_wishes(options)):
            print(json.dumps(one.told) if options.json else _described(one))
        return take(one, options) if status is None else status


def watch(job: Job, origin: str) -> int | None:
    """
    Show how far a job is until its end. None: it has a model; else the exit status. Ctrl-C leaves it alone.
    """
    from ..errors import JobFailed

    try:
        job.wait()
    except KeyboardInterrupt:
        return complain(f"it goes on; look again with: blindbox jobs {origin} {job.id} --watch", DONE)
    except JobFailed as error:
        status, why = status_of(error, origin)
        return complain(why, status)
    if job.status == "paused":
        return complain(f"it goes on with: blindbox jobs {origin} {job.id} --resume", DONE)
    return None


def take(job: Job, options: argparse.Namespace) -> int:
    """Write and print what was asked for, of what a job left."""
    if getattr(options, "tensorboard", None):
        print(f"wrote {job.metrics().to_tensorboard(options.tensorboard)}")
    if options.metrics:
        job.metrics().to_csv(options.metrics)
        print(f"wrote {options.metrics}")
    if options.plot:
        print(f"loss {job.plot(options.plot).text()}\nwrote {options.plot}")
    if options.receipt:
        proved = job.receipt(options.receipt)
        receipt, verdict = proved.receipt, "SIMULATED (it proves nothing)" if proved.simulated else "verified"
        print(
            f"wrote {options.receipt}: {verdict}, {receipt.dataset.rows_used} rows of "
            f"{receipt.dataset.file.sha256.hex()[:16]}… made adapter {receipt.adapter.hex()[:16]}…"
        )
    if options.download:
        print(f"wrote {job.download(options.download)}")
    if getattr(options, "ask", None):
        _ask(job, options)
    return DONE


def _ask(job: Job, options: argparse.Namespace) -> None:
    """Print the answer as it comes. What a model says must not act upon the terminal."""
    answer = job.ask(options.ask, stream=True, max_tokens=options.max_tokens)
    last = ""
    try:
        for piece in answer:
            last = plain_lines(piece)
            print(last, end="", flush=True)
    finally:
        if not last.endswith("\n"):
            print(flush=True)
    if answer.finish_reason == "length":
        complain(f"cut off after {options.max_tokens} tokens; --max-tokens N allows more", DONE)


def _delete(job: Job, options: argparse.Namespace) -> None:
    """Remove it, and tell what stays."""
    print(f"deleted: {', '.join(job.delete(data=options.data))}")
    kept = [job.told.get(name) for name in ("training_file", "validation_file")]
    if names := [plain(name) for name in kept if isinstance(name, str) and not options.data]:
        complain(f"what it learned from is kept: {', '.join(names)}", DONE)


def _wishes(options: argparse.Namespace) -> list[Any]:
    return [
        *(getattr(options, move) for move in _MOVES),
        *(options.delete, options.watch, options.events, options.metrics, options.tensorboard),
        *(options.plot, options.ask, options.receipt, options.download),
    ]


def _list(found: list[Job], options: argparse.Namespace) -> None:
    if options.json:
        for one in found:
            print(json.dumps(one.told))
        return
    if not found:
        complain(f"you have no job there; make one with: blindbox finetune {options.origin} FILE", DONE)
    for one in found:
        print(_line(one))


def _tell(job: Job, options: argparse.Namespace) -> None:
    for event in job.events():
        if options.json:
            told = {
                "id": event.id,
                "at": event.at.isoformat(),
                "level": event.level,
                "message": event.message,
            }
            print(json.dumps({**told, "type": event.type, "data": dict(event.data)}))
        else:
            print(event)


def _line(job: Job) -> str:
    """A job in one line."""
    from ..job_handle import moment

    at = f"{moment(job.told.get('created_at')).astimezone():%Y-%m-%d %H:%M}"
    return plain(f"{job.id}  {at}  {job.status:<10}  {job.model or job.base}  {_progress(job)}".rstrip())


def _progress(job: Job) -> str:
    if (error := job.error) is not None:
        return error.message
    step, total = job.progress.get("step"), job.progress.get("total_steps")
    return f"{step}/{total}" if isinstance(step, int) and isinstance(total, int) and not job.finished else ""


def _described(job: Job) -> str:
    """A job in a few lines."""
    lines = [_line(job), f"    phase      {plain(job.phase)}"]
    for name in ("step", "total_steps", "loss", "validation_loss", "tokens_per_second", "eta_seconds"):
        value = job.progress.get(name)
        if isinstance(value, int | float):
            lines.append(f"    {name.replace('_', ' '):<18} {value:g}")
    for name in ("rows_read", "rows_used"):
        value = job.data.get(name)
        if isinstance(value, int):
            lines.append(f"    {name.replace('_', ' '):<18} {value}")
    return "\n".join(lines)
