"""The report of a training: one page that opens anywhere, and the same numbers as JSON.

metrics, history, clips -> Report -> [page] -> report.html, report.json

The page carries its styles, its script, its pictures and its sounds inside itself, and a content security
policy that forbids it to fetch anything or to run any other script. Class names and file names are other
people's text: the template escapes whatever it is given.

Nothing is measured here: a `Report` is plain values, made by those who measured them.

Shapes in this file: C classes, F frames of 10 ms, S samples.
"""

import base64
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.reports.charts import (
    Curve,
    Series,
    key_swatch,
    line_chart,
    macro_curve,
    precision_recall_chart,
    recall_steps,
    reliability_chart,
)
from beats_trainer.reports.pictures import audio_data_url, png_data_url, spectrogram_png

__all__ = ["Figure", "Mistake", "ReliabilityPoints", "Report", "write_report"]

_MAX_MATRIX_CLASSES = 60
_MAX_CONFUSIONS = 12
_MAX_CURVE_POINTS = 200
_MAX_POINTS_OF_ALL_CURVES = 5000
_MAX_SOUND_S = 15.0
_MISSING = "\N{EN DASH}"

_WORDS = {
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "ece": "ECE",
    "ece_after": "ECE after",
    "ece_before": "ECE before",
    "f1": "F1",
    "is_at_bound": "at the bound of the search",
    "loss_after": "loss after",
    "loss_before": "loss before",
    "lr": "learning rate",
    "macro_f1": "macro F1",
    "map": "mAP",
    "micro_f1": "micro F1",
    "num_clips": "clips",
    "roc_auc": "ROC AUC",
    "support": "clips",
    "train": "training",
    "val": "validation",
    "value": "temperature",
}


@dataclass(frozen=True)
class Figure:
    """A headline number.

    Attributes:
        name: What it is, such as ``"accuracy"``.
        value: The number.
        low: Lower end of its interval; ``None`` without one.
        high: Upper end of its interval.
        note: A few words below it, such as ``"over 5 folds"``.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Mistake:
    """A clip that the model got wrong while it was sure.

    Attributes:
        file: Name or path of its recording, as the user knows it.
        start_time: Where the clip starts in the recording, in seconds.
        duration_s: Seconds.
        truth: The label or labels it has.
        predicted: The label it was given, or wrongly not given.
        score: Probability of ``predicted``.
        waveform: What was heard, shape ``(S,)``, float32 at 16 kHz. The page holds its first 15 s.
        fbank: What the network saw, shape ``(F, 128)``.
    """

    file: str
    start_time: float
    duration_s: float
    truth: str
    predicted: str
    score: float
    waveform: NDArray[np.float32]
    fbank: NDArray[np.float32]


@dataclass(frozen=True)
class ReliabilityPoints:
    """How often predictions were right, by how sure they were.

    Attributes:
        confidence: Mean confidence of each bin; NaN in an empty one.
        accuracy: Share of the bin's predictions that were right; NaN in an empty one.
        counts: Predictions in each bin.
        ece: Expected calibration error.
    """

    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]
    ece: float


@dataclass(frozen=True)
class Report:
    """Everything that is known of a training. What is left empty has no section in the page.

    Attributes:
        title: Heading.
        summary: What was done, in one plain sentence.
        task: ``"single"``: one class per clip; ``"multi"``: any number.
        labels: Class names in the order of the ids.
        headline: The numbers to read if no others are.
        interval_note: What the intervals of ``headline`` are, such as ``"95 % bootstrap intervals over clips"``.
        history: One row per epoch, as in history.csv: ``epoch``, ``train_loss``, ``lr``, ``val_loss``, ...
        monitor: The column of ``history`` by which the epoch was chosen.
        kept_epoch: The ``epoch`` whose weights were kept.
        per_class: One row per class: ``label``, and any numbers; ``None`` where one is not defined.
        confusion: Clips per true class (row) and predicted class (column), C rows of C counts.
        precision_recall: Class -> (recall, precision), in any order and any length.
        reliability: Such as ``{"before": ..., "after": ...}`` for calibration.
        balance: Split -> class -> clips.
        mistakes: Clips to look at and listen to, worst first.
        calibration: The fitted temperature and what it changed, by name.
        thresholds: Class -> the score from which on it counts as present.
        folds: One row per fold of a cross-validation.
        fold_summary: Metric -> ``mean``, ``std`` and ``pooled``.
        configuration: Every setting; may be nested.
        versions: Package -> version.
        hardware: Fact -> value.
        duration_s: Seconds that the training took; 0 if unknown.
        command: What was typed, or the call that was made.
        notes: Warnings to show above all numbers.
        written_at: Date and time of the report, with its time zone.
    """

    title: str
    summary: str
    task: Literal["single", "multi"] = "single"
    labels: Sequence[str] = ()
    headline: Sequence[Figure] = ()
    interval_note: str = ""
    history: Sequence[Mapping[str, float]] = ()
    monitor: str | None = None
    kept_epoch: int | None = None
    per_class: Sequence[Mapping[str, Any]] = ()
    confusion: Sequence[Sequence[int]] | None = None
    precision_recall: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(
        default_factory=dict
    )
    reliability: Mapping[str, ReliabilityPoints] = field(default_factory=dict)
    balance: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    mistakes: Sequence[Mistake] = ()
    calibration: Mapping[str, Any] | None = None
    thresholds: Mapping[str, float] | None = None
    folds: Sequence[Mapping[str, Any]] = ()
    fold_summary: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    duration_s: float = 0.0
    command: str = ""
    notes: Sequence[str] = ()
    written_at: datetime = field(default_factory=lambda: datetime.now().astimezone())


def write_report(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write ``report.html`` and ``report.json``; a reader sees the old files or the new, never a half.

    Args:
        folder: Where they go; made if missing.
        report: What to write. Precision-recall curves are thinned to at most 200 points in both files;
            numbers that are NaN or infinite are ``null`` in the JSON and a dash in the page.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: If parts of the report do not fit each other, such as a confusion matrix and the labels.

    Example:
        >>> report = Report("Dogs and cats", "Trained on 40 clips.", headline=[Figure("accuracy", 0.9)])
        >>> write_report("run", report).name
        'report.html'
    """
    _check(report)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    num_curves = max(1, len(report.precision_recall))
    limit = max(20, min(_MAX_CURVE_POINTS, _MAX_POINTS_OF_ALL_CURVES // num_curves))
    curves = _thin(report.precision_recall, limit)
    # Of whole curves: a thinned one has another area, and the mean shall have the mAP's.
    whole = _thin(report.precision_recall, limit=None)
    macro = macro_curve(whole) if len(whole) > 1 else (np.empty(0), np.empty(0))
    page = (
        _environment().get_template("report.html.jinja").render(**_sections(report, curves, macro))
    )
    plain = json.dumps(
        _numbers(report, curves, macro), indent=1, ensure_ascii=False, allow_nan=False
    )
    _write(target / "report.json", plain + "\n")
    _write(target / "report.html", page)
    return target / "report.html"


def _check(report: Report) -> None:
    """Refuse what would be drawn wrong."""
    if report.task not in ("single", "multi"):
        raise ValueError(f"Expected the task 'single' or 'multi', got {report.task!r}.")
    num_classes = len(report.labels)
    if report.confusion is not None:
        shape = sorted({len(row) for row in report.confusion})
        if len(report.confusion) != num_classes or shape not in ([num_classes], []):
            raise ValueError(
                f"Expected a confusion matrix of {num_classes} rows of {num_classes} counts, one per label, "
                f"got {len(report.confusion)} rows of {shape}. Pass the labels in the matrix's order."
            )
    for name, (recall, precision) in report.precision_recall.items():
        if len(recall) != len(precision):
            raise ValueError(
                f"Expected as many recalls as precisions for {name!r}, got {len(recall)} and "
                f"{len(precision)}. Pass both as one function returned them."
            )
    for name, points in report.reliability.items():
        lengths = [len(points.confidence), len(points.accuracy), len(points.counts)]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"Expected one confidence, accuracy and count per bin of the reliability {name!r}, got "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}."
            )
    for where, needed in (("history", "epoch"), ("per_class", "label")):
        for row in getattr(report, where):
            if needed not in row:
                raise ValueError(
                    f"Expected {needed!r} in every row of {where}, got only {', '.join(map(str, row))}."
                )


def _thin(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], limit: int | None
) -> dict[str, Curve]:
    return {label: recall_steps(*curve, max_points=limit) for label, curve in curves.items()}


# The JSON


def _numbers(report: Report, curves: Mapping[str, Curve], macro: Curve) -> dict[str, Any]:
    """The report as plain values, without pictures and sounds."""
    values = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    values["written_at"] = report.written_at.isoformat(timespec="seconds")
    values["precision_recall"] = {
        label: {"recall": _rounded(recall), "precision": _rounded(precision)}
        for label, (recall, precision) in curves.items()
    }
    values["precision_recall_macro"] = {
        "recall": _rounded(macro[0]),
        "precision": _rounded(macro[1]),
    }
    values["mistakes"] = [
        {
            f.name: getattr(mistake, f.name)
            for f in dataclasses.fields(mistake)
            if f.name not in ("waveform", "fbank")
        }
        for mistake in report.mistakes
    ]
    plain = _plain(values)
    assert isinstance(plain, dict)
    return plain


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 6) for value in values]


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has; what JSON lacks becomes text, NaN and infinity ``None``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


# The page


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beats_trainer", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "words": _words,
        "seconds": _seconds,
        "duration": _duration,
        "share": _share,
        "setting": _setting,
        "sort_key": _sort_key,
    }
    environment.globals["swatch"] = key_swatch
    return environment


def _sections(report: Report, curves: Mapping[str, Curve], macro: Curve) -> dict[str, Any]:
    """What the template shows, section by section."""
    files = resources.files("beats_trainer.reports")
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {
        "report": report,
        "style": Markup(files.joinpath("report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": digest,
        "charts": _learning_charts(report),
        "history_columns": _columns(report.history),
        "per_class_columns": _columns(report.per_class),
        "matrix": _matrix(report),
        "curves": _curve_section(report, curves, macro),
        "reliability": [
            (
                name,
                points,
                reliability_chart(
                    points.confidence,
                    points.accuracy,
                    points.counts,
                    f"Reliability {name} calibration, expected calibration error {points.ece:.3f}",
                ),
            )
            for name, points in report.reliability.items()
        ],
        "balance": _balance(report),
        "mistakes": [_shown(mistake) for mistake in report.mistakes],
        "fold_columns": _columns([*report.folds, report.fold_summary]),
        "settings": _settings(report.configuration),
        "run_facts": [
            *([("duration", _duration(report.duration_s))] if report.duration_s else []),
            *report.hardware.items(),
        ],
    }


def _learning_charts(report: Report) -> list[dict[str, Any]]:
    """Loss, what the epoch was chosen by, and the learning rate, each over the epochs."""
    rows = report.history
    if len(rows) < 2:  # one epoch is a table row, not a curve
        return []
    columns = _columns(rows)
    rates = [name for name in columns if name == "lr" or name.startswith("lr_")]
    losses = [name for name in ("train_loss", "val_loss") if name in columns]
    wanted = [report.monitor, "val_accuracy", "val_map", "val_f1"]
    metrics = [name for name in dict.fromkeys(wanted) if name in columns and name not in losses]
    charts = []
    for title, names in (
        ("Loss", losses),
        ("Validation", metrics[:3]),
        ("Learning rate", rates[:6]),
    ):
        series = [
            Series(
                _words(name),
                [row["epoch"] for row in rows],
                [_float(row.get(name)) for row in rows],
                style,
            )
            for style, name in enumerate(names, start=1)
        ]
        svg = line_chart(
            series,
            describes=f"{title} over {len(rows)} epochs: {', '.join(line.name for line in series)}",
            x_name="epoch",
            mark=report.kept_epoch,
        )
        if svg:
            charts.append({"title": title, "series": series, "svg": svg})
    return charts


def _matrix(report: Report) -> dict[str, Any] | None:
    """The confusion matrix, cut to the classes with most confusions where it has very many."""
    if report.confusion is None or not len(report.labels):
        return None
    counts = np.asarray(report.confusion, dtype=np.int64)
    labels = list(report.labels)
    wrong = counts - np.diag(np.diag(counts))
    totals = counts.sum(axis=1)
    pairs = [
        {
            "truth": labels[i],
            "predicted": labels[j],
            "clips": int(wrong[i, j]),
            "share": float(wrong[i, j] / totals[i]),
        }
        for i, j in zip(*np.nonzero(wrong), strict=True)
    ]
    pairs.sort(key=lambda pair: -pair["clips"])
    shown = np.arange(len(labels))
    if len(labels) > _MAX_MATRIX_CLASSES:
        errors = wrong.sum(axis=0) + wrong.sum(axis=1)
        shown = np.sort(np.argsort(-errors, kind="stable")[:_MAX_MATRIX_CLASSES])
    size = "large" if len(shown) <= 12 else "middle" if len(shown) <= 25 else "small"
    rows = [
        {
            "label": labels[i],
            "total": int(totals[i]),
            "cells": [
                {
                    "count": int(counts[i, j]),
                    "share": _depth(counts[i, j], totals[i]),
                    "hit": i == j,
                }
                for j in shown
            ],
        }
        for i in shown
    ]
    return {
        "labels": [labels[i] for i in shown],
        "rows": rows,
        "size": size,
        "num_classes": len(labels),
        "pairs": pairs[:_MAX_CONFUSIONS],
        "num_pairs": len(pairs),
        "num_wrong": int(wrong.sum()),
        "num_clips": int(totals.sum()),
        "legend": [(percent, _depth(percent, 100)) for percent in (1, 10, 25, 50, 100)],
    }


def _depth(count: float, total: float) -> float:
    """Depth of a cell's colour, 0 to 1: the square root, or few confusions would not be seen."""
    return round(math.sqrt(float(count) / float(total)), 2) if total else 0.0


def _curve_section(
    report: Report, curves: Mapping[str, Curve], macro: Curve
) -> dict[str, Any] | None:
    drawn = {label: curve for label, curve in curves.items() if len(curve[0])}
    if not drawn:
        return None
    found = {str(row["label"]): row.get("average_precision") for row in report.per_class}
    classes = [(index, label, found.get(label)) for index, label in enumerate(drawn)]
    return {
        "svg": precision_recall_chart(drawn, macro),
        "has_macro": len(macro[0]) > 0,
        "classes": sorted(classes, key=lambda entry: _last_if_nan(entry[2])),  # worst first
        "without": [label for label in curves if label not in drawn],
    }


def _last_if_nan(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else float(value)


def _balance(report: Report) -> dict[str, Any] | None:
    """Clips per class and split, as rows of a table and widths of a bar."""
    if not report.balance:
        return None
    splits = list(report.balance)
    labels = list(
        dict.fromkeys([*report.labels, *(x for clips in report.balance.values() for x in clips)])
    )
    rows = [(label, [int(report.balance[s].get(label, 0)) for s in splits]) for label in labels]
    largest = max((sum(counts) for _, counts in rows), default=0) or 1
    # A split without a single clip, such as no test split at all, is not every class's fault.
    totals = [sum(counts[n] for _, counts in rows) for n in range(len(splits))]
    return {
        "splits": splits,
        "totals": totals,
        "rows": [
            {
                "label": label,
                "counts": counts,
                "widths": [round(100 * count / largest, 2) for count in counts],
                "missing": [count == 0 and totals[n] > 0 for n, count in enumerate(counts)],
            }
            for label, counts in rows
        ],
        "lacking": [
            label
            for label, counts in rows
            if any(count == 0 and totals[n] > 0 for n, count in enumerate(counts))
        ],
    }


def _shown(mistake: Mistake) -> dict[str, Any]:
    waveform = np.asarray(mistake.waveform)[: int(_MAX_SOUND_S * SAMPLE_RATE)]
    duration_s = len(waveform) / SAMPLE_RATE
    frames = round(len(mistake.fbank) * min(1.0, duration_s / max(mistake.duration_s, 1e-9)))
    return {
        "of": mistake,
        "picture": png_data_url(spectrogram_png(mistake.fbank[: max(1, frames)])),
        "sound": audio_data_url(waveform, SAMPLE_RATE),
        "duration_s": duration_s,
        "is_cut": len(waveform) < len(mistake.waveform),
    }


def _settings(configuration: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Settings by section; deeper nesting is dotted."""
    general = [(k, v) for k, v in configuration.items() if not isinstance(v, Mapping)]
    sections = [
        (str(name), list(_flat(values)))
        for name, values in configuration.items()
        if isinstance(values, Mapping)
    ]
    return ([("general", general)] if general else []) + sections


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every key of any row, in order of appearance; ``label`` and ``epoch`` stand first by themselves."""
    return [name for name in dict.fromkeys(key for row in rows for key in row) if name != "label"]


# Words and numbers


def _number(value: Any) -> str:
    """A number as a reader wants it; text stays as it is."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return _MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace(
            "-", "\N{MINUS SIGN}"
        )
    if not isinstance(value, float | np.floating):
        return str(value)
    size = abs(float(value))
    text = f"{value:.3f}" if size == 0 or 0.001 <= size < 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def _words(name: str) -> str:
    """A metric's or column's name as words: ``val_roc_auc`` -> ``validation ROC AUC``."""
    if name in _WORDS:
        return _WORDS[name]
    first, _, rest = name.partition("_")
    if first in ("train", "val", "test") and rest:
        return f"{_words(first)} {_words(rest)}"
    return name.replace("_", " ")


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _duration(value: float) -> str:
    """Seconds as ``1 h 5 min``, ``12 min 5 s`` or ``8.2 s``."""
    if value < 60:
        return _seconds(value)
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _share(value: Any) -> str | None:
    """A number of 0 to 1 as the length of the bar behind it; ``None`` for any other."""
    if isinstance(value, float | np.floating) and 0.0 <= value <= 1.0:
        return f"{value:.3f}"
    return None


def _sort_key(value: Any) -> Any:
    """What a column is sorted by; empty where there is no number."""
    is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
    return value if is_number else ""


def _setting(value: Any) -> str:
    """A setting as its YAML would have it."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _write(path: Path, text: str) -> None:
    """Put a whole file in place at once."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # A file name may hold bytes that are no text; as \udcff they are seen, and valid in JSON.
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
