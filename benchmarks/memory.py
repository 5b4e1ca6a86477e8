"""How much memory a run takes: against the length of a recording, and against the number of files.

    python benchmarks/memory.py [--points 10min 1h 10h 1e3 1e4 1e5] [--modes windows steps whole] [--json FILE]

Each point is a process of its own, with a tiny network; its peak resident memory is what the operating
system says when it has ended. Lengths are one FLAC file of 48 kHz (noise that fades in and out), in windows
of 10 s (`windows`), a row per time step (`steps`), as one clip (`whole`), or searched for events (`detect`).
Numbers of files are WAV files of 0.1 s, as one clip each. The target: 10 h within 500 MB of 10 min.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTHS = {"1min": 1 / 60, "10min": 1 / 6, "1h": 1.0, "10h": 10.0}
COUNTS = {"1e3": 1_000, "1e4": 10_000, "1e5": 100_000}
MODES = ("windows", "steps", "whole", "detect")


def write_recording(path: Path, hours: float) -> None:
    """One minute of sound, again and again."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(60 * 48_000) * 0.1
    minute = (noise * np.sin(np.linspace(0, np.pi, len(noise))) * 32_767).astype(np.int16)
    with soundfile.SoundFile(path, "w", 48_000, 1, subtype="PCM_16") as out:
        for _ in range(round(hours * 60)):
            out.write(minute)


def write_files(folder: Path, count: int) -> None:
    """Tiny files, a thousand to a folder."""
    import numpy as np
    import soundfile

    samples = (np.random.default_rng(0).standard_normal(1_600) * 3_000).astype(np.int16)
    first = folder / "first.wav"
    folder.mkdir()
    soundfile.write(first, samples, 16_000)
    content = first.read_bytes()
    first.unlink()
    for index in range(count):
        if index % 1_000 == 0:
            (folder / f"site_{index // 1_000:03d}").mkdir()
        (folder / f"site_{index // 1_000:03d}" / f"{index:06d}.wav").write_bytes(content)


def run(source: str, mode: str, output: str) -> None:
    """What one process does; says how many rows it made, and its peak memory."""
    import torch

    from beats_trainer import BEATsFeatureExtractor, BEATsForAudioClassification, BEATsModel
    from beats_trainer.model import Architecture, ClassifierHead

    torch.manual_seed(0)
    tiny = Architecture(
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=2,
        embed_dim=32,
    )
    start = time.perf_counter()
    if mode == "detect":
        from beats_trainer import BEATsPredictor

        labels = [f"class {index}" for index in range(20)]
        head = ClassifierHead(tiny.encoder_embed_dim, len(labels))
        classifier = BEATsForAudioClassification(BEATsModel(tiny), head, labels)
        predictor = BEATsPredictor(classifier, device="cpu")
        rows = len(predictor.detect(source, output, progress=False).events)
    else:
        extractor = BEATsFeatureExtractor(BEATsModel(tiny), device="cpu")
        window_s = 10.0 if mode == "windows" else None
        store = extractor.embed_to(
            source, output, window_s, per_step=mode == "steps", progress=False, on_error="raise"
        )
        rows = len(store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "peak_mb": peak, "seconds": time.perf_counter() - start}))


def measure(source: Path, mode: str, scratch: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        command = [sys.executable, __file__, "--run", str(source), mode, f"{output}/out"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    points = (*LENGTHS, *COUNTS)
    parser.add_argument("--points", nargs="+", default=points[1:], choices=points)
    parser.add_argument("--modes", nargs="+", default=MODES[:3], choices=MODES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    results = []
    print(f"{'input':>7} {'mode':>8} {'rows':>8} {'seconds':>8} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for point in arguments.points:
            source = Path(scratch) / (f"{point}.flac" if point in LENGTHS else point)
            if point in LENGTHS:
                write_recording(source, LENGTHS[point])
            else:
                write_files(source, COUNTS[point])
            for mode in arguments.modes if point in LENGTHS else ["whole"]:
                found = measure(source, mode, Path(scratch))
                results.append({"input": point, "mode": mode, **found})
                print(
                    f"{point:>7} {mode:>8} {found['rows']:8,} {found['seconds']:8.1f} "
                    f"{found['peak_mb']:8.0f}",
                    flush=True,
                )
            if source.is_file():
                source.unlink()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
