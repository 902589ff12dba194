"""
A loss curve, drawn as SVG without any library: for notebooks, for a file, and as a line of text.

It draws numbers that the enclave told; what is no finite number is left out, and every word is escaped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final, TypeGuard

from .printable import plain

_WIDTH, _HEIGHT = 480, 320  # a telephone shows it whole, and its words are still read there
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 18, 40, 48
_ROW = 20  # what a legend takes
_EDGE = 14
_SIZE, _SMALLEST, _LETTER = 14, 11, 0.62  # of letters; and how wide one is, of its height
_MOST_DOTS: Final = 40
_LEARNED, _CHECKED = "#463480", "#21918c"  # as in docs/serving.svg
_INK, _SOFT, _LINE = "#18202a", "#56616e", "#e3e7eb"
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MOST_POINTS: Final = 2000  # a curve is as wide as a page; more of them could not be seen

_MOST: Final = 1e300

Point = tuple[float, float]


class Curve:
    """The loss by steps: of training, and of the rows that were kept back."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], title: str = "") -> None:
        told = list(rows)
        self.learned = _points(told, "loss")
        self.checked = _points(told, "validation_loss")
        self.title = plain(title)

    def svg(self) -> str:
        """The picture, whole."""
        return _draw(self.learned, self.checked, self.title)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg())

    def text(self, width: int = 40) -> str:
        """The curve in one line of at most `width` letters, first and last loss beside it."""
        if not self.learned:
            return "no loss yet"
        values = [loss for _, loss in self.learned]
        return f"{values[0]:.3f} {sparkline(values, width)} {values[-1]:.3f}"

    def _repr_svg_(self) -> str:
        return self.svg()

    def __repr__(self) -> str:
        return f"<Curve {self.text()}>"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Numbers as blocks of eight heights; several become one by their mean."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(max(1, width), len(finite))
    means = []
    for number in range(count):
        part = finite[number * len(finite) // count : (number + 1) * len(finite) // count]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(steps * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """Step and value, in the order of steps; a step that is told twice counts once, as it was told last."""
    found: dict[float, float] = {}
    for row in rows:
        step, value = row.get("step"), row.get(name)
        if finite(step) and finite(value):
            found[float(step)] = float(value)
    return sorted(found.items())


def finite(value: object) -> TypeGuard[float]:
    """A number that can be drawn: no text, no truth value, neither endless nor none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _draw(learned: list[Point], checked: list[Point], title: str) -> str:
    everything = learned + checked
    told = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" style="max-width:100%;height:auto" role="img" '
        f'font-family="DejaVu Sans, system-ui, sans-serif" font-size="{_SIZE}">',
        f"<title>{escape(title or 'loss by steps')}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_headed(title),
    ]
    if not everything:
        told += [_words(_WIDTH / 2, _HEIGHT / 2, "no loss yet", anchor="middle"), "</svg>"]
        return "\n".join(told) + "\n"

    both = bool(learned and checked)
    top, floor = _TOP + (_ROW if both else 0), _HEIGHT - _BOTTOM
    across = _ticks(min(x for x, _ in everything), max(x for x, _ in everything), 6, whole=True)
    upward = _ticks(min(y for _, y in everything), max(y for _, y in everything), 5)

    def place(point: Point) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * (point[0] - across[0]) / (across[-1] - across[0]),
            top + (floor - top) * (1 - (point[1] - upward[0]) / (upward[-1] - upward[0])),
        )

    if both:  # one line alone needs no name: the axis has it
        told += _named(_LEFT, "training", _LEARNED) + _named(_LEFT + 110, "held-back rows", _CHECKED)
    for value in upward:
        _, y = place((across[0], value))
        told.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_LINE}"/>')
        told.append(_words(_LEFT - 8, y + 5, _figure(value), anchor="end"))
    for value in across:
        x, _ = place((value, upward[0]))
        told.append(f'<path d="M{x:.1f} {floor}v4" stroke="{_SOFT}"/>')
        told.append(_words(x, floor + 20, _figure(value), anchor="middle"))
    told.append(f'<path d="M{_LEFT} {top}V{floor}H{_WIDTH - _RIGHT}" fill="none" stroke="{_SOFT}"/>')
    told.append(_words((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "step", anchor="middle"))
    name = "loss" if learned else "loss of held-back rows"
    told.append(
        f'<text x="16" y="{(top + floor) / 2}" transform="rotate(-90 16 {(top + floor) / 2})" '
        f'text-anchor="middle" fill="{_SOFT}">{name}</text>'
    )

    smooth = _smoothed(learned)
    if len(smooth) > 1 and smooth != learned:
        told.append(_path([place(point) for point in learned], _LEARNED, 1, opacity=0.3))
    told += _series([place(point) for point in smooth], _LEARNED)
    told += _series([place(point) for point in checked], _CHECKED)
    told.append("</svg>")
    return "\n".join(told) + "\n"


def _headed(title: str) -> list[str]:
    """The title in one line: smaller if it is long, and without its middle if it is longer still."""
    room = _WIDTH - 2 * _EDGE
    if len(title) * _LETTER * _SMALLEST > room:
        kept = int(room / (_LETTER * _SMALLEST)) - 1
        title = f"{title[: kept - kept // 2]}…{title[-(kept // 2) :]}"
    size = max(_SMALLEST, min(_SIZE, room / (_LETTER * max(1, len(title)))))
    return [_words(_EDGE, 22, title, ink=_INK, size=size)] if title else []


def _named(x: float, name: str, colour: str) -> list[str]:
    """A line of the legend, under the title: within the frame it could lie over a curve."""
    return [
        f'<rect x="{x}" y="{_TOP - 5}" width="18" height="4" fill="{colour}"/>',
        _words(x + 24, _TOP + 2, name),
    ]


def _series(points: list[tuple[float, float]], colour: str) -> list[str]:
    """A line; and its points, where they are few enough to be told apart."""
    told = [_path(points, colour, 2)] if len(points) > 1 else []
    if len(points) <= _MOST_DOTS:
        told += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return told


def _path(points: list[tuple[float, float]], colour: str, width: int, *, opacity: float = 1.0) -> str:
    every = max(1, -(-len(points) // _MOST_POINTS))
    kept = points[::every] if points[-1] == points[::every][-1] else [*points[::every], points[-1]]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
    return (
        f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity:g}" stroke-linejoin="round"/>'
    )


def _smoothed(points: list[Point]) -> list[Point]:
    """A moving mean over about a twentieth of the curve; a short one as it is."""
    reach = len(points) // 40
    if not reach:
        return points
    smooth = []
    for at, (step, _) in enumerate(points):
        near = points[max(0, at - reach) : at + reach + 1]
        smooth.append((step, sum(loss for _, loss in near) / len(near)))
    return smooth


def _ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about so many, two at least."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = max(abs(low) * 0.1, 1.0 if whole else 1e-3)
        low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    nices = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * nice for nice in nices if power * nice >= rough)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step), math.ceil(high / step)
    if last == first:
        last += 1
    return [number * step for number in range(first, last + 1)]


def _figure(value: float) -> str:
    return f"{value:.6g}"


def _words(
    x: float, y: float, text: str, *, anchor: str = "start", ink: str = _SOFT, size: float = _SIZE
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}" font-size="{size:.3g}">'
        f"{escape(text)}</text>"
    )
