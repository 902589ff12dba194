"""
Fine-tuning as jobs: what is asked for, where it stands, and which moves there are.

    validating_files ──► queued ──► running ──► succeeded | failed | cancelled
            └───────────────┴── paused ─┘           (these three never change)

Here are the values and the table. `book.py` keeps them sealed. `foreman.py` takes what callers ask for,
`line.py` knows whose turn it is, `shift.py` has the threads, `bench.py` does the work, `ears.py` listens,
`arrivals.py` sees who is here. `material.py` finds the rows, `reading.py` makes tokens of them, `budget.py`
says what fits in memory, `curve.py` has the figures, `failures.py` the reasons why not, `receipts.py` signs.
Nothing here knows a route; `../api/jobs.py` does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

from ..refusals import Conflict
from ..training import Recipe
from ..training.defaults import suited

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
JobPhase = Literal["queued", "reading", "loading", "training", "checking", "publishing", "paused", "done"]
Level = Literal["info", "warn", "error"]

MOVES: Final[Mapping[Status, frozenset[Status]]] = {
    "validating_files": frozenset({"queued", "paused", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    # Back to the queue: the enclave stopped, or was stopped, in the middle of it.
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "failed", "cancelled"}),
}
"""A status that is not here as a key is final."""

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
LIVE: Final[frozenset[Status]] = frozenset({"validating_files", "queued", "running"})
"""Those for which the enclave works, and holds the tenant's key."""

JOBS: Final = "jobs"
EVENTS: Final = "job-events"
KEYS: Final = "job-keys"
RECEIPTS: Final = "receipts"
FILES: Final = "files"
DESCRIPTIONS: Final = "file-descriptions"
"""Kinds in the sealed store."""
RESULTS: Final = "file-result-"
"""Files of this beginning belong to jobs."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: a file of the tenant's, or a data set of a hub where that is allowed."""

    name: str  # the file's id, or the hub's name of the data set
    form: str = ""  # how the file is written (a `Form` value)
    sha256: str = ""  # of the file's bytes
    config: str | None = None  # a hub's data set may have several
    hub: bool = False
    revision: str = ""  # of the hub's data set, once it was read: it is read at this one again


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asked for. What they left open has been decided, or is once the rows are known."""

    model: str  # the base model's name
    training: Source
    recipe: Recipe
    validation: Source | None = None
    validation_split: float | None = 0.0  # share of the rows held back; None = as many as is usual
    question_column: str | None = None
    answer_column: str | None = None
    number: int | None = None  # of rows, from the first; None = all
    on_invalid: Literal["error", "skip"] = "error"
    dedup: bool = False
    suffix: str = ""
    from_adapter: str | None = None  # the model or checkpoint to go on from
    metadata: dict[str, str] | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # OpenAI's three, as they were meant
    of_house: bool = False  # by `/finetune`, which has its own names for the fields
    left_open: tuple[str, ...] = ()  # fields of the recipe that wait for the number of rows

    def encode(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Order:
        """The inverse of `encode`."""
        recipe = {**fields["recipe"], "targets": tuple(fields["recipe"]["targets"])}
        validation = fields["validation"]
        return cls(
            **{
                **fields,
                "recipe": Recipe(**recipe),
                "left_open": tuple(fields.get("left_open", ())),
                "training": Source(**fields["training"]),
                "validation": None if validation is None else Source(**validation),
            }
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed, as it is told to its owner. It names no contents of rows."""

    message: str
    code: str
    param: str | None = None
    status: int = 400  # what `/finetune`, which waits for the end, answers with


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning, as it is kept."""

    id: str  # ftjob-…
    number: int  # of the tenant's jobs: they are listed by it, for the clock may jump
    order: Order
    created_at: int  # Unix seconds
    status: Status = "validating_files"
    phase: JobPhase = "queued"
    started_at: int | None = None  # when it first had the bench
    finished_at: int | None = None
    ran_seconds: float = 0.0  # at the bench, before its last start
    progress: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None  # Reading.report
    estimate: dict[str, Any] | None = None
    report: dict[str, Any] = field(default_factory=dict)  # Trained.report
    serving: dict[str, Any] | None = None  # how what is served compares with what was trained
    fine_tuned_model: str | None = None
    adapter: str | None = None  # SHA-256 of its weights
    receipt: bool = False
    results: bool = False  # is there a file of its curve, `results_of` the job?
    resumed_from: int | None = None  # the step
    resumed: int = 0  # times
    error: Failure | None = None

    def encode(self) -> bytes:
        """For the sealed store."""
        fields = {**{name: getattr(self, name) for name in self.__slots__}, "order": self.order.encode()}
        fields["error"] = None if self.error is None else asdict(self.error)
        return json.dumps({"blindbox-job": 1, **fields}).encode()

    @classmethod
    def parse(cls, data: bytes) -> Job:
        """The inverse of `encode`; raises `ValueError`, `KeyError` or `TypeError`."""
        fields = json.loads(data)
        if fields.pop("blindbox-job") != 1:
            raise ValueError("another version of a job")
        fields.pop("model_id", None)  # which older records have; it is made of the job's id
        error = fields["error"]
        return cls(
            **{
                **fields,
                "order": Order.parse(fields["order"]),
                "error": None if error is None else Failure(**error),
            }
        )

    def now(self) -> int:
        """Unix seconds, never before what is known of the job: the clock may have jumped back."""
        return max(int(time.time()), self.created_at, self.started_at or 0)

    @property
    def over(self) -> bool:
        """Has it come to its end?"""
        return self.status not in MOVES

    @property
    def live(self) -> bool:
        """Does the enclave still have work with it?"""
        return self.status in LIVE


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a job has to say: a sentence, or the figures of a step."""

    job: str
    number: int  # from 0, growing
    created_at: int
    message: str
    level: Level = "info"
    data: dict[str, Any] | None = None  # of a metrics event

    @property
    def id(self) -> str:
        """As callers name it."""
        return f"ftevent-{self.job.removeprefix('ftjob-')[:16]}{self.number:08x}"

    @property
    def step(self) -> int | None:
        """The step that its figures are of."""
        return None if self.data is None else int(self.data["step"])

    def told(self) -> dict[str, Any]:
        """OpenAI's event object."""
        return {
            "id": self.id,
            "object": "fine_tuning.job.event",
            "created_at": self.created_at,
            "level": self.level,
            "message": self.message,
            "type": "message" if self.data is None else "metrics",
            "data": self.data,
        }


def move(job: Job, to: Status, **changes: Any) -> Job:
    """The job after this move; raises `Conflict` where the table has none. Nobody else assigns `status`."""
    if to not in MOVES.get(job.status, frozenset()):
        raise Conflict(
            f"The job is {job.status}; it cannot become {to}.",
            code="wrong_status",
            param="status",
            status=400,
        )
    return replace(job, status=to, **changes)


def pinned(order: Order, report: Mapping[str, Any]) -> Order:
    """The order with the commit of its hub's data set, and the digest of what was read of it, as reported."""
    told = report.get("hub")
    if not order.training.hub or not told:
        return order
    return replace(order, training=replace(order.training, revision=told["revision"], sha256=told["sha256"]))


def settled(order: Order, rows: int, most_epochs: int) -> Order:
    """The order with what was left open decided for so many rows; from then on nothing of it changes."""
    recipe = suited(order.recipe, order.left_open, rows, most_epochs)
    return replace(order, recipe=recipe, left_open=(), hyperparameters=hyperparameters_of(recipe))


def hyperparameters_of(recipe: Recipe, left_open: Collection[str] = ()) -> dict[str, Any]:
    """OpenAI's three, as numbers, or "auto" as long as they are open."""
    times = round(recipe.learning_rate / Recipe().learning_rate, 9)
    told = {
        "epochs": ("n_epochs", recipe.epochs),
        "batch_size": ("batch_size", recipe.batch_size),
        "learning_rate": ("learning_rate_multiplier", times),
    }
    return {name: "auto" if of in left_open else number for of, (name, number) in told.items()}


def recipe_told(order: Order) -> dict[str, Any]:
    """Every option of the training; null what is decided when the rows are known."""
    return asdict(order.recipe) | dict.fromkeys(order.left_open)


def results_of(job_id: str) -> str:
    """The file of a job's curve: known before it is written, the same if it is written twice."""
    return f"{RESULTS}{job_id.removeprefix('ftjob-')}"
