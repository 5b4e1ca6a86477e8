"""Pictures and sounds that a page can carry inside itself.

fbank, waveform -> [PNG bytes, data URL] -> report

Small before faithful: a picture has 48 colours, and a sound of more than a moment is MP3, so that a
dozen clips of 5 s take about 0.7 MB. What the model was given is the file, not these.

Shapes in this file: F frames of 10 ms, S samples.
"""

import base64
import io

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

__all__ = ["audio_data_url", "png_data_url", "spectrogram_png"]

_MAX_WIDTH = 320
_NUM_COLOURS = 48
_MAX_WAV_S = 0.7
# Every eighth of the colour map "magma" by Smith and van der Walt (CC0, bids.github.io/colormap): even
# steps of the value are even steps of lightness, also for the colour-blind and on paper.
_MAGMA = np.array(
    [
        (0x00, 0x00, 0x04),
        (0x1D, 0x11, 0x47),
        (0x51, 0x12, 0x7C),
        (0x82, 0x26, 0x81),
        (0xB7, 0x37, 0x79),
        (0xE7, 0x52, 0x63),
        (0xFC, 0x89, 0x61),
        (0xFE, 0xC4, 0x88),
        (0xFC, 0xFD, 0xBF),
    ],
    dtype=np.float64,
)


def spectrogram_png(
    fbank: NDArray[np.float32], *, width: int | None = None, height: int = 128
) -> bytes:
    """Draw a log-mel filterbank: time from left to right, low frequencies at the bottom.

    The colours span the clip's own range, from its 5th to its 99.7th percentile, so that a quiet clip is
    seen as well as a loud one; they cannot be compared between clips.

    Args:
        fbank: Shape ``(F, M)`` with M mel bands, lowest first; any scale, normalised or not.
        width: Pixels; ``None`` for one per frame, at most 320.
        height: Pixels.

    Returns:
        A PNG file with 48 colours.

    Raises:
        ValueError: If ``fbank`` is not two-dimensional, is empty, or holds NaN or infinity.

    Example:
        >>> spectrogram_png(np.zeros((98, 128), dtype=np.float32))[1:4]
        b'PNG'
    """
    values = np.asarray(fbank, dtype=np.float32)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        what = "NaN or infinity in it" if values.ndim == 2 and values.size else "no such shape"
        raise ValueError(
            f"Expected a filterbank of shape (frames, mel bands) with finite values, got "
            f"{values.shape} with {what}. Pass one clip, without its batch dimension."
        )
    upright = np.ascontiguousarray(values.T[::-1])
    size = (width or min(len(values), _MAX_WIDTH), height)
    # BOX averages where the picture shrinks, and repeats where it grows: it invents nothing.
    scaled = np.asarray(Image.fromarray(upright).resize(size, Image.Resampling.BOX))
    low, high = np.percentile(scaled, [5.0, 99.7])
    span = max(float(high - low), 1e-6)
    levels = np.clip((scaled - low) / span, 0.0, 1.0) * (_NUM_COLOURS - 1)
    picture = Image.fromarray(np.round(levels).astype(np.uint8))
    picture.putpalette(_palette())
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def png_data_url(png: bytes) -> str:
    """Write a PNG as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def audio_data_url(waveform: NDArray[np.float32], sample_rate: int) -> str:
    """Write a sound as a URL that holds it, in a format that every browser plays.

    Up to 0.7 s it is WAV: Chromium 156 refuses to play FLAC that short ("demuxer seek failed"). What is
    longer is MP3 at about 32 kbit/s, a seventh of FLAC for noise; FLAC if this machine's libsndfile writes
    no MP3 (1.1 and later do).

    Args:
        waveform: Shape ``(S,)``, about -1..1; what lies outside is clipped.
        sample_rate: Hz.

    Returns:
        ``data:audio/...;base64,...``.

    Raises:
        ValueError: If ``waveform`` is not one-dimensional, or is empty.

    Example:
        >>> audio_data_url(np.zeros(16000, dtype=np.float32), 16000)[:23]
        'data:audio/mpeg;base64,'
    """
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(
            f"Expected one clip's waveform of shape (samples,), got {samples.shape}. Pass mono sound, "
            "without its batch dimension."
        )
    samples = np.clip(samples, -1.0, 1.0)
    if samples.size <= _MAX_WAV_S * sample_rate:
        kind, data = "wav", _encode(samples, sample_rate, "WAV")
    elif "MP3" in soundfile.available_formats():
        kind, data = "mpeg", _encode(samples, sample_rate, "MP3")
    else:
        kind, data = "flac", _encode(samples, sample_rate, "FLAC")
    return f"data:audio/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encode(samples: NDArray[np.float32], sample_rate: int, container: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=container)  # WAV and FLAC in 16 bit
    return file.getvalue()


def _palette() -> bytes:
    """The colours from dark to light as ``R, G, B, R, ...``."""
    where = np.linspace(0, len(_MAGMA) - 1, _NUM_COLOURS)
    channels = [
        np.interp(where, np.arange(len(_MAGMA)), _MAGMA[:, channel]) for channel in range(3)
    ]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8).tobytes()
