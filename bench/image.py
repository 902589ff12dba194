"""
What the measured machine costs: to build, to start, to keep in memory, to carry.

    python bench/image.py                       # all of it, half an hour on two cores without KVM
    python bench/image.py --only warm boot      # of dist/vm and the image as they are
    python bench/image.py --rounds 3

    cold     everything from nothing: base, container image, machine, measurements.json
    warm     from a container image that has not changed to measurements.json, as a release's last step
    boot     from power-on to the first answer that came through the seal, proved against the prediction
    memory   what of the guest's memory is gone when the application starts: kernel, initrd, its tables
    size     the disk with no model in it, packed as it is carried, and what its bytes are

Downloads count in `cold`; wheels and Debian's packages come from wherever pip and apt take them. What is made
lies in a folder below TMPDIR and is gone afterwards; this machine's cache and images stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
sys.path[0] = str(CHECKOUT)  # not this folder, in which `image` is this file

import blindbox.requests as requests  # noqa: E402
from blindbox.commands.release_measurements import Measurements, Wishes, policy_for  # noqa: E402
from image.measure import document  # noqa: E402
from image.measure.build import Build, measured  # noqa: E402
from image.vm import container, packages, verity  # noqa: E402
from image.vm.build import IMAGE, Wanted, build  # noqa: E402
from image.vm.errors import NotBooted, Starved  # noqa: E402
from image.vm.run import qemu  # noqa: E402
from tests.kit.process import free_port  # noqa: E402

MIB: Final = 1 << 20
COLD, WARM, BOOT, MEMORY, SIZE = 360.0, 10.0, 120.0, 150.0, 700.0  # seconds, seconds, seconds, MiB, MB
TRIES: Final = 3  # a busy host may have no time for the clock (image/vm/README.md)
ASKED: Final = {"input_text": "What is the capital of France?", "max_new_tokens": 4}


def main() -> None:
    """Measure what is asked for, print as it comes."""
    parser = argparse.ArgumentParser(description="What the measured machine costs.")
    parser.add_argument("--image", default=IMAGE, help="a container image with a model in it (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=1, help="of warm and boot; medians (%(default)s)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("mounting an image's files takes root")
    print(f"{os.cpu_count()} cores, {_processor()}; QEMU emulates\n")
    with tempfile.TemporaryDirectory(prefix="blindbox-bench.") as folder:
        for part in options.only:
            PARTS[part](options.image, Path(folder), options.rounds)


# ── building ──────────────────────────────────────────────────────────────────────────────────────────────


def cold(_: str, work: Path, __: int) -> None:
    """In a store of containers and a cache of its own."""
    with _fresh_store(work / "store") as environment:
        took = {}
        with _timed(took, "container image"):
            _say([CHECKOUT / "image" / "build.sh", "--build-arg", "DEMO=1"], environment)
        with _timed(took, "machine"):
            out = work / "cold"
            _say([sys.executable, "-m", "image.vm", "build", "--out", out], environment)
        with _timed(took, "measurements.json"):
            predict = [sys.executable, "-m", "image.measure", "predict", "--vm", out]
            _say([*predict, "--out", work / "cold.json"], environment)
    for step, seconds in took.items():
        print(f"cold: {step:<40}{seconds:8.1f} s")
    _told("cold: everything", sum(took.values()), COLD, "s")


def warm(image: str, work: Path, rounds: int) -> None:
    """The root of an image that has been seen comes from the cache."""
    build(Wanted(image=image, out=work / "warm"))
    times = []
    for _ in range(rounds):
        began = time.monotonic()
        build(Wanted(image=image, out=work / "warm"))
        document.write(work / "warm.json", measured(Build.read(work / "warm")))
        times.append(time.monotonic() - began)
    _told("unchanged container to measurements.json", statistics.median(times), WARM, "s")


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────


def boot(image: str, work: Path, rounds: int) -> None:
    """Nothing is asked of the machine but the answer; its proof is part of that."""
    built = _built(image, work / "boot")
    predicted = Measurements(document.written(measured(Build.read(built))))
    seconds, answered = [], []
    while len(answered) < rounds:
        with qemu.running(_wanted(built, work / "state")) as machine:
            pinned = Wishes(ak_keys=(machine.key_digest.hex(),))
            policy = policy_for(("tpm",), predicted, pinned)
            began = time.monotonic()
            try:
                seconds.append(machine.wait())
            except Starved as error:
                print(f"again: {error}")
                continue
            first = requests.post(f"{machine.origin}/test", json=ASKED, policy=policy)
            first.raise_for_status()
            answered.append(time.monotonic() - began)
    print(f"boot to the first proof that may be fetched{statistics.median(seconds):11.1f} s")
    _told("boot to the first sealed answer", statistics.median(answered), BOOT, "s")


def memory(image: str, work: Path, _: int) -> None:
    """The same machine, whose application is `cat /proc/meminfo`."""
    name = f"localhost/blindbox-bench-memory:{os.getpid()}"
    copied = _buildah("from", "--pull-never", image)
    try:
        files = Path(_buildah("mount", copied))
        for folder in ("opt", "models"):
            subprocess.run(["rm", "-rf", files / folder], check=True)
        _buildah("config", "--cmd", '["/usr/bin/cat", "/proc/meminfo"]', "--workingdir", "/", copied)
        _buildah("commit", "-q", copied, name)
    finally:
        _buildah("rm", copied)
    try:
        built = _built(name, work / "memory")
    finally:
        _buildah("rmi", name)
    for size in (2048, 4096):
        found = _meminfo(built, work, size)
        fixed = size - found["MemTotal"]
        used = found["MemTotal"] - found["MemFree"] - found["Buffers"] - found["SReclaimable"]
        used -= found["Cached"] - found["Shmem"]  # of files, given back when they are needed
        print(f"of {size} MiB: the kernel keeps {fixed:.0f} before it counts, {used:.0f} are in use")
        _told(f"memory of the system, of {size} MiB", fixed + used, MEMORY, "MiB")


def _meminfo(built: Path, work: Path, size: int) -> dict[str, float]:
    """MiB by the kernel's names, as the guest printed them."""
    wanted = replace(_wanted(built, work / "state"), memory=size)
    for _ in range(TRIES):
        with qemu.running(wanted) as machine:
            machine.process.wait(300)
            found = dict(re.findall(r"^(\w+): +(\d+) kB", machine.said(), re.MULTILINE))
        if "Shmem" in found:
            return {name: int(value) / 1024 for name, value in found.items()}
    raise NotBooted(f"the machine printed no /proc/meminfo: {'; '.join(machine.why())}")


# ── carrying ──────────────────────────────────────────────────────────────────────────────────────────────


def size(_: str, work: Path, __: int) -> None:
    """An image without a model. Each part is packed by itself in the same way: their sum is a little more."""
    name = f"localhost/blindbox-bench-size:{os.getpid()}"
    _say([CHECKOUT / "image" / "build.sh", "--tag", name], dict(os.environ))
    try:
        built = _built(name, work / "size", forms=("tar.gz",))
        parts = _parts(name, work)
    finally:
        _buildah("rmi", name)
    for part, (plain, packed) in sorted(parts.items(), key=lambda one: -one[1][1])[:14]:
        print(f"  {part:<44}{plain / 1e6:9.1f} MB, packed {packed / 1e6:7.1f}")
    for file in ("blindbox.efi", "root.img", "disk.raw"):
        print(f"  {file:<44}{(built / file).stat().st_size / 1e6:9.1f} MB")
    _told(
        "disk without models, packed (disk.tar.gz)", (built / "disk.tar.gz").stat().st_size / 1e6, SIZE, "MB"
    )


def _parts(name: str, work: Path) -> dict[str, tuple[int, int]]:
    """Folder → its files' bytes, and those of a squashfs of it."""
    tree, found = packages.unpacked(), {}
    with container.mounted(container.inspect(name)) as root:
        wheels = next(root.glob("opt/blindbox/lib/python3*/site-packages"))
        folders = [
            *wheels.iterdir(),
            *(root / "usr" / "lib").iterdir(),
            *root.iterdir(),
            *(root / "usr").iterdir(),
        ]
        counted = {wheels.parents[2].parent, root / "usr", root / "usr" / "lib"}
        for folder in folders:
            if folder.is_symlink() or not folder.is_dir() or folder in counted:
                continue
            plain = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
            if plain < 4_000_000:
                continue
            packed = work / "part.img"
            verity.make(tree, folder, packed, name="part", options=verity.SYSTEM)
            found[str(folder.relative_to(root))] = plain, packed.stat().st_size
            packed.unlink()
    return found


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────

PARTS: Final[dict[str, Callable[[str, Path, int], None]]] = {
    "warm": warm,
    "boot": boot,
    "memory": memory,
    "size": size,
    "cold": cold,
}


def _told(what: str, found: float, goal: float, unit: str) -> None:
    print(
        f"{what:<46}{found:8.1f} {unit} (≤ {goal:.0f}: {'met' if found <= goal else 'missed'})\n", flush=True
    )


def _built(image: str, out: Path, forms: tuple[str, ...] = ()) -> Path:
    build(Wanted(image=image, out=out, forms=forms))
    return out


def _wanted(built: Path, state: Path) -> qemu.Wanted:
    return qemu.Wanted(disk=built / "disk.raw", state=state, port=free_port())


@contextmanager
def _timed(into: dict[str, float], step: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    into[step] = time.monotonic() - began


@contextmanager
def _fresh_store(folder: Path) -> Iterator[dict[str, str]]:
    """An environment in which buildah and the cache know of nothing."""
    folder.mkdir()
    config = folder / "storage.conf"
    places = {"driver": "overlay", "graphroot": str(folder / "graph"), "runroot": str(folder / "run")}
    config.write_text(
        "[storage]\n" + "".join(f"{name} = {json.dumps(place)}\n" for name, place in places.items())
    )
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(config),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    try:
        yield environment
    finally:
        subprocess.run(
            ["buildah", "rmi", "--all", "--force"], env=environment, capture_output=True, check=False
        )


def _say(command: list[str | Path], environment: dict[str, str]) -> None:
    """Run it; what it says is shown if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")


def _buildah(*words: str) -> str:
    return subprocess.run(["buildah", *words], check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else "an unknown processor"


if __name__ == "__main__":
    main()
