"""What a small encoder has learned from recordings without labels: beside chance, and beside the plain spectrum.

    python benchmarks/pretrained.py --esc10 esc10 --fsdd fsdd/recordings --model runs/nano/model [--seeds 0 1 2] [--quick]
                                    [--protocols linear knn attentive finetune] [--rows log-mel random model]
                                    [--sets ESC-10 FSDD] [--views mean bands] [--folds 5] [--json FILE]

Rows: mean and deviation of the 128 log-mel bands; an encoder with random weights of the same size, one for each seed;
the model. Columns: ESC-10's fold 5 (or each of ``--folds`` in turn), the others for training; FSDD, each speaker held out in turn (``--quick``, and what
trains a network: the two speakers of ``--speakers`` only). Nothing is chosen on what is tested: the penalty of the linear
probe and the number of neighbours by cross-validation on the training clips, in whole groups, epochs on a tenth of them.

Views of the last layer's tokens: the mean over all, and (bands) the mean over time of each frequency band.

- linear, knn: logistic regression, and nearest neighbours by cosine, on standardised embeddings, in both views;
- attentive: `BEATsTrainer` in mode attentive, 50 epochs (FSDD, of eight times as many clips: 25);
- finetune: in mode full, 15 epochs (6): from a fitted head, at 3e-4; from random weights plainly and at 1e-3, which suits them better.
  ESC-10 in the view mean, FSDD in both.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from beats_trainer import BEATsModel, BEATsTrainer
from beats_trainer.audio import load_audio
from beats_trainer.config import Config, DataConfig, ModelConfig, TrainingConfig
from beats_trainer.embeddings.encode import encode_clips
from beats_trainer.model.fbank import KaldiFbank

LEAST_SAMPLES = 2_800
MODES = {"attentive": "attentive", "finetune": "full"}
TRAINED: dict[str, list[tuple[str, str | None, int]]] = {  # protocol, view (None: learned), epochs
    "ESC-10": [("attentive", None, 50), ("finetune", "mean", 15)],
    "FSDD": [("attentive", None, 25), ("finetune", "mean", 6), ("finetune", "bands", 6)],
}


def esc10(folder: str, folds: list[int]) -> pd.DataFrame:
    """Files, classes, groups (recordings), and folds as parts to test on; "" where a fold is only trained on."""
    table = pd.read_csv(Path(folder) / "esc10.csv")
    name = next(column for column in ("filename", "file") if column in table.columns)
    paths = [str(Path(folder) / "audio" / file) for file in table[name]]
    return pd.DataFrame(
        {
            "path": paths,
            "label": table["category"],
            "group": table["src_file"].astype(str),
            "part": table["fold"].map(lambda fold: f"fold {fold}" if fold in folds else ""),
        }
    )


def fsdd(folder: str) -> pd.DataFrame:
    """Files, digits, and speakers as groups and as parts to test on."""
    rows = []
    for file in sorted(Path(folder).glob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        rows.append((str(file), digit, speaker, speaker))
    return pd.DataFrame(rows, columns=["path", "label", "group", "part"])


def spectrum(paths: list[str]) -> np.ndarray:
    """Mean and deviation of each log-mel band."""
    fbank = KaldiFbank(15.41663, 6.55582)
    rows = []
    for path in paths:
        waveform = torch.from_numpy(load_audio(path))
        waveform = torch.nn.functional.pad(waveform, (0, max(0, LEAST_SAMPLES - len(waveform))))
        bands = fbank(waveform[None])[0]
        rows.append(torch.cat([bands.mean(0), bands.std(0)]))
    return torch.stack(rows).numpy()


def embeddings(model: str, paths: list[str]) -> dict[str, np.ndarray]:
    """Embeddings by pooling, shape ``(N, D)`` each."""
    network = BEATsModel.from_pretrained(model)
    found = {}
    for pooling in ("mean", "bands"):
        encoded = encode_clips(network, paths, pooling=pooling, precision="float32", progress=False)
        found[pooling] = np.stack(encoded.embeddings)
    return found


def linear(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray) -> float:
    """Accuracy of logistic regression."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": [0.01, 0.1, 1.0]},
        cv=GroupKFold(4),
    )
    search.fit(features[~test], labels[~test], groups=groups[~test])
    return float(search.score(features[test], labels[test]))


def knn(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray) -> float:
    """Accuracy of nearest neighbours."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), KNeighborsClassifier(metric="cosine")),
        {"kneighborsclassifier__n_neighbors": [1, 5, 15]},
        cv=GroupKFold(4),
    )
    search.fit(features[~test], labels[~test], groups=groups[~test])
    return float(search.score(features[test], labels[test]))


def trained(
    mode: str,
    pooling: str,
    model: str,
    table: pd.DataFrame,
    part: str,
    seed: int,
    epochs: int,
    is_random: bool,
    folder: str,
) -> float:
    """Accuracy of a classifier that `BEATsTrainer` has trained."""
    test = (table["part"] == part).to_numpy()
    random = np.random.RandomState(seed)
    is_small = table["group"].nunique() <= 20  # speakers: a tenth of them would be none
    groups = (table.index.astype(str) if is_small else table["group"]).to_numpy()
    known = np.unique(groups[~test])
    val = np.isin(groups, random.permutation(known)[: max(1, len(known) // 10)]) & ~test
    split = np.where(test, "test", np.where(val, "val", "train"))
    frame = pd.DataFrame({"filename": table["path"], "category": table["label"], "split": split})
    config = Config(
        data=DataConfig(num_workers=0),
        model=ModelConfig(
            mode=mode,  # type: ignore[arg-type]
            pooling=pooling,  # type: ignore[arg-type]
            model_path=model,
            fit_head_first=mode == "attentive" or not is_random,
        ),
        training=TrainingConfig(
            max_epochs=epochs,
            patience=epochs,
            device="cpu",
            precision="auto",
            calibrate=False,
            learning_rate=None if mode == "attentive" else 1e-3 if is_random else 3e-4,
            layer_decay=1.0,
        ),
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = BEATsTrainer.from_dataframe(frame, config=config, log_dir=folder)
        trainer.train(verbose=False)
        return float(trainer.evaluate("test").accuracy)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--esc10", required=True)
    parser.add_argument("--fsdd", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--speakers", nargs="+", default=["george", "theo"])
    parser.add_argument(
        "--protocols", nargs="+", default=["linear", "knn", "attentive", "finetune"]
    )
    parser.add_argument("--rows", nargs="+", default=["log-mel", "random", "model"])
    parser.add_argument("--sets", nargs="+", default=["ESC-10", "FSDD"])
    parser.add_argument("--views", nargs="+", default=["mean", "bands"])
    parser.add_argument("--folds", type=int, nargs="+", default=[5])
    parser.add_argument(
        "--quick", action="store_true", help="one seed, linear and knn, two speakers"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("beats_trainer").setLevel(logging.ERROR)
    if arguments.quick:
        arguments.seeds, arguments.protocols = [0], ["linear", "knn"]
    sets = {"ESC-10": esc10(arguments.esc10, arguments.folds), "FSDD": fsdd(arguments.fsdd)}
    sets = {name: sets[name] for name in arguments.sets}
    found: dict[str, dict[str, list[float]]] = {}

    def note(row: str, column: str, value: float) -> None:
        found.setdefault(row, {}).setdefault(column, []).append(value)
        print(f"{row:24}{column:40}{value:.3f}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as scratch:
        architecture = BEATsModel.from_pretrained(arguments.model).architecture
        models: dict[str, dict[int, str]] = {"model": {}, "random": {}}
        for seed in arguments.seeds:
            models["model"][seed] = arguments.model
            torch.manual_seed(seed)
            models["random"][seed] = str(
                BEATsModel(architecture).save_pretrained(f"{scratch}/random_{seed}")
            )
        models = {row: sources for row, sources in models.items() if row in arguments.rows}
        for name, table in sets.items():
            paths, labels = table["path"].tolist(), table["label"].to_numpy()
            groups = table["group"].to_numpy()
            parts = [part for part in table["part"].unique() if part]
            if arguments.quick and name == "FSDD":
                parts = arguments.speakers
            simple: dict[str, Callable[..., float]] = {"linear": linear, "knn": knn}
            chosen = {key: score for key, score in simple.items() if key in arguments.protocols}
            features: list[tuple[str, dict[str, np.ndarray]]] = []
            if chosen and "log-mel" in arguments.rows:
                values = spectrum(paths)
                features.append(("log-mel", {"mean": values}))
            for row, sources in models.items():
                different = dict.fromkeys(sources.values()) if chosen else ()
                features += [(row, embeddings(source, paths)) for source in different]
            for row, views in features:
                for protocol, score in chosen.items():
                    for view, values in views.items():
                        if view not in arguments.views:
                            continue
                        scores = [
                            score(values, labels, groups, (table["part"] == part).to_numpy())
                            for part in parts
                        ]
                        note(row, f"{name} {protocol}, {view}", statistics.fmean(scores))
            for protocol, view, epochs in TRAINED[name]:
                is_left_out = view is not None and view not in arguments.views
                if protocol not in arguments.protocols or is_left_out:
                    continue
                tested = parts if name == "ESC-10" else arguments.speakers
                column = f"{name} {protocol}" + (f", {view}" if view else "")
                for row, sources in models.items():
                    for seed, source in sources.items():
                        scores = [
                            trained(
                                MODES[protocol],
                                view or "mean",
                                source,
                                table,
                                part,
                                seed,
                                epochs,
                                row == "random",
                                f"{scratch}/runs",
                            )
                            for part in tested
                        ]
                        note(row, column, statistics.fmean(scores))
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    print(f"\n{'':36}" + "".join(f"{row:>22}" for row in found))
    for column in columns:
        line = f"{column:36}"
        for scores in found.values():
            values = scores.get(column)
            text = "" if not values else f"{statistics.fmean(values):.3f}"
            if values and len(values) > 1:
                text += f" (sd {statistics.stdev(values):.3f})"
            line += f"{text:>22}"
        print(line)


if __name__ == "__main__":
    main()
