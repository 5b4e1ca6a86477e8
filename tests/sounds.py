"""Short synthetic recordings for tests, in any format that soundfile or FFmpeg writes."""

from pathlib import Path

import av
import numpy as np
import soundfile
from scipy import signal


def tone(seconds=1.0, frequency=440.0, sample_rate=16_000, seed=0, noise=0.01):
    """A sine with a little seeded noise, shape ``(S,)`` float32, peak about 0.5."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    random = np.random.default_rng(seed)
    sine = 0.5 * np.sin(2 * np.pi * frequency * time)
    return (sine + noise * random.standard_normal(len(time))).astype(np.float32)


def sweep(seconds, sample_rate):
    """A sound that is different at every time, below every Nyquist frequency used here."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    chirp = signal.chirp(time, 100, seconds, 1500)
    return (0.4 * chirp * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * time))).astype(np.float32)


def write_tone(path, seconds=1.0, frequency=440.0, sample_rate=16_000, seed=0, subtype=None):
    """Write a `tone` to a file whose ending says the format; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone(seconds, frequency, sample_rate, seed)
    soundfile.write(path, samples, sample_rate, subtype=subtype)
    return path


def encode(path, samples, sample_rate, codec, bit_rate=None, container=None, **codec_options):
    """Write ``(S,)`` float32 mono with FFmpeg to a file whose ending says the container."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=sample_rate, layout="mono", options=codec_options)
        if bit_rate:
            stream.bit_rate = bit_rate
        encoder = stream.codec_context
        encoder.open()
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        frame.pts = 0  # with times, the encoder's delay is written down where the container can
        fit = av.AudioResampler(
            format=encoder.format.name,
            layout="mono",
            rate=sample_rate,
            frame_size=encoder.frame_size or None,
        )
        for piece in [*fit.resample(frame), *fit.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return Path(path)
