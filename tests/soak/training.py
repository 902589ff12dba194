"""
`python -m tests.soak.training [--kills 200] [--seed 0] [--no-disk]`: G-20 and G-21, figure by figure.

G-20: a tiny model is fine-tuned again and again, by the real foreman, store and trainer. At times drawn by
chance either the whole server or the training's own process is killed with signal 9. What is published is
read after each death, before anything is started again: all of it has to be whole. In the end every job has
to have gone on, and to have made the very adapter that a job without a death makes.

G-21: one job on a disk that is full after 64 KiB, after 128 KiB, and so on until the job fits. What the
trainer says is played from one real run. The store has to stay readable, the job has to say why it failed,
and with room again the next one has to succeed with the same adapter. (It takes a mount of its own: Linux,
where a user may have one.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from enclave_app.engines.adapter import Adapter
from enclave_app.models import Model
from enclave_app.training import Snapshot, Task, Trained
from enclave_app.training.sft import SftTrainer

from .enclave import REPOSITORY
from .goals import Figure
from .shop import ORDER, OWNER, RECIPE, Replay, Rows, shop, worked

STEP = 64 << 10
DEATHS = 2  # of the training in one life of the server


class Server:
    """The back room in a process, and what it said last."""

    def __init__(self, root: Path, model: Path, job: str | None) -> None:
        asked = json.dumps({"root": str(root), "model": str(model), "job": job})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.shop", asked],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout
        self.deaths = 0  # of trainings that it started

    def job(self) -> str:
        """The id of the job it works on; waits until it says so."""
        return str(json.loads(self.said.readline())["job"])

    def over(self, seconds: float | None) -> bool:
        """Whether it ends by itself in this time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def result(self) -> dict[str, Any]:
        """What came of the job, once it is over."""
        made: dict[str, Any] = json.loads(self.said.readline())
        return made

    def kill(self, chance: random.Random) -> str:
        """Signal 9 for the server, or for the training's process; whom it hit, if anybody."""
        victim, whom = self.process.pid, "server"
        children = _children(self.process.pid)
        # A training that dies again and again where it was is given up by the foreman, and rightly so.
        if children and self.deaths < DEATHS and chance.random() < 0.5:
            victim, whom = chance.choice(children), "training"
            self.deaths += 1
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        if whom == "server":
            self.process.wait()
        return whom


def kills(number: int, seed: int, root: Path, model: Path) -> list[Figure]:
    """G-20."""
    chance = random.Random(seed)
    whole = Server(root / "whole", model, None)
    began = time.monotonic()
    whole.job()
    whole.over(None)
    wanted, seconds = whole.result(), time.monotonic() - began
    assert wanted["status"] == "succeeded", wanted
    print(f"      a job without a death: {seconds:.1f} s", flush=True)
    hit: Counter[str] = Counter()
    partial = resumed = equal = went_on = 0
    store = root / "killed"
    while hit.total() < number:
        before = hit.total()
        made = _job_with_deaths(store, model, seconds, number, chance, hit, wanted["adapter"])
        deaths = hit.total() - before
        partial += made["partial"]
        resumed += deaths * (made["status"] == "succeeded")
        equal += deaths * (made["adapter"] == wanted["adapter"] and made["losses"] == wanted["losses"])
        went_on += made["resumed"]
        if made["status"] != "succeeded":
            print(f"      {made}", flush=True)
    deaths = hit.total()
    where = f"{hit['server']} of the server, {hit['training']} of the training; {went_on} from a checkpoint"
    return [
        Figure("G-20", f"kills, {where}: jobs that went on", f"{resumed}/{deaths}", "all", resumed == deaths),
        Figure(
            "G-20", "… and made the same adapter, bit by bit", f"{equal}/{deaths}", "all", equal == deaths
        ),
        Figure("G-20", "published models that were not whole, ever", str(partial), "0", partial == 0),
    ]


def _job_with_deaths(
    store: Path,
    model: Path,
    seconds: float,
    number: int,
    chance: random.Random,
    hit: Counter[str],
    adapter: str,
) -> dict[str, Any]:
    """One job to its end; who was killed meanwhile is counted in `hit`."""
    job: str | None = None
    partial = 0
    while True:
        server = Server(store, model, job)
        job = server.job()  # written down by now
        killed = ""
        while killed != "server" and hit.total() < number and not server.over(chance.uniform(0.0, seconds)):
            killed = server.kill(chance)
            hit.update([killed] if killed else [])
        if killed != "server":
            server.over(None)
        partial += not_whole(store, Model.at(model), adapter)
        if killed != "server":
            return {**server.result(), "partial": partial}


def not_whole(root: Path, model: Model, adapter: str) -> int:
    """How many models that are listed cannot be read whole, or are not what the job makes."""
    _, catalogue, store = shop(root, model)
    found = 0
    for served in asyncio.run(catalogue.all(OWNER)):
        if served.name == "tiny":
            continue
        try:
            found += catalogue.adapter(OWNER, served.name).manifest.weights_sha256 != adapter
        except Exception:  # whatever it is, the model was not whole
            found += 1
    for name in store.names(OWNER, "adapters"):
        Adapter.parse(store.read(OWNER, "adapters", name))
    return found


def recorded(model: Path) -> list[Any]:
    """What the trainer says of the job."""
    reading = Rows(None).read(OWNER, ORDER)
    task = Task(reading.examples, RECIPE, reading.template.value, "0" * 64, reading.validation)
    rows = shop(Path(tempfile.mkdtemp(prefix="blindbox-soak-")), Model.at(model))[0].rows
    made = list(SftTrainer(Model.at(model), "cpu").train(task, lambda: ""))
    last = made[-1]
    assert isinstance(last, Trained)
    manifest = {
        **{name: getattr(last.adapter.manifest, name) for name in last.adapter.manifest.__slots__},
        "template_digest": rows.digest(reading.template),
    }
    adapter = Adapter(type(last.adapter.manifest)(**manifest), last.adapter.weights)
    return [*made[:-1], Trained(adapter, last.report)]


def full_disk(model: Path, place: Path) -> list[Figure]:
    """G-21, where `place` is a folder that something may be mounted on."""
    said = recorded(model)
    adapter = said[-1].adapter.manifest.weights_sha256
    largest = max(len(item.state) for item in said if isinstance(item, Snapshot))
    print(f"      a snapshot is {largest >> 10} KiB", flush=True)
    steps = corrupt = silent = unlike = 0
    size = 0
    while True:
        size += STEP
        steps += 1
        _mount(place, size)
        try:
            status, code = _attempt(place, model, said)
            fitted = status == "succeeded"
            silent += not fitted and code != "no_space"
            corrupt += _unreadable(place, model)
            if not fitted:
                _mount(place, 64 << 20, more="remount,")
                status, _ = _attempt(place, model, said)
                unlike += status != "succeeded" or not_whole(place, Model.at(model), adapter) > 0
        finally:
            subprocess.run(["umount", str(place)], check=True)
        if fitted:
            break
    what = f"a disk that is full after 64, 128 … {size >> 10} KiB"
    return [
        Figure(
            "G-21", f"{what}: files that could not be read", f"{corrupt} in {steps} runs", "0", corrupt == 0
        ),
        Figure("G-21", "… jobs that failed and did not say that it was full", str(silent), "0", silent == 0),
        Figure("G-21", "… that could not be done once there was room", str(unlike), "0", unlike == 0),
    ]


def _attempt(place: Path, model: Path, said: list[Any]) -> tuple[str, str]:
    """A job over this disk: its status and its error's code."""
    try:
        foreman, _, _ = shop(place, Model.at(model), Replay(said))
        job = asyncio.run(worked(foreman, None, lambda _: None))
        foreman.close()
    except Exception as error:  # refused from the start
        return "refused", str(getattr(error, "code", "no_space" if isinstance(error, OSError) else "?"))
    return job.status, "" if job.error is None else job.error.code


def _unreadable(place: Path, model: Path) -> int:
    """Files of the owner that cannot be read to their end, by a store that is opened anew."""
    _, _, store = shop(place, Model.at(model), Replay([]))
    found = 0
    for folder in sorted((place / OWNER.id).glob("*")) if (place / OWNER.id).is_dir() else []:
        for name in store.names(OWNER, folder.name):
            try:
                store.read(OWNER, folder.name, name)
            except Exception:  # whatever it is
                found += 1
    return found


def _mount(place: Path, size: int, more: str = "") -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"{more}size={size}", "tmpfs", str(place)]
    subprocess.run(command, check=True)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return sorted({int(child) for child in " ".join([text, *tasks]).split()})


def disk_apart(model: Path, root: Path) -> list[Figure]:
    """G-21 in a process with mounts of its own."""
    (root / "disk").mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "tests.soak.training"]
    more = ["--model", str(model), "--disk", str(root / "disk")]
    done = subprocess.run([*command, *more], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not told:
        return [Figure("G-21", "a full disk", "not run: no mounts here", "run", False)]
    return [Figure(**figure) for figure in told]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.training", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-disk", action="store_true", help="leave out G-21")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--disk", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.disk is not None:
        for figure in full_disk(asked.model, asked.disk):
            print(json.dumps({name: getattr(figure, name) for name in Figure.__slots__}), flush=True)
        return 0
    from tests.kit.models import tiny_llama

    model = tiny_llama()
    with tempfile.TemporaryDirectory(prefix="blindbox-soak-") as folder:
        figures = kills(asked.kills, asked.seed, Path(folder), model) if asked.kills else []
        if not asked.no_disk:
            figures += disk_apart(model, Path(folder))
    for figure in figures:
        mark = "ok  " if figure.held else "MISS"
        print(f"{mark}  {figure.goal:<5} {figure.what:<100} {figure.found:<20} {figure.wanted}")
    return 0 if all(figure.held for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
