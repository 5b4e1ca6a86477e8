"""The extractor: the document's calls, the old library's, and shapes that can be relied on."""

import numpy as np
import pytest
import torch

from beats_trainer import BEATsFeatureExtractor, BEATsModel
from beats_trainer.errors import AudioError
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from sounds import tone, write_tone

D = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_microsoft_checkpoint(folder / "model.pt", tiny_architecture())


@pytest.fixture(scope="module")
def extractor(checkpoint):
    return BEATsFeatureExtractor(model_path=checkpoint, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    return [
        write_tone(folder / f"{i}.{suffix}", seconds=0.3 + 0.5 * i, sample_rate=rate, seed=i)
        for i, (suffix, rate) in enumerate([("wav", 16_000), ("mp3", 44_100), ("flac", 8_000)])
    ]


def test_the_documents_calls_give_the_documents_shapes(extractor, files):
    single = extractor.extract_from_file(str(files[0]))
    several = extractor.extract_from_files([str(file) for file in files])

    assert single.shape == (D,)
    assert several.shape == (3, D)
    assert single.dtype == several.dtype == np.float32
    np.testing.assert_allclose(several[0], single, atol=2e-5)
    assert several.mean(axis=0).shape == (D,)


def test_a_path_an_unloaded_name_and_a_loaded_model_are_all_models(checkpoint, files, extractor):
    expected = extractor.extract_from_file(files[0])

    for model in (str(checkpoint), BEATsModel.from_pretrained(checkpoint)):
        other = BEATsFeatureExtractor(model, "cpu", precision="float32")
        np.testing.assert_array_equal(other.extract_from_file(files[0]), expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "bands", "cls", "none"])
def test_every_pooling_has_its_shape(checkpoint, files, pooling):
    extractor = BEATsFeatureExtractor(checkpoint, "cpu", pooling=pooling)

    single = extractor.extract_from_file(files[1])
    several = extractor.extract_from_files(files)

    if pooling == "none":
        num_tokens = 8 * ((1 + (12_800 - 400) // 160) // 16)
        assert single.shape == (num_tokens, D)
        assert [len(tokens) for tokens in several] != [len(single)] * 3
    else:
        width = 8 * D if pooling == "bands" else D
        assert single.shape == (width,)
        assert several.shape == (3, width)
        assert extractor.get_feature_dim() == width


def test_layers_are_chosen_and_all_of_them_returned(checkpoint, files, extractor):
    every = extractor.extract_from_files(files, return_all_layers=True)

    assert every.shape == (3, 3, D)
    for layer in range(3):
        single = BEATsFeatureExtractor(checkpoint, "cpu", layer=layer, precision="float32")
        np.testing.assert_allclose(single.extract_from_files(files), every[:, layer], atol=1e-6)


def test_embeddings_have_unit_length_only_if_asked(extractor, files):
    raw = extractor.extract_from_files(files)
    unit = extractor.extract_from_files(files, normalize=True)

    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 0.1).all()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


def test_arrays_of_any_kind_are_the_same_sound(extractor):
    samples = tone(1.0)
    expected = extractor.extract_from_array(samples)

    assert expected.shape == (D,)
    integers = np.round(samples * 32767).astype(np.int16)
    np.testing.assert_allclose(extractor.extract_from_array(integers), expected, atol=1e-2)
    stereo = np.stack([samples, samples])
    np.testing.assert_allclose(extractor.extract_from_array(stereo), expected, atol=1e-5)
    tensor = torch.from_numpy(samples)
    np.testing.assert_array_equal(extractor.extract_from_array(tensor), expected)


def test_other_rates_are_resampled(extractor):
    slow = extractor.extract_from_array(tone(1.0, sample_rate=48_000, noise=0), sample_rate=48_000)
    direct = extractor.extract_from_array(tone(1.0, noise=0))

    np.testing.assert_allclose(slow, direct, atol=0.05)


def test_a_batch_is_several_clips(extractor):
    batch = np.stack([tone(0.8, seed=seed) for seed in range(4)])

    for form in (batch, torch.from_numpy(batch), list(batch)):
        features = extractor.extract_from_batch(form)
        assert features.shape == (4, D)
        np.testing.assert_allclose(features[2], extractor.extract_from_array(batch[2]), atol=2e-5)
    assert extractor.extract_from_batch([tone(0.5), tone(1.5)]).shape == (2, D)
    with pytest.raises(ValueError, match=r"\(clips, samples\)"):
        extractor.extract_from_batch(tone(0.5))


def test_extract_features_has_one_row_per_clip(checkpoint, extractor):
    assert extractor.extract_features(tone(0.8)).shape == (1, D)
    assert extractor.extract_features(np.stack([tone(0.8)] * 3)).shape == (3, D)
    assert extractor.extract_features(torch.zeros(2, 8000), return_all_layers=True).shape == (
        2,
        3,
        D,
    )
    tokens = BEATsFeatureExtractor(checkpoint, "cpu", pooling="none")
    assert tokens.extract_features(np.zeros((2, 8000))).shape == (2, 24, D)
    with pytest.raises(TypeError, match="None"):
        extractor.extract_features(None)
    with pytest.raises(AudioError, match="no samples"):
        extractor.extract_features(np.zeros(0))


def test_a_bad_file_is_raised_or_skipped(extractor, files, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"")

    with pytest.raises(AudioError, match=r"bad\.wav.*0 bytes"):
        extractor.extract_from_files([files[0], bad, files[1]])
    result = extractor.extract_from_files([files[0], bad, files[1]], on_error="skip")

    assert result.features.shape == (2, D)
    assert result.files == [str(files[0]), str(files[1])]
    assert (result.failures[0].index, result.failures[0].file) == (1, str(bad))


def test_one_path_and_several_are_not_mixed_up(extractor, files):
    with pytest.raises(TypeError, match="use extract_from_file for one"):
        extractor.extract_from_files(str(files[0]))
    with pytest.raises(TypeError, match="extract_from_files"):
        extractor.extract_from_file([files[0]])
    assert extractor.extract_from_files([]).shape == (0, D)


def test_options_are_checked_before_the_model_is_looked_for():
    with pytest.raises(ValueError, match="Unknown pooling"):
        BEATsFeatureExtractor("no/such/model.pt", pooling="median")
    with pytest.raises(ValueError, match="Unknown device"):
        BEATsFeatureExtractor("no/such/model.pt", device="quantum")
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        BEATsFeatureExtractor("no/such/model.pt")


def test_a_layer_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(ValueError, match="no layer 3"):
        BEATsFeatureExtractor(checkpoint, "cpu", layer=3)


def test_what_is_loaded_can_be_asked(extractor, checkpoint):
    info = extractor.get_model_info()

    assert extractor.get_feature_dim() == info["feature_dim"] == D
    assert info["model_path"] == str(checkpoint)
    assert (info["num_layers"], info["attention_heads"], info["device"]) == (2, 4, "cpu")


def test_a_table_of_windows_covers_the_recording_and_knows_its_recipe(extractor, files, tmp_path):
    table = extractor.embed(files, window_s=0.5, hop_s=0.25)

    rows = table.to_pandas()
    for file, seconds in zip(files, [0.3, 0.8, 1.3], strict=True):
        mine = rows[rows["file"] == str(file)]
        assert mine["start_time"].tolist() == [0.25 * i for i in range(len(mine))]
        assert mine["end_time"].iloc[-1] == pytest.approx(seconds, abs=0.05)
        assert ((mine["end_time"] - mine["start_time"]) <= 0.5 + 1e-9).all()
    np.testing.assert_allclose(
        table.embeddings[0], extractor.extract_from_file(files[0]), atol=2e-5
    )
    assert table.recipe["window_s"] == 0.5
    assert len(table.recipe["weights_sha256"]) == 64
    assert table.recipe["precision"] == "float32"
    assert table.recipe["attention_window_s"] == 30.0


def test_without_windows_a_table_has_a_row_per_file(extractor, files):
    table = extractor.embed(files)

    assert table.file == [str(file) for file in files]
    np.testing.assert_allclose(table.embeddings, extractor.extract_from_files(files), atol=2e-5)


def test_a_file_is_in_the_table_as_a_whole_or_not_at_all(extractor, files, tmp_path):
    import soundfile

    samples = tone(2.0)
    samples[30_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")

    table = extractor.embed([files[0], tmp_path / "nan.wav"], window_s=0.5, on_error="skip")

    assert set(table.file) == {str(files[0])}
    assert [failure.file for failure in table.failures] == [str(tmp_path / "nan.wav")]


@pytest.mark.parametrize("options", [{"hop_s": 1.0}, {"window_s": 0}, {"window_s": 1, "hop_s": 2}])
def test_windows_that_make_no_sense_are_refused(extractor, files, options):
    with pytest.raises(ValueError, match=r"hop_s|window_s"):
        extractor.embed(files, **options)


def test_field_recordings_of_every_kind_are_embedded_or_named(extractor, shared_data):
    files = sorted((shared_data / "field").iterdir())

    result = extractor.extract_from_files(files, on_error="skip")

    assert [failure.file.rsplit("/", 1)[-1] for failure in result.failures] == ["empty_2c.wav"]
    assert result.features.shape == (len(files) - 1, D)
    assert np.isfinite(result.features).all()
