"""Building firmware: what the cache is good for, and what a build says that cannot be done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from image.firmware import __main__ as command
from image.firmware import build, room, source, store, tools
from image.firmware.errors import CannotBuild
from image.vm import packages
from image.vm.errors import UnusableOutput
from tests.kit.firmware import built

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blindbox" / "firmware"


@pytest.fixture
def kept(cache: Path, tmp_path: Path) -> dict[str, bytes]:
    """Both files lie in the cache as if built: what they hold does not matter to it."""
    content = {"amdsev.fd": b"for SEV-SNP", "tdx.fd": b"for TDX"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        store.keep(name, store.recipe(), tmp_path / name)
    assert cache.is_dir()
    return content


def told(out: Path) -> dict[str, dict[str, int | str]]:
    found: dict[str, dict[str, int | str]] = json.loads((out / "firmware.json").read_text())["files"]
    return found


# --- the cache ---


def test_what_is_in_the_cache_is_copied_and_listed(kept: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command.main(["build", "--out", str(out)]) == 0
    assert {one.name for one in out.iterdir()} == {*kept, "firmware.json", "firmware.cdx.json"}
    for name, data in kept.items():
        assert (out / name).read_bytes() == data
        assert (out / name).stat().st_mode & 0o777 == 0o644
        assert told(out)[name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    about = json.loads((out / "firmware.json").read_text())
    assert about["source"]["files"] == {one.name: one.sha256 for one in source.read()}
    assert [one["name"] for one in about["packages"]] == [one.name for one in tools.read()]
    assert about["recipe"] == store.recipe()


def test_the_list_of_parts_has_what_was_built_of_what(kept: dict[str, bytes], tmp_path: Path) -> None:
    assert command.main(["build", "--out", str(tmp_path)]) == 0
    listed = json.loads((tmp_path / "firmware.cdx.json").read_text())
    parts = {one["name"]: one for one in listed["components"]}
    assert parts.keys() == {"edk2", *kept}
    for name, data in kept.items():
        assert parts[name]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}]
    references = [
        one["bom-ref"] for one in (*listed["components"], *listed["metadata"]["tools"]["components"])
    ]
    assert len(references) == len(set(references)) == 3 + len(tools.read())
    for one in listed["dependencies"]:
        assert {*one["dependsOn"]} <= {*references}
    assert "1-no-grub.patch" in parts["edk2"]["pedigree"]["notes"]


def test_one_can_be_had_alone_and_the_other_added(kept: dict[str, bytes], tmp_path: Path) -> None:
    assert command.main(["build", "tdx", "--out", str(tmp_path / "out")]) == 0
    assert list(told(tmp_path / "out")) == ["tdx.fd"]
    assert command.main(["build", "snp", "--out", str(tmp_path / "out")]) == 0
    assert list(told(tmp_path / "out")) == sorted(kept)


def test_a_file_of_another_build_is_left_and_not_listed(
    kept: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "amdsev.fd").write_bytes(b"of last year")
    assert command.main(["build", "tdx", "--out", str(out)]) == 0
    assert (out / "amdsev.fd").read_bytes() == b"of last year"
    assert list(told(out)) == ["tdx.fd"]
    assert f"{out / 'amdsev.fd'} is of another build" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["cut", "changed", "no hash", "another hash", "no file"])
def test_an_entry_that_is_not_whole_is_none(kept: dict[str, bytes], harm: str) -> None:
    recipe = store.recipe()
    file = store.found("tdx.fd", recipe)
    assert file is not None
    said = file.with_name("tdx.fd.sha256")
    match harm:
        case "cut":
            file.write_bytes(kept["tdx.fd"][:-1])
        case "changed":
            file.write_bytes(kept["tdx.fd"][:-1] + b"Y")
        case "no hash":
            said.unlink()
        case "another hash":
            said.write_bytes(b"\xff")
        case _:
            file.unlink()
    assert store.found("tdx.fd", recipe) is None
    assert store.found("amdsev.fd", recipe) is not None


def test_an_entry_of_another_recipe_is_none(kept: dict[str, bytes]) -> None:
    assert kept
    assert store.found("tdx.fd", "0" * 32) is None


def test_what_a_killed_build_left_is_removed_by_the_next(cache: Path) -> None:
    packages.cache(tools.PART)
    (cache / "room.left" / "build").mkdir(parents=True)
    with store.alone(), store.new_room() as mine:
        assert [one.name for one in cache.glob("room.*")] == [mine.name]
    assert not list(cache.glob("room.*"))


# --- what cannot be done ---


def test_without_root_it_says_so() -> None:
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65534)
        with pytest.raises(CannotBuild, match="that takes root"):
            room.check()
    finally:
        os.seteuid(before)


def test_a_damaged_entry_is_built_anew_which_takes_programs(kept: dict[str, bytes], tmp_path: Path) -> None:
    """As root, and with a PATH on which nothing lies: neither copied nor half done, but told."""
    if os.geteuid() != 0:
        pytest.skip("only root gets so far")
    assert kept
    file = store.found("tdx.fd", store.recipe())
    assert file is not None
    file.write_bytes(b"cut")
    done = subprocess.run(
        [sys.executable, "-m", "image.firmware", "build", "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        env={"PATH": "/nowhere", "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get is not installed here (Debian: apt-get install apt)" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_written_is_told_before_anything_is_built(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command.main(["build", "--out", str(tmp_path / "file" / "out")]) == 1
    assert f"{tmp_path / 'file' / 'out'}" in capsys.readouterr().err
    assert not cache.exists()


def test_a_file_that_would_not_fit_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "tdx.fd").mkdir()
    with pytest.raises(UnusableOutput, match="cannot be written"):
        store.deliver(b"data", tmp_path / "tdx.fd")
    assert [one.name for one in tmp_path.iterdir()] == ["tdx.fd"]


def test_a_cache_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert command.main(["build", "--out", str(tmp_path / "out")]) == 1
    assert "XDG_CACHE_HOME=FOLDER names another place" in capsys.readouterr().err


def test_a_word_that_is_no_firmware_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["build", "sgx"])
    assert ended.value.code == 2
    assert "'sgx' is none of snp, tdx" in capsys.readouterr().err


# --- the real thing, in minutes ---


def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another cache, with what was downloaded already."""
    if os.geteuid() != 0:
        pytest.skip("the build takes root")
    here, there = packages.cache(tools.PART), tmp_path / "elsewhere"
    for name in ("debs", "source"):
        if (here / name).is_dir():
            shutil.copytree(here / name, there / "blindbox" / tools.PART / name, copy_function=os.link)
    monkeypatch.setenv("XDG_CACHE_HOME", str(there))
    return there / "blindbox" / tools.PART


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_build_elsewhere_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder, umask, time zone and language, the other order, and one processor."""
    before = {which: built(which).read_bytes() for which in build.FILES}
    _elsewhere(tmp_path, monkeypatch)
    out = tmp_path / "out"
    processor = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", "image.firmware", "build", "tdx", "snp", "--out", str(out)],
        cwd=REPOSITORY,
        env={**os.environ, "TZ": "Asia/Kolkata", "LANG": "de_DE.UTF-8"},
        umask=0o077,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for which, data in before.items():
        assert (out / build.FILES[which]).read_bytes() == data


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _elsewhere(tmp_path, monkeypatch)
    words = [sys.executable, "-m", "image.firmware", "build", "tdx", "--out", str(tmp_path / "out")]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as building:
        assert building.stdout is not None
        for line in building.stdout:
            if line.split() == ["tools", "…"]:  # the compiler runs, in a session of its own
                building.send_signal(signal.SIGTERM)
                break
    assert building.returncode == 128 + signal.SIGTERM
    assert not list(cache.glob("room.*"))
    assert not (cache / "built").exists()
    assert list((tmp_path / "out").iterdir()) == []
    for process in Path("/proc").glob("[0-9]*/root"):
        try:
            inside = process.resolve().is_relative_to(cache)
        except OSError:
            continue  # it has ended meanwhile
        assert not inside, f"{process} still runs"
