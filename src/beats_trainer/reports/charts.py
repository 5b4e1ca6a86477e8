"""Charts as SVG text: drawn once, here, for a page that needs no drawing library.

numbers -> [axes -> marks] -> SVG | report

Colours and line patterns are classes (``s1`` ... ``s6``) of ``report.css``, so that a chart follows the
page into the dark and onto paper. Every text that comes from a user goes through ``escape``.

Shapes in this file: P points of one line.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

__all__ = [
    "Curve",
    "Series",
    "key_swatch",
    "line_chart",
    "macro_curve",
    "precision_recall_chart",
    "recall_steps",
    "reliability_chart",
]

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Recall and precision, each of shape ``(P,)``, recall ascending without repeats."""

_MAX_MARKERS = 30
_NUM_RECALLS = 201


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        xs: Shape ``(P,)``.
        ys: Shape ``(P,)``; the line is interrupted where a value is NaN.
        style: Number of its colour and pattern, 1 to 6.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int = 1


@dataclass(frozen=True)
class _Axes:
    """Where values lie in a picture: the plot's box in pixels and the range of each axis."""

    width: float
    height: float
    x_ticks: list[float]
    y_ticks: list[float]
    left: float = 46.0
    right: float = 14.0
    top: float = 14.0
    bottom: float = 38.0

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        floor = self.height - self.bottom
        return floor - (value - low) / (high - low) * (floor - self.top)

    def frame(self, x_name: str, y_name: str = "") -> str:
        """Grid lines, tick labels and the names of the axes."""
        left, right = self.left, self.width - self.right
        floor = self.height - self.bottom
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{left:g}" y1="{y:.1f}" x2="{right:g}" y2="{y:.1f}"/>'
                f'<text class="tick end" x="{left - 7:g}" y="{y + 3.8:.1f}">{_tick(tick)}</text>'
            )
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(
                f'<line class="axis" x1="{x:.1f}" y1="{floor:g}" x2="{x:.1f}" y2="{floor + 4:g}"/>'
                f'<text class="tick mid" x="{x:.1f}" y="{floor + 16:g}">{_tick(tick)}</text>'
            )
        parts.append(
            f'<line class="axis" x1="{left:g}" y1="{floor:g}" x2="{right:g}" y2="{floor:g}"/>'
        )
        middle = (left + right) / 2
        parts.append(
            f'<text class="name mid" x="{middle:.1f}" y="{self.height - 5:g}">{escape(x_name)}</text>'
        )
        if y_name:
            middle = (self.top + floor) / 2
            parts.append(
                f'<text class="name mid" transform="translate(11 {middle:.1f}) rotate(-90)">'
                f"{escape(y_name)}</text>"
            )
        return "".join(parts)


def line_chart(
    series: Sequence[Series], *, describes: str, x_name: str, mark: float | None = None
) -> Markup:
    """Draw lines over epochs or steps.

    Args:
        series: Lines; values that are not finite interrupt a line.
        describes: What the picture shows, for those who do not see it.
        x_name: Name of the horizontal axis.
        mark: A value of x at which to draw a vertical line and a ring on each line.

    Returns:
        An ``<svg>`` element; empty if no line has a finite value.

    Example:
        >>> "<path" in line_chart([Series("loss", [0, 1], [2.0, 1.0])], describes="", x_name="epoch")
        True
    """
    points = [
        [(float(x), float(y)) for x, y in zip(line.xs, line.ys, strict=True)] for line in series
    ]
    xs = [x for line in points for x, _ in line]
    ys = [y for line in points for _, y in line if math.isfinite(y)]
    if not ys:
        return Markup()
    axes = _Axes(360, 226, _whole_ticks(min(xs), max(xs)), _ticks(min(ys), max(ys)))
    parts = [axes.frame(x_name)]
    if mark is not None and axes.x_ticks[0] <= mark <= axes.x_ticks[-1]:
        x = axes.x(mark)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" y1="{axes.top:g}" x2="{x:.1f}" y2="{axes.height - axes.bottom:g}"/>'
        )
    for line, values in zip(series, points, strict=True):
        parts.append(
            f'<path class="line s{line.style}" d="{_polyline(axes, values)}"/>'
            if len(values) > 1
            else ""
        )
        shown = [(x, y) for x, y in values if math.isfinite(y)]
        if len(shown) <= _MAX_MARKERS:
            parts += [
                f'<circle class="dot s{line.style}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2"/>'
                for x, y in shown
            ]
        parts += [
            f'<circle class="ring s{line.style}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4.5"/>'
            for x, y in shown
            if x == mark
        ]
    return _svg(axes, describes, parts)


def recall_steps(
    recall: Iterable[float], precision: Iterable[float], max_points: int | None
) -> Curve:
    """Reduce a precision-recall curve to what a picture of it needs.

    Args:
        recall: Shape ``(P,)``, in any order.
        precision: Shape ``(P,)``, belonging to it.
        max_points: How many points to keep, at least 2; evenly over those there are, with both ends;
            ``None`` keeps all.

    Returns:
        Recall ascending without repeats, and the best precision at each. Empty where no value is
        finite, as of a class without a clip.

    Example:
        >>> recall_steps([1.0, 1.0, 0.5, 0.0], [0.4, 0.5, 1.0, 1.0], max_points=200)
        (array([0. , 0.5, 1. ]), array([1. , 1. , 0.5]))
    """
    pairs = np.array([*zip(recall, precision, strict=True)], dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    pairs = pairs[np.lexsort((-pairs[:, 1], pairs[:, 0]))]
    _, first = np.unique(pairs[:, 0], return_index=True)
    pairs = pairs[first]
    if max_points is not None and len(pairs) > max_points:
        pairs = pairs[np.unique(np.linspace(0, len(pairs) - 1, max_points).round().astype(int))]
    return pairs[:, 0], pairs[:, 1]


def macro_curve(curves: Mapping[str, Curve]) -> Curve:
    """Average the curves of all classes at equal recall.

    The precision at a recall is that of the first threshold that reaches it, so the area under the mean is
    the mean of the classes' average precisions (up to the grid of 201 recalls).

    Args:
        curves: Class -> steps, as ``recall_steps`` gives them; empty curves are left out.

    Returns:
        Steps, shape ``(201,)``; empty if all curves are.
    """
    grid = np.linspace(0.0, 1.0, _NUM_RECALLS)
    rows = []
    for recall, precision in curves.values():
        if not len(recall):
            continue
        padded = np.append(precision, 0.0)  # a recall that is never reached has precision 0
        rows.append(padded[np.searchsorted(recall, grid - 1e-9)])
    if not rows:
        return np.empty(0), np.empty(0)
    return grid, np.mean(rows, axis=0)


def precision_recall_chart(curves: Mapping[str, Curve], macro: Curve) -> Markup:
    """Draw one thin line per class and the mean of all above them.

    Args:
        curves: Class -> steps. The n-th line carries ``data-curve="n"``, by which the page finds it.
        macro: Steps of the mean; empty for none.
    """
    quarter = [0.0, 0.25, 0.5, 0.75, 1.0]
    axes = _Axes(440, 340, quarter, quarter, left=54)
    parts = [axes.frame("recall", "precision"), "<g>"]
    parts += [
        f'<path class="line thin" data-curve="{index}" d="{_steps(axes, curve)}"/>'
        for index, curve in enumerate(curves.values())
    ]
    parts.append(f'<path class="line macro" d="{_steps(axes, macro)}"/></g>')
    what = f"Precision over recall for {len(curves)} classes, and their mean"
    return _svg(axes, what, parts)


def reliability_chart(
    confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[float], describes: str
) -> Markup:
    """Draw how often predictions were right over how sure they were; a disc's area is its clips.

    Args:
        confidence: Mean confidence of each bin; NaN in an empty one.
        accuracy: Share of the bin's predictions that were right.
        counts: Predictions in the bin.
        describes: What the picture shows, for those who do not see it.
    """
    fifth = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axes = _Axes(340, 300, fifth, fifth, left=54)
    parts = [
        axes.frame("mean confidence", "share right"),
        f'<line class="diagonal" x1="{axes.x(0):.1f}" y1="{axes.y(0):.1f}" x2="{axes.x(1):.1f}" y2="{axes.y(1):.1f}"/>',
    ]
    largest = max(counts, default=0)
    bins = [
        (float(x), float(y), float(n))
        for x, y, n in zip(confidence, accuracy, counts, strict=True)
        if n > 0 and math.isfinite(x) and math.isfinite(y)
    ]
    for x, y, _ in bins:
        parts.append(
            f'<line class="gap" x1="{axes.x(x):.1f}" y1="{axes.y(x):.1f}" x2="{axes.x(x):.1f}" y2="{axes.y(y):.1f}"/>'
        )
    parts += [
        f'<circle class="disc" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="{max(2.0, 11 * math.sqrt(n / largest)):.1f}"/>'
        for x, y, n in bins
    ]
    return _svg(axes, describes, parts)


def key_swatch(style: int) -> Markup:
    """A piece of the line that a legend's entry stands for."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line s{int(style)}" x1="1" y1="4" x2="25" y2="4"/></svg>'
    )


def _svg(axes: _Axes, describes: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {axes.width:g} {axes.height:g}" role="img" '
        f'aria-label="{escape(describes)}">{"".join(parts)}</svg>'
    )


def _polyline(axes: _Axes, points: Sequence[tuple[float, float]]) -> str:
    """Path through the points, interrupted where a value is not finite."""
    commands, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        commands.append(f"{pen}{axes.x(x):.1f} {axes.y(y):.1f}")
        pen = "L"
    return "".join(commands)


def _steps(axes: _Axes, curve: Curve) -> str:
    """Path with a flat piece up to each recall, at the precision that is had there."""
    recall, precision = curve
    if not len(recall):
        return ""
    commands = [f"M{axes.x(0):.1f} {axes.y(precision[min(1, len(recall) - 1)]):.1f}"]
    height = ""
    for value, (low, high) in zip(
        precision[1:] if recall[0] == 0 else precision,
        pairwise(recall if recall[0] == 0 else [0.0, *recall]),
        strict=True,
    ):
        assert low < high
        now = f"V{axes.y(value):.1f}"
        commands.append(f"{now if now != height else ''}H{axes.x(high):.1f}")
        height = now
    return "".join(commands)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose a range."""
    span = high - low or abs(high) * 0.1 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= span)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Whole numbers from the first epoch to the last, at most eight."""
    if high <= low:
        return [low, low + 1]
    step = next(s for s in _whole_steps() if (high - low) / s <= 7)
    ticks = [low + step * n for n in range(int((high - low) // step) + 1)]
    if high - ticks[-1] > step / 2:
        return [*ticks, high]
    return [*ticks[:-1], high] if len(ticks) > 1 else [low, high]


def _whole_steps() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _tick(value: float) -> str:
    """The shortest text of a tick; a minus sign, not a hyphen."""
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}".replace("-", "\N{MINUS SIGN}", 1)
