"""`compare_models`: the better model wins, the numbers are scikit-learn's, and what cannot be told is said."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from beats_trainer import BEATsFeatureExtractor, BEATsModel, BEATsTrainer
from beats_trainer.comparison import METHODS, compare_models
from beats_trainer.config import Config, DataConfig, TrainingConfig
from beats_trainer.datasets import build_manifest, fold_splits
from beats_trainer.errors import (
    AudioError,
    CheckpointNotFoundError,
    ConfigError,
    DatasetError,
    InvalidCheckpointError,
    UnknownCheckpointError,
)
from beats_trainer.model import Architecture
from beats_trainer.training.candidates import find_candidates
from beats_trainer.training.embedded import EmbeddedSplit
from beats_trainer.training.probes import probe_knn
from browser import chromium, visit
from tones import TINY, tiny_config, write_tones

HOSTILE = "<i>mute & 'loud'"


def settings(**data):
    return Config(
        data=DataConfig(num_workers=0, batch_size=8, **data),
        training=TrainingConfig(
            device="cpu", precision="float32", max_epochs=4, learning_rate=1e-2
        ),
    )


def save_encoder(folder, seed, *, is_deaf=False):
    """A random encoder; or one whose last norms make a constant of every sound."""
    torch.manual_seed(seed)
    model = BEATsModel(Architecture(**TINY))
    if is_deaf:
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "layer_norm" in name:
                    weights.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``clips`` of three pitches, and encoders ``good``, ``other`` and one that hears nothing."""
    folder = tmp_path_factory.mktemp("comparison")
    write_tones(folder / "clips", num_clips=6)
    save_encoder(folder / "good", 0)
    save_encoder(folder / "other", 1)
    save_encoder(folder / HOSTILE, 2, is_deaf=True)
    return folder


@pytest.fixture(scope="module")
def comparison(place):
    """All methods on a model that hears and one that does not, with files."""
    return compare_models(
        place / "clips",
        [place / HOSTILE, place / "good"],
        config=settings(),
        folds=3,
        output=place / "out",
        progress=False,
    )


def figure(comparison, model, method, column="accuracy"):
    table = comparison.table
    return table[(table["model"] == model) & (table["method"] == method)][column].item()


def test_model_that_hears_wins_and_the_deaf_one_is_told_apart_from_it(comparison):
    deaf = comparison.table[comparison.table["model"] == HOSTILE]

    assert comparison.best == "good"
    assert list(comparison.table[comparison.metric]) == sorted(comparison.table["accuracy"])[::-1]
    assert sorted(deaf["method"]) == sorted(METHODS)
    assert list(deaf["accuracy"]) == pytest.approx([1 / 3] * 3)
    assert (deaf["difference_low"] > 0).all()
    assert not deaf["is_tied"].any()
    assert "Every other model is worse" in comparison.verdict
    assert comparison.verdict in str(comparison)


def test_figures_are_those_of_the_predictions(comparison):
    for (model, method), rows in comparison.predictions.groupby(["model", "method"]):
        per_fold = [
            accuracy_score(fold["category"], fold["predicted"]) for _, fold in rows.groupby("fold")
        ]

        assert len(rows) == 18
        assert figure(comparison, model, method) == pytest.approx(
            accuracy_score(rows["category"], rows["predicted"])
        )
        assert figure(comparison, model, method, "accuracy_mean") == pytest.approx(
            np.mean(per_fold)
        )
        assert figure(comparison, model, method, "accuracy_std") == pytest.approx(
            np.std(per_fold, ddof=1)
        )


def test_every_model_and_method_is_tested_on_the_same_folds(comparison):
    folds = [
        rows.set_index("filename")["fold"].to_dict()
        for _, rows in comparison.predictions.groupby(["model", "method"])
    ]

    assert len(folds) == 6
    assert all(one == folds[0] for one in folds)
    assert sorted(set(folds[0].values())) == ["1", "2", "3"]


def test_facts_of_a_model_are_its_own(comparison, place):
    (good,) = comparison.models[comparison.models["model"] == "good"].to_dict("records")
    encoder = BEATsModel.from_pretrained(place / "good")

    assert good["embedding_dim"] == TINY["encoder_embed_dim"]
    assert good["num_parameters"] == sum(weights.numel() for weights in encoder.parameters())
    assert good["precision"] == "float32"
    hours = good["audio_hours_per_minute"] * good["seconds"] / 60
    assert hours * 3600 == pytest.approx(3 * (0.3 + 0.32 + 0.34 + 0.36 + 0.38 + 0.3), abs=0.01)


def test_neighbours_are_those_of_scikit_learn_on_the_same_folds(comparison, place):
    table = BEATsTrainer.from_directory(
        place / "clips", config=tiny_config(device="cpu")
    ).manifest.table
    extractor = BEATsFeatureExtractor(place / "good", "cpu", precision="float32")
    embeddings = extractor.extract_from_files(list(table["path"]), progress=False)
    ours = comparison.predictions.query("model == 'good' and method == 'knn'").set_index("path")

    for fold in fold_splits(build_manifest(table[["filename", "category"]]), 3):
        train, test = fold.splits.train, fold.splits.test
        scaler = StandardScaler().fit(embeddings[train.index])
        judge = KNeighborsClassifier(
            5, metric="cosine", algorithm="brute", weights=lambda distance: 1 - distance / 2
        ).fit(scaler.transform(embeddings[train.index]), train["category"])
        features = scaler.transform(embeddings[test.index])

        assert list(ours.loc[test["path"], "predicted"]) == list(judge.predict(features))
        np.testing.assert_allclose(
            ours.loc[test["path"], "score"], judge.predict_proba(features).max(axis=1), atol=1e-5
        )


@pytest.mark.parametrize(("method", "mode"), [("linear", "head"), ("attentive", "attentive")])
@pytest.mark.filterwarnings("ignore")
def test_methods_are_what_training_in_that_mode_does(comparison, place, tmp_path, method, mode):
    config = settings()
    config.model.mode, config.model.model_path = mode, str(place / "good")
    trainer = BEATsTrainer.from_directory(place / "clips", config, log_dir=tmp_path)
    trained = trainer.cross_validate(3, verbose=False, progress=False).predictions

    ours = comparison.predictions.query(f"model == 'good' and method == '{method}'")
    both = ours.merge(trained, on="path", suffixes=("", "_trained"))

    assert len(both) == 18
    assert list(both["fold"]) == list(both["fold_trained"])
    assert list(both["predicted"]) == list(both["predicted_trained"])


@pytest.mark.parametrize("num_neighbours", [1, 4, 50])
def test_votes_are_those_of_scikit_learn(num_neighbours):
    random = np.random.default_rng(3)
    embeddings = random.normal(size=(40, 6)).astype(np.float32)
    embeddings[:, 2] = 7.0  # constant: it must not become noise
    truth = random.integers(0, 3, 40)
    train, test = EmbeddedSplit(embeddings[:30], truth[:30]), EmbeddedSplit(embeddings[30:], truth)
    scaler = StandardScaler().fit(embeddings[:30].astype(np.float64))
    judge = KNeighborsClassifier(
        min(num_neighbours, 30), metric="cosine", weights=lambda distance: 1 - distance / 2
    ).fit(scaler.transform(embeddings[:30]), truth[:30])

    shares = probe_knn(train, test, 3, num_neighbours)

    np.testing.assert_allclose(
        shares, judge.predict_proba(scaler.transform(embeddings[30:])), atol=1e-5
    )


def test_neighbours_of_unknown_labels_do_not_vote_on_them():
    nan = np.nan
    targets = np.array([[1, 0, nan], [nan, 1, nan], [0, 0, 1]], np.float32)
    embeddings = np.array([[1.0, 0.1], [1.0, 0.0], [-1.0, -0.1]], np.float32)
    train = EmbeddedSplit(embeddings, targets)

    (share,) = probe_knn(train, EmbeddedSplit(embeddings[:1], targets[:1]), 3, 2)

    assert share[0] == 1.0  # the second does not know
    assert 0 < share[1] < 0.5  # the first is nearer and has it not
    assert share[2] == 1.0  # neither knows: the share of the training clips that do


def test_two_copies_of_a_model_cannot_be_told_apart(place):
    save_encoder(place / "copies" / "a" / "model", 0)
    save_encoder(place / "copies" / "b" / "model", 0)

    comparison = compare_models(
        place / "clips",
        [place / "copies" / "a" / "model", place / "copies" / "b"],
        config=settings(),
        folds=2,
        methods=["knn"],
        progress=False,
    )

    assert list(comparison.table["model"]) == ["a", "b"]
    assert list(comparison.table["is_tied"]) == [True, True]
    assert comparison.table["difference_low"].to_list() == [0.0, 0.0]
    assert comparison.table["difference_high"].to_list() == [0.0, 0.0]
    assert "cannot tell it apart from b (knn)" in comparison.verdict


def test_differences_are_resampled_by_whole_groups(place):
    files = sorted((place / "clips").glob("*/*.wav"))
    table = pd.DataFrame({"filename": map(str, files), "category": [f.parent.name for f in files]})
    sites = [f"site_{f.stem.removeprefix('clip_')}" for f in files]

    alone = compare_models(
        table, [place / "good"], config=settings(), folds=3, methods=["knn"], progress=False
    )
    grouped = compare_models(
        table.assign(group=["one" if site < "site_4" else "two" for site in sites]),
        [place / "other"],
        config=settings(val_split=0.0),
        folds=2,
        methods=["knn"],
        progress=False,
    )

    rows = grouped.predictions.groupby("group")["is_right"].mean()
    assert rows.min() < rows.max()
    # Two groups: a resample is one of them twice, or both; so the ends are the groups' own figures.
    assert grouped.table["low"].item() == pytest.approx(rows.min())
    assert grouped.table["high"].item() == pytest.approx(rows.max())
    assert set(grouped.predictions.groupby("group")["fold"].nunique()) == {1}
    assert 0 < alone.table["low"].item() < alone.table["high"].item() <= 1


def test_official_folds_are_used_and_named(place):
    files = sorted((place / "clips").glob("*/*.wav"))
    folds = [["spring", "autumn"][int(f.stem[-1]) % 2] for f in files]
    table = pd.DataFrame(
        {"filename": map(str, files), "category": [f.parent.name for f in files], "fold": folds}
    )

    comparison = compare_models(
        table, place / "good", config=settings(folds="official"), methods=["knn"], progress=False
    )

    tested = comparison.predictions.set_index("filename")["fold"]
    assert [fold["fold"] for fold in comparison.folds] == ["autumn", "spring"]
    assert list(tested.loc[table["filename"]]) == folds
    assert "2 official folds" in comparison.how


def test_clips_of_any_number_of_classes_are_ranked_by_map(place):
    files = sorted((place / "clips").glob("*/*.wav"))
    labels = [f.parent.name if n % 4 else f"{f.parent.name};rare" for n, f in enumerate(files)]
    table = pd.DataFrame({"filename": map(str, files), "category": labels})

    comparison = compare_models(
        table,
        [place / HOSTILE, place / "good"],
        config=settings(label_delimiter=";"),
        folds=2,
        progress=False,
    )

    assert (comparison.task, comparison.metric, comparison.best) == ("multi", "map", "good")
    assert {"map", "map_mean", "map_std", "roc_auc", "f1"} <= set(comparison.table.columns)
    assert len(comparison.table) == 6
    assert "mAP" in str(comparison)
    assert set(comparison.predictions["category"]) >= {"high", "high;rare"}


def test_files_hold_the_same_numbers_and_open_without_a_network(comparison, place):
    out = place / "out"
    table = pd.read_csv(out / "comparison.csv")
    content = json.loads((out / "comparison.json").read_text())
    page, picture = (out / "comparison.html").read_text(), (out / "comparison.svg").read_text()

    pd.testing.assert_frame_equal(table, comparison.table, check_dtype=False)
    assert [row["accuracy"] for row in content["results"]] == list(table["accuracy"])
    assert content["verdict"] == comparison.verdict
    assert len(pd.read_csv(out / "predictions.csv")) == 6 * 18
    assert not list(out.glob("*.part"))
    for text in (page, picture):
        assert "<i>" not in text.replace('<i class="', "")
        assert "&lt;i&gt;mute &amp; &#39;loud&#39;" in text
        assert not re.search(r"(src|href)=.?(https?:|//)", text)


def test_page_and_picture_are_whole_in_a_browser(comparison, place):
    with chromium() as browser:
        for width in (360, 1280):
            with visit(browser, place / "out" / "comparison.html", width=width) as seen:
                assert seen.complaints == []
                assert len(seen.requests) == 1
                assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
                assert seen.page.locator("svg.scores").is_visible()
                assert seen.page.locator("#results tbody tr").count() == 6
                seen.page.locator("#results thead button").nth(2).click()
                lowest = seen.page.locator("#results tbody tr").first.inner_text()
                assert HOSTILE in lowest
        with visit(browser, place / "out" / "comparison.svg") as seen:
            assert seen.complaints == []
            assert seen.page.locator("text.model").count() == 2


@pytest.mark.filterwarnings("ignore")
def test_model_that_was_trained_on_these_clips_is_called_out(place, tmp_path):
    config = tiny_config(max_epochs=1)
    config.training.loggers = []
    result = BEATsTrainer.from_directory(place / "clips", config, log_dir=tmp_path).train(
        verbose=False, progress=False
    )
    num_heard = sum(result.dataset_stats[f"{part}_samples"] for part in ("train", "val"))

    with pytest.warns(UserWarning, match=f"trained with {num_heard} of these 18 clips"):
        comparison = compare_models(
            place / "clips",
            [result.run_dir],
            config=settings(),
            folds=2,
            methods=["knn"],
            progress=False,
        )

    assert comparison.models["model"].item() == "beats_experiment/version_0"
    assert "trained with" in str(comparison)


def test_method_that_does_not_fit_into_memory_is_left_out_with_a_note(place):
    config = settings()
    config.model.cache_gb = 1e-6

    with pytest.warns(UserWarning, match="without 'attentive'.*cache_gb"):
        comparison = compare_models(
            place / "clips",
            [place / "good"],
            config=config,
            folds=2,
            methods=["knn", "attentive"],
            progress=False,
        )

    assert list(comparison.table["method"]) == ["knn"]
    assert any("without 'attentive'" in note for note in comparison.notes)


def test_epoch_is_not_chosen_where_its_metric_is_undefined(place):
    files = sorted((place / "clips").glob("*/*.wav"))
    labels = [f.parent.name if f.parent.name == "high" else "background" for f in files]
    table = pd.DataFrame({"filename": map(str, files), "category": labels})

    comparison = compare_models(
        table,
        [place / "good"],
        config=settings(label_delimiter=";", val_split=0.06),
        folds=3,
        methods=["linear"],
        progress=False,
    )

    assert any("val_map is undefined" in note for note in comparison.notes)
    assert 0 <= comparison.table["map"].item() <= 1


def test_a_model_that_cannot_be_had_is_named_before_any_clip_is_read(place, tmp_path):
    clips = write_tones(tmp_path / "clips", num_clips=4)
    (clips / "low" / "clip_1.wav").write_bytes(b"no sound at all")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")

    def compare(*models):
        return compare_models(clips, models, config=settings(), folds=2, progress=False)

    with pytest.raises(UnknownCheckpointError, match="'openbeat'"):
        compare(place / "good", "openbeat")
    with pytest.raises(CheckpointNotFoundError, match=r"nothing_here\.pt"):
        compare(place / "good", "nothing_here.pt")
    with pytest.raises(InvalidCheckpointError, match=r"damaged\.pt"):
        compare(place / "good", damaged)
    with pytest.raises(AudioError, match=r"low.clip_1\.wav"):
        compare(place / "good")


def test_models_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    for name in ("birds/run", "frogs/run", "birds/version_3/model", "frogs/version_4"):
        (tmp_path / name).mkdir(parents=True)
    paths = ["birds/run", "frogs/run", "birds/version_3/model", "frogs/version_4"]

    named = find_candidates(["openbeats", "someone/encoder", *(tmp_path / p for p in paths)])

    assert [candidate.name for candidate in named] == [
        "openbeats",
        "someone/encoder",
        "birds/run",
        "frogs/run",
        "birds/version_3",
        "frogs/version_4",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"models": []}, ConfigError, "no model"),
        ({"models": ["good", "./good"]}, ConfigError, "named twice"),
        ({"methods": ["knn", "svm"]}, ConfigError, "'svm'"),
        ({"methods": []}, ConfigError, "none"),
        ({"folds": "official"}, DatasetError, "no column 'fold'"),
        ({"folds": 1}, ConfigError, "at least 2"),
        ({"folds": 40}, DatasetError, "40 folds"),
        ({"data": None}, ConfigError, "no data"),
        ({"data": "nowhere"}, DatasetError, "nowhere"),
        ({"output": "file.txt"}, ConfigError, "must be a folder"),
        ({"metric": "val_map_at_5"}, ConfigError, "monitor_metric"),
        ({"device": "cuda:99"}, ConfigError, "cuda:99"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(place, monkeypatch, arguments, error, match):
    monkeypatch.chdir(place)
    (place / "file.txt").write_text("in the way")
    config = settings()
    config.training.monitor_metric = arguments.pop("metric", None)
    config.training.device = arguments.pop("device", "cpu")
    options = {"data": "clips", "models": ["good"], "config": config, "progress": False} | arguments

    with pytest.raises(error, match=match):
        compare_models(**options)
