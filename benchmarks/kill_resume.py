"""Whether a run that is killed at any moment ends with the rows of one that never was.

    python benchmarks/kill_resume.py [--rounds 50] [--clips FOLDER] [--only embed-windows ...] [--seed 0]

A round starts a real ``beats-trainer embed`` or ``detect`` in a process of its own, on short clips, a long
recording, an unreadable and an empty file, kills it (SIGKILL) at a random moment of its work, and starts the
same command again, with another moment, until it ends by itself. Then the rows (file, times, every bit of
the vectors, their order), the list of failures and, for ``detect``, the events must be those of an unbroken
run; and after each kill, what the network had been given and the store did not have must be at most a shard.

The network is tiny and shards are small, so that a round takes seconds. A moment is a number of windows that
the network was given since the run began, anywhere in the work or at its end, and some milliseconds more:
so a busy machine changes nothing, and no kill is spent on loading torch.
"""

import argparse
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

ROWS_PER_SHARD = 64
WINDOWS_PER_SHARD = {"embed-steps": 16}
"""Where it is not as many: 12 rows a window make it one batch."""
_COUNTERS = np.dtype([("begun", "<i8"), ("windows", "<i8")])

MODES: dict[str, list[str]] = {
    "embed-windows": ["embed", "--window", "1", "--hop", "0.25"],
    "embed-steps": ["embed", "--window", "2", "--per-step", "--layers", "1,2"],
    "embed-one-file": ["embed", "--window", "0.5", "--hop", "0.25", "--dtype", "float16"],
    "detect": [
        "detect",
        "--window",
        "1",
        "--hop",
        "0.5",
        "--threshold",
        "0.34",
        "--formats",
        "csv",
    ],
}
"""Commands, without inputs, output and model. Where ``one-file`` is in the name, the output is one."""


def run_counted(counters: str, arguments: list[str]) -> int:
    """In the process that is killed: the command line, which counts what it encodes where a kill leaves it."""
    from beats_trainer.cli import main
    from beats_trainer.embeddings.encoder import Encoder
    from beats_trainer.embeddings.store_writer import StoreWriter
    from beats_trainer.feature_extractor import BEATsFeatureExtractor
    from beats_trainer.predictor import BEATsPredictor

    for method in (BEATsFeatureExtractor.embed_to, BEATsPredictor.detect):
        assert method.__kwdefaults__ is not None
        method.__kwdefaults__["rows_per_shard"] = ROWS_PER_SHARD
    with open(counters, "r+b") as file:
        memory = mmap.mmap(file.fileno(), _COUNTERS.itemsize)
    counts = np.frombuffer(memory, _COUNTERS)[0:1]
    encode, opened = Encoder.encode_batch, StoreWriter.__init__

    def counted_encode(self: Any, waveforms: Any) -> Any:
        counts["windows"] += len(waveforms)  # before: a batch in work counts as computed
        return encode(self, waveforms)

    def counted_open(self: Any, *arguments: Any, **options: Any) -> None:
        counts["begun"] = 1
        opened(self, *arguments, **options)

    Encoder.encode_batch = counted_encode  # type: ignore[method-assign]
    StoreWriter.__init__ = counted_open  # type: ignore[method-assign]
    return main(arguments)


@dataclass
class Attempt:
    """One process: how it ended, and how many windows its network was given."""

    code: int
    windows: int
    messages: str


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after the network was given so many windows."""

    windows: int
    seconds: float

    @classmethod
    def draw(cls, chance: random.Random, num_windows: int, num_left: int) -> "Moment":
        """Anywhere in the work, or in what comes after the last window; often enough too late to kill."""
        if chance.random() < 0.3:
            return cls(num_left, chance.uniform(0, 0.3))
        return cls(int(chance.uniform(0, 1.3) * num_windows), chance.uniform(0, 0.05))


def attempt(arguments: list[str], counters: Path, moment: Moment | None) -> Attempt:
    """Run the command; kill it at the moment, if it is still there."""
    counters.write_bytes(bytes(_COUNTERS.itemsize))
    command = [sys.executable, __file__, "--counted", str(counters), *arguments]
    log = counters.with_suffix(".log")
    with log.open("wb") as messages:
        process = subprocess.Popen(command, stdout=messages, stderr=messages)
    if moment is not None:
        while process.poll() is None:
            counts = _read(counters)
            if counts["begun"] and counts["windows"] >= moment.windows:
                time.sleep(moment.seconds)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
    process.wait()
    windows = int(_read(counters)["windows"])
    return Attempt(process.returncode, windows, log.read_text(errors="replace"))


def _read(counters: Path) -> Any:
    return np.frombuffer(counters.read_bytes(), _COUNTERS)[0]


def windows_stored(store: Path) -> int:
    """Windows that the shards account for, and that the network therefore need not see again."""
    from beats_trainer.embeddings.parquet import read_footer
    from beats_trainer.embeddings.shards import entries_of, list_shards

    entries = [entry for shard in list_shards(store) for entry in entries_of(read_footer(shard))]
    return sum(entry.stop - entry.first for entry in entries)


def place_of_kill(store: Path, output: Path, windows: int, stored_before: int) -> str:
    """Say in which part of the work a kill fell, by what it left."""
    if any(store.glob("shards/.*.part")):
        return "while a shard was written"
    if any(output.parent.glob(f".{output.name}*.part")):
        return "while the shards were merged"
    if any(path.name.startswith(".") and path.name.endswith(".part") for path in store.glob(".*")):
        return "while another file was written"
    if windows == 0 and stored_before == 0:
        return "before the first batch of a new store"
    if windows == 0:
        return "while a store was taken up again, or nothing was left to encode"
    return "while windows were encoded"


def make_inputs(folder: Path, clips: Path | None) -> None:
    """Short clips of odd lengths, five minutes at 48 kHz, and what no reader can read."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    if clips is None:
        for number in range(150):
            sound = 0.1 * chance.standard_normal(chance.integers(1500, 18_000))
            soundfile.write(folder / f"clip {number:03}.wav", sound, 8_000)
    else:
        for file in sorted(clips.glob("*.wav"))[::20]:
            (folder / file.name).write_bytes(file.read_bytes())
    time_s = np.arange(300 * 48_000) / 48_000
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 5 * time_s) * time_s)
    soundfile.write(
        folder / "5 minutes.flac", sweep + 0.02 * chance.standard_normal(len(sweep)), 48_000
    )
    (folder / "3 unreadable.wav").write_bytes(b"RIFF of nothing" * 40)
    (folder / "z empty.wav").touch()


def make_models(folder: Path) -> dict[str, Path]:
    """A tiny network with random weights, and the same with a head of three classes."""
    import torch

    from beats_trainer import BEATsForAudioClassification, BEATsModel
    from beats_trainer.model import Architecture, BEATs, ClassifierHead

    torch.manual_seed(0)
    size = {
        "embed_dim": 24,
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
    }
    shape = Architecture(**size, encoder_attention_heads=4, conv_pos=16)  # type: ignore[arg-type]
    head = ClassifierHead(32, 3)
    classifier = BEATsForAudioClassification(BEATs(shape), head, ["dog", "owl", "rain"])
    return {
        "embed": BEATsModel(shape).save_pretrained(folder / "encoder"),
        "detect": classifier.save_pretrained(folder / "classifier"),
    }


@dataclass
class Outcome:
    """What a command left: to be the same to the last bit, whatever happened on the way."""

    rows: list[tuple[Any, ...]]
    failures: list[tuple[Any, ...]]
    events: bytes

    @classmethod
    def of(cls, output: Path, store: Path) -> "Outcome":
        """Read it back."""
        from beats_trainer.embeddings import open_store

        opened = open_store(store if store.is_dir() else output)
        rows = [
            (
                row["file"],
                row["start_time"],
                row["end_time"],
                *(row[c].tobytes() for c in opened.columns),
            )
            for row in opened
        ]
        failures = opened.failures.astype(object).where(opened.failures.notna(), None)
        events = output / "detections.csv"
        return cls(
            rows,
            sorted(failures.itertuples(index=False, name=None)),
            events.read_bytes() if events.is_file() else b"",
        )


@dataclass
class Figures:
    """What is reported."""

    rounds: int = 0
    kills: int = 0
    equal: int = 0
    most_lost: int = 0
    lost: list[int] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)


def play_round(
    command: Callable[[Path], list[str]],
    output: Path,
    store: Path,
    expected: Outcome,
    num_windows: int,
    most_lost: int,
    chance: random.Random,
    figures: Figures,
) -> None:
    """Kill and start again until the command ends by itself; add to the figures."""
    counters = output.with_suffix(".counters")
    while True:
        before = windows_stored(store)
        moment = Moment.draw(chance, num_windows, max(0, num_windows - before))
        ended = attempt(command(output), counters, moment)
        if ended.code != -signal.SIGKILL:
            break
        figures.kills += 1
        figures.places[place_of_kill(store, output, ended.windows, before)] += 1
        if store.is_dir():  # else it was merged, and was being removed
            lost = ended.windows - (windows_stored(store) - before)
            figures.lost.append(lost)
            figures.most_lost = max(figures.most_lost, lost)
            assert lost <= most_lost, f"{lost} windows were computed in vain"
    assert ended.code == 3, ended.messages  # two of the files cannot be read
    figures.rounds += 1
    got = Outcome.of(output, store)
    keys = [row[:3] for row in got.rows]
    assert len(set(keys)) == len(keys), "a row is there twice"
    assert got.rows == expected.rows, "the rows are not those of the unbroken run"
    assert got.failures == expected.failures, "the failures are not those of the unbroken run"
    assert got.events == expected.events, "the events are not those of the unbroken run"
    figures.equal += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clips", type=Path, help="folder of short WAV files; every 20th is taken")
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the network is too small for more
    chance = random.Random(arguments.seed)
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        make_inputs(place / "recordings", arguments.clips)
        models = make_models(place)
        for number, mode in enumerate(arguments.only):
            shard = WINDOWS_PER_SHARD.get(mode, ROWS_PER_SHARD)
            rounds = len(range(number, arguments.rounds, len(arguments.only)))
            name, *options = MODES[mode]
            model = models[name]

            def command(output: Path, name=name, options=options, model=model) -> list[str]:  # type: ignore[no-untyped-def]
                common = ["-o", str(output), "--model", str(model), "--device", "cpu"]
                precision = ["--precision", "float32"]
                return [name, str(place / "recordings"), *common, *precision, *options]

            def places(label: str, mode=mode) -> tuple[Path, Path]:  # type: ignore[no-untyped-def]
                folder = place / f"{mode}-{label}"
                folder.mkdir()
                if "one-file" in mode:
                    return folder / "out.parquet", folder / "out.parquet.parts"
                return folder / "out", folder / "out" / ("scores" if mode == "detect" else "")

            output, store = places("unbroken")
            unbroken = attempt(command(output), output.with_suffix(".counters"), None)
            assert unbroken.code == 3, unbroken.messages
            expected = Outcome.of(output, store)
            figures, start = Figures(), time.perf_counter()
            for round_ in range(rounds):
                output, store = places(str(round_))
                play_round(
                    command, output, store, expected, unbroken.windows, shard, chance, figures
                )
                print(
                    f"{mode} {round_ + 1}/{rounds}: {figures.kills} kills",
                    file=sys.stderr,
                    flush=True,
                )
            table.append(
                {
                    "command": mode,
                    "rows": len(expected.rows),
                    "rounds": figures.rounds,
                    "kills": figures.kills,
                    "equal": figures.equal,
                    "windows": unbroken.windows,
                    "a_shard": shard,
                    "most_lost": figures.most_lost,
                    "mean_lost": round(float(np.mean(figures.lost or [0])), 1),
                    "minutes": round((time.perf_counter() - start) / 60, 1),
                    "places": dict(figures.places),
                }
            )
    print(pd.DataFrame(table).drop(columns="places").to_string(index=False))
    in_all = sum((Counter(row["places"]) for row in table), Counter())
    for where, times in in_all.most_common():
        print(f"{times:4} kills {where}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--counted"]:
        sys.exit(run_counted(sys.argv[2], sys.argv[3:]))
    main()
