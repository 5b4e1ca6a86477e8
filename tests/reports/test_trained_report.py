"""The reports that trainings leave, opened in a real browser: what is in them, and that nothing is missing."""

import json
from pathlib import Path

import pandas as pd
import pytest

from beats_trainer.trainer import BEATsTrainer
from browser import chromium, visit
from tones import tiny_config, write_tones


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"))


def opened(browser, path, width=1280):
    with visit(browser, Path(path), width=width) as visited:
        titles = [heading.inner_text() for heading in visited.page.query_selector_all("h2")]
        text = visited.page.inner_text("body")
        sounds = visited.page.eval_on_selector_all("audio", "all => all.length")
        overflow = visited.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert visited.complaints == []
        assert all(request.startswith(("file:", "data:")) for request in visited.requests)
    return titles, text, sounds, overflow


@pytest.mark.parametrize("width", [1280, 360])
def test_a_training_leaves_a_page_with_all_that_there_is_to_see(browser, tones, tmp_path, width):
    config = tiny_config(max_epochs=3)
    result = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path).train(verbose=False)

    titles, text, sounds, overflow = opened(browser, result.report, width)

    numbers = json.loads(Path(result.report).with_suffix(".json").read_text())
    wrong = round(6 * (1 - result["test_results"]["test_accuracy"]))
    assert {"Learning curves", "Classes", "Confusions", "Most confident mistakes"} <= set(titles)
    assert f"{result['test_results']['test_accuracy']:.3f}" in text
    assert sounds == len(numbers["mistakes"]) == wrong > 0
    assert numbers["headline"][0]["value"] == result["test_results"]["test_accuracy"]
    assert overflow <= 0


def test_a_cross_validation_leaves_a_page_with_its_folds(browser, tones, tmp_path):
    config = tiny_config(max_epochs=1)
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)
    result = trainer.cross_validate(2, verbose=False)

    with visit(browser, Path(result.report)) as visited:
        rows = visited.page.eval_on_selector_all(
            "table tr", "all => all.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )

    by_name = {row[0]: row[1:] for row in rows if row}
    for kind, name in (
        ("mean", "mean"),
        ("standard deviation", "std"),
        ("all clips pooled", "pooled"),
    ):
        assert f"{result.summary['accuracy'][name]:.3f}" == by_name[kind][0]
    assert by_name["1"][0] == f"{result.folds[0]['test_accuracy']:.3f}"
    for fold in ("1", "2"):
        titles, _, _, _ = opened(browser, Path(result.run_dir) / f"fold_{fold}" / "report.html")
        assert "Classes" in titles


def test_several_labels_per_clip_lead_with_the_mean_average_precision(browser, tones, tmp_path):
    files = sorted(tones.rglob("*.wav"))
    labels = ["none" if f.parent.name == "low" else f"{f.parent.name};any" for f in files]
    table = pd.DataFrame({"filename": [str(f) for f in files], "category": labels})
    config = tiny_config(max_epochs=2)
    config.data.label_delimiter = ";"
    config.data.background_labels = ["none"]
    trainer = BEATsTrainer.from_dataframe(table, config=config, log_dir=tmp_path)
    result = trainer.train(verbose=False)

    titles, text, _, _ = opened(browser, result.report)

    numbers = json.loads(Path(result.report).with_suffix(".json").read_text())
    assert numbers["headline"][0]["name"] == "Mean average precision"
    assert "Confusions" not in titles
    assert "high" in text
