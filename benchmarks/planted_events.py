"""Whether detection finds what is there: known events in noise, counted and timed.

    OMP_NUM_THREADS=1 python benchmarks/planted_events.py ESC10_FOLDER [--seed 0] [--json result.json]

ESC10_FOLDER holds ``audio/CLASS/FOLD-SOURCE-TAKE.ogg``. All through the public API:

1. Sounds of folds 1 to 4 are planted in pink noise, densely, with a table of when each is heard. A small network
   is trained on these soundscapes from scratch; one fold, drawn by the seed, is its validation part.
2. An hour with 20 sounds of that fold is searched, and what makes events of scores is chosen on it: the best F1
   that counts an event as right only if its start and end are within a hop, then the best F1.
3. An hour with 20 sounds of fold 5, which nothing has learned or chosen from, is searched with what was chosen.
   Other rules and hops are there to compare, not to choose from.

A sound is the stretch of a clip with the most energy, without pauses above ``MAX_PAUSE_S`` and cut where it is
``FLOOR_DB`` below its loudest part, so that its true start and end are known. A detection is right if it overlaps a
planted event of its class, one to one, pairs that overlap longest first; all else are false alarms and misses.
Errors of start and end are detected minus planted, over the right ones.

The classes are the three of ten that are told apart best on folds 1 to 4, each fold by statistics of the log-mel
bands, with logistic regression and a random forest fitted on the three others: 99 % of their clips are right.
``--classes all`` takes the ten, of which a network trained from scratch on so few clips mistakes every seventh
(docs/results.md).
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from beats_trainer import BEATsPredictor, BEATsTrainer, Config
from beats_trainer.datasets import write_annotation_csv

RATE = 44_100
NOISE_RMS = 0.004
SNR_DB = (15.0, 25.0)
FRAME_S, FLOOR_DB, MAX_PAUSE_S = 0.02, 15.0, 1.0
NUM_EVENTS = 20
CLASSES = ("chainsaw", "rain", "sneezing")


@dataclass
class Sound:
    """A sound to plant, mono at ``RATE``."""

    label: str
    fold: int
    samples: np.ndarray


def read_sounds(folder: Path, classes: list[str]) -> list[Sound]:
    """Every clip's stretch of sound, with an RMS of 1."""
    sounds = []
    for label in classes:
        for path in sorted((folder / "audio" / label).glob("*.ogg")):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            assert rate == RATE, path
            stretch = loudest_stretch(samples.mean(axis=1))
            sounds.append(Sound(label, int(path.name[0]), stretch / np.sqrt(np.mean(stretch**2))))
    return sounds


def loudest_stretch(samples: np.ndarray) -> np.ndarray:
    """The part with the most energy that has no long pause."""
    size = round(FRAME_S * RATE)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    energy = (frames.astype(np.float64) ** 2).mean(axis=1)
    on = np.flatnonzero(energy > np.percentile(energy, 99) * 10 ** (-FLOOR_DB / 10))
    stretches = np.split(on, np.flatnonzero(np.diff(on) * FRAME_S > MAX_PAUSE_S) + 1)
    best = max(stretches, key=lambda part: energy[part].sum())
    return samples[best[0] * size : (best[-1] + 1) * size].copy()


def pink_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with the same power in every octave from 20 Hz, and an RMS of 1; blocks fade into each other."""
    block, fade = 60 * RATE, RATE
    up = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
    noise = np.zeros(num_samples + block + fade, dtype=np.float32)
    frequencies = np.fft.rfftfreq(block + fade, 1 / RATE)
    shape = np.where(frequencies < 20, 0, 1 / np.sqrt(np.maximum(frequencies, 20)))
    for start in range(0, num_samples, block):
        white = rng.standard_normal(block + fade, dtype=np.float32)
        part = np.fft.irfft(np.fft.rfft(white) * shape, block + fade).astype(np.float32)
        part /= np.sqrt(np.mean(part**2))
        part[:fade] *= up
        part[-fade:] *= up[::-1]
        noise[start : start + block + fade] += part
    return noise[:num_samples]


def write_scene(
    path: Path,
    sounds: list[Sound],
    starts_s: np.ndarray,
    duration_s: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Plant sounds in noise, ``SNR_DB`` above it, as a WAV of 16 bits; returns where they are."""
    scene = NOISE_RMS * pink_noise(round(duration_s * RATE), rng)
    rows = []
    for sound, start_s in zip(sounds, starts_s, strict=True):
        first = round(start_s * RATE)
        level = NOISE_RMS * 10 ** (rng.uniform(*SNR_DB) / 20)
        scene[first : first + len(sound.samples)] += level * sound.samples
        end_s = (first + len(sound.samples)) / RATE
        rows.append((str(path), first / RATE, end_s, sound.label))
    soundfile.write(path, np.clip(scene, -1, 1 - 2**-15), RATE, subtype="PCM_16")
    return pd.DataFrame(rows, columns=["file", "start_time", "end_time", "label"])


def write_training_scenes(
    folder: Path, sounds: list[Sound], rounds: int, rng: np.random.Generator
) -> None:
    """Every sound ``rounds`` times, at other levels and places, in soundscapes that hold one fold each."""
    tables = []
    for fold, round_ in itertools.product(range(1, 5), range(rounds)):
        planted = [sound for sound in sounds if sound.fold == fold]
        planted = [planted[index] for index in rng.permutation(len(planted))]
        gaps = rng.uniform(0.5, 8, len(planted))
        lengths = np.array([len(sound.samples) / RATE for sound in planted])
        starts = np.cumsum(gaps + lengths) - lengths
        path = folder / f"fold{fold}_round{round_}.wav"
        duration_s = float(starts[-1] + lengths[-1] + rng.uniform(0.5, 8))
        tables.append(write_scene(path, planted, starts, duration_s, rng))
    write_annotation_csv(pd.concat(tables), folder / "annotations.csv")


def write_hour(
    path: Path, sounds: list[Sound], num_events: int, rng: np.random.Generator
) -> pd.DataFrame:
    """An hour with as many events of each class, of different clips, anywhere with 10 s between."""
    by_class: dict[str, list[Sound]] = {}
    for index in rng.permutation(len(sounds)):
        by_class.setdefault(sounds[index].label, []).append(sounds[index])
    in_turns = [
        s for turn in itertools.zip_longest(*by_class.values()) for s in turn if s is not None
    ]
    planted = [in_turns[index] for index in rng.permutation(num_events)]
    lengths = np.array([len(sound.samples) / RATE for sound in planted])
    free = 3600 - lengths.sum() - 10 * (num_events + 1)
    places = np.sort(rng.uniform(0, free, num_events))
    starts = places + 10 * np.arange(1, num_events + 1) + np.cumsum(lengths) - lengths
    return write_scene(path, planted, starts, 3600.0, rng)


def train(folder: Path, arguments: argparse.Namespace, scratch: Path) -> BEATsTrainer:
    """The recipe of docs/results.md, on windows of annotated soundscapes."""
    config = Config(seed=arguments.seed)
    config.data.window_s = arguments.window
    config.data.hop_s = arguments.window / 2
    config.data.max_empty_ratio = 1.0
    config.data.group_pattern = r"(fold\d)"
    config.data.train_split, config.data.val_split, config.data.test_split = 0.75, 0.25, 0.0
    config.data.batch_size, config.data.num_workers = 16, 0
    model, training, augmentation = config.model, config.training, config.augmentation
    model.mode = "scratch"
    model.encoder_layers, model.encoder_embed_dim, model.encoder_ffn_embed_dim = 2, 96, 256
    model.encoder_attention_heads, model.embed_dim, model.conv_pos = 4, 96, 16
    training.learning_rate, training.weight_decay = 2e-3, 0.05
    training.max_epochs = training.patience = arguments.epochs
    training.precision, training.device = "float32", "cpu"
    augmentation.gain_db = 6
    augmentation.mixup_alpha, augmentation.mixup_probability = 0.4, 0.5
    augmentation.num_time_masks, augmentation.max_time_mask = 1, 0.15
    augmentation.num_freq_masks = 1
    trainer = BEATsTrainer.from_annotations(
        folder / "annotations.csv", folder, config, log_dir=scratch / "logs"
    )
    trainer.train(progress=False)
    return trainer


def match(planted: pd.DataFrame, found: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of rows, planted and found, of one class that overlap; each row in one pair at most."""
    pairs = []
    for i, true in enumerate(planted.itertuples()):
        for j, event in enumerate(found.itertuples()):
            common_s = min(true.end_time, event.end_time) - max(true.start_time, event.start_time)
            if true.label == event.label and common_s > 0:
                pairs.append((common_s, i, j))
    chosen: list[tuple[int, int]] = []
    for _, i, j in sorted(pairs, reverse=True):
        if all(i != other[0] and j != other[1] for other in chosen):
            chosen.append((i, j))
    return chosen


def measure(planted: pd.DataFrame, found: pd.DataFrame, hop_s: float) -> dict[str, float]:
    """How many were found, and when."""
    pairs = match(planted, found)
    rows, hits = [i for i, _ in pairs], [j for _, j in pairs]
    result: dict[str, float] = {
        "events": len(found),
        "right": len(pairs),
        "precision": len(pairs) / max(len(found), 1),
        "recall": len(pairs) / len(planted),
        "f1": 2 * len(pairs) / (len(found) + len(planted)),
        "false_per_hour": len(found) - len(pairs),
    }
    errors = {
        name: found[column].to_numpy()[hits] - planted[column].to_numpy()[rows]
        for name, column in (("onset", "start_time"), ("offset", "end_time"))
    }
    if pairs:
        worst = np.maximum(*(np.abs(error) for error in errors.values()))
        is_timely = worst <= hop_s + 1e-6
    else:
        is_timely = np.zeros(0, dtype=bool)
    result["timely_f1"] = 2 * int(is_timely.sum()) / (len(found) + len(planted))
    for name, error in errors.items():
        size = np.abs(error) if len(error) else np.array([np.nan])
        result |= {
            f"{name}_bias_s": float(np.median(error)) if len(error) else np.nan,
            f"{name}_median_s": float(np.median(size)),
            f"{name}_max_s": float(size.max()),
            f"{name}_in_hop": float((size <= hop_s + 1e-6).mean()),
        }
    return result


def rules_to_try() -> list[dict[str, Any]]:
    """Every way of making events that is compared on the validation hour."""
    return [
        {"combine": combine, "thresholds": threshold, "release": release}
        for combine in ("mean", "lowest")
        for threshold in (None, 0.3, 0.5, 0.7)
        for release in (1.0, 0.5)
    ]


def show(title: str, results: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    table = pd.DataFrame(results).round(3).astype({"thresholds": object})
    table["thresholds"] = ["model's" if pd.isna(value) else value for value in table["thresholds"]]
    print(table.to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", nargs="+", default=list(CLASSES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=float, default=2.5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3, help="how often each sound is planted")
    parser.add_argument("--keep", type=Path, help="folder for scenes, model and detections")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.classes == ["all"]:
        arguments.classes = sorted(path.name for path in (arguments.folder / "audio").iterdir())
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.keep or Path(temporary))


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    rng = np.random.default_rng(arguments.seed)
    sounds = read_sounds(arguments.folder, arguments.classes)
    scenes = scratch / "scenes"
    scenes.mkdir(parents=True, exist_ok=True)
    write_training_scenes(scenes, sounds, arguments.rounds, rng)
    began = time.perf_counter(), time.process_time()
    trainer = train(scenes, arguments, scratch)
    training_s = time.perf_counter() - began[0], time.process_time() - began[1]
    model = trainer.save(scratch / "model")
    (held_out,) = set(trainer.splits.val["group"])  # type: ignore[union-attr]
    hours = {}
    for name, fold in (("validation", int(held_out[-1])), ("test", 5)):
        of_fold = [sound for sound in sounds if sound.fold == fold]
        hours[name] = write_hour(scratch / f"{name}.wav", of_fold, NUM_EVENTS, rng)
    predictor = BEATsPredictor(model, device="cpu", precision="float32")

    def search(hour: str, hop_s: float, rules: dict[str, Any], **options: Any) -> dict[str, Any]:
        folder = scratch / "found" / f"{hour}_{hop_s}"
        found = predictor.detect(
            scratch / f"{hour}.wav", folder, hop_s=hop_s, progress=False, **rules, **options
        )
        return {"hop_s": hop_s} | rules | measure(hours[hour], found.events, hop_s)

    hop_s = arguments.window / 4
    began_s = time.perf_counter()
    tried = [search("validation", hop_s, rules) for rules in rules_to_try()]
    detection_s = time.perf_counter() - began_s
    best = max(tried, key=lambda row: (row["timely_f1"], row["f1"]))
    chosen = {name: best[name] for name in rules_to_try()[0]}
    formats = ["csv", "raven", "audacity"]
    final = search("test", hop_s, chosen, formats=formats, num_clips=NUM_EVENTS)
    compared = [search("test", hop_s, rules) for rules in rules_to_try()]
    plain = {"thresholds": None, "release": 1.0}
    hops = [
        search("test", arguments.window / parts, {"combine": combine} | plain)
        for parts in (1, 2, 4, 8)
        for combine in ("mean", "lowest")
    ]
    search(
        "test", hop_s, chosen, formats=formats, num_clips=NUM_EVENTS
    )  # leaves these in the folder
    print(
        f"seed {arguments.seed}, {', '.join(arguments.classes)}; validation on {held_out}; trained in "
        f"{training_s[0]:.0f} s ({training_s[1]:.0f} s of processor time); searching an hour in "
        f"{len(tried)} ways took {detection_s:.0f} s"
    )
    show("Validation hour, what was chosen", [best])
    show("Test hour, with what was chosen", [final])
    show("Test hour, other rules", compared)
    show(f"Test hour, thresholds of the model, windows of {arguments.window} s", hops)
    if arguments.json:
        result = {
            "seed": arguments.seed,
            "classes": arguments.classes,
            "training_s": training_s,
            "thresholds": predictor.thresholds,
            "validation": tried,
            "chosen": best,
            "test": final,
            "other_rules": compared,
            "hops": hops,
        }
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
