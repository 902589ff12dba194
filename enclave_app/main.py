"""
All parts meet here, and nowhere else: settings, models, engines, trainer, store, identity, gateway.

`create_app` joins parts that are handed to it; `from_settings` makes the real ones first. What comes back is
the sealed app: the plain one inside is not reachable from the network.
"""

from __future__ import annotations

import atexit
import os
import shutil

from .api import Rooms, build_api
from .datasets import Hub, HuggingFaceHub, NoHub
from .engines import Engine
from .engines.desk import Desk
from .engines.echo import EchoEngine
from .gateway import Gateway, Limits
from .identity import Identity
from .models import Model, UnusableModel, find, keep_from_hub, quiet
from .quoting import Quoter, find_quoter
from .settings import InvalidSettings, Settings
from .store import Store
from .training import Trainer
from .training.counting import CountingTrainer
from .training.workshop import Workshop

MULTIPART_OVERHEAD = 1 << 20


def create_app(
    settings: Settings,
    *,
    base: Engine,
    instruct: Engine,
    trainer: Trainer,
    quoter: Quoter,
    store: Store | None = None,
    hub: Hub | None = None,
) -> Gateway:
    """The sealed app over these parts; a store that is not given is a fresh one."""
    rooms = Rooms(
        settings=settings,
        store=store or _store(settings),
        base=base,
        instruct=instruct,
        desk=Desk(settings.max_waiting),
        workshop=Workshop(trainer, settings.max_waiting_trainings),
        hub=hub or (HuggingFaceHub() if settings.allow_outbound else NoHub()),
    )
    identity = Identity(quoter, config_digest=settings.digest())
    limits = Limits(body_bytes=settings.max_upload_bytes + MULTIPART_OVERHEAD)
    return Gateway(build_api(rooms), identity, limits=limits, authorities=settings.authorities)


def from_settings(settings: Settings) -> Gateway:
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
        echo = EchoEngine()
        return create_app(settings, base=echo, instruct=echo, trainer=CountingTrainer(), quoter=quoter)
    (quiet if settings.allow_outbound else keep_from_hub)(os.environ)
    base_model, instruct_model = find(settings.model, settings), find(settings.instruct_model, settings)

    from .engines.torch import TorchEngine
    from .training.sft import SftTrainer

    def loaded(model: Model) -> TorchEngine:
        try:
            return TorchEngine(model, settings.device)
        except Exception as error:  # libraries raise what they like, and nobody has been served yet
            told = str(error).strip().partition("\n")[0][:300]
            raise UnusableModel(
                f"{model.folder} cannot be loaded (device: {settings.device}): {type(error).__name__}: {told}"
            ) from error

    base = loaded(base_model)
    instruct = base if instruct_model == base_model else loaded(instruct_model)
    trainer = SftTrainer(base_model, settings.device)
    return create_app(settings, base=base, instruct=instruct, trainer=trainer, quoter=quoter)


def _store(settings: Settings) -> Store:
    if settings.data_dir is not None:
        try:
            return Store(settings.data_dir)
        except OSError as error:
            raise InvalidSettings(
                f"BLINDBOX_DATA_DIR: {settings.data_dir} cannot be used: {error.strerror}."
            ) from error
    store = Store.temporary()
    atexit.register(shutil.rmtree, store.root, ignore_errors=True)
    return store
