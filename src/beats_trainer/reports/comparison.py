"""How a comparison of models looks: a picture of the figures with their intervals, and a page around it.

figures -> [score_chart -> comparison_page] -> comparison.svg, comparison.html

The page is a sister of the training report's: the same styles, the same script for sorting, complete in itself,
forbidden to fetch anything. Names are other people's text and are escaped.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

__all__ = ["ScoreDot", "comparison_page", "score_chart", "standalone_svg"]

_WIDTH, _ROW, _HEAD, _LEFT, _RIGHT, _AXIS = 640.0, 24.0, 26.0, 86.0, 160.0, 46.0
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_MAX_TICKS = 7
_MAX_NAME = 78
"""Letters of a model's name that fit the picture's width."""

_STYLE = """\
svg { background: #fff; font: 13px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
text { fill: #1b1f24; } .tick, .name, .figure { fill: #59616b; } .end { text-anchor: end; }
.mid { text-anchor: middle; } .grid { stroke: #d9dde2; } .axis { stroke: #59616b; }
.model { font-weight: 600; } .best { stroke: #59616b; stroke-dasharray: 3 3; }
.span { stroke-width: 2; } .s1 { stroke: #1c5f9e; } .s2 { stroke: #b5460f; } .s3 { stroke: #1f7a4f; }
.filled.s1 { fill: #1c5f9e; } .filled.s2 { fill: #b5460f; } .filled.s3 { fill: #1f7a4f; }
.hollow { fill: #fff; stroke-width: 2; }
"""


@dataclass(frozen=True)
class ScoreDot:
    """One figure of the picture.

    Attributes:
        model: Whose it is.
        method: How it was made.
        value: From 0 to 1; NaN where it is undefined.
        low: Lower end of its interval; NaN without one.
        high: Upper end.
        is_tied: Whether the clips cannot tell it from the best: a filled mark, else a hollow one.
    """

    model: str
    method: str
    value: float
    low: float
    high: float
    is_tied: bool


def score_chart(dots: Sequence[ScoreDot], metric: str) -> Markup:
    """Draw each figure as a mark on a line from the lower to the upper end of its interval.

    Args:
        dots: The best first. Those of a model stand together, in the order of the models' best.
        metric: What the figures are; the name of the axis.

    Returns:
        An ``<svg>`` element, styled by the page it stands in; see `standalone_svg` for a file.

    Example:
        >>> "<svg" in score_chart([ScoreDot("base", "knn", 0.9, 0.8, 0.95, True)], "accuracy")
        True
    """
    models = list(dict.fromkeys(dot.model for dot in dots))
    methods = list(dict.fromkeys(sorted(dot.method for dot in dots)))
    ticks = _ticks([v for dot in dots for v in (dot.value, dot.low, dot.high) if math.isfinite(v)])
    height = 8 + len(models) * _HEAD + len(dots) * _ROW + _AXIS
    floor = height - _AXIS + 6

    def x(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" y1="6" x2="{x(tick):.1f}" y2="{floor:g}"/>'
            f'<text class="tick mid" x="{x(tick):.1f}" y="{floor + 16:g}">{tick:.3g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT:g}" y1="{floor:g}" x2="{_WIDTH - _RIGHT:g}" y2="{floor:g}"/>'
        f'<text class="name mid" x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{height - 5:g}">'
        f"{escape(metric)}, with 95 % interval</text>"
    )
    if dots and math.isfinite(dots[0].value):
        best = x(dots[0].value)
        parts.append(f'<line class="best" x1="{best:.1f}" y1="6" x2="{best:.1f}" y2="{floor:g}"/>')
    y = 8.0
    for model in models:
        y += _HEAD
        name = model if len(model) <= _MAX_NAME else f"…{model[1 - _MAX_NAME :]}"
        parts.append(f'<text class="model" x="2" y="{y - 7:g}">{escape(name)}</text>')
        for dot in dots:
            if dot.model != model:
                continue
            style = f"s{methods.index(dot.method) % 3 + 1}"
            middle = y + _ROW / 2 - 3
            parts.append(
                f'<text class="method end" x="{_LEFT - 12:g}" y="{middle + 4.5:g}">{escape(dot.method)}'
                "</text>"
            )
            figure = f"{dot.value:.3f}" if math.isfinite(dot.value) else "–"
            if math.isfinite(dot.low):
                parts.append(
                    f'<line class="span {style}" x1="{x(dot.low):.1f}" y1="{middle:g}" '
                    f'x2="{x(dot.high):.1f}" y2="{middle:g}"/>'
                )
                figure += f" ({dot.low:.3f}–{dot.high:.3f})"
            if math.isfinite(dot.value):
                kind = "filled" if dot.is_tied else "hollow"
                parts.append(
                    f'<path class="{kind} {style}" d="{_mark(style, x(dot.value), middle)}"/>'
                )
            parts.append(
                f'<text class="figure" x="{_WIDTH - _RIGHT + 12:g}" y="{middle + 4.5:g}">{figure}</text>'
            )
            y += _ROW
    describes = (
        f"{metric} of {len(models)} models with 95 % intervals; the table has the same numbers"
    )
    return Markup(
        f'<svg class="chart scores" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(describes)}">'
        f"{''.join(parts)}</svg>"
    )


def standalone_svg(chart: Markup) -> str:
    """The chart as a file of its own: with its styles, on white.

    Example:
        >>> standalone_svg(score_chart([], "accuracy")).startswith("<?xml")
        True
    """
    head, _, rest = str(chart).partition(">")
    height = head.partition(f'viewBox="0 0 {_WIDTH:g} ')[2].partition('"')[0]
    head = head.replace("<svg ", f'<svg width="{_WIDTH:g}" height="{height}" ', 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{_STYLE}</style>{rest}\n'


def comparison_page(
    *,
    title: str,
    summary: str,
    verdict: str,
    chart: Markup,
    results: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    folds: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    origin: Mapping[str, Mapping[str, str]],
    duration_s: float,
) -> str:
    """Write the page; it opens offline, in light and dark, on paper and on a phone.

    Args:
        title: Heading.
        summary: What was done.
        verdict: What came out.
        chart: Of `score_chart`.
        results: Rows of the table of figures, all with the same columns.
        models: Rows of the table of models.
        folds: Rows of the table of folds.
        notes: Warnings to show above all numbers.
        origin: ``hardware`` and ``versions``.
        duration_s: Seconds that it took.

    Returns:
        HTML.
    """
    files = resources.files("beats_trainer.reports")
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beats_trainer", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment.get_template("comparison.html.jinja").render(
        title=title,
        summary=summary,
        verdict=verdict,
        chart=chart,
        tables=[
            ("results", "Figures", results),
            ("models", "Models", models),
            ("folds", "Folds", folds),
        ],
        notes=notes,
        origin=origin,
        duration=f"{duration_s:.0f} s" if duration_s < 120 else f"{duration_s / 60:.0f} min",
        written_at=datetime.now().astimezone(),
        style=Markup(files.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _figure(value: Any) -> str:
    """A cell's text: three digits for figures, groups of three for counts, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _mark(style: str, x: float, y: float) -> str:
    """A circle, a square or a diamond: methods differ in shape, not in colour alone."""
    if style == "s2":
        return f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z"
    if style == "s3":
        return f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
    return f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"


def _ticks(values: Sequence[float]) -> list[float]:
    """Round shares, in 0..1, that enclose the values."""
    if not values:
        return [0.0, 1.0]
    low, high = max(0.0, min(values)), min(1.0, max(values))
    step = next((s for s in _STEPS if (high - low) / s <= _MAX_TICKS - 2), _STEPS[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = (first - 1, last) if last * step > 0.5 else (first, last + 1)
    return [round(number * step, 6) for number in range(first, last + 1)]
