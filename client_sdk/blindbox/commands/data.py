"""
`blindbox data check`: what a machine would say of a data set, said here, before anything is sent.

The rows are judged by the very code that the machine runs (`blindbox_data`). Tokens alone are counted there
only, by the model's own tokenizer; here it is characters. Nothing that stands in a row is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..printable import plain
from ..wording import as_options
from .status import DONE, USAGE, complain

if TYPE_CHECKING:
    from blindbox_data import Form, Report, Wanted

_EPILOG = """\
The file may be JSON Lines, JSON (one array), CSV (UTF-8, with a first line of names) or Parquet (needs
pyarrow). Unless columns are named, they are found by their names:

  messages                      a chat, as OpenAI's fine-tuning takes it (tools and weight too)
  prompt, completion
  instruction, input, output    Alpaca's form; input may be missing
  question, answer
  text                          learned from beginning to end

exit status:
  0  it can be trained on
  2  it cannot, or not as it is; why is said

examples:
  blindbox data check rows.jsonl
  blindbox data check faq.csv --question-column Question --answer-column "Best answer"
  blindbox data check book.jsonl --question-column body --answer-column body     plain text
  blindbox data check rows.jsonl --on-invalid skip --dedup --json > report.json
"""
_BAR = 32
_KINDS = {
    "messages": "chats",
    "sharegpt": "chats, as ShareGPT writes them",
    "prompt": "prompts and completions",
    "alpaca": "instructions, in Alpaca's form",
    "question": "questions and answers",
    "text": "plain text",
}


def add(commands: Any) -> None:
    """Add the command to the grammar."""
    data = commands.add_parser(
        "data",
        description="Work on data sets for fine-tuning. The network is not used.",
    )
    kinds = data.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    check = kinds.add_parser(
        "check",
        help="judge a file's rows as the machine would, and report on them",
        description="Judge the rows of a file exactly as a machine judges them before it trains: which rows\n"
        "would be used and which not, by number and reason; duplicates, lengths, and texts that\n"
        "seem to be decoded wrongly. Nothing is sent, and nothing that stands in a row is printed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", metavar="FILE", help="the data set")
    check.add_argument("--question-column", metavar="NAME", help="the column that is asked")
    check.add_argument(
        "--answer-column", metavar="NAME", help="the column that is learned; the same one twice is plain text"
    )
    check.add_argument("--number", type=int, metavar="N", help="only the first N rows, and no fewer")
    check.add_argument(
        "--on-invalid",
        choices=("error", "skip"),
        default="error",
        help="rows that cannot be used are an error (the default), or are left out",
    )
    check.add_argument(
        "--dedup", action="store_true", help="leave out rows that say what an earlier one says"
    )
    check.add_argument(
        "--most-rows",
        type=int,
        default=None,
        metavar="N",
        help="the machine's limit on rows (100000 unless its operator has set another)",
    )
    check.add_argument("--json", action="store_true", help="the report for programs")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from blindbox_data import MOST_ROWS, DataError, Wanted

    wanted = Wanted(
        question_column=options.question_column,
        answer_column=options.answer_column,
        number=options.number,
        on_invalid=options.on_invalid,
        dedup=options.dedup,
        most_rows=MOST_ROWS if options.most_rows is None else options.most_rows,
    )
    path = Path(options.file)
    try:
        form, report, digest = checked(path, wanted)
    except DataError as error:
        if options.json:
            fault = {"message": error.message, "code": error.code, "param": error.param}
            print(json.dumps({"usable": False, "file": path.name, "error": fault}, indent=2))
            return USAGE
        return complain(f"{path.name}: {as_options(error.message)} [{error.code}]", USAGE)
    if options.json:
        size = path.stat().st_size
        about = {"file": path.name, "bytes": size, "sha256": digest, "form": form.value}
        print(json.dumps({"usable": True} | about | {"report": report.told()}, indent=2))
        return DONE
    print(f"{plain(path.name)}: {form.value.upper()}, {_size(path.stat().st_size)}, SHA-256 {digest}")
    print("\n".join(told(report)))
    return DONE


def checked(path: Path, wanted: Wanted) -> tuple[Form, Report, str]:
    """What the machine will find in a file, and the SHA-256 of it; raises `DataError`."""
    from blindbox_data import BEGINNING, Form, open_rows, select

    with path.open("rb") as file:
        form = Form.of(path.name, file.read(BEGINNING))
        file.seek(0)
        report = select(open_rows(file, form, wanted), wanted).report
    with path.open("rb") as file:
        return form, report, hashlib.file_digest(file, "sha256").hexdigest()


def told(report: Report) -> Iterator[str]:
    """The report for people, line by line."""
    columns = ", ".join(f'"{plain(name)}"' for name in report.columns)
    used = f"{report.rows_used} of {report.rows_read}"
    yield f"  rows        {used} would be used: {_KINDS[report.shape]} ({columns})"
    for reason, rows in report.dropped.items():
        numbers = ", ".join(map(str, rows.numbers[:20])) + (" …" if rows.count > 20 else "")
        yield f"  left out    {rows.count} {reason} ({'row' if rows.count == 1 else 'rows'} {numbers})"
    if report.scripts:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in report.scripts.items())
        yield f"  written in  {shares}"
    lengths = report.characters
    yield (
        f"  characters  {lengths.least} to {lengths.most} a row; half of the rows have at most "
        f"{lengths.median}, 19 of 20 at most {lengths.most_but_twentieth}"
    )
    most = max((count for _, _, count in lengths.histogram), default=1)
    for low, high, count in lengths.histogram:
        bar = "█" * (-(-count * _BAR // most))
        yield f"    {f'{low}–{high}':>17}  {bar}{' ' if bar else ''}{count}"
    numbers = ", ".join(f"row {row} ({length})" for row, length in report.longest)
    yield f"  longest     {numbers}"
    for warning in report.warnings:
        yield f"  ! {warning}"
    yield "  The machine counts in tokens; of English text one is about four characters."


def _size(size: int) -> str:
    if size < 1024:
        return "1 byte" if size == 1 else f"{size} bytes"
    unit = min((size.bit_length() - 1) // 10, 3)
    return f"{size / (1 << 10 * unit):.1f} {['KiB', 'MiB', 'GiB'][unit - 1]}"
