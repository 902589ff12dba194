"""
What a job is made of: the rows it learns from, the adapter it goes on from, and whether it fits in memory.

From an order to tokens: a tenant's file is opened sealed as it lies, chunk by chunk, and a hub's data set is
fetched where that is allowed. How rows become tokens is in `reading.py`, what takes how much in `budget.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, Final

from blindbox_data import Form, Wanted

from ..catalogue import Catalogue
from ..engines.adapter import Adapter
from ..figures import free_bytes
from ..hub import Hub
from ..hub.line import Unwanted
from ..prompts import Template
from ..refusals import Failed, NotFound
from ..settings import Settings
from ..store import CHUNK, Damaged, Missing, Store
from ..tenants import Tenant
from . import FILES, Order, Source, pinned, settled
from .budget import admit, estimate
from .reading import Reading, Stopped, lesson_of, read_lesson, rows_of_all

NAMES: Final = {
    "dataset_name": "training_file",
    "question_column": "blindbox.question_column",
    "answer_column": "blindbox.answer_column",
    "number_elements_for_training": "blindbox.number_elements_for_training",
}
"""How `/v1/fine_tuning` spells the fields of the house API."""


class Material:
    """Finds and reads what orders name, for the one model that is trained on."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        catalogue: Catalogue,
        hub: Hub,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`config` is the model's config.json; without one there are no weights, and nothing to admit."""
        self._settings = settings
        self._store = store
        self._catalogue = catalogue
        self._hub = hub
        self._config = config

    def read(self, tenant: Tenant, order: Order, stopped: Callable[[], bool] | None = None) -> Reading:
        """The order's rows as tokens; raises `Refusal` for what is wrong with them, or `Stopped`."""
        tokenizer = self._catalogue.base.tokenizer
        window = self._window()
        wanted = Wanted(
            question_column=order.question_column,
            answer_column=order.answer_column,
            number=order.number,
            on_invalid=order.on_invalid,
            dedup=order.dedup,
            most_rows=self._settings.max_training_rows,
        )
        if order.training.hub:
            return self._from_hub(order, wanted, window, stopped)
        validation: Any = order.validation_split
        try:
            with ExitStack() as files:
                file = files.enter_context(self._opened(tenant, order.training, "training_file"))
                if order.validation is not None:
                    other = files.enter_context(self._opened(tenant, order.validation, "validation_file"))
                    validation = (other, Form(order.validation.form))
                return read_lesson(
                    file,
                    Form(order.training.form),
                    wanted,
                    order.recipe,
                    tokenizer,
                    window=window,
                    validation=validation,
                    names=None if order.of_house else NAMES,
                    stopped=stopped,
                )
        except Damaged:
            raise Failed(
                "The stored file is damaged. Delete it and upload it again.", code="damaged_file"
            ) from None

    def _from_hub(
        self, order: Order, wanted: Wanted, window: int | None, stopped: Callable[[], bool] | None
    ) -> Reading:
        training = order.training
        found = self._hub.find(training.name, training.config, training.revision)
        files = ((each.path, each.file, each.form) for each in found.files(stopped))
        try:
            reading = lesson_of(
                rows_of_all(files, wanted, stopped),
                wanted,
                order.recipe,
                self._catalogue.base.tokenizer,
                window=window,
                validation=order.validation_split,
                names={"file": "dataset_name"},
                stopped=stopped,
            )
        except Unwanted:
            raise Stopped from None
        reading.report["hub"] = told = found.told()
        if training.sha256 and told["sha256"] != training.sha256:
            raise Failed(
                "The hub's data set is not what it was when this job began. Create a new job.",
                code="dataset_changed",
                status=409,
            )
        return reading

    def settle(self, order: Order, reading: Reading) -> Order:
        """The order, now that its rows are known: what was left open, and what a hub's data set was."""
        known = pinned(order, reading.report)
        return settled(known, len(reading.examples), self._settings.max_epochs)

    def admit(self, order: Order, reading: Reading, *, alone: bool = True) -> dict[str, Any] | None:
        """
        What it will take of memory; raises `Refusal` where that is more than there is.

        Not `alone`, another training has its memory still, and what will be free is not known.
        """
        if self._config is None:
            return None
        longest = max((len(each.ids) for each in reading.examples), default=0)
        tokens = sum(len(each.ids) for each in reading.examples)
        learned = sum(each.learned for each in reading.examples)
        needed = estimate(
            self._config,
            order.recipe,
            longest,
            learned / max(1, tokens),
            processes=self._settings.training_processes,
        )
        admit(needed, free_bytes() if alone else None)
        return {"bytes": dict(needed.parts), "total": needed.total}

    def digest(self, template: Template) -> str:
        """The template's, with the tokenizer of the base model."""
        return template.digest(self._catalogue.base.tokenizer)

    def start(self, tenant: Tenant, order: Order) -> Adapter | None:
        """The adapter to go on from."""
        return None if order.from_adapter is None else self._catalogue.adapter(tenant, order.from_adapter)

    def _window(self) -> int | None:
        """How many tokens the model reads; as its engine says, once it is open."""
        try:
            return self._catalogue.card(self._catalogue.untuned(self._catalogue.base)).context
        except NotFound:
            return None

    def _opened(self, tenant: Tenant, source: Source, param: str) -> BinaryIO:
        """
        The file's bytes, which are those that its description was made for, and a receipt will name.

        The store does not notice what was put back while the enclave was off; the digest does.
        """
        try:
            file = self._store.reader(tenant, FILES, source.name)
        except Missing:
            raise NotFound(
                "The file of this job is not there any more. Upload it again and create a new job.",
                code="file_not_found",
                param=param,
            ) from None
        digest = hashlib.sha256()
        try:
            while piece := file.read(CHUNK):
                digest.update(piece)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        if source.sha256 and digest.hexdigest() != source.sha256:
            file.close()
            raise Failed(
                "The stored file is not the one that this job was made for. Delete it and upload it again.",
                code="damaged_file",
                param=param,
            )
        return file
