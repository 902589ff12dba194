"""
Models made ready for OpenVINO, once: an HF folder goes in, the folder of an IR comes out, and is kept.

    exports_dir/NAME-WEIGHTS-DIGEST/    the IR, its tokenizer, and last of all blindbox-export.json

The digest covers configuration, tokenizer and every byte of the weights, how the weights are held and the
versions of the exporters, so that a changed model is another folder. The manifest names each file with its
SHA-256; what is not whole is made again. A folder is made beside its place, by one process at a time, and
moved there when it is complete: whoever is killed leaves the old state or the new one.

The work itself is done by a process of its own (`export_child.py`), since PyTorch, optimum and nncf would
otherwise stay in the memory of the one that answers the network.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from .. import pipe
from ..child import running
from ..models import Model, UnusableModel
from ..settings import Settings

Weights = Literal["int8", "bf16", "int4"]

MANIFEST: Final = "blindbox-export.json"
STAGES: Final = ("reading weights", "exporting", "compressing", "writing")
_FORMAT: Final = 1  # of the folder; another one is made again
_EXPORTERS: Final = ("torch", "transformers", "optimum-intel", "nncf", "openvino", "openvino-tokenizers")
_LONGEST_MANIFEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written: the IR of the model in `folder`, into the empty folder `destination`."""

    folder: Path
    destination: Path
    weights: Weights


def exported(model: Model, settings: Settings) -> Path:
    """
    The folder of this model's IR; it is made if there is none yet, which takes half a minute or more.

    Raises `UnusableModel` where it cannot be made; the message says why and what to do.
    """
    return export(model, settings.weights, _places(model, settings))


def export(
    model: Model, weights: Weights, places: Sequence[Path], write: Callable[[Job], None] | None = None
) -> Path:
    """
    The same for any folders that exports may lie in; a new one goes into the first that can be written to.

    1. one that says it was made of these very files: names, sizes and times are compared
    2. one made of the same bytes: the model was copied or touched
    3. else a new one, written by `write` (a process of its own, if none is given)
    """
    wish = _Wish.of(model, weights)
    for by_content in (False, True):  # 1, 2
        for place in places:
            for folder in wish.candidates(place):
                if wish.is_met_by(folder, by_content=by_content):
                    return folder
    return _made(wish, _writable(places, wish), write or _by_a_child)  # 3


# --- what is wished for, and whether a folder is it ---------------------------------------------------


@dataclass(frozen=True)
class _Wish:
    """A model, and how its weights shall be held."""

    model: Model
    weights: Weights
    versions: Mapping[str, str]
    files: tuple[tuple[str, int, int], ...]
    """Name, size and time (ns) of each file of weights, as they are now."""

    @classmethod
    def of(cls, model: Model, weights: Weights) -> _Wish:
        files = []
        for path in sorted(model.folder.rglob("*.safetensors")):
            now = path.stat()
            files.append((str(path.relative_to(model.folder)), now.st_size, now.st_mtime_ns))
        return cls(model, weights, _versions(), tuple(files))

    @property
    def size(self) -> int:
        """Bytes of weights as they are stored."""
        return sum(size for _, size, _ in self.files)

    def candidates(self, place: Path) -> Iterator[Path]:
        """What may be it, by its name."""
        return iter(sorted(place.glob(f"{_escaped(self.model.folder.name)}-{self.weights}-*")))

    def name(self) -> str:
        """What a folder made of these bytes is called. Reads all of them."""
        whole = hashlib.sha256(
            json.dumps([_FORMAT, self.weights, self.content, dict(self.versions)], sort_keys=True).encode()
        ).hexdigest()
        return f"{self.model.folder.name}-{self.weights}-{whole[:16]}"

    @cached_property
    def content(self) -> str:
        """A digest of configuration, tokenizer and weights, whole."""
        digest = hashlib.sha256(f"blindbox/export/v1\n{self.model.fingerprint}\n".encode())
        for name, _, _ in self.files:
            digest.update(f"{name} {_sha256(self.model.folder / name)}\n".encode())
        return digest.hexdigest()

    def manifest(self, folder: Path) -> dict[str, Any]:
        return {
            "blindbox-export": _FORMAT,
            "weights": self.weights,
            "versions": dict(self.versions),
            "source": {
                "folder": str(self.model.folder.resolve()),
                "fingerprint": self.model.fingerprint,
                "files": [list(file) for file in self.files],
                "content": self.content,
            },
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in sorted(folder.iterdir())
            },
        }

    def is_met_by(self, folder: Path, *, by_content: bool) -> bool:
        """
        Was this folder made of this model, in this way, and is it whole?

        Without `by_content` the model's files are known by path, name, size and time of change, as `make`
        knows them, so that 14 GB of weights are not read at every start.
        """
        manifest = _read_manifest(folder)
        try:
            source = manifest["source"]
            fits = (
                manifest["blindbox-export"] == _FORMAT
                and manifest["weights"] == self.weights
                and manifest["versions"] == self.versions
                and source["fingerprint"] == self.model.fingerprint
                and (
                    source["content"] == self.content
                    if by_content
                    else source["folder"] == str(self.model.folder.resolve())
                    and source["files"] == [list(file) for file in self.files]
                )
            )
            return fits and _is_whole(folder, manifest["files"])
        except (KeyError, TypeError, AttributeError):
            return False


def _read_manifest(folder: Path) -> Any:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LONGEST_MANIFEST:
            return {}
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}


def _is_whole(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    # All of it is read: what is opened next is read anyway, and a page gone bad would answer nonsense.
    for name, said in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.stat().st_size != said["bytes"]:
            return False
    return all(_sha256(folder / name) == said["sha256"] for name, said in files.items())


def _versions() -> dict[str, str]:
    found = {}
    for name in _EXPORTERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


# --- where ------------------------------------------------------------------------------------------


def _places(model: Model, settings: Settings) -> list[Path]:
    """Where a finished one may lie; it is made in the first of them that can be written to."""
    folder, models = model.folder.resolve(), settings.models_dir.resolve()
    # A folder that was named by its path need not lie under models_dir: then beside it.
    usual = (models if folder.is_relative_to(models) else folder.parent) / "exported"
    return [usual] if settings.exports_dir is None else [settings.exports_dir, usual]


def _writable(places: Sequence[Path], wish: _Wish) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
    tried = " and ".join(str(place) for place in places)
    raise UnusableModel(
        f"{wish.model.folder} has to be made ready for OpenVINO once, and there is no place for the result: "
        f"{tried} cannot be written to. Name a folder that can in BLINDBOX_EXPORTS_DIR, or do it beforehand: "
        f"python -m enclave_app.models export {wish.model.folder} EXPORTS_DIR --weights {wish.weights}"
    )


# --- making one ---------------------------------------------------------------------------------------


def _made(wish: _Wish, place: Path, write: Callable[[Job], None]) -> Path:
    name = wish.name()
    destination = place / name
    with _alone(place / f".{name}.lock", wish):
        if wish.is_met_by(destination, by_content=True):
            return destination  # another process was quicker
        for left in place.glob(f".{_escaped(name)}-*"):  # by a process that was killed: nobody else is here
            shutil.rmtree(left, ignore_errors=True)
        _see_that_it_fits(wish, place)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place))
        try:
            staging.chmod(0o755)
            write(Job(wish.model.folder, staging, wish.weights))
            _seal(wish, staging)
            if destination.exists():  # damaged, or made by another version
                destination.rename(staging.with_name(f"{staging.name}-old"))
            staging.rename(destination)
            _sync(place)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UnusableModel(_no_space(wish.model.folder.name, place)) from error
            raise UnusableModel(
                f"{wish.model.folder.name} could not be made ready in {place}: {error.strerror}."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(staging.with_name(f"{staging.name}-old"), ignore_errors=True)
    return destination


@contextlib.contextmanager
def _alone(path: Path, wish: _Wish) -> Iterator[None]:
    """One process at a time; the lock ends with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"{wish.model.folder.name} is being prepared by another process …",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _see_that_it_fits(wish: _Wish, place: Path) -> None:
    # The 16-bit IR stands beside the compressed one for a while.
    wanted = int(wish.size * (1.1 if wish.weights == "bf16" else 1.7)) + (64 << 20)
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise UnusableModel(
            f"Preparing {wish.model.folder.name} needs {_gib(wanted)} of disk in {place}, where {_gib(free)} "
            "are free. Name a roomier folder in BLINDBOX_EXPORTS_DIR."
        )


def _seal(wish: _Wish, staging: Path) -> None:
    """The manifest comes last, when everything it names has reached the disk."""
    for path in staging.iterdir():
        path.chmod(0o644)
        _sync(path)
    manifest = staging / MANIFEST
    manifest.write_text(json.dumps(wish.manifest(staging), indent=1) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(staging)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _by_a_child(job: Job) -> None:
    """Have a process do it, and show where it is."""
    told = {"folder": str(job.folder), "destination": str(job.destination), "weights": job.weights}
    program = "enclave_app.engines.export_child"
    with tempfile.TemporaryDirectory(prefix="blindbox-export-") as home, running(program, home) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(
            target=_listen, args=(child.stdin, child.stdout, told, heard), name="export-pipe", daemon=True
        ).start()
        with _shown(job.folder.name) as show:
            while True:
                try:
                    message = heard.get(timeout=0.5)
                except queue.Empty:
                    show(None)
                    continue
                if message is None:
                    raise UnusableModel(_epitaph(job, child.wait(30)))
                if message["say"] == "stage":
                    show(message["stage"])
                elif message["say"] == "done":
                    return
                else:
                    raise UnusableModel(_told(job, message))


def _listen(
    down: BinaryIO, up: BinaryIO, job: dict[str, Any], heard: queue.SimpleQueue[dict[str, Any] | None]
) -> None:
    try:
        pipe.send(down, job)
        while True:
            heard.put(pipe.receive(up))
    except (pipe.PipeClosed, OSError, ValueError):
        heard.put(None)


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Callable[[str | None], None]]:
    """On a terminal a bar whose clock runs, else a line for each stage."""
    title = f"Preparing {name} for this machine (once)"
    if not sys.stderr.isatty():
        begun = time.monotonic()

        def line(stage: str | None) -> None:
            if stage is not None:
                print(f"{title}: {stage} … ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)

        yield line
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    size = shutil.get_terminal_size()  # 80 × 24 where the terminal does not know: tqdm would show nothing
    short = f"Preparing {name} (once)"
    bar = tqdm(
        total=len(STAGES),
        desc=short,
        bar_format="{desc} |{bar:8}| [{elapsed}]",  # fits into 80 columns
        ncols=size.columns,
        nrows=size.lines,
        disable=False,  # quiet() switches the libraries' own bars off
        leave=True,
    )

    def turn(stage: str | None) -> None:
        if stage is not None:
            bar.n = STAGES.index(stage)
            bar.set_description_str(f"{short}: {stage} …", refresh=False)
        bar.refresh()

    with bar:
        yield turn
        bar.n = len(STAGES)
        bar.set_description_str(f"{short}: ready", refresh=True)


# --- what went wrong ----------------------------------------------------------------------------------


def _told(job: Job, message: Mapping[str, Any]) -> str:
    if message["say"] == "memory":
        return _no_memory(job)
    if message["say"] == "disk":
        return _no_space(job.folder.name, job.destination.parent)
    return (
        f"{job.folder.name} cannot be made ready for OpenVINO: {message['message']}. "
        "Serve it as it is with BLINDBOX_ENGINE=torch, which is slower."
    )


def _epitaph(job: Job, status: int) -> str:
    if status == -signal.SIGKILL:  # nobody but the kernel kills it so
        return _no_memory(job)
    return (
        f"{job.folder.name} could not be made ready for OpenVINO: the exporting process ended with "
        f"{f'signal {-status}' if status < 0 else f'status {status}'}. "
        "Try again, or serve it as it is with BLINDBOX_ENGINE=torch."
    )


def _no_memory(job: Job) -> str:
    return (
        f"There is not enough memory to make {job.folder.name} ready for OpenVINO. "
        "Do it on a larger machine and bring the result: "
        f"python -m enclave_app.models export {job.folder} EXPORTS_DIR --weights {job.weights}"
    )


def _no_space(name: str, place: Path) -> str:
    return (
        f"The disk is full: {name} could not be made ready in {place}. "
        "Make room, or name a roomier folder in BLINDBOX_EXPORTS_DIR."
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
