"""What a new process costs until the first clip is embedded: import, load a checkpoint, embed.

    python benchmarks/startup.py [--rounds 5] [--clip FILE] [--json FILE]

Writes a full-size network (random, 360 MB) in Microsoft's layout (`.pt`) and as a model folder (safetensors),
then starts new processes that embed one clip of 5 s with it. Files are in the system's cache, and the
checkpoint's checksum is known from the first start on, as it is for a user from the second one on; the first
one is shown too. Medians of wall time and of CPU time (all threads of the process), in seconds. The target is
3 s in all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = """
import json, sys, time
wall, cpu = [time.perf_counter()], [0.0]
def mark():
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
import beats_trainer
from beats_trainer import BEATsFeatureExtractor
mark()
extractor = BEATsFeatureExtractor(sys.argv[1])
mark()
embedding = extractor.extract_from_file(sys.argv[2])
mark()
extractor.extract_from_file(sys.argv[2])
mark()
assert embedding.shape == (768,)
print(json.dumps([[b - a for a, b in zip(t, t[1:])] for t in (wall, cpu)]))
"""

PHASES = ("import", "load", "first clip", "next clip")


def write_models(folder: Path) -> dict[str, Path]:
    """The same random network in both formats."""
    import torch

    from beats_trainer import BEATsModel
    from beats_trainer.model import Architecture

    torch.manual_seed(0)
    model = BEATsModel(Architecture())
    torch.save(model.to_microsoft(), folder / "checkpoint.pt")
    model.save_pretrained(folder / "folder")
    return {
        ".pt in Microsoft's layout": folder / "checkpoint.pt",
        "model folder (safetensors)": folder / "folder",
    }


def write_clip(path: Path) -> None:
    """5 s of noise."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(80_000) * 0.1
    soundfile.write(path, noise, 16_000)


def start(model: Path, clip: Path, cache: Path) -> dict[str, Any]:
    """One new process: seconds of each phase."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model, clip],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return {
        "wall": dict(zip(PHASES, wall, strict=True)),
        "cpu": dict(zip(PHASES, cpu, strict=True)),
    }


def main() -> None:
    """Start processes, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clip", type=Path, help="a sound file instead of 5 s of noise")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.clip or folder / "clip.wav"
        if arguments.clip is None:
            write_clip(clip)
        models = write_models(folder)
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in models}
        for _ in range(arguments.rounds + 1):
            for kind, path in models.items():
                runs[kind].append(start(path, clip, folder / "cache"))
    print(f"{'':40}" + "".join(f"{phase:>12}" for phase in PHASES) + f"{'to first':>12}")
    for kind, all_runs in runs.items():
        for title, some in (("first start", all_runs[:1]), ("later starts", all_runs[1:])):
            for clock in ("wall", "cpu"):
                seconds = {
                    phase: statistics.median(run[clock][phase] for run in some) for phase in PHASES
                }
                total = sum(seconds[phase] for phase in PHASES[:3])
                found.setdefault(kind, {}).setdefault(title, {})[clock] = {
                    **seconds,
                    "total": total,
                }
                head = f"{kind}, {title}, {clock}"
                print(
                    f"{head:40}"
                    + "".join(f"{seconds[phase]:12.2f}" for phase in PHASES)
                    + f"{total:12.2f}"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
