"""The report opens in a real browser without a network, shows what it was given, and nothing else."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from beats_trainer.reports import html
from beats_trainer.reports.charts import macro_curve, recall_steps
from beats_trainer.reports.environment import hardware, versions
from beats_trainer.reports.html import Figure, Mistake, ReliabilityPoints, Report, write_report
from beats_trainer.reports.pictures import audio_data_url, spectrogram_png
from browser import chromium, visit

HOSTILE = "<script>document.title='owned'</script> \"quoted\" & 🐸"
LABELS = [
    "dog",
    HOSTILE,
    "rain",
    "a very long name of a class that does not fit into one line of a phone",
]


def mistake(number=0, duration_s=5.0):
    """Noise: the clip that compresses worst."""
    random = np.random.default_rng(number)
    num_samples = round(duration_s * 16_000)
    return Mistake(
        file=f"field/{HOSTILE}/recording_{number}.wav",
        start_time=2.5 * number,
        duration_s=duration_s,
        truth="dog",
        predicted=HOSTILE,
        score=0.98,
        waveform=random.normal(0, 0.1, num_samples).astype(np.float32),
        fbank=random.normal(0, 0.5, ((num_samples - 400) // 160 + 1, 128)).astype(np.float32),
    )


def full_report(num_mistakes=2, **changes):
    """A report with every section."""
    history = [
        {
            "epoch": e,
            "train_loss": 2.0 / (e + 1),
            "lr": 1e-3,
            "val_loss": 2.1 / (e + 1),
            "val_f1": e / 9,
        }
        for e in range(8)
    ]
    per_class = [
        {"label": label, "precision": 0.5 + 0.1 * i, "average_precision": ap, "support": 10 * i}
        for i, (label, ap) in enumerate(zip(LABELS, [0.9, 0.3, None, math.nan], strict=True))
    ]
    values = {
        "title": f"Report {HOSTILE}",
        "summary": f"A head was trained on {HOSTILE}.",
        "labels": LABELS,
        "headline": [Figure("accuracy", 0.8312, 0.79, 0.87, HOSTILE), Figure("loss", 1.25)],
        "interval_note": "95 % bootstrap intervals",
        "history": history,
        "monitor": "val_f1",
        "kept_epoch": 5,
        "per_class": per_class,
        "confusion": [[8, 2, 0, 0], [1, 9, 0, 0], [0, 0, 10, 0], [0, 3, 0, 0]],
        "precision_recall": {
            **{label: ([1.0, 0.5, 0.0], [0.5, 1.0, 1.0]) for label in LABELS[:3]},
            LABELS[3]: ([math.nan, math.nan], [0.0, 1.0]),
        },
        "reliability": {
            name: ReliabilityPoints([math.nan, 0.4, 0.9], [math.nan, 0.5, 0.8], [0, 4, 30], 0.08)
            for name in ("before", "after")
        },
        "balance": {
            "train": dict.fromkeys(LABELS, 20),
            "val": dict.fromkeys(LABELS, 5),
            "test": {label: 5 for label in LABELS if label != "rain"},
        },
        "mistakes": [mistake(number) for number in range(num_mistakes)],
        "calibration": {"value": 1.4, "is_at_bound": False},
        "thresholds": dict.fromkeys(LABELS, 0.5),
        "folds": [{"fold": 1, "accuracy": 0.8}, {"fold": 2, "accuracy": 0.9}],
        "fold_summary": {"accuracy": {"mean": 0.85, "std": 0.07, "pooled": 0.84}},
        "configuration": {"seed": 1, "model": {"name": HOSTILE, "lora": {"rank": 8}}},
        "versions": {"torch": "2.13.0"},
        "hardware": {"CPU": "Abacus"},
        "duration_s": 754.2,
        "command": f"beats-trainer train {HOSTILE}",
        "notes": [f"No clip of {HOSTILE}."],
    }
    return Report(**(values | changes))


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report"), full_report())


SECTIONS = [
    "headline", "learning", "folds", "classes", "confusion", "precision-recall", "calibration",
    "thresholds", "mistakes", "balance", "configuration", "origin",
]  # fmt: skip


def test_page_shows_every_section_and_asks_the_network_for_nothing(browser, page_path):
    with visit(browser, page_path) as seen:
        found = seen.page.eval_on_selector_all("section", "all => all.map(one => one.id)")
        dead = seen.page.eval_on_selector_all(
            "nav a",
            "all => all.filter(a => !document.querySelector(a.getAttribute('href'))).length",
        )

    assert found == SECTIONS
    assert dead == 0
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page_path.as_uri()]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_does_not_scroll_sideways(browser, page_path, width, scheme):
    with visit(browser, page_path, width=width, scheme=scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        needed = seen.page.evaluate("document.documentElement.scrollWidth")
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert needed <= width
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_paper_is_white_and_unfolded_whatever_the_screen_is(browser, page_path):
    with visit(browser, page_path, scheme="dark") as seen:
        seen.page.emulate_media(media="print")
        colours = seen.page.evaluate(
            "[document.body, document.querySelector('.notes')].map(e => getComputedStyle(e).backgroundColor)"
        )
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        folded = seen.page.locator("details:not([open])").count()
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        folded_again = seen.page.locator("details:not([open])").count()

    assert colours == ["rgb(255, 255, 255)", "rgb(255, 244, 236)"]
    assert folded == 0
    assert folded_again > 0


def test_names_with_markup_are_shown_as_text_and_never_run(browser, page_path):
    with visit(browser, page_path) as seen:
        title = seen.page.title()
        label = seen.page.text_content("#classes tbody tr:nth-child(2) th")
        scripts = seen.page.eval_on_selector_all("script", "all => all.length")
        file = seen.page.text_content("#mistakes .file")
        hidden = seen.page.get_attribute("#confusion thead th:nth-child(3)", "title")

    assert title == f"Report {HOSTILE}"
    assert label == hidden == HOSTILE
    assert HOSTILE in file
    assert scripts == 1


def test_script_that_got_into_the_page_all_the_same_would_not_run(browser, page_path, tmp_path):
    tampered = tmp_path / "tampered.html"
    text = page_path.read_text(encoding="utf-8")
    tampered.write_text(
        text.replace("</main>", "<script>document.title='owned'</script></main>"), encoding="utf-8"
    )

    with visit(browser, tampered) as seen:
        title = seen.page.title()

    assert title != "owned"
    assert "Content Security Policy" in seen.complaints[0]


def test_a_column_sorts_both_ways_with_missing_numbers_last(browser, page_path):
    def column(page):
        return page.eval_on_selector_all(
            "#classes tbody tr", "all => all.map(row => row.cells[2].textContent)"
        )

    with visit(browser, page_path) as seen:
        button = seen.page.locator("#classes thead th:nth-child(3) button")
        button.click()
        rising, state = (
            column(seen.page),
            seen.page.get_attribute("#classes [aria-sort]", "aria-sort"),
        )
        button.click()
        falling = column(seen.page)

    assert rising == ["0.300", "0.900", "\N{EN DASH}", "\N{EN DASH}"]
    assert falling == ["0.900", "0.300", "\N{EN DASH}", "\N{EN DASH}"]
    assert state == "ascending"


def test_the_matrix_says_what_a_cell_holds(browser, page_path):
    with visit(browser, page_path, width=360) as seen:
        seen.page.click("#confusion .matrix tbody tr:nth-child(1) td:nth-child(3)")
        text = seen.page.text_content("#confusion-readout")

    assert text == f"True dog, predicted {HOSTILE}: 2 of 10 clips (20.0 %)."


def test_a_chosen_class_is_highlighted_among_the_curves(browser, page_path):
    with visit(browser, page_path) as seen:
        seen.page.click(".chip:has-text('dog')")
        chosen = seen.page.get_attribute(".chip:has-text('dog')", "aria-pressed")
        highlighted = seen.page.get_attribute("path.on", "data-curve")
        seen.page.uncheck(".all-curves")
        visible = seen.page.locator("path.thin:visible").count()

    assert (chosen, highlighted, visible) == ("true", "0", 0)


@pytest.mark.parametrize("duration_s", [0.2, 5.0])  # WAV, MP3
def test_a_mistake_can_be_heard(browser, tmp_path, duration_s):
    path = write_report(tmp_path, Report("t", "s", mistakes=[mistake(duration_s=duration_s)]))

    with visit(browser, path) as seen:
        heard = seen.page.evaluate(
            """() => new Promise((done, fail) => {
              const audio = document.querySelector("audio");
              audio.muted = true;
              audio.onerror = () => fail(audio.error.message);
              audio.onended = () => done(audio.duration);
              audio.playbackRate = 4;
              audio.play();
            })"""
        )

        where = seen.page.eval_on_selector(".cursor", "one => parseFloat(one.style.left)")

    assert heard == pytest.approx(duration_s, abs=0.08)
    assert where > 50  # percent of the picture: the cursor followed
    assert seen.complaints == []


def test_a_dozen_mistakes_of_noise_stay_under_a_megabyte(tmp_path):
    path = write_report(tmp_path, full_report(num_mistakes=12))

    assert path.stat().st_size < 1_000_000


def test_a_long_sound_is_cut_and_the_page_says_so(tmp_path):
    path = write_report(tmp_path, Report("t", "s", mistakes=[mistake(duration_s=17.0)]))

    assert "0.0 s to 17.0 s; its first 15.0 s here" in path.read_text(encoding="utf-8")


def test_only_title_and_summary_give_a_page_without_empty_sections(tmp_path):
    path = write_report(tmp_path / "new" / "folder", Report("t", "s"))

    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<section id="([\w-]+)"', text) == ["origin"]
    assert not re.search(
        r"\b(None|nan|Undefined)\b", text.split("</style>")[1].split("<script>")[0]
    )


def test_json_holds_the_same_numbers_and_is_strict(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    write_report(tmp_path, full_report())

    values = json.loads(
        (tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse
    )
    assert values["headline"][0] == {
        "name": "accuracy", "value": 0.8312, "low": 0.79, "high": 0.87, "note": HOSTILE,
    }  # fmt: skip
    assert [row["average_precision"] for row in values["per_class"]] == [0.9, 0.3, None, None]
    assert values["confusion"][3] == [0, 3, 0, 0]
    assert values["mistakes"][1]["start_time"] == 2.5
    assert set(values) - {"precision_recall_macro"} == {f.name for f in dataclasses.fields(Report)}


def test_numbers_that_are_not_finite_show_as_a_dash(tmp_path):
    history = [
        {"epoch": 0, "train_loss": math.inf, "val_f1": math.nan},
        {"epoch": 1, "train_loss": 1.0, "val_f1": 0.5},
        {"epoch": 2, "train_loss": 0.5},
    ]
    report = Report("t", "s", headline=[Figure("mAP", math.nan)], history=history, monitor="val_f1")

    body = write_report(tmp_path, report).read_text(encoding="utf-8").split("<main>")[1]

    assert '<div class="figure-value">\N{EN DASH}</div>' in body
    assert not re.search(r"[\"\s>](nan|inf)[\"\s<]", body.split("<script>")[0])


def test_a_file_name_that_is_not_text_does_not_break_the_report(tmp_path):
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    path = write_report(
        tmp_path, Report("t", "s", mistakes=[dataclasses.replace(mistake(0, 0.5), file=name)])
    )

    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert r"caf\udce9.wav" in path.read_text(encoding="utf-8")
    assert values["mistakes"][0]["file"] == name


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path, Report("old", "s"))

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(html.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, Report("new", "s"))

    assert "<h1>old</h1>" in path.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_matrix_of_very_many_classes_is_cut_to_the_confused_ones_and_says_so(tmp_path):
    labels = [f"class {i}" for i in range(80)]
    confusion = np.diag(np.full(80, 5))
    confusion[70, 75] = 3

    path = write_report(tmp_path, Report("t", "s", labels=labels, confusion=confusion.tolist()))

    text = path.read_text(encoding="utf-8")
    assert "shows the 60 classes of 80" in text
    assert re.search(
        r'<th scope="row" class="label">class 70</th><td class="label text">class 75', text
    )
    assert len(json.loads((tmp_path / "report.json").read_text())["confusion"]) == 80


def test_a_class_without_clips_stands_out_only_where_the_split_has_others(tmp_path):
    balance = {"train": {"dog": 3, "cat": 0}, "val": {"dog": 1, "cat": 1}, "test": {}}

    text = write_report(tmp_path, Report("t", "s", balance=balance)).read_text(encoding="utf-8")

    assert text.count('class="none"') == 1
    assert 'Without clips in a split: <span class="label">cat</span>.' in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "multiple"}, "Expected the task 'single' or 'multi', got 'multiple'"),
        ({"confusion": [[1, 2]]}, "confusion matrix of 4 rows of 4 counts"),
        ({"precision_recall": {"dog": ([1.0], [0.5, 1.0])}}, "as many recalls as precisions"),
        ({"reliability": {"before": ReliabilityPoints([0.5], [], [1], 0.1)}}, "count per bin"),
        ({"history": [{"train_loss": 1.0}]}, "Expected 'epoch' in every row of history"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, full_report(**changes))

    assert list(tmp_path.iterdir()) == []


def test_area_under_the_macro_curve_is_the_mean_of_the_average_precisions():
    from sklearn.metrics import average_precision_score, precision_recall_curve

    random = np.random.default_rng(0)
    curves, expected = {}, []
    for name in range(5):
        truth = random.random(200) < 0.3
        scores = random.normal(size=200) + truth
        precision, recall, _ = precision_recall_curve(truth, scores)
        curves[name] = recall_steps(recall, precision, max_points=1000)
        expected.append(average_precision_score(truth, scores))

    grid, mean = macro_curve(curves)

    assert np.mean(mean[1:]) == pytest.approx(np.mean(expected), abs=0.005)
    assert (grid[0], grid[-1]) == (0.0, 1.0)


def test_a_long_curve_is_thinned_with_both_ends():
    recall, precision = recall_steps(np.linspace(1, 0, 5000), np.linspace(0.2, 1, 5000), 200)

    assert len(recall) == len(precision) == 200
    assert (recall[0], recall[-1], precision[0], precision[-1]) == (0.0, 1.0, 1.0, 0.2)


def test_spectrogram_has_time_from_left_to_right_and_low_bands_at_the_bottom(tmp_path):
    fbank = np.zeros((100, 128), dtype=np.float32)
    fbank[:50, :64] = 1.0  # the first half sounds low

    (tmp_path / "picture.png").write_bytes(spectrogram_png(fbank))
    light = np.asarray(Image.open(tmp_path / "picture.png").convert("L")) > 128

    assert light.shape == (128, 100)
    assert light[64:, :50].all()
    assert light.sum() == 64 * 50


@pytest.mark.parametrize(
    "fbank", [np.zeros((0, 128)), np.zeros((2, 3, 4)), np.full((5, 128), np.nan)]
)
def test_a_filterbank_that_cannot_be_drawn_is_refused(fbank):
    with pytest.raises(ValueError, match="Expected a filterbank of shape"):
        spectrogram_png(fbank)


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros((1, 100))])
def test_a_sound_that_is_not_one_mono_clip_is_refused(waveform):
    with pytest.raises(ValueError, match="one clip's waveform"):
        audio_data_url(waveform, 16_000)


def test_environment_is_described_without_names_of_the_machine_or_its_user():
    import getpass
    import platform

    facts = hardware() | versions()

    assert {"cores", "operating system", "python", "torch", "beats_trainer"} <= set(facts)
    assert all(isinstance(value, str) and value for value in facts.values())
    assert platform.node() not in " ".join(facts.values()).split()
    assert getpass.getuser() not in " ".join(facts.values()).split()


def test_mean_of_thinned_curves_still_has_the_area_of_the_map(tmp_path):
    from sklearn.metrics import average_precision_score, precision_recall_curve

    random = np.random.default_rng(0)
    curves, expected = {}, []
    for number in range(100):  # each is drawn with 50 points
        truth = random.random(2000) < 0.1
        scores = random.normal(size=2000) + truth
        precision, recall, _ = precision_recall_curve(truth, scores)
        curves[str(number)] = (recall, precision)
        expected.append(average_precision_score(truth, scores))

    write_report(tmp_path, Report("t", "s", precision_recall=curves))

    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    mean = np.mean(values["precision_recall_macro"]["precision"][1:])
    assert mean == pytest.approx(np.mean(expected), abs=0.003)
