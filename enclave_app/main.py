"""
All parts meet here, and nowhere else: settings, models, engines, trainer, store, identity, gateway.

`create_app` joins parts that are handed to it; `from_settings` makes the real ones first. What comes back is
the sealed app: the plain one inside is not reachable from the network.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from .api import Rooms, build_api
from .api.answers import refused
from .api.files import keeping
from .api.tenant import expiring
from .catalogue import Catalogue, Source
from .engines import Spec
from .engines.adapter import Adapter
from .engines.desk import Desk, Make, MakeTuned
from .engines.echo import ByteTokenizer
from .engines.station import stopping
from .engines.worker import Worker, in_process
from .gateway import Gateway, Limits
from .hub import Hub, hub_of
from .identity import Identity
from .jobs.foreman import Foreman
from .jobs.material import Material
from .jobs.receipts import Signer
from .measured import REFUSAL, Measured
from .models import Model, UnusableModel, find
from .offline import keep_from_hub, quiet
from .operators_port import OperatorsPort
from .quoting import Quoter, find_quoter
from .settings import InvalidSettings, Settings
from .store import Store
from .tokenizer import FolderTokenizer, UnusableTokenizer
from .training import Trainer
from .training.counting import CountingTrainer

MULTIPART_OVERHEAD = 1 << 20


class Enclave(Gateway):
    """
    The sealed app, and what the process around it needs: it opens the engines and the operator's port.

    What cannot be opened is in `failure` afterwards, and nothing is served.
    """

    def __init__(self, rooms: Rooms, identity: Identity) -> None:
        settings = rooms.settings
        super().__init__(
            self._inside,
            identity,
            limits=Limits(body_bytes=_sealed(settings.max_upload_bytes) + MULTIPART_OVERHEAD),
            authorities=settings.authorities,
        )
        self.desk = rooms.desk
        self.failure: Exception | None = None
        self._rooms = rooms
        self._api = build_api(rooms)
        self._measured = Measured(self._unless_stopping, rooms.desk.figures)
        self._port = OperatorsPort(rooms.desk, settings.operator_port) if settings.operator_port else None

    async def _inside(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._measured(scope, receive, send)
            return
        try:
            if self._port is not None:
                await self._port.open()
            await self._rooms.catalogue.open()
        except Exception as error:  # noqa: BLE001 - whoever started this says it
            self.failure = error
            self._close()
            await receive()
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        try:
            await self._api(scope, receive, send)
        finally:
            self._close()

    async def _unless_stopping(self, scope: Any, receive: Any, send: Any) -> None:
        if self.desk.draining:
            refusal = stopping()
            scope[REFUSAL] = refusal.code
            await refused(refusal)(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    def _close(self) -> None:
        self.desk.close()
        if self._port is not None:
            self._port.close()


def create_app(
    settings: Settings,
    *,
    base: Source,
    instruct: Source,
    trainer: Trainer,
    quoter: Quoter,
    store: Store | None = None,
    hub: Hub | None = None,
    config: Mapping[str, Any] | None = None,
) -> Enclave:
    """
    The sealed app over these parts; a store that is not given is a fresh one.

    `config` is the base model's config.json, for telling what a training takes of memory.
    """
    store = store or _store(settings)
    identity = Identity(quoter, config_digest=settings.digest())
    desk = Desk(
        most_waiting=settings.max_waiting,
        most_of_one=settings.max_waiting_each,
        tokens_of_one=settings.max_tokens_each,
        most_tuned=settings.max_tuned,
        tuned_bytes=settings.tuned_memory_mib << 20,
        hang_seconds=settings.max_step_seconds,
    )
    catalogue = Catalogue(base, instruct, desk, store, most_models=settings.max_models_each)
    hub = hub or hub_of(settings)
    foreman = Foreman(
        settings,
        store,
        trainer,
        Material(settings, store, catalogue, hub, config),
        catalogue,
        base=base.fingerprint,
        signer=Signer(identity),
        expire=expiring(store),
        keep=keeping(store, settings),
    )
    return Enclave(Rooms(settings, store, catalogue, desk, foreman), identity)


def from_settings(settings: Settings) -> Enclave:
    """
    The sealed app with the real parts.

    The quoter comes first: a machine that cannot prove itself has no need to load a model. A model named
    twice is loaded once and shared.
    """
    quoter = find_quoter(
        settings.quoter,
        endorsements_dir=settings.endorsements_dir,
        tpm_ak=settings.tpm_ak,
        audience=settings.audience,
    )
    if settings.engine == "echo":
        echo = Source("echo", _worker({"engine": "echo"}), ByteTokenizer())
        return create_app(settings, base=echo, instruct=echo, trainer=CountingTrainer(), quoter=quoter)
    (quiet if settings.allow_outbound else keep_from_hub)(os.environ)
    base_model, instruct_model = find(settings.model, settings), find(settings.instruct_model, settings)

    from .training.sft import SftTrainer

    base = source(base_model, settings)
    instruct = base if instruct_model == base_model else source(instruct_model, settings)
    if instruct is not base and instruct.name == base.name:
        raise InvalidSettings(
            f"BLINDBOX_MODEL and BLINDBOX_INSTRUCT_MODEL are two models of one name, {base.name}: callers "
            "could not tell them apart. Rename a folder, or use one model for both."
        )
    trainer = SftTrainer(
        base_model,
        settings.device,
        threads=settings.training_threads,
        processes=settings.training_processes,
    )
    return create_app(
        settings,
        base=base,
        instruct=instruct,
        trainer=trainer,
        quoter=quoter,
        config=json.loads((base_model.folder / "config.json").read_bytes()),
    )


def source(model: Model, settings: Settings) -> Source:
    """A model as it is served: its tokenizer here, its engine in a process of its own."""
    try:
        words = FolderTokenizer(model.folder)
    except UnusableTokenizer as error:
        raise UnusableModel(str(error)) from error
    if settings.engine == "torch":
        spec: Spec = {
            "engine": "torch",
            "folder": str(model.folder),
            "device": settings.device,
            "threads": settings.threads,
            "kv_cache_mib": settings.kv_cache_mib,
            "most_sequences": settings.most_sequences,
        }
    else:
        from .engines.export import exported

        spec = {
            "engine": "openvino",
            "folder": str(exported(model, settings)),
            "threads": settings.threads,
            "kv_cache_mib": settings.kv_cache_mib,
            "most_sequences": settings.most_sequences,
            "base_folder": str(model.folder),
        }
    return Source(_name(model), _worker(spec), words, model.fingerprint, tuned=_tuned(spec))


def _sealed(size: int) -> int:
    """So large can an upload of this size become: padded by up to an eighth, sealed piece by piece."""
    return size * 9 // 8 + size // 512


def _name(model: Model) -> str:
    """`ORG/NAME` or `NAME`: the last parts of a folder, as callers name the model."""
    parent = model.folder.parent.name
    return model.folder.name if parent in ("models", "") else f"{parent}/{model.folder.name}"


def _worker(spec: Spec) -> Make:
    async def make() -> Worker:
        return await in_process(spec)

    return make


def _tuned(spec: Spec) -> MakeTuned:
    async def make(adapter: Adapter) -> Worker:
        return await in_process(spec, adapter)

    return make


def _store(settings: Settings) -> Store:
    if settings.data_dir is not None:
        try:
            return Store(settings.data_dir, most_bytes=settings.max_stored_bytes)
        except OSError as error:
            raise InvalidSettings(
                f"BLINDBOX_DATA_DIR: {settings.data_dir} cannot be used: {error.strerror}."
            ) from error
    store = Store.temporary(most_bytes=settings.max_stored_bytes)
    atexit.register(shutil.rmtree, store.root, ignore_errors=True)
    return store
