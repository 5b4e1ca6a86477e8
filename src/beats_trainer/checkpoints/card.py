"""The model card: a ``README.md`` in the hub's format, made from a model's description.

config.json -> [README.md]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["write_card"]

_HUB_LICENCES = {"MIT": "mit"}
_MOST_LABELS = 100


def write_card(
    file: Path, name: str, config: Mapping[str, Any], metrics: Mapping[str, float] | None = None
) -> None:
    """Write the card.

    Args:
        file: Where to.
        name: The model's name, for the title.
        config: Content of ``config.json``.
        metrics: Test results by name.
    """
    kind = config["kind"]
    front: dict[str, Any] = {
        "library_name": "beats_trainer",
        "pipeline_tag": "audio-classification" if kind == "classifier" else "feature-extraction",
        "tags": ["audio", "beats", "beats_trainer", kind],
    }
    # The licence is the author's to choose; it is known only for weights passed on as they came.
    licence = _HUB_LICENCES.get(str(config["provenance"].get("licence")))
    if licence is not None and kind != "classifier":
        front["license"] = licence
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---",
        f"# {name}",
        _summary(config),
        _usage(kind, name),
    ]
    if metrics:
        rows = [f"| {key} | {value:.4f} |" for key, value in metrics.items()]
        parts.append("\n".join(["## Results", "", "| metric | value |", "| --- | --- |", *rows]))
    if kind == "classifier":
        parts.append(_labels(config["labels"], config["thresholds"]))
        if config["calibration"] is not None:
            parts.append(_calibration(config["calibration"]))
    parts.append(_facts("Where it comes from", config["provenance"]))
    parts.append(_facts("Architecture", config["architecture"]))
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _summary(config: Mapping[str, Any]) -> str:
    layers = config["architecture"]["encoder_layers"]
    width = config["architecture"]["encoder_embed_dim"]
    encoder = f"BEATs encoder of {layers} layers, {width} wide ([paper](https://arxiv.org/abs/2212.09058))"
    if config["kind"] == "classifier":
        several = "any number of them may apply" if config["task"] == "multi" else "one applies"
        if config["pooling"] == "attentive":
            heads = config["attentive_pooling"]["num_heads"]
            read = (
                f"a learned mix of all layers, pooled by attention over the tokens ({heads} heads)"
            )
        else:
            read = f"{config['pooling']}-pooled tokens"
        return (
            f"Classifies sound into {len(config['labels'])} classes, of which {several}. A {encoder}, "
            f"with a head on {read}."
        )
    if config["kind"] == "tokenizer" and "projection" in config["codebook"]:
        return (
            f"An acoustic tokenizer: a random projection of patches to {config['codebook']['num_codes']} codes "
            f"({config['codebook']['projection']}, seed {config['codebook']['seed']}). Nothing of it was trained."
        )
    if config["kind"] == "tokenizer":
        return f"An acoustic tokenizer: a {encoder} with {config['codebook']['num_codes']} codes."
    return f"A {encoder}. It turns sound at 16 kHz into one vector per 160 ms and frequency band."


def _usage(kind: str, name: str) -> str:
    code = {
        "classifier": f'from beats_trainer import BEATsPredictor\n\npredictor = BEATsPredictor("{name}")\n'
        'print(predictor.predict(["recording.wav"]))',
        "encoder": "from beats_trainer import BEATsFeatureExtractor\n\n"
        f'extractor = BEATsFeatureExtractor("{name}")\n'
        'embedding = extractor.extract_from_file("recording.wav")',
        "tokenizer": f'from beats_trainer import load_tokenizer\n\ntokenizer = load_tokenizer("{name}")',
    }[kind]
    return f"## Use\n\n```python\n{code}\n```\n\n`{name}` is the path of this folder, or its name on the hub."


def _labels(labels: list[str], thresholds: Mapping[str, float] | None) -> str:
    shown, num_more = labels[:_MOST_LABELS], len(labels) - _MOST_LABELS
    if thresholds is None:
        more = f", and {num_more} more" if num_more > 0 else ""
        return f"## Classes\n\n{', '.join(shown)}{more}."
    rows = [f"| {_cell(label)} | {_threshold(thresholds.get(label))} |" for label in shown]
    more = f"\n\n{num_more} more are in `config.json`." if num_more > 0 else ""
    table = "\n".join(["| class | threshold |", "| --- | --- |", *rows])
    return (
        "## Classes\n\nA class counts as detected from its threshold on; `predict` uses these unless it is "
        f"given others.\n\n{table}{more}"
    )


def _threshold(value: float | None) -> str:
    return "0.5 (not fitted)" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _calibration(facts: Mapping[str, Any]) -> str:
    text = _facts("Calibration", facts)
    if facts.get("temperature") is not None:
        text += (
            "\n\nThe temperature is in the head's weights already: scores need no further scaling."
        )
    return text


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    listed = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=100)
    return f"## {title}\n\n```yaml\n{listed}```"
