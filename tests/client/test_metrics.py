"""What a training measured: as CSV, as a DataFrame, for TensorBoard, as a curve, as a line of text."""

from __future__ import annotations

import builtins
import csv
import math
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blindbox import metrics
from blindbox.curve import Curve, sparkline
from blindbox.metrics import COLUMNS, Metrics

ROWS: list[dict[str, Any]] = [
    {
        "step": step,
        "loss": 3 / step,
        "validation_loss": 4 / step if step % 5 == 0 else None,
        "learning_rate": 1e-3 / step,
        "tokens_per_second": 700.5,
        "epoch": step / 10,
        "time": 1_790_000_000 + step,
    }
    for step in range(1, 101)
]
SVG = "{http://www.w3.org/2000/svg}"


def test_csv_has_every_figure_and_a_gap_where_none_is_known(tmp_path: Path) -> None:
    text = Metrics(ROWS).to_csv(tmp_path / "loss.csv")
    assert (tmp_path / "loss.csv").read_text() == text
    read = list(csv.DictReader(text.splitlines()))
    assert list(read[0]) == list(COLUMNS)
    assert [float(row["loss"]) for row in read] == [row["loss"] for row in ROWS]
    assert [row["validation_loss"] for row in read[:5]] == ["", "", "", "", "0.8"]


def test_figures_of_a_later_release_are_kept() -> None:
    told = Metrics([{"step": 1, "loss": 2.0, "gradient": 0.5}])
    assert told.columns == [*COLUMNS, "gradient"]
    assert "0.5" in told.to_csv()


def test_a_dataframe_has_the_same_rows() -> None:
    pytest.importorskip("pandas")
    frame = Metrics(ROWS).to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["loss"].tolist() == [row["loss"] for row in ROWS]


def test_where_pandas_is_missing_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError("no module named pandas")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install pandas .*to_csv"):
        Metrics(ROWS).to_pandas()


# ── TensorBoard ───────────────────────────────────────────────────────────────────────────────────────────


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer, as its specification has them."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        elif kind == 1:
            yield key >> 3, struct.unpack_from("<d", data, at)[0]
            at += 8
        elif kind == 5:
            yield key >> 3, struct.unpack_from("<f", data, at)[0]
            at += 4
        else:
            length = varint()
            yield key >> 3, data[at : at + length]
            at += length


def records(data: bytes) -> Iterator[dict[int, Any]]:
    """The messages of a TFRecord file; the framing is checked, the checksums are known vectors elsewhere."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        (of_length,) = struct.unpack_from("<I", data, at + 8)
        body = data[at + 12 : at + 12 + length]
        (of_body,) = struct.unpack_from("<I", data, at + 12 + length)
        assert of_length == metrics._masked(data[at : at + 8])
        assert of_body == metrics._masked(body)
        yield dict(fields(body))
        at += 16 + length
    assert at == len(data)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum_is_crc32c(data: bytes, crc: int) -> None:
    """RFC 3720 B.4, and the usual check value; masked as TFRecord has it."""
    assert metrics._masked(data) == (((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_tensorboard_log_has_every_figure_at_its_step_and_time(tmp_path: Path) -> None:
    path = Metrics(ROWS).to_tensorboard(tmp_path / "runs" / "one")
    assert path.name.startswith("events.out.tfevents.")
    first, *rest = records(path.read_bytes())
    assert first[3] == b"brain.Event:2"
    assert [record[2] for record in rest] == [row["step"] for row in ROWS]
    assert [record[1] for record in rest] == [row["time"] for row in ROWS]
    for record, row in zip(rest, ROWS, strict=True):
        told = {}
        for _, value in fields(record[5]):
            one = dict(fields(value))
            told[one[1].decode()] = one[2]
        wanted = {f"train/{name}": row[name] for name in row if name not in {"step", "time"}}
        assert told == pytest.approx({name: value for name, value in wanted.items() if value is not None})


def test_strange_figures_are_left_out_of_a_log(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": -1, "loss": 1.0},
        {"step": "2", "loss": 1.0},
        {"step": 1 << 70, "loss": 1.0},
        {"step": 3, "loss": 1e200, "epoch": math.nan, "time": "now"},
    ]
    first, last = records(Metrics(rows).to_tensorboard(tmp_path).read_bytes())
    assert first[3] == b"brain.Event:2"
    assert (last[1], last[2], last[5]) == (0.0, 3, b"")


# ── the curve ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_curve_is_an_svg_of_both_lines(tmp_path: Path) -> None:
    curve = Metrics(ROWS, "ft:base:handbook:1").curve()
    curve.save(tmp_path / "loss.svg")
    assert curve._repr_svg_() == (tmp_path / "loss.svg").read_text()
    picture = ET.fromstring(curve.svg())
    assert picture.tag == f"{SVG}svg"
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"ft:base:handbook:1", "step", "loss", "training", "held-back rows"} <= set(words)
    lines = [path for path in picture.iter(f"{SVG}path") if path.get("stroke-width") == "2"]
    assert len(lines) == 2
    assert len(list(picture.iter(f"{SVG}circle"))) == 20


def test_one_line_needs_no_legend_and_few_points_are_dots() -> None:
    alone = ET.fromstring(Curve([{"step": step, "loss": 3 / step} for step in range(1, 7)]).svg())
    words = [text.text for text in alone.iter(f"{SVG}text")]
    assert {"step", "loss"} <= set(words)
    assert not {"training", "held-back rows"} & set(words)
    assert len(list(alone.iter(f"{SVG}circle"))) == 6
    steps = [word for word in words if word in set("123456")]
    assert steps[-6:] == list("123456")
    many = [{"step": row["step"], "loss": row["loss"]} for row in ROWS]
    assert not list(ET.fromstring(Curve(many).svg()).iter(f"{SVG}circle"))
    held = ET.fromstring(Curve([{"step": 3, "validation_loss": 1.0}]).svg())
    assert "loss of held-back rows" in [text.text for text in held.iter(f"{SVG}text")]


@pytest.mark.parametrize("length", [1, 20, 57, 80, 400])
def test_a_title_stays_in_the_picture(length: int) -> None:
    """Judged by the widest letters that fonts have on average; its beginning and its end are always there."""
    title = ("ft:org/name:" + "handbook" * 50)[: length - 1] + "!"
    picture = ET.fromstring(Curve(ROWS, title).svg())
    (shown,) = (text for text in picture.iter(f"{SVG}text") if (text.text or "").endswith("!"))
    assert 11 <= float(shown.get("font-size", "0")) <= 14
    assert len(shown.text or "") * 0.62 * float(shown.get("font-size", "0")) <= 480 - 2 * 14 + 4
    assert (shown.text or "")[0] == title[0]


def test_a_title_cannot_become_markup() -> None:
    picture = Curve(ROWS, "</svg><script>alert(1)</script>\x1b[2J").svg()
    assert "<script>" not in picture
    assert "\x1b" not in picture
    ET.fromstring(picture)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 2.5}],
        [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.5}],
        [{"step": 7, "loss": 0}, {"step": 8, "loss": 0.0}],
        [{"step": step, "loss": -1e300 * step} for step in range(3)],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": "3", "loss": 1}, {"loss": 1}],
        [{"step": 1, "validation_loss": 1e-9}],
        [{"step": 10**15, "loss": 1}, {"step": 10**15 + 1, "loss": 2}],
    ],
)
def test_strange_figures_are_drawn_or_left_out(rows: list[dict[str, Any]]) -> None:
    picture = Curve(rows).svg()
    ET.fromstring(picture)
    assert "nan" not in picture
    assert "inf" not in picture


def test_every_point_lies_within_the_frame() -> None:
    for path in ET.fromstring(Curve(ROWS).svg()).iter(f"{SVG}path"):
        if path.get("stroke-width"):
            points = [tuple(map(float, one.split())) for one in (path.get("d") or "").lstrip("M").split("L")]
            assert all(66 <= x <= 462 and 60 <= y <= 272 for x, y in points)


def test_a_step_that_is_told_twice_counts_once() -> None:
    assert Curve([{"step": 2, "loss": 1}, {"step": 1, "loss": 3}, {"step": 2, "loss": 2}]).learned == [
        (1.0, 3.0),
        (2.0, 2.0),
    ]


def test_a_line_of_text_tells_how_it_went() -> None:
    assert sparkline([4, 3, 2, 1]) == "█▆▃▁"
    assert sparkline([1, 1, 1]) == "▁▁▁"
    assert sparkline([math.nan]) == ""
    assert len(sparkline(list(range(1000)), 40)) == 40
    assert Metrics(ROWS).curve().text(8) == "3.000 █▂▂▁▁▁▁▁ 0.030"
    assert Curve([]).text() == "no loss yet"
