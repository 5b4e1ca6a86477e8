"""What a step of pre-training costs, by size: of the encoder, of the tokenizer, beside plain embedding.

    python benchmarks/pretraining.py [--sizes nano small base] [--clips 4] [--seconds 10] [--threads 1] [--json FILE]

For each size, on noise, in turns, medians: embedding clips (forward, in the packed form where the machine has it), a
step of masked audio modelling with codes of a random projection and of a distilled tokenizer, and a step of distilling
a tokenizer; forward, backward and AdamW. Ratios are to embedding in the same run; CPU seconds with one thread, else wall time.
Hours of sound per day of computing follow from it, on this machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from beats_trainer.loading.archive import ArchiveStep
from beats_trainer.loading.batches import AudioBatch
from beats_trainer.model import AcousticTokenizer, Architecture, BEATs, RandomProjectionTokenizer
from beats_trainer.model.packed import prepared_for_inference
from beats_trainer.model.precision import autocast, resolve_precision
from beats_trainer.pretraining import LabelPredictor, MaskedAudioModel, TokenizerDistiller
from beats_trainer.pretraining_config import SIZES
from beats_trainer.training.objectives import EncoderObjective, TokenizerObjective

DEVICE = torch.device("cpu")


def step(objective: torch.nn.Module, batch: ArchiveStep, dtype: torch.dtype) -> Callable[[], None]:
    """One step of training."""
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-6)
    objective.train()

    def once() -> None:
        optimizer.zero_grad()
        with autocast(DEVICE, dtype):
            output = objective(batch)
        (output.loss_sum / output.num_items).backward()
        optimizer.step()

    return once


def measure(size: str, clips: int, seconds: float, rounds: int, threads: int) -> dict[str, float]:
    """Seconds of computing per second of sound, of each kind of work."""
    torch.manual_seed(0)
    dtype = resolve_precision("auto", DEVICE)
    settings = SIZES[size]
    a = Architecture(**settings.architecture)
    waveforms = torch.randn(clips, round(16_000 * seconds)) * 0.1
    lengths = torch.full((clips,), waveforms.shape[1])
    batch = ArchiveStep(AudioBatch(waveforms, lengths), 0, list(range(clips)))
    beats = BEATs(a)
    predictor = LabelPredictor(a, 1024, settings.predictor_layers, settings.predictor_width)

    def embed() -> None:
        beats.eval()
        with torch.inference_mode(), autocast(DEVICE, dtype):
            prepared_for_inference(beats, dtype)(waveforms)

    masked = MaskedAudioModel(BEATs(a), predictor)
    works = {
        "embedding": embed,
        "encoder, random projection": step(
            EncoderObjective(masked, RandomProjectionTokenizer(a), 0), batch, dtype
        ),
        "encoder, distilled tokenizer": step(
            EncoderObjective(masked, AcousticTokenizer(a), 0), batch, dtype
        ),
        "tokenizer": step(
            TokenizerObjective(TokenizerDistiller(AcousticTokenizer(a), BEATs(a))), batch, dtype
        ),
    }
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(value) / (clips * seconds) for name, value in times.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["nano", "small", "base"])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{resolve_precision('auto', DEVICE)}, {arguments.threads} thread(s)")
    found = {}
    for size in arguments.sizes:
        costs = measure(
            size, arguments.clips, arguments.seconds, arguments.rounds, arguments.threads
        )
        found[size] = costs
        print(size)
        for name, cost in costs.items():
            print(
                f"  {name:30}{1e3 * cost:9.2f} ms per second of sound{cost / costs['embedding']:8.2f} x embedding"
                f"{24 / cost:12.0f} h of sound per day"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
