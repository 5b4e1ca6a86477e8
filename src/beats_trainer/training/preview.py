"""Look at and listen to what augmentation makes of training clips, before anything is trained on it.

splits, config -> some training clips -> [augmentation] -> WAV, PNG and one page that shows all

Shapes in this file: B clips, S samples, F frames of 10 ms, C classes.
"""

import base64
import dataclasses
import html
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from beats_trainer.config import AugmentationConfig, Config
from beats_trainer.constants import FBANK_MEAN, FBANK_STD, MIN_SAMPLES, SAMPLE_RATE
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.embeddings.encode import DEFAULT_WINDOW_S
from beats_trainer.errors import ConfigError
from beats_trainer.loading import AudioBatch, ClipDataset, collate_waveforms
from beats_trainer.model.fbank import KaldiFbank
from beats_trainer.model.lengths import count_frames
from beats_trainer.training.augmentation import augmentation_from
from beats_trainer.training.embedded import clips_of
from beats_trainer.training.losses import soft_targets

__all__ = ["preview_augmentation"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _View:
    """One clip at one stage, as the page shows it."""

    title: str
    stem: str
    targets: str
    fbank: NDArray[np.float32]
    waveform: NDArray[np.float32] | None = None


def preview_augmentation(
    splits: Splits, config: Config, folder: str | os.PathLike[str], count: int = 8
) -> Path:
    """Write some training clips as they are and as augmentation changes them.

    The clips are drawn by ``config.seed``, cut as training cuts them (``data.max_duration_s``, or 30 s),
    and changed as one batch: mixup finds its partners among them. The same settings give the same sounds.

    Args:
        splits: Training clips are taken from it, such as ``BEATsTrainer(...).splits``.
        config: What to do to them is ``config.augmentation``.
        folder: Is made if it is not there. Takes ``clip_NN_before.wav`` and ``.png``, ``clip_NN_after``
            the same, ``clip_NN_masked.png`` if parts of the spectrogram are hidden, and ``preview.html``.
        count: Clips to show, at most; all training clips if there are fewer.

    Returns:
        The page ``preview.html``: one file with pictures and sounds inside, for any browser, offline.

    Raises:
        ConfigError: If nothing in ``config.augmentation`` is on, or a setting is wrong.
        AudioError: If a recording cannot be read; names the file and the reason.
        ValueError: If ``count`` is less than 1.

    Example:
        >>> trainer = BEATsTrainer.from_directory("clips", config=config)  # doctest: +SKIP
        >>> preview_augmentation(trainer.splits, config, "preview")  # doctest: +SKIP
        PosixPath('preview/preview.html')
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}.")
    change_waveforms, mask_fbank = augmentation_from(config)
    if change_waveforms is None and mask_fbank is None:
        raise ConfigError(
            "There is no augmentation to preview: all of it is off. Turn something on, for example "
            "augmentation.mixup_alpha=0.8 or augmentation.num_time_masks=2."
        )
    table = splits.train
    order = np.random.RandomState(config.seed).permutation(len(table))
    table = table.iloc[np.sort(order[:count])]
    if config.augmentation.mixup_alpha > 0 and len(table) == 1:
        log.warning("One clip alone has none to be mixed with: mixup shows from two clips on.")

    before = _read(table, config)
    num_classes = len(splits.labels)
    targets = torch.from_numpy(
        soft_targets(targets_of(table, num_classes, splits.task), num_classes)
    )
    generator = torch.Generator().manual_seed(config.seed)
    after, after_targets = before, targets
    if change_waveforms is not None:
        waveforms, lengths, after_targets = change_waveforms(
            before.waveforms, before.lengths, targets, generator
        )
        after = AudioBatch(waveforms, lengths)

    stages = [
        ("as recorded", "before", before, targets, _fbank(before)),
        ("augmented", "after", after, after_targets, _fbank(after)),
    ]
    if mask_fbank is not None:
        frame_lengths = count_frames(after.lengths)
        masked = mask_fbank(stages[1][4], frame_lengths, generator=generator)
        stages.append(("what the network gets", "masked", after, after_targets, masked))
    clips = [
        (
            str(filename),
            [
                _View(
                    title,
                    f"clip_{row + 1:02d}_{name}",
                    _describe_targets(of_stage[row], splits.labels),
                    fbank[row, : int(count_frames(int(audio.lengths[row])))].numpy(),
                    None
                    if name == "masked"
                    else audio.waveforms[row, : int(audio.lengths[row])].numpy(),
                )
                for title, name, audio, of_stage, fbank in stages
            ],
        )
        for row, filename in enumerate(table["filename"])
    ]
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    sections = [_section(filename, views, output) for filename, views in clips]
    page = output / "preview.html"
    text = _PAGE.format(settings=html.escape(_settings_text(config)), clips="\n".join(sections))
    page.write_text(text, encoding="utf-8", errors="replace")
    return page


def _read(table: pd.DataFrame, config: Config) -> AudioBatch:
    crop_s = config.data.max_duration_s or DEFAULT_WINDOW_S
    dataset = ClipDataset(clips_of(table), [0] * len(table), crop_s, config.seed)
    waveforms = []
    for row in range(len(table)):
        item = dataset[row]
        assert isinstance(item, tuple)  # an error is raised outside of worker processes
        waveforms.append(item[0])
    return collate_waveforms(waveforms)


def _fbank(audio: AudioBatch) -> Tensor:
    missing = max(0, MIN_SAMPLES - audio.waveforms.shape[1])
    fbank: Tensor = KaldiFbank(FBANK_MEAN, FBANK_STD)(F.pad(audio.waveforms, (0, missing)))
    return fbank


def _describe_targets(targets: Tensor, labels: list[str]) -> str:
    pairs = list(zip(labels, targets.tolist(), strict=True))
    present = sorted((pair for pair in pairs if pair[1] > 0), key=lambda pair: -pair[1])
    texts = [label if share == 1 else f"{label} {share:.2f}" for label, share in present]
    texts += [f"{label} unknown" for label, share in pairs if np.isnan(share)]
    return ", ".join(texts) or "none of the classes"


def _settings_text(config: Config) -> str:
    """The settings of augmentation that are not at their defaults, with the seed."""
    defaults = AugmentationConfig()
    changed = {
        item.name: getattr(config.augmentation, item.name)
        for item in dataclasses.fields(defaults)
        if getattr(config.augmentation, item.name) != getattr(defaults, item.name)
    }
    return ", ".join(f"{name}={value}" for name, value in (changed | {"seed": config.seed}).items())


def _section(filename: str, views: list[_View], folder: Path) -> str:
    """Write the files of one clip, and return its part of the page."""
    from beats_trainer.reports.pictures import audio_data_url, spectrogram_png

    figures = []
    for view in views:
        png = spectrogram_png(view.fbank)
        (folder / f"{view.stem}.png").write_bytes(png)
        facts = {"title": view.title, "targets": view.targets, "player": ""}
        facts["alt"] = f"Spectrogram of {filename}, {view.title}: {view.targets}"
        facts["picture"] = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        facts["facts"] = f"{len(view.fbank)} frames of 10 ms"
        if view.waveform is not None:
            # Float WAV: what is louder than full scale is not clipped.
            soundfile.write(
                folder / f"{view.stem}.wav", view.waveform, SAMPLE_RATE, subtype="FLOAT"
            )
            facts["player"] = audio_data_url(view.waveform, SAMPLE_RATE)
            facts["facts"] = _level_text(view.waveform)
        figures.append(_figure(facts))
    return f"<section><h2>{html.escape(filename)}</h2><div>{''.join(figures)}</div></section>"


def _level_text(waveform: NDArray[np.float32]) -> str:
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    level = f"{10 * np.log10(power):.1f} dB" if power > 0 else "silent"
    return f"{len(waveform) / SAMPLE_RATE:.2f} s, {level}"


def _figure(facts: dict[str, Any]) -> str:
    safe = {name: html.escape(str(value)) for name, value in facts.items()}
    player = f'<audio controls src="{safe["player"]}"></audio>' if safe["player"] else ""
    return (
        f'<figure><img src="{safe["picture"]}" alt="{safe["alt"]}">{player}<figcaption>'
        f"<b>{safe['title']}</b> ({safe['facts']})<br>{safe['targets']}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>Augmentation preview</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }}
h2 {{ font-size: 1.05rem; overflow-wrap: anywhere; border-top: 1px solid #8886; padding-top: 1rem; }}
section > div {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
img {{ width: 100%; height: 8rem; display: block; image-rendering: pixelated; border-radius: 4px; }}
audio {{ width: 100%; height: 2.5rem; margin-top: .5rem; }}
figcaption {{ overflow-wrap: anywhere; margin-top: .25rem; }}
p {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Augmentation preview</h1>
<p>{settings}</p>
<p>Time runs from left to right, low frequencies are at the bottom. Each picture has the colours of its own
range: a change of level is heard, and stands in the text (RMS, 0 dB is full scale), but is not seen.</p>
{clips}
</body>
</html>
"""
