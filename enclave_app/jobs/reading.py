"""
A data set → what a trainer reads: token ids and labels, a part of them held back, and a report for its owner.

Rows are judged by `blindbox_data`, as they are on the caller's own machine; here they meet the model's
tokenizer and its template. What is held back is chosen by the recipe's seed and never learned, and no row
that says the same is. Only the report's three samples hold text, and nobody but the owner is shown them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Final, cast

from blindbox_data import DataError, Form, Lengths, Rows, Selection, Wanted, open_rows, select
from blindbox_data.errors import rows_told, shown

from ..prompts import IGNORED, Example, Template, Untold, end_of
from ..refusals import Refusal, of_data
from ..training import Recipe
from .parquet import Stopped as Stopped
from .parquet import parquet_rows

SHARE: Final = 0.1
"""Of the rows, held back where nothing else is said …"""
ENOUGH: Final = 50
"""… and there are so many."""
PROBES: Final = 4
PROBE_TOKENS: Final = 32
"""How many tokens an answer to a probe has to fit in, behind it."""
_SHOWN: Final = 4000  # characters of a sample
_START: Final = 16  # tokens of a plain text that make a probe

NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a trainer needs of the data, and what its owner is told of it."""

    examples: list[Example] = field(repr=False)
    validation: list[Example] = field(repr=False)
    probes: list[list[int]] = field(repr=False)  # prompts, held-back ones where there are any
    template: Template
    report: dict[str, Any] = field(repr=False)


def read_lesson(
    file: BinaryIO | Iterable[bytes],
    form: Form,
    wanted: Wanted,
    recipe: Recipe,
    tokenizer: Any,
    *,
    end: int | None = None,
    window: int | None = None,
    validation: float | tuple[BinaryIO | Iterable[bytes], Form] | None = None,
    names: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Reading:
    """
    Read a file for a training; raises `Refusal`, or `Stopped` once `stopped` says so.

    `end` is the end token to learn (None: as the template or the tokenizer has it); `window` is how many
    tokens the model can read. `validation` is the share of rows to hold back, or a file with such rows; None
    holds back a tenth where there are enough. `names` says how the route spells the fields at fault.
    """
    held = None
    if isinstance(validation, tuple):
        held = rows_of(*validation, wanted, stopped)
    return lesson_of(
        rows_of(file, form, wanted, stopped),
        wanted,
        recipe,
        tokenizer,
        end=end,
        window=window,
        validation=held if isinstance(validation, tuple) else validation,
        names=names,
        stopped=stopped,
    )


def lesson_of(
    rows: NumberedRows,
    wanted: Wanted,
    recipe: Recipe,
    tokenizer: Any,
    *,
    end: int | None = None,
    window: int | None = None,
    validation: float | NumberedRows | None = None,
    names: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Reading:
    """
    The same of rows, wherever they come from.

    1. the rows are judged
    2. they become tokens, cut at what the recipe and the model's window allow
    3. some are held back
    """
    told: dict[str, Any] | None = None
    try:
        chosen = _selected(rows, wanted, stopped)  # 1
        template = Template.for_shape(tokenizer, chosen.shape)
        most = min(recipe.most_tokens, window or recipe.most_tokens)
        end = end_of(tokenizer) if end is None else end
        desk = _Desk(template, tokenizer, end, most, answer_only=recipe.answer_only, wanted=wanted)
        learned = desk.tokens(chosen, stopped)  # 2
        if validation is None or isinstance(validation, int | float):  # 3
            kept, back = _split(learned.rows, validation, recipe.seed)
        else:
            with _of_validation():
                other = _selected(validation, replace(wanted, number=None, dedup=False), stopped)
                if Template.for_shape(tokenizer, other.shape) is not template:
                    raise DataError(
                        f'its rows have another shape ("{other.shape.kind}") than those of the training file '
                        f'("{chosen.shape.kind}").',
                        code="wrong_type",
                    )
                told = other.report.told()
                kept, back = learned.rows, desk.tokens(other, stopped).rows
    except DataError as error:
        raise of_data(error, names) from None
    report = _report(chosen, desk, learned, kept, back)
    if told is not None:
        report["validation"] = told
    return Reading(
        examples=[each.example for each in kept],
        validation=[each.example for each in back],
        probes=desk.probes(back or kept, window),
        template=template,
        report=report,
    )


def rows_of(
    file: BinaryIO | Iterable[bytes],
    form: Form,
    wanted: Wanted,
    stopped: Callable[[], bool] | None = None,
) -> NumberedRows:
    """The rows of a file with their numbers: Parquet's are read in a process of their own, others here."""
    if form is Form.PARQUET:
        return parquet_rows(as_file(file), wanted, stopped)
    return open_rows(as_file(file), form, wanted)


def rows_of_all(
    files: Iterable[tuple[str, BinaryIO, Form]], wanted: Wanted, stopped: Callable[[], bool] | None = None
) -> NumberedRows:
    """The rows of several files as if they were one; the next file is asked for when the last one is read."""
    read = 0
    for path, file, form in files:
        number = 0
        rows = rows_of(file, form, wanted, stopped)
        try:
            for number, row in rows:
                yield read + number, row
        except DataError as error:
            raise DataError(
                f'Of "{shown(path)}": {error.message}', code=error.code, param=error.param
            ) from None
        finally:
            _let_go(rows)
        read += number


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file that can be read once."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = iter(pieces)
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = piece
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count


def as_file(file: BinaryIO | Iterable[bytes]) -> BinaryIO:
    """Pieces as they come (`Store.pieces`) as a file; a file stays what it is."""
    if hasattr(file, "read"):
        return cast("BinaryIO", file)
    return cast("BinaryIO", io.BufferedReader(_Pieces(file), 256 << 10))


# --- tokens -----------------------------------------------------------------------------------


@contextmanager
def _of_validation() -> Iterator[None]:
    """Say of which file it is that something is wrong with it."""
    try:
        yield
    except DataError as error:
        message = f"Of the validation file: {error.message}"
        raise DataError(message, code=error.code, param="validation_file") from None


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as tokens."""

    number: int
    at: int  # its place among the selected examples
    of: Selection = field(repr=False)
    example: Example = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """All rows that can be learned, and those that cannot."""

    rows: list[_Row]
    too_long: Rows
    untold: Rows


class _Desk:
    """Where rows become tokens."""

    def __init__(
        self,
        template: Template,
        tokenizer: Any,
        end: int | None,
        most: int,
        *,
        answer_only: bool,
        wanted: Wanted,
    ) -> None:
        self.template = template
        self.most = most
        self._tokenizer = tokenizer
        self._end = end
        self._answer_only = answer_only
        self._wanted = wanted

    def tokens(self, chosen: Selection, stopped: Callable[[], bool] | None) -> _Tokens:
        """All examples as tokens; raises `DataError` where none can be learned, or one cannot be written."""
        rows: list[_Row] = []
        why = ""
        too_long, untold = Rows(), Rows()
        for at, (number, example) in enumerate(zip(chosen.rows, chosen.examples, strict=True)):
            if stopped is not None and at % 256 == 0 and stopped():
                raise Stopped
            try:
                made = self.template.example_of(
                    self._tokenizer,
                    example,
                    end=self._end,
                    most=self.most,
                    answer_only=self._answer_only,
                )
            except (Untold, Refusal) as error:
                untold.add(number)
                why = why or (f"it {error}" if isinstance(error, Untold) else error.message)
                continue
            if not made.learned:
                too_long.add(number)
                continue
            rows.append(_Row(number, at, chosen, made))
        if untold.count and (self._wanted.on_invalid == "error" or not rows):
            of_all = (
                "The only conversation"
                if chosen.report.rows_used == 1
                else f"Of {chosen.report.rows_used} conversations, {untold.count}"
            )
            message = (
                f"{of_all} cannot be written for this model ({rows_told(untold.numbers, untold.count)}). "
                f"{'Of the first: ' if untold.count > 1 else 'Why: '}{why.rstrip('.')}."
            )
            if rows:
                it = "it" if untold.count == 1 else "them"
                message += f' Mend {it}, or send "on_invalid": "skip" to train without {it}.'
            raise DataError(
                message,
                code="invalid_conversation",
            )
        if not rows:
            raise DataError(
                f"No row has a token to learn within {self.most} tokens: the questions alone are longer.",
                code="too_many_tokens",
            )
        return _Tokens(rows, too_long, untold)

    def probes(self, rows: Sequence[_Row], window: int | None) -> list[list[int]]:
        """Some prompts, as they would be asked."""
        found: list[list[int]] = []
        for row in rows:
            prompt, _ = self._parted(row)
            room = None if window is None else window - PROBE_TOKENS
            if prompt and (room is None or len(prompt) <= room) and prompt not in found:
                found.append(prompt)
            if len(found) == PROBES:
                break
        return found

    def sample(self, row: _Row) -> dict[str, str]:
        """A row as the model sees it, special tokens and all."""
        prompt, answer = self._parted(row, of_text=False)
        return {"prompt": self._text(prompt), "answer": self._text(answer)}

    def _parted(self, row: _Row, *, of_text: bool = True) -> tuple[list[int], list[int]]:
        """What comes before the last turn that is learned, and that turn."""
        made = self.template.example_of(
            self._tokenizer, row.of.examples[row.at], end=self._end, most=self.most
        )
        ids, labels = list(made.ids), list(made.labels)
        until = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
        begin = until
        while begin and labels[begin - 1] != IGNORED:
            begin -= 1
        if not begin and of_text:  # a text: it is asked how it goes on
            begin = min(_START, until // 2)
        return ids[:begin], ids[begin:until]

    def _text(self, ids: list[int]) -> str:
        decode = getattr(self._tokenizer, "written", None) or self._tokenizer.decode
        text = str(decode(ids))
        if len(text) <= _SHOWN:
            return text
        return f"{text[: _SHOWN // 2]} […] {text[-_SHOWN // 2 :]}"


def _selected(rows: NumberedRows, wanted: Wanted, stopped: Callable[[], bool] | None) -> Selection:
    """Judge the rows, and let go of where they came from."""

    def watched() -> NumberedRows:
        for number, row in rows:
            if stopped is not None and number % 1024 == 0 and stopped():
                raise Stopped
            yield number, row

    try:
        return select(watched(), wanted)
    finally:
        _let_go(rows)


def _let_go(rows: NumberedRows) -> None:
    if isinstance(rows, Generator):
        rows.close()


# --- what is held back ------------------------------------------------------------------------


def _split(rows: list[_Row], share: float | None, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Rows to learn from, and rows to judge by. Rows of the same tokens stay together."""
    if share is None:
        share = SHARE if len(rows) >= ENOUGH else 0.0
    wanted = min(max(1, round(share * len(rows))), len(rows) - 1) if share > 0 else 0
    if wanted <= 0:
        return rows, []
    alike: dict[bytes, list[int]] = {}
    for at, row in enumerate(rows):
        alike.setdefault(bytes(memoryview(row.example.ids)), []).append(at)  # type: ignore[arg-type]
    groups = list(alike.values())
    random.Random(seed).shuffle(groups)  # noqa: S311 - the same rows for the same seed, and no secret
    back: set[int] = set()
    for group in groups:
        if len(back) + len(group) <= wanted:
            back.update(group)
        if len(back) == wanted:
            break
    return (
        [row for at, row in enumerate(rows) if at not in back],
        [row for at, row in enumerate(rows) if at in back],
    )


# --- what is told -----------------------------------------------------------------------------


def _report(
    chosen: Selection, desk: _Desk, learned: _Tokens, kept: list[_Row], back: list[_Row]
) -> dict[str, Any]:
    report = chosen.report.told()
    cut = Rows()
    for row in learned.rows:
        if row.example.cut:
            cut.add(row.number)
    for name, rows in (
        ("no_answer_within_length", learned.too_long),
        ("invalid_conversation", learned.untold),
    ):
        if rows.count:
            report["dropped"][name] = rows.told()
            report["rows_dropped"] += rows.count
    if cut.count:
        report["warnings"].append(
            f"{cut.count} {'row is' if cut.count == 1 else 'rows are'} longer than {desk.most} tokens and "
            f"{'loses its' if cut.count == 1 else 'lose their'} end ({rows_told(cut.numbers, cut.count)}): a "
            "model tuned on many of them does not learn where to stop."
        )
    if learned.too_long.count:
        report["warnings"].append(
            f"{learned.too_long.count} {'row has' if learned.too_long.count == 1 else 'rows have'} no answer "
            f"within {desk.most} tokens and {'is' if learned.too_long.count == 1 else 'are'} left out "
            f"({rows_told(learned.too_long.numbers, learned.too_long.count)})."
        )
    report |= {
        "rows_used": len(kept),
        "validation_rows": len(back),
        "template": desk.template.value,
        "most_tokens": desk.most,
        "tokens": sum(len(row.example.ids) for row in kept),
        "tokens_learned": sum(row.example.learned for row in kept),
        "token_lengths": Lengths.of([row.example.length for row in learned.rows]).told(),
        "rows_cut": cut.told(),
        "samples": [desk.sample(kept[at]) for at in _spread(len(kept))],
    }
    return report


def _spread(count: int) -> list[int]:
    """The first, the middle and the last of so many."""
    return sorted({0, count // 2, count - 1}) if count else []
