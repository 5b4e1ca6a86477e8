"""Sounds that a tiny network learns in seconds: each class is a tone of its own pitch, in noise."""

from pathlib import Path

import numpy as np
import soundfile

from beats_trainer.config import Config, DataConfig, ModelConfig, TrainingConfig

PITCHES = {"high": 3000.0, "low": 250.0, "middle": 900.0}

TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 2,
    "embed_dim": 16,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 32,
    "max_distance": 40,
}


def tone(pitch, seed, duration_s=0.4, sample_rate=16000):
    rng = np.random.default_rng(seed)
    times = np.arange(round(duration_s * sample_rate)) / sample_rate
    wave = 0.3 * np.sin(2 * np.pi * (pitch * times + rng.random()))
    return (wave + 0.03 * rng.standard_normal(len(times))).astype(np.float32)


def write_tones(folder, num_clips=10, pitches=PITCHES):
    """Write ``folder/CLASS/clip_N.wav``, of lengths that differ."""
    for label, pitch in pitches.items():
        place = Path(folder) / label
        place.mkdir(parents=True, exist_ok=True)
        for number in range(num_clips):
            wave = tone(pitch, number, duration_s=0.3 + 0.02 * (number % 5))
            soundfile.write(place / f"clip_{number}.wav", wave, 16000)
    return Path(folder)


def tiny_config(**training):
    """A config that trains a tiny network from scratch, on the CPU, in a second or two."""
    settings = {"max_epochs": 2, "device": "cpu", "precision": "float32"} | training
    return Config(
        data=DataConfig(
            train_split=0.6, val_split=0.2, test_split=0.2, batch_size=8, num_workers=0
        ),
        model=ModelConfig(train_from_scratch=True, dropout_rate=0.0, **TINY),
        training=TrainingConfig(**settings),
    )


def resolved_training(**training):
    """Training settings with nothing left open, as the functions that fit take them."""
    return Config(training=TrainingConfig(**training)).resolved().training


def head_config(model_path, **training):
    """A config that fits a head on a frozen encoder."""
    config = tiny_config(**training)
    config.model = ModelConfig(model_path=str(model_path))
    return config
