"""A picture of when each class was heard, as SVG.

summary -> [heat map per class: days and hours | bars, without times] -> SVG

Whatever text comes from a user goes through ``_text``.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
from markupsafe import escape
from numpy.typing import NDArray

__all__ = ["draw_summary"]

_WIDTH = 920
_LEFT, _RIGHT = 96, 24
_MAX_CLASSES = 12
_MAX_DAYS_AS_ROWS = 7
_MAX_COLUMNS = 400
_INK, _SOFT, _RULE = "#1b1f24", "#59616b", "#d9dde2"
_UNRECORDED, _SILENT = "#ffffff", "#f0f2f4"
_BLUES = ("#a9cdec", "#7fb2de", "#5394cf", "#2f75b5", "#1c5792", "#0d3560")
_SCALES = (
    (1, 2, 3, 4, 5, 6),
    (1, 2, 3, 5, 8, 12),
    (1, 2, 5, 10, 20, 50),
    (1, 3, 10, 30, 100, 300),
    (1, 10, 100, 1_000, 10_000, 100_000),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def draw_summary(summary: pd.DataFrame, recorded: pd.DataFrame | None = None) -> str:
    """Draw when each class was heard: a heat map per class of days and hours.

    The twelve classes with the most events are drawn. Where no recording's name tells a time, bars tell how
    many events each class has. More than 400 days are drawn several to a column.

    Args:
        summary: From :func:`summarise`.
        recorded: From :func:`recorded_hours`: tells hours without an event from hours without a recording.

    Returns:
        One SVG picture that needs nothing else, as text.

    Example:
        >>> summary = pd.DataFrame(
        ...     {"label": ["owl"], "date": ["2024-05-10"], "hour": [4], "num_events": [2]}
        ... )
        >>> "2 events of 1 class" in draw_summary(summary)
        True
    """
    if not len(summary):
        return _svg(
            [
                _line(_LEFT, 40, "No events", size=18, weight=600),
                _line(_LEFT, 64, "No class reached its threshold in these recordings.", fill=_SOFT),
            ],
            height=88,
            describes="No events",
        )
    is_timed = (summary["date"].notna() & summary["hour"].notna()).to_numpy()
    totals = summary.groupby("label")["num_events"].sum()
    totals = totals.sort_index().sort_values(ascending=False, kind="stable")
    title = f"{_count(int(totals.sum()), 'event')} of {_count(len(totals), 'class', 'classes')}"
    notes = []
    if is_timed.any():
        timed = summary[is_timed]
        shown = timed.groupby("label")["num_events"].sum()
        shown = shown.sort_index().sort_values(ascending=False, kind="stable")
        first, last = str(timed["date"].min()), str(timed["date"].max())
        title += f", {first}" + ("" if first == last else f" to {last}")
        num_untimed = int(summary["num_events"].sum() - timed["num_events"].sum())
        if num_untimed:
            notes.append(
                f"Not shown: {_count(num_untimed, 'event')} in recordings whose names tell no time."
            )
    else:
        shown = totals
        notes.append("The names of the recordings tell no time.")
    if len(shown) > _MAX_CLASSES:
        notes.append(f"Shown: the {_MAX_CLASSES} classes with the most events.")
        shown = shown.iloc[:_MAX_CLASSES]
    parts = [_line(24, 38, title, size=18, weight=600)]
    top = 60
    for note in notes:
        parts.append(_line(24, top, note, fill=_SOFT))
        top += 20
    drawn, height = _heat_maps(timed, shown, recorded, top) if is_timed.any() else _bars(shown, top)
    return _svg(parts + drawn, height, describes=title)


def _bars(totals: "pd.Series[int]", top: float) -> tuple[list[str], float]:
    left, height, gap = 260, 20, 8
    room = _WIDTH - left - 90
    largest = int(totals.max())
    parts = []
    for label, number in totals.items():
        width = max(2.0, room * number / largest)
        middle = top + height / 2 + 4.5
        parts += [
            _line(left - 10, middle, _shorten(label, 32), anchor="end", hover=str(label)),
            f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{height}" fill="{_BLUES[4]}"/>',
            _line(left + width + 8, middle, f"{number:,}", fill=_SOFT),
        ]
        top += height + gap
    return parts, top + 12


@dataclass(frozen=True)
class _Grid:
    """Where the cells of a heat map lie: rows and columns of days and hours, or hours and days."""

    first: date
    num_days: int
    days_per_cell: int

    @property
    def has_days_as_rows(self) -> bool:
        return self.num_days <= _MAX_DAYS_AS_ROWS

    @property
    def num_columns(self) -> int:
        return 24 if self.has_days_as_rows else -(-self.num_days // self.days_per_cell)

    @property
    def num_rows(self) -> int:
        return self.num_days if self.has_days_as_rows else 24

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height in whole pixels, so that neighbours join without a seam."""
        width = (_WIDTH - _LEFT - _RIGHT) // self.num_columns
        return (min(width, 33), 18) if self.has_days_as_rows else (min(width, 24), 5)

    def fill(self, table: pd.DataFrame, column: str) -> NDArray[np.float64]:
        """Sums of a column, shape ``(rows, columns)``."""
        dates = pd.to_datetime(table["date"])
        day = (dates - pd.Timestamp(self.first)).dt.days.to_numpy(np.int64)
        hour = table["hour"].to_numpy(np.int64)
        values = table[column].to_numpy(np.float64)
        is_inside = (day >= 0) & (day < self.num_days)
        day, hour, values = day[is_inside], hour[is_inside], values[is_inside]
        rows, columns = (day, hour) if self.has_days_as_rows else (hour, day // self.days_per_cell)
        cells = np.zeros((self.num_rows, self.num_columns))
        np.add.at(cells, (rows, columns), values)
        return cells

    def day(self, number: int) -> date:
        return self.first + timedelta(days=number)


def _heat_maps(
    timed: pd.DataFrame, totals: "pd.Series[int]", recorded: pd.DataFrame | None, top: float
) -> tuple[list[str], float]:
    if recorded is not None:
        recorded = recorded[(recorded["date"].notna() & recorded["hour"].notna())]
    days = pd.to_datetime(timed["date"])
    if recorded is not None and len(recorded):
        days = pd.concat([days, pd.to_datetime(recorded["date"])])
    num_days = (days.max() - days.min()).days + 1
    grid = _Grid(days.min().date(), num_days, -(-num_days // _MAX_COLUMNS))
    of_label = {
        label: grid.fill(timed[timed["label"] == label], "num_events") for label in totals.index
    }
    bounds = _scale(max(cells.max() for cells in of_label.values()))
    colours = _colours(len(bounds))
    background = None
    if recorded is not None:
        background = grid.fill(recorded, "recorded_s") > 0
    parts = _legend(bounds, colours, grid, background is not None, top)
    top += 30
    width, height = grid.cell
    for number, (label, cells) in enumerate(of_label.items()):
        count = _count(int(totals[label]), "event")
        parts.append(
            f'<text x="{_LEFT}" y="{top + 14}" font-size="14" fill="{_INK}"><title>{_text(label)}</title>'
            f'<tspan font-weight="600">{_text(_shorten(label, 80))}</tspan>'
            f'<tspan dx="10" font-size="12" fill="{_SOFT}">{count}</tspan></text>'
        )
        top += 24
        levels = np.searchsorted(np.asarray(bounds), cells, side="right")
        box = (_LEFT, top, grid.num_columns * width, grid.num_rows * height)
        parts.append(_rect(*box, fill=_UNRECORDED if background is not None else _SILENT))
        if background is not None:
            parts.append(_cells(background & (levels == 0), _LEFT, top, grid.cell, _SILENT))
        for level, colour in enumerate(colours, start=1):
            parts.append(_cells(levels == level, _LEFT, top, grid.cell, colour))
        parts.append(_rect(*box, fill="none", stroke=_RULE))
        parts += _axes(grid, top)
        top += box[3] + 42 - 6 * (number == len(of_label) - 1)
    return parts, top


def _cells(
    mask: NDArray[np.bool_], left: float, top: float, cell: tuple[int, int], colour: str
) -> str:
    """All cells of one colour as one path; neighbours in a row as one piece."""
    width, height = cell
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    if not len(rows):
        return ""
    path = "".join(
        f"M{left + start * width} {top + row * height}h{(stop - start) * width}v{height}"
        f"h{(start - stop) * width}z"
        for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
    )
    return f'<path fill="{colour}" d="{path}"/>'


def _axes(grid: _Grid, top: float) -> list[str]:
    width, height = grid.cell
    bottom = top + grid.num_rows * height
    if grid.has_days_as_rows:
        rows = [((row + 0.5) * height, grid.day(row).isoformat()) for row in range(grid.num_rows)]
        columns = [(float(hour * width), f"{hour:02d}:00") for hour in range(0, 25, 3)]
    else:
        rows = [(hour * height, f"{hour:02d}:00") for hour in range(0, 25, 6)]
        columns = [
            (day / grid.days_per_cell * width, name) for day, name in _date_ticks(grid, width)
        ]
    parts = [
        _line(_LEFT - 8, top + y + 4, name, size=11, fill=_SOFT, anchor="end") for y, name in rows
    ]
    for x, name in columns:
        x += _LEFT
        parts.append(
            f'<path stroke="{_SOFT}" d="M{x:g} {bottom}v4"/>'
            + _line(x, bottom + 16, name, size=11, fill=_SOFT, anchor="middle")
        )
    return parts


def _date_ticks(grid: _Grid, width: int) -> Iterator[tuple[int, str]]:
    """Days to name below a heat map, at least 60 pixels apart, and their names."""
    per_day = width / grid.days_per_cell
    days = range(grid.num_days)
    for step in (1, 2, 7, 14):
        if step * per_day >= 60:
            for number in days[::step]:
                day = grid.day(number)
                yield number, f"{_MONTHS[day.month - 1]} {day.day}"
            return
    months = [number for number in days if grid.day(number).day == 1]
    step = next((step for step in (1, 2, 3, 6) if step * 30 * per_day >= 60), 12)
    is_first = True
    for number in months:
        day = grid.day(number)
        if (day.month - 1) % step == 0:
            is_named = is_first or day.month == 1
            yield number, f"{_MONTHS[day.month - 1]}{f' {day.year}' if is_named else ''}"
            is_first = False


def _legend(
    bounds: Sequence[int], colours: Sequence[str], grid: _Grid, has_background: bool, top: float
) -> list[str]:
    days = "date" if grid.days_per_cell == 1 else f"{grid.days_per_cell} days"
    names = [
        f"{low:,}" if high == low + 1 else f"{low:,}\N{EN DASH}{high - 1:,}"
        for low, high in pairwise(bounds)
    ]
    names.append(f"{bounds[-1]:,}" if len(bounds) == 1 else f"{bounds[-1]:,} or more")
    entries = [("no recording", _UNRECORDED)] if has_background else []
    entries += [("no event", _SILENT), *zip(names, colours, strict=True)]
    title = f"events per {days} and hour"
    parts = [_line(24, top + 11, title, size=12, fill=_SOFT)]
    x = 24 + 6.2 * len(title) + 18
    for name, colour in entries:
        parts.append(_rect(x, top, 20, 13, fill=colour, stroke=_RULE))
        parts.append(_line(x + 26, top + 11, name, size=12, fill=_SOFT))
        x += 26 + 6.4 * len(name) + 16
    return parts


def _scale(largest: float) -> tuple[int, ...]:
    """Lower bounds of up to six classes of numbers, the last one not too wide."""
    for bounds in _SCALES:
        if largest < 3 * bounds[-1] or bounds is _SCALES[-1]:
            break
    if largest <= _SCALES[0][-1]:
        bounds = _SCALES[0]
    return tuple(bound for bound in bounds if bound <= largest)


def _colours(num: int) -> list[str]:
    if num == 1:
        return [_BLUES[3]]
    return [_BLUES[round(index * (len(_BLUES) - 1) / (num - 1))] for index in range(num)]


def _svg(parts: Sequence[str], height: float, describes: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{math.ceil(height)}" '
        f'viewBox="0 0 {_WIDTH} {math.ceil(height)}" role="img" aria-label="{_text(describes)}" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', "
        f'sans-serif" font-size="13"><title>{_text(describes)}</title>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _line(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 13,
    fill: str = _INK,
    weight: int = 400,
    anchor: str = "start",
    hover: str = "",
) -> str:
    title = f"<title>{_text(hover)}</title>" if hover else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{title}{_text(text)}</text>'
    )


def _rect(
    x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none"
) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _shorten(text: object, num_columns: int) -> str:
    """Cut a text that is too wide, where some characters are two columns wide."""
    width, kept = 0, ""
    for letter in str(text):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > num_columns:
            return f"{kept.rstrip()}\N{HORIZONTAL ELLIPSIS}"
        kept += letter
    return kept


def _text(text: object) -> str:
    """Text that is valid in XML: escaped, on one line, without characters that XML cannot hold."""
    return str(escape(_NOT_IN_XML.sub("\ufffd", " ".join(str(text).split()))))
