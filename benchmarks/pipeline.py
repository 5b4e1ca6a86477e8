"""How fast files become stored embeddings, and which stage the time goes into.

    python benchmarks/pipeline.py --esc10 FOLDER --fsdd FOLDER [--network tiny] [--rounds 3] [--json FILE]

Embeds ESC-10 (its 400 clips of 5 s, linked until there are 4,000), FSDD (3,000 clips of half a second) and
an hour in one file (WAV at 44.1 kHz, joined from ESC-10) in windows of 10 s, each round into a new store.
In turns with it, in the same process and with the same number of threads:

- `alone`: soundfile and soxr on the same files, nothing else;
- `reading`: our reading, with all that surrounds it, without a network;
- `old way`: librosa one file after the other, batches padded without lengths, float32, through the same
  network. librosa is no dependency: without it (`pip install librosa`) this row is left out.

Prints hours of sound per minute, and the seconds of each stage: decoding and resampling in CPU seconds of
the threads, the filterbank, the network and writing in seconds of the main thread. `busy` is the share of
the time in which the network or its filterbank runs. All figures are medians over the rounds.

With `--network full` (random weights, full size) choose fewer clips: `--clips 200`.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from beats_trainer import BEATsFeatureExtractor, BEATsModel
from beats_trainer.audio import probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.embeddings.encoder import DEFAULT_WINDOW_S, Encoder
from beats_trainer.embeddings.pieces import TokenGrid, Work, read_pieces
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.loading import POOL_BATCHES, Clip
from beats_trainer.model import Architecture
from beats_trainer.model.fbank import KaldiFbank

TINY = Architecture(
    encoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    embed_dim=32,
)
WINDOW_S = 10.0
BATCH_SIZE = 16


@dataclass(frozen=True)
class Workload:
    """What is embedded: files, as they are or in windows."""

    name: str
    files: list[str]
    window_s: float | None
    hours: float


class Stages:
    """Seconds of each stage: CPU of the thread, or the clock's, beside what is called within."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._within = threading.local()

    def timed(self, stage: str, work: Callable[..., Any], clock: Callable[[], float]) -> Any:
        """Make a function count its seconds."""

        def measured(*args: Any, **options: Any) -> Any:
            outside = getattr(self._within, "seconds", 0.0)
            self._within.seconds = 0.0
            start = clock()
            try:
                return work(*args, **options)
            finally:
                whole = clock() - start
                with self._lock:
                    self.seconds[stage] += whole - self._within.seconds
                self._within.seconds = outside + whole

        return measured


@contextlib.contextmanager
def measured_stages() -> Iterator[Stages]:
    stages = Stages()
    cpu, clock = time.thread_time, time.perf_counter
    places: list[tuple[Any, str, str, Callable[[], float]]] = [
        (soundfile.SoundFile, "__init__", "decode", cpu),
        (soundfile.SoundFile, "seek", "decode", cpu),
        (soundfile.SoundFile, "read", "decode", cpu),
        (soxr, "resample", "resample", cpu),
        (KaldiFbank, "forward", "fbank", clock),
        (Encoder, "encode_batch", "network", clock),
        (StoreWriter, "write_shard", "write", clock),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _, _ in places]
    stream = soxr.ResampleStream

    class TimedStream:  # the class itself cannot be changed
        def __init__(self, *args: Any, **options: Any) -> None:
            inner = stages.timed("resample", stream, cpu)(*args, **options)
            self.resample_chunk = stages.timed("resample", inner.resample_chunk, cpu)

    for owner, name, stage, clock_ in places:
        setattr(owner, name, stages.timed(stage, getattr(owner, name), clock_))
    soxr.ResampleStream = TimedStream
    try:
        yield stages
    finally:
        soxr.ResampleStream = stream
        for owner, name, original in kept:
            setattr(owner, name, original)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds of the process."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def read_alone(load: Workload, num_threads: int) -> None:
    """What soundfile and soxr need at least; a long file in parts of a minute."""

    def read(part: tuple[str, int, int]) -> None:
        file, start, stop = part
        samples, rate = soundfile.read(
            file, start=start, stop=stop, dtype="float32", always_2d=True
        )
        soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE, quality="HQ")

    if load.window_s is None:
        parts = [(file, 0, None) for file in load.files]
    else:
        info = soundfile.info(load.files[0])
        minute = 60 * info.samplerate
        parts = [(load.files[0], start, start + minute) for start in range(0, info.frames, minute)]
    with ThreadPoolExecutor(num_threads) as executor:
        for _ in executor.map(read, parts):  # type: ignore[arg-type]
            pass


def read_ours(load: Workload, num_threads: int) -> None:
    """Our reading, drained."""
    if load.window_s is None:
        clips = [Clip(file) for file in load.files]
    else:
        count = int(3600 * load.hours / load.window_s)
        clips = [
            Clip(load.files[0], load.window_s * index, load.window_s) for index in range(count)
        ]
    grid = TokenGrid.of(TINY, DEFAULT_WINDOW_S)
    for _ in read_pieces(map(Work, clips), grid, num_threads, POOL_BATCHES * BATCH_SIZE):
        pass


def embed_as_before(load: Workload, model: BEATsModel, librosa: Any) -> None:
    """One file after the other, padded to the longest of the batch, and no lengths."""
    with torch.inference_mode():
        for start in range(0, len(load.files), BATCH_SIZE):
            sounds = [
                librosa.load(file, sr=SAMPLE_RATE)[0]
                for file in load.files[start : start + BATCH_SIZE]
            ]
            padded = np.zeros((len(sounds), max(map(len, sounds))), np.float32)
            for row, sound in zip(padded, sounds, strict=True):
                row[: len(sound)] = sound
            model(torch.from_numpy(padded)).tokens.mean(dim=1).numpy()


def measure(load: Workload, model: BEATsModel, arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        import librosa
    except ImportError:
        librosa = None
    threads = arguments.threads or min(8, os.cpu_count() or 1)
    extractor = BEATsFeatureExtractor(
        model, device=arguments.device, batch_size=BATCH_SIZE, num_threads=threads
    )
    rounds: dict[str, list[float]] = defaultdict(list)
    if librosa is not None:
        librosa.load(
            load.files[0], sr=SAMPLE_RATE, duration=1.0
        )  # it loads itself at its first use
    extractor.extract_from_array(np.zeros(SAMPLE_RATE))  # so does torch
    for _ in range(arguments.rounds):
        wall, cpu = timed(lambda: read_alone(load, threads))
        rounds["alone_s"].append(wall)
        rounds["alone_cpu_s"].append(cpu)
        wall, cpu = timed(lambda: read_ours(load, threads))
        rounds["reading_s"].append(wall)
        rounds["reading_cpu_s"].append(cpu)
        with tempfile.TemporaryDirectory() as scratch, measured_stages() as stages:

            def embed(store: str = f"{scratch}/store") -> None:
                extractor.embed_to(
                    load.files, store, load.window_s, progress=False, on_error="raise"
                )

            wall, cpu = timed(embed)
        rounds["wall_s"].append(wall)
        rounds["cpu_s"].append(cpu)
        for stage in ("decode", "resample", "fbank", "network", "write"):
            rounds[f"{stage}_s"].append(stages.seconds[stage])
        rounds["busy"].append((stages.seconds["fbank"] + stages.seconds["network"]) / wall)
        if librosa is not None and load.window_s is None and arguments.old_clips:
            some = Workload(load.name, load.files[: arguments.old_clips], None, 0.0)
            wall, _ = timed(lambda some=some: embed_as_before(some, model, librosa))
            rounds["old_s"].append(wall * len(load.files) / len(some.files))
    result: dict[str, Any] = {name: statistics.median(values) for name, values in rounds.items()}
    return {"workload": load.name, "files": len(load.files), "hours": load.hours, **result}


def workloads(arguments: argparse.Namespace, scratch: Path) -> Iterator[Workload]:
    esc10 = sorted(arguments.esc10.rglob("*.ogg"))
    if not esc10:
        raise SystemExit(f"There is no .ogg file below {arguments.esc10}.")
    for round_ in range(10):
        for file in esc10:
            link = scratch / "esc10" / str(round_) / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    found = {
        "ESC-10": sorted(map(str, (scratch / "esc10").rglob("*.ogg"))),
        "FSDD": sorted(map(str, arguments.fsdd.rglob("*.wav"))) if arguments.fsdd else [],
    }
    for name, files in found.items():
        files = files[: arguments.clips]
        hours = sum(probe_audio(file).duration_s for file in files) / 3600
        if files:
            yield Workload(name, files, None, hours)
    hour = scratch / "hour.wav"
    seconds = round(3600 * arguments.long_hours)
    with soundfile.SoundFile(hour, "w", 44_100, 1, subtype="PCM_16") as out:
        while out.frames < seconds * 44_100:
            for file in esc10:
                out.write(soundfile.read(file, dtype="int16")[0])
                if out.frames >= seconds * 44_100:
                    break
    yield Workload("one file", [str(hour)], WINDOW_S, probe_audio(hour).duration_s / 3600)


def show(result: dict[str, Any]) -> None:
    per_minute = {
        name: result["hours"] / result[f"{name}_s"] * 60
        for name in ("alone", "reading", "wall", "old")
        if f"{name}_s" in result
    }
    print(f"\n{result['workload']}: {result['files']:,} files, {result['hours']:.2f} h")
    print(f"  soundfile and soxr alone     {per_minute['alone']:8.1f} h/min")
    print(
        f"  our reading                  {per_minute['reading']:8.1f} h/min, "
        f"{result['alone_s'] / result['reading_s']:.2f} of these (CPU seconds: "
        f"{result['alone_cpu_s'] / result['reading_cpu_s']:.2f})"
    )
    print(
        f"  embed_to                     {per_minute['wall']:8.1f} h/min, "
        f"{result['wall_s']:.1f} s, network busy {result['busy']:.1%}"
    )
    if "old" in per_minute:
        print(
            f"  old way                      {per_minute['old']:8.1f} h/min, embed_to is "
            f"{result['old_s'] / result['wall_s']:.2f} times as fast"
        )
    stages = ("decode", "resample", "fbank", "network", "write")
    print("  seconds: " + ", ".join(f"{name} {result[f'{name}_s']:.2f}" for name in stages))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--esc10", type=Path, required=True)
    parser.add_argument("--fsdd", type=Path)
    parser.add_argument("--network", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, help="files of a set at most")
    parser.add_argument("--long-hours", type=float, default=1.0)
    parser.add_argument("--old-clips", type=int, default=400, help="clips for the old way; 0: none")
    parser.add_argument("--threads", type=int, help="threads that decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = BEATsModel(TINY if arguments.network == "tiny" else Architecture())
    with tempfile.TemporaryDirectory() as scratch:
        print(
            f"{arguments.network} network on {arguments.device}; {os.cpu_count()} cores, "
            f"{torch.get_num_threads()} threads of torch; load {os.getloadavg()[0]:.1f}"
        )
        results = []
        for load in workloads(arguments, Path(scratch)):
            results.append(measure(load, model, arguments))
            show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
