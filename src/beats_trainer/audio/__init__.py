"""One recording, or a part of it, as mono float32 at 16 kHz. Needs no torch.

file or URL -> [decode -> mono -> resample] -> waveform (S,)
"""

from beats_trainer.audio.formats import AUDIO_EXTENSIONS
from beats_trainer.audio.load import AudioInfo, AudioReader, load_audio, probe_audio
from beats_trainer.audio.remote import is_url
from beats_trainer.audio.waveform import to_waveform

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioInfo",
    "AudioReader",
    "is_url",
    "load_audio",
    "probe_audio",
    "to_waveform",
]
