"""The same sound in every format that is read."""

import pytest
import soundfile

from sounds import encode, sweep

# File, who writes it, what it is asked for. The native AAC encoder is told to leave its synthetic noise
# out, because that is another one wherever a decoder starts; `with_noise.m4a` has it.
CONTAINERS = [
    ("a.wav", soundfile, None),
    ("a.flac", soundfile, None),
    ("a.ogg", soundfile, "VORBIS"),
    ("a.opus", soundfile, "OPUS"),
    ("a.mp3", soundfile, None),
    ("a.aiff", soundfile, None),
    ("a.au", soundfile, None),
    ("a.caf", soundfile, None),
    ("a.rf64", soundfile, None),
    ("a.w64", soundfile, None),
    ("gsm.wav", soundfile, "GSM610"),
    ("adpcm.wav", soundfile, "IMA_ADPCM"),
    ("a.m4a", "aac", {"aac_pns": "0"}),
    ("with_noise.m4a", "aac", {}),
    ("index_first.m4a", "aac", {"aac_pns": "0", "container": {"movflags": "faststart"}}),
    (
        "in_fragments.mp4",
        "aac",
        {"aac_pns": "0", "container": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    ("lossless.m4a", "alac", {}),
    ("a.aac", "aac", {"aac_pns": "0"}),
    ("a.mka", "aac", {"aac_pns": "0"}),
    ("a.webm", "libopus", {}),
    ("ffmpeg.opus", "libopus", {}),
    ("ffmpeg.mp3", "libmp3lame", {}),
    ("no_count.mp3", "libmp3lame", {"container": {"write_xing": "0"}}),
    ("a.mp2", "mp2", {}),
    ("a.wma", "wmav2", {}),
    ("a.wv", "wavpack", {}),
]


@pytest.fixture(scope="module", params=CONTAINERS, ids=lambda item: item[0])
def encoded(request, tmp_path_factory):
    name, writer, options = request.param
    path = tmp_path_factory.mktemp("encoded") / name
    rate = {"gsm.wav": 8_000}.get(name, 48_000 if name.endswith(("opus", "webm")) else 44_100)
    samples = sweep(6.0, rate)
    if writer is soundfile:
        container = {".opus": "OGG", ".rf64": "RF64"}.get(path.suffix)
        soundfile.write(path, samples, rate, format=container, subtype=options)
    else:
        is_lossy = writer in ("aac", "libopus", "libmp3lame", "mp2", "wmav2")
        encode(path, samples, rate, writer, bit_rate=128_000 if is_lossy else None, **options)
    return path, samples, rate
