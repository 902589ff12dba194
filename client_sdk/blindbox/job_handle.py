"""
A handle on a fine-tuning job in an enclave: where it stands, what it measured, what came of it.

    job = blindbox.job("http://203.0.113.7:80", "ftjob-…", policy="release-1.0.json")
    job.wait()
    job.ask("Who signs engagement letters?")

A job goes on without anybody looking: a handle can be dropped, and made again from the job's id, on any
machine that has the same tenant token. `finetuning.py` makes jobs; what a receipt proves is decided in
`blindbox_attestation.receipt`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload
from urllib.parse import quote

from requests import RequestException

from blindbox_attestation.errors import ReceiptMismatch

from .adapter import AnyPolicyOrFile
from .api import UNREADABLE, Api, passing
from .curve import Curve
from .errors import JobCancelled, JobFailed, Refused
from .metrics import Metrics
from .printable import plain
from .progress import Pulse, Shown, Standing, shown
from .requests import Session
from .unpacking import unpack
from .wording import as_keywords, keyword_of

if TYPE_CHECKING:
    from blindbox_attestation.receipt import VerifiedReceipt

JOBS: Final = "/v1/fine_tuning/jobs"
FINISHED: Final = frozenset({"succeeded", "failed", "cancelled"})
PATIENCE: Final = 600.0  # seconds in which a machine that cannot be reached may come back
_PAGE: Final = 100
_LAST_SECOND: Final = 253402300799  # of the year 9999
_LOOKS_APART: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; `data` has the figures of a `metrics` event."""

    id: str
    at: datetime
    level: str
    message: str
    type: str = "message"
    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Event:
        data = told.get("data")
        return cls(
            id=str(told.get("id", "")),
            at=moment(told.get("created_at")),
            level=plain(str(told.get("level", "info"))),
            message=plain(str(told.get("message", ""))),
            type=str(told.get("type") or "message"),
            data=data if isinstance(data, Mapping) else {},
        )

    def __str__(self) -> str:
        return f"{self.at.astimezone():%H:%M:%S} {self.message}"


class Pieces(Iterator[str]):
    """
    An answer as it comes. Leaving it early (`close`, or Ctrl-C within) ends the work in the enclave too.

    `finish_reason` is known at its end: "stop", or "length" where `max_tokens` cut it.
    """

    def __init__(self, chunks: Generator[dict[str, Any]]) -> None:
        self.finish_reason: str | None = None
        self._chunks = chunks
        self._ready: list[str] = []

    def __next__(self) -> str:
        while not self._ready:
            chunk = next(self._chunks)
            self._ready = list(_contents(chunk, "delta"))
            for choice in chunk.get("choices") or []:
                if isinstance(reason := choice.get("finish_reason"), str):
                    self.finish_reason = reason
        return self._ready.pop(0)

    def close(self) -> None:
        """Let go of it."""
        self._chunks.close()


class Job:
    """One fine-tuning job. What it says of itself is as of the last call that asked; `refresh` asks."""

    def __init__(self, api: Api, told: Mapping[str, Any], *, data_sha256: bytes | None = None) -> None:
        self._api = api
        self.data_sha256 = data_sha256  # of the file that was sent, where this handle made the job
        self._take(told)

    def _take(self, told: Mapping[str, Any]) -> None:
        identity = told.get("id")
        if not isinstance(identity, str) or not identity:
            raise Refused("the enclave's answer is no job", status=500, code=UNREADABLE)
        self.id = identity
        self.told: dict[str, Any] = dict(told)

    # ── what it says ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def origin(self) -> str:
        return self._api.origin

    @property
    def status(self) -> str:
        """`validating_files`, `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`."""
        if self.told.get("status") not in FINISHED and self.phase == "paused":
            return "paused"
        return str(self.told.get("status"))

    @property
    def phase(self) -> str:
        """More closely: `reading`, `loading`, `training`, `checking`, `publishing` …"""
        return str(self._ours("phase") or self.told.get("status") or "queued")

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def resting(self) -> bool:
        """Nothing more happens by itself: it has ended, or it is paused."""
        return self.finished or self.status == "paused"

    @property
    def model(self) -> str | None:
        """The tuned model's name, for `model=` of any call; None until there is one."""
        name = self.told.get("fine_tuned_model")
        return name if isinstance(name, str) else None

    @property
    def base(self) -> str:
        """The model that is taught."""
        return str(self.told.get("model"))

    @property
    def progress(self) -> dict[str, Any]:
        """Step, total steps, loss, tokens a second, seconds left."""
        return self._dictionary("progress")

    @property
    def data(self) -> dict[str, Any]:
        """What was read of the data: rows used, dropped and why, lengths, samples as the model sees them."""
        return self._dictionary("data")

    @property
    def memorisation(self) -> dict[str, Any]:
        """What the memorisation check found, where one was asked for."""
        return self._dictionary("memorisation")

    @property
    def error(self) -> JobFailed | None:
        """Why it ended without a model, if it did."""
        status = self.told.get("status")
        if status not in {"failed", "cancelled"}:
            return None
        told = self.told.get("error")
        error = told if isinstance(told, dict) else {}
        kind = JobCancelled if status == "cancelled" else JobFailed
        message = as_keywords(plain(str(error.get("message") or f"the job was {status}")))
        code, param = error.get("code"), error.get("param")
        return kind(
            message,
            job=self.id,
            code=plain(str(code)) if code else status,
            param=keyword_of(plain(str(param))) if param else None,
        )

    def _ours(self, name: str) -> Any:
        ours = self.told.get("blindbox")
        return ours.get(name) if isinstance(ours, dict) else None

    def _dictionary(self, name: str) -> dict[str, Any]:
        value = self._ours(name)
        return value if isinstance(value, dict) else {}

    def __repr__(self) -> str:
        named = f", model={self.model}" if self.model else ""
        return f"<Job {self.id} {self.status}{named}>"

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> Job:
        """Ask again where it stands."""
        self._take(self._api.ask("GET", self._path()))
        return self

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """
        What happened so far, oldest first; with `follow`, and what happens until the job ends or is paused.

        A stream that breaks off is asked for again, from the last event that came.
        """
        seen: list[str] = []
        if not follow:
            yield from self._so_far(seen)
            return
        quiet = 0.0
        while True:
            before, began = len(seen), time.monotonic()
            try:
                yield from self._stream(seen)
                if self.refresh().resting:
                    yield from self._so_far(seen)  # what came between the stream's end and the job's
                    return
            except (RequestException, Refused) as error:
                if not passing(error):
                    raise
                # It was there for a while, or told something: that is a new beginning.
                quiet = 0.0 if len(seen) > before else quiet + time.monotonic() - began
                if quiet > PATIENCE:
                    raise
            pause = 0.0 if len(seen) > before else min(1.0 + quiet / 10, 15.0)
            quiet += pause
            self._api.pause(pause)

    def _stream(self, seen: list[str]) -> Iterator[Event]:
        asked = {"stream": "true"} | ({"after": seen[-1]} if seen else {})
        with self._api.open("GET", self._path("events"), params=asked, stream=True, tries=1) as response:
            yield from _new(self._api.events(response), seen)

    def _so_far(self, seen: list[str]) -> Iterator[Event]:
        """Pages come newest first, and `after` goes back in time."""
        pages: list[dict[str, Any]] = []
        known, read = set(seen), set[str]()
        asked: dict[str, Any] = {"limit": _PAGE}
        while True:
            told = self._api.ask("GET", self._path("events"), params=asked)
            page = [one for one in _list(told) if isinstance(one.get("id"), str)]
            pages += page
            if not told.get("has_more") or not page or page[-1]["id"] in known | read:
                break
            read |= {one["id"] for one in page}
            asked["after"] = page[-1]["id"]
        yield from _new(reversed(pages), seen)

    def wait(self, *, progress: bool = True, poll: Callable[[Job], None] | None = None) -> Job:
        """
        Wait until it ends or is paused, and show how far it is. Raises `JobFailed` if no model came of it.

        Ctrl-C stops the waiting, not the job. `poll` is called with this handle at each event.
        """
        display = shown(progress)
        at = Standing(self.id)
        if not self.refresh().resting:
            try:
                self._follow(at, display, poll)
            except BaseException:
                display.leave()
                raise
            self.refresh()
        at.learn(self.progress)
        error = self.error
        display.end(at, self._ending())
        if error is not None:
            raise error
        return self

    def _follow(self, at: Standing, display: Shown, poll: Callable[[Job], None] | None) -> None:
        looked = 0.0
        at.learn(self._standing())
        with Pulse(display, at, self._asked) as pulse:
            for event in self.events(follow=True):
                with pulse.heard():
                    if event.type == "metrics":
                        at.learn({"phase": "training"} | dict(event.data))
                    else:
                        display.say(event.message)
                    # Events are told in batches, and have no time left; the job itself has.
                    if event.type != "metrics" or time.monotonic() - looked > _LOOKS_APART:
                        looked = time.monotonic()
                        self._look()
                        at.learn(self._standing())
                    if not self.resting:
                        display.show(at)
                    if poll is not None:
                        poll(self)

    def _standing(self) -> dict[str, Any]:
        """Its figures and its phase, as of the last call that asked."""
        return {} if self.resting else self.progress | {"phase": self.phase}

    def _asked(self) -> dict[str, Any]:
        """The same as of now, and this handle stays as it is: another thread may be using it."""
        return Job(self._api, self._api.ask("GET", self._path(), tries=1))._standing()

    def _look(self) -> None:
        """Ask again, if somebody answers: what is shown beside the events may be a little old."""
        try:
            self.refresh()
        except (RequestException, Refused) as error:
            if not passing(error):
                raise

    def _ending(self) -> str:
        if self.status == "paused":
            return "paused: it goes on when it is resumed"
        return f"{self.status}: {self.model}" if self.model else self.status

    def metrics(self) -> Metrics:
        """The figures of every step that was measured."""
        return Metrics(_list(self._api.ask("GET", self._path("metrics"))), self.model or self.id)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Curve:
        """The loss curve: shown by notebooks, written as SVG to `path`, told in one line by `text()`."""
        curve = self.metrics().curve()
        if path is not None:
            curve.save(path)
        return curve

    def checkpoints(self) -> list[dict[str, Any]]:
        """The points it could go on from, newest first; OpenAI's checkpoint objects."""
        return _list(self._api.ask("GET", self._path("checkpoints")))

    # ── steering ──────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self) -> Job:
        """End it. What was learned so far is thrown away."""
        return self._steer("cancel")

    def pause(self) -> Job:
        """Let it stop at the step it has reached; `resume` goes on from there."""
        return self._steer("pause")

    def resume(self) -> Job:
        """Go on where it was paused."""
        return self._steer("resume")

    def _steer(self, move: Literal["cancel", "pause", "resume"]) -> Job:
        try:
            self._take(self._api.ask("POST", self._path(move)))
        except RequestException:
            # Sent perhaps, and perhaps done: to ask where it stands costs nothing, to order it twice might.
            self.refresh()
            done = {"cancel": self.status == "cancelled", "pause": self.status == "paused"}
            if not done.get(move, self.status != "paused"):
                raise
        return self

    # ── what came of it ───────────────────────────────────────────────────────────────────────────────────

    @overload
    def ask(self, prompt: str, *, stream: Literal[False] = False, **options: Any) -> str: ...
    @overload
    def ask(self, prompt: str, *, stream: Literal[True], **options: Any) -> Pieces: ...
    def ask(self, prompt: str, *, stream: bool = False, **options: Any) -> str | Pieces:
        """The tuned model's answer to a question; with `stream`, piece by piece. Options: `chat`."""
        messages = [{"role": "user", "content": prompt}]
        return self.chat(messages, stream=True, **options) if stream else self.chat(messages, **options)

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Any
    ) -> str: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
    ) -> Pieces: ...
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **options: Any
    ) -> str | Pieces:
        """
        The tuned model's next message; `options` are those of /v1/chat/completions (docs/api.md).

        The likeliest words are taken unless `temperature` is given; `max_tokens` bounds the answer.
        """
        body = {"model": self._tuned(), "messages": list(messages), "temperature": 0, **options}
        if stream:
            return Pieces(self._chunks(body))
        told = self._api.ask("POST", "/v1/chat/completions", body)
        return "".join(_contents(told, "message"))

    def _chunks(self, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        with self._api.open("POST", "/v1/chat/completions", body | {"stream": True}, stream=True) as response:
            yield from self._api.events(response)

    def receipt(self, path: str | os.PathLike[str] | None = None) -> VerifiedReceipt:
        """
        The signed receipt of what was learned from what, verified against the policy of this origin.

        It is checked to be about this job, its model and its adapter, and, where this handle made the job
        from data of this machine, about these very bytes. `path` keeps it for `blindbox receipt verify`.
        Raises `ReceiptRefused` or `AttestationError`; then nothing is written.
        """
        with self._api.open("GET", self._path("receipt")) as response:
            data = response.content
        verified = self._verified(data)
        if path is not None:
            with open(path, "wb") as file:
                file.write(data)
        return verified

    def _verified(self, data: bytes) -> VerifiedReceipt:
        from .receipt import verify

        proof = self._api.proof()
        verified = verify(data, proof.policy, collateral=proof.collateral)
        receipt = verified.receipt
        for what, told, wanted in [
            ("job", receipt.job, self.id),
            ("model", receipt.model, self._tuned()),
        ]:
            if told != wanted:
                raise ReceiptMismatch(
                    f"the receipt is about the {what} {plain(told)}, and not about {wanted}",
                    code=f"{what}-mismatch",
                )
        if self.data_sha256 is not None:
            verified.check_data(self.data_sha256)
        if isinstance(adapter := self._ours("adapter"), str):
            verified.check_adapter(bytes.fromhex(adapter))
        return verified

    def download(self, folder: str | os.PathLike[str]) -> Path:
        """
        Write the adapter to a folder that `peft.PeftModel.from_pretrained` reads; files there are replaced.

        Its digest is compared with the one that the enclave tells of the job. Returns the folder.
        """
        wanted = self._ours("adapter")
        with self._api.open(
            "GET", f"/v1/models/{quote(self._tuned(), safe=':/')}/content", stream=True
        ) as response:
            return unpack(response, Path(folder), wanted if isinstance(wanted, str) else None)

    def delete(self, *, model: bool = True, data: bool = False) -> list[str]:
        """
        Remove the job with its checkpoints and receipt, and the tuned model; with `data`, its files too.

        A job that is not finished is cancelled first. Returns the names of what was removed.
        """
        removed = []
        if not self.refresh().finished:
            self.cancel()
        name = self.model
        if model and name is not None and self._gone(f"/v1/models/{quote(name, safe=':/')}"):
            removed.append(name)
        if self._gone(self._path()):
            removed.append(self.id)
        for file in (self.told.get("training_file"), self.told.get("validation_file")) if data else ():
            if isinstance(file, str) and self._gone(f"/v1/files/{quote(file, safe='')}"):
                removed.append(file)
        return removed

    def _gone(self, path: str) -> bool:
        try:
            self._api.ask("DELETE", path)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def _tuned(self) -> str:
        if self.model is None:
            self.refresh()
        if self.model is None:
            raise self.error or Refused(
                f"the job is {self.status}: there is no tuned model yet. wait() waits for it.",
                status=409,
                code="job_not_finished",
            )
        return self.model

    def _path(self, more: str = "") -> str:
        return f"{JOBS}/{quote(self.id, safe='')}" + (f"/{more}" if more else "")

    def close(self) -> None:
        """Let go of the connection; the job goes on."""
        self._api.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def job(
    origin: str, job_id: str, *, policy: AnyPolicyOrFile | None = None, session: Session | None = None
) -> Job:
    """The handle on a job of this tenant, by its id."""
    api = Api(origin, policy, session=session)
    return Job(api, api.ask("GET", f"{JOBS}/{quote(job_id, safe='')}"))


def jobs(origin: str, *, policy: AnyPolicyOrFile | None = None, session: Session | None = None) -> list[Job]:
    """All jobs of this tenant at an origin, newest first."""
    api = Api(origin, policy, session=session)
    found: list[Job] = []
    asked: dict[str, Any] = {"limit": _PAGE}
    while True:
        told = api.ask("GET", JOBS, params=asked)
        known = {one.id for one in found}
        page = [one for one in (Job(api, each) for each in _list(told)) if one.id not in known]
        found += page
        if not told.get("has_more") or not page:
            return found
        asked["after"] = page[-1].id


def _new(told: Iterator[dict[str, Any]], seen: list[str]) -> Iterator[Event]:
    """Those that were not seen; and now they are."""
    known = set(seen)
    for one in told:
        event = Event.of(one)
        if event.id not in known:
            known.add(event.id)
            seen.append(event.id)
            yield event


def _list(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = told.get("data")
    return [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []


def _contents(told: Mapping[str, Any], name: str) -> Iterator[str]:
    for choice in told.get("choices") or []:
        content = (choice.get(name) or {}).get("content")
        if isinstance(content, str) and content:
            yield content


def moment(seconds: object) -> datetime:
    """Unix seconds as a time; what is none is the beginning of 1970."""
    right = isinstance(seconds, int | float) and 0 <= seconds <= _LAST_SECOND
    return datetime.fromtimestamp(float(seconds) if right else 0.0, UTC)  # type: ignore[arg-type]
