"""What loading a clip costs beside what soundfile and soxr alone take, and a long file in blocks.

    python benchmarks/decode.py [FILES ...] [--rounds 5] [--minutes 30] [--json OUT.json]

Loads each file (patterns allowed; without any, clips of 5 s that it writes itself) with ``load_audio``,
headers and checks included, and, in turns with it, with ``soundfile.read`` and ``soxr.resample``; formats
that soundfile does not decode alike have no bare figure. Then reads a recording of ``--minutes`` that it
writes in each format with an `AudioReader`, in blocks of 60 s, and compares that with loading it whole.
Prints tables (medians).
"""

import argparse
import glob
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from beats_trainer.audio import AudioReader, decode, load_audio, probe_audio

CODECS = {".mp3": "libmp3lame", ".m4a": "aac", ".webm": "libopus", ".wma": "wmav2"}
BARE = (".wav", ".flac", ".ogg")


def write(path: Path, seconds: int, rate: int) -> Path:
    """Write noise, second by second, to a file whose ending says the format."""
    noise = (np.random.default_rng(0).standard_normal((10, rate)) * 0.1).astype(np.float32)
    if path.suffix in BARE:
        with soundfile.SoundFile(path, "w", rate, 1) as sound:
            for second in range(seconds):
                sound.write(noise[second % 10])
        return path
    with av.open(str(path), "w") as output:
        stream = output.add_stream(CODECS[path.suffix], rate=rate, layout="mono")
        stream.bit_rate = 64_000
        encoder = stream.codec_context
        encoder.open()
        fit = av.AudioResampler(
            encoder.format.name, "mono", rate, frame_size=encoder.frame_size or None
        )
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(noise[second % 10][None], "fltp", "mono")
            frame.sample_rate, frame.pts = rate, second * rate
            for piece in fit.resample(frame):
                output.mux(stream.encode(piece))
        for piece in fit.resample(None):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return path


def bare(file: str) -> None:
    """What the libraries need: nothing is checked."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    soxr.resample(mono, rate, 16_000, quality="HQ")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_clips(files: list[str], rounds: int) -> dict[str, float | None]:
    has_bare = Path(files[0]).suffix.lower() in BARE

    def ours() -> None:
        decode._remembered.clear()  # each clip of a data set is met for the first time
        for file in files:
            load_audio(file)

    ours()
    pairs = [
        (timed(ours), timed(lambda: [bare(file) for file in files]) if has_bare else None)
        for _ in range(rounds)
    ]
    ours_s = statistics.median(first for first, _ in pairs) / len(files)
    bare_s = statistics.median(second for _, second in pairs) / len(files) if has_bare else None  # type: ignore[type-var]
    return {
        "load_audio_ms": ours_s * 1e3,
        "bare_ms": bare_s and bare_s * 1e3,
        "ratio": bare_s and bare_s / ours_s,
    }


def measure_blocks(file: Path) -> dict[str, float | bool]:
    info = probe_audio(file)
    whole_s = timed(lambda: load_audio(file))
    blocks = []
    with AudioReader(file) as reader:
        for start_s in range(0, int(info.duration_s), 60):
            blocks.append(timed(lambda start_s=start_s: reader.read(start_s, 60.0)))  # type: ignore[misc]
    return {
        "is_seekable": info.is_seekable,
        "whole_s": whole_s,
        "blocks_s": sum(blocks),
        "early_block_ms": statistics.median(blocks[1:6]) * 1e3,
        "late_block_ms": statistics.median(blocks[-6:-1]) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clips: dict[str, dict[str, float | None]] = {}
    long: dict[str, dict[str, float | bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suffixes = (*BARE, *CODECS)
        patterns = arguments.files or [
            str(write(folder / f"clip{suffix}", 5, 48_000 if suffix == ".webm" else 44_100))
            for suffix in suffixes
        ]
        print(f"{'clips':40} {'load_audio':>10} {'bare':>10} {'ratio':>6}")
        for pattern in patterns:
            files = sorted(glob.glob(pattern, recursive=True))
            label = f"{len(files)} x {Path(pattern).name}"
            found = clips[label] = measure_clips(files * max(1, 20 // len(files)), arguments.rounds)
            texts = [f"{value:.3f}" if value else "-" for value in found.values()]
            print(f"{label:40} {texts[0]:>7} ms {texts[1]:>7} ms {texts[2]:>6}")
        if arguments.minutes:
            print(f"\n{arguments.minutes} min      whole   in blocks   early block   late block")
        for suffix in suffixes if arguments.minutes else ():
            rate = 48_000 if suffix == ".webm" else 44_100
            path = write(folder / f"long{suffix}", 60 * arguments.minutes, rate)
            row = long[suffix] = measure_blocks(path)
            print(
                f"{suffix:6} {row['whole_s']:9.2f} s {row['blocks_s']:9.2f} s "
                f"{row['early_block_ms']:10.1f} ms {row['late_block_ms']:9.1f} ms"
                f"{'' if row['is_seekable'] else '   forward only'}"
            )
            path.unlink()
    if arguments.json:
        arguments.json.write_text(json.dumps({"clips": clips, "blocks": long}, indent=2) + "\n")


if __name__ == "__main__":
    main()
