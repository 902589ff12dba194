"""`measurements.json`: written and read again, refused where it is not one, and told apart in words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.measure import document
from image.measure.errors import UnreadableMeasurements
from tests.kit.garbling import Edit, edits, garbled


def volume(digit: str) -> dict[str, Any]:
    return {"hash": digit * 64, "salt": "0" * 64, "blocks": 4321}


WHOLE: dict[str, Any] = {
    "version": 1,
    "release": "1.2.3",
    "image_digest": f"sha256:{'1' * 64}",
    "root": volume("2"),
    "models": volume("3"),
    "command_line": "console=ttyS0 blindbox.root=…".encode("ascii", "ignore").decode(),
    "uki": {"sha256": "4" * 64, "sha384": "5" * 96},
    "disk": {"sha256": "6" * 64},
    "pcr": {
        "sha256": {"4": "7" * 64, "11": "8" * 64, "12": "0" * 64},
        "sha384": {"4": "9" * 96, "11": "a" * 96, "12": "0" * 96},
    },
    "snp_launch_digest": {
        "firmware_sha256": "b" * 64,
        "by_vcpus": {
            f"{name} x{number}": f"{number:02}" * 48
            for name in ("EPYC-Milan", "EPYC-Genoa")
            for number in (1, 2, 64)
        },
    },
    "tdx": {"firmware_sha256": "c" * 64, "mrtd": "d" * 96, "rtmr": {"1": "e" * 96, "2": "f" * 96}},
    "settings": {"config_digest": "1" * 96},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The document with one value exchanged, or, for `...`, left out."""
    found = copy.deepcopy(WHOLE)
    inner: Any = found
    *outer, last = path.split("/")
    for name in outer:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return found


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    document.write(path, WHOLE)
    assert document.read(path) == WHOLE
    assert [one.name for one in tmp_path.iterdir()] == ["measurements.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_without_firmware_and_models_it_is_read_too() -> None:
    found = changed("models", None)
    del found["snp_launch_digest"]
    found["tdx"] = {"rtmr": WHOLE["tdx"]["rtmr"]}
    assert document.parse(encoded(found)) == found


def test_the_same_values_are_the_same_bytes() -> None:
    assert document.written(WHOLE) == document.written(document.parse(document.written(WHOLE)))


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    document.write(path, WHOLE)
    with pytest.raises(TypeError):
        document.write(path, {"version": Path("no JSON")})
    assert document.read(path) == WHOLE
    assert [one.name for one in tmp_path.iterdir()] == ["measurements.json"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "cut short, after 0 bytes"),
        (b"{", "cut short"),
        (b"[]", "not a JSON object"),
        (b"not json}", "not JSON"),
        (b"\xff}", "not UTF-8"),
        (encoded({**WHOLE, "version": 2}), "of version '2', this release reads version 1"),
        (encoded({"version": 2, "anything": 1}), "of version '2'"),
        (encoded({**WHOLE, "version": "1"}), "of version '1', this release reads version 1"),
        (encoded({**WHOLE, "version": True}), "of version 'True'"),
        (encoded(changed("version", ...)), "it has no version"),
        (encoded({"version": 1, "snp": {"measurements": []}}), "this is a policy"),
        (encoded({"version": 1, "any_of": []}), "this is a policy"),
        (encoded({**WHOLE, "extra": 1}), "unknown key 'extra'"),
        (encoded(changed("pcr", ...)), "has no 'pcr'"),
        (encoded(changed("tdx", ...)), "has no 'tdx'"),
        (encoded(changed("image_digest", "1" * 64)), "sha256: and 64 hex digits"),
        (encoded(changed("image_digest", f"sha256:{'A' * 64}")), "sha256: and 64 hex digits"),
        (encoded(changed("root", None)), "root is not an object"),
        (encoded(changed("root/blocks", 0)), "root.blocks is 0"),
        (encoded(changed("root/hash", "2" * 63)), "root.hash is not 32 bytes"),
        (encoded(changed("models", {})), "models has no 'hash'"),
        (encoded(changed("command_line", "a\nb")), "command_line"),
        (encoded(changed("pcr/sha256/4", "7" * 96)), "pcr.sha256.4 is not 32 bytes"),
        (encoded(changed("pcr/sha384/12", ...)), "pcr.sha384 has no '12'"),
        (encoded(changed("pcr/sha256/9", "7" * 64)), "unknown key '9'"),
        (encoded(changed("snp_launch_digest/by_vcpus", {})), "not an object with digests"),
        (encoded(changed("snp_launch_digest/by_vcpus/EPYC-Rome x1", "1" * 96)), "'EPYC-Rome x1'"),
        (encoded(changed("snp_launch_digest/by_vcpus/EPYC-Genoa x65", "1" * 96)), "'EPYC-Genoa x65'"),
        (encoded(changed("snp_launch_digest/by_vcpus/EPYC-Genoa x01", "1" * 96)), "'EPYC-Genoa x01'"),
        (encoded(changed("tdx/mrtd", ...)), "one of mrtd and firmware_sha256"),
        (encoded(changed("tdx/rtmr/3", "1" * 96)), "unknown key '3'"),
        (encoded(changed("settings/config_digest", "1" * 64)), "48 bytes"),
        (encoded(WHOLE)[:-1] + b',"version":1}', "'version' is there twice"),
        (b" " * (1 << 20) + encoded(WHOLE), "larger than"),
    ],
)
def test_what_is_no_such_file_is_refused_and_says_why(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "measurements.json"
    path.write_bytes(data)
    with pytest.raises(UnreadableMeasurements) as refused:
        document.read(path)
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


@given(st.integers(0, len(document.written(WHOLE)) - 3))
def test_a_file_that_is_cut_short_anywhere_is_refused(size: int) -> None:
    with pytest.raises(UnreadableMeasurements):
        document.parse(document.written(WHOLE)[:size])


@given(edits())
def test_whatever_a_file_holds_it_is_read_or_refused(wishes: list[Edit]) -> None:
    try:
        found = document.parse(garbled(document.written(WHOLE), wishes))
    except UnreadableMeasurements:
        return
    assert list(document.compared(found, found)) == []


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UnreadableMeasurements, match=r"/nothing\.json: No such file"):
        document.read(Path("/nothing.json"))


# --- two of them ---


def test_two_that_agree_differ_in_nothing() -> None:
    assert list(document.compared(WHOLE, copy.deepcopy(WHOLE))) == []


@pytest.mark.parametrize("key", [part.key for part in document.PARTS])
def test_each_part_alone_is_told_with_its_values_and_where_to_look(key: str) -> None:
    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(inner) for name, inner in value.items()}
        return value + 1 if isinstance(value, int) else value[:-1] + "x"

    part = next(part for part in document.PARTS if part.key == key)
    (told,) = document.compared(WHOLE, {**WHOLE, key: other(WHOLE[key])})
    heading, *lines = told.split("\n")
    assert heading == f"{part.what} ({key}): {part.look}"
    assert any(line.startswith("    published  ") for line in lines)
    assert any(line.startswith("    here       ") for line in lines)


def test_every_part_of_the_file_is_compared() -> None:
    assert {part.key for part in document.PARTS} == set(WHOLE) - {"version"}


def test_what_follows_from_another_difference_says_so() -> None:
    here = copy.deepcopy(WHOLE)
    here["root"]["hash"] = "9" * 64
    here["command_line"] += "x"
    here["uki"]["sha256"] = "9" * 64
    here["tdx"]["rtmr"]["1"] = "9" * 96
    first, *rest = document.compared(WHOLE, here)
    assert first.startswith("the root file system (root): one image gave two file systems")
    assert [told.split("\n")[0] for told in rest] == [
        "the kernel's command line (command_line): it follows from the root file system",
        "the unified kernel image (uki): it follows from the kernel's command line",
        "the registers of TDX (tdx): it follows from the unified kernel image",
    ]


def test_launch_digests_are_told_in_one_line_however_many_differ() -> None:
    here = changed("snp_launch_digest/by_vcpus/EPYC-Genoa x2", "9" * 96)
    del here["snp_launch_digest"]["by_vcpus"]["EPYC-Milan x64"]
    (told,) = document.compared(WHOLE, here)
    assert "by_vcpus: 2 of 6 differ, such as EPYC-Milan x64" in told
    assert "here       not there" in told


def test_what_was_not_measured_here_does_not_count_as_the_same() -> None:
    here = changed("snp_launch_digest", ...)
    del here["tdx"]["mrtd"]
    told = "\n".join(document.compared(WHOLE, here))
    assert "the launch digests of SEV-SNP (snp_launch_digest): no firmware was given" in told
    assert "snp_launch_digest: published, and missing here" in told
    assert "the registers of TDX (tdx): no firmware was given" in told
    assert "tdx.mrtd: published, and missing here" in told
    back = "\n".join(document.compared(here, WHOLE))
    assert "snp_launch_digest: here, and not published" in back


def test_models_in_one_and_not_in_the_other_are_told() -> None:
    (told,) = document.compared(WHOLE, changed("models", None))
    assert told.startswith("the volume of the models (models): other weights")
    assert "models: published, and missing here" in told
