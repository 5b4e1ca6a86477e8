"""The course of pre-training as one page: a chart per measure, stage by stage.

histories -> [line charts] -> curves.html
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup, escape

from beats_trainer.atomic import written_whole
from beats_trainer.reports.charts import Series, key_swatch, line_chart

__all__ = ["write_curves"]

_CHARTS = (
    ("Loss per hidden patch, in nats", ("loss", "val_loss", "unigram")),
    ("Hidden codes that were guessed", ("accuracy", "val_accuracy", "majority")),
    ("Cosine with the teacher", ("cosine",)),
    ("Codes in use (perplexity)", ("perplexity",)),
    ("Probe: accuracy of a linear classifier", ("probe_accuracy",)),
    ("Learning rate", ("lr",)),
)
_NAMES = {
    "loss": "training",
    "val_loss": "held-out recordings",
    "unigram": "guessing by how common codes are",
    "accuracy": "training",
    "val_accuracy": "held-out recordings",
    "majority": "always the commonest code",
    "cosine": "estimate and teacher",
    "perplexity": "perplexity",
    "probe_accuracy": "accuracy",
    "lr": "learning rate",
}


def write_curves(path: Path, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The file.
        histories: Rows of each stage by its name, each with ``step`` and some measures.

    Example:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp(), "curves.html")
        >>> write_curves(page, {"encoder": [{"step": 1.0, "loss": 5.0}, {"step": 2.0, "loss": 4.0}]})
        >>> "<svg" in page.read_text()
        True
    """
    parts = []
    for name, rows in histories.items():
        charts = [chart for title, measures in _CHARTS if (chart := _chart(title, measures, rows))]
        if charts:
            parts.append(
                f"<section><h2>{escape(name)}</h2><div class='charts'>{''.join(charts)}</div></section>"
            )
    style = files("beats_trainer.reports").joinpath("report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Pre-training</title>'
        f"<style>{style}</style></head><body><main><h1>Pre-training</h1>{''.join(parts)}</main></body></html>\n"
    )
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _chart(title: str, measures: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    series = []
    for style, measure in enumerate(measures, start=1):
        known = [(row["step"], row[measure]) for row in rows if measure in row]
        if known:
            xs, ys = zip(*known, strict=True)
            series.append(Series(_NAMES[measure], xs, ys, style))
    drawn = line_chart(series, describes=title, x_name="step") if series else Markup()
    if not drawn:
        return ""
    keys = "".join(
        f'<span class="key">{key_swatch(line.style)}{escape(line.name)}</span>' for line in series
    )
    return f'<figure><figcaption>{escape(title)}<div class="keys">{keys}</div></figcaption>{drawn}</figure>'
