"""Settings on a copy of the disk: they get there, nothing else changes, and their digest is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from enclave_app import settings_file
from enclave_app.settings import Settings
from image.deploy.settings import main, place, written
from image.measure.build import Build
from image.measure.errors import UnreadableDisk
from image.vm import disk as forms
from tests.kit.uefi import COMMAND_LINE, disk, uki
from tests.kit.vm import pinned_tree

TEXT = b"# blindbox settings\nBLINDBOX_DRAIN_SECONDS=60\n"


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    """What a build leaves behind, with the disk that a build makes."""
    folder = tmp_path / "vm"
    folder.mkdir()
    program = folder / "blindbox.efi"
    program.write_bytes(uki(cmdline=COMMAND_LINE.encode()))
    root = tmp_path / "root.img"
    root.write_bytes(b"a root" * 100)
    forms.make(program, root, None, folder / "disk.raw")
    about = {
        "version": 1,
        "release": "1.2.3",
        "image": {"digest": f"sha256:{'1' * 64}", "environment": ["BLINDBOX_ENGINE=echo"]},
        "command_line": COMMAND_LINE,
    }
    (folder / "build.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings"
    path.write_bytes(TEXT)
    return path


def run(*arguments: str | Path) -> int:
    return main([str(one) for one in arguments])


def lies(file: Path) -> tuple[int, int]:
    with file.open("rb") as opened:
        return place(opened)


def apart(one: Path, other: Path, size: int) -> list[int]:
    """Where two files differ, in steps of 64 KiB, in their first `size` bytes."""
    found = []
    with one.open("rb") as first, other.open("rb") as second:
        for at in range(0, size, 1 << 16):
            if first.read(1 << 16) != second.read(1 << 16):
                found.append(at)
    return found


def test_settings_reach_their_partition_and_nothing_else_changes(
    vm: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.raw"
    assert run(settings, "--vm", vm, "--out", out) == 0
    first, size = lies(out)
    assert (first, size) == lies(vm / "disk.raw")
    with out.open("rb") as made:
        made.seek(first)
        found = made.read(size)
    assert settings_file.read(found) == {"BLINDBOX_DRAIN_SECONDS": "60"}
    assert apart(vm / "disk.raw", out, out.stat().st_size) == [first]
    attested = Settings(engine="echo", drain_seconds=60).digest().hex()
    assert capsys.readouterr().out == f"{out}: config_digest {attested}\n"


def test_no_measurement_changes(vm: Path, settings: Path, tmp_path: Path) -> None:
    before = Build.read(vm)
    written(settings, vm, tmp_path / "mine.raw")
    (tmp_path / "mine.raw").rename(vm / "disk.raw")
    assert Build.read(vm).boot == before.boot


def test_settings_of_before_do_not_shine_through(vm: Path, settings: Path, tmp_path: Path) -> None:
    settings.write_bytes(b"#" * 5000 + b"\n" + TEXT)
    written(settings, vm, tmp_path / "long.raw")
    (tmp_path / "long.raw").rename(vm / "disk.raw")
    settings.write_bytes(TEXT)
    written(settings, vm, tmp_path / "short.raw")
    first, size = lies(tmp_path / "short.raw")
    with (tmp_path / "short.raw").open("rb") as made:
        made.seek(first)
        assert made.read(size).rstrip(b"\0") == TEXT


def test_a_vhd_is_the_disk_and_its_footer(vm: Path, settings: Path, tmp_path: Path) -> None:
    written(settings, vm, tmp_path / "mine.raw")
    written(settings, vm, tmp_path / "mine.vhd")
    size = (tmp_path / "mine.raw").stat().st_size
    assert (tmp_path / "mine.vhd").stat().st_size == size + 512
    assert apart(tmp_path / "mine.raw", tmp_path / "mine.vhd", size) == []
    with (tmp_path / "mine.vhd").open("rb") as made:
        made.seek(size)
        assert made.read(8) == b"conectix"


@pytest.mark.slow
def test_an_archive_holds_the_disk(vm: Path, settings: Path, tmp_path: Path) -> None:
    pinned_tree()
    written(settings, vm, tmp_path / "mine.raw")
    written(settings, vm, tmp_path / "mine.tar.gz")
    with tarfile.open(tmp_path / "mine.tar.gz") as archive:
        assert archive.getnames() == ["disk.raw"]
        archive.extractall(tmp_path / "out", filter="data")
    assert apart(tmp_path / "mine.raw", tmp_path / "out" / "disk.raw", 1 << 30) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"LD_PRELOAD=/evil.so\n", "only names that begin with BLINDBOX_"),
        (b"BLINDBOX_NONSENSE=1\n", "is not a setting"),
        (b"BLINDBOX_PORT=many\n", "BLINDBOX_PORT"),
        (b"#" * (1 << 17), "more than 65536 bytes"),
    ],
)
def test_settings_that_would_stop_the_machine_are_refused_here(
    vm: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, why: str
) -> None:
    settings.write_bytes(text)
    assert run(settings, "--vm", vm, "--out", tmp_path / "mine.raw") == 1
    assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root.img", "settings", "vm"]


def test_no_file_is_written_over_and_none_of_another_form_is_made(
    vm: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, "--vm", vm, "--out", settings.with_name("mine.qcow2")) == 1
    assert "is to end with .raw, .vhd or .tar.gz" in capsys.readouterr().err
    there = tmp_path / "there.raw"
    there.write_bytes(b"mine")
    assert run(settings, "--vm", vm, "--out", there) == 1
    assert "is there already" in capsys.readouterr().err
    assert there.read_bytes() == b"mine"


def test_a_build_or_settings_that_are_not_there_are_named(
    vm: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none", "--vm", vm, "--out", tmp_path / "mine.raw") == 1
    assert f"{tmp_path / 'none'}: No such file" in capsys.readouterr().err
    assert run(settings, "--vm", tmp_path / "no-vm", "--out", tmp_path / "mine.raw") == 1
    assert "build.json" in capsys.readouterr().err


def test_a_disk_without_room_for_settings_is_refused() -> None:
    with pytest.raises(UnreadableDisk, match="no partition blindbox-settings"):
        place(io.BytesIO(disk(b"an ESP")))
    kind = forms.LINUX_DATA
    with pytest.raises(UnreadableDisk, match="blindbox-settings has 4608 bytes"):
        place(io.BytesIO(disk(b"x" * 512, partitions=[(kind, forms.SETTINGS)])))
